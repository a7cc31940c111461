//! What a collection tells a job that begins: the prior of its estimate.

use super::account::{Account, BadProfile, Collection, EMULATED};
use super::evidence::{evidence, keep_comparable, measurements};
use super::{Cell, MeasuredPhase, Predictor, Source};
use adaptis_coordinator_core::estimate::PHASES;
use adaptis_coordinator_core::estimate::earlier::{Earlier, Job, OfKind, OfLink, Time};
use adaptis_coordinator_core::next_job::Profiles;
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::Phase;
use std::collections::{BTreeMap, BTreeSet};

/// Spread of a time of which there are too few samples to tell.
const UNKNOWN_SPREAD: f64 = 0.1;
/// Standard deviation of a median over that of a mean, for normal values.
const MEDIAN_SD: f64 = 1.2533;
/// Half of a bin of a sketch, as a part of the time: no median is better known.
const BIN_SD: f64 = 0.0005;
/// Standard deviations between the ends of the central 90% of a normal distribution.
const CENTRAL_90_SDS: f64 = 3.29;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Kinds of the job's devices.
    pub kinds: BTreeSet<String>,
    /// Signatures of its layers.
    pub signatures: BTreeSet<String>,
    /// The source that the job itself is: what it measured is no prior.
    pub own: String,
    /// The software of its devices if they are emulated.
    pub emulated: Option<String>,
    /// What its agents calibrated, by kind.
    pub rates: BTreeMap<String, Rates>,
}

/// What earlier jobs tell of the wanted kinds and signatures; of what they did not measure, what can be predicted from
/// what they did. Jobs on emulated devices count for their like alone.
///
/// # Errors
/// Names the profile that can't be read.
pub fn earlier(collection: &Collection, wanted: &Wanted) -> Result<Earlier, BadProfile> {
    let mut jobs = Collection::default();
    let accounts = collection.accounts().filter(|account| counts(account, wanted));
    accounts.for_each(|account| jobs.take(account.clone()));
    keep_comparable(&mut jobs, wanted.emulated.as_deref());
    let (profiles, _) = evidence(&jobs)?;
    let newest = newest(&jobs, wanted);
    let mut earlier = Earlier::default();
    for kind in &wanted.kinds {
        let of_kind = OfKind::of_jobs(&jobs_on(&jobs, kind, &newest)?);
        earlier.kinds.insert(kind.clone(), of_kind);
    }
    predict(&mut earlier, &jobs, &profiles, wanted);
    remember_sizes(&mut earlier, &jobs, &profiles, wanted);
    earlier.kinds.retain(|_, of| {
        !(of.measured.is_empty() && of.predicted.is_empty() && of.memories.is_empty() && of.overhead.is_none())
    });
    Ok(earlier)
}

/// Whether a source is another job, on devices whose clock is this one's.
fn counts(account: &Account, wanted: &Wanted) -> bool {
    let mut softwares = account.works.keys().map(|key| key.software.as_str());
    let is_comparable = match &wanted.emulated {
        Some(own) => softwares.any(|software| software == own),
        None => !softwares.any(|software| software.starts_with(EMULATED)),
    };
    is_comparable && account.source.id != wanted.own
}

type CellKey = (String, String, Phase);

/// Of the softwares of a time the one that was seen last.
fn newest(jobs: &Collection, wanted: &Wanted) -> BTreeMap<CellKey, String> {
    let mut newest: BTreeMap<CellKey, (u64, String)> = BTreeMap::new();
    for (key, of) in jobs.accounts().flat_map(|account| &account.works) {
        if wanted.kinds.contains(&key.kind) && wanted.signatures.contains(&key.signature) {
            let known = newest.entry((key.kind.clone(), key.signature.clone(), key.phase)).or_default();
            *known = std::mem::take(known).max((of.last_seen, key.software.clone()));
        }
    }
    newest.into_iter().map(|(cell, (_, software))| (cell, software)).collect()
}

