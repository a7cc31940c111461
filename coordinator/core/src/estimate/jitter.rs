//! How works jitter: what each takes beside the median of its layer and phase in the same iteration.
//!
//! Only what is independent within an iteration lengthens it beyond its works, so nothing else is counted: not what
//! whole iterations deviate by, nor by how much an estimate is off.
//!
//! Works of one instruction follow one another. That a layer is on the same side of its median as the layer beside it
//! more often than not tells that they deviate together, and the instruction as a whole; that it is on the other side
//! more often, that the clock's reading between the two is late: what one has too much the other lacks, and the
//! instruction takes its time nevertheless.

use super::{Estimator, window};
use adaptis_planner::noise::{Jitter, Noise};
use adaptis_proto::{Microbatch, Step};
use std::collections::VecDeque;

/// F, I and W: the optimizer runs once.
const PHASES: usize = 3;
/// Deviations kept of each phase; the oldest goes.
const KEPT: usize = 256;
/// Works of a layer in an iteration below which their median says little.
const WORKS_MIN: usize = 4;
/// Deviations below which a device's own say less than those of its kind, and these less than those of all.
const ENOUGH: usize = 64;
/// Pairs of neighbours after which earlier ones count half.
const PAIRS: f64 = 4_096.0;

/// By microbatch: on which side of the median a layer's work was, in the last iteration. Ascending.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sides {
    step: Step,
    of: Vec<(Microbatch, f64)>,
}

/// How the works of one device deviated.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deviations {
    /// Time over the median, less 1.
    phases: [VecDeque<(Step, f64)>; PHASES],
    /// Neighbours on the same side, less those on opposite ones; and all of them.
    same: f64,
    pairs: f64,
}

impl Deviations {
    /// Takes the works of an iteration; gives their sides.
    pub fn closed(
        &mut self,
        (_, phase): window::Key,
        step: Step,
        median_ns: f64,
        works: &[(Microbatch, u64)],
    ) -> Sides {
        let Some(kept) = self.phases.get_mut(phase).filter(|_| median_ns >= 1.0 && works.len() >= WORKS_MIN) else {
            return Sides::default();
        };
        let room = KEPT.saturating_sub(works.len());
        kept.drain(..kept.len().saturating_sub(room));
        kept.extend(works.iter().map(|&(_, ns)| (step, ns as f64 / median_ns - 1.0)));
        let side = |ns: u64| if ns as f64 == median_ns { 0.0 } else { (ns as f64 - median_ns).signum() };
        let mut of: Vec<(Microbatch, f64)> = works.iter().map(|&(microbatch, ns)| (microbatch, side(ns))).collect();
        of.sort_unstable_by_key(|(microbatch, _)| *microbatch);
        Sides { step, of }
    }

    /// Takes the sides of two layers that follow one another, if they are of one iteration.
    pub fn compare(&mut self, one: &Sides, other: &Sides) {
        if one.step != other.step {
            return;
        }
        for (microbatch, side) in &one.of {
            if let Ok(at) = other.of.binary_search_by_key(microbatch, |(microbatch, _)| *microbatch) {
                self.same += side * other.of[at].1;
                self.pairs += 1.0;
            }
        }
        if self.pairs > PAIRS {
            self.same /= 2.0;
            self.pairs /= 2.0;
        }
    }

    /// The device changed its speed at a step: what its works deviated by in that iteration is no jitter.
    pub fn forget(&mut self, from: Step) {
        for phase in &mut self.phases {
            phase.retain(|(step, _)| *step < from);
        }
    }

    /// Those of all phases.
    pub fn all(&self) -> impl Iterator<Item = f64> {
        (0..PHASES).flat_map(|phase| self.of(phase))
    }

    fn of(&self, phase: usize) -> impl Iterator<Item = f64> {
        self.phases[phase].iter().map(|(_, deviation)| *deviation)
    }
}

/// The noise of a job's devices; of one that has run too little, that of its kind or of all.
pub(super) fn noise(estimator: &Estimator) -> Noise {
    let devices = || estimator.histories.iter().map(window::History::deviations).zip(&estimator.job.devices);
    let (same, pairs) = devices().fold((0.0, 0.0), |sum, (of, _)| (sum.0 + of.same, sum.1 + of.pairs));
    let same = if pairs > 0.0 { same / pairs } else { 0.0 };
    let scale = independent_share(same);
    let jitter = |own: &Deviations, kind: &str, phase: usize| {
        let mut values: Vec<f64> = own.of(phase).collect();
        if values.len() < ENOUGH {
            values = devices().filter(|(_, card)| card.kind == kind).flat_map(|(of, _)| of.of(phase)).collect();
        }
        if values.len() < ENOUGH {
            values = devices().flat_map(|(of, _)| of.of(phase)).collect();
        }
        cut_extremes(&mut values);
        Jitter::measured(values.iter().map(|value| 1.0 + scale * value))
    };
    let of_device = |(own, card): (&Deviations, &adaptis_proto::message::DeviceCard)| {
        std::array::from_fn(|phase| jitter(own, &card.kind, phase))
    };
    Noise { devices: devices().map(of_device).collect(), together: same.max(0.0) }
}

