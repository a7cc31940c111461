//! Decisions: what a search found is audited and weighed, and what was promised is held against what came.

use super::adapt::{Pending, Searching};
use super::wanted::Staying;
use super::{Advice, Announcement, Brain, Effect, Mode};
use crate::admission::{self, Candidate, Input, Judgement, Trigger};
use crate::drift::Change;
use crate::ledger::{Decision, Durable, Reason, Verdict};
use adaptis_plan::{Plan, Problem, audit};
use adaptis_planner::moves;
use adaptis_planner::search::{Infeasible, Outcome};
use adaptis_proto::Step;

impl Brain {
    pub(super) fn on_search_ended(&mut self, now_ns: u64, ticket: u64, result: Result<Outcome, Infeasible>) {
        let Some(adapt) = &mut self.adapt else { return };
        if !adapt.open.is_empty()
            && let Some(searching) = adapt.searching.as_mut().filter(|searching| searching.ticket == ticket)
        {
            // What it is for may pass.
            searching.found = Some(result);
            return;
        }
        let Some(searching) = adapt.searching.take_if(|searching| searching.ticket == ticket) else { return };
        adapt.unanswered.clear();
        if !self.may_decide() || self.closing.is_some() || self.round.is_some() || self.head.epoch != searching.epoch {
            return;
        }
        let (step, Some(running)) = (self.last_step(), self.running.as_ref()) else { return };
        let candidates = match result.map(|outcome| candidates(&searching.estimated.problem, running, outcome)) {
            Ok(Ok(candidates)) => candidates,
            Ok(Err(findings)) => return self.stay(&searching, step, Reason::Invalid { findings }),
            Err(infeasible) => {
                return self.stay(&searching, step, Reason::NoCandidate { why: infeasible.to_string() });
            }
        };
        self.weigh(now_ns, step, searching, candidates);
    }

    pub(super) fn on_search_lost(&mut self, ticket: u64) {
        let Some(adapt) = &mut self.adapt else { return };
        let Some(searching) = adapt.searching.take_if(|searching| searching.ticket == ticket) else { return };
        let step = self.last_step();
        self.stay(&searching, step, Reason::NoCandidate { why: "the search itself failed".to_owned() });
    }

    fn weigh(&mut self, now_ns: u64, step: Step, searching: Searching, mut candidates: Vec<Candidate>) {
        let (horizon_iterations, seed) = (self.horizon(step), self.config.seed.wrapping_add(searching.ticket));
        let Some((running, adapt)) = self.running.clone().zip(self.adapt.as_mut()) else { return };
        let weighed = adapt.admission.decide(&Input {
            step,
            now_ns,
            trigger: searching.wanted.trigger,
            estimated: &searching.estimated,
            running: &running,
            candidates: &candidates,
            horizon_iterations,
            correction: searching.correction,
            seed,
        });
        match weighed.verdict {
            admission::Verdict::Switch { candidate, because } => {
                let decision = self.record(Verdict::Switch, Reason::Pays(because), &searching, step).numbers(&weighed);
                if self.mode() != Mode::Adapt {
                    self.decide(decision);
                    let (plan, problem) = (candidates.swap_remove(candidate).plan, searching.estimated.problem.clone());
                    self.outbox.push(Effect::Advise(Box::new(Advice { plan, problem })));
                    self.look_again(&searching, Staying::Settled, step);
                    return;
                }
                let candidate = candidates.swap_remove(candidate);
                self.go_to(now_ns, decision, Some(weighed), running, candidate, searching.wanted.trigger);
            }
            admission::Verdict::Keep(reason) => {
                let why = Staying::because(&reason, weighed.predicted_before_ns, weighed.predicted_after_ns);
                let decision = self.record(Verdict::Keep, Reason::Stays(reason), &searching, step).numbers(&weighed);
                self.decide(decision);
                self.look_again(&searching, why, step);
            }
        }
    }

    /// Commits a plan and remembers what is to be checked of it.
    fn go_to(
        &mut self,
        now_ns: u64,
        decision: Decision,
        weighed: Option<admission::Decision>,
        before: Plan,
        candidate: Candidate,
        trigger: Trigger,
    ) {
        let epoch = self.commit(now_ns, candidate.plan.clone(), decision);
        let Some(adapt) = &mut self.adapt else { return };
        let measured_before = adapt.estimator.measured(self.head.epoch);
        adapt.decided();
        adapt.pending = Some(Pending {
            epoch,
            decision: weighed,
            before,
            measured_before,
            after: Plan { epoch, parent: self.head.epoch, ..candidate.plan },
            transfer_ns: candidate.transfer_ns,
            settles: trigger != Trigger::Routine,
            trigger,
        });
    }

