//! A time that no plan can beat.
//!
//! Everything the devices do must fit before the end. Device r, counting by first layers, waits at both ends: layers
//! 0 to r - 1 belong to other devices or come before its own, so that their forwards and r transfers of the first
//! microbatch are behind it when it starts, and their I and r transfers of the last one follow its last I; in that time
//! it can only run what W it deferred, and those hold memory. With capacity `(T - idle_r) / M` per device, no plan of time
//! T exists if the layers can't be packed
//!
//! - `work`: for any prices of the devices, not by fractions of layers;
//! - `number`: not by the number of layers that each device can hold, nor by whole layers of the largest classes, of
//!   which memory limits the number as well;
//! - `memory`: not with what memory lets the devices do before the first I can start, nor with what all microbatches hold
//!   over time, where each recomputed layer is more work.
//!
//! A layer is never on a device that has no room for it, and those that stay together are one piece of work. Besides, one
//! microbatch has a longest path, and every layer is some device's for all microbatches. Times are rounded
//! down per layer, since an instruction rounds only once.

mod memory;
mod number;
mod work;

use crate::costs::Costs;
use crate::rules::Rules;
use adaptis_plan::Problem;

/// Halvings of an interval whose ends differ by a factor of two: all bits of a float.
const BISECTIONS: usize = 54;
/// Relative error that sums of floats here stay well within.
const FLOAT_LOSS: f64 = 1e-12;
/// Nanoseconds that everything is done in that can be done at all.
const FOREVER: f64 = 1e18;

/// Lower bound of the iteration time of every valid plan, in nanoseconds.
pub fn lower_bound_ns(problem: &Problem) -> u64 {
    of(&Costs::new(problem), problem)
}

/// A layer's times on a device, rounded down.
#[derive(Clone, Copy)]
struct Times {
    forward: f64,
    whole: f64,
    input: f64,
}

impl Times {
    const NEVER: Times = Times { forward: f64::INFINITY, whole: f64::INFINITY, input: f64::INFINITY };
}

struct Bench {
    /// `layer x devices + device`; infinite where it may not run.
    times: Vec<Times>,
    layers: usize,
    devices: usize,
    /// Layers that stay together, and each of the others alone.
    units: Vec<Vec<usize>>,
    /// Devices of equal times.
    groups: Vec<Vec<usize>>,
    microbatches: f64,
    /// Ascending: the r-th device's earliest start.
    start: Vec<f64>,
    /// Ascending: the same, and what it waits in the end.
    idle: Vec<f64>,
    stage_ns: f64,
    /// Nanoseconds that every result takes at least to another device.
    hop_ns: f64,
    /// Nanoseconds of the W that any device can have deferred.
    deferred_ns: f64,
}

pub(crate) fn of(costs: &Costs, problem: &Problem) -> u64 {
    let bench = Bench::new(costs, problem);
    let optimizer = (0..bench.layers)
        .map(|layer| {
            let of = |device: usize| costs.optimizer_ns(device, u128::from(problem.optimizer_of(device, layer)));
            (0..bench.devices).filter(|&device| bench.allows(layer, device)).map(of).min().unwrap_or(0)
        })
        .max();
    let (by_work, price) = bench.by_work();
    let time = by_work.max(bench.by_numbers()).max(bench.by_path()).max(bench.by_cores(costs));
    let time = bench.by_classes(costs, problem, time);
    let time = bench.by_memory(costs, problem, &price, time);
    // Floats carry 53 bits: give way by what they may have lost. Times are whole, so the next one is still a bound.
    let time = if time <= 0.0 { 0 } else { (time * (1.0 - FLOAT_LOSS)).floor() as u64 + 1 };
    time.saturating_add(costs.boundary_ns).saturating_add(optimizer.unwrap_or(0))
}

