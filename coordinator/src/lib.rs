//! The coordinator: takes in what agents and ranks say, keeps it, lets the core decide, and does what that says.
//!
//! ```text
//!   link --> ingest --> store --> core::Brain --effects--> ledger, link, search thread
//!                                    |
//!                                 status --> http, report
//! ```
//!
//! Beside it, [`replay`] diagnoses recorded jobs: runs of ours by their stores, and traces of others.
//!
//! 1. One thread decides and writes (`control`); searches run beside it with lower priority; pages are served from
//!    copies, so that nobody who looks can slow the loop down.
//! 2. An agent is told that a batch is stored only after the commit that holds it.
//! 3. This crate decides nothing: it owns the sockets, the clock, the file and the threads.
//!
//! Left out on purpose: starting and watching other processes, and every picture.

mod control;
mod copies;
mod error;
mod http;
mod ingest;
mod peers;
pub mod profiles;
mod recalling;
pub mod replay;
mod report;
mod searching;
mod snapshot;
mod store;
mod trace;

pub use error::CoordinatorError;
pub use report::{FILE as REPORT_FILE, PLANS as PLANS_FOLDER};
pub use store::{
    Counts, FILE as STORE_FILE, Profiles, RECORDS_BYTES_MAX, RunRecord, Store, StoreError, Stored, record_of, work_of,
};
pub use trace::TraceError;

pub use adaptis_coordinator_core::Mode;
pub use adaptis_coordinator_core::admission::Policy;
pub use adaptis_coordinator_core::brain::Deadlines;
pub use adaptis_coordinator_core::next_job;

use adaptis_coordinator_core::Config;
use adaptis_link::Security;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// How a coordinator runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The run's folder: store, report, plans. Made if it isn't there.
    pub dir: PathBuf,
    /// Where ranks, agents and tools reach it, `tcp://127.0.0.1:29611`.
    pub listen: String,
    /// Where its pages are, `127.0.0.1:29610`; none for no pages.
    pub http: Option<String>,
    /// Keys of the link.
    pub security: Security,
    /// What it may do to the job.
    pub mode: Mode,
    /// Nobody said so: the job may ask for another mode.
    pub is_mode_open: bool,
    /// Never search and never switch: a run to compare with.
    pub static_plan: bool,
    /// Of every random choice.
    pub seed: u64,
    /// Longest time for one search.
    pub search_budget: Duration,
    /// Evaluations for one search, so that a run can be repeated; none: only the time counts.
    pub search_evaluations: Option<u64>,
    /// Iterations that a gain is expected to last, at most.
    pub horizon_iterations: u64,
    /// What the operator set.
    pub policy: Policy,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// Bytes of records that the store keeps; the oldest go.
    pub records_bytes_max: u64,
    /// Store of profiles, whose earlier jobs are the prior of this one's estimate; none: it begins with nothing.
    pub store: Option<PathBuf>,
    /// Faults that were made on purpose, for the report: a JSON list of `{"iteration", "text"}`.
    pub faults: Option<PathBuf>,
}

impl Options {
    /// The defaults, for a run in `dir`.
    pub fn new(dir: PathBuf) -> Self {
        let config = Config::default();
        Self {
            dir,
            listen: "tcp://127.0.0.1:29611".to_owned(),
            http: Some("127.0.0.1:29610".to_owned()),
            security: Security::Open,
            mode: config.mode,
            is_mode_open: config.is_mode_open,
            static_plan: config.is_static,
            seed: config.seed,
            search_budget: Duration::from_nanos(config.search_budget_ns),
            search_evaluations: config.search_evaluations,
            horizon_iterations: config.horizon_iterations,
            policy: config.policy,
            deadlines: config.deadlines,
            records_bytes_max: RECORDS_BYTES_MAX,
            store: None,
            faults: None,
        }
    }

    fn config(&self) -> Config {
        Config {
            mode: self.mode,
            is_mode_open: self.is_mode_open,
            is_static: self.static_plan,
            seed: self.seed,
            search_budget_ns: u64::try_from(self.search_budget.as_nanos()).unwrap_or(u64::MAX),
            search_evaluations: self.search_evaluations,
            horizon_iterations: self.horizon_iterations,
            policy: self.policy,
            deadlines: self.deadlines,
        }
    }
}

/// How a coordinator ended in good order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to stop after the run had ended and was recorded.
    Finished,
    /// It was asked to stop after the run had failed; why.
    Failed(String),
    /// It was asked to stop while the run went on.
    Stopped,
}

/// Runs a coordinator until `stop` is set, then flushes and writes the report.
///
/// # Errors
/// An address, the folder or the store can't be used; another coordinator took over; the disk fails.
pub fn run(options: Options, stop: Arc<AtomicBool>) -> Result<Ended, CoordinatorError> {
    let path = options.dir.join(STORE_FILE);
    control::Control::open(options).and_then(|control| control.run(&stop)).map_err(|error| error.of(path))
}
