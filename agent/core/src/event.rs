//! What an agent is told, and what it answers.

use adaptis_proto::Incarnation;
use adaptis_proto::message::{AgentEvent, AgentOrder, Batch};
use adaptis_proto::sample::Record;

/// Consecutive records of one ring in the spool: one batch as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpooledRange {
    /// Which ring.
    pub ring: Incarnation,
    /// Number of its first record.
    pub first: u64,
    /// Number after its last record.
    pub next: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Time passed.
    Ticked,
    /// The spool of an earlier agent process was read, oldest batch first. Comes before any ring.
    SpoolFound(Vec<SpooledRange>),
    /// A ring was opened. The one before has ended.
    RingOpened {
        /// Which one.
        ring: Incarnation,
        /// Number of the first record that it has not freed.
        committed: u64,
        /// Records that it holds at most.
        capacity_records: u64,
    },
    /// Records were read from the open ring.
    Drained {
        /// Number of the first one.
        first: u64,
        /// Those records.
        records: Vec<Record>,
        /// Samples that the ring dropped in its life, because it was full.
        dropped: u64,
    },
    /// Nothing more will come from the open ring.
    RingEnded,
    /// A batch is safe in the spool.
    Spooled(SpooledRange),
    /// The spool did not take a batch.
    SpoolRefused(SpooledRange),
    /// A batch came back from the spool.
    Unspooled(Batch),
    /// A batch did not come back from the spool: it is damaged or gone, and will not be asked for again.
    UnspoolFailed {
        /// Which ring.
        ring: Incarnation,
        /// Number that was asked for.
        first: u64,
    },
    /// The spool was full and let its oldest batch go.
    Evicted(SpooledRange),
    /// The coordinator spoke.
    Ordered(AgentOrder),
    /// Finish: close every batch at once and wait for no more of them to fill up.
    Stopping,
    /// Time is up: save what is not acknowledged.
    Leaving,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send to the coordinator. May be lost.
    Send(AgentEvent),
    /// Tell the coordinator how the device and the agent are: readings and counters to go with the device's own.
    Report {
        /// Readings by name, unit and qualifier last.
        readings: Vec<(String, f64)>,
        /// Counters by name.
        counters: Vec<(String, u64)>,
    },
    /// Write to the spool, then say [`Event::Spooled`] or [`Event::SpoolRefused`].
    Spool(Batch),
    /// Read the batch that holds a number, then say [`Event::Unspooled`] or [`Event::UnspoolFailed`].
    Unspool {
        /// Which ring.
        ring: Incarnation,
        /// A number within the batch.
        first: u64,
    },
    /// The spool need not keep a ring's batches that end at or before a number.
    Release {
        /// Which ring.
        ring: Incarnation,
        /// The number.
        next: u64,
    },
    /// Free the open ring's records below a number.
    Commit {
        /// Which ring.
        ring: Incarnation,
        /// The number.
        next: u64,
    },
}
