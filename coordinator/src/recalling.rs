//! What earlier jobs measured, read beside the loop: a store may be large, or locked, and training waits for nobody.

use crate::profiles::earlier::{Wanted, earlier};
use crate::profiles::library;
use adaptis_coordinator_core::estimate::earlier::Earlier;
use adaptis_proto::Generation;
use crossbeam::channel::{Receiver, Sender, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// How much it steps back from training, in units of `nice`.
const NICENESS: i32 = 10;
/// Results that wait to be taken. Full: the thread waits; each is asked for by another membership.
const RESULTS_MAX: usize = 4;

/// Reads a store when it is asked for something new.
pub(crate) struct Recalls {
    store: Option<PathBuf>,
    asked: Option<Generation>,
    results: Receiver<(Generation, Option<Earlier>)>,
    sender: Sender<(Generation, Option<Earlier>)>,
}

impl Recalls {
    pub(crate) fn new(store: Option<PathBuf>) -> Self {
        let (sender, results) = bounded(RESULTS_MAX);
        Self { store, asked: None, results, sender }
    }

    /// Whether nothing was asked for a membership yet, which may have other kinds than the one before.
    pub(crate) fn is_due(&self, generation: Generation) -> bool {
        self.store.is_some() && self.asked != Some(generation)
    }

    /// Starts to read what a membership wants.
    pub(crate) fn ask(&mut self, generation: Generation, wanted: Wanted) {
        let Some(store) = self.store.clone() else { return };
        self.asked = Some(generation);
        let sender = self.sender.clone();
        let work = move || {
            if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                tracing::debug!(%error, "the store is read with the priority of the coordinator");
            }
            let found = catch_unwind(AssertUnwindSafe(|| read(&store, &wanted))).unwrap_or_else(|_| {
                tracing::warn!(store = %store.display(), "reading the store panicked; this run starts without earlier ones");
                None
            });
            // The coordinator may have ended meanwhile.
            let _ = sender.send((generation, found));
        };
        if let Err(error) = std::thread::Builder::new().name("recall".into()).spawn(work) {
            tracing::warn!(%error, "no thread to read the store; this run starts without earlier ones");
        }
    }

    /// What was read for the last that was asked for, once.
    pub(crate) fn take(&mut self) -> Option<Earlier> {
        let (generation, found) = self.results.try_recv().ok()?;
        found.filter(|_| self.asked == Some(generation))
    }
}

/// What a store tells; without one that can be read nothing, and why is said once.
fn read(store: &std::path::Path, wanted: &Wanted) -> Option<Earlier> {
    if !store.join(library::FILE).exists() && !store.is_file() {
        tracing::info!(store = %store.display(), "no profiles there yet: this run starts without earlier ones");
        return None;
    }
    let read = library::read(store).map_err(|error| error.to_string());
    let told = read
        .and_then(|collection| earlier(&collection, wanted).map_err(|error| format!("{}: {error}", store.display())));
    told.map_err(|error| tracing::warn!("this run starts without what earlier ones measured: {error}")).ok()
}
