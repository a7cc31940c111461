//! `order`: F, I and W of a stage (B counts as I and as W) each take the microbatches in ascending order.
//!
//! So gradients are summed in one order under every plan, and a change of plan changes no bit of the result.

use super::name;
use crate::instruction::{Action, Instruction};
use crate::plan::Plan;

/// A microbatch before a smaller one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device} runs {before} before {instruction}: a stage takes microbatches in ascending order")]
pub struct Fault {
    /// The device that holds the stage.
    pub device: String,
    /// The earlier instruction, of a larger microbatch.
    pub before: Instruction,
    /// The later one.
    pub instruction: Instruction,
}

/// Needs `devices`, `placement` and `program`. The first fault of each stage and kind of work.
pub(super) fn check(plan: &Plan) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut last: Vec<[Option<Instruction>; 3]> = vec![[None; 3]; plan.stages.len()];
    let mut found = vec![[false; 3]; plan.stages.len()];
    for (device, program) in plan.programs.iter().enumerate() {
        for instruction in program {
            let stage = instruction.stage.index();
            let mut descent = None;
            for part in parts(instruction.action) {
                let before = last[stage][*part].replace(*instruction);
                let larger = before.filter(|before| before.microbatch > instruction.microbatch);
                descent = descent.or(larger.map(|before| (*part, before)));
            }
            if let Some((part, before)) = descent
                && !std::mem::replace(&mut found[stage][part], true)
            {
                faults.push(Fault { device: name(plan, device), before, instruction: *instruction });
            }
        }
    }
    faults
}

/// What an action counts as: F, I, W.
fn parts(action: Action) -> &'static [usize] {
    match action {
        Action::Forward => &[0],
        Action::InputGradient => &[1],
        Action::WeightGradient => &[2],
        Action::Backward => &[1, 2],
    }
}
