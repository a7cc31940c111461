//! What a collection tells the planner of the next job.

use super::account::{BadProfile, Collection, Distribution, EMULATED, WorkKey};
use super::measurement::{Cell, MeasuredPhase, Measurement};
use adaptis_coordinator_core::next_job::{Known, LayerMemory, Profiles, Transfers};
use adaptis_proto::sample::Phase;
use std::collections::{BTreeMap, BTreeSet};

/// Spread of a time of which there are too few samples to tell.
const UNKNOWN_SPREAD: f64 = 0.1;

/// Profiles of a kind that were left out, since their times are of another clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Of which kind.
    pub kind: String,
    /// Whether they are of emulated devices.
    pub is_emulated: bool,
    /// How many.
    pub profiles: usize,
}

/// Leaves what can stand beside the times of a run: those of emulated devices run on a clock of their own, so that a run
/// on emulated ones is compared with its like alone, and one on real ones with none of them. Gives what went.
pub fn keep_comparable(collection: &mut Collection, emulated: Option<&str>) -> Vec<LeftOut> {
    let is_kept = |software: &str| match emulated {
        Some(own) => software == own,
        None => !software.starts_with(EMULATED),
    };
    let mut went: BTreeMap<(&str, bool), BTreeSet<&WorkKey>> = BTreeMap::new();
    for key in collection.accounts().flat_map(|account| account.works.keys()).filter(|key| !is_kept(&key.software)) {
        went.entry((&key.kind, key.software.starts_with(EMULATED))).or_default().insert(key);
    }
    let left_out = |((kind, is_emulated), keys): ((&str, bool), BTreeSet<&WorkKey>)| LeftOut {
        kind: kind.to_owned(),
        is_emulated,
        profiles: keys.len(),
    };
    let left_out = went.into_iter().map(left_out).collect();
    collection.retain_software(is_kept);
    left_out
}

/// Kinds and signatures of which there are times under several softwares: the one that was seen last counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chosen {
    /// On which kind.
    pub kind: String,
    /// The software that counts.
    pub software: String,
    /// How many others there are.
    pub others: usize,
}

/// Times, memory and transfers of all sources, and where one of several softwares was chosen.
///
/// # Errors
/// Names the profile that can't be read.
pub fn evidence(collection: &Collection) -> Result<(Profiles, Vec<Chosen>), BadProfile> {
    let mut profiles = Profiles::default();
    let (newest, chosen) = newest(collection)?;
    for (key, distribution) in newest {
        let bad = |why| BadProfile { what: format!("{} on {}", key.signature, key.kind), why };
        let sketch = distribution.sketch().map_err(bad)?;
        let (low_ns, high_ns) = sketch.median_interval_ns();
        let seconds = |ns: u64| ns as f64 / 1e9;
        let known = Known {
            seconds: seconds(sketch.median_ns()),
            low: seconds(low_ns),
            high: seconds(high_ns),
            count: distribution.count,
        };
        profiles.times.insert((key.kind, key.signature, key.phase), known);
    }
    for (key, memory) in collection.memories() {
        let memory = LayerMemory {
            activation_bytes: memory.activation_bytes,
            weight_gradient_bytes: memory.weight_gradient_bytes,
            workspace_bytes: memory.workspace_bytes,
        };
        profiles.memories.insert(key, memory);
    }
    for (key, distribution) in collection.transfers()? {
        let bad = |why| BadProfile { what: format!("transfers from {} to {}", key.sender, key.receiver), why };
        let sketch = distribution.sketch().map_err(bad)?;
        let transfers = Transfers {
            bytes: key.bytes,
            median_ns: sketch.median_ns() as f64,
            count: distribution.count,
            ln_spread: sketch.ln_spread().unwrap_or(UNKNOWN_SPREAD),
        };
        profiles.transfers.entry((key.sender, key.receiver)).or_default().push(transfers);
    }
    profiles.overheads = collection.overheads();
    Ok((profiles, chosen))
}

/// All times as measurements, for whoever predicts from them.
pub fn measurements(profiles: &Profiles) -> Vec<Measurement> {
    let times = profiles.times.iter().filter(|(_, known)| known.seconds > 0.0);
    let measurement = |((kind, signature, phase), known): (&(String, String, Phase), &Known)| Measurement {
        cell: Cell { kind: kind.clone(), signature: signature.clone(), phase: MeasuredPhase::from(*phase) },
        seconds: known.seconds,
        count: known.count,
    };
    times.map(measurement).collect()
}

type Works = Vec<(WorkKey, Distribution)>;

/// Of several softwares of one kind, signature and phase, the one that was seen last.
fn newest(collection: &Collection) -> Result<(Works, Vec<Chosen>), BadProfile> {
    let mut newest: BTreeMap<(String, String, Phase), (WorkKey, Distribution)> = BTreeMap::new();
    let mut softwares: BTreeMap<(String, String, Phase), usize> = BTreeMap::new();
    for (key, distribution) in collection.works()? {
        let cell = (key.kind.clone(), key.signature.clone(), key.phase);
        *softwares.entry(cell.clone()).or_default() += 1;
        let is_newer = newest.get(&cell).is_none_or(|(_, known)| known.last_seen < distribution.last_seen);
        if is_newer {
            newest.insert(cell, (key, distribution));
        }
    }
    let several = softwares.into_iter().filter(|(_, count)| *count > 1);
    let chosen = several.map(|(cell, count)| {
        let software = newest[&cell].0.software.clone();
        Chosen { kind: cell.0, software, others: count - 1 }
    });
    let mut chosen: Vec<Chosen> = chosen.collect();
    chosen.sort();
    chosen.dedup();
    Ok((newest.into_values().collect(), chosen))
}
