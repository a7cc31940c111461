//! Counters that outlive a reign: what became of every record, and the last words of agents and links.
//!
//! 1. Records are counted in the transaction that stores them: after whatever end, received = stored + duplicates +
//!    beyond the gap + refused, and what is counted as stored is on disk.
//! 2. Other counters are written now and then, by name; a reign that is killed loses the last of them.

use super::{Store, StoreError, Stored, number, sql};
use adaptis_proto::message::{Batch, Health};
use adaptis_proto::sample::{Record, Sample};
use rusqlite::{Connection, Transaction, params};
use std::collections::BTreeMap;

/// What became of records and batches, over all reigns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches that came.
    pub batches_received: u64,
    /// Batches whose numbers are no numbers of a ring.
    pub batches_refused: u64,
    /// Records that came.
    pub records_received: u64,
    /// Records that are or were on disk.
    pub records_stored: u64,
    /// Records that were on disk already.
    pub records_duplicate: u64,
    /// Records beyond a gap: they come again.
    pub records_beyond_gap: u64,
    /// Records of refused batches.
    pub records_refused: u64,
    /// Stored records of processes that are no members of the run.
    pub records_of_others: u64,
    /// Stored records that this build can't read.
    pub records_unknown: u64,
    /// Numbers that agents said would never come.
    pub records_lost_before_arrival: u64,
    /// Stored records that had to go to keep the limit.
    pub records_trimmed_from_store: u64,
}

impl Counts {
    /// What became of one batch.
    pub(super) fn of(batch: &Batch, stored: &Stored, is_of_member: bool) -> Counts {
        let records_stored = stored.records.len() as u64;
        Counts {
            batches_received: 1,
            batches_refused: u64::from(stored.refused > 0),
            records_received: batch.records.len() as u64,
            records_stored,
            records_duplicate: stored.duplicates,
            records_beyond_gap: stored.beyond_gap,
            records_refused: stored.refused.min(batch.records.len() as u64),
            records_of_others: if is_of_member { 0 } else { records_stored },
            records_unknown: unknown(&stored.records),
            records_lost_before_arrival: stored.lost,
            records_trimmed_from_store: 0,
        }
    }

    /// All of them, by name.
    pub fn named(&self) -> [(&'static str, u64); 11] {
        [
            ("batches_received", self.batches_received),
            ("batches_refused", self.batches_refused),
            ("records_received", self.records_received),
            ("records_stored", self.records_stored),
            ("records_duplicate", self.records_duplicate),
            ("records_beyond_gap", self.records_beyond_gap),
            ("records_refused", self.records_refused),
            ("records_of_others", self.records_of_others),
            ("records_unknown", self.records_unknown),
            ("records_lost_before_arrival", self.records_lost_before_arrival),
            ("records_trimmed_from_store", self.records_trimmed_from_store),
        ]
    }

    fn from_named(count: impl Fn(&str) -> u64) -> Counts {
        Counts {
            batches_received: count("batches_received"),
            batches_refused: count("batches_refused"),
            records_received: count("records_received"),
            records_stored: count("records_stored"),
            records_duplicate: count("records_duplicate"),
            records_beyond_gap: count("records_beyond_gap"),
            records_refused: count("records_refused"),
            records_of_others: count("records_of_others"),
            records_unknown: count("records_unknown"),
            records_lost_before_arrival: count("records_lost_before_arrival"),
            records_trimmed_from_store: count("records_trimmed_from_store"),
        }
    }

    pub(super) fn add(&mut self, other: &Counts) {
        let sums: BTreeMap<&str, u64> = self
            .named()
            .iter()
            .zip(other.named())
            .map(|((name, one), (_, other))| (*name, one.saturating_add(other)))
            .collect();
        *self = Counts::from_named(|name| sums[name]);
    }
}

impl Store {
    /// What became of records and batches so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Records that rings dropped because they were full, by device.
    ///
    /// # Errors
    /// The file fails.
    pub fn dropped_by_device(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut statement = self.connection.prepare("SELECT device, dropped FROM rings")?;
        let mut rows = statement.query([])?;
        let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let of_device = dropped.entry(row.get(0)?).or_default();
            *of_device = of_device.saturating_add(number(row.get(1)?));
        }
        Ok(dropped)
    }

    /// Writes other counters by name, and the last word on each device's state.
    ///
    /// # Errors
    /// The file fails.
    pub fn keep<'a>(
        &mut self,
        counters: &[(String, u64)],
        health: impl Iterator<Item = &'a Health>,
    ) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        counters.iter().try_for_each(|(name, count)| put(&transaction, name, *count))?;
        for health in health {
            let body = serde_json::to_string(health).expect("a health message has no maps");
            let statement = "INSERT OR REPLACE INTO health (device, body) VALUES (?, ?)";
            transaction.prepare_cached(statement)?.execute(params![health.device, body])?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// What [`Store::keep`] wrote last.
    ///
    /// # Errors
    /// The file fails, or an entry of it can't be read.
    pub fn kept(&self) -> Result<(BTreeMap<String, u64>, Vec<Health>), StoreError> {
        let mut statement = self.connection.prepare("SELECT body FROM health ORDER BY device")?;
        let bodies: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let parse = |body: &String| {
            let damaged = |error| StoreError::Damaged { what: format!("an agent's health ({error})") };
            serde_json::from_str(body).map_err(damaged)
        };
        Ok((all(&self.connection)?, bodies.iter().map(parse).collect::<Result<_, _>>()?))
    }
}

/// The counts on disk.
pub(super) fn read(connection: &Connection) -> Result<Counts, StoreError> {
    let all = all(connection)?;
    Ok(Counts::from_named(|name| all.get(name).copied().unwrap_or(0)))
}

/// Writes what changed from `was` to `now`.
pub(super) fn write(transaction: &Transaction<'_>, was: &Counts, now: &Counts) -> Result<(), StoreError> {
    let changed = was.named().into_iter().zip(now.named()).filter(|(was, now)| was != now);
    changed.map(|(_, now)| now).try_for_each(|(name, count)| put(transaction, name, count))
}

fn put(transaction: &Transaction<'_>, name: &str, count: u64) -> Result<(), StoreError> {
    let statement = "INSERT OR REPLACE INTO counters (name, count) VALUES (?, ?)";
    transaction.prepare_cached(statement)?.execute(params![name, sql(count)])?;
    Ok(())
}

fn all(connection: &Connection) -> Result<BTreeMap<String, u64>, StoreError> {
    let mut statement = connection.prepare("SELECT name, count FROM counters")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, number(row.get(1)?))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn unknown(records: &[Record]) -> u64 {
    records.iter().filter(|&&record| Sample::try_from(record).is_err()).count() as u64
}
