//! The I/O thread of a server: the only one that touches its sockets.
//!
//! Each turn waits for any of: a message, a wake-up by a sender, a change of a connection, a question to the gate.
//! Then it moves a bounded batch each way. It never blocks anywhere else: a question to the gate is answered though
//! both queues are full.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender};
use zmq::{DONTWAIT, PollEvents, PollItem, SNDMORE, Socket};

use super::clogs::{Clogs, Verdict};
use crate::{
    Incoming, PeerId,
    counters::{Tally, count},
    gate::Gate,
    limits::milliseconds,
    monitor::{Change, Monitor},
    signal::Signal,
};

/// Messages moved one way before the other way has its turn.
const BATCH_LEN: usize = 256;
/// How soon a full queue is looked at again: neither the readers of the incoming one, who hold the bare channel, nor a
/// peer with room again can wake us. Reached only when someone is a whole queue behind.
const FULL_RETRY: Duration = Duration::from_millis(1);

pub(super) struct Outgoing {
    pub peer: PeerId,
    pub payload: Vec<u8>,
}

pub(super) struct Pump {
    pub router: Socket,
    pub monitor: Monitor,
    pub gate: Option<Gate>,
    pub outgoing: Receiver<Outgoing>,
    pub incoming: Sender<Incoming>,
    pub signal: Arc<Signal>,
    pub tally: Arc<Tally>,
    pub linger: Duration,
    pub clogs: Clogs,
    /// Taken from the queue, but its peer was full, since when.
    pub held: Option<(Outgoing, Instant)>,
    /// The incoming queue was full; the socket is left unread.
    pub is_stalled: bool,
    /// When to stop sending what is left; set once the server is dropped.
    pub close_at: Option<Instant>,
}

/// Whether a batch was cut short, so that the next turn must not wait.
type Turn = Result<ControlFlow<(), ()>, zmq::Error>;
const DONE: Turn = Ok(ControlFlow::Break(()));
const MORE: Turn = Ok(ControlFlow::Continue(()));

impl Pump {
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
            tracing::error!(%error, "a server's socket failed; the link is closed");
        }
        let left = self.close_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        // The gate goes first, so that nobody new comes in; the rest may still be sent to those who are there.
        drop(self.gate);
        self.monitor.close(self.router, left);
    }

    fn next_timeout(&self) -> Option<Duration> {
        let is_full = self.is_stalled || self.held.is_some();
        let closing = self.close_at.map(|at| at.saturating_duration_since(Instant::now()));
        is_full.then_some(FULL_RETRY).into_iter().chain(closing).min()
    }

    fn turn(&mut self, timeout: Option<Duration>) -> Turn {
        let wanted = if self.is_stalled { PollEvents::empty() } else { zmq::POLLIN };
        let mut items = [
            self.router.as_poll_item(wanted),
            PollItem::from_fd(self.signal.descriptor(), zmq::POLLIN),
            self.monitor.socket.as_poll_item(zmq::POLLIN),
            // Without a gate its place is taken by a descriptor that is not waited for.
            self.gate
                .as_ref()
                .map_or(PollItem::from_fd(-1, PollEvents::empty()), |gate| gate.socket.as_poll_item(zmq::POLLIN)),
        ];
        let len = if self.gate.is_some() { 4 } else { 3 };
        match zmq::poll(&mut items[..len], timeout.map_or(-1, |timeout| milliseconds(timeout).into())) {
            Ok(_) => {}
            Err(zmq::Error::EINTR) => return MORE,
            Err(error) => return Err(error),
        }
        let [_, woken, changed, asked] = items.map(|item| item.is_readable());
        if let (true, Some(gate)) = (asked, &self.gate) {
            gate.answer(&self.tally)?;
        }
        if changed {
            self.note_changes()?;
        }
        if woken {
            self.signal.clear();
        }
        let sent = self.send_batch()?;
        let received = self.receive_batch()?;
        if sent.is_continue() || received.is_continue() { MORE } else { DONE }
    }

    fn note_changes(&self) -> Result<(), zmq::Error> {
        while let Some(change) = self.monitor.next()? {
            match change {
                Change::Joined => {
                    count(&self.tally.connections);
                }
                Change::HandshakeRefused | Change::HandshakeCut => {
                    count(&self.tally.refused_handshakes);
                }
                // A refused key was counted by the gate.
                Change::KeyRefused | Change::Left | Change::Trying | Change::Stopped => {}
            }
        }
        Ok(())
    }

    fn send_batch(&mut self) -> Turn {
        for _ in 0..BATCH_LEN {
            let (message, since) = match self.held.take() {
                Some((message, since)) => (message, Some(since)),
                None => match self.outgoing.try_recv() {
                    Ok(message) => (message, None),
                    Err(_) => return DONE,
                },
            };
            if let Some(message) = self.send(message)? {
                let now = Instant::now();
                let since = since.unwrap_or(now);
                match self.clogs.judge(&message.peer, since, now) {
                    Verdict::Drop => {
                        count(&self.tally.dropped_peer_full);
                    }
                    Verdict::Wait => {
                        self.held = Some((message, since));
                        return DONE;
                    }
                }
            }
        }
        MORE
    }

    /// Gives the message back if its peer has no room.
    fn send(&self, message: Outgoing) -> Result<Option<Outgoing>, zmq::Error> {
        loop {
            match self.router.send(message.peer.as_bytes(), SNDMORE | DONTWAIT) {
                Ok(()) => break,
                Err(zmq::Error::EINTR) => {}
                Err(zmq::Error::EAGAIN) => return Ok(Some(message)),
                Err(zmq::Error::EHOSTUNREACH) => {
                    count(&self.tally.unroutable);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        // The first frame was taken, so there is room for the second; it goes without a copy.
        count(&self.tally.sent);
        self.router.send(message.payload, DONTWAIT)?;
        Ok(None)
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
            let name = match self.router.recv_msg(DONTWAIT) {
                Ok(name) => name,
                Err(zmq::Error::EAGAIN) => return DONE,
                Err(zmq::Error::EINTR) => continue,
                Err(error) => return Err(error),
            };
            if let Some(message) = self.receive_payload(&name)? {
                count(&self.tally.received);
                // Fails only if the reader is gone, and then the thread is about to be stopped.
                let _ = self.incoming.try_send(message);
            }
        }
        MORE
    }

    /// The one frame after the name; anything else is not ours. Frames of a message arrive together.
    fn receive_payload(&self, name: &zmq::Message) -> Result<Option<Incoming>, zmq::Error> {
        if !name.get_more() {
            count(&self.tally.malformed);
            return Ok(None);
        }
        let payload = self.router.recv_msg(DONTWAIT)?;
        if !payload.get_more() {
            return Ok(Some(Incoming { peer: PeerId::from_wire(name), payload: payload.to_vec() }));
        }
        count(&self.tally.malformed);
        while self.router.recv_msg(DONTWAIT)?.get_more() {}
        Ok(None)
    }
}
