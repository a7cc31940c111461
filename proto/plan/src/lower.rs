//! Derived sends and receives: a plan's programs with their transfers made explicit.

use crate::instruction::Instruction;
use crate::plan::Plan;
use adaptis_proto::DeviceIndex;
use adaptis_proto::message::TensorTag;

/// One device's program with its transfers.
pub type Row = Vec<Work>;

/// A step of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Be ready for a tensor. It is waited for where it is consumed; a runtime whose sends block posts it here.
    Receive {
        /// Sender.
        from: DeviceIndex,
        /// Which tensor; `stage` is its consumer.
        tag: TensorTag,
    },
    /// Execute an instruction, after its inputs are there.
    Run(Instruction),
    /// Hand the result of the instruction before to another device.
    Send {
        /// Receiver.
        to: DeviceIndex,
        /// Which tensor; `stage` is its consumer.
        tag: TensorTag,
    },
}

/// Why a plan has no rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotLower {
    /// Its programs wait for one another.
    #[error("the programs wait for one another in a circle; device {device} stops before {before}")]
    Deadlock {
        /// A device that can't go on.
        device: usize,
        /// Its next instruction.
        before: Instruction,
    },
    /// An instruction names a stage that is not there, or on another device.
    #[error("device {device} is told to run {instruction}, a stage that it does not hold")]
    Stage {
        /// The device.
        device: usize,
        /// The instruction.
        instruction: Instruction,
    },
}

/// The rows of all devices, in an order that is free of deadlock even when every send blocks until its receive.
pub fn lower(_plan: &Plan) -> Result<Vec<Row>, CannotLower> {
    Ok(Vec::new())
}
