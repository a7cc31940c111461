//! Replays of recorded jobs: what is slow, what it costs, and what would win it back.

use crate::trace::{self, TraceError};
use adaptis_coordinator_core::diagnose;
use std::path::Path;

pub use adaptis_coordinator_core::diagnose::{BetterPlan, Diagnosis, FORMAT, Finding, Kind, Options, Place, Refusal};

/// Why a recorded job can't be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file is no trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// It is one that can't be diagnosed.
    #[error(transparent)]
    Refusal(#[from] Refusal),
}

/// Diagnoses a trace in a file.
///
/// # Errors
/// The file can't be read, or is no trace of a pipeline.
pub fn replay(path: &Path, options: &Options) -> Result<Diagnosis, ReplayError> {
    Ok(diagnose::diagnose(&trace::read(path)?, options)?)
}
