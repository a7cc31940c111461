//! What ranks say: who they are, where they stand, how they end.

use super::{Announcement, Brain, Closing, Effect, REFUSALS_MAX, SEAT_NS, Stage};
use crate::ledger::{Durable, Finished, Reason, RunFailure};
use crate::membership::{Hello, Peer};
use crate::round::Answer;
use adaptis_proto::message::{Bounds, CrowdedHost, Failure, Mode, RankEvent, RankOrder, Refusal, Rejection};
use adaptis_proto::sample::Place;
use adaptis_proto::{DeviceIndex, Digest, Epoch, Incarnation, LayerIndex, Step};
use std::collections::BTreeMap;

/// How long the rank that failed first has to tell why, once another one tells of it.
pub(super) const CAUSE_NS: u64 = 1_000_000_000;

impl Brain {
    pub(super) fn on_rank(&mut self, now_ns: u64, peer: Peer, event: RankEvent) {
        let hello = match event {
            RankEvent::Hello { incarnation, card, job, endpoint, place, seen } => {
                Hello { incarnation, card, job, endpoint, place, seen }
            }
            other => return self.on_member(now_ns, peer, other),
        };
        if let Some(place) = hello.place.filter(|place| !self.holds(place)) {
            // Another folder's job, or an older copy of this one: to reign over it would overwrite its numbers.
            let reason = Rejection::UnknownPlace { generation: place.generation, epoch: place.epoch };
            self.turn_away(peer, hello.card.name, reason);
        } else if self.stage == Stage::Ended {
            self.on_late_hello(peer, &hello);
        } else {
            self.on_hello(now_ns, peer, hello);
        }
    }

