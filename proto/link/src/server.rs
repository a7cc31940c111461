//! The end with many peers: a coordinator, and the receiving side of a rank's data plane.

mod clogs;
mod pump;

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError, bounded};
use zmq::Context;

use self::{
    clogs::Clogs,
    pump::{Outgoing, Pump},
};
use crate::{
    Counters, Error, Incoming, Limits, PeerId, Security, Step, address::Address, counters::Tally, gate::Gate,
    monitor::Monitor, outbox::Outbox, probe, signal::Signal, socket,
};

/// A bound socket and its I/O thread. Dropping it sends what was accepted, within the linger, and frees the address.
pub struct Server {
    endpoint: String,
    incoming: Receiver<Incoming>,
    sender: ServerSender,
    thread: Option<JoinHandle<()>>,
    /// Terminated last: its drop waits until every socket made from it is gone.
    _context: Context,
}

impl Server {
    /// Listens at `address`: `tcp://HOST:PORT` with an IP address of this machine or `*`, or `ipc://PATH`; the port
    /// or the path may be `*` for a free one.
    ///
    /// # Errors
    /// The address is malformed, in use, not this machine's or not permitted; without keys, also if other machines
    /// could reach it.
    pub fn bind(address: &str, security: &Security, limits: Limits) -> Result<Self, Error> {
        let parsed = Address::parse(address)?;
        if matches!(security, Security::Open) && !parsed.is_local() {
            return Err(Error::Unprotected { address: address.to_owned() });
        }
        probe::require_free(address, &parsed)?;
        let signal = Arc::new(Signal::new().map_err(|source| Error::System { step: Step::MakeSignal, source })?);
        let context = Context::new();
        let router = socket::router(&context, &parsed, security, &limits)?;
        let monitor = Monitor::attach(&context, &router)?;
        let gate = match security {
            Security::Open => None,
            Security::Curve(keyring) => Some(Gate::open(&context, keyring)?),
        };
        router.bind(&parsed.endpoint()).map_err(|error| bind_fault(address, error))?;
        let endpoint = router.get_last_endpoint().map_err(|error| Step::Bind.failed(error))?;
        let endpoint = endpoint.map_err(|_| Step::Bind.failed(zmq::Error::EINVAL))?;

        let tally = Arc::new(Tally::default());
        let (incoming_in, incoming) = bounded(limits.incoming_len.max(1));
        let (queue, outgoing) = bounded(limits.outgoing_len.max(1));
        let pump = Pump {
            router,
            monitor,
            gate,
            outgoing,
            incoming: incoming_in,
            signal: Arc::clone(&signal),
            tally: Arc::clone(&tally),
            linger: limits.linger,
            clogs: Clogs::new(limits.peer_patience),
            held: None,
            is_stalled: false,
            close_at: None,
        };
        let thread = thread::Builder::new().name("link-server".into()).spawn(move || pump.run());
        let thread = thread.map_err(|source| Error::System { step: Step::StartThread, source })?;
        let outbox = Outbox { queue, signal, tally, message_bytes_max: limits.message_bytes_max };
        Ok(Self { endpoint, incoming, sender: ServerSender { outbox }, thread: Some(thread), _context: context })
    }

    /// Where it listens, with a free port or path filled in. A host of `*` reads `0.0.0.0`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The next message, waiting for it no longer than `timeout`; none if none came.
    ///
    /// # Errors
    /// The link is closed.
    pub fn receive(&self, timeout: Duration) -> Result<Option<Incoming>, Error> {
        match self.incoming.recv_timeout(timeout) {
            Ok(message) => Ok(Some(message)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Closed),
        }
    }

    /// The next message, if one waits.
    ///
    /// # Errors
    /// The link is closed.
    pub fn try_receive(&self) -> Result<Option<Incoming>, Error> {
        match self.incoming.try_recv() {
            Ok(message) => Ok(Some(message)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Error::Closed),
        }
    }

    /// The incoming queue, for `select!`.
    #[must_use]
    pub fn incoming(&self) -> &Receiver<Incoming> {
        &self.incoming
    }

    /// Queues a message for a peer. If the peer is not there when its turn comes, it is counted in `unroutable`.
    ///
    /// # Errors
    /// The queue is full, the message is too long, or the link is closed.
    pub fn send(&self, peer: &PeerId, payload: Vec<u8>) -> Result<(), Error> {
        self.sender.send(peer, payload)
    }

    /// A handle that other threads can send with.
    #[must_use]
    pub fn sender(&self) -> ServerSender {
        self.sender.clone()
    }

    /// What was counted since the bind.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.sender.counters()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.sender.outbox.signal.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(endpoint = %self.endpoint, "the I/O thread of a server panicked");
        }
        probe::sweep(&self.endpoint);
    }
}

/// Sends for a [`Server`] from any thread; after the server is dropped, every send is `Error::Closed`.
#[derive(Clone)]
pub struct ServerSender {
    outbox: Outbox<Outgoing>,
}

impl ServerSender {
    /// As [`Server::send`].
    ///
    /// # Errors
    /// The queue is full, the message is too long, or the link is closed.
    pub fn send(&self, peer: &PeerId, payload: Vec<u8>) -> Result<(), Error> {
        self.outbox.push(payload.len(), Outgoing { peer: peer.clone(), payload })
    }

    /// As [`Server::send`], but waits for room in the queue, no longer than `timeout`.
    ///
    /// # Errors
    /// The queue stayed full, the message is too long, or the link is closed.
    pub fn send_within(&self, peer: &PeerId, payload: Vec<u8>, timeout: Duration) -> Result<(), Error> {
        self.outbox.push_within(payload.len(), Outgoing { peer: peer.clone(), payload }, timeout)
    }

    /// What was counted since the bind.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.outbox.tally.read()
    }
}

fn bind_fault(address: &str, error: zmq::Error) -> Error {
    let address = address.to_owned();
    match error {
        zmq::Error::EADDRINUSE => Error::AddressInUse { address },
        zmq::Error::EACCES => Error::AddressDenied { address },
        // libzmq says "no such device" and "invalid" of a host that is no address of this machine.
        zmq::Error::EADDRNOTAVAIL | zmq::Error::ENODEV | zmq::Error::EINVAL => Error::AddressNotLocal { address },
        other => Step::Bind.failed(other),
    }
}
