//! `adaptis coordinator`: takes in samples, estimates, plans, commits.

use crate::signals::Stop;
use crate::{failure, files, keys, values};
use adaptis_coordinator::profiles::library::{self, Library};
use adaptis_coordinator::{CoordinatorError, Ended, Mode, Options, StoreError, profiles};
use anyhow::Result;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runs the coordinator.
///
/// It waits for the ranks that a job declares, follows their training, and, in mode adapt, changes their plan when that
/// pays. It can be killed and started again at any time: all that it decided is in the run folder, and training does not
/// wait for it. TERM ends it in order, with the report written.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis coordinator --dir run --mode adapt
  adaptis coordinator --dir run --mode adapt --store ~/.config/adaptis   # begins with what earlier runs measured

Pages: / for people, /status (JSON), /metrics, /livez, /readyz")]
pub struct Arguments {
    /// The run folder: store, report, plans
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Where ranks, agents and tools reach it
    #[arg(long, default_value = "tcp://127.0.0.1:29611", value_name = "ADDRESS")]
    listen: String,
    /// Where its pages are, or `none`
    #[arg(long, default_value = "127.0.0.1:29610", value_name = "HOST:PORT")]
    http: String,
    /// What it may do: observe (measure only), advise (also say what would be better), adapt (switch) [default: what the job
    /// asks for, else observe]
    #[arg(long, env = "ADAPTIS_MODE", value_enum)]
    mode: Option<ModeName>,
    /// Keep the first plan throughout: a run to compare with
    #[arg(long = "static")]
    keep: bool,
    /// Of the random choices
    #[arg(long, default_value_t = 1, value_parser = values::any_whole, allow_negative_numbers = true)]
    seed: u64,
    /// Longest time for one search
    #[arg(long, value_parser = values::some_time, allow_hyphen_values = true, default_value = "1s", value_name = "TIME")]
    search_time: Duration,
    /// Iterations that a gain is expected to last, at most
    #[arg(long, default_value_t = 1000, value_name = "ITERATIONS", value_parser = values::whole(1..=u64::MAX),
        allow_negative_numbers = true)]
    horizon: u64,
    /// Faults made on purpose, for the report: a JSON list of {"iteration", "text"}
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// Folder of keys, made by `adaptis keys`
    #[arg(long, env = "ADAPTIS_KEYS", value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Store of profiles, read and written. Read when all ranks are there: what earlier runs measured of this one's layers
    /// on its kinds of devices is where its estimate begins, with intervals as wide as runs differ, until its own samples
    /// tell better; what they did not measure is predicted from what they did. One that can't be read costs a warning.
    /// Written when the coordinator ends: what this run measured is kept for the next; without --store, and where devices
    /// are emulated, `adaptis profiles merge` can do it later
    #[arg(long, env = "ADAPTIS_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ModeName {
    Observe,
    Advise,
    Adapt,
}

pub fn run(arguments: Arguments) -> Result<()> {
    if let Some(path) = &arguments.faults {
        // Whether it can be read is wrong usage or not; what it says is the coordinator's to check. Before anyone listens
        // to signals: a FIFO to which nobody writes is left by them.
        files::text(path).map_err(|error| failure::usage(format!("--faults {error}")))?;
        if !std::fs::metadata(path).is_ok_and(|found| found.is_file()) {
            let path = path.display();
            return Err(failure::usage(format!("--faults {path}: it is read more than once; name a regular file")));
        }
    }
    let stop = Stop::listen_as_service()?;
    let dir = arguments.dir.clone();
    let mut options = Options::new(arguments.dir);
    options.security = keys::security(arguments.keys.as_deref(), "server")?;
    options.listen = arguments.listen;
    options.http = pages(&arguments.http, arguments.keys.is_some())?;
    options.is_mode_open = arguments.mode.is_none();
    options.mode = match arguments.mode {
        None | Some(ModeName::Observe) => Mode::Observe,
        Some(ModeName::Advise) => Mode::Advise,
        Some(ModeName::Adapt) => Mode::Adapt,
    };
    options.static_plan = arguments.keep;
    options.seed = arguments.seed;
    options.search_budget = arguments.search_time;
    options.horizon_iterations = arguments.horizon;
    options.faults = arguments.faults;
    let store = arguments.store.filter(|store| !store.as_os_str().is_empty());
    options.store.clone_from(&store);
    match adaptis_coordinator::run(options, stop.flag()).map_err(end)? {
        Ended::Finished => files::say("the run is finished and recorded"),
        Ended::Failed(reason) => files::say(&format!("the run failed: {reason}")),
        Ended::Stopped => files::say("stopped as asked; the run can go on with a new coordinator"),
    }
    if let Some(store) = store {
        keep_profiles(&dir, &store);
    }
    Ok(())
}

/// Keeps what the run measured for the next one. All of it is in the run's folder, so a failure costs nothing but words.
fn keep_profiles(dir: &Path, store: &Path) {
    // Their times are of a clock of their own, which nobody plans a job by unasked.
    if library::emulated(dir).is_some() {
        return;
    }
    let kept = library::of_run(dir).and_then(|account| Library::open(store)?.merge(&[account], profiles::now()));
    match kept {
        Ok(_) => files::say(&format!("the profiles are kept in {}", store.display())),
        Err(error) => files::say(&format!(
            "the profiles were not kept: {error}; `adaptis profiles merge --into {} {}` does it later",
            store.display(),
            dir.display()
        )),
    }
}

/// Where the pages are to be. They tell of the job; without keys they stay on this machine, as links do.
pub fn pages(address: &str, has_keys: bool) -> Result<Option<String>> {
    if address == "none" {
        return Ok(None);
    }
    let parts = address.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    let Some((host, _)) = parts else {
        return Err(failure::usage(format!("--http `{address}`: write HOST:PORT, as in 127.0.0.1:29610, or `none`")));
    };
    let host = host.trim_matches(['[', ']']);
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match has_keys || is_loopback {
        true => Ok(Some(address.to_owned())),
        false => Err(failure::usage(format!(
            "--http {address} can be reached from other machines and there are no keys: make some with `adaptis keys`, \
             or use 127.0.0.1"
        ))),
    }
}

fn end(error: CoordinatorError) -> anyhow::Error {
    use adaptis_link::Error as Link;
    match &error {
        CoordinatorError::Link(Link::BadAddress { .. } | Link::Unprotected { .. })
        | CoordinatorError::Store(StoreError::Foreign { .. } | StoreError::Version { .. })
        | CoordinatorError::Broken { source: StoreError::Damaged { .. } | StoreError::Contradictory(_), .. }
        | CoordinatorError::Faults { .. } => failure::usage(error),
        _ => failure::environment(error),
    }
}
