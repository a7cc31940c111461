//! The independent checker of plans.
//!
//! One file per rule. A rule is a function from problem and plan to findings; it reads nothing but the two, so that an
//! error of the search or of the simulator cannot hide behind itself. Only `deadlock` looks at the rows that
//! [`crate::lower()`] derives, since they are what it judges. Beside them, `clock` says what an iteration takes.
//!
//! 1. No plan, however broken, makes the audit panic or take memory beyond the plan's own size.
//! 2. A rule that has no meaning while another is broken is skipped: the memory of a program with holes, for instance.
//!    So an empty answer means that every rule was checked.
//! 3. Like findings are counted, not listed: their number is bounded by stages and devices, not by microbatches.
//!
//! The problem must be a checked one ([`Problem::check`]).

mod clock;
pub mod constraint;
pub mod deadlock;
pub mod dependency;
pub mod devices;
pub mod layers;
pub mod memory;
pub mod order;
pub mod placement;
pub mod program;
pub mod recompute;

use crate::plan::Plan;
use crate::problem::Problem;

/// A rule that a plan breaks: where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// Stages cover the layers in order.
    #[error(transparent)]
    Layers(#[from] layers::Fault),
    /// Devices are the problem's, in its order, each with a program.
    #[error(transparent)]
    Devices(#[from] devices::Fault),
    /// A device runs only stages that it holds.
    #[error(transparent)]
    Placement(#[from] placement::Fault),
    /// Each stage works once on each microbatch.
    #[error(transparent)]
    Program(#[from] program::Fault),
    /// The programs can be run to their end.
    #[error(transparent)]
    Dependency(#[from] dependency::Fault),
    /// A stage takes microbatches in ascending order.
    #[error(transparent)]
    Order(#[from] order::Fault),
    /// What is recomputed belongs to its stage.
    #[error(transparent)]
    Recompute(#[from] recompute::Fault),
    /// Every device's peak fits in its memory.
    #[error(transparent)]
    Memory(#[from] memory::Fault),
    /// The problem's constraints hold.
    #[error(transparent)]
    Constraint(#[from] constraint::Fault),
    /// Blocking sends and receives can all meet.
    #[error(transparent)]
    Deadlock(#[from] deadlock::Fault),
}

impl Finding {
    /// Name of the rule.
    pub fn rule(&self) -> &'static str {
        match self {
            Finding::Layers(_) => "layers",
            Finding::Devices(_) => "devices",
            Finding::Placement(_) => "placement",
            Finding::Program(_) => "program",
            Finding::Dependency(_) => "dependency",
            Finding::Order(_) => "order",
            Finding::Recompute(_) => "recompute",
            Finding::Memory(_) => "memory",
            Finding::Constraint(_) => "constraint",
            Finding::Deadlock(_) => "deadlock",
        }
    }
}

/// Every rule that `plan` breaks on `problem`; none if it is valid.
pub fn audit(problem: &Problem, plan: &Plan) -> Vec<Finding> {
    let structure = Structure::check(problem, plan);
    let mut findings = Vec::new();
    if structure.has_devices_and_layers() {
        extend(&mut findings, constraint::check(problem, plan));
    }
    if structure.has_programs() {
        extend(&mut findings, order::check(plan));
        if structure.is_whole() {
            extend(&mut findings, memory::check(problem, plan));
        }
        if structure.dependency.is_empty() {
            extend(&mut findings, deadlock::check(plan));
        }
    }
    let mut all = structure.into_findings();
    all.append(&mut findings);
    all
}

/// Peak of memory of each device, in bytes, by the audit's own walk over its program.
///
/// # Errors
/// The findings that leave the walk without a meaning.
pub fn peak_bytes(problem: &Problem, plan: &Plan) -> Result<Vec<u64>, Vec<Finding>> {
    let structure = Structure::check(problem, plan);
    if !structure.is_whole() {
        return Err(structure.into_findings());
    }
    Ok(memory::peaks(problem, plan).into_iter().map(|peak| peak.bytes).collect())
}

/// What an iteration takes, in nanoseconds, by the audit's own clock: a claim of the simulator can be held against it.
///
/// # Errors
/// The findings that leave the clock without a meaning.
pub fn iteration_ns(problem: &Problem, plan: &Plan) -> Result<u64, Vec<Finding>> {
    let structure = Structure::check(problem, plan);
    if !structure.is_whole() {
        return Err(structure.into_findings());
    }
    Ok(clock::iteration_ns(problem, plan))
}

/// The rules that others build on.
struct Structure {
    layers: Vec<layers::Fault>,
    devices: Vec<devices::Fault>,
    recompute: Vec<recompute::Fault>,
    placement: Vec<placement::Fault>,
    program: Vec<program::Fault>,
    dependency: Vec<dependency::Fault>,
}

impl Structure {
    fn check(problem: &Problem, plan: &Plan) -> Structure {
        let devices = devices::check(problem, plan);
        let mut structure = Structure {
            layers: layers::check(problem, plan),
            placement: if devices.is_empty() { placement::check(plan) } else { Vec::new() },
            devices,
            recompute: recompute::check(plan),
            program: program::check(problem, plan),
            dependency: Vec::new(),
        };
        if structure.has_programs() {
            structure.dependency = dependency::check(problem, plan);
        }
        structure
    }

    fn has_devices_and_layers(&self) -> bool {
        self.layers.is_empty() && self.devices.is_empty()
    }

    fn has_programs(&self) -> bool {
        self.devices.is_empty() && self.placement.is_empty() && self.program.is_empty()
    }

    fn is_whole(&self) -> bool {
        self.has_devices_and_layers() && self.has_programs() && self.recompute.is_empty() && self.dependency.is_empty()
    }

    fn into_findings(self) -> Vec<Finding> {
        let mut findings = Vec::new();
        extend(&mut findings, self.layers);
        extend(&mut findings, self.devices);
        extend(&mut findings, self.recompute);
        extend(&mut findings, self.placement);
        extend(&mut findings, self.program);
        extend(&mut findings, self.dependency);
        findings
    }
}

fn extend<F: Into<Finding>>(findings: &mut Vec<Finding>, faults: Vec<F>) {
    findings.extend(faults.into_iter().map(Into::into));
}

/// The name that a plan gives a device.
fn name(plan: &Plan, device: usize) -> String {
    plan.devices.get(device).cloned().unwrap_or_else(|| format!("device {device}"))
}

/// `, and n more alike`, for the first of `count`.
fn more(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        count => format!(", and {} more alike", count - 1),
    }
}
