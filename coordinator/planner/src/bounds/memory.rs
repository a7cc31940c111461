//! What memory lets the devices do, all their memory taken together.
//!
//! ```text
//!   work  |  F only, as much as memory holds  |  everything else, at most all devices busy   |
//!         0                            first I can start                                     T
//! ```
//!
//! 1. Before the first I can start, at the sum t of all fastest F, nothing that was forwarded lets go of its memory, and F
//!    of a layer has run for no more microbatches than F of the layer before. So the early work is a sum over prefixes of
//!    the layers, of some number of microbatches each, and at most `memory x work / bytes` of the best prefix; nor is it
//!    more than the devices can do from their starts on. The rest of all work takes `T - t` of each device.
//! 2. A layer holds its bytes for each microbatch from the start of F to the end of I, so at least while the layers behind
//!    it run F and I. Over all microbatches, bytes x time is at most `memory x T`.
//! 3. A recomputed layer holds only its input until its I, but is recomputed for all microbatches, so it costs its F once
//!    more for each of them; what of its F is early is at most taken off that cost, and left out of 1. Whether some set of
//!    recomputed layers meets both 1 and 2 within T is asked of all such sets at once, fractions of layers included. 2 and
//!    the cost are linear in the set. 1 is as well, once the cost is known that the early work must make up for: cells of
//!    that cost are looked at in turn. In a cell, any price of the cost is sound (Lagrange), and leaves a fractional
//!    knapsack.
//!
//! Work is priced by device as in `work`. Left out: that each device has its own memory, workspace, receive buffers, and
//! what W that is deferred holds beyond its own time.

use super::{Bench, FLOAT_LOSS, FOREVER};
use crate::costs::Costs;
use adaptis_plan::Problem;
use std::cell::Cell;

/// Cells of the cost of recomputation.
const CELLS: usize = 12;
/// Weights of what memory allows early, and of the number of microbatches, as they are tried.
const WEIGHTS: [(f64, f64); 2] = [(0.95, 0.02), (0.8, 0.1)];
/// Share of the early work up to which a layer's is small.
const SMALL: f64 = 0.005;
/// Layers looked at, over all prices and cells of a problem; beyond that nothing more is ruled out.
const LOOKS_MAX: usize = 800_000;
/// Numbers of layers whose work differs by no more than this factor are not told apart.
const ALIKE: f64 = 1.01;
/// Halvings between two prices.
const PRICE_ROUNDS: usize = 3;
/// Halvings of a step of time; fewer where there are more layers than that.
const HALVINGS: usize = 7;
const HALVINGS_LARGE: usize = 4;
const LAYERS_LARGE: usize = 128;

/// A layer, priced.
struct Layer {
    /// Least work of running its F once more.
    again: f64,
    /// Most work that its F is.
    forward: f64,
    /// Of how many microbatches its F can be run before the first I.
    early_max: f64,
    /// Held from F on, also if it is recomputed.
    base_bytes: f64,
    /// Held besides, unless it is recomputed.
    saved_bytes: f64,
    /// Bytes x time of a microbatch that recomputing it saves.
    saved_area: f64,
}

impl Layer {
    /// Most work of its F that can be done early.
    fn early(&self) -> f64 {
        self.early_max * self.forward
    }
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
    /// Layers looked at so far.
    looks: Cell<usize>,
}

