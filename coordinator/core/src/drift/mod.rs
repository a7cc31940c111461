//! Change points: when a device, a link or a layer became slower or faster, by how much, and what it looks like.
//!
//! ```text
//!   samples -> Gauge: one reading per iteration, device and link: where log(measured / expected) lies
//!           -> Drift: less what all devices have in common; each layer, less the others of its device
//!           -> Watch: two-sided CUSUM with a confirm rule -> onset, size, a step or a ramp
//!           -> Track: it lasts, it passes, it comes and goes -> Shift, with the cause that `Trail` finds
//! ```
//!
//! 1. One slow iteration is never a change: a single reading counts for at most a part of the threshold, and a change
//!    needs two iterations that show it.
//! 2. What all devices share (a common pause, a warmer room) is no change of one of them. It is taken off where there
//!    are three devices or more, as a median that even half of them slowing down together does not move.
//! 3. Cold iterations teach nothing and confirm nothing, but the baseline outlives them: what changed meanwhile is found
//!    in the warm iterations after.
//! 4. The baseline does not follow a slow drift: it is frozen after a while, so that small steps add up to a change.
//! 5. Where a device does what its kind never did in training, the first level of it is what the guess was wrong by, and
//!    no change of the device.
//! 6. What begins with another plan is what the model did not know of that plan, and no change, unless it is a large one.
//! 7. After a change the new level is the baseline, whether a plan follows or not.
//! 8. A change is told at once and acted on when it lasts: one that is over before four iterations have shown it is told
//!    to have passed.
//! 9. What goes to and fro is told as periodic once it is back on a level for the second time, and its mean with it;
//!    from then on its flips are no changes.
//! 10. Where microbatches differ and their loads are recorded, works are read as they would be at the mean load: an iteration
//!     of long sequences is no change. What is not known yet of how times follow loads counts as their noise; so does what
//!     loads make of times where most are not known.

mod cause;
mod change;
mod gauge;
mod ramp;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod tests;
mod track;
mod watch;

pub use change::{Cause, Change, Course, Evidence, Passed, Shift, Who};
pub use gauge::Gauge;

use crate::estimate::robust;
use adaptis_proto::{LayerIndex, Step};
use cause::Trail;
use std::collections::BTreeMap;
use track::Track;
use watch::{Confirmed, Watch};

/// Devices from which on what they share is told apart from what one does.
const COMMON_DEVICES_MIN: usize = 3;

/// Standard deviations between the two middle devices from which on they are two groups.
const APART_SD: f64 = 3.0;

/// Standard deviations of a median that what devices have in common must exceed.
const COMMON_SD: f64 = 2.5;

/// One iteration of one device or link against its reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Which.
    pub who: Who,
    /// Where log(measured / expected) of the works lies.
    pub ln_ratio: f64,
    /// Works behind it.
    pub works: u32,
    /// Relative standard deviation of one work.
    pub spread: f64,
    /// Standard deviation of the logarithm of what is expected: how uncertain the reference is for these works.
    pub reference_ln_sd: f64,
    /// What is expected of these works was never measured on a device of this kind.
    pub is_guess: bool,
    /// The iteration was cold.
    pub cold: bool,
    /// Standard deviation of the works' log(measured / expected) in this iteration.
    pub deviation: f64,
    /// A device's layers, each by itself.
    pub layers: Vec<OfLayer>,
    /// A device's F, I and W, each by itself, and works behind it.
    pub phases: [Option<(f64, u32)>; 3],
}

/// One layer in a reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OfLayer {
    /// Which.
    pub layer: LayerIndex,
    /// Where log(measured / expected) of its works lies.
    pub ln_ratio: f64,
    /// Works behind it.
    pub works: u32,
    /// How uncertain the reference is for these works.
    pub reference_ln_sd: f64,
}

/// Largest |log ratio| and standard deviation that make a difference.
const LARGEST_LN: f64 = 40.0;

impl Reading {
    /// The reading within bounds that arithmetic stands; none if it says nothing.
    fn bounded(&self) -> Option<Reading> {
        let numbers = [self.ln_ratio, self.spread, self.reference_ln_sd];
        (self.works > 0 && numbers.iter().all(|number| number.is_finite())).then(|| Reading {
            ln_ratio: self.ln_ratio.clamp(-LARGEST_LN, LARGEST_LN),
            spread: self.spread.clamp(0.0, LARGEST_LN),
            reference_ln_sd: self.reference_ln_sd.clamp(0.0, LARGEST_LN),
            ..self.clone()
        })
    }
}

/// All readings of an iteration.
#[derive(Clone, Debug, PartialEq)]
pub struct Readings {
    /// The iteration.
    pub step: Step,
    /// One per device or link that worked.
    pub of: Vec<Reading>,
}

/// Thresholds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Least |log factor| of a change away from the reference.
    pub enter_ln: f64,
    /// Least |log factor| of a change back towards it.
    pub leave_ln: f64,
    /// What readings must add up to, in standard deviations of one.
    pub threshold_sd: f64,
    /// Readings after which the baseline is frozen.
    pub baseline_readings: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { enter_ln: 0.08, leave_ln: 0.05, threshold_sd: 4.0, baseline_readings: 32.0 }
    }
}

