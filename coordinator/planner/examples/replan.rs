//! Measures planning again: from a good plan, after a device or a link has changed, or one has gone or come.
//!
//! `cargo run --release -p adaptis-planner --example replan -- FOLDER CACHE [LONG_SECONDS] [NAME] [CASE]`
//!
//! For each problem of the folder a plan is searched, then the problem is changed and searched again from that plan, with
//! 0.1 s and with 3 s. The yardstick is a long search of the changed problem from nothing, or what was found from the
//! plan where that is shorter. Long searches are kept in the folder CACHE, which is made. All times are CPU seconds of one
//! core. NAME and CASE choose problems and changes whose names contain them.

#![allow(clippy::disallowed_methods, reason = "an example is a shell: it reads files and clocks")]

use adaptis_plan::problem::Pair;
use adaptis_plan::{Link, Plan, Problem, audit};
use adaptis_planner::moves::{Moves, moves};
use adaptis_planner::search::{Control, Options, Outcome, search};
use adaptis_planner::simulate::simulate;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Budgets of planning again.
const BUDGETS: [f64; 2] = [0.1, 3.0];
/// What the figures are to be: distance after each budget, and share of the layers that move.
const WITHIN: [f64; 2] = [0.03, 0.015];
const MOVED_SHARE: f64 = 0.15;