    /// Holds the plan in force to what was promised of it; a broken promise brings the plan before back.
    pub(super) fn judge(&mut self, now_ns: u64, step: Step) {
        let epoch = self.head.epoch;
        let may_change = self.round.is_none() && self.mode() == Mode::Adapt;
        let Some(adapt) = &mut self.adapt else { return };
        if adapt.pending.is_some() || !may_change {
            return;
        }
        let measured = adapt.estimator.measured(epoch);
        let Judgement::Broken { ratio, loss_ns } = adapt.admission.judge(step, measured) else { return };
        let (before, running) = (adapt.before.take(), self.running.clone());
        let reason = Reason::PromiseBroken { epoch, ratio, loss_ns };
        let (Some(before), Some(running), Some(fit)) = (before, running, self.refit()) else {
            return self.stay_broken(reason, loss_ns, step);
        };
        if let Some(adapt) = &mut self.adapt {
            adapt.wanted = None;
        }
        self.cancel_search();
        let problem = &fit.estimated.problem;
        // It ran: what the plan in force needs beyond its prediction is nothing against it.
        let as_it_ran = self.adapt.as_ref().map(|adapt| adapt.estimator.without_peaks(problem));
        let findings: Vec<String> =
            audit(as_it_ran.as_ref().unwrap_or(problem), &before).iter().map(ToString::to_string).collect();
        let is_valid = findings.is_empty();
        // Both plans have been measured, which says more than a model that was wrong of one of them.
        let takes_ns = measured.map_or(fit.predicted_ns, |measured| measured.median_ns);
        let transfer_ns = moves::transfer_ns(problem, &moves::moves(problem, &running, &before));
        let decision = Decision {
            number: self.number(),
            iteration: step,
            verdict: if is_valid { Verdict::Revert } else { Verdict::Keep },
            reason: if is_valid { reason } else { Reason::Invalid { findings } },
            detected_iteration: step,
            change: None,
            epoch: None,
            predicted_before_ns: takes_ns,
            predicted_after_ns: takes_ns.saturating_sub(u64::try_from(loss_ns).unwrap_or(0)),
            gain_low_ns: loss_ns,
            cost_ns: transfer_ns,
        };
        if is_valid {
            self.go_to(now_ns, decision, None, running, Candidate { plan: before, transfer_ns }, Trigger::Routine);
        } else {
            self.decide(decision);
            self.find_a_way_on(step);
        }
    }

    /// A promise is broken, and there is no plan to go back to.
    fn stay_broken(&mut self, reason: Reason, loss_ns: i64, step: Step) {
        self.decide(Decision {
            number: self.number(),
            iteration: step,
            verdict: Verdict::Keep,
            reason,
            detected_iteration: step,
            change: None,
            epoch: None,
            predicted_before_ns: 0,
            predicted_after_ns: 0,
            gain_low_ns: loss_ns,
            cost_ns: 0,
        });
        self.find_a_way_on(step);
    }

    /// There is no way back: a search may find a way on.
    fn find_a_way_on(&mut self, step: Step) {
        if let Some(adapt) = &mut self.adapt
            && adapt.wanted.is_none()
            && adapt.searching.is_none()
        {
            adapt.want(Trigger::Routine, step);
        }
    }

    fn stay(&mut self, searching: &Searching, step: Step, reason: Reason) {
        let decision = self.record(Verdict::Keep, reason, searching, step);
        self.decide(decision);
        self.look_again(searching, Staying::Settled, step);
    }

    fn look_again(&mut self, searching: &Searching, why: Staying, step: Step) {
        if let Some(adapt) = &mut self.adapt {
            adapt.look_again(&searching.wanted, why, step);
        }
    }

    /// Records a decision that changes nothing.
    pub(super) fn decide(&mut self, decision: Decision) {
        self.decisions.push(decision.clone());
        let then = vec![Effect::Announce(Announcement::Decided(self.text_of(&decision)))];
        self.persist(vec![Durable::Decision(decision)], then);
    }

    /// A decision in words.
    pub(super) fn text_of(&self, decision: &Decision) -> String {
        decision.text(|device| self.name_of(device))
    }

    fn record(&self, verdict: Verdict, reason: Reason, searching: &Searching, step: Step) -> Decision {
        let change: Option<Change> = searching.wanted.change;
        Decision {
            number: self.number(),
            iteration: step,
            verdict,
            reason,
            detected_iteration: change.map_or(searching.fitted, |change| change.detected),
            change,
            epoch: None,
            predicted_before_ns: 0,
            predicted_after_ns: 0,
            gain_low_ns: 0,
            cost_ns: 0,
        }
    }
}

impl Decision {
    fn numbers(self, weighed: &admission::Decision) -> Self {
        Self {
            predicted_before_ns: weighed.predicted_before_ns,
            predicted_after_ns: weighed.predicted_after_ns,
            gain_low_ns: weighed.gain_low_ns,
            cost_ns: weighed.cost_ns,
            ..self
        }
    }
}

/// The plans of a search that pass the audit, cheapest kind of change first.
///
/// # Errors
/// The findings, if none passes.
fn candidates(problem: &Problem, running: &Plan, outcome: Outcome) -> Result<Vec<Candidate>, Vec<String>> {
    let mut plans: Vec<Plan> = Vec::with_capacity(outcome.rungs.len() + 1);
    for plan in outcome.rungs.into_iter().map(|rung| rung.plan).chain([outcome.plan]) {
        if !plans.iter().any(|known| known.stages == plan.stages && known.programs == plan.programs) {
            plans.push(plan);
        }
    }
    let mut findings = Vec::new();
    plans.retain(|plan| {
        let found = audit(problem, plan);
        findings.extend(found.iter().map(ToString::to_string));
        found.is_empty()
    });
    if plans.is_empty() {
        return Err(findings);
    }
    let candidate = |plan: Plan| {
        let transfer_ns = moves::transfer_ns(problem, &moves::moves(problem, running, &plan));
        Candidate { plan, transfer_ns }
    };
    Ok(plans.into_iter().map(candidate).collect())
}
