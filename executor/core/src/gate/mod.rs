//! The gate: a rank's place in the protocol of changing plans (DESIGN section 7), as far as SWITCH goes.
//!
//! ```text
//!   WAITING --Start--> RUNNING --vote: all armed--> SWITCHING --settled--> RUNNING
//!                         |  \--vote, last step--> FINISHED --Dismissed--> gone
//!                         \--any failure, here or in SWITCHING--> STOPPED
//! ```
//!
//! 1. The epoch in force never goes back, and changes only by a passed vote in which all ranks are armed with it.
//! 2. An aborted epoch is never armed again: `floor` only grows, and only epochs at or above it are armed.
//! 3. What a vote said counts, even if an ABORT comes before its result: all ranks conclude from the same votes. So a
//!    voted plan is kept until the result.
//! 4. Orders of a term below the highest seen change nothing and are not answered (DeposedIsSilent).
//! 5. A lost, doubled or late message does no harm: neither PREPARE nor START is acted on twice. PREPARE is
//!    answered again; the beat answers START.
//! 6. The step grows by one with each passed vote, and by nothing else.
//!
//! Left out on purpose: time (deadlines belong to whoever waits), HOLD and DRAIN (RESTART is another way to a plan).

mod order;

use crate::vote::{Next, Rules, Verdict, judge};
use adaptis_proto::message::{Failure, Member, RankEvent, Refusal, Rejection, Vote};
use adaptis_proto::sample::Place;
use adaptis_proto::{DeviceIndex, Digest, Epoch, Generation, Incarnation, LayerIndex, Step, Term};

/// What a rank is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// For its first START.
    Waiting,
    /// Trains.
    Running,
    /// Moves layers for the plan in force, which its first iteration has not begun yet.
    Switching {
        /// The plan before.
        from: Epoch,
    },
    /// All iterations are done.
    Finished,
    /// Failed.
    Stopped(Failure),
}

/// What the shell is to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Load the model's part and begin to train.
    Begin(Begin),
    /// Audit, reserve, compile; then call [`Gate::on_prepared`] or [`Gate::on_refused`].
    Check(Proposal),
    /// Drop what was made ready for a plan.
    Forget(Epoch),
    /// Tell the coordinator.
    Tell(RankEvent),
    /// Say Hello, with the gate's place.
    Introduce,
    /// The end is recorded: leave.
    Leave,
    /// The coordinator turns this rank away: give up.
    GiveUp(Rejection),
}

/// A START that was accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Begin {
    /// This rank's number.
    pub device: DeviceIndex,
    /// Membership.
    pub generation: Generation,
    /// Plan in force.
    pub epoch: Epoch,
    /// Its text.
    pub plan: String,
    /// Digest of that text.
    pub digest: Digest,
    /// In order of device index.
    pub members: Vec<Member>,
}

/// A PREPARE that may be armed if the shell finds nothing against it.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// Membership it is meant for.
    pub generation: Generation,
    /// Plan it follows.
    pub parent: Epoch,
    /// Its number.
    pub epoch: Epoch,
    /// Its text.
    pub plan: String,
    /// Digest of that text.
    pub digest: Digest,
}

/// What the training loop knows when an iteration's gradients are final.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ballot {
    /// Sum of squares of each of its layers' gradients.
    pub squares: Vec<(LayerIndex, f64)>,
    /// Mean loss, from the holder of the last layer.
    pub loss: Option<f32>,
    /// When its last instruction ended.
    pub ready_ns: u64,
    /// How long its optimizer will take.
    pub apply_ns: u64,
}

/// A rank's protocol state.
#[derive(Clone, Debug)]
pub struct Gate {
    device: String,
    incarnation: Incarnation,
    state: State,
    place: Place,
    /// First iteration under the plan in force: what `Active` says.
    since: Place,
    /// Highest term seen.
    seen: Term,
    /// Lowest epoch that may be armed.
    floor: Epoch,
    armed: Option<(Epoch, Digest)>,
    /// What the vote under way said of `armed`; none between votes.
    cast: Option<Option<(Epoch, Digest)>>,
}

impl Gate {
    /// A rank before its first START. `device` is its name in the job.
    pub fn new(device: impl Into<String>, incarnation: Incarnation) -> Gate {
        Gate {
            device: device.into(),
            incarnation,
            state: State::Waiting,
            place: Place::default(),
            since: Place::default(),
            seen: Term::default(),
            floor: Epoch::default(),
            armed: None,
            cast: None,
        }
    }

    /// What the rank is doing.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Where its training stands; none before START.
    pub fn place(&self) -> Option<Place> {
        (self.state != State::Waiting).then_some(self.place)
    }

    /// Highest term seen.
    pub fn seen(&self) -> Term {
        self.seen
    }

    /// The plan it is armed with.
    pub fn armed(&self) -> Option<Epoch> {
        self.armed.map(|(epoch, _)| epoch)
    }

    /// Training, which did not wait for START, takes part from this iteration on.
    ///
    /// # Panics
    /// Unless it is running and has not voted yet.
    pub fn begin_at(&mut self, step: Step) {
        assert_eq!(self.state, State::Running, "only a rank that was started takes part");
        assert_eq!((self.place, self.cast), (self.since, None), "it takes part before its first vote");
        self.place.step = step;
        self.since = self.place;
    }

