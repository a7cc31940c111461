//! What memory lets the devices do, all their memory taken together.
//!
//! ```text
//!   work  |  F only, as much as memory holds  |  everything else, at most all devices busy   |
//!         0                            first I can start                                     T
//! ```
//!
//! 1. Before the first I can start, at the sum t of all fastest F, nothing that was forwarded lets go of its memory. What
//!    is done by then is F of the first j layers of some microbatches, each of which holds what those j layers hold: at
//!    most `memory x work_j / bytes_j` for the best j, and no more than the devices can do from their starts on. The rest
//!    of all work takes `T - t` of each device.
//! 2. A layer holds its bytes for each microbatch from the start of F to the end of I, so at least while the layers behind
//!    it run F and I. Over all microbatches, bytes x time is at most `memory x T`.
//! 3. A recomputed layer holds only its input until its I, but is recomputed for all microbatches, so it costs its F once
//!    more for each of them. Whether a set of recomputed layers meets both 1 and 2 within T is asked of all such sets at
//!    once, fractions of layers included: 2 and the work of recomputing are linear in it, and 1 is convex in the bytes
//!    that are saved, so that cells of these bytes are looked at in turn, each under a chord. In a cell, any price of the
//!    saved bytes is sound (Lagrange); what is left is a fractional knapsack.
//!
//! Work is priced by device as in `work`. Left out: that each device has its own memory, workspace, receive buffers, and
//! what W that is deferred holds.

use super::{Bench, FLOAT_LOSS, FOREVER};
use crate::costs::Costs;
use adaptis_plan::Problem;

/// Cells of the bytes that a microbatch holds.
const CELLS: usize = 12;
/// Rounds of a search for a price.
const PRICE_ROUNDS: usize = 14;
/// Halvings of a step of time; fewer where there are more layers than that.
const HALVINGS: usize = 26;
const HALVINGS_LARGE: usize = 8;
const LAYERS_LARGE: usize = 128;

/// A layer, priced.
struct Layer {
    /// Least work of running its F once more.
    again: f64,
    /// Most work that its F is.
    forward: f64,
    /// Held from F on, also if it is recomputed.
    base_bytes: f64,
    /// Held besides, unless it is recomputed.
    saved_bytes: f64,
    /// Bytes x time of a microbatch that recomputing it saves.
    saved_area: f64,
}

/// The devices together.
struct Pool {
    layers: Vec<Layer>,
    microbatches: f64,
    memory_bytes: f64,
    /// Earliest start of an I.
    first_input: f64,
    /// Priced: all work without recomputation, what can be done before the first I, and one nanosecond of all devices.
    total: f64,
    before: f64,
    devices: f64,
    /// Bytes x time of a microbatch if nothing is recomputed.
    area: f64,
}

/// Bytes saved per microbatch among the first layers, and a line above the work that they let the devices do early.
struct Cell {
    layers: usize,
    least_bytes: f64,
    most_bytes: f64,
    /// At the least bytes, and how it rises per byte.
    early: f64,
    slope: f64,
}

impl Bench {
    /// The bound by memory, from a time that no plan beats and prices of the devices.
    pub(super) fn by_memory(&self, costs: &Costs, problem: &Problem, price: &[f64], time: f64) -> f64 {
        let pool = Pool::new(self, costs, problem, price);
        let enough = |time: f64| pool.allows(time);
        // Nothing is said of a problem whose layers fit nowhere.
        if pool.memory_bytes <= 0.0 || enough(time) || !enough(FOREVER) {
            return time;
        }
        let halvings = if self.layers > LAYERS_LARGE { HALVINGS_LARGE } else { HALVINGS };
        self.bisect_above(time, (time / 64.0).max(1.0), halvings, enough)
    }
}

