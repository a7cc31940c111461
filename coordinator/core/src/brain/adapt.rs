//! The loop: samples in, and when it is time, a refit, a search, a decision.
//!
//! ```text
//!   first iterations --> refit --> search (Start)
//!   confirmed change --> window restarts, two new iterations --> refit --> search (Drift), weighed when it lasts: `change`
//!   settled after a decision --> refit --> one search (Routine)
//!   another speed with the plan, a guess corrected --> two new iterations --> refit --> search (Routine)
//!   prediction and measurement apart for long --> refit --> search (Routine), seldom
//!   promise broken --> the plan before, as a new one
//!   plan given up --> what it was wanted for is wanted again, after a pause
//! ```
//!
//! 1. Nothing else starts a search: on an undisturbed run there is one, and one more once its estimate has settled.
//! 2. A prediction of a phase is written at its first refit, or was written with the decision that began it.
//! 3. One search at a time; a change makes the running one stale.

use super::earlier::Prospect;
use super::loads::Told;
use super::wanted::{Staying, Wanted};
use super::{Brain, Effect, Mode, SearchOrder, Stage};
use crate::admission::{self, Admission, Policy, Trigger};
use crate::drift::{Change, Drift, Gauge, Limits, Shift, Who};
use crate::estimate::{Estimated, Estimator, JobView, Measured, Source};
use crate::ledger::{Durable, GenerationRecord, PhaseRecord};
use adaptis_plan::Plan;
use adaptis_planner::bounds;
use adaptis_planner::search::{Infeasible, Options, Outcome};
use adaptis_proto::sample::Sample;
use adaptis_proto::{DeviceIndex, Epoch, Step};
use std::collections::BTreeMap;

/// Iterations before the first refit; the first three of them are cold.
const FIRST_FIT_ITERATIONS: u64 = 6;
/// New iterations after a change before its refit.
pub(super) const CHANGE_ITERATIONS: u64 = 2;
/// Iterations after a plan took effect, or was kept, before the refit that settles it: three cold ones and eight.
const SETTLE_ITERATIONS: u64 = 11;
/// How far prediction and measurement may be apart.
const APART_MAX: f64 = 0.05;
/// For how many iterations in a row, before it is acted on.
const APART_ITERATIONS: u32 = 5;
/// Warm iterations that a measurement needs to be held against a prediction.
const APART_MEASURED_MIN: usize = 6;
/// Iterations between two refits because of that.
const APART_PAUSE_ITERATIONS: u64 = 64;
/// Iterations after which a decision that only the open promise stood against is taken up again.
const PROMISE_ITERATIONS: u64 = 4;
/// Iterations after which a change is looked at again that was seen too shortly to be sure of a gain, and how often.
const UNSURE_ITERATIONS: u64 = 3;
const UNSURE_LOOKS: u8 = 2;
/// Iterations after which what an aborted plan was wanted for is wanted again; twice as many after each further abort,
/// this often.
const ABORT_PAUSE_ITERATIONS: u64 = 4;
const ABORT_DOUBLINGS_MAX: u32 = 7;
/// Iterations from the last one that a decision rests on to the first one on its plan: one that is at work, one at whose
/// boundary all have prepared.
const LEAD_ITERATIONS: u64 = 3;
/// Least time for a search, however short an iteration is.
const SEARCH_MIN_NS: u64 = 300_000_000;

/// A search that is under way.
#[derive(Clone, Debug)]
pub(super) struct Searching {
    pub(super) ticket: u64,
    pub(super) wanted: Wanted,
    pub(super) estimated: Estimated,
    /// The plan that it started from.
    pub(super) epoch: Epoch,
    /// Iteration that the estimate was made after.
    pub(super) fitted: Step,
    pub(super) correction: f64,
    /// What it found, while the change that it is for may still pass.
    pub(super) found: Option<Result<Outcome, Infeasible>>,
}

/// A plan that was ordered and has not been measured yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) epoch: Epoch,
    /// None if it takes a broken plan back: nothing is promised of it.
    pub(super) decision: Option<admission::Decision>,
    pub(super) before: Plan,
    pub(super) measured_before: Option<Measured>,
    pub(super) after: Plan,
    pub(super) transfer_ns: u64,
    /// A search is to follow once it has settled.
    pub(super) settles: bool,
    /// Why it was searched.
    pub(super) trigger: Trigger,
}

