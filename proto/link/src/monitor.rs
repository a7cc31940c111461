//! What libzmq says about a socket's connections: who came, who failed, who is being tried again.
//!
//! 1. libzmq's own threads block if nobody reads their events, so the I/O thread reads them all until
//!    [`Change::Stopped`], also while its socket closes.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use zmq::{Context, DONTWAIT, Socket, SocketEvent};

use crate::{Error, Step, limits::milliseconds};

/// One per context, and a context has one watched socket.
const ADDRESS: &str = "inproc://adaptis.monitor";

/// A change of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The handshake is done.
    Joined,
    /// The other side refused our key (or, at a server, the gate refused one).
    KeyRefused,
    /// Both sides do not speak alike: no key, or another server's. At a client libzmq gives up for good.
    HandshakeRefused,
    /// The connection ended within the handshake; at a client libzmq tries again.
    HandshakeCut,
    /// The connection ended.
    Left,
    /// A client's connection is being made or will be.
    Trying,
    /// The socket is gone, no more changes follow.
    Stopped,
}

const WATCHED: [(SocketEvent, Change); 9] = [
    (SocketEvent::HANDSHAKE_SUCCEEDED, Change::Joined),
    (SocketEvent::HANDSHAKE_FAILED_AUTH, Change::KeyRefused),
    (SocketEvent::HANDSHAKE_FAILED_PROTOCOL, Change::HandshakeRefused),
    (SocketEvent::HANDSHAKE_FAILED_NO_DETAIL, Change::HandshakeCut),
    (SocketEvent::DISCONNECTED, Change::Left),
    (SocketEvent::CONNECTED, Change::Trying),
    (SocketEvent::CONNECT_DELAYED, Change::Trying),
    (SocketEvent::CONNECT_RETRIED, Change::Trying),
    (SocketEvent::MONITOR_STOPPED, Change::Stopped),
];

pub(crate) struct Monitor {
    pub socket: Socket,
}

impl Monitor {
    /// Must be attached before the watched socket binds or connects, or it misses the beginning.
    pub(crate) fn attach(context: &Context, watched: &Socket) -> Result<Self, Error> {
        let events = WATCHED.iter().fold(0, |mask, (event, _)| mask | i32::from(event.to_raw()));
        watched.monitor(ADDRESS, events).map_err(|error| Step::Watch.failed(error))?;
        let socket = context.socket(zmq::PAIR).map_err(|error| Step::MakeSocket.failed(error))?;
        socket.set_linger(0).map_err(|error| Step::SetOption.failed(error))?;
        socket.connect(ADDRESS).map_err(|error| Step::Watch.failed(error))?;
        Ok(Self { socket })
    }

    /// The next change, if one waits. Frames: event (u16) and value (u32) in the machine's order; then the address.
    pub(crate) fn next(&self) -> Result<Option<Change>, zmq::Error> {
        loop {
            let frames = match self.socket.recv_multipart(DONTWAIT) {
                Ok(frames) => frames,
                Err(zmq::Error::EAGAIN) => return Ok(None),
                Err(zmq::Error::EINTR) => continue,
                Err(error) => return Err(error),
            };
            let code = frames.first().and_then(|frame| frame.first_chunk()).map(|code| u16::from_ne_bytes(*code));
            let known = WATCHED.iter().find(|(event, _)| Some(event.to_raw()) == code);
            if let Some(&(_, change)) = known {
                return Ok(Some(change));
            }
        }
    }

    /// Closes the watched socket, which may go on sending for `linger`, and reads on until it is gone.
    pub(crate) fn close(self, watched: Socket, linger: Duration) {
        // Fails only for a socket that is closed already.
        let _ = watched.set_linger(milliseconds(linger));
        drop(watched);
        // libzmq's timer may come a little late; a context that is still busy after that is waited for in its drop.
        let deadline = Instant::now() + linger + linger / 2;
        while self.drain().is_continue() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // Whatever it answers, the next turn looks again or ends.
            let _ = self.socket.poll(zmq::POLLIN, i64::from(milliseconds(left)));
        }
    }

    fn drain(&self) -> ControlFlow<()> {
        loop {
            match self.next() {
                Ok(Some(Change::Stopped)) | Err(_) => return ControlFlow::Break(()),
                Ok(Some(_)) => {}
                Ok(None) => return ControlFlow::Continue(()),
            }
        }
    }
}
