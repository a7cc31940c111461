//! Batches on disk while the coordinator is away: a bounded queue of segment files.
//!
//! ```text
//!   00000004.segment  [length crc batch][length crc batch]...     oldest, dropped first
//!   00000005.segment  [length crc batch]...                       appended to
//! ```
//!
//! 1. A batch is whole or absent: its frame carries length and checksum, and whatever follows a bad frame is ignored.
//! 2. A process writes only to segments of its own making, never behind the torn tail of another.
//! 3. The folder holds at most `bytes_max`; beyond, the oldest segment goes and its batches are named.
//! 4. One process at a time: the folder is locked.
//!
//! Left out on purpose: `fsync`. The spool outlives the agent, not the host's power: with the power the job is gone too.

mod segment;

use crate::error::AgentError;
use adaptis_agent_core::SpooledRange;
use adaptis_proto::Incarnation;
use adaptis_proto::message::Batch;
use adaptis_proto::wire;
use segment::{Frame, Segment};
use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The folder is divided into this many segments when it is full: what is dropped at once.
const SEGMENTS: u64 = 16;

/// A batch's place.
struct Entry {
    range: SpooledRange,
    segment: u64,
    frame: Frame,
}

/// The spool of one device.
pub(crate) struct Spool {
    folder: PathBuf,
    bytes_max: u64,
    segments: VecDeque<Segment>,
    /// Appended to.
    active: Option<u64>,
    next_number: u64,
    /// Of all segments, in order.
    entries: VecDeque<Entry>,
    /// Segments whose tail could not be read.
    torn: u64,
    _lock: File,
}