/// The last refit.
#[derive(Clone, Debug)]
pub(super) struct Fit {
    pub(super) estimated: Estimated,
    /// How many of its figures come from where.
    pub(super) sources: BTreeMap<Source, u64>,
    pub(super) epoch: Epoch,
    /// Iteration of the plan in force, corrected.
    pub(super) predicted_ns: u64,
    pub(super) lower_bound_ns: u64,
    pub(super) correction: f64,
}

/// What the loop remembers.
#[derive(Clone, Debug)]
pub(super) struct Adapt {
    pub(super) estimator: Estimator,
    pub(super) admission: Admission,
    pub(super) wanted: Option<Wanted>,
    pub(super) searching: Option<Searching>,
    pub(super) pending: Option<Pending>,
    pub(super) fit: Option<Fit>,
    /// Before the first one: what earlier jobs tell.
    pub(super) prospect: Option<Prospect>,
    /// The plan before the one in force, to go back to.
    pub(super) before: Option<Plan>,
    /// Changes that may still pass.
    pub(super) open: Vec<Change>,
    /// Changes that have lasted since a plan was last weighed.
    pub(super) unanswered: Vec<Change>,
    /// The search without a change that one took the place of.
    pub(super) displaced: Option<Wanted>,
    /// What goes to and fro: its mean over its present time.
    pub(super) periodic: BTreeMap<Who, f64>,
    drift: Drift,
    pub(super) gauge: Option<Gauge>,
    replayed_changes: Vec<Change>,
    completed: u64,
    has_decided: bool,
    pub(super) told: Told,
    /// Plans given up since one took effect.
    aborts: u32,
    apart: u32,
    apart_from: Step,
    tickets: u64,
}

impl Adapt {
    pub(super) fn new(
        record: &GenerationRecord,
        policy: Policy,
        changes: Vec<Change>,
        undecided: Option<Change>,
        has_decided: bool,
    ) -> Self {
        let view = JobView {
            layers: record.job.layers.clone(),
            devices: record.cards.clone(),
            microbatches: record.job.microbatches,
        };
        let wanted = undecided.map(|change| Wanted {
            looks: 0,
            trigger: Trigger::Drift,
            change: Some(change),
            from: Step(change.onset.0 + CHANGE_ITERATIONS - 1),
        });
        Self {
            estimator: Estimator::new(view),
            admission: Admission::new(policy),
            wanted,
            searching: None,
            pending: None,
            fit: None,
            prospect: None,
            before: None,
            open: Vec::new(),
            unanswered: Vec::new(),
            displaced: None,
            periodic: BTreeMap::new(),
            drift: Drift::new(Limits::default()),
            gauge: None,
            replayed_changes: changes,
            completed: 0,
            has_decided,
            told: Told::default(),
            aborts: 0,
            apart: 0,
            apart_from: Step(0),
            tickets: 0,
        }
    }

    /// Takes a sample that an earlier reign acted on.
    pub(super) fn replay(&mut self, device: DeviceIndex, sample: &Sample) {
        self.estimator.absorb(device, sample);
        if matches!(sample, Sample::Iteration { .. }) && device == DeviceIndex(0) {
            self.completed += 1;
        }
    }

    /// Takes a sample; names the shifts that it confirms.
    pub(super) fn absorb(&mut self, device: DeviceIndex, sample: &Sample) -> Vec<Shift> {
        for change in std::mem::take(&mut self.replayed_changes) {
            self.estimator.restart_window(change.who, change.onset);
        }
        self.estimator.absorb(device, sample);
        let readings = self.gauge.as_mut().map(|gauge| gauge.absorb(device, sample)).unwrap_or_default();
        readings.iter().flat_map(|readings| self.drift.observe(readings)).collect()
    }

    fn refer_to(&mut self, estimated: &Estimated) {
        match &mut self.gauge {
            Some(gauge) => gauge.set_reference(estimated),
            none => *none = Some(Gauge::new(estimated)),
        }
        self.drift.reference_changed();
    }

