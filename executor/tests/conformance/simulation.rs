//! DESIGN section 3.1 once more, as plainly as it can be written: what an iteration of a plan takes.

use adaptis_plan::{Action, Instruction, Plan, Problem};
use adaptis_proto::StageIndex;
use std::collections::HashMap;

pub fn iteration_ns(truth: &Problem, plan: &Plan) -> u64 {
    let mut arrival: HashMap<(StageIndex, bool, u32), u64> = HashMap::new();
    let mut pair_free: HashMap<(u32, u32), u64> = HashMap::new();
    let mut free = vec![0_u64; plan.programs.len()];
    let mut next = vec![0; plan.programs.len()];
    while (0..next.len()).any(|device| next[device] < plan.programs[device].len()) {
        let before = next.clone();
        for device in 0..next.len() {
            while let Some(&instruction) = plan.programs[device].get(next[device]) {
                let Instruction { stage, action, microbatch } = instruction;
                let backward = matches!(action, Action::InputGradient | Action::Backward);
                let due = match action {
                    Action::Forward if stage.0 > 0 => arrival.get(&(stage, false, microbatch.0)),
                    _ if backward && stage.index() + 1 < plan.stages.len() => arrival.get(&(stage, true, microbatch.0)),
                    _ => Some(&0),
                };
                let Some(&due) = due else { break };
                let end = free[device].max(due) + takes(truth, plan, instruction);
                free[device] = end;
                next[device] += 1;
                let range = plan.stages[stage.index()].range();
                let (consumer, bytes) = match action {
                    Action::Forward => (stage.index() + 1, truth.layers[range.end - 1].output_bytes),
                    _ if backward && stage.0 > 0 => (stage.index() - 1, truth.layers[range.start - 1].output_bytes),
                    _ => continue,
                };
                let Some(peer) = plan.stages.get(consumer) else { continue };
                let mut there = end;
                if peer.device as usize != device {
                    let link = truth.link(device, peer.device as usize);
                    let pair = pair_free.entry((device as u32, peer.device)).or_default();
                    *pair = end.max(*pair) + (bytes as f64 * 1e9 / link.bytes_per_second).round() as u64;
                    there = *pair + link.latency_ns;
                }
                arrival.insert((StageIndex::from(consumer), backward, microbatch.0), there);
            }
        }
        assert_ne!(before, next, "the plan is free of deadlock");
    }
    let optimizer = |device: usize| {
        let layers = plan.stages.iter().filter(|stage| stage.device as usize == device).flat_map(|stage| stage.range());
        slowed(truth, device, layers.map(|layer| truth.optimizer_of(device, layer)).sum())
    };
    free.iter().max().expect("there are devices")
        + truth.boundary_ns
        + (0..free.len()).map(optimizer).max().expect("there are devices")
}

fn takes(truth: &Problem, plan: &Plan, instruction: Instruction) -> u64 {
    let stage = &plan.stages[instruction.stage.index()];
    let device = stage.device as usize;
    let layers = stage.range().map(|layer| {
        let cost = &truth.costs_of(device)[layer];
        let again = if stage.recompute.contains(&(layer as u32)) { cost.forward_ns } else { 0 };
        match instruction.action {
            Action::Forward => cost.forward_ns,
            Action::InputGradient => cost.input_gradient_ns + cost.split_ns + again,
            Action::WeightGradient => cost.weight_gradient_ns,
            Action::Backward => cost.input_gradient_ns + cost.weight_gradient_ns + again,
        }
    });
    let at = instruction.stage.index();
    let neighbours = [at.checked_sub(1), Some(at + 1)].into_iter().flatten().filter_map(|of| plan.stages.get(of));
    let elsewhere = neighbours.filter(|of| of.device != stage.device).count() as u64;
    let crossings = if instruction.action == Action::WeightGradient { 0 } else { elsewhere };
    slowed(truth, device, layers.sum()) + truth.stage_ns + crossings * truth.crossing_ns
}

fn slowed(truth: &Problem, device: usize, ns: u64) -> u64 {
    (ns as f64 * truth.devices[device].slowdown).round() as u64
}
