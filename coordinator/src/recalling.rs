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
/// Results that wait to be taken. Full: the thread waits; each is asked for by another membership.
const RESULTS_MAX: usize = 4;

type Asked = (Generation, BTreeMap<String, Rates>);

/// Reads a store when it is asked for something new.
pub(crate) struct Recalls {
    store: Option<PathBuf>,
    /// For which membership, and what its agents had calibrated.
    asked: Option<Asked>,
    results: Receiver<(Asked, Option<Earlier>)>,
    sender: Sender<(Asked, Option<Earlier>)>,
}

impl Recalls {
    pub(crate) fn new(store: Option<PathBuf>) -> Self {
        let (sender, results) = bounded(RESULTS_MAX);
        Self { store, asked: None, results, sender }
    }

    /// Whether nothing was asked for a membership yet, which may have other kinds than the one before, or not since its
    /// agents calibrated more: what earlier jobs ran on other kinds tells of these by their rates.
    pub(crate) fn is_due(&self, generation: Generation, rates: &BTreeMap<String, Rates>) -> bool {
        let is_asked = |asked: &Asked| asked.0 == generation && asked.1 == *rates;
        self.store.is_some() && !self.asked.as_ref().is_some_and(is_asked)
    }

    /// Starts to read what a membership wants.
    pub(crate) fn ask(&mut self, generation: Generation, wanted: Wanted) {
        let Some(store) = self.store.clone() else { return };
        let asked = (generation, wanted.rates.clone());
        let is_first = self.asked.as_ref().is_none_or(|before| before.0 != generation);
        self.asked = Some(asked.clone());
        let sender = self.sender.clone();
        let work = move || {
            if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                tracing::debug!(%error, "the store is read with the priority of the coordinator");
            }
            let read = catch_unwind(AssertUnwindSafe(|| read(&store, &wanted)));
            let read = read.unwrap_or_else(|_| Err(format!("{}: reading it panicked", store.display())));
            let found = read.unwrap_or_else(|error| {
                if is_first {
                    tracing::warn!("this run begins without what earlier ones measured: {error}");
                }
                None
            });
            // The coordinator may have ended meanwhile.
            let _ = sender.send((asked, found));
        };
        if let Err(error) = std::thread::Builder::new().name("recall".into()).spawn(work) {
            tracing::warn!(%error, "no thread to read the store; this run starts without earlier ones");
        }
    }

    /// What was read for the last that was asked for, once.
    pub(crate) fn take(&mut self) -> Option<Earlier> {
        let (asked, found) = self.results.try_recv().ok()?;
        found.filter(|_| self.asked == Some(asked))
    }
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
