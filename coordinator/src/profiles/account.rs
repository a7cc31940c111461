//! What one source tells: a run, or a file that was imported.
//!
//! Accounts of different sources are kept apart for good and pooled only when they are read. So merging is a union: to
//! merge an account twice, or along two ways, counts it once; of two states of one run the one with more samples holds what
//! the other one does, and of two readings of one file the last one counts. Accounts of one origin are in one order, so it
//! does not matter in which they come.

pub use super::source::Source;

use super::sketch::{Sketch, Unreadable};
use adaptis_coordinator_core::next_job::Overhead;
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::Phase;
use std::collections::BTreeMap;

/// Beginning of the software key of emulated devices: their times are no card's.
pub const EMULATED: &str = "emulated";

/// What a profile of work is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkKey {
    /// Class of the layer.
    pub signature: String,
    /// Kind of the device.
    pub kind: String,
    /// What was done to it.
    pub phase: Phase,
    /// Driver, library versions, power limit; empty where unknown.
    pub software: String,
}

/// What a profile of transfers is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransferKey {
    /// Kind of the sender.
    pub sender: String,
    /// Kind of the receiver.
    pub receiver: String,
    /// Size of a transfer.
    pub bytes: u64,
}

/// A distribution of times with its place in history. The sketch is kept packed: thousands of them fit anywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distribution {
    /// Samples in it.
    pub count: u64,
    /// When the first one came, in seconds since 1970.
    pub first_seen: u64,
    /// When the last one came.
    pub last_seen: u64,
    pub(crate) packed: Vec<u8>,
}

impl Distribution {
    /// Of a sketch whose samples came between two instants.
    pub fn new(sketch: &Sketch, first_seen: u64, last_seen: u64) -> Self {
        Self { count: sketch.count(), first_seen, last_seen, packed: sketch.pack() }
    }

    /// Its sketch.
    ///
    /// # Errors
    /// What is stored is no sketch, or not the one that was stored with this count.
    pub fn sketch(&self) -> Result<Sketch, Unreadable> {
        let sketch = Sketch::unpack(&self.packed)?;
        match sketch.count() == self.count {
            true => Ok(sketch),
            false => Err(Unreadable::count(sketch.count(), self.count)),
        }
    }

    /// The samples of all of them together; none of none.
    ///
    /// # Errors
    /// What is stored of one is no sketch.
    pub fn of_all(all: &[&Distribution]) -> Result<Option<Distribution>, Unreadable> {
        let (first, more) = match all {
            [] => return Ok(None),
            [one] => return Ok(Some((*one).clone())),
            [first, more @ ..] => (first, more),
        };
        let mut sketch = first.sketch()?;
        for other in more {
            sketch.add(&other.sketch()?);
        }
        let first_seen = all.iter().map(|one| one.first_seen).min().unwrap_or_default();
        let last_seen = all.iter().map(|one| one.last_seen).max().unwrap_or_default();
        Ok(Some(Distribution::new(&sketch, first_seen, last_seen)))
    }
}

/// What a layer holds for one microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory {
    /// From the start of F.
    pub activation_bytes: u64,
    /// Of it, from the end of I to the end of W; none where the source does not say.
    pub weight_gradient_bytes: Option<u64>,
    /// Transient, during any instruction.
    pub workspace_bytes: u64,
}

/// What a layer takes wherever it lives; none where the source does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sizes {
    /// Weights alone.
    pub parameter_bytes: Option<u64>,
    /// Weights, gradients and optimizer state.
    pub state_bytes: Option<u64>,
    /// What crosses to the next layer, per microbatch.
    pub output_bytes: Option<u64>,
    /// What travels when it changes device.
    pub moved_bytes: Option<u64>,
}

/// What the devices of a kind have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KindMemory {
    /// Total memory.
    pub memory_bytes: u64,
    /// Of it, never available to layers: the most that was seen.
    pub reserved_bytes: u64,
}

