//! Random problems with every optional field, and a replay that shares no code with the planner.

#![allow(dead_code, reason = "each test uses its part")]

use adaptis_plan::problem::{self, Pin};
use adaptis_plan::{
    Action, Constraints, Cost, Device, Host, Instruction, Layer, Link, Links, Pair, Plan, Problem, ReceiveBuffers,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A layer of a given cost.
pub fn cost(forward_ns: u64, input_gradient_ns: u64, weight_gradient_ns: u64) -> Cost {
    Cost {
        forward_ns,
        input_gradient_ns,
        weight_gradient_ns,
        activation_bytes: 4,
        weight_gradient_bytes: 2,
        ..Cost::default()
    }
}

/// Equal devices, one cost for every layer, no volume.
pub fn uniform(devices: usize, layers: usize, microbatches: u32, cost: Cost, latency_ns: u64) -> Problem {
    Problem::new(
        microbatches,
        (0..layers).map(|at| layer(at, 0, 0)).collect(),
        (0..devices).map(|at| device(at, "k0", 1 << 40, 1.0)).collect(),
        BTreeMap::from([("k0".to_owned(), vec![cost; layers])]),
        Links { default: link(latency_ns, 1e12), pairs: Vec::new(), note: None },
    )
}

pub fn link(latency_ns: u64, bytes_per_second: f64) -> Link {
    Link { latency_ns, bytes_per_second, note: () }
}

pub fn layer(at: usize, state_bytes: u64, output_bytes: u64) -> Layer {
    Layer {
        name: format!("layer{at}"),
        signature: "block/unit".to_owned(),
        parameter_bytes: 0,
        state_bytes,
        output_bytes,
        moved_bytes: None,
        note: None,
    }
}

pub fn device(at: usize, kind: &str, memory_bytes: u64, slowdown: f64) -> Device {
    Device { name: format!("gpu{at}"), kind: kind.to_owned(), memory_bytes, slowdown, reserved_bytes: 0, note: None }
}

prop_compose! {
    fn any_cost()(
        forward_ns in 0..60_u64, input_gradient_ns in 0..60_u64, weight_gradient_ns in 0..60_u64,
        activation_bytes in 0..40_u64, kept in 0..=100_u64, workspace_bytes in prop_oneof![Just(0), 0..30_u64],
        split_ns in prop_oneof![Just(0), 0..10_u64],
    ) -> Cost {
        Cost {
            forward_ns, input_gradient_ns, weight_gradient_ns, activation_bytes,
            weight_gradient_bytes: activation_bytes * kept / 100, workspace_bytes, split_ns, note: None,
        }
    }
}

prop_compose! {
    fn any_constraints(layers: usize, devices: usize)(
        pins in proptest::collection::vec((0..layers as u32, 0..devices), 0..3),
        forbidden in proptest::option::weighted(0.2, 0..devices),
        together in proptest::option::weighted(0.3, (0..layers as u32, 0..layers as u32)),
        any in proptest::bool::weighted(0.4),
    ) -> Constraints {
        if !any {
            return Constraints::default();
        }
        let mut pinned: Vec<Pin> = Vec::new();
        for (layer, device) in pins {
            if pinned.iter().all(|pin| pin.layer != layer) {
                pinned.push(Pin { layer, device: format!("gpu{device}"), note: None });
            }
        }
        let together = together.filter(|(a, b)| a != b).map(|(a, b)| vec![a, b]).into_iter().collect();
        let forbidden = forbidden.filter(|_| devices > 1).map(|device| format!("gpu{device}")).into_iter().collect();
        Constraints { pinned, forbidden, together, note: None }
    }
}

/// The same, with some of its devices on one or two hosts that are too small for them.
pub fn any_crowded_problem() -> impl Strategy<Value = Problem> {
    let host = || (proptest::collection::vec(any::<bool>(), 4), prop_oneof![Just(1.0), Just(2.0), 0.3..3.0_f64]);
    (any_problem(), host(), proptest::option::of(host())).prop_map(|(mut problem, first, second)| {
        let mut free: Vec<String> = problem.devices.iter().map(|device| device.name.clone()).collect();
        for (takes, at_once) in std::iter::once(first).chain(second) {
            let mut takes = takes.into_iter();
            let devices: Vec<String> = free.extract_if(.., |_| takes.next().unwrap_or(false)).collect();
            if !devices.is_empty() {
                problem.hosts.push(Host { devices, at_once, note: None });
            }
        }
        problem
    })
}

/// Up to 7 layers, 4 devices of up to 2 kinds, 5 microbatches; memory from ample to too little.
pub fn any_problem() -> impl Strategy<Value = Problem> {
    (1..8_usize, 1..5_usize, 1..3_usize).prop_flat_map(|(layers, devices, kinds)| {
        let costs = proptest::collection::vec(proptest::collection::vec(any_cost(), layers), kinds);
        let sizes = proptest::collection::vec((0..50_u64, 0..30_u64, proptest::option::of(0..50_u64)), layers);
        let each = (0..kinds, 100..2_000_u64, 0..20_u64, prop_oneof![Just(1.0), Just(1.5), 0.5..3.0_f64]);
        let cards = proptest::collection::vec(each, devices);
        let optimizer = proptest::option::of(proptest::collection::vec(0..50_u64, layers));
        let wire = || (prop_oneof![Just(0), 0..20_u64], prop_oneof![Just(1e12), 2e8..5e9_f64]);
        let pairs = proptest::collection::vec((0..devices, 0..devices, wire()), 0..3);
        let rest = (
            1..6_u32,
            any::<bool>(),
            0..20_u64,
            (prop_oneof![Just(0), 0..5_u64], prop_oneof![Just(0), 0..5_u64]),
            wire(),
        );
        (costs, sizes, cards, optimizer, pairs, rest, any_constraints(layers, devices)).prop_map(assemble)
    })
}

type Wire = (u64, f64);

#[expect(clippy::type_complexity, reason = "the parts of a problem as proptest hands them over")]
fn assemble(
    (costs, sizes, cards, optimizer, pairs, rest, constraints): (
        Vec<Vec<Cost>>,
        Vec<(u64, u64, Option<u64>)>,
        Vec<(usize, u64, u64, f64)>,
        Option<Vec<u64>>,
        Vec<(usize, usize, Wire)>,
        (u32, bool, u64, (u64, u64), Wire),
        Constraints,
    ),
) -> Problem {
    let (microbatches, buffers, boundary_ns, (stage_ns, crossing_ns), (latency_ns, bytes_per_second)) = rest;
    let mut seen = std::collections::BTreeSet::new();
    Problem {
        format: problem::FORMAT.to_owned(),
        note: None,
        microbatches,
        layers: sizes
            .iter()
            .enumerate()
            .map(|(at, &(state, output, moved))| Layer { moved_bytes: moved, ..layer(at, state, output) })
            .collect(),
        devices: cards
            .iter()
            .enumerate()
            .map(|(at, &(kind, memory, reserved, slowdown))| Device {
                reserved_bytes: reserved,
                ..device(at, &format!("k{kind}"), memory, slowdown)
            })
            .collect(),
        costs: costs.into_iter().enumerate().map(|(at, costs)| (format!("k{at}"), costs)).collect(),
        links: Links {
            default: link(latency_ns, bytes_per_second),
            pairs: pairs
                .into_iter()
                .filter(|&(from, to, _)| from != to && seen.insert((from, to)))
                .map(|(from, to, (latency_ns, bytes_per_second))| Pair {
                    from: format!("gpu{from}"),
                    to: format!("gpu{to}"),
                    latency_ns,
                    bytes_per_second,
                    note: None,
                })
                .collect(),
            note: None,
        },
        optimizer_ns: optimizer.map(|of| BTreeMap::from([("k0".to_owned(), of)])).unwrap_or_default(),
        receive_buffers: if buffers { ReceiveBuffers::All } else { ReceiveBuffers::None },
        boundary_ns,
        stage_ns,
        crossing_ns,
        hosts: Vec::new(),
        constraints,
    }
}

fn rounded(value: f64) -> u64 {
    (value + 0.5).floor() as u64
}

/// An instruction's time, from the layers up.
fn duration(problem: &Problem, plan: &Plan, instruction: Instruction) -> u64 {
    let stage = &plan.stages[instruction.stage.index()];
    let device = stage.device as usize;
    let sum: u64 = stage
        .range()
        .map(|layer| {
            let cost = &problem.costs_of(device)[layer];
            let again = if stage.recompute.contains(&(layer as u32)) { cost.forward_ns } else { 0 };
            match instruction.action {
                Action::Forward => cost.forward_ns,
                Action::InputGradient => cost.input_gradient_ns + cost.split_ns + again,
                Action::WeightGradient => cost.weight_gradient_ns,
                Action::Backward => cost.input_gradient_ns + cost.weight_gradient_ns + again,
            }
        })
        .sum();
    let neighbours = [instruction.stage.index().checked_sub(1), Some(instruction.stage.index() + 1)];
    let elsewhere =
        neighbours.into_iter().flatten().filter_map(|of| plan.stages.get(of)).filter(|of| of.device != stage.device);
    let crossings = if instruction.action == Action::WeightGradient { 0 } else { elsewhere.count() as u64 };
    rounded(sum as f64 * problem.devices[device].slowdown) + problem.stage_ns + crossings * problem.crossing_ns
}

/// The iteration time by relaxation: every start is pushed back until nothing moves any more.
pub fn naive_iteration_ns(problem: &Problem, plan: &Plan) -> u64 {
    let mut end: BTreeMap<Instruction, u64> = BTreeMap::new();
    let last = plan.stages.len() - 1;
    let device_of = |stage: usize| plan.stages[stage].device as usize;
    loop {
        // Arrivals under the present ends: per directed pair, in the sender's program order.
        let mut arrival: BTreeMap<(bool, usize, usize), u64> = BTreeMap::new();
        for (device, program) in plan.programs.iter().enumerate() {
            let mut free: BTreeMap<usize, u64> = BTreeMap::new();
            for instruction in program {
                let (stage, m) = (instruction.stage.index(), instruction.microbatch.index());
                let produced = end.get(instruction).copied().unwrap_or(0);
                let (to, bytes, backward) = match instruction.action {
                    Action::Forward if stage < last => {
                        (stage + 1, problem.layers[plan.stages[stage].range().end - 1].output_bytes, false)
                    }
                    Action::InputGradient | Action::Backward if stage > 0 => {
                        (stage - 1, problem.layers[plan.stages[stage].range().start - 1].output_bytes, true)
                    }
                    _ => continue,
                };
                let at = if device_of(to) == device {
                    produced
                } else {
                    let link = problem.link(device, device_of(to));
                    let free = free.entry(device_of(to)).or_default();
                    *free = produced.max(*free) + rounded(bytes as f64 * 1e9 / link.bytes_per_second);
                    *free + link.latency_ns
                };
                arrival.insert((backward, to, m), at);
            }
        }
        let mut moved = false;
        for program in &plan.programs {
            let mut free = 0;
            for &instruction in program {
                let (stage, m) = (instruction.stage.index(), instruction.microbatch.index());
                let input = match instruction.action {
                    Action::Forward => arrival.get(&(false, stage, m)),
                    Action::WeightGradient => None,
                    _ => arrival.get(&(true, stage, m)),
                };
                free = free.max(input.copied().unwrap_or(0)) + duration(problem, plan, instruction);
                moved |= end.insert(instruction, free) != Some(free);
            }
        }
        if !moved {
            break;
        }
    }
    let optimizer = (0..problem.devices.len()).map(|device| {
        let of =
            |stage: &adaptis_plan::Stage| stage.range().map(|layer| problem.optimizer_of(device, layer)).sum::<u64>();
        let sum: u64 = plan.stages.iter().filter(|stage| stage.device as usize == device).map(of).sum();
        rounded(sum as f64 * problem.devices[device].slowdown)
    });
    end.values().max().unwrap_or(&0) + problem.boundary_ns + optimizer.max().unwrap_or(0)
}
