//! The timer: what begins, what ends, and what became of it.

use crate::account::{Counters, Figures, Next, Options, What};
use crate::alignment::Placed;
use crate::anchor::Anchors;
use crate::calibrate;
use crate::driver::{CAPTURED_EVENT, Driver, NOT_READY, SUCCESS, Stream};
use crate::error::TimerError;
use crate::lane::{Lane, Open, Pending, SlotIndex};
use adaptis_agent_core::{Governor, Spent};
use adaptis_proto::LayerIndex;
use adaptis_proto::sample::{Mark, Phase, Sample};
use adaptis_ring::{Recorder, now_ns};

/// An end that the device reached so soon after the host had put it into the stream: it was waiting for the host, and the
/// work's time is the host's.
const LAUNCH_BOUND_NS: f64 = 10_000.0;
/// Transfers are chosen like layers of numbers that no model has.
const LINKS_FROM: u32 = 1 << 31;

/// A work that has begun.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a work that never ends holds an event for some iterations, and is not recorded"]
pub struct Ticket {
    lane: usize,
    serial: u64,
}

/// Times one device.
pub struct Timer {
    driver: Driver,
    lanes: [Lane; 2],
    anchors: Anchors,
    governor: Governor,
    give_up_boundaries: u64,
    event_device_ns: Option<f64>,
    next: Next,
    boundary: u64,
    boundary_ns: u64,
    spent: Spent,
    events_recorded: u64,
    cost_share: f64,
    /// The largest error among the works resolved last.
    placed_error_ns: Option<f64>,
    counters: Counters,
    broken: Option<u32>,
}

impl Timer {
    /// Makes all events. The context of the device must be current on this thread, and on whichever thread works with the
    /// timer later.
    ///
    /// # Errors
    /// No driver, no context, a missing function, a pool of no size, or no room for the events.
    pub fn start(options: &Options, first: Next) -> Result<Self, TimerError> {
        let driver = Driver::load()?;
        driver.require_context()?;
        let anchors = Anchors::new(&driver)?;
        let events = [options.work_events, options.transfer_events];
        let lanes = Lane::new(&driver, events[0]).and_then(|mut works| match Lane::new(&driver, events[1]) {
            Ok(transfers) => Ok([works, transfers]),
            Err(error) => {
                works.destroy(&driver);
                Err(error)
            }
        });
        let lanes = match lanes {
            Ok(lanes) => lanes,
            Err(error) => {
                anchors.destroy(&driver);
                return Err(error);
            }
        };
        let event_device_ns = calibrate::event_device_ns(&driver, anchors.stream());
        let mut timer = Self {
            driver,
            lanes,
            anchors,
            governor: Governor::new(options.governor),
            give_up_boundaries: options.give_up_boundaries,
            event_device_ns,
            next: first,
            boundary: 0,
            boundary_ns: now_ns(),
            spent: Spent::default(),
            events_recorded: 0,
            cost_share: 0.0,
            placed_error_ns: None,
            counters: Counters::default(),
            broken: None,
        };
        timer.anchor();
        Ok(timer)
    }

    /// Begins to time what is put into the stream from now on, if the governor chooses it and an event is free.
    #[inline]
    pub fn begin(&mut self, stream: Stream, what: What) -> Option<Ticket> {
        if !self.chooses(&what) {
            return None;
        }
        let from_ns = now_ns();
        let ticket = self.begin_chosen(stream.0, what);
        self.spent.cost_ns += now_ns() - from_ns;
        ticket
    }

    /// Ends with what was put into the stream so far; it is the one that the work began in.
    pub fn end(&mut self, stream: Stream, ticket: Ticket) {
        let from_ns = now_ns();
        self.end_with_own(stream.0, &ticket);
        self.spent.cost_ns += now_ns() - from_ns;
    }

    /// Ends one work and begins another that follows at once in the stream, with a single event if both are timed.
    pub fn pass(&mut self, stream: Stream, ticket: Option<Ticket>, what: What) -> Option<Ticket> {
        let is_chosen = self.chooses(&what);
        let Some(ticket) = ticket else {
            if !is_chosen {
                return None;
            }
            let from_ns = now_ns();
            let begun = self.begin_chosen(stream.0, what);
            self.spent.cost_ns += now_ns() - from_ns;
            return begun;
        };
        let from_ns = now_ns();
        let is_shared =
            is_chosen && ticket.lane == what.lane() && self.lanes[ticket.lane].has_room_after(ticket.serial);
        let begun = if is_shared {
            self.pass_with_one(stream.0, &ticket, what)
        } else {
            let lane = ticket.lane;
            self.end_with_own(stream.0, &ticket);
            match is_chosen && lane != what.lane() {
                true => self.begin_chosen(stream.0, what),
                false => {
                    self.counters.pool_empty += u64::from(is_chosen);
                    None
                }
            }
        };
        self.spent.cost_ns += now_ns() - from_ns;
        begun
    }

