//! Times everything from the first changed instant on anew, device by device, as a replay does.
//!
//! What started before the window's first instruction keeps its time: nothing in the window can have led to it. The
//! rest is a suffix of every program. Fresh times stand beside the old ones until the move is kept, so that one that
//! is not costs nothing to undo.

use super::{Course, consumer, crossing, hop_of, producer};
use crate::program::{NONE, Op, Programs, stage};
use crate::shape::{Hop, Tables};

/// Buffers of a sweep, per device.
#[derive(Clone, Debug, Default)]
pub(super) struct Sweep {
    /// Positions before it keep their times.
    cut: Vec<usize>,
    /// The next position to time.
    position: Vec<usize>,
    /// End of the instruction before that.
    free_ns: Vec<u64>,
    /// What the device waits for the input of.
    blocked: Vec<Op>,
    awake: Vec<usize>,
}

impl Course {
    /// Times all that started at `from_ns` or later; on the changed device all from `low` on. False if it would end
    /// after `deadline_ns`, or waits for itself.
    pub(super) fn sweep(
        &mut self,
        tables: &Tables,
        programs: &Programs,
        (device, low, from_ns): (usize, usize, u64),
        deadline_ns: u64,
    ) -> bool {
        let mut sweep = std::mem::take(&mut self.sweep);
        self.begin(&mut sweep, tables, programs, (device, low, from_ns));
        let mut left: usize = programs.iter().zip(&sweep.cut).map(|(program, cut)| program.len() - cut).sum();
        let mut is_late = false;
        while let Some(device) = sweep.awake.pop() {
            let start = sweep.position[device];
            is_late = !self.advance(&mut sweep, tables, programs, device, deadline_ns);
            left -= sweep.position[device] - start;
            self.swept += sweep.position[device] - start;
            if is_late {
                break;
            }
        }
        let runs = !is_late && left == 0;
        if runs {
            self.ends.clone_from(&sweep.free_ns);
        }
        self.sweep = sweep;
        runs
    }

    fn begin(
        &self,
        sweep: &mut Sweep,
        tables: &Tables,
        programs: &Programs,
        (device, low, from_ns): (usize, usize, u64),
    ) {
        sweep.cut.clear();
        sweep.free_ns.clear();
        sweep.awake.clear();
        for (other, program) in programs.iter().enumerate() {
            let cut = match other == device {
                true => low,
                false => program.partition_point(|&op| self.at(op).start_ns < from_ns),
            };
            let end_ns = |&before: &Op| self.at(before).start_ns.saturating_add(tables.ns(before));
            sweep.free_ns.push(program[..cut].last().map_or(0, end_ns));
            sweep.cut.push(cut);
            sweep.awake.push(other);
        }
        sweep.position.clone_from(&sweep.cut);
        sweep.blocked.clear();
        sweep.blocked.resize(programs.len(), NONE);
    }

    /// Runs a device until its next input has no time yet; false if it can't end in time.
    fn advance(
        &mut self,
        sweep: &mut Sweep,
        tables: &Tables,
        programs: &Programs,
        device: usize,
        deadline_ns: u64,
    ) -> bool {
        let number = self.move_number;
        let mut position = sweep.position[device];
        let mut free_ns = sweep.free_ns[device];
        let mut in_time = true;
        while let Some(&op) = programs[device].get(position) {
            let mut arrival_ns = 0;
            if let Some(producer) = producer(tables, op) {
                let node = self.at(producer);
                let sent_ns = if node.swept == number {
                    node.fresh_sent_ns
                } else if (node.position as usize) < sweep.cut[tables.device[stage(producer)] as usize] {
                    node.sent_ns
                } else {
                    sweep.blocked[device] = op;
                    break;
                };
                let hop = hop_of(tables, producer);
                arrival_ns = match hop.pair {
                    Hop::LOCAL => sent_ns,
                    _ => sent_ns.saturating_add(hop.latency_ns).min(u64::MAX - 1),
                };
            }
            let start_ns = free_ns.max(arrival_ns);
            let end_ns = start_ns.saturating_add(tables.ns(op));
            let mut sent_ns = end_ns;
            if self.is_contended
                && let Some(hop) = crossing(tables, op)
            {
                let before = self.at(op).pair_before;
                let link_free_ns = if before == NONE { 0 } else { self.at(before).latest_sent_ns(number) };
                sent_ns = end_ns.max(link_free_ns).saturating_add(hop.transfer_ns);
            }
            let node = self.at_mut(op);
            if end_ns.saturating_add(node.after_ns) > deadline_ns {
                in_time = false;
                break;
            }
            (node.fresh_start_ns, node.fresh_sent_ns, node.swept) = (start_ns, sent_ns, number);
            free_ns = end_ns;
            position += 1;
            if let Some(consumer) = consumer(tables, op) {
                let to = tables.device[stage(consumer)] as usize;
                if sweep.blocked[to] == consumer {
                    sweep.blocked[to] = NONE;
                    sweep.awake.push(to);
                }
            }
        }
        sweep.position[device] = position;
        sweep.free_ns[device] = free_ns;
        in_time
    }

    /// The fresh times become the times.
    pub(super) fn settle(&mut self, programs: &Programs) {
        let sweep = std::mem::take(&mut self.sweep);
        for (program, &cut) in programs.iter().zip(&sweep.cut) {
            for &op in &program[cut..] {
                let node = self.at_mut(op);
                (node.start_ns, node.sent_ns) = (node.fresh_start_ns, node.fresh_sent_ns);
            }
        }
        self.sweep = sweep;
    }
}
