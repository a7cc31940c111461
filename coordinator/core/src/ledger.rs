//! What the coordinator writes down before it acts: the records of its ledger.
//!
//! 1. [`Head`] changes only by compare-and-swap: a coordinator whose idea of it is stale has been deposed and stops.
//! 2. Plans, aborts and generations are written once; a second record of one number is a conflict, never an update
//!    (NumbersOnce).
//! 3. An abort says that the coordinator gave a plan up. A plan that all ranks had agreed on before the first of them
//!    was told has taken effect all the same; [`Head`] then names it (AbortedStaysAborted speaks of what happens after a
//!    rank was told).
//! 4. A prediction is written when it is made and never replaced.

mod contradiction;

pub use contradiction::Contradiction;

use crate::admission;
use crate::drift::Change;
use adaptis_proto::message::{DeviceCard, Failure, Job, Member, Mode, PeakMemory};
use adaptis_proto::rates::Rates;
use adaptis_proto::{Digest, Epoch, Generation, LayerIndex, Step, Term};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who reigns, over which membership, under which plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Number of the reign.
    pub term: Term,
    /// Number of the membership; 0 before the first.
    pub generation: Generation,
    /// Plan in force; 0 before the first.
    pub epoch: Epoch,
}

/// A plan that ranks may be told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRecord {
    /// Its number.
    pub epoch: Epoch,
    /// The plan it follows; 0 for none.
    pub parent: Epoch,
    /// The membership it is meant for.
    pub generation: Generation,
    /// Its text, `adaptis.plan/1`.
    pub text: String,
    /// Digest of that text.
    pub digest: Digest,
    /// Reign that made it.
    pub term: Term,
}

/// A membership: which processes run which devices of which job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// Its number.
    pub generation: Generation,
    /// The plan it starts on; its text is the plan record's.
    pub epoch: Epoch,
    /// In order of device index.
    pub members: Vec<Member>,
    /// In the same order.
    pub cards: Vec<DeviceCard>,
    /// What they train.
    pub job: Job,
    /// Reign that made it.
    pub term: Term,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Stay on the plan in force.
    Keep,
    /// Go to a better one.
    Switch,
    /// Go back to the one before.
    Revert,
    /// Form a new generation.
    Restart,
}

/// Why something was decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A candidate pays.
    Pays(admission::Because),
    /// Nothing that was weighed pays.
    Stays(admission::Reason),
    /// The plan in force does not do what was promised of it.
    PromiseBroken {
        /// The plan that is taken back.
        epoch: Epoch,
        /// Measured over predicted.
        ratio: f64,
        /// Measured loss per iteration against the plan before.
        loss_ns: i64,
    },
    /// No plan fits the devices, or none could be found.
    NoCandidate {
        /// What the search says.
        why: String,
    },
    /// What changed was back before it had lasted: nothing is to be done.
    Transient {
        /// Times while it lasted, over those before.
        factor: f64,
        /// Iterations that it took.
        iterations: u64,
    },
    /// The candidate breaks rules; the audit's findings.
    Invalid {
        /// As text.
        findings: Vec<String>,
    },
    /// A rank would not be armed with it.
    Refused {
        /// Name of its device.
        device: String,
        /// What it says.
        why: String,
    },
    /// Not every rank was armed in time.
    NotArmedInTime {
        /// Names of the devices that were not.
        missing: Vec<String>,
    },
    /// The run ended before the plan could take effect.
    RunEnded,
}

/// A decision, as it stands in the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Position among all decisions of the run.
    pub number: u64,
    /// Last iteration known when it was made.
    pub iteration: Step,
    /// What was decided.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Iteration whose samples gave the cause: the one that confirmed a change, else the one that the estimate was made
    /// after.
    pub detected_iteration: Step,
    /// The change that caused it, if one did.
    pub change: Option<Change>,
    /// The plan that was weighed, if it got a number.
    pub epoch: Option<Epoch>,
    /// Iteration on the plan in force, predicted.
    pub predicted_before_ns: u64,
    /// Iteration on the other plan, predicted.
    pub predicted_after_ns: u64,
    /// Gain per iteration at the lower confidence bound; negative for a loss.
    pub gain_low_ns: i64,
    /// Cost of the change, once.
    pub cost_ns: u64,
}

/// A change of plan that took effect, as ranks measured it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchRecord {
    /// First iteration on the new plan.
    pub iteration: Step,
    /// Plan before.
    pub from: Epoch,
    /// New plan.
    pub to: Epoch,
    /// Layers that changed device.
    pub layers_moved: u32,
    /// Bytes that all devices received.
    pub bytes_moved: u64,
    /// How long training stood still: the longest that a device saw.
    pub pause_ns: u64,
}

/// Beginning of a stretch of iterations that one prediction speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseRecord {
    /// First iteration.
    pub from: Step,
    /// Plan in force.
    pub epoch: Epoch,
    /// Iteration as predicted by the first refit of the phase; none before that.
    pub predicted_ns: Option<u64>,
    /// The change that began it, if one did; else it began with a plan.
    pub change: Option<Change>,
}

