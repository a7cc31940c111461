//! What iterations told: their durations, losses and loads, and the changes of plan that ranks saw.
//!
//! An iteration is complete when every device has reported its end or that of a later one, or when one is two
//! iterations ahead of it: a rank may have died, or its ring may have been full.

use crate::ledger::{IterationRecord, SwitchRecord};
use adaptis_proto::sample::{Mark, Sample};
use adaptis_proto::{DeviceIndex, Epoch, Generation, Step};
use std::collections::{BTreeMap, BTreeSet};

/// Iterations that are kept here; older ones are in the store alone.
pub const HISTORY_MAX: usize = 512;
/// Switches whose reports are gathered at a time; older ones are in the ledger alone.
const SWITCHES_OPEN_MAX: usize = 64;
/// So many iterations ahead is proof that an unreported end will not come.
const AHEAD: u64 = 2;

/// What is known of an iteration.
#[derive(Clone, Debug, PartialEq)]
pub struct Iteration {
    /// As it stands in the report.
    pub record: IterationRecord,
    /// Nanoseconds of work that each device reported.
    pub busy_ns: Vec<u64>,
    /// Peak memory of each device, if it reported one.
    pub peak_bytes: Vec<Option<u64>>,
    reported: BTreeSet<DeviceIndex>,
}

#[derive(Clone, Debug)]
struct OpenSwitch {
    record: SwitchRecord,
    reported: BTreeSet<DeviceIndex>,
    is_dirty: bool,
}

/// The newest iterations and switches.
#[derive(Clone, Debug, Default)]
pub struct History {
    devices: usize,
    iterations: BTreeMap<Step, Iteration>,
    next_complete: Step,
    /// Newest iteration that each device has reported.
    newest: Vec<Option<Step>>,
    switches: BTreeMap<Epoch, OpenSwitch>,
    /// Switches that the ledger holds or is about to.
    known: BTreeMap<Epoch, SwitchRecord>,
}

impl History {
    /// Of so many devices, after what the ledger holds.
    pub fn new(devices: usize, iterations: &[IterationRecord], switches: &[SwitchRecord]) -> Self {
        let mut history = Self { devices, newest: vec![None; devices], ..Self::default() };
        for &record in iterations {
            let mut iteration = blank(devices, record);
            iteration.reported = (0..devices).map(DeviceIndex::from).collect();
            history.iterations.insert(record.index, iteration);
            history.next_complete = record.index.next();
        }
        history.known = switches.iter().map(|&switch| (switch.to, switch)).collect();
        history.trim();
        history
    }

    /// The newest complete iteration.
    pub fn last(&self) -> Option<&Iteration> {
        self.iterations.range(..self.next_complete).next_back().map(|(_, iteration)| iteration)
    }

    /// A loss of those that are kept here is a number.
    pub fn tells_losses(&self) -> bool {
        self.iterations.values().any(|iteration| !f32::from_bits(iteration.record.loss_bits).is_nan())
    }

    /// The newest complete iteration of the plan in force for which `told` has something. Works, and memories with them, may
    /// be measured in some iterations only.
    pub fn last_of<T>(&self, told: impl Fn(&Iteration) -> Option<T>) -> Option<T> {
        let epoch = self.last()?.record.epoch;
        let complete = self.iterations.range(..self.next_complete).rev().map(|(_, iteration)| iteration);
        complete.take_while(|iteration| iteration.record.epoch == epoch).find_map(told)
    }

    /// The complete iterations that are kept here, oldest first.
    pub fn complete(&self) -> impl Iterator<Item = &IterationRecord> {
        self.iterations.range(..self.next_complete).map(|(_, iteration)| &iteration.record)
    }

    /// The first iteration that is kept here of the plan that the newest complete one ran under.
    pub fn first_on_last_plan(&self) -> Option<(Step, Epoch)> {
        let epoch = self.last()?.record.epoch;
        let mut complete = self.iterations.range(..self.next_complete);
        complete.find(|(_, iteration)| iteration.record.epoch == epoch).map(|(&step, _)| (step, epoch))
    }

    /// An iteration, if it is kept here.
    pub fn iteration(&self, step: Step) -> Option<&Iteration> {
        self.iterations.get(&step)
    }

    /// Switches that ranks reported, over the whole run.
    pub fn switches(&self) -> u64 {
        self.known.len() as u64
    }

    /// How long training stood still for a plan, if ranks have said so.
    pub fn pause_ns(&self, epoch: Epoch) -> Option<u64> {
        self.switches.get(&epoch).map(|switch| switch.record.pause_ns)
    }

    /// Every device has reported the end of an iteration.
    pub fn is_reported_by_all(&self, step: Step) -> bool {
        self.iterations.get(&step).is_some_and(|iteration| iteration.reported.len() == self.devices)
    }

