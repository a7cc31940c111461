//! `adaptis simulate`: how long would an iteration of this plan take?

use crate::{failure, files, values};
use adaptis_plan::{Plan, Problem, audit};
use adaptis_planner::bounds::lower_bound_ns;
use adaptis_planner::export::{Panel, layers_text, milliseconds, perfetto, svg};
use adaptis_planner::noise::{Draws, Noise, draws};
use adaptis_planner::simulate::{Timeline, simulate};
use anyhow::Result;
use std::fmt::Write;
use std::path::PathBuf;

/// Replays a plan on a problem and says how long an iteration takes.
///
/// Also where the plan needs more memory than there is: it then says so and ends with exit code 0. A plan that no
/// executor would run, by the rules of `adaptis audit`, ends with exit code 1.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis simulate problem.json plan.json --svg timeline.svg
  adaptis simulate problem.json plan.json --noise 10%        # and what an iteration takes while operations jitter")]
pub struct Arguments {
    /// The problem, adaptis.problem/1
    problem: PathBuf,
    /// The plan, adaptis.plan/1
    plan: PathBuf,
    /// Print {"iteration_ns", "peak_bytes", "bubble", "lower_bound_ns", "fits"}; with --noise also "noise": {"share",
    /// "draws", "seed", "mean_ns", "p50_ns", "p95_ns"}
    #[arg(long)]
    json: bool,
    /// Draw the timeline
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the timeline as Chrome trace events for ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Also replay the plan on draws in which every instruction takes its time with a deviation of its own: log-normal,
    /// of mean 1 and this standard deviation
    #[arg(long, value_name = "SHARE", value_parser = values::share, allow_hyphen_values = true)]
    noise: Option<f64>,
    /// How many draws
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = values::whole(1..=100_000),
        allow_negative_numbers = true, requires = "noise")]
    draws: u64,
    /// Of the draws: the same for another plan, and both are compared on the same deviations
    #[arg(long, default_value_t = 1, value_parser = values::any_whole, allow_negative_numbers = true,
        requires = "noise")]
    seed: u64,
}

/// What an iteration takes while instructions jitter.
struct Noisy {
    share: f64,
    seed: u64,
    draws: Draws,
}

/// Rules that a plan may break and still be worth a look: what it takes if there were more memory or other wishes.
const WHAT_IF: [&str; 2] = ["memory", "constraint"];

pub fn run(arguments: Arguments) -> Result<()> {
    files::distinct(&[
        ("PROBLEM", Some(&arguments.problem)),
        ("PLAN", Some(&arguments.plan)),
        ("--svg", arguments.svg.as_deref()),
        ("--trace", arguments.trace.as_deref()),
    ])?;
    let problem = files::problem(&arguments.problem)?;
    let plan = files::plan(&arguments.plan)?;
    let cannot = |why: String| failure::negative(format!("{}: {why}", arguments.plan.display()));
    if let Some(finding) = audit(&problem, &plan).iter().find(|finding| !WHAT_IF.contains(&finding.rule())) {
        return Err(cannot(format!("no executor runs it: {}: {finding}", finding.rule())));
    }
    let timeline = simulate(&problem, &plan).map_err(|error| cannot(error.to_string()))?;
    let bound_ns = lower_bound_ns(&problem);
    let noisy = match arguments.noise {
        Some(share) => {
            let (noise, count) = (Noise::of_instructions(problem.devices.len(), share), arguments.draws as usize);
            let draws = draws(&problem, &plan, &noise, count, arguments.seed);
            Some(Noisy { share, seed: arguments.seed, draws: draws.map_err(|error| cannot(error.to_string()))? })
        }
        None => None,
    };
    let panels = panels(&problem, &plan, &timeline);
    if let Some(path) = &arguments.svg {
        files::write(path, svg::draw("Simulated iteration", &panels).as_bytes())?;
    }
    if let Some(path) = &arguments.trace {
        files::write(path, perfetto::write(&panels).as_bytes())?;
    }
    if arguments.json {
        let mut answer = serde_json::json!({
            "iteration_ns": timeline.iteration_ns,
            "peak_bytes": timeline.peak_bytes,
            "bubble": timeline.bubble,
            "lower_bound_ns": bound_ns,
            "fits": timeline.fits,
        });
        if let Some(noisy) = &noisy {
            answer["noise"] = noisy.json();
        }
        files::print(&format!("{answer:#}\n"))?;
    } else {
        let noisy = noisy.map(|noisy| noisy.text(timeline.iteration_ns)).unwrap_or_default();
        files::print(&(table(&problem, &plan, &timeline, bound_ns) + &noisy))?;
    }
    Ok(())
}