/// What each job measured of a kind, under the software that counts.
fn jobs_on(jobs: &Collection, kind: &str, newest: &BTreeMap<CellKey, String>) -> Result<Vec<Job>, BadProfile> {
    let mut found = Vec::new();
    for account in jobs.accounts() {
        let mut job = Job::default();
        for (key, distribution) in account.works.iter().filter(|(key, _)| key.kind == kind) {
            let cell = (key.kind.clone(), key.signature.clone(), key.phase);
            if newest.get(&cell) != Some(&key.software) {
                continue;
            }
            let bad = |why| BadProfile { what: format!("{} on {}", key.signature, key.kind), why };
            let sketch = distribution.sketch().map_err(bad)?;
            let spread = sketch.ln_spread().unwrap_or(UNKNOWN_SPREAD);
            let ln_sd = (MEDIAN_SD * spread / (sketch.count().max(1) as f64).sqrt()).hypot(BIN_SD);
            let ln_ns = (sketch.median_ns().max(1) as f64).ln();
            job.times.insert((key.signature.clone(), key.phase), Time { ln_ns, ln_sd });
        }
        if !job.times.is_empty() {
            found.push(job);
        }
    }
    Ok(found)
}

/// What no job measured, from what jobs did.
fn predict(earlier: &mut Earlier, jobs: &Collection, profiles: &Profiles, wanted: &Wanted) {
    let is_known =
        |signature: &str, phase: Phase| profiles.times.keys().any(|(_, of, known)| of == signature && *known == phase);
    // A phase that no kind knows of layers that were trained does not exist.
    let exists = |signature: &str, phase: Phase| {
        let backward = [Phase::InputGradient, Phase::WeightGradient];
        let is_trained = backward.into_iter().any(|phase| is_known(signature, phase));
        is_known(signature, phase) || !(phase == Phase::Optimizer || is_trained)
    };
    let mut asked = Vec::new();
    for (kind, signature) in wanted.kinds.iter().flat_map(|kind| wanted.signatures.iter().map(move |of| (kind, of))) {
        for phase in PHASES {
            let is_measured = profiles.times.contains_key(&(kind.clone(), signature.clone(), phase));
            if !is_measured && exists(signature, phase) {
                let cell = Cell { kind: kind.clone(), signature: signature.clone(), phase: MeasuredPhase::from(phase) };
                asked.push((phase, cell));
            }
        }
    }
    if asked.is_empty() || profiles.times.is_empty() {
        return;
    }
    let cells: Vec<Cell> = asked.iter().map(|(_, cell)| cell.clone()).collect();
    let mut rates = jobs.rates();
    for (kind, found) in &wanted.rates {
        let known = rates.entry(kind.clone()).or_default();
        *known = known.best(*found);
    }
    let predictor = Predictor::fit(&measurements(profiles), &cells).with_rates(rates);
    for (phase, cell) in asked {
        let Ok(predicted) = predictor.predict(&cell) else { continue };
        if predicted.source == Source::UnknownKind {
            continue;
        }
        let ln_ns = (predicted.seconds * 1e9).ln();
        let ln_sd = (predicted.high / predicted.low).ln() / CENTRAL_90_SDS;
        if let Some(of_kind) = earlier.kinds.get_mut(&cell.kind) {
            of_kind.predict(&cell.signature, phase, Time { ln_ns, ln_sd });
        }
    }
}

/// What layers hold, what devices keep for themselves, what links carry.
fn remember_sizes(earlier: &mut Earlier, jobs: &Collection, profiles: &Profiles, wanted: &Wanted) {
    let kinds = jobs.kinds();
    for (kind, of_kind) in &mut earlier.kinds {
        of_kind.reserved_bytes = kinds.get(kind).map(|of| of.reserved_bytes);
        of_kind.overhead = profiles.overheads.get(kind).copied();
        for signature in &wanted.signatures {
            let own = profiles.memories.get(&(signature.clone(), kind.clone()));
            let any = || profiles.memories.iter().find(|((of, _), _)| of == signature).map(|(_, memory)| memory);
            if let Some(memory) = own.or_else(any) {
                of_kind.memories.insert(signature.clone(), *memory);
            }
        }
    }
    for (from, to) in wanted.kinds.iter().flat_map(|from| wanted.kinds.iter().map(move |to| (from, to))) {
        let of = |from: &String, to: &String| {
            profiles.transfers.get(&(from.clone(), to.clone())).and_then(|sizes| OfLink::of_transfers(sizes))
        };
        if let Some(link) = of(from, to).or_else(|| of(to, from)) {
            earlier.links.insert((from.clone(), to.clone()), link);
        }
    }
}
