//! What an iteration of a shape takes at least, told from loads alone: no order, no replay.
//!
//! A good order hides all but two things, so a shape is worth about the largest of them over its devices:
//!
//! - the device waits where it lacks forwards before the first I arrives, and then works without a pause;
//! - a stage holds a microbatch from its F until its I has come back up, so that what a device's memory can hold limits
//!   how often one may enter: `period >= sum over its stages of held bytes x time held / room`.
//!
//! It takes a microsecond where a listing takes fifty, and so can look at fifty times as many shapes. Links that are
//! busy with more than one stage, and the fit of F, I and W into one another, are left to the listing.

use super::judge::{Candidate, Judge, SKETCHED_STAGES};
use super::structure::{Freedom, change, relieve};
use crate::costs::{Costs, StageCost};
use crate::random::Random;
use crate::recipe::Genes;
use crate::shape::{Shape, Slot};

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
    /// Memory's limits make it longer.
    pub(crate) is_tight: bool,
}

/// Devices by what they wait and do at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extremes {
    /// It takes longest.
    pub(crate) busiest: u32,
    /// It takes least; it may have nothing to do.
    pub(crate) idlest: u32,
}

/// How many times longer than on an idle pipeline microbatches are taken to be held, at first, at least and at most.
const HELD: f64 = 1.5;
const HELD_MIN: f64 = 1.0;
const HELD_MAX: f64 = 5.0;
/// A listing this much above its sketch tells that memory was taken too lightly; one this near, that it was not.
pub(super) const FAR: f64 = 1.10;
const NEAR: f64 = 1.05;
/// Steps of the first anneal, growth from one to the next in percent, and the most.
const STEPS: usize = 20_000;
const STEPS_GROWTH: usize = 140;
const STEPS_MAX: usize = 100_000;
/// Share of the steps that take a device to be busy from its first F on, which is told faster.
const COARSE: f64 = 0.6;
/// Stages above which that is all.
const FINE_STAGES_MAX: usize = 80;

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
    /// About what the next anneal of a shape of so many stages counts for; it may double them.
    pub(super) fn evaluations(&self, stages: usize) -> u64 {
        (self.steps * stages * 2 / SKETCHED_STAGES) as u64
    }

    pub(super) fn learn(&mut self, lesson: Lesson) {
        self.heed(lesson);
        self.steps = (self.steps * STEPS_GROWTH / 100).min(STEPS_MAX);
    }

    /// As [`Trust::learn`], but the next anneal takes as many steps.
    pub(super) fn heed(&mut self, Lesson { likely, listed, is_near }: Lesson) {
        let ratio = listed.map_or(f64::INFINITY, |listed| listed / likely.max(1.0));
        self.share = if is_near { (self.share * 1.3).min(1.0) } else { (self.share * 0.8).max(0.1) };
        if ratio > FAR {
            self.held_factor = (self.held_factor * 1.3).min(HELD_MAX);
        } else {
            if ratio < NEAR {
                self.held_factor = (self.held_factor * 0.95).max(HELD_MIN);
            }
        }
    }
}

/// What a listing told of its sketch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lesson {
    pub(crate) likely: f64,
    /// None where it did not fit.
    pub(crate) listed: Option<f64>,
    /// It was worth its time: what came of it was near the best plan or, where that is not known yet, near the sketch.
    pub(crate) is_near: bool,
}

/// Estimates shapes: what was learnt about estimates, and their buffers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sketch {
    pub(crate) trust: Trust,
    /// The last one.
    pub(crate) lesson: Option<Lesson>,
    /// Waits are told by [`Sketch::warm_up`], else only the first of them.
    is_fine: bool,
    /// Of the shape estimated last, and of the one before: neighbours share most of their stages.
    cost: Vec<StageCost>,
    slots: Vec<Slot>,
    cost_before: Vec<StageCost>,
    /// From a stage to the next and back, on an idle link.
    hop_ns: Vec<(f64, f64)>,
    /// What crosses adds to F, I and B of a stage.
    crossings_ns: Vec<f64>,
    recompute: Vec<bool>,
    /// Per device.
    load_ns: Vec<f64>,
    start_ns: Vec<f64>,
    base_bytes: Vec<f64>,
    room_bytes: Vec<f64>,
    period_ns: Vec<f64>,
    /// The first I arrives, and waits before it.
    backward_ns: Vec<f64>,
    waits_ns: Vec<f64>,
    /// Start and end of the forwards before it, ascending.
    forwards: Vec<Vec<(f64, f64)>>,
    rise_bytes: Vec<f64>,
    /// Bytes x nanoseconds that a microbatch is held, over the device's stages.
    held_byte_ns: Vec<f64>,
}

