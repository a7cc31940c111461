//! Why a ring cannot be made or opened.

use std::io;
use std::path::PathBuf;

/// Why a ring cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// There is no file yet: the training process has not started.
    #[error("{}: there is no ring here", path.display())]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// A file, but not a ring.
    #[error("{}: this file is not a ring of adaptis; remove it, or name another path", path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
    },
    /// Another process writes the ring there.
    #[error("{}: another process writes this ring; end it, or name another path", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// A ring of another version.
    #[error("{}: ring version {found}, this build reads {expected}: start agent and training from one release", path.display())]
    Version {
        /// Where.
        path: PathBuf,
        /// What its header says.
        found: u64,
        /// What this build reads.
        expected: u64,
    },
    /// Shorter or longer than its header says.
    #[error("{}: the ring holds {found_bytes} bytes where its header says {expected_bytes}", path.display())]
    Truncated {
        /// Where.
        path: PathBuf,
        /// By the capacity in its header.
        expected_bytes: u64,
        /// The file's length.
        found_bytes: u64,
    },
    /// A capacity that is not a power of two, or out of range.
    #[error("a ring of {requested} records is not possible: take a power of two up to {max}", max = crate::CAPACITY_RECORDS_MAX)]
    Capacity {
        /// What was asked for.
        requested: usize,
    },
    /// A device name that does not fit in the header.
    #[error("a device name of {length} bytes does not fit in a ring: take at most {max}", max = crate::DEVICE_BYTES_MAX)]
    DeviceName {
        /// Its length in bytes.
        length: usize,
    },
    /// There is no folder for it.
    #[error("{}: the folder of this ring is not there; make it, or name another path", path.display())]
    Folder {
        /// Of the ring.
        path: PathBuf,
    },
    /// The file system is full.
    #[error("{}: no room for a ring of {needed_bytes} bytes: make room there, or name another path", path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Size of the ring.
        needed_bytes: u64,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}
