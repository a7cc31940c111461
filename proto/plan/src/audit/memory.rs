//! `memory`: no device's peak exceeds its memory. DESIGN section 3.1, "Memory of a device".
//!
//! What a stage of layers holds for one microbatch, from F to the end of W:
//!
//! ```text
//!   F ............... I, last layer to first ............... W
//!   held              done: weight_gradient                  weight_gradient, then nothing
//!                     at work: activation in full
//!                     to come: held
//! ```
//!
//! where a layer's `held` is its activation, or its input if it is recomputed. Workspace comes on top during every
//! instruction. The order of a program alone decides; times do not.

use super::name;
use crate::instruction::{Action, Instruction};
use crate::plan::{Plan, Stage};
use crate::problem::{Problem, ReceiveBuffers};

/// A device without room.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{device} needs {peak_bytes} bytes{} and has {memory_bytes}: {} bytes too many",
    at.map_or(String::new(), |at| format!(" during {at}")),
    peak_bytes - memory_bytes
)]
pub struct Fault {
    /// The device.
    pub device: String,
    /// Its peak.
    pub peak_bytes: u64,
    /// Its memory.
    pub memory_bytes: u64,
    /// The first instruction at the peak; none if the device runs nothing.
    pub at: Option<Instruction>,
}

/// Needs every rule of the structure.
pub(super) fn check(problem: &Problem, plan: &Plan) -> Vec<Fault> {
    let peaks = peaks(problem, plan).into_iter().enumerate();
    peaks
        .filter(|(device, peak)| peak.bytes > problem.devices[*device].memory_bytes)
        .map(|(device, peak)| Fault {
            device: name(plan, device),
            peak_bytes: peak.bytes,
            memory_bytes: problem.devices[device].memory_bytes,
            at: peak.at,
        })
        .collect()
}

/// A device's highest use of memory.
pub(super) struct Peak {
    pub(super) bytes: u64,
    pub(super) at: Option<Instruction>,
}

/// What one microbatch holds on a stage.
struct Holding {
    /// From F on.
    forward_bytes: u64,
    /// Largest sum along the walk of I or B.
    walk_bytes: u64,
    /// From the end of I on.
    weight_gradient_bytes: u64,
    /// On top, during every instruction.
    workspace_bytes: u64,
}

/// Peak of each device. Needs every rule of the structure.
pub(super) fn peaks(problem: &Problem, plan: &Plan) -> Vec<Peak> {
    let holdings: Vec<Holding> = plan.stages.iter().map(|stage| holding(problem, stage)).collect();
    let mut resident: Vec<u64> = problem.devices.iter().map(|device| device.reserved_bytes).collect();
    for (index, stage) in plan.stages.iter().enumerate() {
        let state: u64 = problem.layers[stage.range()].iter().map(|layer| layer.state_bytes).sum();
        resident[stage.device as usize] += state + receive_buffer_bytes(problem, plan, index);
    }
    plan.programs.iter().zip(resident).map(|(program, resident)| walk(program, &holdings, resident)).collect()
}

fn walk(program: &[Instruction], holdings: &[Holding], resident_bytes: u64) -> Peak {
    let mut peak = Peak { bytes: resident_bytes, at: None };
    // Between instructions; what the microbatch at work adds during one comes on top.
    let mut held_bytes = resident_bytes;
    for instruction in program {
        let of = &holdings[instruction.stage.index()];
        let (before, during, after) = match instruction.action {
            Action::Forward => (0, of.forward_bytes, of.forward_bytes),
            Action::InputGradient => (of.forward_bytes, of.walk_bytes, of.weight_gradient_bytes),
            Action::Backward => (of.forward_bytes, of.walk_bytes, 0),
            Action::WeightGradient => (of.weight_gradient_bytes, of.weight_gradient_bytes, 0),
        };
        let rest_bytes = held_bytes.checked_sub(before).expect("F comes before I, and I before W");
        let bytes = rest_bytes + during + of.workspace_bytes;
        if bytes > peak.bytes || peak.at.is_none() {
            peak = Peak { bytes, at: Some(*instruction) };
        }
        held_bytes = rest_bytes + after;
    }
    peak
}

fn holding(problem: &Problem, stage: &Stage) -> Holding {
    let costs = &problem.costs[&problem.devices[stage.device as usize].kind];
    let held = |layer: usize| match stage.recompute.binary_search(&u32::try_from(layer).expect("layers fit in 32 bits"))
    {
        Ok(_) => input_bytes(problem, layer),
        Err(_) => costs[layer].activation_bytes,
    };
    let forward_bytes: u64 = stage.range().map(held).sum();
    let mut walk_bytes = forward_bytes;
    let (mut to_come, mut done) = (forward_bytes, 0);
    for layer in stage.range().rev() {
        to_come -= held(layer);
        walk_bytes = walk_bytes.max(to_come + costs[layer].activation_bytes + done);
        done += costs[layer].weight_gradient_bytes;
    }
    let workspace_bytes = stage.range().map(|layer| costs[layer].workspace_bytes).max().unwrap_or(0);
    Holding { forward_bytes, walk_bytes, weight_gradient_bytes: done, workspace_bytes }
}

fn input_bytes(problem: &Problem, layer: usize) -> u64 {
    layer.checked_sub(1).map_or(0, |before| problem.layers[before].output_bytes)
}

/// One buffer per microbatch for the input and one for the output gradient, each if it comes from another device.
fn receive_buffer_bytes(problem: &Problem, plan: &Plan, index: usize) -> u64 {
    if problem.receive_buffers == ReceiveBuffers::None {
        return 0;
    }
    let stage = &plan.stages[index];
    let elsewhere = |other: Option<&Stage>| other.is_some_and(|other| other.device != stage.device);
    let mut bytes = 0;
    if elsewhere(index.checked_sub(1).map(|before| &plan.stages[before])) {
        bytes += input_bytes(problem, stage.range().start);
    }
    if elsewhere(plan.stages.get(index + 1)) {
        bytes += problem.layers[stage.range().end - 1].output_bytes;
    }
    bytes * u64::from(problem.microbatches)
}
