//! Problems and plans made on purpose: small ones by hand, valid ones at random, garbage at random.

use adaptis_plan::{Action, Cost, Device, Instruction, Layer, Links, Plan, Problem, ReceiveBuffers, Stage, plan};
use adaptis_proto::Epoch;
use std::collections::{BTreeMap, BTreeSet};

/// Splitmix64: the whole of a test's chance is one seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    pub fn bytes(&mut self) -> u64 {
        self.below(100) as u64
    }
}

/// A problem of devices `g0..` of one kind, with memory for everything and costs of its own for each layer.
pub fn problem(dice: &mut Dice, devices: usize, layers: usize, microbatches: u32) -> Problem {
    let costs = (0..layers)
        .map(|_| {
            let activation_bytes = 1 + dice.bytes();
            Cost {
                forward_ns: dice.bytes(),
                input_gradient_ns: dice.bytes(),
                weight_gradient_ns: dice.bytes(),
                activation_bytes,
                weight_gradient_bytes: dice.below(activation_bytes as usize + 1) as u64,
                workspace_bytes: dice.bytes(),
                split_ns: 0,
                note: None,
            }
        })
        .collect();
    Problem {
        receive_buffers: if dice.below(2) == 0 { ReceiveBuffers::None } else { ReceiveBuffers::All },
        ..Problem::new(
            microbatches,
            (0..layers)
                .map(|index| Layer {
                    name: format!("layer{index}"),
                    signature: "block/8h8/f32/b1xs8".into(),
                    parameter_bytes: 0,
                    state_bytes: dice.bytes(),
                    output_bytes: dice.bytes(),
                    moved_bytes: None,
                    note: None,
                })
                .collect(),
            (0..devices)
                .map(|index| Device {
                    name: format!("g{index}"),
                    kind: "cpu".into(),
                    memory_bytes: u64::MAX,
                    slowdown: 1.0,
                    reserved_bytes: dice.bytes(),
                    note: None,
                })
                .collect(),
            BTreeMap::from([("cpu".to_owned(), costs)]),
            Links::all(1, 1e9),
        )
    }
}

/// A plan without stages and programs.
pub fn empty_plan(problem: &Problem) -> Plan {
    Plan {
        format: plan::FORMAT.into(),
        note: None,
        epoch: Epoch(1),
        parent: Epoch(0),
        layers: u32::try_from(problem.layers.len()).expect("few layers"),
        devices: problem.devices.iter().map(|device| device.name.clone()).collect(),
        stages: Vec::new(),
        programs: vec![Vec::new(); problem.devices.len()],
        predicted: None,
        why: None,
    }
}

/// Any valid plan: random boundaries, placement, recomputation, fused or split backwards, and a random linear extension
/// of what the rules leave free.
pub fn valid_plan(dice: &mut Dice, problem: &Problem) -> Plan {
    let mut plan = empty_plan(problem);
    let layers = problem.layers.len();
    let mut cuts = BTreeSet::from([0, layers]);
    for _ in 0..dice.below(layers + 1) {
        cuts.insert(dice.below(layers + 1));
    }
    let cuts: Vec<u32> = cuts.into_iter().map(|cut| u32::try_from(cut).expect("few layers")).collect();
    for pair in cuts.windows(2) {
        let device = u32::try_from(dice.below(problem.devices.len())).expect("few devices");
        let recompute = (pair[0]..pair[1]).filter(|_| dice.below(3) == 0).collect();
        plan.stages.push(Stage { layers: [pair[0], pair[1]], device, recompute, note: None });
    }
    schedule(dice, problem, &mut plan);
    plan
}

fn schedule(dice: &mut Dice, problem: &Problem, plan: &mut Plan) {
    let (stages, microbatches) = (plan.stages.len(), problem.microbatches as usize);
    // How many microbatches of each stage are through F, I, W.
    let mut done = vec![[0; 3]; stages];
    loop {
        let mut ready = Vec::new();
        for stage in 0..stages {
            let [forward, input_gradient, weight_gradient] = done[stage];
            if forward < microbatches && (stage == 0 || done[stage - 1][0] > forward) {
                ready.push(Instruction::new(stage, Action::Forward, forward));
            }
            if input_gradient < forward && (stage + 1 == stages || done[stage + 1][1] > input_gradient) {
                ready.push(Instruction::new(stage, Action::InputGradient, input_gradient));
                if weight_gradient == input_gradient {
                    ready.push(Instruction::new(stage, Action::Backward, input_gradient));
                }
            }
            if weight_gradient < input_gradient {
                ready.push(Instruction::new(stage, Action::WeightGradient, weight_gradient));
            }
        }
        if ready.is_empty() {
            return;
        }
        let chosen = ready[dice.below(ready.len())];
        let counts = &mut done[chosen.stage.index()];
        match chosen.action {
            Action::Forward => counts[0] += 1,
            Action::InputGradient => counts[1] += 1,
            Action::WeightGradient => counts[2] += 1,
            Action::Backward => {
                counts[1] += 1;
                counts[2] += 1;
            }
        }
        plan.programs[plan.stages[chosen.stage.index()].device as usize].push(chosen);
    }
}

