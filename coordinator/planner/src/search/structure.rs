//! Local search over partition, placement, recomputation and the genes of the listing: simulated annealing in which
//! each neighbour is listed anew.
//!
//! Structure comes before order: once an order is tuned, hardly any change of a boundary is accepted.

use super::judge::{Candidate, Judge};
use super::portfolio::Pool;
use super::sketch::Extremes;
use crate::costs::Costs;
use crate::listing::admissible;
use crate::moves::GONE;
use crate::partition::by_relief;
use crate::random::Random;
use crate::recipe::Genes;
use crate::shape::{Shape, Slot, Tables};

/// Stages per device that a change may lead to, on average.
const STAGES_PER_DEVICE_MAX: usize = 4;
/// Temperature at the start and at the end, as a share of the value.
const HOT: f64 = 0.01;
const COLD: f64 = 0.0005;

/// Share of changes, where anything may change, that give layers back to their device in the running plan.
const RESTORING: f64 = 0.15;
/// Near a running plan: share of changes that relieve the busiest device, of those that give to the idlest one, and
/// changes drawn for one that is looked at.
const RELIEVING: f64 = 0.6;
const TO_IDLEST: f64 = 0.3;
const DRAWS: usize = 8;

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
    let mut extremes = extremes(judge, &current.shape, freedom);
    for step in 0..steps {
        if judge.done() {
            break;
        }
        let cool = step as f64 / steps as f64;
        let temperature = current.value * HOT * (COLD / HOT).powf(cool);
        let mut shape = current.shape.clone();
        let mut genes = current.genes;
        let structural = random.chance(0.7);
        if structural && !propose(judge, &mut shape, freedom, (extremes, current.value + temperature), random) {
            continue;
        }
        if !structural || random.chance(0.2) {
            genes = genes.mutated(random);
        }
        if !judge.rules.permits(&shape) {
            continue;
        }
        let charge = judge.charge(&shape);
        let accepted = current.value - temperature * random.unit().max(1e-12).ln();
        let floor_ns = if structural { judge.floor_ns(&shape) } else { 0.0 };
        if floor_ns + charge > accepted {
            continue;
        }
        let tables = Tables::new(judge.costs, &shape);
        if !admissible(&tables) {
            continue;
        }
        let Some((iteration_ns, value)) = judge.list(&tables, genes, charge, accepted) else { continue };
        debug_assert!(iteration_ns as f64 >= floor_ns * (1.0 - 1e-9), "no order is faster than its shape's floor");
        if value > accepted {
            continue;
        }
        current.value = value;
        current.iteration_ns = iteration_ns;
        current.genes = genes;
        if structural {
            current.shape = shape;
            extremes = self::extremes(judge, &current.shape, freedom);
        }
        if value < best.value {
            current.programs.clone_from(&judge.listing.programs);
            best = current.clone();
            judge.note(best.iteration_ns, &best.shape);
        }
    }
    pool.offer(judge, best.clone());
    best
}

/// The devices to relieve and to give to. Far from a running plan any change may pay, and there are none.
fn extremes(judge: &mut Judge, shape: &Shape, freedom: Freedom) -> Option<Extremes> {
    let is_sought = judge.homes().is_some() && freedom != Freedom::Recompute;
    is_sought.then(|| judge.extremes(shape))
}

/// Draws a change; false if there is none. Near a running plan time is short, and few of its neighbours may pay: most
/// changes relieve the busiest device, and several are drawn until one can be worth `most` or less.
fn propose(
    judge: &mut Judge,
    shape: &mut Shape,
    freedom: Freedom,
    (extremes, most): (Option<Extremes>, f64),
    random: &mut Random,
) -> bool {
    let Some(Extremes { busiest, idlest }) = extremes else { return change(judge, shape, freedom, random) };
    let before = shape.clone();
    for _ in 0..DRAWS {
        let is_changed = match random.chance(RELIEVING) {
            true if freedom == Freedom::Full => {
                let to = random.chance(TO_IDLEST).then_some(idlest);
                relieve(judge, shape, busiest, to, random)
            }
            true => shrink(shape, busiest, random),
            false => change(judge, shape, freedom, random),
        };
        if is_changed && judge.rules.permits(shape) && judge.floor_ns(shape) + judge.charge(shape) <= most {
            return true;
        }
        shape.clone_from(&before);
    }
    false
}

