//! `adaptis demo`: the whole loop on one machine.
//!
//! ```text
//!              demo (this process)
//!        starts, watches, disturbs, ends
//!        |              |              |
//!   coordinator   agent x devices   rank x devices
//! ```
//!
//! It only launches: everything that is shown was done by the parts, which talk over ZeroMQ as they would on a cluster.

mod display;
mod prepare;
mod session;
mod silence;

use crate::launch::rings::Rings;
use crate::launch::summary;
use crate::signals::Stop;
use crate::{failure, files, values};
use adaptis_executor::launcher::Fault;
use adaptis_executor::preset::model::Preset;
use anyhow::{Context, Result};
use display::Display;
use session::{Look, Session, Setup};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Those of a demo that names none.
const DEVICES: &str = "2xh100-80g,2xa100-40g";

/// Trains a small model on an emulated cluster and re-plans it while it runs.
///
/// One coordinator and, for each device, a rank and an agent run as real processes. The ranks train a real language
/// model on real text; each is paced to the speed, memory and links of its GPU. A GPU is throttled at iteration 40: watch
/// the plan change.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis demo
  adaptis demo --static                              # the control: same seed and faults, first plan throughout
  adaptis demo --devices 4xa100-40g,1xl40s-48g --model llama
  adaptis demo --fault 30:slowlink:gpu1-gpu2:50 --fault 70:throttle:gpu0:1.5
  adaptis demo --fault 50:kill:coordinator           # training goes on

Faults, given as ITERATION:WHAT (given ones replace the default one, `none` runs undisturbed):
  40:throttle:gpu1:1.8      gpu1 takes 1.8 times as long from iteration 40 on; 1.0 ends it
  40:slowlink:gpu0-gpu1:4   the link between two devices, both ways, takes 4 times as long
  75:kill:coordinator       and it is started again
  20:kill:agent:gpu0        likewise
  50:pause:gpu3:10s         the rank's process stands still, 25 s at most
  30:kill:gpu2              a rank dies; this version stops there")]
pub struct Arguments {
    /// Devices as COUNTxKIND,... or a TOML file; 2 to 8
    #[arg(long, default_value = DEVICES, allow_hyphen_values = true)]
    devices: String,
    /// Whose layers are emulated: gemma, deepseek, nemotron or llama
    #[arg(long, default_value = "nemotron")]
    model: String,
    /// How many iterations to train
    #[arg(long, default_value_t = 120, value_parser = values::whole(1..=1_000_000), allow_negative_numbers = true)]
    iterations: u64,
    /// Of the weights, the batches, the noise and the search
    #[arg(long, default_value_t = 1, value_parser = values::any_whole, allow_negative_numbers = true)]
    seed: u64,
    /// Keep the first plan throughout
    #[arg(long = "static")]
    keep: bool,
    /// What goes wrong, and when; may be given several times, see below
    #[arg(long, value_name = "AT:WHAT|none", allow_hyphen_values = true)]
    fault: Vec<String>,
    /// Independent noise of every operation, as a share of its time (heavy tails)
    #[arg(long, default_value = "0", value_name = "SHARE", value_parser = values::share, allow_hyphen_values = true)]
    noise: f64,
    /// How much sequences differ in length from microbatch to microbatch: standard deviation of the logarithm. Works take
    /// longer or shorter by it; what is trained on stays the same, bit for bit
    #[arg(long, default_value = "0", value_name = "DEVIATION", value_parser = values::share, allow_hyphen_values = true)]
    lengths: f64,
    /// Text to train on; the project's own sources and documents without it
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The run folder; must not hold another run
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// At the end print the report's path and key figures as JSON
    #[arg(long)]
    json: bool,
}

