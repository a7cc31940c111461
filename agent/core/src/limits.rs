//! Every limit of an agent, with what happens when it is reached.

/// The limits of an agent. [`Limits::default`] is meant for production.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records in a batch; a full one is closed.
    pub batch_records_max: usize,
    /// Age of the first record of a batch; an older one is closed.
    pub batch_age_ns_max: u64,
    /// Batches sent and not acknowledged; the rest waits.
    pub in_flight_max: usize,
    /// First wait for an acknowledgement; it doubles with each silence.
    pub resend_ns: u64,
    /// Longest wait for an acknowledgement.
    pub resend_ns_max: u64,
    /// Records of a ring that is gone which the spool would not take: beyond, the oldest are dropped as `spool_full`.
    pub orphan_records_max: u64,
    /// How long the spool is left alone after it refused.
    pub spool_retry_ns: u64,
    /// Between exchanges of clocks.
    pub ping_ns: u64,
    /// Between the first exchanges, until there are enough to choose from.
    pub ping_ns_at_start: u64,
    /// Number of the first exchanges.
    pub pings_at_start: u32,
    /// Between reports of health.
    pub report_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_records_max: 1024,
            batch_age_ns_max: 100_000_000,
            in_flight_max: 16,
            resend_ns: 500_000_000,
            resend_ns_max: 4_000_000_000,
            orphan_records_max: 1 << 16,
            spool_retry_ns: 1_000_000_000,
            ping_ns: 2_000_000_000,
            ping_ns_at_start: 100_000_000,
            pings_at_start: 8,
            report_ns: 2_000_000_000,
        }
    }
}
