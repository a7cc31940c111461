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
const CELLS_MAX: usize = 1 << 20;

/// Device (or, where nothing is pinned, the first like it), slots of it, in flight, and [`Weigh`] as a number.
type Key = (usize, usize, usize, u8);

/// Splits, and remembers the runs of each device for the next sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Splitter {
    runs: BTreeMap<Key, Vec<Option<Run>>>,
    classes: Vec<usize>,
}

/// A dynamic program's cell: largest load, sum of squares.
#[derive(Clone, Copy)]
struct Cell {
    largest: f64,
    squares: f64,
    from: u32,
}

impl Cell {
    const NONE: Cell = Cell { largest: f64::INFINITY, squares: f64::INFINITY, from: 0 };

    fn better(&self, other: &Cell) -> bool {
        (self.largest, self.squares) < (other.largest, other.squares)
    }
}

impl Splitter {
    /// Splits the layers over `sequence`; `None` if no split fits. Pins are kept, groups are not looked at, and
    /// neighbours on one device are not joined. All calls must be for the same problem.
    pub(crate) fn split(&mut self, costs: &Costs, rules: &Rules, sequence: &[u32], weigh: Weigh) -> Option<Shape> {
        let layers = costs.layers;
        let keys = self.prepare(costs, rules, sequence, weigh);
        let mut rows: Vec<Vec<Cell>> = vec![vec![Cell::NONE; layers + 1]];
        rows[0][0] = Cell { largest: 0.0, squares: 0.0, from: 0 };
        for (place, key) in keys.iter().enumerate() {
            let before = &rows[place];
            let runs = &self.runs[key];
            // An empty run leaves the slot out.
            let mut row: Vec<Cell> = (0..=layers).map(|end| Cell { from: end as u32, ..before[end] }).collect();
            for start in (0..layers).filter(|&start| before[start].largest.is_finite()) {
                for end in start + 1..=layers {
                    let Some(run) = &runs[start * (layers + 1) + end] else { break };
                    let cell = Cell {
                        largest: before[start].largest.max(run.load),
                        squares: before[start].squares + run.load * run.load,
                        from: start as u32,
                    };
                    if cell.better(&row[end]) {
                        row[end] = cell;
                    }
                }
            }
            rows.push(row);
        }
        if rows[sequence.len()][layers].largest.is_infinite() {
            return None;
        }
        let mut shape = Shape::new(layers, Vec::new());
        let mut end = layers;
        for (place, key) in keys.iter().enumerate().rev() {
            let start = rows[place + 1][end].from as usize;
            if start < end {
                let device = sequence[place];
                shape.stages.push(Slot { start: start as u32, end: end as u32, device });
                let run = self.runs[key][start * (layers + 1) + end].expect("the program chose a run that fits");
                let relief = by_relief(costs, device as usize, start..end);
                relief.iter().take(run.again as usize).for_each(|&layer| shape.recompute[layer] = true);
            }
            end = start;
        }
        shape.stages.reverse();
        Some(shape)
    }

    /// The runs of every slot are there under these keys.
    fn prepare(&mut self, costs: &Costs, rules: &Rules, sequence: &[u32], weigh: Weigh) -> Vec<Key> {
        if self.classes.is_empty() {
            self.classes = if rules.free { costs.classes() } else { (0..costs.devices).collect() };
        }
        let size = (costs.layers + 1) * (costs.layers + 1);
        if self.runs.len() * size > CELLS_MAX {
            self.runs.clear();
        }
        let used = sequence.iter().collect::<BTreeSet<_>>().len().max(1);
        let key = |(place, &device): (usize, &u32)| {
            let share = sequence.iter().filter(|&&other| other == device).count();
            let (in_flight, number) = match weigh {
                Weigh::Time { in_flight } => {
                    let whole = ((sequence.len() - place) * used * in_flight).div_ceil(sequence.len() * 100);
                    (whole.clamp(1, costs.microbatches), 0)
                }
                Weigh::Count => (1, 1),
                Weigh::Memory => (1, 2),
            };
            (self.classes[device as usize], share, in_flight, number)
        };
        let keys: Vec<Key> = sequence.iter().enumerate().map(key).collect();
        for &(device, share, in_flight, number) in &keys {
            let key = (device, share, in_flight, number);
            self.runs.entry(key).or_insert_with(|| table(costs, rules, device, share, in_flight, weigh));
        }
        keys
    }
}

