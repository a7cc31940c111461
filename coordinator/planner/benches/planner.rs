//! Speed of the inner loops, of the simulator and of the search.
//!
//! On a machine that does other things too these figures jump about; `tests/instructions` counts instead.

#[path = "support/cluster.rs"]
mod cluster;

use adaptis_planner::inner_loops::InnerLoops;
use adaptis_planner::schedule::{Name, even, named};
use adaptis_planner::search::{Control, Options, search};
use adaptis_planner::simulate::simulate;
use cluster::problem;
use divan::Bencher;
use divan::counter::ItemsCount;

fn main() {
    divan::main();
}

/// Devices, and microbatches; two stages on each device, in a V.
const V_SIZES: [(usize, u32); 2] = [(8, 32), (64, 256)];

fn loops((devices, microbatches): (usize, u32)) -> InnerLoops {
    let problem = problem(devices, 2 * devices, microbatches);
    let plan = named(&problem, Name::ZbV).expect("memory is ample");
    InnerLoops::new(&problem, &plan)
}

/// Operations a second, of a fixed order: 98,304 of them on 64 devices.
#[divan::bench(args = V_SIZES)]
fn replay(bencher: Bencher, size: (usize, u32)) {
    let mut loops = loops(size);
    bencher.counter(ItemsCount::new(loops.operations())).bench_local(|| loops.replay());
}

/// Operations a second, put in order greedily.
#[divan::bench(args = V_SIZES)]
fn list(bencher: Bencher, size: (usize, u32)) {
    let mut loops = loops(size);
    loops.list().expect("memory is ample");
    bencher.counter(ItemsCount::new(loops.listed())).bench_local(|| loops.list());
}

/// Moves a second, each timed: the order of a fixed plan under change.
#[divan::bench(args = [(8, 32), (64, 256)], sample_count = 3)]
fn change(bencher: Bencher, size: (usize, u32)) {
    // Of the large one a step takes milliseconds.
    let steps = if size.0 > 8 { 1_000 } else { 20_000 };
    let loops = loops(size);
    let moves = loops.change(steps).expect("the plan can run");
    bencher.counter(ItemsCount::new(moves)).bench_local(|| loops.change(steps));
}

/// Instructions a second, with all spans and transfers.
#[divan::bench(args = [(8, 32), (64, 256)])]
fn simulate_1f1b(bencher: Bencher, (devices, microbatches): (usize, u32)) {
    let problem = problem(devices, devices, microbatches);
    let plan = even(&problem);
    let instructions: usize = plan.programs.iter().map(Vec::len).sum();
    bencher.counter(ItemsCount::new(instructions)).bench(|| simulate(&problem, &plan));
}

/// Moves a second: candidates listed or replayed, starts and all.
#[divan::bench(args = [(4, 16), (8, 32)], sample_count = 3)]
fn search_evaluations(bencher: Bencher, (devices, microbatches): (usize, u32)) {
    const EVALUATIONS: u64 = 20_000;
    let problem = problem(devices, devices * 6, microbatches);
    let options = Options { evaluations: Some(EVALUATIONS), ..Options::default() };
    bencher.counter(ItemsCount::new(EVALUATIONS)).bench(|| search(&problem, None, &options, &mut |_| Control::Go));
}
