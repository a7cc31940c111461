//! A copy of where things stand, for those who look.

use adaptis_proto::message::{Health, PeakMemory, Status};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What pages are made of.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) status: Status,
    pub(crate) memory: Vec<PeakMemory>,
    pub(crate) health: Vec<Health>,
    pub(crate) taken: Instant,
}

/// The newest snapshot, shared between the loop and the pages.
#[derive(Clone, Debug)]
pub(crate) struct Board(Arc<Mutex<Arc<Snapshot>>>);

impl Board {
    pub(crate) fn new() -> Self {
        let (status, memory, health) = (Status::default(), Vec::new(), Vec::new());
        let snapshot = Snapshot { status, memory, health, taken: Instant::now() };
        Self(Arc::new(Mutex::new(Arc::new(snapshot))))
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    pub(crate) fn read(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