impl Pool {
    fn new(bench: &Bench, costs: &Costs, problem: &Problem, price: &[f64]) -> Self {
        let devices = || 0..bench.devices;
        let usable = |device: &usize| (0..bench.layers).any(|layer| bench.allows(layer, *device));
        let memory = |device: usize| costs.memory_bytes[device].saturating_sub(costs.reserved_bytes[device]) as f64;
        let state: f64 = problem.layers.iter().map(|layer| layer.state_bytes as f64).sum();
        let mut layers = Vec::with_capacity(bench.layers);
        let (mut total, mut area) = (0.0, 0.0);
        // From the start of a layer's F to the end of its I, of the layers so far and behind.
        let mut residence = 0.0;
        for layer in (0..bench.layers).rev() {
            let allowed = || devices().filter(|&device| bench.allows(layer, device));
            let least = |of: &dyn Fn(usize) -> f64| allowed().map(of).fold(f64::INFINITY, f64::min);
            let work = |device: usize| price[device] * bench.at(layer, device).forward;
            let stash = least(&|device| costs.layer(device, layer).activation_bytes as f64);
            let base_bytes = stash.min(costs.input_bytes(layer) as f64);
            let saved_bytes = stash - base_bytes;
            let own = bench.least(layer, |times| times.forward) + bench.least(layer, |times| times.input);
            let deferred = least(&|device| {
                let times = bench.at(layer, device);
                costs.layer(device, layer).gradient_bytes as f64 * (times.whole - times.forward - times.input)
            });
            residence += own;
            total += bench.microbatches * least(&|device| price[device] * bench.at(layer, device).whole);
            area += stash * residence + deferred;
            layers.push(Layer {
                again: least(&work),
                forward: allowed().map(work).fold(0.0, f64::max),
                base_bytes,
                saved_bytes,
                // Its F that is run again, and I, are with all bytes held.
                saved_area: saved_bytes * (residence - own),
            });
        }
        layers.reverse();
        let first_input: f64 = (0..bench.layers).map(|layer| bench.least(layer, |times| times.forward)).sum();
        let mut dearest = price.to_vec();
        dearest.sort_by(|a, b| b.total_cmp(a));
        let until = |(price, &start): (&f64, &f64)| price * (first_input - start).max(0.0);
        let all_forward: f64 = layers.iter().map(|layer| bench.microbatches * layer.forward).sum();
        Self {
            microbatches: bench.microbatches,
            memory_bytes: (devices().filter(usable).map(memory).sum::<f64>() - state) * (1.0 + FLOAT_LOSS),
            first_input,
            total,
            before: dearest.iter().zip(&bench.start).map(until).sum::<f64>().min(all_forward),
            devices: price.iter().sum(),
            area,
            layers,
        }
    }

    /// Whether some recomputation may do within a time; a no is a proof.
    fn allows(&self, time: f64) -> bool {
        let room = self.devices * (time - self.first_input).max(0.0);
        let needed_area = self.area * (1.0 - FLOAT_LOSS) - self.memory_bytes * time / self.microbatches;
        if needed_area > self.layers.iter().map(|layer| layer.saved_area).sum() {
            return false;
        }
        self.cells().iter().any(|cell| self.least_work(cell, needed_area, room) <= room)
    }