/// Time that this process ran on a core, so that a busy machine does not change the table; the wall's where the system
/// does not tell.
fn spent(start: Instant) -> Duration {
    let told = std::fs::read_to_string("/proc/self/schedstat").ok();
    let first = told.and_then(|text| text.split(' ').next().and_then(|word| word.parse().ok()));
    first.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

fn searched(problem: &Problem, from: Option<&Plan>, seconds: f64) -> Option<(Outcome, f64)> {
    let clock = Instant::now();
    let start = spent(clock);
    let elapsed = || spent(clock).saturating_sub(start).as_secs_f64();
    let found = search(problem, from, &Options::default(), &mut |_| {
        if elapsed() < seconds { Control::Go } else { Control::Stop }
    });
    found.ok().map(|outcome| (outcome, elapsed()))
}

fn time_ns(problem: &Problem, plan: &Plan) -> Option<f64> {
    let timeline = simulate(problem, plan).ok()?;
    audit(problem, plan).is_empty().then_some(timeline.iteration_ns as f64)
}

/// Long searches, each made once.
struct Cache {
    folder: PathBuf,
    seconds: f64,
}

impl Cache {
    /// The plan of a long search from nothing; none where nothing fits.
    fn plan(&self, name: &str, problem: &Problem) -> Option<Plan> {
        let path = self.folder.join(format!("{name}-{}s.plan.json", self.seconds));
        if let Ok(text) = std::fs::read_to_string(&path) {
            let plan = Plan::read(&text).expect("the cache holds plans");
            assert!(audit(problem, &plan).is_empty(), "{} is of another problem: remove it", path.display());
            return Some(plan);
        }
        let (outcome, _) = searched(problem, None, self.seconds)?;
        std::fs::write(&path, outcome.plan.write()).expect("the cache is writable");
        Some(outcome.plan)
    }
}

/// A change: its name, the problem before it and the one after it.
struct Case {
    name: String,
    before: Problem,
    before_name: String,
    after: Problem,
    after_name: String,
}

fn slowed(problem: &Problem, device: usize, factor: f64) -> Problem {
    let mut slowed = problem.clone();
    slowed.devices[device].slowdown *= factor;
    slowed
}

fn without(problem: &Problem, device: usize) -> Problem {
    let mut left = problem.clone();
    let gone = left.devices.remove(device).name;
    left.links.pairs.retain(|pair| pair.from != gone && pair.to != gone);
    left
}

/// Both directions between two devices, a quarter as fast and four times as late.
fn slow_link(problem: &Problem, devices: [usize; 2]) -> Problem {
    let mut slow = problem.clone();
    for [from, to] in [devices, [devices[1], devices[0]]] {
        let link = problem.link(from, to);
        let name = |device: usize| problem.devices[device].name.clone();
        slow.links.pairs.retain(|pair| pair.from != name(from) || pair.to != name(to));
        let Link { latency_ns, bytes_per_second, .. } = link;
        let (latency_ns, bytes_per_second) = (latency_ns * 4, bytes_per_second / 4.0);
        slow.links.pairs.push(Pair { from: name(from), to: name(to), latency_ns, bytes_per_second, note: None });
    }
    slow
}

/// The two devices of the boundary in the middle of a plan.
fn middle_link(plan: &Plan) -> Option<[usize; 2]> {
    let pairs: Vec<_> = plan.stages.windows(2).filter(|pair| pair[0].device != pair[1].device).collect();
    let pair = pairs.get(pairs.len() / 2)?;
    Some([pair[0].device as usize, pair[1].device as usize])
}

fn cases(name: &str, problem: &Problem, plan: &Plan) -> Vec<Case> {
    let count = problem.devices.len();
    let normal = || (problem.clone(), name.to_owned());
    let case = |what: String, (before, before_name): (Problem, String), (after, after_name): (Problem, String)| Case {
        name: what,
        before,
        before_name,
        after,
        after_name,
    };
    let slow = |device: usize, factor: f64| {
        let what = format!("slow-{}-{factor}", problem.devices[device].name);
        (slowed(problem, device, factor), format!("{name}-{what}"))
    };
    let mut cases = Vec::new();
    for (device, factor) in [(0, 1.3), (count / 2, 1.6), (count - 1, 2.0), (1, 1.6)] {
        let what = format!("{} x{factor}", problem.devices[device].name);
        cases.push(case(what, normal(), slow(device, factor)));
    }
    cases.push(case("back to normal".to_owned(), slow(count / 2, 1.6), normal()));
    if let Some(devices) = middle_link(plan) {
        let what = devices.map(|device| problem.devices[device].name.as_str()).join("-");
        let slow = (slow_link(problem, devices), format!("{name}-link-{what}"));
        cases.push(case(format!("link {what} /4"), normal(), slow));
    }
    for device in [count / 2, count - 1] {
        let gone = &problem.devices[device].name;
        let less = || (without(problem, device), format!("{name}-without-{gone}"));
        cases.push(case(format!("{gone} lost"), normal(), less()));
        if device == count / 2 {
            cases.push(case(format!("{gone} added"), less(), normal()));
        }
    }
    cases
}

/// How far from the yardstick, and what moved of what need not.
#[derive(Clone, Copy)]
struct Figure {
    distance: f64,
    moved: f64,
}

fn measure(case: &Case, cache: &Cache) -> Option<[Figure; 2]> {
    let running = cache.plan(&case.before_name, &case.before)?;
    let cold = cache.plan(&case.after_name, &case.after)?;
    let layers = case.after.layers.len();
    let found: Vec<(Plan, f64)> = BUDGETS
        .into_iter()
        .filter_map(|seconds| searched(&case.after, Some(&running), seconds).map(|(found, took)| (found.plan, took)))
        .collect();
    let times: Vec<f64> = found.iter().filter_map(|(plan, _)| time_ns(&case.after, plan)).collect();
    let cold_ns = time_ns(&case.after, &cold)?;
    let best_ns = times.iter().copied().fold(cold_ns, f64::min);
    let off = |ns: f64| ns / best_ns - 1.0;
    let unchanged =
        time_ns(&case.after, &running).map_or_else(|| "-".to_owned(), |ns| format!("{:.1}%", off(ns) * 1e2));
    print!(
        "  {:<24} best {:8.1} ms  cold {:5.2}%  unchanged {unchanged:>6}",
        case.name,
        best_ns / 1e6,
        off(cold_ns) * 1e2
    );
    let figures: Vec<Figure> = found
        .iter()
        .zip(&times)
        .map(|((plan, took), &ns)| {
            let moved: Moves = moves(&case.after, &running, plan);
            let avoidable = moved.layers - moved.unavoidable_layers;
            let share = f64::from(avoidable) / layers as f64;
            let besides = match moved.unavoidable_layers {
                0 => String::new(),
                count => format!(" besides {count}"),
            };
            print!(
                "  | {took:.2} s {:5.2}%  moved {avoidable:2} of {layers}{besides} = {:2.0}%, {:.1} GB",
                off(ns) * 1e2,
                share * 1e2,
                moved.bytes as f64 / 1e9
            );
            Figure { distance: off(ns), moved: share }
        })
        .collect();
    println!();
    figures.try_into().ok()
}

fn summary(kind: &str, figures: &[[Figure; 2]]) {
    if figures.is_empty() {
        return;
    }
    for (at, seconds) in BUDGETS.into_iter().enumerate() {
        let worst = |of: fn(&Figure) -> f64| figures.iter().map(|each| of(&each[at])).fold(0.0, f64::max);
        let mean = figures.iter().map(|each| (1.0 + each[at].distance).ln()).sum::<f64>() / figures.len() as f64;
        let moved = figures.iter().map(|each| each[at].moved).sum::<f64>() / figures.len() as f64;
        let held = figures.iter().filter(|each| each[at].distance <= WITHIN[at]).count();
        let few = figures.iter().filter(|each| each[at].moved <= MOVED_SHARE).count();
        println!(
            "{kind}, {seconds} s: within {:.1}% {held} of {}, geometric mean {:.2}%, worst {:.2}%; at most {:.0}% moved {few}, mean {:.1}%, most {:.0}%",
            WITHIN[at] * 1e2,
            figures.len(),
            mean.exp_m1() * 1e2,
            worst(|each| each.distance) * 1e2,
            MOVED_SHARE * 1e2,
            moved * 1e2,
            worst(|each| each.moved) * 1e2,
        );
    }
}

fn problems(folder: &Path, chosen: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder is readable")
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .filter(|path| path.to_string_lossy().contains(chosen))
        .collect();
    paths.sort();
    paths
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("the first argument is a folder of problems"));
    let cache_folder = PathBuf::from(arguments.next().expect("the second argument is a folder to keep plans in"));
    let seconds = arguments.next().map_or(20.0, |text| text.parse().expect("seconds are a number"));
    let chosen = arguments.next().unwrap_or_default();
    let chosen_case = arguments.next().unwrap_or_default();
    std::fs::create_dir_all(&cache_folder).expect("the cache can be made");
    let cache = Cache { folder: cache_folder, seconds };
    let (mut changed, mut others) = (Vec::new(), Vec::new());
    for path in problems(&folder, &chosen) {
        let text = std::fs::read_to_string(&path).expect("the file is readable");
        let problem = Problem::read(&text).expect("the file is a problem");
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        println!("{name}");
        let Some(plan) = cache.plan(&name, &problem) else {
            println!("  nothing fits");
            continue;
        };
        for case in cases(&name, &problem, &plan) {
            if !case.name.contains(&chosen_case) {
                continue;
            }
            match measure(&case, &cache) {
                Some(figures) if case.before.devices.len() == case.after.devices.len() => changed.push(figures),
                Some(figures) => others.push(figures),
                None => println!("  {:<24} does not fit", case.name),
            }
        }
    }
    summary("costs changed", &changed);
    summary("devices changed", &others);
}
