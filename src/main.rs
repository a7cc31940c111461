//! The `adaptis` command: one file per subcommand, no logic of its own beyond putting the parts together.

// They panic where nobody listens or the disk is full; `files::print` and `files::say` do not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod agent;
mod audit;
mod bench;
mod coordinator;
mod demo;
mod doctor;
mod duration;
mod explain;
mod export;
mod failure;
mod files;
mod job;
mod keys;
mod launch;
mod plan;
mod profiles;
mod rank;
mod replay;
mod run;
mod signals;
mod simulate;
mod status;
mod values;

use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsStr;
use std::process::ExitCode;
use tracing::Level;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// Re-plans pipeline-parallel training while it runs.
///
/// Agents measure what each layer and link really costs, a coordinator searches for a better partition, placement,
/// schedule and recomputation, and the ranks switch to it at an iteration boundary without a restart.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Start here:
  adaptis demo                                   the whole loop on this machine, in about two minutes
  adaptis demo --fault 30:slowlink:gpu1-gpu2:50  another fault
  adaptis run -- torchrun --nproc-per-node 4 train.py   beside a PyTorch job
  adaptis plan problem.json --out plan.json      plan once, from a file
  adaptis simulate problem.json plan.json --svg timeline.svg
  adaptis replay trace.parquet                   what is slow in a recorded job
  adaptis doctor                                 what is missing on this machine, if anything

The log goes to standard error; ADAPTIS_LOG says how much of it: warn, debug, adaptis_coordinator=debug,info, off.

Exit codes: 0 done; 1 a negative answer; 2 wrong usage or a file that is not of its format; 3 trouble with
the environment (port, permission, unreachable); 128 + signal when interrupted.";

#[derive(Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Run(run::Arguments),
    Coordinator(coordinator::Arguments),
    Agent(agent::Arguments),
    Rank(rank::Arguments),
    Plan(plan::Arguments),
    Audit(audit::Arguments),
    Simulate(simulate::Arguments),
    Export(export::Arguments),
    Profiles(profiles::Arguments),
    Replay(replay::Arguments),
    Bench(bench::Arguments),
    Keys(keys::Arguments),
    Status(status::Arguments),
    // Its own words, which a comment of documentation here would hide.
    Doctor(doctor::Arguments),
}

/// Variables stand for options that are not given; one that is set to nothing is as good as none.
fn without_empty(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let arguments = command.mut_args(|argument| match argument.get_env() {
        Some(name) if is_empty(name) => argument.env(Resettable::Reset),
        _ => argument,
    });
    arguments.mut_subcommands(without_empty)
}

fn main() -> ExitCode {
    let matches = without_empty(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    signals::outlive_limits();
    start_log();
    let ended = match cli.command {
        Command::Demo(arguments) => demo::run(arguments),
        Command::Run(arguments) => run::run(arguments),
        Command::Coordinator(arguments) => coordinator::run(arguments),
        Command::Agent(arguments) => agent::run(arguments),
        Command::Rank(arguments) => rank::run(arguments),
        Command::Plan(arguments) => plan::run(arguments),
        Command::Audit(arguments) => audit::run(arguments),
        Command::Simulate(arguments) => simulate::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Profiles(arguments) => profiles::run(arguments),
        Command::Replay(arguments) => replay::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Keys(arguments) => keys::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !failure::is_said(&error) {
                files::say(&format!("adaptis: {error:#}"));
            }
            ExitCode::from(failure::code(&error))
        }
    }
}

const LOG: &str = "ADAPTIS_LOG";

fn start_log() {
    let asked = std::env::var(LOG).unwrap_or_default();
    let (targets, refused) = match asked.parse::<Targets>() {
        Ok(targets) if !asked.trim().is_empty() => (targets, None),
        Ok(_) => (Targets::new().with_default(Level::INFO), None),
        Err(error) => (Targets::new().with_default(Level::INFO), Some(error)),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // Where standard error is closed or full, a line is lost; to say so there would be a panic.
        .log_internal_errors(false);
    tracing_subscriber::registry().with(lines).with(targets).init();
    if let Some(error) = refused {
        tracing::warn!("{LOG}={asked}: {error}; info is used. It takes a level, or target=level, divided by commas");
    }
}