/// 1F1B with `per_device` stages on each device, placed round robin, one layer each.
pub fn one_f_one_b(problem: &Problem) -> Plan {
    let devices = problem.devices.len();
    let mut plan = empty_plan(problem);
    for layer in 0..plan.layers {
        let device = layer % u32::try_from(devices).expect("few devices");
        plan.stages.push(Stage { layers: [layer, layer + 1], device, recompute: Vec::new(), note: None });
    }
    let (stages, microbatches) = (plan.stages.len(), problem.microbatches as usize);
    let mut done = vec![[0; 2]; stages];
    let mut left = stages * microbatches * 2;
    while left > 0 {
        let before = done.clone();
        for device in 0..devices {
            let own = (device..stages).step_by(devices);
            let backward = own.clone().rev().find(|stage| {
                let [forward, backward] = before[*stage];
                backward < forward && (stage + 1 == stages || before[stage + 1][1] > backward)
            });
            let forward = own.rev().find(|stage| {
                let [forward, backward] = before[*stage];
                forward < microbatches
                    && forward - backward < stages - stage
                    && (*stage == 0 || before[stage - 1][0] > forward)
            });
            let (stage, action) = match (backward, forward) {
                (Some(stage), _) => (stage, Action::Backward),
                (None, Some(stage)) => (stage, Action::Forward),
                (None, None) => continue,
            };
            let count = &mut done[stage][usize::from(action == Action::Backward)];
            plan.programs[device].push(Instruction::new(stage, action, *count));
            *count += 1;
            left -= 1;
        }
    }
    plan
}

/// Anything that the type allows, with numbers both small and absurd.
pub fn garbage_plan(dice: &mut Dice, problem: &Problem) -> Plan {
    fn number(dice: &mut Dice) -> u32 {
        match dice.below(20) {
            0 => u32::MAX,
            1 => u32::MAX - 1,
            2 => 1 << 30,
            _ => u32::try_from(dice.below(5)).expect("small"),
        }
    }
    let mut plan = empty_plan(problem);
    plan.layers = if dice.below(2) == 0 { plan.layers } else { number(dice) };
    if dice.below(4) == 0 {
        plan.devices = (0..dice.below(4)).map(|_| format!("g{}", dice.below(4))).collect();
    }
    for _ in 0..dice.below(6) {
        let (layers, device) = ([number(dice), number(dice)], number(dice));
        let recompute = (0..dice.below(3)).map(|_| number(dice)).collect();
        plan.stages.push(Stage { layers, device, recompute, note: None });
    }
    let programs = if dice.below(4) == 0 { dice.below(5) } else { plan.devices.len() };
    let actions = [Action::Forward, Action::InputGradient, Action::WeightGradient, Action::Backward];
    plan.programs = (0..programs)
        .map(|_| {
            let instruction = |dice: &mut Dice| {
                Instruction::new(number(dice) as usize, actions[dice.below(4)], number(dice) as usize)
            };
            (0..dice.below(12)).map(|_| instruction(dice)).collect()
        })
        .collect();
    plan
}

/// A plan with some of its parts replaced by garbage.
pub fn damaged_plan(dice: &mut Dice, problem: &Problem) -> Plan {
    let (mut plan, garbage) = (valid_plan(dice, problem), garbage_plan(dice, problem));
    match dice.below(5) {
        0 => plan.stages = garbage.stages,
        1 => plan.programs = garbage.programs,
        2 => plan.layers = garbage.layers,
        3 => plan.devices = garbage.devices,
        _ => {
            let device = dice.below(plan.programs.len());
            let program = &mut plan.programs[device];
            for _ in 0..dice.below(4) {
                if program.len() > 1 {
                    let (one, other) = (dice.below(program.len()), dice.below(program.len()));
                    program.swap(one, other);
                }
            }
        }
    }
    plan
}

pub fn program(text: &str) -> Vec<Instruction> {
    text.split_whitespace().map(|text| text.parse().expect("a test's program is written well")).collect()
}

/// The two-stage, two-microbatch plan on `g0` and `g1` that the tables start from, and its problem.
pub fn small() -> (Problem, Plan) {
    let mut problem = problem(&mut Dice(1), 2, 4, 2);
    problem.receive_buffers = ReceiveBuffers::None;
    let cost = |activation_bytes, weight_gradient_bytes, workspace_bytes| Cost {
        activation_bytes,
        weight_gradient_bytes,
        workspace_bytes,
        ..Cost::default()
    };
    problem.costs = BTreeMap::from([(
        "cpu".to_owned(),
        vec![cost(100, 10, 0), cost(200, 20, 7), cost(300, 30, 3), cost(400, 40, 5)],
    )]);
    for (layer, bytes) in problem.layers.iter_mut().zip([1, 2, 3, 4]) {
        layer.output_bytes = bytes;
        layer.state_bytes = 1000 * bytes;
    }
    for device in &mut problem.devices {
        device.reserved_bytes = 50_000;
        device.memory_bytes = 1_000_000;
    }
    let mut plan = empty_plan(&problem);
    plan.stages = vec![
        Stage { layers: [0, 2], device: 0, recompute: Vec::new(), note: None },
        Stage { layers: [2, 4], device: 1, recompute: Vec::new(), note: None },
    ];
    plan.programs = vec![program("0F0 0F1 0B0 0B1"), program("1F0 1I0 1F1 1W0 1B1")];
    (problem, plan)
}
