//! What earlier jobs measured, read beside the loop: a store may be large, or locked, and training waits for nobody.

use crate::profiles::earlier::{Wanted, earlier};
use crate::profiles::library;
use adaptis_coordinator_core::estimate::earlier::Earlier;
use adaptis_proto::Generation;
use adaptis_proto::rates::Rates;
use crossbeam::channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// How much it steps back from training, in units of `nice`.
const NICENESS: i32 = 10;
/// Results that wait to be taken. Full: whoever has read waits until the loop takes one, as it does at every turn.
const RESULTS_MAX: usize = 4;

/// Which read: of which membership, and its number.
type Ticket = (Generation, u64);

/// What a read came to.
type Read = (Ticket, Result<Option<Earlier>, String>);

/// Reads a store when it is asked for something new.
///
/// A membership may ask again as its agents calibrate: what any of its reads found counts until a later one finds
/// something. That nothing was found is said once for a membership, when no read is under way that may still find it.
pub(crate) struct Recalls {
    store: Option<PathBuf>,
    /// For which membership, and what its agents had calibrated.
    asked: Option<(Generation, BTreeMap<String, Rates>)>,
    /// Of the last read that was begun.
    number: u64,
    /// Reads of the present membership that are under way.
    under_way: usize,
    /// The latest read of it that did not fail.
    read: Option<u64>,
    /// Said that it has none.
    is_warned: bool,
    results: Receiver<Read>,
    sender: Sender<Read>,
}

impl Recalls {
    pub(crate) fn new(store: Option<PathBuf>) -> Self {
        let (sender, results) = bounded(RESULTS_MAX);
        Self { store, asked: None, number: 0, under_way: 0, read: None, is_warned: false, results, sender }
    }

    /// Whether nothing was asked for a membership yet, which may have other kinds than the one before, or not since its
    /// agents calibrated more: what earlier jobs ran on other kinds tells of these by their rates.
    pub(crate) fn is_due(&self, generation: Generation, rates: &BTreeMap<String, Rates>) -> bool {
        let is_asked = |asked: &(Generation, BTreeMap<String, Rates>)| asked.0 == generation && asked.1 == *rates;
        self.store.is_some() && !self.asked.as_ref().is_some_and(is_asked)
    }

    /// Starts to read what a membership wants.
    pub(crate) fn ask(&mut self, generation: Generation, wanted: Wanted) {
        let Some(store) = self.store.clone() else { return };
        let ticket = self.begin(generation, wanted.rates.clone());
        let sender = self.sender.clone();
        let work = move || {
            if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                tracing::debug!(%error, "the store is read with the priority of the coordinator");
            }
            let read = catch_unwind(AssertUnwindSafe(|| read(&store, &wanted)));
            let read = read.unwrap_or_else(|_| Err(format!("{}: reading it panicked", store.display())));
            // The coordinator may have ended meanwhile.
            let _ = sender.send((ticket, read));
        };
        if let Err(error) = std::thread::Builder::new().name("recall".into()).spawn(work) {
            let failed = self.hear((ticket, Err(format!("no thread to read the store: {error}"))));
            if let Err(error) = failed {
                warn(&error);
            }
        }
    }

    /// What was found since the last time, once.
    pub(crate) fn take(&mut self) -> Option<Earlier> {
        let mut latest = None;
        while let Ok(read) = self.results.try_recv() {
            match self.hear(read) {
                Ok(found) => latest = found.or(latest),
                Err(error) => warn(&error),
            }
        }
        latest
    }

    fn begin(&mut self, generation: Generation, rates: BTreeMap<String, Rates>) -> Ticket {
        if self.asked.as_ref().is_none_or(|before| before.0 != generation) {
            (self.under_way, self.read, self.is_warned) = (0, None, false);
        }
        self.asked = Some((generation, rates));
        self.number += 1;
        self.under_way += 1;
        (generation, self.number)
    }

    /// What a read tells that is newer than what is known; or why the membership has nothing.
    fn hear(&mut self, ((generation, number), found): Read) -> Result<Option<Earlier>, String> {
        if self.asked.as_ref().is_none_or(|asked| asked.0 != generation) {
            return Ok(None);
        }
        self.under_way = self.under_way.saturating_sub(1);
        match found {
            Ok(_) if self.read.is_some_and(|read| read > number) => Ok(None),
            Ok(found) => {
                self.read = Some(number);
                Ok(found)
            }
            Err(error) if self.read.is_none() && self.under_way == 0 && !self.is_warned => {
                self.is_warned = true;
                Err(error)
            }
            Err(error) => {
                tracing::debug!(%error, "the store was not read once more");
                Ok(None)
            }
        }
    }
}

fn warn(error: &str) {
    tracing::warn!("this run begins without what earlier ones measured: {error}");
}

