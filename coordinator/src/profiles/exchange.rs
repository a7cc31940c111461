//! Whole stores as texts: `adaptis.profiles/1` with all that a store holds, and a table for people and other tools.
//!
//! ```text
//! { "format": "adaptis.profiles/1",
//!   "profiles": [ { "kind": "a100-40g", "signature": "mlp/4096x16384/bf16/b1xs4096", "phase": "forward",
//!                   "seconds": 0.0012, "count": 640, "low": 0.0011, "high": 0.0014,
//!                   "software": "power limit 400 W", "source": "6f1b...", "first_seen": 1790000000,
//!                   "last_seen": 1790003600, "sketch": [[1198000, 320], [1204000, 320]] } ],
//!   "sources": [ { "id": "6f1b...", "name": "run-7", "how": "run", "samples": 640, ... } ],
//!   "links": [ .. ], "memories": [ .. ], "layers": [ .. ], "kinds": [ .. ], "rates": [ .. ],
//!   "overheads": [ .. ] }
//! ```
//!
//! 1. `seconds` is the median, `low` and `high` are the 5th and 95th percentile; `sketch` lists nanoseconds and how often
//!    they occurred, and counts where it is given. Without it, `count` samples are put at those three.
//! 2. What names no source is the file's own.
//! 3. read(write(x)) = x.

mod shape;
mod table;
mod write;

pub use table::{COLUMNS, Row, csv, rows};
pub use write::write;

use super::account::{Account, Collection, Distribution, KindMemory, Memory, Sizes, Source, TransferKey, WorkKey};
use super::measurement::{FORMAT, MeasuredPhase};
use super::sketch::Sketch;
use super::source;
use adaptis_coordinator_core::next_job::Overhead;
use adaptis_plan::FormatError;
use adaptis_plan::json;
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::Phase;
use shape::{File, KindRow, LayerRow, LinkRow, MemoryRow, OverheadRow, ProfileRow, RateRow, SourceRow};
use std::collections::BTreeMap;

/// Longest time that is believed: an hour is a mistake in the unit.
pub(super) const SECONDS_MAX: f64 = 3600.0;
/// Of `count` samples without a sketch, one in so many lies at `low`, and one at `high`.
const TAIL: u64 = 20;

/// Why a text is no list of profiles.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Not of the format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Of the format, with a value that makes no sense.
    #[error("{path}: {problem}")]
    Value {
        /// Where.
        path: String,
        /// What is wrong there and what would be right.
        problem: String,
    },
    /// A backward that is not split, and nobody said how to.
    #[error(
        "{path}: a backward that is not split into input and weight gradient; `adaptis profiles import --split-backward \
         0.5:0.5` splits it"
    )]
    Unsplit {
        /// The first such place.
        path: String,
    },
}

/// A backward as input and weight gradient: the shares of both. What an embedding takes in are tokens, which have no
/// gradient: there all of it is the weights'.
pub(super) fn split(signature: &str, input_share: f64) -> [(Phase, f64); 2] {
    let layer_type = signature.split('/').next().unwrap_or_default();
    let input_share = if layer_type.to_ascii_lowercase().contains("embedding") { 0.0 } else { input_share };
    [(Phase::InputGradient, input_share), (Phase::WeightGradient, 1.0 - input_share)]
}

/// What a measured phase is among ours; none for a backward as a whole.
pub(super) fn phase_of(phase: MeasuredPhase) -> Option<Phase> {
    Phase::ALL.into_iter().find(|&own| MeasuredPhase::from(own) == phase)
}

/// Seconds as whole nanoseconds.
pub(super) fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

/// Reads a text by the name of its file; `split_backward` is the input gradient's share of a backward that is not split,
/// `now` is in seconds since 1970.
///
/// # Errors
/// Not of the format: the path to the first such place.
pub fn read(name: &str, text: &str, split_backward: Option<f64>, now: u64) -> Result<Collection, ExchangeError> {
    let file: File = json::read(text, FORMAT)?;
    let mut accounts: BTreeMap<String, Account> = BTreeMap::new();
    for (at, row) in file.sources.into_iter().enumerate() {
        let path = || format!("sources[{at}].id");
        if row.id.is_empty() || accounts.contains_key(&row.id) {
            return Err(value(path(), "an id is given once, and is not empty"));
        }
        let SourceRow { id, name, how, samples, first_seen, last_seen, merged } = row;
        let source = Source { id: id.clone(), name, how, samples, first_seen, last_seen, merged };
        accounts.insert(id, Account { source, ..Account::default() });
    }
    let own = Source { first_seen: now, last_seen: now, ..Source::default() };
    let own = Account { source: own, ..Account::default() };
    let mut reading = Reading { accounts, own, split_backward, has_split: false };
    for (at, row) in file.profiles.into_iter().enumerate() {
        reading.profile(&format!("profiles[{at}]"), row)?;
    }
    for (at, row) in file.links.into_iter().enumerate() {
        reading.link(&format!("links[{at}]"), row)?;
    }
    reading.rest(file.memories, file.layers, file.kinds)?;
    reading.rates(file.rates)?;
    reading.overheads(file.overheads)?;
    let Reading { accounts, mut own, has_split, .. } = reading;
    let split = split_backward.filter(|_| has_split).map(split_text);
    let how = source::reading("adaptis", [("backward split", split)]);
    own.source = Source::of_file(&source::content_of(text.as_bytes()), name, &how, now);
    own.count_samples();
    let mut collection = Collection::default();
    accounts.into_values().for_each(|account| collection.take(account));
    if !own.is_empty() {
        collection.take(own);
    }
    Ok(collection)
}