fn table(
    costs: &Costs,
    rules: &Rules,
    device: usize,
    share: usize,
    in_flight: usize,
    weigh: Weigh,
) -> Vec<Option<Run>> {
    let layers = costs.layers;
    let mut runs = vec![None; (layers + 1) * (layers + 1)];
    let room = costs.memory_bytes[device].saturating_sub(costs.reserved_bytes[device]) / share as u64;
    let mut mask = vec![false; layers];
    let relief = by_relief(costs, device, 0..layers);
    let mut order = Vec::with_capacity(layers);
    for start in 0..layers {
        let mut fewest = 0;
        for end in start + 1..=layers {
            if !rules.allows(end - 1, device) {
                break;
            }
            let range = start..end;
            order.clear();
            order.extend(relief.iter().copied().filter(|layer| range.contains(layer)));
            let run = match weigh {
                Weigh::Count => Some(Run { load: (end - start) as f64 * share as f64, again: 0 }),
                Weigh::Memory => Some(by_memory(costs, device, range, room, &order, &mut mask)),
                Weigh::Time { .. } => {
                    by_time(costs, device, range, (room, in_flight), &order, fewest, &mut mask).map(|mut run| {
                        run.load *= share as f64;
                        run
                    })
                }
            };
            fewest = run.map_or(fewest, |run| run.again as usize);
            if run.is_none() {
                // Nothing longer fits either.
                break;
            }
            runs[start * (layers + 1) + end] = run;
        }
    }
    runs
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
    let freed =
        |layer: usize| costs.layer(device, layer).activation_bytes.saturating_sub(costs.input_bytes(layer)) as f64;
    let rate = |layer: usize| freed(layer) / (costs.layer(device, layer).forward_ns as f64 + 1.0);
    let mut layers: Vec<usize> = range.filter(|&layer| freed(layer) > 0.0).collect();
    layers.sort_by(|&a, &b| rate(b).total_cmp(&rate(a)).then(a.cmp(&b)));
    layers
}

fn with<T>(mask: &mut [bool], layers: &[usize], look: impl FnOnce(&[bool]) -> T) -> T {
    layers.iter().for_each(|&layer| mask[layer] = true);
    let result = look(mask);
    layers.iter().for_each(|&layer| mask[layer] = false);
    result
}

/// The run with the fewest recomputed layers that fits, at least `fewest`: a shorter run needed that many.
fn by_time(
    costs: &Costs,
    device: usize,
    range: Range<usize>,
    allowance: (u64, usize),
    order: &[usize],
    fewest: usize,
    mask: &mut [bool],
) -> Option<Run> {
    let (room, in_flight) = allowance;
    let buffers = buffer_bytes(costs, &range);
    (fewest..=order.len()).find_map(|count| {
        let cost = with(mask, &order[..count], |mask| costs.stage(device, range.clone(), mask));
        (needs(&cost, buffers, in_flight) <= u128::from(room)).then(|| Run { load: load(&cost), again: count as u32 })
    })
}

fn by_memory(costs: &Costs, device: usize, range: Range<usize>, room: u64, order: &[usize], mask: &mut [bool]) -> Run {
    let buffers = buffer_bytes(costs, &range);
    let plain = needs(&costs.stage(device, range.clone(), mask), buffers, 1);
    let eased = with(mask, order, |mask| needs(&costs.stage(device, range, mask), buffers, 1));
    let again = if eased < plain { order.len() as u32 } else { 0 };
    Run { load: plain.min(eased) as f64 / (room as f64 + 1.0), again }
}
