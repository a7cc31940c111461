//! A campaign of made-up jobs whose devices and links change, or don't, through the detector as the brain uses it.
//!
//! `cargo run --release -p adaptis-coordinator-core --example drifts -- [RUNS] [QUIET]`
//!
//! RUNS (1000) of each case and setting, a quarter of them where there are 64 samples; QUIET (10 million) quiet iterations
//! of devices in all. A line each: how many were confirmed within five iterations, the median delay, how far onset and size
//! are off, false alarms (and in 10,000 iterations of a device; of links beside them), and by run: changes told, those that
//! are to be acted on, those that passed, flips of a periodic one, the product of the factors acted on, right causes, right
//! courses.

#![allow(clippy::disallowed_methods, reason = "an example is a shell: it reads its arguments")]

#[path = "../tests/drifts/cases.rs"]
mod cases;
#[path = "../tests/drifts/job.rs"]
mod job;
#[path = "../tests/drifts/watching.rs"]
mod watching;

use cases::{Case, Outcome};
use job::Setting;

const DEVICES: usize = 4;
/// Iterations of a quiet job: long enough that its beginning, when noise is not known yet, does not stand for it all.
const QUIET_ITERATIONS: u64 = 2_000;

/// Samples of a device in an iteration, noise of one, of a whole iteration, and of an iteration of one device.
const SETTINGS: [(u32, f64, f64, f64); 9] = [
    (8, 0.05, 0.0, 0.0),
    (8, 0.10, 0.0, 0.0),
    (16, 0.05, 0.0, 0.0),
    (16, 0.10, 0.0, 0.0),
    (64, 0.05, 0.0, 0.0),
    (64, 0.10, 0.0, 0.0),
    (8, 0.10, 0.05, 0.0),
    (64, 0.05, 0.05, 0.0),
    (8, 0.10, 0.0, 0.05),
];

/// What changes.
const CASES: [Case; 14] = [
    Case::Step(1.2),
    Case::Step(1.1),
    Case::Step(1.5),
    Case::Step(1.8),
    Case::Leave(1.2),
    Case::Leave(1.8),
    Case::Two(1.2),
    Case::Gradual,
    Case::Transient,
    Case::Periodic,
    Case::Layer(1.5),
    Case::Layer(2.0),
    Case::Link(2.0),
    Case::Link(4.0),
];

fn setting((samples, noise, common, own): (u32, f64, f64, f64), devices: usize) -> Setting {
    Setting { devices, samples, noise, common, own, lengths: job::Lengths::default() }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(default, |text| text.parse().expect("a whole number"));
    let (runs, quiet) = (number(1_000), number(10_000_000));
    if runs > 0 {
        changes(runs);
    }
    if quiet > 0 {
        quiet_jobs(quiet);
    }
}

fn changes(runs: u64) {
    println!(
        "{:<14} {:>5} {:>7} {:>5} {:>6} {:>4} | {:>8} {:>6} {:>9} {:>8} {:>10} {:>5} | {:>7} {:>6} {:>6} {:>6} {:>5} {:>5} {:>5}",
        "case",
        "runs",
        "samples",
        "noise",
        "common",
        "own",
        "within 5",
        "median",
        "onset off",
        "size off",
        "alarms",
        "links",
        "changes",
        "acted",
        "passed",
        "turned",
        "sum",
        "cause",
        "course"
    );
    for case in CASES {
        for of in SETTINGS {
            let setting = setting(of, DEVICES);
            let runs = if setting.samples > 16 { runs.div_ceil(4) } else { runs };
            let outcomes: Vec<Outcome> = (0..runs).map(|seed| cases::run(case, setting, seed)).collect();
            line(case, setting, &outcomes);
        }
    }
}