/// Of a layer beside its device's others: there are many of them, each measured by few works.
const LAYER_LIMITS: Limits = Limits { enter_ln: 0.16, leave_ln: 0.1, threshold_sd: 7.0, baseline_readings: 32.0 };

/// Iterations from the first one under another plan in which what changes does so with the plan: three cold ones and two.
const OF_PLAN_ITERATIONS: u64 = 5;
/// Where a device or link slows down by more than this all the same, it has changed.
const OF_PLAN_MAX: f64 = 1.35;

/// Of the baseline of what drifts little by little: it would follow.
const GRADUAL_READINGS: f64 = 4.0;

/// A device, link or layer under watch.
#[derive(Clone, Debug)]
struct Watched {
    watch: Watch,
    track: Track,
    trail: Trail,
    /// Iteration of the last reading.
    read: Option<Step>,
}

impl Watched {
    fn new(reference_ln_sd: f64) -> Self {
        Self { watch: Watch::new(reference_ln_sd), track: Track::default(), trail: Trail::default(), read: None }
    }
}

/// Watches every device, link and layer for changes.
#[derive(Clone, Debug)]
pub struct Drift {
    limits: Limits,
    of: BTreeMap<Who, Watched>,
    /// The first iteration under the plan in force, if there was one before it.
    switched: Option<Step>,
}

impl Drift {
    /// Has seen nothing.
    pub fn new(limits: Limits) -> Self {
        Self { limits, of: BTreeMap::new(), switched: None }
    }

    /// Another plan is in force from this iteration on.
    pub fn switched(&mut self, step: Step) {
        self.switched = Some(step);
    }

    /// What begins at this iteration does so with the plan.
    fn is_of_plan(&self, onset: Step) -> bool {
        self.switched.is_some_and(|step| step <= onset && onset.0 < step.0 + OF_PLAN_ITERATIONS)
    }

    /// Takes an iteration's readings, in order of steps. Names the shifts that it confirms. Readings that are no
    /// finite number or have no works behind them are left out.
    pub fn observe(&mut self, readings: &Readings) -> Vec<Shift> {
        let step = readings.step;
        let readings: Vec<Reading> = readings.of.iter().filter_map(Reading::bounded).collect();
        let (common, of_links) =
            (self.common(&readings, is_device), self.common(&readings, |reading| !is_device(reading)));
        let mut shifts = Vec::new();
        // Links first: whether a device's are slow is part of what its own change looks like.
        for reading in readings.iter().filter(|reading| !is_device(reading)) {
            shifts.extend(self.take(step, reading, of_links));
        }
        for reading in readings.iter().filter(|reading| is_device(reading)) {
            shifts.extend(self.take(step, reading, common));
            for (own, layer) in beside_others(reading) {
                shifts.extend(self.take_layer(step, &own, layer, reading.who));
            }
        }
        for watched in self.of.values_mut().filter(|watched| watched.read != Some(step)) {
            shifts.extend(watched.track.quiet(step, None));
        }
        shifts
    }

    /// What the devices, or the links, of an iteration share.
    fn common(&self, readings: &[Reading], is_of: fn(&Reading) -> bool) -> f64 {
        let of =
            || readings.iter().filter(|reading| is_of(reading)).map(|reading| (reading, self.of.get(&reading.who)));
        // Each against its own level, or a device that stays slow would count as what all have in common.
        let own = of().map(|(reading, known)| reading.ln_ratio - known.map_or(0.0, |known| known.watch.baseline()));
        let mut noise: Vec<f64> = of().filter_map(|(_, known)| Some(known?.watch.noise_sd())).collect();
        common(own.collect(), robust::median(&mut noise).unwrap_or(0.0))
    }

    fn take(&mut self, step: Step, reading: &Reading, common: f64) -> Vec<Shift> {
        let who = reading.who;
        let slow_links = self.slow_links(who);
        let watched = self.of.entry(who).or_insert_with(|| Watched::new(reading.reference_ln_sd));
        watched.read = Some(step);
        if !reading.cold {
            watched.trail.add(step, reading, common);
        }
        let limits = match watched.track.is_gradual() {
            true => Limits { enter_ln: self.limits.leave_ln, baseline_readings: GRADUAL_READINGS, ..self.limits },
            false => self.limits,
        };
        let Some(confirmed) = watched.watch.observe(step, reading, common, &limits) else {
            let off = (!reading.cold).then(|| reading.ln_ratio - common - watched.watch.baseline());
            return watched.track.quiet(step, off);
        };
        let found = watched.trail.find(confirmed.onset, confirmed.shift, reading.spread, slow_links);
        let change = Change {
            who,
            onset: confirmed.onset,
            detected: step,
            factor: confirmed.shift.exp(),
            course: confirmed.course,
            cause: if matches!(who, Who::Link(..)) { Cause::Link } else { found.cause },
            evidence: found.evidence,
        };
        if confirmed.is_correction {
            return vec![Shift::Corrected(change)];
        }
        if self.is_of_plan(confirmed.onset) && confirmed.shift < OF_PLAN_MAX.ln() {
            return vec![Shift::WithPlan(change)];
        }
        match (who, found.layer) {
            (Who::Device(device), Some((layer, shift))) => {
                let change =
                    Change { who: Who::Layer(device, layer), factor: shift.exp(), course: Course::Step, ..change };
                let watched = self.of.entry(change.who).or_insert_with(|| Watched::new(reading.reference_ln_sd));
                watched.watch.moved(shift);
                watched.track.confirmed(change, confirmed.showing)
            }
            _ => self.confirmed(change, confirmed.showing),
        }
    }

