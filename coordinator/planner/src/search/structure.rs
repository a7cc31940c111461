//! Local search over partition, placement, recomputation and the genes of the listing: simulated annealing in which
//! each neighbour is listed anew.
//!
//! Structure comes before order: once an order is tuned, hardly any change of a boundary is accepted.

use super::judge::{Candidate, Judge};
use super::portfolio::Pool;
use crate::costs::Costs;
use crate::listing::admissible;
use crate::partition::by_relief;
use crate::random::Random;
use crate::recipe::Genes;
use crate::rules::runs;
use crate::shape::{Shape, Slot, Tables};

/// Stages per device that a change may lead to.
const STAGES_PER_DEVICE_MAX: usize = 4;
/// Temperature at the start and at the end, as a share of the value.
const HOT: f64 = 0.01;
const COLD: f64 = 0.0005;

/// What may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freedom {
    /// Only which layers are recomputed.
    Recompute,
    /// Also where stages begin and end.
    Boundary,
    /// Anything.
    Full,
}

/// Anneals from a candidate; whatever is better than what was known goes into the pool.
pub(crate) fn anneal(
    judge: &mut Judge,
    pool: &mut Pool,
    start: &Candidate,
    freedom: Freedom,
    steps: usize,
    random: &mut Random,
) -> Candidate {
    let mut current = start.clone();
    let mut best = start.clone();
    for step in 0..steps {
        if judge.done() {
            break;
        }
        let cool = step as f64 / steps as f64;
        let temperature = current.value * HOT * (COLD / HOT).powf(cool);
        let mut shape = current.shape.clone();
        let mut genes = current.genes;
        let structural = random.chance(0.7);
        if structural && !change(judge, &mut shape, freedom, random) {
            continue;
        }
        if !structural || random.chance(0.2) {
            genes = genes.mutated(random);
        }
        if !judge.rules.permits(&shape) {
            continue;
        }
        let tables = Tables::new(judge.costs, &shape);
        if !admissible(&tables) {
            continue;
        }
        let charge = judge.charge(&shape);
        let accepted = current.value - temperature * random.unit().max(1e-12).ln();
        let Some((iteration_ns, value)) = judge.list(&tables, genes, charge, accepted) else { continue };
        if value > accepted {
            continue;
        }
        current.value = value;
        current.iteration_ns = iteration_ns;
        current.genes = genes;
        current.shape = shape;
        if value < best.value {
            current.programs.clone_from(&judge.listing.programs);
            best = current.clone();
            judge.best_ns = judge.best_ns.min(best.iteration_ns);
        }
    }
    pool.offer(judge, best.clone());
    best
}

/// Changes a shape; false where the drawn change is none.
pub(crate) fn change(judge: &Judge, shape: &mut Shape, freedom: Freedom, random: &mut Random) -> bool {
    let draw = random.below(100);
    let costs = judge.costs;
    match freedom {
        Freedom::Recompute => toggle(costs, shape, random),
        Freedom::Boundary if draw < 80 => shift(shape, random, false),
        Freedom::Boundary => toggle(costs, shape, random),
        Freedom::Full => match draw {
            0..45 => shift(shape, random, true),
            45..60 => carry(shape, random),
            60..72 => toggle(costs, shape, random),
            72..82 => swap(shape, random),
            82..92 => relocate(judge, shape, random),
            _ => divide(judge, shape, random),
        },
    }
}

/// Moves one to three layers over a boundary; a stage that runs empty goes, where it may.
fn shift(shape: &mut Shape, random: &mut Random, may_empty: bool) -> bool {
    if shape.stages.len() < 2 {
        return false;
    }
    let left = random.below(shape.stages.len() - 1);
    let count = 1 + random.below(6).saturating_sub(3) as u32;
    let onward = random.chance(0.5);
    let giver = shape.stages[if onward { left } else { left + 1 }];
    let size = giver.end - giver.start;
    if count > size || (count == size && !may_empty) {
        return false;
    }
    if onward {
        shape.stages[left].end -= count;
        shape.stages[left + 1].start -= count;
    } else {
        shape.stages[left].end += count;
        shape.stages[left + 1].start += count;
    }
    if count == size {
        shape.stages.remove(if onward { left } else { left + 1 });
        shape.merge();
    }
    true
}

