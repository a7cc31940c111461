//! One rank's mailbox: keeps what comes early, refuses what is stale, waits with a deadline.
//!
//! 1. A message of another generation, of an epoch before the one in force, or a tensor of an iteration that is over, is
//!    refused and counted.
//! 2. What belongs to a later iteration or epoch is kept: peers may be ahead by as much as a vote allows.
//! 3. Messages of one sender under one key are taken in the order in which they were sent.
//! 4. A wait ends with the message, at the deadline, at the stop flag, or when any peer says that it stops.
//! 5. At most [`KEPT_MAX`] messages of [`KEPT_BYTES_MAX`] bytes together are kept; one more is a failure, since a
//!    correct peer can't get so far ahead.
//! 6. A message of no other member is refused and counted as malformed.

use super::{Key, Letter, Wire, WireError};
use crate::Halt;
use adaptis_proto::DeviceIndex;
use adaptis_proto::message::{Failure, PeerBody, PeerHeader};
use adaptis_proto::sample::Place;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Most messages kept: several iterations of every microbatch of every stage.
pub const KEPT_MAX: usize = 1 << 16;
/// Most bytes kept: the largest message of a link (1 GiB) and as much again.
pub const KEPT_BYTES_MAX: usize = 2 << 30;
/// Most messages filed before a wait looks at its deadline: all that a link's queue holds.
const READ_MAX: usize = 4096;
/// How often a wait looks at the stop flag.
const SLICE: Duration = Duration::from_millis(100);
/// How long a sender with a full queue reads its own mail before it tries again.
const RETRY: Duration = Duration::from_millis(1);

/// One rank's mailbox over a wire.
pub struct Mailbox<W> {
    wire: W,
    me: DeviceIndex,
    place: Place,
    patience: Duration,
    stop: Arc<AtomicBool>,
    kept: HashMap<(DeviceIndex, Key), VecDeque<Letter>>,
    kept_len: usize,
    kept_bytes: usize,
    stopped: Option<DeviceIndex>,
    refused: u64,
    malformed: u64,
}

impl<W: Wire> Mailbox<W> {
    /// An empty mailbox of device `me`. `patience` is how long a message is waited for; `stop` ends every wait.
    pub fn new(wire: W, me: DeviceIndex, place: Place, patience: Duration, stop: Arc<AtomicBool>) -> Self {
        let (kept, kept_len, kept_bytes) = (HashMap::new(), 0, 0);
        let (stopped, refused, malformed) = (None, 0, 0);
        Mailbox { wire, me, place, patience, stop, kept, kept_len, kept_bytes, stopped, refused, malformed }
    }

    /// Where training stands from now on; what is older than that is refused, also among what was kept.
    pub fn set_place(&mut self, place: Place, patience: Duration) {
        self.place = place;
        self.patience = patience;
        let fresh = |key: &Key| is_fresh(key, place);
        let stale = self.kept.iter().filter(|((_, key), _)| !fresh(key)).flat_map(|(_, letters)| letters);
        let (stale, stale_bytes) = stale.fold((0, 0), |(len, bytes), letter| (len + 1, bytes + bytes_of(letter)));
        self.kept.retain(|(_, key), letters| fresh(key) && !letters.is_empty());
        self.kept_len -= stale;
        self.kept_bytes -= stale_bytes;
        self.refused += stale as u64;
    }

    /// Where training stands.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Messages refused so far because they were stale.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Messages so far that could not be read or are of no other member.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Sends to a peer, under the generation and epoch in force. While the peer's queue is full, its own mail is read.
    ///
    /// # Errors
    /// The queue stayed full, the wire is broken, or the rank is to stop.
    pub fn send(&mut self, to: DeviceIndex, body: PeerBody, payload: &[u8]) -> Result<(), Halt> {
        let Place { generation, epoch, .. } = self.place;
        let header = PeerHeader { generation, epoch, from: self.me, body };
        let begun = Instant::now();
        loop {
            match self.wire.send(to, &header, payload) {
                Err(WireError::Full { .. }) if begun.elapsed() < self.patience => {
                    self.check()?;
                    self.read(RETRY)?;
                }
                Err(WireError::Full { .. }) => return Err(self.silent(to, begun)),
                other => return Ok(other?),
            }
        }
    }

