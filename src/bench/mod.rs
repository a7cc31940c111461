//! `adaptis bench`: what this build reaches on this machine, measured against known figures.

mod chart;
mod measure;
mod planner;
mod problems;
mod scale;
mod table;

use anyhow::Result;

/// Measures this build on this machine.
#[derive(clap::Args)]
#[command(arg_required_else_help = true, after_help = "Example:\n  adaptis bench planner --time 1s")]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Quality and time of the search against the named schedules, on a set of problems
    Planner(planner::Arguments),
}

pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.what {
        What::Planner(arguments) => planner::run(arguments),
    }
}
