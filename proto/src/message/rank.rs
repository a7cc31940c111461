//! Between a rank and the coordinator.

use super::job::{DeviceCard, Job};
use crate::sample::Place;
use crate::{DeviceIndex, Digest, Epoch, Generation, Incarnation, LayerIndex, RunId, Term};
use serde::{Deserialize, Serialize};

/// What a rank tells the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RankEvent {
    /// I am here. Repeated until START, and again whenever the coordinator's term changes.
    Hello {
        /// Which process.
        incarnation: Incarnation,
        /// Which device it runs.
        card: DeviceCard,
        /// What it trains.
        job: Job,
        /// Where its peers reach it.
        endpoint: String,
        /// Where its training stands; none before its first START.
        place: Option<Place>,
        /// Highest term it has seen.
        seen: Term,
    },
    /// Alive. Every second.
    Beat {
        /// Which process.
        incarnation: Incarnation,
        /// Where its training stands.
        place: Place,
        /// The plan it is armed with.
        armed: Option<Epoch>,
    },
    /// Audited, compiled, memory reserved, edges warm: armed.
    Prepared {
        /// Which process.
        incarnation: Incarnation,
        /// Membership.
        generation: Generation,
        /// Plan.
        epoch: Epoch,
    },
    /// Not armed, and why.
    Refused {
        /// Which process.
        incarnation: Incarnation,
        /// Membership.
        generation: Generation,
        /// Plan.
        epoch: Epoch,
        /// Why.
        reason: Refusal,
    },
    /// The plan took effect here.
    Active {
        /// Which process.
        incarnation: Incarnation,
        /// First iteration under it, its epoch, its generation.
        place: Place,
    },
    /// This rank stopped. Repeated until START.
    Failed {
        /// Which process.
        incarnation: Incarnation,
        /// Membership that failed.
        place: Place,
        /// Why.
        reason: Failure,
    },
    /// All iterations are done. Repeated until [`RankOrder::Dismissed`].
    Finished {
        /// Which process.
        incarnation: Incarnation,
        /// Where training ended.
        place: Place,
        /// Digest of each layer that it holds.
        layers: Vec<(LayerIndex, Digest)>,
    },
    /// What any plan of the job must obey. Said after each Hello, alike by all ranks.
    Bound {
        /// Which process.
        incarnation: Incarnation,
        /// What it is.
        bounds: Bounds,
    },
    /// Devices share the cores of their hosts. Said after each Hello, alike by all ranks.
    Crowded {
        /// Which process.
        incarnation: Incarnation,
        /// The hosts whose cores are too few for all of their devices.
        hosts: Vec<CrowdedHost>,
    },
    /// What the job itself would have done with it, where nobody told the coordinator. Said after each Hello, alike by all
    /// ranks.
    Asked {
        /// Which process.
        incarnation: Incarnation,
        /// What for, if it says.
        mode: Option<Mode>,
    },
}

/// What a coordinator may do to a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Measure, never change the job.
    #[default]
    Observe,
    /// Decide and record, change nothing.
    Advise,
    /// Switch plans.
    Adapt,
}

impl Mode {
    /// All of them, by their words.
    pub const WORDS: [(&'static str, Mode); 3] =
        [("observe", Mode::Observe), ("advise", Mode::Advise), ("adapt", Mode::Adapt)];

    /// As people write it.
    pub fn word(self) -> &'static str {
        let [(observe, _), (advise, _), (adapt, _)] = Mode::WORDS;
        match self {
            Mode::Observe => observe,
            Mode::Advise => advise,
            Mode::Adapt => adapt,
        }
    }
}

/// A host whose devices share its cores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CrowdedHost {
    /// Its devices.
    pub devices: Vec<DeviceIndex>,
    /// So many of them work at their own speed at one time.
    pub at_once: f64,
}

/// What any plan of a job must obey.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Layers that stay on a device.
    pub pinned: Vec<(LayerIndex, DeviceIndex)>,
    /// Layers that share a device, each list in ascending order.
    pub together: Vec<Vec<LayerIndex>>,
}