/// How a backward was split, for the source's words.
pub(super) fn split_text(input_share: f64) -> String {
    let weight_share = ((1.0 - input_share) * 1e6).round() / 1e6;
    format!("{input_share}:{weight_share}")
}

fn value(path: impl Into<String>, problem: impl Into<String>) -> ExchangeError {
    ExchangeError::Value { path: path.into(), problem: problem.into() }
}

struct Reading {
    accounts: BTreeMap<String, Account>,
    own: Account,
    split_backward: Option<f64>,
    /// Whether a row of the file's own was split.
    has_split: bool,
}

impl Reading {
    fn account(&mut self, path: &str, source: Option<&str>) -> Result<&mut Account, ExchangeError> {
        match source {
            None => Ok(&mut self.own),
            Some(id) => {
                self.accounts.get_mut(id).ok_or_else(|| value(format!("{path}.source"), "no such id in `sources`"))
            }
        }
    }

    fn profile(&mut self, path: &str, row: ProfileRow) -> Result<(), ExchangeError> {
        let phase: MeasuredPhase =
            row.phase.parse().map_err(|error| value(format!("{path}.phase"), format!("{error}")))?;
        for (field, name) in [("kind", &row.kind), ("signature", &row.signature)] {
            if name.trim().is_empty() {
                return Err(value(format!("{path}.{field}"), "is empty"));
            }
        }
        let times = [Some(row.seconds), row.low, row.high];
        let sketch = sketch(path, times, row.count, row.sketch.as_deref())?;
        let parts = match phase_of(phase) {
            Some(phase) => vec![(phase, 1.0)],
            None => match self.split_backward {
                Some(share) => split(&row.signature, share).to_vec(),
                None => return Err(ExchangeError::Unsplit { path: path.to_owned() }),
            },
        };
        self.has_split |= parts.len() > 1 && row.source.is_none();
        let account = self.account(path, row.source.as_deref())?;
        let seen =
            [row.first_seen.unwrap_or(account.source.first_seen), row.last_seen.unwrap_or(account.source.last_seen)];
        for (phase, share) in parts.into_iter().filter(|(_, share)| *share > 0.0) {
            let part = if share == 1.0 { sketch.clone() } else { scaled(&sketch, share) };
            let key = WorkKey {
                signature: row.signature.clone(),
                kind: row.kind.clone(),
                phase,
                software: row.software.clone(),
            };
            add(&mut account.works, key, &Distribution::new(&part, seen[0], seen[1]));
        }
        Ok(())
    }

    fn link(&mut self, path: &str, row: LinkRow) -> Result<(), ExchangeError> {
        let sketch = sketch(path, [Some(row.seconds), None, None], row.count, row.sketch.as_deref())?;
        let account = self.account(path, row.source.as_deref())?;
        let seen =
            [row.first_seen.unwrap_or(account.source.first_seen), row.last_seen.unwrap_or(account.source.last_seen)];
        let key = TransferKey { sender: row.from, receiver: row.to, bytes: row.bytes };
        add(&mut account.transfers, key, &Distribution::new(&sketch, seen[0], seen[1]));
        Ok(())
    }

    fn rest(
        &mut self,
        memories: Vec<MemoryRow>,
        layers: Vec<LayerRow>,
        kinds: Vec<KindRow>,
    ) -> Result<(), ExchangeError> {
        for (at, row) in memories.into_iter().enumerate() {
            let path = format!("memories[{at}]");
            if row.weight_gradient_bytes.is_some_and(|part| part > row.activation_bytes) {
                return Err(value(
                    path + ".weight_gradient_bytes",
                    "is more than activation_bytes, of which it is a part",
                ));
            }
            let MemoryRow { activation_bytes, weight_gradient_bytes, workspace_bytes, .. } = row;
            let memory = Memory { activation_bytes, weight_gradient_bytes, workspace_bytes };
            self.account(&path, row.source.as_deref())?.memories.insert((row.signature, row.kind), memory);
        }
        for (at, row) in layers.into_iter().enumerate() {
            let LayerRow { parameter_bytes, state_bytes, output_bytes, moved_bytes, .. } = row;
            let sizes = Sizes { parameter_bytes, state_bytes, output_bytes, moved_bytes };
            let account = self.account(&format!("layers[{at}]"), row.source.as_deref())?;
            account.sizes.insert(row.signature, sizes);
        }
        for (at, row) in kinds.into_iter().enumerate() {
            let memory = KindMemory { memory_bytes: row.memory_bytes, reserved_bytes: row.reserved_bytes };
            self.account(&format!("kinds[{at}]"), row.source.as_deref())?.kinds.insert(row.kind, memory);
        }
        Ok(())
    }
}

