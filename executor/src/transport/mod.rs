//! How ranks reach each other.
//!
//! ```text
//!   training -> Peers ----> Mailbox -> Wire (memory | tcp) ~~> Wire -> Mailbox -> Peers
//!              emulated     keeps what is early,
//!              link times   refuses what is stale
//! ```
//!
//! A [`Wire`] moves messages between the ranks of one generation, in order from each sender; it looks at nothing.

mod letter;
mod mailbox;
pub mod memory;
mod peers;
pub mod tcp;

pub use letter::{Key, Letter};
pub use mailbox::Mailbox;
pub use peers::{Arrival, Peers, Tensor};

use adaptis_proto::DeviceIndex;
use adaptis_proto::message::PeerHeader;
use std::time::Duration;

/// Moves messages between ranks.
pub trait Wire {
    /// Sends to a peer. Does not wait: a full queue is an error value.
    ///
    /// # Errors
    /// [`WireError::Full`] if there is no room now; others if the wire is broken.
    fn send(&mut self, to: DeviceIndex, header: &PeerHeader, payload: &[u8]) -> Result<(), WireError>;

    /// The next message from any peer, waiting no longer than `timeout`.
    ///
    /// # Errors
    /// The wire is broken, or what came is no message.
    fn receive(&mut self, timeout: Duration) -> Result<Option<(PeerHeader, Vec<u8>)>, WireError>;

    /// Ranks of the generation, this one among them.
    fn members(&self) -> usize;
}

/// Why a wire does not carry.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// There is no room now.
    #[error("the queue to device {to} is full")]
    Full {
        /// Whose queue.
        to: DeviceIndex,
    },
    /// No such peer.
    #[error("device {to} is not a peer")]
    NoPeer {
        /// Who was meant.
        to: DeviceIndex,
    },
    /// What came is no message.
    #[error("{0}")]
    Malformed(#[from] adaptis_proto::wire::WireError),
    /// What came is under another name than its connection.
    #[error("`{peer}` sent a message in the name of device {from}")]
    Foreign {
        /// Whom the message names.
        from: DeviceIndex,
        /// Who sent it.
        peer: String,
    },
    /// All peers are gone.
    #[error("all peers are gone")]
    Closed,
    /// The link failed.
    #[error("link: {0}")]
    Link(adaptis_link::Error),
}
