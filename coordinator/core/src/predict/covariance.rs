//! How much two cells have in common before anything is measured.
//!
//! The log of a time is a sum of effects: one for each set of the axes kind, family (shape and dtype), type and phase,
//! shared by all cells that agree on that set. An effect is a level, a slope over log microbatch, a slope over log split
//! and a smooth wiggle over both, each drawn anew for each set of names, with a standard deviation that the tables below
//! give. So a block's backward on a kind is expected to stand to its forward as it does on other kinds, to within 4%,
//! while the level of a kind is free to within a factor of 2.5; both follow, weighed against one another, from one
//! formula: the covariance of two cells is the sum of the variances of the effects they share.
//!
//! 1. The optimizer has effects of its own: it streams through memory and knows no microbatch. It shares with look-ups
//!    an effect of the kind, its memory.
//! 2. Look-ups share little of the level of a kind, which is about arithmetic.
//!
//! The deviations are rounded from a maximum-likelihood fit to three models on four kinds (Sailor, SOSP'25), and were
//! judged on each model with the two others' fit.

use super::measurement::MeasuredPhase;
use super::place::Place;

/// Deviations of level, slope over log2 microbatch / 2, slope over log2 split, and wiggle.
type Deviations = [f64; 4];

const KIND: usize = 1;
const FAMILY: usize = 2;
const LAYER: usize = 4;
const PHASE: usize = 8;
const SETS: usize = 16;

/// Deviation of the level, by the set of axes: the sum of the bits above.
const LEVELS: [f64; SETS] = [
    1.0, 0.9, 0.95, 0.24, // nothing, kind, family, both
    1.0, 0.32, 1.5, 0.24, // with type
    0.6, 0.08, 0.16, 0.045, // with phase
    0.19, 0.04, 0.15, 0.025, // with type and phase
];

/// Slopes and wiggle of effects that know no kind, by the number of axes.
const SHAPES: [[f64; 3]; 4] = [[1.0, 0.35, 0.066], [0.15, 0.2, 0.05], [0.1, 0.1, 0.05], [0.07, 0.05, 0.05]];
/// Of those that do, by the number of axes less one.
const SHAPES_OF_KIND: [[f64; 3]; 4] =
    [[0.08, 0.07, 0.03], [0.045, 0.04, 0.022], [0.025, 0.02, 0.015], [0.017, 0.014, 0.012]];

/// Look-ups: what is theirs on a kind, and on a kind in a family.
const LOOKUP_OF_KIND: Deviations = [0.25, 0.16, 0.18, 0.36];
const LOOKUP_OF_KIND_AND_FAMILY: Deviations = [0.19, 0.1, 0.1, 0.18];
/// The share of the level of a kind that look-ups follow.
const LOOKUP_LOADING: f64 = 0.35;
/// The memory of a kind, in which look-ups and optimizer take part.
const MEMORY: f64 = 0.3;

/// Optimizer: in all, by family, by kind and family, by the setting.
const OPTIMIZER: Deviations = [1.5, 0.05, 0.6, 0.02];
const OPTIMIZER_OF_FAMILY: Deviations = [1.0, 0.02, 0.05, 0.02];
const OPTIMIZER_OF_KIND_AND_FAMILY: Deviations = [0.1, 0.01, 0.04, 0.02];
const OPTIMIZER_OF_SETTING: f64 = 0.01;
/// Optimizer, by type, by type and family, by kind and type, by all three: as parts of how much types differ.
const OPTIMIZER_OF_LAYER: Deviations = [1.0, 0.1, 0.2, 0.05];
const OPTIMIZER_OF_KIND_AND_LAYER: Deviations = [0.25, 0.03, 0.03, 0.02];
const OPTIMIZER_OF_CURVE: Deviations = [0.1, 0.02, 0.02, 0.01];

/// Centre of the slopes: where they add nothing to the level.
const MICROBATCH_LOG: f64 = 2.0;
const SPLIT_LOG: f64 = 1.0;
/// Reach of a wiggle, in doublings.
const MICROBATCH_REACH: f64 = 2.0;
const SPLIT_REACH: f64 = 1.0;

/// The covariance of cells.
#[derive(Clone, Debug)]
pub(super) struct Covariance {
    /// By the set of axes on which two cells agree: variances of all effects of its subsets.
    shared: [Deviations; SETS],
    /// Of them, those of the kind without the type, in which look-ups take part only so far.
    shared_of_kind: [Deviations; SETS],
    /// How much the optimizer's times of different layers differ.
    optimizer_layers: f64,
}

impl Covariance {
    /// `optimizer_layers`: the standard deviation between types of the log of the optimizer's time, in one setting.
    pub fn new(optimizer_layers: f64) -> Self {
        let mut covariance =
            Covariance { shared: [[0.0; 4]; SETS], shared_of_kind: [[0.0; 4]; SETS], optimizer_layers };
        for agreed in 0..SETS {
            for set in (0..SETS).filter(|set| set & agreed == *set) {
                let axes = set.count_ones() as usize;
                let of_kind = set & KIND != 0;
                let [microbatch, split, wiggle] = if of_kind { SHAPES_OF_KIND[axes - 1] } else { SHAPES[axes] };
                let deviations = [LEVELS[set], microbatch, split, wiggle];
                let is_apart = of_kind && set & LAYER == 0;
                let sums = if is_apart { &mut covariance.shared_of_kind } else { &mut covariance.shared };
                for (sum, deviation) in sums[agreed].iter_mut().zip(deviations) {
                    *sum += deviation * deviation;
                }
            }
        }
        covariance
    }

