//! Splits the model over a sequence of devices: a dynamic program over boundaries.
//!
//! Each slot of the sequence takes a run of layers, also none. The cost of a run is its F, I and W on the slot's
//! device, times the number of slots that the device has, so that several slots share a device evenly; the program
//! minimises the largest, then the sum of squares. A run that does not fit with the microbatches that its place keeps
//! in flight recomputes the layers that free the most bytes per nanosecond until it does.

use crate::costs::{Costs, StageCost};
use crate::rules::Rules;
use crate::shape::{Shape, Slot};
use std::collections::BTreeMap;
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

/// A run on a device that fits, and what it recomputes.
#[derive(Clone, Debug)]
struct Run {
    load: f64,
    recompute: Vec<u32>,
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

/// Splits the layers over `sequence`; `None` if no split fits. Pins are kept, groups are not looked at,
/// and neighbours on one device are not joined.
pub(crate) fn split(costs: &Costs, rules: &Rules, sequence: &[u32], weigh: Weigh) -> Option<Shape> {
    let layers = costs.layers;
    let used = sequence.iter().collect::<std::collections::BTreeSet<_>>().len().max(1);
    let mut runs: BTreeMap<(u32, usize, usize), Vec<Option<Run>>> = BTreeMap::new();
    let mut rows: Vec<Vec<Cell>> = vec![vec![Cell::NONE; layers + 1]];
    rows[0][0] = Cell { largest: 0.0, squares: 0.0, from: 0 };
    let mut keys = Vec::with_capacity(sequence.len());
    for (place, &device) in sequence.iter().enumerate() {
        let share = sequence.iter().filter(|&&other| other == device).count();
        let in_flight = match weigh {
            Weigh::Time { in_flight } => {
                let whole = ((sequence.len() - place) * used * in_flight).div_ceil(sequence.len() * 100);
                whole.clamp(1, costs.microbatches)
            }
            Weigh::Count | Weigh::Memory => 1,
        };
        let key = (device, share, in_flight);
        keys.push(key);
        let of_device =
            runs.entry(key).or_insert_with(|| table(costs, rules, device as usize, share, in_flight, weigh));
        let before = &rows[place];
        let mut row = vec![Cell::NONE; layers + 1];
        for end in 0..=layers {
            // An empty run leaves the slot out.
            row[end] = Cell { from: end as u32, ..before[end] };
            for start in 0..end {
                let Some(run) = &of_device[start * (layers + 1) + end] else { continue };
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
            shape.stages.push(Slot { start: start as u32, end: end as u32, device: sequence[place] });
            let run = runs[key][start * (layers + 1) + end].as_ref().expect("the program chose a run that fits");
            run.recompute.iter().for_each(|&layer| shape.recompute[layer as usize] = true);
        }
        end = start;
    }
    shape.stages.reverse();
    Some(shape)
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
    for start in 0..layers {
        for end in start + 1..=layers {
            if !rules.allows(end - 1, device) {
                break;
            }
            let range = start..end;
            let run = match weigh {
                Weigh::Count => Some(Run { load: (end - start) as f64 * share as f64, recompute: Vec::new() }),
                Weigh::Memory => Some(by_memory(costs, device, range, room, &mut mask)),
                Weigh::Time { .. } => by_time(costs, device, range, room, in_flight, &mut mask).map(|mut run| {
                    run.load *= share as f64;
                    run
                }),
            };
            if run.is_none() && costs.stage(device, start..end, &mask).state_bytes > room {
                // Nothing longer fits either.
                break;
            }
            runs[start * (layers + 1) + end] = run;
        }
    }
    runs
}

fn needs(cost: &StageCost, in_flight: usize) -> u128 {
    u128::from(cost.state_bytes)
        + u128::from(cost.stash_bytes) * in_flight as u128
        + u128::from(cost.rise_bytes)
        + u128::from(cost.workspace_bytes)
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

fn by_time(
    costs: &Costs,
    device: usize,
    range: Range<usize>,
    room: u64,
    in_flight: usize,
    mask: &mut [bool],
) -> Option<Run> {
    let plain = costs.stage(device, range.clone(), mask);
    if needs(&plain, in_flight) <= u128::from(room) {
        return Some(Run { load: load(&plain), recompute: Vec::new() });
    }
    let order = by_relief(costs, device, range.clone());
    let fits = |mask: &mut [bool], count: usize| {
        let cost = with(mask, &order[..count], |mask| costs.stage(device, range.clone(), mask));
        (needs(&cost, in_flight) <= u128::from(room)).then_some(cost)
    };
    fits(mask, order.len())?;
    let (mut low, mut high) = (0, order.len());
    while high - low > 1 {
        let middle = low.midpoint(high);
        if fits(mask, middle).is_some() { high = middle } else { low = middle }
    }
    let cost = fits(mask, high)?;
    Some(Run { load: load(&cost), recompute: order[..high].iter().map(|&layer| layer as u32).collect() })
}

fn by_memory(costs: &Costs, device: usize, range: Range<usize>, room: u64, mask: &mut [bool]) -> Run {
    let order = by_relief(costs, device, range.clone());
    let plain = needs(&costs.stage(device, range.clone(), mask), 1);
    let eased = with(mask, &order, |mask| needs(&costs.stage(device, range, mask), 1));
    let recompute = if eased < plain { order.iter().map(|&layer| layer as u32).collect() } else { Vec::new() };
    Run { load: plain.min(eased) as f64 / (room as f64 + 1.0), recompute }
}
