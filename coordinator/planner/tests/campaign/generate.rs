//! A random problem from a number, as hostile as the format allows.
//!
//! Few or many layers, 1 to 12 devices of up to three kinds, times that are zero, alike, or nine orders of magnitude
//! apart, memory from ample to far too little, links from free to slower than the work, every optional field.

use adaptis_plan::problem::Pin;
use adaptis_plan::{Constraints, Cost, Device, Layer, Link, Links, Pair, Problem, ReceiveBuffers};
use std::collections::BTreeSet;

/// Layers up to which every placement can be looked at.
pub const LAYERS_ALL_PLACEMENTS: usize = 12;
const DEVICES_MAX: usize = 12;
const LAYERS_MAX: usize = 40;
const SECOND_NS: u64 = 1_000_000_000;

/// Splitmix64: all of a campaign's chance.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `limit - 1`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit as u64) as usize
    }

    /// From `low` to `high`, both included.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.word() % (high - low + 1)
    }

    fn share(&mut self) -> f64 {
        self.word() as f64 / u64::MAX as f64
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// The problem of a number. Numbers count through the draws that make no sense.
pub fn problem(number: u64) -> Problem {
    let mut dice = Dice::new(number);
    loop {
        let problem = draw(&mut dice);
        if problem.check().is_ok() {
            return problem;
        }
    }
}

/// How times are spread.
#[derive(Clone, Copy)]
enum Times {
    Zero,
    Alike(u64),
    UpTo(u64),
    /// A nanosecond here, a second there.
    Apart,
}

fn time(dice: &mut Dice, times: Times) -> u64 {
    match times {
        Times::Zero => 0,
        Times::Alike(ns) => ns,
        Times::UpTo(ns) => dice.between(0, ns),
        Times::Apart => [1, SECOND_NS][dice.below(2)],
    }
}

fn draw(dice: &mut Dice) -> Problem {
    let devices = 1 + dice.below(DEVICES_MAX);
    let layers_max = if dice.percent(70) { LAYERS_ALL_PLACEMENTS } else { LAYERS_MAX };
    let layers = 1 + dice.below(layers_max);
    let microbatches = match dice.below(6) {
        0 => 1,
        1 => 2,
        2..=4 => dice.between(1, 8),
        _ => dice.between(8, 24),
    };
    let kinds = 1 + dice.below(3.min(devices));
    let times = match dice.below(10) {
        0 => Times::Zero,
        1 | 2 => Times::Alike(dice.between(1, 1_000_000)),
        3 | 4 => Times::Apart,
        5 => Times::UpTo(60),
        _ => Times::UpTo(10_000_000),
    };
    let outputs = [0, 1, 40, 4_000][dice.below(4)];
    let states = [0, 100, 5_000][dice.below(3)];
    let mut problem = Problem {
        receive_buffers: if dice.percent(25) { ReceiveBuffers::All } else { ReceiveBuffers::None },
        boundary_ns: if dice.percent(25) { time(dice, times) } else { 0 },
        stage_ns: if dice.percent(25) { dice.between(1, 10_000) } else { 0 },
        crossing_ns: if dice.percent(25) { dice.between(1, 10_000) } else { 0 },
        ..Problem::new(
            microbatches as u32,
            (0..layers).map(|at| layer(dice, at, states, outputs)).collect(),
            Vec::new(),
            (0..kinds).map(|kind| (format!("kind{kind}"), costs(dice, layers, times))).collect(),
            Links { default: link(dice, times, outputs), pairs: Vec::new(), note: None },
        )
    };
    if dice.percent(30) {
        let of = (0..layers).map(|_| time(dice, times)).collect();
        problem.optimizer_ns.insert("kind0".to_owned(), of);
    }
    problem.devices = cards(dice, &problem, devices, kinds);
    problem.links.pairs = pairs(dice, times, outputs, devices);
    if dice.percent(30) {
        problem.constraints = constraints(dice, layers, devices);
    }
    problem
}

fn layer(dice: &mut Dice, at: usize, states: u64, outputs: u64) -> Layer {
    Layer {
        name: format!("layer{at}"),
        signature: "block/any".to_owned(),
        parameter_bytes: 0,
        state_bytes: dice.between(0, states),
        output_bytes: dice.between(0, outputs),
        moved_bytes: dice.percent(20).then(|| dice.between(0, states)),
        note: None,
    }
}

fn costs(dice: &mut Dice, layers: usize, times: Times) -> Vec<Cost> {
    let (activations, workspaces) = ([0, 40, 4_000][dice.below(3)], [0, 0, 3_000][dice.below(3)]);
    let mut cost = |_| {
        let activation_bytes = dice.between(0, activations);
        Cost {
            forward_ns: time(dice, times),
            input_gradient_ns: time(dice, times),
            weight_gradient_ns: time(dice, times),
            activation_bytes,
            weight_gradient_bytes: dice.between(0, activation_bytes),
            workspace_bytes: dice.between(0, workspaces),
            split_ns: if dice.percent(20) { time(dice, times) / 10 } else { 0 },
            note: None,
        }
    };
    (0..layers).map(&mut cost).collect()
}

/// Free, or a transfer takes about as long as the work of a layer.
fn link(dice: &mut Dice, times: Times, outputs: u64) -> Link {
    let layer_ns = match times {
        Times::Zero | Times::Apart => 1_000,
        Times::Alike(ns) | Times::UpTo(ns) => ns.max(1),
    };
    let bytes_per_second = match dice.below(3) {
        0 => 1e15,
        1 => (outputs + 1) as f64 * 1e9 / layer_ns as f64,
        _ => (outputs + 1) as f64 * 1e8 / layer_ns as f64,
    };
    Link { latency_ns: if dice.percent(40) { dice.between(0, layer_ns) } else { 0 }, bytes_per_second, note: () }
}

fn pairs(dice: &mut Dice, times: Times, outputs: u64, devices: usize) -> Vec<Pair> {
    let (mut pairs, mut seen) = (Vec::new(), BTreeSet::new());
    for _ in 0..if dice.percent(40) { dice.below(2 * devices + 1) } else { 0 } {
        let (from, to) = (dice.below(devices), dice.below(devices));
        let Link { latency_ns, bytes_per_second, .. } = link(dice, times, outputs);
        if from != to && seen.insert((from, to)) {
            let (from, to) = (format!("gpu{from}"), format!("gpu{to}"));
            pairs.push(Pair { from, to, latency_ns, bytes_per_second, note: None });
        }
    }
    pairs
}

/// Memory as a multiple of an even share of what one microbatch needs at least.
fn cards(dice: &mut Dice, problem: &Problem, devices: usize, kinds: usize) -> Vec<Device> {
    let least: u64 = (0..problem.layers.len())
        .map(|layer| {
            let held = problem.costs.values().map(|costs| costs[layer].activation_bytes).max().unwrap_or(0);
            problem.layers[layer].state_bytes + held
        })
        .sum();
    let (low, high) = [(0.3, 0.9), (0.8, 1.5), (0.9, 2.0), (1.5, 4.0), (5.0, 50.0), (1e6, 1e7)][dice.below(6)];
    let slow = dice.percent(50);
    let reserved = if dice.percent(30) { least / devices as u64 / 4 } else { 0 };
    (0..devices)
        .map(|at| {
            let share = low + (high - low) * dice.share();
            let reserved_bytes = dice.between(0, reserved);
            Device {
                name: format!("gpu{at}"),
                kind: format!("kind{}", if at < kinds { at } else { dice.below(kinds) }),
                memory_bytes: reserved_bytes + (share * (least as f64 / devices as f64 + 1.0)) as u64,
                slowdown: if slow { [1.0, 1.5, 0.7, 12.0, 1.0 + dice.share()][dice.below(5)] } else { 1.0 },
                reserved_bytes,
                note: None,
            }
        })
        .collect()
}

fn constraints(dice: &mut Dice, layers: usize, devices: usize) -> Constraints {
    let mut constraints = Constraints::default();
    for _ in 0..dice.below(3) {
        let (layer, device) = (dice.below(layers) as u32, format!("gpu{}", dice.below(devices)));
        if constraints.pinned.iter().all(|pin| pin.layer != layer) {
            constraints.pinned.push(Pin { layer, device, note: None });
        }
    }
    if dice.percent(40) {
        constraints.forbidden.push(format!("gpu{}", dice.below(devices)));
    }
    for _ in 0..dice.below(3) {
        let group = BTreeSet::from([dice.below(layers) as u32, dice.below(layers) as u32]);
        if group.len() > 1 {
            constraints.together.push(group.into_iter().collect());
        }
    }
    constraints
}