    /// The plan of a [`Proposal`] is audited, compiled and its memory reserved.
    pub fn on_prepared(&mut self, proposal: &Proposal) -> Vec<Effect> {
        if self.armed == Some((proposal.epoch, proposal.digest)) {
            return vec![Effect::Tell(self.prepared(proposal.epoch))];
        }
        // The iteration went on meanwhile: what held before the check need not hold now.
        if let Some(reason) = self.objection(proposal.generation, proposal.parent, proposal.epoch) {
            let refused = self.refused(proposal.epoch, reason);
            return match self.cast == Some(Some((proposal.epoch, proposal.digest))) {
                true => vec![refused],
                false => vec![Effect::Forget(proposal.epoch), refused],
            };
        }
        let mut effects = self.disarm();
        self.armed = Some((proposal.epoch, proposal.digest));
        self.floor = proposal.epoch;
        effects.push(Effect::Tell(self.prepared(proposal.epoch)));
        effects
    }

    /// The plan of a [`Proposal`] can't run here.
    pub fn on_refused(&mut self, proposal: &Proposal, reason: Refusal) -> Vec<Effect> {
        vec![self.refused(proposal.epoch, reason)]
    }

    /// The vote of an iteration whose gradients are final.
    ///
    /// # Panics
    /// Unless it is running and its last vote has a result.
    pub fn cast(&mut self, ballot: Ballot) -> Vote {
        assert_eq!(self.state, State::Running, "only a running rank votes");
        assert!(self.cast.is_none(), "a rank votes once per step");
        self.cast = Some(self.armed);
        Vote {
            place: self.place,
            term: self.seen,
            armed: self.armed,
            rotated: true,
            drain: None,
            failure: None,
            squares: ballot.squares,
            loss: ballot.loss,
            ready_ns: ballot.ready_ns,
            apply_ns: ballot.apply_ns,
        }
    }

    /// The votes of all ranks, in order of device index. On [`Next::Switch`] the gate is switching when this returns,
    /// and its place is the first iteration under the new plan; on [`Verdict::Stop`] it is stopped.
    ///
    /// # Panics
    /// Without a vote under way.
    pub fn on_votes(&mut self, votes: &[Vote], rules: &Rules) -> (Verdict, Vec<Effect>) {
        let cast = self.cast.expect("a rank casts its vote before it judges");
        let verdict = judge(votes, rules);
        let next = match &verdict {
            Verdict::Stop(failure) => {
                let effects = self.on_failure(failure.clone());
                return (verdict, effects);
            }
            Verdict::Apply(apply) => apply.next,
        };
        self.cast = None;
        self.place.step = self.place.step.next();
        let effects = match next {
            Next::Switch { epoch, digest } => {
                assert_eq!(cast, Some((epoch, digest)), "all votes are armed alike, its own too");
                self.enter(epoch)
            }
            Next::Stay | Next::Drain(_) => self.forget_unless_armed(cast),
        };
        (verdict, effects)
    }

    /// The moves of a switch are done on all ranks.
    ///
    /// # Panics
    /// Unless it is switching.
    pub fn on_settled(&mut self) -> Vec<Effect> {
        assert!(matches!(self.state, State::Switching { .. }), "only a switching rank settles");
        self.state = State::Running;
        vec![Effect::Tell(self.active())]
    }

    /// This rank can't go on. The first failure stands.
    pub fn on_failure(&mut self, failure: Failure) -> Vec<Effect> {
        if !matches!(self.state, State::Stopped(_)) {
            self.state = State::Stopped(failure);
        }
        self.cast = None;
        self.disarm();
        self.failed().into_iter().map(Effect::Tell).collect()
    }

    /// All iterations are done; `layers` are the digests of the layers it holds. The event is to be repeated until
    /// [`Effect::Leave`].
    ///
    /// # Panics
    /// Unless it is running.
    pub fn on_finished(&mut self, layers: Vec<(LayerIndex, Digest)>) -> RankEvent {
        assert_eq!(self.state, State::Running, "only a running rank finishes");
        self.state = State::Finished;
        self.disarm();
        RankEvent::Finished { incarnation: self.incarnation, place: self.place, layers }
    }

    /// What a stopped rank repeats.
    pub fn failed(&self) -> Option<RankEvent> {
        match &self.state {
            State::Stopped(reason) => {
                Some(RankEvent::Failed { incarnation: self.incarnation, place: self.place, reason: reason.clone() })
            }
            _ => None,
        }
    }

    /// What a rank says every second; none before START.
    pub fn beat(&self) -> Option<RankEvent> {
        let place = self.place()?;
        Some(RankEvent::Beat { incarnation: self.incarnation, place, armed: self.armed() })
    }

    fn enter(&mut self, epoch: Epoch) -> Vec<Effect> {
        let effects = match self.armed.take() {
            Some((armed, _)) if armed != epoch => vec![Effect::Forget(armed)],
            _ => Vec::new(),
        };
        self.state = State::Switching { from: self.place.epoch };
        self.place.epoch = epoch;
        self.since = self.place;
        self.floor = self.floor.max(epoch.next());
        effects
    }

    /// Disarms. What the vote under way named is kept until its result.
    fn disarm(&mut self) -> Vec<Effect> {
        match self.armed.take() {
            Some(armed) if self.cast != Some(Some(armed)) => vec![Effect::Forget(armed.0)],
            _ => Vec::new(),
        }
    }

    fn forget_unless_armed(&self, cast: Option<(Epoch, Digest)>) -> Vec<Effect> {
        cast.filter(|_| cast != self.armed).map(|(epoch, _)| Effect::Forget(epoch)).into_iter().collect()
    }

    fn prepared(&self, epoch: Epoch) -> RankEvent {
        RankEvent::Prepared { incarnation: self.incarnation, generation: self.place.generation, epoch }
    }

    fn active(&self) -> RankEvent {
        RankEvent::Active { incarnation: self.incarnation, place: self.since }
    }

    fn refused(&self, epoch: Epoch, reason: Refusal) -> Effect {
        let (incarnation, generation) = (self.incarnation, self.place.generation);
        Effect::Tell(RankEvent::Refused { incarnation, generation, epoch, reason })
    }
}

#[cfg(test)]
mod tests;
