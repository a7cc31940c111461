//! A copy of where things stand, for those who look.

use adaptis_coordinator_core::ledger::IterationRecord;
use adaptis_proto::message::{Health, PeakMemory, Status};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What pages are made of.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) status: Status,
    /// How many costs come from where.
    pub(crate) figures: Vec<(String, u64)>,
    pub(crate) memory: Vec<PeakMemory>,
    pub(crate) health: Vec<Health>,
    /// The newest iterations, oldest first.
    pub(crate) iterations: Vec<IterationRecord>,
    pub(crate) taken: Instant,
}

/// The newest snapshot, shared between the loop and the pages.
#[derive(Clone, Debug)]
pub(crate) struct Board(Arc<Mutex<Arc<Snapshot>>>);

impl Board {
    pub(crate) fn new() -> Self {
        let (status, taken) = (Status::default(), Instant::now());
        let snapshot = Snapshot {
            status,
            figures: Vec::new(),
            memory: Vec::new(),
            health: Vec::new(),
            iterations: Vec::new(),
            taken,
        };
        Self(Arc::new(Mutex::new(Arc::new(snapshot))))
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    pub(crate) fn read(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
