//! The I/O thread of a client: the only one that touches its socket.
//!
//! Like a server's, with two differences. A full pipe is waited for, since there is nobody else to serve: the message
//! is kept, and nothing more is taken from the queue. And a refused connection is made anew: libzmq gives up for good
//! after a refused handshake, but the server may come back with another key ring.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender};
use zmq::{DONTWAIT, PollEvents, PollItem, Socket};

use crate::{
    Limits,
    counters::{Tally, count, uncount},
    limits::milliseconds,
    monitor::{Change, Monitor},
    signal::Signal,
};

/// Messages moved one way before the other way has its turn.
const BATCH_LEN: usize = 256;
/// How soon a full incoming queue is looked at again, since its readers cannot wake us: they hold the bare channel.
/// Reached only when the reader is a whole queue behind.
const FULL_RETRY: Duration = Duration::from_millis(1);

pub(super) struct Pump {
    dealer: Socket,
    monitor: Monitor,
    endpoint: String,
    outgoing: Receiver<Vec<u8>>,
    incoming: Sender<Vec<u8>>,
    signal: Arc<Signal>,
    tally: Arc<Tally>,
    linger: Duration,
    /// How long after a connection ended libzmq is given to try again by itself, before we do.
    patience: Duration,
    /// Taken from the queue, but the pipe was full.
    held: Option<Vec<u8>>,
    /// The incoming queue was full; the socket is left unread.
    is_stalled: bool,
    /// When to connect anew, unless libzmq shows that it is doing so.
    revive_at: Option<Instant>,
    /// When to stop sending what is left; set once the client is dropped.
    close_at: Option<Instant>,
}

/// Whether a batch was cut short, so that the next turn must not wait.
type Turn = Result<ControlFlow<(), ()>, zmq::Error>;
const DONE: Turn = Ok(ControlFlow::Break(()));
const MORE: Turn = Ok(ControlFlow::Continue(()));

impl Pump {
    #[expect(clippy::too_many_arguments, reason = "called once, from where all of them are made")]
    pub(super) fn new(
        dealer: Socket,
        monitor: Monitor,
        endpoint: String,
        outgoing: Receiver<Vec<u8>>,
        incoming: Sender<Vec<u8>>,
        signal: Arc<Signal>,
        tally: Arc<Tally>,
        limits: Limits,
    ) -> Self {
        Self {
            dealer,
            monitor,
            endpoint,
            outgoing,
            incoming,
            signal,
            tally,
            linger: limits.linger,
            patience: limits.reconnect_max,
            held: None,
            is_stalled: false,
            revive_at: None,
            close_at: None,
        }
    }

    pub(super) fn run(mut self) {
        let mut timeout = None;
        let end = loop {
            match self.turn(timeout) {
                Ok(ControlFlow::Continue(())) => timeout = Some(Duration::ZERO),
                Ok(ControlFlow::Break(())) => timeout = self.next_timeout(),
                Err(error) => break Err(error),
            }
            if self.signal.is_stopping() {
                let close_at = *self.close_at.get_or_insert_with(|| Instant::now() + self.linger);
                if (self.held.is_none() && self.outgoing.is_empty()) || Instant::now() >= close_at {
                    break Ok(());
                }
            }
        };
        if let Err(error) = end {
            tracing::error!(%error, endpoint = %self.endpoint, "a client's socket failed; the link is closed");
        }
        let left = self.close_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        self.monitor.close(self.dealer, left);
    }

