//! What became of the works: asked by query, recorded, or given up.

use super::{Between, Timer};
use crate::account::{Counters, What};
use crate::alignment::Placed;
use crate::driver::{CAPTURED_EVENT, NOT_READY, SUCCESS};
use crate::lane::{Open, Pending};
use crate::shares::Book;
use adaptis_proto::sample::{Mark, Sample};
use adaptis_ring::Recorder;

/// An end that the device reached so soon after the host had put it into the stream: it was waiting for the host, and the
/// work's time is the host's.
const LAUNCH_BOUND_NS: f64 = 10_000.0;
/// The loss of an iteration of which nobody tells the timer.
const UNKNOWN_LOSS: f32 = f32::NAN;

/// How long a work took, on the device.
#[derive(Clone, Copy, Debug)]
struct Length {
    /// From its first event to its last.
    whole_ns: f64,
    /// Of it, what belongs to another work that interrupted it.
    hole_ns: f64,
    /// Before it, since the work that it follows.
    since_ns: Option<f64>,
}

impl Timer {
    pub(super) fn resolve(&mut self, lane: usize, recorder: &mut Recorder) {
        // What follows in the same stream is not ready either.
        let mut unready_stream = None;
        for _ in 0..self.lanes[lane].pending.len() {
            let Some(pending) = self.lanes[lane].pending.pop_front() else { return };
            let age = self.boundary - pending.open.boundary;
            let loss = self.loss_of(&pending);
            let is_asked = age > 0 && unready_stream != Some(pending.open.stream) && loss.is_some();
            match if is_asked { self.ask(lane, &pending) } else { Err(NOT_READY) } {
                Ok((length, Some(placed))) => {
                    let is_hasty = tell(&pending, length, &placed, loss.unwrap_or(UNKNOWN_LOSS), &self.book, recorder);
                    let most_ns = self.placed_error_ns.unwrap_or(0.0);
                    self.placed_error_ns = Some(most_ns.max(placed.error_ns));
                    self.settle(lane, &pending, false, |counters| &mut counters.recorded);
                    // Where the device waited for the host, it did so before the work as well.
                    if let (Some(ns), false) = (length.since_ns, is_hasty) {
                        self.add_between(&pending.open, ns, recorder);
                    }
                }
                Ok((_, None)) => self.settle(lane, &pending, false, |counters| &mut counters.unplaced),
                Err(NOT_READY) => {
                    unready_stream = if is_asked { Some(pending.open.stream) } else { unready_stream };
                    if age > self.give_up_boundaries {
                        self.settle(lane, &pending, true, |counters| &mut counters.given_up);
                    } else {
                        self.lanes[lane].pending.push_back(pending);
                    }
                }
                Err(CAPTURED_EVENT) => self.settle(lane, &pending, true, |counters| &mut counters.abandoned),
                Err(code) => return self.break_down(code),
            }
        }
    }

    /// What an iteration's loss is; none while it is on its way. Of works, any.
    fn loss_of(&self, pending: &Pending) -> Option<f32> {
        match &self.losses {
            Some(losses) if pending.open.what == What::Iteration => {
                losses.iter().find(|(step, _)| *step == pending.open.place.step).map(|&(_, loss)| loss)
            }
            _ => Some(UNKNOWN_LOSS),
        }
    }

    /// How long a work took and where it began, or the driver's answer.
    fn ask(&self, lane: usize, pending: &Pending) -> Result<(Length, Option<Placed>), u32> {
        let event = |slot| self.lanes[lane].event(slot);
        let (start, end) = (event(pending.open.start), event(pending.end));
        match self.driver.query(end) {
            SUCCESS => {}
            code => return Err(code),
        }
        let hole_ns = match pending.open.hole {
            None => 0.0,
            Some(hole) => self.driver.elapsed_ns(event(hole.from), event(hole.to))?.max(0.0),
        };
        let since_ns = match pending.open.after {
            None => None,
            Some(after) => Some(self.driver.elapsed_ns(event(after), start)?.max(0.0)),
        };
        let length = Length { whole_ns: self.driver.elapsed_ns(start, end)?.max(0.0), hole_ns, since_ns };
        Ok((length, self.anchors.place(&self.driver, start)?))
    }

