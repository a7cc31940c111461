//! The stand-ins. Everything follows from one seed.

use super::ledger::Ledger;
use super::rank::{Doing, Rank};
use super::truth::Truth;
use crate::brain::{Advice, Brain, Config, Deadlines, Effect, Event, SearchOrder};
use crate::ledger::{Decision, Finished, Head, PlanRecord, Reason, Recovered, Verdict};
use crate::membership::Peer;
use adaptis_plan::Plan;
use adaptis_planner::search::{Control, search};
use adaptis_proto::message::{Job, JobLayer, Mode, RankEvent, RankOrder};
use adaptis_proto::sample::{Place, Sample};
use adaptis_proto::{Epoch, Generation, Incarnation, RunId, Step, Term};
use std::collections::{BTreeMap, VecDeque};

/// One turn of the world.
pub const TICK_NS: u64 = 100_000_000;
/// Turns that an iteration takes.
const ITERATION_TICKS: u64 = 5;

pub const DEADLINES: Deadlines = Deadlines {
    heartbeat_ns: 10_000_000_000,
    prepare_ns: 5_000_000_000,
    repeat_ns: 500_000_000,
    drain_ns: 3_000_000_000,
    quiet_ns: 300_000_000,
};

pub fn config() -> Config {
    Config { deadlines: DEADLINES, ..Config::default() }
}

pub fn job(devices: usize, iterations: u64) -> Job {
    let layer = |index: usize| JobLayer {
        name: format!("layer{index}"),
        signature: "mlp/8/f32/b1xs8".into(),
        parameter_bytes: 10,
        state_bytes: 40,
        output_bytes: 8,
        moved_bytes: 30,
    };
    Job {
        run: RunId("test".into()),
        devices: (0..devices).map(|index| format!("gpu{index}")).collect(),
        layers: (0..2 * devices).map(layer).collect(),
        microbatches: 4,
        iterations,
        start_plan: None,
    }
}

/// What the wire does to messages, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub loss: u64,
    pub doubling: u64,
    pub delay_ticks_max: u64,
    /// The coordinator dies after so many steps of carrying out effects, once.
    pub crash_after: Option<usize>,
    /// The one that died goes on as if nothing had happened.
    pub zombie: bool,
}

pub struct World {
    pub now_ns: u64,
    pub ticks: u64,
    config: Config,
    pub ledger: Ledger,
    pub brain: Brain,
    pub zombies: Vec<Brain>,
    pub ranks: Vec<Rank>,
    pub faults: Faults,
    /// Effects carried out, over all reigns.
    pub steps: usize,
    pub announced: Vec<String>,
    pub advised: Vec<Advice>,
    /// Searches under way, and the turn at which each ends.
    pub searches: VecDeque<(u64, SearchOrder)>,
    pub searched: usize,
    /// What layers truly cost; none for ranks that only count iterations.
    pub truth: Option<Truth>,
    pub done: bool,
    /// What ranks ask for after each Hello.
    pub asked: Option<Mode>,
    orders: VecDeque<(u64, usize, RankOrder)>,
    events: VecDeque<(u64, usize, RankEvent)>,
    samples: VecDeque<(String, Vec<Sample>)>,
    random: u64,
    is_down_until: u64,
}

impl World {
    pub fn new(devices: usize, iterations: u64, seed: u64, faults: Faults) -> Self {
        Self::with(job(devices, iterations), config(), seed, faults)
    }

