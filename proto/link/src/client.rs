//! The end with one server: an agent, a rank, and the sending side of a rank's data plane.

mod pump;

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError, bounded};
use zmq::Context;

use self::pump::Pump;
use crate::{
    Counters, Error, IdentityFault, Limits, Security, Step, address::Address, counters::Tally, monitor::Monitor,
    outbox::Outbox, signal::Signal, socket,
};

/// A connecting socket and its I/O thread. It connects, and connects again, in the background; what is sent meanwhile
/// waits. Dropping it sends what was accepted, within the linger.
pub struct Client {
    address: String,
    incoming: Receiver<Vec<u8>>,
    outbox: Outbox<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
    /// Terminated last: its drop waits until every socket made from it is gone.
    _context: Context,
}

impl Client {
    /// Starts to connect to the server at `address` under the name `identity`, and returns at once. Names are unique
    /// at a server: the newest connection has the name.
    ///
    /// # Errors
    /// The address or the name is malformed. That nobody listens is no error: see [`Client::counters`].
    pub fn connect(address: &str, identity: &str, security: &Security, limits: Limits) -> Result<Self, Error> {
        let parsed = Address::to_connect(address)?;
        require_identity(identity)?;
        let signal = Arc::new(Signal::new().map_err(|source| Error::System { step: Step::MakeSignal, source })?);
        let context = Context::new();
        let dealer = socket::dealer(&context, &parsed, identity, security, &limits)?;
        let monitor = Monitor::attach(&context, &dealer)?;
        let endpoint = parsed.endpoint();
        dealer.connect(&endpoint).map_err(|error| Step::Connect.failed(error))?;

        let tally = Arc::new(Tally::default());
        let (incoming_in, incoming) = bounded(limits.incoming_len.max(1));
        let (queue, outgoing) = bounded(limits.outgoing_len.max(1));
        let outbox = Outbox { queue, signal: Arc::clone(&signal), tally, message_bytes_max: limits.message_bytes_max };
        let pump =
            Pump::new(dealer, monitor, endpoint, outgoing, incoming_in, signal, Arc::clone(&outbox.tally), limits);
        let thread = thread::Builder::new().name("link-client".into()).spawn(move || pump.run());
        let thread = thread.map_err(|source| Error::System { step: Step::StartThread, source })?;
        Ok(Self { address: address.to_owned(), incoming, outbox, thread: Some(thread), _context: context })
    }

    /// Queues a message for the server.
    ///
    /// # Errors
    /// The queue is full, the message is too long, or the link is closed.
    pub fn send(&self, payload: Vec<u8>) -> Result<(), Error> {
        self.outbox.push(payload.len(), payload)
    }

    /// Queues a message, waiting for room no longer than `timeout`: for a sender that would rather wait than drop.
    ///
    /// # Errors
    /// The queue stayed full, the message is too long, or the link is closed.
    pub fn send_within(&self, payload: Vec<u8>, timeout: Duration) -> Result<(), Error> {
        self.outbox.push_within(payload.len(), payload, timeout)
    }

    /// The next message, waiting for it no longer than `timeout`; none if none came.
    ///
    /// # Errors
    /// The link is closed.
    pub fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>, Error> {
        match self.incoming.recv_timeout(timeout) {
            Ok(payload) => Ok(Some(payload)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Closed),
        }
    }

    /// The next message, if one waits.
    ///
    /// # Errors
    /// The link is closed.
    pub fn try_receive(&self) -> Result<Option<Vec<u8>>, Error> {
        match self.incoming.try_recv() {
            Ok(payload) => Ok(Some(payload)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Error::Closed),
        }
    }

    /// The incoming queue, for `select!`.
    #[must_use]
    pub fn incoming(&self) -> &Receiver<Vec<u8>> {
        &self.incoming
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.outbox.tally.read()
    }

    /// Where it connects, as given.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.outbox.signal.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(address = %self.address, "the I/O thread of a client panicked");
        }
    }
}

fn require_identity(identity: &str) -> Result<(), Error> {
    let fault = match identity.len() {
        0 => IdentityFault::Empty,
        bytes @ 256.. => IdentityFault::Length { bytes },
        _ if identity.starts_with('\0') => IdentityFault::Zero,
        _ => return Ok(()),
    };
    Err(Error::BadIdentity { identity: identity.to_owned(), fault })
}
