//! Splits the model over a sequence of devices: a dynamic program over boundaries.
//!
//! Each slot of the sequence takes a run of layers, also none. The cost of a run is its F, I and W on the slot's
//! device, times the number of slots that the device has, so that several slots share a device evenly; the program
//! minimises the largest, then the sum of squares. A run that does not fit with the microbatches that its place keeps
//! in flight recomputes the layers that free the most bytes per nanosecond until it does.

mod runs;

use crate::costs::Costs;
use crate::rules::Rules;
use crate::shape::{Shape, Slot};
pub(crate) use runs::by_relief;
use runs::{Grid, Table, ample_in_flight, fair_load, table};
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

/// Cells that [`Splitter`] keeps before it forgets all: some tens of megabytes.
const CELLS_MAX: usize = 1 << 21;
/// Cells of a sequence up to which runs of any load are looked at, where those of a fair load leave no split.
const ANY_LOAD_CELLS_MAX: usize = 1 << 22;
/// Runs of a device are looked at up to so many times the load that all devices together would give each, and one
/// layer more; all runs are, where that leaves no split and they are not too many.
const LOAD_MAX: f64 = 3.0;
/// Microbatches in flight up to which each number counts; larger ones are rounded up by an eighth at most.
const IN_FLIGHT_EXACT: usize = 8;

/// Device (or, where nothing is pinned, the first like it), slots of it, in flight, [`Weigh`] as a number, and whether
/// runs of any load are there.
type Key = (usize, usize, usize, u8, bool);

/// Splits, and remembers the runs of each device for the next sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Splitter {
    tables: BTreeMap<Key, Table>,
    classes: Vec<usize>,
    /// Microbatches in flight up to which no run of a device recomputes anything, by its class, slots and any load.
    ample: BTreeMap<(usize, usize, bool), usize>,
    /// Steps taken since it was last asked.
    steps: u64,
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
        self.split_within(costs, rules, sequence, weigh, false).or_else(|| {
            let devices = sequence.iter().collect::<BTreeSet<_>>().len();
            let count = Grid::new(costs.layers).count;
            let is_small = devices * count * count <= ANY_LOAD_CELLS_MAX;
            is_small.then(|| self.split_within(costs, rules, sequence, weigh, true)).flatten()
        })
    }

    /// About how many steps were taken since this was last asked.
    pub(crate) fn take_steps(&mut self) -> u64 {
        std::mem::take(&mut self.steps)
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
        let grid = Grid::new(costs.layers);
        let count = grid.count;
        let mut rows: Vec<Vec<Cell>> = vec![vec![Cell::NONE; count + 1]];
        rows[0][0] = Cell { rank: (0.0, 0.0), from: 0 };
        for (place, key) in keys.iter().enumerate() {
            let before = &rows[place];
            let table = &self.tables[key];
            // An empty run leaves the slot out.
            let mut row: Vec<Cell> = (0..=count).map(|end| Cell { from: end as u32, ..before[end] }).collect();
            for start in (0..count).filter(|&start| before[start].rank.0.is_finite()) {
                for (end, held) in row.iter_mut().enumerate().skip(start + 1) {
                    let Some(run) = table.get(start, end) else { break };
                    let rank = step(before[start].rank, place, &grid.range(start, end), run.load);
                    if rank < held.rank {
                        *held = Cell { rank, from: start as u32 };
                    }
                }
            }
            rows.push(row);
        }
        let rank = rows[sequence.len()][count].rank;
        if rank.0.is_infinite() {
            return None;
        }
        let mut shape = Shape::new(costs.layers, Vec::new());
        let mut end = count;
        for (place, key) in keys.iter().enumerate().rev() {
            let start = rows[place + 1][end].from as usize;
            if start < end {
                let device = sequence[place];
                let range = grid.range(start, end);
                shape.stages.push(Slot { start: range.start as u32, end: range.end as u32, device });
                let run = self.tables[key].get(start, end).expect("the program chose a run that fits");
                let relief = by_relief(costs, device as usize, range);
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
        let load_max = if any_load { f64::INFINITY } else { fair_load(costs) * LOAD_MAX };
        let mut key = |(place, &device): (usize, &u32)| {
            let (device, share) = (self.classes[device as usize], slots[&device]);
            let (in_flight, number) = match weigh {
                Weigh::Time { in_flight } => {
                    let whole = ((sequence.len() - place) * used * in_flight).div_ceil(sequence.len() * 100);
                    let whole = rounded(whole).clamp(1, costs.microbatches);
                    let ample = self.ample.entry((device, share, any_load));
                    let ample = *ample.or_insert_with(|| ample_in_flight(costs, device, share, load_max));
                    (if whole <= ample { 1 } else { whole }, 0)
                }
                Weigh::Count => (1, 1),
                Weigh::Memory => (1, 2),
            };
            (device, share, in_flight, number, any_load)
        };
        let keys: Vec<Key> = sequence.iter().enumerate().map(&mut key).collect();
        for &key in &keys {
            let (device, share, in_flight, ..) = key;
            let steps = &mut self.steps;
            let held = self.tables.entry(key).or_insert_with(|| {
                let (table, taken) = table(costs, rules, device, (share, in_flight), weigh, load_max);
                *steps += taken;
                table
            });
            *steps += held.runs.len() as u64;
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
