//! The beginning of a reign, and of a run: the ledger is read, ranks gather, the first generation starts.

use super::adapt::Adapt;
use super::{Announcement, Brain, Effect, History, Stage};
use crate::ledger::{Decision, Durable, GenerationRecord, Head, PhaseRecord, PlanRecord, Recovered, RunFailure};
use crate::membership::Roster;
use adaptis_plan::{Device, Plan, Problem, audit};
use adaptis_planner::schedule;
use adaptis_proto::Step;
use adaptis_proto::message::{DeviceCard, Job, RankOrder, Rejection};
use adaptis_proto::{Digest, Epoch};
use std::collections::BTreeMap;

impl Brain {
    /// Takes the ledger over and goes on where it stands: an open plan is prepared again.
    pub(super) fn boot(&mut self, now_ns: u64, recovered: Recovered) {
        let Recovered { head, plans, aborted, generation, .. } = recovered;
        self.head = head;
        self.plans = plans;
        self.aborted = aborted.into_iter().collect();
        self.decisions = recovered.decisions;
        self.phases = recovered.phases;
        self.finished = recovered.finished;
        self.failure = recovered.failed;
        self.stage = Stage::Gathering;
        self.calibrations.recover(recovered.rates);
        self.peaks.recover(recovered.peaks);
        self.asked = recovered.asked;
        if let Some(record) = generation {
            self.roster = Roster::of(&record, now_ns);
            self.history = History::new(record.members.len(), &recovered.iterations, &recovered.switches);
            let changes = self.phases.iter().filter_map(|phase| phase.change).collect();
            let undecided = self.undecided_change();
            let has_decided = self.decisions.iter().any(|decision| self.is_settled(decision));
            self.adapt = Some(Adapt::new(&record, self.config.policy, changes, undecided, has_decided));
            self.hand_priors_on();
            self.hand_bounds_on();
            self.generation = Some(record);
            self.running = self.plan_of(head.epoch);
            self.stage = Stage::Following;
            if self.finished.is_none() && self.failure.is_none() {
                self.reopen_round(now_ns);
            }
        }
        if self.finished.is_some() || self.failure.is_some() {
            self.stage = Stage::Ended;
        }
        if self.finished.is_some() {
            // The reign before may have ended between the record and what hung on it.
            self.outbox.push(Effect::Done);
        }
    }

    fn undecided_change(&self) -> Option<crate::drift::Change> {
        let change = self.phases.last()?.change?;
        // Of several, the one that says most is told with the decision on all of them.
        let is_on_it = |decision: &Decision| decision.change.is_some() && decision.iteration >= change.detected;
        let decides = |decision: &Decision| is_on_it(decision) && self.is_settled(decision);
        (!self.decisions.iter().any(decides)).then_some(change)
    }

    /// A decision whose plan was given up, and did not take effect all the same, settled nothing.
    fn is_settled(&self, decision: &Decision) -> bool {
        decision.epoch.is_none_or(|epoch| epoch <= self.head.epoch || !self.aborted.contains(&epoch))
    }

    fn reopen_round(&mut self, now_ns: u64) {
        let generation = self.head.generation;
        let open: Vec<PlanRecord> = self
            .plans
            .range(self.head.epoch.next()..)
            .map(|(_, plan)| plan)
            .filter(|plan| plan.generation == generation && !self.aborted.contains(&plan.epoch))
            .cloned()
            .collect();
        for plan in open {
            if plan.parent == self.head.epoch && self.round.is_none() {
                self.open_round(now_ns, plan);
            } else {
                self.aborted.insert(plan.epoch);
                let order = RankOrder::Abort { term: self.head.term, epoch: plan.epoch };
                let then = self.to_all(&order);
                self.persist(vec![Durable::Aborted(plan.epoch)], then);
            }
        }
    }

    /// The plan of an epoch, read. The ledger holds only texts that were read when they were written and again when it
    /// was opened.
    pub(super) fn plan_of(&self, epoch: Epoch) -> Option<Plan> {
        Plan::read(&self.plans.get(&epoch)?.text).ok()
    }

    /// The next number that no plan has had.
    pub(super) fn next_epoch(&self) -> Epoch {
        let last = self.plans.last_key_value().map_or(Epoch(0), |(&epoch, _)| epoch);
        let aborted = self.aborted.last().copied().unwrap_or(Epoch(0));
        last.max(aborted).max(self.head.epoch).next()
    }

