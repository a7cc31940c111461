//! What earlier jobs measured: taken when the shell has read it, handed to the estimate; and what rests on it.

use super::{Announcement, Brain};
use crate::estimate::earlier::{Earlier, OfKind};
use crate::estimate::{Estimated, Source};
use adaptis_proto::Epoch;
use std::collections::BTreeMap;

/// The estimate before anything of this job was fitted.
#[derive(Clone, Debug)]
pub(super) struct Prospect {
    estimated: Estimated,
    sources: BTreeMap<Source, u64>,
    epoch: Epoch,
    /// Iteration of the plan in force; none where it can't be simulated.
    predicted_ns: Option<u64>,
}

impl Brain {
    pub(super) fn on_recalled(&mut self, earlier: Earlier) {
        self.earlier = earlier;
        self.hand_priors_on();
        let Some(adapt) = &self.adapt else { return };
        let is_told = |(_, of): &(&String, &OfKind)| !(of.measured.is_empty() && of.predicted.is_empty());
        let kinds: Vec<String> = self.earlier.kinds.iter().filter(is_told).map(|(kind, _)| kind.clone()).collect();
        if kinds.is_empty() {
            return;
        }
        let prospect = adapt.prospect.as_ref().filter(|_| adapt.fit.is_none());
        let announcement = Announcement::Recalled { kinds, predicted_ns: prospect.and_then(|of| of.predicted_ns) };
        self.announce(announcement);
    }

    /// Tells the estimate what is known of the kinds before this job.
    pub(super) fn hand_priors_on(&mut self) {
        let (running, epoch) = (self.running.as_ref(), self.head.epoch);
        let Some(adapt) = &mut self.adapt else { return };
        adapt.estimator.set_rates(self.calibrations.of_kind().clone());
        adapt.estimator.set_earlier(self.earlier.clone());
        if adapt.fit.is_some() || self.earlier == Earlier::default() {
            return;
        }
        adapt.prospect = adapt.estimator.problem().ok().map(|estimated| Prospect {
            sources: estimated.uncertainty.sources(),
            predicted_ns: running.and_then(|plan| estimated.iterations(plan)).map(|draws| draws.median_ns()),
            epoch,
            estimated,
        });
    }

    /// What is known of this job's costs: as last fitted, or as earlier jobs tell.
    pub fn estimated(&self) -> Option<&Estimated> {
        let adapt = self.adapt.as_ref()?;
        let prospect = adapt.prospect.as_ref().map(|prospect| &prospect.estimated);
        adapt.fit.as_ref().map(|fit| &fit.estimated).or(prospect)
    }

    /// Iteration of the plan in force, as earlier jobs tell, before anything was fitted.
    pub(super) fn prospect_ns(&self) -> Option<u64> {
        let prospect = self.adapt.as_ref()?.prospect.as_ref()?;
        prospect.predicted_ns.filter(|_| prospect.epoch == self.head.epoch)
    }

    /// How many figures of the estimate, of a device, layer and phase each, come from where.
    pub fn figures_by_source(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let adapt = self.adapt.as_ref();
        let fitted = adapt.and_then(|adapt| adapt.fit.as_ref()).map(|fit| &fit.sources);
        let told = adapt.and_then(|adapt| adapt.prospect.as_ref()).map(|prospect| &prospect.sources);
        let sources = fitted.or(told).into_iter().flatten();
        sources.map(|(source, count)| (source.word(), *count))
    }
}