    fn confirmed(&mut self, change: Change, showing: u32) -> Vec<Shift> {
        self.of.get_mut(&change.who).map(|watched| watched.track.confirmed(change, showing)).unwrap_or_default()
    }

    /// A layer's distance from the others of its device.
    fn take_layer(&mut self, step: Step, reading: &Reading, layer: LayerIndex, device: Who) -> Vec<Shift> {
        let watched = self.of.entry(reading.who).or_insert_with(|| Watched::new(reading.reference_ln_sd));
        watched.read = Some(step);
        let confirmed = watched.watch.observe(step, reading, 0.0, &LAYER_LIMITS);
        let off = (!reading.cold).then(|| reading.ln_ratio - watched.watch.baseline());
        let Some(Confirmed { onset, shift, showing, .. }) = confirmed else { return watched.track.quiet(step, off) };
        let is_open = watched.track.is_open();
        let Some(whole) = self.of.get(&device) else { return Vec::new() };
        // Where there are two layers, the one that did not change is apart from the other one all the same.
        let own = whole.trail.layer_shift(layer, onset).unwrap_or(0.0);
        if !is_open && own * shift.signum() < shift.abs() / 2.0 {
            return Vec::new();
        }
        let found = whole.trail.find(onset, shift, reading.spread, 0);
        let change = Change {
            who: reading.who,
            onset,
            detected: step,
            factor: shift.exp(),
            course: Course::Step,
            cause: Cause::OneLayer,
            evidence: found.evidence,
        };
        // Its place in a stage is another one, whatever that makes of it.
        match self.is_of_plan(onset) {
            true => vec![Shift::WithPlan(change)],
            false => self.confirmed(change, showing),
        }
    }

    /// Links of a device that are slow, or about to be told so.
    fn slow_links(&self, who: Who) -> u32 {
        let Who::Device(device) = who else { return 0 };
        let links =
            self.of.iter().filter(|(who, _)| matches!(who, Who::Link(from, to) if *from == device || *to == device));
        links.filter(|(_, watched)| watched.watch.is_slower() || watched.track.is_slower()).count() as u32
    }

    /// The reference was fitted anew: baselines start from 0. What is known of each one's noise stays.
    pub fn reference_changed(&mut self) {
        for watched in self.of.values_mut() {
            watched.watch.restart();
            watched.trail.clear();
        }
    }
}

fn is_device(reading: &Reading) -> bool {
    matches!(reading.who, Who::Device(_))
}

/// Each layer of a device less what its other layers did, where there are others. Guessed works say nothing of a layer.
fn beside_others(reading: &Reading) -> impl Iterator<Item = (Reading, LayerIndex)> {
    let layers = if reading.is_guess || reading.layers.len() < 2 { &[][..] } else { &reading.layers };
    layers.iter().filter_map(move |own| {
        let Who::Device(device) = reading.who else { return None };
        let others = layers.iter().filter(|other| other.layer != own.layer);
        let mut others: Vec<(f64, f64)> = others.map(|other| (other.ln_ratio, f64::from(other.works))).collect();
        let of = Reading {
            who: Who::Layer(device, own.layer),
            ln_ratio: own.ln_ratio - robust::weighted_median(&mut others)?,
            works: own.works,
            reference_ln_sd: own.reference_ln_sd,
            layers: Vec::new(),
            phases: [None; 3],
            ..*reading
        };
        Some((of.bounded()?, own.layer))
    })
}

/// What all devices, or links, share in an iteration: their median, or, where the two in the middle are far apart, the lower one:
/// then half of the devices changed and the others did not. What noise alone would give is taken for nothing, or one
/// device that changes would pull the others along.
fn common(mut devices: Vec<f64>, noise_sd: f64) -> f64 {
    if devices.len() < COMMON_DEVICES_MIN {
        return 0.0;
    }
    let median_sd = robust::MEDIAN_SD * noise_sd / (devices.len() as f64).sqrt();
    let (lower, middle) = (robust::lower_median(&mut devices), robust::median(&mut devices));
    let (Some(lower), Some(middle)) = (lower, middle) else { return 0.0 };
    let common = if 2.0 * (middle - lower) > APART_SD * noise_sd { lower } else { middle };
    if common.abs() > COMMON_SD * median_sd { common } else { 0.0 }
}