/// Changes a shape; false where the drawn change is none.
pub(crate) fn change(judge: &Judge, shape: &mut Shape, freedom: Freedom, random: &mut Random) -> bool {
    let costs = judge.costs;
    if freedom == Freedom::Full
        && let Some(homes) = judge.homes()
        && random.chance(RESTORING)
    {
        return restore(judge, shape, homes, random);
    }
    let draw = random.below(100);
    match freedom {
        Freedom::Recompute => toggle(costs, shape, random),
        Freedom::Boundary if draw < 80 => shift(shape, random, false),
        Freedom::Boundary => toggle(costs, shape, random),
        Freedom::Full => match draw {
            0..35 => shift(shape, random, true),
            35..47 => carry(shape, random),
            47..58 => toggle(costs, shape, random),
            58..66 => swap(shape, random),
            66..74 => relocate(judge, shape, random),
            74..82 => divide(judge, shape, random),
            82..94 => exchange(judge, shape, random),
            94..98 => cut(judge, shape, random),
            _ => join(shape, random),
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
        let emptied = if onward { left } else { left + 1 };
        shape.stages.remove(emptied);
        // What the empty stage held apart is one stage now.
        if let Some(before) = emptied.checked_sub(1)
            && let Some(behind) = shape.stages.get(emptied).copied()
            && shape.stages[before].device == behind.device
        {
            shape.stages[before].end = behind.end;
            shape.stages.remove(emptied);
        }
    }
    true
}

/// Moves a layer of a device over a boundary to the neighbour.
fn shrink(shape: &mut Shape, device: u32, random: &mut Random) -> bool {
    let is_own = |slot: &Slot| slot.device == device && slot.end - slot.start > 1;
    let own: Vec<usize> = (0..shape.stages.len()).filter(|&at| is_own(&shape.stages[at])).collect();
    if own.is_empty() {
        return false;
    }
    let at = own[random.below(own.len())];
    let onward = random.chance(0.5);
    if onward && at + 1 < shape.stages.len() {
        shape.stages[at].end -= 1;
        shape.stages[at + 1].start -= 1;
        return true;
    }
    if !onward && at > 0 {
        shape.stages[at].start += 1;
        shape.stages[at - 1].end += 1;
        return true;
    }
    false
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
    let mut of = shape.device_of_layers();
    if random.chance(0.5) {
        for device in &mut of {
            *device = match *device {
                device if device == first => second,
                device if device == second => first,
                device => device,
            };
        }
    } else {
        of[shape.stages[a].range()].fill(second);
        of[shape.stages[b].range()].fill(first);
    }
    shape.stages = shape.placed(&of);
    true
}

/// Gives a stage to another device.
fn relocate(judge: &Judge, shape: &mut Shape, random: &mut Random) -> bool {
    let usable = &judge.rules.usable;
    let slot = shape.stages[random.below(shape.stages.len())];
    let device = usable[random.below(usable.len())];
    if slot.device == device {
        return false;
    }
    let mut of = shape.device_of_layers();
    of[slot.range()].fill(device);
    shape.stages = shape.placed(&of);
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
    place(judge, shape, &of)
}

/// Gives a run of layers that one device took from another back to it, or the beginning or end of the run.
fn restore(judge: &Judge, shape: &mut Shape, homes: &[u32], random: &mut Random) -> bool {
    let mut of = shape.device_of_layers();
    let is_away = |of: &[u32], layer: usize| of[layer] != homes[layer] && homes[layer] != GONE;
    let from = random.below(of.len());
    let Some(start) = (from..of.len()).chain(0..from).find(|&layer| is_away(&of, layer)) else { return false };
    let alike = |layer: &usize| of[*layer] == of[start] && homes[*layer] == homes[start];
    let end = (start..of.len()).take_while(alike).count() + start;
    let length = end - start;
    let (first, last) = match random.below(3) {
        0 => (start, end),
        1 => (start, start + 1 + random.below(length)),
        _ => (start + random.below(length), end),
    };
    of[first..last].fill(homes[start]);
    place(judge, shape, &of)
}

/// Takes one or two layers from an end of one of a device's stages and gives them to another device, or to any.
pub(crate) fn relieve(judge: &Judge, shape: &mut Shape, device: u32, to: Option<u32>, random: &mut Random) -> bool {
    let own: Vec<Slot> = shape.stages.iter().copied().filter(|slot| slot.device == device).collect();
    let usable = &judge.rules.usable;
    let to = to.unwrap_or_else(|| usable[random.below(usable.len())]);
    if own.is_empty() || to == device {
        return false;
    }
    let range = own[random.below(own.len())].range();
    let count = (1 + random.below(2)).min(range.len());
    let mut of = shape.device_of_layers();
    let (first, last) = match random.chance(0.5) {
        true => (range.start, range.start + count),
        false => (range.end - count, range.end),
    };
    of[first..last].fill(to);
    place(judge, shape, &of)
}

/// Exchanges the devices of two runs of as many layers: loads stay about what they were.
fn exchange(judge: &Judge, shape: &mut Shape, random: &mut Random) -> bool {
    let mut of = shape.device_of_layers();
    let (a, b) = (random.below(of.len()), random.below(of.len()));
    let (first, second) = (of[a], of[b]);
    if first == second {
        return false;
    }
    let run = |from: usize| of[from..].iter().take_while(|&&device| device == of[from]).count();
    let length = (1 + random.below(3)).min(run(a)).min(run(b));
    of[a..a + length].fill(second);
    of[b..b + length].fill(first);
    place(judge, shape, &of)
}

/// Takes over another placement of the layers; false if it is the old one or has too many stages.
fn place(judge: &Judge, shape: &mut Shape, of: &[u32]) -> bool {
    let stages = shape.placed(of);
    if stages == shape.stages || stages.len() > stages_max(judge) {
        return false;
    }
    shape.stages = stages;
    true
}

/// Stages that a change may lead to.
pub(crate) fn stages_max(judge: &Judge) -> usize {
    judge.rules.usable.len() * STAGES_PER_DEVICE_MAX
}

/// Cuts a stage in two that stay on its device: finer work, and a lower rise where layers are recomputed.
fn cut(judge: &Judge, shape: &mut Shape, random: &mut Random) -> bool {
    let stage = random.below(shape.stages.len());
    let slot = shape.stages[stage];
    if slot.end - slot.start < 2 || shape.stages.len() >= stages_max(judge) {
        return false;
    }
    shape.cut(stage, slot.start + 1 + random.below((slot.end - slot.start - 1) as usize) as u32);
    true
}

/// Joins two neighbouring stages of a device.
fn join(shape: &mut Shape, random: &mut Random) -> bool {
    let stage = random.below(shape.stages.len());
    let is_pair = shape.stages.get(stage + 1).is_some_and(|next| next.device == shape.stages[stage].device);
    if is_pair {
        shape.stages[stage].end = shape.stages[stage + 1].end;
        shape.stages.remove(stage + 1);
    }
    is_pair
}

/// A candidate's shape listed anew: under its own genes, and fresh ones.
pub(crate) fn relisted(judge: &mut Judge, candidate: &Candidate, random: &mut Random) -> Option<Candidate> {
    let fresh = Genes::STANDARD[random.below(Genes::STANDARD.len())].mutated(random);
    let mut shape = candidate.shape.clone();
    if random.chance(0.5) {
        shape.merge();
    }
    judge.best_listing(&shape, &[candidate.genes, candidate.genes.mutated(random), fresh])
}
