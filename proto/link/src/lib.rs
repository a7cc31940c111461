//! Bounded, authenticated message links over ZeroMQ: the only crate that knows zmq.
//!
//! A [`Server`] has many peers, each known by the name it chose; a [`Client`] has one server. Both carry whole
//! messages of bytes; what the bytes mean is the caller's matter (`adaptis_proto::wire`).
//!
//! ```text
//! Client::send -> queue -> I/O thread -> libzmq ~~~ tcp, ipc ~~~ libzmq -> I/O thread -> queue -> Server::receive
//! ```
//!
//! 1. Nothing blocks without a limit: a full outgoing queue is `Error::Full`, counted, and the caller's to handle.
//! 2. A full incoming queue stops the reading from the socket: the sender is slowed down, nothing is lost, unless it
//!    stays full for longer than the heartbeat timeout, which ends the connection.
//! 3. What is accepted is counted once more: accepted = sent + unroutable + `dropped_peer_full` + still queued.
//! 4. Without keys a server binds only the loopback interface or a local socket.
//! 5. With keys, a peer whose key is not on the ring receives nothing, sends nothing, and is counted.
//! 6. Dropping an end takes no longer than twice its linger.
//!
//! Left out on purpose: redelivery (what libzmq holds when a connection breaks is lost: acknowledge in the
//! application); a tie between key and peer name (whoever holds an allowed key may take any name, and the newest
//! holder of a name has it); changing a key ring while a socket is open; other transports than tcp and ipc.

mod address;
mod client;
mod counters;
mod error;
mod gate;
pub mod keys;
mod limits;
mod monitor;
mod outbox;
mod peer;
mod probe;
mod server;
mod signal;
mod silence;
mod socket;

pub use client::Client;
pub use counters::Counters;
pub use error::{AddressFault, Error, IdentityFault, Step};
pub use limits::Limits;
pub use peer::{Incoming, PeerId};
pub use server::{Server, ServerSender};
pub use silence::Silence;

/// Whether a link is encrypted and its peers are known by their keys.
#[derive(Debug, Clone)]
pub enum Security {
    /// In the clear, anyone may connect. A server then binds only loopback tcp and ipc.
    Open,
    /// CURVE: encrypted, the server known to the client by its key, and the clients to the server.
    Curve(keys::Keyring),
}
