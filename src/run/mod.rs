//! `adaptis run`: coordinator and agents beside a training command.
//!
//! ```text
//!   adaptis run -- COMMAND
//!        |            \--> COMMAND, with ADAPTIS_COORDINATOR and ADAPTIS_RINGS set; its ranks make rings
//!        |--> coordinator
//!        \--> an agent for each ring that appears
//! ```
//!
//! 1. The command is never failed, held up or ended for the sake of what runs beside it.
//! 2. Signals go on to the command, and its exit code is ours.
//!
//! Left out on purpose: what the command's ranks tell the coordinator (the Python package does that).

mod beside;
mod command;

use crate::coordinator::pages;
use crate::launch::summary;
use crate::{failure, files, keys, values};
use adaptis_link::{Client, Error as LinkError, Limits, Security, Server};
use anyhow::Result;
use beside::{Beside, Setup};
use clap::ValueEnum;
use command::Child;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// Runs a training command with a coordinator and agents beside it.
///
/// The ranks of the command that use the Python package find the coordinator by themselves. What `adaptis.Schedule` runs is
/// measured and, in mode adapt, re-planned while it runs; what `adaptis.observe` is given is measured, and so are, in a
/// script that knows nothing of Adaptis, the stages of torch.distributed.pipelining, else the steps of torch's optimizers.
/// Signals go on to the command, its exit code is ours, and nothing that happens to coordinator or agents fails it. At the
/// end a summary says what was measured and decided; the run folder keeps it all.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis run -- torchrun --nproc-per-node 4 train.py
  adaptis run --mode adapt --out runs/gpt -- torchrun --nproc-per-node 4 train.py --steps 1000

On several machines start it on each: with a coordinator that the others reach on one of them, and with the address of
that coordinator on the others:
  adaptis run --listen tcp://10.0.0.1:29611 --keys cluster-keys -- torchrun ...
  adaptis run --coordinator tcp://10.0.0.1:29611 --keys cluster-keys -- torchrun ...")]
pub struct Arguments {
    /// What the coordinator may do: observe (measure only), advise (also say what would be better), adapt (switch) [default:
    /// what the script asks for by `adaptis.Schedule(..., mode="adapt")`, else observe]
    #[arg(long, env = "ADAPTIS_MODE", value_enum)]
    mode: Option<ModeName>,
    /// The run folder; must not hold another run [default: runs/run-TIME-PID]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where the coordinator is to be reached [default: a free port of this machine alone]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "coordinator")]
    listen: Option<String>,
    /// Where its pages are to be, or `none` [default: a free port of this machine alone]
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "coordinator")]
    http: Option<String>,
    /// The coordinator that runs on another machine: only agents are started here
    #[arg(long, env = "ADAPTIS_COORDINATOR", value_name = "ADDRESS")]
    coordinator: Option<String>,
    /// Folder of keys, made by `adaptis keys`
    #[arg(long, env = "ADAPTIS_KEYS", value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Store of profiles, read when the run begins and written when it ends
    #[arg(long, env = "ADAPTIS_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    /// Leave the command's Pythons as they are. Without this, each finds a module in its PYTHONPATH that has stages of
    /// torch.distributed.pipelining or steps of optimizers measured, where the package `adaptis` is installed
    #[arg(long)]
    no_python: bool,
    /// Keep the first plan throughout: a run to compare with
    #[arg(long = "static")]
    keep: bool,
    /// Of the search
    #[arg(long, default_value_t = 1, value_parser = values::any_whole, allow_negative_numbers = true)]
    seed: u64,
    /// Longest time for one search
    #[arg(long, value_parser = values::some_time, allow_hyphen_values = true, default_value = "1s", value_name = "TIME")]
    search_time: Duration,
    /// The training command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeName {
    Observe,
    Advise,
    Adapt,
}

/// Whether there is such a mode.
pub fn is_mode(name: &str) -> bool {
    ModeName::from_str(name, false).is_ok()
}