fn refill(buffer: &mut Vec<f64>, len: usize, value: f64) {
    buffer.clear();
    buffer.resize(len, value);
}

impl Sketch {
    /// The costs of a shape's stages; those that the last shape had as well are not summed again.
    fn learn_costs(&mut self, costs: &Costs, shape: &Shape) {
        std::mem::swap(&mut self.cost, &mut self.cost_before);
        self.cost.clear();
        let mut before = 0;
        for slot in &shape.stages {
            while self.slots.get(before).is_some_and(|held| held.start < slot.start) {
                before += 1;
            }
            let is_known =
                self.slots.get(before) == Some(slot) && self.recompute[slot.range()] == shape.recompute[slot.range()];
            self.cost.push(match is_known {
                true => self.cost_before[before],
                false => costs.stage(slot.device as usize, slot.range(), &shape.recompute),
            });
        }
        self.slots.clone_from(&shape.stages);
        self.recompute.clone_from(&shape.recompute);
    }

    /// Of a shape; all of them must be of one problem. Of one that takes more than `dear_ns` at least, no more is told.
    pub(crate) fn estimate(&mut self, costs: &Costs, shape: &Shape, dear_ns: f64) -> Estimate {
        let devices = costs.devices;
        let microbatches = costs.microbatches as f64;
        self.learn_costs(costs, shape);
        refill(&mut self.load_ns, devices, 0.0);
        refill(&mut self.start_ns, devices, f64::INFINITY);
        refill(&mut self.rise_bytes, devices, 0.0);
        refill(&mut self.held_byte_ns, devices, 0.0);
        self.base_bytes.clear();
        self.base_bytes.extend(costs.reserved_bytes.iter().map(|&bytes| bytes as f64));
        self.hop_ns.clear();
        self.hop_ns.extend((0..shape.stages.len()).map(|stage| hop_ns(costs, shape, stage)));
        self.crossings_ns.clear();
        let mut down = 0.0;
        for (stage, slot) in shape.stages.iter().enumerate() {
            let device = slot.device as usize;
            let cost = &self.cost[stage];
            let [forward, input, weight, backward] = cost.ns.map(|ns| ns as f64);
            self.start_ns[device] = self.start_ns[device].min(down);
            let neighbours = [stage.checked_sub(1), (stage + 1 < shape.stages.len()).then_some(stage + 1)]
                .map(|other| other.is_some_and(|other| shape.stages[other].device != slot.device));
            let crossings = costs.crossings_ns(neighbours[0], neighbours[1]) as f64;
            self.crossings_ns.push(crossings);
            // Fused, the two cost one instruction less, and no split.
            self.load_ns[device] += forward + backward.min(input + weight) + 2.0 * crossings;
            let buffers = costs.buffer_bytes(&slot.range(), neighbours[0], neighbours[1]);
            self.base_bytes[device] += cost.state_bytes as f64 + buffers as f64;
            self.rise_bytes[device] = self.rise_bytes[device].max(cost.rise_bytes as f64 + cost.workspace_bytes as f64);
            down += forward + crossings + self.hop_ns[stage].0;
        }
        // From the start of a stage's F to the end of its I, were nothing ever waiting.
        let mut away = 0.0;
        for (stage, slot) in shape.stages.iter().enumerate().rev() {
            let (onward, back) = self.hop_ns[stage];
            let cost = &self.cost[stage];
            away += onward + back + cost.ns[0] as f64 + cost.ns[1] as f64 + 2.0 * self.crossings_ns[stage];
            self.held_byte_ns[slot.device as usize] += cost.stash_bytes as f64 * away;
        }
        let mut floor = 0.0_f64;
        refill(&mut self.room_bytes, devices, 0.0);
        for device in (0..devices).filter(|&device| self.load_ns[device] > 0.0) {
            let room = costs.memory_bytes[device] as f64 - self.base_bytes[device] - self.rise_bytes[device];
            if room < 0.0 || room == 0.0 && self.held_byte_ns[device] > 0.0 {
                return Estimate {
                    floor_ns: f64::INFINITY,
                    likely_ns: f64::INFINITY,
                    busiest: device as u32,
                    is_tight: true,
                };
            }
            self.room_bytes[device] = room;
            floor = floor.max(self.start_ns[device] + self.load_ns[device] * microbatches);
        }
        if floor > dear_ns {
            return Estimate { floor_ns: floor, likely_ns: floor, busiest: 0, is_tight: false };
        }
        self.waits_ns.clone_from(&self.start_ns);
        self.period_ns.clone_from(&self.load_ns);
        let mut is_tight = false;
        for device in (0..devices).filter(|&device| self.held_byte_ns[device] > 0.0) {
            let by_memory = self.held_byte_ns[device] * self.trust.held_factor / self.room_bytes[device];
            self.period_ns[device] = self.load_ns[device].max(by_memory);
            is_tight |= by_memory > self.load_ns[device];
        }
        if self.is_fine && shape.stages.len() <= FINE_STAGES_MAX {
            self.warm_up(costs, shape, down);
        }
        let (mut worst, mut busiest, mut sum, mut used) = (0.0_f64, 0, 0.0, 0.0_f64);
        for device in (0..devices).filter(|&device| self.load_ns[device] > 0.0) {
            let likely = self.waits_ns[device] + self.period_ns[device] * microbatches;
            if likely > worst {
                (worst, busiest) = (likely, device as u32);
            }
            sum += likely;
            used += 1.0;
        }
        Estimate { floor_ns: floor, likely_ns: worst + MEAN * sum / used.max(1.0), busiest, is_tight }
    }

