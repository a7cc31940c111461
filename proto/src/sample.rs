//! Samples: what a rank records about itself while it trains.
//!
//! A [`Record`] is the form in the ring, on the wire and in the store: six words, fixed size, no pointer. A [`Sample`]
//! is the same with names. `Record::from(sample)` and `Sample::try_from(record)` are exact inverses.
//!
//! Layout: word 0 = kind (8 bits), phase (8), flags (16), layer or peer (32); word 1 = step (40 bits), microbatch (24);
//! word 2 = epoch (40), generation (24); words 3 to 5 by kind. Larger numbers do not occur in a job (a trillion steps)
//! and are cut, which the property test of this module states.
//!
//! Kinds only grow in number and words never change their meaning: a reader one version older meets a kind that it does not
//! know, an [`UnknownRecord`], and leaves it out.

use crate::{DeviceIndex, Epoch, Generation, LayerIndex, Microbatch, Step};
use serde::{Deserialize, Serialize};

/// What a device does to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Phase {
    /// F.
    Forward = 0,
    /// I: the gradient of the layer's input.
    InputGradient = 1,
    /// W: the gradient of the layer's weights.
    WeightGradient = 2,
    /// F again, inside I or B, because its activations were dropped.
    Recompute = 3,
    /// Gradient reduction and optimizer step.
    Optimizer = 4,
}

impl Phase {
    /// All, in order of their numbers.
    pub const ALL: [Phase; 5] =
        [Phase::Forward, Phase::InputGradient, Phase::WeightGradient, Phase::Recompute, Phase::Optimizer];
}

/// One iteration's place in history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Iteration.
    pub step: Step,
    /// Plan in force.
    pub epoch: Epoch,
    /// Membership in force.
    pub generation: Generation,
}

/// One measurement. Instants are `CLOCK_MONOTONIC` nanoseconds of the recording host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sample {
    /// A layer's work for one microbatch, waiting excluded. `cold` marks calibration and the iterations after a start
    /// or a switch, which are kept apart.
    Work {
        /// When.
        place: Place,
        /// Which layer.
        layer: LayerIndex,
        /// Which microbatch (0 for the optimizer).
        microbatch: Microbatch,
        /// Which phase.
        phase: Phase,
        /// Kept apart from the estimate's window.
        mark: Mark,
        /// Start of the work, after its input was there.
        start_ns: u64,
        /// How long it took.
        duration_ns: u64,
    },
    /// A transfer that reached this device, `start_ns` being the later of its production and the end of the one
    /// before it on the same directed pair.
    Transfer {
        /// When.
        place: Place,
        /// The sender.
        from: DeviceIndex,
        /// Which microbatch.
        microbatch: Microbatch,
        /// A probe or real traffic.
        mark: Mark,
        /// Bytes on the link.
        bytes: u64,
        /// Start on the link.
        start_ns: u64,
        /// From start to arrival.
        duration_ns: u64,
    },
    /// What a layer holds for one microbatch, measured once per plan.
    LayerMemory {
        /// When.
        place: Place,
        /// Which layer.
        layer: LayerIndex,
        /// From the start of F.
        activation_bytes: u64,
        /// Of it, between I and W.
        weight_gradient_bytes: u64,
        /// Transient, during any instruction.
        workspace_bytes: u64,
    },
    /// The device's memory in one iteration.
    DeviceMemory {
        /// When.
        place: Place,
        /// Highest use.
        peak_bytes: u64,
        /// Use by none of the layers: context, communicator, fragmentation.
        reserved_bytes: u64,
        /// Nanoseconds by which work overran its pace in this iteration (emulated devices only).
        late_ns: u64,
    },
    /// An iteration, boundary to boundary without the pause of a switch.
    Iteration {
        /// When.
        place: Place,
        /// Boundary at which it began.
        start_ns: u64,
        /// How long it took.
        duration_ns: u64,
        /// The loss as the bits of an `f32`.
        loss_bits: u32,
    },
    /// A change of plan seen by this device; `place.epoch` is the new one.
    Switch {
        /// When: `step` is the first iteration under the new plan.
        place: Place,
        /// Layers that changed device, over all devices.
        layers_moved: u32,
        /// Bytes that this device received.
        bytes_received: u64,
        /// How long training stood still, seen here.
        pause_ns: u64,
        /// The plan before, low 32 bits.
        from: u32,
    },
    /// How much a microbatch is, where microbatches differ: what its works' times are compared by. Once for each, from any
    /// rank that knows it.
    Load {
        /// When.
        place: Place,
        /// Which microbatch.
        microbatch: Microbatch,
        /// Tokens in it.
        tokens: u64,
        /// Sum of the squared lengths of its sequences, in tokens.
        squares: u64,
        /// Tokens that its busiest expert got; 0 where there are no experts.
        busiest: u64,
    },
    /// What passed between a device's instructions in one iteration, waiting excluded: what the interpreter takes, and what
    /// sends and receives take of the device itself. Told apart where nothing was sent or received and where something was.
    Between {
        /// When.
        place: Place,
        /// Kept apart from the estimate's window.
        mark: Mark,
        /// Instructions before which it was measured.
        instructions: u32,
        /// All of it together.
        own_ns: u64,
        /// What was sent and received meanwhile; 0 where nothing was.
        transfers: u64,
    },
}

/// Why a sample is set apart, if it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Mark {
    /// Ordinary training.
    #[default]
    Warm = 0,
    /// One of the first iterations after a start or a switch.
    Cold = 1,
    /// A measurement made on purpose, outside training.
    Calibration = 2,
    /// The host was held up, or catching up with the device: the time shows the host and not the device's cost.
    Hasty = 3,
}

