//! `adaptis profiles`: what layers cost on kinds of devices, kept for the next job.

mod diff;
mod export;
mod import;
mod list;
mod merge;
mod predict;
mod remove;
mod show;
mod sources;
pub mod store;
mod text;

use anyhow::Result;
use clap::Subcommand;

/// What layers cost on kinds of devices, kept for the next job.
///
/// A store of profiles is a folder; a run's folder and an export as JSON are read wherever a store is. Without --store it
/// is the one that ADAPTIS_STORE names, else the user's own in ~/.config/adaptis.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis profiles merge RUN                       # keep what a run measured
  adaptis profiles import OPT-30.A100-40.json --split-backward 0.5:0.5
  adaptis profiles list --kind a100-40g --signature attention
  adaptis profiles list --sources                  # which runs and files it comes from
  adaptis profiles remove OPT-30.A100-40.json      # what would go; --yes removes it
  adaptis profiles diff RUN-OF-MAY RUN-OF-JUNE     # what became slower
  adaptis profiles predict --from OPT-30.*.json --cells cells.json
  adaptis plan --job RUN --devices 4xgh-96,4xa100-40g --out plan.json")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

// What each does stands with its arguments.
#[derive(Subcommand)]
enum Command {
    List(list::Arguments),
    Show(show::Arguments),
    Diff(diff::Arguments),
    Merge(merge::Arguments),
    Import(import::Arguments),
    Remove(remove::Arguments),
    Export(export::Arguments),
    Predict(predict::Arguments),
}

pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::List(arguments) => list::run(arguments),
        Command::Show(arguments) => show::run(arguments),
        Command::Diff(arguments) => diff::run(arguments),
        Command::Merge(arguments) => merge::run(arguments),
        Command::Import(arguments) => import::run(arguments),
        Command::Remove(arguments) => remove::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Predict(arguments) => predict::run(arguments),
    }
}
