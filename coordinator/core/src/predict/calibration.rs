//! How wide an interval must be so that nine of ten truths lie in it, told by the measurements themselves.
//!
//! Each measurement is predicted without itself, without all of its kind, type and phase, without all of its shape on its
//! kind, of its shape, and of its kind. How far it then lies off, in expected deviations, is what the next prediction of
//! the same gap may be off. The 90th percentile of that is the half width of an interval; with few measurements it leans
//! on what was found on published profiles.

use super::measurement::{MeasuredPhase, Measurement};
use super::model::Fit;
use super::place::Place;
use std::collections::BTreeMap;

/// Shorter works are launches, timed by a clock that is as coarse as they are.
const SECONDS_MIN: f64 = 5e-5;
/// Share of truths that lie in an interval.
const COVERAGE: f64 = 0.9;
/// Fewer measurements of a shape on a kind do not tell how both go together, nor fewer of a kind what it is like.
const TOGETHER_MIN: usize = 6;

/// Measurements that agree far better than usual are copies of one another, or rounded alike: of the usual, so much stays.
const LEAST: f64 = 0.25;

/// What is missing around a cell, from little to much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gap {
    /// The cell, of a curve that is there.
    Point,
    /// The curve.
    Group,
    /// All of the shape on the kind.
    Pair,
    /// All of the shape.
    Family,
    /// All of the kind.
    Kind,
}

impl Gap {
    const ALL: [Gap; 5] = [Gap::Point, Gap::Group, Gap::Pair, Gap::Family, Gap::Kind];

    /// The half width without any measurement, and how many measurements, or groups of them, that counts for.
    fn usual(self) -> (f64, f64) {
        match self {
            Gap::Point => (1.45, 20.0),
            Gap::Group => (1.0, 20.0),
            Gap::Pair | Gap::Family | Gap::Kind => (2.0, 3.0),
        }
    }

    /// What goes together.
    fn key(self, index: usize, place: &Place) -> (usize, u32, u32, Option<MeasuredPhase>) {
        match self {
            Gap::Point => (index, 0, 0, None),
            Gap::Group => (0, place.kind, place.layer, Some(place.phase)),
            Gap::Pair => (0, place.kind, place.family, None),
            Gap::Family => (0, 0, place.family, None),
            Gap::Kind => (0, place.kind, 0, None),
        }
    }

    /// What is missing around a place. A kind or a shape of which there are but optimizers says nothing of works, and the
    /// other way round.
    fn of(place: &Place, measured: &[Place]) -> Vec<Gap> {
        let like: Vec<&Place> = measured.iter().filter(|other| other.is_work() == place.is_work()).collect();
        if like.iter().any(|other| other.shares_curve(place)) {
            return vec![Gap::Point];
        }
        let count = |is_such: &dyn Fn(&Place) -> bool| like.iter().filter(|other| is_such(other)).count();
        let of_kind = count(&|other| other.kind == place.kind);
        let of_family = count(&|other| other.family == place.family);
        let together = count(&|other| (other.kind, other.family) == (place.kind, place.family));
        let mut gaps = match (of_kind > 0, of_family > 0) {
            (true, true) if together >= TOGETHER_MIN => vec![Gap::Group],
            (true, true) => vec![Gap::Group, Gap::Pair],
            (true, false) => vec![Gap::Pair, Gap::Family],
            (false, true) => vec![Gap::Pair, Gap::Kind],
            (false, false) => vec![Gap::Family, Gap::Kind],
        };
        if (1..TOGETHER_MIN).contains(&of_kind) {
            gaps.push(Gap::Kind);
        }
        gaps
    }
}

/// Half widths in deviations, by the gap, for the optimizer and for all other phases.
#[derive(Clone, Debug)]
pub(super) struct Calibration([[f64; 2]; Gap::ALL.len()]);

impl Calibration {
    pub fn of(fit: &Fit, places: &[Place], measurements: &[Measurement]) -> Self {
        Self(Gap::ALL.map(|gap| half_widths(gap, fit, places, measurements)))
    }