    /// Of a shape whose floor is finite; the first of those alike.
    pub(crate) fn extremes(&mut self, costs: &Costs, shape: &Shape, usable: &[u32]) -> Extremes {
        self.estimate(costs, shape, 0.0);
        let takes_ns = |device: u32| {
            let at = device as usize;
            let is_used = self.load_ns[at] > 0.0;
            if is_used { self.start_ns[at] + self.load_ns[at] * costs.microbatches as f64 } else { 0.0 }
        };
        let mut extremes = Extremes { busiest: usable[0], idlest: usable[0] };
        for &device in usable {
            if takes_ns(device) > takes_ns(extremes.busiest) {
                extremes.busiest = device;
            }
            if takes_ns(device) < takes_ns(extremes.idlest) {
                extremes.idlest = device;
            }
        }
        extremes
    }

    /// What each device waits before the first I arrives: until then it can only run F, as many as its memory holds. Those
    /// of later microbatches fill the gaps that earlier ones leave. The first microbatch has come down at `down_ns`.
    fn warm_up(&mut self, costs: &Costs, shape: &Shape, down_ns: f64) {
        refill(&mut self.backward_ns, costs.devices, f64::NAN);
        let mut up = down_ns;
        for (stage, slot) in shape.stages.iter().enumerate().rev() {
            up += self.hop_ns[stage].1;
            let first = &mut self.backward_ns[slot.device as usize];
            *first = if first.is_nan() { up } else { *first };
            up += self.cost[stage].ns[1] as f64 + self.crossings_ns[stage];
        }
        let last = self.backward_ns.iter().copied().fold(0.0, f64::max);
        self.forwards.resize(costs.devices, Vec::new());
        self.forwards.iter_mut().for_each(Vec::clear);
        for _ in 0..costs.microbatches {
            let mut at = 0.0_f64;
            for (stage, slot) in shape.stages.iter().enumerate() {
                let device = slot.device as usize;
                let length = self.cost[stage].ns[0] as f64 + self.crossings_ns[stage];
                let stash = self.cost[stage].stash_bytes as f64;
                let (start, place) = gap(&self.forwards[device], at, length);
                if start >= last || self.room_bytes[device] < stash {
                    // What comes after it on its way comes no sooner.
                    if stage == 0 {
                        at = f64::INFINITY;
                    }
                    break;
                }
                self.room_bytes[device] -= stash;
                self.forwards[device].insert(place, (start, start + length));
                at = start + length + self.hop_ns[stage].0;
            }
            if at == f64::INFINITY {
                break;
            }
        }
        for (device, waits) in self.waits_ns.iter_mut().enumerate().filter(|(_, waits)| waits.is_finite()) {
            let until = self.backward_ns[device];
            let within = |&(start, end): &(f64, f64)| end.min(until) - start.min(until);
            *waits = until - self.forwards[device].iter().map(within).sum::<f64>();
        }
    }
}

/// From a stage to the next and back, on an idle link.
fn hop_ns(costs: &Costs, shape: &Shape, stage: usize) -> (f64, f64) {
    let here = shape.stages[stage];
    let Some(next) = shape.stages.get(stage + 1).filter(|next| next.device != here.device) else { return (0.0, 0.0) };
    let bytes = costs.output_bytes[here.end as usize - 1];
    let delay = |from: u32, to: u32| {
        let (transfer_ns, latency_ns) = costs.transfer(from as usize, to as usize, bytes);
        transfer_ns as f64 + latency_ns as f64
    };
    (delay(here.device, next.device), delay(next.device, here.device))
}

