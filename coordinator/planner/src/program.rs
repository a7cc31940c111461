//! Instructions packed into words, and the programs made of them.
//!
//! `stage << 20 | microbatch << 2 | kind`: the inner loop reads four bytes per instruction and decodes by shifts.

use adaptis_plan::{Action, Instruction};

/// Stages that a packed instruction can name.
pub(crate) const STAGES_MAX: usize = 1 << 12;
/// Devices: a stage or more on each; tables of their pairs stay within some hundred megabytes.
pub(crate) const DEVICES_MAX: usize = STAGES_MAX;
/// Microbatches that a packed instruction can name.
pub(crate) const MICROBATCHES_MAX: usize = 1 << 18;

/// F.
pub(crate) const F: u32 = 0;
/// I.
pub(crate) const I: u32 = 1;
/// W.
pub(crate) const W: u32 = 2;
/// B.
pub(crate) const B: u32 = 3;

/// A packed instruction.
pub(crate) type Op = u32;

/// No instruction.
pub(crate) const NONE: Op = u32::MAX;

#[inline]
pub(crate) fn op(kind: u32, stage: usize, microbatch: usize) -> Op {
    (stage as u32) << 20 | (microbatch as u32) << 2 | kind
}

#[inline]
pub(crate) fn kind(op: Op) -> u32 {
    op & 3
}

#[inline]
pub(crate) fn stage(op: Op) -> usize {
    (op >> 20) as usize
}

#[inline]
pub(crate) fn microbatch(op: Op) -> usize {
    ((op >> 2) & (MICROBATCHES_MAX as u32 - 1)) as usize
}

/// Packs; the caller has checked the limits.
pub(crate) fn pack(instruction: Instruction) -> Op {
    let kind = match instruction.action {
        Action::Forward => F,
        Action::InputGradient => I,
        Action::WeightGradient => W,
        Action::Backward => B,
    };
    op(kind, instruction.stage.index(), instruction.microbatch.index())
}

/// Unpacks.
pub(crate) fn unpack(op: Op) -> Instruction {
    let action = [Action::Forward, Action::InputGradient, Action::WeightGradient, Action::Backward][kind(op) as usize];
    Instruction::new(stage(op), action, microbatch(op))
}

/// One ordered list of packed instructions per device.
pub(crate) type Programs = Vec<Vec<Op>>;
