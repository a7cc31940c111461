//! What people are told while it happens.

use crate::admission::Because;
use crate::drift::{Cause, Change, Course, Evidence};
use crate::estimate::Load;
use crate::ledger::{Decision, Reason, RunFailure, Verdict};
use adaptis_proto::message::Mode;
use adaptis_proto::{DeviceIndex, Epoch, Generation, Step};
use std::fmt;

/// Something that people may want to know.
#[derive(Clone, Debug, PartialEq)]
pub enum Announcement {
    /// A rank is there.
    Joined {
        /// Its device.
        device: String,
        /// How many are there now.
        present: usize,
        /// Of how many.
        expected: usize,
    },
    /// A rank was turned away.
    TurnedAway {
        /// Its device.
        device: String,
        /// Why.
        why: String,
    },
    /// Everyone is there; training starts.
    Formed {
        /// Membership.
        generation: Generation,
        /// Plan it starts on.
        epoch: Epoch,
    },
    /// A device or link changed.
    Changed {
        /// Its name, or those of the link's ends.
        who: String,
        /// How much, and since when.
        change: Change,
    },
    /// A change was over before it had lasted.
    Passed {
        /// Name of what had changed.
        who: String,
        /// Times while it lasted, over those before.
        factor: f64,
        /// Iterations that it took.
        iterations: u64,
    },
    /// A device or link did what nobody had measured of it in this job, and the guess of it was wrong.
    Corrected {
        /// Its name, or those of the link's ends.
        who: String,
        /// Time it takes over the time that was guessed.
        factor: f64,
        /// First iteration that showed it.
        step: Step,
    },
    /// Under another plan something works at another speed.
    WithPlan {
        /// Its name, or those of the link's ends.
        who: String,
        /// Time it takes over the time that it took under the plan before.
        factor: f64,
        /// The plan.
        epoch: Epoch,
    },
    /// Microbatches differ, and times follow their loads: from here on costs are those of the mean load.
    LoadsDiffer {
        /// As seen so far.
        mean: Load,
    },
    /// Microbatches differ, and the loads of most are not known: devices are watched nevertheless, less sharply.
    LoadsUnknown,
    /// Earlier jobs tell of kinds of this one.
    Recalled {
        /// Of which.
        kinds: Vec<String>,
        /// Iteration of the plan in force, if they tell enough and nothing was fitted yet.
        predicted_ns: Option<u64>,
    },
    /// The job asked for a mode, and nobody else had said one.
    Asked {
        /// Which.
        mode: Mode,
    },
    /// Something was decided: in words.
    Decided(String),
    /// All ranks are being armed with a plan.
    Preparing {
        /// Which.
        epoch: Epoch,
    },
    /// All ranks are armed.
    Armed {
        /// With which plan.
        epoch: Epoch,
    },
    /// A plan was given up.
    Aborted {
        /// Which.
        epoch: Epoch,
    },
    /// A plan is in force.
    Active {
        /// Which.
        epoch: Epoch,
        /// Since which iteration.
        step: Step,
    },
    /// The run failed.
    Failed(RunFailure),
    /// The run ended.
    Finished {
        /// Iterations done.
        step: Step,
    },
}

impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Announcement::Joined { device, present, expected } => {
                write!(f, "{device} is there, {present} of {expected}")
            }
            Announcement::TurnedAway { device, why } => write!(f, "{device} was turned away: {why}"),
            Announcement::Formed { generation, epoch } => {
                write!(f, "training starts: generation {generation}, plan {epoch}")
            }
            Announcement::Changed { who, change } => write!(f, "{who} takes {change}"),
            Announcement::Passed { who, factor, iterations } => write!(
                f,
                "{who} took {factor:.2} times as long for {iterations} iterations, and is as before: nothing to act on"
            ),
            Announcement::Corrected { who, factor, step } => write!(
                f,
                "a cost never measured on one like {who} was corrected: it takes {factor:.2} times what was guessed, seen \
                 since iteration {step}"
            ),
            Announcement::WithPlan { who, factor, epoch } => {
                write!(f, "{who} takes {factor:.2} times as long under plan {epoch} as it did before: the model takes that in")
            }
            Announcement::LoadsDiffer { mean: Load { tokens, squares, busiest } } => {
                write!(
                    f,
                    "microbatches differ: costs are those of the mean load, {tokens:.0} tokens with a sum of squared lengths of \
                     {squares:.0}"
                )?;
                if *busiest > 0.0 { write!(f, " and {busiest:.0} tokens of the busiest expert") } else { Ok(()) }
            }
            Announcement::LoadsUnknown => f.write_str(
                "microbatches differ, and of most the load was not recorded, or not in time: changes of devices are seen later; \
                 record the load of each microbatch before its first work",
            ),
            Announcement::Recalled { kinds, predicted_ns } => {
                write!(f, "earlier jobs tell what layers cost on {}", kinds.join(", "))?;
                predicted_ns.map_or(Ok(()), |ns| write!(f, ": an iteration takes {:.1} ms", ns as f64 / 1e6))
            }
            Announcement::Asked { mode } => write!(f, "mode {}, as the job asks for", mode.word()),
            Announcement::Decided(text) => f.write_str(text),
            Announcement::Preparing { epoch } => write!(f, "preparing plan {epoch}"),
            Announcement::Armed { epoch } => write!(f, "every rank is armed with plan {epoch}"),
            Announcement::Aborted { epoch } => write!(f, "plan {epoch} was given up"),
            Announcement::Active { epoch, step } => write!(f, "plan {epoch} is in force from iteration {step}"),
            Announcement::Failed(failure) => write!(f, "the run failed: {failure}"),
            Announcement::Finished { step } => write!(f, "the run ended after {step} iterations"),
        }
    }
}

