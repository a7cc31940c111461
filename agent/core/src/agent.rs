//! The agent's state machine: which batch goes where, and when.

use crate::clock::ClockEstimate;
use crate::counters::Counters;
use crate::event::{Effect, Event, SpooledRange};
use crate::limits::Limits;
use crate::sketch::Sketches;
use crate::stream::{Chunk, Kept, Stream};
use adaptis_proto::Incarnation;
use adaptis_proto::message::{AgentEvent, AgentOrder, Batch};
use adaptis_proto::sample::{Record, Sample};
use std::collections::VecDeque;

/// The ring that is open.
#[derive(Clone, Copy, Debug)]
struct Open {
    ring: Incarnation,
    committed: u64,
    capacity: u64,
}

/// One device's agent.
#[derive(Clone, Debug)]
pub struct Agent {
    device: String,
    limits: Limits,
    /// In the order in which they are delivered. At most one is open, which is the last.
    streams: VecDeque<Stream>,
    open: Option<Open>,
    counters: Counters,
    clock: ClockEstimate,
    sketches: Sketches,
    /// When something in flight was last sent or acknowledged.
    progress_ns: u64,
    /// Silences since the last acknowledgement.
    silences: u32,
    spool_not_before_ns: u64,
    pings: u32,
    ping_due_ns: u64,
    report_due_ns: u64,
    is_stopping: bool,
    is_leaving: bool,
}

impl Agent {
    /// An agent of a device, at a time.
    ///
    /// # Panics
    /// If a limit is zero where that makes no sense.
    pub fn new(device: &str, limits: Limits, now_ns: u64) -> Self {
        assert!(limits.batch_records_max > 0 && limits.in_flight_max > 0 && limits.resend_ns > 0);
        Self {
            device: device.to_owned(),
            streams: VecDeque::new(),
            open: None,
            counters: Counters::default(),
            clock: ClockEstimate::default(),
            sketches: Sketches::default(),
            progress_ns: now_ns,
            silences: 0,
            spool_not_before_ns: now_ns,
            pings: 0,
            ping_due_ns: now_ns,
            report_due_ns: now_ns + limits.report_ns,
            limits,
            is_stopping: false,
            is_leaving: false,
        }
    }

