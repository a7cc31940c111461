//! `adaptis plan --job`: a recorded job on other devices, at the costs that a store of profiles knows or tells.

mod basis;
mod clocks;

pub use basis::Basis;
use clocks::Clocks;

use crate::profiles::store::{self, Store};
use crate::{failure, files};
use adaptis_coordinator::next_job::{Missing, NoPrediction, Profiles, Refused, Request, Wanted, next_job};
use adaptis_coordinator::profiles::account::{Collection, KindMemory};
use adaptis_coordinator::profiles::evidence::{evidence, keep_comparable, measurements};
use adaptis_coordinator::profiles::{Cell, MeasuredPhase, Predictor, library};
use adaptis_coordinator::{RunRecord, record_of};
use adaptis_executor::preset::card::Card;
use adaptis_plan::problem::DEVICES_MAX;
use adaptis_plan::{Device, Link};
use anyhow::Result;
use serde::Deserialize;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;

/// For links that nobody gave and no profile knows: one 200 Gb/s port.
const UNSEEN_LINK: Link = Link { latency_ns: 30_000, bytes_per_second: 22e9, note: () };
/// Latency of a link whose bandwidth alone is given.
const GIVEN_LATENCY_NS: u64 = 10_000;
/// Missing profiles that an error names; the rest are counted.
const MISSING_SHOWN: usize = 12;

/// Which job, on what.
pub struct Asked<'a> {
    /// The run's folder.
    pub run: &'a Path,
    /// A list of devices, or a TOML file.
    pub devices: &'a str,
    /// Instead of the run's own.
    pub microbatches: Option<u64>,
    /// Where profiles are, besides the run itself.
    pub store: &'a Store,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    device: Vec<FileDevice>,
    #[serde(default)]
    kind: Vec<FileKind>,
    #[serde(default)]
    links: FileLinks,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDevice {
    name: Option<String>,
    kind: String,
    node: Option<String>,
    slowdown: Option<f64>,
}

/// The rates that the demo reads from such a file are measured here, and not asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKind {
    name: String,
    memory_gib: f64,
    #[serde(default)]
    reserved_gib: f64,
    #[serde(rename = "tflops")]
    _tflops: Option<f64>,
    #[serde(rename = "memory_gb_per_second")]
    _memory_gb_per_second: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLinks {
    within_node_gb_per_second: Option<f64>,
    between_nodes_gb_per_second: Option<f64>,
}

/// The problem of a recorded job on other devices.
pub fn problem(asked: &Asked<'_>) -> Result<Basis> {
    let run = asked.run.display();
    let RunRecord { job, .. } = record_of(asked.run)
        .map_err(|error| failure::usage(format!("--job {run}: {error}; name the folder of a run")))?
        .ok_or_else(|| failure::usage(format!("--job {run}: its ranks had not declared a job yet")))?;
    let (mut collection, stores) = profiles(asked)?;
    let emulated = library::emulated(asked.run);
    let left_out = keep_comparable(&mut collection, emulated.as_deref());
    let clocks = Clocks { is_emulated: emulated.is_some(), left_out };
    let (mut profiles, chosen) = evidence(&collection).map_err(|error| store::bad(asked.run, error))?;
    if emulated.is_some() {
        // Real processes pay for what emulated ones do not.
        profiles.overheads.clear();
    }
    let file = devices(asked.devices)?;
    let mut memory = BTreeMap::new();
    let wanted = wanted(&file, &collection.kinds(), &mut memory)
        .map_err(|why| failure::usage(format!("--devices {}: {why}", asked.devices)))?;
    let microbatches = asked.microbatches.map_or(job.microbatches, |count| u32::try_from(count).unwrap_or(u32::MAX));
    let given = |rate: Option<f64>| {
        rate.map(|rate| Link { latency_ns: GIVEN_LATENCY_NS, bytes_per_second: rate * 1e9, note: () })
    };
    let request = Request {
        layers: &job.layers,
        microbatches,
        devices: &wanted,
        within_node: given(file.links.within_node_gb_per_second),
        between_nodes: given(file.links.between_nodes_gb_per_second),
        unseen_link: UNSEEN_LINK,
    };
    // Fitted only where something was not measured.
    let fitted = OnceCell::new();
    // Of emulated devices there are none: they were calibrated on no clock.
    let rates = || if emulated.is_some() { BTreeMap::new() } else { collection.rates() };
    let predict = |cell: &Cell| fitted.get_or_init(|| predictor(&request, &profiles).with_rates(rates())).predict(cell);
    let next = next_job(&request, &profiles, &predict)
        .map_err(|refused| not_planned(&refused, &profiles, &stores, &clocks, asked.devices))?;
    Ok(Basis { next, run: job.run.0, stores, chosen, memory, clocks })
}

