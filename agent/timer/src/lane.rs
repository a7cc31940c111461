//! A fixed pool of events, and the intervals between them. Compute and communication have a lane each, so that neither
//! takes the other's events.
//!
//! 1. A slot is free, or used by some intervals: the end of one work may be the beginning of the next, or what the next
//!    follows, and both ends of a work that interrupts another one are the ends of that one's hole.
//! 2. Whoever began can end: for each open interval one event is kept back.
//! 3. An event that may be pending is never recorded again; it is destroyed, and another one takes its slot.

use crate::account::What;
use crate::driver::Driver;
use crate::error::TimerError;
use adaptis_proto::sample::{Mark, Place};
use std::collections::VecDeque;

/// Most events of a lane.
pub(crate) const EVENTS_MAX: usize = 1 << 16;

/// How far back a work is looked for that another one follows.
const FOLLOWED_MAX: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Slot {
    event: usize,
    uses: u8,
    /// It may be pending when nobody uses it any more.
    is_stale: bool,
}

/// A place in the pool.
pub(crate) type SlotIndex = u32;

/// A work that has begun and not ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open {
    pub serial: u64,
    pub start: SlotIndex,
    pub what: What,
    pub stream: usize,
    pub place: Place,
    pub mark: Mark,
    /// Boundaries passed when it began.
    pub boundary: u64,
    /// What is not its own time.
    pub hole: Option<Hole>,
    /// The end of the work that it follows with no wait between them; the event is used by it.
    pub after: Option<SlotIndex>,
}

/// From the beginning of the first work that interrupted another one to the end of the last; both events are used by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hole {
    pub from: SlotIndex,
    pub to: SlotIndex,
}

/// A work that has ended, as far as the host is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub open: Open,
    pub end: SlotIndex,
    /// When its end was put into the stream, on the host's clock.
    pub end_call_ns: u64,
}

/// One pool with its intervals.
#[derive(Debug)]
pub(crate) struct Lane {
    slots: Vec<Slot>,
    free: Vec<SlotIndex>,
    pub open: Vec<Open>,
    pub pending: VecDeque<Pending>,
    /// Slots whose event could not be made anew.
    pub slots_lost: u64,
}

impl Lane {
    pub fn new(driver: &Driver, events: usize) -> Result<Self, TimerError> {
        if !(2..=EVENTS_MAX).contains(&events) {
            return Err(TimerError::Pool { requested: events });
        }
        let mut lane = Self {
            slots: Vec::with_capacity(events),
            free: Vec::with_capacity(events),
            open: Vec::with_capacity(events),
            pending: VecDeque::with_capacity(events),
            slots_lost: 0,
        };
        for at in 0..events {
            match driver.new_event() {
                Ok(event) => lane.slots.push(Slot { event, uses: 0, is_stale: false }),
                Err(error) => {
                    lane.destroy(driver);
                    return Err(error);
                }
            }
            lane.free.push(at as SlotIndex);
        }
        Ok(lane)
    }

    pub fn event(&self, slot: SlotIndex) -> usize {
        self.slots[slot as usize].event
    }

    /// A work may begin, and will be able to end.
    pub fn has_room(&self) -> bool {
        self.free.len() >= self.open.len() + 2
    }

    /// The same with the event that ends another one, which gives back the one that was kept for it, unless it was given
    /// up in the meantime.
    pub fn has_room_after(&self, serial: u64) -> bool {
        self.free.len() + usize::from(self.is_open(serial)) >= self.open.len() + 2
    }

    /// A work has begun, and neither ended nor been given up.
    pub fn is_open(&self, serial: u64) -> bool {
        self.open.iter().any(|open| open.serial == serial)
    }

    /// Takes a free slot, for so many intervals. It is there: see the invariants.
    pub fn take(&mut self, uses: u8) -> SlotIndex {
        let slot = self.free.pop().expect("an event was kept back");
        self.slots[slot as usize].uses = uses;
        slot
    }

    /// Finds and removes an open interval.
    pub fn close(&mut self, serial: u64) -> Option<Open> {
        let at = self.open.iter().position(|open| open.serial == serial)?;
        Some(self.open.swap_remove(at))
    }

    /// A work ran within an open one, in the same stream, and ended with this event.
    pub fn widen_hole(&mut self, driver: &Driver, outer: u64, inner: &Open, end: SlotIndex) {
        let is_outer = |open: &&mut Open| open.serial == outer && open.stream == inner.stream;
        let Some(outer) = self.open.iter_mut().find(is_outer) else { return };
        let before = outer.hole;
        outer.hole = Some(Hole { from: before.map_or(inner.start, |hole| hole.from), to: end });
        self.slots[end as usize].uses += 1;
        match before {
            None => self.slots[inner.start as usize].uses += 1,
            // It may be pending still.
            Some(hole) => self.release(driver, hole.to, true),
        }
    }

    /// An open interval follows one that ended of late in the same iteration and stream.
    pub fn follow(&mut self, serial: u64, ended: u64) {
        let Some(open) = self.open.iter_mut().rfind(|open| open.serial == serial) else { return };
        let mut latest = self.pending.iter().rev().take(FOLLOWED_MAX);
        let is_it = |of: &&Pending| of.open.serial == ended;
        let ended = latest.find(is_it).filter(|of| (of.open.boundary, of.open.stream) == (open.boundary, open.stream));
        if let Some(ended) = ended
            && let Some(uses) = self.slots[ended.end as usize].uses.checked_add(1)
        {
            self.slots[ended.end as usize].uses = uses;
            open.after = Some(ended.end);
        }
    }

    /// An interval needs its beginning and its hole no more, nor the end of the one that it follows.
    pub fn let_go(&mut self, driver: &Driver, open: &Open, is_stale: bool) {
        self.release(driver, open.start, is_stale);
        if let Some(after) = open.after {
            self.release(driver, after, is_stale);
        }
        if let Some(hole) = open.hole {
            self.release(driver, hole.from, is_stale);
            self.release(driver, hole.to, is_stale);
        }
    }

    /// One interval needs a slot no more; `is_stale` if its event may be pending.
    pub fn release(&mut self, driver: &Driver, slot: SlotIndex, is_stale: bool) {
        let place = &mut self.slots[slot as usize];
        place.uses -= 1;
        place.is_stale |= is_stale;
        if place.uses > 0 {
            return;
        }
        if std::mem::take(&mut place.is_stale) {
            driver.destroy_event(place.event);
            match driver.new_event() {
                Ok(event) => place.event = event,
                Err(_) => {
                    place.event = 0;
                    self.slots_lost += 1;
                    return;
                }
            }
        }
        self.free.push(slot);
    }

    pub fn destroy(&mut self, driver: &Driver) {
        for slot in self.slots.drain(..).filter(|slot| slot.event != 0) {
            driver.destroy_event(slot.event);
        }
    }
}
