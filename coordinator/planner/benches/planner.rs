//! Speed of the simulator and of the search.

use adaptis_plan::problem::FORMAT;
use adaptis_plan::{Constraints, Cost, Device, Layer, Link, Links, Problem, ReceiveBuffers};
use adaptis_planner::schedule::even;
use adaptis_planner::search::{Control, Options, search};
use adaptis_planner::simulate::simulate;
use divan::Bencher;
use divan::counter::ItemsCount;
use std::collections::BTreeMap;

fn main() {
    divan::main();
}

fn problem(devices: usize, layers: usize, microbatches: u32) -> Problem {
    let cost = |at: usize| Cost {
        forward_ns: 1_000_000 + 50_000 * (at as u64 % 3),
        input_gradient_ns: 1_000_000,
        weight_gradient_ns: 800_000,
        activation_bytes: 1 << 20,
        weight_gradient_bytes: 1 << 19,
        ..Cost::default()
    };
    Problem {
        format: FORMAT.to_owned(),
        note: None,
        microbatches,
        layers: (0..layers)
            .map(|at| Layer {
                name: format!("layer{at}"),
                signature: "block".to_owned(),
                parameter_bytes: 0,
                state_bytes: 1 << 20,
                output_bytes: 1 << 16,
                moved_bytes: None,
                note: None,
            })
            .collect(),
        devices: (0..devices)
            .map(|at| Device {
                name: format!("gpu{at}"),
                kind: "k".to_owned(),
                memory_bytes: 1 << 40,
                slowdown: 1.0,
                reserved_bytes: 0,
                note: None,
            })
            .collect(),
        costs: BTreeMap::from([("k".to_owned(), (0..layers).map(cost).collect())]),
        links: Links {
            default: Link { latency_ns: 10_000, bytes_per_second: 1e10, note: () },
            pairs: Vec::new(),
            note: None,
        },
        optimizer_ns: BTreeMap::new(),
        receive_buffers: ReceiveBuffers::None,
        boundary_ns: 0,
        stage_ns: 0,
        constraints: Constraints::default(),
    }
}

/// Instructions a second, with all spans and transfers.
#[divan::bench(args = [(8, 32), (64, 256)])]
fn simulate_1f1b(bencher: Bencher, (devices, microbatches): (usize, u32)) {
    let problem = problem(devices, devices, microbatches);
    let plan = even(&problem);
    let instructions: usize = plan.programs.iter().map(Vec::len).sum();
    bencher.counter(ItemsCount::new(instructions)).bench(|| simulate(&problem, &plan));
}

/// Evaluations a second.
#[divan::bench(args = [(4, 16), (8, 32)], sample_count = 3)]
fn search_evaluations(bencher: Bencher, (devices, microbatches): (usize, u32)) {
    const EVALUATIONS: u64 = 20_000;
    let problem = problem(devices, devices * 6, microbatches);
    let options = Options { evaluations: Some(EVALUATIONS), ..Options::default() };
    bencher.counter(ItemsCount::new(EVALUATIONS)).bench(|| search(&problem, None, &options, &mut |_| Control::Go));
}
