//! What ends a rank early.

use crate::transport::WireError;
use adaptis_link as link;
use adaptis_plan::FormatError;
use adaptis_proto::message::{Failure, Rejection};
use adaptis_ring::RingError;
use std::io;
use std::path::PathBuf;

/// Why a rank could not do its job.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The emulation file is not of its format.
    #[error("{}: {source}", path.display())]
    Emulation {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// The text of the emulation cannot be trained on.
    #[error("{}: {source}", path.display())]
    Text {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        source: crate::backend::cpu::TextError,
    },
    /// The emulation has no such device.
    #[error("device `{device}` is not in the emulation; it has: {}", known.join(", "))]
    UnknownDevice {
        /// As given.
        device: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// A link cannot be opened.
    #[error("link: {0}")]
    Link(#[from] link::Error),
    /// A peer of this rank has no key here, so it cannot be told from a stranger.
    #[error(
        "device `{device}` cannot be reached: {source}; put its clients/{device}.pub into this machine's key folder"
    )]
    PeerKey {
        /// Whose key is missing.
        device: String,
        /// What the ring says.
        source: link::keys::KeyError,
    },
    /// A message could not be carried.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The ring cannot be made.
    #[error("ring: {0}")]
    Ring(#[from] RingError),
    /// The control thread could not be started.
    #[error("cannot start the control thread: {0}")]
    Thread(io::Error),
    /// The coordinator turned this rank away.
    #[error("the coordinator turned this rank away: {0}")]
    Rejected(Rejection),
    /// Training failed.
    #[error("training failed: {}", failure.told(devices))]
    Failed {
        /// How.
        failure: Failure,
        /// Names of the devices, by index.
        devices: Vec<String>,
    },
    /// Training is done, but the link was lost before the coordinator confirmed that it recorded the end.
    #[error("training is done, but the link to the coordinator failed before it was recorded")]
    Unconfirmed,
}

/// Why the training loop is left before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// Something failed, here or at a peer.
    Failed(Failure),
    /// The process was asked to stop.
    Asked,
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Halt::Failed(failure)
    }
}

impl From<WireError> for Halt {
    fn from(error: WireError) -> Self {
        Halt::Failed(Failure::Environment(error.to_string()))
    }
}