/// What is left of neighbours' deviations in the time of both, as a share of what independent ones would leave, from
/// how much more often they are on the same side. (Sides of normal values agree by `2/pi asin` of their correlation.)
fn independent_share(same: f64) -> f64 {
    let correlation = (std::f64::consts::FRAC_PI_2 * same.clamp(-1.0, 0.0)).sin();
    (1.0 + 2.0 * correlation).max(0.0).sqrt()
}

/// The outermost value on each side becomes the next one: what came once tells nothing of how often it comes.
fn cut_extremes(values: &mut [f64]) {
    values.sort_unstable_by(f64::total_cmp);
    if let [first, second, .., last_but_one, last] = values {
        (*first, *last) = (*second, *last_but_one);
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::super::robust;
    use super::*;

    const MICROBATCHES: u32 = 16;
    const LAYERS: usize = 6;

    /// A device's F of some iterations; `ns` gives the works of a microbatch, layer by layer.
    fn run(iterations: u64, mut ns: impl FnMut(&mut Random) -> [f64; LAYERS]) -> Deviations {
        let mut random = Random::new(5, 0);
        let mut deviations = Deviations::default();
        for step in 0..iterations {
            let works: Vec<[f64; LAYERS]> = (0..MICROBATCHES).map(|_| ns(&mut random)).collect();
            let mut before = Sides::default();
            for layer in 0..LAYERS {
                let of: Vec<(Microbatch, u64)> =
                    works.iter().zip(0..).map(|(of, at)| (Microbatch(at), of[layer] as u64)).collect();
                let mut values: Vec<f64> = of.iter().map(|&(_, ns)| ns as f64).collect();
                let median_ns = robust::median(&mut values).expect("there are works");
                let sides = deviations.closed((layer, 0), Step(step), median_ns, &of);
                deviations.compare(&sides, &before);
                before = sides;
            }
        }
        deviations
    }

    fn sd(deviations: &Deviations) -> f64 {
        let of: Vec<f64> = deviations.of(0).collect();
        (of.iter().map(|value| value * value).sum::<f64>() / of.len() as f64).sqrt()
    }

    fn same(deviations: &Deviations) -> f64 {
        deviations.same / deviations.pairs
    }

    #[test]
    fn works_by_themselves_instructions_as_a_whole_and_late_readings_are_told_apart() {
        let alone = run(40, |random| std::array::from_fn(|_| 1e6 * (1.0 + 0.1 * random.normal())));
        assert!((sd(&alone) - 0.1).abs() < 0.015, "{}", sd(&alone));
        assert!(same(&alone).abs() < 0.06, "{}", same(&alone));
        assert!(independent_share(same(&alone)) > 0.9);
        let whole = run(40, |random| [1e6 * (1.0 + 0.1 * random.normal()); LAYERS]);
        assert!(same(&whole) > 0.95, "{}", same(&whole));
        let late = run(40, |random| {
            // Each work is read from the end of the one before it to its own, and ends are read late.
            let mut before = 0.0;
            std::array::from_fn(|_| {
                let own = 2e5 * random.uniform();
                1e6 + own - std::mem::replace(&mut before, own)
            })
        });
        assert!((-0.45..-0.25).contains(&same(&late)), "{}", same(&late));
        assert!(independent_share(same(&late)) < 0.35, "{}", independent_share(same(&late)));
        let still = run(4, |_| [1e6; LAYERS]);
        assert_eq!((sd(&still), same(&still)), (0.0, 0.0));
    }

    #[test]
    fn memory_is_bounded_and_a_change_is_no_jitter() {
        let mut deviations = run(40, |random| std::array::from_fn(|_| 1e6 * (1.0 + 0.01 * random.normal())));
        assert_eq!(deviations.all().count(), KEPT);
        let works: Vec<(Microbatch, u64)> =
            (0..16).map(|at| (Microbatch(at), if at < 9 { 1_000_000 } else { 1_800_000 })).collect();
        deviations.closed((0, 0), Step(40), 1e6, &works);
        assert!(sd(&deviations) > 0.1);
        deviations.forget(Step(40));
        assert!(sd(&deviations) < 0.02, "{}", sd(&deviations));
        // The optimizer, and works too few to have a median worth the name.
        let none =
            [deviations.closed((0, 3), Step(41), 1e6, &works), deviations.closed((0, 1), Step(41), 1e6, &works[..3])];
        assert!(none.iter().all(|sides| sides.of.is_empty()));
    }

    #[test]
    fn what_came_once_is_not_taken_to_come_again() {
        let mut values = vec![0.01, 9.0, -0.02, 0.0, 0.02];
        cut_extremes(&mut values);
        assert_eq!(values, [0.0, 0.0, 0.01, 0.02, 0.02]);
        let mut one = [3.0];
        cut_extremes(&mut one);
        assert_eq!(one, [3.0]);
    }
}
