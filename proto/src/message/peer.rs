//! Between two ranks.

use super::rank::Failure;
use crate::sample::Place;
use crate::{DeviceIndex, Digest, Epoch, Generation, LayerIndex, Microbatch, StageIndex, Step, Term};
use serde::{Deserialize, Serialize};

/// Head of every message between ranks; the tensor's bytes follow. A receiver refuses another generation or epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerHeader {
    /// Membership.
    pub generation: Generation,
    /// Plan.
    pub epoch: Epoch,
    /// Sender.
    pub from: DeviceIndex,
    /// What follows.
    pub body: PeerBody,
}

/// What one rank sends another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PeerBody {
    /// Output of F or of I, for a stage of the receiver.
    Tensor {
        /// Iteration.
        step: Step,
        /// Which one.
        tag: TensorTag,
        /// When its transfer starts on the link, sender's clock.
        start_ns: u64,
        /// When it arrives, sender's clock; emulated links are held to it.
        due_ns: u64,
        /// Bytes that the link carries for it (emulated links carry more than the message holds).
        bytes: u64,
    },
    /// A rank's voice at the boundary.
    Vote(Vote),
    /// State of a layer that changes device; epoch of the header is the new plan's.
    LayerState {
        /// Which layer.
        layer: LayerIndex,
        /// Of the state at the sender.
        digest: Digest,
        /// When it arrives, sender's clock.
        due_ns: u64,
        /// Bytes that the link carries for it.
        bytes: u64,
    },
    /// A rank's voice after the moves of a switch: every layer is here with the digest it left with.
    Settled {
        /// First iteration under the new plan.
        step: Step,
        /// When it was ready, sender's clock.
        ready_ns: u64,
    },
    /// A transfer made to measure a link.
    Probe {
        /// When it starts on the link, sender's clock.
        start_ns: u64,
        /// When it arrives, sender's clock.
        due_ns: u64,
        /// Bytes that the link carries for it.
        bytes: u64,
    },
    /// The sender stops; do not wait for it.
    Stopping,
}

/// A tensor that crosses devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TensorTag {
    /// What it is.
    pub kind: TensorKind,
    /// The stage that consumes it.
    pub stage: StageIndex,
    /// Microbatch.
    pub microbatch: Microbatch,
}

/// Direction of a tensor through the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TensorKind {
    /// Output of the stage before, input of F.
    Activation,
    /// Input gradient of the stage behind, input of I or B.
    Gradient,
}

/// One rank's part of the all-gather before the optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    /// Where the voter stands.
    pub place: Place,
    /// Highest term it has seen.
    pub term: Term,
    /// The plan it is armed with, and the digest of its text.
    pub armed: Option<(Epoch, Digest)>,
    /// All its snapshots are done (true while there are none).
    pub rotated: bool,
    /// A generation it was told to drain for.
    pub drain: Option<Generation>,
    /// Why it can't go on, if so.
    pub failure: Option<Failure>,
    /// Sum of squares of each of its layers' gradients.
    pub squares: Vec<(LayerIndex, f64)>,
    /// Mean loss of the iteration, from the rank that holds the last layer.
    pub loss: Option<f32>,
    /// When its last instruction ended, its clock.
    pub ready_ns: u64,
    /// How long its optimizer step will take.
    pub apply_ns: u64,
}