impl Reading {
    fn rates(&mut self, rates: Vec<RateRow>) -> Result<(), ExchangeError> {
        for (at, row) in rates.into_iter().enumerate() {
            let path = format!("rates[{at}]");
            let rates = Rates { operations_per_s: row.operations_per_second, bytes_per_s: row.bytes_per_second };
            for (field, rate) in
                [("operations_per_second", rates.operations_per_s), ("bytes_per_second", rates.bytes_per_s)]
            {
                if rate == Some(0) {
                    return Err(value(
                        format!("{path}.{field}"),
                        "a rate is positive; leave out what was not measured",
                    ));
                }
            }
            self.account(&path, row.source.as_deref())?.rates.insert(row.kind, rates);
        }
        Ok(())
    }

    fn overheads(&mut self, overheads: Vec<OverheadRow>) -> Result<(), ExchangeError> {
        for (at, row) in overheads.into_iter().enumerate() {
            let path = format!("overheads[{at}]");
            let ns = |field: &str, seconds: f64| match (0.0..=SECONDS_MAX).contains(&seconds) {
                true => Ok(nanoseconds(seconds)),
                false => Err(value(format!("{path}.{field}"), "a time is not negative and at most an hour")),
            };
            let part = |field: &str, seconds: Option<f64>| seconds.map(|seconds| ns(field, seconds)).transpose();
            let overhead = Overhead {
                instruction_ns: part("instruction_seconds", row.instruction_seconds)?,
                transfer_ns: part("transfer_seconds", row.transfer_seconds)?,
            };
            self.account(&path, row.source.as_deref())?.overheads.insert(row.kind, overhead);
        }
        Ok(())
    }
}

/// Adds to what is known under a key.
pub(super) fn add<K: Ord>(map: &mut BTreeMap<K, Distribution>, key: K, new: &Distribution) {
    let known = map.remove(&key);
    let all: Vec<&Distribution> = known.iter().chain([new]).collect();
    let together = Distribution::of_all(&all).expect("both were packed here");
    map.extend(together.map(|together| (key, together)));
}

/// Every time of a sketch, multiplied.
fn scaled(sketch: &Sketch, factor: f64) -> Sketch {
    let mut scaled = Sketch::new();
    sketch.bins().for_each(|(ns, count)| scaled.record_n((ns as f64 * factor).round() as u64, count));
    scaled
}

/// The sketch of a row: of its bins if it has them, else of its median and percentiles.
fn sketch(
    path: &str,
    [median, low, high]: [Option<f64>; 3],
    count: u64,
    bins: Option<&[[u64; 2]]>,
) -> Result<Sketch, ExchangeError> {
    let mut sketch = Sketch::new();
    if let Some(bins) = bins {
        let sum = bins.iter().try_fold(0_u64, |sum, &[_, times]| sum.checked_add(times));
        if sum != Some(count) || bins.iter().any(|&[_, times]| times == 0) {
            let problem = format!("its bins do not add up to the {count} samples of `count`, each at least one");
            return Err(value(format!("{path}.sketch"), problem));
        }
        bins.iter().for_each(|&[ns, times]| sketch.record_n(ns, times));
        return Ok(sketch);
    }
    for (field, seconds) in [("seconds", median), ("low", low), ("high", high)] {
        if seconds.is_some_and(|seconds| !(seconds > 0.0 && seconds <= SECONDS_MAX)) {
            let problem = "a time is positive and at most an hour; leave out what was not measured";
            return Err(value(format!("{path}.{field}"), problem));
        }
    }
    if count == 0 {
        return Err(value(format!("{path}.count"), "0 samples: leave out what was not measured"));
    }
    let seconds = median.expect("the median is required");
    let (low, high) = (low.unwrap_or(seconds), high.unwrap_or(seconds));
    if low > seconds || high < seconds {
        return Err(value(format!("{path}.seconds"), "the median lies between `low` and `high`"));
    }
    let tail = count.div_ceil(TAIL) * u64::from(count > 2);
    sketch.record_n(nanoseconds(low), tail);
    sketch.record_n(nanoseconds(seconds), count - 2 * tail);
    sketch.record_n(nanoseconds(high), tail);
    Ok(sketch)
}
