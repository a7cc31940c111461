//! Profiles: what each layer class costs on each kind of device, as distributions that outlive the run.
//!
//! They gather in memory and are merged into the store from time to time and at the end. The store knows up to which
//! batch they are: a coordinator that follows one which was killed gathers the rest again, from the records on disk. A
//! run's store holds one source: the run.

use super::{Store, StoreError};
use crate::profiles::account::{Account, Distribution, KindMemory, Memory, Source, TransferKey, WorkKey};
use crate::profiles::sketch::Sketch;
use crate::profiles::tables::{self, TableError};
use adaptis_coordinator_core::ledger::GenerationRecord;
use adaptis_proto::Incarnation;
use adaptis_proto::LayerIndex;
use adaptis_proto::message::DeviceCard;
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::{Mark, Phase, Record, Sample};
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeMap;

/// Where the counters hold the number of the last batch whose records are in the profiles on disk.
const PROFILED_TO: &str = "profiled_to";
/// Profiles that are gathered at a time. Full: samples of other classes are left out, and counted.
const PROFILES_MAX: usize = 1_024;

/// What was measured since the last merge.
#[derive(Debug, Default)]
pub struct Profiles {
    works: BTreeMap<WorkKey, Sketch>,
    transfers: BTreeMap<TransferKey, Sketch>,
    /// By signature and kind: the last word.
    memories: BTreeMap<(String, String), Memory>,
    /// By kind: the most.
    reserved_bytes: BTreeMap<String, u64>,
    /// By kind: the best.
    rates: BTreeMap<String, Rates>,
    /// Samples left out because there were too many classes.
    left_out: u64,
}

impl Profiles {
    /// Takes a work's time.
    pub fn record(&mut self, signature: &str, kind: &str, phase: Phase, software: &str, duration_ns: u64) {
        self.record_all(signature, kind, phase, software, &[duration_ns]);
    }

    /// Takes the times of many works of one class.
    pub fn record_all(&mut self, signature: &str, kind: &str, phase: Phase, software: &str, durations_ns: &[u64]) {
        let (signature, kind, software) = (signature.to_owned(), kind.to_owned(), software.to_owned());
        let key = WorkKey { signature, kind, phase, software };
        self.left_out += record(&mut self.works, key, durations_ns);
    }

    /// Takes a transfer's time between devices of two kinds.
    pub fn record_transfer(&mut self, sender: &str, receiver: &str, bytes: u64, duration_ns: u64) {
        let key = TransferKey { sender: sender.to_owned(), receiver: receiver.to_owned(), bytes };
        self.left_out += record(&mut self.transfers, key, &[duration_ns]);
    }

    /// Takes what a layer holds.
    pub fn record_memory(&mut self, signature: &str, kind: &str, memory: Memory) {
        put(&mut self.memories, (signature.to_owned(), kind.to_owned()), memory, |known, now| *known = now);
    }

    /// Takes what of a device's memory is never available to layers.
    pub fn record_reserved(&mut self, kind: &str, bytes: u64) {
        put(&mut self.reserved_bytes, kind.to_owned(), bytes, |known, now| *known = (*known).max(now));
    }

    /// Takes what a device of a kind did in its agent's calibration.
    pub fn record_rates(&mut self, kind: &str, rates: Rates) {
        put(&mut self.rates, kind.to_owned(), rates, |known, now| *known = known.best(now));
    }

    /// Samples left out so far.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// As an account of a source whose samples came between two instants.
    pub(super) fn account(self, mut source: Source, memory_bytes: impl Fn(&str) -> u64) -> Account {
        let (first_seen, last_seen) = (source.first_seen, source.last_seen);
        let distribution = |sketch: &Sketch| Distribution::new(sketch, first_seen, last_seen);
        source.samples = 0;
        let kind = |(kind, reserved_bytes): (String, u64)| {
            let memory_bytes = memory_bytes(&kind);
            (kind, KindMemory { memory_bytes, reserved_bytes })
        };
        let mut account = Account {
            source,
            works: self.works.into_iter().map(|(key, sketch)| (key, distribution(&sketch))).collect(),
            transfers: self.transfers.into_iter().map(|(key, sketch)| (key, distribution(&sketch))).collect(),
            memories: self.memories,
            kinds: self.reserved_bytes.into_iter().map(kind).collect(),
            rates: self.rates,
            sizes: BTreeMap::new(),
        };
        account.count_samples();
        account
    }

    /// Adds a sketch of an older form.
    pub(super) fn add(&mut self, key: WorkKey, sketch: &Sketch) {
        self.works.entry(key).or_default().add(sketch);
    }
}

/// Gives how many there was no room for.
fn record<K: Ord>(sketches: &mut BTreeMap<K, Sketch>, key: K, durations_ns: &[u64]) -> u64 {
    if sketches.len() >= PROFILES_MAX && !sketches.contains_key(&key) {
        return durations_ns.len() as u64;
    }
    let sketch = sketches.entry(key).or_default();
    durations_ns.iter().for_each(|&ns| sketch.record(ns));
    0
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V, join: impl Fn(&mut V, V)) {
    let has_room = map.len() < PROFILES_MAX;
    match map.get_mut(&key) {
        Some(known) => join(known, value),
        None if has_room => drop(map.insert(key, value)),
        None => {}
    }
}

