//! What every export for another tool is made of: files, the ranks they are for, and what to beware of.

use super::milliseconds;
use super::refusal::{Refusal, Target};
use crate::simulate::{Timeline, simulate};
use adaptis_plan::{Action, Plan, Problem, audit};
use std::fmt;

/// A plan for another tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// What the tool reads. The first one is the export, others go beside it.
    pub files: Vec<File>,
    /// By rank of the pipeline: index of the device that must run it.
    pub ranks: Vec<usize>,
    /// What the tool does otherwise than the plan says.
    pub warnings: Vec<Warning>,
}

/// A file that a tool reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Without a path.
    pub name: String,
    /// Its contents.
    pub text: String,
}

/// What a tool does otherwise than the plan says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The schedule holds no layers: the training script builds the stages.
    StagesElsewhere,
    /// PyTorch skips I of the first stage and runs all of its backward at W.
    FirstInputGradient,
    /// PyTorch's own split of the backward pass recomputes more than once.
    SplitRecompute {
        /// A stage with both.
        stage: usize,
    },
    /// The tool does not recompute a layer that the plan recomputes.
    NotRecomputed {
        /// The layers.
        names: Vec<String>,
    },
    /// The tool runs another order than the plan.
    OtherOrder {
        /// Its name.
        order: &'static str,
        /// What the plan's takes.
        plan_ns: u64,
        /// What the tool's takes, simulated.
        tool_ns: u64,
    },
    /// Layers whose names are not those of the tool's own models.
    OtherModules {
        /// The layers.
        names: Vec<String>,
    },
    /// Ranks are not the devices in the problem's order.
    Ranks {
        /// Device of each rank.
        devices: Vec<String>,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::OtherModules { names } => write!(
                f,
                "{} no module of torchtitan's own models (tok_embeddings, layers.N, norm, output, lm_head): the split is \
                 right only for a model that names its modules so",
                match &names[..] {
                    [one] => format!("`{one}` is"),
                    [one, more @ ..] => format!("`{one}` and {} more layers are", more.len()),
                    [] => "nothing is".to_owned(),
                }
            ),
            Warning::StagesElsewhere => f.write_str(
                "the file holds the order alone: the training script builds each stage from the layers listed, and \
                 wraps those to recompute in torch.utils.checkpoint",
            ),
            Warning::FirstInputGradient => f.write_str(
                "PyTorch does nothing at 0I and all of the first stage's backward at 0W, unless its stage has a \
                 dw_builder",
            ),
            Warning::SplitRecompute { stage } => write!(
                f,
                "stage {stage} recomputes and splits I from W: PyTorch's own split then recomputes once for I and \
                 again for W, unless the stage has a dw_builder"
            ),
            Warning::NotRecomputed { names } => {
                write!(f, "only transformer layers are recomputed there, so these are not: {}", names.join(" "))
            }
            Warning::OtherOrder { order, plan_ns, tool_ns } => write!(
                f,
                "the plan's order is not expressible and left out; in the tool's own, {order}, an iteration takes {} \
                 instead of {}",
                milliseconds(*tool_ns),
                milliseconds(*plan_ns)
            ),
            Warning::Ranks { devices } => {
                write!(f, "start the ranks of the pipeline on these devices, in this order: {}", devices.join(" "))
            }
        }
    }
}

/// The plan passed its audit, and every device holds a stage.
pub(super) fn admit(target: Target, problem: &Problem, plan: &Plan) -> Result<(), Refusal> {
    if let Some(first) = audit(problem, plan).into_iter().next() {
        return Err(Refusal::Invalid { first });
    }
    let idle = (0..plan.devices.len()).find(|&device| held(plan, device) == 0);
    match idle {
        Some(device) => Err(Refusal::Idle { target, device: plan.devices[device].clone() }),
        None => Ok(()),
    }
}

/// Number of stages on a device.
pub(super) fn held(plan: &Plan, device: usize) -> usize {
    plan.stages.iter().filter(|stage| stage.device as usize == device).count()
}

/// How stages follow one another over the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Stage s on rank s modulo the number of ranks.
    Loop,
    /// Two stages per rank, the second ones in reverse.
    V,
}

