//! Who is let in: answers libzmq's question (ZAP, RFC 27) about each client key.
//!
//! libzmq asks on a fixed address of the context, so each server has a context, and a key ring, of its own. The
//! server's I/O thread answers: it never blocks, so a handshake never waits for a slow receiver.

use zmq::{Context, DONTWAIT, SNDMORE, Socket};

use crate::{
    Error, Step,
    counters::{Tally, count},
    keys::{Keyring, PublicKey},
};

const ADDRESS: &str = "inproc://zeromq.zap.01";
const VERSION: &[u8] = b"1.0";
/// version, request id, domain, address, routing id, mechanism, key.
const FRAMES: usize = 7;

pub(crate) struct Gate {
    pub socket: Socket,
    keyring: Keyring,
}

impl Gate {
    /// Must stand before the server listens: libzmq lets everyone in where nobody answers.
    pub(crate) fn open(context: &Context, keyring: &Keyring) -> Result<Self, Error> {
        let socket = context.socket(zmq::REP).map_err(|error| Step::MakeSocket.failed(error))?;
        socket.set_linger(0).map_err(|error| Step::SetOption.failed(error))?;
        socket.bind(ADDRESS).map_err(|error| Step::Bind.failed(error))?;
        Ok(Self { socket, keyring: keyring.clone() })
    }

    /// Answers every question that waits.
    pub(crate) fn answer(&self, tally: &Tally) -> Result<(), zmq::Error> {
        loop {
            let question = match self.socket.recv_multipart(DONTWAIT) {
                Ok(question) => question,
                Err(zmq::Error::EAGAIN) => return Ok(()),
                Err(zmq::Error::EINTR) => continue,
                Err(error) => return Err(error),
            };
            let name = self.judge(&question);
            let (code, text) = if name.is_some() { ("200", "let in") } else { ("400", "unknown key") };
            if name.is_none() {
                count(&tally.refused_keys);
                tracing::warn!(address = %text_of(&question, 3), "refused a client: its key is not on the ring");
            }
            let request = question.get(1).map_or(&[][..], Vec::as_slice);
            for frame in [VERSION, request, code.as_bytes(), text.as_bytes(), name.unwrap_or_default().as_bytes()] {
                self.socket.send(frame, SNDMORE)?;
            }
            self.socket.send(&[][..], 0)?;
        }
    }

    /// The name behind the key, if it is let in.
    fn judge(&self, question: &[Vec<u8>]) -> Option<&str> {
        if question.len() != FRAMES || question[0] != VERSION || question[5] != b"CURVE" {
            return None;
        }
        let key: [u8; 32] = question[6].as_slice().try_into().ok()?;
        self.keyring.name_of(&PublicKey::from_bytes(key))
    }
}

fn text_of(question: &[Vec<u8>], index: usize) -> String {
    question.get(index).map(|frame| frame.escape_ascii().to_string()).unwrap_or_default()
}
