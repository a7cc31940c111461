//! `adaptis replay`: what is slow in a recorded job, what does it cost, and what would win it back?

use crate::{failure, files, values};
use adaptis_coordinator::replay::{Diagnosis, Doubt, Finding, Kind, Options, Phase, Place, ReplayError, replay};
use adaptis_planner::export::milliseconds;
use anyhow::Result;
use std::fmt::Write;
use std::path::PathBuf;

/// Replays a recorded job and says what is slow, what that costs, and what would win it back.
///
/// FILE is the folder of a run of ours (`adaptis demo --out`), of which it says which device or link became slower, when
/// and by how much; or a trace of StragglerAnalysis in Parquet, a row for each operation of each worker. Each iteration is
/// simulated from its operations' times, then again with one cause made even: a worker, a stage, a type of operation, a
/// link, the lengths of sequences. What noise explains is not told. Where the simulation does not give the recorded times
/// back, that is said with the reason, nothing found is to be relied on, and the exit code is 1.
#[derive(clap::Args)]
#[command(
    after_help = "Columns of a trace (whole numbers of 8 to 64 bits, times of 32 or 64 bits; others are passed over):
  dp_rank, stage    the worker: its replica and its place in the pipeline, from 0
  rank              its number in the job; of those with the same dp_rank and stage the lowest is taken
  step              the iteration
  optype            forward-compute, backward-compute; forward-send, forward-recv, backward-send, backward-recv, or several
                    of these joined by - where a worker waits for them as one; text
  start_ts          when it began, in seconds, on one clock a worker; 64 bits if it counts from 1970
  duration          how long it took, in seconds; a send and its receive last until both sides are done
  mb_id, gmc        of a compute: its microbatch, and the position of its chunk in the whole model, from 0; else -1

Examples:
  adaptis replay trace.parquet
  adaptis replay trace.parquet --json | jq '.findings[0]'
  adaptis replay demo-run                      # what became slow in a run of ours, and when
  adaptis replay trace.parquet --layers 12     # a stage of the recorded job has 12 layers"
)]
pub struct Arguments {
    /// The trace, or the folder of a run
    file: PathBuf,
    /// Print adaptis.diagnosis/1: {"iterations", "measured_median_ns", "simulated_median_ns", "simulated_ns",
    /// "measured_ns", "findings": [{"kind", "where", "factor", "factor_low", "factor_high", "lost_share", "reliable"}],
    /// "better_plan": {"iteration_ns", "low_ns", "high_ns", "change", "instead_of_ns"}, "reliable", "doubts": [{"kind", ..}],
    /// "set_aside": [{"iteration", "reason", ..}], "phases": [{"from", "to", "epoch", ..}] of a run of ours}
    #[arg(long)]
    json: bool,
    /// Equal layers that each stage of the recorded job is taken to have; a better plan moves such layers
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = values::whole(1..=256), allow_negative_numbers = true)]
    layers: u64,
    /// Of the resampling behind the intervals, and of the search for a plan
    #[arg(long, default_value_t = 1, value_parser = values::any_whole, allow_negative_numbers = true)]
    seed: u64,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let layers = u32::try_from(arguments.layers).unwrap_or(u32::MAX);
    let options = Options { layers, seed: arguments.seed };
    let diagnosis = replay(&arguments.file, &options).map_err(|error| match error {
        ReplayError::Store { ref source, .. } if !source.is_of_the_file() => failure::environment(error),
        other => failure::usage(other),
    })?;
    if arguments.json {
        let answer = serde_json::to_string_pretty(&diagnosis).expect("a diagnosis has string keys and finite numbers");
        files::print(&format!("{answer}\n"))?;
    } else {
        files::print(&text(&diagnosis))?;
    }
    if diagnosis.is_reliable {
        return Ok(());
    }
    let doubts: Vec<String> = diagnosis.doubts.iter().map(ToString::to_string).collect();
    let path = arguments.file.display();
    Err(failure::negative(format!("{path}: not to be relied on: {}", doubts.join("; "))))
}

/// Iterations set aside that are told each; of more, how many there are.
const TOLD: usize = 3;