/// What is asked of the recomputed layers to do within a time.
struct Task {
    /// What all devices can do behind the first I, priced.
    room: f64,
    /// Bytes x time that recomputation must save of each microbatch, at least.
    area: f64,
    /// Weight of what memory lets the devices do early, against what they could do without a limit.
    weight: f64,
    /// Weight of the number of microbatches, against the memory of all: what is done early is not done of few layers of
    /// many microbatches.
    spread: f64,
    /// Per layer: what recomputing it costs all microbatches, less the weighted part that may be done early.
    cost: Vec<f64>,
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
        let mut layers: Vec<Layer> = Vec::with_capacity(bench.layers);
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
                early_max: bench.microbatches,
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
        let before = dearest.iter().zip(&bench.start).map(until).sum::<f64>().min(all_forward);
        // One after the other on its device, from when the first can be there; and none without all before it.
        let (mut ahead, mut work) = (0.0, 0.0);
        for (index, layer) in layers.iter_mut().enumerate() {
            let forward = bench.least(index, |times| times.forward);
            work += layer.again;
            for limit in [(first_input - ahead) / forward, before / work] {
                // Nothing takes no time any number of times.
                layer.early_max = layer.early_max.min(if limit.is_nan() { f64::INFINITY } else { limit });
            }
            layer.early_max *= 1.0 + FLOAT_LOSS;
            ahead += forward;
        }
        Self {
            microbatches: bench.microbatches,
            memory_bytes: (devices().filter(usable).map(memory).sum::<f64>() - state) * (1.0 + FLOAT_LOSS),
            first_input,
            total,
            before,
            devices: price.iter().sum(),
            area,
            layers,
            looks: Cell::new(0),
        }
    }

    /// Whether some recomputation may do within a time; a no is a proof.
    fn allows(&self, time: f64) -> bool {
        let room = self.devices * (time - self.first_input).max(0.0);
        let area = self.area * (1.0 - FLOAT_LOSS) - self.memory_bytes * time / self.microbatches;
        if area > self.layers.iter().map(|layer| layer.saved_area).sum() {
            return false;
        }
        WEIGHTS.iter().all(|&(weight, spread)| {
            let early = |layer: &Layer| if self.is_small(layer) { 0.0 } else { weight * layer.early() };
            let cost = |layer: &Layer| self.microbatches * layer.again - early(layer);
            self.may(&Task { room, area, weight, spread, cost: self.layers.iter().map(cost).collect() })
        })
    }

    /// So little work that it is taken to be done early for all microbatches: an embedding, say, holds next to nothing.
    fn is_small(&self, layer: &Layer) -> bool {
        layer.early() <= SMALL * self.before
    }

    /// The same by one weight: over the cost of all recomputation, in cells.
    fn may(&self, task: &Task) -> bool {
        let costs = task.cost.iter().copied().zip(&self.layers);
        let (least, _) = cheapest(costs.map(|(cost, layer)| (cost, cost, layer.saved_area)), task.area);
        let lost = FLOAT_LOSS * (self.total + self.before + task.room);
        let most = task.room - self.total + self.before + lost;
        let (low, high) = (least - lost, most);
        let edge = |cell: usize| low + (high - low) * cell as f64 / CELLS as f64;
        low <= high && (0..CELLS).any(|cell| self.may_cost(task, edge(cell), edge(cell + 1), 1, self.layers.len()))
    }

    /// Whether recomputation that costs between `least` and `most` may do, with F of between `shortest` and `longest`
    /// layers run early: in halves, as long as that is not ruled out for all of them together.
    fn may_cost(&self, task: &Task, least: f64, most: f64, shortest: usize, longest: usize) -> bool {
        if self.ruled_out(task, least, most, shortest, longest) {
            return false;
        }
        let middle = (shortest + longest).div_ceil(2);
        let work = |layers: usize| self.layers[..layers].iter().map(|layer| layer.forward).sum::<f64>();
        work(longest) <= work(shortest) * ALIKE
            || self.may_cost(task, least, most, middle, longest)
            || self.may_cost(task, least, most, shortest, middle - 1)
    }

    /// Whether even the work of the longest does not make up for the bytes of the shortest. `early` work must be done, by n
    /// microbatches of each prefix: the sum of `n x work` is `early` at least, that of `n x bytes` is `memory` at most, and
    /// that of n is `microbatches` at most. With a spread s, weighted and added up, so for one prefix at least
    /// `(1 + s) x memory x work >= early x bytes + s x memory x early / microbatches`, linear in what is recomputed.
    fn ruled_out(&self, task: &Task, least: f64, most: f64, shortest: usize, longest: usize) -> bool {
        if self.looks.get() > LOOKS_MAX {
            return false;
        }
        let behind = self.total + least - task.room - (1.0 - task.weight) * self.before;
        let small: f64 = self.layers.iter().filter(|layer| self.is_small(layer)).map(Layer::early).sum();
        let early = behind / task.weight - small;
        let fixed = task.spread * self.memory_bytes * early / self.microbatches;
        let (mut gains, mut lacking, mut size) = (Vec::with_capacity(longest), fixed, fixed.abs());
        for (index, layer) in self.layers.iter().enumerate() {
            let counts = index < longest && !self.is_small(layer);
            let work = if counts { (1.0 + task.spread) * self.memory_bytes * layer.forward } else { 0.0 };
            let (base, saved) = match index < shortest {
                true => (early * layer.base_bytes, early * layer.saved_bytes),
                false => (0.0, 0.0),
            };
            lacking += base + saved - work;
            size += base.abs() + saved.abs() + work;
            gains.push(saved - work);
        }
        // Where a layer begins to pay its price; the best is at one of these, or between two where area decides.
        let ratios = gains.iter().zip(&task.cost).filter(|(gain, cost)| **gain > 0.0 && **cost > 0.0);
        let mut prices: Vec<f64> = ratios.map(|(gain, cost)| gain / cost).chain([0.0]).collect();
        prices.sort_unstable_by(f64::total_cmp);
        prices.dedup();
        let rules_out = |price: f64| {
            self.looks.set(self.looks.get() + self.layers.len());
            let layers = self.layers.iter().zip(&gains).zip(&task.cost);
            let items = layers.map(|((layer, gain), cost)| (price * cost - gain, *cost, layer.saved_area));
            let (lost, cost) = cheapest(items, task.area);
            let margin = 64.0 * FLOAT_LOSS * (size + price * (most.abs() + self.total));
            (lacking + lost - price * most > margin, cost > most)
        };
        // Concave in the price: dearer where too much is recomputed, cheaper where more may be.
        let (mut low, mut high) = (0, prices.len());
        while low < high {
            let middle = (low + high) / 2;
            let (done, dearer) = rules_out(prices[middle]);
            if done {
                return true;
            }
            if dearer { low = middle + 1 } else { high = middle }
        }
        let mut under = if low == 0 { 0.0 } else { prices[low - 1] };
        let mut over = prices.get(low).copied().unwrap_or(under * 2.0);
        for _ in 0..PRICE_ROUNDS {
            let price = (under + over) / 2.0;
            let (done, dearer) = rules_out(price);
            if done {
                return true;
            }
            if dearer { under = price } else { over = price }
        }
        false
    }
}

/// Of items of a value, a cost and an area: the least value of any fractions of them that reach an area, and its cost.
/// Whatever is negative, and then what is cheapest for its area until that is enough.
fn cheapest(items: impl Iterator<Item = (f64, f64, f64)>, needed: f64) -> (f64, f64) {
    let (mut value, mut cost, mut area) = (0.0, 0.0, 0.0);
    let mut others = Vec::new();
    for item in items {
        if item.0 < 0.0 {
            value += item.0;
            cost += item.1;
            area += item.2;
        } else if item.2 > 0.0 && needed > 0.0 {
            others.push(item);
        }
    }
    if area < needed {
        others.sort_unstable_by(|a, b| (a.0 / a.2).total_cmp(&(b.0 / b.2)));
        for item in others {
            let part = ((needed - area) / item.2).clamp(0.0, 1.0);
            value += part * item.0;
            cost += part * item.1;
            area += part * item.2;
            if area >= needed {
                break;
            }
        }
    }
    (value, cost)
}