    /// Tells a peer that this rank stops. Best effort: the peer's own deadline is the backstop.
    pub fn say_stopping(&mut self, to: DeviceIndex) {
        let Place { generation, epoch, .. } = self.place;
        let header = PeerHeader { generation, epoch, from: self.me, body: PeerBody::Stopping };
        if let Err(error) = self.wire.send(to, &header, &[]) {
            tracing::debug!(%to, %error, "a peer could not be told of the stop");
        }
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// It did not come in time, a peer stops, the wire is broken, or the rank is to stop.
    pub fn take(&mut self, from: DeviceIndex, key: Key) -> Result<Letter, Halt> {
        let begun = Instant::now();
        loop {
            if let Some(letter) = self.kept.get_mut(&(from, key)).and_then(VecDeque::pop_front) {
                self.kept_len -= 1;
                self.kept_bytes -= bytes_of(&letter);
                return Ok(letter);
            }
            self.check()?;
            let left = self.patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(self.silent(from, begun));
            }
            self.read(left.min(SLICE))?;
        }
    }

    fn silent(&self, peer: DeviceIndex, begun: Instant) -> Halt {
        let waited_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Failure::PeerSilent { peer, waited_ns }.into()
    }

    /// Whether training may go on.
    ///
    /// # Errors
    /// A peer stops, or the rank is to stop.
    pub fn check(&self) -> Result<(), Halt> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Halt::Asked);
        }
        match self.stopped {
            Some(peer) => Err(Failure::PeerFailed { peer }.into()),
            None => Ok(()),
        }
    }

    /// Files what has come; waits for the first of it.
    fn read(&mut self, timeout: Duration) -> Result<(), Halt> {
        let mut timeout = timeout;
        for _ in 0..READ_MAX {
            match self.wire.receive(timeout) {
                Ok(Some((header, payload))) => self.file(header, payload)?,
                Ok(None) => return Ok(()),
                Err(error @ (WireError::Malformed(_) | WireError::Foreign { .. })) => {
                    self.malformed += 1;
                    tracing::warn!(%error, "a message of a peer is not taken");
                }
                Err(error) => return Err(error.into()),
            }
            timeout = Duration::ZERO;
        }
        Ok(())
    }

    fn file(&mut self, header: PeerHeader, payload: Vec<u8>) -> Result<(), Halt> {
        let PeerHeader { generation, epoch, from, body } = header;
        let members = self.wire.members();
        if from == self.me || from.index() >= members {
            self.malformed += 1;
            tracing::warn!(%from, members, "a message is of no other member");
            return Ok(());
        }
        let Some(key) = Key::of(epoch, &body) else {
            if generation == self.place.generation {
                self.stopped.get_or_insert(from);
            }
            return Ok(());
        };
        // A vote of another epoch is not refused here: it is the judge who names a dissenter.
        let current = matches!(key, Key::Vote) || epoch >= self.place.epoch;
        if generation != self.place.generation || !current || !is_fresh(&key, self.place) {
            self.refused += 1;
            return Ok(());
        }
        if self.kept_len == KEPT_MAX {
            return Err(Failure::Environment(format!("device {from} is more than {KEPT_MAX} messages ahead")).into());
        }
        let letter = Letter { body, payload };
        let kept_bytes = self.kept_bytes.saturating_add(bytes_of(&letter));
        if kept_bytes > KEPT_BYTES_MAX {
            return Err(Failure::Environment(format!("device {from} is more than {KEPT_BYTES_MAX} bytes ahead")).into());
        }
        self.kept_len += 1;
        self.kept_bytes = kept_bytes;
        self.kept.entry((from, key)).or_default().push_back(letter);
        Ok(())
    }
}

/// What a letter takes beside its own size.
fn bytes_of(letter: &Letter) -> usize {
    let of_body = match &letter.body {
        PeerBody::Vote(vote) => size_of_val(&vote.squares[..]),
        _ => 0,
    };
    letter.payload.len() + of_body
}

