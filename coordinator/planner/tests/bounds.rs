//! The lower bound lies under every valid plan, and meets the best one where that can be proved by hand.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test reads files, and fails if it can't go on")]

mod support;

use adaptis_plan::{Action, Instruction, Plan, Problem, Stage, audit};
use adaptis_planner::bounds::lower_bound_ns;
use adaptis_planner::schedule::{Name, named};
use adaptis_planner::search::{Control, Options, search};
use adaptis_planner::simulate::simulate;
use proptest::prelude::*;
use std::path::Path;

/// Plans drawn at random for a problem.
const DRAWN: usize = 400;

/// Splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// A plan that can run: any placement, cut and recomputation, and any order, drawn one runnable instruction at a time.
fn drawn(problem: &Problem, dice: &mut Dice) -> Plan {
    let (layers, devices) = (problem.layers.len(), problem.devices.len());
    let microbatches = problem.microbatches as usize;
    let again = [0, 0, 50, 100][dice.below(4)];
    let mut stages: Vec<Stage> = Vec::new();
    for layer in 0..layers as u32 {
        if layer == 0 || dice.below(3) > 0 {
            let device = dice.below(devices) as u32;
            stages.push(Stage { layers: [layer, layer], device, recompute: Vec::new(), note: None });
        }
        let stage = stages.last_mut().unwrap();
        stage.layers[1] = layer + 1;
        if dice.below(100) < again {
            stage.recompute.push(layer);
        }
    }
    let fused = [0, 50, 100][dice.below(3)];
    // At most so many microbatches between their first F and their last I, or memory would rarely do.
    let in_flight = 1 + dice.below(microbatches);
    let depth = stages.len();
    let (mut forward, mut input, mut weight) = (vec![0; depth], vec![0; depth], vec![0; depth]);
    let mut programs = vec![Vec::new(); devices];
    loop {
        let mut ready = Vec::new();
        for stage in 0..depth {
            let before = if stage == 0 { microbatches.min(input[0] + in_flight) } else { forward[stage - 1] };
            if forward[stage] < before {
                ready.push((stage, Action::Forward));
            }
            let behind = if stage + 1 == depth { forward[stage] } else { input[stage + 1] };
            if input[stage] < behind {
                let is_fused = weight[stage] == input[stage] && dice.below(100) < fused;
                ready.push((stage, if is_fused { Action::Backward } else { Action::InputGradient }));
            }
            if weight[stage] < input[stage] {
                ready.push((stage, Action::WeightGradient));
            }
        }
        if ready.is_empty() {
            break;
        }
        let (stage, action) = ready[dice.below(ready.len())];
        let done = match action {
            Action::Forward => &mut forward[stage],
            Action::InputGradient => &mut input[stage],
            Action::WeightGradient => &mut weight[stage],
            Action::Backward => {
                weight[stage] += 1;
                &mut input[stage]
            }
        };
        programs[stages[stage].device as usize].push(Instruction::new(stage, action, *done));
        *done += 1;
    }
    Plan::new(problem, stages, programs)
}

/// Time of the fastest of the valid ones.
fn fastest(problem: &Problem, plans: impl Iterator<Item = Plan>) -> Option<u64> {
    let valid = plans.filter(|plan| audit(problem, plan).is_empty());
    valid.map(|plan| simulate(problem, &plan).unwrap().iteration_ns).min()
}

fn searched(problem: &Problem, evaluations: u64) -> Option<Plan> {
    let options = Options { evaluations: Some(evaluations), ..Options::default() };
    Some(search(problem, None, &options, &mut |_| Control::Go).ok()?.plan)
}

