//! What an instruction costs its device besides the work of its layers: what the interpreter takes, and what sends and
//! receives take of the device itself. A problem has one number of each for all devices: that of the device in the middle.

use super::assemble::LONGEST_NS;
use super::robust;
use adaptis_proto::DeviceIndex;
use adaptis_proto::sample::Mark;
use std::collections::VecDeque;

/// Iterations of a device that count.
const KEPT: usize = 16;
/// Iterations that a change had begun before when it was confirmed, at least.
const KEPT_AT_CHANGE: usize = 2;

/// What a device told of its last warm iterations.
#[derive(Clone, Debug, Default)]
struct OnDevice {
    /// Of an instruction before which nothing was sent or received.
    alone_ns: VecDeque<f64>,
    /// Of the others: nanoseconds, instructions and transfers of an iteration.
    carrying: VecDeque<[f64; 3]>,
}

/// By device.
#[derive(Clone, Debug)]
pub(crate) struct Between(Vec<OnDevice>);

impl Between {
    pub fn new(devices: usize) -> Self {
        Self(vec![OnDevice::default(); devices])
    }

    /// Of another membership, whose devices had these numbers before, if any.
    pub fn placed(&self, from: &[Option<usize>]) -> Self {
        Self(from.iter().map(|from| from.and_then(|from| self.0.get(from).cloned()).unwrap_or_default()).collect())
    }

    /// A device became another: of what it told, only the newest counts.
    pub fn change(&mut self, device: DeviceIndex) {
        if let Some(OnDevice { alone_ns, carrying }) = self.0.get_mut(device.index()) {
            alone_ns.drain(..alone_ns.len().saturating_sub(KEPT_AT_CHANGE));
            carrying.drain(..carrying.len().saturating_sub(KEPT_AT_CHANGE));
        }
    }

    /// A device told of an iteration, or of a part of it: times of a GPU come when they are there.
    pub fn absorb(&mut self, device: DeviceIndex, mark: Mark, instructions: u32, own_ns: u64, transfers: u64) {
        let Some(on) = self.0.get_mut(device.index()) else { return };
        if mark != Mark::Warm || instructions == 0 {
            return;
        }
        let (own_ns, instructions) = (own_ns as f64, f64::from(instructions));
        match transfers {
            0 => push(&mut on.alone_ns, own_ns / instructions),
            transfers => push(&mut on.carrying, [own_ns, instructions, transfers as f64]),
        }
    }

    /// Nanoseconds of an instruction, and of a transfer on either side; 0 where no device has told.
    pub fn costs_ns(&self) -> (u64, u64) {
        let alone = |on: &OnDevice| robust::median(&mut on.alone_ns.iter().copied().collect::<Vec<_>>());
        let mut of_devices: Vec<f64> = self.0.iter().filter_map(alone).collect();
        // Where nothing runs without a transfer, all of it is the transfers'.
        let instruction_ns = robust::median(&mut of_devices).unwrap_or(0.0);
        let transfer = |on: &OnDevice| {
            let each = |[own_ns, instructions, transfers]: &[f64; 3]| {
                (own_ns - instructions * alone(on).unwrap_or(instruction_ns)).max(0.0) / transfers
            };
            robust::median(&mut on.carrying.iter().map(each).collect::<Vec<_>>())
        };
        let mut of_devices: Vec<f64> = self.0.iter().filter_map(transfer).collect();
        let transfer_ns = robust::median(&mut of_devices).unwrap_or(0.0);
        let written = |ns: f64| ns.min(LONGEST_NS).round() as u64;
        (written(instruction_ns), written(transfer_ns))
    }
}

fn push<T>(kept: &mut VecDeque<T>, one: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(one);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_those_in_the_middle_of_iterations_and_devices() {
        let mut between = Between::new(3);
        assert_eq!(between.costs_ns(), (0, 0));
        for (device, ns, transfer_ns) in [(0, 20_000, 100_000), (1, 30_000, 300_000), (2, 90_000, 150_000)] {
            for iteration in 0..20 {
                // One iteration in four was held up.
                let held_up = if iteration % 4 == 0 { 50 } else { 1 };
                let device = DeviceIndex(device);
                between.absorb(device, Mark::Warm, 10, 10 * ns * held_up, 0);
                between.absorb(device, Mark::Warm, 8, (8 * ns + 12 * transfer_ns) * held_up, 12);
                between.absorb(device, Mark::Cold, 10, 1_000_000_000, 0);
                between.absorb(device, Mark::Warm, 0, 1_000_000_000, 3);
            }
        }
        between.absorb(DeviceIndex(9), Mark::Warm, 1, 1, 1);
        assert_eq!(between.costs_ns(), (30_000, 150_000));
    }

    #[test]
    fn after_a_change_only_the_newest_count() {
        let mut between = Between::new(1);
        for ns in [100, 100, 100, 100, 100, 300, 300] {
            between.absorb(DeviceIndex(0), Mark::Warm, 1, ns, 0);
            between.absorb(DeviceIndex(0), Mark::Warm, 1, 3 * ns, 2);
        }
        assert_eq!(between.costs_ns(), (100, 100));
        between.change(DeviceIndex(0));
        between.change(DeviceIndex(7));
        assert_eq!(between.costs_ns(), (300, 300));
    }

    #[test]
    fn where_nothing_runs_without_a_transfer_all_is_theirs() {
        let mut between = Between::new(2);
        between.absorb(DeviceIndex(1), Mark::Warm, 4, 600, 6);
        assert_eq!(between.costs_ns(), (0, 100));
        // What others know of instructions counts there, too; nothing is less than nothing.
        between.absorb(DeviceIndex(0), Mark::Warm, 4, 400, 0);
        assert_eq!(between.costs_ns(), (100, 33));
        between.absorb(DeviceIndex(0), Mark::Warm, 1, u64::MAX, 0);
        between.absorb(DeviceIndex(0), Mark::Warm, 1, u64::MAX, 0);
        assert_eq!(between.costs_ns(), (1_000_000_000_000_000, 0));
    }
}
