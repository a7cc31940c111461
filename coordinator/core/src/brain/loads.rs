//! The loads of microbatches: what people are told of them, and what a work would take at the mean one.

use super::{Announcement, Brain};
use crate::estimate::{Covariates, Load};
use adaptis_proto::sample::{Phase, Place};
use adaptis_proto::{DeviceIndex, LayerIndex, Microbatch, Step};

/// What was said already, for each thing is said once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    differ: bool,
    are_unknown: bool,
}

impl Told {
    /// Once loads are known to make a difference: before, costs are divided by nothing.
    pub(super) fn differ(&mut self, covariates: Option<&Covariates>) -> Option<Announcement> {
        let covariates = covariates.filter(|covariates| !self.differ && covariates.matter())?;
        self.differ = true;
        Some(Announcement::LoadsDiffer { mean: covariates.mean })
    }

    fn are_unknown(&mut self, works: u64) -> Option<Announcement> {
        let is_news = works > 0 && !self.are_unknown;
        self.are_unknown |= is_news;
        is_news.then_some(Announcement::LoadsUnknown)
    }
}

impl Brain {
    pub(super) fn tell_of_unknown_loads(&mut self) {
        let works = self.without_load();
        let announcement = self.adapt.as_mut().and_then(|adapt| adapt.told.are_unknown(works));
        announcement.into_iter().for_each(|announcement| self.announce(announcement));
    }

    fn without_load(&self) -> u64 {
        let gauge = self.adapt.as_ref().and_then(|adapt| adapt.gauge.as_ref());
        gauge.map_or(0, |gauge| gauge.without_load())
    }

    /// Where somebody records loads or ought to.
    pub(super) fn counters_of_loads(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let refused = self.adapt.as_ref().map_or(0, |adapt| adapt.estimator.refused_loads());
        let of = [("loads_refused", refused), ("works_without_load", self.without_load())];
        of.into_iter().map(|(name, count)| (name.to_owned(), count))
    }

    /// Costs are those of the mean load, by the last fit: it matters which load a work had.
    pub fn has_covariates(&self) -> bool {
        let fit = self.adapt.as_ref().and_then(|adapt| adapt.fit.as_ref());
        fit.is_some_and(|fit| fit.estimated.uncertainty.covariates.is_some())
    }

    /// The load of a microbatch, if it was recorded of late.
    pub fn load(&self, step: Step, microbatch: Microbatch) -> Option<Load> {
        self.adapt.as_ref()?.estimator.load(step, microbatch)
    }

    /// Time of a work on a device over what it takes at the speed of its kind and the mean load, by the last fit; 1 before the
    /// first. `load` is that of its microbatch, where it is not known from before.
    pub fn over_usual(
        &self,
        device: DeviceIndex,
        place: Place,
        (layer, microbatch, phase): (LayerIndex, Microbatch, Phase),
        load: Option<Load>,
    ) -> f64 {
        let Some(fit) = self.adapt.as_ref().and_then(|adapt| adapt.fit.as_ref()) else { return 1.0 };
        let load = self.load(place.step, microbatch).or(load);
        fit.estimated.over_usual(device, layer, phase, load)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::{Fitted, Form};

    #[test]
    fn people_are_told_once_and_only_of_a_difference() {
        let of = |form: Form, slope_sd: f64| {
            let forms = [("h100".to_owned(), vec![[Fitted { form, slope_sd }; 3]])].into();
            Covariates { mean: Load::new(2_000, 0, 0), some: Vec::new(), forms }
        };
        let mut told = Told::default();
        assert_eq!(told.differ(None), None);
        assert_eq!(told.differ(Some(&of(Form::FLAT, 1.0))), None, "too few works were seen to tell");
        let known = of(Form([0.2, 0.8, 0.0, 0.0]), 0.05);
        assert_eq!(told.differ(Some(&known)), Some(Announcement::LoadsDiffer { mean: known.mean }));
        assert_eq!(told.differ(Some(&known)), None);
        assert_eq!([0, 3, 5].map(|works| told.are_unknown(works)), [None, Some(Announcement::LoadsUnknown), None]);
    }
}