impl Bench {
    fn new(costs: &Costs, problem: &Problem) -> Self {
        let (layers, devices) = (costs.layers, costs.devices);
        let rules = Rules::new(problem).ok();
        let mut units: Vec<Vec<usize>> = rules.as_ref().map_or_else(Vec::new, |rules| rules.groups().to_vec());
        let alone: Vec<usize> = (0..layers).filter(|layer| !units.iter().any(|unit| unit.contains(layer))).collect();
        units.extend(alone.into_iter().map(|layer| vec![layer]));
        let mut never = vec![false; layers * devices];
        for unit in &units {
            for device in 0..devices {
                let allowed = rules.as_ref().is_none_or(|rules| rules.allows(unit[0], device));
                let needed = costs.least_needed(problem, device, unit);
                if !allowed || needed > costs.memory_bytes[device].saturating_sub(costs.reserved_bytes[device]) {
                    unit.iter().for_each(|&layer| never[layer * devices + device] = true);
                }
            }
        }
        let mut times = Vec::with_capacity(layers * devices);
        for layer in 0..layers {
            for device in 0..devices {
                let cost = costs.layer(device, layer);
                let slowdown = costs.slowdown[device];
                let scaled = |ns: u64| (ns as f64 * slowdown).floor();
                let (forward, input, weight) =
                    (scaled(cost.forward_ns), scaled(cost.input_gradient_ns), scaled(cost.weight_gradient_ns));
                times.push(match never[layer * devices + device] {
                    true => Times::NEVER,
                    false => Times { forward, whole: forward + input + weight, input },
                });
            }
        }
        let mut bench = Self {
            times,
            layers,
            devices,
            units,
            groups: Vec::new(),
            microbatches: costs.microbatches as f64,
            start: Vec::new(),
            idle: Vec::new(),
            stage_ns: problem.stage_ns as f64,
            hop_ns: 0.0,
            deferred_ns: 0.0,
        };
        bench.groups = bench.alike();
        bench.hop_ns = bench.shortest_hop(costs);
        bench.deferred_ns = bench.longest_deferred(costs);
        let all: Vec<usize> = (0..bench.layers).collect();
        (bench.start, bench.idle) = bench.waits(&all);
        bench
    }

    fn at(&self, layer: usize, device: usize) -> &Times {
        &self.times[layer * self.devices + device]
    }

    fn allows(&self, layer: usize, device: usize) -> bool {
        self.at(layer, device).whole.is_finite()
    }

    fn least(&self, layer: usize, time: impl Fn(&Times) -> f64) -> f64 {
        let least = (0..self.devices).map(|device| time(self.at(layer, device))).fold(f64::INFINITY, f64::min);
        if least.is_finite() { least } else { 0.0 }
    }

    /// All work, each where it takes least, done by as many devices as can work at one time.
    fn by_cores(&self, costs: &Costs) -> f64 {
        match &costs.crowd {
            Some(crowd) => {
                self.microbatches * self.units.iter().map(|unit| self.least_of(unit)).sum::<f64>() / crowd.capacity()
            }
            None => 0.0,
        }
    }

    /// The work of layers that stay together, on the device that does it fastest.
    fn least_of(&self, unit: &[usize]) -> f64 {
        let on = |device: usize| unit.iter().map(|&layer| self.at(layer, device).whole).sum::<f64>();
        let least = (0..self.devices).map(on).fold(f64::INFINITY, f64::min);
        if least.is_finite() { least } else { 0.0 }
    }

    /// What the r-th of the devices that run some of these layers (ascending) waits at least for the first of them that
    /// it runs, and that with what it waits after its last I of them. The devices before it run earlier ones: the r-th
    /// starts with the r-th of them, or with a later one.
    fn waits(&self, members: &[usize]) -> (Vec<f64>, Vec<f64>) {
        let (mut start, mut idle) = (Vec::with_capacity(self.devices), Vec::with_capacity(self.devices));
        let (mut before, mut behind) = (0.0, 0.0);
        let mut layer = 0;
        for rank in 0..self.devices {
            // Beyond as many devices as layers there is nothing to start.
            let Some(&member) = members.get(rank) else {
                start.push(f64::INFINITY);
                idle.push(f64::INFINITY);
                continue;
            };
            while layer < member {
                before += self.least(layer, |times| times.forward);
                behind += self.least(layer, |times| times.input);
                layer += 1;
            }
            // A single device has no hop at all.
            let hops = if rank == 0 { 0.0 } else { rank as f64 * (self.stage_ns + self.hop_ns) };
            start.push(before + hops);
            idle.push(before + hops + f64::max(behind + hops - self.deferred_ns, 0.0));
        }
        (start, idle)
    }

    /// Nanoseconds that every result takes at least to another device.
    fn shortest_hop(&self, costs: &Costs) -> f64 {
        let bytes = costs.output_bytes[..self.layers.saturating_sub(1)].iter().copied().min().unwrap_or(0);
        let pairs = (0..self.devices).flat_map(|from| (0..self.devices).map(move |to| (from, to)));
        pairs
            .filter(|(from, to)| from != to)
            .map(|(from, to)| {
                let (transfer_ns, latency_ns) = costs.transfer(from, to, bytes);
                // On the way to the r-th device there are as many sends, and on the way back as many receives.
                transfer_ns.saturating_add(latency_ns).saturating_add(costs.crossings_ns(true, false)) as f64
            })
            .fold(f64::INFINITY, f64::min)
    }

