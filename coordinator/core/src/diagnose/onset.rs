//! When, within a recording, something became slower.
//!
//! The place of the change is the split of a value per iteration that leaves the least squares, after the few highest and
//! lowest values were brought to those next to them, so that stalls move nothing. How large it is, is told by the medians of
//! both sides.

use crate::estimate::robust::{MEDIAN_SD, median, scale_around};

/// Iterations on either side of a change, at least.
const SIDE_MIN: usize = 4;

/// A change to higher values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Onset {
    /// Place of the first value after it.
    pub at: usize,
    /// Middle of those before.
    pub before: f64,
    /// Standard deviation of it.
    pub before_sd: f64,
    /// Middle of those since.
    pub after: f64,
}

/// The place where values split best, if they are higher after it.
pub(super) fn of(values: &[f64]) -> Option<Onset> {
    let count = values.len();
    if count < 2 * SIDE_MIN {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (low, high) = (sorted[SIDE_MIN - 1], sorted[count - SIDE_MIN]);
    let total: f64 = values.iter().map(|value| value.clamp(low, high)).sum();
    let (mut sum, mut best) = (0.0, (f64::NEG_INFINITY, 0));
    for (at, value) in values.iter().enumerate() {
        if (SIDE_MIN..=count - SIDE_MIN).contains(&at) {
            let (left, right) = (at as f64, (count - at) as f64);
            let between = ((total - sum) / right - sum / left).powi(2) * left * right;
            if between > best.0 {
                best = (between, at);
            }
        }
        sum += value.clamp(low, high);
    }
    let at = best.1;
    let (before, after) = (median(&mut values[..at].to_vec())?, median(&mut values[at..].to_vec())?);
    let before_sd = MEDIAN_SD * scale_around(&values[..at], before)? / (at as f64).sqrt();
    (after > before).then_some(Onset { at, before, before_sd, after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_found_where_it_is() {
        let noise = |at: usize| 0.01 * ((at * 7) % 5) as f64;
        for from in [4, 12, 20, 28] {
            let values: Vec<f64> = (0..32).map(|at| noise(at) + if at >= from { 0.3 } else { 0.0 }).collect();
            let onset = of(&values).expect("it is there");
            assert_eq!(onset.at, from);
            assert!((onset.after - onset.before - 0.3).abs() < 0.02, "{onset:?}");
        }
        let falling: Vec<f64> = (0..32).map(|at| noise(at) - if at >= 16 { 0.3 } else { 0.0 }).collect();
        assert!(of(&falling).is_none_or(|onset| onset.after - onset.before < 0.05));
        assert_eq!(of(&[1.0; 7]), None);
        // One stall is no change.
        let stall: Vec<f64> = (0..32).map(|at| noise(at) + if at == 20 { 5.0 } else { 0.0 }).collect();
        assert!(of(&stall).is_none_or(|onset| onset.after - onset.before < 0.05));
    }
}
