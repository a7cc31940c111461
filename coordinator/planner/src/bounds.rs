//! A time that no plan can beat.
//!
//! Everything the devices do must fit before the end: device r, counting by first layers, can't start before r layers
//! and r transfers of the first microbatch are behind it. With capacity `(T - start_r) / M` per device, no plan of time T
//! exists if the layers can't be packed
//!
//! - by work: for any prices w of the devices, `sum over layers of min over devices of w x cost` exceeds
//!   `sum over devices of w x capacity` (duality of the fractional assignment; the prices are improved by subgradients,
//!   and every price is sound);
//! - by number: the most layers that each device can hold, its cheapest first, do not add up to all; nor those of one
//!   class of equal layers.
//!
//! Besides, one microbatch has a longest path, and every layer is some device's for all microbatches. Times are rounded
//! down per layer, since an instruction rounds only once. Memory is left out on purpose: its bound would need the
//! schedule.

use crate::costs::Costs;
use adaptis_plan::Problem;

/// Halvings of an interval whose ends differ by a factor of two: all bits of a float.
const BISECTIONS: usize = 54;
/// Rounds of price improvement.
const PRICE_ROUNDS: usize = 200;
/// Price of a device that can run nothing, and the inverse of the highest to start from.
const PRICE_MIN: f64 = 1e-6;
/// Relative error that sums of floats here stay well within.
const FLOAT_LOSS: f64 = 1e-12;
/// Classes of equal layers that are packed by number.
const CLASSES_MAX: usize = 4;
/// Devices up to which the packing by number matches devices and starts exactly.
const MATCHED_DEVICES_MAX: usize = 10;

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

struct Bench {
    /// `layer x devices + device`; infinite where it may not run.
    times: Vec<Times>,
    layers: usize,
    devices: usize,
    microbatches: f64,
    /// Ascending: the r-th device's earliest start.
    start: Vec<f64>,
    stage_ns: f64,
}

pub(crate) fn of(costs: &Costs, problem: &Problem) -> u64 {
    let bench = Bench::new(costs, problem);
    let optimizer = (0..bench.layers)
        .map(|layer| {
            let of = |device: usize| costs.optimizer_ns(device, u128::from(problem.optimizer_of(device, layer)));
            (0..bench.devices).filter(|&device| bench.allows(layer, device)).map(of).min().unwrap_or(0)
        })
        .max();
    let time = bench.by_work().max(bench.by_numbers()).max(bench.by_path());
    // Floats carry 53 bits: give way by what they may have lost. Times are whole, so the next one is still a bound.
    let time = if time <= 0.0 { 0 } else { (time * (1.0 - FLOAT_LOSS)).floor() as u64 + 1 };
    time.saturating_add(costs.boundary_ns).saturating_add(optimizer.unwrap_or(0))
}

