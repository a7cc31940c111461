//! Any plan at all, where memory is so tight that no start fits.
//!
//! A device needs least with a stage per layer, one microbatch at a time, each layer recomputed whose input is smaller
//! than what it holds, and B in one: each B lets go of all its layer held before the next begins. So a placement of the
//! layers decides alone whether anything fits, and what is looked for is a placement:
//!
//! - partitions by memory over the usual patterns, then a descent on the bytes that are short;
//! - with few layers, all placements at once: a table over sets of layers tells which can share the first d devices.

use super::judge::Judge;
use super::portfolio::{ORDERS_MAX, Pool, device_orders, patterns};
use super::structure::{Freedom, change};
use super::{Infeasible, short};
use crate::costs::Costs;
use crate::memory::{least_bytes, shortage_bytes};
use crate::partition::Weigh;
use crate::random::Random;
use crate::recipe::Genes;
use crate::schedule::{by_count, one_at_a_time};
use crate::shape::{Shape, Slot, Tables};
use adaptis_plan::Problem;

/// Descents on missing bytes, from different partitions, and the steps of each.
const DESCENTS: usize = 6;
const DESCENT_STEPS: usize = 3_000;
/// Further ones, each from the placement that lacks least after so many random changes, and the evaluations that each
/// counts as.
const FURTHER: usize = 1_000;
const KICKS: usize = 6;
const DESCENT_EVALUATIONS: u64 = 150;
/// Layers up to which all placements are looked at: `devices x 3^layers` steps.
const LAYERS_EXACT: usize = 12;
/// What looking at a placement takes, in instructions.
const INSTRUCTIONS_PER_LAYER: u64 = 2;
/// Partitions that fit after which no more are listed.
const FITTING_MAX: usize = 8;

/// A placement of the layers and the bytes that are short on all devices together.
#[derive(Clone)]
struct Place {
    short_bytes: u128,
    shape: Shape,
}

impl Place {
    fn new(costs: &Costs, shape: Shape) -> Self {
        let short_bytes = shortage_bytes(&Tables::new(costs, &least(costs, &shape.device_of_layers())));
        Self { short_bytes, shape }
    }
}

/// Fills the pool with what fits.
///
/// # Errors
/// Nothing fits, nothing that does was found, or the caller stopped before.
pub(super) fn squeeze(
    problem: &Problem,
    judge: &mut Judge,
    pool: &mut Pool,
    random: &mut Random,
) -> Result<(), Infeasible> {
    judge.stage = "memory";
    let costs = judge.costs;
    let mut places = partitions(judge, pool);
    if !pool.members.is_empty() {
        return Ok(());
    }
    places.sort_by_key(|place| place.short_bytes);
    places.dedup_by(|a, b| a.shape == b.shape);
    places.truncate(DESCENTS);
    let mut best = places[0].clone();
    for place in places {
        descend(judge, &mut best, place, random);
    }
    let mut is_proved = best.short_bytes > 0 && lacks_in_sum(judge);
    if best.short_bytes > 0 && !is_proved && costs.layers <= LAYERS_EXACT {
        match packed(judge) {
            Some(of) => best = Place::new(costs, least(costs, &of)),
            None => is_proved = true,
        }
    }
    for _ in 0..FURTHER {
        if best.short_bytes == 0 || is_proved || judge.is_over() {
            break;
        }
        let mut next = best.shape.clone();
        for _ in 0..KICKS {
            change(judge, &mut next, Freedom::Full, random);
        }
        let next = judge.rules.repaired(&next);
        descend(judge, &mut best, Place::new(costs, next), random);
    }
    if best.short_bytes == 0 {
        offer(judge, pool, &best.shape);
    }
    match pool.members.is_empty() {
        false => Ok(()),
        true if judge.is_overdue() => Err(Infeasible::NoneYet),
        true => {
            let tables = Tables::new(costs, &least(costs, &best.shape.device_of_layers()));
            Err(Infeasible::Memory { short: short::of(problem, &tables), is_proved })
        }
    }
}

/// Partitions by memory over the usual patterns; what fits goes into the pool.
fn partitions(judge: &mut Judge, pool: &mut Pool) -> Vec<Place> {
    let costs = judge.costs;
    // Pins may leave every pattern without a split: an even one, repaired, is always there.
    let even = judge.rules.repaired(&by_count(costs.layers, &judge.rules.usable));
    let mut places = vec![Place::new(costs, even)];
    let class = costs.classes();
    for order in device_orders(costs, judge.rules, ORDERS_MAX) {
        for pattern in patterns(&order, &class, costs.layers) {
            if judge.is_overdue() || pool.members.len() >= FITTING_MAX {
                return places;
            }
            let Some(mut next) = judge.split(&pattern, Weigh::Memory) else { continue };
            next.merge();
            let next = Place::new(costs, judge.rules.repaired(&next));
            judge.work(costs.layers as u64 * INSTRUCTIONS_PER_LAYER);
            if next.short_bytes == 0 {
                offer(judge, pool, &next.shape);
            }
            places.push(next);
        }
    }
    places
}

