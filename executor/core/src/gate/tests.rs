use super::*;
use adaptis_proto::Step;
use adaptis_proto::message::RankOrder;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const GENERATION: Generation = Generation(1);

fn rules(ranks: usize) -> Rules {
    Rules { layers: ranks, max_norm: 1.0, boundary_ns: 0 }
}

fn digest(epoch: u64) -> Digest {
    Digest([epoch as u8; 32])
}

fn start(ranks: usize) -> RankOrder {
    let member = |at: usize| Member {
        device: format!("gpu{at}"),
        kind: "cpu".into(),
        incarnation: Incarnation(at as u64),
        endpoint: String::new(),
    };
    RankOrder::Start {
        term: Term(1),
        generation: GENERATION,
        epoch: Epoch(1),
        plan: "1".into(),
        digest: digest(1),
        members: (0..ranks).map(member).collect(),
    }
}

fn prepare(term: u64, parent: u64, epoch: u64) -> RankOrder {
    let (term, generation, parent) = (Term(term), GENERATION, Epoch(parent));
    RankOrder::Prepare { term, generation, parent, epoch: Epoch(epoch), plan: epoch.to_string(), digest: digest(epoch) }
}

fn abort(term: u64, epoch: u64) -> RankOrder {
    RankOrder::Abort { term: Term(term), epoch: Epoch(epoch) }
}

fn started() -> Gate {
    let mut gate = Gate::new("gpu0", Incarnation(0));
    assert!(matches!(&gate.on_order(start(1))[..], [Effect::Begin(_)]));
    gate
}

/// Gives an order and, where it asks for a check, answers that nothing speaks against the plan.
fn obey(gate: &mut Gate, order: RankOrder) -> Vec<Effect> {
    let mut effects = Vec::new();
    for effect in gate.on_order(order) {
        match effect {
            Effect::Check(proposal) => effects.extend(gate.on_prepared(&proposal)),
            other => effects.push(other),
        }
    }
    effects
}

fn ballot(layer: usize) -> Ballot {
    Ballot { squares: vec![(layer.into(), 0.1)], ..Ballot::default() }
}

fn step(gate: &mut Gate) -> Vec<Effect> {
    let vote = gate.cast(ballot(0));
    gate.on_votes(&[vote], &rules(1)).1
}