/// What a store tells; none while there is no store.
fn read(store: &Path, wanted: &Wanted) -> Result<Option<Earlier>, String> {
    if store.is_dir() && !store.join(library::FILE).exists() || !store.exists() {
        return Ok(None);
    }
    let collection = library::read(store).map_err(|error| error.to_string())?;
    earlier(&collection, wanted).map(Some).map_err(|error| format!("{}: {error}", store.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profiles::library::{FILE, Library};
    use adaptis_coordinator_core::estimate::earlier::OfKind;
    use rusqlite::Connection;

    fn wanted() -> Wanted {
        Wanted { kinds: ["h100-80g".to_owned()].into(), ..Wanted::default() }
    }

    #[test]
    fn a_store_that_is_not_there_tells_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), &wanted()), Ok(None));
        assert_eq!(read(&dir.path().join("none"), &wanted()), Ok(None));
        Library::open(dir.path()).unwrap();
        assert_eq!(read(dir.path(), &wanted()), Ok(Some(Earlier::default())), "an empty one");
    }

    fn found(kind: &str) -> Earlier {
        Earlier { kinds: [(kind.to_owned(), OfKind::default())].into(), ..Earlier::default() }
    }

    /// Reads of one store, whose results come as a test has them come.
    fn recalls() -> Recalls {
        Recalls::new(Some(PathBuf::from("store")))
    }

    fn calibrated(operations: u64) -> BTreeMap<String, Rates> {
        [("h100-80g".to_owned(), Rates { operations_per_s: Some(operations), ..Rates::default() })].into()
    }

    #[test]
    fn what_was_read_counts_until_a_later_read_finds_something() {
        let mut recalls = recalls();
        let generation = Generation(1);
        let first = recalls.begin(generation, BTreeMap::new());
        assert!(recalls.is_due(generation, &calibrated(1)), "its agents calibrated meanwhile");
        let second = recalls.begin(generation, calibrated(1));
        recalls.sender.send((first, Ok(Some(found("first"))))).unwrap();
        assert_eq!(recalls.take(), Some(found("first")), "although the rates are others by now");
        recalls.sender.send((second, Err("it is locked".into()))).unwrap();
        assert_eq!(recalls.take(), None);
        // The later one first: what the earlier one says is older.
        let [third, fourth] = [2, 3].map(|of| recalls.begin(generation, calibrated(of)));
        recalls.sender.send((fourth, Ok(Some(found("fourth"))))).unwrap();
        recalls.sender.send((third, Ok(Some(found("third"))))).unwrap();
        assert_eq!((recalls.take(), recalls.take()), (Some(found("fourth")), None));
        let old = recalls.begin(generation, calibrated(4));
        recalls.begin(Generation(2), calibrated(4));
        recalls.sender.send((old, Ok(Some(found("old"))))).unwrap();
        assert_eq!(recalls.take(), None, "another membership has other kinds");
    }

    #[test]
    fn that_nothing_was_read_is_said_once_and_only_if_nothing_was() {
        let (mut recalls, failed) = (recalls(), |why: &str| Err(why.to_owned()));
        let [first, second] = [1, 2].map(|of| recalls.begin(Generation(1), calibrated(of)));
        assert_eq!(recalls.hear((first, failed("locked"))), Ok(None), "the second may still find it");
        assert_eq!(recalls.hear((second, failed("still locked"))), failed("still locked"));
        let third = recalls.begin(Generation(1), calibrated(3));
        assert_eq!(recalls.hear((third, failed("and again"))), Ok(None), "it was said");
        let [fourth, fifth] = [4, 5].map(|of| recalls.begin(Generation(2), calibrated(of)));
        assert_eq!(recalls.hear((fourth, Ok(Some(found("fourth"))))), Ok(Some(found("fourth"))));
        assert_eq!(recalls.hear((fifth, failed("locked"))), Ok(None), "it has what the fourth found");
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let error = || read(dir.path(), &wanted()).unwrap_err();
        std::fs::write(&path, "no database, but long enough to be looked at. ".repeat(100)).unwrap();
        assert!(error().contains("profiles.db is not a store"), "{}", error());
        std::fs::remove_file(&path).unwrap();
        Library::open(dir.path()).unwrap();
        let database = Connection::open(&path).unwrap();
        database.pragma_update(None, "user_version", 99).unwrap();
        assert!(error().contains("profiles.db is a store of profiles of version 99"), "{}", error());
        database.pragma_update(None, "user_version", library::VERSION).unwrap();
        database.execute_batch("BEGIN EXCLUSIVE").unwrap();
        assert!(error().contains("profiles.db: others have been writing"), "{}", error());
        database.execute_batch("COMMIT; DROP TABLE sources").unwrap();
        assert!(error().contains("profiles.db"), "{}", error());
    }
}
