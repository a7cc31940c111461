//! `adaptis plan`: the best plan for a planning problem.

use crate::profiles::store::Store;
use crate::signals::Stop;
use crate::{duration, explain, failure, files, job, simulate, values};
use adaptis_plan::problem::{MICROBATCHES_MAX, TOTAL_MAX};
use adaptis_plan::{CannotMap, Cost, Device, Links, Plan, Problem, audit};
use adaptis_planner::export::milliseconds;
use adaptis_planner::moves::{Moves, moves};
use adaptis_planner::schedule::{self, Name};
use adaptis_planner::search::{Control, Infeasible, Options, Progress, search};
use adaptis_planner::{bounds::lower_bound_ns, simulate::simulate as replay};
use adaptis_proto::Epoch;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Searches for the best plan for a planning problem.
///
/// The search can be ended at any time with Ctrl-C: the best plan so far is then the result. Without --out it is
/// printed. Exit code 1: no plan fits the devices, and what is missing.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis plan problem.json --time 10s --out plan.json
  adaptis plan problem.json --from plan.json --horizon 500   # from a running plan, weighing what moves
  adaptis plan problem.json --schedule 1f1b                  # a named baseline
  adaptis plan problem.json --out plan.json --explain        # and where its time goes
  adaptis plan --job RUN --devices 4xgh-96,4xa100-40g --problem-out problem.json --out plan.json
      # a recorded job's layers on other devices, at the costs that profiles know")]
pub struct Arguments {
    /// The problem, adaptis.problem/1
    #[arg(required_unless_present = "job", conflicts_with = "job")]
    problem: Option<PathBuf>,
    /// Plan the layers of a recorded job instead: the folder of its run. Times come from the store of profiles and the run
    /// itself; one that was not measured on its kind is predicted from those that were, with an interval. What was measured,
    /// predicted and guessed is told on standard error, with --json as the member "basis"
    #[arg(long, value_name = "RUN", requires = "devices")]
    job: Option<PathBuf>,
    /// With --job: on which devices, COUNTxKIND,.. or a TOML file with `[[device]]` name, kind, node; `[[kind]]` name,
    /// memory_gib; `[links]` within_node_gb_per_second, between_nodes_gb_per_second. A group is a kind: 2x4xa100-40g
    #[arg(long, value_name = "DEVICES", requires = "job", conflicts_with = "problem", value_parser = values::text)]
    devices: Option<String>,
    /// With --job: microbatches of an iteration [default: the recorded job's]
    #[arg(long, value_name = "N", requires = "job", value_parser = values::whole(1..=u64::from(MICROBATCHES_MAX)),
        allow_negative_numbers = true)]
    microbatches: Option<u64>,
    #[command(flatten)]
    store: Store,
    /// With --job: where to write the problem that was planned, for `audit` and `simulate`
    #[arg(long, value_name = "FILE", requires = "job")]
    problem_out: Option<PathBuf>,
    /// The running plan, its devices matched by name: what moves away from it has a price, but for the layers of a device
    /// that is gone
    #[arg(long, value_name = "PLAN")]
    from: Option<PathBuf>,
    /// How long to search
    #[arg(long, value_parser = duration::duration, allow_hyphen_values = true, default_value = "10s",
        conflicts_with = "evaluations")]
    time: Duration,
    /// How many candidate plans to evaluate; gives the same result for the same seed on any machine
    #[arg(long, value_name = "N", value_parser = values::any_whole, allow_negative_numbers = true)]
    evaluations: Option<u64>,
    /// Of the random choices
    #[arg(long, default_value_t = 1, value_parser = values::any_whole, allow_negative_numbers = true)]
    seed: u64,
    /// At most so many threads, and no more than there are cores: a better plan in the same --time. With --evaluations
    /// the result does not depend on it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::whole(1..=u64::MAX), allow_negative_numbers = true)]
    threads: u64,
    /// With --from: how many iterations the plan will run, to weigh what moves
    #[arg(long, value_name = "ITERATIONS", default_value_t = 1000, value_parser = values::whole(1..=u64::MAX),
        allow_negative_numbers = true, requires = "from")]
    horizon: u64,
    /// A named schedule on its best partition instead of a search: gpipe, 1f1b, i1f1b, zb-h1, zb-h2, zb-v, v-half, v-min
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    schedule: Option<String>,
    /// Say where the time goes, who waits for whom, where memory presses, and what one more device, GiB or twice the
    /// bandwidth would buy, by planning again with each (at most twice --time; Ctrl-C skips the rest). With --out
    /// it follows the table, with --json it is the member "explanation"; without --out it goes to standard error, so
    /// that standard output is the plan
    #[arg(long)]
    explain: bool,
    /// Where to write the plan
    #[arg(long, value_name = "PLAN")]
    out: Option<PathBuf>,
    /// With --out: print the result's figures as JSON
    #[arg(long, requires = "out")]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<()> {
    files::distinct(&[
        ("PROBLEM", arguments.problem.as_deref()),
        ("--problem-out", arguments.problem_out.as_deref()),
        ("--out", arguments.out.as_deref()),
    ])?;
    let (problem, basis) = given(&arguments)?;
    arguments.out.as_deref().map_or(Ok(()), files::check_writable)?;
    arguments.problem_out.as_deref().map_or(Ok(()), |out| files::write(out, problem.write().as_bytes()))?;
    if let Some(basis) = basis.as_ref().filter(|_| !arguments.json) {
        files::say(basis.text().trim_end());
    }
    let stop = Stop::listen()?;
    let (plan, moved, evaluations) = match &arguments.schedule {
        Some(name) => {
            let name: Name = name.parse().map_err(|error| failure::usage(format!("--schedule: {error}")))?;
            (scheduled(&arguments, &problem, name, &stop)?, None, 0)
        }
        None => searched(&arguments, &problem, &stop)?,
    };
    let search = explain::Search {
        seed: arguments.seed,
        evaluations,
        time_max: arguments.evaluations.is_none().then(|| arguments.time.saturating_mul(2)),
        stop: &stop,
    };
    let Some(out) = &arguments.out else {
        files::print(&plan.write())?;
        if let Some(basis) = &basis {
            files::say(basis.reliance(&plan)?.trim_end());
        }
        if arguments.explain {
            files::say(explain::text(&explain::explained(&problem, &plan, &search)?).trim_end());
        }
        return Ok(());
    };
    files::write(out, plan.write().as_bytes())?;
    let explained = match arguments.explain {
        true => Some(explain::explained(&problem, &plan, &search)?),
        false => None,
    };
    let timeline = replay(&problem, &plan).map_err(failure::negative)?;
    let bound_ns = lower_bound_ns(&problem);
    if arguments.json {
        let mut answer = serde_json::json!({
            "iteration_ns": timeline.iteration_ns,
            "lower_bound_ns": bound_ns,
            "peak_bytes": timeline.peak_bytes,
            "bubble": timeline.bubble,
            "evaluations": evaluations,
        });
        if let Some(basis) = &basis {
            answer["basis"] = basis.json(&plan)?;
        }
        if let Some(moved) = &moved {
            answer["moved_layers"] = moved.layers.into();
            answer["unavoidable_layers"] = moved.unavoidable_layers.into();
            answer["moved_bytes"] = moved.bytes.into();
        }
        if let Some(explained) = &explained {
            answer["explanation"] = serde_json::to_value(&explained.explanation)?;
            answer["explanation"]["evaluations_each"] = explained.evaluations_each.into();
        }
        files::print(&format!("{answer:#}\n"))?;
    } else {
        files::print(&simulate::table(&problem, &plan, &timeline, bound_ns))?;
        if let Some(basis) = &basis {
            files::print(&basis.reliance(&plan)?)?;
        }
        if let Some(explained) = &explained {
            files::print(&format!("\n{}", explain::text(explained)))?;
        }
    }
    Ok(())
}

