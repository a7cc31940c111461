//! `adaptis doctor`: looks whether this machine has what a job needs, and says what to do where it has not.
//!
//! One file a subject, each of which gives findings and decides what is well: `ok`, worth a `note`, or to be fixed. What
//! is not there and not needed, as a GPU on a coordinator's host, is well and said.

mod clock;
mod drivers;
mod memory;
mod ports;
mod python;
mod ranks;
mod store;
mod variables;

use crate::{failure, files, values};
use adaptis_agent::inventory;
use adaptis_executor::preset::card::kind_of;
use anyhow::Result;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Looks whether this machine has what a job needs, and says what to do where it has not.
///
/// It changes nothing. A line for each thing: ok, note (worth knowing, may be meant so), or fix, with what to do. Run it
/// on each machine of a job, as the user and with the environment of the job: torchrun's or Slurm's variables are looked
/// at, too.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis doctor
  adaptis doctor --json | jq '.findings[] | select(.verdict == \"fix\")'
  srun --ntasks-per-node 1 adaptis doctor        # on every machine of a Slurm job

Exit codes: 0 nothing to fix; 1 something is to be fixed.")]
pub struct Arguments {
    /// Where a coordinator's pages would be
    #[arg(long, default_value = "127.0.0.1:29610", value_name = "HOST:PORT")]
    http: String,
    /// Where a coordinator would listen [default: the one that ADAPTIS_COORDINATOR names is asked, else
    /// tcp://127.0.0.1:29611]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// The Python that trains
    #[arg(long, default_value = python::PYTHON, value_name = "PROGRAM")]
    python: PathBuf,
    /// Where the rings of this machine's ranks would be [default: as ADAPTIS_RINGS, which ranks make, else /dev/shm]
    #[arg(long, value_name = "DIR")]
    rings: Option<PathBuf>,
    /// The store of profiles [default: ~/.config/adaptis]
    #[arg(long, env = "ADAPTIS_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    /// What drivers and Python get to answer
    #[arg(long, default_value = "60s", value_parser = values::some_time, allow_hyphen_values = true, value_name = "TIME")]
    time: Duration,
    /// Print all of it as JSON
    #[arg(long)]
    json: bool,
}

const LISTEN: &str = "tcp://127.0.0.1:29611";

/// Whether a thing is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    #[serde(rename = "ok")]
    Fine,
    /// May be meant so.
    Note,
    /// Something will fail.
    Fix,
}

/// What was found of a thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    about: String,
    verdict: Verdict,
    text: String,
}

impl Finding {
    fn new(about: &str, verdict: Verdict, text: impl Into<String>) -> Finding {
        Finding { about: about.to_owned(), verdict, text: text.into() }
    }

    fn line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Fine => "ok",
            Verdict::Note => "note",
            Verdict::Fix => "fix:",
        };
        format!("{verdict:<5} {:<11} {}\n", self.about, self.text)
    }
}

/// A GPU, for programs.
#[derive(Debug, Serialize)]
struct Gpu {
    name: String,
    kind: Option<&'static str>,
    memory_bytes: u64,
    uuid: String,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let environment = |name: &str| std::env::var(name).ok();
    let inventory = inventory(arguments.time);
    let of_drivers = inventory.as_ref();
    let gpus: Vec<Gpu> = of_drivers.map(|found| found.gpus.iter().map(gpu).collect()).unwrap_or_default();
    let mut findings = drivers::look(of_drivers, &gpus, environment("CUDA_VISIBLE_DEVICES").as_deref());
    findings.push(ranks::look(&environment));
    findings.push(variables::look(&environment));
    let ranks = ranks::here(&environment).max(gpus.len()).max(1);
    let rings = arguments.rings.unwrap_or_else(|| match environment("ADAPTIS_RINGS") {
        Some(folder) if !folder.is_empty() => memory::made_in(Path::new(&folder)),
        _ => PathBuf::from("/dev/shm"),
    });
    findings.push(memory::look(&rings, ranks));
    findings.push(clock::look());
    findings.push(ports::pages(&arguments.http));
    let named = environment("ADAPTIS_COORDINATOR").filter(|address| !address.is_empty());
    findings.push(match (&arguments.listen, named) {
        (None, Some(address)) => ports::reached(&address)?,
        (listen, _) => ports::coordinator(listen.as_deref().unwrap_or(LISTEN))?,
    });
    findings.push(store::look(arguments.store.as_deref()));
    findings.push(python::look(&arguments.python, arguments.time));
    let fixes = findings.iter().filter(|finding| finding.verdict == Verdict::Fix).count();
    match arguments.json {
        true => files::print(&format!("{:#}\n", serde_json::json!({ "findings": findings, "gpus": gpus })))?,
        false => files::print(&findings.iter().map(Finding::line).collect::<String>())?,
    }
    match fixes {
        0 => Ok(()),
        1 => Err(failure::negative("one thing is to be fixed")),
        fixes => Err(failure::negative(format!("{fixes} things are to be fixed"))),
    }
}

fn gpu(found: &adaptis_agent::Gpu) -> Gpu {
    let adaptis_agent::Gpu { name, uuid, memory_bytes } = found.clone();
    Gpu { kind: kind_of(&name, memory_bytes), name, memory_bytes, uuid }
}