    /// Resolves by query what was timed in iterations before the one that ends, and opens the next.
    pub fn boundary(&mut self, next: Next, recorder: &mut Recorder) {
        let from_ns = now_ns();
        if self.broken.is_none() {
            let resolved = self.counters.recorded;
            let error_before_ns = self.placed_error_ns.take();
            let driver = self.driver;
            driver.relaxed(|| {
                for lane in 0..self.lanes.len() {
                    self.resolve(lane, recorder);
                    self.forget_unended(lane);
                }
                self.anchor();
            });
            if self.counters.recorded == resolved {
                self.placed_error_ns = error_before_ns;
            }
        }
        let to_ns = now_ns();
        let device_ns = self.events_recorded as f64 * self.event_device_ns.unwrap_or(0.0);
        self.spent.cost_ns += to_ns - from_ns + device_ns as u64;
        self.spent.iteration_ns = to_ns - self.boundary_ns;
        self.spent.microbatches = self.next.microbatches;
        self.cost_share = self.spent.cost_ns as f64 / self.spent.iteration_ns.max(1) as f64;
        self.governor.learn(&self.spent);
        (self.spent, self.events_recorded) = (Spent::default(), 0);
        (self.boundary, self.boundary_ns, self.next) = (self.boundary + 1, to_ns, next);
        debug_assert!(self.counters.add_up(), "{:?}", self.counters);
    }

    /// What became of the works so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What measuring is like.
    pub fn figures(&self) -> Figures {
        Figures {
            period: self.governor.period(),
            is_at_floor: self.governor.is_at_floor(),
            cost_share: self.cost_share,
            event_device_ns: self.event_device_ns,
            alignment_error_ns: self.placed_error_ns.or_else(|| self.anchors.error_ns()),
            anchor_misses: self.anchors.misses,
            clock_breaks: self.anchors.breaks,
            slots_lost: self.lanes.iter().map(|lane| lane.slots_lost).sum(),
            broken: self.broken,
        }
    }

    // ---- beginning and ending ---------------------------------------------------------------------------------------

    #[inline]
    fn chooses(&mut self, what: &What) -> bool {
        self.spent.offered += 1;
        let (layer, microbatch, phase) = match *what {
            What::Work { layer, microbatch, phase } => (layer, microbatch, phase),
            What::Transfer { from, microbatch, .. } => (LayerIndex(from.0 | LINKS_FROM), microbatch, Phase::Forward),
        };
        self.broken.is_none() && self.governor.chooses(self.next.place.step, layer, microbatch, phase)
    }

    fn begin_chosen(&mut self, stream: usize, what: What) -> Option<Ticket> {
        if !self.lanes[what.lane()].has_room() {
            self.counters.pool_empty += 1;
            return None;
        }
        let start = self.record(what.lane(), stream, 1)?;
        Some(self.open(start, stream, what))
    }

    fn open(&mut self, start: SlotIndex, stream: usize, what: What) -> Ticket {
        let serial = self.counters.begun;
        let Next { place, mark, .. } = self.next;
        self.lanes[what.lane()].open.push(Open { serial, start, what, stream, place, mark, boundary: self.boundary });
        self.counters.begun += 1;
        self.counters.pending += 1;
        self.spent.timed += 1;
        Ticket { lane: what.lane(), serial }
    }

    /// Puts an event into the stream; none in a capture, or when the driver fails.
    fn record(&mut self, lane: usize, stream: usize, uses: u8) -> Option<SlotIndex> {
        if self.driver.is_capturing(stream) {
            self.counters.capturing += 1;
            return None;
        }
        let slot = self.lanes[lane].take(uses);
        self.events_recorded += 1;
        match self.driver.record(self.lanes[lane].event(slot), stream) {
            SUCCESS => Some(slot),
            code => {
                self.break_down(code);
                None
            }
        }
    }

    fn end_with_own(&mut self, stream: usize, ticket: &Ticket) {
        // Given up or lost in the meantime.
        let Some(open) = self.lanes[ticket.lane].close(ticket.serial) else { return };
        match (open.stream == stream).then(|| self.record(ticket.lane, stream, 1)).flatten() {
            Some(end) => self.wait_for(ticket.lane, open, end),
            None => self.abandon(ticket.lane, &open),
        }
    }

    fn pass_with_one(&mut self, stream: usize, ticket: &Ticket, what: What) -> Option<Ticket> {
        let mut open = self.lanes[ticket.lane].close(ticket.serial);
        if let Some(elsewhere) = open.take_if(|open| open.stream != stream) {
            self.abandon(ticket.lane, &elsewhere);
        }
        let uses = if open.is_some() { 2 } else { 1 };
        let Some(shared) = self.record(ticket.lane, stream, uses) else {
            if let Some(open) = open {
                self.abandon(ticket.lane, &open);
            }
            return None;
        };
        if let Some(open) = open {
            self.wait_for(ticket.lane, open, shared);
        }
        Some(self.open(shared, stream, what))
    }

