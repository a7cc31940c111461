//! What is said of a job to come: what in its problem was guessed, and what is missing.

use crate::predict::{CannotPredict, MeasuredPhase};
use adaptis_plan::Link;
use adaptis_proto::sample::Phase;
use std::fmt;

/// Something that was guessed.
#[derive(Clone, Debug, PartialEq)]
pub enum Remark {
    /// No optimizer step of a layer was measured or could be predicted: it counts as 0.
    NoOptimizer {
        /// On which kind.
        kind: String,
        /// Of how many signatures.
        signatures: usize,
    },
    /// What a layer holds was measured on another kind.
    MemoryOfOtherKind {
        /// Of which layers.
        signature: String,
        /// On which kind it was asked for.
        kind: String,
        /// On which it was measured.
        measured: String,
    },
    /// Nobody measured what is held until W: all of the activations are taken for it.
    HeldUntilW {
        /// Of which layers.
        signature: String,
    },
    /// Several ranks work on the cores of one host, which may be too few for them.
    OwnCores {
        /// The node.
        node: String,
        /// How many ranks.
        ranks: usize,
    },
    /// No transfer from one kind to another was measured: those of the other direction count.
    LinkOfOtherDirection {
        /// Sender.
        from: String,
        /// Receiver.
        to: String,
    },
    /// No transfer between two kinds was measured in either direction.
    LinkAssumed {
        /// Sender.
        from: String,
        /// Receiver.
        to: String,
        /// What is taken for it.
        link: Link,
    },
    /// Nobody measured what an instruction or a transfer on a kind costs besides its layers: the other kinds' counts.
    OverheadOfOtherKind {
        /// Which kind.
        kind: String,
    },
    /// Transfers of one size only were measured: the latency is in the bandwidth.
    LinkOfOneSize {
        /// Sender.
        from: String,
        /// Receiver.
        to: String,
        /// The size.
        bytes: u64,
    },
}

/// Something without which there is no problem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missing {
    /// A time.
    Time {
        /// On which kind.
        kind: String,
        /// Of which layers.
        signature: String,
        /// What was done.
        phase: Phase,
        /// Why there is no prediction.
        why: NoPrediction,
    },
    /// What a layer holds, on any kind.
    Memory {
        /// Of which layers.
        signature: String,
    },
}

/// Why a time that was not measured is not predicted either.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoPrediction {
    /// Nothing was measured on the kind: a prediction would be the mean of all other kinds.
    UnknownKind,
    /// Nothing like it was measured.
    Nothing(CannotPredict),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Time { kind, signature, phase, why } => {
                let phase = MeasuredPhase::from(*phase);
                match why {
                    NoPrediction::UnknownKind => write!(f, "{phase} of {signature} on {kind}"),
                    NoPrediction::Nothing(why) => write!(f, "{phase} of {signature} on {kind}: {why}"),
                }
            }
            Missing::Memory { signature } => write!(f, "what {signature} holds in memory, on any kind"),
        }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remark::NoOptimizer { kind, signatures } => {
                write!(
                    f,
                    "guessed: the optimizer step on {kind} takes no time ({signatures} signatures without a profile)"
                )
            }
            Remark::MemoryOfOtherKind { signature, kind, measured } => {
                write!(f, "guessed: {signature} holds on {kind} what it holds on {measured}")
            }
            Remark::HeldUntilW { signature } => {
                write!(f, "guessed: all that {signature} holds is held until its weight gradient")
            }
            Remark::OwnCores { node, ranks } => write!(
                f,
                "guessed: the {ranks} ranks on the cores of {node} have cores enough (where they share them, a problem says so by \
                 its `hosts`)"
            ),
            Remark::LinkOfOtherDirection { from, to } => {
                write!(f, "guessed: the link from {from} to {to} is as the one back")
            }
            Remark::LinkAssumed { from, to, link } => write!(
                f,
                "guessed: the link from {from} to {to} carries {} GB/s after {} us; no profile knows it \
                 ([links] of a --devices file does)",
                link.bytes_per_second / 1e9,
                link.latency_ns as f64 / 1e3
            ),
            Remark::OverheadOfOtherKind { kind } => {
                write!(f, "guessed: instructions and transfers on {kind} cost what they cost on the other kinds")
            }
            Remark::LinkOfOneSize { from, to, bytes } => {
                write!(
                    f,
                    "guessed: the link from {from} to {to} has no latency apart: only transfers of {bytes} bytes are known"
                )
            }
        }
    }
}