/// Effects, short.
fn told(effects: &[Effect]) -> String {
    let one = |effect: &Effect| match effect {
        Effect::Begin(_) => "begin".to_owned(),
        Effect::Check(proposal) => format!("check {}", proposal.epoch),
        Effect::Forget(epoch) => format!("forget {epoch}"),
        Effect::Introduce => "introduce".to_owned(),
        Effect::Leave => "leave".to_owned(),
        Effect::GiveUp(_) => "give up".to_owned(),
        Effect::Tell(RankEvent::Prepared { epoch, .. }) => format!("prepared {epoch}"),
        Effect::Tell(RankEvent::Refused { epoch, reason, .. }) => format!("refused {epoch} {reason:?}"),
        Effect::Tell(RankEvent::Active { place, .. }) => format!("active {} at {}", place.epoch, place.step),
        Effect::Tell(RankEvent::Failed { reason, .. }) => format!("failed {reason:?}"),
        Effect::Tell(other) => format!("{other:?}"),
    };
    effects.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[test]
fn only_a_member_under_its_own_incarnation_begins_and_only_once() {
    let mut other_process = Gate::new("gpu0", Incarnation(9));
    assert_eq!(other_process.on_order(start(1)), []);
    let mut other_device = Gate::new("gpu7", Incarnation(0));
    assert_eq!(other_device.on_order(start(1)), []);
    let mut gate = started();
    assert_eq!(gate.on_order(start(1)), []);
    assert_eq!(gate.place(), Some(Place { step: Step(0), epoch: Epoch(1), generation: GENERATION }));
}

#[test]
fn a_plan_is_checked_armed_voted_and_takes_effect() {
    let mut gate = started();
    assert_eq!(told(&gate.on_order(prepare(1, 1, 2))), "check 2");
    assert_eq!(told(&obey(&mut gate, prepare(1, 1, 2))), "prepared 2");
    assert_eq!(told(&obey(&mut gate, prepare(1, 1, 2))), "prepared 2", "a doubled one is answered again");
    assert_eq!(told(&step(&mut gate)), "");
    assert_eq!(gate.state(), &State::Switching { from: Epoch(1) });
    assert_eq!(told(&obey(&mut gate, prepare(1, 2, 3))), "", "too early to say");
    assert_eq!(told(&gate.on_settled()), "active 2 at 1");
    assert_eq!(told(&obey(&mut gate, prepare(1, 1, 2))), "active 2 at 1", "the news may have been lost");
    assert_eq!(told(&step(&mut gate)), "");
    assert_eq!(told(&obey(&mut gate, prepare(1, 2, 3))), "prepared 3");
}

#[test]
fn what_can_not_be_armed_is_refused_with_its_reason() {
    let mut gate = started();
    obey(&mut gate, abort(1, 4));
    let other_generation = match prepare(1, 1, 6) {
        RankOrder::Prepare { term, parent, epoch, plan, digest, .. } => {
            RankOrder::Prepare { term, generation: Generation(2), parent, epoch, plan, digest }
        }
        other => other,
    };
    let cases = [
        (prepare(1, 1, 4), "refused 4 Aborted { floor: Epoch(5) }"),
        (prepare(1, 1, 3), "refused 3 Aborted { floor: Epoch(5) }"),
        (prepare(1, 3, 6), "refused 6 Parent { own: Epoch(1) }"),
        (other_generation, "refused 6 Generation { own: Generation(1) }"),
    ];
    for (order, expected) in cases {
        assert_eq!(told(&obey(&mut gate, order)), expected);
    }
    gate.on_failure(Failure::NotFinite);
    assert_eq!(told(&obey(&mut gate, prepare(1, 1, 6))), "refused 6 Stopped");
}

#[test]
fn a_deposed_coordinator_is_not_heard() {
    let mut gate = started();
    assert_eq!(told(&obey(&mut gate, RankOrder::Introduce { term: Term(3) })), "introduce");
    for order in [prepare(2, 1, 2), abort(2, 9), RankOrder::Introduce { term: Term(2) }] {
        assert_eq!(told(&obey(&mut gate, order)), "");
    }
    assert_eq!(told(&obey(&mut gate, prepare(3, 1, 2))), "prepared 2", "the abort of 9 was not heard either");
}

#[test]
fn an_abort_before_the_vote_forgets_and_one_after_it_comes_too_late() {
    let mut gate = started();
    obey(&mut gate, prepare(1, 1, 2));
    assert_eq!(told(&obey(&mut gate, abort(1, 2))), "forget 2");
    assert_eq!(told(&obey(&mut gate, prepare(1, 1, 2))), "refused 2 Aborted { floor: Epoch(3) }");
    obey(&mut gate, prepare(1, 1, 3));
    let vote = gate.cast(ballot(0));
    assert_eq!(told(&obey(&mut gate, abort(1, 3))), "", "the vote may pass: the plan is kept");
    gate.on_votes(&[vote], &rules(1));
    assert_eq!(gate.place().map(|place| place.epoch), Some(Epoch(3)));
}

#[test]
fn a_voted_plan_is_kept_until_its_vote_has_failed_to_switch() {
    let mut gate = started();
    obey(&mut gate, prepare(1, 1, 2));
    let own = gate.cast(Ballot::default());
    assert_eq!(told(&obey(&mut gate, prepare(1, 1, 3))), "prepared 3");
    let other = Vote { armed: None, squares: vec![(0.into(), 0.0)], ..own.clone() };
    assert_eq!(told(&gate.on_votes(&[own, other], &rules(1)).1), "forget 2");
    assert_eq!(gate.armed(), Some(Epoch(3)));
}

#[test]
fn a_failure_stops_for_good_and_stays_the_first() {
    let mut gate = started();
    assert_eq!(told(&gate.on_failure(Failure::NotFinite)), "failed NotFinite");
    let later = Failure::Environment("later".into());
    assert_eq!(told(&gate.on_failure(later)), "failed NotFinite");
    assert_eq!(told(&obey(&mut gate, RankOrder::Dismissed { term: Term(1) })), "leave");
}

#[test]
fn a_rank_that_trains_is_not_dismissed() {
    let mut gate = started();
    assert_eq!(told(&obey(&mut gate, RankOrder::Dismissed { term: Term(1) })), "");
    gate.on_finished(vec![]);
    assert_eq!(told(&obey(&mut gate, RankOrder::Dismissed { term: Term(1) })), "leave");
}

/// One move of the environment; numbers choose among what is possible.
#[derive(Clone, Debug)]
enum Event {
    /// The coordinator proposes the next epoch after some rank's plan.
    Propose(usize),
    /// It aborts one of its plans.
    Abort(usize),
    /// An order is delivered, and may be delivered again later.
    Deliver(usize, usize),
    /// A check that was asked for ends, well or not.
    Checked(usize, bool),
    /// A rank votes, judges or settles: whatever comes next for it.
    Advance(usize),
    /// Another coordinator takes over.
    Succeed,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let index = || 0_usize..1000;
    proptest::collection::vec(
        prop_oneof![
            2 => index().prop_map(Event::Propose),
            1 => index().prop_map(Event::Abort),
            8 => (index(), index()).prop_map(|(rank, order)| Event::Deliver(rank, order)),
            6 => (index(), proptest::bool::weighted(0.9)).prop_map(|(check, good)| Event::Checked(check, good)),
            8 => index().prop_map(Event::Advance),
            1 => Just(Event::Succeed),
        ],
        0..400,
    )
}

/// Ranks, the votes and voices between them, and all orders ever sent.
struct World {
    gates: Vec<Gate>,
    orders: Vec<RankOrder>,
    checks: Vec<(usize, Proposal)>,
    votes: BTreeMap<Step, Vec<Option<Vote>>>,
    settled: BTreeMap<Epoch, BTreeSet<usize>>,
    ready: Vec<BTreeSet<Epoch>>,
    term: u64,
    epochs: u64,
    /// For each rank, epochs whose abort it has heeded.
    aborted: Vec<BTreeSet<Epoch>>,
    /// Epoch under which each step is run.
    epoch_of_step: BTreeMap<Step, Epoch>,
}

impl World {
    fn new(ranks: usize) -> World {
        let mut gates: Vec<Gate> = (0..ranks).map(|at| Gate::new(format!("gpu{at}"), Incarnation(at as u64))).collect();
        gates.iter_mut().for_each(|gate| drop(gate.on_order(start(ranks))));
        World {
            orders: Vec::new(),
            checks: Vec::new(),
            votes: BTreeMap::new(),
            settled: BTreeMap::new(),
            ready: vec![BTreeSet::new(); ranks],
            term: 1,
            epochs: 1,
            aborted: vec![BTreeSet::new(); ranks],
            epoch_of_step: BTreeMap::new(),
            gates,
        }
    }

    fn act(&mut self, event: Event) {
        let ranks = self.gates.len();
        match event {
            Event::Propose(at) => {
                self.epochs += 1;
                let parent = self.gates[at % ranks].place().expect("it has begun").epoch;
                self.orders.push(prepare(self.term, parent.0, self.epochs));
            }
            Event::Abort(at) => self.orders.push(abort(self.term, 2 + at as u64 % self.epochs)),
            Event::Succeed => self.term += 1,
            Event::Deliver(rank, at) if !self.orders.is_empty() => {
                let (rank, order) = (rank % ranks, self.orders[at % self.orders.len()].clone());
                if let RankOrder::Abort { term, epoch } = order
                    && term >= self.gates[rank].seen()
                    && epoch > self.gates[rank].place().expect("it has begun").epoch
                {
                    self.aborted[rank].insert(epoch);
                }
                let effects = self.gates[rank].on_order(order);
                self.carry_out(rank, effects);
            }
            Event::Checked(at, good) if !self.checks.is_empty() => {
                let (rank, proposal) = self.checks.swap_remove(at % self.checks.len());
                let effects = if good {
                    self.ready[rank].insert(proposal.epoch);
                    self.gates[rank].on_prepared(&proposal)
                } else {
                    self.gates[rank].on_refused(&proposal, Refusal::Stopped)
                };
                self.carry_out(rank, effects);
            }
            Event::Advance(rank) => self.advance(rank % ranks),
            Event::Deliver(..) | Event::Checked(..) => {}
        }
    }

    fn carry_out(&mut self, rank: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Check(proposal) => self.checks.push((rank, proposal)),
                Effect::Forget(epoch) => drop(self.ready[rank].remove(&epoch)),
                _ => {}
            }
        }
    }

    fn advance(&mut self, rank: usize) {
        let (ranks, place) = (self.gates.len(), self.gates[rank].place().expect("it has begun"));
        match self.gates[rank].state().clone() {
            State::Running => {
                let epoch = *self.epoch_of_step.entry(place.step).or_insert(place.epoch);
                assert_eq!(epoch, place.epoch, "OneEpochPerStep: step {}", place.step);
                let votes = self.votes.entry(place.step).or_insert_with(|| vec![None; ranks]);
                if votes[rank].is_none() {
                    let vote = self.gates[rank].cast(ballot(rank));
                    votes[rank] = Some(vote);
                    return;
                }
                let Some(all) = votes.iter().cloned().collect::<Option<Vec<_>>>() else { return };
                let (verdict, effects) = self.gates[rank].on_votes(&all, &rules(ranks));
                if let Verdict::Apply(Apply { next: Next::Switch { epoch, .. }, .. }) = verdict {
                    assert!(self.ready[rank].contains(&epoch), "the plan that all voted for is still there");
                    self.settled.entry(epoch).or_default().insert(rank);
                }
                self.carry_out(rank, effects);
            }
            State::Switching { .. } if self.settled[&place.epoch].len() == ranks => {
                self.gates[rank].on_settled();
            }
            State::Switching { .. } => {}
            other => panic!("nothing failed, and a rank is {other:?}"),
        }
    }
}

use crate::vote::Apply;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever order things happen in: no epoch goes back, no aborted one is armed, all ranks run a step under one
    /// epoch, what is voted for is there, no vote is unequal.
    #[test]
    fn invariants_hold_under_any_interleaving(ranks in 1_usize..4, events in events()) {
        let mut world = World::new(ranks);
        for event in events {
            let before: Vec<_> = world.gates.iter().map(|gate| (gate.place(), gate.seen(), gate.floor)).collect();
            world.act(event);
            for ((gate, (place, seen, floor)), aborted) in world.gates.iter().zip(before).zip(&world.aborted) {
                let (was, is) = (place.expect("it has begun"), gate.place().expect("it has begun"));
                prop_assert!(is.epoch >= was.epoch && is.step >= was.step && is.step.0 <= was.step.0 + 1);
                prop_assert!(gate.seen() >= seen && gate.floor >= floor);
                if let Some(armed) = gate.armed() {
                    prop_assert!(armed > is.epoch && !aborted.contains(&armed), "AbortedStaysAborted {}", armed);
                }
            }
        }
        for gate in &world.gates {
            prop_assert!(!matches!(gate.state(), State::Stopped(_)));
        }
    }
}
