//! How wide an interval must be so that nine of ten truths lie in it, told by the measurements themselves.
//!
//! Each measurement is predicted without itself, and without all of its kind, type and phase. How far it then lies off,
//! in expected deviations, is what the next prediction of the same sort may be off. The 90th percentile of that is the
//! half width of an interval; with few measurements it leans on what was found on published profiles.

use super::measurement::{MeasuredPhase, Measurement};
use super::model::Fit;
use super::place::Place;
use std::collections::BTreeMap;

/// Shorter works are launches, timed by a clock that is as coarse as they are.
const SECONDS_MIN: f64 = 5e-5;
/// Share of truths that lie in an interval.
const COVERAGE: f64 = 0.9;
/// The half width without any measurement: with others of the group, without, and on a kind that is not known.
const WITHIN: f64 = 1.45;
const WITHOUT: f64 = 1.0;
const UNKNOWN: f64 = 1.645;
/// Measurements that agree far better than usual are copies of one another, or rounded alike: of the usual, so much stays.
const LEAST: f64 = 0.25;
/// How many measurements, or groups of them, those count for.
const WORTH: f64 = 20.0;

/// Half widths in deviations, for the optimizer and for all other phases.
#[derive(Clone, Debug)]
pub(super) struct Calibration {
    within: [f64; 2],
    without: [f64; 2],
}

impl Calibration {
    pub fn of(fit: &Fit, places: &[Place], measurements: &[Measurement]) -> Self {
        let mut groups: BTreeMap<(u32, u32, MeasuredPhase), Vec<usize>> = BTreeMap::new();
        for (index, place) in places.iter().enumerate() {
            groups.entry((place.kind, place.layer, place.phase)).or_default().push(index);
        }
        let (mut within, mut without) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        let mut counts = [0_u32; 2];
        for (&(_, _, phase), indices) in &groups {
            // Without a group that is all there is, nothing would say what it is.
            if indices.len() == places.len() {
                continue;
            }
            let side = side(phase);
            counts[side] += 1;
            for (&index, (off, deviation)) in indices.iter().zip(fit.without_all(indices)) {
                if measurements[index].seconds >= SECONDS_MIN {
                    without[side].push((off / deviation).abs());
                    let (off, deviation) = fit.without(index);
                    within[side].push((off / deviation).abs());
                }
            }
        }
        let sides = [0, 1];
        Self {
            within: sides.map(|side| lean(&mut within[side], None, WITHIN)),
            without: sides.map(|side| lean(&mut without[side], Some(counts[side]), WITHOUT)),
        }
    }

    /// The half width for a place, by what was measured near it.
    pub fn factor(&self, place: &Place, measured: &[Place]) -> f64 {
        let side = side(place.phase);
        if measured.iter().any(|other| other.shares_curve(place)) {
            self.within[side]
        } else if measured.iter().any(|other| other.kind == place.kind) {
            self.without[side]
        } else {
            UNKNOWN
        }
    }
}

fn side(phase: MeasuredPhase) -> usize {
    usize::from(phase != MeasuredPhase::Optimizer)
}

/// The percentile of what was found, with as much weight as there are measurements or `groups` of them, and of `usual`.
fn lean(found: &mut [f64], groups: Option<u32>, usual: f64) -> f64 {
    found.sort_by(f64::total_cmp);
    let rank = (COVERAGE * found.len() as f64).ceil() as usize;
    let Some(percentile) = rank.checked_sub(1).and_then(|rank| found.get(rank)) else {
        return usual;
    };
    let worth = groups.map_or(found.len() as f64, f64::from);
    let percentile = percentile.max(LEAST * usual);
    ((worth * percentile.ln() + WORTH * usual.ln()) / (worth + WORTH)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_measurements_speak_for_themselves_and_few_lean_on_the_usual() {
        let evenly = |count: usize| (1..=count).map(|number| number as f64 / count as f64).collect::<Vec<_>>();
        assert_eq!(lean(&mut [], None, 1.5), 1.5);
        let (few, many) = (lean(&mut evenly(10), None, 1.5), lean(&mut evenly(10_000), None, 1.5));
        assert!((1.2..1.5).contains(&few) && (0.9..0.902).contains(&many), "{few} {many}");
    }
}
