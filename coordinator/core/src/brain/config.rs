//! How the coordinator is to behave.

use crate::admission::Policy;
pub use adaptis_proto::message::Mode;

/// How long things may take. All of them are shorter in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// A rank that is silent for longer is lost. A lost rank ends the run, and its neighbours, who wait 30 s for it,
    /// tell more of it than silence does: they are to be heard first. And a rank that only paused must not end the run.
    pub heartbeat_ns: u64,
    /// A plan that has not taken effect by then is aborted.
    pub prepare_ns: u64,
    /// Between two tries of an order.
    pub repeat_ns: u64,
    /// How long the end of a run waits for the last samples.
    pub drain_ns: u64,
    /// Silence of all samples after which they count as drained.
    pub quiet_ns: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            heartbeat_ns: 45_000_000_000,
            prepare_ns: 120_000_000_000,
            repeat_ns: 500_000_000,
            drain_ns: 3_000_000_000,
            quiet_ns: 300_000_000,
        }
    }
}

/// How the coordinator behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// What it may do.
    pub mode: Mode,
    /// Nobody said so: the job may ask for another mode.
    pub is_mode_open: bool,
    /// Never search, whatever the mode: a run to compare with.
    pub is_static: bool,
    /// Of every random choice.
    pub seed: u64,
    /// Time for one search.
    pub search_budget_ns: u64,
    /// Evaluations for one search; none: only the time counts.
    pub search_evaluations: Option<u64>,
    /// Iterations that a gain is expected to last, at most; a run's own end counts as well.
    pub horizon_iterations: u64,
    /// What the operator set.
    pub policy: Policy,
    /// How long things may take.
    pub deadlines: Deadlines,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Observe,
            is_mode_open: false,
            is_static: false,
            seed: 1,
            search_budget_ns: 1_000_000_000,
            search_evaluations: None,
            horizon_iterations: 1_000,
            policy: Policy::default(),
            deadlines: Deadlines::default(),
        }
    }
}