prop_compose! {
    /// Few layers and microbatches, and memory about as large as one or a few microbatches need.
    fn tight_problem()(
        mut problem in support::any_problem(),
        layers in 1..5_usize, microbatches in 1..5_u32, share in 0.4..2.5_f64, states in 0..3_u64, outputs in 0..3_u64,
        alike in any::<bool>(),
    ) -> Problem {
        let layers = layers.min(problem.layers.len());
        problem.layers.truncate(layers);
        problem.microbatches = microbatches;
        for layer in &mut problem.layers {
            layer.state_bytes = layer.state_bytes * states / 2;
            layer.output_bytes = layer.output_bytes * outputs / 4;
        }
        for costs in problem.costs.values_mut() {
            costs.truncate(layers);
            // One layer, and others that are like one another.
            if let (true, [_, one, others @ ..]) = (alike, &mut costs[..]) {
                others.fill(one.clone());
            }
        }
        for of in problem.optimizer_ns.values_mut() {
            of.truncate(layers);
        }
        problem.constraints.pinned.retain(|pin| (pin.layer as usize) < layers);
        problem.constraints.together.retain(|group| group.iter().all(|&layer| (layer as usize) < layers));
        let held = |layer: usize| {
            let stash = problem.costs.values().map(|costs| costs[layer].activation_bytes).max().unwrap_or(0);
            problem.layers[layer].state_bytes + stash
        };
        let all: u64 = (0..layers).map(held).sum();
        let devices = problem.devices.len() as f64;
        for (at, device) in problem.devices.iter_mut().enumerate() {
            let room = share * (1.0 + at as f64 / 4.0) * all as f64 / devices;
            device.memory_bytes = device.reserved_bytes + room as u64 + 20;
        }
        problem
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_valid_plan_is_under_the_bound(problem in tight_problem(), seed in any::<u64>()) {
        prop_assume!(problem.check().is_ok());
        let mut dice = Dice(seed);
        let schedules = Name::ALL.into_iter().filter_map(|name| named(&problem, name).ok());
        let found = searched(&problem, 300).into_iter();
        let plans = found.chain(schedules).chain((0..DRAWN).map(|_| drawn(&problem, &mut dice)));
        if let Some(time) = fastest(&problem, plans) {
            let bound = lower_bound_ns(&problem);
            prop_assert!(bound <= time, "{bound} > {time}\n{}", problem.write());
        }
    }
}

/// The best of a tiny problem is found by drawing, and the bound meets it: one device after the other, all W at the end.
#[test]
fn two_devices_and_one_microbatch_are_bound_by_its_path_and_the_last_w() {
    let problem = support::uniform(2, 2, 1, support::cost(10, 20, 30), 5);
    let mut dice = Dice(1);
    let best = fastest(&problem, (0..2_000).map(|_| drawn(&problem, &mut dice)));
    // Apart: F F I I W of 10 + 10 + 20 + 20 + 30, and two hops. Together: 120.
    assert_eq!(best, Some(100));
    assert!((90..=100).contains(&lower_bound_ns(&problem)));
}

/// The fast device has memory for one layer, so the slow one runs the two others, 30 ns each a microbatch.
#[test]
fn memory_keeps_layers_off_the_fast_device() {
    let mut problem = support::uniform(2, 3, 8, support::cost(10, 10, 10), 0);
    problem.costs.insert("fast".to_owned(), vec![support::cost(1, 1, 1); 3]);
    problem.devices[0].kind = "fast".to_owned();
    for layer in &mut problem.layers {
        layer.state_bytes = 1_000;
    }
    problem.devices[0].memory_bytes = 1_999;
    let plan = searched(&problem, 20_000).unwrap();
    assert_eq!(simulate(&problem, &plan).unwrap().iteration_ns, 8 * 2 * 30);
    assert_eq!(lower_bound_ns(&problem), 8 * 2 * 30);
    // With memory for all, the bound lets the fast device run all of them, and it does.
    problem.devices[0].memory_bytes = 1 << 40;
    assert!(lower_bound_ns(&problem) <= 8 * 9);
}

/// Ten of 33 equal layers on each of two fast devices: one of these starts behind the embedding and the other's first
/// layer, and then works to the end. No number of layers is better shared.
#[test]
fn a_device_starts_behind_the_first_of_the_equal_layers_of_another() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/problems");
    let text = std::fs::read_to_string(folder.join("llama3_8b_a100_v100_p4_m16.json")).unwrap();
    let problem = Problem::read(&text).unwrap();
    let cost = &problem.costs["4xa100-40g"][1];
    let layer_ns = cost.forward_ns + cost.input_gradient_ns + cost.weight_gradient_ns;
    let first_ns = problem.costs["4xa100-40g"][0].forward_ns + cost.forward_ns;
    let bound_ns = lower_bound_ns(&problem);
    assert!(bound_ns > 16 * 10 * layer_ns + first_ns);
    // A longer search meets it.
    let plan = searched(&problem, 20_000).unwrap();
    let time_ns = simulate(&problem, &plan).unwrap().iteration_ns;
    assert!((bound_ns..bound_ns + bound_ns / 1_000).contains(&time_ns));
}

/// Eight layers of 30 ns that stay together are one device's, 2 microbatches of them.
#[test]
fn layers_that_stay_together_are_the_work_of_one_device() {
    let mut problem = support::uniform(4, 8, 2, support::cost(10, 10, 10), 0);
    assert!(lower_bound_ns(&problem) < 8 * 2 * 30);
    problem.constraints.together = vec![(0..8).collect()];
    assert_eq!(lower_bound_ns(&problem), 8 * 2 * 30);
}

/// A device without room for any layer shares no work.
#[test]
fn a_device_without_room_is_as_one_that_is_forbidden() {
    let mut problem = support::uniform(4, 8, 2, support::cost(10, 10, 10), 0);
    let ample_ns = lower_bound_ns(&problem);
    // Even recomputed, a layer takes all of its 4 bytes in its I.
    problem.devices[0].memory_bytes = 3;
    let without_room_ns = lower_bound_ns(&problem);
    problem.devices[0].memory_bytes = 1 << 40;
    problem.constraints.forbidden = vec!["gpu0".to_owned()];
    assert_eq!(without_room_ns, lower_bound_ns(&problem));
    assert!(without_room_ns > ample_ns);
}

/// Memory raises the bound of the two problems where it binds, and of none where it is ample.
#[test]
fn memory_raises_the_bound_where_it_binds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/problems");
    let bounds = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let problem = Problem::read(&text).unwrap();
        let mut ample = problem.clone();
        ample.devices.iter_mut().for_each(|device| device.memory_bytes *= 50);
        lower_bound_ns(&problem) as f64 / lower_bound_ns(&ample) as f64
    };
    assert!((1.05..1.3).contains(&bounds("t5_11b_v100_p16_m32.json")));
    assert!((1.015..1.1).contains(&bounds("t5_3b_v100_p8_m16.json")));
    assert_eq!(bounds("gpt_6.2b_p8_m24.json"), 1.0);
}
