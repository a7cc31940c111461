//! The ring that is drained, and the one that takes its place.

use crate::error::AgentError;
use adaptis_agent_core::Event;
use adaptis_proto::Incarnation;
use adaptis_ring::{Reader, RingError};
use std::path::{Path, PathBuf};

/// Records read at once; the rest comes with the next look.
const READ_RECORDS_MAX: usize = 1 << 16;

/// Waits for rings at a path and reads them, one after the other.
pub(crate) struct Source {
    path: PathBuf,
    device: String,
    reader: Option<Reader>,
    /// Drops already told.
    dropped: u64,
    /// The open ring's writer was found to be gone.
    is_deserted: bool,
}

impl Source {
    pub(crate) fn new(path: &Path, device: &str) -> Self {
        Self { path: path.to_owned(), device: device.to_owned(), reader: None, dropped: 0, is_deserted: false }
    }

    /// Opens a ring if none is open.
    ///
    /// # Errors
    /// What lies there is no ring, or another device's. That there is none yet is no error.
    pub(crate) fn open(&mut self) -> Result<Option<Event>, AgentError> {
        if self.reader.is_some() {
            return Ok(None);
        }
        let reader = match Reader::open(&self.path) {
            Ok(reader) => reader,
            Err(RingError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.adopt(reader).map(Some)
    }

    fn adopt(&mut self, reader: Reader) -> Result<Event, AgentError> {
        if reader.device() != self.device {
            return Err(AgentError::OtherDevice {
                path: self.path.clone(),
                found: reader.device().to_owned(),
                expected: self.device.clone(),
            });
        }
        let ring = reader.incarnation();
        tracing::info!(device = %self.device, ring = ring.0, committed = reader.committed(), "draining a ring");
        let (committed, capacity_records) = (reader.committed(), reader.capacity_records());
        (self.dropped, self.is_deserted) = (0, false);
        self.reader = Some(reader);
        Ok(Event::RingOpened { ring, committed, capacity_records })
    }

    /// What is new from a number on.
    pub(crate) fn drain(&mut self, next: u64) -> Option<Event> {
        let reader = self.reader.as_ref()?;
        let mut records = Vec::new();
        let after = reader.read(next, &mut records, READ_RECORDS_MAX);
        let dropped = reader.dropped();
        if records.is_empty() && dropped == self.dropped {
            return None;
        }
        self.dropped = dropped;
        Some(Event::Drained { first: after - records.len() as u64, records, dropped })
    }

    /// A process that lives has recorded something.
    pub(crate) fn is_training(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.head() > 0 && !reader.closed() && !reader.is_deserted())
    }

    /// All is read up to a number, and nothing more will come.
    pub(crate) fn is_exhausted(&mut self, next: u64) -> bool {
        let Some(reader) = &self.reader else { return false };
        // Once is enough: the look at the lock is in the way of a new writer.
        self.is_deserted = self.is_deserted || (!reader.closed() && reader.is_deserted());
        // Closed or deserted first: the head is final only if it is read afterwards.
        (reader.closed() || self.is_deserted) && next >= reader.head()
    }

    /// Another ring lies at the path, and all of the open one is read: its end, and the beginning of the next.
    pub(crate) fn replace(&mut self, next: u64) -> Result<Option<[Event; 2]>, AgentError> {
        let Some(reader) = &self.reader else { return Ok(None) };
        if next < reader.head() || !reader.replaced_at(&self.path) {
            return Ok(None);
        }
        match Reader::open(&self.path) {
            Ok(new) if new.incarnation() != reader.incarnation() => {
                self.adopt(new).map(|opened| Some([Event::RingEnded, opened]))
            }
            // Removed, or a copy of the same: the open one is the only one there is.
            Ok(_) | Err(RingError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Frees the records of a ring below a number, if that ring is the open one.
    pub(crate) fn commit(&mut self, ring: Incarnation, next: u64) {
        if let Some(reader) = self.reader.as_mut().filter(|reader| reader.incarnation() == ring) {
            reader.commit(next);
        }
    }
}
