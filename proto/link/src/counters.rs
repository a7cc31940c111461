//! What an end counts. Written by its I/O thread and its senders, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counts of one end since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages put into the incoming queue.
    pub received: u64,
    /// Messages taken into the outgoing queue.
    pub accepted: u64,
    /// Messages handed to libzmq for a peer that was there.
    pub sent: u64,
    /// Server: handshakes refused because the client's key is not on the ring. Client: times its key was refused.
    pub refused_keys: u64,
    /// Connections that ended before their handshake did: no key, the wrong server key, a port scan, or a peer that
    /// died meanwhile. One that says something else than ZeroMQ is closed by libzmq without a word, and not counted.
    pub refused_handshakes: u64,
    /// Handshakes that succeeded, one per connection.
    pub connections: u64,
    /// Accepted messages whose peer was not there; a client's only where its connection ended at that very moment.
    pub unroutable: u64,
    /// Messages not taken because the outgoing queue was full (`Error::Full`).
    pub dropped_full: u64,
    /// Accepted messages dropped because their peer did not read for longer than `Limits::peer_patience`. Servers only.
    pub dropped_peer_full: u64,
    /// Messages received with more or fewer frames than ours have.
    pub malformed: u64,
    /// How often the incoming queue was found full and the socket was left unread.
    pub stalls: u64,
}

impl Counters {
    /// Everyone who was turned away: by key or in the handshake.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused_keys + self.refused_handshakes
    }

    /// Messages accepted whose fate is still open.
    #[must_use]
    pub fn queued(&self) -> u64 {
        // Saturating, since the counters are not read in one instant.
        self.accepted.saturating_sub(self.sent + self.unroutable + self.dropped_peer_full)
    }
}

/// The live side of [`Counters`], field for field.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub received: AtomicU64,
    pub accepted: AtomicU64,
    pub sent: AtomicU64,
    pub refused_keys: AtomicU64,
    pub refused_handshakes: AtomicU64,
    pub connections: AtomicU64,
    pub unroutable: AtomicU64,
    pub dropped_full: AtomicU64,
    pub dropped_peer_full: AtomicU64,
    pub malformed: AtomicU64,
    pub stalls: AtomicU64,
}

impl Tally {
    pub(crate) fn read(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            received: get(&self.received),
            accepted: get(&self.accepted),
            sent: get(&self.sent),
            refused_keys: get(&self.refused_keys),
            refused_handshakes: get(&self.refused_handshakes),
            connections: get(&self.connections),
            unroutable: get(&self.unroutable),
            dropped_full: get(&self.dropped_full),
            dropped_peer_full: get(&self.dropped_peer_full),
            malformed: get(&self.malformed),
            stalls: get(&self.stalls),
        }
    }
}

/// Adds one, before the effect that others can see: whoever has a message finds it counted. Answers whether it is the
/// first, which is worth a line in the log. Relaxed, since the queues and sockets in between order enough.
pub(crate) fn count(counter: &AtomicU64) -> bool {
    counter.fetch_add(1, Ordering::Relaxed) == 0
}

/// Takes back one that was counted before its effect failed.
pub(crate) fn uncount(counter: &AtomicU64) {
    counter.fetch_sub(1, Ordering::Relaxed);
}