    /// Of two cells; with itself, the variance of one.
    pub fn between(&self, a: &Place, b: &Place) -> f64 {
        let shape = shape(a, b);
        let (is_kind, is_family, is_layer) = (a.kind == b.kind, a.family == b.family, a.layer == b.layer);
        let memory = if is_kind && waits_for_memory(a) && waits_for_memory(b) { MEMORY * MEMORY } else { 0.0 };
        let optimizers = [a, b].map(|place| place.phase == MeasuredPhase::Optimizer);
        match optimizers {
            [true, true] => memory + self.of_optimizers(a, b, &shape),
            [false, false] => {
                let of = |agrees: bool, axis: usize| if agrees { axis } else { 0 };
                let agreed = of(is_kind, KIND) + of(is_family, FAMILY) + of(is_layer, LAYER);
                let agreed = agreed + of(a.phase == b.phase, PHASE);
                let loading = |place: &Place| if place.is_lookup { LOOKUP_LOADING } else { 1.0 };
                let lookups = if a.is_lookup && b.is_lookup && is_kind {
                    let family = if is_family { weigh(LOOKUP_OF_KIND_AND_FAMILY, &shape) } else { 0.0 };
                    weigh(LOOKUP_OF_KIND, &shape) + family
                } else {
                    0.0
                };
                let of_kind = loading(a) * loading(b) * sum(&self.shared_of_kind[agreed], &shape);
                memory + lookups + of_kind + sum(&self.shared[agreed], &shape)
            }
            _ => memory,
        }
    }

    fn of_optimizers(&self, a: &Place, b: &Place, shape: &[f64; 4]) -> f64 {
        let (is_kind, is_family) = (a.kind == b.kind, a.family == b.family);
        let when = |agrees: bool, deviations: Deviations| if agrees { weigh(deviations, shape) } else { 0.0 };
        let setting = if a.shares_setting(b) { OPTIMIZER_OF_SETTING * OPTIMIZER_OF_SETTING } else { 0.0 };
        let layers = if a.layer == b.layer {
            when(true, OPTIMIZER_OF_LAYER)
                + when(is_family, OPTIMIZER_OF_LAYER)
                + when(is_kind, OPTIMIZER_OF_KIND_AND_LAYER)
                + when(is_kind && is_family, OPTIMIZER_OF_CURVE)
        } else {
            0.0
        };
        when(true, OPTIMIZER)
            + when(is_family, OPTIMIZER_OF_FAMILY)
            + when(is_kind && is_family, OPTIMIZER_OF_KIND_AND_FAMILY)
            + setting
            + self.optimizer_layers * self.optimizer_layers * layers
    }
}

fn waits_for_memory(place: &Place) -> bool {
    place.is_lookup || place.phase == MeasuredPhase::Optimizer
}

/// How level, slopes and wiggle of one effect go together at two cells.
fn shape(a: &Place, b: &Place) -> [f64; 4] {
    let from_centre = |place: &Place| (place.microbatch_log - MICROBATCH_LOG, place.split_log - SPLIT_LOG);
    let ((microbatch, split), (other_microbatch, other_split)) = (from_centre(a), from_centre(b));
    let far = ((microbatch - other_microbatch) / MICROBATCH_REACH, (split - other_split) / SPLIT_REACH);
    let wiggle = (-(far.0 * far.0 + far.1 * far.1) / 2.0).exp();
    [1.0, microbatch * other_microbatch / 4.0, split * other_split, wiggle]
}

fn weigh(deviations: Deviations, shape: &[f64; 4]) -> f64 {
    sum(&deviations.map(|deviation| deviation * deviation), shape)
}

fn sum(variances: &[f64; 4], shape: &[f64; 4]) -> f64 {
    variances.iter().zip(shape).map(|(variance, part)| variance * part).sum()
}

#[cfg(test)]
mod tests {
    use super::super::measurement::Cell;
    use super::super::place::Names;
    use super::*;

    /// The deviation of the log of one cell's time, given that of another.
    fn apart(covariance: &Covariance, a: (&str, &str, &str), b: (&str, &str, &str)) -> f64 {
        let mut names = Names::default();
        let mut place = |(kind, signature, phase): (&str, &str, &str)| {
            let phase = phase.parse().expect("a phase");
            names.learn(&Cell { kind: kind.into(), signature: signature.into(), phase })
        };
        let (a, b) = (place(a), place(b));
        let difference = covariance.between(&a, &a) + covariance.between(&b, &b) - 2.0 * covariance.between(&a, &b);
        difference.sqrt()
    }

    #[test]
    fn cells_are_the_closer_the_more_they_share() {
        let covariance = Covariance::new(0.5);
        let block = ("a", "block/m/b4/tp2", "F");
        let from_near_to_far = [
            ("a", "block/m/b4/tp2", "F"),
            ("a", "block/m/b8/tp2", "F"),
            ("a", "block/m/b4/tp2", "B"),
            ("b", "block/m/b4/tp2", "F"),
            ("a", "head/m/b4/tp2", "F"),
            ("b", "head/m/b4/tp2", "F"),
            ("b", "embedding/n/b4/tp2", "B"),
        ];
        let distances = from_near_to_far.map(|other| apart(&covariance, block, other));
        assert!(distances.is_sorted() && distances[0] == 0.0, "{distances:?}");
    }

    #[test]
    fn an_optimizer_of_equal_layers_is_told_by_any_of_them() {
        let of = |layers| apart(&Covariance::new(layers), ("a", "block/m/b4", "U"), ("a", "head/m/b4", "U"));
        assert!(of(0.002) < 0.005 && of(1.0) > 1.0, "{} {}", of(0.002), of(1.0));
    }
}