/// What the coordinator tells a rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RankOrder {
    /// Begin, or go on, as a member of a generation.
    Start {
        /// Of the coordinator that orders it.
        term: Term,
        /// Membership.
        generation: Generation,
        /// Plan in force.
        epoch: Epoch,
        /// Its text, `adaptis.plan/1`.
        plan: String,
        /// Digest of that text.
        digest: Digest,
        /// In order of device index.
        members: Vec<Member>,
    },
    /// Get ready for a plan.
    Prepare {
        /// Of the coordinator that orders it.
        term: Term,
        /// Membership it is meant for.
        generation: Generation,
        /// Plan it follows.
        parent: Epoch,
        /// Its number.
        epoch: Epoch,
        /// Its text, `adaptis.plan/1`.
        plan: String,
        /// Digest of that text.
        digest: Digest,
    },
    /// Forget a plan that has not taken effect, and never arm it again.
    Abort {
        /// Of the coordinator that orders it.
        term: Term,
        /// Its number.
        epoch: Epoch,
    },
    /// The end of the run is recorded; leave.
    Dismissed {
        /// Of the coordinator that orders it.
        term: Term,
    },
    /// A newer coordinator reigns: say Hello again.
    Introduce {
        /// Its term.
        term: Term,
    },
    /// You can't take part, and why.
    Rejected {
        /// Its term.
        term: Term,
        /// Why.
        reason: Rejection,
    },
}

/// A rank of a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Device name.
    pub device: String,
    /// Its kind.
    pub kind: String,
    /// Which process.
    pub incarnation: Incarnation,
    /// Where its peers reach it.
    pub endpoint: String,
}

/// Why a rank will not be armed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// The plan's text is not of its format, or does not match its digest.
    #[error("the plan's text cannot be read: {0}")]
    Unreadable(String),
    /// The plan breaks rules; the audit's findings, as text.
    #[error("the plan breaks rules: {}", .0.join("; "))]
    Invalid(Vec<String>),
    /// The generation is another one.
    #[error("the plan is meant for another generation; this rank belongs to generation {own}")]
    Generation {
        /// The rank's own.
        own: Generation,
    },
    /// The parent is not the plan in force.
    #[error("the plan follows another one than the plan in force here, which is epoch {own}")]
    Parent {
        /// The plan in force.
        own: Epoch,
    },
    /// The epoch lies below what was aborted.
    #[error("the plan's epoch was aborted; the lowest that this rank can take is {floor}")]
    Aborted {
        /// Lowest acceptable epoch.
        floor: Epoch,
    },
    /// There is no memory for it beside the running plan.
    #[error(
        "no memory for the plan beside the running one: it takes {needed_bytes} bytes, there are {available_bytes}"
    )]
    Memory {
        /// What it takes.
        needed_bytes: u64,
        /// What there is.
        available_bytes: u64,
    },
    /// Training is stopped.
    #[error("training is stopped on this rank")]
    Stopped,
}

/// Why a rank stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Failure {
    /// The device ran out of memory.
    #[error(
        "device `{device}` ran out of memory: an instruction needed {needed_bytes} bytes, the device has {limit_bytes}"
    )]
    OutOfMemory {
        /// Which device.
        device: String,
        /// What the instruction needed.
        needed_bytes: u64,
        /// What the device has.
        limit_bytes: u64,
    },
    /// A peer did not answer in time.
    #[error("{}", silent(&by_index(peer), *waited_ns))]
    PeerSilent {
        /// Which one.
        peer: DeviceIndex,
        /// How long it was waited for.
        waited_ns: u64,
    },
    /// The vote found two ranks at different places.
    #[error("{}", unequal(&format!("device {}", listed(dissenters))))]
    VoteUnequal {
        /// Who dissents.
        dissenters: Vec<DeviceIndex>,
    },
    /// A layer arrived with another digest than it left with.
    #[error("layer {layer} arrived with another digest than it left with")]
    DigestUnequal {
        /// Which layer.
        layer: LayerIndex,
    },
    /// A gradient or a loss is not a finite number.
    #[error("a gradient or a loss is not a finite number")]
    NotFinite,
    /// A peer reported a failure first.
    #[error("{}", failed_first(&by_index(peer)))]
    PeerFailed {
        /// Which one.
        peer: DeviceIndex,
    },
    /// What is beneath training failed (socket, file), or the script that trains.
    #[error("{0}")]
    Environment(String),
}