    /// The half width for a place, by what was measured near it: that of its gap, the widest where it has several.
    pub fn factor(&self, place: &Place, measured: &[Place]) -> f64 {
        let gaps = Gap::of(place, measured).into_iter();
        gaps.map(|gap| self.0[gap as usize][side(place.phase)]).fold(0.0, f64::max)
    }
}

fn half_widths(gap: Gap, fit: &Fit, places: &[Place], measurements: &[Measurement]) -> [f64; 2] {
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, place) in places.iter().enumerate() {
        groups.entry(gap.key(index, place)).or_default().push(index);
    }
    let (mut found, mut worth) = ([Vec::new(), Vec::new()], [0.0; 2]);
    // Without a group that is all there is, nothing would say what it is.
    for indices in groups.values().filter(|indices| indices.len() < places.len()) {
        let before = found.each_ref().map(Vec::len);
        for (&index, (off, deviation)) in indices.iter().zip(fit.without_all(indices)) {
            if measurements[index].seconds >= SECONDS_MIN {
                found[side(places[index].phase)].push((off / deviation).abs());
            }
        }
        for side in [0, 1] {
            worth[side] += f64::from(u8::from(found[side].len() > before[side]));
        }
    }
    [0, 1].map(|side| lean(&mut found[side], worth[side], gap.usual()))
}

fn side(phase: MeasuredPhase) -> usize {
    usize::from(phase != MeasuredPhase::Optimizer)
}

/// The percentile of what was found, which is worth so many measurements, leaning on the usual one.
fn lean(found: &mut [f64], worth: f64, (usual, usual_worth): (f64, f64)) -> f64 {
    found.sort_by(f64::total_cmp);
    let rank = (COVERAGE * found.len() as f64).ceil() as usize;
    let Some(percentile) = rank.checked_sub(1).and_then(|rank| found.get(rank)) else {
        return usual;
    };
    let percentile = percentile.max(LEAST * usual);
    ((worth * percentile.ln() + usual_worth * usual.ln()) / (worth + usual_worth)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_around_a_cell() {
        use super::super::measurement::Cell;
        use super::super::place::Names;
        let mut names = Names::default();
        let mut place = |kind: &str, signature: &str, phase: MeasuredPhase| {
            names.learn(&Cell { kind: kind.into(), signature: signature.into(), phase })
        };
        let mut measured = Vec::new();
        for microbatch in [1, 2, 4] {
            let signature = format!("block/m/b{microbatch}");
            for phase in [MeasuredPhase::Forward, MeasuredPhase::Backward, MeasuredPhase::Optimizer] {
                measured.push(place("known", &signature, phase));
            }
            measured.push(place("streams", &signature, MeasuredPhase::Optimizer));
        }
        measured.push(place("hardly", "block/m/b1", MeasuredPhase::Backward));
        let forward = MeasuredPhase::Forward;
        for (asked, gaps) in [
            (place("known", "block/m/b8", forward), &[Gap::Point][..]),
            (place("known", "head/m/b1", forward), &[Gap::Group]),
            (place("known", "block/n/b1", forward), &[Gap::Pair, Gap::Family]),
            (place("hardly", "block/m/b1", forward), &[Gap::Group, Gap::Pair, Gap::Kind]),
            // Its optimizers say nothing of its arithmetic.
            (place("streams", "block/m/b1", forward), &[Gap::Pair, Gap::Kind]),
            (place("streams", "block/m/b8", MeasuredPhase::Optimizer), &[Gap::Point]),
        ] {
            assert_eq!(Gap::of(&asked, &measured), gaps, "{asked:?}");
        }
    }

    #[test]
    fn many_measurements_speak_for_themselves_and_few_lean_on_the_usual() {
        let evenly = |count: usize| (1..=count).map(|number| number as f64 / count as f64).collect::<Vec<_>>();
        let usual = (1.5, 20.0);
        assert_eq!(lean(&mut [], 0.0, usual), 1.5);
        let (few, many) = (lean(&mut evenly(10), 10.0, usual), lean(&mut evenly(10_000), 1e4, usual));
        assert!((1.2..1.5).contains(&few) && (0.9..0.902).contains(&many), "{few} {many}");
    }
}
