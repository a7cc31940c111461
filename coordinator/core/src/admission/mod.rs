//! Whether a plan that the search found is worth switching to, and whether it kept its promise.
//!
//! ```text
//!   candidates -> not in quarantine -> gain per iteration on common draws of the costs
//!              -> its lower tenth > what the model may be wrong by, and, over the horizon, > the pause of the switch
//!              -> of those that pay, the cheapest that gives most of the best one's net gain
//!   switched -> promise -> enough warm iterations -> Kept, or Broken: quarantine, and the plan before comes back
//! ```
//!
//! 1. Both plans are simulated on the same draws; what counts is the lower tenth of the difference.
//! 2. What the model may be wrong by depends on why is asked: least after a change, more for one refinement of a plan once
//!    the estimate has settled, most on a quiet day, where it is learned from how past predictions came true. So plans do not
//!    swing to and fro on noise.
//!    For the same reason a plan that was left is returned to as on a quiet day.
//! 3. No decision while a promise is open, unless something changed or a person asks.
//! 4. A plan that broke its promise is not tried again until its quarantine ends or the conditions change.
//! 5. Every verdict carries its reason as data.

#[cfg(test)]
mod calibration;
mod promise;
#[cfg(test)]
mod tests;
mod verdict;
mod weigh;

pub use verdict::{Because, Decision, Judgement, Reason, Verdict};

use crate::estimate::{Estimated, Measured};
use adaptis_plan::Plan;
use adaptis_proto::Step;
use promise::{Past, Promise, Quarantine, Shape};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Model error after a start, a change or a person's wish, relative to the iteration.
const ERROR_CHANGED: f64 = 0.015;
/// Model error of the one refinement.
const ERROR_REFINING: f64 = 0.02;
/// Model error on a quiet day, in standard deviations of what predictions were off by so far.
const ERROR_QUIET_DEVIATIONS: f64 = 2.0;
/// Iterations after a switch within which it may be refined.
const REFINE_ITERATIONS: u64 = 20;
/// Share of the best net gain that a cheaper change must give to be preferred.
const GOOD_ENOUGH: f64 = 0.95;
/// The span of [`Policy::switches_per_hour`].
const HOUR_NS: u64 = 3_600_000_000_000;
/// Times of switches kept; the oldest goes. A limit above it counts as none.
const SWITCHES: usize = 256;

/// A plan to switch to.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The plan.
    pub plan: Plan,
    /// Time that the moves of its layers take on the links, `moves::transfer_ns`; 0 for an order-only change.
    pub transfer_ns: u64,
}

/// Why a decision is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trigger {
    /// The first estimate of the run, or of a new membership.
    Start,
    /// A change was detected since the plan in force was made.
    Drift,
    /// Nothing changed: a search that went on, or an estimate that settled.
    Routine,
    /// A person asked for it.
    Operator,
}

/// What a decision is made of.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The iteration that training is in.
    pub step: Step,
    /// Now, any clock that does not go back.
    pub now_ns: u64,
    /// Why.
    pub trigger: Trigger,
    /// Costs and their intervals.
    pub estimated: &'a Estimated,
    /// The plan in force.
    pub running: &'a Plan,
    /// What the search offers, each valid by its audit.
    pub candidates: &'a [Candidate],
    /// How many iterations the gain is expected to last.
    pub horizon_iterations: u64,
    /// [`crate::estimate::Estimator::prediction_correction`].
    pub correction: f64,
    /// Seed of the draws.
    pub seed: u64,
}

/// What an operator may set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// No switch at all.
    pub frozen: bool,
    /// Most switches in any hour.
    pub switches_per_hour: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self { frozen: false, switches_per_hour: 60 }
    }
}

/// Remembers switches, promises and broken plans; decides.
#[derive(Clone, Debug)]
pub struct Admission {
    policy: Policy,
    switched_ns: VecDeque<u64>,
    past: Past,
    quarantine: Quarantine,
    promise: Option<Promise>,
    /// The last switch kept its promise and may be refined: when it was.
    refinable: Option<Step>,
    /// A refinement was made since the last start or change.
    refined: bool,
    /// The plan before the last switch, if nothing changed since.
    left: Option<Shape>,
}

