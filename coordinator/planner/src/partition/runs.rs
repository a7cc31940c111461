//! The runs of layers that a slot may take: what each takes, and what it recomputes to fit.

use super::Weigh;
use crate::costs::{Costs, StageCost};
use crate::rules::Rules;
use std::ops::Range;

/// Places where a run may begin or end; with more layers only every second, third... boundary is one.
const PLACES_MAX: usize = 1024;
/// What looking at a run takes, in steps of the dynamic program.
const STEPS_PER_RUN: u64 = 16;

/// A run on a device that fits, and how many of its layers it recomputes, in the order of [`by_relief`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) load: f64,
    pub(super) again: u32,
}

/// The places where runs begin and end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    layers: usize,
    /// Layers from a place to the next.
    grain: usize,
    /// Places but for the last.
    pub(super) count: usize,
}

impl Grid {
    pub(super) fn new(layers: usize) -> Self {
        let grain = layers.div_ceil(PLACES_MAX).max(1);
        Self { layers, grain, count: layers.div_ceil(grain) }
    }

    fn layer(self, place: usize) -> usize {
        (place * self.grain).min(self.layers)
    }

    pub(super) fn range(self, start: usize, end: usize) -> Range<usize> {
        self.layer(start)..self.layer(end)
    }
}

/// The runs of a slot between places: `start x width + length - 1`.
#[derive(Clone, Debug)]
pub(super) struct Table {
    width: usize,
    pub(super) runs: Vec<Option<Run>>,
}

impl Table {
    pub(super) fn get(&self, start: usize, end: usize) -> Option<&Run> {
        if end - start > self.width { None } else { self.runs[start * self.width + end - start - 1].as_ref() }
    }
}

/// The time of a microbatch on each device if all ended together and layers could be cut at will.
pub(super) fn fair_load(costs: &Costs) -> f64 {
    let rate: f64 = (0..costs.devices).map(|device| 1.0 / whole_load(costs, device, 0..costs.layers).max(1.0)).sum();
    1.0 / rate.max(f64::MIN_POSITIVE)
}

/// F, I and W of some layers, with the device's slowdown.
fn whole_load(costs: &Costs, device: usize, range: Range<usize>) -> f64 {
    let of = |layer: usize| {
        let cost = costs.layer(device, layer);
        cost.forward_ns as f64 + cost.input_gradient_ns as f64 + cost.weight_gradient_ns as f64
    };
    range.map(of).sum::<f64>() * costs.slowdown[device]
}

/// Microbatches in flight up to which every run of a device fits with nothing recomputed.
pub(super) fn ample_in_flight(costs: &Costs, device: usize, share: usize, load_max: f64) -> usize {
    let grid = Grid::new(costs.layers);
    let width = if load_max.is_finite() { reach(costs, grid, device, load_max) } else { grid.count };
    let room = u128::from(room(costs, device, share));
    // Of any boundary: those of a shorter run may be larger than the longest one's.
    let buffers = (0..costs.layers).map(|layer| costs.buffer_bytes(&(layer..layer + 1), layer > 0, true)).max();
    let most = |start: usize| {
        let cost = costs.plain_stage(device, grid.range(start, grid.count.min(start + width)));
        let left = room.checked_sub(needs(&cost, buffers.unwrap_or(0).saturating_mul(2), 0))?;
        Some(left.checked_div(u128::from(cost.stash_bytes)).map_or(usize::MAX, |most| most as usize))
    };
    (0..grid.count).map(|start| most(start).unwrap_or(0)).min().unwrap_or(0)
}

/// What each of a device's slots may hold.
fn room(costs: &Costs, device: usize, share: usize) -> u64 {
    costs.memory_bytes[device].saturating_sub(costs.reserved_bytes[device]) / share as u64
}

/// The longest run between places that its last stretch takes beyond a load, over all places.
fn reach(costs: &Costs, grid: Grid, device: usize, load_max: f64) -> usize {
    let from = |start: usize| {
        let mut load = 0.0;
        let within = |&place: &usize| {
            let before = load;
            load += whole_load(costs, device, grid.range(place, place + 1));
            before <= load_max
        };
        (start..grid.count).take_while(within).count()
    };
    (0..grid.count).map(from).max().unwrap_or(0)
}

