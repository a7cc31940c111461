//! The timer: what begins, what ends, and what became of it.

mod resolve;

use crate::account::{Counters, Figures, Next, Options, What};
use crate::anchor::Anchors;
use crate::calibrate;
use crate::driver::{Driver, SUCCESS, Stream};
use crate::error::TimerError;
use crate::lane::{Lane, Open, Pending, SlotIndex};
use crate::shares::{Book, Share, Shares};
use adaptis_agent_core::{Governor, Spent};
use adaptis_proto::sample::{Mark, Phase, Place};
use adaptis_proto::{LayerIndex, Step};
use adaptis_ring::{Recorder, now_ns};
use std::collections::VecDeque;

/// Transfers are chosen like layers of numbers that no model has.
const LINKS_FROM: u32 = 1 << 31;
/// Losses that are kept; iterations are resolved or given up long before.
const LOSSES_MAX: usize = 64;

/// A work that has begun.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a work that never ends holds an event for some iterations, and is not recorded"]
pub struct Ticket {
    lane: usize,
    serial: u64,
}

impl Ticket {
    /// As one number, for callers that can hold no ticket; never 0.
    pub fn number(&self) -> u64 {
        (self.serial + 1) << 1 | self.lane as u64
    }

    /// The ticket again. A number that is none of the timer's ends nothing.
    pub fn from_number(number: u64) -> Self {
        Self { lane: (number & 1) as usize, serial: (number >> 1).wrapping_sub(1) }
    }
}

/// Times one device.
pub struct Timer {
    driver: Driver,
    /// The device's. Where another one is current on a thread, it is put in its place for the length of a call.
    context: usize,
    lanes: [Lane; 2],
    anchors: Anchors,
    governor: Governor,
    give_up_boundaries: u64,
    event_device_ns: Option<f64>,
    book: Book,
    /// From the last boundary on, if iterations are timed.
    iteration: Option<Ticket>,
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
    /// Of iterations that are not told yet; none where nobody knows losses.
    losses: Option<VecDeque<(Step, f32)>>,
    /// What passed between works, not told yet.
    between: Option<Between>,
}

/// What passed between works of one iteration.
struct Between {
    place: Place,
    mark: Mark,
    count: u32,
    ns: f64,
}

