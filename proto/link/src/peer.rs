//! Who sent a message, and the message.

use std::{fmt, sync::Arc};

/// The name of a peer, as it gave it in `Client::connect`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(Arc<[u8]>);

impl PeerId {
    /// The bytes that went over the wire, 1 to 255 of them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as text; none for a peer that is no [`crate::Client`] and chose other bytes.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    pub(crate) fn from_wire(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl From<&str> for PeerId {
    fn from(name: &str) -> Self {
        Self(name.as_bytes().into())
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

/// One message that a server has received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Who sent it; an answer goes to the same name.
    pub peer: PeerId,
    /// What was sent.
    pub payload: Vec<u8>,
}