pub(super) fn table(
    costs: &Costs,
    rules: &Rules,
    device: usize,
    (share, in_flight): (usize, usize),
    weigh: Weigh,
    load_max: f64,
) -> (Table, u64) {
    let grid = Grid::new(costs.layers);
    // By time, the longest run that one more layer does not take beyond the limit.
    let width = match weigh {
        Weigh::Time { .. } if load_max.is_finite() => reach(costs, grid, device, load_max),
        _ => grid.count,
    };
    let mut table = Table { width, runs: vec![None; grid.count * width] };
    let room = room(costs, device, share);
    let mut mask = vec![false; costs.layers];
    let relief: Vec<f64> = (0..costs.layers).map(|layer| relief(costs, device, layer)).collect();
    let mut order: Vec<usize> = Vec::new();
    let mut steps = table.runs.len() as u64;
    for start in 0..grid.count {
        let mut fewest = 0;
        order.clear();
        for end in start + 1..=grid.count.min(start + width) {
            let added = grid.range(end - 1, end);
            if !added.clone().all(|layer| rules.allows(layer, device)) {
                break;
            }
            // Kept as `by_relief` would sort it.
            for layer in added.filter(|&layer| relief[layer] > 0.0) {
                order.insert(order.partition_point(|&other| relief[other] >= relief[layer]), layer);
            }
            let range = grid.range(start, end);
            // A run by memory is walked over.
            steps += STEPS_PER_RUN + if weigh == Weigh::Memory { range.len() as u64 } else { 0 };
            let run = match weigh {
                Weigh::Count => Some(Run { load: range.len() as f64 * share as f64, again: 0 }),
                Weigh::Memory => Some(by_memory(costs, device, range, room, (&order, &mut mask))),
                Weigh::Time { .. } => {
                    by_time(costs, device, range, (room, in_flight), fewest, (&order, &mut mask), &mut steps).map(
                        |mut run| {
                            run.load *= share as f64;
                            run
                        },
                    )
                }
            };
            fewest = run.map_or(fewest, |run| run.again as usize);
            if run.is_none() {
                // Nothing longer fits either.
                break;
            }
            table.runs[start * width + end - start - 1] = run;
        }
    }
    (table, steps)
}

/// Receive buffers count as if both neighbours were on other devices.
fn needs(cost: &StageCost, buffer_bytes: u64, in_flight: usize) -> u128 {
    u128::from(cost.state_bytes)
        + u128::from(buffer_bytes)
        + u128::from(cost.stash_bytes) * in_flight as u128
        + u128::from(cost.rise_bytes)
        + u128::from(cost.workspace_bytes)
}

fn buffer_bytes(costs: &Costs, range: &Range<usize>) -> u64 {
    costs.buffer_bytes(range, range.start > 0, range.end < costs.layers)
}

fn load(cost: &StageCost) -> f64 {
    cost.ns[..3].iter().map(|&ns| ns as f64).sum()
}

/// All of a run's layers, those that free the most bytes per nanosecond of repeated F first; only those that free some.
pub(crate) fn by_relief(costs: &Costs, device: usize, range: Range<usize>) -> Vec<usize> {
    let rate = |layer: usize| relief(costs, device, layer);
    let mut layers: Vec<usize> = range.filter(|&layer| rate(layer) > 0.0).collect();
    layers.sort_by(|&a, &b| rate(b).total_cmp(&rate(a)).then(a.cmp(&b)));
    layers
}

/// Bytes that recomputing a layer frees.
fn freed_bytes(costs: &Costs, device: usize, layer: usize) -> u64 {
    costs.layer(device, layer).activation_bytes.saturating_sub(costs.input_bytes(layer))
}

/// The same per nanosecond of repeated F.
fn relief(costs: &Costs, device: usize, layer: usize) -> f64 {
    freed_bytes(costs, device, layer) as f64 / (costs.layer(device, layer).forward_ns as f64 + 1.0)
}

fn with<T>(mask: &mut [bool], layers: &[usize], look: impl FnOnce(&[bool]) -> T) -> T {
    layers.iter().for_each(|&layer| mask[layer] = true);
    let result = look(mask);
    layers.iter().for_each(|&layer| mask[layer] = false);
    result
}

/// The run with the fewest recomputed layers that fits, at least `fewest`: a shorter run needed that many. `order` is
/// that of [`by_relief`].
fn by_time(
    costs: &Costs,
    device: usize,
    range: Range<usize>,
    (room, in_flight): (u64, usize),
    fewest: usize,
    (order, mask): (&[usize], &mut [bool]),
    steps: &mut u64,
) -> Option<Run> {
    let buffers = buffer_bytes(costs, &range);
    // As if both neighbours were on other devices.
    let crossings = 2.0 * costs.crossings_ns(range.start > 0, range.end < costs.layers) as f64;
    let room = u128::from(room);
    let fits = |cost: &StageCost| needs(cost, buffers, in_flight) <= room;
    let plain = costs.plain_stage(device, range.clone());
    if fewest == 0 && fits(&plain) {
        return Some(Run { load: load(&plain) + crossings, again: 0 });
    }
    let mut freed = 0;
    (1..=order.len()).find_map(|count| {
        freed += u128::from(freed_bytes(costs, device, order[count - 1]));
        // What it holds alone may be too much already: a walk over its layers tells no more.
        let stash = u128::from(plain.stash_bytes).saturating_sub(freed) * in_flight as u128;
        let least = u128::from(plain.state_bytes) + u128::from(buffers) + stash;
        *steps += 1;
        if count < fewest || least > room {
            return None;
        }
        *steps += range.len() as u64;
        let cost = with(mask, &order[..count], |mask| costs.stage(device, range.clone(), mask));
        fits(&cost).then(|| Run { load: load(&cost) + crossings, again: count as u32 })
    })
}

fn by_memory(
    costs: &Costs,
    device: usize,
    range: Range<usize>,
    room: u64,
    (order, mask): (&[usize], &mut [bool]),
) -> Run {
    let buffers = buffer_bytes(costs, &range);
    let plain = needs(&costs.plain_stage(device, range.clone()), buffers, 1);
    let eased = with(mask, order, |mask| needs(&costs.stage(device, range, mask), buffers, 1));
    let again = if eased < plain { order.len() as u32 } else { 0 };
    Run { load: plain.min(eased) as f64 / (room as f64 + 1.0), again }
}