/// Device of each rank, if the stages lie in a loop (or in a V, where that is allowed).
pub(super) fn ranks(target: Target, plan: &Plan, is_v_known: bool) -> Result<(Style, Vec<usize>), Refusal> {
    let count = plan.devices.len();
    if count == 1 {
        return Err(Refusal::OneDevice { target });
    }
    let name = |device: usize| plan.devices[device].clone();
    let device = |stage: usize| plan.stages[stage].device as usize;
    let few = (0..count).min_by_key(|&device| held(plan, device)).unwrap_or(0);
    let many = (0..count).max_by_key(|&device| held(plan, device)).unwrap_or(0);
    let (fewer, more) = (held(plan, few), held(plan, many));
    if fewer != more {
        return Err(Refusal::Uneven { target, few: name(few), fewer, many: name(many), more });
    }
    // Every device holds a stage, so there are at least as many stages as ranks.
    let order: Vec<usize> = (0..count).map(device).collect();
    for stage in 1..count {
        if order[..stage].contains(&order[stage]) {
            let expected = "another rank than the stages before it".to_owned();
            return Err(Refusal::Placement { target, stage, device: name(order[stage]), expected });
        }
    }
    let is_v = is_v_known && more == 2 && (count..2 * count).all(|stage| device(stage) == order[2 * count - 1 - stage]);
    if is_v {
        return Ok((Style::V, order));
    }
    match (count..plan.stages.len()).find(|&stage| device(stage) != order[stage % count]) {
        None => Ok((Style::Loop, order)),
        Some(stage) => {
            let mut expected = name(order[stage % count]);
            if is_v_known && more == 2 {
                expected = format!("{expected} (in a loop) or {} (in a V)", name(order[2 * count - 1 - stage]));
            }
            Err(Refusal::Placement { target, stage, device: name(device(stage)), expected })
        }
    }
}

/// The plan without recomputing layers that the target never recomputes, and which those are.
pub(super) fn recomputing_only(
    problem: &Problem,
    plan: &Plan,
    is_kept: impl Fn(usize) -> bool,
) -> (Plan, Option<Warning>) {
    let mut eased = plan.clone();
    let mut names = Vec::new();
    for stage in &mut eased.stages {
        stage.recompute.retain(|&layer| {
            let is_kept = is_kept(layer as usize);
            if !is_kept {
                names.push(problem.layers[layer as usize].name.clone());
            }
            is_kept
        });
    }
    let warning = (!names.is_empty()).then_some(Warning::NotRecomputed { names });
    (eased, warning)
}

/// What the target's own way of running the plan takes, if it fits.
pub(super) fn replayed(
    target: Target,
    problem: &Problem,
    theirs: &Plan,
    order: &'static str,
) -> Result<Timeline, Refusal> {
    let timeline = simulate(problem, theirs)?;
    for (device, &needed_bytes) in problem.devices.iter().zip(&timeline.peak_bytes) {
        let available_bytes = device.memory_bytes;
        if needed_bytes > available_bytes {
            return Err(Refusal::Memory { target, order, device: device.name.clone(), needed_bytes, available_bytes });
        }
    }
    Ok(timeline)
}

/// The ranks where they are not simply the devices in order.
pub(super) fn rank_warning(plan: &Plan, ranks: &[usize]) -> Option<Warning> {
    let devices = || ranks.iter().map(|&device| plan.devices[device].clone()).collect();
    (!ranks.is_sorted()).then(|| Warning::Ranks { devices: devices() })
}

/// What PyTorch's runtime does otherwise.
pub(super) fn runtime_warnings(plan: &Plan) -> Vec<Warning> {
    let splits = |stage: usize| {
        let program = &plan.programs[plan.stages[stage].device as usize];
        program
            .iter()
            .any(|instruction| instruction.stage.index() == stage && instruction.action == Action::InputGradient)
    };
    let mut warnings = Vec::new();
    if splits(0) {
        warnings.push(Warning::FirstInputGradient);
    }
    let both = (0..plan.stages.len()).find(|&stage| !plan.stages[stage].recompute.is_empty() && splits(stage));
    warnings.extend(both.map(|stage| Warning::SplitRecompute { stage }));
    warnings
}
