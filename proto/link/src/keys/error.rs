//! What can go wrong with keys.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Text that is not a key.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum KeyTextError {
    /// A key has 40 characters.
    #[error("a key has 40 characters and this has {chars}")]
    Length {
        /// Found.
        chars: usize,
    },
    /// Not one of the 85 characters of Z85.
    #[error("{character:?} at character {position} is not one of a key's (Z85)")]
    Character {
        /// Found.
        character: char,
        /// From 1.
        position: usize,
    },
    /// Five characters that stand for more than 32 bits.
    #[error("the five characters from {position} stand for no number of a key (Z85)")]
    Range {
        /// From 1.
        position: usize,
    },
}

/// A fault of a key file or of the folder of keys.
#[derive(Debug, Error)]
pub enum KeyError {
    /// A file or folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or folder cannot be written; keys are never overwritten.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds text that is not a key.
    #[error("{}: {source}", path.display())]
    Text {
        /// Which.
        path: PathBuf,
        /// Why.
        source: KeyTextError,
    },
    /// A secret file without its two lines.
    #[error("{} is not a secret key file: it must hold a line `public KEY` and a line `secret KEY`; restore it, or remove it and its .pub and run `adaptis keys` again", path.display())]
    Shape {
        /// Which.
        path: PathBuf,
    },
    /// A secret that other accounts can read.
    #[error("{} is a secret and others can read it (mode {mode:o}): chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// No key of that name is on the ring.
    #[error("no key of `{name}` is on the ring")]
    UnknownName {
        /// As asked.
        name: String,
    },
    /// A name that cannot be a file's.
    #[error("`{name}` cannot name a key: 1 to 64 letters, digits, `-`, `_` or `.`, no `.` first, and not `server`")]
    BadName {
        /// As given.
        name: String,
    },
    /// The libzmq that is linked in has no CURVE.
    #[error("this build's libzmq makes no keys: {source}")]
    Generate {
        /// libzmq's answer.
        source: io::Error,
    },
}
