//! `adaptis export`: a plan in the format of another tool.

use crate::{failure, files, simulate};
use adaptis_plan::{Plan, Problem};
use adaptis_planner::export::{Export, File, megatron, perfetto, svg, torch, torchtitan};
use anyhow::Result;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Writes a plan in the format of another tool.
///
/// torch: the compute-only CSV that torch.distributed.pipelining loads, one row per device. torchtitan: a Python
/// function that sets a Trainer.Config, and its schedule as CSV beside it. megatron: Megatron-LM's arguments for layout
/// and recomputation. What a tool cannot express is refused by the field of the plan, with exit code 1; what it merely
/// does otherwise is told on standard error. perfetto and svg draw the simulated iteration.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis export problem.json plan.json --to torch --out schedule.csv
      then, in the training script:
      schedule = _PipelineScheduleRuntime(stages, microbatches, loss_fn)
      schedule._load_csv(\"schedule.csv\")
  adaptis export problem.json plan.json --to megatron > arguments.txt
  adaptis export problem.json plan.json --to perfetto --out trace.json")]
pub struct Arguments {
    /// The problem, adaptis.problem/1
    problem: PathBuf,
    /// The plan, adaptis.plan/1
    plan: PathBuf,
    /// The format
    #[arg(long, value_enum)]
    to: Target,
    /// Where to; standard output without it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print {"files": [{"name", "text" or, with --out, "path"}], "ranks": [device of each], "warnings": [..]}
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Target {
    /// CSV for torch.distributed.pipelining
    Torch,
    /// Configuration and schedule for torchtitan
    Torchtitan,
    /// Arguments for Megatron-LM
    Megatron,
    /// Chrome trace events, for ui.perfetto.dev
    Perfetto,
    /// A picture of the timeline
    Svg,
}

impl Target {
    /// What the file is called where `--out` does not say.
    fn file_name(self) -> &'static str {
        match self {
            Target::Torch => "schedule.csv",
            Target::Torchtitan => "parallelism.py",
            Target::Megatron => "arguments.txt",
            Target::Perfetto => "trace.json",
            Target::Svg => "timeline.svg",
        }
    }
}

pub fn run(arguments: Arguments) -> Result<()> {
    files::distinct(&[
        ("PROBLEM", Some(&arguments.problem)),
        ("PLAN", Some(&arguments.plan)),
        ("--out", arguments.out.as_deref()),
    ])?;
    let problem = files::problem(&arguments.problem)?;
    let plan = files::plan(&arguments.plan)?;
    let name = match arguments.out.as_deref().map(Path::file_name) {
        Some(None) => return Err(failure::usage("--out: not a file's name")),
        Some(Some(name)) => name.to_string_lossy().into_owned(),
        None => arguments.to.file_name().to_owned(),
    };
    let export = exported(&problem, &plan, arguments.to, &name)
        .map_err(|refused| failure::negative(format!("{}: {refused}", arguments.plan.display())))?;
    for warning in &export.warnings {
        files::say(&format!("note: {warning}"));
    }
    let paths = arguments
        .out
        .as_deref()
        .map_or_else(Vec::new, |out| export.files.iter().map(|file| out.with_file_name(&file.name)).collect());
    check(&arguments, &paths)?;
    for (path, file) in paths.iter().zip(&export.files) {
        files::write(path, file.text.as_bytes())?;
    }
    match (arguments.json, &arguments.out) {
        (true, _) => files::print(&format!("{:#}\n", answer(&plan, &export, &paths))),
        (false, Some(_)) if !export.ranks.is_empty() => files::print(&stages(&problem, &plan, &export)),
        (false, Some(_)) => Ok(()),
        (false, None) => {
            if let Some(beside) = export.files.get(1) {
                files::say(&format!("note: {} is not printed; --out FILE writes it beside FILE", beside.name));
            }
            files::print(&export.files[0].text)
        }
    }
}

/// Whether all files can be written, what stands beside `--out` included, before one is.
fn check(arguments: &Arguments, paths: &[PathBuf]) -> Result<()> {
    let mut named = vec![("PROBLEM", Some(arguments.problem.as_path())), ("PLAN", Some(arguments.plan.as_path()))];
    let names = std::iter::once("--out").chain(std::iter::repeat("the file beside --out,"));
    named.extend(names.zip(paths.iter().map(|path| Some(path.as_path()))));
    files::distinct(&named)?;
    if let ([out, beside, ..], true) =
        (paths, paths.first().is_some_and(|out| out.exists() && !out.is_file() && !out.is_dir()))
    {
        return Err(failure::usage(format!(
            "--out {}: {} would stand beside it, so it must be a plain file, or none yet",
            out.display(),
            beside.display()
        )));
    }
    paths.iter().try_for_each(|path| files::check_writable(path))
}

fn exported(problem: &Problem, plan: &Plan, to: Target, name: &str) -> Result<Export, Box<dyn std::error::Error>> {
    let picture = |draw: fn(&[_]) -> String| -> Result<Export, Box<dyn std::error::Error>> {
        let timeline = adaptis_planner::simulate::simulate(problem, plan)?;
        let text = draw(&simulate::panels(problem, plan, &timeline));
        Ok(Export { files: vec![File { name: name.to_owned(), text }], ranks: Vec::new(), warnings: Vec::new() })
    };
    match to {
        Target::Torch => Ok(torch::write(problem, plan, name)?),
        Target::Torchtitan => {
            let mut beside = Path::new(name).with_extension("csv").to_string_lossy().into_owned();
            if beside == name {
                beside.push_str(".schedule");
            }
            Ok(torchtitan::write(problem, plan, name, &beside)?)
        }
        Target::Megatron => Ok(megatron::write(problem, plan, name)?),
        Target::Perfetto => picture(perfetto::write),
        Target::Svg => picture(|panels| svg::draw("Simulated iteration", panels)),
    }
}

fn answer(plan: &Plan, export: &Export, paths: &[PathBuf]) -> serde_json::Value {
    let file = |(index, file): (usize, &File)| match paths.get(index) {
        Some(path) => serde_json::json!({ "name": file.name, "path": path }),
        None => serde_json::json!({ "name": file.name, "text": file.text }),
    };
    let warnings: Vec<String> = export.warnings.iter().map(ToString::to_string).collect();
    serde_json::json!({
        "files": export.files.iter().enumerate().map(file).collect::<Vec<_>>(),
        "ranks": export.ranks.iter().map(|&device| &plan.devices[device]).collect::<Vec<_>>(),
        "warnings": warnings,
    })
}

/// Which rank builds which stages: what a schedule file does not say.
fn stages(problem: &Problem, plan: &Plan, export: &Export) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{:<5} {:<12} {:<6} layers", "rank", "device", "stage");
    for (rank, &device) in export.ranks.iter().enumerate() {
        for (stage, of) in plan.stages.iter().enumerate().filter(|(_, of)| of.device as usize == device) {
            let layer = |layer: usize| &problem.layers[layer].name;
            let range = of.range();
            let (first, last) = (layer(range.start), layer(range.end - 1));
            let layers = if range.len() == 1 { first.clone() } else { format!("{first} to {last}") };
            let again = match of.recompute.len() {
                0 => String::new(),
                count if count == range.len() => ", all recomputed".to_owned(),
                _ => {
                    let names: Vec<&str> = of.recompute.iter().map(|&again| layer(again as usize).as_str()).collect();
                    format!(", recomputed: {}", names.join(" "))
                }
            };
            let _ = writeln!(out, "{rank:<5} {:<12} {stage:<6} {layers}{again}", plan.devices[device]);
        }
    }
    out
}
