//! Whether what a ledger holds can all be true. Nobody reigns over one that contradicts itself, as a disk or a careless copy
//! may leave it: what is decided next would be built on sand.

use super::{Head, PlanRecord, Recovered};
use adaptis_proto::{Epoch, Generation};

/// Where a ledger contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// The plan in force is not there.
    #[error("plan {0} is in force, and is not there")]
    HeadPlan(Epoch),
    /// The newest membership is not the one in force.
    #[error("generation {head} is in force, and the newest one that is there is {newest}")]
    HeadGeneration {
        /// In force.
        head: Generation,
        /// There.
        newest: Generation,
    },
    /// A membership began on a plan that is not there.
    #[error("generation {generation} began on plan {epoch}, which is not there")]
    FirstPlan {
        /// Which membership.
        generation: Generation,
        /// Its plan.
        epoch: Epoch,
    },
    /// A plan follows one that is not there.
    #[error("plan {epoch} follows plan {parent}, which is not there")]
    Parent {
        /// Which plan.
        epoch: Epoch,
        /// The one before it.
        parent: Epoch,
    },
    /// A plan is of a membership that never was.
    #[error("plan {epoch} is of generation {generation}, which never was in force")]
    PlanGeneration {
        /// Which plan.
        epoch: Epoch,
        /// What it says.
        generation: Generation,
    },
    /// A number has none after it.
    #[error("a term, generation or epoch is the last number there is")]
    LastNumber,
}

impl Recovered {
    /// The first thing that can't be, if there is one.
    pub fn contradiction(&self) -> Option<Contradiction> {
        let Head { term, generation, epoch } = self.head;
        let newest = self.generation.as_ref().map_or(Generation(0), |record| record.generation);
        let is_there = |epoch: Epoch| epoch == Epoch(0) || self.plans.contains_key(&epoch);
        if term == term.next() || generation == generation.next() || epoch == epoch.next() {
            return Some(Contradiction::LastNumber);
        }
        if !is_there(epoch) {
            return Some(Contradiction::HeadPlan(epoch));
        }
        if newest != generation {
            return Some(Contradiction::HeadGeneration { head: generation, newest });
        }
        if let Some(record) = self.generation.as_ref().filter(|record| !is_there(record.epoch)) {
            return Some(Contradiction::FirstPlan { generation, epoch: record.epoch });
        }
        self.plans.values().find_map(|plan| {
            let PlanRecord { epoch, parent, .. } = *plan;
            if !is_there(parent) {
                return Some(Contradiction::Parent { epoch, parent });
            }
            (plan.generation > generation)
                .then_some(Contradiction::PlanGeneration { epoch, generation: plan.generation })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::GenerationRecord;
    use adaptis_proto::message::Job;
    use adaptis_proto::{Digest, RunId, Term};

    #[test]
    fn a_ledger_that_contradicts_itself_says_where() {
        let plan = |epoch: u64, parent: u64, generation: u64| PlanRecord {
            epoch: Epoch(epoch),
            parent: Epoch(parent),
            generation: Generation(generation),
            text: String::new(),
            digest: Digest::default(),
            term: Term(1),
        };
        let ledger = |head: (u64, u64), plans: &[PlanRecord]| Recovered {
            head: Head { term: Term(1), generation: Generation(head.0), epoch: Epoch(head.1) },
            plans: plans.iter().map(|plan| (plan.epoch, plan.clone())).collect(),
            ..Recovered::default()
        };
        let (none, some) = (Generation(0), Generation(1));
        let (parent, generation) = (Epoch(1), some);
        for (recovered, expected) in [
            (ledger((0, 0), &[]), None),
            (ledger((0, 2), &[plan(1, 0, 0)]), Some(Contradiction::HeadPlan(Epoch(2)))),
            (ledger((1, 0), &[]), Some(Contradiction::HeadGeneration { head: some, newest: none })),
            (ledger((0, 0), &[plan(2, 1, 0)]), Some(Contradiction::Parent { epoch: Epoch(2), parent })),
            (ledger((0, 0), &[plan(1, 0, 1)]), Some(Contradiction::PlanGeneration { epoch: Epoch(1), generation })),
            (ledger((0, u64::MAX), &[]), Some(Contradiction::LastNumber)),
        ] {
            assert_eq!(recovered.contradiction(), expected);
        }
    }

    #[test]
    fn a_generation_without_the_plan_that_it_starts_on_contradicts_the_ledger() {
        let generation = Generation(1);
        let job = Job {
            run: RunId(String::new()),
            devices: Vec::new(),
            layers: Vec::new(),
            microbatches: 1,
            iterations: 1,
            start_plan: None,
        };
        let record = GenerationRecord {
            generation,
            epoch: Epoch(1),
            members: Vec::new(),
            cards: Vec::new(),
            job,
            term: Term(1),
        };
        let recovered = Recovered {
            head: Head { term: Term(1), generation, epoch: Epoch(0) },
            generation: Some(record),
            ..Recovered::default()
        };
        assert_eq!(recovered.contradiction(), Some(Contradiction::FirstPlan { generation, epoch: Epoch(1) }));
    }
}
