//! Derived sends and receives: a plan's programs with their transfers made explicit.
//!
//! ```text
//!   programs                 rows
//!   d0: 0F0 0F1 ..           d0: run 0F0 | send>d1 | run 0F1 | send>d1 | ..
//!   d1: 1F0 1B0 ..           d1:           recv<d0 | run 1F0 | recv<d0 | run 1B0 | send>d0 ..
//! ```
//!
//! A walk over all programs, round by round, each device one ready instruction a round, writes the rows. When it runs
//! an instruction whose result another device consumes, it writes the send behind it and, at the same moment, the
//! receive into the other row.
//!
//! 1. A row without its transfers is the device's program.
//! 2. A send stands right behind the instruction whose result it hands over.
//! 3. Receives of a directed pair stand in the order of its sends.
//! 4. The walk is one run of all rows in which each send meets its receive at once. So no deadlock is possible, also if
//!    sends and receives both block until they meet: the walk's earliest event that has not happened always can.
//!
//! Rounds keep the walk near a real run, so that a receive is not posted long before its tensor comes. Whether each
//! instruction is there once and only once is the audit's to say.

use crate::instruction::{Action, Instruction};
use crate::plan::Plan;
use adaptis_proto::message::{TensorKind, TensorTag};
use adaptis_proto::{DeviceIndex, StageIndex};
use std::collections::HashSet;

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
/// Takes time and memory in proportion to the number of instructions.
///
/// # Errors
/// An instruction of a stage that its device does not hold, or programs that wait for one another.
pub fn lower(plan: &Plan) -> Result<Vec<Row>, CannotLower> {
    check_stages(plan)?;
    let mut walk = Walk {
        plan,
        rows: plan.programs.iter().map(|program| Vec::with_capacity(program.len() * 2)).collect(),
        next: vec![0; plan.programs.len()],
        done: HashSet::with_capacity(plan.programs.iter().map(Vec::len).sum()),
    };
    let mut round: Vec<usize> = (0..plan.programs.len()).collect();
    while !round.is_empty() {
        // Ready is what the rounds before made ready: within a round nothing depends on the order of devices.
        let ready: Vec<usize> = round.into_iter().filter(|device| walk.is_ready(*device)).collect();
        let mut woken = Vec::with_capacity(ready.len() * 3);
        for device in ready {
            walk.advance(device, &mut woken);
        }
        woken.sort_unstable();
        woken.dedup();
        round = woken;
    }
    match (0..plan.programs.len()).find_map(|device| Some((device, walk.following(device)?))) {
        Some((device, before)) => Err(CannotLower::Deadlock { device, before }),
        None => Ok(walk.rows),
    }
}

fn check_stages(plan: &Plan) -> Result<(), CannotLower> {
    for (device, program) in plan.programs.iter().enumerate() {
        let held = |instruction: &&Instruction| {
            plan.stages.get(instruction.stage.index()).is_some_and(|stage| stage.device as usize == device)
        };
        if let Some(instruction) = program.iter().find(|instruction| !held(instruction)) {
            return Err(CannotLower::Stage { device, instruction: *instruction });
        }
    }
    Ok(())
}

struct Walk<'a> {
    plan: &'a Plan,
    rows: Vec<Row>,
    /// Per device, how many instructions of its program have run.
    next: Vec<usize>,
    /// Every F that has run, and every I, B being one.
    done: HashSet<Instruction>,
}

impl Walk<'_> {
    fn following(&self, device: usize) -> Option<Instruction> {
        self.plan.programs[device].get(self.next[device]).copied()
    }

    fn is_ready(&self, device: usize) -> bool {
        let Some(Instruction { stage, action, microbatch }) = self.following(device) else {
            return false;
        };
        let done = |stage, action| self.done.contains(&Instruction { stage, action, microbatch });
        match action {
            Action::Forward => before(stage).is_none_or(|before| done(before, Action::Forward)),
            Action::InputGradient | Action::Backward => {
                done(stage, Action::Forward)
                    && self.behind(stage).is_none_or(|behind| done(behind, Action::InputGradient))
            }
            Action::WeightGradient => done(stage, Action::InputGradient),
        }
    }

    /// Runs a device's next instruction and hands its result over. `woken` gets the devices whose next instruction may
    /// have become ready.
    fn advance(&mut self, device: usize, woken: &mut Vec<usize>) {
        let instruction = self.following(device).expect("a ready device has a next instruction");
        let Instruction { stage, action, microbatch } = instruction;
        self.next[device] += 1;
        self.rows[device].push(Work::Run(instruction));
        woken.push(device);
        let (result, consumer, kind) = match action {
            Action::Forward => (action, self.behind(stage), TensorKind::Activation),
            Action::InputGradient | Action::Backward => (Action::InputGradient, before(stage), TensorKind::Gradient),
            Action::WeightGradient => return,
        };
        self.done.insert(Instruction { action: result, ..instruction });
        let Some(consumer) = consumer else {
            return;
        };
        let peer = self.plan.stages[consumer.index()].device as usize;
        // A consumer on no device, of a plan without its program, has nobody to receive.
        if peer != device && peer < self.rows.len() {
            let tag = TensorTag { kind, stage: consumer, microbatch };
            self.rows[device].push(Work::Send { to: DeviceIndex::from(peer), tag });
            self.rows[peer].push(Work::Receive { from: DeviceIndex::from(device), tag });
            woken.push(peer);
        }
    }

    fn behind(&self, stage: StageIndex) -> Option<StageIndex> {
        let behind = StageIndex(stage.0.checked_add(1)?);
        (behind.index() < self.plan.stages.len()).then_some(behind)
    }
}

fn before(stage: StageIndex) -> Option<StageIndex> {
    stage.0.checked_sub(1).map(StageIndex)
}
