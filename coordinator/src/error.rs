//! What can go wrong with a coordinator.

use crate::store::StoreError;
use std::path::PathBuf;

/// A fault of a coordinator.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The store can't be used; the error names the file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in the store can't be used.
    #[error("{path}: {source}")]
    Broken {
        /// The store.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The link can't be used.
    #[error(transparent)]
    Link(#[from] adaptis_link::Error),
    /// Another process serves pages there.
    #[error("{address} is in use by another process: stop it, or choose another address for the pages")]
    AddressInUse {
        /// As given.
        address: String,
    },
    /// Pages can't be served there.
    #[error("pages can't be served at {address}: {source}")]
    Pages {
        /// As given.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file of faults is no list of faults.
    #[error("{path}: {source}: write a list of {{\"iteration\": 40, \"text\": \"throttle:gpu1:1.8\"}}")]
    Faults {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl CoordinatorError {
    /// Names the store where the error alone does not.
    pub(crate) fn of(self, path: PathBuf) -> Self {
        match self {
            CoordinatorError::Store(
                source @ (StoreError::Damaged { .. }
                | StoreError::Contradictory(_)
                | StoreError::Conflict { .. }
                | StoreError::Deposed { .. }
                | StoreError::Database(_)),
            ) => CoordinatorError::Broken { path, source },
            other => other,
        }
    }
}