/// All that one source tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Which source.
    pub source: Source,
    /// How long layers took.
    pub works: BTreeMap<WorkKey, Distribution>,
    /// How long transfers took.
    pub transfers: BTreeMap<TransferKey, Distribution>,
    /// What layers hold, by signature and kind.
    pub memories: BTreeMap<(String, String), Memory>,
    /// What layers take, by signature.
    pub sizes: BTreeMap<String, Sizes>,
    /// What devices have, by kind.
    pub kinds: BTreeMap<String, KindMemory>,
    /// What devices did at best in their agents' calibrations, by kind.
    pub rates: BTreeMap<String, Rates>,
    /// What an instruction costs devices besides its layers, by kind.
    pub overheads: BTreeMap<String, Overhead>,
}

impl Account {
    /// Where this account of an origin stands among all there may be of it: the last counts. Of a run's states the one with
    /// more samples, of a file's readings the later one; else whatever tells them apart. When it was merged does not.
    fn rank(&self) -> impl Ord + '_ {
        let Account { source, works, transfers, memories, sizes, kinds, rates, overheads } = self;
        let Source { id, name, how, samples, first_seen, last_seen, merged: _ } = source;
        let rates = rates.iter().map(|(kind, rates)| (kind, rates.operations_per_s, rates.bytes_per_s));
        let told = (works, transfers, memories, sizes, kinds, rates.collect::<Vec<_>>(), overheads);
        let is_file = source.is_file();
        let age = if is_file { [last_seen, samples] } else { [samples, last_seen] };
        (is_file, age, (id, how, name, first_seen), told)
    }

    /// Whether this account of an origin takes the place of a known one.
    pub fn replaces(&self, known: &Account) -> bool {
        self.rank() > known.rank()
    }

    /// Whether it tells nothing.
    pub fn is_empty(&self) -> bool {
        let Account { source: _, works, transfers, memories, sizes, kinds, rates, overheads } = self;
        let has_none = works.is_empty() && transfers.is_empty() && memories.is_empty();
        has_none && sizes.is_empty() && kinds.is_empty() && rates.is_empty() && overheads.is_empty()
    }

    /// Counts the samples of its distributions.
    pub(crate) fn count_samples(&mut self) {
        let all = self.works.values().chain(self.transfers.values());
        self.source.samples = all.fold(0, |sum: u64, distribution| sum.saturating_add(distribution.count));
    }
}

/// Accounts of several sources, each origin once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collection {
    /// By origin.
    accounts: BTreeMap<String, Account>,
}

impl Collection {
    /// Takes an account, unless what is known of its origin counts.
    pub fn take(&mut self, account: Account) {
        let origin = account.source.origin().to_owned();
        if let Some(known) = self.accounts.get_mut(&origin)
            && !account.replaces(known)
        {
            // The same, perhaps merged at another time.
            if !known.replaces(&account) {
                known.source.merged = known.source.merged.max(account.source.merged);
            }
            return;
        }
        self.accounts.insert(origin, account);
    }

    /// Takes all of another one's accounts.
    pub fn take_all(&mut self, other: Collection) {
        other.accounts.into_values().for_each(|account| self.take(account));
    }

    /// In order of their origins.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// By their order.
    pub fn into_accounts(self) -> Vec<Account> {
        self.accounts.into_values().collect()
    }

    /// Leaves out the works whose software is not wanted.
    pub fn retain_software(&mut self, is_wanted: impl Fn(&str) -> bool) {
        for account in self.accounts.values_mut() {
            account.works.retain(|key, _| is_wanted(&key.software));
        }
    }

    /// Leaves the profiles of the kinds and signatures that are wanted, and all that is not of a kind and a signature.
    pub fn retain(&mut self, is_wanted: impl Fn(&str, &str) -> bool) {
        for account in self.accounts.values_mut() {
            account.works.retain(|key, _| is_wanted(&key.kind, &key.signature));
            account.memories.retain(|(signature, kind), _| is_wanted(kind, signature));
            // A part of an account may not stand for the whole of it where both are merged.
            account.count_samples();
        }
    }

