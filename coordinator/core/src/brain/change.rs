//! What the detector said, and what it means for the loop.
//!
//! ```text
//!   Changed --> window restarts, search --found--> kept until the change lasts
//!   Lasts   --> what was found is weighed
//!   Passed  --> what was found is dropped, the window rejoins, the decision says so
//!   WithPlan -> window restarts, one more look
//!   Turned  --> window restarts, nothing is searched: the plan in force was weighed against the mean
//! ```

use super::adapt::CHANGE_ITERATIONS;
use super::wanted::Wanted;
use super::{Announcement, Brain};
use crate::admission::Trigger;
use crate::drift::{Change, Course, Passed, Who};
use crate::ledger::{Decision, Durable, PhaseRecord, Reason, Verdict};
use adaptis_proto::Step;

impl Brain {
    /// Something changed: what is older no longer counts, and a better plan is wanted.
    pub(super) fn on_change(&mut self, change: Change) {
        let stale = self.adapt.as_ref().and_then(|adapt| adapt.searching.as_ref()).map(|search| search.wanted.clone());
        self.cancel_search();
        let who = self.name_of_changed(change.who);
        self.announce(Announcement::Changed { who, change });
        let Some(adapt) = &mut self.adapt else { return };
        adapt.estimator.restart_window(change.who, change.onset);
        adapt.open.retain(|open| open.who != change.who);
        adapt.open.push(change);
        match change.course {
            Course::Periodic { average, .. } => adapt.periodic.insert(change.who, average),
            Course::Step | Course::Gradual { .. } => adapt.periodic.remove(&change.who),
        };
        let from = Step(change.onset.0 + CHANGE_ITERATIONS - 1);
        // Of what is undecided, such as a device and one of its layers, the search is told with what says most.
        let undecided =
            adapt.open.iter().chain(adapt.unanswered.iter().filter(|known| known.who != change.who)).copied();
        let wanted = Wanted { trigger: Trigger::Drift, change: foremost(undecided), from, looks: 0 };
        let before = adapt.wanted.replace(wanted).or(stale).filter(|wanted| wanted.change.is_none());
        adapt.displaced = before.or(adapt.displaced.take());
        self.begin_changed_phase(change);
    }

    /// A change has lasted: what was promised before it no longer holds, and a plan may follow.
    pub(super) fn on_lasting(&mut self, now_ns: u64, change: Change) {
        let Some(adapt) = &mut self.adapt else { return };
        adapt.open.retain(|open| open.who != change.who);
        adapt.unanswered.retain(|known| known.who != change.who);
        adapt.unanswered.push(change);
        adapt.admission.changed();
        adapt.displaced = None;
        if adapt.open.is_empty()
            && let Some(found) = adapt.searching.as_mut().and_then(|searching| searching.found.take())
            && let Some(ticket) = adapt.searching.as_ref().map(|searching| searching.ticket)
        {
            self.on_search_ended(now_ns, ticket, found);
        }
    }

    /// A change is over before it had lasted: nothing is to be done, and the record says so.
    pub(super) fn on_passed(&mut self, passed: Passed) {
        let Passed { began, ended } = passed;
        let (who, iterations) = (self.name_of_changed(ended.who), passed.iterations());
        self.announce(Announcement::Passed { who, factor: began.factor, iterations });
        self.cancel_search();
        let Some(adapt) = &mut self.adapt else { return };
        adapt.open.retain(|open| open.who != ended.who);
        adapt.estimator.undo_change(ended.who, began.onset, ended.onset);
        let from = Step(ended.onset.0 + CHANGE_ITERATIONS - 1);
        // Other changes still want their search; without any, what this one took the place of does.
        let other = foremost(adapt.open.iter().copied()).or(foremost(adapt.unanswered.iter().copied()));
        adapt.wanted = match other {
            Some(change) => Some(Wanted { trigger: Trigger::Drift, change: Some(change), from, looks: 0 }),
            None => adapt.displaced.take().map(|wanted| Wanted { from: wanted.from.max(from), ..wanted }),
        };
        self.begin_changed_phase(ended);
        self.refit();
        if self.may_decide() {
            let decision = Decision {
                number: self.number(),
                iteration: self.last_step(),
                verdict: Verdict::Keep,
                reason: Reason::Transient { factor: began.factor, iterations },
                detected_iteration: ended.detected,
                change: Some(ended),
                epoch: None,
                predicted_before_ns: 0,
                predicted_after_ns: 0,
                gain_low_ns: 0,
                cost_ns: 0,
            };
            self.decide(decision);
        }
    }

    /// What goes to and fro is on its other level.
    pub(super) fn on_turn(&mut self, change: Change) {
        let Some(adapt) = &mut self.adapt else { return };
        adapt.estimator.restart_window(change.who, change.onset);
        adapt.admission.turned();
        if let Course::Periodic { average, .. } = change.course {
            adapt.periodic.insert(change.who, average);
        }
    }

    /// A guess was wrong: the samples since say what is right, and the next refit takes them in.
    pub(super) fn on_correction(&mut self, change: Change) {
        let who = self.name_of_changed(change.who);
        self.announce(Announcement::Corrected { who, factor: change.factor, step: change.onset });
        let Some(adapt) = &mut self.adapt else { return };
        if adapt.wanted.is_none() {
            adapt.want(Trigger::Routine, Step(change.onset.0 + CHANGE_ITERATIONS - 1));
        }
    }

    /// The plan in force makes something faster or slower than the model has it: what was measured under the one before no
    /// longer counts, and the search that is to follow a change of plan, or one of its own, takes that in.
    pub(super) fn on_change_of_plan(&mut self, change: Change) {
        let who = self.name_of_changed(change.who);
        self.announce(Announcement::WithPlan { who, factor: change.factor, epoch: self.head.epoch });
        let Some(adapt) = &mut self.adapt else { return };
        adapt.estimator.restart_window(change.who, change.onset);
        if adapt.wanted.is_none() {
            adapt.want(Trigger::Routine, Step(change.detected.0 + CHANGE_ITERATIONS));
        }
    }

    fn begin_changed_phase(&mut self, change: Change) {
        if self.phases.last().is_some_and(|phase| phase.from < change.onset && phase.epoch == self.head.epoch) {
            let phase =
                PhaseRecord { from: change.onset, epoch: self.head.epoch, predicted_ns: None, change: Some(change) };
            self.phases.push(phase);
            self.persist(vec![Durable::Phase(phase)], Vec::new());
        }
    }

    fn name_of_changed(&self, who: Who) -> String {
        who.named(|device| self.name_of(device))
    }
}

/// The change that says most.
fn foremost(changes: impl Iterator<Item = Change>) -> Option<Change> {
    changes.max_by(|a, b| a.weight().total_cmp(&b.weight()))
}