/// A diagnosis at a glance.
fn text(diagnosis: &Diagnosis) -> String {
    let mut out = String::new();
    let even = milliseconds(diagnosis.even_ns);
    let _ = writeln!(
        out,
        "{} iterations, in the middle {}; the replay of their operations says {}, and {even} if all were even",
        diagnosis.iterations,
        milliseconds(diagnosis.measured_median_ns),
        milliseconds(diagnosis.simulated_median_ns),
    );
    for Phase { from, to, epoch, measured_median_ns, simulated_median_ns } in &diagnosis.phases {
        let (measured, simulated) = (milliseconds(*measured_median_ns), milliseconds(*simulated_median_ns));
        let _ = writeln!(out, "iterations {from} to {to}, plan {epoch}: {measured}; the replay says {simulated}");
    }
    for set_aside in diagnosis.set_aside.iter().take(TOLD) {
        let _ = writeln!(out, "set aside: {set_aside}");
    }
    if diagnosis.set_aside.len() > TOLD {
        let _ = writeln!(out, "set aside: {} iterations more", diagnosis.set_aside.len() - TOLD);
    }
    for doubt in &diagnosis.doubts {
        let _ = writeln!(out, "beware: {doubt}");
    }
    let is_untold = diagnosis.doubts.iter().any(|doubt| matches!(doubt, Doubt::Untold { .. }));
    let are_too_few = diagnosis.doubts.iter().any(|doubt| matches!(doubt, Doubt::Few { .. }));
    out += match (diagnosis.findings.is_empty(), diagnosis.is_reliable) {
        (false, true) => "",
        (false, false) => "not to be relied on:\n",
        (true, false) => "what is slow can't be told\n",
        (true, true) if are_too_few => "nothing is slow by so much that so few iterations show it\n",
        (true, true) if !diagnosis.phases.is_empty() => "no device or link became slower: what else is lost is noise\n",
        (true, true) if is_untold => "nothing is slow all along\n",
        (true, true) => "nothing is slow: what is above an even job is noise\n",
    };
    for finding in &diagnosis.findings {
        let _ = writeln!(
            out,
            "{}: {:.2} times {} ({:.2} to {:.2}); {:.0}% of the time lost, {} without it",
            place(finding),
            finding.factor,
            match (finding.kind, [finding.place.iteration, finding.place.last_iteration]) {
                (Kind::Length, _) => "the mean",
                (_, [_, Some(_)]) => "what it took otherwise",
                (_, [Some(_), _]) => "what it took before",
                _ => "the others",
            },
            finding.factor_low,
            finding.factor_high,
            finding.lost_share * 100.0,
            milliseconds(finding.without_ns),
        );
    }
    if let Some(better) = &diagnosis.better_plan {
        let won = 1.0 - better.iteration_ns as f64 / better.instead_of_ns.max(1) as f64;
        let _ = writeln!(
            out,
            "better: {}: {} ({} to {}) instead of {}, {:.1}% less",
            better.change,
            milliseconds(better.iteration_ns),
            milliseconds(better.low_ns),
            milliseconds(better.high_ns),
            milliseconds(better.instead_of_ns),
            won * 100.0,
        );
    }
    out
}

/// What is slow, in words.
fn place(finding: &Finding) -> String {
    let Place { dp_rank, stage, operation, from_stage, to_stage, device, from_device, to_device, .. } = &finding.place;
    let since = match (finding.place.iteration, finding.place.last_iteration) {
        (Some(first), Some(last)) => format!(" from iteration {first} to {last}"),
        (Some(first), None) => format!(" since iteration {first}"),
        (None, Some(last)) => format!(" up to iteration {last}"),
        (None, None) => String::new(),
    };
    let replica = dp_rank.map(|dp_rank| format!(" of dp rank {dp_rank}")).unwrap_or_default();
    let name = device.clone().or_else(|| stage.map(|stage| format!("stage {stage}"))).unwrap_or_default();
    let ends = |from: &dyn std::fmt::Display, to: &dyn std::fmt::Display| format!("the link from {from} to {to}");
    let what = match finding.kind {
        Kind::Worker if stage.is_none() && device.is_none() => "all workers".to_owned(),
        Kind::Worker => format!("the worker {name}"),
        Kind::Stage => format!("{name}, in all replicas"),
        Kind::Operation => format!("{} on {name}", operation.as_deref().unwrap_or("an operation")),
        Kind::Link => match (from_stage, to_stage, from_device, to_device) {
            (Some(from), Some(to), ..) => ends(&format!("stage {from}"), &format!("stage {to}")),
            (_, _, Some(from), Some(to)) => ends(from, to),
            _ => "a link".to_owned(),
        },
        Kind::Length => "uneven sequences: the longest microbatch".to_owned(),
    };
    format!("{what}{replica}{since}")
}
