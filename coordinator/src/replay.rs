//! Replays of recorded jobs: what is slow, what it costs, and what would win it back.
//!
//! A file is a trace of another system; a folder is that of a run of ours, read from its store.

use crate::store::{self, StoreError, each_sample, ledger_of};
use crate::trace::{self, TraceError};
use adaptis_coordinator_core::Recovered;
use adaptis_coordinator_core::diagnose::{self, run};
use adaptis_coordinator_core::estimate::JobView;
use adaptis_coordinator_core::ledger::{GenerationRecord, PlanRecord};
use adaptis_plan::{FormatError, Plan};
use adaptis_proto::message::Member;
use adaptis_proto::{DeviceIndex, Epoch, Incarnation};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use adaptis_coordinator_core::diagnose::{
    BetterPlan, Compute, Diagnosis, Doubt, FORMAT, Finding, Kind, Oddity, Options, Phase, Place, Refusal, SetAside,
};

/// Why a recorded job can't be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file is no trace.
    #[error("{path}: {source}")]
    Trace {
        /// Which.
        path: PathBuf,
        /// Why.
        source: TraceError,
    },
    /// It can't be diagnosed.
    #[error("{path}: {source}")]
    Refusal {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Refusal,
    },
    /// The folder is none of a run.
    #[error("{path} is not the folder of a run: it holds no {file}; give that of `adaptis demo --out`, or a trace")]
    NoRun {
        /// Which.
        path: PathBuf,
        /// What it lacks.
        file: &'static str,
    },
    /// The store of the run can't be read.
    #[error("{path}: {source}")]
    Store {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The run never began.
    #[error("{path}: no rank ever joined this run: there is nothing to replay")]
    NotBegun {
        /// The folder.
        path: PathBuf,
    },
    /// A plan of the ledger is none.
    #[error("{path}: plan {epoch}: {source}")]
    Plan {
        /// The folder.
        path: PathBuf,
        /// Which plan.
        epoch: Epoch,
        /// Why.
        source: FormatError,
    },
}

/// Diagnoses a trace, or a run by its folder.
///
/// # Errors
/// It can't be read, or is neither.
pub fn replay(path: &Path, options: &Options) -> Result<Diagnosis, ReplayError> {
    if path.is_dir() {
        return of_run(path, options);
    }
    let recording = trace::read(path).map_err(|source| ReplayError::Trace { path: path.to_owned(), source })?;
    diagnose::diagnose(&recording, options).map_err(|source| ReplayError::Refusal { path: path.to_owned(), source })
}

fn of_run(dir: &Path, options: &Options) -> Result<Diagnosis, ReplayError> {
    if !dir.join(store::FILE).is_file() {
        return Err(ReplayError::NoRun { path: dir.to_owned(), file: store::FILE });
    }
    let failed = |source| ReplayError::Store { path: dir.to_owned(), source };
    let Recovered { plans, generation, head, .. } = ledger_of(dir).map_err(failed)?;
    let generation = generation.ok_or_else(|| ReplayError::NotBegun { path: dir.to_owned() })?;
    let of_plan = |(&epoch, record): (&Epoch, &PlanRecord)| {
        let plan = Plan::read(&record.text);
        plan.map(|plan| (epoch, plan)).map_err(|source| ReplayError::Plan { path: dir.to_owned(), epoch, source })
    };
    let plans: BTreeMap<Epoch, Plan> = plans.iter().map(of_plan).collect::<Result<_, _>>()?;
    let job = JobView {
        layers: generation.job.layers.clone(),
        devices: generation.cards.clone(),
        microbatches: generation.job.microbatches,
    };
    let mut watch = run::Watch::new(job);
    let index = |device: &str, ring| member(&generation, device, ring);
    each_sample(dir, |device, ring, sample| {
        if let Some(device) = index(device, ring) {
            watch.absorb(device, sample);
        }
    })
    .map_err(failed)?;
    let watched = watch.finish();
    let fixed = watched.estimated.as_ref().map(|estimated| run::Fixed::of(&estimated.problem)).unwrap_or_default();
    let last = plans.get(&head.epoch).cloned().ok_or_else(|| ReplayError::NotBegun { path: dir.to_owned() })?;
    let mut works = run::Works::new(plans, &watched.slowdowns, generation.cards.len(), fixed);
    each_sample(dir, |device, ring, sample| {
        if let Some(device) = index(device, ring) {
            works.absorb(device, sample);
        }
    })
    .map_err(failed)?;
    run::conclude(&watched, works, &last, options)
        .map_err(|source| ReplayError::Refusal { path: dir.to_owned(), source })
}

/// The device of a process of the last membership.
fn member(generation: &GenerationRecord, device: &str, ring: Incarnation) -> Option<DeviceIndex> {
    let is_it = |member: &Member| member.device == device && member.incarnation == ring;
    generation.members.iter().position(is_it).map(DeviceIndex::from)
}