    /// What plans must obey; the ranks of a job say it alike. They refuse what does not, so it need not outlive a reign:
    /// whoever is introduced to the next one says it again.
    fn on_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        self.hand_bounds_on();
    }

    /// Which devices share cores; said alike by all ranks, and again to whoever reigns next.
    fn on_crowded(&mut self, hosts: Vec<CrowdedHost>) {
        self.crowded = hosts;
        self.hand_bounds_on();
    }

    /// A job says what it is to be followed for, which counts where the operator did not say.
    fn on_asked(&mut self, asked: Option<Mode>) {
        if self.asked == asked {
            return;
        }
        let before = self.mode();
        self.asked = asked;
        self.persist(vec![Durable::Asked(asked)], Vec::new());
        let mode = self.mode();
        if mode != before {
            self.announce(Announcement::Asked { mode });
        }
    }

    /// The estimator's problems are within the bounds, and have the hosts.
    pub(super) fn hand_bounds_on(&mut self) {
        if let Some(adapt) = &mut self.adapt {
            adapt.estimator.constrain(&self.bounds);
            adapt.estimator.crowd(&self.crowded);
        }
    }

    /// Whether the ledger holds what a rank says that it runs.
    fn holds(&self, place: &Place) -> bool {
        place.generation == self.head.generation
            && self.plans.get(&place.epoch).is_some_and(|plan| plan.generation == place.generation)
    }

    fn turn_away(&mut self, peer: Peer, device: String, reason: Rejection) {
        self.hellos_refused += 1;
        if self.announced_refusals.get(&device) != Some(&reason) {
            self.announce(Announcement::TurnedAway { device: device.clone(), why: reason.to_string() });
            if self.announced_refusals.len() >= REFUSALS_MAX {
                self.announced_refusals.clear();
            }
            self.announced_refusals.insert(device, reason.clone());
        }
        self.outbox.push(Effect::Send { to: peer, order: RankOrder::Rejected { term: self.head.term, reason } });
    }

    /// Tells a rank that comes after the end. A member that has trained is dismissed when it says how it ended.
    fn on_late_hello(&mut self, peer: Peer, hello: &Hello) {
        if hello.place.is_some() && self.roster.device_of(hello.incarnation).is_some() {
            return;
        }
        let reason = match &self.failure {
            Some(RunFailure::StartPlan { findings }) => Rejection::StartPlan(findings.clone()),
            Some(failure) => Rejection::RunOver { reason: failure.to_string() },
            None => Rejection::RunOver { reason: "all iterations are done".to_owned() },
        };
        self.outbox.push(Effect::Send { to: peer, order: RankOrder::Rejected { term: self.head.term, reason } });
    }

    fn on_hello(&mut self, now_ns: u64, peer: Peer, hello: Hello) {
        let term = self.head.term;
        let (device, seen, place) = (hello.card.name.clone(), hello.seen, hello.place);
        let known = self.roster.device_of(hello.incarnation).and_then(|known| self.roster.rank(known));
        let (is_new, was_introduced) = (known.is_none(), known.is_some_and(|rank| rank.is_introduced));
        match self.roster.hello(now_ns, self.config.deadlines.heartbeat_ns.min(SEAT_NS), peer, hello) {
            Err(reason) => self.turn_away(peer, device, reason),
            Ok(index) => {
                if is_new {
                    let present = self.roster.ranks().count();
                    if present == 1 {
                        // The first of a job: what one before it was bound by is none of its business.
                        self.on_bounds(Bounds::default());
                        self.on_crowded(Vec::new());
                    }
                    self.announce(Announcement::Joined { device, present, expected: self.roster.len() });
                }
                if seen < term && !was_introduced {
                    self.send(index, RankOrder::Introduce { term });
                }
                if let Some(place) = place {
                    self.on_place(index, place);
                }
                self.form_when_full(now_ns);
            }
        }
    }

    fn on_member(&mut self, now_ns: u64, peer: Peer, event: RankEvent) {
        let term = self.head.term;
        let Some(device) = self.roster.device_of(incarnation_of(&event)) else {
            self.outbox.push(Effect::Send { to: peer, order: RankOrder::Introduce { term } });
            return;
        };
        if let Some(rank) = self.roster.rank_mut(device) {
            rank.heard_ns = now_ns;
            rank.peer = Some(peer);
            if !rank.is_introduced {
                self.send(device, RankOrder::Introduce { term });
            }
        }
        match event {
            // Its own training is done, also where that of others failed.
            RankEvent::Finished { .. } if self.finished.is_some() || self.failure.is_some() => {
                self.send(device, RankOrder::Dismissed { term });
            }
            RankEvent::Failed { place, reason, .. } => {
                self.on_failed(now_ns, device, place, reason);
                if self.failure.is_some() {
                    self.send(device, RankOrder::Dismissed { term });
                }
            }
            RankEvent::Bound { bounds, .. } => self.on_bounds(bounds),
            RankEvent::Crowded { hosts, .. } => self.on_crowded(hosts),
            RankEvent::Asked { mode, .. } => self.on_asked(mode),
            _ if self.stage != Stage::Following => {}
            RankEvent::Beat { place, armed, .. } => {
                self.on_place(device, place);
                if let Some(epoch) = armed
                    && self.aborted.contains(&epoch)
                {
                    self.send(device, RankOrder::Abort { term, epoch });
                }
            }
            RankEvent::Active { place, .. } => self.on_place(device, place),
            RankEvent::Prepared { generation, epoch, .. } if generation == self.head.generation => {
                self.on_prepared(device, epoch);
            }
            RankEvent::Refused { generation, epoch, reason, .. } if generation == self.head.generation => {
                self.on_refused(device, epoch, &reason);
            }
            RankEvent::Finished { place, layers, .. } => {
                self.on_place(device, place);
                self.on_finished(now_ns, device, place, layers);
            }
            RankEvent::Hello { .. } | RankEvent::Prepared { .. } | RankEvent::Refused { .. } => {}
        }
    }

    /// A rank stands somewhere: proof that it runs, and under which plan.
    fn on_place(&mut self, device: DeviceIndex, place: Place) {
        if self.stage != Stage::Following || place.generation != self.head.generation {
            return;
        }
        if let Some(rank) = self.roster.rank_mut(device) {
            rank.place = Some(place);
        }
        if place.epoch <= self.head.epoch {
            return;
        }
        let is_ours = self.plans.get(&place.epoch).is_some_and(|plan| plan.generation == place.generation);
        if is_ours {
            self.took_effect(place.epoch, place.step);
        } else {
            let device = self.name_of(device);
            self.fail(RunFailure::UnknownPlan { device, epoch: place.epoch });
        }
    }

    fn on_prepared(&mut self, device: DeviceIndex, epoch: Epoch) {
        let Some(round) = &mut self.round else { return };
        if round.on_prepared(device, epoch) == Answer::AllArmed {
            self.announce(Announcement::Armed { epoch });
        }
    }

    fn on_refused(&mut self, device: DeviceIndex, epoch: Epoch, reason: &Refusal) {
        let answer = self.round.as_ref().map_or(Answer::Nothing, |round| round.on_refused(epoch, reason));
        match answer {
            Answer::Active => {
                let step = self.roster.rank(device).and_then(|rank| rank.place).map_or(Step(0), |place| place.step);
                self.took_effect(epoch, step);
            }
            Answer::Refused => {
                if matches!(reason, Refusal::Memory { .. } | Refusal::Invalid(_)) {
                    self.set_aside(epoch);
                }
                let device = self.name_of(device);
                self.abort_round(Reason::Refused { device, why: reason.to_string() });
            }
            Answer::Nothing | Answer::Armed | Answer::AllArmed => {}
        }
    }

    fn on_failed(&mut self, now_ns: u64, device: DeviceIndex, place: Place, reason: Failure) {
        if self.finished.is_some() || self.stage == Stage::Gathering || place.generation != self.head.generation {
            return;
        }
        let device = self.name_of(device);
        let blamed = reason.blamed().iter().map(|&peer| self.name_of(peer)).collect();
        let failure = RunFailure::Stopped { device, step: place.step, reason, blamed };
        if is_cause(&failure) || self.stage == Stage::Ended {
            self.fail(failure);
        } else {
            let (told, _) = self.consequence.get_or_insert_with(|| (failure.clone(), now_ns.saturating_add(CAUSE_NS)));
            // Who waited in vain knows more than who saw that one stop: the silent rank says nothing itself.
            if is_hearsay(told) && !is_hearsay(&failure) {
                *told = failure;
            }
        }
    }

    /// The end of the wait for whoever failed first to speak for itself.
    pub(super) fn fail_without_cause(&mut self, now_ns: u64) {
        if let Some((failure, _)) = self.consequence.take_if(|(_, deadline_ns)| *deadline_ns <= now_ns) {
            self.fail(failure);
        }
    }

    /// Ends the run; a cause replaces its mere consequences.
    pub(super) fn fail(&mut self, failure: RunFailure) {
        if self.failure.as_ref().is_some_and(|known| is_cause(known) || !is_cause(&failure)) {
            return;
        }
        if let Some(round) = self.round.take() {
            self.aborted.insert(round.epoch());
            let order = RankOrder::Abort { term: self.head.term, epoch: round.epoch() };
            let then = self.to_all(&order);
            self.persist(vec![Durable::Aborted(round.epoch())], then);
        }
        self.cancel_search();
        self.stage = Stage::Ended;
        self.failure = Some(failure.clone());
        self.persist(vec![Durable::Failed(failure.clone())], vec![Effect::Announce(Announcement::Failed(failure))]);
    }

    fn on_finished(&mut self, now_ns: u64, device: DeviceIndex, place: Place, layers: Vec<(LayerIndex, Digest)>) {
        if place.generation != self.head.generation || self.closing.is_some() {
            return;
        }
        self.ended.insert(device, (place.step, layers));
        if self.ended.len() < self.roster.len() {
            return;
        }
        self.cancel_search();
        if self.round.is_some() {
            self.abort_round(Reason::RunEnded);
        }
        match self.gather_digests() {
            Ok(finished) => {
                let deadline_ns = now_ns.saturating_add(self.config.deadlines.drain_ns);
                self.closing = Some(Closing { finished, deadline_ns });
            }
            Err(failure) => self.fail(failure),
        }
    }

    fn gather_digests(&self) -> Result<Finished, RunFailure> {
        let mut digests: BTreeMap<LayerIndex, Digest> = BTreeMap::new();
        for &(layer, digest) in self.ended.values().flat_map(|(_, layers)| layers) {
            if *digests.entry(layer).or_insert(digest) != digest {
                return Err(RunFailure::LayersDiffer { layer });
            }
        }
        let layers = self.roster.job().map_or(0, |job| job.layers.len());
        match (0..layers).map(LayerIndex::from).find(|layer| !digests.contains_key(layer)) {
            Some(layer) => Err(RunFailure::LayersMissing { layer }),
            None => {
                let step = self.ended.values().map(|&(step, _)| step).max().unwrap_or_default();
                Ok(Finished { step, layers: digests.into_iter().collect() })
            }
        }
    }

    /// Every device has reported the last iteration.
    pub(super) fn is_drained(&self) -> bool {
        let Some(closing) = &self.closing else { return false };
        closing.finished.step.0.checked_sub(1).is_none_or(|last| self.history.is_reported_by_all(Step(last)))
    }

    pub(super) fn close_when_drained(&mut self, now_ns: u64) {
        let Some(closing) = &self.closing else { return };
        let is_quiet = now_ns >= self.absorbed_ns.saturating_add(self.config.deadlines.quiet_ns);
        if now_ns < closing.deadline_ns && !(is_quiet && self.is_drained()) {
            return;
        }
        let finished = closing.finished.clone();
        self.closing = None;
        self.stage = Stage::Ended;
        let step = finished.step;
        self.finished = Some(finished.clone());
        let mut then = self.to_all(&RankOrder::Dismissed { term: self.head.term });
        then.push(Effect::Announce(Announcement::Finished { step }));
        then.push(Effect::Done);
        self.persist(vec![Durable::Finished(finished)], then);
    }
}

fn incarnation_of(event: &RankEvent) -> Incarnation {
    match event {
        RankEvent::Hello { incarnation, .. }
        | RankEvent::Beat { incarnation, .. }
        | RankEvent::Prepared { incarnation, .. }
        | RankEvent::Refused { incarnation, .. }
        | RankEvent::Active { incarnation, .. }
        | RankEvent::Failed { incarnation, .. }
        | RankEvent::Finished { incarnation, .. }
        | RankEvent::Bound { incarnation, .. }
        | RankEvent::Crowded { incarnation, .. }
        | RankEvent::Asked { incarnation, .. } => *incarnation,
    }
}

/// Whether all that a rank tells is that another one stopped.
fn is_hearsay(failure: &RunFailure) -> bool {
    matches!(failure, RunFailure::Stopped { reason: Failure::PeerFailed { .. }, .. })
}

/// Whether a failure is a cause, as against a neighbour's view of one.
fn is_cause(failure: &RunFailure) -> bool {
    let consequence = [
        matches!(failure, RunFailure::Stopped { reason: Failure::PeerSilent { .. } | Failure::PeerFailed { .. }, .. }),
        matches!(failure, RunFailure::Silent { .. }),
    ];
    !consequence.contains(&true)
}
