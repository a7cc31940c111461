//! The simulator: what an iteration of a plan takes, and what each device holds.
//!
//! Follows DESIGN section 3.1 to the nanosecond. Memory that does not fit is a result, not an error; only a plan that
//! can't run, or that belongs to another problem, has no timeline.

use crate::costs::Costs;
use crate::memory;
use crate::program::{DEVICES_MAX, F, MICROBATCHES_MAX, Programs, STAGES_MAX, microbatch, stage, unpack};
use crate::replay::{Replay, Sent};
use crate::shape::{Shape, Tables, programs_of};
use adaptis_plan::{Action, Instruction, Plan, Problem};
use adaptis_proto::message::{TensorKind, TensorTag};
use adaptis_proto::{DeviceIndex, Microbatch, StageIndex};

/// One iteration of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// Boundary to boundary: the last instruction's end, the boundary and the longest optimizer.
    pub iteration_ns: u64,
    /// Per device: its highest use of memory.
    pub peak_bytes: Vec<u64>,
    /// Per device: one minus the share of the iteration spent in instructions.
    pub bubble: Vec<f64>,
    /// No device uses more than its memory.
    pub fits: bool,
    /// Per device, in program order.
    pub spans: Vec<Vec<Span>>,
    /// What crosses devices: by sender, each sender's in its program order.
    pub transfers: Vec<Transfer>,
}

/// When an instruction runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which one.
    pub instruction: Instruction,
    /// After its inputs arrived and the one before it ended.
    pub start_ns: u64,
    /// Its results exist.
    pub end_ns: u64,
}

/// A tensor on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Sender.
    pub from: DeviceIndex,
    /// Receiver.
    pub to: DeviceIndex,
    /// Which tensor; its stage is the consumer.
    pub tag: TensorTag,
    /// Later of its production and the end of the transfer before it on this directed pair.
    pub start_ns: u64,
    /// The link is free again.
    pub end_ns: u64,
    /// The receiver has it.
    pub arrival_ns: u64,
    /// What the link carries.
    pub bytes: u64,
}

/// Why a plan has no timeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotSimulate {
    /// It names other devices than the problem, or in another order.
    #[error("the plan is for devices {plan:?}, the problem has {problem:?}")]
    Devices {
        /// The plan's.
        plan: Vec<String>,
        /// The problem's.
        problem: Vec<String>,
    },
    /// It was made for another number of layers, or has not one program per device.
    #[error("the plan has {found} {what}, the problem has {expected}")]
    Count {
        /// Layers or programs.
        what: &'static str,
        /// The plan's.
        found: usize,
        /// The problem's.
        expected: usize,
    },
    /// A stage does not go on where the one before it ended, is empty, or goes beyond the last layer.
    #[error(
        "stages[{stage}].layers is [{from}, {to}]: it must begin at {next}, hold a layer at least, and end at {layers} or before"
    )]
    Layers {
        /// Which stage.
        stage: usize,
        /// Its first layer.
        from: u32,
        /// Its end.
        to: u32,
        /// Where the one before it ended.
        next: u32,
        /// All layers.
        layers: u32,
    },
    /// A stage is on a device that is not there.
    #[error("stages[{stage}].device is {device}: the plan's devices are 0 to {last}")]
    Device {
        /// Which stage.
        stage: usize,
        /// Its device.
        device: u32,
        /// The highest there is.
        last: usize,
    },
    /// The stages end before the layers do.
    #[error("no stage has the layers {from} to {last}: the stages cover all layers in order")]
    Uncovered {
        /// The first layer without a stage.
        from: u32,
        /// The last one.
        last: u32,
    },
    /// A stage recomputes a layer that it does not hold.
    #[error("stage {stage} recomputes layer {layer}, which it does not hold")]
    Recompute {
        /// Which stage.
        stage: usize,
        /// Which layer.
        layer: u32,
    },
    /// An instruction names a stage or microbatch that is not there, or a stage of another device.
    #[error("device {device} is told to run {instruction}, which it does not hold")]
    Foreign {
        /// The device.
        device: usize,
        /// The instruction.
        instruction: Instruction,
    },
    /// An instruction comes twice (I and B of one microbatch count as the same work).
    #[error("device {device} runs {instruction} though that work was already done")]
    Repeated {
        /// The device.
        device: usize,
        /// The instruction.
        instruction: Instruction,
    },
    /// An instruction comes before one that it needs and that follows in the same program, or nowhere.
    #[error("device {device} comes to {instruction} before {needs}")]
    TooEarly {
        /// The device.
        device: usize,
        /// The instruction.
        instruction: Instruction,
        /// What it needs.
        needs: Instruction,
    },
    /// An instruction is in no program.
    #[error("device {device} never runs {instruction}")]
    Missing {
        /// The device of its stage.
        device: usize,
        /// The instruction.
        instruction: Instruction,
    },
    /// The programs wait for one another.
    #[error("the programs wait for one another in a circle; device {device} stops before {instruction}")]
    Deadlock {
        /// A device that can't go on.
        device: usize,
        /// Its next instruction.
        instruction: Instruction,
    },
    /// More than this simulator's words hold.
    #[error("{what} {found} are more than {limit}")]
    TooLarge {
        /// Stages or microbatches.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
}

