//! Plans for other tools, and pictures of timelines.
//!
//! [`torch`], [`torchtitan`] and [`megatron`] write a plan as their tool reads it, or refuse it by the field that the
//! tool cannot express ([`Refusal`]); what the tool merely does otherwise is a [`Warning`]. SVG for people and Chrome
//! trace events for Perfetto draw [`Panel`]s, whether they were simulated ([`Panel::of_plan`]) or measured (their maker
//! fills the bars).

pub mod megatron;
pub mod perfetto;
mod refusal;
pub mod svg;
mod tool;
pub mod torch;
pub mod torchtitan;

pub use refusal::{NoFlag, Refusal, Target};
pub use tool::{Export, File, Warning};

use crate::costs::Costs;
use crate::shape::{Shape, Slot};
use crate::simulate::{Span, Timeline};
use adaptis_plan::{Action, Plan, Problem};

/// What a bar shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// F.
    Forward,
    /// I.
    InputGradient,
    /// W.
    WeightGradient,
    /// I and W in one.
    Backward,
    /// F again.
    Recompute,
    /// The optimizer's step.
    Optimizer,
}

impl Kind {
    /// The letter in a bar.
    pub fn letter(self) -> &'static str {
        match self {
            Kind::Forward => "F",
            Kind::InputGradient => "I",
            Kind::WeightGradient => "W",
            Kind::Backward => "B",
            Kind::Recompute => "R",
            Kind::Optimizer => "O",
        }
    }

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Forward => "forward",
            Kind::InputGradient => "input gradient",
            Kind::WeightGradient => "weight gradient",
            Kind::Backward => "backward (I and W)",
            Kind::Recompute => "recompute",
            Kind::Optimizer => "optimizer",
        }
    }
}

impl From<Action> for Kind {
    fn from(action: Action) -> Kind {
        match action {
            Action::Forward => Kind::Forward,
            Action::InputGradient => Kind::InputGradient,
            Action::WeightGradient => Kind::WeightGradient,
            Action::Backward => Kind::Backward,
        }
    }
}

/// A stretch of work. Times count from the panel's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    /// What.
    pub kind: Kind,
    /// On which stage.
    pub stage: usize,
    /// For which microbatch.
    pub microbatch: usize,
    /// From.
    pub start_ns: u64,
    /// To.
    pub end_ns: u64,
}

/// A device's row.
#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    /// `gpu0 h100-80g`.
    pub label: String,
    /// What it holds: `layers 0-13`.
    pub note: String,
    /// In order of time.
    pub bars: Vec<Bar>,
}

impl Lane {
    /// Nanoseconds at work.
    pub fn busy_ns(&self) -> u64 {
        self.bars.iter().map(|bar| bar.end_ns.saturating_sub(bar.start_ns)).sum()
    }
}

/// One iteration.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What it shows: `iteration 38: before`.
    pub title: String,
    /// In numbers.
    pub caption: String,
    /// Boundary to boundary.
    pub duration_ns: u64,
    /// One per device.
    pub lanes: Vec<Lane>,
}

impl Panel {
    /// A plan of this problem, simulated: the timeline is theirs.
    pub fn of_plan(title: String, problem: &Problem, plan: &Plan, timeline: &Timeline) -> Panel {
        let again_ns = recompute_ns(problem, plan);
        let lanes = problem.devices.iter().zip(&timeline.spans).enumerate();
        Panel {
            title,
            caption: format!("{} an iteration", milliseconds(timeline.iteration_ns)),
            duration_ns: timeline.iteration_ns,
            lanes: lanes
                .map(|(index, (device, spans))| Lane {
                    label: format!("{} {}", device.name, device.kind),
                    note: layers_text(plan, index),
                    bars: spans.iter().flat_map(|span| bars(span, &again_ns)).collect(),
                })
                .collect(),
        }
    }
}

/// What each stage's recomputation takes of its I or B.
fn recompute_ns(problem: &Problem, plan: &Plan) -> Vec<u64> {
    let costs = Costs::new(problem);
    let shape = Shape::of(plan);
    let of = |slot: &Slot| {
        let [with, without] = [
            costs.stage(slot.device as usize, slot.range(), &shape.recompute),
            costs.plain_stage(slot.device as usize, slot.range()),
        ]
        .map(|cost| cost.ns[1]);
        with.saturating_sub(without)
    };
    shape.stages.iter().map(of).collect()
}

/// An instruction, what it recomputes apart.
fn bars(span: &Span, again_ns: &[u64]) -> impl Iterator<Item = Bar> {
    let Span { instruction, start_ns, end_ns } = *span;
    let (stage, microbatch) = (instruction.stage.index(), instruction.microbatch.index());
    let recomputes = matches!(instruction.action, Action::InputGradient | Action::Backward);
    let again_ns = if recomputes { again_ns[stage] } else { 0 };
    let from_ns = (start_ns + again_ns).min(end_ns);
    let bar = |kind, start_ns, end_ns| Bar { kind, stage, microbatch, start_ns, end_ns };
    let again = (from_ns > start_ns).then(|| bar(Kind::Recompute, start_ns, from_ns));
    again.into_iter().chain([bar(instruction.action.into(), from_ns, end_ns)])
}

/// The layers of a device in words: `layers 0-13, 40-44`.
pub fn layers_text(plan: &Plan, device: usize) -> String {
    let stages = plan.stages.iter().filter(|stage| stage.device as usize == device);
    match ranges_text(stages.map(|stage| (stage.layers[0], stage.layers[1]))) {
        ranges if ranges.is_empty() => "no layers".to_owned(),
        ranges => format!("layers {ranges}"),
    }
}

/// Ranges of layers, each with its end excluded, as people read them: `0-13, 40`.
pub fn ranges_text(ranges: impl Iterator<Item = (u32, u32)>) -> String {
    let texts: Vec<String> = ranges
        .map(|(from, to)| match to.saturating_sub(from) {
            0 | 1 => from.to_string(),
            _ => format!("{from}-{}", to - 1),
        })
        .collect();
    texts.join(", ")
}

/// A time as people read it.
pub fn milliseconds(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.2} ms", ns as f64 / 1e6),
        10_000_000..10_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}