/// The problem: from its file, or of a recorded job, then with what it stands on.
fn given(arguments: &Arguments) -> Result<(Problem, Option<job::Basis>)> {
    match (&arguments.problem, &arguments.job, &arguments.devices) {
        (_, Some(run), Some(devices)) => {
            let (microbatches, store) = (arguments.microbatches, &arguments.store);
            let basis = job::problem(&job::Asked { run, devices, microbatches, store })?;
            Ok((basis.problem().clone(), Some(basis)))
        }
        (Some(_), ..) if arguments.store.is_argument() => {
            Err(failure::usage("--store: a problem has its costs; profiles are read for --job"))
        }
        (Some(path), ..) => Ok((files::problem(path)?, None)),
        _ => Err(failure::usage("name a problem, or a recorded job with --job and --devices")),
    }
}

/// A running plan of the problem's layers, which some ranks could run; what is gone of its devices is told.
fn running(path: &str, plan: Plan, problem: &Problem) -> Result<Plan> {
    if plan.layers as usize != problem.layers.len() {
        let (has, wants) = (plan.layers, problem.layers.len());
        return Err(failure::usage(format!("--from {path}: a plan of {has} layers, and the problem has {wants}")));
    }
    // Memory and constraints are the problem's, which may have changed since: to leave them behind is what one replans for.
    if let [first, more @ ..] = &audit(&as_it_ran(problem, &plan), &plan)[..] {
        let others = if more.is_empty() { String::new() } else { format!(" (and {} more)", more.len()) };
        let rule = first.rule();
        return Err(failure::usage(format!("--from {path}: no plan that can run: {rule}: {first}{others}")));
    }
    let names: Vec<String> = problem.devices.iter().map(|device| device.name.clone()).collect();
    match plan.map_to(&names) {
        Ok(_) => Ok(plan),
        Err(CannotMap::Missing { .. }) => {
            let gone: Vec<&str> =
                plan.devices.iter().filter(|device| !names.contains(device)).map(String::as_str).collect();
            let (verb, whose) = if gone.len() == 1 { ("is", "its") } else { ("are", "their") };
            let gone = gone.join(", ");
            files::say(&format!(
                "--from {path}: {gone} {verb} gone; {whose} layers move in any case, others at a price"
            ));
            Ok(plan)
        }
        Err(error) => Err(failure::usage(format!("--from {path}: {error}"))),
    }
}