const SITE: &str = include_str!("sitecustomize.py");
/// How often the parts are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub fn run(arguments: Arguments) -> Result<()> {
    // An option that there is not stands where the command begins.
    if let Some(word) =
        arguments.command.first().map(|word| word.to_string_lossy()).filter(|word| word.starts_with('-'))
    {
        let why = format!("{word}: no option of `adaptis run`, and no command; `adaptis run --help` lists its options");
        return Err(failure::usage(why));
    }
    // Wrong keys are wrong usage: told before anything starts. Whoever starts the coordinator has its keys.
    let others = arguments.coordinator.clone().filter(|address| !address.is_empty());
    let security = match others {
        None => keys::security(arguments.keys.as_deref(), "server")?,
        Some(_) => Security::Open,
    };
    if let (Some(store), None) = (&arguments.store, &others) {
        usable(store)?;
    }
    let dir = files::unused_folder(arguments.out.as_deref(), "run")?;
    // It will stand in a list of paths that a colon separates.
    let full = std::path::absolute(&dir).unwrap_or_else(|_| dir.clone());
    if !arguments.no_python && full.to_string_lossy().contains(':') {
        let why = "a colon in it, which ends a path of PYTHONPATH: name another folder, or give --no-python";
        return Err(failure::usage(format!("--out {}: {why}", dir.display())));
    }
    check_addresses(&arguments, &security)?;
    match prepared(&arguments, &dir, others, security) {
        Ok(run) => run.through(&arguments.command),
        // What was named is wrong usage where it can't be.
        Err(Unprepared::Named(error)) => Err(error),
        Err(Unprepared::Environment(error)) => {
            files::say(&format!("adaptis: nothing is measured: {error:#}"));
            unmeasured(&arguments.command)
        }
    }
}

/// Why a run can't be measured.
enum Unprepared {
    /// A folder that was named can't be made.
    Named(anyhow::Error),
    /// The command runs all the same.
    Environment(anyhow::Error),
}

impl From<anyhow::Error> for Unprepared {
    fn from(error: anyhow::Error) -> Self {
        Unprepared::Environment(error)
    }
}

