//! Every limit of a link, with the policy when it is reached.

use std::time::Duration;

/// The limits of one end. `Default` suits control messages; see [`Limits::data`] for tensors.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Messages received and not yet taken. Full: the socket is not read, so the senders are slowed down.
    pub incoming_len: usize,
    /// Messages accepted and not yet handed to libzmq. Full: `Error::Full`, counted in `dropped_full`.
    pub outgoing_len: usize,
    /// Messages that libzmq holds per peer, each way. Full: nothing is taken from the outgoing queue until there is
    /// room; at a server for no longer than `peer_patience`.
    pub per_peer_len: usize,
    /// How long all peers of a server wait for one whose messages are not taken. Reached: its message is dropped and
    /// counted in `dropped_peer_full`, and for ten times as long it is not waited for again.
    pub peer_patience: Duration,
    /// Bytes of one message. Longer when sent: `Error::TooLong`. Longer when received: the connection is closed.
    pub message_bytes_max: usize,
    /// How long a dropped end goes on sending what it has accepted.
    pub linger: Duration,
    /// How often a silent connection is tried.
    pub heartbeat_interval: Duration,
    /// After how long without an answer a connection is closed, to be made anew. A receiver that is stalled for
    /// longer than this looks dead as well.
    pub heartbeat_timeout: Duration,
    /// How long a handshake may take. Reached: the connection is closed and counted in `refused_handshakes`.
    pub handshake_timeout: Duration,
    /// The first wait before a client tries again; it doubles.
    pub reconnect_min: Duration,
    /// The longest wait before a client tries again, also after its key was refused.
    pub reconnect_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            incoming_len: 4096,
            outgoing_len: 4096,
            per_peer_len: 1024,
            peer_patience: Duration::from_millis(100),
            message_bytes_max: 64 << 20,
            linger: Duration::from_millis(500),
            heartbeat_interval: Duration::from_secs(2),
            heartbeat_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            reconnect_min: Duration::from_millis(20),
            reconnect_max: Duration::from_secs(1),
        }
    }
}

impl Limits {
    /// For the tensors between ranks: few in flight and each large, and a receiver may be busy for long.
    #[must_use]
    pub fn data() -> Self {
        Self {
            incoming_len: 256,
            outgoing_len: 256,
            per_peer_len: 64,
            peer_patience: Duration::from_secs(1),
            message_bytes_max: 1 << 30,
            heartbeat_timeout: Duration::from_secs(60),
            ..Self::default()
        }
    }
}

/// Whole milliseconds for libzmq, at least one unless the duration is zero.
pub(crate) fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

/// A count for libzmq, at least one, since its zero means without limit.
pub(crate) fn high_water(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MAX).max(1)
}