    /// Takes a sample; names the iterations that it completes, oldest first.
    pub fn absorb(&mut self, device: DeviceIndex, sample: &Sample) -> Vec<Step> {
        match *sample {
            Sample::Iteration { place, duration_ns, loss_bits, .. } => {
                let record = IterationRecord {
                    index: place.step,
                    epoch: place.epoch,
                    generation: place.generation,
                    duration_ns,
                    loss_bits,
                };
                self.report(device, record);
                self.completed()
            }
            Sample::Work { place, mark, duration_ns, .. } if mark != Mark::Calibration => {
                let iteration = self.entry(place.step, place.epoch);
                if let Some(busy_ns) = iteration.busy_ns.get_mut(device.index()) {
                    *busy_ns = busy_ns.saturating_add(duration_ns);
                }
                Vec::new()
            }
            Sample::DeviceMemory { place, peak_bytes, .. } => {
                let iteration = self.entry(place.step, place.epoch);
                if let Some(slot) = iteration.peak_bytes.get_mut(device.index()) {
                    *slot = Some(peak_bytes);
                }
                Vec::new()
            }
            Sample::Switch { place, layers_moved, bytes_received, pause_ns, from } => {
                self.switched(device, place.step, place.epoch, from, layers_moved, bytes_received, pause_ns);
                Vec::new()
            }
            Sample::Work { .. }
            | Sample::Transfer { .. }
            | Sample::LayerMemory { .. }
            | Sample::Load { .. }
            | Sample::Between { .. } => Vec::new(),
        }
    }

