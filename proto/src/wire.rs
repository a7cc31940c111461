//! Messages as bytes: `[magic, version, postcard...]`.
//!
//! Enums of messages only ever grow at their end, and structs within them never change: a changed one is a new variant.
//! So a peer one version older meets at worst a variant that it does not know, which is an error value that it counts
//! and skips, never a message misread.

use serde::{Serialize, de::DeserializeOwned};

/// Version that this build writes.
pub const VERSION: u8 = 1;
/// Oldest version that this build reads.
pub const OLDEST: u8 = 1;
const MAGIC: u8 = 0xad;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not ours at all.
    #[error("not an adaptis message ({length} bytes)")]
    Foreign {
        /// Length of what came.
        length: usize,
    },
    /// Of a version out of reach.
    #[error(
        "message version {found} is not one of {OLDEST} to {VERSION} that this build speaks: upgrade the older side"
    )]
    Version {
        /// What came.
        found: u8,
    },
    /// Ours, but cut, damaged or of an unknown kind.
    #[error("message cannot be read: {0}")]
    Malformed(#[from] postcard::Error),
}

/// The bytes of a message.
///
/// # Panics
/// Never for the types of this crate: they serialise without error.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![MAGIC, VERSION]).expect("messages of this crate serialise without error")
}

/// The message in some bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    Ok(postcard::from_bytes(body(bytes)?)?)
}

/// The bytes of a header with a payload behind it, which is copied once and not looked at.
///
/// # Panics
/// Never for the types of this crate: they serialise without error.
pub fn encode_with<T: Serialize>(header: &T, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 96);
    bytes.extend_from_slice(&[MAGIC, VERSION]);
    let mut bytes = postcard::to_extend(header, bytes).expect("messages of this crate serialise without error");
    bytes.extend_from_slice(payload);
    bytes
}

/// The header and the payload in some bytes.
pub fn decode_with<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), WireError> {
    Ok(postcard::take_from_bytes(body(bytes)?)?)
}

fn body(bytes: &[u8]) -> Result<&[u8], WireError> {
    match bytes {
        [MAGIC, version, body @ ..] if (OLDEST..=VERSION).contains(version) => Ok(body),
        [MAGIC, version, ..] => Err(WireError::Version { found: *version }),
        _ => Err(WireError::Foreign { length: bytes.len() }),
    }
}
