//! What an instruction costs its device besides the work of its layers: what the interpreter takes, and what sends and
//! receives take of the device itself. A problem has one number of each for all devices: that of the device in the middle.
//! Until a device has told, it is what earlier jobs measured on devices of these kinds.

use super::assemble::LONGEST_NS;
use super::figures::Figure;
use super::robust;
use super::source::Source;
use crate::next_job::Overhead;
use adaptis_proto::DeviceIndex;
use adaptis_proto::sample::Mark;
use std::collections::VecDeque;

/// Iterations of a device that count.
const KEPT: usize = 16;
/// Iterations that a change had begun before when it was confirmed, at least.
const KEPT_AT_CHANGE: usize = 2;
/// How far the one number may be off for a plan, standard deviation of the logarithm: it was chosen. Runs of one script on
/// one machine told numbers that differ by a fifth.
const OWN_SD: f64 = 0.2;
/// What another job's may differ by besides: another interpreter, another host. It was chosen, too.
const EARLIER_SD: f64 = 0.3;

/// What a device told of its last warm iterations.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    /// Of an instruction before which nothing was sent or received.
    alone_ns: VecDeque<f64>,
    /// Of the others: nanoseconds, instructions and transfers of an iteration.
    carrying: VecDeque<[f64; 3]>,
}

impl Recent {
    /// Takes what a device told of an iteration, or of a part of it: times of a GPU come when they are there.
    pub fn absorb(&mut self, mark: Mark, instructions: u32, own_ns: u64, transfers: u64) {
        if mark != Mark::Warm || instructions == 0 {
            return;
        }
        let (own_ns, instructions) = (own_ns as f64, f64::from(instructions));
        match transfers {
            0 => push(&mut self.alone_ns, own_ns / instructions),
            transfers => push(&mut self.carrying, [own_ns, instructions, transfers as f64]),
        }
    }

    /// What it comes to.
    pub fn overhead(&self) -> Overhead {
        let instruction_ns = self.alone();
        let transfer_ns = self.transfer(instruction_ns.unwrap_or(0.0)).map(written);
        Overhead { instruction_ns: instruction_ns.map(written), transfer_ns }
    }

    fn alone(&self) -> Option<f64> {
        robust::median(&mut self.alone_ns.iter().copied().collect::<Vec<_>>())
    }

    /// Of a transfer, where an instruction without one takes so much.
    fn transfer(&self, instruction_ns: f64) -> Option<f64> {
        let each = |[own_ns, instructions, transfers]: &[f64; 3]| {
            (own_ns - instructions * instruction_ns).max(0.0) / transfers
        };
        robust::median(&mut self.carrying.iter().map(each).collect::<Vec<_>>())
    }
}

/// By device.
#[derive(Clone, Debug)]
pub(crate) struct Between(Vec<Recent>);

impl Between {
    pub fn new(devices: usize) -> Self {
        Self(vec![Recent::default(); devices])
    }

    /// Of another membership, whose devices had these numbers before, if any.
    pub fn placed(&self, from: &[Option<usize>]) -> Self {
        Self(from.iter().map(|from| from.and_then(|from| self.0.get(from).cloned()).unwrap_or_default()).collect())
    }

    /// A device became another: of what it told, only the newest counts.
    pub fn change(&mut self, device: DeviceIndex) {
        if let Some(Recent { alone_ns, carrying }) = self.0.get_mut(device.index()) {
            alone_ns.drain(..alone_ns.len().saturating_sub(KEPT_AT_CHANGE));
            carrying.drain(..carrying.len().saturating_sub(KEPT_AT_CHANGE));
        }
    }

    /// See [`Recent::absorb`].
    pub fn absorb(&mut self, device: DeviceIndex, mark: Mark, instructions: u32, own_ns: u64, transfers: u64) {
        if let Some(on) = self.0.get_mut(device.index()) {
            on.absorb(mark, instructions, own_ns, transfers);
        }
    }

    /// Nanoseconds of an instruction, and of a transfer on either side, and how well they are known; `earlier` is what
    /// earlier jobs tell of each device's kind. 0 where nobody has told.
    pub fn costs(&self, earlier: &[Overhead]) -> [(u64, Figure); 2] {
        let alone: Vec<f64> = self.0.iter().filter_map(Recent::alone).collect();
        let instructions = earlier.iter().filter_map(|of| of.instruction_ns).map(|ns| ns as f64).collect();
        // Where nothing runs without a transfer and no earlier job knows, all of it is the transfers'.
        let (instruction_ns, instruction) = middle(alone, instructions);
        let transfer = |on: &Recent| on.transfer(on.alone().unwrap_or(instruction_ns));
        let transfers = earlier.iter().filter_map(|of| of.transfer_ns).map(|ns| ns as f64).collect();
        let (transfer_ns, transfer) = middle(self.0.iter().filter_map(transfer).collect(), transfers);
        [(written(instruction_ns), instruction), (written(transfer_ns), transfer)]
    }
}