impl Bench {
    fn new(costs: &Costs, problem: &Problem) -> Self {
        let (layers, devices) = (costs.layers, costs.devices);
        let constraints = &problem.constraints;
        let forbidden: Vec<bool> =
            problem.devices.iter().map(|device| constraints.forbidden.contains(&device.name)).collect();
        let mut times = Vec::with_capacity(layers * devices);
        for layer in 0..layers {
            let pins = constraints.pinned.iter().filter(|pin| pin.layer as usize == layer);
            for (device, &forbidden) in forbidden.iter().enumerate() {
                let elsewhere = pins.clone().any(|pin| pin.device != problem.devices[device].name);
                let cost = costs.layer(device, layer);
                let slowdown = costs.slowdown[device];
                let scaled = |ns: u64| (ns as f64 * slowdown).floor();
                let (forward, input, weight) =
                    (scaled(cost.forward_ns), scaled(cost.input_gradient_ns), scaled(cost.weight_gradient_ns));
                times.push(match forbidden || elsewhere {
                    true => Times { forward: f64::INFINITY, whole: f64::INFINITY, input: f64::INFINITY },
                    false => Times { forward, whole: forward + input + weight, input },
                });
            }
        }
        let mut bench = Self {
            times,
            layers,
            devices,
            microbatches: costs.microbatches as f64,
            start: Vec::new(),
            stage_ns: problem.stage_ns as f64,
        };
        bench.start = bench.starts(costs);
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

    /// The r cheapest forwards and r cheapest hops, for each r.
    fn starts(&self, costs: &Costs) -> Vec<f64> {
        let mut forwards: Vec<f64> = (0..self.layers).map(|layer| self.least(layer, |times| times.forward)).collect();
        forwards.sort_by(f64::total_cmp);
        let bytes = costs.output_bytes[..self.layers.saturating_sub(1)].iter().copied().min().unwrap_or(0);
        let pairs = (0..self.devices).flat_map(|from| (0..self.devices).map(move |to| (from, to)));
        let hop = pairs
            .filter(|(from, to)| from != to)
            .map(|(from, to)| {
                let (transfer_ns, latency_ns) = costs.transfer(from, to, bytes);
                transfer_ns.saturating_add(latency_ns) as f64
            })
            .fold(f64::INFINITY, f64::min);
        let mut at = 0.0;
        let mut starts = vec![0.0];
        for rank in 1..self.devices {
            // Beyond as many devices as layers there is nothing to start.
            at += forwards.get(rank - 1).map_or(f64::INFINITY, |forward| forward + self.stage_ns + hop);
            starts.push(at);
        }
        starts
    }

    /// What a device can take of each microbatch if it starts at `start` and all ends at `time`.
    fn capacity(&self, time: f64, start: f64) -> f64 {
        ((time - start) / self.microbatches - 2.0 * self.stage_ns).max(0.0)
    }

    /// Least time at which `enough` holds, which is monotone; infinite time is enough.
    fn bisect(&self, enough: impl Fn(f64) -> bool) -> f64 {
        if enough(0.0) {
            return 0.0;
        }
        let (mut low, mut high) = (0.0, 1.0);
        while !enough(high) && high < 1e18 {
            low = high;
            high *= 2.0;
        }
        for _ in 0..BISECTIONS {
            let middle = (low + high) / 2.0;
            if enough(middle) { high = middle } else { low = middle }
        }
        // `low` is not enough, so no plan takes less than it.
        low
    }

    fn by_work(&self) -> f64 {
        // By speed: right at once where kinds differ by a factor. Devices of equal times keep equal prices.
        let mean = |device: usize| -> Option<f64> {
            let whole = |layer| Some(self.at(layer, device).whole).filter(|whole| whole.is_finite());
            let (sum, count) = (0..self.layers)
                .filter_map(whole)
                .fold((0.0, 0.0), |(sum, count), whole: f64| (sum + whole, count + 1.0));
            (count > 0.0).then(|| sum / count)
        };
        let slowest = (0..self.devices).filter_map(mean).fold(0.0, f64::max);
        let by_speed = |device: usize| match mean(device) {
            None => PRICE_MIN,
            Some(_) if slowest == 0.0 => 1.0,
            Some(mean) => slowest / mean.max(slowest * PRICE_MIN),
        };
        let mut price: Vec<f64> = (0..self.devices).map(by_speed).collect();
        let group = self.groups();
        let mut best: f64 = 0.0;
        for round in 0..PRICE_ROUNDS {
            let mut load = vec![0.0; self.devices];
            let mut packed = 0.0;
            for layer in 0..self.layers {
                let cost = |device: usize| price[device] * self.at(layer, device).whole;
                let cheapest = (0..self.devices).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(0);
                if cost(cheapest).is_finite() {
                    packed += cost(cheapest);
                    load[cheapest] += self.at(layer, cheapest).whole;
                }
            }
            let mut sorted = price.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let room = |time: f64| -> f64 {
                sorted.iter().zip(&self.start).map(|(price, &start)| price * self.capacity(time, start)).sum()
            };
            best = best.max(self.bisect(|time| room(time) >= packed));
            // Dearer where more is packed than fits, cheaper elsewhere.
            let mean = load.iter().sum::<f64>() / self.devices as f64;
            let step = 0.5 / (round as f64 + 2.0).sqrt();
            for (device, price) in price.iter_mut().enumerate() {
                let alike = (0..self.devices).filter(|&other| group[other] == group[device]);
                let (sum, count) = alike.fold((0.0, 0.0), |(sum, count), other| (sum + load[other], count + 1.0));
                *price *= (step * (sum / count / mean.max(1e-9) - 1.0)).clamp(-1.0, 1.0).exp();
            }
        }
        best
    }

    /// Devices on which every layer takes the same time share a number.
    fn groups(&self) -> Vec<usize> {
        let alike =
            |a: usize, b: usize| (0..self.layers).all(|layer| self.at(layer, a).whole == self.at(layer, b).whole);
        let mut group: Vec<usize> = Vec::with_capacity(self.devices);
        for device in 0..self.devices {
            let same = (0..device).find(|&earlier| group[earlier] == earlier && alike(earlier, device));
            group.push(same.unwrap_or(device));
        }
        group
    }

    /// By number over all layers, and over those of each of the largest classes alone: the cheap layers of a model
    /// would else stand for as many heavy ones.
    fn by_numbers(&self) -> f64 {
        let mut classes: Vec<Vec<usize>> = Vec::new();
        for layer in 0..self.layers {
            let row = |layer: usize| self.times[layer * self.devices..][..self.devices].iter().map(|times| times.whole);
            match classes.iter_mut().find(|class| row(class[0]).eq(row(layer))) {
                Some(class) => class.push(layer),
                None => classes.push(vec![layer]),
            }
        }
        classes.sort_by_key(|class| std::cmp::Reverse(class.len()));
        classes.truncate(CLASSES_MAX);
        classes.push((0..self.layers).collect());
        classes.iter().map(|class| self.by_number(class)).fold(0.0, f64::max)
    }

    fn by_number(&self, members: &[usize]) -> f64 {
        let costs: Vec<Vec<f64>> = (0..self.devices)
            .map(|device| {
                let mut costs: Vec<f64> = members
                    .iter()
                    .map(|&layer| self.at(layer, device).whole)
                    .filter(|whole| whole.is_finite())
                    .collect();
                costs.sort_by(f64::total_cmp);
                costs
            })
            .collect();
        let holds = |device: usize, capacity: f64| {
            let mut left = capacity;
            costs[device]
                .iter()
                .take_while(|&&cost| {
                    left -= cost;
                    left >= -FLOAT_LOSS * capacity
                })
                .count()
        };
        let enough = |time: f64| match self.devices <= MATCHED_DEVICES_MAX {
            true => self.matched(&holds, time) >= members.len(),
            false => {
                let most = |start: f64| (0..self.devices).map(|device| holds(device, self.capacity(time, start))).max();
                let by_start: usize = self.start.iter().map(|&start| most(start).unwrap_or(0)).sum();
                let all_at_once: usize = (0..self.devices).map(|device| holds(device, self.capacity(time, 0.0))).sum();
                by_start.min(all_at_once) >= members.len()
            }
        };
        self.bisect(enough)
    }

    /// Most layers over all assignments of devices to starts: a dynamic program over sets of devices.
    fn matched(&self, holds: &impl Fn(usize, f64) -> usize, time: f64) -> usize {
        let mut most = vec![0_usize; 1 << self.devices];
        for set in 1..most.len() {
            let capacity = self.capacity(time, self.start[set.count_ones() as usize - 1]);
            let members = (0..self.devices).filter(|device| set & (1 << device) != 0);
            most[set] = members.map(|device| most[set & !(1 << device)] + holds(device, capacity)).max().unwrap_or(0);
        }
        most.last().copied().unwrap_or(0)
    }

    /// One microbatch down and up; and each layer for all microbatches, after the layers before it and before the I of
    /// those.
    fn by_path(&self) -> f64 {
        let forward: Vec<f64> = (0..self.layers).map(|layer| self.least(layer, |times| times.forward)).collect();
        let input: Vec<f64> = (0..self.layers).map(|layer| self.least(layer, |times| times.input)).collect();
        let path: f64 = forward.iter().sum::<f64>() + input.iter().sum::<f64>();
        let mut before = 0.0;
        let mut longest = path;
        for (layer, forward) in forward.iter().enumerate() {
            longest = longest.max(before + self.microbatches * self.least(layer, |times| times.whole));
            before += forward;
        }
        longest
    }
}
