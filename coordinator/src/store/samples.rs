//! Samples on disk: batches as they came, the iterations in them, and how far each ring is stored.

use super::counters::{self, Counts};
use super::ledger::iterations;
use super::{Store, StoreError, number, sql};
use adaptis_coordinator_core::ledger::IterationRecord;
use adaptis_proto::Incarnation;
use adaptis_proto::message::Batch;
use adaptis_proto::sample::{Record, Sample};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

/// Bytes of records that a store keeps unless told otherwise. Full: the oldest batches go, and are counted.
pub const RECORDS_BYTES_MAX: u64 = 1 << 30;

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Number of the ring's first record that is not on disk.
    pub next: u64,
    /// The records that were new, in order.
    pub records: Vec<Record>,
    /// Records that were on disk already.
    pub duplicates: u64,
    /// Records that lie beyond a gap, and so were not taken: they come again.
    pub beyond_gap: u64,
    /// Numbers that the agent says will never come, since this was last said.
    pub lost: u64,
    /// Records that the ring dropped because it was full, since this was last said.
    pub dropped: u64,
    /// Records that were not taken because the batch's numbers are no numbers of a ring.
    pub refused: u64,
}

/// The largest number that the file can hold; a ring that counts a record each nanosecond gets there in 292 years.
const NUMBER_MAX: u64 = i64::MAX as u64;
/// Percent of the limit that a trim leaves, so that there is not one at each batch.
const TRIM_PERCENT: u64 = 95;

struct Cursor {
    next: u64,
    lost: u64,
    dropped: u64,
}

impl Store {
    /// Stores batches, all or none; they are on disk when this returns. A ring's records are taken in the order of
    /// their numbers: what is known already is left out, what lies beyond a gap is not taken. A batch without records
    /// says that nothing below its number will come. The iterations in a batch count only if it `is_of_member`. What
    /// became of the batches is counted with them.
    ///
    /// # Errors
    /// The file fails.
    pub fn store(
        &mut self,
        batches: &[Batch],
        is_of_member: impl Fn(&Batch) -> bool,
    ) -> Result<Vec<Stored>, StoreError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let (mut stored, mut counts) = (Vec::with_capacity(batches.len()), self.counts);
        for batch in batches {
            let is_of_member = is_of_member(batch);
            let of_batch = take(&transaction, batch, is_of_member)?;
            counts.add(&Counts::of(batch, &of_batch, is_of_member));
            stored.push(of_batch);
        }
        counters::write(&transaction, &self.counts, &counts)?;
        transaction.commit()?;
        self.counts = counts;
        self.records_bytes += stored.iter().map(|stored| bytes_of(&stored.records)).sum::<u64>();
        Ok(stored)
    }

    /// If there are more records than the limit, lets the oldest go until some room is left. Gives how many went, which
    /// are counted.
    ///
    /// # Errors
    /// The file fails.
    pub fn trim(&mut self) -> Result<u64, StoreError> {
        if self.records_bytes <= self.records_bytes_max {
            return Ok(0);
        }
        let room = self.records_bytes_max / 100 * TRIM_PERCENT + self.records_bytes_max % 100 * TRIM_PERCENT / 100;
        let excess = self.records_bytes - room;
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let (mut last, mut bytes) = (None, 0);
        {
            let mut statement = transaction.prepare_cached("SELECT id, length(body) FROM records ORDER BY id")?;
            let mut rows = statement.query([])?;
            while bytes < excess
                && let Some(row) = rows.next()?
            {
                last = Some(row.get::<_, i64>(0)?);
                bytes += number(row.get(1)?);
            }
        }
        if let Some(last) = last {
            transaction.execute("DELETE FROM records WHERE id <= ?", [last])?;
        }
        let gone = bytes / Record::BYTES as u64;
        let mut counts = self.counts;
        counts.add(&Counts { records_trimmed_from_store: gone, ..Counts::default() });
        counters::write(&transaction, &self.counts, &counts)?;
        transaction.commit()?;
        self.counts = counts;
        self.records_bytes = self.records_bytes.saturating_sub(bytes);
        Ok(gone)
    }

    /// All iterations, in order; one that was redone stands there once for each generation.
    ///
    /// # Errors
    /// The file fails.
    pub fn iterations(&self) -> Result<Vec<IterationRecord>, StoreError> {
        iterations(&self.connection, "ORDER BY step, generation")
    }

    /// Calls `each` with every batch of records, oldest first, the device and the process that it came from.
    ///
    /// # Errors
    /// The file fails, or holds bytes that are no records.
    pub fn replay(&self, each: impl FnMut(String, Incarnation, Vec<Record>)) -> Result<(), StoreError> {
        self.replay_from(0, each)
    }

    /// The batches beyond a number.
    pub(super) fn replay_from(
        &self,
        number_before: i64,
        mut each: impl FnMut(String, Incarnation, Vec<Record>),
    ) -> Result<(), StoreError> {
        let mut statement =
            self.connection.prepare("SELECT device, ring, body FROM records WHERE id > ? ORDER BY id")?;
        let mut rows = statement.query([number_before])?;
        while let Some(row) = rows.next()? {
            each(row.get(0)?, Incarnation(number(row.get(1)?)), records(&row.get::<_, Vec<u8>>(2)?)?);
        }
        Ok(())
    }
}

