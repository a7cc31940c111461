//! The emulated device's memory, byte for byte as DESIGN section 3.1 accounts for it.
//!
//! What is resident (reserved, state, receive buffers) is known from the plan; what is live follows the instructions.
//! The same account runs ahead of a plan ([`peak_bytes`]) and beside its execution, so a plan that was let in does not
//! run out of memory later.

use adaptis_plan::{Action, Instruction, Plan, Problem, ReceiveBuffers, Stage};
use adaptis_proto::DeviceIndex;
use std::collections::HashMap;

/// A device's memory under a plan.
#[derive(Clone, Debug)]
pub struct Memory {
    resident_bytes: u64,
    limit_bytes: u64,
    stages: HashMap<u32, StageBytes>,
    live: HashMap<(u32, u32), u64>,
    live_bytes: u64,
    peak_bytes: u64,
}

#[derive(Clone, Debug)]
struct StageBytes {
    /// Held for a microbatch from the start of F.
    held: u64,
    /// Largest sum along the walk of I or B, its start included.
    walk_peak: u64,
    /// Held from the end of I to the end of W.
    weight: u64,
    workspace: u64,
}

/// More memory than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// What the instruction needs.
    pub needed_bytes: u64,
    /// What the device has.
    pub limit_bytes: u64,
}

impl Memory {
    /// The memory of a device at the start of an iteration; `plan` is the stages of the whole plan.
    pub fn new(truth: &Problem, device: DeviceIndex, plan: &[Stage]) -> Memory {
        let at = device.index();
        let mut resident_bytes = truth.devices[at].reserved_bytes;
        let mut stages = HashMap::new();
        for (number, stage) in plan.iter().enumerate().filter(|(_, stage)| stage.device == device.0) {
            resident_bytes += truth.layers[stage.range()].iter().map(|layer| layer.state_bytes).sum::<u64>();
            if truth.receive_buffers == ReceiveBuffers::All {
                resident_bytes += u64::from(truth.microbatches) * received_bytes(truth, plan, number);
            }
            stages.insert(number as u32, StageBytes::new(truth, at, stage));
        }
        let limit_bytes = truth.devices[at].memory_bytes;
        let peak_bytes = resident_bytes;
        Memory { resident_bytes, limit_bytes, stages, live: HashMap::new(), live_bytes: 0, peak_bytes }
    }

    /// An instruction begins: returns what it needs at its most.
    ///
    /// # Errors
    /// The device has less.
    ///
    /// # Panics
    /// If the stage is not the device's, or the program breaks the order of F, I and W.
    pub fn begin(&mut self, instruction: Instruction) -> Result<u64, OutOfMemory> {
        let Instruction { stage, action, microbatch } = instruction;
        let bytes = &self.stages[&stage.0];
        let held = self.live.entry((stage.0, microbatch.0)).or_default();
        let most = match action {
            Action::Forward => bytes.held,
            Action::InputGradient | Action::Backward => bytes.walk_peak,
            Action::WeightGradient => bytes.weight,
        };
        let needed_bytes = self.resident_bytes + bytes.workspace + self.live_bytes - *held + most;
        let after = match action {
            Action::Forward => bytes.held,
            Action::InputGradient => bytes.weight,
            Action::WeightGradient | Action::Backward => 0,
        };
        // What an instruction leaves behind only matters from the next one on.
        self.live_bytes = self.live_bytes - *held + after;
        *held = after;
        self.peak_bytes = self.peak_bytes.max(needed_bytes);
        if needed_bytes > self.limit_bytes {
            return Err(OutOfMemory { needed_bytes, limit_bytes: self.limit_bytes });
        }
        Ok(needed_bytes)
    }

    /// The highest use since it was last asked for.
    pub fn take_peak(&mut self) -> u64 {
        std::mem::replace(&mut self.peak_bytes, self.resident_bytes + self.live_bytes)
    }

    /// Reserved, state and receive buffers.
    pub fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }
}

/// The highest use of a device's memory under a plan that was audited.
pub fn peak_bytes(truth: &Problem, device: DeviceIndex, plan: &Plan) -> u64 {
    let mut memory = Memory::new(truth, device, &plan.stages);
    memory.limit_bytes = u64::MAX;
    for &instruction in &plan.programs[device.index()] {
        memory.begin(instruction).expect("the limit is out of reach");
    }
    memory.take_peak()
}

/// What a switch between two plans needs at its most. Layers that leave are staged on the host, so the device holds the
/// state of one plan at a time.
pub fn switch_bytes(truth: &Problem, device: DeviceIndex, old: &Plan, new: &Plan) -> u64 {
    let resident = |plan: &Plan| Memory::new(truth, device, &plan.stages).resident_bytes();
    resident(old).max(resident(new))
}

/// One microbatch's receive buffers of a stage.
fn received_bytes(truth: &Problem, plan: &[Stage], number: usize) -> u64 {
    let stage = &plan[number];
    let elsewhere = |other: Option<&Stage>| other.is_some_and(|other| other.device != stage.device);
    let before = number.checked_sub(1).and_then(|before| plan.get(before));
    let mut bytes = 0;
    if elsewhere(before) {
        bytes += truth.layers[stage.range().start - 1].output_bytes;
    }
    if elsewhere(plan.get(number + 1)) {
        bytes += truth.layers[stage.range().end - 1].output_bytes;
    }
    bytes
}

impl StageBytes {
    fn new(truth: &Problem, device: usize, stage: &Stage) -> StageBytes {
        let costs = &truth.costs_of(device)[stage.range()];
        let holds: Vec<u64> = stage
            .range()
            .zip(costs)
            .map(|(layer, cost)| match stage.recompute.contains(&(layer as u32)) {
                true => layer.checked_sub(1).map_or(0, |before| truth.layers[before].output_bytes),
                false => cost.activation_bytes,
            })
            .collect();
        let held = holds.iter().sum::<u64>();
        let (mut walk_peak, mut to_come, mut done) = (held, held, 0);
        for (hold, cost) in holds.iter().zip(costs).rev() {
            to_come -= hold;
            walk_peak = walk_peak.max(done + cost.activation_bytes + to_come);
            done += cost.weight_gradient_bytes;
        }
        let workspace = costs.iter().map(|cost| cost.workspace_bytes).max().unwrap_or(0);
        StageBytes { held, walk_peak, weight: done, workspace }
    }
}
