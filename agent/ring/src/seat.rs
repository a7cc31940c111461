//! The place of a ring in the file system, and who may put one there.
//!
//! ```text
//!   path -->  nothing             : a ring may be put there, if it is still nothing then
//!             a ring, unlocked    : its writer is gone; a new ring takes its place, both locked meanwhile
//!             a ring, locked      : its writer lives; refused
//!             anything else       : somebody's file; refused
//! ```
//!
//! 1. A writer holds an exclusive lock on its ring's file for as long as it lives, however it ends.
//! 2. Between a look and the replacement nobody else can take the place: the old file stays locked, and a file that came
//!    to lie where there was none is never replaced unseen.
//!
//! Left out on purpose: links. A ring is put over no symbolic link, since that would replace the link.

use crate::error::RingError;
use crate::layout::MAGIC;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Looks at a place that others change at the same time, at most; more is no coincidence.
const LOOKS_MAX: usize = 16;

/// A place held against other writers.
pub(crate) struct Seat {
    /// The ring of a writer that is gone, locked.
    old: Option<File>,
}

impl Seat {
    /// Takes the place at `path`.
    ///
    /// # Errors
    /// [`RingError::InUse`] while the writer of the ring there lives, [`RingError::Foreign`] if no ring lies there.
    pub fn take(path: &Path) -> Result<Seat, RingError> {
        for _ in 0..LOOKS_MAX {
            let Some(mut file) = open(path)? else { return Ok(Seat { old: None }) };
            if !is_ring(&mut file).map_err(|source| io_error(path, source))? {
                return Err(RingError::Foreign { path: path.to_owned() });
            }
            lock(&file, path)?;
            if is_at(&file, path) {
                return Ok(Seat { old: Some(file) });
            }
        }
        Err(RingError::InUse { path: path.to_owned() })
    }

    /// Puts the locked file that lies at `from` in this place; says whether the place was still what it was taken for.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn fill(&self, from: &Path, path: &Path) -> Result<bool, RingError> {
        let done = match &self.old {
            Some(_) => std::fs::rename(from, path),
            // Unlike a rename, a link never replaces what is there.
            None => std::fs::hard_link(from, path).and_then(|()| std::fs::remove_file(from)),
        };
        match done {
            Ok(()) => Ok(true),
            Err(error) if self.old.is_none() && error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(io_error(path, source)),
        }
    }
}

/// Locks a ring's file for its writer.
pub(crate) fn lock(file: &File, path: &Path) -> Result<(), RingError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(RingError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io_error(path, source)),
    }
}

fn open(path: &Path) -> Result<Option<File>, RingError> {
    let foreign = || RingError::Foreign { path: path.to_owned() };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(foreign()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error(path, source)),
    }
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error(path, source)),
    }
}

/// Of whatever version: an older release's ring is ours to replace.
fn is_ring(file: &mut File) -> io::Result<bool> {
    let mut magic = Vec::new();
    file.by_ref().take(size_of::<u64>() as u64).read_to_end(&mut magic)?;
    Ok(magic == MAGIC.to_ne_bytes())
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let (held, there) = (file.metadata().map(identity), std::fs::symlink_metadata(path).map(identity));
    held.ok().zip(there.ok()).is_some_and(|(held, there)| held == there)
}

fn io_error(path: &Path, source: io::Error) -> RingError {
    RingError::Io { path: path.to_owned(), source }
}
