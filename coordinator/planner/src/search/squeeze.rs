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
use crate::costs::Costs;
use crate::memory::{Shortage, least_bytes, shortage};
use crate::partition::Weigh;
use crate::random::Random;
use crate::recipe::Genes;
use crate::schedule::{by_count, one_at_a_time};
use crate::shape::{Shape, Slot, Tables};

/// Descents on missing bytes, from different partitions, and the steps of each.
const DESCENTS: usize = 6;
const DESCENT_STEPS: usize = 3_000;
/// Layers up to which all placements are looked at: `devices x 3^layers` steps.
const LAYERS_EXACT: usize = 12;

/// Fills the pool with what fits; the least shortage found, if nothing does.
pub(crate) fn squeeze(judge: &mut Judge, pool: &mut Pool, random: &mut Random) -> Option<Shortage> {
    judge.stage = "memory";
    let costs = judge.costs;
    // Pins may leave every pattern without a split: an even one, repaired, is always there.
    let even = judge.rules.repaired(&by_count(costs.layers, &judge.rules.usable));
    let lacks = |shape: &Shape| shortage(&Tables::new(costs, &least(costs, &shape.device_of_layers())));
    let (largest, sum) = lacks(&even);
    let mut starts: Vec<(u128, Shortage, Shape)> = vec![(sum, largest, even)];
    let class = costs.classes();
    for order in device_orders(costs, judge.rules, ORDERS_MAX) {
        for pattern in patterns(&order, &class, costs.layers) {
            let Some(mut next) = judge.split(&pattern, Weigh::Memory) else { continue };
            next.merge();
            let next = judge.rules.repaired(&next);
            let (largest, next_sum) = lacks(&next);
            if next_sum == 0 {
                offer(judge, pool, &next);
            }
            starts.push((next_sum, largest, next));
        }
    }
    starts.sort_by_key(|(sum, ..)| *sum);
    starts.dedup_by(|a, b| a.2 == b.2);
    starts.truncate(DESCENTS);
    let (mut sum, mut worst, mut shape) = starts[0].clone();
    for (mut now, mut largest, mut current) in starts {
        for _ in 0..DESCENT_STEPS {
            if sum == 0 {
                break;
            }
            let mut next = current.clone();
            if !change(judge, &mut next, Freedom::Full, random) {
                continue;
            }
            let next = judge.rules.repaired(&next);
            let (next_largest, next_sum) = lacks(&next);
            // Equal steps cross plateaus.
            if next_sum <= now {
                (now, largest, current) = (next_sum, next_largest, next);
            }
            if now < sum {
                (sum, worst) = (now, largest);
                shape.clone_from(&current);
            }
        }
    }
    if sum > 0
        && costs.layers <= LAYERS_EXACT
        && let Some(of) = packed(judge)
    {
        sum = 0;
        shape = least(costs, &of);
    }
    if sum == 0 {
        offer(judge, pool, &shape);
    }
    pool.members.is_empty().then_some(worst)
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