impl Decision {
    /// In words, with the devices' names.
    pub fn text(&self, name_of: impl Fn(DeviceIndex) -> String) -> String {
        let verdict = match self.verdict {
            Verdict::Keep => "keep the plan",
            // Where plans are not changed.
            Verdict::Switch if self.epoch.is_none() => "would switch",
            Verdict::Switch => "switch",
            Verdict::Revert => "take the plan back",
            Verdict::Restart => "restart",
        };
        let ms = |ns: u64| ns as f64 / 1e6;
        let mut text = format!("{verdict}: {}", self.reason);
        if self.predicted_before_ns > 0 && self.predicted_after_ns > 0 {
            let (before, after) = (ms(self.predicted_before_ns), ms(self.predicted_after_ns));
            text += &format!(" ({before:.1} ms an iteration now, {after:.1} ms with the other plan)");
        }
        if let Some(change) = self.change.filter(|_| !matches!(self.reason, Reason::Transient { .. })) {
            text += &format!("; because {} takes {change}", change.who.named(name_of));
        }
        text
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { factor, onset, detected, cause, evidence, .. } = *self;
        match self.course {
            Course::Step => write!(f, "{factor:.2} times as long since iteration {onset}")?,
            Course::Gradual { from, per_iteration, total } => {
                let percent = 100.0 * (per_iteration - 1.0);
                write!(
                    f,
                    "{total:.2} times as long, little by little since iteration {from}, {percent:+.2}% an iteration"
                )?;
            }
            Course::Periodic { period_iterations, slow_share, slow_factor, average } => write!(
                f,
                "{slow_factor:.2} times as long in {:.0}% of every {period_iterations:.0} iterations, in the mean {average:.2} \
                 times what it takes since iteration {onset}",
                100.0 * slow_share
            )?,
        }
        write!(f, ", seen in iteration {detected}")?;
        let Evidence { works, layers, apart, deviation, slow_links } = evidence;
        match cause {
            Cause::Throttle if layers == 0 => write!(f, ": its {works} works changed alike, as with another clock"),
            Cause::Throttle => write!(
                f,
                ": its {works} works of {layers} layers changed alike, by factors at most {apart:.2} apart, as with another clock"
            ),
            Cause::Contention => write!(
                f,
                ": its works deviate {deviation:.1} times as much and {slow_links} of its links are slow, as beside another load"
            ),
            Cause::OneLayer => write!(f, ": the device's other layers did not change"),
            Cause::Link | Cause::Unclear => Ok(()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Pays(
                Because::Pays { gain_low_ns, horizon_iterations, cost_ns }
                | Because::Refines { gain_low_ns, horizon_iterations, cost_ns },
            ) => write!(
                f,
                "at least {:.1} ms an iteration are gained over {horizon_iterations} iterations, for {:.1} ms once",
                *gain_low_ns as f64 / 1e6,
                *cost_ns as f64 / 1e6
            ),
            Reason::Stays(reason) => reason.fmt(f),
            Reason::PromiseBroken { epoch, ratio, loss_ns } => write!(
                f,
                "plan {epoch} takes {ratio:.3} times what was promised, {:.1} ms more an iteration than the one before",
                *loss_ns as f64 / 1e6
            ),
            Reason::Transient { factor, iterations } => {
                write!(
                    f,
                    "what had changed took {factor:.2} times as long for {iterations} iterations and is as before: too short to act on"
                )
            }
            Reason::NoCandidate { why } => write!(f, "no plan was found: {why}"),
            Reason::Invalid { findings } => write!(f, "what was found breaks rules: {}", findings.join("; ")),
            Reason::Refused { device, why } => write!(f, "{device} refused it: {why}"),
            Reason::NotArmedInTime { missing } if missing.is_empty() => {
                f.write_str("every rank was armed, and the plan has not taken effect in time")
            }
            Reason::NotArmedInTime { missing } => write!(f, "not armed in time: {}", missing.join(", ")),
            Reason::RunEnded => f.write_str("the run ended first"),
        }
    }
}
