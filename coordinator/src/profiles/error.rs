//! What can go wrong with a store of profiles.

use super::library::VERSION;
use crate::store::StoreError;
use std::path::{Path, PathBuf};

/// A fault of a store of profiles, or of what is read as one.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// Nothing is there.
    #[error(
        "{path}: no profiles there: name a store, a run's folder or an exported file; `adaptis profiles merge RUN` makes a store"
    )]
    NotThere {
        /// Where.
        path: PathBuf,
    },
    /// A store is to be opened where a file is.
    #[error("{path} is a file, and a store is a folder: name the folder of a store, or one that is to be made")]
    NoFolder {
        /// Which.
        path: PathBuf,
    },
    /// The file is no store of ours.
    #[error("{path} is not a store of profiles: name another one, or move the file away")]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// The store is of a version that this build does not know.
    #[error(
        "{path} is a store of profiles of version {found}, and this build knows version {VERSION}: use the release that \
         wrote it, or name another store"
    )]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// An entry can't be read back.
    #[error("{path} is damaged: {what}; take a copy that is whole, or make a new store and merge the runs again")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Which entry, and why.
        what: String,
    },
    /// What was to be read is no text of profiles.
    #[error("{path}: {problem}")]
    Text {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A run's folder.
    #[error("{path}: {source}")]
    Run {
        /// Which.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// No space.
    #[error("{path}: no space left: make room, or name a store elsewhere; nothing was changed")]
    Full {
        /// Which.
        path: PathBuf,
    },
    /// Others write all the time.
    #[error("{path}: others have been writing into it for a minute: try again")]
    Busy {
        /// Which.
        path: PathBuf,
    },
    /// A file or folder can't be made, opened or written.
    #[error("{path}: {source}")]
    Environment {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// SQLite failed.
    #[error("{path}: {source}; nothing was changed")]
    Database {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

impl LibraryError {
    /// Whether the file is at fault, and not what surrounds it.
    pub fn is_of_file(&self) -> bool {
        match self {
            LibraryError::NotThere { .. }
            | LibraryError::NoFolder { .. }
            | LibraryError::Foreign { .. }
            | LibraryError::Version { .. }
            | LibraryError::Damaged { .. }
            | LibraryError::Text { .. } => true,
            LibraryError::Run { source, .. } => source.is_of_the_file(),
            LibraryError::Full { .. }
            | LibraryError::Busy { .. }
            | LibraryError::Environment { .. }
            | LibraryError::Database { .. } => false,
        }
    }

    /// What SQLite says of a file.
    pub(super) fn of(path: &Path, error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase, PermissionDenied,
            ReadOnly,
        };
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(NotADatabase) => LibraryError::Foreign { path },
            Some(DatabaseCorrupt) => LibraryError::Damaged { path, what: "a page can't be read".to_owned() },
            Some(DiskFull) => LibraryError::Full { path },
            Some(DatabaseBusy | DatabaseLocked) => LibraryError::Busy { path },
            Some(CannotOpen | PermissionDenied | ReadOnly) => {
                LibraryError::Environment { path, source: std::io::Error::other(error) }
            }
            // A value of another type than was written, or a table that is not there.
            None if !matches!(error, rusqlite::Error::SqliteFailure(..)) => {
                LibraryError::Damaged { path, what: error.to_string() }
            }
            _ => LibraryError::Database { path, source: error },
        }
    }
}