impl Noisy {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "share": self.share,
            "draws": self.draws.iteration_ns.len(),
            "seed": self.seed,
            "mean_ns": self.draws.mean_ns(),
            "p50_ns": self.draws.median_ns(),
            "p95_ns": self.draws.quantile_ns(0.95),
        })
    }

    fn text(&self, exact_ns: u64) -> String {
        let (mean_ns, count) = (self.draws.mean_ns(), self.draws.iteration_ns.len());
        format!(
            "with {}% noise on every instruction, {count} draws: mean {} ({:+.1}%), half below {}, 95% below {}\n",
            self.share * 100.0,
            milliseconds(mean_ns),
            (mean_ns as f64 / exact_ns.max(1) as f64 - 1.0) * 100.0,
            milliseconds(self.draws.median_ns()),
            milliseconds(self.draws.quantile_ns(0.95)),
        )
    }
}

/// A timeline as the one panel of a picture.
pub fn panels(problem: &Problem, plan: &Plan, timeline: &Timeline) -> Vec<Panel> {
    vec![Panel::of_plan(format!("plan {}", plan.epoch), problem, plan, timeline)]
}

/// How far a plan is from the best that can be.
fn beyond(timeline: &Timeline, bound_ns: u64) -> String {
    match (timeline.fits, timeline.iteration_ns.saturating_sub(bound_ns)) {
        (true, 0) => "no plan takes less: proved optimal".to_owned(),
        (true, gap_ns) => format!(
            "no plan takes less than {} ({:.2}% below)",
            milliseconds(bound_ns),
            gap_ns as f64 / timeline.iteration_ns as f64 * 100.0
        ),
        // What does not fit may well take less.
        (false, _) => format!("no plan that fits takes less than {}", milliseconds(bound_ns)),
    }
}

/// A timeline in words.
pub fn table(problem: &Problem, plan: &Plan, timeline: &Timeline, bound_ns: u64) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "iteration {}; {}", milliseconds(timeline.iteration_ns), beyond(timeline, bound_ns));
    let _ = writeln!(out, "{:<12} {:<12} {:>6} {:>23}  holds", "device", "kind", "idle", "peak of memory");
    for (index, device) in problem.devices.iter().enumerate() {
        let peak = timeline.peak_bytes[index];
        let _ = writeln!(
            out,
            "{:<12} {:<12} {:>5.1}% {:>23}  {}{}",
            device.name,
            device.kind,
            timeline.bubble[index] * 100.0,
            format!("{} of {}", size(peak), size(device.memory_bytes)),
            layers_text(plan, index),
            if peak > device.memory_bytes {
                format!("  DOES NOT FIT: {} bytes too many", peak - device.memory_bytes)
            } else {
                String::new()
            }
        );
    }
    out
}

/// A size as people read it.
pub fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1024 => return format!("{bytes} bytes"),
        1024..0x10_0000 => (1_u64 << 10, "KiB"),
        0x10_0000..0x4000_0000 => (1 << 20, "MiB"),
        _ => (1 << 30, "GiB"),
    };
    format!("{:.1} {name}", bytes as f64 / unit as f64)
}
