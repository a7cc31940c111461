//! Anchors of the device's clock: events whose instants on the host's clock are known.
//!
//! An anchor is recorded on a stream of its own that holds nothing else, so it happens at once, and asked for a few
//! microseconds at most. One that takes longer is no good as an anchor, and is tried again at the next boundary. Where
//! all streams share one queue of the hardware (`CUDA_DEVICE_MAX_CONNECTIONS=1`) an anchor is to be had only at boundaries
//! at which the device has come to rest; between them the error grows, and says so.

use crate::alignment::{Line, Placed};
use crate::driver::{Driver, NOT_READY, SUCCESS};
use crate::error::TimerError;
use adaptis_ring::now_ns;

/// Between two anchors, at least.
const EVERY_NS: u64 = 200_000_000;
/// Tries for one anchor; the tightest counts.
const TRIES: usize = 3;
/// How long one is asked for.
const PATIENCE_NS: u64 = 30_000;
/// Two that are known, and one to try with.
const EVENTS: usize = 3;

#[derive(Clone, Copy, Debug)]
struct Anchor {
    event: usize,
    placed: Placed,
}

/// The last two anchors.
#[derive(Debug)]
pub(crate) struct Anchors {
    stream: usize,
    events: [usize; EVENTS],
    older: Option<Anchor>,
    newer: Option<Anchor>,
    line: Option<Line>,
    taken_ns: u64,
    /// An event that was tried has not happened yet.
    is_pending: Option<usize>,
    /// Boundaries at which no anchor could be had.
    pub misses: u64,
    /// Pairs of anchors between which no clock could have run.
    pub breaks: u64,
}

impl Anchors {
    pub fn new(driver: &Driver) -> Result<Self, TimerError> {
        let stream = driver.new_stream()?;
        let mut events = [0; EVENTS];
        for at in 0..EVENTS {
            match driver.new_event() {
                Ok(event) => events[at] = event,
                Err(error) => {
                    events[..at].iter().for_each(|event| driver.destroy_event(*event));
                    driver.destroy_stream(stream);
                    return Err(error);
                }
            }
        }
        let (older, newer, line) = (None, None, None);
        Ok(Self { stream, events, older, newer, line, taken_ns: 0, is_pending: None, misses: 0, breaks: 0 })
    }

    /// Takes an anchor if the last one is old enough.
    ///
    /// # Errors
    /// The driver's answer, if it is one that ends a context.
    pub fn renew(&mut self, driver: &Driver) -> Result<(), u32> {
        if self.newer.is_some() && now_ns() - self.taken_ns < EVERY_NS {
            return Ok(());
        }
        if let Some(event) = self.is_pending {
            match driver.query(event) {
                SUCCESS => self.is_pending = None,
                NOT_READY => {
                    self.misses += 1;
                    return Ok(());
                }
                code => return Err(code),
            }
        }
        let is_used = |event: usize| [self.older, self.newer].iter().flatten().any(|anchor| anchor.event == event);
        let event = *self.events.iter().find(|event| !is_used(**event)).expect("there is one more than is used");
        let mut window = None;
        for _ in 0..TRIES {
            let Some((from_ns, to_ns)) = self.attempt(driver, event)? else {
                self.is_pending = Some(event);
                self.misses += 1;
                return Ok(());
            };
            // The event is where it was recorded last, so the last window counts; a tight one is enough.
            window = Some((from_ns, to_ns));
            if to_ns - from_ns < PATIENCE_NS / 4 {
                break;
            }
        }
        if let Some((from_ns, to_ns)) = window {
            self.adopt(driver, event, from_ns, to_ns)?;
        }
        Ok(())
    }

    /// Records the event and asks until it has happened: between which instants it did; none in time.
    fn attempt(&self, driver: &Driver, event: usize) -> Result<Option<(u64, u64)>, u32> {
        let from_ns = now_ns();
        match driver.record(event, self.stream) {
            SUCCESS => {}
            code => return Err(code),
        }
        loop {
            let answer = driver.query(event);
            let to_ns = now_ns();
            match answer {
                SUCCESS => return Ok(Some((from_ns, to_ns))),
                NOT_READY if to_ns - from_ns < PATIENCE_NS => std::hint::spin_loop(),
                NOT_READY => return Ok(None),
                code => return Err(code),
            }
        }
    }

    fn adopt(&mut self, driver: &Driver, event: usize, from_ns: u64, to_ns: u64) -> Result<(), u32> {
        let half_ns = (to_ns - from_ns) as f64 / 2.0;
        let new = Anchor { event, placed: Placed { host_ns: from_ns as f64 + half_ns, error_ns: half_ns } };
        self.taken_ns = to_ns;
        self.older = self.newer.replace(new);
        self.line = Some(match self.older {
            None => Line::through_one(new.placed),
            Some(older) => {
                let line = Line::through_two(older.placed, driver.elapsed_ns(older.event, event)?, new.placed);
                self.breaks += u64::from(!line.is_measured());
                line
            }
        });
        Ok(())
    }

    /// Where an event is that has happened; none before there is an anchor.
    ///
    /// # Errors
    /// The driver's answer.
    pub fn place(&self, driver: &Driver, event: usize) -> Result<Option<Placed>, u32> {
        let (Some(line), Some(first)) = (self.line, self.older.or(self.newer)) else { return Ok(None) };
        Ok(Some(line.at(driver.elapsed_ns(first.event, event)?)))
    }

    /// How far off an instant between the anchors may be.
    pub fn error_ns(&self) -> Option<f64> {
        let newer = self.newer?;
        Some(self.older.map_or(newer.placed.error_ns, |older| older.placed.error_ns.max(newer.placed.error_ns)))
    }

    pub fn stream(&self) -> usize {
        self.stream
    }

    pub fn destroy(&self, driver: &Driver) {
        self.events.iter().for_each(|event| driver.destroy_event(*event));
        driver.destroy_stream(self.stream);
    }
}
