//! A round: one plan on its way from the ledger into force.
//!
//! ```text
//!   opened --PREPARE, repeated--> all armed --the ranks' own vote--> active
//!      |                              |
//!      +-- a refusal, or the deadline +--> aborted
//! ```
//!
//! 1. A round exists only after its plan is in the ledger (NumbersOnce), and there is one at a time.
//! 2. PREPARE goes to those who have not answered, again and again: any message may be lost, and a doubled one does no
//!    harm.
//! 3. That the plan is in force is learned from any rank that runs it: the ranks' vote was unanimous.
//! 4. A refusal by a rank that already runs the plan is no refusal: its answer to a late PREPARE.
//!
//! Left out on purpose: what is sent and written, which is the brain's.

use crate::ledger::PlanRecord;
use adaptis_proto::message::Refusal;
use adaptis_proto::{DeviceIndex, Epoch};
use std::collections::BTreeSet;

/// A plan on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    plan: PlanRecord,
    unarmed: BTreeSet<DeviceIndex>,
    repeat_ns: u64,
    next_send_ns: u64,
    deadline_ns: u64,
}

/// What is due in a round.
#[derive(Clone, Debug, PartialEq)]
pub enum Due {
    /// Nothing before that instant.
    Wait {
        /// When to look again.
        until_ns: u64,
    },
    /// PREPARE, to these.
    Prepare(Vec<DeviceIndex>),
    /// The deadline has passed; these have not answered, or nobody if only the vote is missing.
    Expired {
        /// Who has not answered.
        missing: Vec<DeviceIndex>,
    },
}

/// What an answer did to a round.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It was about another plan, or said twice.
    Nothing,
    /// One more is armed.
    Armed,
    /// The last one is armed; the ranks' vote decides.
    AllArmed,
    /// One can't be; the plan is to be aborted.
    Refused,
    /// The plan is in force.
    Active,
}

impl Round {
    /// Opens a round among `members` devices; `repeat_ns` between PREPAREs, at most `limit_ns` in all.
    pub fn open(now_ns: u64, plan: PlanRecord, members: usize, repeat_ns: u64, limit_ns: u64) -> Self {
        Self {
            plan,
            unarmed: (0..members).map(DeviceIndex::from).collect(),
            repeat_ns,
            next_send_ns: now_ns,
            deadline_ns: now_ns.saturating_add(limit_ns),
        }
    }

    /// The plan.
    pub fn plan(&self) -> &PlanRecord {
        &self.plan
    }

    /// Its number.
    pub fn epoch(&self) -> Epoch {
        self.plan.epoch
    }

    /// When [`Round::due`] is to be asked again.
    pub fn deadline(&self) -> u64 {
        if self.unarmed.is_empty() { self.deadline_ns } else { self.next_send_ns.min(self.deadline_ns) }
    }

    /// What is due now.
    pub fn due(&mut self, now_ns: u64) -> Due {
        if now_ns >= self.deadline_ns {
            return Due::Expired { missing: self.unarmed.iter().copied().collect() };
        }
        if self.unarmed.is_empty() || now_ns < self.next_send_ns {
            return Due::Wait { until_ns: self.deadline() };
        }
        self.next_send_ns = now_ns.saturating_add(self.repeat_ns.max(1));
        Due::Prepare(self.unarmed.iter().copied().collect())
    }

    /// A rank is armed.
    pub fn on_prepared(&mut self, device: DeviceIndex, epoch: Epoch) -> Answer {
        if epoch != self.epoch() || !self.unarmed.remove(&device) {
            return Answer::Nothing;
        }
        if self.unarmed.is_empty() { Answer::AllArmed } else { Answer::Armed }
    }

    /// A rank won't be armed.
    pub fn on_refused(&self, epoch: Epoch, reason: &Refusal) -> Answer {
        match reason {
            _ if epoch != self.epoch() => Answer::Nothing,
            Refusal::Parent { own } if *own == epoch => Answer::Active,
            _ => Answer::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::{Digest, Generation, Term};

    fn round(members: usize) -> Round {
        let plan = PlanRecord {
            epoch: Epoch(4),
            parent: Epoch(2),
            generation: Generation(1),
            text: String::new(),
            digest: Digest::default(),
            term: Term(1),
        };
        Round::open(1_000, plan, members, 500, 10_000)
    }

    fn devices(of: &[u32]) -> Vec<DeviceIndex> {
        of.iter().map(|&device| DeviceIndex(device)).collect()
    }

    #[test]
    fn prepare_goes_again_and_again_to_those_who_have_not_answered() {
        let mut round = round(3);
        assert_eq!(round.due(1_000), Due::Prepare(devices(&[0, 1, 2])));
        assert_eq!(round.due(1_499), Due::Wait { until_ns: 1_500 });
        assert_eq!(round.on_prepared(DeviceIndex(1), Epoch(4)), Answer::Armed);
        assert_eq!(round.due(1_500), Due::Prepare(devices(&[0, 2])));
    }

    #[test]
    fn doubled_and_foreign_answers_change_nothing() {
        let mut round = round(2);
        assert_eq!(round.on_prepared(DeviceIndex(0), Epoch(3)), Answer::Nothing);
        assert_eq!(round.on_prepared(DeviceIndex(0), Epoch(4)), Answer::Armed);
        assert_eq!(round.on_prepared(DeviceIndex(0), Epoch(4)), Answer::Nothing);
        assert_eq!(round.on_prepared(DeviceIndex(9), Epoch(4)), Answer::Nothing);
        assert_eq!(round.on_prepared(DeviceIndex(1), Epoch(4)), Answer::AllArmed);
        assert_eq!(round.due(2_000), Due::Wait { until_ns: 11_000 });
    }

    #[test]
    fn answers_to_a_plan_that_runs_already_say_that_it_runs() {
        let round = round(2);
        let table = [
            (Epoch(4), Refusal::Parent { own: Epoch(4) }, Answer::Active),
            (Epoch(4), Refusal::Parent { own: Epoch(3) }, Answer::Refused),
            (Epoch(4), Refusal::Stopped, Answer::Refused),
            (Epoch(3), Refusal::Stopped, Answer::Nothing),
        ];
        for (epoch, reason, expected) in table {
            assert_eq!(round.on_refused(epoch, &reason), expected, "{epoch} {reason:?}");
        }
    }

    #[test]
    fn the_deadline_ends_it_and_names_who_is_missing() {
        let mut round = round(2);
        round.on_prepared(DeviceIndex(0), Epoch(4));
        assert_eq!(round.due(11_000), Due::Expired { missing: devices(&[1]) });
    }
}