/// Replays a plan, also where its memory does not fit (`fits` is false then).
///
/// # Errors
/// The plan belongs to another problem, is incomplete, or can't run; see [`CannotSimulate`].
pub fn simulate(problem: &Problem, plan: &Plan) -> Result<Timeline, CannotSimulate> {
    check(problem, plan)?;
    let tables = Tables::new(&Costs::new(problem), &Shape::of(plan));
    let programs = programs_of(plan);
    let mut replay = Replay::default();
    let mut transfers = Vec::new();
    let end = replay.run_observed(&tables, &programs, None, |sent| transfers.push(transfer(&sent)));
    let end = end.ok_or_else(|| deadlock(&replay, &programs))?;
    // Stable, so each sender's stay in its program order.
    transfers.sort_by_key(|transfer| transfer.from);
    let iteration_ns = end.saturating_add(tables.tail_ns);
    let span = |device: usize, position: usize| {
        let op = programs[device][position];
        let (start_ns, end_ns) = replay.span(&tables, device, position, op);
        Span { instruction: unpack(op), start_ns, end_ns }
    };
    let spans: Vec<Vec<Span>> = (0..programs.len())
        .map(|device| (0..programs[device].len()).map(|position| span(device, position)).collect())
        .collect();
    let busy = |spans: &Vec<Span>| spans.iter().map(|span| span.end_ns - span.start_ns).sum::<u64>();
    let bubble = spans.iter().map(|spans| match iteration_ns {
        0 => 0.0,
        _ => 1.0 - busy(spans) as f64 / iteration_ns as f64,
    });
    let peak_bytes: Vec<u64> =
        programs.iter().enumerate().map(|(device, program)| memory::peak_bytes(&tables, device, program)).collect();
    Ok(Timeline {
        iteration_ns,
        fits: peak_bytes.iter().zip(&tables.limit_bytes).all(|(peak, limit)| peak <= limit),
        peak_bytes,
        bubble: bubble.collect(),
        spans,
        transfers,
    })
}

/// Why a replay did not come to its end.
pub(crate) fn deadlock(replay: &Replay, programs: &Programs) -> CannotSimulate {
    let (device, op) = replay.stuck(programs);
    CannotSimulate::Deadlock { device, instruction: unpack(op) }
}

fn transfer(sent: &Sent) -> Transfer {
    let (here, microbatch) = (stage(sent.producer), microbatch(sent.producer));
    let (kind, consumer) = match crate::program::kind(sent.producer) {
        F => (TensorKind::Activation, here + 1),
        _ => (TensorKind::Gradient, here - 1),
    };
    Transfer {
        from: DeviceIndex::from(sent.from),
        to: DeviceIndex(sent.hop.to),
        tag: TensorTag { kind, stage: StageIndex::from(consumer), microbatch: Microbatch::from(microbatch) },
        start_ns: sent.start_ns,
        end_ns: sent.end_ns,
        arrival_ns: sent.arrival_ns,
        bytes: sent.hop.bytes,
    }
}

