//! What of one ring is not stored yet: a line of chunks in the order of their numbers.
//!
//! ```text
//!   acked        sent                                   closed      taken
//!     |--disk--|--disk--|--disk--|--memory--|--memory--|--building--|        ring only ...
//!                                ^ the ring may free what is below
//! ```

use adaptis_proto::Incarnation;
use adaptis_proto::message::{Batch, ClockOffset};
use adaptis_proto::sample::Record;
use std::collections::VecDeque;

/// Where a chunk's records are.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    /// With us, and in the ring as long as that is open.
    Memory(Vec<Record>),
    /// As above, and on its way to the spool.
    Writing(Vec<Record>),
    /// In the spool.
    Disk,
    /// In the spool, asked for.
    Asked,
    /// In the spool and with us.
    Both(Vec<Record>),
}

/// Consecutive records that travel as one batch. Never empty.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) first: u64,
    pub(crate) next: u64,
    pub(crate) kept: Kept,
    /// What the ring had dropped when the chunk was closed.
    pub(crate) dropped: u64,
    /// The offset known when the chunk was closed.
    pub(crate) clock: Option<ClockOffset>,
}

impl Chunk {
    pub(crate) fn len(&self) -> u64 {
        self.next - self.first
    }

    /// Safe from the end of this process, ring apart.
    pub(crate) fn is_on_disk(&self) -> bool {
        matches!(self.kept, Kept::Disk | Kept::Asked | Kept::Both(_))
    }

    pub(crate) fn records(&self) -> Option<&Vec<Record>> {
        match &self.kept {
            Kept::Memory(records) | Kept::Writing(records) | Kept::Both(records) => Some(records),
            Kept::Disk | Kept::Asked => None,
        }
    }

    /// Forgets the records below a number within the chunk.
    fn trim(&mut self, first: u64) {
        let gone = usize::try_from(first - self.first).expect("a chunk is in memory or was");
        if let Kept::Memory(records) | Kept::Writing(records) | Kept::Both(records) = &mut self.kept {
            records.drain(..gone);
        }
        self.first = first;
    }
}

/// What an acknowledgement did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    pub(crate) stored: u64,
    /// A whole chunk that lay in the spool was among it.
    pub(crate) frees_spool: bool,
}

/// One ring's line.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) ring: Incarnation,
    pub(crate) chunks: VecDeque<Chunk>,
    /// Leading chunks in flight.
    pub(crate) sent: usize,
    /// The number at which the coordinator will go on, as far as we know.
    pub(crate) position: Option<u64>,
    /// Below it everything is stored or dropped.
    acked: u64,
    building: Vec<Record>,
    building_since_ns: u64,
    /// Number after the last record taken.
    pub(crate) taken: u64,
    /// Samples that the ring dropped in its life.
    pub(crate) dropped: u64,
}

impl Stream {
    pub(crate) fn new(ring: Incarnation, first: u64) -> Self {
        Self {
            ring,
            chunks: VecDeque::new(),
            sent: 0,
            // A ring begins at 0, which needs no telling.
            position: (first == 0).then_some(0),
            acked: first,
            building: Vec::new(),
            building_since_ns: 0,
            taken: first,
            dropped: 0,
        }
    }

    /// Appends a batch that an earlier process left in the spool. Returns how many of its records are new.
    pub(crate) fn found(&mut self, first: u64, next: u64) -> u64 {
        let first = first.max(self.taken);
        if next <= first {
            return 0;
        }
        self.chunks.push_back(Chunk { first, next, kept: Kept::Disk, dropped: 0, clock: None });
        self.taken = next;
        next - first
    }

    /// Appends records read from the ring, without those that it has. Returns how many were new.
    pub(crate) fn take(&mut self, first: u64, records: &[Record], now_ns: u64) -> u64 {
        let known = usize::try_from(self.taken.saturating_sub(first)).unwrap_or(usize::MAX).min(records.len());
        let new = &records[known..];
        if new.is_empty() {
            return 0;
        }
        if self.building.is_empty() {
            self.building_since_ns = now_ns;
        }
        self.building.extend_from_slice(new);
        self.taken += new.len() as u64;
        new.len() as u64
    }

    /// The next records cannot follow on those taken: somebody else has read the ring in between.
    pub(crate) fn skip_to(&mut self, first: u64) {
        assert!(self.building.is_empty(), "a batch under construction has no gap");
        self.taken = self.taken.max(first);
    }

    /// When the batch under construction was begun.
    pub(crate) fn building_since_ns(&self) -> Option<u64> {
        (!self.building.is_empty()).then_some(self.building_since_ns)
    }

    /// Closes the batch under construction into chunks of at most a length. What is left of a full one goes on being
    /// built, unless `all`.
    pub(crate) fn close(&mut self, records_max: usize, all: bool, clock: Option<ClockOffset>) {
        while self.building.len() >= records_max || (all && !self.building.is_empty()) {
            let first = self.taken - self.building.len() as u64;
            let rest = self.building.split_off(records_max.min(self.building.len()));
            let records = std::mem::replace(&mut self.building, rest);
            let next = first + records.len() as u64;
            self.chunks.push_back(Chunk { first, next, kept: Kept::Memory(records), dropped: self.dropped, clock });
        }
    }

