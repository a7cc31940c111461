//! Traces of StragglerAnalysis as profiles: what each chunk of a model took, forwards and backwards.
//!
//! A trace knows no layers, only the chunks of the pipeline that it was recorded on, and neither the model nor the card. A
//! chunk's signature is `chunk/<model>/<position in the model>` where the model is given: good for the same job again, and
//! to compare. Where it is not, it is `chunk/<name of the file>-<digest of its bytes>/<position>`: most traces are called
//! `trace.parquet`, and chunks of two jobs are not one layer.

use super::account::{Account, Distribution, Source, WorkKey};
use super::exchange::{split, split_text};
use super::import::{Given, ImportError, Lack, Unit};
use super::kind::kind_of;
use super::sailor::model_of;
use super::sketch::Sketch;
use super::source::{CONTENT_DIGITS, digits, reading};
use crate::trace;
use adaptis_coordinator_core::diagnose::{Direction, Work};
use adaptis_proto::sample::Phase;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// Digits of the digest of a trace's bytes in a signature.
const IDENTITY_DIGITS: usize = 8;

/// Whether a file begins as Parquet does.
pub fn is_one(start: &[u8]) -> bool {
    start.starts_with(b"PAR1")
}

/// Reads a trace; `now` is in seconds since 1970.
///
/// # Errors
/// Not such a trace, or what it does not say.
pub fn import(path: &Path, given: &Given, now: u64) -> Result<Account, ImportError> {
    if given.unit.is_some_and(|unit| unit != Unit::Seconds) {
        return Err(ImportError::Says { what: "the unit of its times", flag: "--unit" });
    }
    given.no_facts("a trace")?;
    let lacks = [(Lack::Kind, given.kind.is_none()), (Lack::SplitBackward, given.split_backward.is_none())];
    let lacks: Vec<Lack> = lacks.iter().filter(|(_, is_lacking)| *is_lacking).map(|(lack, _)| *lack).collect();
    let (Some(kind), Some(share), []) = (&given.kind, given.split_backward, lacks.as_slice()) else {
        return Err(ImportError::Lacks(lacks));
    };
    let mut hasher = blake3::Hasher::new();
    File::open(path).and_then(|file| hasher.update_reader(file).map(drop)).map_err(trace::TraceError::Io)?;
    let recording = trace::read(path)?;
    let content = digits(&hasher.finalize(), CONTENT_DIGITS);
    let (kind, name) = (kind_of(kind), path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let of_file = || {
        let stem = name.strip_suffix(".parquet").unwrap_or(&name);
        format!("{}-{}", model_of(stem), &content[..IDENTITY_DIGITS])
    };
    let model = given.model.as_deref().map_or_else(of_file, model_of);
    let mut works: BTreeMap<WorkKey, Sketch> = BTreeMap::new();
    for operation in recording.iterations.iter().flat_map(|iteration| &iteration.operations) {
        let Work::Compute { direction, chunk, .. } = operation.work else { continue };
        let signature = format!("chunk/{model}/{chunk}");
        let parts = match direction {
            Direction::Forward => vec![(Phase::Forward, 1.0)],
            Direction::Backward => split(&signature, share).to_vec(),
        };
        for (phase, share) in parts.into_iter().filter(|(_, share)| *share > 0.0) {
            let (signature, kind, software) = (signature.clone(), kind.clone(), given.software.clone());
            let ns = (operation.duration_ns as f64 * share).round() as u64;
            works.entry(WorkKey { signature, kind, phase, software }).or_default().record(ns);
        }
    }
    if works.is_empty() {
        return Err(ImportError::Nothing);
    }
    let parts = [
        ("model", Some(model)),
        ("kind", Some(kind)),
        ("backward split", Some(split_text(share))),
        ("software", given.software_text()),
    ];
    let source = Source::of_file(&content, &name, &reading("straggler", parts), now);
    let works = works.into_iter().map(|(key, sketch)| (key, Distribution::new(&sketch, now, now))).collect();
    let mut account = Account { source, works, ..Account::default() };
    account.count_samples();
    Ok(account)
}
