//! Hosts whose cores are fewer than their devices, and the replay of programs on them.
//!
//! While more devices of a host work than its cores can serve, each is slower by the same share, so an instruction's end
//! depends on who works beside it. The replay therefore goes through time, from one end or arrival to the next.
//!
//! 1. Where no more work at one time than a host serves, times are those of [`Replay::run`], to the nanosecond.
//! 2. Between two events times are fractions; what is told of them is rounded up, and transfers begin at rounded ends. So no
//!    plan takes less than a lower bound says.

use crate::program::{F, Op, W, kind, microbatch, stage};
use crate::replay::{Replay, Sent, UNKNOWN};
use crate::shape::Tables;
use adaptis_plan::Problem;
use std::sync::Arc;

/// Hosts that are too small for all of their devices to work at one time.
#[derive(Debug)]
pub(crate) struct Crowd {
    /// Of each device: its host, among those that are.
    host_of: Vec<Option<usize>>,
    /// Of each host: so many devices work at their own speed at one time.
    at_once: Vec<f64>,
}

impl Crowd {
    /// None where every device can work whenever it wants to.
    pub(crate) fn of(problem: &Problem) -> Option<Arc<Crowd>> {
        let mut crowd = Crowd { host_of: vec![None; problem.devices.len()], at_once: Vec::new() };
        for host in problem.hosts.iter().filter(|host| host.at_once < host.devices.len() as f64) {
            for device in host.devices.iter().filter_map(|name| problem.device_index(name)) {
                crowd.host_of[device] = Some(crowd.at_once.len());
            }
            crowd.at_once.push(host.at_once);
        }
        (!crowd.at_once.is_empty()).then(|| Arc::new(crowd))
    }

    /// They share cores, or neither shares any.
    pub(crate) fn is_same(&self, a: usize, b: usize) -> bool {
        self.host_of[a] == self.host_of[b]
    }

    /// So many devices work at their own speed at one time.
    pub(crate) fn capacity(&self) -> f64 {
        self.at_once.iter().sum::<f64>() + self.host_of.iter().filter(|host| host.is_none()).count() as f64
    }

    /// The share of its own speed that each device of a host works at.
    fn speeds(&self, left: &[f64], speeds: &mut Vec<f64>) {
        speeds.clear();
        speeds.resize(self.at_once.len(), 0.0);
        for host in self.host_of.iter().zip(left).filter_map(|(host, left)| host.filter(|_| left.is_finite())) {
            speeds[host] += 1.0;
        }
        for (speed, at_once) in speeds.iter_mut().zip(&self.at_once) {
            *speed = (at_once / speed.max(1.0)).min(1.0);
        }
    }

    fn speed(&self, device: usize, speeds: &[f64]) -> f64 {
        self.host_of[device].map_or(1.0, |host| speeds[host])
    }
}

/// Work that a device has not begun.
const IDLE: f64 = f64::INFINITY;

/// What a replay in time keeps.
#[derive(Clone, Debug, Default)]
pub(crate) struct AtWork {
    /// Per device: what is left of its instruction, at its own speed.
    left: Vec<f64>,
    /// Per host.
    speeds: Vec<f64>,
}

impl Replay {
    /// As [`Replay::run_timed`], where hosts are crowded.
    pub(crate) fn run_crowded(
        &mut self,
        (tables, crowd): (&Tables, &Crowd),
        programs: &[Vec<Op>],
        deadline_ns: u64,
        ns: impl Fn(usize, u32, usize) -> u64,
        mut observe: impl FnMut(Sent),
    ) -> Option<u64> {
        self.prepare(tables, programs);
        self.end.resize(tables.devices, Vec::new());
        for (end, program) in self.end.iter_mut().zip(programs) {
            end.resize(program.len(), 0);
        }
        let mut at_work = std::mem::take(&mut self.at_work);
        at_work.left.clear();
        at_work.left.resize(tables.devices, IDLE);
        let mut now = 0.0_f64;
        let mut is_in_time = true;
        loop {
            for (device, program) in programs.iter().enumerate() {
                self.begin(tables, &mut at_work, (device, program), now, &ns);
            }
            crowd.speeds(&at_work.left, &mut at_work.speeds);
            let due = |replay: &Replay, device: usize| match at_work.left[device] {
                IDLE => replay.arrival(tables, device, &programs[device]),
                left => now + left / crowd.speed(device, &at_work.speeds),
            };
            let next = (0..tables.devices).map(|device| due(self, device)).fold(f64::INFINITY, f64::min);
            if !next.is_finite() {
                break;
            }
            if next > deadline_ns as f64 {
                is_in_time = false;
                break;
            }
            for (device, program) in programs.iter().enumerate() {
                let left = at_work.left[device];
                if left == IDLE {
                    continue;
                }
                let speed = crowd.speed(device, &at_work.speeds);
                if now + left / speed <= next {
                    at_work.left[device] = IDLE;
                    self.finish(tables, (device, program), next.ceil() as u64, &mut observe);
                } else {
                    at_work.left[device] = (left - (next - now) * speed).max(0.0);
                }
            }
            now = next;
        }
        self.at_work = at_work;
        let is_done = is_in_time && programs.iter().zip(&self.position).all(|(program, &at)| at == program.len());
        is_done.then(|| self.free.iter().copied().max().unwrap_or(0))
    }

    /// When the next instruction of an idle device has its input: never, as far as is known, or before now.
    fn arrival(&self, tables: &Tables, device: usize, program: &[Op]) -> f64 {
        match program.get(self.position[device]).map(|&op| self.ready(tables, op)) {
            None | Some(UNKNOWN) => f64::INFINITY,
            Some(ready) => ready as f64,
        }
    }

    /// Begins a device's next instruction if it can.
    fn begin(
        &mut self,
        tables: &Tables,
        at_work: &mut AtWork,
        (device, program): (usize, &[Op]),
        now: f64,
        ns: &impl Fn(usize, u32, usize) -> u64,
    ) {
        if at_work.left[device] == IDLE && self.arrival(tables, device, program) <= now {
            let position = self.position[device];
            let op = program[position];
            self.start[device][position] = now.ceil() as u64;
            at_work.left[device] = ns(stage(op), kind(op), microbatch(op)) as f64;
        }
    }

    /// Ends a device's instruction, whose result goes on its way.
    fn finish(
        &mut self,
        tables: &Tables,
        (device, program): (usize, &[Op]),
        end_ns: u64,
        observe: &mut impl FnMut(Sent),
    ) {
        let position = self.position[device];
        let op = program[position];
        self.end[device][position] = end_ns;
        self.free[device] = end_ns;
        self.position[device] = position + 1;
        if kind(op) != W {
            self.send(tables, device, op, end_ns, observe);
        }
    }

    /// When an instruction has its input.
    fn ready(&self, tables: &Tables, op: Op) -> u64 {
        let slot = stage(op) * tables.microbatches + microbatch(op);
        match kind(op) {
            F => self.forward_ready[slot],
            W => 0,
            _ => self.backward_ready[slot],
        }
    }
}
