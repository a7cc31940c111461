//! Profiles: what each layer class costs on each kind of device, as distributions that outlive the run.
//!
//! They gather in memory and are merged into the store from time to time and at the end. The store knows up to which
//! batch they are: a coordinator that follows one which was killed gathers the rest again, from the records on disk. A
//! run's store holds one source: the run.

use super::{Store, StoreError};
use crate::profiles::account::{Account, Distribution, KindMemory, Memory, Source, TransferKey, WorkKey};
use crate::profiles::sketch::Sketch;
use crate::profiles::tables::{self, TableError};
use adaptis_coordinator_core::estimate::between::Recent;
use adaptis_coordinator_core::ledger::GenerationRecord;
use adaptis_coordinator_core::next_job::Overhead;
use adaptis_proto::message::DeviceCard;
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::{Mark, Phase, Place, Record, Sample};
use adaptis_proto::{Incarnation, LayerIndex, Microbatch};
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
    /// By kind and device: what passed between instructions, lately.
    between: BTreeMap<String, BTreeMap<String, Recent>>,
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

    /// Takes what passed between a device's instructions in an iteration.
    pub fn record_between(&mut self, card: &DeviceCard, mark: Mark, instructions: u32, own_ns: u64, transfers: u64) {
        let devices: usize = self.between.values().map(BTreeMap::len).sum();
        let known = self.between.get(&card.kind).is_some_and(|of_kind| of_kind.contains_key(&card.name));
        if known || devices < PROFILES_MAX {
            let of_kind = self.between.entry(card.kind.clone()).or_default();
            of_kind.entry(card.name.clone()).or_default().absorb(mark, instructions, own_ns, transfers);
        }
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
            overheads: self.between.iter().filter_map(|(kind, of)| Some((kind.clone(), of_devices(of)?))).collect(),
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

/// What an instruction costs devices of a kind: that of the one in the middle.
fn of_devices(of_kind: &BTreeMap<String, Recent>) -> Option<Overhead> {
    Overhead::middle(&of_kind.values().map(Recent::overhead).collect::<Vec<_>>())
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

/// Takes what samples of a device tell of costs: warm works as they would take at the speed of its kind and the mean load,
/// which `over_usual` tells, transfers, memory.
pub(crate) fn absorb(
    profiles: &mut Profiles,
    of: &GenerationRecord,
    card: &DeviceCard,
    samples: impl Iterator<Item = Sample>,
    software: &str,
    over_usual: impl Fn(Place, (LayerIndex, Microbatch, Phase)) -> f64,
) {
    let signature = |layer: LayerIndex| of.job.layers.get(layer.index()).map(|layer| &layer.signature);
    // A batch holds many works of few layers: their class is looked up once.
    let mut works: BTreeMap<(LayerIndex, Phase), Vec<u64>> = BTreeMap::new();
    for sample in samples {
        match sample {
            Sample::Work { place, layer, microbatch, phase, mark: Mark::Warm, duration_ns, .. } => {
                let ns = (duration_ns as f64 / over_usual(place, (layer, microbatch, phase))).round() as u64;
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
            Sample::Between { mark, instructions, own_ns, transfers, .. } => {
                profiles.record_between(card, mark, instructions, own_ns, transfers);
            }
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
    /// Merges profiles into those on disk, and empties them of what adds up; `seen` is now, in seconds since 1970. All
    /// records that are on disk have to be in them, or in those merged before.
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
        for (kind, between) in &profiles.between {
            if let Some(overhead) = of_devices(between) {
                tables::put_overhead(&transaction, &source.id, kind, overhead)?;
            }
        }
        let taken = profiles.works.values().chain(profiles.transfers.values()).map(Sketch::count);
        source.samples = taken.fold(source.samples, u64::saturating_add);
        source.first_seen = if source.first_seen == 0 { seen } else { source.first_seen };
        source.last_seen = source.last_seen.max(seen);
        tables::put_source(&transaction, &source)?;
        let statement = "INSERT OR REPLACE INTO counters (name, count) SELECT ?, coalesce(max(id), 0) FROM records";
        transaction.execute(statement, [PROFILED_TO])?;
        transaction.commit()?;
        // The last word on what passes between instructions is that of some iterations, old ones among them.
        let between = std::mem::take(&mut profiles.between);
        *profiles = Profiles { left_out: profiles.left_out, between, ..Profiles::default() };
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

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_coordinator_core::estimate::{Estimated, Estimator, JobView, Load};
    use adaptis_proto::message::{Job, JobLayer};
    use adaptis_proto::{DeviceIndex, Epoch, Generation, Step, Term};

    const MICROBATCHES: u32 = 8;
    const PHASES: [Phase; 3] = [Phase::Forward, Phase::InputGradient, Phase::WeightGradient];
    /// By layer: times with the usual length, and the shares of them that are fixed, follow the length and its square.
    const COSTS: [([f64; 3], [f64; 3]); 2] =
        [([2.0e6, 2.6e6, 1.6e6], [0.1, 0.5, 0.4]), ([3.0e6, 3.2e6, 3.0e6], [0.05, 0.95, 0.0])];
    const LENGTH: f64 = 2_000.0;

    fn true_ns(layer: usize, phase: usize, load: Load) -> f64 {
        let ([fixed, tokens, squares], costs) = (COSTS[layer].1, COSTS[layer].0);
        costs[phase] * (fixed + tokens * load.tokens / LENGTH + squares * load.squares / LENGTH.powi(2))
    }

    /// SplitMix64, and from it a normal value.
    fn normal(state: &mut u64) -> f64 {
        let mut uniform = || {
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            (((z ^ z >> 31) >> 11) + 1) as f64 / (1_u64 << 53) as f64
        };
        (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
    }

    /// An iteration of sequences whose lengths are log-normal, and the loads of its microbatches.
    fn iteration(step: u64, state: &mut u64) -> (Vec<Load>, Vec<Sample>) {
        let place = Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
        let lengths: Vec<u64> =
            (0..MICROBATCHES).map(|_| (LENGTH * (0.6 * normal(state)).exp()).round() as u64).collect();
        let loads: Vec<Load> = lengths.iter().map(|&tokens| Load::new(tokens, tokens * tokens, 0)).collect();
        let mut samples: Vec<Sample> = Vec::new();
        for (microbatch, &tokens) in (0..).map(Microbatch).zip(&lengths) {
            samples.push(Sample::Load { place, microbatch, tokens, squares: tokens * tokens, busiest: 0 });
        }
        for (microbatch, &load) in loads.iter().enumerate() {
            for (layer, (phase, of)) in
                (0..COSTS.len()).flat_map(|layer| PHASES.iter().enumerate().map(move |of| (layer, of)))
            {
                let duration_ns = (true_ns(layer, phase, load) * (0.03 * normal(state)).exp()).round() as u64;
                let (layer, microbatch) = (LayerIndex::from(layer), Microbatch(microbatch as u32));
                let (phase, mark, start_ns) = (*of, Mark::Warm, 0);
                samples.push(Sample::Work { place, layer, microbatch, phase, mark, start_ns, duration_ns });
            }
        }
        samples.push(Sample::Iteration { place, start_ns: 0, duration_ns: 100_000_000, loss_bits: 0 });
        (loads, samples)
    }

    fn record() -> GenerationRecord {
        let layer = |at: usize| JobLayer {
            name: format!("layer{at}"),
            signature: format!("{}/s", ["attention", "mlp"][at]),
            parameter_bytes: 1_000_000,
            state_bytes: 16_000_000,
            output_bytes: 1_000_000,
            moved_bytes: 14_000_000,
        };
        let card = DeviceCard {
            name: "gpu0".to_owned(),
            kind: "h100-80g".to_owned(),
            memory_bytes: 80 << 30,
            reserved_bytes: 1 << 30,
        };
        let job = Job {
            run: adaptis_proto::RunId::default(),
            devices: vec!["gpu0".to_owned()],
            layers: (0..COSTS.len()).map(layer).collect(),
            microbatches: MICROBATCHES,
            iterations: 0,
            start_plan: None,
        };
        let (members, cards) = (Vec::new(), vec![card]);
        GenerationRecord { generation: Generation(1), epoch: Epoch(1), members, cards, job, term: Term(1) }
    }

    /// What is known of works' loads when they are kept.
    #[derive(Clone, Copy)]
    enum Loads {
        Known,
        Unknown,
        /// As if there were none.
        Ignored,
    }

    /// What the store would say: median times over the true ones at the mean load.
    fn off(estimated: &Estimated, loads_are: Loads, step: u64) -> Vec<f64> {
        let (of, mut profiles, mut state) = (record(), Profiles::default(), 77);
        let device = DeviceIndex(0);
        for step in step..step + 40 {
            let (loads, samples) = iteration(step, &mut state);
            absorb(&mut profiles, &of, &of.cards[0], samples.into_iter(), "", |_, (layer, microbatch, phase)| {
                let load = match loads_are {
                    Loads::Known => Some(loads[microbatch.index()]),
                    Loads::Unknown => None,
                    Loads::Ignored => return 1.0,
                };
                estimated.over_usual(device, layer, phase, load)
            });
        }
        let covariates = estimated.uncertainty.covariates.as_ref();
        let mean = covariates.expect("lengths differ").mean;
        let of_class = |(key, sketch): (&WorkKey, &Sketch)| {
            let layer =
                of.job.layers.iter().position(|layer| layer.signature == key.signature).expect("it is the job's");
            let phase = PHASES.iter().position(|phase| *phase == key.phase).expect("it is one of three");
            sketch.median_ns() as f64 / true_ns(layer, phase, mean)
        };
        profiles.works.iter().map(of_class).collect()
    }

    #[test]
    fn what_is_kept_is_the_time_at_the_mean_load() {
        let of = record();
        let view = JobView { layers: of.job.layers.clone(), devices: of.cards.clone(), microbatches: MICROBATCHES };
        let mut estimator = Estimator::new(view);
        let (device, mut state) = (DeviceIndex(0), 5);
        for layer in (0..COSTS.len()).map(LayerIndex::from) {
            let place = Place { step: Step(0), epoch: Epoch(1), generation: Generation(1) };
            let (activation_bytes, weight_gradient_bytes, workspace_bytes) = (5_000_000, 2_000_000, 0);
            let memory = Sample::LayerMemory { place, layer, activation_bytes, weight_gradient_bytes, workspace_bytes };
            estimator.absorb(device, &memory);
        }
        for step in 0..30 {
            iteration(step, &mut state).1.iter().for_each(|sample| estimator.absorb(device, sample));
        }
        let mut estimated = estimator.problem().expect("all was measured");
        let [with, without, ignored] =
            [Loads::Known, Loads::Unknown, Loads::Ignored].map(|loads_are| off(&estimated, loads_are, 30));
        println!(
            "stored over true at the mean load: {with:.3?}; of unknown loads {without:.3?}; ignored {ignored:.3?}"
        );
        assert_eq!(with.len(), 6);
        assert!(with.iter().all(|ratio| (ratio - 1.0).abs() < 0.03), "{with:?}");
        // Of a few hundred lengths the middle itself is known to some percent.
        assert!(without.iter().all(|ratio| (ratio - 1.0).abs() < 0.12), "{without:?}");
        assert!(ignored.iter().all(|ratio| (ratio - 1.0).abs() > 0.08), "{ignored:?}");
        // A device at half the speed of its kind.
        estimated.problem.devices[0].slowdown *= 2.0;
        let halved = off(&estimated, Loads::Known, 30);
        assert!(halved.iter().zip(&with).all(|(halved, with)| (2.0 * halved / with - 1.0).abs() < 0.03), "{halved:?}");
    }
}
