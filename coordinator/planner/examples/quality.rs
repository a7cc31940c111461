//! Prints a table of iteration times for a folder of problems.
//!
//! `cargo run --release -p adaptis-planner --example quality -- FOLDER [SECONDS] [SEED]`

#![allow(clippy::disallowed_methods, reason = "an example is a shell: it reads files and clocks")]

use adaptis_plan::{Plan, Problem, audit};
use adaptis_planner::schedule::{Name, even, named};
use adaptis_planner::search::{Control, Options, search};
use adaptis_planner::simulate::simulate;
use std::time::{Duration, Instant};

/// Time that this process ran on a core, so that a busy machine does not change the table; the wall's where the system
/// does not tell.
fn spent(start: Instant) -> Duration {
    let told = std::fs::read_to_string("/proc/self/schedstat").ok();
    let first = told.and_then(|text| text.split(' ').next().and_then(|word| word.parse().ok()));
    first.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

fn milliseconds(problem: &Problem, plan: &Plan) -> String {
    match simulate(problem, plan) {
        Ok(timeline) => {
            let mark = if audit(problem, plan).is_empty() { "" } else { "!" };
            format!("{:.1}{mark}", timeline.iteration_ns as f64 / 1e6)
        }
        Err(error) => error.to_string(),
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().expect("the first argument is a folder of problems");
    let seconds: f64 = arguments.next().map_or(1.0, |text| text.parse().expect("seconds are a number"));
    let seed: u64 = arguments.next().map_or(1, |text| text.parse().expect("a seed is a whole number"));
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder is readable")
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    paths.sort();
    println!("times in ms; `!` breaks a rule (memory, mostly)");
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("the file is readable");
        let problem = Problem::read(&text).expect("the file is a problem");
        let clock = Instant::now();
        let start = spent(clock);
        let elapsed = || spent(clock).saturating_sub(start);
        let options = Options { seed, ..Options::default() };
        let mut first = None;
        let mut starts = Duration::ZERO;
        let found = search(&problem, None, &options, &mut |progress| {
            if progress.stage == "starts" {
                starts = elapsed();
            }
            if progress.best_ns != u64::MAX {
                first.get_or_insert_with(|| (progress.best_ns, elapsed()));
            }
            if elapsed() < Duration::from_secs_f64(seconds) { Control::Go } else { Control::Stop }
        });
        let took = elapsed();
        println!("{}", path.file_stem().unwrap_or_default().to_string_lossy());
        print!("  even {}", milliseconds(&problem, &even(&problem)));
        for name in Name::ALL {
            print!("  {name} {}", named(&problem, name).map_or("-".into(), |plan| milliseconds(&problem, &plan)));
        }
        println!();
        match found {
            Ok(outcome) => println!(
                "  search {}  bound {:.1}  {} evaluations in {:.2} s  {} stages, {} layers recomputed  first {:?}, starts {starts:?}",
                milliseconds(&problem, &outcome.plan),
                outcome.lower_bound_ns as f64 / 1e6,
                outcome.evaluations,
                took.as_secs_f64(),
                outcome.plan.stages.len(),
                outcome.plan.stages.iter().map(|stage| stage.recompute.len()).sum::<usize>(),
                first,
            ),
            Err(error) => println!("  {error}"),
        }
    }
}