impl Failure {
    /// The devices that it blames, none if its own.
    pub fn blamed(&self) -> &[DeviceIndex] {
        match self {
            Failure::PeerSilent { peer, .. } | Failure::PeerFailed { peer } => std::slice::from_ref(peer),
            Failure::VoteUnequal { dissenters } => dissenters,
            Failure::OutOfMemory { .. }
            | Failure::DigestUnequal { .. }
            | Failure::NotFinite
            | Failure::Environment(_) => &[],
        }
    }

    /// In words, with the devices by their names (`devices`, by index) where there are such.
    pub fn told(&self, devices: &[String]) -> String {
        let name = |device: &DeviceIndex| devices.get(device.index()).cloned().unwrap_or_else(|| by_index(device));
        match self {
            Failure::PeerSilent { peer, waited_ns } => silent(&name(peer), *waited_ns),
            Failure::PeerFailed { peer } => failed_first(&name(peer)),
            Failure::VoteUnequal { dissenters } => unequal(&dissenters.iter().map(name).collect::<Vec<_>>().join(", ")),
            own => own.to_string(),
        }
    }
}

fn by_index(device: &DeviceIndex) -> String {
    format!("device {device}")
}

fn silent(peer: &str, waited_ns: u64) -> String {
    format!("{peer} did not answer within {:.1} s", waited_ns as f64 / 1e9)
}

fn failed_first(peer: &str) -> String {
    format!("{peer} failed first; its log says why")
}

fn unequal(dissenters: &str) -> String {
    format!("the ranks' votes differ in place or layers; those that dissent: {dissenters}")
}

/// Why the coordinator turns a rank away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// Another job runs here.
    #[error("the coordinator runs another job, `{running}`; use another coordinator or end that job")]
    OtherJob {
        /// Its name.
        running: RunId,
    },
    /// Ranks disagree on the job.
    #[error("the ranks disagree on the job; start all of them with the same job and plan")]
    JobsDiffer,
    /// No such device in the job.
    #[error("the job has no device `{0}`")]
    UnknownDevice(String),
    /// The device is taken by a live process.
    #[error(
        "device `{0}` is another process's that was there a moment ago: end it if it still runs; before training begins \
         its place is free once it has been silent for a while"
    )]
    DeviceTaken(String),
    /// The start plan is not valid; why.
    #[error("the start plan is not valid: {}", .0.join("; "))]
    StartPlan(Vec<String>),
    /// The ledger holds the end of this run.
    #[error(
        "this run is over: {reason}; the next training is another run: `adaptis run` once more, or a coordinator with a new --dir"
    )]
    RunOver {
        /// How it ended.
        reason: String,
    },
    /// The rank runs what is not in the ledger.
    #[error(
        "this rank runs generation {generation}, plan {epoch}, which the ledger of this coordinator does not hold: start \
         the coordinator with the folder (--dir) that it had when training began"
    )]
    UnknownPlace {
        /// Membership that it says it belongs to.
        generation: Generation,
        /// Plan that it says it runs.
        epoch: Epoch,
    },
}

/// `1, 3`.
fn listed(devices: &[DeviceIndex]) -> String {
    devices.iter().map(DeviceIndex::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_in_words_and_numbers() {
        let silent = Failure::PeerSilent { peer: DeviceIndex(2), waited_ns: 30_040_000_000 };
        assert_eq!(silent.to_string(), "device 2 did not answer within 30.0 s");
        let devices = ["left", "middle", "right"].map(str::to_owned);
        assert_eq!(silent.told(&devices), "right did not answer within 30.0 s");
        assert_eq!(silent.told(&devices[..2]), silent.to_string());
        let unequal = Failure::VoteUnequal { dissenters: vec![DeviceIndex(1), DeviceIndex(3)] };
        assert!(unequal.to_string().ends_with("device 1, 3"), "{unequal}");
        assert!(unequal.told(&devices).ends_with("dissent: middle, device 3"), "{}", unequal.told(&devices));
        let invalid = Refusal::Invalid(vec!["one".to_owned(), "two".to_owned()]);
        assert_eq!(invalid.to_string(), "the plan breaks rules: one; two");
        let over = Rejection::RunOver { reason: "all iterations are done".to_owned() };
        let text = "this run is over: all iterations are done; the next training is another run";
        assert!(over.to_string().starts_with(text), "{over}");
    }
}