/// What profiles tell about costs that they lack.
fn predictor(request: &Request<'_>, profiles: &Profiles) -> Predictor {
    let mut asked = std::collections::BTreeSet::new();
    for kind in request.devices.iter().map(|wanted| &wanted.device.kind) {
        for signature in request.layers.iter().map(|layer| &layer.signature) {
            for phase in MeasuredPhase::ALL {
                asked.insert(Cell { kind: kind.clone(), signature: signature.clone(), phase });
            }
        }
    }
    Predictor::fit(&measurements(profiles), &asked.into_iter().collect::<Vec<_>>())
}

/// The profiles of the store and of the run itself, and where they were.
fn profiles(asked: &Asked<'_>) -> Result<(Collection, Vec<String>)> {
    let mut stores = Vec::new();
    let mut collection = Collection::default();
    let named = asked.store.named().map(Path::to_owned);
    for path in named.or_else(store::own_if_there).into_iter().chain([asked.run.to_owned()]) {
        collection.take_all(store::read(&path)?);
        stores.push(path.display().to_string());
    }
    stores.dedup();
    Ok((collection, stores))
}

/// Devices as they were given: `4xgh-96,4xa100-40g`, or a file.
fn devices(text: &str) -> Result<File> {
    let path = Path::new(text);
    if path.extension().is_some_and(|extension| extension == "toml") {
        let text = files::text(path).map_err(|error| failure::usage(format!("--devices {error}")))?;
        return toml::from_str(&text).map_err(|error| {
            failure::usage(format!("--devices {}: {}", path.display(), error.to_string().trim_end()))
        });
    }
    let wrong =
        |part: &str| failure::usage(format!("--devices {text}: `{part}` is not COUNTxKIND, as in 4xgh-96,4xa100-40g"));
    let mut device = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (count, kind) = match part.split_once('x') {
            Some((count, kind)) if !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit()) => {
                (count.parse::<usize>().map_err(|_| wrong(part))?, kind)
            }
            _ => (1, part),
        };
        if kind.is_empty() {
            return Err(wrong(part));
        }
        if count == 0 || count.saturating_add(device.len()) > DEVICES_MAX {
            let why = format!("--devices {text}: `{part}`: a job has from 1 to {DEVICES_MAX} devices");
            return Err(failure::usage(why));
        }
        let of = || FileDevice { name: None, kind: kind.to_owned(), node: None, slowdown: None };
        device.extend(std::iter::repeat_with(of).take(count));
    }
    Ok(File { device, kind: Vec::new(), links: FileLinks::default() })
}

/// The devices with their memory, and by kind where that comes from.
fn wanted(
    file: &File,
    known: &BTreeMap<String, KindMemory>,
    memory: &mut BTreeMap<String, &'static str>,
) -> Result<Vec<Wanted>, String> {
    if file.device.is_empty() {
        return Err("no [[device]] in it".to_owned());
    }
    let mut wanted: Vec<Wanted> = Vec::new();
    for (at, device) in file.device.iter().enumerate() {
        let name = device.name.clone().unwrap_or_else(|| format!("gpu{at}"));
        if wanted.iter().any(|other| other.device.name == name) {
            return Err(format!("two devices are called `{name}`"));
        }
        let (size, origin) = memory_of(&device.kind, file, known)?;
        memory.insert(device.kind.clone(), origin);
        let device = Device {
            kind: device.kind.clone(),
            memory_bytes: size.memory_bytes,
            slowdown: device.slowdown.unwrap_or(1.0),
            reserved_bytes: size.reserved_bytes,
            note: None,
            name,
        };
        let node = file.device[at].node.clone().unwrap_or_else(|| device.kind.clone());
        wanted.push(Wanted { device, node });
    }
    Ok(wanted)
}