fn is_fresh(key: &Key, place: Place) -> bool {
    match *key {
        Key::Tensor(step, _) => step >= place.step,
        Key::Layer(epoch, _) | Key::Settled(epoch, _) => epoch >= place.epoch,
        Key::Vote | Key::Probe => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory;
    use super::*;
    use adaptis_proto::message::{TensorKind, TensorTag};
    use adaptis_proto::{Epoch, Generation, Microbatch, StageIndex, Step};

    fn place(step: u64, epoch: u64) -> Place {
        Place { step: Step(step), epoch: Epoch(epoch), generation: Generation(1) }
    }

    fn tag() -> TensorTag {
        TensorTag { kind: TensorKind::Activation, stage: StageIndex(1), microbatch: Microbatch(0) }
    }

    fn tensor(step: u64) -> PeerBody {
        PeerBody::Tensor { step: Step(step), tag: tag(), start_ns: 0, due_ns: 0, bytes: 0 }
    }

    fn pair(patience: Duration) -> [Mailbox<memory::MemoryWire>; 2] {
        let mut wires = memory::mesh(2).into_iter();
        std::array::from_fn(|me| {
            let wire = wires.next().expect("two wires");
            Mailbox::new(wire, me.into(), place(5, 2), patience, Arc::new(AtomicBool::new(false)))
        })
    }

    #[test]
    fn early_messages_wait_and_stale_ones_are_refused() {
        let [mut a, mut b] = pair(Duration::from_millis(20));
        let to = DeviceIndex(1);
        a.send(to, tensor(6), b"early").unwrap();
        a.send(to, tensor(4), b"of an iteration that is over").unwrap();
        a.set_place(place(5, 1), Duration::from_millis(20));
        a.send(to, tensor(5), b"of an older plan").unwrap();
        a.set_place(Place { generation: Generation(0), ..place(5, 2) }, Duration::from_millis(20));
        a.send(to, tensor(5), b"of an older generation").unwrap();
        a.set_place(place(5, 2), Duration::from_millis(20));
        a.send(to, tensor(5), b"now").unwrap();
        let from = DeviceIndex(0);
        assert_eq!(b.take(from, Key::Tensor(Step(5), tag())).unwrap().payload, b"now");
        assert_eq!(b.refused(), 3);
        b.set_place(place(6, 2), Duration::from_millis(20));
        assert_eq!(b.take(from, Key::Tensor(Step(6), tag())).unwrap().payload, b"early");
    }

    #[test]
    fn a_silent_peer_is_named_and_a_stopping_one_ends_the_wait() {
        let [mut a, mut b] = pair(Duration::from_millis(20));
        let key = Key::Tensor(Step(5), tag());
        match b.take(DeviceIndex(0), key) {
            Err(Halt::Failed(Failure::PeerSilent { peer: DeviceIndex(0), waited_ns })) => {
                assert!(waited_ns >= 20_000_000)
            }
            other => panic!("{other:?}"),
        }
        a.send(DeviceIndex(1), tensor(5), b"before").unwrap();
        a.say_stopping(DeviceIndex(1));
        assert_eq!(b.take(DeviceIndex(0), key).unwrap().payload, b"before");
        assert_eq!(b.take(DeviceIndex(0), key), Err(Failure::PeerFailed { peer: DeviceIndex(0) }.into()));
    }

    #[test]
    fn what_is_kept_is_counted_and_let_go() {
        let [mut a, mut b] = pair(Duration::from_millis(20));
        let to = DeviceIndex(1);
        a.send(to, tensor(5), b"now").unwrap();
        a.send(to, tensor(6), b"taken").unwrap();
        a.send(to, tensor(7), b"early").unwrap();
        b.take(DeviceIndex(0), Key::Tensor(Step(5), tag())).unwrap();
        assert_eq!((b.kept_len, b.kept_bytes), (2, 10));
        b.take(DeviceIndex(0), Key::Tensor(Step(6), tag())).unwrap();
        b.set_place(place(8, 2), Duration::from_millis(20));
        assert_eq!((b.kept_len, b.kept_bytes, b.refused()), (0, 0, 1));
    }

    #[test]
    fn a_message_of_no_other_member_is_refused() {
        let [mut a, mut b] = pair(Duration::from_millis(20));
        for from in [2, 1, u32::MAX] {
            a.me = DeviceIndex(from);
            a.send(DeviceIndex(1), tensor(5), b"whose?").unwrap();
            a.say_stopping(DeviceIndex(1));
        }
        let waited = b.take(DeviceIndex(0), Key::Tensor(Step(5), tag()));
        assert!(matches!(waited, Err(Halt::Failed(Failure::PeerSilent { .. }))), "{waited:?}");
        assert_eq!((b.malformed(), b.kept_len), (6, 0));
    }

    #[test]
    fn the_stop_flag_ends_a_wait() {
        let [_, mut b] = pair(Duration::from_secs(60));
        b.stop.store(true, Ordering::Relaxed);
        assert_eq!(b.take(DeviceIndex(0), Key::Vote), Err(Halt::Asked));
    }
}
