//! Where a device's layers are worked on: the real work, its pace, and the sample of it.
//!
//! The wait for a layer's deadline is put off until the next layer begins or the instruction is completed, so that the
//! last layer's result can leave first.
//!
//! Samples are read off the host's clock. Where others hold the host up they show that and not the device: the work that
//! was held up is too long, those that catch up are too short. Both are marked hasty, so that no estimate is made of them:
//! with one of the two left out, the other would pass for jitter of the device. A work that itself takes longer than the
//! device would is measured as it is.

use super::lengths::Lengths;
use super::noise::Noise;
use super::pace::{Late, Pace};
use crate::clock::Clock;
use crate::tape::Tape;
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{LayerIndex, Microbatch};

/// A sample is off where it differs from what the work takes by more than this part of it, and by more than what a wake-up
/// takes anyway.
const OFF_PART: u64 = 8;
const OFF_MIN_NS: u64 = 50_000;

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
    pub lengths: Lengths,
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
    /// What the real work took of the thread.
    own_ns: u64,
    /// By which the device's clock was moved.
    overrun_ns: u64,
}

/// A completed piece of work.
pub(super) struct Done {
    pub sample: Sample,
    /// By how much the sample differs from what the work takes; what it moved the device's clock by included.
    pub off_ns: u64,
    /// The host's clock does not show how long the work took on the device.
    pub is_hasty: bool,
    /// Nor did the host move the device's clock.
    pub is_on_time: bool,
}

impl<C: Clock> Bench<C> {
    pub fn new(pace: Pace<C>, noise: Noise, tape: Tape) -> Self {
        let (lengths, place) = (Lengths::default(), Place::default());
        Bench { pace, noise, lengths, place, mark: Mark::Cold, tape, open: None, hasty: 0 }
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
        let late_ns = self.pace.late().ns;
        let busy_ns = self.pace.clock().busy_ns();
        let result = real();
        let own_ns = self.pace.clock().busy_ns().saturating_sub(busy_ns);
        let deadline_ns = self.pace.add(self.cost_ns(task));
        let overrun_ns = self.pace.late().ns - late_ns;
        self.open = Some(Open { task, begin_ns, start_ns, deadline_ns, own_ns, overrun_ns });
        result
    }

    /// Waits for the deadline of the last piece and records it; not one that the stop flag has cut short.
    pub fn close(&mut self) {
        let Some(Done { mut sample, is_hasty, .. }) = self.complete() else { return };
        if let (Sample::Work { mark, .. }, true) = (&mut sample, is_hasty) {
            *mark = Mark::Hasty;
            self.hasty += 1;
        }
        self.tape.record(sample);
    }

    /// The same, but leaves it to the caller to record it.
    pub fn complete(&mut self) -> Option<Done> {
        let Open { task, begin_ns, start_ns, deadline_ns, own_ns, overrun_ns } = self.open.take()?;
        self.pace.wait_until(deadline_ns);
        if self.pace.check().is_err() {
            return None;
        }
        let end_ns = self.pace.clock().now_ns();
        let duration_ns = end_ns.saturating_sub(start_ns);
        let takes_ns = own_ns.max(deadline_ns.saturating_sub(begin_ns).saturating_sub(overrun_ns));
        let off_ns = duration_ns.abs_diff(takes_ns);
        let sample = Sample::Work {
            place: self.place,
            layer: LayerIndex::from(task.layer),
            microbatch: task.microbatch,
            phase: task.phase,
            mark: self.mark,
            start_ns,
            duration_ns,
        };
        let is_hasty = off_ns > (takes_ns / OFF_PART).max(OFF_MIN_NS);
        let is_on_time = !is_hasty && overrun_ns == 0;
        Some(Done { sample, off_ns: off_ns.saturating_add(overrun_ns), is_hasty, is_on_time })
    }

    /// What a task costs this time, before the slowdown.
    pub fn cost_ns(&self, task: Task) -> f64 {
        let (step, Task { layer, microbatch, phase, cost_ns }) = (self.place.step.0, task);
        let noise = self.noise.factor(step, layer, microbatch.0, phase);
        // A calibration runs the usual length.
        let length = match self.mark {
            Mark::Calibration => 1.0,
            _ => self.lengths.factor(step, layer, microbatch.0, phase),
        };
        cost_ns as f64 * noise * length
    }

    pub fn late(&self) -> Late {
        Late { hasty: self.hasty, ..self.pace.late() }
    }

    pub fn tape(&self) -> &Tape {
        &self.tape
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::emulated::busy::Busy;
    use crate::backend::emulated::pace::SLACK_NS;
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;

    const COST_NS: u64 = 1_000_000;

    /// Marks of works of 1 ms after one another, by what each takes of the thread and what the host does of other things
    /// during it.
    fn marks(works: &[(u64, u64)]) -> (Vec<Mark>, u64) {
        let (clock, samples) = (Busy::default(), Rc::new(RefCell::new(Vec::new())));
        let pace = Pace::new(clock.clone(), 1.0, Arc::default());
        let mut bench = Bench::new(pace, Noise::new(1, 0, 0.0), Tape::new(samples.clone()));
        bench.mark = Mark::Warm;
        bench.pace.begin(0);
        for &(own_ns, held_ns) in works {
            let task = Task { layer: 0, microbatch: Microbatch(0), phase: Phase::Forward, cost_ns: COST_NS };
            bench.work(task, || {
                clock.work(own_ns);
                clock.pass(held_ns);
            });
        }
        bench.pace.end(0);
        bench.close();
        let of =
            |sample: &Sample| if let Sample::Work { mark, .. } = sample { *mark } else { unreachable!("works only") };
        let marks = samples.borrow().iter().map(of).collect();
        (marks, bench.late().hasty)
    }

    #[test]
    fn a_work_that_the_host_was_held_up_in_is_set_apart_like_those_that_catch_up() {
        let own = (COST_NS / 2, 0);
        assert_eq!(marks(&[own, (COST_NS / 2, COST_NS / 2 + COST_NS / OFF_PART), own]), (vec![Mark::Warm; 3], 0));
        let (of, hasty) = marks(&[own, (COST_NS / 2, 5 * COST_NS / 2), own, own, own, own, own]);
        // 2 ms behind at the end of the second; half a millisecond less after each that follows, and takes no more.
        assert_eq!(of[..2], [Mark::Warm, Mark::Hasty]);
        assert_eq!(of[2..], [Mark::Hasty, Mark::Hasty, Mark::Hasty, Mark::Hasty, Mark::Warm]);
        assert_eq!(hasty, 5);
        // The device's clock moves on, and still the work would not have taken so long; the next one begins in time.
        assert_eq!(marks(&[(COST_NS / 2, 2 * SLACK_NS), own]).0, [Mark::Hasty, Mark::Warm]);
    }

    #[test]
    fn what_the_work_itself_takes_is_measured_however_late_it_makes_the_host() {
        for own_ns in [5 * COST_NS / 4, 3 * COST_NS, 2 * SLACK_NS] {
            assert_eq!(marks(&[(own_ns, 0); 50]), (vec![Mark::Warm; 50], 0));
        }
    }
}
