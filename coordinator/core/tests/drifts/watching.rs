//! A job watched as the brain watches it: the same estimate, gauge and detector, and a new reference when the brain would
//! make one.

use super::job::{Condition, Job};
use adaptis_coordinator_core::drift::{Change, Drift, Gauge, Limits, Shift};
use adaptis_coordinator_core::estimate::Estimator;
use adaptis_proto::DeviceIndex;
use adaptis_proto::sample::Sample;

/// Iterations before the first reference, after a change, and until one settles: as the brain has them.
const FIRST: u64 = 6;
const CHANGE: u64 = 2;
const SETTLE: u64 = 11;

/// What the detector said, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    pub at: u64,
    pub shift: Shift,
    pub change: Change,
}

impl Told {
    /// It says that something takes another time.
    pub fn is_change(&self) -> bool {
        matches!(self.shift, Shift::Changed(_))
    }

    /// It is to be acted on.
    pub fn is_lasting(&self) -> bool {
        matches!(self.shift, Shift::Lasts(_))
    }
}

pub struct Watching {
    pub job: Job,
    pub told: Vec<Told>,
    estimator: Estimator,
    gauge: Option<Gauge>,
    drift: Drift,
    step: u64,
    refit_at: Option<u64>,
    settle_at: Option<u64>,
    samples: Vec<(DeviceIndex, Sample)>,
}

impl Watching {
    pub fn new(job: Job) -> Self {
        let mut estimator = Estimator::new(job.view());
        job.memory().iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
        Self {
            job,
            told: Vec::new(),
            estimator,
            gauge: None,
            drift: Drift::new(Limits::default()),
            step: 0,
            refit_at: Some(FIRST - 1),
            settle_at: Some(FIRST + SETTLE),
            samples: Vec::new(),
        }
    }

    /// One iteration under a condition.
    pub fn iterate(&mut self, condition: &Condition) {
        let mut samples = std::mem::take(&mut self.samples);
        self.job.iteration(self.step, condition, &mut samples);
        for (device, sample) in &samples {
            self.estimator.absorb(*device, sample);
            let readings = self.gauge.as_mut().map(|gauge| gauge.absorb(*device, sample)).unwrap_or_default();
            let shifts: Vec<Shift> = readings.iter().flat_map(|readings| self.drift.observe(readings)).collect();
            shifts.into_iter().for_each(|shift| self.take(shift));
        }
        self.samples = samples;
        self.refit_when_due();
        self.step += 1;
    }

    fn take(&mut self, shift: Shift) {
        let change = shift.change();
        self.told.push(Told { at: self.step, shift, change });
        match shift {
            Shift::Changed(_) => self.estimator.restart_window(change.who, change.onset),
            Shift::Turned(_) => return self.estimator.restart_window(change.who, change.onset),
            Shift::Passed(passed) => self.estimator.undo_change(change.who, passed.began.onset, change.onset),
            Shift::Lasts(_) => return,
            Shift::Corrected(_) | Shift::WithPlan(_) => {}
        }
        self.refit_at = Some(change.onset.0 + CHANGE - 1);
    }

    fn refit_when_due(&mut self) {
        let is_due = |at: Option<u64>| at.is_some_and(|at| at <= self.step);
        let is_change = is_due(self.refit_at);
        if !is_change && !is_due(self.settle_at) {
            return;
        }
        self.settle_at = is_change.then_some(self.step + SETTLE + 1);
        self.refit_at = None;
        let estimated = self.estimator.problem().expect("every layer was measured");
        match &mut self.gauge {
            Some(gauge) => gauge.set_reference(&estimated),
            none => *none = Some(Gauge::new(&estimated)),
        }
        self.drift.reference_changed();
    }
}
