//! What whole iterations took, and the part of them that is neither work nor optimizer: the boundary.

use super::{Measured, robust};
use adaptis_proto::sample::{Mark, Phase, Place};
use adaptis_proto::{DeviceIndex, Epoch, Generation, Step};
use std::collections::BTreeMap;

/// Iterations kept; the oldest goes.
const KEPT: usize = 32;
/// Warm iterations that [`Iterations::measured`] looks back.
const MEASURED: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
struct OnDevice {
    start_ns: u64,
    duration_ns: u64,
    last_work_end_ns: u64,
    optimizer_ns: u64,
}

#[derive(Clone, Debug)]
struct Iteration {
    epoch: Epoch,
    warm: bool,
    devices: Vec<OnDevice>,
}

/// The last iterations, over all devices.
#[derive(Clone, Debug)]
pub(crate) struct Iterations {
    devices: usize,
    generation: Generation,
    by_step: BTreeMap<Step, Iteration>,
    /// Iterations before it ran at another speed.
    since: Step,
}

impl Iterations {
    pub fn new(devices: usize) -> Self {
        Self { devices, generation: Generation(0), by_step: BTreeMap::new(), since: Step(0) }
    }

    /// A device or link changed its speed at `from`.
    pub fn change(&mut self, from: Step) {
        self.since = self.since.max(from);
    }

    pub fn work(&mut self, device: DeviceIndex, place: Place, phase: Phase, mark: Mark, start_ns: u64, ns: u64) {
        if mark == Mark::Calibration {
            return;
        }
        let Some((iteration, on)) = self.slot(device, place) else { return };
        *iteration |= mark == Mark::Warm;
        match phase {
            Phase::Optimizer if mark == Mark::Hasty => {}
            Phase::Optimizer => on.optimizer_ns = on.optimizer_ns.saturating_add(ns),
            _ => on.last_work_end_ns = on.last_work_end_ns.max(start_ns.saturating_add(ns)),
        }
    }

    pub fn iteration(&mut self, device: DeviceIndex, place: Place, start_ns: u64, duration_ns: u64) {
        if let Some((_, on)) = self.slot(device, place) {
            (on.start_ns, on.duration_ns) = (start_ns, duration_ns);
        }
    }

    /// Whether the iteration is warm, and what a device says of it.
    fn slot(&mut self, device: DeviceIndex, place: Place) -> Option<(&mut bool, &mut OnDevice)> {
        if place.generation < self.generation || device.index() >= self.devices {
            return None;
        }
        if place.generation > self.generation {
            self.generation = place.generation;
            self.by_step.clear();
            self.since = Step(0);
        }
        let (epoch, devices) = (place.epoch, self.devices);
        let empty = || Iteration { epoch, warm: false, devices: vec![OnDevice::default(); devices] };
        let too_old = self.by_step.len() >= KEPT && self.by_step.keys().next().is_some_and(|first| place.step < *first);
        if too_old {
            return None;
        }
        self.by_step.entry(place.step).or_insert_with(empty);
        if self.by_step.len() > KEPT {
            self.by_step.pop_first();
        }
        let iteration = self.by_step.get_mut(&place.step)?;
        Some((&mut iteration.warm, &mut iteration.devices[device.index()]))
    }

    /// Median of the last warm iterations of a plan since the last change.
    pub fn measured(&self, epoch: Epoch) -> Option<Measured> {
        let of_epoch = |(step, iteration): &(&Step, &Iteration)| {
            iteration.epoch == epoch && iteration.warm && **step >= self.since
        };
        let mut durations: Vec<f64> = self
            .by_step
            .iter()
            .rev()
            .filter(of_epoch)
            .filter_map(|(_, iteration)| iteration.duration_ns())
            .take(MEASURED)
            .map(|ns| ns as f64)
            .collect();
        let iterations = durations.len();
        robust::median(&mut durations).map(|median| Measured { median_ns: median.round() as u64, iterations })
    }

    /// Gradient norm and vote: what is left of an iteration behind the last work of any device and the longest
    /// optimizer step; none without a whole warm iteration.
    pub fn boundary_ns(&self) -> Option<u64> {
        // Layers need not be measured in every iteration, and on some devices less often than on others.
        let most = |epoch| {
            let on_plan = self.by_step.values().filter(move |iteration| iteration.epoch == epoch);
            on_plan.map(Iteration::measured).max().unwrap_or(0)
        };
        let mut rests: Vec<f64> = self
            .by_step
            .values()
            .filter(|iteration| iteration.warm && iteration.measured() == most(iteration.epoch))
            .filter_map(|iteration| iteration.boundary_ns())
            .map(|ns| ns as f64)
            .collect();
        robust::lower_median(&mut rests).map(|ns| ns.round() as u64)
    }
}

impl Iteration {
    /// How many devices tell of their works.
    fn measured(&self) -> usize {
        self.devices.iter().filter(|on| on.last_work_end_ns > 0).count()
    }

    /// The devices agree on it up to the skew of a barrier.
    fn duration_ns(&self) -> Option<u64> {
        let mut known: Vec<u64> = self.devices.iter().map(|on| on.duration_ns).filter(|ns| *ns > 0).collect();
        known.sort_unstable();
        known.get(known.len().checked_sub(1)? / 2).copied()
    }

    fn boundary_ns(&self) -> Option<u64> {
        // A device that works and whose end is missing would make the boundary look long.
        let whole = self.devices.iter().all(|on| on.duration_ns > 0);
        let work_ns = self.devices.iter().map(|on| on.last_work_end_ns.saturating_sub(on.start_ns)).max()?;
        let optimizer_ns = self.devices.iter().map(|on| on.optimizer_ns).max()?;
        (whole && work_ns > 0)
            .then(|| self.duration_ns().map(|ns| ns.saturating_sub(work_ns).saturating_sub(optimizer_ns)))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_iteration_that_only_some_devices_measured_says_nothing_of_the_boundary() {
        let mut iterations = Iterations::new(2);
        for step in 0..9 {
            let place = Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
            for device in 0..2 {
                // The first device works to the end; it is measured in every third iteration.
                if device == 1 || step % 3 == 0 {
                    let took_ns = if device == 0 { 900 } else { 300 };
                    iterations.work(DeviceIndex(device), place, Phase::Forward, Mark::Warm, 1_000, took_ns);
                }
                iterations.iteration(DeviceIndex(device), place, 1_000, 1_000);
            }
        }
        assert_eq!(iterations.boundary_ns(), Some(100));
    }
}
