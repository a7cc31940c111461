//! `program`: for each stage and microbatch one F, and either one B or one I and one W.
//!
//! B counts as I and as W. So each of the three kinds of work must be there exactly once.

use super::{more, name};
use crate::instruction::{Action, Instruction};
use crate::plan::Plan;
use crate::problem::Problem;

/// Work that is missing, doubled or out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A stage that the plan does not have.
    #[error("{device} runs {first}{}: there are {stages} stages, counted from 0", more(*count))]
    Stage {
        /// The device that runs it.
        device: String,
        /// First such instruction.
        first: Instruction,
        /// Number of such instructions.
        count: usize,
        /// Stages of the plan.
        stages: usize,
    },
    /// A microbatch that the problem does not have.
    #[error("{device} runs {first}{}: there are {microbatches} microbatches, counted from 0", more(*count))]
    Microbatch {
        /// The device that runs it.
        device: String,
        /// First such instruction.
        first: Instruction,
        /// Number of such instructions.
        count: usize,
        /// Microbatches of the problem.
        microbatches: u32,
    },
    /// A stage does not work on a microbatch.
    #[error("stage {stage} has no {} for microbatch {microbatch}{}: one is needed", work(*action), more(*count))]
    Missing {
        /// Index of the stage.
        stage: usize,
        /// What is missing; B would do for I and for W.
        action: Action,
        /// First such microbatch.
        microbatch: u32,
        /// Number of such microbatches.
        count: usize,
    },
    /// A stage works on a microbatch again.
    #[error(
        "stage {stage} has {} for microbatch {microbatch} more than once{}: B is I and W",
        work(*action),
        more(*count)
    )]
    Doubled {
        /// Index of the stage.
        stage: usize,
        /// What is doubled; B counts for I and for W.
        action: Action,
        /// First such microbatch.
        microbatch: u32,
        /// Number of instructions too many.
        count: usize,
    },
}

fn work(action: Action) -> &'static str {
    match action {
        Action::Forward => "F",
        Action::InputGradient => "I or B",
        Action::WeightGradient => "W or B",
        Action::Backward => "B",
    }
}

const PARTS: [Action; 3] = [Action::Forward, Action::InputGradient, Action::WeightGradient];

pub(super) fn check(problem: &Problem, plan: &Plan) -> Vec<Fault> {
    let mut faults = Vec::new();
    // Per stage, the microbatches of F, of I, of W, in the order of the programs.
    let mut parts: Vec<[Vec<u32>; 3]> = vec![Default::default(); plan.stages.len()];
    for (device, program) in plan.programs.iter().enumerate() {
        let mut no_stage = Vec::new();
        let mut no_microbatch = Vec::new();
        for instruction in program {
            let Instruction { stage, action, microbatch } = *instruction;
            let Some([forward, input_gradient, weight_gradient]) = parts.get_mut(stage.index()) else {
                no_stage.push(*instruction);
                continue;
            };
            if microbatch.0 >= problem.microbatches {
                no_microbatch.push(*instruction);
                continue;
            }
            match action {
                Action::Forward => forward.push(microbatch.0),
                Action::InputGradient => input_gradient.push(microbatch.0),
                Action::WeightGradient => weight_gradient.push(microbatch.0),
                Action::Backward => {
                    input_gradient.push(microbatch.0);
                    weight_gradient.push(microbatch.0);
                }
            }
        }
        if let Some(first) = no_stage.first().copied() {
            let (count, stages) = (no_stage.len(), plan.stages.len());
            faults.push(Fault::Stage { device: name(plan, device), first, count, stages });
        }
        if let Some(first) = no_microbatch.first().copied() {
            let (count, microbatches) = (no_microbatch.len(), problem.microbatches);
            faults.push(Fault::Microbatch { device: name(plan, device), first, count, microbatches });
        }
    }
    for (stage, parts) in parts.into_iter().enumerate() {
        for (action, mut microbatches) in PARTS.into_iter().zip(parts) {
            microbatches.sort_unstable();
            check_part(&mut faults, stage, action, &microbatches, problem.microbatches);
        }
    }
    faults
}

/// `found` is ascending and below `expected`, the number of microbatches.
fn check_part(faults: &mut Vec<Fault>, stage: usize, action: Action, found: &[u32], expected: u32) {
    let mut doubled = found.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
    let first_doubled = doubled.next();
    let doubles = doubled.count() + usize::from(first_doubled.is_some());
    let mut next = 0;
    for microbatch in found {
        if *microbatch > next {
            break;
        }
        next = microbatch + 1;
    }
    let missing = expected as usize - (found.len() - doubles);
    if missing > 0 {
        faults.push(Fault::Missing { stage, action, microbatch: next, count: missing });
    }
    if let Some(microbatch) = first_doubled {
        faults.push(Fault::Doubled { stage, action, microbatch, count: doubles });
    }
}
