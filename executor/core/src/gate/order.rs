//! The rows of the rank's table: one function per order.

use super::{Begin, Effect, Gate, Proposal, State};
use adaptis_proto::message::{Member, RankOrder, Refusal};
use adaptis_proto::sample::Place;
use adaptis_proto::{Epoch, Generation, Step, Term};

impl Gate {
    /// An order of a coordinator.
    pub fn on_order(&mut self, order: RankOrder) -> Vec<Effect> {
        if !self.heed(term_of(&order)) {
            return Vec::new();
        }
        match order {
            RankOrder::Start { generation, epoch, plan, digest, members, .. } => {
                self.start(generation, epoch, &members).map_or_else(Vec::new, |device| {
                    vec![Effect::Begin(Begin { device: device.into(), generation, epoch, plan, digest, members })]
                })
            }
            RankOrder::Prepare { generation, parent, epoch, plan, digest, .. } => {
                self.prepare(Proposal { generation, parent, epoch, plan, digest })
            }
            RankOrder::Abort { epoch, .. } => self.abort(epoch),
            RankOrder::Dismissed { .. } => match self.state {
                State::Finished | State::Stopped(_) => vec![Effect::Leave],
                State::Waiting | State::Running | State::Switching { .. } => Vec::new(),
            },
            RankOrder::Introduce { .. } => vec![Effect::Introduce],
            RankOrder::Rejected { reason, .. } => match self.state {
                State::Waiting => vec![Effect::GiveUp(reason)],
                // Training never stops at a coordinator's word that it does not know the rank.
                _ => Vec::new(),
            },
        }
    }

    /// Takes note of a term; false if it is a deposed one.
    fn heed(&mut self, term: Term) -> bool {
        let reigns = term >= self.seen;
        self.seen = self.seen.max(term);
        reigns
    }

    /// Index of this device among the members, if it is to begin now.
    fn start(&mut self, generation: Generation, epoch: Epoch, members: &[Member]) -> Option<usize> {
        if self.state != State::Waiting {
            return None;
        }
        let me = |member: &Member| member.device == self.device && member.incarnation == self.incarnation;
        let device = members.iter().position(me)?;
        self.state = State::Running;
        self.place = Place { step: Step(0), epoch, generation };
        self.since = self.place;
        self.floor = epoch.next();
        Some(device)
    }

    fn prepare(&mut self, proposal: Proposal) -> Vec<Effect> {
        let Proposal { generation, parent, epoch, digest, .. } = proposal;
        match self.state {
            State::Running => {}
            State::Stopped(_) | State::Finished => return vec![self.refused(epoch, Refusal::Stopped)],
            // Too early to say: the coordinator repeats itself.
            State::Waiting | State::Switching { .. } => return Vec::new(),
        }
        if generation == self.place.generation && epoch == self.place.epoch {
            // A late double of the plan in force: the news that it is in force was lost, or is under way.
            return vec![Effect::Tell(self.active())];
        }
        if self.armed == Some((epoch, digest)) {
            return vec![Effect::Tell(self.prepared(epoch))];
        }
        match self.objection(generation, parent, epoch) {
            Some(reason) => vec![self.refused(epoch, reason)],
            None => vec![Effect::Check(proposal)],
        }
    }

    fn abort(&mut self, epoch: Epoch) -> Vec<Effect> {
        if !matches!(self.state, State::Running | State::Switching { .. }) {
            return Vec::new();
        }
        self.floor = self.floor.max(epoch.next());
        match self.armed {
            Some((armed, _)) if armed < self.floor => self.disarm(),
            _ => Vec::new(),
        }
    }

    /// What speaks against arming a plan now.
    pub(super) fn objection(&self, generation: Generation, parent: Epoch, epoch: Epoch) -> Option<Refusal> {
        if self.state != State::Running {
            Some(Refusal::Stopped)
        } else if generation != self.place.generation {
            Some(Refusal::Generation { own: self.place.generation })
        } else if parent != self.place.epoch {
            Some(Refusal::Parent { own: self.place.epoch })
        } else if epoch < self.floor || self.armed.is_some_and(|(armed, _)| armed >= epoch) {
            Some(Refusal::Aborted { floor: self.floor })
        } else {
            None
        }
    }
}

fn term_of(order: &RankOrder) -> Term {
    match *order {
        RankOrder::Start { term, .. }
        | RankOrder::Prepare { term, .. }
        | RankOrder::Abort { term, .. }
        | RankOrder::Dismissed { term }
        | RankOrder::Introduce { term }
        | RankOrder::Rejected { term, .. } => term,
    }
}
