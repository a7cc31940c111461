//! Where a device's iteration goes, and whom it waits for.
//!
//! ```text
//!   | warm-up | F F   B F   B   B B |  drain  | boundary | optimizer |
//!                  ^-----^---^ waiting        ^ the last device is done
//! ```
//!
//! A wait ends when an input arrives. The part of it before the sender had produced the input is waited for the sender;
//! the rest, queue, transfer and latency, for the link.

use crate::costs::Costs;
use crate::program;
use crate::shape::{Shape, Tables};
use crate::simulate::Timeline;
use adaptis_plan::{Action, Plan, Problem};
use adaptis_proto::message::TensorKind;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A device's iteration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Split {
    /// The device.
    pub device: String,
    /// Its kind.
    pub kind: String,
    /// In instructions, without what they wait for cores meanwhile.
    pub work_ns: u64,
    /// In instructions, while others that share the cores of its host had them.
    pub sharing_ns: u64,
    /// Of the work, forwards done again.
    pub recompute_ns: u64,
    /// Before its first instruction.
    pub warm_up_ns: u64,
    /// Between instructions.
    pub waiting_ns: u64,
    /// After its last instruction, until the last device is done.
    pub drain_ns: u64,
    /// Its own optimizer.
    pub optimizer_ns: u64,
    /// The boundary, and the others' longer optimizers.
    pub boundary_ns: u64,
}

/// A device waiting for what another sends, summed over the iteration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// Who waits.
    pub device: String,
    /// Who sends.
    pub from: String,
    /// Until the sender had produced it.
    pub for_device_ns: u64,
    /// From then until it arrived.
    pub for_link_ns: u64,
}

impl Wait {
    /// All of it.
    pub fn total_ns(&self) -> u64 {
        self.for_device_ns + self.for_link_ns
    }
}

/// An input that crosses devices.
#[derive(Clone, Copy)]
struct Input {
    from: usize,
    produced_ns: u64,
}

pub(super) fn split(problem: &Problem, plan: &Plan, timeline: &Timeline) -> (Vec<Split>, Vec<Wait>) {
    let costs = Costs::new(problem);
    let tables = Tables::new(&costs, &Shape::of(plan));
    let inputs = inputs(problem, plan, timeline);
    let again = recompute(&costs, plan);
    let end_ns = timeline.spans.iter().flatten().map(|span| span.end_ns).max().unwrap_or(0);
    let tail_ns = timeline.iteration_ns.saturating_sub(end_ns);
    let mut waits: BTreeMap<(usize, usize), (u64, u64)> = BTreeMap::new();
    let mut splits = Vec::with_capacity(problem.devices.len());
    for (device, spans) in timeline.spans.iter().enumerate() {
        let layers = plan.stages.iter().filter(|stage| stage.device as usize == device).flat_map(|stage| stage.range());
        let sum = layers.map(|layer| u128::from(problem.optimizer_of(device, layer))).sum();
        let optimizer_ns = costs.optimizer_ns(device, sum).min(tail_ns);
        let mut split = Split {
            device: problem.devices[device].name.clone(),
            kind: problem.devices[device].kind.clone(),
            warm_up_ns: spans.first().map_or(end_ns, |span| span.start_ns),
            drain_ns: spans.last().map_or(0, |span| end_ns - span.end_ns),
            optimizer_ns,
            boundary_ns: tail_ns - optimizer_ns,
            ..Split::default()
        };
        let mut free_ns = split.warm_up_ns;
        for span in spans {
            let stage = span.instruction.stage.index();
            let took_ns = span.end_ns - span.start_ns;
            let own_ns = tables.cost[stage].ns[kind(span.instruction.action) as usize].min(took_ns);
            split.work_ns += own_ns;
            split.sharing_ns += took_ns - own_ns;
            split.recompute_ns += match span.instruction.action {
                Action::InputGradient => again[stage][0],
                Action::Backward => again[stage][1],
                _ => 0,
            };
            let wait_ns = span.start_ns - free_ns;
            if wait_ns > 0 {
                split.waiting_ns += wait_ns;
                let slot = stage * problem.microbatches as usize + span.instruction.microbatch.index();
                let is_forward = span.instruction.action == Action::Forward;
                let input = inputs[usize::from(!is_forward)][slot]
                    .expect("a device that is free starts at once unless its input is under way");
                let for_device_ns = input.produced_ns.min(span.start_ns).saturating_sub(free_ns);
                let (device_ns, link_ns) = waits.entry((device, input.from)).or_default();
                *device_ns += for_device_ns;
                *link_ns += wait_ns - for_device_ns;
            }
            free_ns = span.end_ns;
        }
        splits.push(split);
    }
    let name = |device: usize| problem.devices[device].name.clone();
    let mut waits: Vec<Wait> = waits
        .into_iter()
        .map(|((device, from), (for_device_ns, for_link_ns))| Wait {
            device: name(device),
            from: name(from),
            for_device_ns,
            for_link_ns,
        })
        .collect();
    waits.sort_by_key(|wait| Reverse(wait.total_ns()));
    (splits, waits)
}

fn kind(action: Action) -> u32 {
    match action {
        Action::Forward => program::F,
        Action::InputGradient => program::I,
        Action::WeightGradient => program::W,
        Action::Backward => program::B,
    }
}

/// Of F, and of I or B: by stage and microbatch, the input that comes from another device.
fn inputs(problem: &Problem, plan: &Plan, timeline: &Timeline) -> [Vec<Option<Input>>; 2] {
    let microbatches = problem.microbatches as usize;
    let slots = plan.stages.len() * microbatches;
    let mut end = [vec![0; slots], vec![0; slots]];
    for span in timeline.spans.iter().flatten() {
        let slot = span.instruction.stage.index() * microbatches + span.instruction.microbatch.index();
        match span.instruction.action {
            Action::Forward => end[0][slot] = span.end_ns,
            Action::InputGradient | Action::Backward => end[1][slot] = span.end_ns,
            Action::WeightGradient => {}
        }
    }
    let mut inputs = [vec![None; slots], vec![None; slots]];
    for transfer in &timeline.transfers {
        let slot = transfer.tag.stage.index() * microbatches + transfer.tag.microbatch.index();
        let (way, producer) = match transfer.tag.kind {
            TensorKind::Activation => (0, slot - microbatches),
            TensorKind::Gradient => (1, slot + microbatches),
        };
        inputs[way][slot] = Some(Input { from: transfer.from.index(), produced_ns: end[way][producer] });
    }
    inputs
}

/// What recomputation adds to each I and each B of a stage.
fn recompute(costs: &Costs, plan: &Plan) -> Vec<[u64; 2]> {
    let shape = Shape::of(plan);
    let none = vec![false; shape.recompute.len()];
    let of = |slot: &crate::shape::Slot| {
        let with = costs.stage(slot.device as usize, slot.range(), &shape.recompute);
        let without = costs.stage(slot.device as usize, slot.range(), &none);
        [program::I, program::B].map(|kind| with.ns[kind as usize] - without.ns[kind as usize])
    };
    shape.stages.iter().map(of).collect()
}
