//! What an iteration of a shape takes at least, told from loads alone: no order, no replay.
//!
//! A good order hides all but two things, so a shape is worth about the largest of them over its devices:
//!
//! - the device starts when the first microbatch has come down to its first stage, and then works without a pause;
//! - a stage holds a microbatch from its F until its I has come back up, so that what a device's memory can hold limits
//!   how often one may enter: `period >= sum over its stages of held bytes x time held / room`.
//!
//! It takes a microsecond where a listing takes fifty, and so can look at fifty times as many shapes. Links that are
//! busy with more than one stage, and the fit of F, I and W into one another, are left to the listing.

use super::judge::{Candidate, Judge};
use super::structure::{Freedom, change, relieve};
use crate::costs::{Costs, StageCost};
use crate::random::Random;
use crate::recipe::Genes;
use crate::shape::Shape;

/// Temperature at the start and at the end, as a share of the value.
const HOT: f64 = 0.02;
const COLD: f64 = 0.0002;
/// Temperature at the start where a running plan is not to be lost sight of, and share of the changes there that take
/// layers from the busiest device.
pub(crate) const HOT_NEAR: f64 = 0.005;
const RELIEVING: f64 = 0.3;
/// Weight of the devices' mean beside the worst one.
const MEAN: f64 = 0.05;

/// What an iteration of a shape takes, without its tail; infinite where its memory can't hold a microbatch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    /// At least: no order is faster.
    pub(crate) floor_ns: f64,
    /// With memory's limits and a little of the devices' mean: to compare shapes by.
    pub(crate) likely_ns: f64,
    /// The device that takes longest.
    pub(crate) busiest: u32,
}

/// How many times longer than on an idle pipeline microbatches are taken to be held, at first, at least and at most.
const HELD: f64 = 1.5;
const HELD_MIN: f64 = 1.0;
const HELD_MAX: f64 = 5.0;
/// A listing this much above its sketch tells that memory was taken too lightly; one this near, that it was not.
const FAR: f64 = 1.10;
const NEAR: f64 = 1.05;
/// Steps of the first anneal, growth from one to the next in percent, and the most.
const STEPS: usize = 10_000;
const STEPS_GROWTH: usize = 140;
const STEPS_MAX: usize = 100_000;

/// What listings have told about sketches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trust {
    /// Share of the new shapes that sketches are worth, of those that they may get.
    pub(crate) share: f64,
    held_factor: f64,
    steps: usize,
}

impl Default for Trust {
    fn default() -> Self {
        Self { share: 1.0, held_factor: HELD, steps: STEPS }
    }
}

impl Trust {
    /// A sketch came to `likely`, its listing to `listed`; none where it did not fit.
    fn learn(&mut self, likely: f64, listed: Option<f64>) {
        self.heed(likely, listed);
        self.steps = (self.steps * STEPS_GROWTH / 100).min(STEPS_MAX);
    }

    /// As [`Trust::learn`], but the next anneal takes as many steps.
    pub(crate) fn heed(&mut self, likely: f64, listed: Option<f64>) {
        let ratio = listed.map_or(f64::INFINITY, |listed| listed / likely.max(1.0));
        if ratio > FAR {
            self.held_factor = (self.held_factor * 1.3).min(HELD_MAX);
            self.share = (self.share * 0.8).max(0.1);
        } else {
            self.share = (self.share * 1.3).min(1.0);
            if ratio < NEAR {
                self.held_factor = (self.held_factor * 0.95).max(HELD_MIN);
            }
        }
    }
}

/// Estimates shapes: what was learnt about estimates, and their buffers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sketch {
    pub(crate) trust: Trust,
    cost: Vec<StageCost>,
    /// Per device.
    load_ns: Vec<f64>,
    start_ns: Vec<f64>,
    base_bytes: Vec<f64>,
    rise_bytes: Vec<f64>,
    /// Bytes x nanoseconds that a microbatch is held, over the device's stages.
    held_byte_ns: Vec<f64>,
}

fn refill(buffer: &mut Vec<f64>, len: usize, value: f64) {
    buffer.clear();
    buffer.resize(len, value);
}

