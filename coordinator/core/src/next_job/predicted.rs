//! How far a plan rests on predictions: what share of the work, and how long an iteration may take for it.
//!
//! Predictions of one kind err together, since what they have in common is what was measured on it. So an iteration is
//! bounded by every predicted time at the same end of its interval, not by draws of each.

use super::{NextJob, nanoseconds};
use crate::predict::Prediction;
use adaptis_plan::problem::TOTAL_MAX;
use adaptis_plan::{Plan, Problem};
use adaptis_planner::simulate::{CannotSimulate, simulate};
use adaptis_proto::sample::Phase;

/// A time that was not measured on its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// On which kind.
    pub kind: String,
    /// Of which layers.
    pub signature: String,
    /// What was done.
    pub phase: Phase,
    /// What was said.
    pub time: Prediction,
}

impl Predicted {
    /// The upper end of its interval as a multiple of the lower one.
    pub fn width(&self) -> f64 {
        self.time.high / self.time.low
    }
}

/// What of a plan is predicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Reliance<'a> {
    /// Of the devices' work in an iteration, optimizer steps included, the share whose time was predicted.
    pub share: f64,
    /// The iteration, were every predicted time at the lower end of its interval.
    pub low_ns: u64,
    /// The iteration, were every one at the upper end.
    pub high_ns: u64,
    /// Of the times that the plan needs, the one with the widest interval.
    pub widest: &'a Predicted,
}

impl NextJob {
    /// How far a plan of the problem rests on predictions; none where it needs no predicted time.
    ///
    /// # Errors
    /// The plan can't be simulated.
    pub fn reliance(&self, plan: &Plan) -> Result<Option<Reliance<'_>>, CannotSimulate> {
        let is_needed = |predicted: &&Predicted| {
            plan.stages.iter().any(|stage| {
                self.problem.devices[stage.device as usize].kind == predicted.kind
                    && self.problem.layers[stage.range()].iter().any(|layer| layer.signature == predicted.signature)
            })
        };
        let needed = self.predicted.iter().filter(is_needed);
        let Some(widest) = needed.max_by(|a, b| a.width().total_cmp(&b.width())) else { return Ok(None) };
        let measured = self.with_predictions(|_| 0.0);
        let [all, measured] = [work(&self.problem, plan)?, work(&measured, plan)?];
        let share = if all > 0.0 { (1.0 - measured / all).max(0.0) } else { 0.0 };
        let low_ns = iteration_ns(&self.with_predictions(|time| time.low), plan)?;
        let high_ns = iteration_ns(&self.with_predictions(|time| time.high), plan)?;
        Ok(Some(Reliance { share, low_ns, high_ns, widest }))
    }

    /// The problem with other seconds for each predicted time.
    fn with_predictions(&self, seconds: impl Fn(&Prediction) -> f64) -> Problem {
        let mut problem = self.problem.clone();
        for Predicted { kind, signature, phase, time } in &self.predicted {
            let ns = nanoseconds(seconds(time));
            let costs = problem.costs.get_mut(kind).into_iter().flatten();
            let optimizers = problem.optimizer_ns.get_mut(kind).into_iter().flatten();
            let layers = problem.layers.iter().zip(costs).zip(optimizers);
            for ((_, cost), optimizer_ns) in layers.filter(|((layer, _), _)| layer.signature == *signature) {
                match phase {
                    Phase::Forward => cost.forward_ns = ns,
                    Phase::InputGradient => cost.input_gradient_ns = ns,
                    Phase::WeightGradient => cost.weight_gradient_ns = ns,
                    Phase::Optimizer => *optimizer_ns = ns,
                    // Costs have none of their own: it is the forward again.
                    Phase::Recompute => {}
                }
            }
        }
        problem
    }
}

/// What all devices work in an iteration, in nanoseconds.
fn work(problem: &Problem, plan: &Plan) -> Result<f64, CannotSimulate> {
    let spans = simulate(problem, plan)?.spans;
    let instructions: f64 = spans.iter().flatten().map(|span| (span.end_ns - span.start_ns) as f64).sum();
    let optimizer = |stage: &adaptis_plan::Stage| {
        let device = &problem.devices[stage.device as usize];
        problem.optimizer_ns[&device.kind][stage.range()].iter().sum::<u64>() as f64 * device.slowdown
    };
    Ok(instructions + plan.stages.iter().map(optimizer).sum::<f64>())
}

/// As simulated; the longest there is, of times that are too long for a problem.
fn iteration_ns(problem: &Problem, plan: &Plan) -> Result<u64, CannotSimulate> {
    if problem.check().is_err() {
        return Ok(TOTAL_MAX);
    }
    Ok(simulate(problem, plan)?.iteration_ns)
}
