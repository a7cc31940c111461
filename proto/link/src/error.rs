//! What can go wrong with a link. Every variant is an operating fault that a caller may meet.

use std::io;

use thiserror::Error;

/// A fault of a link.
#[derive(Debug, Error)]
pub enum Error {
    /// The address cannot be understood.
    #[error("`{address}` is not an address: {fault}")]
    BadAddress {
        /// As given.
        address: String,
        /// What is wrong with it.
        fault: AddressFault,
    },
    /// Another process listens there.
    #[error("`{address}` is in use by another process: stop it, or choose another address")]
    AddressInUse {
        /// As given.
        address: String,
    },
    /// No interface of this machine has that address.
    #[error("`{address}` is not an address of this machine")]
    AddressNotLocal {
        /// As given.
        address: String,
    },
    /// The system does not permit to listen there.
    #[error("no permission to listen on `{address}`")]
    AddressDenied {
        /// As given.
        address: String,
    },
    /// A server without keys would be reachable from other machines.
    #[error(
        "`{address}` can be reached from other machines and there are no keys: make some with `adaptis keys`, or bind 127.0.0.1"
    )]
    Unprotected {
        /// As given.
        address: String,
    },
    /// A client's name cannot be used.
    #[error("`{identity}` cannot be the name of a peer: {fault}")]
    BadIdentity {
        /// As given.
        identity: String,
        /// What is wrong with it.
        fault: IdentityFault,
    },
    /// The outgoing queue is full; the message was not taken, and is counted in `dropped_full`.
    #[error("the outgoing queue is full")]
    Full,
    /// The message is longer than the link's limit; it was not taken.
    #[error("a message of {bytes} bytes is longer than the limit of {bytes_max}")]
    TooLong {
        /// Of the message.
        bytes: usize,
        /// `Limits::message_bytes_max`.
        bytes_max: usize,
    },
    /// The link's thread has ended, which happens only after a fault it has logged.
    #[error("the link is closed")]
    Closed,
    /// libzmq refused a step that has no reason to fail.
    #[error("libzmq could not {step}: {source}")]
    Library {
        /// What was tried.
        step: Step,
        /// libzmq's answer.
        source: io::Error,
    },
    /// The system refused a thread or a descriptor.
    #[error("the system could not {step}: {source}")]
    System {
        /// What was tried.
        step: Step,
        /// The system's answer.
        source: io::Error,
    },
}

/// What is wrong with an address.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum AddressFault {
    /// Neither `tcp://` nor `ipc://`.
    #[error("it starts with neither tcp:// nor ipc://")]
    Scheme,
    /// A tcp address without a host.
    #[error("it names no host")]
    NoHost,
    /// What stands where the host is to be can be none.
    #[error("its host is neither a name nor an IP address (IPv6 in brackets, as in tcp://[::1]:29611)")]
    Host,
    /// A tcp address without a port, or with one that is not a number from 1 to 65535.
    #[error("it ends in no port from 1 to 65535")]
    Port,
    /// `*`, which only a server can use.
    #[error("a client cannot connect to `*`")]
    Wildcard,
    /// An ipc address without a path, or one in the abstract namespace, which has no permissions.
    #[error("it names no path of a file")]
    NoPath,
    /// The path does not fit the system's socket address.
    #[error("its path is {bytes} bytes long and the system takes {bytes_max}")]
    PathLength {
        /// Of the path.
        bytes: usize,
        /// What fits.
        bytes_max: usize,
    },
    /// The folder that is to hold the ipc socket is not there.
    #[error("the folder of its path does not exist")]
    NoFolder,
    /// A file that is not a socket stands in the way.
    #[error("a file that is not a socket is in its place")]
    NotASocket,
}

/// What is wrong with a peer's name.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum IdentityFault {
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// It has more than 255 bytes.
    #[error("it has {bytes} bytes, and at most 255 are possible")]
    Length {
        /// Of the name.
        bytes: usize,
    },
    /// It starts with a zero byte, which libzmq keeps for names of its own making.
    #[error("it starts with a zero byte")]
    Zero,
}

/// What was being done when a library or the system said no.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Making a socket.
    #[error("make a socket")]
    MakeSocket,
    /// Setting an option of a socket.
    #[error("set an option of a socket")]
    SetOption,
    /// Listening.
    #[error("listen")]
    Bind,
    /// Connecting.
    #[error("connect")]
    Connect,
    /// Watching a socket's connections.
    #[error("watch a socket")]
    Watch,
    /// Starting the I/O thread.
    #[error("start a thread")]
    StartThread,
    /// Making the descriptor that wakes the I/O thread.
    #[error("make an eventfd")]
    MakeSignal,
}

impl Step {
    /// Wraps libzmq's answer to this step.
    pub(crate) fn failed(self, error: zmq::Error) -> Error {
        Error::Library { step: self, source: error.into() }
    }
}