/// The first time from `at` on that leaves `length` free between what is taken, and its place there.
fn gap(taken: &[(f64, f64)], at: f64, length: f64) -> (f64, usize) {
    let mut start = at;
    for (place, &(from, until)) in taken.iter().enumerate() {
        if start + length <= from {
            return (start, place);
        }
        start = start.max(until);
    }
    (start, taken.len())
}

/// A shape annealed on what it takes at least, then listed; none if it does not fit.
pub(crate) fn drawn(judge: &mut Judge, start: &Shape, random: &mut Random) -> Option<Candidate> {
    let steps = judge.sketch.trust.steps;
    let hot = if judge.homes().is_some() { HOT_NEAR } else { HOT };
    let (shape, likely) = anneal(judge, start, Freedom::Full, (steps, hot), random);
    let listed = judge.best_listing(&shape, &Genes::STANDARD);
    let lesson = Lesson { likely, listed: listed.as_ref().map(|listed| listed.value), is_near: true };
    judge.sketch.trust.learn(lesson);
    judge.sketch.lesson = Some(lesson);
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
    let value = |judge: &Judge, sketch: &mut Sketch, shape: &Shape, dear: f64| {
        let charge = judge.charge(shape);
        let estimate = sketch.estimate(judge.costs, shape, dear - charge);
        (estimate.likely_ns + charge, estimate.busiest)
    };
    let near = freedom == Freedom::Full && judge.homes().is_some();
    let mut current = start.clone();
    let (mut now, mut busiest) = value(judge, &mut sketch, &current, f64::INFINITY);
    let (mut best, mut least) = (current.clone(), now);
    let coarse = (steps as f64 * COARSE) as usize;
    for step in 0..steps {
        if judge.done() {
            break;
        }
        judge.spend_sketch(current.stages.len());
        if step == coarse {
            sketch.is_fine = true;
            (now, busiest) = value(judge, &mut sketch, &current, f64::INFINITY);
            (best, least) = (current.clone(), now);
        }
        let mut next = current.clone();
        let changed = match near && random.chance(RELIEVING) {
            true => relieve(judge, &mut next, busiest, None, random),
            false => change(judge, &mut next, freedom, random),
        };
        if !changed || !judge.rules.permits(&next) {
            continue;
        }
        let cool = step as f64 / steps as f64;
        let temperature = now.min(f64::MAX) * hot * (COLD / hot).powf(cool);
        let accepted = now - temperature * random.unit().max(1e-12).ln();
        let (then, next_busiest) = value(judge, &mut sketch, &next, accepted);
        if then <= accepted {
            (current, now, busiest) = (next, then, next_busiest);
            if now < least {
                (best, least) = (current.clone(), now);
            }
        }
    }
    sketch.is_fine = false;
    judge.sketch = sketch;
    (best, least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_plan::{Cost, Device, Layer, Links, Problem};
    use std::collections::BTreeMap;

    #[test]
    fn the_busiest_device_and_the_idlest_are_told_by_what_they_take() {
        let cost = Cost { forward_ns: 100, input_gradient_ns: 100, weight_gradient_ns: 100, ..Cost::default() };
        let layer = |at: usize| Layer {
            name: format!("layer{at}"),
            signature: "block".to_owned(),
            parameter_bytes: 0,
            state_bytes: 1,
            output_bytes: 1,
            moved_bytes: None,
            note: None,
        };
        let device = |at: usize| Device {
            name: format!("gpu{at}"),
            kind: "k".to_owned(),
            memory_bytes: 1 << 30,
            slowdown: if at == 2 { 2.0 } else { 1.0 },
            reserved_bytes: 0,
            note: None,
        };
        let costs = BTreeMap::from([("k".to_owned(), vec![cost; 6])]);
        let (layers, devices) = ((0..6).map(layer).collect(), (0..4).map(device).collect());
        let costs = Costs::new(&Problem::new(8, layers, devices, costs, Links::all(0, 1e12)));
        let shape = |ends: &[u32]| {
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let slots = starts.zip(ends).zip(0..).map(|((start, &end), device)| Slot { start, end, device });
            Shape::new(6, slots.collect())
        };
        let told = |ends: &[u32], usable: &[u32]| {
            let Extremes { busiest, idlest } = Sketch::default().extremes(&costs, &shape(ends), usable);
            (busiest, idlest)
        };
        // Three layers, one, two that take twice as long, none.
        assert_eq!(told(&[3, 4, 6], &[0, 1, 2, 3]), (2, 3));
        assert_eq!(told(&[3, 4, 6], &[0, 1, 2]), (2, 1));
        // As much to do, but the later one waits for the first microbatch.
        assert_eq!(told(&[3, 6], &[0, 1]), (1, 0));
        assert_eq!(told(&[4, 5, 6], &[0, 1, 2]), (0, 1));
    }
}
