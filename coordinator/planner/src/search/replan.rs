//! Changes to the running plan, from what keeps most of it to what keeps less.
//!
//! A budget may end after a tenth of a second, so what is cheap to look at and likely to be near comes first:
//!
//! 1. the old stages in a new order;
//! 2. the old sequence of devices with its boundaries rebalanced, moving as few layers as that takes, under the old
//!    order and listed anew. Where devices are gone or new, the sequences nearest to the old one: a new device in the
//!    place of a gone one, the gone ones left out, their stages given to one of the others, a new one in any place;
//! 3. layers taken from the busiest devices, from there, each neighbour listed anew, then moved by loads alone;
//! 4. the stages on other devices;
//! 5. local search under each of these freedoms.

use super::judge::{Candidate, Judge};
use super::portfolio::{Pool, RELABELLINGS_MAX, device_orders};
use super::running::Running;
use super::sketch::{self, Lesson};
use super::structure::{self, Freedom};
use super::{LARGE, ORDER_STEPS, RungKind, STEPS_MIN, STRUCTURE_STEPS, order};
use crate::moves::GONE;
use crate::partition::Weigh;
use crate::random::Random;
use crate::recipe::Genes;
use crate::shape::Shape;
use adaptis_plan::Problem;

/// Genes of a first look at a shape.
const FIRST_GENES: usize = 3;
/// How much larger than the least possible the largest load may be where fewer layers move for it.
const SLACKS: [f64; 4] = [0.0, 0.02, 0.05, 0.1];
/// Percent of 1F1B's microbatches in flight that a split leaves memory for.
const IN_FLIGHT: [usize; 3] = [100, 50, 0];
/// Quick passes, each of one anneal by loads alone more than the one before it, and the steps of each.
const PASSES: usize = 2;
const QUICK_SKETCH_STEPS: usize = 3_000;
const QUICK_STRUCTURE_STEPS: usize = 60;
/// Anneals by loads alone before them, where devices are gone.
const GONE_SKETCHES: usize = 3;
/// Anneals by loads alone in the end, and the steps of one.
const SKETCHES: usize = 4;
const SKETCH_STEPS: usize = 4_000;
/// Relabellings this much worse than the best are not listed.
const RELABEL_WORTH: f64 = 1.03;

/// Tries each kind of change to the running plan by itself.
pub(super) fn climb(problem: &Problem, judge: &mut Judge, pool: &mut Pool, running: &Running, random: &mut Random) {
    judge.stage = "changes to the running plan";
    let mut near = Near { judge, pool, running, seen: Vec::new() };
    near.kept(problem);
    near.sequences();
    // A plan that nobody planned on costs, as a job's first, may be far off all over: nothing near it is worth a look.
    if near.judge.is_free {
        return;
    }
    if running.lacks_devices() {
        // What was on them may go anywhere, and loads tell soonest where to.
        near.sketched(GONE_SKETCHES, QUICK_SKETCH_STEPS, random);
    }
    near.relisted(&[(RungKind::Boundary, Freedom::Boundary), (RungKind::Full, Freedom::Full)], random);
    for pass in 1..=PASSES {
        near.sketched(pass, QUICK_SKETCH_STEPS, random);
        near.relisted(&[(RungKind::Full, Freedom::Full)], random);
    }
    near.relabelled();
    near.reordered(random);
    near.sketched(SKETCHES, SKETCH_STEPS, random);
}

/// Looks at plans near the running one.
struct Near<'n, 'a> {
    judge: &'n mut Judge<'a>,
    pool: &'n mut Pool,
    running: &'n Running,
    /// Shapes looked at so far.
    seen: Vec<Shape>,
}

impl Near<'_, '_> {
    /// The running plan as it is, and its stages in a new order.
    fn kept(&mut self, problem: &Problem) {
        let spare = self.running.spare(&self.judge.rules.usable);
        let kept = match self.running.lacks_devices() {
            true => self.running.replaced(problem, &spare),
            false => Some((self.running.shape.clone(), self.running.programs.clone())),
        };
        if let Some((shape, programs)) = kept {
            if let Some(programs) = programs
                && let Some(candidate) = self.judge.given(&shape, programs, Genes::STANDARD[0])
            {
                self.pool.offer(self.judge, candidate);
            }
            self.look(&shape);
        }
    }

    /// Lists a shape, and keeps the old order where its stages lie as the old ones did. What it is worth, infinite where
    /// it does not fit; none if it was looked at before.
    fn look(&mut self, shape: &Shape) -> Option<f64> {
        let shape = self.judge.rules.repaired(shape);
        if self.judge.done() || self.seen.contains(&shape) {
            return None;
        }
        let mut value = f64::INFINITY;
        let devices = |shape: &Shape| shape.stages.iter().map(|slot| slot.device).collect::<Vec<_>>();
        let given = match &self.running.programs {
            Some(programs) if devices(&shape) == devices(&self.running.shape) => {
                self.judge.given(&shape, programs.clone(), Genes::STANDARD[0])
            }
            _ => None,
        };
        let listed = self.judge.best_listing(&shape, &Genes::STANDARD[..FIRST_GENES]);
        for candidate in [given, listed].into_iter().flatten() {
            value = value.min(candidate.value);
            self.pool.offer(self.judge, candidate);
        }
        self.seen.push(shape);
        Some(value)
    }