/// An iteration as ranks measured it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IterationRecord {
    /// Which.
    pub index: Step,
    /// Plan in force.
    pub epoch: Epoch,
    /// Membership in force.
    pub generation: Generation,
    /// Boundary to boundary: the longest that a device saw.
    pub duration_ns: u64,
    /// The loss as the bits of an `f32`.
    pub loss_bits: u32,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Iterations done.
    pub step: Step,
    /// Digest of each layer's state, in layer order.
    pub layers: Vec<(LayerIndex, Digest)>,
}

/// One entry of the ledger; entries handed over together are written together or not at all.
#[derive(Clone, Debug, PartialEq)]
pub enum Durable {
    /// [`Head`] goes from one value to another, or the writer has been deposed.
    Head {
        /// What it must be.
        was: Head,
        /// What it becomes.
        now: Head,
    },
    /// Written once.
    Plan(PlanRecord),
    /// Written once. Aborting what is aborted is no conflict: a reign may have ended between the record and its orders.
    Aborted(Epoch),
    /// Written once.
    Generation(GenerationRecord),
    /// Written once.
    Decision(Decision),
    /// The latest word on the switch to an epoch counts: devices report one after the other.
    Switch(SwitchRecord),
    /// Written once, but for a prediction that fills an empty one.
    Phase(PhaseRecord),
    /// Written once.
    Finished(Finished),
    /// The latest word on a device's memory under a plan counts: it may need more yet.
    Peak(PeakMemory),
    /// The mode that the job asks for, if it does; the latest word counts.
    Asked(Option<Mode>),
    /// Why the run failed; the latest word counts, for the first rank to say so may only repeat another.
    Failed(RunFailure),
}

/// Why a run can't go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunFailure {
    /// A rank was not heard of for too long.
    Silent {
        /// Which device.
        device: String,
        /// How long.
        waited_ns: u64,
    },
    /// A rank stopped.
    Stopped {
        /// Which device.
        device: String,
        /// In which iteration.
        step: Step,
        /// What it says.
        reason: Failure,
        /// Names of the devices that the reason blames, in its order.
        #[serde(default)]
        blamed: Vec<String>,
    },
    /// A rank is under a plan that this ledger does not hold: it is not this run's ledger.
    UnknownPlan {
        /// Which device.
        device: String,
        /// The plan.
        epoch: Epoch,
    },
    /// The plan that the job wants to start on breaks rules.
    StartPlan {
        /// The audit's findings, as text.
        findings: Vec<String>,
    },
    /// Ranks ended without holding all layers between them.
    LayersMissing {
        /// The first one that nobody holds.
        layer: LayerIndex,
    },
    /// Two ranks ended with different states of one layer.
    LayersDiffer {
        /// Which layer.
        layer: LayerIndex,
    },
}

impl std::fmt::Display for RunFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RunFailure::Silent { device, waited_ns } => {
                write!(f, "the rank of {device} has not been heard of for {:.1} s", *waited_ns as f64 / 1e9)
            }
            RunFailure::Stopped { device, step, reason, blamed } => match (reason, blamed.as_slice()) {
                (Failure::PeerFailed { .. }, [first]) => write!(
                    f,
                    "the rank of {first} stopped first, as {device} saw in iteration {step}; the log of {first} says why"
                ),
                (Failure::PeerSilent { waited_ns, .. }, [peer]) => write!(
                    f,
                    "the rank of {device} stopped in iteration {step}: {peer} did not answer within {:.1} s",
                    *waited_ns as f64 / 1e9
                ),
                (Failure::VoteUnequal { .. }, dissenters @ [_, ..]) => write!(
                    f,
                    "the rank of {device} stopped in iteration {step}: the ranks' votes differ in place or layers; those \
                     that dissent: {}",
                    dissenters.join(", ")
                ),
                _ => write!(f, "the rank of {device} stopped in iteration {step}: {reason}"),
            },
            RunFailure::UnknownPlan { device, epoch } => {
                write!(f, "the rank of {device} runs plan {epoch}, which the ledger does not know: is it of this run?")
            }
            RunFailure::StartPlan { findings } => {
                write!(f, "the plan to start on is not valid: {}", findings.join("; "))
            }
            RunFailure::LayersMissing { layer } => write!(f, "the run ended and no rank holds layer {layer}"),
            RunFailure::LayersDiffer { layer } => {
                write!(f, "the run ended with two different states of layer {layer}")
            }
        }
    }
}

/// What a coordinator finds in the ledger when it starts, its own term already in [`Head`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// With the new term.
    pub head: Head,
    /// All plans of the run, by number.
    pub plans: BTreeMap<Epoch, PlanRecord>,
    /// Those that were given up.
    pub aborted: Vec<Epoch>,
    /// The newest membership.
    pub generation: Option<GenerationRecord>,
    /// In order of their numbers.
    pub decisions: Vec<Decision>,
    /// In order of their iterations.
    pub switches: Vec<SwitchRecord>,
    /// In order of their first iterations.
    pub phases: Vec<PhaseRecord>,
    /// The newest ones, oldest first.
    pub iterations: Vec<IterationRecord>,
    /// In order of their plans.
    pub peaks: Vec<PeakMemory>,
    /// The mode that the job asks for, if it does.
    pub asked: Option<Mode>,
    /// If the run has ended.
    pub finished: Option<Finished>,
    /// If the run has failed.
    pub failed: Option<RunFailure>,
    /// By kind: what devices did at best in their agents' calibrations.
    pub rates: BTreeMap<String, Rates>,
}