    fn next_timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let stall = self.is_stalled.then_some(FULL_RETRY);
        let timers = [self.revive_at, self.close_at].map(|at| at.map(|at| at.saturating_duration_since(now)));
        timers.into_iter().chain([stall]).flatten().min()
    }

    fn turn(&mut self, timeout: Option<Duration>) -> Turn {
        let mut wanted = PollEvents::empty();
        wanted.set(zmq::POLLIN, !self.is_stalled);
        wanted.set(zmq::POLLOUT, self.held.is_some());
        let mut items = [
            self.dealer.as_poll_item(wanted),
            PollItem::from_fd(self.signal.descriptor(), zmq::POLLIN),
            self.monitor.socket.as_poll_item(zmq::POLLIN),
        ];
        match zmq::poll(&mut items, timeout.map_or(-1, |timeout| milliseconds(timeout).into())) {
            Ok(_) => {}
            Err(zmq::Error::EINTR) => return MORE,
            Err(error) => return Err(error),
        }
        let [_, woken, changed] = items.map(|item| item.is_readable());
        if changed {
            self.note_changes()?;
        }
        self.revive()?;
        if woken {
            self.signal.clear();
        }
        let sent = self.send_batch()?;
        let received = self.receive_batch()?;
        if sent.is_continue() || received.is_continue() { MORE } else { DONE }
    }

    fn note_changes(&mut self) -> Result<(), zmq::Error> {
        while let Some(change) = self.monitor.next()? {
            match change {
                Change::Joined => {
                    count(&self.tally.connections);
                    self.revive_at = None;
                }
                Change::KeyRefused => {
                    if count(&self.tally.refused_keys) {
                        tracing::warn!(endpoint = %self.endpoint, "the server refuses our key");
                    }
                    self.await_revival();
                }
                Change::HandshakeRefused => {
                    if count(&self.tally.refused_handshakes) {
                        tracing::warn!(endpoint = %self.endpoint, "the server has another key, or none");
                    }
                    self.await_revival();
                }
                Change::HandshakeCut => {
                    count(&self.tally.refused_handshakes);
                    self.await_revival();
                }
                Change::Left => self.await_revival(),
                Change::Trying => self.revive_at = None,
                Change::Stopped => {}
            }
        }
        Ok(())
    }

    fn await_revival(&mut self) {
        self.revive_at = Some(Instant::now() + self.patience);
    }

    fn revive(&mut self) -> Result<(), zmq::Error> {
        if self.revive_at.is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        self.revive_at = None;
        // libzmq ignores a second connect to the same place, even after it gave the first up. That the place is
        // unknown by now is as good as disconnected.
        match self.dealer.disconnect(&self.endpoint) {
            Ok(()) | Err(zmq::Error::ENOENT) => self.dealer.connect(&self.endpoint),
            Err(error) => Err(error),
        }
    }

    fn send_batch(&mut self) -> Turn {
        for _ in 0..BATCH_LEN {
            let Some(payload) = self.held.take().or_else(|| self.outgoing.try_recv().ok()) else {
                return DONE;
            };
            // Asked first because a send that fails has consumed the message.
            if !self.dealer.get_events()?.contains(zmq::POLLOUT) {
                self.held = Some(payload);
                return DONE;
            }
            count(&self.tally.sent);
            match self.dealer.send(payload, DONTWAIT) {
                Ok(()) => {}
                Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => {
                    uncount(&self.tally.sent);
                    count(&self.tally.unroutable);
                }
                Err(error) => return Err(error),
            }
        }
        MORE
    }

    fn receive_batch(&mut self) -> Turn {
        for _ in 0..BATCH_LEN {
            // We are the only ones to put anything in, so room now is room when the message is here.
            if self.incoming.is_full() {
                if !self.is_stalled {
                    self.is_stalled = true;
                    count(&self.tally.stalls);
                }
                return DONE;
            }
            self.is_stalled = false;
            let payload = match self.dealer.recv_msg(DONTWAIT) {
                Ok(payload) => payload,
                Err(zmq::Error::EAGAIN) => return DONE,
                Err(zmq::Error::EINTR) => continue,
                Err(error) => return Err(error),
            };
            if payload.get_more() {
                count(&self.tally.malformed);
                while self.dealer.recv_msg(DONTWAIT)?.get_more() {}
                continue;
            }
            count(&self.tally.received);
            // Fails only if the reader is gone, and then the thread is about to be stopped.
            let _ = self.incoming.try_send(payload.to_vec());
        }
        MORE
    }
}