    fn add_between(&mut self, open: &Open, ns: f64, recorder: &mut Recorder) {
        if self.between.as_ref().is_some_and(|between| between.place != open.place) {
            self.tell_between(recorder);
        }
        let (place, mark) = (open.place, open.mark);
        let between = self.between.get_or_insert(Between { place, mark, count: 0, ns: 0.0 });
        between.count = between.count.saturating_add(1);
        between.ns += ns;
    }

    pub(super) fn tell_between(&mut self, recorder: &mut Recorder) {
        if let Some(Between { place, mark, count, ns }) = self.between.take() {
            let own_ns = ns.round() as u64;
            recorder.record(Sample::Between { place, mark, instructions: count, own_ns, transfers: 0 });
        }
    }

    fn settle(
        &mut self,
        lane: usize,
        pending: &Pending,
        is_stale: bool,
        cause: impl FnOnce(&mut Counters) -> &mut u64,
    ) {
        self.lanes[lane].let_go(&self.driver, &pending.open, is_stale);
        self.lanes[lane].release(&self.driver, pending.end, is_stale);
        self.counters.drop_one(cause);
    }

    /// Gives up what began long ago and never ended.
    pub(super) fn forget_unended(&mut self, lane: usize) {
        let oldest = self.boundary.saturating_sub(self.give_up_boundaries);
        while self.broken.is_none()
            && let Some(at) = self.lanes[lane].open.iter().position(|open| open.boundary < oldest)
        {
            let open = self.lanes[lane].open.swap_remove(at);
            self.abandon(lane, &open);
        }
    }

    pub(super) fn anchor(&mut self) {
        if self.broken.is_some() {
            return;
        }
        if let Err(code) = self.anchors.renew(&self.driver) {
            self.break_down(code);
        }
    }

    /// The context is gone: everything that was begun is lost, and nothing more is asked.
    pub(super) fn break_down(&mut self, code: u32) {
        self.broken = Some(code);
        for lane in &mut self.lanes {
            lane.open.clear();
            lane.pending.clear();
        }
        self.counters.lost += std::mem::take(&mut self.counters.pending);
    }
}

/// Records a work. Whether its time is the host's.
fn tell(pending: &Pending, length: Length, placed: &Placed, loss: f32, book: &Book, recorder: &mut Recorder) -> bool {
    let Pending { open: Open { what, place, mark, .. }, end_call_ns, .. } = *pending;
    let start_ns = placed.host_ns.max(0.0).round() as u64;
    let duration_ns = (length.whole_ns - length.hole_ns).max(0.0).round() as u64;
    let end_ns = placed.host_ns + length.whole_ns - placed.error_ns;
    let is_hasty = mark == Mark::Warm && end_ns <= end_call_ns as f64 + LAUNCH_BOUND_NS;
    let of_work = if is_hasty { Mark::Hasty } else { mark };
    match what {
        What::Work { layer, microbatch, phase } => {
            recorder.record(Sample::Work { place, layer, microbatch, phase, mark: of_work, start_ns, duration_ns });
        }
        What::Shared { shares, microbatch } => {
            for (share, from_ns, duration_ns) in book.cut(shares, duration_ns) {
                let (layer, phase, start_ns) = (share.layer, share.phase, start_ns + from_ns);
                recorder.record(Sample::Work { place, layer, microbatch, phase, mark: of_work, start_ns, duration_ns });
            }
        }
        What::Transfer { from, microbatch, bytes } => {
            recorder.record(Sample::Transfer { place, from, microbatch, mark, bytes, start_ns, duration_ns });
        }
        What::Iteration => {
            recorder.record(Sample::Iteration { place, start_ns, duration_ns, loss_bits: loss.to_bits() });
        }
    }
    is_hasty
}
