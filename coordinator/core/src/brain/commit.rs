//! A decided plan on its way into force: its record, PREPARE, and what becomes of it.

use super::start::plan_record;
use super::{Announcement, Brain, Effect};
use crate::ledger::{Decision, Durable, Head, PlanRecord, Reason, Verdict};
use crate::round::{Due, Round};
use adaptis_plan::Plan;
use adaptis_proto::message::RankOrder;
use adaptis_proto::{DeviceIndex, Epoch, Step};

impl Brain {
    /// Gives a plan its number, records it with its decision, and arms the ranks. Gives the number.
    pub(super) fn commit(&mut self, now_ns: u64, mut plan: Plan, mut decision: Decision) -> Epoch {
        let epoch = self.next_epoch();
        (plan.epoch, plan.parent) = (epoch, self.head.epoch);
        decision.epoch = Some(epoch);
        plan.why = serde_json::to_value(&decision).ok();
        let record = plan_record(&plan, self.head.generation, self.head.term);
        self.plans.insert(epoch, record.clone());
        self.decisions.push(decision.clone());
        let entries = vec![Durable::Plan(record.clone()), Durable::Decision(decision.clone())];
        let mut then = vec![
            Effect::Announce(Announcement::Decided(self.text_of(&decision))),
            Effect::Announce(Announcement::Preparing { epoch }),
        ];
        then.extend(self.first_prepare(now_ns, record));
        self.persist(entries, then);
        epoch
    }

    /// Arms the ranks with a plan that the ledger holds.
    pub(super) fn open_round(&mut self, now_ns: u64, plan: PlanRecord) {
        let orders = self.first_prepare(now_ns, plan);
        self.outbox.extend(orders);
    }

    fn first_prepare(&mut self, now_ns: u64, plan: PlanRecord) -> Vec<Effect> {
        let deadlines = self.config.deadlines;
        let mut round = Round::open(now_ns, plan, self.roster.len(), deadlines.repeat_ns, deadlines.prepare_ns);
        let due = round.due(now_ns);
        self.round = Some(round);
        match due {
            Due::Prepare(devices) => self.prepare_orders(&devices),
            Due::Wait { .. } | Due::Expired { .. } => Vec::new(),
        }
    }

    fn prepare_orders(&self, devices: &[DeviceIndex]) -> Vec<Effect> {
        let Some(plan) = self.round.as_ref().map(Round::plan) else { return Vec::new() };
        let order = RankOrder::Prepare {
            term: self.head.term,
            generation: plan.generation,
            parent: plan.parent,
            epoch: plan.epoch,
            plan: plan.text.clone(),
            digest: plan.digest,
        };
        devices.iter().filter_map(|&device| self.order(device, order.clone())).collect()
    }

    /// PREPARE again, or the end of it.
    pub(super) fn drive_round(&mut self, now_ns: u64) {
        match self.round.as_mut().map(|round| round.due(now_ns)) {
            Some(Due::Prepare(devices)) => {
                let orders = self.prepare_orders(&devices);
                self.outbox.extend(orders);
            }
            Some(Due::Expired { missing }) => {
                let missing = missing.into_iter().map(|device| self.name_of(device)).collect();
                self.abort_round(Reason::NotArmedInTime { missing });
            }
            Some(Due::Wait { .. }) | None => {}
        }
    }

    /// Gives the plan up. Should the ranks' vote have passed before the first of them hears of it, it is in force all
    /// the same, and [`Brain::took_effect`] learns so. What it was wanted for is wanted again, after a pause.
    pub(super) fn abort_round(&mut self, reason: Reason) {
        let Some(round) = self.round.take() else { return };
        let epoch = round.epoch();
        let ends = reason == Reason::RunEnded;
        let (last, number) =
            (self.decisions.iter().rev().find(|decision| decision.epoch == Some(epoch)), self.number());
        let decision = Decision {
            number,
            iteration: self.last_step(),
            verdict: Verdict::Keep,
            reason,
            detected_iteration: last.map_or(self.last_step(), |decision| decision.detected_iteration),
            change: last.and_then(|decision| decision.change),
            epoch: Some(epoch),
            predicted_before_ns: last.map_or(0, |decision| decision.predicted_before_ns),
            predicted_after_ns: last.map_or(0, |decision| decision.predicted_after_ns),
            gain_low_ns: last.map_or(0, |decision| decision.gain_low_ns),
            cost_ns: last.map_or(0, |decision| decision.cost_ns),
        };
        self.aborted.insert(epoch);
        self.decisions.push(decision.clone());
        let wanted = self.forget_pending(epoch);
        if !ends {
            self.want_again(wanted, decision.change);
        }
        let mut then = self.to_all(&RankOrder::Abort { term: self.head.term, epoch });
        then.push(Effect::Announce(Announcement::Aborted { epoch }));
        then.push(Effect::Announce(Announcement::Decided(self.text_of(&decision))));
        self.persist(vec![Durable::Aborted(epoch), Durable::Decision(decision)], then);
    }

    /// A rank runs the plan: the vote was unanimous.
    pub(super) fn took_effect(&mut self, epoch: Epoch, step: Step) {
        let now = Head { epoch, ..self.head };
        self.persist(
            vec![Durable::Head { was: self.head, now }],
            vec![Effect::Announce(Announcement::Active { epoch, step })],
        );
        self.head = now;
        if self.round.as_ref().is_some_and(|round| round.epoch() <= epoch) {
            self.round = None;
        }
        self.running = self.plan_of(epoch);
        self.on_new_plan();
    }

    /// Number of the next decision.
    pub(super) fn number(&self) -> u64 {
        self.decisions.len() as u64
    }

    /// The newest complete iteration.
    pub(super) fn last_step(&self) -> Step {
        self.history.last().map_or(Step(0), |iteration| iteration.record.index)
    }
}
