//! Ranks as threads of one process, for tests.

use super::{Wire, WireError};
use adaptis_proto::DeviceIndex;
use adaptis_proto::message::PeerHeader;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Messages on their way to one rank. Full: the sender is told, and retries.
const QUEUE_MAX: usize = 1024;

type Message = (PeerHeader, Vec<u8>);

/// One rank's end.
pub struct MemoryWire {
    peers: Vec<SyncSender<Message>>,
    inbox: Receiver<Message>,
}

/// The ends of `count` ranks, each connected with all, in order of device index.
pub fn mesh(count: usize) -> Vec<MemoryWire> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| sync_channel(QUEUE_MAX)).unzip();
    receivers.into_iter().map(|inbox| MemoryWire { peers: senders.clone(), inbox }).collect()
}

impl Wire for MemoryWire {
    fn send(&mut self, to: DeviceIndex, header: &PeerHeader, payload: &[u8]) -> Result<(), WireError> {
        let peer = self.peers.get(to.index()).ok_or(WireError::NoPeer { to })?;
        match peer.try_send((header.clone(), payload.to_vec())) {
            // A rank that has left misses nothing; whoever waits for its answer has a deadline.
            Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
            Err(TrySendError::Full(_)) => Err(WireError::Full { to }),
        }
    }

    fn receive(&mut self, timeout: Duration) -> Result<Option<Message>, WireError> {
        match self.inbox.recv_timeout(timeout) {
            Ok(message) => Ok(Some(message)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(WireError::Closed),
        }
    }

    fn members(&self) -> usize {
        self.peers.len()
    }
}