/// Changes a placement at random while that lacks no more; the best so far is kept.
fn descend(judge: &mut Judge, best: &mut Place, mut current: Place, random: &mut Random) {
    let costs = judge.costs;
    judge.count(DESCENT_EVALUATIONS);
    for _ in 0..DESCENT_STEPS {
        if current.short_bytes < best.short_bytes {
            best.clone_from(&current);
        }
        if best.short_bytes == 0 || judge.is_overdue() {
            return;
        }
        let mut next = current.shape.clone();
        if !change(judge, &mut next, Freedom::Full, random) {
            continue;
        }
        judge.work(costs.layers as u64 * INSTRUCTIONS_PER_LAYER);
        let next = Place::new(costs, judge.rules.repaired(&next));
        // Equal steps cross plateaus.
        if next.short_bytes <= current.short_bytes {
            current = next;
        }
    }
    if current.short_bytes < best.short_bytes {
        *best = current;
    }
}

/// What all layers hold at least, one microbatch in flight, is more than all devices have; or a layer alone is.
fn lacks_in_sum(judge: &Judge) -> bool {
    let (costs, rules) = (judge.costs, judge.rules);
    let room = |device: usize| u128::from(costs.memory_bytes[device].saturating_sub(costs.reserved_bytes[device]));
    if (0..costs.devices).any(|device| costs.reserved_bytes[device] > costs.memory_bytes[device]) {
        return true;
    }
    let held = |device: usize, layer: usize| {
        let cost = costs.plain_stage(device, layer..layer + 1);
        u128::from(cost.state_bytes) + u128::from(cost.stash_bytes.min(costs.input_bytes(layer)))
    };
    let devices = || rules.usable.iter().map(|&device| device as usize);
    let most: u128 = devices().map(room).sum();
    let mut sum = 0;
    for layer in 0..costs.layers {
        let allowed = || devices().filter(|&device| rules.allows(layer, device));
        if allowed().all(|device| held(device, layer) > room(device)) {
            return true;
        }
        sum += allowed().map(|device| held(device, layer)).min().unwrap_or(0);
    }
    sum > most
}

/// A stage per layer, recomputed where that frees anything: what needs least of a placement.
fn least(costs: &Costs, device_of_layers: &[u32]) -> Shape {
    let slot = |(layer, &device): (usize, &u32)| Slot { start: layer as u32, end: layer as u32 + 1, device };
    let mut shape = Shape::new(costs.layers, device_of_layers.iter().enumerate().map(slot).collect());
    for (layer, &device) in device_of_layers.iter().enumerate() {
        shape.recompute[layer] = costs.input_bytes(layer) < costs.layer(device as usize, layer).activation_bytes;
    }
    shape
}

/// A placement that fits, if there is one.
fn packed(judge: &Judge) -> Option<Vec<u32>> {
    let (costs, rules) = (judge.costs, judge.rules);
    // A device that holds nothing must fit as well.
    if (0..costs.devices).any(|device| costs.reserved_bytes[device] > costs.memory_bytes[device]) {
        return None;
    }
    let sets = 1_usize << costs.layers;
    let groups: Vec<usize> = rules.groups().iter().map(|group| group.iter().map(|&layer| 1 << layer).sum()).collect();
    let fits = |device: u32, set: usize| {
        let members = (0..costs.layers).filter(|layer| set & (1 << layer) != 0);
        if members.clone().any(|layer| !rules.allows(layer, device as usize))
            || groups.iter().any(|group| set & group != 0 && set & group != *group)
        {
            return false;
        }
        // The other layers are on any other device: buffers depend on nothing else.
        let elsewhere = u32::from(device == 0);
        let of: Vec<u32> =
            (0..costs.layers).map(|layer| if set & (1 << layer) != 0 { device } else { elsewhere }).collect();
        if costs.devices == 1 && set + 1 != sets {
            return false;
        }
        least_bytes(&Tables::new(costs, &least(costs, &of)), device as usize) <= costs.memory_bytes[device as usize]
    };
    // Per device: for each set that it and those before it can hold, what it takes of it.
    let mut takes: Vec<Vec<Option<usize>>> = Vec::with_capacity(rules.usable.len());
    for (place, &device) in rules.usable.iter().enumerate() {
        let own: Vec<bool> = (0..sets).map(|set| set == 0 || fits(device, set)).collect();
        let before = place.checked_sub(1).map(|before| &takes[before]);
        let held = |rest: usize| before.map_or(rest == 0, |before| before[rest].is_some());
        let take = |set: usize| {
            let mut part = set;
            loop {
                if own[part] && held(set & !part) {
                    return Some(part);
                }
                if part == 0 {
                    return None;
                }
                part = (part - 1) & set;
            }
        };
        let row = (0..sets).map(take).collect();
        takes.push(row);
    }
    let mut of = vec![0; costs.layers];
    let mut left = sets - 1;
    for (place, &device) in rules.usable.iter().enumerate().rev() {
        let part = takes[place][left]?;
        (0..costs.layers).filter(|layer| part & (1 << layer) != 0).for_each(|layer| of[layer] = device);
        left &= !part;
    }
    Some(of)
}

/// Offers what a placement that fits one microbatch at a time can do, in its stages and in one per layer.
fn offer(judge: &mut Judge, pool: &mut Pool, shape: &Shape) {
    for shape in [least(judge.costs, &shape.device_of_layers()), shape.clone()] {
        let programs = one_at_a_time(&Tables::new(judge.costs, &shape));
        let listed = judge.best_listing(&shape, &Genes::STANDARD);
        let given = judge.given(&shape, programs, Genes::STANDARD[0]);
        for candidate in [listed, given].into_iter().flatten() {
            pool.offer(judge, candidate);
        }
    }
}
