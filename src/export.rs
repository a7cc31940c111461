//! `adaptis export`: a plan in the format of another tool.

use crate::{failure, files, simulate};
use adaptis_planner::export::{perfetto, svg};
use anyhow::Result;
use std::path::PathBuf;

/// Writes a plan in the format of another tool.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  adaptis export problem.json plan.json --to perfetto --out trace.json")]
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
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Target {
    /// Chrome trace events, for ui.perfetto.dev
    Perfetto,
    /// A picture of the timeline
    Svg,
}

pub fn run(arguments: Arguments) -> Result<()> {
    files::distinct(&[
        ("PROBLEM", Some(&arguments.problem)),
        ("PLAN", Some(&arguments.plan)),
        ("--out", arguments.out.as_deref()),
    ])?;
    let problem = files::problem(&arguments.problem)?;
    let plan = files::plan(&arguments.plan)?;
    let timeline = adaptis_planner::simulate::simulate(&problem, &plan)
        .map_err(|error| failure::negative(format!("{}: {error}", arguments.plan.display())))?;
    let panels = simulate::panels(&problem, &plan, &timeline);
    let text = match arguments.to {
        Target::Perfetto => perfetto::write(&panels),
        Target::Svg => svg::draw("Simulated iteration", &panels),
    };
    match arguments.out {
        Some(path) => files::write(&path, text.as_bytes()),
        None => {
            files::print(&text)?;
            Ok(())
        }
    }
}
