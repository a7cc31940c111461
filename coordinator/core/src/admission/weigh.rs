//! What each candidate would gain, on common draws of the costs.

use super::Input;
use adaptis_plan::{Plan, Problem};
use adaptis_planner::simulate::simulate;

/// Draws of the costs.
const DRAWS: u64 = 32;
/// Quantile of the gain that counts.
const LOW_QUANTILE: f64 = 0.1;

/// What a candidate would gain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weight {
    pub candidate: usize,
    pub transfer_ns: u64,
    pub after_ns: u64,
    /// By the estimate itself.
    pub gain_ns: i64,
    /// Lower quantile over the draws, never more than `gain_ns`.
    pub gain_low_ns: i64,
}

/// All of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Weights {
    pub before_ns: u64,
    pub of: Vec<Weight>,
}

/// Weighs the `open` candidates; none if the running plan can't be simulated, or none of them. Predictions of plans
/// that were switched to came out `after_ratio` times longer so far.
pub(super) fn weigh(input: &Input<'_>, open: &[usize], after_ratio: f64) -> Option<Weights> {
    let before = |problem: &Problem| Some(iteration_ns(problem, input.running)? * input.correction);
    let after = |problem: &Problem, at: usize| {
        Some(iteration_ns(problem, &input.candidates[at].plan)? * input.correction * after_ratio)
    };
    let problem = &input.estimated.problem;
    let before_ns = before(problem)?;
    let mut gains: Vec<Vec<f64>> = vec![Vec::new(); open.len()];
    for index in 0..DRAWS {
        let drawn = input.estimated.draw(input.seed, index);
        let Some(before_ns) = before(&drawn) else { continue };
        for (gains, &at) in gains.iter_mut().zip(open) {
            gains.extend(after(&drawn, at).map(|after_ns| before_ns - after_ns));
        }
    }
    let weights = open.iter().zip(gains).filter_map(|(&at, mut gains)| {
        let after_ns = after(problem, at)?;
        gains.sort_unstable_by(f64::total_cmp);
        let low = *gains.get((LOW_QUANTILE * gains.len() as f64) as usize)?;
        let gain = before_ns - after_ns;
        Some(Weight {
            candidate: at,
            transfer_ns: input.candidates[at].transfer_ns,
            after_ns: after_ns.round() as u64,
            gain_ns: gain.round() as i64,
            gain_low_ns: low.min(gain).round() as i64,
        })
    });
    let of: Vec<Weight> = weights.collect();
    (!of.is_empty()).then(|| Weights { before_ns: before_ns.round() as u64, of })
}

fn iteration_ns(problem: &Problem, plan: &Plan) -> Option<f64> {
    simulate(problem, plan).ok().map(|timeline| timeline.iteration_ns as f64)
}
