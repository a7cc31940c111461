//! Runs an inner loop a number of times, and says over how many operations or moves: what `tests/instructions` counts.
//!
//! `cargo run --release -p adaptis-planner --example inner_loops -- replay|list|move TIMES [DEVICES MICROBATCHES]`

#![allow(clippy::disallowed_methods, reason = "an example is a shell: it reads its arguments")]

#[path = "../benches/support/cluster.rs"]
mod cluster;

use adaptis_planner::inner_loops::InnerLoops;
use adaptis_planner::schedule::{Name, named};
use std::process::ExitCode;

/// Steps of an anneal that stand for one time.
const STEPS: usize = 1_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (Some(which), Ok(times), Ok(devices), Ok(microbatches)) =
        (arguments.first(), number(1, 1), number(2, 8), number(3, 32))
    else {
        eprintln!("inner_loops replay|list|move TIMES [DEVICES MICROBATCHES]");
        return ExitCode::from(2);
    };
    let problem = cluster::problem(devices, 2 * devices, microbatches as u32);
    let plan = named(&problem, Name::ZbV).expect("memory is ample");
    let mut loops = InnerLoops::new(&problem, &plan);
    let mut count = 0;
    if which == "move" {
        count += loops.change(times * STEPS).expect("the plan can run");
    } else {
        for _ in 0..times {
            let operations = match which.as_str() {
                "replay" => loops.replay().map(|_| loops.operations()),
                _ => loops.list().map(|_| loops.listed()),
            };
            count += operations.expect("the plan can run, and memory is ample") as u64;
        }
    }
    println!("{count}");
    ExitCode::SUCCESS
}