    /// Prediction and measurement have been apart for long, and the last refit because of it is long ago.
    fn is_apart(&mut self, step: Step) -> bool {
        let measured = self.fit.as_ref().and_then(|fit| {
            let measured = self.estimator.measured(fit.epoch)?;
            (measured.iterations >= APART_MEASURED_MIN && fit.predicted_ns > 0)
                .then(|| measured.median_ns as f64 / fit.predicted_ns as f64)
        });
        // What goes to and fro is predicted in its mean, and measured on one of its levels.
        let is_apart = self.periodic.is_empty() && measured.is_some_and(|ratio| (ratio - 1.0).abs() > APART_MAX);
        self.apart = if is_apart { self.apart + 1 } else { 0 };
        if self.apart < APART_ITERATIONS || step < self.apart_from {
            return false;
        }
        self.apart = 0;
        self.apart_from = Step(step.0 + APART_PAUSE_ITERATIONS);
        true
    }
}

impl Brain {
    pub(super) fn on_iteration(&mut self, now_ns: u64, step: Step) {
        let Some(epoch) = self.history.iteration(step).map(|iteration| iteration.record.epoch) else { return };
        self.begin_phase(step, epoch);
        self.settle_pending(now_ns, step, epoch);
        self.tell_of_unknown_loads();
        let Some(adapt) = &mut self.adapt else { return };
        adapt.completed += 1;
        if adapt.fit.is_none() {
            self.fit_first(step);
        } else if self.may_decide() {
            self.judge(now_ns, step);
            self.check_prediction(step);
        }
        self.search_when_due(step);
    }

    /// The first iteration under a plan begins a phase; what was predicted of it stands in the decision that chose it.
    pub(super) fn begin_phase(&mut self, step: Step, epoch: Epoch) {
        if self.phases.last().is_some_and(|phase| phase.epoch >= epoch) {
            return;
        }
        let decision = self.decisions.iter().find(|decision| decision.epoch == Some(epoch));
        let predicted_ns = decision.map(|decision| decision.predicted_after_ns).filter(|&ns| ns > 0);
        let phase = PhaseRecord { from: step, epoch, predicted_ns, change: None };
        let is_another = !self.phases.is_empty();
        self.phases.push(phase);
        self.persist(vec![Durable::Phase(phase)], Vec::new());
        if let Some(adapt) = self.adapt.as_mut().filter(|_| is_another) {
            adapt.drift.switched(step);
        }
    }

    /// The first measured iteration of a new plan: from here on its promise counts.
    fn settle_pending(&mut self, now_ns: u64, step: Step, epoch: Epoch) {
        let Some(adapt) = &mut self.adapt else { return };
        let Some(pending) = adapt.pending.take_if(|pending| pending.epoch == epoch) else { return };
        if let Some(decision) = &pending.decision {
            let pause_ns = self.history.pause_ns(epoch).unwrap_or(0);
            let (before, after) = (&pending.before, &pending.after);
            let (measured, transfer_ns) = (pending.measured_before, pending.transfer_ns);
            adapt.admission.switched(now_ns, step, decision, before, measured, after, transfer_ns, pause_ns);
            adapt.before = Some(pending.before);
        } else {
            adapt.admission.reverted(now_ns);
            adapt.before = None;
        }
        if pending.settles && adapt.wanted.is_none() {
            adapt.want(Trigger::Routine, Step(step.0 + SETTLE_ITERATIONS));
        }
    }

    fn fit_first(&mut self, step: Step) {
        let Some(adapt) = &mut self.adapt else { return };
        if adapt.completed < FIRST_FIT_ITERATIONS {
            return;
        }
        let (has_decided, is_wanted) = (adapt.has_decided, adapt.wanted.is_some());
        // A search refits by itself; without one the prediction of the phase needs this one.
        if self.refit().is_some()
            && !has_decided
            && !is_wanted
            && let Some(adapt) = &mut self.adapt
        {
            adapt.want(Trigger::Start, step);
        }
    }

    fn check_prediction(&mut self, step: Step) {
        let is_busy = self.round.is_some();
        let Some(adapt) = &mut self.adapt else { return };
        let is_busy = is_busy || adapt.searching.is_some() || adapt.wanted.is_some() || adapt.pending.is_some();
        if !is_busy && adapt.is_apart(step) {
            adapt.want(Trigger::Routine, step);
        }
    }

