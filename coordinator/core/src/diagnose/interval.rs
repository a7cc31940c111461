//! Medians over iterations, and how sure they are: by resampling whole iterations.

use crate::estimate::random::Random;
use crate::estimate::robust::{MEDIAN_SD, median, scale_around};

/// Resamplings.
pub(super) const DRAWS: usize = 1_000;
/// Ends of an interval of 90%.
const ENDS: [f64; 2] = [0.05, 0.95];
/// 95th percentile of the standard normal distribution.
pub(super) const NORMAL_95: f64 = 1.644_853_626_951_472_7;
/// Relative standard deviation of a median of too few iterations to tell.
const UNKNOWN_SD: f64 = 0.1;
/// Iterations from which on their spread is known; an interval of fewer is as wide as [`UNKNOWN_SD`] makes it.
pub(super) const SPREAD_ITERATIONS_MIN: usize = 4;

/// A median with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Interval {
    pub middle: f64,
    pub low: f64,
    pub high: f64,
}

impl Interval {
    /// Wider if it is of so few iterations that resampling them shows no spread.
    pub fn of_count(self, iterations: usize) -> Interval {
        if iterations >= SPREAD_ITERATIONS_MIN { self } else { self.widened(NORMAL_95 * UNKNOWN_SD) }
    }

    /// Wider by this much of its logarithm at either end.
    pub fn widened(self, ln: f64) -> Interval {
        Interval { low: self.low / ln.exp(), high: self.high * ln.exp(), ..self }
    }
}

/// Places of a resampling of so many iterations: the same seed and number give the same ones.
pub(super) fn resampled(count: usize, seed: u64, number: usize) -> Vec<usize> {
    let mut random = Random::new(seed, number as u64);
    (0..count).map(|_| ((random.next() >> 32) as usize * count) >> 32).collect()
}

/// The median of values that resampling gave around `middle`, with their interval.
pub(super) fn around(middle: f64, mut drawn: Vec<f64>) -> Interval {
    drawn.retain(|value| value.is_finite());
    drawn.sort_unstable_by(f64::total_cmp);
    let end = |share: f64| {
        let at = (share * drawn.len().saturating_sub(1) as f64).round() as usize;
        drawn.get(at).copied().unwrap_or(middle)
    };
    Interval { middle, low: end(ENDS[0]).min(middle), high: end(ENDS[1]).max(middle) }
}

/// The median of a value per iteration, with its interval.
pub(super) fn of_median(values: &[f64], seed: u64) -> Option<Interval> {
    let middle = median(&mut values.to_vec())?;
    let one = |number: usize| {
        let mut drawn: Vec<f64> = resampled(values.len(), seed, number).into_iter().map(|at| values[at]).collect();
        median(&mut drawn).unwrap_or(middle)
    };
    Some(around(middle, (0..DRAWS).map(one).collect()).of_count(values.len()))
}

/// The mean of a value per iteration, with its interval.
pub(super) fn of_mean(values: &[f64], seed: u64) -> Option<Interval> {
    let mean = |values: &mut dyn Iterator<Item = f64>, count: usize| values.sum::<f64>() / count as f64;
    let middle = (!values.is_empty()).then(|| mean(&mut values.iter().copied(), values.len()))?;
    let one = |number: usize| {
        let drawn = resampled(values.len(), seed, number);
        mean(&mut drawn.iter().map(|&at| values[at]), values.len())
    };
    Some(around(middle, (0..DRAWS).map(one).collect()).of_count(values.len()))
}

/// The logarithm of the mean of a factor per iteration, and its standard deviation.
pub(super) fn ln_mean(factors: &[f64]) -> Option<(f64, f64)> {
    let count = factors.len() as f64;
    let mean = (!factors.is_empty()).then(|| factors.iter().sum::<f64>() / count)?;
    if factors.len() < SPREAD_ITERATIONS_MIN {
        return Some((mean.ln(), UNKNOWN_SD));
    }
    let variance = factors.iter().map(|factor| (factor - mean).powi(2)).sum::<f64>() / (count - 1.0);
    Some((mean.ln(), (variance / count).sqrt() / mean))
}

/// The median of the logarithms of a factor per iteration, and its standard deviation.
pub(super) fn ln_median(factors: &[f64]) -> Option<(f64, f64)> {
    let mut ln: Vec<f64> = factors.iter().map(|factor| factor.ln()).collect();
    let middle = median(&mut ln)?;
    if ln.len() < SPREAD_ITERATIONS_MIN {
        return Some((middle, UNKNOWN_SD));
    }
    let sd = MEDIAN_SD * scale_around(&ln, middle)? / (ln.len() as f64).sqrt();
    Some((middle, sd))
}

/// Middle of times, the mean of both for an even count; 0 of none.
pub(super) fn median_ns(values: &[u64]) -> u64 {
    median(&mut values.iter().map(|&ns| ns as f64).collect::<Vec<_>>()).map_or(0, |ns| ns.round() as u64)
}