/// The fault of a demo that names none.
const DEFAULT_FAULT: &str = "40:throttle:gpu1:1.8";
/// How often the display and the children are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub fn run(arguments: Arguments) -> Result<()> {
    let preset = Preset::named(&arguments.model).ok_or_else(|| {
        let known = Preset::NAMES.map(|(name, _)| name).join(", ");
        failure::usage(format!("--model `{}` is unknown; there are {known}", arguments.model))
    })?;
    let cluster = prepare::cluster(&arguments.devices)?;
    let devices: Vec<String> = cluster.machines.iter().map(|machine| machine.name.clone()).collect();
    let faults = faults(&arguments, &devices)?;
    let text = prepare::text(arguments.text.as_deref())?;
    // Only now: a file that never ends, a FIFO say, is left by the signals that nobody listens to yet.
    let stop = Stop::listen()?;
    let dir = files::unused_folder(arguments.out.as_deref(), &arguments.model)?;
    files::say(&format!("planning the start: {} layers on {}", arguments.model, arguments.devices));
    let stage = prepare::stage(preset, &cluster, arguments.seed, &stop)?;
    Rings::check(devices.len())?;
    // Only now: what cannot be run leaves no folder behind.
    let dir = lay_out(&dir, &text)?;
    let rings = Rings::make(&dir.join("rings"))?;
    let emulation = stage.emulation(&arguments, &dir, &faults);
    files::write(&dir.join("emulation.json"), emulation.write().as_bytes())?;
    files::write(&dir.join("faults.json"), faults_json(&faults).as_bytes())?;

    let setup = Setup {
        dir: dir.clone(),
        rings,
        devices: devices.clone(),
        iterations: arguments.iterations,
        coordinator: coordinator_arguments(&arguments, &dir),
        faults: faults.clone(),
    };
    let mut session = Session::start(setup)?;
    let mut display = Display::new(devices.len(), arguments.iterations);
    display.say(&format!("start plan: {}; {}", stage.start_text, stage.scale_text()));
    display.say(&format!("page: {}/   run folder: {}", session.page, dir.display()));
    let ended = watch(&mut session, &mut display, &stop);
    display.end();
    let reported = ended.and_then(|()| session.report());
    let reached = session.step();
    session.end();
    let truth = files::write(&dir.join("truth.json"), stage.truth_after(&faults, reached).write().as_bytes());
    // The first trouble counts: what comes after may only follow from it.
    reported.and(truth)?;
    summary::finish(&dir, arguments.json)
}

fn watch(session: &mut Session, display: &mut Display, stop: &Stop) -> Result<()> {
    loop {
        if let Some(signal) = stop.asked() {
            display.end();
            files::say("ending: the parts are told to stop");
            return Err(failure::Failure::Interrupted(signal).into());
        }
        let step = session.step();
        match session.look(step)? {
            Look::Finished => return Ok(()),
            Look::Running => {
                session.notices().for_each(|notice| display.say(&notice));
                display.show(&session.status, step, session.coordinator_away());
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn faults(arguments: &Arguments, devices: &[String]) -> Result<Vec<Fault>> {
    let texts: Vec<&str> = match arguments.fault.iter().map(String::as_str).collect::<Vec<_>>() {
        none if none.is_empty() => vec![DEFAULT_FAULT],
        given if given.contains(&"none") && given.len() > 1 => {
            return Err(failure::usage("--fault none stands alone: it means that there are no others"));
        }
        given if given == ["none"] => Vec::new(),
        given => given,
    };
    let is_default = arguments.fault.is_empty();
    let mut faults = Vec::new();
    for text in texts {
        let fault = Fault::read(text, devices).map_err(failure::usage)?;
        match fault.check(devices, arguments.iterations) {
            // A short run, or other names, and nobody asked for this fault.
            Err(_) if is_default => {}
            Err(error) => return Err(failure::usage(error)),
            Ok(()) => faults.push(fault),
        }
    }
    faults.sort_by_key(|fault| fault.iteration);
    Ok(faults)
}

/// As the report has it.
fn faults_json(faults: &[Fault]) -> String {
    let rows: Vec<_> = faults
        .iter()
        .map(|fault| {
            let text = fault.to_string();
            let what = text.split_once(':').map_or("", |(_, what)| what);
            serde_json::json!({ "iteration": fault.iteration, "text": what })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::from(rows))
}

/// Makes the run folder with the files and folders that the parts need; answers its full path.
fn lay_out(dir: &Path, text: &[u8]) -> Result<PathBuf> {
    let fail = |error: std::io::Error| failure::environment(format!("--out {}: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(fail)?;
    // A link that was followed may lead to a path that no file of ours can hold.
    let full = dir.canonicalize().map_err(fail)?;
    let dir = if full.to_str().is_some() { full } else { std::path::absolute(dir).map_err(fail)? };
    // The lock of two demos on one folder: whoever makes `logs` has it.
    std::fs::create_dir(dir.join("logs")).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            failure::usage(format!("--out {}: another demo has taken it; name another folder", dir.display()))
        }
        _ => fail(error),
    })?;
    files::write(&dir.join("text.bin"), text)?;
    for folder in ["plans", "spool"] {
        std::fs::create_dir_all(dir.join(folder)).context("the run folder")?;
    }
    Ok(dir)
}

fn coordinator_arguments(arguments: &Arguments, dir: &Path) -> Vec<String> {
    let mut given = vec!["--seed".to_owned(), arguments.seed.to_string()];
    given.extend(["--faults".into(), dir.join("faults.json").to_string_lossy().into_owned()]);
    given.extend(["--mode".into(), "adapt".into()]);
    if arguments.keep {
        given.push("--static".into());
    }
    given
}