/// The middle of what devices told, or if none has, of what earlier jobs tell.
fn middle(told: Vec<f64>, earlier: Vec<f64>) -> (f64, Figure) {
    let (mut of, source, least_sd) = match told.is_empty() {
        false => (told, Source::Measured, OWN_SD),
        true => (earlier, Source::EarlierJobs, OWN_SD.hypot(EARLIER_SD)),
    };
    let Some(ns) = robust::median(&mut of) else { return (0.0, Figure::default()) };
    let off: Vec<f64> = of.iter().map(|of| (of.max(1.0) / ns.max(1.0)).ln()).collect();
    let among = robust::scale_around(&off, 0.0).unwrap_or(0.0) / (of.len() as f64).sqrt();
    (ns, Figure { source, ln_sd: least_sd.hypot(among) })
}

fn written(ns: f64) -> u64 {
    ns.min(LONGEST_NS).round() as u64
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

    fn costs_ns(between: &Between) -> (u64, u64) {
        let [(instruction_ns, _), (transfer_ns, _)] = between.costs(&[]);
        (instruction_ns, transfer_ns)
    }

    #[test]
    fn both_are_those_in_the_middle_of_iterations_and_devices() {
        let mut between = Between::new(3);
        assert_eq!(costs_ns(&between), (0, 0));
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
        assert_eq!(costs_ns(&between), (30_000, 150_000));
    }

    #[test]
    fn after_a_change_only_the_newest_count() {
        let mut between = Between::new(1);
        for ns in [100, 100, 100, 100, 100, 300, 300] {
            between.absorb(DeviceIndex(0), Mark::Warm, 1, ns, 0);
            between.absorb(DeviceIndex(0), Mark::Warm, 1, 3 * ns, 2);
        }
        assert_eq!(costs_ns(&between), (100, 100));
        between.change(DeviceIndex(0));
        between.change(DeviceIndex(7));
        assert_eq!(costs_ns(&between), (300, 300));
    }

    #[test]
    fn where_nothing_runs_without_a_transfer_all_is_theirs() {
        let mut between = Between::new(2);
        between.absorb(DeviceIndex(1), Mark::Warm, 4, 600, 6);
        assert_eq!(costs_ns(&between), (0, 100));
        // What others know of instructions counts there, too; nothing is less than nothing.
        between.absorb(DeviceIndex(0), Mark::Warm, 4, 400, 0);
        assert_eq!(costs_ns(&between), (100, 33));
        between.absorb(DeviceIndex(0), Mark::Warm, 1, u64::MAX, 0);
        between.absorb(DeviceIndex(0), Mark::Warm, 1, u64::MAX, 0);
        assert_eq!(costs_ns(&between), (1_000_000_000_000_000, 0));
    }

    #[test]
    fn earlier_jobs_count_until_a_device_has_told() {
        let mut between = Between::new(2);
        let earlier = |ns, transfer_ns| Overhead { instruction_ns: Some(ns), transfer_ns };
        let known = [earlier(40, None), earlier(20, Some(300)), earlier(90, Some(500))];
        assert_eq!(between.costs(&[]).map(|(ns, figure)| (ns, figure.source)), [(0, Source::None); 2]);
        let [(instruction_ns, instruction), (transfer_ns, transfer)] = between.costs(&known);
        assert_eq!((instruction_ns, transfer_ns), (40, 400));
        assert!([instruction, transfer].iter().all(|of| of.source == Source::EarlierJobs && of.ln_sd > 0.36));
        // Its own tells nothing of transfers yet.
        between.absorb(DeviceIndex(1), Mark::Warm, 2, 20, 0);
        let [(instruction_ns, instruction), (transfer_ns, transfer)] = between.costs(&known);
        assert_eq!((instruction_ns, transfer_ns, transfer.source), (10, 400, Source::EarlierJobs));
        assert_eq!(instruction, Figure { source: Source::Measured, ln_sd: OWN_SD });
        // Devices that differ are less well told by one number.
        between.absorb(DeviceIndex(0), Mark::Warm, 2, 40, 0);
        between.absorb(DeviceIndex(1), Mark::Warm, 2, 20 + 2 * 70, 2);
        let [(_, instruction), (transfer_ns, transfer)] = between.costs(&known);
        assert!(instruction.ln_sd > OWN_SD + 0.05, "{instruction:?}");
        assert_eq!((transfer_ns, transfer.source), (70, Source::Measured));
    }

    #[test]
    fn what_is_kept_of_a_device_is_what_it_told() {
        let mut recent = Recent::default();
        let told = |recent: &Recent| (recent.overhead().instruction_ns, recent.overhead().transfer_ns);
        assert_eq!(told(&recent), (None, None));
        recent.absorb(Mark::Warm, 2, 100 + 3 * 8, 4);
        assert_eq!(told(&recent), (None, Some(31)));
        recent.absorb(Mark::Warm, 4, 200, 0);
        assert_eq!(told(&recent), (Some(50), Some(6)));
    }
}