fn line(case: Case, setting: Setting, outcomes: &[Outcome]) {
    let count = outcomes.len() as f64;
    let mut delays: Vec<u64> = outcomes.iter().map(|outcome| outcome.delay.unwrap_or(999)).collect();
    delays.sort_unstable();
    let within = delays.iter().filter(|delay| **delay <= 5).count() as f64 / count;
    let told: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.delay.is_some()).collect();
    let mean = |of: &dyn Fn(&Outcome) -> f64| {
        told.iter().map(|outcome| of(outcome).abs()).sum::<f64>() / told.len().max(1) as f64
    };
    let over = |of: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / count;
    let quiet: u64 = outcomes.iter().map(|outcome| outcome.quiet).sum();
    let alarms: u64 = outcomes.iter().map(|outcome| outcome.false_alarms).sum();
    println!(
        "{:<14} {:>5} {:>7} {:>4.0}% {:>5.0}% {:>3.0}% | {:>7.1}% {:>6} {:>9.2} {:>7.1}% {:>4} {:>5.2} {:>5} | {:>7.2} {:>6.2} {:>6.2} {:>6.2} {:>5.2} {:>4.0}% {:>4.0}%",
        format!("{case:?}"),
        outcomes.len(),
        setting.samples,
        100.0 * setting.noise,
        100.0 * setting.common,
        100.0 * setting.own,
        100.0 * within,
        delays[delays.len() / 2],
        mean(&|outcome| outcome.onset_off),
        100.0 * mean(&|outcome| outcome.size_off),
        alarms,
        1e4 * alarms as f64 / quiet as f64,
        outcomes.iter().map(|outcome| outcome.link_alarms).sum::<u64>(),
        over(&|outcome| outcome.changes as f64),
        over(&|outcome| outcome.lasting as f64),
        over(&|outcome| outcome.passed as f64),
        over(&|outcome| outcome.turned as f64),
        over(&|outcome| outcome.sum).exp(),
        100.0 * over(&|outcome| f64::from(u8::from(outcome.is_cause_right))),
        100.0 * over(&|outcome| f64::from(u8::from(outcome.is_course_right))),
    );
}

fn quiet_jobs(total: u64) {
    println!(
        "\nquiet: alarms of devices in 10,000 iterations of one, the rate that 95 in 100 such counts exclude; links"
    );
    // Few devices have nothing to compare themselves with.
    let settings = SETTINGS.iter().flat_map(|of| [setting(*of, DEVICES), setting(*of, 2)]);
    let settings: Vec<Setting> = settings.collect();
    let (mut all, mut sum) = (0, 0);
    for &setting in &settings {
        // Samples cost time: fewer iterations where there are many.
        let share = total / settings.len() as u64 * 8 / u64::from(setting.samples.min(16));
        let jobs = share.div_ceil(QUIET_ITERATIONS * setting.devices as u64);
        let (mut devices, mut links) = (0, 0);
        for seed in 0..jobs {
            let (of_devices, of_links) = cases::quiet(setting, QUIET_ITERATIONS, 1_000_000 + seed);
            (devices, links) = (devices + of_devices, links + of_links);
        }
        let iterations = jobs * QUIET_ITERATIONS * setting.devices as u64;
        let of_links = jobs * QUIET_ITERATIONS * (setting.devices as u64 - 1);
        println!(
            "{} devices {:>3} samples {:>3.0}% noise {:>2.0}% common {:>2.0}% own | {:>9} iterations {:>5} alarms {:.3} (< {:.3}) | \
             links {:>5} {:.3}",
            setting.devices,
            setting.samples,
            100.0 * setting.noise,
            100.0 * setting.common,
            100.0 * setting.own,
            iterations,
            devices,
            1e4 * devices as f64 / iterations as f64,
            1e4 * poisson_high(devices) / iterations as f64,
            links,
            1e4 * links as f64 / of_links as f64,
        );
        (all, sum) = (all + devices, sum + iterations);
    }
    println!(
        "all: {all} alarms in {sum} iterations of a device: {:.4} in 10,000 (< {:.4})",
        1e4 * all as f64 / sum as f64,
        1e4 * poisson_high(all) / sum as f64
    );
}

/// The mean that a Poisson variable is at most this count of in 5 of 100 draws: the upper bound.
fn poisson_high(count: u64) -> f64 {
    if count > 200 {
        return count as f64 + 1.645 * (count as f64).sqrt() + 1.0;
    }
    let below = |mean: f64| {
        let mut term = (-mean).exp();
        let mut sum = term;
        for at in 1..=count {
            term *= mean / at as f64;
            sum += term;
        }
        sum
    };
    let (mut low, mut high) = (0.0, 3.0 * count as f64 + 10.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if below(middle) > 0.05 { low = middle } else { high = middle }
    }
    high
}