impl Admission {
    /// With no history.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            switched_ns: VecDeque::new(),
            past: Past::default(),
            quarantine: Quarantine::default(),
            promise: None,
            refinable: None,
            refined: false,
            left: None,
        }
    }

    /// Changes what the operator set.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// What the operator set.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Expected pause of a switch whose moves take `transfer_ns` on the links, from past ones.
    pub fn cost_ns(&self, transfer_ns: u64) -> u64 {
        self.past.cost_ns(transfer_ns)
    }

    /// Whether to switch, to which candidate, and why.
    pub fn decide(&self, input: &Input<'_>) -> Decision {
        if let Some(reason) = self.objection(input) {
            return Decision::keep(reason);
        }
        let open: Vec<usize> = (0..input.candidates.len())
            .filter(|&at| self.quarantine.remaining(&input.candidates[at].plan, input.step).is_none())
            .collect();
        if open.is_empty() {
            return Decision::keep(self.all_in_quarantine(input));
        }
        let Some(weights) = weigh::weigh(input, &open, self.past.after_ratio()) else {
            return Decision::keep(Reason::Unpredictable);
        };
        let is_refining = self.may_refine(input);
        let error = match input.trigger {
            Trigger::Start | Trigger::Drift | Trigger::Operator => ERROR_CHANGED,
            Trigger::Routine if is_refining => ERROR_REFINING,
            Trigger::Routine => self.quiet_error(),
        };
        self.choose(input, &weights, error, is_refining)
    }

    /// What stands against any switch now.
    fn objection(&self, input: &Input<'_>) -> Option<Reason> {
        if self.policy.frozen {
            return Some(Reason::Frozen);
        }
        let since_ns = input.now_ns.saturating_sub(HOUR_NS);
        let recent = |at: &&u64| **at >= since_ns && (since_ns > 0 || input.now_ns >= **at);
        let switches = u32::try_from(self.switched_ns.iter().filter(recent).count()).unwrap_or(u32::MAX);
        if switches >= self.policy.switches_per_hour {
            return Some(Reason::RateLimited { switches, limit: self.policy.switches_per_hour });
        }
        if input.candidates.is_empty() {
            return Some(Reason::NoCandidate);
        }
        let waits = matches!(input.trigger, Trigger::Routine | Trigger::Start);
        let promise = self.promise.as_ref().filter(|_| waits)?;
        Some(Reason::PromiseOpen { iterations: input.step.0.saturating_sub(promise.step.0) })
    }

    fn all_in_quarantine(&self, input: &Input<'_>) -> Reason {
        let remaining =
            input.candidates.iter().filter_map(|candidate| self.quarantine.remaining(&candidate.plan, input.step));
        Reason::InQuarantine {
            candidates: input.candidates.len(),
            remaining_iterations: remaining.min().unwrap_or_default(),
        }
    }

    fn quiet_error(&self) -> f64 {
        (ERROR_QUIET_DEVIATIONS * self.past.off_sd()).max(ERROR_REFINING)
    }

    fn may_refine(&self, input: &Input<'_>) -> bool {
        let is_fresh = |at: Step| input.step.0.saturating_sub(at.0) <= REFINE_ITERATIONS;
        input.trigger == Trigger::Routine && !self.refined && self.refinable.is_some_and(is_fresh)
    }

    /// The cheapest of those that pay and give most of the best one's net gain, or why none pays.
    fn choose(&self, input: &Input<'_>, weights: &weigh::Weights, error: f64, is_refining: bool) -> Decision {
        let error_ns = |weight: &weigh::Weight| {
            let is_return = self.left.as_ref().is_some_and(|left| left.is(&input.candidates[weight.candidate].plan));
            let error = if is_return { error.max(self.quiet_error()) } else { error };
            (error * weights.before_ns as f64).round() as i64
        };
        let horizon = i64::try_from(input.horizon_iterations).unwrap_or(i64::MAX);
        let net_of = |weight: &weigh::Weight| {
            let cost_ns = i64::try_from(self.past.cost_ns(weight.transfer_ns)).unwrap_or(i64::MAX);
            weight.gain_low_ns.saturating_mul(horizon).saturating_sub(cost_ns)
        };
        let is_clear = |weight: &&weigh::Weight| weight.gain_low_ns > error_ns(weight);
        let paying: Vec<&weigh::Weight> =
            weights.of.iter().filter(is_clear).filter(|weight| net_of(weight) > 0).collect();
        let decision = |weight: &weigh::Weight, verdict| Decision {
            verdict,
            predicted_before_ns: weights.before_ns,
            predicted_after_ns: weight.after_ns,
            gain_low_ns: weight.gain_low_ns,
            cost_ns: self.past.cost_ns(weight.transfer_ns),
        };
        let best_net = paying.iter().map(|weight| net_of(weight)).max();
        let good_enough =
            |weight: &&&weigh::Weight| best_net.is_some_and(|best| net_of(weight) as f64 >= GOOD_ENOUGH * best as f64);
        let rank = |weight: &&&weigh::Weight| (weight.transfer_ns, weight.candidate);
        if let Some(chosen) = paying.iter().filter(good_enough).min_by_key(rank) {
            let (gain_low_ns, horizon_iterations) = (chosen.gain_low_ns, input.horizon_iterations);
            let cost_ns = self.past.cost_ns(chosen.transfer_ns);
            let because = match is_refining {
                true => Because::Refines { gain_low_ns, horizon_iterations, cost_ns },
                false => Because::Pays { gain_low_ns, horizon_iterations, cost_ns },
            };
            return decision(chosen, Verdict::Switch { candidate: chosen.candidate, because });
        }
        let Some(best) = weights.of.iter().max_by_key(|weight| (weight.gain_low_ns, weight.gain_ns)) else {
            return Decision::keep(Reason::Unpredictable);
        };
        let reason = if best.gain_ns <= 0 {
            Reason::NoBetterPlan { predicted_after_ns: best.after_ns, predicted_before_ns: weights.before_ns }
        } else if !is_clear(&best) {
            Reason::GainBelowModelError { gain_low_ns: best.gain_low_ns, error_ns: error_ns(best).unsigned_abs() }
        } else {
            Reason::GainBelowCost {
                gain_low_ns: best.gain_low_ns.saturating_mul(horizon),
                cost_ns: self.past.cost_ns(best.transfer_ns),
                horizon_iterations: input.horizon_iterations,
            }
        };
        decision(best, Verdict::Keep(reason))
    }

    /// A switch took effect: `decision` ordered it, from `before`, whose measured iterations were `measured_before`,
    /// to `after`, at `step`, with training standing still for `pause_ns`.
    #[expect(clippy::too_many_arguments, reason = "the facts of one event")]
    pub fn switched(
        &mut self,
        now_ns: u64,
        step: Step,
        decision: &Decision,
        before: &Plan,
        measured_before: Option<Measured>,
        after: &Plan,
        transfer_ns: u64,
        pause_ns: u64,
    ) {
        self.count_switch(now_ns);
        self.past.paused(transfer_ns, pause_ns);
        if let Verdict::Switch { because: Because::Refines { .. }, .. } = decision.verdict {
            self.refined = true;
        }
        self.refinable = None;
        self.left = Some(Shape::of(before));
        self.promise = Some(Promise::new(step, decision, measured_before, after));
    }

    /// A plan that broke its promise was taken back: a switch as well, of which nothing is promised.
    pub fn reverted(&mut self, now_ns: u64) {
        self.count_switch(now_ns);
    }

    /// A plan can't be run as things are: it goes to quarantine.
    pub fn set_aside(&mut self, plan: &Plan, step: Step) {
        self.quarantine.add(plan, step);
    }

    fn count_switch(&mut self, now_ns: u64) {
        if self.switched_ns.len() == SWITCHES {
            self.switched_ns.pop_front();
        }
        self.switched_ns.push_back(now_ns);
    }

    /// A device or link changed: what the last switch promised no longer holds, and what was broken may hold now.
    pub fn changed(&mut self) {
        self.promise = None;
        self.refinable = None;
        self.refined = false;
        self.left = None;
        self.quarantine.clear();
    }

    /// A device or link went to its other level: measurements before and after it are of different conditions.
    pub fn turned(&mut self) {
        self.promise = None;
    }

    /// Holds the last switch to its promise, once enough warm iterations of its plan were measured. A broken one goes
    /// to quarantine, and the plan before it is to be taken back.
    pub fn judge(&mut self, step: Step, measured: Option<Measured>) -> Judgement {
        let Some(promise) = &self.promise else { return Judgement::NothingPromised };
        let judgement = promise.judge(measured);
        let ratio = match judgement {
            Judgement::NothingPromised | Judgement::Waiting { .. } => return judgement,
            Judgement::Kept { ratio, .. } => {
                self.refinable = Some(promise.step);
                ratio
            }
            Judgement::Broken { ratio, .. } => {
                self.quarantine.add(&promise.after, step);
                ratio
            }
        };
        self.past.held(ratio);
        self.promise = None;
        judgement
    }
}
