//! The compute-only CSV that `torch.distributed.pipelining` loads: one row per rank, `0F0,0F1,0B0,..`.
//!
//! Rank is the device's index. A placement of any kind, any number of stages a rank and any mix of B with I and W are
//! expressible: `_PipelineScheduleRuntime._load_csv` infers the placement from the rows and adds sends and receives.
//! It stores losses in the order in which the last stage produces them, so that stage must run F in ascending order;
//! the audit's rule `order` demands that of every stage.
//!
//! Left out on purpose: the layers of a stage and their recomputation, which the format has no place for.

use super::refusal::{Refusal, Target};
use super::tool::{Export, File, Warning, admit, runtime_warnings};
use adaptis_plan::{Plan, Problem};

/// Writes the schedule.
///
/// # Errors
/// The plan is not valid, or a device holds no stage.
pub fn write(problem: &Problem, plan: &Plan, name: &str) -> Result<Export, Refusal> {
    admit(Target::Torch, problem, plan)?;
    let ranks: Vec<usize> = (0..plan.devices.len()).collect();
    let mut warnings = vec![Warning::StagesElsewhere];
    warnings.extend(runtime_warnings(plan));
    Ok(Export { files: vec![File { name: name.to_owned(), text: csv(plan, &ranks) }], ranks, warnings })
}

/// One row per rank.
pub(super) fn csv(plan: &Plan, ranks: &[usize]) -> String {
    let row = |&device: &usize| {
        let actions: Vec<String> = plan.programs[device].iter().map(ToString::to_string).collect();
        actions.join(",") + "\n"
    };
    ranks.iter().map(row).collect()
}