    /// Nanoseconds of the W that any device can have deferred when its last I ends: each holds its bytes until then.
    fn longest_deferred(&self, costs: &Costs) -> f64 {
        let of = |device: usize| {
            let per_byte = |layer: usize| {
                let cost = costs.layer(device, layer);
                match cost.weight_gradient_ns {
                    0 => 0.0,
                    ns => ns as f64 * costs.slowdown[device] / cost.gradient_bytes as f64,
                }
            };
            let most = (0..self.layers).filter(|&layer| self.allows(layer, device)).map(per_byte).fold(0.0, f64::max);
            // What holds nothing can wait where there is no room at all.
            let room = costs.memory_bytes[device].saturating_sub(costs.reserved_bytes[device]) as f64;
            if most.is_finite() { room * most } else { most }
        };
        (0..self.devices).map(of).fold(0.0, f64::max) * (1.0 + FLOAT_LOSS)
    }

    /// What a device that waits for `idle` can take of each microbatch if all ends at `time`.
    fn capacity(&self, time: f64, idle: f64) -> f64 {
        ((time - idle) / self.microbatches - 2.0 * self.stage_ns).max(0.0)
    }

    /// Least time at which `enough` holds, which is monotone; infinite time is enough.
    fn bisect(&self, enough: impl Fn(f64) -> bool) -> f64 {
        if enough(0.0) {
            return 0.0;
        }
        self.bisect_above(0.0, 1.0, BISECTIONS, enough)
    }

    /// The same, above a time that is not enough, in steps that double.
    fn bisect_above(&self, low: f64, step: f64, halvings: usize, enough: impl Fn(f64) -> bool) -> f64 {
        let (mut low, mut step) = (low, step);
        let mut high = low + step;
        while !enough(high) && high < FOREVER {
            low = high;
            step *= 2.0;
            high += step;
        }
        for _ in 0..halvings {
            let middle = (low + high) / 2.0;
            if enough(middle) { high = middle } else { low = middle }
        }
        // `low` is not enough, so no plan takes less than it.
        low
    }

    /// Devices on which every layer takes the same time.
    fn alike(&self) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for device in 0..self.devices {
            let whole = |layer: usize, device: usize| self.at(layer, device).whole;
            let same = |group: &&mut Vec<usize>| (0..self.layers).all(|of| whole(of, group[0]) == whole(of, device));
            match groups.iter_mut().find(same) {
                Some(group) => group.push(device),
                None => groups.push(vec![device]),
            }
        }
        groups
    }

    /// One microbatch down and up. And each layer is on one device for all microbatches: after the layers before it and
    /// before the I of those; after all F, and before its last W.
    fn by_path(&self) -> f64 {
        let forward: Vec<f64> = (0..self.layers).map(|layer| self.least(layer, |times| times.forward)).collect();
        let input: Vec<f64> = (0..self.layers).map(|layer| self.least(layer, |times| times.input)).collect();
        let (forwards, inputs) = (forward.iter().sum::<f64>(), input.iter().sum::<f64>());
        let mut longest = forwards + inputs;
        let (mut before, mut behind) = (0.0, 0.0);
        let mut ahead = Vec::with_capacity(self.layers);
        for layer in 0..self.layers {
            ahead.push(before);
            let all = |time: &dyn Fn(&Times) -> f64| self.microbatches * self.least(layer, time);
            let others = f64::max(forwards - before - forward[layer], 0.0) + inputs;
            let weight = self.least(layer, |times| times.whole - times.forward - times.input);
            let last = f64::max(inputs - behind - input[layer], 0.0);
            longest = longest
                .max(before + all(&|times| times.forward + times.input) + behind)
                .max(before + all(&|times| times.forward) + others)
                .max(forwards + last + all(&|times| times.input) + behind.max(weight));
            before += forward[layer];
            behind += input[layer];
        }
        // A layer, or those that stay together, are some device's for all microbatches.
        for unit in &self.units {
            longest = longest.max(ahead[unit[0]] + self.microbatches * self.least_of(unit));
        }
        longest
    }
}
