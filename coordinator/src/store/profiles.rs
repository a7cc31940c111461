//! Profiles: what each layer class costs on each kind of device, as distributions that outlive the run.
//!
//! Histograms gather in memory and are merged into the store from time to time and at the end; a killed coordinator
//! loses what it gathered since, and nothing else is made of them.

use super::{Store, StoreError};
use adaptis_proto::sample::Phase;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use rusqlite::{OptionalExtension, params};
use std::collections::BTreeMap;

/// Profiles that are gathered at a time. Full: samples of other classes are left out, and counted.
const PROFILES_MAX: usize = 4_096;
/// Shortest work that is told apart.
const LOW_NS: u64 = 1_000;
/// Longest work that is told apart; longer ones count as this.
const HIGH_NS: u64 = 60_000_000_000;
/// Significant digits: 10 KiB for one histogram.
const DIGITS: u8 = 2;

/// What was measured since the last merge.
#[derive(Debug, Default)]
pub struct Profiles {
    /// By signature, kind, phase.
    histograms: BTreeMap<(String, String, u8), Histogram<u64>>,
    /// Samples left out because there were too many classes.
    left_out: u64,
}

/// A profile on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Class of the layer.
    pub signature: String,
    /// Kind of the device.
    pub kind: String,
    /// What was done to it.
    pub phase: Phase,
    /// How long it took, in nanoseconds.
    pub histogram: Histogram<u64>,
}

impl Profiles {
    /// Takes a measurement.
    pub fn record(&mut self, signature: &str, kind: &str, phase: Phase, duration_ns: u64) {
        let is_full = self.histograms.len() >= PROFILES_MAX;
        let key = (signature.to_owned(), kind.to_owned(), phase as u8);
        if is_full && !self.histograms.contains_key(&key) {
            self.left_out += 1;
            return;
        }
        self.histograms.entry(key).or_insert_with(empty).saturating_record(duration_ns);
    }

    /// Samples left out so far.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

impl Store {
    /// Merges profiles into those on disk, and empties them.
    ///
    /// # Errors
    /// The file fails, or holds bytes that are no histogram; the profiles are kept then.
    pub fn merge(&mut self, profiles: &mut Profiles) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for ((signature, kind, phase), histogram) in &profiles.histograms {
            let statement = "SELECT histogram FROM profiles WHERE signature = ? AND kind = ? AND phase = ?";
            let key = params![signature, kind, phase];
            let known: Option<Vec<u8>> = transaction.query_row(statement, key, |row| row.get(0)).optional()?;
            let mut merged = known.map_or_else(|| Ok(empty()), |bytes| decode(&bytes, signature))?;
            let fits = merged.add(histogram);
            fits.map_err(|error| StoreError::Damaged { what: format!("the profile of {signature} ({error})") })?;
            let statement = "INSERT OR REPLACE INTO profiles VALUES (?, ?, ?, ?)";
            transaction.execute(statement, params![signature, kind, phase, encode(&merged)])?;
        }
        transaction.commit()?;
        profiles.histograms.clear();
        Ok(())
    }

    /// All profiles on disk.
    ///
    /// # Errors
    /// The file fails, or holds bytes that are no histogram.
    pub fn profiles(&self) -> Result<Vec<Profile>, StoreError> {
        let mut statement = self.connection.prepare("SELECT signature, kind, phase, histogram FROM profiles")?;
        let mut rows = statement.query([])?;
        let mut profiles = Vec::new();
        while let Some(row) = rows.next()? {
            let (signature, number): (String, u8) = (row.get(0)?, row.get(2)?);
            let damaged = || StoreError::Damaged { what: format!("the profile of {signature}") };
            let phase = *Phase::ALL.get(usize::from(number)).ok_or_else(damaged)?;
            let histogram = decode(&row.get::<_, Vec<u8>>(3)?, &signature)?;
            profiles.push(Profile { kind: row.get(1)?, signature, phase, histogram });
        }
        Ok(profiles)
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(LOW_NS, HIGH_NS, DIGITS).expect("the bounds are constants that hdrhistogram takes")
}

fn encode(histogram: &Histogram<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(histogram, &mut bytes).expect("a vector takes all bytes");
    bytes
}

fn decode(bytes: &[u8], signature: &str) -> Result<Histogram<u64>, StoreError> {
    let decoded = Deserializer::new().deserialize(&mut &bytes[..]);
    decoded.map_err(|error| StoreError::Damaged { what: format!("the profile of {signature} ({error})") })
}
