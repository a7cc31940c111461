//! The agent of one device: drains the ring, probes the device, streams to the coordinator.
//!
//! ```text
//!   ring --source--> +------------+ --link--> coordinator
//!   spool <-------->  | agent-core | <-------- acknowledgements, clock
//!   probes ---------> +------------+
//! ```
//!
//! The shell of `adaptis-agent-core`: it owns clock, files and socket and decides nothing.
//!
//! 1. Training never waits for us and never notices us: we only read its ring, and free what is safe elsewhere.
//! 2. A fault of the spool, the coordinator or a probe is counted and reported, and never ends the agent. Only what
//!    makes its whole task impossible does: a file that is no ring, another agent on the same spool, no link.
//! 3. A killed agent loses nothing: its successor takes up the ring where it was freed, and the spool as it lies.
//!
//! Left out on purpose: an asynchronous runtime. One thread sleeps in the link's queue until the next deadline; probes and
//! the calibration, whose drivers may hang, have threads of their own.

mod calibration;
mod error;
mod options;
mod probes;
mod run;
mod source;
mod spool;
mod summary;

pub use adaptis_agent_core::{LayerSummary, Limits};
pub use error::AgentError;
pub use options::{Calibrating, Options};
pub use probes::cuda::Card;
pub use probes::inventory::{Gpu, Inventory, Library, inventory};
pub use probes::nvml::{CallCost, call_costs};
pub use run::run;
pub use summary::Summary;
