//! Replays programs on integer nanoseconds: the inner loop of the search.
//!
//! A device runs ahead until its next instruction's input has not been produced yet; then it sleeps until the producer
//! has run. A device finishes its instructions in program order, so first in, first out by program order and by
//! production are the same, and a transfer's times are known as soon as its producer has run. Every instruction is
//! visited once.
//!
//! 1. Nothing is allocated once the buffers have grown to the largest problem seen.
//! 2. Programs that wait for one another are told by instructions left over, never by a loop that does not end.
//!
//! On crowded hosts a device can't run ahead: there the replay is that of [`crate::crowd`].

use crate::crowd;
use crate::program::{F, NONE, Op, W, kind, microbatch, stage};
use crate::shape::{Hop, Tables};

/// Not produced yet.
pub(crate) const UNKNOWN: u64 = u64::MAX;

/// When to give up: as soon as a device's idleness shows that it can't end in time.
#[derive(Clone, Copy)]
pub(crate) struct Deadline<'a> {
    /// Work of each device's program, in nanoseconds.
    pub(crate) work_ns: &'a [u64],
    /// Ends after this are not wanted.
    pub(crate) end_ns: u64,
}

/// Buffers of a replay and the times of the last one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replay {
    /// Arrival of the input of F, and of I or B: `stage * microbatches + microbatch`.
    pub(crate) forward_ready: Vec<u64>,
    pub(crate) backward_ready: Vec<u64>,
    /// Per device.
    pub(crate) position: Vec<usize>,
    /// End of the device's last instruction.
    pub(crate) free: Vec<u64>,
    blocked_on: Vec<u64>,
    idle: Vec<u64>,
    /// Per device and position.
    pub(crate) start: Vec<Vec<u64>>,
    /// The same, where hosts are crowded.
    pub(crate) end: Vec<Vec<u64>>,
    /// Per directed pair: end of its last transfer.
    pair_free: Vec<u64>,
    awake: Vec<usize>,
    pub(crate) at_work: crowd::AtWork,
}

/// What an observer learns about a transfer.
pub(crate) struct Sent {
    pub(crate) from: usize,
    pub(crate) producer: Op,
    pub(crate) hop: Hop,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) arrival_ns: u64,
}

fn refill<T: Clone>(buffer: &mut Vec<T>, len: usize, value: T) {
    buffer.clear();
    buffer.resize(len, value);
}

/// Key of an awaited input: forward or backward, stage and microbatch.
#[inline]
fn awaited(backward: bool, slot: usize) -> u64 {
    (slot as u64) << 1 | u64::from(backward)
}

impl Replay {
    /// End of the last instruction; `None` if the programs wait for one another.
    ///
    /// Within a program, F comes before I or B of the same stage and microbatch, and I before W.
    pub(crate) fn run(&mut self, tables: &Tables, programs: &[Vec<Op>]) -> Option<u64> {
        self.run_observed(tables, programs, None, |_| ())
    }

    /// As [`Replay::run`]; also `None` if it would end after the deadline.
    pub(crate) fn run_until(&mut self, tables: &Tables, programs: &[Vec<Op>], deadline: Deadline) -> Option<u64> {
        self.run_observed(tables, programs, Some(deadline), |_| ())
    }

    /// As [`Replay::run`], telling of every transfer in the order of its sender's program.
    pub(crate) fn run_observed(
        &mut self,
        tables: &Tables,
        programs: &[Vec<Op>],
        deadline: Option<Deadline>,
        observe: impl FnMut(Sent),
    ) -> Option<u64> {
        self.run_timed(tables, programs, deadline, |stage, kind, _| tables.cost[stage].ns[kind as usize], observe)
    }

