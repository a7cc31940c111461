//! `dependency`: the programs can be run to their end, whatever the times.
//!
//! Every device runs as far as it can; one that waits is woken by the result it waits for. What is left at the end
//! waits in a circle, since nothing is missing (`program`).

use super::name;
use crate::instruction::{Action, Instruction};
use crate::plan::Plan;
use crate::problem::Problem;

/// An instruction whose need is never met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Within one program.
    #[error("{device} runs {instruction} before {needs}, which it needs")]
    Early {
        /// The device.
        device: String,
        /// What comes too early.
        instruction: Instruction,
        /// What it needs.
        needs: Instruction,
    },
    /// Across programs.
    #[error("{device} stops before {instruction} for good: it needs {needs}, and {holder} waits for {device} in turn")]
    Circle {
        /// A device of the circle, or one that waits for it.
        device: String,
        /// Its next instruction.
        instruction: Instruction,
        /// What that needs.
        needs: Instruction,
        /// The device that should produce it.
        holder: String,
    },
}

/// Needs `devices`, `placement` and `program`, so that stage and microbatch are in range and the tables are no larger
/// than the programs.
pub(super) fn check(problem: &Problem, plan: &Plan) -> Vec<Fault> {
    let mut run = Run::new(plan, problem.microbatches as usize);
    let mut waking: Vec<usize> = (0..plan.programs.len()).rev().collect();
    while let Some(device) = waking.pop() {
        run.go_on(device, &mut waking);
    }
    let stuck = (0..plan.programs.len()).filter_map(|device| Some((device, run.missing(device)?)));
    let (mut early, mut circle) = (Vec::new(), Vec::new());
    for (device, needs) in stuck {
        let instruction = plan.programs[device][run.next[device]];
        let holder = plan.stages[needs.stage.index()].device as usize;
        let own = name(plan, device);
        if holder == device {
            early.push(Fault::Early { device: own, instruction, needs });
        } else {
            circle.push(Fault::Circle { device: own, instruction, needs, holder: name(plan, holder) });
        }
    }
    // A program that is wrong in itself stops the others; they are not at fault.
    if early.is_empty() { circle } else { early }
}

struct Run<'a> {
    plan: &'a Plan,
    microbatches: usize,
    next: Vec<usize>,
    forward: Vec<bool>,
    input_gradient: Vec<bool>,
    /// The stage's backward of the microbatch is a B.
    fused: Vec<bool>,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, microbatches: usize) -> Self {
        let cells = plan.stages.len() * microbatches;
        let mut run = Run {
            plan,
            microbatches,
            next: vec![0; plan.programs.len()],
            forward: vec![false; cells],
            input_gradient: vec![false; cells],
            fused: vec![false; cells],
        };
        for instruction in plan.programs.iter().flatten().filter(|instruction| instruction.action == Action::Backward) {
            let cell = run.cell(instruction.stage.index(), instruction.microbatch.index());
            run.fused[cell] = true;
        }
        run
    }

    fn cell(&self, stage: usize, microbatch: usize) -> usize {
        stage * self.microbatches + microbatch
    }

    fn go_on(&mut self, device: usize, waking: &mut Vec<usize>) {
        while let Some(instruction) = self.plan.programs[device].get(self.next[device]) {
            if self.missing(device).is_some() {
                return;
            }
            self.next[device] += 1;
            let (stage, microbatch) = (instruction.stage.index(), instruction.microbatch.index());
            let cell = self.cell(stage, microbatch);
            let consumer = match instruction.action {
                Action::Forward => {
                    self.forward[cell] = true;
                    self.plan.stages.get(stage + 1)
                }
                Action::InputGradient | Action::Backward => {
                    self.input_gradient[cell] = true;
                    stage.checked_sub(1).map(|before| &self.plan.stages[before])
                }
                Action::WeightGradient => None,
            };
            waking.extend(consumer.map(|stage| stage.device as usize).filter(|peer| *peer != device));
        }
    }

    /// What a device's next instruction needs and has not got; none also at the end of its program.
    fn missing(&self, device: usize) -> Option<Instruction> {
        let instruction = self.plan.programs[device].get(self.next[device])?;
        let (stage, microbatch) = (instruction.stage.index(), instruction.microbatch.index());
        let forward = |stage: usize| {
            let there = self.forward[self.cell(stage, microbatch)];
            (!there).then(|| Instruction::new(stage, Action::Forward, microbatch))
        };
        let input_gradient = |stage: usize| {
            let cell = self.cell(stage, microbatch);
            let action = if self.fused[cell] { Action::Backward } else { Action::InputGradient };
            (!self.input_gradient[cell]).then(|| Instruction::new(stage, action, microbatch))
        };
        match instruction.action {
            Action::Forward => stage.checked_sub(1).and_then(forward),
            Action::InputGradient | Action::Backward => forward(stage).or_else(|| {
                let behind = stage + 1;
                (behind < self.plan.stages.len()).then(|| input_gradient(behind)).flatten()
            }),
            Action::WeightGradient => input_gradient(stage),
        }
    }
}
