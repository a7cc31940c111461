//! What each candidate would gain, on common draws of the costs, and of jitter.
//!
//! Jitter lengthens each plan by its own factor, which is told from draws at the estimated costs: it averages out over
//! iterations and so makes no gain less sure, but for what so few draws say of it.

use super::Input;
use crate::estimate::CORRECTION_MAX;
use adaptis_plan::{Plan, Problem};
use adaptis_planner::noise::Draws;
use adaptis_planner::simulate::simulate;

/// Draws of the costs.
const DRAWS: u64 = 32;
/// Quantile of the gain that counts, and the standard deviations that it is below the mean of a normal distribution.
const LOW_QUANTILE: f64 = 0.1;
const LOW_DEVIATIONS: f64 = 1.2816;

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

/// A plan under jitter.
struct Jittered {
    draws: Draws,
    median_ns: f64,
    /// The median over what it takes without jitter.
    longer: f64,
}

impl Jittered {
    fn of(input: &Input<'_>, plan: &Plan) -> Option<Self> {
        let draws = input.estimated.iterations(plan)?;
        let median_ns = draws.median_ns() as f64;
        let exact_ns = iteration_ns(&input.estimated.problem, plan)?;
        Some(Self { draws, median_ns, longer: if exact_ns > 0.0 { median_ns / exact_ns } else { 1.0 } })
    }

    /// How well so many draws tell the difference to another plan: the standard deviation of its mean.
    fn apart_sd(&self, other: &Jittered) -> f64 {
        let pairs = self.draws.iteration_ns.iter().zip(&other.draws.iteration_ns);
        let apart: Vec<f64> = pairs.map(|(&own, &other)| own as f64 - other as f64).collect();
        let count = apart.len().max(1) as f64;
        let mean = apart.iter().sum::<f64>() / count;
        let squares: f64 = apart.iter().map(|apart| (apart - mean).powi(2)).sum();
        (squares / count / count).sqrt()
    }
}

/// Weighs the `open` candidates; none if the running plan can't be simulated, or none of them. Predictions of plans
/// that were switched to came out `after_ratio` times longer so far.
pub(super) fn weigh(input: &Input<'_>, open: &[usize], after_ratio: f64) -> Option<Weights> {
    let running = Jittered::of(input, input.running)?;
    let candidates: Vec<(usize, Jittered)> =
        open.iter().filter_map(|&at| Some((at, Jittered::of(input, &input.candidates[at].plan)?))).collect();
    let before_ns = running.median_ns * input.correction;
    // Where the model leaves out much, that need not shrink with the rest.
    let of_gain = input.correction.min(CORRECTION_MAX);
    let mut gains: Vec<Vec<f64>> = vec![Vec::new(); candidates.len()];
    for index in 0..DRAWS {
        let drawn = input.estimated.draw(input.seed, index);
        let Some(before_ns) = iteration_ns(&drawn, input.running) else { continue };
        for (gains, (at, jittered)) in gains.iter_mut().zip(&candidates) {
            let after_ns = iteration_ns(&drawn, &input.candidates[*at].plan);
            gains.extend(
                after_ns
                    .map(|after_ns| (before_ns * running.longer - after_ns * jittered.longer * after_ratio) * of_gain),
            );
        }
    }
    let weights = candidates.iter().zip(gains).filter_map(|((at, jittered), mut gains)| {
        let after_ns = jittered.median_ns * input.correction * after_ratio;
        gains.sort_unstable_by(f64::total_cmp);
        let low = *gains.get((LOW_QUANTILE * gains.len() as f64) as usize)?;
        let low = low - LOW_DEVIATIONS * running.apart_sd(jittered) * of_gain;
        let gain = before_ns - after_ns;
        Some(Weight {
            candidate: *at,
            transfer_ns: input.candidates[*at].transfer_ns,
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