    /// As [`Replay::run_observed`], each instruction as long as `ns` says of its stage, kind and microbatch.
    pub(crate) fn run_timed(
        &mut self,
        tables: &Tables,
        programs: &[Vec<Op>],
        deadline: Option<Deadline>,
        ns: impl Fn(usize, u32, usize) -> u64,
        mut observe: impl FnMut(Sent),
    ) -> Option<u64> {
        if let Some(crowd) = &tables.crowd {
            let deadline_ns = deadline.map_or(u64::MAX, |deadline| deadline.end_ns);
            return self.run_crowded((tables, crowd), programs, deadline_ns, ns, observe);
        }
        self.prepare(tables, programs);
        let microbatches = tables.microbatches;
        let mut left: usize = programs.iter().map(Vec::len).sum();
        while let Some(device) = self.awake.pop() {
            let program = &programs[device];
            let idle_max =
                deadline.map_or(u64::MAX, |deadline| deadline.end_ns.saturating_sub(deadline.work_ns[device]));
            let mut position = self.position[device];
            let mut free = self.free[device];
            while position < program.len() {
                let op = program[position];
                let (kind, stage) = (kind(op), stage(op));
                let microbatch = microbatch(op);
                let slot = stage * microbatches + microbatch;
                let ready = match kind {
                    F => self.forward_ready[slot],
                    W => 0,
                    _ => self.backward_ready[slot],
                };
                if ready == UNKNOWN {
                    self.blocked_on[device] = awaited(kind != F, slot);
                    break;
                }
                let mut start = free;
                if ready > free {
                    start = ready;
                    self.idle[device] += ready - free;
                    if self.idle[device] > idle_max {
                        return None;
                    }
                }
                free = start.saturating_add(ns(stage, kind, microbatch));
                self.start[device][position] = start;
                position += 1;
                if kind == W {
                    continue;
                }
                let Some((to, target)) = self.send(tables, device, op, free, &mut observe) else { continue };
                if self.blocked_on[to] == target {
                    self.blocked_on[to] = u64::MAX;
                    self.awake.push(to);
                }
            }
            left -= position - self.position[device];
            self.position[device] = position;
            self.free[device] = free;
        }
        (left == 0).then(|| self.free.iter().copied().max().unwrap_or(0))
    }

    /// Puts what an instruction has produced on its way: the device that gets it, and the key under which that awaits it.
    #[inline]
    pub(crate) fn send(
        &mut self,
        tables: &Tables,
        device: usize,
        op: Op,
        end_ns: u64,
        observe: &mut impl FnMut(Sent),
    ) -> Option<(usize, u64)> {
        let (kind, stage) = (kind(op), stage(op));
        let slot = stage * tables.microbatches + microbatch(op);
        let hop = if kind == F { &tables.onward[stage] } else { &tables.back[stage] };
        let arrival_ns = match hop.pair {
            Hop::END => return None,
            Hop::LOCAL => end_ns,
            pair => {
                let start_ns = end_ns.max(self.pair_free[pair as usize]);
                let sent_ns = start_ns.saturating_add(hop.transfer_ns);
                let arrival_ns = sent_ns.saturating_add(hop.latency_ns).min(UNKNOWN - 1);
                self.pair_free[pair as usize] = sent_ns;
                observe(Sent { from: device, producer: op, hop: *hop, start_ns, end_ns: sent_ns, arrival_ns });
                arrival_ns
            }
        };
        let target = if kind == F {
            self.forward_ready[slot + tables.microbatches] = arrival_ns;
            awaited(false, slot + tables.microbatches)
        } else {
            self.backward_ready[slot - tables.microbatches] = arrival_ns;
            awaited(true, slot - tables.microbatches)
        };
        Some((hop.to as usize, target))
    }

    pub(crate) fn prepare(&mut self, tables: &Tables, programs: &[Vec<Op>]) {
        let (stages, microbatches, devices) = (tables.stages(), tables.microbatches, tables.devices);
        refill(&mut self.forward_ready, stages * microbatches, UNKNOWN);
        refill(&mut self.backward_ready, stages * microbatches, UNKNOWN);
        self.forward_ready[..microbatches.min(stages * microbatches)].fill(0);
        self.backward_ready[stages.saturating_sub(1) * microbatches..].fill(0);
        refill(&mut self.position, devices, 0);
        refill(&mut self.free, devices, 0);
        refill(&mut self.idle, devices, 0);
        refill(&mut self.blocked_on, devices, u64::MAX);
        refill(&mut self.pair_free, devices * devices, 0);
        self.start.resize(devices, Vec::new());
        for (start, program) in self.start.iter_mut().zip(programs) {
            start.resize(program.len(), 0);
        }
        self.awake.clear();
        self.awake.extend((0..devices).rev());
    }

    /// When an instruction of the last run began and ended.
    pub(crate) fn span(&self, tables: &Tables, device: usize, position: usize, op: Op) -> (u64, u64) {
        let start_ns = self.start[device][position];
        match tables.crowd {
            Some(_) => (start_ns, self.end[device][position]),
            None => (start_ns, start_ns.saturating_add(tables.ns(op))),
        }
    }

    /// After a run that returned `None`: a device that can't go on, and its next instruction.
    pub(crate) fn stuck(&self, programs: &[Vec<Op>]) -> (usize, Op) {
        (0..programs.len())
            .find_map(|device| programs[device].get(self.position[device]).map(|&op| (device, op)))
            .unwrap_or((0, NONE))
    }
}