    /// Fits a problem to the samples and makes it the reference for changes; with the mean of what goes to and fro, it
    /// predicts the plan in force.
    pub(super) fn refit(&mut self) -> Option<Fit> {
        let (running, epoch) = (self.running.as_ref()?, self.head.epoch);
        let adapt = self.adapt.as_mut()?;
        let mut estimated = adapt.estimator.problem().ok()?;
        if let Ok(peaks) = adaptis_plan::peak_bytes(&estimated.problem, running) {
            let names = estimated.problem.devices.iter().map(|device| device.name.as_str());
            self.peaks.predict(epoch, names.zip(peaks));
        }
        adapt.estimator.reserve_for(running, &mut estimated);
        let covariates = estimated.uncertainty.covariates.as_deref();
        self.outbox.extend(adapt.told.differ(covariates).map(Effect::Announce));
        adapt.refer_to(&estimated);
        let present_ns = estimated.iterations(running).map_or(0, |draws| draws.median_ns());
        let correction = adapt.estimator.prediction_correction(epoch, present_ns);
        let (estimated, median_ns) = match adapt.periodic.is_empty() {
            true => (estimated, present_ns),
            false => {
                let mean = estimated.averaged(adapt.periodic.iter().map(|(&who, &average)| (who, average)));
                let median_ns = mean.iterations(running).map_or(0, |draws| draws.median_ns());
                (mean, median_ns)
            }
        };
        let fit = Fit {
            epoch,
            predicted_ns: scaled(median_ns, correction),
            lower_bound_ns: bounds::lower_bound_ns(&estimated.problem),
            correction,
            sources: estimated.uncertainty.sources(),
            estimated,
        };
        adapt.fit = Some(fit.clone());
        if let Some(phase) = self.phases.last_mut()
            && phase.epoch == epoch
            && phase.predicted_ns.is_none()
            && fit.predicted_ns > 0
        {
            phase.predicted_ns = Some(fit.predicted_ns);
            let phase = *phase;
            self.persist(vec![Durable::Phase(phase)], Vec::new());
        }
        Some(fit)
    }

    /// Starts the search that is wanted, once its iterations are there and nothing else is under way. Where plans may
    /// not be weighed, the refit is all there is.
    pub(super) fn search_when_due(&mut self, step: Step) {
        let can_start = self.stage == Stage::Following && self.closing.is_none() && self.round.is_none();
        let Some(adapt) = &mut self.adapt else { return };
        if !can_start || adapt.searching.is_some() || adapt.pending.is_some() {
            return;
        }
        let Some(wanted) = adapt.wanted.take_if(|wanted| wanted.from <= step) else { return };
        let Some(fit) = self.refit() else {
            if let Some(adapt) = &mut self.adapt {
                adapt.wanted = Some(wanted);
            }
            return;
        };
        if !self.may_decide() {
            return;
        }
        let Some(from) = self.running.clone() else { return };
        let (epoch, horizon_iterations) = (self.next_epoch(), self.horizon(step));
        let measured_ns = self.history.last().map_or(u64::MAX, |iteration| iteration.record.duration_ns);
        let Some(adapt) = &mut self.adapt else { return };
        adapt.tickets += 1;
        let ticket = adapt.tickets;
        let order = SearchOrder {
            ticket,
            problem: fit.estimated.problem.clone(),
            from,
            options: Options {
                seed: self.config.seed.wrapping_add(ticket),
                evaluations: self.config.search_evaluations,
                horizon_iterations,
                epoch,
                // Beside training, which is to have the others.
                threads: 1,
            },
            // A better plan an iteration later is worth less than a good one now.
            budget_ns: self.config.search_budget_ns.min(measured_ns.max(SEARCH_MIN_NS)),
        };
        adapt.searching = Some(Searching {
            ticket,
            wanted,
            estimated: fit.estimated,
            epoch: fit.epoch,
            fitted: step,
            correction: fit.correction,
            found: None,
        });
        self.outbox.push(Effect::StartSearch(Box::new(order)));
    }

    /// Iterations that a gain can last, as it looks after `step`: none once a plan would come into force after the last.
    pub(super) fn horizon(&self, step: Step) -> u64 {
        let iterations = self.generation.as_ref().map_or(0, |record| record.job.iterations);
        let left = if iterations == 0 { u64::MAX } else { iterations.saturating_sub(step.0 + LEAD_ITERATIONS) };
        self.config.horizon_iterations.min(left)
    }

