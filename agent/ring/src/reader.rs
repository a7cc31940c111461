//! The reader's side.

use crate::error::RingError;
use crate::layout::{
    AT_CAPACITY, AT_CLOSED, AT_DEVICE, AT_DEVICE_BYTES, AT_DROPPED, AT_HEAD, AT_INCARNATION, AT_MAGIC, AT_SLOTS,
    AT_STEP, AT_TAIL, AT_VERSION, CAPACITY_RECORDS_MAX, DEVICE_BYTES_MAX, MAGIC, VERSION, ring_bytes,
};
use crate::mapping::Mapping;
use crate::protocol;
use adaptis_proto::sample::Record;
use adaptis_proto::{Incarnation, Step};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

/// The reader of a ring. Opening and watching takes nothing away; only one process at a time may [`Reader::commit`].
pub struct Reader {
    mapping: Mapping,
    device: String,
    incarnation: Incarnation,
    capacity: u64,
    /// Which the writer locks.
    file: File,
    /// Device and inode of the file.
    identity: (u64, u64),
}

impl Reader {
    /// Opens the ring at a path.
    ///
    /// # Errors
    /// [`RingError::Missing`] while there is none, [`RingError::Foreign`], [`RingError::Version`] and
    /// [`RingError::Truncated`] by what is there instead.
    pub fn open(path: &Path) -> Result<Reader, RingError> {
        let fault = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => RingError::Missing { path: path.to_owned() },
            io::ErrorKind::IsADirectory => RingError::Foreign { path: path.to_owned() },
            _ => RingError::Io { path: path.to_owned(), source },
        };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(fault)?;
        let metadata = file.metadata().map_err(fault)?;
        let foreign = || RingError::Foreign { path: path.to_owned() };
        if !metadata.is_file() || metadata.len() < (AT_SLOTS * 8) as u64 {
            return Err(foreign());
        }
        let mapping = Mapping::new(&file, metadata.len(), path)?;
        let word = |at: usize| mapping.words()[at].load(Relaxed);
        if word(AT_MAGIC) != MAGIC {
            return Err(foreign());
        }
        if word(AT_VERSION) != VERSION {
            return Err(RingError::Version { path: path.to_owned(), found: word(AT_VERSION), expected: VERSION });
        }
        let capacity = usize::try_from(word(AT_CAPACITY)).map_err(|_| foreign())?;
        if !capacity.is_power_of_two() || capacity > CAPACITY_RECORDS_MAX {
            return Err(foreign());
        }
        if metadata.len() != ring_bytes(capacity) {
            return Err(RingError::Truncated {
                path: path.to_owned(),
                expected_bytes: ring_bytes(capacity),
                found_bytes: metadata.len(),
            });
        }
        let device = read_device(mapping.words()).ok_or_else(foreign)?;
        let incarnation = Incarnation(word(AT_INCARNATION));
        let identity = (metadata.dev(), metadata.ino());
        Ok(Reader { mapping, device, incarnation, capacity: capacity as u64, file, identity })
    }

    /// Of the recording process.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Name of the recorded device.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Records that the ring holds at most.
    pub fn capacity_records(&self) -> u64 {
        self.capacity
    }

    /// The iteration that training is in.
    pub fn step(&self) -> Step {
        Step(self.word(AT_STEP).load(Relaxed))
    }

    /// Samples dropped so far because the ring was full.
    pub fn dropped(&self) -> u64 {
        self.word(AT_DROPPED).load(Relaxed)
    }

    /// Nothing more will come: what [`Reader::head`] says *afterwards* is final.
    pub fn closed(&self) -> bool {
        self.word(AT_CLOSED).load(Acquire) != 0
    }

    /// The writer's process is gone, however it ended: nothing more will come, as with [`Reader::closed`].
    ///
    /// While this looks, a moment, a new writer finds the place taken.
    pub fn is_deserted(&self) -> bool {
        // A writer holds the lock for as long as it lives, so whoever gets it knows; a failure to ask says nothing.
        self.file.try_lock_shared().is_ok_and(|()| self.file.unlock().is_ok())
    }

    /// Number of the next record that the writer will write.
    pub fn head(&self) -> u64 {
        self.word(AT_HEAD).load(Acquire)
    }

    /// Number of the first record that was not committed.
    pub fn committed(&self) -> u64 {
        self.word(AT_TAIL).load(Relaxed)
    }

    /// Appends the records from number `from` on to `out`, at most `limit`, and returns the number after the last. From
    /// below what was committed it starts at the committed number. Frees nothing.
    pub fn read(&self, from: u64, out: &mut Vec<Record>, limit: usize) -> u64 {
        let words = self.mapping.words();
        let range = protocol::readable(words, self.capacity);
        let from = from.max(range.start);
        let next = range.end.min(from.saturating_add(limit as u64));
        out.extend((from..next).map(|number| protocol::load(words, self.capacity, number)));
        next.max(from)
    }

    /// Frees the slots of the records below `next`: only after those are safe elsewhere. Never goes back, never passes
    /// the head.
    pub fn commit(&mut self, next: u64) {
        protocol::commit(self.mapping.words(), self.capacity, next);
    }

    /// Another file lies at `path` by now, or none: a new process has put its own ring there.
    pub fn replaced_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).map_or(true, |metadata| (metadata.dev(), metadata.ino()) != self.identity)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        &self.mapping.words()[at]
    }
}

fn read_device(words: &[AtomicU64]) -> Option<String> {
    let length = usize::try_from(words[AT_DEVICE_BYTES].load(Relaxed)).ok()?;
    if length > DEVICE_BYTES_MAX {
        return None;
    }
    let bytes = words[AT_DEVICE..AT_HEAD].iter().flat_map(|word| word.load(Relaxed).to_le_bytes());
    String::from_utf8(bytes.take(length).collect()).ok()
}
