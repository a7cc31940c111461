//! What past switches cost and gave: promises, their outcome, and the quarantine of plans that broke theirs.

use super::{Decision, Judgement};
use crate::estimate::{Measured, robust};
use adaptis_plan::{Instruction, Plan, Stage};
use adaptis_proto::Step;
use std::collections::VecDeque;

/// Warm iterations before a promise is judged.
const JUDGED_ITERATIONS_MIN: usize = 4;
/// A plan measured slower than the one before by more than this share broke its promise.
const LOSS_MEASURED: f64 = 0.01;
/// The same where the plan before was only predicted.
const LOSS_PREDICTED: f64 = 0.02;
/// Iterations of quarantine.
const QUARANTINE_ITERATIONS: u64 = 500;
/// Plans in quarantine; the oldest goes.
const QUARANTINED: usize = 16;
/// Past switches that count; the oldest goes.
const PAST: usize = 16;
/// Pause of a switch that moves nothing, before one was seen.
const FIXED_NS: u64 = 2_000_000;
/// Pause over transfer time, before one was seen.
const TRANSFER_RATIO: f64 = 1.1;
/// A ratio outside of it comes from something else than the transfer.
const TRANSFER_RATIO_RANGE: (f64, f64) = (0.5, 20.0);
/// Past predictions that the belief in them is worth.
const AFTER_PRIOR: f64 = 8.0;
/// What a prediction is off by before any was held against what came (standard deviation), and the predictions that this
/// belief is worth.
const OFF_PRIOR: f64 = 0.025;
const OFF_PRIOR_COUNT: f64 = 2.0;
/// Most that past predictions take off a gain, as a share of the iteration.
const AFTER_RATIO_MAX: f64 = 1.1;

/// What switches took and how their predictions came true.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    pauses: VecDeque<(u64, u64)>,
    ratios: VecDeque<f64>,
}

fn push<T>(queue: &mut VecDeque<T>, value: T) {
    if queue.len() == PAST {
        queue.pop_front();
    }
    queue.push_back(value);
}

impl Past {
    pub fn paused(&mut self, transfer_ns: u64, pause_ns: u64) {
        push(&mut self.pauses, (transfer_ns, pause_ns));
    }

    pub fn held(&mut self, ratio: f64) {
        push(&mut self.ratios, ratio);
    }

    /// Expected pause.
    pub fn cost_ns(&self, transfer_ns: u64) -> u64 {
        let still = self.pauses.iter().filter(|(transfer, _)| *transfer == 0);
        let fixed_ns = robust::median(&mut still.map(|(_, pause)| *pause as f64).collect::<Vec<_>>());
        let fixed_ns = fixed_ns.unwrap_or(FIXED_NS as f64);
        let moving = self.pauses.iter().filter(|(transfer, _)| *transfer > 0);
        let ratio = |(transfer, pause): &(u64, u64)| (*pause as f64 - fixed_ns) / *transfer as f64;
        let ratio = robust::median(&mut moving.map(ratio).collect::<Vec<_>>()).unwrap_or(TRANSFER_RATIO);
        let ratio = ratio.clamp(TRANSFER_RATIO_RANGE.0, TRANSFER_RATIO_RANGE.1);
        (fixed_ns + ratio * transfer_ns as f64).round() as u64
    }

    /// Measured over predicted of plans that were switched to, held near 1: the search picks what the model flatters.
    pub fn after_ratio(&self) -> f64 {
        let count = self.ratios.len() as f64;
        let median = robust::median(&mut self.ratios.iter().copied().collect::<Vec<_>>()).unwrap_or(1.0);
        ((AFTER_PRIOR + count * median) / (AFTER_PRIOR + count)).clamp(1.0, AFTER_RATIO_MAX)
    }
}

impl Past {
    /// What predictions are off by, as a share of the iteration: standard deviation.
    pub fn off_sd(&self) -> f64 {
        let squares: f64 = self.ratios.iter().map(|ratio| ratio.ln().powi(2)).sum();
        let count = OFF_PRIOR_COUNT + self.ratios.len() as f64;
        ((OFF_PRIOR_COUNT * OFF_PRIOR.powi(2) + squares) / count).sqrt()
    }
}

/// What a plan does, whatever its number.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    stages: Vec<Stage>,
    programs: Vec<Vec<Instruction>>,
}

impl Shape {
    pub fn of(plan: &Plan) -> Self {
        Self { stages: plan.stages.clone(), programs: plan.programs.clone() }
    }

    pub fn is(&self, plan: &Plan) -> bool {
        self.stages == plan.stages && self.programs == plan.programs
    }
}

/// Plans that broke their promise, each until an iteration.
#[derive(Clone, Debug, Default)]
pub(super) struct Quarantine {
    plans: VecDeque<(Shape, Step)>,
}

impl Quarantine {
    pub fn add(&mut self, plan: &Plan, step: Step) {
        if self.plans.len() == QUARANTINED {
            self.plans.pop_front();
        }
        let until = Step(step.0.saturating_add(QUARANTINE_ITERATIONS));
        self.plans.push_back((Shape::of(plan), until));
    }

    pub fn clear(&mut self) {
        self.plans.clear();
    }

    /// Iterations until a plan may be tried again; none if it may.
    pub fn remaining(&self, plan: &Plan, step: Step) -> Option<u64> {
        let until = self.plans.iter().rev().find(|(shape, _)| shape.is(plan)).map(|(_, until)| until.0)?;
        until.checked_sub(step.0).filter(|left| *left > 0)
    }
}

/// What a switch promised.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    pub step: Step,
    pub after: Plan,
    predicted_after_ns: u64,
    /// The plan before: measured, else predicted.
    before_ns: u64,
    loss_allowed: f64,
}

impl Promise {
    pub fn new(step: Step, decision: &Decision, measured_before: Option<Measured>, after: &Plan) -> Self {
        let measured = measured_before.filter(|measured| measured.iterations >= JUDGED_ITERATIONS_MIN);
        let (before_ns, loss_allowed) = match measured {
            Some(measured) => (measured.median_ns, LOSS_MEASURED),
            None => (decision.predicted_before_ns, LOSS_PREDICTED),
        };
        Self { step, after: after.clone(), predicted_after_ns: decision.predicted_after_ns, before_ns, loss_allowed }
    }

    pub fn judge(&self, measured: Option<Measured>) -> Judgement {
        let iterations = measured.map_or(0, |measured| measured.iterations);
        let Some(measured) = measured.filter(|_| iterations >= JUDGED_ITERATIONS_MIN) else {
            return Judgement::Waiting { iterations };
        };
        let ratio = measured.median_ns as f64 / self.predicted_after_ns.max(1) as f64;
        let gain = self.before_ns as f64 - measured.median_ns as f64;
        match gain < -self.loss_allowed * self.before_ns as f64 {
            true => Judgement::Broken { ratio, loss_ns: (-gain).round() as i64 },
            false => Judgement::Kept { ratio, gain_ns: gain.round() as i64 },
        }
    }
}
