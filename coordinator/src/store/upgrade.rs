//! Stores of the version before this one, which had profiles of work alone, two digits wide, without instants.
//!
//! What later versions keep of transfers and memory is made of the records that are still there.

use super::profiles::{Profiles, absorb};
use super::samples::records;
use super::{StoreError, VERSION};
use crate::profiles::account::{Account, Source, WorkKey};
use crate::profiles::sketch::Sketch;
use crate::profiles::tables;
use adaptis_coordinator_core::ledger::GenerationRecord;
use adaptis_proto::sample::{Phase, Record, Sample};
use rusqlite::Connection;

/// The version that can be brought to this one.
pub(super) const BEFORE: i32 = 3;

/// Brings a store to this version, whole or not at all; `seen` is when its file was written last.
pub(super) fn upgrade(connection: &mut Connection, seen: u64) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let account = account(&transaction, seen)?;
    transaction.execute_batch(tables::SCHEMA)?;
    tables::replace_account(&transaction, &account)?;
    transaction.execute_batch("DROP TABLE profiles")?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}

/// The profiles of a store of the version before, as this version has them.
pub(super) fn account(connection: &Connection, seen: u64) -> Result<Account, StoreError> {
    let generations: Vec<GenerationRecord> = super::ledger::generations(connection)?;
    let mut profiles = Profiles::default();
    let mut statement = connection.prepare("SELECT signature, kind, phase, histogram FROM profiles")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (signature, phase): (String, i64) = (row.get(0)?, row.get(2)?);
        let damaged =
            |why: &dyn std::fmt::Display| StoreError::Damaged { what: format!("the profile of {signature} ({why})") };
        let phase = usize::try_from(phase).ok().and_then(|phase| Phase::ALL.get(phase).copied());
        let phase = phase.ok_or_else(|| damaged(&"its phase is unknown"))?;
        let sketch = Sketch::unpack(&row.get::<_, Vec<u8>>(3)?).map_err(|error| damaged(&error))?;
        let key = WorkKey { signature: signature.clone(), kind: row.get(1)?, phase, software: String::new() };
        profiles.add(key, &sketch);
    }
    let mut statement = connection.prepare("SELECT device, body FROM records ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let device: String = row.get(0)?;
        let records = records(&row.get::<_, Vec<u8>>(1)?)?;
        if let Some(record) = generations.iter().rfind(|of| of.cards.iter().any(|card| card.name == device)) {
            records.into_iter().for_each(|of| take(&mut profiles, record, &device, of));
        }
    }
    let id = identity(connection)?;
    let how = "run".to_owned();
    let source = Source { id, how, first_seen: seen, last_seen: seen, ..Source::default() };
    Ok(profiles.account(source, |_| 0))
}

/// What is neither work nor iteration; of work there are profiles.
fn take(profiles: &mut Profiles, of: &GenerationRecord, device: &str, record: Record) {
    let Some(card) = of.cards.iter().find(|card| card.name == device) else { return };
    match Sample::try_from(record) {
        Ok(Sample::Work { .. }) | Err(_) => {}
        Ok(sample) => absorb(profiles, of, card, std::iter::once(sample), "", |_, _| 1.0),
    }
}

/// A store of this version draws its id; for one of the version before it comes from what was written once and differs
/// between any two runs: the processes of the first membership.
fn identity(connection: &Connection) -> Result<String, StoreError> {
    let statement = "SELECT coalesce((SELECT body FROM generations ORDER BY generation LIMIT 1), '')";
    let body: String = connection.query_row(statement, [], |row| row.get(0))?;
    Ok(blake3::hash(body.as_bytes()).to_hex()[..32].to_owned())
}