impl Sketch {
    /// Of a shape.
    pub(crate) fn estimate(&mut self, costs: &Costs, shape: &Shape) -> Estimate {
        let devices = costs.devices;
        self.cost.clear();
        self.cost
            .extend(shape.stages.iter().map(|slot| costs.stage(slot.device as usize, slot.range(), &shape.recompute)));
        refill(&mut self.load_ns, devices, 0.0);
        refill(&mut self.start_ns, devices, f64::INFINITY);
        refill(&mut self.rise_bytes, devices, 0.0);
        refill(&mut self.held_byte_ns, devices, 0.0);
        self.base_bytes.clear();
        self.base_bytes.extend(costs.reserved_bytes.iter().map(|&bytes| bytes as f64));
        let hop_ns = |stage: usize| -> (f64, f64) {
            let (here, next) = (shape.stages[stage], shape.stages[stage + 1]);
            if here.device == next.device {
                return (0.0, 0.0);
            }
            let bytes = costs.output_bytes[here.end as usize - 1];
            let delay = |from: u32, to: u32| {
                let (transfer_ns, latency_ns) = costs.transfer(from as usize, to as usize, bytes);
                transfer_ns as f64 + latency_ns as f64
            };
            (delay(here.device, next.device), delay(next.device, here.device))
        };
        let mut down = 0.0;
        for (stage, slot) in shape.stages.iter().enumerate() {
            let device = slot.device as usize;
            let cost = &self.cost[stage];
            let [forward, input, weight, backward] = cost.ns.map(|ns| ns as f64);
            // Fused, the two cost one instruction less, and no split.
            self.load_ns[device] += forward + backward.min(input + weight);
            self.start_ns[device] = self.start_ns[device].min(down);
            let neighbours = [stage.checked_sub(1), (stage + 1 < shape.stages.len()).then_some(stage + 1)]
                .map(|other| other.is_some_and(|other| shape.stages[other].device != slot.device));
            let buffers = costs.buffer_bytes(&slot.range(), neighbours[0], neighbours[1]);
            self.base_bytes[device] += cost.state_bytes as f64 + buffers as f64;
            self.rise_bytes[device] = self.rise_bytes[device].max(cost.rise_bytes as f64 + cost.workspace_bytes as f64);
            down += forward;
            if stage + 1 < shape.stages.len() {
                down += hop_ns(stage).0;
            }
        }
        // From the start of a stage's F to the end of its I, were nothing ever waiting.
        let mut away = 0.0;
        for (stage, slot) in shape.stages.iter().enumerate().rev() {
            if stage + 1 < shape.stages.len() {
                let (onward, back) = hop_ns(stage);
                away += onward + back;
            }
            let cost = &self.cost[stage];
            away += cost.ns[0] as f64 + cost.ns[1] as f64;
            self.held_byte_ns[slot.device as usize] += cost.stash_bytes as f64 * away;
        }
        let microbatches = costs.microbatches as f64;
        let (mut floor, mut worst, mut sum, mut used) = (0.0_f64, 0.0_f64, 0.0, 0.0_f64);
        let mut busiest = 0;
        for device in 0..devices {
            if self.load_ns[device] == 0.0 {
                continue;
            }
            let room = costs.memory_bytes[device] as f64 - self.base_bytes[device] - self.rise_bytes[device];
            if room < 0.0 || room == 0.0 && self.held_byte_ns[device] > 0.0 {
                return Estimate { floor_ns: f64::INFINITY, likely_ns: f64::INFINITY, busiest: device as u32 };
            }
            let by_memory = if self.held_byte_ns[device] > 0.0 {
                self.held_byte_ns[device] * self.trust.held_factor / room
            } else {
                0.0
            };
            let time = |period: f64| self.start_ns[device] + period * microbatches;
            floor = floor.max(time(self.load_ns[device]));
            let likely = time(self.load_ns[device].max(by_memory));
            if likely > worst {
                (worst, busiest) = (likely, device as u32);
            }
            sum += likely;
            used += 1.0;
        }
        Estimate { floor_ns: floor, likely_ns: worst + MEAN * sum / used.max(1.0), busiest }
    }
}

/// A shape annealed on what it takes at least, then listed; none if it does not fit.
pub(crate) fn drawn(judge: &mut Judge, start: &Shape, random: &mut Random) -> Option<Candidate> {
    let steps = judge.sketch.trust.steps;
    let hot = if judge.homes().is_some() { HOT_NEAR } else { HOT };
    let (shape, likely) = anneal(judge, start, Freedom::Full, (steps, hot), random);
    let listed = judge.best_listing(&shape, &Genes::STANDARD);
    judge.sketch.trust.learn(likely, listed.as_ref().map(|listed| listed.value));
    listed
}

/// The best shape found, and about what it is worth.
pub(crate) fn anneal(
    judge: &mut Judge,
    start: &Shape,
    freedom: Freedom,
    (steps, hot): (usize, f64),
    random: &mut Random,
) -> (Shape, f64) {
    let mut sketch = std::mem::take(&mut judge.sketch);
    let value = |judge: &Judge, sketch: &mut Sketch, shape: &Shape| {
        let estimate = sketch.estimate(judge.costs, shape);
        (estimate.likely_ns + judge.charge(shape), estimate.busiest)
    };
    let near = freedom == Freedom::Full && judge.homes().is_some();
    let mut current = start.clone();
    let (mut now, mut busiest) = value(judge, &mut sketch, &current);
    let (mut best, mut least) = (current.clone(), now);
    for step in 0..steps {
        if judge.done() {
            break;
        }
        judge.spend_sketch(current.stages.len());
        let mut next = current.clone();
        let changed = match near && random.chance(RELIEVING) {
            true => relieve(judge, &mut next, busiest, random),
            false => change(judge, &mut next, freedom, random),
        };
        if !changed || !judge.rules.permits(&next) {
            continue;
        }
        let cool = step as f64 / steps as f64;
        let temperature = now.min(f64::MAX) * hot * (COLD / hot).powf(cool);
        let (then, next_busiest) = value(judge, &mut sketch, &next);
        if then <= now - temperature * random.unit().max(1e-12).ln() {
            (current, now, busiest) = (next, then, next_busiest);
            if now < least {
                (best, least) = (current.clone(), now);
            }
        }
    }
    judge.sketch = sketch;
    (best, least)
}