impl Spool {
    /// Opens a folder, makes it if need be, and reads what is there.
    pub(crate) fn open(folder: &Path, bytes_max: u64) -> Result<Self, AgentError> {
        let fault = |source| AgentError::Spool { folder: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(|source| match source.kind() {
            // The system says that a file exists, where it is a folder that does not.
            io::ErrorKind::AlreadyExists => fault(io::ErrorKind::NotADirectory.into()),
            _ => fault(source),
        })?;
        let lock = File::create(folder.join("lock")).map_err(fault)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => AgentError::SpoolInUse { folder: folder.to_owned() },
            TryLockError::Error(source) => fault(source),
        })?;
        let mut spool = Self {
            folder: folder.to_owned(),
            bytes_max,
            segments: VecDeque::new(),
            active: None,
            next_number: 1,
            entries: VecDeque::new(),
            torn: 0,
            _lock: lock,
        };
        spool.scan().map_err(fault)?;
        Ok(spool)
    }

    fn scan(&mut self) -> io::Result<()> {
        let mut numbers = Vec::new();
        for file in std::fs::read_dir(&self.folder)? {
            numbers.extend(Segment::number_of(&file?.path()));
        }
        numbers.sort_unstable();
        self.next_number = numbers.last().map_or(1, |number| number + 1);
        for number in numbers {
            let mut segment = match Segment::open(&self.folder, number) {
                Ok(segment) => segment,
                Err(error) => {
                    tracing::warn!(folder = %self.folder.display(), number, %error, "a segment cannot be opened");
                    self.torn += 1;
                    continue;
                }
            };
            let (frames, is_whole) = segment.frames();
            self.torn += u64::from(!is_whole);
            for (frame, batch) in frames {
                segment.live += 1;
                self.entries.push_back(Entry { range: range_of(&batch), segment: number, frame });
            }
            self.segments.push_back(segment);
        }
        self.sweep();
        Ok(())
    }

    /// What lies here, oldest first.
    pub(crate) fn ranges(&self) -> Vec<SpooledRange> {
        self.entries.iter().map(|entry| entry.range).collect()
    }

    /// Bytes in the folder.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Counters by name.
    pub(crate) fn named(&self) -> Vec<(String, u64)> {
        [
            ("spool_bytes", self.bytes()),
            ("spool_batches", self.entries.len() as u64),
            ("spool_torn_segments", self.torn),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Appends a batch; names the batches that had to go for it. On an error nothing is appended, though some may have
    /// gone.
    pub(crate) fn append(&mut self, batch: &Batch) -> (Vec<SpooledRange>, io::Result<()>) {
        let payload = wire::encode(batch);
        let bytes = segment::frame_bytes(&payload);
        if bytes > self.bytes_max {
            return (Vec::new(), Err(io::ErrorKind::FileTooLarge.into()));
        }
        let mut evicted = Vec::new();
        while self.bytes() + bytes > self.bytes_max && self.evict_oldest(&mut evicted) {}
        let result = self.append_frame(&payload).map(|(segment, frame)| {
            self.entries.push_back(Entry { range: range_of(batch), segment, frame });
        });
        (evicted, result)
    }

    fn append_frame(&mut self, payload: &[u8]) -> io::Result<(u64, Frame)> {
        let full = self.bytes_max / SEGMENTS;
        let active = self.active.filter(|active| {
            let newest = self.segments.back();
            newest.is_some_and(|segment| segment.number == *active && segment.bytes < full)
        });
        let number = match active {
            Some(number) => number,
            None => {
                let number = self.next_number;
                self.segments.push_back(Segment::create(&self.folder, number)?);
                self.next_number += 1;
                self.active = Some(number);
                number
            }
        };
        let segment = self.segments.back_mut().expect("the active segment is the newest");
        match segment.append(payload) {
            Ok(frame) => {
                segment.live += 1;
                Ok((number, frame))
            }
            Err(error) => {
                // What a failed write has left is behind us: never append after it.
                self.active = None;
                self.sweep();
                Err(error)
            }
        }
    }

    fn evict_oldest(&mut self, evicted: &mut Vec<SpooledRange>) -> bool {
        let Some(segment) = self.segments.pop_front() else { return false };
        while self.entries.front().is_some_and(|entry| entry.segment == segment.number) {
            evicted.extend(self.entries.pop_front().map(|entry| entry.range));
        }
        segment.remove();
        true
    }

    /// The batch of a ring that holds a number. What cannot be read is forgotten.
    pub(crate) fn read(&mut self, ring: Incarnation, number: u64) -> Option<Batch> {
        let holds = |range: &SpooledRange| range.ring == ring && (range.first..range.next).contains(&number);
        let at = self.entries.iter().position(|entry| holds(&entry.range))?;
        let entry = &self.entries[at];
        let segment = self.segments.iter().find(|segment| segment.number == entry.segment)?;
        match segment.read(entry.frame) {
            Ok(batch) if range_of(&batch) == entry.range => Some(batch),
            found => {
                let reason = found.err().map_or("other records".to_owned(), |error| error.to_string());
                tracing::warn!(folder = %self.folder.display(), number, reason, "a spooled batch cannot be read");
                self.forget(at);
                self.sweep();
                None
            }
        }
    }

    fn forget(&mut self, at: usize) {
        let Some(entry) = self.entries.remove(at) else { return };
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == entry.segment) {
            segment.live -= 1;
        }
    }

    /// Forgets the batches of a ring that end at or before a number.
    pub(crate) fn release(&mut self, ring: Incarnation, next: u64) {
        let mut at = 0;
        while at < self.entries.len() {
            let range = self.entries[at].range;
            if range.ring == ring && range.next <= next { self.forget(at) } else { at += 1 }
        }
        self.sweep();
    }

    /// Removes segments without a batch.
    fn sweep(&mut self) {
        let mut kept = VecDeque::with_capacity(self.segments.len());
        for segment in self.segments.drain(..) {
            if segment.live > 0 { kept.push_back(segment) } else { segment.remove() }
        }
        self.segments = kept;
    }
}

fn range_of(batch: &Batch) -> SpooledRange {
    SpooledRange { ring: batch.ring, first: batch.first, next: batch.first + batch.records.len() as u64 }
}

#[cfg(test)]
mod tests;
