//! Accounting: nothing disappears without a cause.

/// What became of the samples that were offered to this agent process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Read from rings or found in the spool, and those that the rings dropped.
    pub taken: u64,
    /// On disk at the coordinator.
    pub stored: u64,
    /// Dropped by the training process because the ring was full.
    pub dropped_ring_full: u64,
    /// Dropped because the spool was full, oldest first.
    pub dropped_spool_full: u64,
    /// Lost in the spool: damaged or gone.
    pub dropped_unreadable: u64,
    /// Not stored yet, wherever it is.
    pub queued: u64,
    /// Of a kind or phase that this build does not know; passed on all the same.
    pub unknown_records: u64,
    /// Of more layers than are sketched; passed on all the same.
    pub unsketched: u64,
    /// Batches sent, doubles included.
    pub batches_sent: u64,
    /// Silences after which everything in flight was sent again.
    pub resends: u64,
    /// Batches that the spool refused.
    pub spool_refusals: u64,
    /// Acknowledgements that said nothing new.
    pub stale_acknowledgements: u64,
}

impl Counters {
    /// `taken = stored + dropped + queued`.
    pub fn add_up(&self) -> bool {
        self.taken == self.stored + self.dropped() + self.queued
    }

    /// Dropped, for whatever cause.
    pub fn dropped(&self) -> u64 {
        self.dropped_ring_full + self.dropped_spool_full + self.dropped_unreadable
    }

    /// By name.
    pub fn named(&self) -> Vec<(String, u64)> {
        [
            ("taken", self.taken),
            ("stored", self.stored),
            ("dropped_ring_full", self.dropped_ring_full),
            ("dropped_spool_full", self.dropped_spool_full),
            ("dropped_unreadable", self.dropped_unreadable),
            ("queued", self.queued),
            ("unknown_records", self.unknown_records),
            ("unsketched", self.unsketched),
            ("batches_sent", self.batches_sent),
            ("resends", self.resends),
            ("spool_refusals", self.spool_refusals),
            ("stale_acknowledgements", self.stale_acknowledgements),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}
