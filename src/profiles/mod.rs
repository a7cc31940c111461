//! `adaptis profiles`: what layers cost on kinds of devices, kept for the next job.

mod predict;

use anyhow::Result;
use clap::Subcommand;

/// What layers cost on kinds of devices, kept for the next job.
#[derive(clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Example:
  adaptis profiles predict --from OPT-30.*.json --cells cells.json"
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What layers cost where they were never measured
    Predict(predict::Arguments),
}

pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Predict(arguments) => predict::run(arguments),
    }
}