    /// Takes an event in and says what to do about it.
    pub fn on_event(&mut self, now_ns: u64, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Ticked => {}
            Event::SpoolFound(ranges) => self.find(&ranges),
            Event::RingOpened { ring, committed, capacity_records } => {
                self.end_ring(now_ns);
                self.open_ring(ring, committed, capacity_records);
            }
            Event::Drained { first, records, dropped } => self.take(now_ns, first, &records, dropped),
            Event::RingEnded => self.end_ring(now_ns),
            Event::Spooled(range) => self.spooled(range, &mut effects),
            Event::SpoolRefused(range) => self.spool_refused(now_ns, range),
            Event::Unspooled(batch) => self.unspooled(batch),
            Event::UnspoolFailed { ring, first } => self.unspool_failed(ring, first),
            Event::Evicted(range) => self.evicted(range),
            Event::Ordered(AgentOrder::Stored { ring, next }) => self.stored(now_ns, ring, next, &mut effects),
            Event::Ordered(AgentOrder::Pong { sent_ns, received_ns }) => {
                self.clock.learn(now_ns, sent_ns, received_ns);
            }
            Event::Stopping => self.is_stopping = true,
            Event::Leaving => {
                (self.is_stopping, self.is_leaving) = (true, true);
                self.spool_not_before_ns = now_ns;
            }
        }
        self.close_batches(now_ns);
        self.spool(now_ns, &mut effects);
        self.commit(&mut effects);
        self.resend_after_silence(now_ns);
        self.send(now_ns, &mut effects);
        self.keep_time(now_ns, &mut effects);
        self.streams.retain(|stream| !stream.is_empty() || self.open.is_some_and(|open| open.ring == stream.ring));
        self.counters.queued = self.streams.iter().map(Stream::queued).sum();
        self.counters.unsketched = self.sketches.unsketched();
        assert!(self.counters.add_up(), "taken = stored + dropped + queued: {:?}", self.counters);
        effects
    }

    /// When to come back with [`Event::Ticked`] at the latest.
    pub fn deadline(&self) -> u64 {
        let close = self.streams.iter().filter_map(Stream::building_since_ns).min();
        let close = close.map(|since| since + self.limits.batch_age_ns_max);
        let resend = self.streams.iter().any(|stream| stream.sent > 0).then(|| self.resend_due_ns());
        [close, resend].into_iter().flatten().fold(self.ping_due_ns.min(self.report_due_ns), u64::min)
    }

    /// Everything that was taken is stored or dropped.
    pub fn is_settled(&self) -> bool {
        self.streams.iter().all(Stream::is_empty)
    }

    /// Number of the next record to read from the open ring.
    pub fn next_to_read(&self) -> u64 {
        let open = self.open.and_then(|open| self.streams.iter().find(|stream| stream.ring == open.ring));
        open.map_or(0, |stream| stream.taken)
    }

    /// What became of the samples so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The clock's offset to the coordinator's.
    pub fn clock(&self) -> &ClockEstimate {
        &self.clock
    }

    /// What each layer cost.
    pub fn sketches(&self) -> &Sketches {
        &self.sketches
    }

    // ---- records in -------------------------------------------------------------------------------------------------

    fn find(&mut self, ranges: &[SpooledRange]) {
        for range in ranges {
            let at = self.streams.iter().position(|stream| stream.ring == range.ring).unwrap_or_else(|| {
                self.streams.push_back(Stream::new(range.ring, range.first));
                self.streams.len() - 1
            });
            self.counters.taken += self.streams[at].found(range.first, range.next);
        }
    }

    fn open_ring(&mut self, ring: Incarnation, committed: u64, capacity: u64) {
        match self.streams.iter_mut().find(|stream| stream.ring == ring) {
            // The spool was written and the ring not told any more.
            Some(stream) => stream.skip_to(committed),
            None => self.streams.push_back(Stream::new(ring, committed)),
        }
        self.open = Some(Open { ring, committed, capacity });
    }

    fn end_ring(&mut self, now_ns: u64) {
        let Some(open) = self.open.take() else { return };
        let clock = self.clock.offset(now_ns);
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.ring == open.ring) {
            stream.close(self.limits.batch_records_max, true, clock);
        }
    }

    fn take(&mut self, now_ns: u64, first: u64, records: &[Record], dropped: u64) {
        let Some(open) = self.open else { return };
        let clock = self.clock.offset(now_ns);
        let stream = self.streams.iter_mut().find(|stream| stream.ring == open.ring);
        let stream = stream.expect("the stream of the open ring is kept");
        let news = dropped.saturating_sub(stream.dropped);
        stream.dropped += news;
        self.counters.taken += news;
        self.counters.dropped_ring_full += news;
        if first > stream.taken {
            stream.close(self.limits.batch_records_max, true, clock);
            stream.skip_to(first);
        }
        let new = stream.take(first, records, now_ns);
        self.counters.taken += new;
        let known = records.len() - usize::try_from(new).expect("no more than there are");
        for record in &records[known..] {
            match Sample::try_from(*record) {
                Ok(sample) => self.sketches.learn(&sample),
                Err(_) => self.counters.unknown_records += 1,
            }
        }
    }

    fn close_batches(&mut self, now_ns: u64) {
        let clock = self.clock.offset(now_ns);
        for stream in &mut self.streams {
            let held =
                self.open.filter(|open| open.ring == stream.ring).map_or(0, |open| stream.taken - open.committed);
            let is_crowded = self.open.is_some_and(|open| held > open.capacity / 2);
            let is_old = stream.building_since_ns().is_some_and(|since| now_ns >= since + self.limits.batch_age_ns_max);
            stream.close(self.limits.batch_records_max, is_old || is_crowded || self.is_stopping, clock);
        }
    }

    // ---- spool ------------------------------------------------------------------------------------------------------

    /// What is in memory goes to the spool when the ring is more than half full of it, until a quarter is left; when its
    /// ring is gone; and when we leave.
    fn spool(&mut self, now_ns: u64, effects: &mut Vec<Effect>) {
        let clock = self.clock.offset(now_ns);
        let may_try = now_ns >= self.spool_not_before_ns;
        for stream in self.streams.iter_mut().filter(|_| may_try) {
            let mut excess = match self.open.filter(|open| open.ring == stream.ring) {
                Some(open) if !self.is_leaving => {
                    let held = stream.unsafe_len();
                    if held > open.capacity / 2 { held - open.capacity / 4 } else { 0 }
                }
                _ => u64::MAX,
            };
            for at in 0..stream.chunks.len() {
                if excess > 0
                    && let Some(batch) = stream.begin_writing(at, &self.device, clock)
                {
                    excess = excess.saturating_sub(batch.records.len() as u64);
                    effects.push(Effect::Spool(batch));
                }
            }
        }
        self.drop_orphans();
    }

    /// Records whose ring is gone and which the spool refuses are kept up to a limit.
    fn drop_orphans(&mut self) {
        let open = self.open.map(|open| open.ring);
        let orphans = |stream: &&mut Stream| Some(stream.ring) != open;
        let mut excess: u64 = self.streams.iter_mut().filter(orphans).map(|stream| stream.unsafe_len()).sum();
        for stream in self.streams.iter_mut().filter(orphans) {
            while excess > self.limits.orphan_records_max {
                let lost = stream.drop_oldest_in_memory();
                if lost == 0 {
                    break;
                }
                self.counters.dropped_spool_full += lost;
                excess -= lost;
            }
        }
    }

    fn chunk_in(&mut self, range: SpooledRange) -> Option<&mut Chunk> {
        let stream = self.streams.iter_mut().find(|stream| stream.ring == range.ring)?;
        // A chunk may have been cut at its front since, never at its end.
        stream.chunk_of(range.next.checked_sub(1)?).filter(|chunk| chunk.next == range.next)
    }

    fn spooled(&mut self, range: SpooledRange, effects: &mut Vec<Effect>) {
        match self.chunk_in(range) {
            Some(chunk) => {
                let kept = std::mem::replace(&mut chunk.kept, Kept::Disk);
                if !matches!(kept, Kept::Memory(_) | Kept::Writing(_)) {
                    chunk.kept = kept;
                }
            }
            // Stored while it was written.
            None => effects.push(Effect::Release { ring: range.ring, next: range.next }),
        }
    }

    fn spool_refused(&mut self, now_ns: u64, range: SpooledRange) {
        self.counters.spool_refusals += 1;
        self.spool_not_before_ns = now_ns + self.limits.spool_retry_ns;
        if let Some(chunk) = self.chunk_in(range) {
            let kept = std::mem::replace(&mut chunk.kept, Kept::Disk);
            chunk.kept = if let Kept::Writing(records) = kept { Kept::Memory(records) } else { kept };
        }
    }

    fn unspooled(&mut self, batch: Batch) {
        let next = batch.first + batch.records.len() as u64;
        let Batch { ring, first, mut records, dropped, clock, .. } = batch;
        let Some(chunk) = self.chunk_in(SpooledRange { ring, first, next }) else { return };
        if matches!(chunk.kept, Kept::Asked | Kept::Disk) && chunk.first >= first {
            records.drain(..usize::try_from(chunk.first - first).expect("less than the records there are"));
            (chunk.kept, chunk.dropped, chunk.clock) = (Kept::Both(records), dropped, clock);
        }
    }

    fn unspool_failed(&mut self, ring: Incarnation, first: u64) {
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.ring == ring) else { return };
        let Some(chunk) = stream.chunk_of(first) else { return };
        let (first, next) = (chunk.first, chunk.next);
        self.counters.dropped_unreadable += stream.lose(first, next);
    }

    fn evicted(&mut self, range: SpooledRange) {
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.ring == range.ring) {
            self.counters.dropped_spool_full += stream.lose(range.first, range.next);
        }
    }

    fn commit(&mut self, effects: &mut Vec<Effect>) {
        let Some(open) = &mut self.open else { return };
        let Some(stream) = self.streams.iter().find(|stream| stream.ring == open.ring) else { return };
        let next = stream.safe();
        if next > open.committed {
            open.committed = next;
            effects.push(Effect::Commit { ring: open.ring, next });
        }
    }

    // ---- delivery ---------------------------------------------------------------------------------------------------

    fn stored(&mut self, now_ns: u64, ring: Incarnation, next: u64, effects: &mut Vec<Effect>) {
        let stream = self.streams.iter_mut().find(|stream| stream.ring == ring);
        let Some(done) = stream.and_then(|stream| stream.acknowledge(next)) else {
            self.counters.stale_acknowledgements += 1;
            return;
        };
        self.counters.stored += done.stored;
        (self.progress_ns, self.silences) = (now_ns, 0);
        if done.frees_spool {
            effects.push(Effect::Release { ring, next });
        }
    }

    fn resend_due_ns(&self) -> u64 {
        let wait = self.limits.resend_ns.saturating_mul(1 << self.silences.min(16));
        self.progress_ns + wait.min(self.limits.resend_ns_max.max(self.limits.resend_ns))
    }

    fn resend_after_silence(&mut self, now_ns: u64) {
        let in_flight = self.streams.iter().any(|stream| stream.sent > 0);
        if in_flight && now_ns >= self.resend_due_ns() {
            self.streams.iter_mut().for_each(Stream::rewind);
            self.silences += 1;
            self.counters.resends += 1;
        }
    }

    /// Sends what may be in flight of the first stream that has anything, in order, up to a gap.
    fn send(&mut self, now_ns: u64, effects: &mut Vec<Effect>) {
        let clock = self.clock.offset(now_ns);
        let Some(stream) = self.streams.iter_mut().find(|stream| !stream.chunks.is_empty()) else { return };
        let allowed = if self.silences == 0 { self.limits.in_flight_max } else { 1 };
        while stream.sent < allowed.min(stream.chunks.len()) {
            let at = stream.sent;
            let first = stream.chunks[at].first;
            // Beyond a gap only once everything before it is stored, since the floor says that the rest never comes.
            if at > 0 && stream.chunks[at - 1].next != first {
                break;
            }
            let Some(batch) = stream.batch(at, &self.device, clock) else {
                if matches!(stream.chunks[at].kept, Kept::Disk) {
                    stream.chunks[at].kept = Kept::Asked;
                    effects.push(Effect::Unspool { ring: stream.ring, first });
                }
                break;
            };
            if at == 0 {
                self.progress_ns = now_ns;
                if first > 0 && stream.position != Some(first) {
                    stream.position = Some(first);
                    let floor = stream.floor(first, &self.device, clock);
                    effects.push(Effect::Send(AgentEvent::Batch(floor)));
                }
            }
            effects.push(Effect::Send(AgentEvent::Batch(batch)));
            stream.sent += 1;
            self.counters.batches_sent += 1;
        }
    }

    // ---- clock and health -------------------------------------------------------------------------------------------

    fn keep_time(&mut self, now_ns: u64, effects: &mut Vec<Effect>) {
        if now_ns >= self.ping_due_ns {
            self.pings = self.pings.saturating_add(1);
            let is_start = self.pings < self.limits.pings_at_start;
            self.ping_due_ns = now_ns + if is_start { self.limits.ping_ns_at_start } else { self.limits.ping_ns };
            effects.push(Effect::Send(AgentEvent::Ping { device: self.device.clone(), sent_ns: now_ns }));
        }
        if now_ns >= self.report_due_ns {
            self.report_due_ns = now_ns + self.limits.report_ns;
            effects.push(Effect::Report { readings: self.sketches.readings(), counters: self.counters.named() });
        }
    }
}