    /// Switches about which more became known since this was last asked. A reign that could not read every report again
    /// takes nothing back of what an earlier one has written.
    pub fn take_switches(&mut self) -> Vec<SwitchRecord> {
        let Self { switches, known, .. } = self;
        let mut news = Vec::new();
        for switch in switches.values_mut() {
            if !std::mem::take(&mut switch.is_dirty) {
                continue;
            }
            let record = switch.record;
            let written = known.get(&record.to).copied();
            let record = written.map_or(record, |written| SwitchRecord {
                bytes_moved: record.bytes_moved.max(written.bytes_moved),
                pause_ns: record.pause_ns.max(written.pause_ns),
                ..written
            });
            if written != Some(record) {
                known.insert(record.to, record);
                news.push(record);
            }
        }
        news
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one sample")]
    fn switched(
        &mut self,
        device: DeviceIndex,
        step: Step,
        to: Epoch,
        from: u32,
        layers_moved: u32,
        bytes_received: u64,
        pause_ns: u64,
    ) {
        let record = SwitchRecord {
            iteration: step,
            from: Epoch(u64::from(from)),
            to,
            layers_moved,
            bytes_moved: 0,
            pause_ns: 0,
        };
        let switch =
            self.switches.entry(to).or_insert(OpenSwitch { record, reported: BTreeSet::new(), is_dirty: false });
        if switch.reported.insert(device) {
            switch.record.bytes_moved = switch.record.bytes_moved.saturating_add(bytes_received);
            switch.record.pause_ns = switch.record.pause_ns.max(pause_ns);
            switch.is_dirty = true;
        }
        while self.switches.len() > SWITCHES_OPEN_MAX {
            self.switches.pop_first();
        }
    }

    fn report(&mut self, device: DeviceIndex, record: IterationRecord) {
        let iteration = self.entry(record.index, record.epoch);
        // An iteration redone by a newer generation counts anew.
        if record.generation > iteration.record.generation {
            iteration.reported.clear();
            iteration.record = IterationRecord { duration_ns: 0, ..record };
        } else if record.generation < iteration.record.generation {
            return;
        }
        if iteration.reported.is_empty() {
            iteration.record = record;
        }
        iteration.reported.insert(device);
        iteration.record.duration_ns = iteration.record.duration_ns.max(record.duration_ns);
        if let Some(newest) = self.newest.get_mut(device.index()) {
            *newest = (*newest).max(Some(record.index));
        }
        self.trim();
    }

    fn completed(&mut self) -> Vec<Step> {
        let newest = self.iterations.iter().rev().find(|(_, iteration)| !iteration.reported.is_empty());
        let Some(newest) = newest.map(|(&step, _)| step) else { return Vec::new() };
        let by_all = self.newest.iter().copied().min().flatten();
        let complete: Vec<Step> = self
            .iterations
            .range(self.next_complete..)
            .take_while(|&(&step, _)| {
                by_all.is_some_and(|by_all| step <= by_all) || step.0.saturating_add(AHEAD) <= newest.0
            })
            .filter(|(_, iteration)| !iteration.reported.is_empty())
            .map(|(&step, _)| step)
            .collect();
        if let Some(last) = complete.last() {
            self.next_complete = last.next();
        }
        complete
    }

    fn entry(&mut self, step: Step, epoch: Epoch) -> &mut Iteration {
        if self.iterations.len() > HISTORY_MAX {
            self.trim();
        }
        let devices = self.devices;
        self.iterations.entry(step).or_insert_with(|| {
            let generation = Generation::default();
            blank(devices, IterationRecord { index: step, epoch, generation, duration_ns: 0, loss_bits: 0 })
        })
    }

    fn trim(&mut self) {
        while self.iterations.len() > HISTORY_MAX {
            self.iterations.pop_first();
        }
    }
}

fn blank(devices: usize, record: IterationRecord) -> Iteration {
    Iteration { record, busy_ns: vec![0; devices], peak_bytes: vec![None; devices], reported: BTreeSet::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::sample::Place;

    fn end(step: u64, duration_ns: u64) -> Sample {
        let place = Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
        Sample::Iteration { place, start_ns: 0, duration_ns, loss_bits: 7 }
    }

    fn steps(of: &[u64]) -> Vec<Step> {
        of.iter().map(|&step| Step(step)).collect()
    }

    #[test]
    fn an_iteration_is_complete_when_all_have_reported_it() {
        let mut history = History::new(2, &[], &[]);
        assert_eq!(history.absorb(DeviceIndex(0), &end(0, 10)), []);
        assert_eq!(history.absorb(DeviceIndex(0), &end(0, 10)), [], "a doubled report is no second voice");
        assert_eq!(history.absorb(DeviceIndex(1), &end(0, 12)), steps(&[0]));
        assert_eq!(history.last().expect("one is complete").record.duration_ns, 12);
    }

    #[test]
    fn what_is_not_measured_in_every_iteration_is_that_of_the_last_one_that_was() {
        let mut history = History::new(1, &[], &[]);
        let memory = |step: u64, epoch: u64, peak_bytes: u64| {
            let place = Place { step: Step(step), epoch: Epoch(epoch), generation: Generation(1) };
            Sample::DeviceMemory { place, peak_bytes, reserved_bytes: 0, late_ns: 0 }
        };
        let peak = |history: &History| history.last_of(|iteration| iteration.peak_bytes[0]);
        for step in 0..9 {
            if step % 4 == 0 {
                history.absorb(DeviceIndex(0), &memory(step, 1, 100 + step));
            }
            history.absorb(DeviceIndex(0), &end(step, 10));
        }
        history.absorb(DeviceIndex(0), &memory(9, 1, 109));
        assert_eq!(peak(&history), Some(108), "the ninth is under way");
        let place = Place { step: Step(10), epoch: Epoch(2), generation: Generation(1) };
        history.absorb(DeviceIndex(0), &end(9, 10));
        history.absorb(DeviceIndex(0), &Sample::Iteration { place, start_ns: 0, duration_ns: 10, loss_bits: 7 });
        assert_eq!(peak(&history), None, "that was another plan's");
    }

    #[test]
    fn a_lost_report_does_not_hold_the_others_up() {
        let mut history = History::new(2, &[], &[]);
        history.absorb(DeviceIndex(0), &end(0, 10));
        history.absorb(DeviceIndex(0), &end(1, 10));
        assert_eq!(history.absorb(DeviceIndex(0), &end(2, 10)), steps(&[0]));
        assert_eq!(history.absorb(DeviceIndex(1), &end(2, 10)), steps(&[1, 2]));
        assert_eq!(history.absorb(DeviceIndex(1), &end(0, 10)), [], "what comes too late changes nothing");
    }

    #[test]
    fn a_switch_is_the_sum_of_what_devices_received() {
        let mut history = History::new(2, &[], &[]);
        let place = Place { step: Step(9), epoch: Epoch(2), generation: Generation(1) };
        let switch =
            |bytes_received, pause_ns| Sample::Switch { place, layers_moved: 3, bytes_received, pause_ns, from: 1 };
        history.absorb(DeviceIndex(0), &switch(100, 5));
        history.absorb(DeviceIndex(0), &switch(100, 5));
        history.absorb(DeviceIndex(1), &switch(40, 9));
        let expected = SwitchRecord {
            iteration: Step(9),
            from: Epoch(1),
            to: Epoch(2),
            layers_moved: 3,
            bytes_moved: 140,
            pause_ns: 9,
        };
        assert_eq!(history.take_switches(), [expected]);
        assert_eq!(history.take_switches(), []);
        assert_eq!(history.switches(), 1);
    }

    #[test]
    fn what_is_written_of_a_switch_is_not_taken_back() {
        let (from, to) = (Epoch(1), Epoch(2));
        let whole = SwitchRecord { iteration: Step(9), from, to, layers_moved: 3, bytes_moved: 140, pause_ns: 9 };
        let mut history = History::new(2, &[], &[whole]);
        let place = Place { step: Step(9), epoch: to, generation: Generation(1) };
        let switch = |bytes_received| Sample::Switch { place, layers_moved: 3, bytes_received, pause_ns: 5, from: 1 };
        history.absorb(DeviceIndex(0), &switch(100));
        assert_eq!(history.take_switches(), []);
        history.absorb(DeviceIndex(1), &switch(50));
        assert_eq!(history.take_switches(), [SwitchRecord { bytes_moved: 150, ..whole }]);
        assert_eq!(history.switches(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let mut history = History::new(1, &[], &[]);
        for step in 0..3 * HISTORY_MAX as u64 {
            history.absorb(DeviceIndex(0), &end(step, 1));
        }
        assert_eq!(history.iterations.len(), HISTORY_MAX);
    }
}