    /// Works of all sources, those of one key added up.
    ///
    /// # Errors
    /// Names the profile that can't be read.
    pub fn works(&self) -> Result<BTreeMap<WorkKey, Distribution>, BadProfile> {
        let all = self.accounts().flat_map(|account| &account.works);
        pooled(all, |key| format!("{} on {}, {:?}", key.signature, key.kind, key.phase))
    }

    /// Transfers of all sources, those of one key added up.
    ///
    /// # Errors
    /// Names the profile that can't be read.
    pub fn transfers(&self) -> Result<BTreeMap<TransferKey, Distribution>, BadProfile> {
        let all = self.accounts().flat_map(|account| &account.transfers);
        pooled(all, |key| format!("transfers of {} bytes from {} to {}", key.bytes, key.sender, key.receiver))
    }

    /// What layers hold, by signature and kind: of several sources the one that was seen last.
    pub fn memories(&self) -> BTreeMap<(String, String), Memory> {
        let mut memories = BTreeMap::new();
        self.by_age().for_each(|account| memories.extend(account.memories.clone()));
        memories
    }

    /// What layers take, by signature: of several sources the one that was seen last.
    pub fn sizes(&self) -> BTreeMap<String, Sizes> {
        let mut sizes = BTreeMap::new();
        self.by_age().for_each(|account| sizes.extend(account.sizes.clone()));
        sizes
    }

    /// What devices have, by kind: of several sources the one that was seen last.
    pub fn kinds(&self) -> BTreeMap<String, KindMemory> {
        let mut kinds = BTreeMap::new();
        self.by_age().for_each(|account| kinds.extend(account.kinds.clone()));
        kinds
    }

    /// What devices did at best in calibrations, by kind: of several sources the best.
    pub fn rates(&self) -> BTreeMap<String, Rates> {
        let mut rates: BTreeMap<String, Rates> = BTreeMap::new();
        for (kind, found) in self.accounts().flat_map(|account| &account.rates) {
            let known = rates.entry(kind.clone()).or_default();
            *known = known.best(*found);
        }
        rates
    }

    /// What an instruction costs devices besides its layers, by kind: of several sources the one that was seen last.
    pub fn overheads(&self) -> BTreeMap<String, Overhead> {
        let mut overheads = BTreeMap::new();
        for (kind, of) in self.by_age().flat_map(|account| &account.overheads) {
            learn(&mut overheads, kind, *of);
        }
        overheads
    }

    /// Oldest first.
    fn by_age(&self) -> impl Iterator<Item = &Account> {
        let mut accounts: Vec<&Account> = self.accounts().collect();
        accounts.sort_by_key(|account| account.source.last_seen);
        accounts.into_iter()
    }
}

/// Takes a later word on a kind's overhead.
pub(crate) fn learn(overheads: &mut BTreeMap<String, Overhead>, kind: &str, new: Overhead) {
    let known = overheads.entry(kind.to_owned()).or_default();
    *known = known.or_later(new);
}

/// A profile whose sketch can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the profile of {what} can't be read: {why}")]
pub struct BadProfile {
    /// Which.
    pub what: String,
    /// Why.
    pub why: Unreadable,
}

fn pooled<'a, K: Clone + Ord + 'a>(
    all: impl Iterator<Item = (&'a K, &'a Distribution)>,
    name: impl Fn(&K) -> String,
) -> Result<BTreeMap<K, Distribution>, BadProfile> {
    let mut groups: BTreeMap<&K, Vec<&Distribution>> = BTreeMap::new();
    all.for_each(|(key, distribution)| groups.entry(key).or_default().push(distribution));
    let mut pool = BTreeMap::new();
    for (key, group) in groups {
        let together = Distribution::of_all(&group).map_err(|why| BadProfile { what: name(key), why })?;
        pool.extend(together.map(|together| (key.clone(), together)));
    }
    Ok(pool)
}