    /// The layers split anew over a sequence of devices, moving few. What the best is worth.
    fn rebalanced(&mut self, sequence: &[u32], in_flight: &[usize]) -> f64 {
        let mut value = f64::INFINITY;
        for &in_flight in in_flight {
            for shape in self.judge.splits_near(sequence, Weigh::Time { in_flight }, &SLACKS) {
                value = value.min(self.look(&shape).unwrap_or(f64::INFINITY));
            }
        }
        value
    }

    /// The old sequence of devices and, where devices are gone or new, those nearest to it.
    fn sequences(&mut self) {
        let old: Vec<u32> = self.running.shape.stages.iter().map(|slot| slot.device).collect();
        let mut sequence = self.running.sequence();
        let mut spare = self.running.spare(&self.judge.rules.usable);
        let mut least = self.rebalanced(&sequence, &IN_FLIGHT);
        if self.running.lacks_devices() {
            let stands_in = if spare.is_empty() { self.judge.rules.usable.clone() } else { spare.clone() };
            for device in stands_in {
                let each = |&old: &u32| if old == GONE { device } else { old };
                let replaced: Vec<u32> = old.iter().map(each).collect();
                let value = self.rebalanced(&replaced, &IN_FLIGHT);
                if value < least {
                    (least, sequence) = (value, replaced);
                }
            }
        }
        // New devices one after the other, each in its best place.
        spare.retain(|device| !sequence.contains(device));
        for device in spare {
            let before = sequence.clone();
            for place in 0..=before.len() {
                let mut spliced = before.clone();
                spliced.insert(place, device);
                // There are many places: only what may be better is listed.
                self.judge.worth = self.pool.members.first().map_or(f64::INFINITY, |best| best.value);
                let value = self.rebalanced(&spliced, &IN_FLIGHT[..1]);
                self.judge.worth = f64::INFINITY;
                if value < least {
                    (least, sequence) = (value, spliced);
                }
            }
        }
    }

    /// Layers moved by loads alone, from the running plan and from the best so far.
    fn sketched(&mut self, turns: usize, steps: usize, random: &mut Random) {
        for turn in 0..turns {
            let best = self.pool.members.first().map(|best| best.shape.clone());
            let start = match self.running.lacks_devices() || turn % 2 == 1 {
                true => best,
                false => Some(self.running.shape.clone()),
            };
            let Some(start) = start else { return };
            // Loads may tell nothing, as where memory decides.
            if !random.chance(self.judge.sketch.trust.share) {
                continue;
            }
            let freedom = if turn == 1 { Freedom::Boundary } else { Freedom::Full };
            let steps = (steps, sketch::HOT_NEAR);
            let (shape, likely) = sketch::anneal(self.judge, &start, freedom, steps, random);
            if let Some(value) = self.look(&shape) {
                let listed = Some(value).filter(|value| value.is_finite());
                self.judge.sketch.trust.heed(Lesson {
                    likely,
                    listed,
                    is_near: listed.is_some_and(|listed| listed <= likely * sketch::FAR),
                });
            }
        }
    }

    /// The best so far of some kinds of change by local search on listings.
    fn relisted(&mut self, kinds: &[(RungKind, Freedom)], random: &mut Random) {
        for &(kind, freedom) in kinds {
            let Some(best) = self.pool.rung(kind).cloned() else { continue };
            structure::anneal(self.judge, self.pool, &best, freedom, steps(&best, QUICK_STRUCTURE_STEPS), random);
        }
    }

    /// The old stages on other devices.
    fn relabelled(&mut self) {
        if self.running.lacks_devices() {
            return;
        }
        self.judge.worth = self.pool.members.first().map_or(f64::INFINITY, |best| best.value * RELABEL_WORTH);
        for order in device_orders(self.judge.costs, self.judge.rules, RELABELLINGS_MAX) {
            let mut relabelled = self.running.shape.clone();
            for slot in &mut relabelled.stages {
                let rank = self.judge.rules.usable.iter().position(|&device| device == slot.device);
                slot.device = rank.map_or(slot.device, |rank| order[rank]);
            }
            self.look(&relabelled);
        }
        self.judge.worth = f64::INFINITY;
    }

    /// The best of each kind of change by local search, on listings and on the order.
    fn reordered(&mut self, random: &mut Random) {
        let kinds = [
            (RungKind::Full, Freedom::Full),
            (RungKind::Boundary, Freedom::Boundary),
            (RungKind::Recompute, Freedom::Recompute),
        ];
        for (kind, freedom) in kinds {
            let Some(best) = self.pool.rung(kind).cloned() else { continue };
            let steps = steps(&best, STRUCTURE_STEPS / 2);
            let best = structure::anneal(self.judge, self.pool, &best, freedom, steps, random);
            order::anneal(self.judge, self.pool, &best, Some(freedom), ORDER_STEPS / 2, random);
        }
    }
}

/// Steps on a plan whose listing may take long.
fn steps(candidate: &Candidate, steps: usize) -> usize {
    let size = candidate.programs.iter().map(Vec::len).sum::<usize>();
    (steps * LARGE.min(size) / size.max(1)).max(STEPS_MIN)
}