    /// The coordinator has everything below a number. None if that is nothing new.
    pub(crate) fn acknowledge(&mut self, next: u64) -> Option<Acknowledged> {
        let closed = self.taken - self.building.len() as u64;
        let next = next.min(closed);
        if next <= self.acked {
            return None;
        }
        let mut done = Acknowledged::default();
        while self.chunks.front().is_some_and(|chunk| chunk.next <= next) {
            let chunk = self.chunks.pop_front().expect("there is a front");
            done.stored += chunk.len();
            done.frees_spool |= chunk.is_on_disk();
            self.sent = self.sent.saturating_sub(1);
        }
        if let Some(chunk) = self.chunks.front_mut()
            && chunk.first < next
        {
            done.stored += next - chunk.first;
            chunk.trim(next);
        }
        self.acked = next;
        if self.position.is_none_or(|position| position < next) {
            self.position = Some(next);
        }
        Some(done)
    }

    /// Removes the chunks within a range that lie in the spool, and returns how many records that were.
    pub(crate) fn lose(&mut self, first: u64, next: u64) -> u64 {
        let mut lost = 0;
        let (mut at, mut sent) = (0, self.sent);
        self.chunks.retain(|chunk| {
            let is_lost = chunk.is_on_disk() && chunk.first < next && first < chunk.next;
            if is_lost {
                lost += chunk.len();
                sent -= usize::from(at < self.sent);
            }
            at += 1;
            !is_lost
        });
        self.sent = sent;
        lost
    }

    /// The chunk at the front, if it is in memory alone, goes. Returns how many records that were.
    pub(crate) fn drop_oldest_in_memory(&mut self) -> u64 {
        let Some(at) = self.chunks.iter().position(|chunk| matches!(chunk.kept, Kept::Memory(_))) else { return 0 };
        self.sent -= usize::from(at < self.sent);
        self.chunks.remove(at).map_or(0, |chunk| chunk.len())
    }

    /// The number below which the ring may free: what is not in memory alone.
    pub(crate) fn safe(&self) -> u64 {
        let first = self.chunks.iter().find(|chunk| !chunk.is_on_disk()).map(|chunk| chunk.first);
        first.unwrap_or(self.taken - self.building.len() as u64)
    }

    /// Records that are in memory alone and not on their way to the spool.
    pub(crate) fn unsafe_len(&self) -> u64 {
        let alone = |chunk: &&Chunk| matches!(chunk.kept, Kept::Memory(_));
        self.chunks.iter().filter(alone).map(Chunk::len).sum::<u64>() + self.building.len() as u64
    }

    /// Records that are not stored.
    pub(crate) fn queued(&self) -> u64 {
        self.chunks.iter().map(Chunk::len).sum::<u64>() + self.building.len() as u64
    }

    /// Nothing is left to store.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.building.is_empty()
    }

    /// The chunk that holds a number.
    pub(crate) fn chunk_of(&mut self, number: u64) -> Option<&mut Chunk> {
        let at = self.chunks.partition_point(|chunk| chunk.next <= number);
        self.chunks.get_mut(at).filter(|chunk| chunk.first <= number)
    }

    /// A chunk as a message. None if its records are in the spool alone.
    pub(crate) fn batch(&self, at: usize, device: &str, clock: Option<ClockOffset>) -> Option<Batch> {
        let chunk = self.chunks.get(at)?;
        let (device, records) = (device.to_owned(), chunk.records()?.clone());
        // The present offset rather than the one of then: the coordinator may have moved to another host meanwhile.
        let clock = clock.or(chunk.clock);
        Some(Batch { device, ring: self.ring, first: chunk.first, records, dropped: chunk.dropped, clock })
    }

    /// A chunk that is in memory alone, as the message to be written to the spool.
    pub(crate) fn begin_writing(&mut self, at: usize, device: &str, clock: Option<ClockOffset>) -> Option<Batch> {
        let batch = self.batch(at, device, clock)?;
        let chunk = self.chunks.get_mut(at)?;
        let Kept::Memory(records) = &mut chunk.kept else { return None };
        chunk.kept = Kept::Writing(std::mem::take(records));
        Some(batch)
    }

    /// The empty batch that says from which number on there will be records.
    pub(crate) fn floor(&self, first: u64, device: &str, clock: Option<ClockOffset>) -> Batch {
        let device = device.to_owned();
        Batch { device, ring: self.ring, first, records: Vec::new(), dropped: self.dropped, clock }
    }

    /// Everything in flight counts as lost, and so does what we believed of the coordinator.
    pub(crate) fn rewind(&mut self) {
        self.sent = 0;
        self.position = None;
    }
}
