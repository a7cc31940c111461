//! What whole iterations took, and the part of them that is neither work nor optimizer: the boundary. Before the first work
//! of an iteration the script does what it does besides, as to wait for data; behind the last one ranks agree.

use super::{Measured, robust};
use adaptis_proto::sample::{Mark, Phase, Place};
use adaptis_proto::{DeviceIndex, Epoch, Generation, LayerIndex, Microbatch, Step};
use std::collections::BTreeMap;

/// Iterations kept; the oldest goes. Of so many, layers are measured in some at least.
const KEPT: usize = 256;
/// The last ones with works that tell of the boundary.
const WITH_WORKS: usize = 32;
/// Warm iterations that [`Iterations::measured`] looks back.
const MEASURED: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
struct OnDevice {
    start_ns: u64,
    duration_ns: u64,
    /// When the first layer's first work began; 0 if it was not measured, or is not here.
    first_work_ns: u64,
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
    /// From when on iterations of a plan are warm, also those in which no work was measured.
    warm_from: Option<(Epoch, Step)>,
}

/// A work, as far as it tells of its iteration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub layer: LayerIndex,
    pub microbatch: Microbatch,
    pub phase: Phase,
    pub mark: Mark,
    pub start_ns: u64,
    pub duration_ns: u64,
}

impl Iterations {
    pub fn new(devices: usize) -> Self {
        Self { devices, generation: Generation(0), by_step: BTreeMap::new(), since: Step(0), warm_from: None }
    }

    /// A device or link changed its speed at `from`.
    pub fn change(&mut self, from: Step) {
        self.since = self.since.max(from);
    }

    pub fn work(&mut self, device: DeviceIndex, place: Place, work: Work) {
        let Work { layer, microbatch, phase, mark, start_ns, duration_ns: ns } = work;
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
        if (phase, layer, microbatch) == (Phase::Forward, LayerIndex(0), Microbatch(0)) {
            on.first_work_ns = start_ns;
        }
        if mark == Mark::Warm {
            self.warm_from = match self.warm_from {
                Some((epoch, from)) if epoch == place.epoch => Some((epoch, from.min(place.step))),
                Some(newer) if newer.0 > place.epoch => Some(newer),
                _ => Some((place.epoch, place.step)),
            };
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
            (self.since, self.warm_from) = (Step(0), None);
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
            iteration.epoch == epoch && self.is_warm(**step, iteration) && **step >= self.since
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

    fn is_warm(&self, step: Step, iteration: &Iteration) -> bool {
        iteration.warm || self.warm_from.is_some_and(|(epoch, from)| iteration.epoch == epoch && step >= from)
    }

    /// What passes of an iteration before its first work, and what is left of it behind the last work of any device and the
    /// longest optimizer step, as for a gradient norm and a vote; none without a whole warm iteration.
    pub fn boundary_ns(&self) -> Option<u64> {
        // Layers need not be measured in every iteration, and on some devices less often than on others.
        let most = |epoch| {
            let on_plan = self.by_step.values().filter(move |iteration| iteration.epoch == epoch);
            on_plan.map(Iteration::measured).max().unwrap_or(0)
        };
        let mut rests: Vec<f64> = self
            .by_step
            .values()
            .rev()
            .filter(|iteration| iteration.warm && iteration.measured() == most(iteration.epoch))
            .filter_map(|iteration| iteration.boundary_ns())
            .take(WITH_WORKS)
            .map(|ns| ns as f64)
            .collect();
        let warm = self.by_step.values().rev().filter(|iteration| iteration.warm);
        let mut leads: Vec<f64> = warm.filter_map(Iteration::lead_ns).take(WITH_WORKS).map(|ns| ns as f64).collect();
        let lead_ns = robust::lower_median(&mut leads).unwrap_or(0.0);
        robust::lower_median(&mut rests).map(|ns| (ns + lead_ns).round() as u64)
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

    /// What passed before the first layer began.
    fn lead_ns(&self) -> Option<u64> {
        let first = self.devices.iter().find(|on| on.first_work_ns > 0 && on.duration_ns > 0)?;
        Some(first.first_work_ns.saturating_sub(first.start_ns))
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

    fn work(layer: u32, start_ns: u64, duration_ns: u64) -> Work {
        let (layer, microbatch) = (LayerIndex(layer), Microbatch(0));
        Work { layer, microbatch, phase: Phase::Forward, mark: Mark::Warm, start_ns, duration_ns }
    }

    #[test]
    fn an_iteration_that_only_some_devices_measured_says_nothing_of_the_boundary() {
        let mut iterations = Iterations::new(2);
        for step in 0..9 {
            let place = Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
            for device in 0..2 {
                // The first device works to the end; it is measured in every third iteration.
                if device == 1 || step % 3 == 0 {
                    let took_ns = if device == 0 { 900 } else { 300 };
                    iterations.work(DeviceIndex(device), place, work(1, 1_000, took_ns));
                }
                iterations.iteration(DeviceIndex(device), place, 1_000, 1_000);
            }
        }
        assert_eq!(iterations.boundary_ns(), Some(100));
    }

    #[test]
    fn what_passes_before_the_first_work_is_a_part_of_it() {
        let mut iterations = Iterations::new(2);
        for step in 0..100 {
            let place = Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
            for device in 0..2 {
                // Measured in every fiftieth; the second device waits for the first one.
                if step % 50 == 10 {
                    let start_ns = if device == 0 { 1_700 } else { 1_800 };
                    iterations.work(DeviceIndex(device), place, work(device, start_ns, 100));
                }
                iterations.iteration(DeviceIndex(device), place, 1_000, 1_000);
            }
        }
        assert_eq!(iterations.boundary_ns(), Some(700 + 100));
        let measured = iterations.measured(Epoch(1)).expect("they are warm");
        assert_eq!((measured.median_ns, measured.iterations), (1_000, MEASURED), "the others took as long");
    }
}
