//! A campaign of random problems, of any length: a valid plan or a right refusal, whatever the problem.
//!
//! `cargo run -p adaptis-planner --example campaign -- PROBLEMS [FIRST] [EVALUATIONS] [FOLDER]`
//!
//! Without `--release`, so that an overflow ends it. Each problem that something was wrong with is written to the folder,
//! by its number. Exit code 1 if there was one.

#![allow(clippy::disallowed_methods, reason = "an example is a shell: it reads clocks and writes files")]

#[path = "../tests/campaign/generate.rs"]
mod generate;
#[path = "../tests/campaign/oracle.rs"]
mod oracle;
#[path = "../tests/campaign/verdict.rs"]
mod verdict;

use generate::Dice;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use verdict::End;

/// One of these problems may take so long, all baselines and checks included, at 20,000 evaluations and no more.
const LONGEST: Duration = Duration::from_secs(60);

thread_local! {
    /// Where the last panic came from, and what it said.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn main() -> ExitCode {
    // One line per problem: the place instead of a backtrace.
    std::panic::set_hook(Box::new(|info| {
        PANIC.with(|panic| *panic.borrow_mut() = info.to_string().replace('\n', " "))
    }));
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(default, |text| text.parse().expect("a whole number"));
    let (problems, first, evaluations) = (number(1000), number(0), number(20_000));
    let folder = arguments.next();
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    let mut slowest = (Duration::ZERO, 0);
    let mut bad = 0;
    for number in first..first + problems {
        let problem = generate::problem(number);
        let started = Instant::now();
        let judged = std::panic::catch_unwind(|| verdict::judge(&problem, evaluations, &mut Dice::new(number)));
        let took = started.elapsed();
        slowest = slowest.max((took, number));
        let (end, mut wrong) = match judged {
            Ok((End::Planned, wrong)) => ("planned", wrong),
            Ok((End::Refused, wrong)) => ("refused, proved right", wrong),
            Ok((End::RefusedUnproved, wrong)) => ("refused, nothing found against it", wrong),
            Err(_) => ("panicked", vec![PANIC.with(RefCell::take)]),
        };
        *ends.entry(end).or_default() += 1;
        if took > LONGEST {
            wrong.push(format!("slow: {took:?}"));
        }
        if !wrong.is_empty() {
            bad += 1;
            println!("problem {number}: {}", wrong.join("; "));
            if let Some(folder) = &folder {
                let path = Path::new(folder).join(format!("{number}.json"));
                std::fs::write(&path, problem.write()).expect("the folder can be written to");
            }
        }
    }
    println!(
        "{problems} problems from {first} on, {evaluations} evaluations each: {ends:?}; {bad} with something wrong"
    );
    println!("slowest: problem {}, {:?}", slowest.1, slowest.0);
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
