//! Runs an inner loop a number of times, and says over how many operations: what `tests/instructions` counts.
//!
//! `cargo run --release -p adaptis-planner --example inner_loops -- replay|list TIMES [DEVICES MICROBATCHES]`

#![allow(clippy::disallowed_methods, reason = "an example is a shell: it reads its arguments")]

#[path = "../benches/support/cluster.rs"]
mod cluster;

use adaptis_planner::inner_loops::InnerLoops;
use adaptis_planner::schedule::{Name, named};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (Some(which), Ok(times), Ok(devices), Ok(microbatches)) =
        (arguments.first(), number(1, 1), number(2, 8), number(3, 32))
    else {
        eprintln!("inner_loops replay|list TIMES [DEVICES MICROBATCHES]");
        return ExitCode::from(2);
    };
    let problem = cluster::problem(devices, 2 * devices, microbatches as u32);
    let plan = named(&problem, Name::ZbV).expect("memory is ample");
    let mut loops = InnerLoops::new(&problem, &plan);
    let mut operations = 0;
    for _ in 0..times {
        operations += match which.as_str() {
            "replay" => loops.replay().map(|_| loops.operations()),
            _ => loops.list().map(|_| loops.listed()),
        }
        .expect("the plan can run, and memory is ample");
    }
    println!("{operations}");
    ExitCode::SUCCESS
}
