//! How far medians of iterations are apart: what the error of a figure is told by.
//!
//! Works of one iteration are not independent (a clock, a neighbour's traffic), so what a median of many is worth is not
//! read off the works but off the next iteration: pairs of iterations that follow one another, of all layers and phases
//! together. What the layers of a device do in step from one iteration to the next is told apart, for no number of
//! layers averages it out.

use super::window::{Pair, Segment};
use super::{Estimator, robust};
use std::collections::BTreeMap;

/// Pairs below which they say less than works do.
const PAIRS_MIN: usize = 24;
/// Pairs of iterations of a device below which nothing is said of what its layers do in step.
const COMMON_PAIRS_MIN: usize = 8;

/// What was learned.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scatter {
    /// Standard deviation of the logarithm of an iteration's median, times the root of its works.
    work_sd: f64,
    /// What all medians of a device have in common in an iteration.
    common_sd: f64,
}

impl Scatter {
    /// `spread` is the relative standard deviation of a single work.
    pub fn of(estimator: &Estimator, spread: f64) -> Self {
        let segments =
            || estimator.histories.iter().flat_map(|history| history.segments().filter(|segment| !segment.calibration));
        let apart: Vec<f64> =
            segments().flat_map(Segment::pairs).map(|pair| pair.ln_ratio / pair.per_work.sqrt()).collect();
        let work_sd = match robust::scale_around(&apart, 0.0).filter(|_| apart.len() >= PAIRS_MIN) {
            Some(scale) => scale,
            None => robust::MEDIAN_SD * spread,
        };
        Self { work_sd, common_sd: common_sd(segments(), work_sd) }
    }

    /// Standard deviation of the logarithm of the median of so many medians, of works in all.
    pub fn median_sd(&self, works: usize, medians: usize) -> f64 {
        median_of(medians) * self.work_sd / (works.max(1) as f64).sqrt()
    }

    /// The same of what all layers of a device have in common, over so many iterations.
    pub fn common_sd(&self, iterations: usize) -> f64 {
        median_of(iterations) * self.common_sd / (iterations.max(1) as f64).sqrt()
    }
}

/// Standard deviation of a median of some normal values over that of their mean: 1 for up to two, and rising to
/// [`robust::MEDIAN_SD`], with less for an even count, whose median is the mean of two.
fn median_of(count: usize) -> f64 {
    let less = if count.is_multiple_of(2) { 0.5 } else { 0.25 };
    robust::MEDIAN_SD - less / count.max(1) as f64
}

/// By how much the mean of a device's pairs varies beyond what independent ones would.
fn common_sd<'a>(segments: impl Iterator<Item = &'a Segment>, work_sd: f64) -> f64 {
    let (mut apart, mut variances) = (Vec::new(), Vec::new());
    for segment in segments {
        // By step: weighted sum of the pairs, and the weights.
        let mut steps: BTreeMap<_, (f64, f64)> = BTreeMap::new();
        for Pair { step, ln_ratio, per_work } in segment.pairs() {
            let (sum, weight) = steps.entry(step).or_default();
            *sum += ln_ratio / per_work;
            *weight += per_work.recip();
        }
        for (sum, weight) in steps.into_values() {
            let variance = work_sd.powi(2) / weight;
            apart.push(sum / weight / variance.sqrt().max(f64::MIN_POSITIVE));
            variances.push(variance);
        }
    }
    if apart.len() < COMMON_PAIRS_MIN {
        return 0.0;
    }
    let (Some(scale), Some(variance)) = (robust::scale_around(&apart, 0.0), robust::median(&mut variances)) else {
        return 0.0;
    };
    // A pair has the deviations of two iterations.
    (robust::beyond_chance(scale, apart.len()) * variance / 2.0).sqrt()
}
