//! A message between ranks, and the name under which it is waited for.

use adaptis_proto::message::{PeerBody, TensorTag};
use adaptis_proto::{Epoch, LayerIndex, Step};

/// What a message is waited for by, beside its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A tensor of an iteration.
    Tensor(Step, TensorTag),
    /// The sender's next vote, whatever it says: the judge names dissenters.
    Vote,
    /// A layer that moves for a plan.
    Layer(Epoch, LayerIndex),
    /// The sender's voice before the first iteration under a plan.
    Settled(Epoch, Step),
    /// The sender's next probe.
    Probe,
}

impl Key {
    /// The key of a message; none for one that nobody waits for.
    pub fn of(epoch: Epoch, body: &PeerBody) -> Option<Key> {
        match body {
            PeerBody::Tensor { step, tag, .. } => Some(Key::Tensor(*step, *tag)),
            PeerBody::Vote(_) => Some(Key::Vote),
            PeerBody::LayerState { layer, .. } => Some(Key::Layer(epoch, *layer)),
            PeerBody::Settled { step, .. } => Some(Key::Settled(epoch, *step)),
            PeerBody::Probe { .. } => Some(Key::Probe),
            PeerBody::Stopping => None,
        }
    }
}

/// A message without its address.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    /// What it says.
    pub body: PeerBody,
    /// A tensor's or a layer's bytes.
    pub payload: Vec<u8>,
}