    /// The bytes that may be saved, in cells: for the first layers that may be what is forwarded early, all layers alone
    /// and then in blocks that double. A block does the work of its longest and holds what its shortest does.
    fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        let mut longest = self.layers.len();
        for block in 0_u32.. {
            if longest == 0 {
                break;
            }
            let shortest = (longest + 1).saturating_sub(1 << block.saturating_sub(1)).max(1);
            self.add_cells(longest, shortest, &mut cells);
            longest = shortest - 1;
        }
        cells
    }

    fn add_cells(&self, longest: usize, shortest: usize, cells: &mut Vec<Cell>) {
        let work: f64 = self.layers[..longest].iter().map(|layer| layer.forward).sum();
        let least: f64 = self.layers[..shortest].iter().map(|layer| layer.base_bytes).sum();
        let all = least + self.layers[..shortest].iter().map(|layer| layer.saved_bytes).sum::<f64>();
        let early = |held: f64| f64::min(self.memory_bytes * work / held, self.before);
        let mut cell = |low: f64, high: f64, early: f64, slope: f64| {
            let (least_bytes, most_bytes) = ((all - high).max(0.0), (all - low).max(0.0));
            cells.push(Cell { layers: shortest, least_bytes, most_bytes, early, slope });
        };
        // Up to so many bytes held memory is no limit.
        let ample = if self.before > 0.0 { self.memory_bytes * work / self.before } else { f64::INFINITY };
        if ample >= least {
            // Where nothing can be done early, no more of it can be done with less held.
            cell(least, if ample > 0.0 { ample.min(all) } else { all }, self.before, 0.0);
        }
        let mut low = ample.max(least);
        if low <= 0.0 || low >= all && ample >= least {
            return;
        }
        let places = if low < all { CELLS } else { 1 };
        let factor = (all / low).powf(1.0 / places as f64);
        for place in 1..=places {
            let high = if place == places { all } else { (low * factor).min(all) };
            let slope = if high > low { (early(low) - early(high)) / (high - low) } else { 0.0 };
            cell(low, high, early(high), slope);
            low = high;
        }
    }

    /// Least priced work behind the first I over all recomputation in a cell that saves enough area; no more than needed
    /// to be sure that it exceeds `room`.
    fn least_work(&self, cell: &Cell, needed_area: f64, room: f64) -> f64 {
        let dearest = |layer: &Layer| match layer.saved_bytes > 0.0 {
            true => self.microbatches * layer.again / layer.saved_bytes,
            false => 0.0,
        };
        let mut low = 0.0;
        let mut high = cell.slope + self.layers[..cell.layers].iter().map(dearest).fold(0.0, f64::max);
        let (mut price, mut best) = (0.0, 0.0);
        for _ in 0..PRICE_ROUNDS {
            let (work, saved_bytes) = self.recomputed(cell, price, needed_area);
            // Bytes that the chord rewards beyond the price, at most, or that the price asks for besides, at least.
            let limit = if price < cell.slope { cell.most_bytes } else { cell.least_bytes };
            let work = self.total - cell.early + cell.slope * cell.least_bytes - (cell.slope - price) * limit + work;
            let lost = FLOAT_LOSS * (self.total + cell.early + (cell.slope + price) * cell.most_bytes);
            best = f64::max(best, work - 16.0 * lost);
            if best > room {
                break;
            }
            // Concave in the price: dearer where too few bytes are saved, cheaper where too many are.
            if saved_bytes < limit {
                low = price
            } else {
                high = price
            }
            price = (low + high) / 2.0;
        }
        best
    }

    /// The recomputation of least work, less the price of what it saves among the cell's layers, by fractions of layers:
    /// whatever pays, and then what is cheapest for its area until that is enough. And the bytes that it saves there.
    fn recomputed(&self, cell: &Cell, price: f64, needed_area: f64) -> (f64, f64) {
        let (mut work, mut saved_bytes, mut area) = (0.0, 0.0, 0.0);
        let mut others = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let saved = if index < cell.layers { layer.saved_bytes } else { 0.0 };
            let cost = self.microbatches * layer.again - price * saved;
            if cost < 0.0 {
                work += cost;
                saved_bytes += saved;
                area += layer.saved_area;
            } else if layer.saved_area > 0.0 {
                others.push((cost / layer.saved_area, cost, saved, layer.saved_area));
            }
        }
        if area < needed_area {
            others.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            for (_, cost, saved, of) in others {
                let part = ((needed_area - area) / of).clamp(0.0, 1.0);
                work += part * cost;
                saved_bytes += part * saved;
                area += part * of;
                if area >= needed_area {
                    break;
                }
            }
        }
        (work, saved_bytes)
    }
}