/// Memory of a kind: as given, as measured, else by its name.
fn memory_of(
    kind: &str,
    file: &File,
    known: &BTreeMap<String, KindMemory>,
) -> Result<(KindMemory, &'static str), String> {
    const GIB: f64 = (1_u64 << 30) as f64;
    if let Some(given) = file.kind.iter().find(|given| given.name == kind) {
        let is_size = |gib: f64| (0.0..=1e6).contains(&gib);
        if !is_size(given.memory_gib) || !is_size(given.reserved_gib) || given.memory_gib == 0.0 {
            return Err(format!("memory_gib and reserved_gib of `{kind}` are sizes in GiB, at most 1000000"));
        }
        let bytes = |gib: f64| (gib * GIB).round() as u64;
        let memory = KindMemory { memory_bytes: bytes(given.memory_gib), reserved_bytes: bytes(given.reserved_gib) };
        return Ok((memory, "the file of devices"));
    }
    if let Some(memory) = known.get(kind) {
        return Ok((*memory, "profiles"));
    }
    // A group's memory is that of its members.
    let (members, card) = match kind.split_once('x') {
        Some((count, card)) if !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit()) => {
            (count.parse::<u64>().unwrap_or(0), card)
        }
        _ => (1, kind),
    };
    let by_name = || {
        let gigabytes = card.rsplit_once('-')?.1.strip_suffix('g')?.parse::<u64>().ok()?;
        (1..=4096).contains(&gigabytes).then_some(gigabytes << 30)
    };
    let bytes = Card::known(card).map(|card| card.memory_bytes).or_else(by_name);
    match bytes.and_then(|bytes| bytes.checked_mul(members)).filter(|bytes| *bytes > 0) {
        Some(memory_bytes) => Ok((KindMemory { memory_bytes, reserved_bytes: 0 }, "its name")),
        None => Err(format!(
            "nobody knows the memory of `{kind}`: name it with its memory, as in a100-40g, or give a file, --devices \
             devices.toml, with [[kind]] name = \"{kind}\", memory_gib = 80"
        )),
    }
}

/// Why there is no plan, and what would help.
fn not_planned(
    refused: &Refused,
    profiles: &Profiles,
    stores: &[String],
    clocks: &Clocks,
    devices: &str,
) -> anyhow::Error {
    let missing = match refused {
        Refused::Implausible(error) => return failure::usage(format!("the profiles make no problem: {error}")),
        Refused::Missing(missing) => missing,
    };
    let mut text = format!("no plan without these times, which {} neither has nor tells:", stores.join(" with "));
    for of in missing.iter().take(MISSING_SHOWN) {
        text += &format!("\n  {of}");
    }
    if missing.len() > MISSING_SHOWN {
        text += &format!("\n  and {} more", missing.len() - MISSING_SHOWN);
    }
    let kinds: std::collections::BTreeSet<&str> = profiles.times.keys().map(|(kind, ..)| kind.as_str()).collect();
    let unknown = missing.iter().find_map(|of| match of {
        Missing::Time { kind, why: NoPrediction::UnknownKind, .. } => Some(kind),
        _ => None,
    });
    let known = kinds.into_iter().collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "nothing" } else { &known };
    let of_kind = |of: &Missing| match of {
        Missing::Time { kind, .. } => Some(kind.clone()),
        _ => None,
    };
    let missed: std::collections::BTreeSet<String> = missing.iter().filter_map(of_kind).collect();
    if let Some(advice) = clocks.advice(&missed.iter().map(String::as_str).collect(), known, devices) {
        return failure::negative(format!("{text}\n{}{advice}", clocks.text()));
    }
    if let Some(kind) = unknown {
        text += &format!(
            "\nthere are profiles of {known}, none of {kind}: a few layers of this type or another that ran on {kind} are \
             enough to predict the others, the more the closer; for a first guess, so is what agents calibrated on it and on \
             one of those"
        );
    }
    let is_whole = |of: &Missing| matches!(of, Missing::Time { signature, .. } if signature.starts_with("model/") && signature.ends_with("/any"));
    if missing.iter().any(is_whole) {
        text += "\nof this job only the steps were measured: a line `adaptis.observe(model.layers)` in its script has its \
                 layers measured";
    }
    text += "\nmerge a run that measured them (`adaptis profiles merge RUN`), import them (`adaptis profiles import FILE`), or \
             plan for kinds that have them";
    failure::negative(text)
}