    pub fn with(job: Job, config: Config, seed: u64, faults: Faults) -> Self {
        let rank = |index: usize| Rank {
            kind: "cpu",
            memory_bytes: 1_000_000,
            index,
            incarnation: Incarnation(100 + index as u64),
            job: job.clone(),
            doing: Doing::Waiting,
            place: Place::default(),
            seen: Term(0),
            floor: Epoch(0),
            armed: None,
            refuses: None,
            rejected: false,
        };
        let mut world = Self {
            now_ns: 1,
            ticks: 0,
            config,
            ledger: Ledger::default(),
            brain: Brain::new(config),
            zombies: Vec::new(),
            ranks: (0..job.devices.len()).map(rank).collect(),
            faults,
            steps: 0,
            announced: Vec::new(),
            advised: Vec::new(),
            searches: VecDeque::new(),
            searched: 0,
            truth: None,
            done: false,
            asked: None,
            orders: VecDeque::new(),
            events: VecDeque::new(),
            samples: VecDeque::new(),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            is_down_until: 0,
        };
        world.boot();
        world
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below.max(1)
    }

    /// A new reign, with what the ledger holds.
    pub fn boot(&mut self) {
        self.brain = Brain::new(self.config);
        let recovered = self.ledger.reign();
        self.feed(Event::Booted(Box::new(recovered)));
        for (device, record) in self.ledger.records.clone() {
            let ring = self.ring_of(&device);
            self.feed(Event::Replayed { device, ring, records: vec![record] });
        }
    }

    pub fn feed(&mut self, event: Event) {
        let effects = self.brain.on_event(self.now_ns, event);
        self.perform(effects);
    }

    fn ring_of(&self, device: &str) -> Incarnation {
        let at = self.ranks.iter().position(|rank| rank.job.devices[rank.index] == device);
        self.ranks[at.expect("only ranks record")].incarnation
    }

    /// Commits a plan as a decision would: the plan in force under a new number.
    pub fn decide(&mut self) {
        if self.is_down() {
            return;
        }
        let Some(plan) = self.brain.running.clone() else { return };
        let decision = decision(self.brain.number());
        self.brain.commit(self.now_ns, plan, decision);
        let effects = std::mem::take(&mut self.brain.outbox);
        self.perform(effects);
    }

    fn is_down(&self) -> bool {
        self.ticks < self.is_down_until
    }

    /// Carries effects out; false if the coordinator died on the way.
    fn perform(&mut self, effects: Vec<Effect>) -> bool {
        for effect in effects {
            if self.faults.crash_after.is_some_and(|after| self.steps >= after) {
                self.crash();
                return false;
            }
            self.steps += 1;
            match effect {
                Effect::Persist { entries, then } => {
                    assert!(self.ledger.commit(self.brain.term(), &entries), "the one who reigns is not refused");
                    self.check_records();
                    if !self.perform(then) {
                        return false;
                    }
                }
                Effect::Send { to, order } => self.post(to, order),
                Effect::StartSearch(order) => {
                    self.searched += 1;
                    let ticks = order.budget_ns.div_ceil(TICK_NS);
                    self.searches.push_back((self.ticks + ticks, *order));
                }
                Effect::CancelSearch { ticket } => self.searches.retain(|(_, order)| order.ticket != ticket),
                Effect::Announce(announcement) => self.announced.push(announcement.to_string()),
                Effect::Advise(advice) => self.advised.push(*advice),
                Effect::Done => self.done = true,
            }
        }
        true
    }

    pub fn crash(&mut self) {
        self.faults.crash_after = None;
        let dead = std::mem::replace(&mut self.brain, Brain::new(self.config));
        if self.faults.zombie {
            self.zombies.push(dead);
        }
        self.is_down_until = self.ticks + 10;
        if self.faults.zombie {
            self.boot();
            self.is_down_until = 0;
        }
    }

    /// A zombie hears nothing and goes on repeating itself: what it writes is refused, what hangs on that is not sent.
    fn haunt(&mut self) {
        let mut sent = Vec::new();
        for zombie in &mut self.zombies {
            let mut effects: VecDeque<Effect> = zombie.on_event(self.now_ns, Event::TimePassed).into();
            while let Some(effect) = effects.pop_front() {
                match effect {
                    Effect::Persist { entries, .. } => {
                        assert!(!self.ledger.commit(zombie.term(), &entries), "DeposedIsSilent");
                        break;
                    }
                    Effect::Send { to, order } => sent.push((to, order)),
                    _ => {}
                }
            }
        }
        self.zombies.retain(|_| self.ledger.refusals == 0);
        sent.into_iter().for_each(|(to, order)| self.post(to, order));
    }