/// What a command is run with.
struct Run {
    dir: PathBuf,
    beside: Beside,
    variables: Vec<(&'static str, OsString)>,
    notices: Vec<String>,
}

fn prepared(arguments: &Arguments, dir: &Path, others: Option<String>, security: Security) -> Result<Run, Unprepared> {
    let mut notices = Vec::new();
    let dir = match (lay_out(dir), &arguments.out) {
        (Ok(dir), _) => dir,
        (Err(error), Some(out)) => {
            return Err(Unprepared::Named(failure::environment(format!("--out {}: {error}", out.display()))));
        }
        (Err(error), None) => {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let other = std::env::temp_dir().join(format!("adaptis-{name}"));
            let why = format!("{}: {error}; --out names another folder", dir.display());
            let made = lay_out(&other).map_err(|_| failure::environment(&why))?;
            notices.push(why);
            made
        }
    };
    if others.is_some() {
        let whence = "--coordinator (ADAPTIS_COORDINATOR)";
        notices
            .push(format!("none is started here, as {whence} names one: its mode counts, and its run has the report"));
    }
    let run = run_name(&dir);
    let setup = Setup {
        dir: dir.clone(),
        coordinator: others,
        listen: arguments.listen.clone(),
        http: arguments.http.clone(),
        keys: arguments.keys.clone(),
        security,
        options: coordinator_options(arguments),
    };
    let beside = Beside::start(setup)?;
    let mut variables: Vec<(&'static str, OsString)> =
        vec![("ADAPTIS_COORDINATOR", beside.address().into()), ("ADAPTIS_RINGS", beside.rings().into())];
    if let Some(mode) = mode_of(arguments) {
        variables.push(("ADAPTIS_MODE", mode.into()));
    }
    if !arguments.no_python {
        variables.push(("PYTHONPATH", python_path(&dir)?));
    }
    if std::env::var_os("ADAPTIS_RUN").is_none() {
        variables.push(("ADAPTIS_RUN", run.into()));
    }
    if let Some(keys) = &arguments.keys {
        variables.push(("ADAPTIS_KEYS", std::path::absolute(keys).map_err(anyhow::Error::from)?.into()));
    }
    Ok(Run { dir, beside, variables, notices })
}

impl Run {
    /// Runs the command to its end.
    fn through(self, command: &[OsString]) -> Result<()> {
        let Run { dir, mut beside, variables, notices } = self;
        let mut child = Child::start(command, &variables)?;
        let tell = |notices: &[String]| notices.iter().for_each(|notice| files::say(&format!("adaptis: {notice}")));
        files::say(&format!("adaptis: {}run folder: {}", beside.page(), dir.display()));
        tell(&notices);
        let status = loop {
            if let Some(status) = child.look() {
                break status;
            }
            tell(&beside.look());
            std::thread::sleep(LOOK_EVERY);
        };
        let (notices, is_reported) = beside.end(command::code(status) != 0, &mut || child.is_hurried());
        tell(&notices);
        if is_reported && let Err(error) = summary::finish(&dir, false) {
            files::say(&format!("adaptis: the summary is not whole: {error:#}"));
        }
        ended(status)
    }
}

/// Runs the command with nothing beside it.
fn unmeasured(command: &[OsString]) -> Result<()> {
    let mut child = Child::start(command, &[])?;
    loop {
        if let Some(status) = child.look() {
            return ended(status);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn ended(status: ExitStatus) -> Result<()> {
    match command::code(status) {
        0 => Ok(()),
        code => {
            files::say(&format!("adaptis: the command ended with exit code {code}"));
            Err(failure::Failure::Wrapped(code).into())
        }
    }
}

/// With a folder in front, from which each Python that is started learns to measure stages of
/// torch.distributed.pipelining and steps of optimizers.
fn python_path(dir: &Path) -> Result<OsString> {
    let own = dir.join("python");
    std::fs::create_dir(&own).map_err(|error| failure::environment(format!("{}: {error}", own.display())))?;
    files::write(&own.join("sitecustomize.py"), SITE.as_bytes())?;
    let before = std::env::var_os("PYTHONPATH").filter(|path| !path.is_empty());
    let paths = std::iter::once(own.clone()).chain(before.iter().flat_map(std::env::split_paths));
    std::env::join_paths(paths).map_err(|error| failure::usage(format!("--out {}: {error}", own.display())))
}

/// What was given to listen at or to reach is wrong usage if it never can be: a command that runs for days shall not do so
/// unmeasured. What is only in use may be free in a moment, and fails no command.
fn check_addresses(arguments: &Arguments, security: &Security) -> Result<()> {
    let Arguments { listen, http, coordinator, keys, .. } = arguments;
    if let Some(address) = listen {
        match Server::bind(address, security, Limits::default()) {
            Ok(_) | Err(LinkError::AddressInUse { .. }) => {}
            Err(error @ LinkError::AddressDenied { .. }) => {
                return Err(failure::environment(format!("--listen {error}")));
            }
            Err(error) => return Err(failure::usage(format!("--listen {error}"))),
        }
        // Ranks are told of it: a server may leave open what a client can't.
        Client::connect(address, "run/check", security, Limits::default())
            .map_err(|error| failure::usage(format!("--listen {error}")))?;
    }
    http.as_deref().map(|http| pages(http, keys.is_some())).transpose()?;
    if let Some(address) = coordinator.as_deref().filter(|address| !address.is_empty()) {
        // Only what it is called: it may be up later.
        Client::connect(address, "run/check", &Security::Open, Limits::default())
            .map_err(|error| failure::usage(format!("--coordinator (ADAPTIS_COORDINATOR) {error}")))?;
    }
    Ok(())
}

/// What is measured is kept at the run's end: that it can't be is told before.
fn usable(store: &Path) -> Result<()> {
    let fail = |error: std::io::Error| failure::usage(format!("--store {}: {error}", store.display()));
    std::fs::create_dir_all(store).map_err(fail)?;
    tempfile::tempfile_in(store).map(drop).map_err(fail)
}

fn lay_out(dir: &Path) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let dir = dir.canonicalize()?;
    ["logs", "plans", "spool"].into_iter().try_for_each(|folder| std::fs::create_dir(dir.join(folder)))?;
    Ok(dir)
}

/// The run's name: that of its folder.
fn run_name(dir: &Path) -> String {
    std::env::var("SLURM_JOB_ID").unwrap_or_else(|_| {
        dir.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned())
    })
}

/// The mode, if one was given.
fn mode_of(arguments: &Arguments) -> Option<String> {
    Some(arguments.mode?.to_possible_value()?.get_name().to_owned())
}

fn coordinator_options(arguments: &Arguments) -> Vec<String> {
    let mut given = vec!["--seed".to_owned(), arguments.seed.to_string()];
    if let Some(mode) = mode_of(arguments) {
        given.extend(["--mode".into(), mode]);
    }
    given.extend(["--search-time".into(), format!("{}ms", arguments.search_time.as_millis().max(1))]);
    if arguments.keep {
        given.push("--static".into());
    }
    if let Some(store) = &arguments.store {
        given.extend(["--store".into(), store.to_string_lossy().into_owned()]);
    }
    given
}