/// Six words of a ring slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record(pub [u64; Record::WORDS]);

impl Record {
    /// Words in a record.
    pub const WORDS: usize = 6;
    /// Bytes in a record.
    pub const BYTES: usize = Self::WORDS * 8;
}

/// A record that no version of this crate writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownRecord {
    /// Its kind is not one of ours.
    #[error("record kind {0} is unknown")]
    Kind(u8),
    /// Its phase is not one of ours.
    #[error("phase {0} is unknown")]
    Phase(u8),
    /// Its mark is not one of ours.
    #[error("mark {0} is unknown")]
    Mark(u8),
}

const BITS_24: u64 = (1 << 24) - 1;
const BITS_40: u64 = (1 << 40) - 1;

fn head(kind: u8, phase: u8, mark: Mark, low: u32) -> u64 {
    u64::from(kind) << 56 | u64::from(phase) << 48 | u64::from(mark as u8) << 32 | u64::from(low)
}

fn words(head: u64, place: Place, microbatch: Microbatch, rest: [u64; 3]) -> Record {
    Record([
        head,
        (place.step.0 & BITS_40) << 24 | u64::from(microbatch.0) & BITS_24,
        (place.epoch.0 & BITS_40) << 24 | place.generation.0 & BITS_24,
        rest[0],
        rest[1],
        rest[2],
    ])
}

impl From<Sample> for Record {
    #[inline]
    fn from(sample: Sample) -> Record {
        let none = Microbatch(0);
        match sample {
            Sample::Work { place, layer, microbatch, phase, mark, start_ns, duration_ns } => {
                words(head(1, phase as u8, mark, layer.0), place, microbatch, [start_ns, duration_ns, 0])
            }
            Sample::Transfer { place, from, microbatch, mark, bytes, start_ns, duration_ns } => {
                words(head(2, 0, mark, from.0), place, microbatch, [bytes, start_ns, duration_ns])
            }
            Sample::LayerMemory { place, layer, activation_bytes, weight_gradient_bytes, workspace_bytes } => words(
                head(3, 0, Mark::Warm, layer.0),
                place,
                none,
                [activation_bytes, weight_gradient_bytes, workspace_bytes],
            ),
            Sample::DeviceMemory { place, peak_bytes, reserved_bytes, late_ns } => {
                words(head(4, 0, Mark::Warm, 0), place, none, [peak_bytes, reserved_bytes, late_ns])
            }
            Sample::Iteration { place, start_ns, duration_ns, loss_bits } => {
                words(head(5, 0, Mark::Warm, 0), place, none, [start_ns, duration_ns, u64::from(loss_bits)])
            }
            Sample::Switch { place, layers_moved, bytes_received, pause_ns, from } => {
                words(head(6, 0, Mark::Warm, layers_moved), place, none, [bytes_received, pause_ns, u64::from(from)])
            }
            Sample::Load { place, microbatch, tokens, squares, busiest } => {
                words(head(7, 0, Mark::Warm, 0), place, microbatch, [tokens, squares, busiest])
            }
            Sample::Between { place, mark, instructions, own_ns, transfers } => {
                words(head(8, 0, mark, instructions), place, none, [own_ns, transfers, 0])
            }
        }
    }
}

impl TryFrom<Record> for Sample {
    type Error = UnknownRecord;

    fn try_from(Record(word): Record) -> Result<Sample, UnknownRecord> {
        let place =
            Place { step: Step(word[1] >> 24), epoch: Epoch(word[2] >> 24), generation: Generation(word[2] & BITS_24) };
        let microbatch = Microbatch((word[1] & BITS_24) as u32);
        let low = word[0] as u32;
        let mark = match (word[0] >> 32) as u8 {
            0 => Mark::Warm,
            1 => Mark::Cold,
            2 => Mark::Calibration,
            3 => Mark::Hasty,
            other => return Err(UnknownRecord::Mark(other)),
        };
        Ok(match (word[0] >> 56) as u8 {
            1 => {
                let number = (word[0] >> 48) as u8;
                let phase = *Phase::ALL.get(usize::from(number)).ok_or(UnknownRecord::Phase(number))?;
                let (layer, start_ns, duration_ns) = (LayerIndex(low), word[3], word[4]);
                Sample::Work { place, layer, microbatch, phase, mark, start_ns, duration_ns }
            }
            2 => {
                let (from, bytes, start_ns, duration_ns) = (DeviceIndex(low), word[3], word[4], word[5]);
                Sample::Transfer { place, from, microbatch, mark, bytes, start_ns, duration_ns }
            }
            3 => Sample::LayerMemory {
                place,
                layer: LayerIndex(low),
                activation_bytes: word[3],
                weight_gradient_bytes: word[4],
                workspace_bytes: word[5],
            },
            4 => Sample::DeviceMemory { place, peak_bytes: word[3], reserved_bytes: word[4], late_ns: word[5] },
            5 => Sample::Iteration { place, start_ns: word[3], duration_ns: word[4], loss_bits: word[5] as u32 },
            6 => Sample::Switch {
                place,
                layers_moved: low,
                bytes_received: word[3],
                pause_ns: word[4],
                from: word[5] as u32,
            },
            7 => Sample::Load { place, microbatch, tokens: word[3], squares: word[4], busiest: word[5] },
            8 => Sample::Between { place, mark, instructions: low, own_ns: word[3], transfers: word[4] },
            other => return Err(UnknownRecord::Kind(other)),
        })
    }
}