    fn post(&mut self, to: Peer, order: RankOrder) {
        let rank = to.0 as usize;
        if self.draw(100) < self.faults.loss {
            return;
        }
        for _ in 0..1 + u64::from(self.draw(100) < self.faults.doubling) {
            let at = self.ticks + self.draw(self.faults.delay_ticks_max + 1);
            self.orders.push_back((at, rank, order.clone()));
        }
    }

    fn say(&mut self, rank: usize, event: RankEvent) {
        if self.draw(100) < self.faults.loss {
            return;
        }
        for _ in 0..1 + u64::from(self.draw(100) < self.faults.doubling) {
            let at = self.ticks + self.draw(self.faults.delay_ticks_max + 1);
            self.events.push_back((at, rank, event.clone()));
        }
    }

    /// One turn: messages arrive, ranks work and speak, time passes for the coordinator.
    pub fn tick(&mut self) {
        self.ticks += 1;
        self.now_ns += TICK_NS;
        if self.is_down_until == self.ticks {
            self.boot();
        }
        self.deliver_orders();
        if self.ticks.is_multiple_of(ITERATION_TICKS) {
            self.iterate();
        }
        self.speak();
        if !self.is_down() {
            self.deliver_events();
            while !self.is_down()
                && let Some((device, samples)) = self.samples.pop_front()
            {
                let records = self.ledger.store(&device, &samples);
                let ring = self.ring_of(&device);
                self.feed(Event::Absorbed { device, ring, records });
            }
            self.end_searches();
            if !self.is_down() && self.brain.deadline().is_some_and(|deadline| deadline <= self.now_ns) {
                self.feed(Event::TimePassed);
            }
        }
        self.haunt();
    }

    fn deliver_orders(&mut self) {
        for _ in 0..self.orders.len() {
            let Some((at, rank, order)) = self.orders.pop_front() else { break };
            if at > self.ticks {
                self.orders.push_back((at, rank, order));
            } else if let Some(answer) = self.ranks[rank].take(order) {
                self.say(rank, answer);
            }
        }
    }

    fn deliver_events(&mut self) {
        for _ in 0..self.events.len() {
            let Some((at, rank, event)) = self.events.pop_front() else { break };
            if at > self.ticks {
                self.events.push_back((at, rank, event));
            } else {
                self.feed(Event::RankSaid { peer: Peer(rank as u64), event: Box::new(event) });
                if self.is_down() {
                    break;
                }
            }
        }
    }

    fn end_searches(&mut self) {
        while let Some((_, order)) = self.searches.pop_front_if(|(at, _)| *at <= self.ticks) {
            let SearchOrder { ticket, problem, from, options, .. } = order;
            let result = search(&problem, Some(&from), &options, &mut |_| Control::Go);
            self.feed(Event::SearchEnded { ticket, result: Box::new(result) });
        }
    }

