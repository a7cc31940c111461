//! Copies of the ledger's plans in the run's folder, for people and tools.
//!
//! The ledger is what counts: a copy that can't be written (a full disk, a folder that is gone) is counted and told once,
//! and written later.

use crate::CoordinatorError;
use crate::report;
use adaptis_coordinator_core::ledger::PlanRecord;
use std::path::PathBuf;

/// The folder of plans, and whether it lacks any.
pub(crate) struct Copies {
    dir: PathBuf,
    is_behind: bool,
    failed: u64,
}

impl Copies {
    /// In the folder of a run.
    pub(crate) fn new(dir: PathBuf) -> Copies {
        Copies { dir, is_behind: false, failed: 0 }
    }

    /// Writes a new plan.
    pub(crate) fn write(&mut self, plan: &PlanRecord) {
        let written = report::write_plan(&self.dir, plan);
        self.note(written);
    }

    /// Writes those of the ledger's plans that the folder lacks.
    pub(crate) fn catch_up<'a>(&mut self, plans: impl Iterator<Item = &'a PlanRecord>) {
        let written = report::write_missing_plans(&self.dir, plans);
        if written.is_ok() && std::mem::take(&mut self.is_behind) {
            tracing::info!("the copies of all plans are written");
        }
        self.note(written);
    }

    fn note(&mut self, written: Result<(), CoordinatorError>) {
        if let Err(error) = written {
            self.failed += 1;
            if !std::mem::replace(&mut self.is_behind, true) {
                tracing::warn!(%error, "a copy of a plan can't be written; the ledger has it, and the copy follows later");
            }
        }
    }

    /// Whether some copy is missing.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Writes that failed, under this reign.
    pub(crate) fn failed(&self) -> u64 {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::{Digest, Epoch, Generation, Term};

    #[test]
    fn a_copy_that_fails_is_counted_and_follows() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut copies = Copies::new(folder.path().to_owned());
        let plan = |epoch| PlanRecord {
            epoch: Epoch(epoch),
            parent: Epoch(0),
            generation: Generation(1),
            text: format!("plan {epoch}"),
            digest: Digest([0; 32]),
            term: Term(1),
        };
        let plans = [plan(1), plan(2), plan(3)];
        copies.write(&plans[0]);
        // What stands in the place of a copy keeps it from being put there.
        std::fs::create_dir_all(folder.path().join("plans/epoch-2.json/in-the-way")).expect("a folder");
        copies.write(&plans[1]);
        assert_eq!((copies.failed(), copies.is_behind()), (1, true));
        let left = |name: &str| folder.path().join("plans").join(name).exists();
        assert!(!left("epoch-2.json.new"), "half written files are taken away");
        std::fs::remove_dir_all(folder.path().join("plans")).expect("the folder was there");
        copies.catch_up(plans.iter());
        assert_eq!((copies.failed(), copies.is_behind()), (1, false));
        assert!(left("epoch-1.json") && left("epoch-2.json") && left("epoch-3.json"));
    }
}
