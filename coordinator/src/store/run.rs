//! What a run's store tells of the run to those who plan the next one: the job, its devices, all profiles. The run may
//! still be going on; nothing is changed.

use super::{FILE, StoreError, VERSION, ledger, open_to_read, profiles, upgrade, written};
use crate::profiles::account::{Account, KindMemory, Sizes};
use adaptis_coordinator_core::ledger::GenerationRecord;
use adaptis_proto::message::{DeviceCard, Job};
use std::path::Path;

/// A run as it was declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// What was trained.
    pub job: Job,
    /// On which devices, by the newest membership.
    pub cards: Vec<DeviceCard>,
}

/// The job and the devices of a run; none if no job was declared yet.
///
/// # Errors
/// There is no store in `dir`, or it fails.
pub fn record_of(dir: &Path) -> Result<Option<RunRecord>, StoreError> {
    let newest = ledger::generations(&open_to_read(dir)?.0)?.pop();
    Ok(newest.map(|of| RunRecord { job: of.job, cards: of.cards }))
}

/// All profiles of a run, with the sizes of its layers and the memory of its devices.
///
/// # Errors
/// There is no store in `dir`, or it fails, or holds what no build wrote.
pub fn profiles_of(dir: &Path) -> Result<Account, StoreError> {
    let (connection, version) = open_to_read(dir)?;
    let mut account = match version {
        VERSION => profiles::of_run(&connection)?,
        _ => upgrade::account(&connection, written(&dir.join(FILE)))?,
    };
    let generations = ledger::generations(&connection)?;
    generations.iter().for_each(|of| describe(&mut account, of));
    let run = generations.last().map(|of| of.job.run.0.clone()).filter(|name| !name.is_empty());
    account.source.name = run.unwrap_or_else(|| dir.display().to_string());
    Ok(account)
}

/// What ranks said of the job and themselves.
fn describe(account: &mut Account, of: &GenerationRecord) {
    for layer in &of.job.layers {
        let sizes = Sizes {
            parameter_bytes: Some(layer.parameter_bytes),
            state_bytes: Some(layer.state_bytes),
            output_bytes: Some(layer.output_bytes),
            moved_bytes: Some(layer.moved_bytes),
        };
        account.sizes.insert(layer.signature.clone(), sizes);
    }
    for card in &of.cards {
        let empty = KindMemory { memory_bytes: 0, reserved_bytes: 0 };
        let kind = account.kinds.entry(card.kind.clone()).or_insert(empty);
        kind.memory_bytes = card.memory_bytes;
        kind.reserved_bytes = kind.reserved_bytes.max(card.reserved_bytes);
    }
    // A device that left before any membership was recorded with it has no size.
    account.kinds.retain(|_, kind| kind.memory_bytes > 0);
}