/// Carries one layer from a stage to another through all between: shifts every boundary on the way by one.
fn carry(shape: &mut Shape, random: &mut Random) -> bool {
    let count = shape.stages.len();
    let (from, to) = (random.below(count), random.below(count));
    let size = shape.stages[from].end - shape.stages[from].start;
    if from == to || size < 2 {
        return false;
    }
    for left in from.min(to)..from.max(to) {
        if from < to {
            shape.stages[left].end -= 1;
            shape.stages[left + 1].start -= 1;
        } else {
            shape.stages[left].end += 1;
            shape.stages[left + 1].start += 1;
        }
    }
    true
}

/// Recomputes one more layer of a stage, one less, all or none.
fn toggle(costs: &Costs, shape: &mut Shape, random: &mut Random) -> bool {
    let slot = shape.stages[random.below(shape.stages.len())];
    let layers = by_relief(costs, slot.device as usize, slot.range());
    let before = shape.recompute.clone();
    match random.below(8) {
        0 => layers.iter().for_each(|&layer| shape.recompute[layer] = true),
        1 => shape.recompute[slot.range()].fill(false),
        2..5 => {
            if let Some(&layer) = layers.iter().find(|&&layer| !shape.recompute[layer]) {
                shape.recompute[layer] = true;
            }
        }
        _ => {
            if let Some(&layer) = layers.iter().rev().find(|&&layer| shape.recompute[layer]) {
                shape.recompute[layer] = false;
            }
        }
    }
    shape.recompute != before
}

/// Swaps two devices, everywhere or for two stages.
fn swap(shape: &mut Shape, random: &mut Random) -> bool {
    let count = shape.stages.len();
    let (a, b) = (random.below(count), random.below(count));
    let (first, second) = (shape.stages[a].device, shape.stages[b].device);
    if first == second {
        return false;
    }
    if random.chance(0.5) {
        for slot in &mut shape.stages {
            slot.device = match slot.device {
                device if device == first => second,
                device if device == second => first,
                device => device,
            };
        }
    } else {
        shape.stages[a].device = second;
        shape.stages[b].device = first;
    }
    shape.merge();
    true
}

/// Gives a stage to another device.
fn relocate(judge: &Judge, shape: &mut Shape, random: &mut Random) -> bool {
    let usable = &judge.rules.usable;
    let at = random.below(shape.stages.len());
    let device = usable[random.below(usable.len())];
    if shape.stages[at].device == device {
        return false;
    }
    shape.stages[at].device = device;
    shape.merge();
    true
}

/// Gives a run of layers from within one or more stages to a device, as a stage of its own.
fn divide(judge: &Judge, shape: &mut Shape, random: &mut Random) -> bool {
    let usable = &judge.rules.usable;
    let mut of = shape.device_of_layers();
    let start = random.below(of.len());
    let length = 1 + random.below(of.len().div_ceil(usable.len()));
    let device = usable[random.below(usable.len())];
    let end = (start + length).min(of.len());
    of[start..end].fill(device);
    let stages: Vec<Slot> = runs(&of);
    if stages == shape.stages || stages.len() > usable.len() * STAGES_PER_DEVICE_MAX {
        return false;
    }
    shape.stages = stages;
    true
}

/// A candidate's shape listed anew: under its own genes, and fresh ones.
pub(crate) fn relisted(judge: &mut Judge, candidate: &Candidate, random: &mut Random) -> Option<Candidate> {
    let fresh = Genes::STANDARD[random.below(Genes::STANDARD.len())].mutated(random);
    let mut shape = candidate.shape.clone();
    shape.merge();
    judge.best_listing(&shape, &[candidate.genes, candidate.genes.mutated(random), fresh])
}
