//! Splits the model over a sequence of devices: a dynamic program over boundaries.
//!
//! Each slot of the sequence takes a run of layers, also none. The cost of a run is its F, I and W on the slot's
//! device, times the number of slots that the device has, so that several slots share a device evenly; the program
//! minimises the largest, then the sum of squares. A run that does not fit with the microbatches that its place keeps
//! in flight recomputes the layers that free the most bytes per nanosecond until it does.

use crate::costs::{Costs, StageCost};
use crate::rules::Rules;
use crate::shape::{Shape, Slot};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// How a run is chosen for a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weigh {
    /// By time, within memory; `in_flight` in percent of what 1F1B keeps.
    Time {
        /// Percent.
        in_flight: usize,
    },
    /// By number of layers.
    Count,
    /// By the share of memory that one microbatch in flight needs.
    Memory,
}

/// A run on a device that fits, and how many of its layers it recomputes, in the order of [`by_relief`].
#[derive(Clone, Copy, Debug)]
struct Run {
    load: f64,
    again: u32,
}

/// Cells that [`Splitter`] keeps before it forgets all: some tens of megabytes.
const CELLS_MAX: usize = 1 << 21;
/// Runs of a device are looked at up to so many times the load that all devices together would give each, and one
/// layer more; all runs are, where that leaves no split.
const LOAD_MAX: f64 = 3.0;
/// Microbatches in flight up to which each number counts; larger ones are rounded up by an eighth at most.
const IN_FLIGHT_EXACT: usize = 8;

/// The runs of a slot: `start x width + length - 1`.
#[derive(Clone, Debug)]
struct Table {
    width: usize,
    runs: Vec<Option<Run>>,
}

impl Table {
    fn get(&self, start: usize, end: usize) -> Option<&Run> {
        if end - start > self.width { None } else { self.runs[start * self.width + end - start - 1].as_ref() }
    }
}

/// Device (or, where nothing is pinned, the first like it), slots of it, in flight, [`Weigh`] as a number, and whether
/// runs of any load are there.
type Key = (usize, usize, usize, u8, bool);

/// Splits, and remembers the runs of each device for the next sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Splitter {
    tables: BTreeMap<Key, Table>,
    classes: Vec<usize>,
}

/// A dynamic program's cell: what is to be least, first and then second, and where the last run starts.
#[derive(Clone, Copy, Debug)]
struct Cell {
    rank: (f64, f64),
    from: u32,
}

impl Cell {
    const NONE: Cell = Cell { rank: (f64::INFINITY, f64::INFINITY), from: 0 };
}

impl Splitter {
    /// Splits the layers over `sequence`; `None` if no split fits. Pins are kept, groups are not looked at, and
    /// neighbours on one device are not joined. All calls must be for the same problem.
    pub(crate) fn split(&mut self, costs: &Costs, rules: &Rules, sequence: &[u32], weigh: Weigh) -> Option<Shape> {
        [false, true].into_iter().find_map(|any_load| self.split_within(costs, rules, sequence, weigh, any_load))
    }

    fn split_within(
        &mut self,
        costs: &Costs,
        rules: &Rules,
        sequence: &[u32],
        weigh: Weigh,
        any_load: bool,
    ) -> Option<Shape> {
        let keys = self.prepare(costs, rules, sequence, weigh, any_load);
        self.best(costs, sequence, &keys, evenly).map(|(_, shape)| shape)
    }

    /// For each slack the split that moves least among those whose largest load is at most so much larger than the
    /// least possible. `tolls` says what moves to each device: sums over the layers before each.
    pub(crate) fn split_near(
        &mut self,
        costs: &Costs,
        rules: &Rules,
        sequence: &[u32],
        weigh: Weigh,
        slacks: &[f64],
        tolls: &[Vec<f64>],
    ) -> Vec<Shape> {
        let keys = self.prepare(costs, rules, sequence, weigh, false);
        let Some(((least, _), _)) = self.best(costs, sequence, &keys, evenly) else { return Vec::new() };
        let near = |slack: &f64| {
            let most = least * (1.0 + slack);
            let moved = |rank: (f64, f64), place: usize, range: &Range<usize>, load: f64| {
                let toll = &tolls[sequence[place] as usize];
                let moved = if load <= most { toll[range.end] - toll[range.start] } else { f64::INFINITY };
                (rank.0 + moved, rank.1 + load * load)
            };
            self.best(costs, sequence, &keys, moved).map(|(_, shape)| shape)
        };
        slacks.iter().filter_map(near).collect()
    }

