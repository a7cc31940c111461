//! When, within a recording, something was slower than in the rest of it.
//!
//! The place of a change is the split of a value per iteration that leaves the least squares, after the few highest and
//! lowest values were brought to those next to them, so that stalls move nothing. What recovered is a stretch instead: the
//! values fall into two groups, and of all stretches it is the one with the most that is above their middle. How large it
//! is, is told by the medians inside and outside.

use crate::estimate::robust::{MEDIAN_SD, median, scale_around};
use std::ops::Range;

/// Iterations on either side of a change, at least.
const SIDE_MIN: usize = 4;

/// Share of the values of a stretch that are of the higher group, and of those outside that are of the lower one.
const CLEAN: f64 = 0.8;
/// Rounds after which two groups are settled.
const ROUNDS: usize = 16;

/// Higher values from one place to another.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Onset {
    /// Their places; to the end if nothing recovered.
    pub places: Range<usize>,
    /// Middle of the others.
    pub before: f64,
    /// Standard deviation of it.
    pub before_sd: f64,
    /// Middle of those.
    pub after: f64,
}

impl Onset {
    fn at(values: &[f64], places: Range<usize>) -> Option<Onset> {
        let mut others = [&values[..places.start], &values[places.end..]].concat();
        let (before, after) = (median(&mut others)?, median(&mut values[places.clone()].to_vec())?);
        let before_sd = MEDIAN_SD * scale_around(&others, before)? / (others.len() as f64).sqrt();
        (after > before).then_some(Onset { places, before, before_sd, after })
    }
}

/// The stretch in which values are higher than in the rest, if it ends before they do.
pub(super) fn stretch(values: &[f64]) -> Option<Onset> {
    let count = values.len();
    if count < 2 * SIDE_MIN {
        return None;
    }
    let middle = between(values)?;
    // The stretch in which those above the middle outnumber the others the most.
    let (mut best, mut sum, mut start) = ((0, 0..0), 0, 0);
    for (at, value) in values.iter().enumerate() {
        if sum <= 0 {
            (sum, start) = (0, at);
        }
        // Each counts for the side that it is on: a stall is no more than one.
        sum += if *value > middle { 1 } else { -1 };
        if sum > best.0 {
            best = (sum, start..at + 1);
        }
    }
    let places = best.1;
    let high = |of: &[f64]| of.iter().filter(|value| **value > middle).count();
    let (inside, all) = (high(&values[places.clone()]), high(values));
    let outside = count - places.len();
    let is_clean =
        inside as f64 >= CLEAN * places.len() as f64 && (all - inside) as f64 <= (1.0 - CLEAN) * outside as f64;
    (places.end < count && places.len() >= SIDE_MIN && outside >= SIDE_MIN && is_clean)
        .then(|| Onset::at(values, places))
        .flatten()
}

/// What parts values into a lower and a higher group, by the groups' means.
fn between(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (low, high) = (sorted[SIDE_MIN - 1], sorted[sorted.len() - SIDE_MIN]);
    let mut middle = low.midpoint(high);
    for _ in 0..ROUNDS {
        let at = sorted.partition_point(|value| *value <= middle);
        let mean = |of: &[f64]| of.iter().map(|value| value.clamp(low, high)).sum::<f64>() / of.len() as f64;
        let (lower, higher) = sorted.split_at(at);
        if lower.is_empty() || higher.is_empty() {
            return None;
        }
        middle = mean(lower).midpoint(mean(higher));
    }
    Some(middle)
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
    Onset::at(values, best.1..count)
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
            assert_eq!(onset.places, from..32);
            assert!((onset.after - onset.before - 0.3).abs() < 0.02, "{onset:?}");
        }
        let falling: Vec<f64> = (0..32).map(|at| noise(at) - if at >= 16 { 0.3 } else { 0.0 }).collect();
        assert!(of(&falling).is_none_or(|onset| onset.after - onset.before < 0.05));
        assert_eq!(of(&[1.0; 7]), None);
        // One stall is no change.
        let stall: Vec<f64> = (0..32).map(|at| noise(at) + if at == 20 { 5.0 } else { 0.0 }).collect();
        assert!(of(&stall).is_none_or(|onset| onset.after - onset.before < 0.05));
    }

    #[test]
    fn a_stretch_is_found_where_it_is() {
        let noise = |at: usize| 0.01 * ((at * 7) % 5) as f64;
        for places in [0..12, 4..12, 10..22, 20..28] {
            let values: Vec<f64> = (0..32).map(|at| noise(at) + if places.contains(&at) { 0.3 } else { 0.0 }).collect();
            let found = stretch(&values).expect("it is there");
            assert_eq!(found.places, places);
            assert!((found.after - found.before - 0.3).abs() < 0.02, "{found:?}");
        }
        // To the end it is a change, and now and then it is neither.
        let since: Vec<f64> = (0..32).map(|at| noise(at) + if at >= 20 { 0.3 } else { 0.0 }).collect();
        assert_eq!(stretch(&since), None);
        let now_and_then: Vec<f64> = (0..32).map(|at| noise(at) + if at % 3 == 0 { 0.3 } else { 0.0 }).collect();
        assert_eq!(stretch(&now_and_then), None);
        assert_eq!(stretch(&[1.0; 32]), None);
    }
}