    pub(super) fn may_decide(&self) -> bool {
        self.mode() != Mode::Observe && !self.config.is_static && self.stage == Stage::Following
    }

    /// Ends the search that is under way, if one is.
    pub(super) fn cancel_search(&mut self) {
        if let Some(searching) = self.adapt.as_mut().and_then(|adapt| adapt.searching.take()) {
            self.outbox.push(Effect::CancelSearch { ticket: searching.ticket });
        }
    }

    /// Another plan is in force: a search from the one before is stale.
    pub(super) fn on_new_plan(&mut self) {
        let stale = self.adapt.as_ref().and_then(|adapt| adapt.searching.as_ref()).map(|search| search.wanted.clone());
        self.cancel_search();
        let Some(adapt) = &mut self.adapt else { return };
        (adapt.apart, adapt.aborts) = (0, 0);
        if adapt.wanted.is_none() {
            adapt.wanted = stale;
        }
    }

    pub(super) fn on_policy(&mut self, policy: Policy) {
        self.config.policy = policy;
        if let Some(adapt) = &mut self.adapt {
            adapt.admission.set_policy(policy);
        }
    }

    /// An ordered plan will not come into force. Gives why it was searched, if this reign ordered it.
    pub(super) fn forget_pending(&mut self, epoch: Epoch) -> Option<Trigger> {
        Some(self.adapt.as_mut()?.pending.take_if(|pending| pending.epoch == epoch)?.trigger)
    }

    /// A plan was given up: what it was searched for still holds.
    pub(super) fn want_again(&mut self, trigger: Option<Trigger>, change: Option<Change>) {
        let step = self.last_step();
        let has_started = self.generation.as_ref().is_some_and(|record| self.head.epoch > record.epoch);
        let Some(adapt) = &mut self.adapt else { return };
        let pause = ABORT_PAUSE_ITERATIONS << adapt.aborts.min(ABORT_DOUBLINGS_MAX);
        adapt.aborts = adapt.aborts.saturating_add(1);
        if adapt.wanted.is_some() {
            return;
        }
        let trigger = trigger.unwrap_or(match (change, has_started) {
            (Some(_), _) => Trigger::Drift,
            (None, false) => Trigger::Start,
            (None, true) => Trigger::Routine,
        });
        adapt.wanted = Some(Wanted { trigger, change, from: Step(step.0.saturating_add(pause)), looks: 0 });
    }

    /// A plan can't be run as things are: it is not to be tried again soon.
    pub(super) fn set_aside(&mut self, epoch: Epoch) {
        let step = self.last_step();
        let Some((adapt, plan)) = self.plan_of(epoch).and_then(|plan| Some((self.adapt.as_mut()?, plan))) else {
            return;
        };
        adapt.admission.set_aside(&plan, step);
    }
}

impl Adapt {
    pub(super) fn want(&mut self, trigger: Trigger, from: Step) {
        self.wanted = Some(Wanted { trigger, change: None, from, looks: 0 });
    }

    /// After a decision to stay: one more look once the estimate has settled, unless this was that look. After a change of
    /// which too little was seen to be sure of a gain, before that, too.
    pub(super) fn look_again(&mut self, after: &Wanted, why: Staying, step: Step) {
        self.has_decided = true;
        if self.wanted.is_some() {
            return;
        }
        let trigger = after.trigger;
        if why == Staying::PromiseOpen {
            self.want(trigger, Step(step.0 + PROMISE_ITERATIONS));
        } else if why == Staying::Unsure && trigger == Trigger::Drift && after.looks < UNSURE_LOOKS {
            let from = Step(step.0 + UNSURE_ITERATIONS);
            self.wanted = Some(Wanted { from, looks: after.looks + 1, ..after.clone() });
        } else if trigger != Trigger::Routine {
            self.want(Trigger::Routine, Step(step.0 + SETTLE_ITERATIONS));
        }
    }

    pub(super) fn decided(&mut self) {
        self.has_decided = true;
    }
}

/// A prediction, corrected.
pub(super) fn scaled(predicted_ns: u64, correction: f64) -> u64 {
    (predicted_ns as f64 * correction).round() as u64
}
