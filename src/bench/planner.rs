//! `adaptis bench planner`: how good and how fast is the search?

use super::measure::{Row, measure};
use super::problems::{self, Named};
use super::{chart, scale, table};
use crate::failure::Failure;
use crate::signals::Stop;
use crate::{failure, files, values};
use adaptis_planner::export::milliseconds;
use adaptis_planner::search::{Control, Progress};
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Measures the search against the named schedules.
///
/// Every problem is planned by each named schedule on its best partition, by 1F1B over an even split, and by the search.
/// The search is limited in CPU time of this process, so that other work on the machine does not change the result. Every
/// plan is then checked by the audit, and its time and memory by the audit's own clock and walk. Exit code 1: a check
/// failed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis bench planner
  adaptis bench planner --time 10s --seeds 5 --out planner-bench   # table, chart, JSON and the plans
  adaptis bench planner --problems my-problems --json
  adaptis bench planner --scale=64 --time 10s                      # up to 64 devices x 256 microbatches x 512 layers")]
pub struct Arguments {
    /// CPU time of each search
    #[arg(long, value_parser = values::some_time, allow_hyphen_values = true, default_value = "1s")]
    time: Duration,
    /// Searches per problem, seeds 1 to N; the table shows the middle one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::whole(1..=1000),
        allow_negative_numbers = true)]
    seeds: u64,
    /// A folder of problems, adaptis.problem/1; a built-in set without it
    #[arg(long, value_name = "DIR")]
    problems: Option<PathBuf>,
    /// Cost against size: uniform and mixed clusters of up to so many devices, 256 without a number
    ///
    /// From 4 devices, 8 microbatches and 16 layers to 256, 1,024 and 1,024. The table says when there was a first plan
    /// and how much memory the process held.
    #[arg(long, value_name = "DEVICES", num_args = 0..=1, require_equals = true, default_missing_value = "256",
        value_parser = values::whole(4..=scale::DEVICES_MAX), conflicts_with = "problems")]
    scale: Option<u64>,
    /// Print {"problems": [..], "geometric_mean": {..}, "findings": ..} instead of the table
    #[arg(long)]
    json: bool,
    /// Also write the table, the chart (SVG), the JSON and the plans to this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let problems = match (&arguments.problems, arguments.scale) {
        (Some(folder), _) => problems::of_folder(folder)?,
        (None, Some(devices_max)) => scale::problems(devices_max),
        (None, None) => problems::built_in()?,
    };
    if let Some(out) = &arguments.out {
        std::fs::create_dir_all(out).map_err(|error| failure::environment(format!("{}: {error}", out.display())))?;
    }
    let stop = Stop::listen()?;
    let rows = measured(&arguments, &problems, &stop);
    let seeds = match arguments.seeds {
        1 => "1 seed".to_owned(),
        seeds => format!("the middle one of {seeds} seeds"),
    };
    let heading = format!("Search of {} s of CPU time, {seeds}", arguments.time.as_secs_f64());
    let write = if arguments.scale.is_some() { scale::write } else { table::write };
    let (text, json) = (write(&rows, &heading), as_json(&arguments, &rows));
    if let Some(out) = &arguments.out {
        keep(out, &rows, &text, &json, &heading)?;
    }
    files::print(if arguments.json { &json } else { &text })?;
    if let Some(signal) = stop.asked() {
        return Err(Failure::Interrupted(signal).into());
    }
    match rows.iter().map(|row| row.wrong.len()).sum() {
        0 => Ok(()),
        1 => Err(failure::negative("a check of the plans failed: 1 finding")),
        count => Err(failure::negative(format!("checks of the plans failed: {count} findings"))),
    }
}

/// Problem after problem, with progress; those that were done when it was stopped.
fn measured(arguments: &Arguments, problems: &[Named], stop: &Stop) -> Vec<Row> {
    let bar = ProgressBar::new(problems.len() as u64).with_style(
        ProgressStyle::with_template("{elapsed} [{bar:20}] {pos} of {len}  {msg}")
            .expect("the template is well formed"),
    );
    let mut rows = Vec::new();
    for of in problems {
        bar.set_message(of.name.clone());
        let mut shown: Option<Instant> = None;
        let row =
            measure(of, arguments.time, arguments.seeds, &mut |seed: u64, spent: Duration, progress: &Progress| {
                if shown.is_none_or(|shown| shown.elapsed() >= Duration::from_millis(100)) {
                    shown = Some(Instant::now());
                    bar.set_message(format!(
                        "{}: seed {seed}, {:.1} s, {}, best {}",
                        of.name,
                        spent.as_secs_f64(),
                        progress.stage,
                        if progress.best_ns == u64::MAX {
                            "none yet".to_owned()
                        } else {
                            milliseconds(progress.best_ns)
                        }
                    ));
                }
                if stop.asked().is_some() { Control::Stop } else { Control::Go }
            });
        if stop.asked().is_some() {
            break;
        }
        rows.push(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    rows
}

fn as_json(arguments: &Arguments, rows: &[Row]) -> String {
    let of = |row: &Row| {
        let mut value = serde_json::to_value(row).expect("a row is JSON");
        let best = row.best_baseline().map(|(name, ns)| serde_json::json!({ "name": name, "iteration_ns": ns }));
        value["best_baseline"] = best.into();
        value["iteration_ns"] = row.median().map(|run| run.iteration_ns).into();
        value["ratio"] = row.ratio().into();
        value["gap"] = row.gap().into();
        value["spread"] = row.spread().into();
        value
    };
    let answer = serde_json::json!({
        "time_ns": u64::try_from(arguments.time.as_nanos()).unwrap_or(u64::MAX),
        "seeds": arguments.seeds,
        "problems": rows.iter().map(of).collect::<Vec<_>>(),
        "geometric_mean": {
            "all": table::geometric_mean(rows.iter()),
            "unequal": table::geometric_mean(rows.iter().filter(|row| row.is_unequal)),
            "equal": table::geometric_mean(rows.iter().filter(|row| !row.is_unequal)),
        },
        "worst_ratio": rows.iter().filter_map(Row::ratio).max_by(f64::total_cmp),
        "findings": rows.iter().map(|row| row.wrong.len()).sum::<usize>(),
    });
    format!("{answer:#}\n")
}

/// The table, the chart, the JSON and the plan of each problem's middle run.
fn keep(out: &Path, rows: &[Row], text: &str, json: &str, heading: &str) -> Result<()> {
    files::write(&out.join("planner.txt"), text.as_bytes())?;
    files::write(&out.join("planner.json"), json.as_bytes())?;
    files::write(&out.join("planner.svg"), chart::draw(rows, heading).as_bytes())?;
    for row in rows {
        if let Some(run) = row.median() {
            files::write(&out.join(format!("{}.plan.json", row.problem)), run.plan.write().as_bytes())?;
        }
    }
    Ok(())
}