impl Timer {
    /// Makes all events. The context of the device must be current on this thread.
    ///
    /// # Errors
    /// No driver, no context, a missing function, a pool of no size, or no room for the events.
    pub fn start(options: &Options, first: Next) -> Result<Self, TimerError> {
        let driver = Driver::load()?;
        let context = driver.require_context()?;
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
            context,
            lanes,
            anchors,
            governor: Governor::new(options.governor),
            give_up_boundaries: options.give_up_boundaries,
            event_device_ns,
            book: Book::default(),
            iteration: None,
            next: first,
            boundary: 0,
            boundary_ns: now_ns(),
            spent: Spent::default(),
            events_recorded: 0,
            cost_share: 0.0,
            placed_error_ns: None,
            counters: Counters::default(),
            broken: None,
            losses: None,
            between: None,
        };
        timer.anchor();
        Ok(timer)
    }

    /// Names works that share intervals, which takes memory: once for all iterations. None if there is nothing to share, or
    /// no room.
    pub fn share(&mut self, parts: &[Share]) -> Option<Shares> {
        self.book.add(parts)
    }

    /// The same by its number.
    pub fn shares(&self, number: u32) -> Option<Shares> {
        self.book.named(number)
    }

    /// Begins to time what is put into the stream from now on, if the governor chooses it and an event is free.
    #[inline]
    pub fn begin(&mut self, stream: Stream, what: What) -> Option<Ticket> {
        if !self.chooses(&what) {
            return None;
        }
        self.costing(|timer| timer.begin_chosen(stream.0, what))
    }

    /// The same where nothing was sent or received since another work ended in the stream: what passed between the two is
    /// measured, too.
    pub fn begin_after(&mut self, stream: Stream, ended: &Ticket, what: What) -> Option<Ticket> {
        let ticket = self.begin(stream, what)?;
        if ticket.lane == ended.lane {
            self.lanes[ticket.lane].follow(ticket.serial, ended.serial);
        }
        Some(ticket)
    }

    /// Ends with what was put into the stream so far; it is the one that the work began in.
    pub fn end(&mut self, stream: Stream, ticket: Ticket) {
        self.costing(|timer| timer.end_with_own(stream.0, &ticket));
    }

    /// Begins a work that interrupts another one, which is timed: this one then is as well, chosen or not.
    pub fn begin_within(&mut self, stream: Stream, outer: &Ticket, what: What) -> Option<Ticket> {
        let is_timed = self.lanes[outer.lane].is_open(outer.serial);
        let is_chosen = self.chooses(&what) || (is_timed && self.broken.is_none());
        if is_chosen { self.costing(|timer| timer.begin_chosen(stream.0, what)) } else { None }
    }

    /// Nothing is recorded of what began.
    pub fn forget(&mut self, ticket: &Ticket) {
        if let Some(open) = self.lanes[ticket.lane].close(ticket.serial) {
            self.costing(|timer| timer.abandon(ticket.lane, &open));
        }
    }

    /// Ends a work that ran while another one was under way in the same stream: the other's time is without it, and without
    /// what ran between several such.
    pub fn end_within(&mut self, stream: Stream, ticket: Ticket, outer: &Ticket) {
        self.costing(|timer| timer.end_in_hole(stream.0, &ticket, outer));
    }

    /// Ends one work and begins another that follows at once in the stream, with a single event if both are timed.
    pub fn pass(&mut self, stream: Stream, ticket: Option<Ticket>, what: What) -> Option<Ticket> {
        let is_chosen = self.chooses(&what);
        match ticket {
            None if !is_chosen => None,
            None => self.costing(|timer| timer.begin_chosen(stream.0, what)),
            Some(ticket) => self.costing(|timer| timer.pass_on(stream.0, ticket, what, is_chosen)),
        }
    }

    /// After a boundary: what was put into the stream so far ended the iteration before it, and the next one begins. Every
    /// iteration is timed.
    pub fn turn(&mut self, stream: Stream) {
        let ended = self.iteration.take();
        self.iteration = self.pass(stream, ended, What::Iteration);
    }

    /// The loss of an iteration has come from the device. From the first one on, iterations are told with theirs.
    pub fn knows(&mut self, step: Step, loss: f32) {
        let losses = self.losses.get_or_insert_with(|| VecDeque::with_capacity(LOSSES_MAX));
        if losses.len() == LOSSES_MAX {
            losses.pop_front();
        }
        losses.push_back((step, loss));
    }

    /// The iteration under way is none: nothing of it is recorded as one.
    pub fn forget_iteration(&mut self) {
        if let Some(ticket) = self.iteration.take() {
            self.forget(&ticket);
        }
    }

    fn pass_on(&mut self, stream: usize, ticket: Ticket, what: What, is_chosen: bool) -> Option<Ticket> {
        let is_shared =
            is_chosen && ticket.lane == what.lane() && self.lanes[ticket.lane].has_room_after(ticket.serial);
        if is_shared {
            return self.pass_with_one(stream, &ticket, what);
        }
        let lane = ticket.lane;
        self.end_with_own(stream, &ticket);
        if is_chosen && lane != what.lane() {
            return self.begin_chosen(stream, what);
        }
        self.counters.pool_empty += u64::from(is_chosen);
        None
    }

    /// In the device's context, and what it takes is the cost of measuring.
    fn costing<R>(&mut self, act: impl FnOnce(&mut Self) -> R) -> R {
        let from_ns = now_ns();
        let (driver, context) = (self.driver, self.context);
        // After an error that ends a context nothing more is asked.
        let answer = if self.broken.is_some() { act(self) } else { driver.within(context, || act(self)) };
        self.spent.cost_ns += now_ns() - from_ns;
        answer
    }

    /// Resolves by query what was timed in iterations before the one that ends, and opens the next.
    pub fn boundary(&mut self, next: Next, recorder: &mut Recorder) {
        let from_ns = now_ns();
        if self.broken.is_none() {
            let resolved = self.counters.recorded;
            let error_before_ns = self.placed_error_ns.take();
            let (driver, context) = (self.driver, self.context);
            driver.within(context, || {
                driver.relaxed(|| {
                    for lane in 0..self.lanes.len() {
                        self.resolve(lane, recorder);
                        self.forget_unended(lane);
                    }
                    self.tell_between(recorder);
                    self.anchor();
                });
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
            What::Shared { shares, microbatch } => {
                let first = self.book.of(shares)[0];
                (first.layer, microbatch, first.phase)
            }
            What::Iteration => return self.broken.is_none(),
            What::Transfer { from, microbatch, .. } => (LayerIndex(from.0 | LINKS_FROM), microbatch, Phase::Forward),
        };
        // What comes once an iteration costs next to nothing, and would hardly ever be drawn.
        let is_rare = phase == Phase::Optimizer;
        self.broken.is_none() && (is_rare || self.governor.chooses(self.next.place.step, layer, microbatch, phase))
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
        self.lanes[what.lane()].open.push(Open {
            serial,
            start,
            what,
            stream,
            place,
            mark,
            boundary: self.boundary,
            hole: None,
            after: None,
        });
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

    fn end_in_hole(&mut self, stream: usize, ticket: &Ticket, outer: &Ticket) {
        let Some(inner) = self.lanes[ticket.lane].close(ticket.serial) else { return };
        let Some(end) = (inner.stream == stream).then(|| self.record(ticket.lane, stream, 1)).flatten() else {
            return self.abandon(ticket.lane, &inner);
        };
        if outer.lane == ticket.lane {
            self.lanes[ticket.lane].widen_hole(&self.driver, outer.serial, &inner, end);
        }
        self.wait_for(ticket.lane, inner, end);
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
            self.lanes[lane].let_go(&self.driver, open, true);
            self.counters.drop_one(|counters| &mut counters.abandoned);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // The events of a lost context went with it.
        if self.broken.is_none() {
            let driver = self.driver;
            driver.within(self.context, || {
                self.lanes.iter_mut().for_each(|lane| lane.destroy(&driver));
                self.anchors.destroy(&driver);
            });
        }
    }
}