    /// Forms the first generation once everyone is there.
    pub(super) fn form_when_full(&mut self, now_ns: u64) {
        if self.stage != Stage::Gathering || !self.roster.is_full() {
            return;
        }
        let Some(job) = self.roster.job().cloned() else { return };
        let cards: Vec<DeviceCard> = self.roster.ranks().map(|(_, rank)| rank.card.clone()).collect();
        let (epoch, generation) = (self.next_epoch(), self.head.generation.next());
        let mut plan = match first_plan(&job, &cards) {
            Ok(plan) => plan,
            Err(findings) => return self.reject_start(findings),
        };
        (plan.epoch, plan.parent) = (epoch, Epoch(0));
        let (members, cards) = self.roster.form();
        let term = self.head.term;
        let record = GenerationRecord { generation, epoch, members, cards, job, term };
        let plan_record = plan_record(&plan, generation, term);
        let phase = PhaseRecord { from: Step(0), epoch, predicted_ns: None, change: None };
        let now = Head { term, generation, epoch };
        let entries = vec![
            Durable::Generation(record.clone()),
            Durable::Plan(plan_record.clone()),
            Durable::Phase(phase),
            Durable::Head { was: self.head, now },
        ];
        self.head = now;
        self.plans = BTreeMap::from([(epoch, plan_record)]);
        self.running = Some(plan);
        self.phases.push(phase);
        self.history = History::new(record.members.len(), &[], &[]);
        self.adapt = Some(Adapt::new(&record, self.config.policy, Vec::new(), None, false));
        self.hand_priors_on();
        self.hand_bounds_on();
        self.generation = Some(record);
        self.stage = Stage::Following;
        self.start_next_ns = now_ns.saturating_add(self.config.deadlines.repeat_ns);
        let mut then = vec![Effect::Announce(Announcement::Formed { generation, epoch })];
        if let Some(order) = self.start_order() {
            then.extend(self.to_all(&order));
        }
        self.persist(entries, then);
    }

    fn reject_start(&mut self, findings: Vec<String>) {
        let order = RankOrder::Rejected { term: self.head.term, reason: Rejection::StartPlan(findings.clone()) };
        let orders = self.to_all(&order);
        self.outbox.extend(orders);
        self.fail(RunFailure::StartPlan { findings });
    }

    fn start_order(&self) -> Option<RankOrder> {
        let record = self.generation.as_ref()?;
        let plan = self.plans.get(&self.head.epoch)?;
        Some(RankOrder::Start {
            term: self.head.term,
            generation: record.generation,
            epoch: plan.epoch,
            plan: plan.text.clone(),
            digest: plan.digest,
            members: record.members.clone(),
        })
    }

    /// Some rank that we can reach has not shown that it runs.
    pub(super) fn is_start_awaited(&self) -> bool {
        self.roster.ranks().any(|(_, rank)| self.awaits_start(rank))
    }

    fn awaits_start(&self, rank: &crate::membership::Rank) -> bool {
        let runs = rank.place.is_some_and(|place| place.generation == self.head.generation);
        rank.is_introduced && rank.peer.is_some() && !runs
    }

    /// START again, to those who have not shown that they run.
    pub(super) fn repeat_start(&mut self, now_ns: u64) {
        if now_ns < self.start_next_ns {
            return;
        }
        let waiting: Vec<_> = self.roster.ranks().filter(|(_, rank)| self.awaits_start(rank)).collect();
        let waiting: Vec<_> = waiting.into_iter().map(|(device, _)| device).collect();
        if waiting.is_empty() {
            return;
        }
        self.start_next_ns = now_ns.saturating_add(self.config.deadlines.repeat_ns.max(1));
        if let Some(order) = self.start_order() {
            waiting.into_iter().for_each(|device| self.send(device, order.clone()));
        }
    }
}

/// A plan as the ledger holds it.
pub(super) fn plan_record(plan: &Plan, generation: adaptis_proto::Generation, term: adaptis_proto::Term) -> PlanRecord {
    let text = plan.write();
    let digest: Digest = Plan::digest(&text);
    PlanRecord { epoch: plan.epoch, parent: plan.parent, generation, text, digest, term }
}

/// The plan that a job starts on: its own, or an even split.
fn first_plan(job: &Job, cards: &[DeviceCard]) -> Result<Plan, Vec<String>> {
    let problem = structure(job, cards);
    problem.check().map_err(|error| vec![error.to_string()])?;
    let plan = match &job.start_plan {
        // What it takes on made-up costs predicts nothing.
        None => Plan { predicted: None, ..schedule::even(&problem) },
        Some(text) => Plan::read(text)
            .map_err(|error| vec![error.to_string()])?
            .map_to(&job.devices)
            .map_err(|error| vec![error.to_string()])?,
    };
    let findings: Vec<String> = audit(&problem, &plan).iter().map(ToString::to_string).collect();
    if findings.is_empty() { Ok(plan) } else { Err(findings) }
}

/// The job as a problem before anything was measured.
fn structure(job: &Job, cards: &[DeviceCard]) -> Problem {
    let device = |card: &DeviceCard| Device {
        name: card.name.clone(),
        kind: card.kind.clone(),
        memory_bytes: card.memory_bytes.max(1),
        slowdown: 1.0,
        reserved_bytes: 0,
        note: None,
    };
    Problem::without_costs(job, cards.iter().map(device).collect())
}