    /// The split of the least rank; `step` gives the rank with one more run, from the place in the sequence, the run
    /// and its load.
    fn best(
        &self,
        costs: &Costs,
        sequence: &[u32],
        keys: &[Key],
        step: impl Fn((f64, f64), usize, &Range<usize>, f64) -> (f64, f64),
    ) -> Option<((f64, f64), Shape)> {
        let layers = costs.layers;
        let mut rows: Vec<Vec<Cell>> = vec![vec![Cell::NONE; layers + 1]];
        rows[0][0] = Cell { rank: (0.0, 0.0), from: 0 };
        for (place, key) in keys.iter().enumerate() {
            let before = &rows[place];
            let table = &self.tables[key];
            // An empty run leaves the slot out.
            let mut row: Vec<Cell> = (0..=layers).map(|end| Cell { from: end as u32, ..before[end] }).collect();
            for start in (0..layers).filter(|&start| before[start].rank.0.is_finite()) {
                for (end, held) in row.iter_mut().enumerate().skip(start + 1) {
                    let Some(run) = table.get(start, end) else { break };
                    let rank = step(before[start].rank, place, &(start..end), run.load);
                    if rank < held.rank {
                        *held = Cell { rank, from: start as u32 };
                    }
                }
            }
            rows.push(row);
        }
        let rank = rows[sequence.len()][layers].rank;
        if rank.0.is_infinite() {
            return None;
        }
        let mut shape = Shape::new(layers, Vec::new());
        let mut end = layers;
        for (place, key) in keys.iter().enumerate().rev() {
            let start = rows[place + 1][end].from as usize;
            if start < end {
                let device = sequence[place];
                shape.stages.push(Slot { start: start as u32, end: end as u32, device });
                let run = self.tables[key].get(start, end).expect("the program chose a run that fits");
                let relief = by_relief(costs, device as usize, start..end);
                relief.iter().take(run.again as usize).for_each(|&layer| shape.recompute[layer] = true);
            }
            end = start;
        }
        shape.stages.reverse();
        Some((rank, shape))
    }

    /// The runs of every slot are there under these keys.
    fn prepare(&mut self, costs: &Costs, rules: &Rules, sequence: &[u32], weigh: Weigh, any_load: bool) -> Vec<Key> {
        if self.classes.is_empty() {
            self.classes = if rules.free { costs.classes() } else { (0..costs.devices).collect() };
        }
        if self.tables.values().map(|table| table.runs.len()).sum::<usize>() > CELLS_MAX {
            self.tables.clear();
        }
        let used = sequence.iter().collect::<BTreeSet<_>>().len().max(1);
        let mut slots: BTreeMap<u32, usize> = BTreeMap::new();
        sequence.iter().for_each(|&device| *slots.entry(device).or_default() += 1);
        let key = |(place, &device): (usize, &u32)| {
            let (in_flight, number) = match weigh {
                Weigh::Time { in_flight } => {
                    let whole = ((sequence.len() - place) * used * in_flight).div_ceil(sequence.len() * 100);
                    (rounded(whole).clamp(1, costs.microbatches), 0)
                }
                Weigh::Count => (1, 1),
                Weigh::Memory => (1, 2),
            };
            (self.classes[device as usize], slots[&device], in_flight, number, any_load)
        };
        let keys: Vec<Key> = sequence.iter().enumerate().map(key).collect();
        let load_max = if any_load { f64::INFINITY } else { fair_load(costs) * LOAD_MAX };
        for &key in &keys {
            let (device, share, in_flight, ..) = key;
            self.tables.entry(key).or_insert_with(|| table(costs, rules, device, (share, in_flight), weigh, load_max));
        }
        keys
    }
}

