//! Where a device's layers are worked on: the real work, its pace, and the sample of it.
//!
//! The wait for a layer's deadline is put off until the next layer begins or the instruction is completed, so that the
//! last layer's result can leave first.
//!
//! Samples are read off the host's clock. While the host catches up with the device, they show the host's haste and not
//! the device's cost: such samples are marked hasty, so that no estimate is made of them.

use super::noise::Noise;
use super::pace::{Late, Pace};
use crate::clock::Clock;
use crate::tape::Tape;
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{LayerIndex, Microbatch};

/// What a piece of work is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub layer: usize,
    pub microbatch: Microbatch,
    pub phase: Phase,
    /// Before slowdown and noise.
    pub cost_ns: u64,
}

/// A device's workplace.
pub(super) struct Bench<C> {
    pub pace: Pace<C>,
    pub noise: Noise,
    pub place: Place,
    pub mark: Mark,
    tape: Tape,
    /// Done, and not waited for yet.
    open: Option<Open>,
    /// Samples marked hasty.
    hasty: u64,
}

struct Open {
    task: Task,
    /// On the device's clock.
    begin_ns: u64,
    /// On the host's clock.
    start_ns: u64,
    deadline_ns: u64,
}

impl Open {
    /// The host began so late that its clock does not show what the work takes on the device.
    fn is_hasty(&self) -> bool {
        let cost_ns = self.deadline_ns.saturating_sub(self.begin_ns);
        self.start_ns.saturating_sub(self.begin_ns) > cost_ns / 2
    }
}

impl<C: Clock> Bench<C> {
    pub fn new(pace: Pace<C>, noise: Noise, tape: Tape) -> Self {
        Bench { pace, noise, place: Place::default(), mark: Mark::Cold, tape, open: None, hasty: 0 }
    }

    /// Begins an instruction with host and device level: what the host is behind is not caught up.
    pub fn begin_level(&mut self) {
        let now_ns = self.pace.clock().now_ns();
        self.pace.rest_until(now_ns);
        self.pace.begin(0);
    }

    /// Does a piece of the instruction that the pace has begun.
    pub fn work<R>(&mut self, task: Task, real: impl FnOnce() -> R) -> R {
        self.close();
        let (begin_ns, start_ns) = (self.pace.deadline_ns(), self.pace.clock().now_ns());
        let result = real();
        let deadline_ns = self.pace.add(self.cost_ns(task));
        self.open = Some(Open { task, begin_ns, start_ns, deadline_ns });
        result
    }

    /// Waits for the deadline of the last piece and records it; not one that the stop flag has cut short.
    pub fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let hasty = open.is_hasty() && self.mark != Mark::Calibration;
        let mark = if hasty { Mark::Hasty } else { self.mark };
        let Open { task, start_ns, deadline_ns, .. } = open;
        self.pace.wait_until(deadline_ns);
        if self.pace.check().is_err() {
            return;
        }
        self.hasty += u64::from(hasty);
        let duration_ns = self.pace.clock().now_ns().saturating_sub(start_ns);
        self.tape.record(Sample::Work {
            place: self.place,
            layer: LayerIndex::from(task.layer),
            microbatch: task.microbatch,
            phase: task.phase,
            mark,
            start_ns,
            duration_ns,
        });
    }

    /// What a task costs this time, before the slowdown.
    pub fn cost_ns(&self, task: Task) -> f64 {
        let factor = self.noise.factor(self.place.step.0, task.layer, task.microbatch.0, task.phase);
        task.cost_ns as f64 * factor
    }

    pub fn late(&self) -> Late {
        Late { hasty: self.hasty, ..self.pace.late() }
    }

    pub fn tape(&self) -> &Tape {
        &self.tape
    }
}