    /// All ranks' vote, if all of them run at one step.
    fn iterate(&mut self) {
        let first = self.ranks[0].clone();
        if self.ranks.iter().any(|rank| rank.doing != Doing::Running || rank.place.step != first.place.step) {
            return;
        }
        for rank in &self.ranks {
            assert_eq!(rank.place.epoch, first.place.epoch, "OneEpochPerStep at step {}", first.place.step);
        }
        let switches = first.armed.filter(|armed| self.ranks.iter().all(|rank| rank.armed == Some(*armed)));
        if let Some((epoch, digest)) = switches {
            for rank in &self.ranks {
                assert!(epoch >= rank.floor, "AbortedStaysAborted: plan {epoch} on rank {}", rank.index);
            }
            let record = &self.ledger.held.plans[&epoch];
            assert_eq!(record.digest, digest, "ranks run what the ledger holds");
        }
        let iterations = first.job.iterations;
        for index in 0..self.ranks.len() {
            let place = self.ranks[index].place;
            let name = self.ranks[index].job.devices[index].clone();
            let mut samples = match (&mut self.truth, &self.brain.plans.get(&place.epoch)) {
                (Some(truth), Some(plan)) => truth.samples(index, place, &plan.text),
                _ => Vec::new(),
            };
            let duration_ns = self.truth.as_ref().map_or(ITERATION_TICKS * TICK_NS, |truth| truth.duration_ns);
            samples.push(Sample::Iteration { place, start_ns: self.now_ns, duration_ns, loss_bits: 1 });
            self.samples.push_back((name, samples));
            let rank = &mut self.ranks[index];
            rank.place.step = rank.place.step.next();
            if rank.place.step.0 == iterations {
                rank.doing = Doing::Finished;
            } else if let Some((epoch, _)) = switches {
                (rank.place.epoch, rank.armed) = (epoch, None);
                let event = RankEvent::Active { incarnation: rank.incarnation, place: rank.place };
                self.say(index, event);
            }
        }
    }

    fn speak(&mut self) {
        for index in 0..self.ranks.len() {
            let rank = self.ranks[index].clone();
            let (incarnation, place) = (rank.incarnation, rank.place);
            match rank.doing {
                Doing::Waiting if self.ticks.is_multiple_of(5) && !rank.rejected => {
                    self.say(index, rank.hello());
                    self.say(index, RankEvent::Asked { incarnation, mode: self.asked });
                }
                Doing::Running if self.ticks.is_multiple_of(10) => {
                    let armed = rank.armed.map(|(epoch, _)| epoch);
                    self.say(index, RankEvent::Beat { incarnation, place, armed });
                }
                Doing::Finished if self.ticks.is_multiple_of(5) => {
                    self.say(index, RankEvent::Finished { incarnation, place, layers: rank.layers() });
                }
                _ => {}
            }
        }
    }

    fn check_records(&self) {
        let Recovered { head, plans, generation, .. } = &self.ledger.held;
        assert!(head.epoch == Epoch(0) || plans.contains_key(&head.epoch), "the plan in force is on record");
        assert!(head.generation == Generation(0) || generation.is_some(), "so is the membership");
        let open = |plan: &&PlanRecord| plan.epoch > head.epoch && !self.ledger.held.aborted.contains(&plan.epoch);
        assert!(plans.values().filter(open).count() <= 1, "one round at a time");
    }

    pub fn head(&self) -> Head {
        self.ledger.held.head
    }

    pub fn finished(&self) -> Option<&Finished> {
        self.ledger.held.finished.as_ref()
    }

    /// Ticks until `is_over`, or fails.
    pub fn run_until(&mut self, what: &str, mut is_over: impl FnMut(&World) -> bool) {
        let limit = self.ticks + 2_000;
        while !is_over(self) {
            assert!(self.ticks < limit, "AlwaysAWayOn: {what}: {:?} {:?}", self.head(), self.ledger.held.failed);
            self.tick();
        }
    }
}

pub fn decision(number: u64) -> Decision {
    Decision {
        number,
        iteration: Step(0),
        verdict: Verdict::Switch,
        reason: Reason::NoCandidate { why: "a test decides".into() },
        detected_iteration: Step(0),
        change: None,
        epoch: None,
        predicted_before_ns: 2,
        predicted_after_ns: 1,
        gain_low_ns: 1,
        cost_ns: 0,
    }
}

/// The plan of an epoch, as the ledger holds it.
pub fn plan_in(world: &World, epoch: Epoch) -> Plan {
    Plan::read(&world.ledger.held.plans[&epoch].text).expect("plans of the ledger can be read")
}

pub fn epochs_of(plans: &BTreeMap<Epoch, PlanRecord>) -> Vec<u64> {
    plans.keys().map(|epoch| epoch.0).collect()
}
