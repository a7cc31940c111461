//! `placement`: a device runs only stages that it holds.

use super::{more, name};
use crate::instruction::Instruction;
use crate::plan::Plan;
use std::collections::BTreeMap;

/// A device runs another one's stage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device} runs {first}{}: stage {} is on {holder}", more(*count), first.stage)]
pub struct Fault {
    /// The device that runs it.
    pub device: String,
    /// The device that holds the stage.
    pub holder: String,
    /// First such instruction.
    pub first: Instruction,
    /// Number of such instructions.
    pub count: usize,
}

/// Needs `devices`. Stages that are not there are `program`'s to find.
pub(super) fn check(plan: &Plan) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (device, program) in plan.programs.iter().enumerate() {
        let mut foreign: BTreeMap<_, (Instruction, usize)> = BTreeMap::new();
        for instruction in program {
            let stage = plan.stages.get(instruction.stage.index());
            if stage.is_some_and(|stage| stage.device as usize != device) {
                foreign.entry(instruction.stage).or_insert((*instruction, 0)).1 += 1;
            }
        }
        faults.extend(foreign.into_iter().map(|(stage, (first, count))| Fault {
            device: name(plan, device),
            holder: name(plan, plan.stages[stage.index()].device as usize),
            first,
            count,
        }));
    }
    faults
}
