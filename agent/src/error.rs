//! Why an agent cannot do its task.

use adaptis_ring::RingError;
use std::io;
use std::path::PathBuf;

/// Why an agent cannot do its task. What it can do without is counted instead.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// What lies at the ring's path cannot be drained.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The ring is another device's.
    #[error("{}: this is the ring of device `{found}`, and the agent is `{expected}`'s", path.display())]
    OtherDevice {
        /// Where.
        path: PathBuf,
        /// What the ring says.
        found: String,
        /// What the agent was told.
        expected: String,
    },
    /// The link cannot be made, or has failed for good.
    #[error("no link to the coordinator: {0}")]
    Link(#[from] adaptis_link::Error),
    /// Another agent uses the spool.
    #[error("{}: another agent uses this spool: stop it, or name another folder", folder.display())]
    SpoolInUse {
        /// Where.
        folder: PathBuf,
    },
    /// The spool's folder cannot be made or read.
    #[error("the spool {}: {source}", folder.display())]
    Spool {
        /// Where.
        folder: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The system gave no thread for the probes.
    #[error("no thread for the probes: {0}")]
    Thread(io::Error),
}
