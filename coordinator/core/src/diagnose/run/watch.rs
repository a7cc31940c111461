//! The first reading: who became slower, when, and by how much.

use super::{Slowdown, Watched};
use crate::drift::{Change, Drift, Gauge, Limits, Readings, Shift, Who};
use crate::estimate::robust::median;
use crate::estimate::{Estimator, JobView};
use adaptis_proto::sample::Sample;
use adaptis_proto::{DeviceIndex, Epoch, Step};
use std::collections::BTreeMap;

/// Iterations before the first fit.
const FIRST_FIT: u64 = 6;
/// Iterations under a new plan before the next fit, and after a change: what is measured against the fit before tells by
/// how much.
const SETTLED: u64 = 10;
/// Readings kept of each; the oldest goes.
const READINGS: usize = 64;
/// Readings that tell the level before a change.
const BEFORE: usize = 12;

/// Takes samples in the order in which they were stored.
#[derive(Clone, Debug)]
pub struct Watch {
    estimator: Estimator,
    gauge: Option<Gauge>,
    drift: Drift,
    readings: BTreeMap<Who, Vec<(Step, f64)>>,
    slowdowns: Vec<Slowdown>,
    /// Changes whose readings are still coming, with the level before.
    settling: Vec<(Change, f64, Vec<f64>)>,
    epoch: Epoch,
    iterations: u64,
    /// When to fit again.
    fit_at: Option<u64>,
}

impl Watch {
    /// Knows the job and nothing measured.
    pub fn new(job: JobView) -> Self {
        Self {
            estimator: Estimator::new(job),
            gauge: None,
            drift: Drift::new(Limits::default()),
            readings: BTreeMap::new(),
            slowdowns: Vec::new(),
            settling: Vec::new(),
            epoch: Epoch(0),
            iterations: 0,
            fit_at: Some(FIRST_FIT),
        }
    }

    /// Takes a sample of a device.
    pub fn absorb(&mut self, device: DeviceIndex, sample: &Sample) {
        self.estimator.absorb(device, sample);
        let readings = self.gauge.as_mut().map(|gauge| gauge.absorb(device, sample)).unwrap_or_default();
        readings.iter().for_each(|readings| self.read(readings));
        if let Sample::Iteration { place, .. } = sample
            && device == DeviceIndex(0)
        {
            self.iterations += 1;
            if place.epoch != self.epoch {
                self.epoch = place.epoch;
                self.fit_at = self.fit_at.max(Some(self.iterations + FIRST_FIT));
            }
            if self.fit_at.is_some_and(|fit_at| self.iterations >= fit_at) {
                self.fit();
            }
        }
    }

    fn read(&mut self, readings: &Readings) {
        for reading in readings.of.iter().filter(|reading| reading.ln_ratio.is_finite() && !reading.is_guess) {
            for (change, before, factors) in &mut self.settling {
                if change.who == reading.who {
                    factors.push((reading.ln_ratio - *before).exp());
                }
            }
            let of = self.readings.entry(reading.who).or_default();
            if of.len() == READINGS {
                of.remove(0);
            }
            of.push((readings.step, reading.ln_ratio));
        }
        for shift in self.drift.observe(readings) {
            match shift {
                Shift::Changed(change) | Shift::Turned(change) => self.changed(change),
                // What was over before it had lasted is nothing that is slow.
                Shift::Passed(passed) => {
                    let (began, ended) = (passed.began, passed.ended);
                    self.settling.retain(|(change, ..)| change.who != began.who || change.onset != began.onset);
                    self.estimator.undo_change(began.who, began.onset, ended.onset);
                }
                Shift::Lasts(_) | Shift::Corrected(_) | Shift::WithPlan(_) => {}
            }
        }
    }

    fn changed(&mut self, change: Change) {
        self.estimator.restart_window(change.who, change.onset);
        let of = self.readings.get(&change.who).map_or(&[][..], Vec::as_slice);
        let at = of.partition_point(|(step, _)| *step < change.onset);
        let mut before: Vec<f64> = of[at.saturating_sub(BEFORE)..at].iter().map(|(_, ln)| *ln).collect();
        let before = median(&mut before).unwrap_or(0.0);
        let since = of[at..].iter().map(|(_, ln)| (ln - before).exp()).collect();
        self.settling.push((change, before, since));
        self.fit_at = self.fit_at.max(Some(self.iterations + SETTLED));
    }

    /// A new reference: what is settling has settled.
    fn fit(&mut self) {
        let Ok(estimated) = self.estimator.problem() else { return };
        self.settle();
        match &mut self.gauge {
            Some(gauge) => gauge.set_reference(&estimated),
            none => *none = Some(Gauge::new(&estimated)),
        }
        self.drift.reference_changed();
        self.readings.clear();
        self.fit_at = None;
    }

    fn settle(&mut self) {
        for (change, _, factors) in std::mem::take(&mut self.settling) {
            let open = self.slowdowns.iter_mut().rev().find(|open| open.who == change.who && open.until.is_none());
            match open {
                Some(open) if change.factor < 1.0 => open.until = Some(change.onset),
                // Slower once more: both together, told as one that has grown.
                Some(open) => {
                    open.until = Some(change.onset);
                    let before = open.factor();
                    let factors = factors.iter().map(|factor| before * factor).collect();
                    self.slowdowns.push(Slowdown { who: change.who, from: change.onset, until: None, factors });
                }
                None if change.factor > 1.0 => {
                    self.slowdowns.push(Slowdown { who: change.who, from: change.onset, until: None, factors });
                }
                None => {}
            }
        }
    }

    /// What was seen.
    pub fn finish(mut self) -> Watched {
        self.settle();
        self.slowdowns.sort_by_key(|slowdown| slowdown.from);
        let devices = self.estimator.job().devices.iter().map(|card| card.name.clone()).collect();
        Watched { slowdowns: self.slowdowns, estimated: self.estimator.problem().ok(), devices }
    }
}