fn take(transaction: &Transaction<'_>, batch: &Batch, is_of_member: bool) -> Result<Stored, StoreError> {
    let known = cursor(transaction, batch)?;
    let count = batch.records.len() as u64;
    let is_floor = batch.records.is_empty();
    let end = batch.first.checked_add(count).filter(|&end| end <= NUMBER_MAX && batch.dropped <= NUMBER_MAX);
    if end.is_none() {
        return Ok(Stored { next: known.next, refused: count.max(1), ..Stored::default() });
    }
    let mut stored =
        Stored { next: known.next, dropped: batch.dropped.saturating_sub(known.dropped), ..Stored::default() };
    if is_floor && batch.first > known.next {
        stored.lost = batch.first - known.next;
        stored.next = batch.first;
    } else if batch.first > known.next {
        stored.beyond_gap = count;
    } else {
        stored.duplicates = (known.next - batch.first).min(count);
        let new = &batch.records[usize::try_from(stored.duplicates).unwrap_or(usize::MAX).min(batch.records.len())..];
        stored.records = new.to_vec();
        stored.next = known.next + new.len() as u64;
    }
    write_records(transaction, batch, &stored.records, is_of_member)?;
    let statement = "INSERT OR REPLACE INTO rings (ring, device, next, lost, dropped) VALUES (?, ?, ?, ?, ?)";
    let values = params![
        sql(batch.ring.0),
        batch.device,
        sql(stored.next),
        sql(known.lost.saturating_add(stored.lost)),
        sql(known.dropped.saturating_add(stored.dropped))
    ];
    transaction.prepare_cached(statement)?.execute(values)?;
    Ok(stored)
}

fn cursor(transaction: &Transaction<'_>, batch: &Batch) -> Result<Cursor, StoreError> {
    let mut statement = transaction.prepare_cached("SELECT next, lost, dropped FROM rings WHERE ring = ?")?;
    let row = statement.query_row([sql(batch.ring.0)], |row| {
        Ok(Cursor { next: number(row.get(0)?), lost: number(row.get(1)?), dropped: number(row.get(2)?) })
    });
    Ok(row.optional()?.unwrap_or(Cursor { next: 0, lost: 0, dropped: 0 }))
}

fn write_records(
    transaction: &Transaction<'_>,
    batch: &Batch,
    records: &[Record],
    is_of_member: bool,
) -> Result<(), StoreError> {
    if records.is_empty() {
        return Ok(());
    }
    let step = |record: &Record| record.0[1] >> 24;
    let first = records.iter().map(step).min().unwrap_or(0);
    let last = records.iter().map(step).max().unwrap_or(0);
    let mut body = Vec::with_capacity(records.len() * Record::BYTES);
    records.iter().flat_map(|record| record.0).for_each(|word| body.extend_from_slice(&word.to_le_bytes()));
    let (offset_ns, error_ns) =
        batch.clock.map_or((None, None), |clock| (Some(clock.offset_ns), Some(sql(clock.error_ns))));
    let statement = "INSERT INTO records (device, ring, first_step, last_step, offset_ns, error_ns, body) VALUES (?, ?, ?, ?, ?, ?, ?)";
    let values = params![batch.device, sql(batch.ring.0), sql(first), sql(last), offset_ns, error_ns, body];
    transaction.prepare_cached(statement)?.execute(values)?;
    if !is_of_member {
        return Ok(());
    }
    for sample in records.iter().filter_map(|&record| Sample::try_from(record).ok()) {
        if let Sample::Iteration { place, duration_ns, loss_bits, .. } = sample {
            // The longest that a device saw: a boundary is a barrier.
            let statement =
                "INSERT INTO iterations (step, generation, epoch, duration_ns, loss_bits) VALUES (?, ?, ?, ?, ?)
                ON CONFLICT (step, generation) DO UPDATE SET duration_ns = max(duration_ns, excluded.duration_ns)";
            let values = params![
                sql(place.step.0),
                sql(place.generation.0),
                sql(place.epoch.0),
                sql(duration_ns.min(NUMBER_MAX)),
                loss_bits
            ];
            transaction.prepare_cached(statement)?.execute(values)?;
        }
    }
    Ok(())
}

fn bytes_of(records: &[Record]) -> u64 {
    (records.len() * Record::BYTES) as u64
}

/// Bytes of all records.
pub(super) fn bytes(connection: &Connection) -> Result<u64, StoreError> {
    let sum: i64 = connection.query_row("SELECT coalesce(sum(length(body)), 0) FROM records", [], |row| row.get(0))?;
    Ok(number(sum))
}

/// The records in a body.
pub(super) fn records(body: &[u8]) -> Result<Vec<Record>, StoreError> {
    if !body.len().is_multiple_of(Record::BYTES) {
        return Err(StoreError::Damaged { what: format!("a batch of {} bytes", body.len()) });
    }
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("chunks of eight bytes"));
    let record = |bytes: &[u8]| {
        let mut words = bytes.chunks_exact(8).map(word);
        Record(std::array::from_fn(|_| words.next().expect("a record has as many words as bytes say")))
    };
    Ok(body.chunks_exact(Record::BYTES).map(record).collect())
}