/// Ranks splits by their largest load, then by the sum of squares.
fn evenly(rank: (f64, f64), _: usize, _: &Range<usize>, load: f64) -> (f64, f64) {
    (rank.0.max(load), rank.1 + load * load)
}

/// A number in flight, rounded up by an eighth at most: places that differ little share a table.
fn rounded(in_flight: usize) -> usize {
    if in_flight <= IN_FLIGHT_EXACT {
        return in_flight;
    }
    let step = in_flight.next_power_of_two() / 16;
    in_flight.next_multiple_of(step.max(1))
}

/// The time of a microbatch on each device if all ended together and layers could be cut at will.
fn fair_load(costs: &Costs) -> f64 {
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

fn table(
    costs: &Costs,
    rules: &Rules,
    device: usize,
    (share, in_flight): (usize, usize),
    weigh: Weigh,
    load_max: f64,
) -> Table {
    let layers = costs.layers;
    // By time, the longest run that one more layer does not take beyond the limit.
    let width = match weigh {
        Weigh::Time { .. } if load_max.is_finite() => {
            let reach = |start: usize| {
                let mut load = 0.0;
                let within = |&end: &usize| {
                    let before = load;
                    load += whole_load(costs, device, end..end + 1);
                    before <= load_max
                };
                (start..layers).take_while(within).count()
            };
            (0..layers).map(reach).max().unwrap_or(0)
        }
        _ => layers,
    };
    let mut table = Table { width, runs: vec![None; layers * width] };
    let room = costs.memory_bytes[device].saturating_sub(costs.reserved_bytes[device]) / share as u64;
    let mut mask = vec![false; layers];
    let relief: Vec<f64> = (0..layers).map(|layer| relief(costs, device, layer)).collect();
    let mut order: Vec<usize> = Vec::new();
    for start in 0..layers {
        let mut fewest = 0;
        order.clear();
        for end in start + 1..=layers.min(start + width) {
            if !rules.allows(end - 1, device) {
                break;
            }
            // Kept as `by_relief` would sort it.
            let next = relief[end - 1];
            if next > 0.0 {
                order.insert(order.partition_point(|&layer| relief[layer] >= next), end - 1);
            }
            let range = start..end;
            let run = match weigh {
                Weigh::Count => Some(Run { load: (end - start) as f64 * share as f64, again: 0 }),
                Weigh::Memory => Some(by_memory(costs, device, range, room, (&order, &mut mask))),
                Weigh::Time { .. } => by_time(costs, device, range, (room, in_flight), fewest, (&order, &mut mask))
                    .map(|mut run| {
                        run.load *= share as f64;
                        run
                    }),
            };
            fewest = run.map_or(fewest, |run| run.again as usize);
            if run.is_none() {
                // Nothing longer fits either.
                break;
            }
            table.runs[start * width + end - start - 1] = run;
        }
    }
    table
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
) -> Option<Run> {
    let buffers = buffer_bytes(costs, &range);
    let room = u128::from(room);
    let fits = |cost: &StageCost| needs(cost, buffers, in_flight) <= room;
    let plain = costs.stage(device, range.clone(), mask);
    if fewest == 0 && fits(&plain) {
        return Some(Run { load: load(&plain), again: 0 });
    }
    let mut freed = 0;
    (1..=order.len()).find_map(|count| {
        freed += u128::from(freed_bytes(costs, device, order[count - 1]));
        // What it holds alone may be too much already: a walk over its layers tells no more.
        let stash = u128::from(plain.stash_bytes).saturating_sub(freed) * in_flight as u128;
        let least = u128::from(plain.state_bytes) + u128::from(buffers) + stash;
        if count < fewest || least > room {
            return None;
        }
        let cost = with(mask, &order[..count], |mask| costs.stage(device, range.clone(), mask));
        fits(&cost).then(|| Run { load: load(&cost), again: count as u32 })
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
    let plain = needs(&costs.stage(device, range.clone(), mask), buffers, 1);
    let eased = with(mask, order, |mask| needs(&costs.stage(device, range, mask), buffers, 1));
    let again = if eased < plain { order.len() as u32 } else { 0 };
    Run { load: plain.min(eased) as f64 / (room as f64 + 1.0), again }
}