/// What a plan may have been made for: the problem's layers on the plan's own devices, with memory for all.
fn as_it_ran(problem: &Problem, plan: &Plan) -> Problem {
    const KIND: &str = "any";
    let device = |name: &String| Device {
        name: name.clone(),
        kind: KIND.to_owned(),
        memory_bytes: TOTAL_MAX,
        slowdown: 1.0,
        reserved_bytes: 0,
        note: None,
    };
    let microbatches =
        plan.programs.iter().flatten().map(|instruction| instruction.microbatch.0.saturating_add(1)).max();
    let layers = problem.layers.clone();
    let costs = [(KIND.to_owned(), vec![Cost::default(); layers.len()])].into();
    let microbatches = microbatches.unwrap_or(problem.microbatches).min(MICROBATCHES_MAX);
    Problem::new(microbatches, layers, plan.devices.iter().map(device).collect(), costs, Links::all(0, 1e9))
}

/// Threads that are worth having.
fn threads(most: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    usize::try_from(most).unwrap_or(usize::MAX).min(cores)
}

/// What moves, in words.
fn moved(moved: &Moves, plan: &Plan) -> String {
    let because = match moved.unavoidable_layers {
        0 => String::new(),
        count => format!(", {count} of them because their device is gone"),
    };
    let (layers, gigabytes) = (plan.layers, moved.bytes as f64 / 1e9);
    format!("{} of {layers} layers change device{because}: {gigabytes:.1} GB", moved.layers)
}

/// A named schedule's plan.
fn scheduled(arguments: &Arguments, problem: &Problem, name: Name, stop: &Stop) -> Result<Plan> {
    let started = Instant::now();
    let mut goes_on = || stop.asked().is_none() && started.elapsed() < arguments.time;
    schedule::named_while(problem, name, &mut goes_on).map_err(|error| refused(&error, stop))
}

/// No plan; where that is because of a signal, that is the reason.
fn refused(error: &Infeasible, stop: &Stop) -> anyhow::Error {
    match (error, stop.asked()) {
        (Infeasible::NoneYet, Some(signal)) => failure::Failure::Interrupted(signal).into(),
        _ => failure::negative(error),
    }
}

/// The plan, what moves to it from a running one, and how many were evaluated.
fn searched(arguments: &Arguments, problem: &Problem, stop: &Stop) -> Result<(Plan, Option<Moves>, u64)> {
    let mut epoch = Epoch(1);
    let from = match &arguments.from {
        Some(path) => {
            let plan = files::plan(path)?;
            epoch = plan.epoch.next();
            Some(running(&path.display().to_string(), plan, problem)?)
        }
        None => None,
    };
    let started = Instant::now();
    let bar = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}").expect("the template is well formed"));
    let mut shown = Instant::now();
    let mut tick = |progress: &Progress| {
        if shown.elapsed() >= Duration::from_millis(100) {
            shown = Instant::now();
            bar.tick();
            bar.set_message(format!(
                "{}: {} plans, best {}, bound {}",
                progress.stage,
                progress.evaluations,
                milliseconds(progress.best_ns),
                milliseconds(progress.lower_bound_ns)
            ));
        }
        let over = arguments.evaluations.is_none() && started.elapsed() >= arguments.time;
        if over || stop.asked().is_some() { Control::Stop } else { Control::Go }
    };
    let options = Options {
        seed: arguments.seed,
        evaluations: arguments.evaluations,
        horizon_iterations: arguments.horizon,
        epoch,
        threads: threads(arguments.threads),
    };
    let outcome = search(problem, from.as_ref(), &options, &mut tick);
    bar.finish_and_clear();
    let outcome = outcome.map_err(|error| refused(&error, stop))?;
    let mut moves_to_it = None;
    if let (Some(path), Some(from)) = (&arguments.from, from) {
        let path = path.display();
        // A search from a running plan has the best of each kind of change to it.
        if outcome.rungs.is_empty() {
            files::say(&format!("--from {path}: its stages do not cover the layers; planned anew, as if nothing ran"));
        } else {
            let moves = moves(problem, &from, &outcome.plan);
            files::say(&format!("--from {path}: {}", moved(&moves, &outcome.plan)));
            moves_to_it = Some(moves);
        }
    }
    Ok((outcome.plan, moves_to_it, outcome.evaluations))
}