    fn wait_for(&mut self, lane: usize, open: Open, end: SlotIndex) {
        self.lanes[lane].pending.push_back(Pending { open, end, end_call_ns: now_ns() });
    }

    /// A work that will not be recorded. Its first event may be pending.
    fn abandon(&mut self, lane: usize, open: &Open) {
        // Once broken, everything was counted as lost already.
        if self.broken.is_none() {
            self.lanes[lane].release(&self.driver, open.start, true);
            self.counters.drop_one(|counters| &mut counters.abandoned);
        }
    }

    // ---- resolving --------------------------------------------------------------------------------------------------

    fn resolve(&mut self, lane: usize, recorder: &mut Recorder) {
        // What follows in the same stream is not ready either.
        let mut unready_stream = None;
        for _ in 0..self.lanes[lane].pending.len() {
            let Some(pending) = self.lanes[lane].pending.pop_front() else { return };
            let age = self.boundary - pending.open.boundary;
            let is_asked = age > 0 && unready_stream != Some(pending.open.stream);
            match if is_asked { self.ask(lane, &pending) } else { Err(NOT_READY) } {
                Ok((duration_ns, Some(placed))) => {
                    recorder.record(sample(&pending, duration_ns.max(0.0), &placed));
                    let most_ns = self.placed_error_ns.unwrap_or(0.0);
                    self.placed_error_ns = Some(most_ns.max(placed.error_ns));
                    self.settle(lane, &pending, false, |counters| &mut counters.recorded);
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

    /// How long a work took and where it began, or the driver's answer.
    fn ask(&self, lane: usize, pending: &Pending) -> Result<(f64, Option<Placed>), u32> {
        let (start, end) = (self.lanes[lane].event(pending.open.start), self.lanes[lane].event(pending.end));
        match self.driver.query(end) {
            SUCCESS => Ok((self.driver.elapsed_ns(start, end)?, self.anchors.place(&self.driver, start)?)),
            code => Err(code),
        }
    }

    fn settle(
        &mut self,
        lane: usize,
        pending: &Pending,
        is_stale: bool,
        cause: impl FnOnce(&mut Counters) -> &mut u64,
    ) {
        self.lanes[lane].release(&self.driver, pending.open.start, is_stale);
        self.lanes[lane].release(&self.driver, pending.end, is_stale);
        self.counters.drop_one(cause);
    }

    /// Gives up what began long ago and never ended.
    fn forget_unended(&mut self, lane: usize) {
        let oldest = self.boundary.saturating_sub(self.give_up_boundaries);
        while self.broken.is_none()
            && let Some(at) = self.lanes[lane].open.iter().position(|open| open.boundary < oldest)
        {
            let open = self.lanes[lane].open.swap_remove(at);
            self.abandon(lane, &open);
        }
    }

    fn anchor(&mut self) {
        if self.broken.is_some() {
            return;
        }
        if let Err(code) = self.anchors.renew(&self.driver) {
            self.break_down(code);
        }
    }

    /// The context is gone: everything that was begun is lost, and nothing more is asked.
    fn break_down(&mut self, code: u32) {
        self.broken = Some(code);
        for lane in &mut self.lanes {
            lane.open.clear();
            lane.pending.clear();
        }
        self.counters.lost += std::mem::take(&mut self.counters.pending);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // The events of a lost context went with it.
        if self.broken.is_none() {
            self.lanes.iter_mut().for_each(|lane| lane.destroy(&self.driver));
            self.anchors.destroy(&self.driver);
        }
    }
}

fn sample(pending: &Pending, duration_ns: f64, placed: &Placed) -> Sample {
    let Pending { open: Open { what, place, mark, .. }, end_call_ns, .. } = *pending;
    let (start_ns, ns) = (placed.host_ns.max(0.0).round() as u64, duration_ns.round() as u64);
    match what {
        What::Work { layer, microbatch, phase } => {
            let end_ns = placed.host_ns + duration_ns - placed.error_ns;
            let is_hasty = mark == Mark::Warm && end_ns <= end_call_ns as f64 + LAUNCH_BOUND_NS;
            let mark = if is_hasty { Mark::Hasty } else { mark };
            Sample::Work { place, layer, microbatch, phase, mark, start_ns, duration_ns: ns }
        }
        What::Transfer { from, microbatch, bytes } => {
            Sample::Transfer { place, from, microbatch, mark, bytes, start_ns, duration_ns: ns }
        }
    }
}
