//! Change points: when a device or a link became slower or faster, and by how much.
//!
//! ```text
//!   samples -> Gauge: one reading per iteration, device and link: median of log(measured / expected)
//!           -> Drift: less what all devices have in common -> Watch: two-sided CUSUM with a confirm rule -> Change
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
//! 6. After a change the new level is the baseline, whether a plan follows or not.

mod gauge;
#[cfg(test)]
mod tests;
mod watch;

pub use gauge::Gauge;

use crate::estimate::robust;
use adaptis_proto::{DeviceIndex, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use watch::Watch;

/// Devices from which on what they share is told apart from what one does.
const COMMON_DEVICES_MIN: usize = 3;

/// Standard deviations between the two middle devices from which on they are two groups.
const APART_SD: f64 = 3.0;

/// Standard deviations of a median that what devices have in common must exceed.
const COMMON_SD: f64 = 2.5;

/// What can change its speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Who {
    /// A device.
    Device(DeviceIndex),
    /// A directed pair of devices, sender first.
    Link(DeviceIndex, DeviceIndex),
}

/// One iteration of one device or link against its reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Which.
    pub who: Who,
    /// Median over the works of log(measured / expected).
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
            ..*self
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

/// A confirmed change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Of what.
    pub who: Who,
    /// First iteration that it shows in.
    pub onset: Step,
    /// Iteration that confirmed it.
    pub detected: Step,
    /// Times after it over times before it.
    pub factor: f64,
}

/// What iterations that differ from their reference mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shift {
    /// A device or link takes another time than it did.
    Changed(Change),
    /// Works that this kind of device had never done take another time than was guessed: the reference was wrong, and
    /// nothing changed.
    Corrected(Change),
}

impl Shift {
    /// Its size and place.
    pub fn change(&self) -> Change {
        match *self {
            Shift::Changed(change) | Shift::Corrected(change) => change,
        }
    }
}

/// Thresholds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Least |log factor| of a change away from the reference.
    pub enter_ln: f64,
    /// Least |log factor| of a change back towards it.
    pub leave_ln: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { enter_ln: 0.08, leave_ln: 0.05 }
    }
}

/// Watches every device and link for changes.
#[derive(Clone, Debug)]
pub struct Drift {
    limits: Limits,
    watches: BTreeMap<Who, Watch>,
}

impl Drift {
    /// Has seen nothing.
    pub fn new(limits: Limits) -> Self {
        Self { limits, watches: BTreeMap::new() }
    }

    /// Takes an iteration's readings, in order of steps. Names the shifts that it confirms. Readings that are no
    /// finite number or have no works behind them are left out.
    pub fn observe(&mut self, readings: &Readings) -> Vec<Shift> {
        let readings_of: Vec<Reading> = readings.of.iter().filter_map(Reading::bounded).collect();
        let is_device = |reading: &&Reading| matches!(reading.who, Who::Device(_));
        let watches = &self.watches;
        // Each against its own level, or a device that stays slow would count as what all have in common.
        let own = |reading: &Reading| reading.ln_ratio - watches.get(&reading.who).map_or(0.0, Watch::baseline);
        let devices: Vec<f64> = readings_of.iter().filter(is_device).map(own).collect();
        let noise = watches.iter().filter(|(who, _)| matches!(who, Who::Device(_))).map(|(_, watch)| watch.noise_sd());
        let common = common(devices, robust::median(&mut noise.collect::<Vec<_>>()).unwrap_or(0.0));
        let mut shifts = Vec::new();
        for reading in &readings_of {
            let shared = if is_device(&reading) { common } else { 0.0 };
            let watch = self.watches.entry(reading.who).or_insert_with(|| Watch::new(reading.reference_ln_sd));
            if let Some(confirmed) = watch.observe(readings.step, reading, shared, &self.limits) {
                let change = Change {
                    who: reading.who,
                    onset: confirmed.onset,
                    detected: readings.step,
                    factor: confirmed.shift.exp(),
                };
                shifts.push(if confirmed.is_correction { Shift::Corrected(change) } else { Shift::Changed(change) });
            }
        }
        shifts
    }

    /// The reference was fitted anew: baselines start from 0. What is known of each one's noise stays.
    pub fn reference_changed(&mut self) {
        self.watches.values_mut().for_each(Watch::restart);
    }
}

/// What all devices share in an iteration: their median, or, where the two in the middle are far apart, the lower one:
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