/// Whether a plan belongs to the problem and each program can run by itself.
pub(crate) fn check(problem: &Problem, plan: &Plan) -> Result<(), CannotSimulate> {
    if !plan.devices.iter().eq(problem.devices.iter().map(|device| &device.name)) {
        let problem = problem.devices.iter().map(|device| device.name.clone()).collect();
        return Err(CannotSimulate::Devices { plan: plan.devices.clone(), problem });
    }
    let count = |what, found: usize, expected: usize| match found == expected {
        true => Ok(()),
        false => Err(CannotSimulate::Count { what, found, expected }),
    };
    count("layers", plan.layers as usize, problem.layers.len())?;
    count("programs", plan.programs.len(), problem.devices.len())?;
    let within = |what, found: usize, limit: usize| match found <= limit {
        true => Ok(()),
        false => Err(CannotSimulate::TooLarge { what, found, limit }),
    };
    within("devices", problem.devices.len(), DEVICES_MAX)?;
    within("stages", plan.stages.len(), STAGES_MAX)?;
    within("microbatches", problem.microbatches as usize, MICROBATCHES_MAX)?;
    check_stages(problem, plan)?;
    check_programs(problem, plan)
}

fn check_stages(problem: &Problem, plan: &Plan) -> Result<(), CannotSimulate> {
    let mut next = 0;
    for (index, stage) in plan.stages.iter().enumerate() {
        let [from, to] = stage.layers;
        if from != next || to <= from || to > plan.layers {
            return Err(CannotSimulate::Layers { stage: index, from, to, next, layers: plan.layers });
        }
        if stage.device as usize >= problem.devices.len() {
            let last = problem.devices.len().saturating_sub(1);
            return Err(CannotSimulate::Device { stage: index, device: stage.device, last });
        }
        if let Some(&layer) = stage.recompute.iter().find(|&&layer| layer < from || layer >= to) {
            return Err(CannotSimulate::Recompute { stage: index, layer });
        }
        next = to;
    }
    if next != plan.layers {
        return Err(CannotSimulate::Uncovered { from: next, last: plan.layers - 1 });
    }
    Ok(())
}

/// Each program runs all of its stages' work once, in an order that its own dependencies allow.
fn check_programs(problem: &Problem, plan: &Plan) -> Result<(), CannotSimulate> {
    const FORWARD: u8 = 1;
    const INPUT: u8 = 2;
    const WEIGHT: u8 = 4;
    let microbatches = problem.microbatches as usize;
    let mut done = vec![0_u8; plan.stages.len() * microbatches];
    for (device, program) in plan.programs.iter().enumerate() {
        for &instruction in program {
            let (stage, microbatch) = (instruction.stage.index(), instruction.microbatch.index());
            let here = plan.stages.get(stage).is_some_and(|stage| stage.device as usize == device);
            if !here || microbatch >= microbatches {
                return Err(CannotSimulate::Foreign { device, instruction });
            }
            let done = &mut done[stage * microbatches + microbatch];
            let (needs, action, does) = match instruction.action {
                Action::Forward => (0, Action::Forward, FORWARD),
                Action::InputGradient => (FORWARD, Action::Forward, INPUT),
                Action::WeightGradient => (INPUT, Action::InputGradient, WEIGHT),
                Action::Backward => (FORWARD, Action::Forward, INPUT | WEIGHT),
            };
            if *done & does != 0 {
                return Err(CannotSimulate::Repeated { device, instruction });
            }
            if *done & needs != needs {
                let needs = Instruction { action, ..instruction };
                return Err(CannotSimulate::TooEarly { device, instruction, needs });
            }
            *done |= does;
        }
    }
    let actions = [(FORWARD, Action::Forward), (INPUT, Action::InputGradient), (WEIGHT, Action::WeightGradient)];
    for (slot, done) in done.iter().enumerate() {
        if let Some(&(_, action)) = actions.iter().find(|(bit, _)| done & bit == 0) {
            let (stage, microbatch) = (slot / microbatches, slot % microbatches);
            let instruction = Instruction::new(stage, action, microbatch);
            return Err(CannotSimulate::Missing { device: plan.stages[stage].device as usize, instruction });
        }
    }
    Ok(())
}