/// Takes what samples of a device tell of costs: warm works as they would take at the speed of its kind, transfers,
/// memory.
pub(crate) fn absorb(
    profiles: &mut Profiles,
    of: &GenerationRecord,
    card: &DeviceCard,
    samples: impl Iterator<Item = Sample>,
    software: &str,
    slowdown: Option<f64>,
) {
    let signature = |layer: LayerIndex| of.job.layers.get(layer.index()).map(|layer| &layer.signature);
    // A batch holds many works of few layers: their class is looked up once.
    let mut works: BTreeMap<(LayerIndex, Phase), Vec<u64>> = BTreeMap::new();
    for sample in samples {
        match sample {
            Sample::Work { layer, phase, mark: Mark::Warm, duration_ns, .. } => {
                let ns = slowdown.map_or(duration_ns, |slowdown| (duration_ns as f64 / slowdown).round() as u64);
                works.entry((layer, phase)).or_default().push(ns);
            }
            Sample::Transfer { from, mark: Mark::Warm | Mark::Calibration, bytes, duration_ns, .. } => {
                if let Some(sender) = of.cards.get(from.index()).filter(|sender| sender.name != card.name) {
                    profiles.record_transfer(&sender.kind, &card.kind, bytes, duration_ns);
                }
            }
            Sample::LayerMemory { layer, activation_bytes, weight_gradient_bytes, workspace_bytes, .. } => {
                if let Some(signature) = signature(layer) {
                    let weight_gradient_bytes = Some(weight_gradient_bytes.min(activation_bytes));
                    let memory = Memory { activation_bytes, weight_gradient_bytes, workspace_bytes };
                    profiles.record_memory(signature, &card.kind, memory);
                }
            }
            Sample::DeviceMemory { reserved_bytes, .. } => profiles.record_reserved(&card.kind, reserved_bytes),
            Sample::Work { .. }
            | Sample::Transfer { .. }
            | Sample::Iteration { .. }
            | Sample::Switch { .. }
            | Sample::Load { .. } => {}
        }
    }
    for ((layer, phase), durations_ns) in works {
        if let Some(signature) = signature(layer) {
            profiles.record_all(signature, &card.kind, phase, software, &durations_ns);
        }
    }
}

impl From<TableError> for StoreError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Sql(error) => error.into(),
            TableError::Damaged(what) => StoreError::Damaged { what },
        }
    }
}

impl Store {
    /// Merges profiles into those on disk, and empties them; `seen` is now, in seconds since 1970. All records that are
    /// on disk have to be in them, or in those merged before.
    ///
    /// # Errors
    /// The file fails, or holds bytes that are no histogram; the profiles are kept then.
    pub fn merge(&mut self, profiles: &mut Profiles, seen: u64) -> Result<(), StoreError> {
        let is_empty = profiles.works.is_empty() && profiles.transfers.is_empty() && profiles.memories.is_empty();
        if is_empty && profiles.reserved_bytes.is_empty() && profiles.rates.is_empty() {
            return Ok(());
        }
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut source = own(&transaction)?;
        for (key, sketch) in &profiles.works {
            tables::add_work(&transaction, &source.id, key, sketch, seen)?;
        }
        for (key, sketch) in &profiles.transfers {
            tables::add_transfer(&transaction, &source.id, key, sketch, seen)?;
        }
        for ((signature, kind), memory) in &profiles.memories {
            tables::put_memory(&transaction, &source.id, signature, kind, memory)?;
        }
        let known = tables::account_kinds(&transaction, &source.id)?;
        for (kind, &reserved_bytes) in &profiles.reserved_bytes {
            let known = known.get(kind).map_or(0, |known| known.reserved_bytes);
            let memory = KindMemory { memory_bytes: 0, reserved_bytes: reserved_bytes.max(known) };
            tables::put_kind(&transaction, &source.id, kind, &memory)?;
        }
        for (kind, rates) in &profiles.rates {
            tables::put_rates(&transaction, &source.id, kind, rates)?;
        }
        let taken = profiles.works.values().chain(profiles.transfers.values()).map(Sketch::count);
        source.samples = taken.fold(source.samples, u64::saturating_add);
        source.first_seen = if source.first_seen == 0 { seen } else { source.first_seen };
        source.last_seen = source.last_seen.max(seen);
        tables::put_source(&transaction, &source)?;
        let statement = "INSERT OR REPLACE INTO counters (name, count) SELECT ?, coalesce(max(id), 0) FROM records";
        transaction.execute(statement, [PROFILED_TO])?;
        transaction.commit()?;
        *profiles = Profiles { left_out: profiles.left_out, ..Profiles::default() };
        Ok(())
    }

    /// Calls `each` with every batch of records that came after the last merge, oldest first, and its device and process.
    ///
    /// # Errors
    /// The file fails, or holds bytes that are no records.
    pub fn unprofiled(&self, each: impl FnMut(String, Incarnation, Vec<Record>)) -> Result<(), StoreError> {
        let statement = "SELECT count FROM counters WHERE name = ?";
        let known = self.connection.query_row(statement, [PROFILED_TO], |row| row.get(0)).optional()?;
        let from = match known {
            Some(id) => id,
            // By a build that did not write it: what it merged is taken for all.
            None if own(&self.connection)?.samples > 0 => i64::MAX,
            None => 0,
        };
        self.replay_from(from, each)
    }

    /// The run as a source of profiles.
    ///
    /// # Errors
    /// The file fails.
    pub fn source(&self) -> Result<Source, StoreError> {
        own(&self.connection)
    }

    /// All profiles on disk.
    ///
    /// # Errors
    /// The file fails, or holds what no build wrote.
    pub fn profiles(&self) -> Result<Account, StoreError> {
        of_run(&self.connection)
    }
}

/// The run's own source.
fn own(connection: &Connection) -> Result<Source, StoreError> {
    let source = tables::sources(connection)?.into_iter().next();
    source.ok_or_else(|| StoreError::Damaged { what: "the name of the run's profiles".to_owned() })
}

/// All profiles of a run's store.
pub(super) fn of_run(connection: &Connection) -> Result<Account, StoreError> {
    Ok(tables::account(connection, own(connection)?)?)
}
