//! Who says what to whom.
//!
//! ```text
//!   rank  -- ToCoordinator::Rank -->  coordinator  -- FromCoordinator::Rank -->  rank
//!   agent -- ToCoordinator::Agent ->  coordinator  -- FromCoordinator::Agent ->  agent
//!   people - ToCoordinator::Ask --->  coordinator  -- FromCoordinator::Answer -> people
//!   rank  -- PeerHeader + bytes -------------------------------------------->  rank
//! ```
//!
//! Every message may be lost, doubled or late. Orders that change something carry the term of the coordinator that gave
//! them; whoever has seen a higher one ignores them. A plan travels as the text that the ledger holds, beside the digest
//! of that text, so that all sides agree on the bytes.

use crate::sample::{Place, Record};
use crate::{
    DeviceIndex, Digest, Epoch, Generation, Incarnation, LayerIndex, Microbatch, RunId, StageIndex, Step, Term,
};
use serde::{Deserialize, Serialize};

/// Anything that reaches the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToCoordinator {
    /// From a rank.
    Rank(RankEvent),
    /// From an agent.
    Agent(AgentEvent),
    /// From a person's tool.
    Ask(Ask),
}

/// Anything that the coordinator sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromCoordinator {
    /// To a rank.
    Rank(RankOrder),
    /// To an agent.
    Agent(AgentOrder),
    /// To a person's tool.
    Answer(Answer),
}

// ---- the job, as its ranks declare it ------------------------------------------------------------------------------

/// A layer as the training job knows it: its sizes, never its costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLayer {
    /// Unique within the model.
    pub name: String,
    /// Cost class across jobs.
    pub signature: String,
    /// Weights alone.
    pub parameter_bytes: u64,
    /// Weights, gradients and optimizer state.
    pub state_bytes: u64,
    /// What crosses to the next layer, per microbatch.
    pub output_bytes: u64,
    /// What travels when it changes device.
    pub moved_bytes: u64,
}

/// What all ranks of a job must agree on before it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Name of the run.
    pub run: RunId,
    /// Devices, in order of their index.
    pub devices: Vec<String>,
    /// The model.
    pub layers: Vec<JobLayer>,
    /// Microbatches in an iteration.
    pub microbatches: u32,
    /// Iterations in the run; 0 = until stopped.
    pub iterations: u64,
    /// A plan to start on, as `adaptis.plan/1`; none = an even split under 1F1B.
    pub start_plan: Option<String>,
}

/// A device's own description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCard {
    /// Unique within the job.
    pub name: String,
    /// Card and memory, `h100-80g`.
    pub kind: String,
    /// Total memory.
    pub memory_bytes: u64,
    /// Of it, never available to layers.
    pub reserved_bytes: u64,
}

// ---- rank <-> coordinator ------------------------------------------------------------------------------------------

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
    #[error("device {peer} did not answer within {:.1} s", *waited_ns as f64 / 1e9)]
    PeerSilent {
        /// Which one.
        peer: DeviceIndex,
        /// How long it was waited for.
        waited_ns: u64,
    },
    /// The vote found two ranks at different places.
    #[error("the ranks' votes differ in place or layers; those that dissent: device {}", listed(dissenters))]
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
    #[error("device {peer} failed first; its log says why")]
    PeerFailed {
        /// Which one.
        peer: DeviceIndex,
    },
    /// The machine beneath failed (socket, file).
    #[error("the machine beneath failed: {0}")]
    Environment(String),
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
    #[error("device `{0}` is taken by a live process; end that one first")]
    DeviceTaken(String),
    /// The start plan is not valid; why.
    #[error("the start plan is not valid: {}", .0.join("; "))]
    StartPlan(Vec<String>),
    /// The ledger holds the end of this run.
    #[error("this run is over: {reason}; start the coordinator with a new --dir")]
    RunOver {
        /// How it ended.
        reason: String,
    },
}

/// `1, 3`.
fn listed(devices: &[DeviceIndex]) -> String {
    devices.iter().map(DeviceIndex::to_string).collect::<Vec<_>>().join(", ")
}

// ---- agent <-> coordinator -----------------------------------------------------------------------------------------

/// What an agent tells the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AgentEvent {
    /// Samples. Sent again until stored; a doubled one is known by its numbers.
    Batch(Batch),
    /// A least-delay clock exchange; `sent_ns` on the agent's clock.
    Ping {
        /// Which device.
        device: String,
        /// Agent's clock when it left.
        sent_ns: u64,
    },
    /// State of the device and of the agent itself.
    Health(Health),
}

/// Consecutive records of one ring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Which device.
    pub device: String,
    /// Which recording process: a ring belongs to one.
    pub ring: Incarnation,
    /// Number of the first record in the ring's life; the following ones count on.
    pub first: u64,
    /// The records. An empty batch says that what is not stored below `first` will never come: it counts as dropped, and
    /// the numbers go on at `first`.
    pub records: Vec<Record>,
    /// Records that the ring dropped so far, because it was full.
    pub dropped: u64,
    /// Offset of the agent's clock to the coordinator's, and the bound of its error; none before an exchange.
    pub clock: Option<ClockOffset>,
}

/// `coordinator's clock = agent's clock + offset`, within `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffset {
    /// To be added to the agent's clock.
    pub offset_ns: i64,
    /// Half the round trip.
    pub error_ns: u64,
}

/// State of a device and of its agent. What is not known is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Which device.
    pub device: String,
    /// Which agent process.
    pub incarnation: Incarnation,
    /// Readings by name with the unit last (`sm_clock_mhz`, `power_w`, `temperature_c`).
    pub readings: Vec<(String, f64)>,
    /// The agent's own counters by name (`taken`, `stored`, `dropped_ring_full`, `queued`...).
    pub counters: Vec<(String, u64)>,
}

/// What the coordinator tells an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AgentOrder {
    /// All records of a ring below `next` are on disk here.
    Stored {
        /// Which ring.
        ring: Incarnation,
        /// Number of the first record that is not.
        next: u64,
    },
    /// Answer to a ping.
    Pong {
        /// As it came.
        sent_ns: u64,
        /// Coordinator's clock when it came.
        received_ns: u64,
    },
}

// ---- people <-> coordinator ----------------------------------------------------------------------------------------

/// What a tool asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ask {
    /// Where things stand.
    Status,
    /// Write the report and tell where.
    Report,
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Where things stand.
    Status(Box<Status>),
    /// The report is written there.
    Report {
        /// Path.
        path: String,
    },
    /// It could not be done; why.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What a display shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the run.
    pub run: RunId,
    /// In words: waiting for ranks, training, preparing a plan, finished, failed.
    pub state: State,
    /// Reign.
    pub term: Term,
    /// Last recorded iteration.
    pub place: Place,
    /// Iterations in the run; 0 = unknown.
    pub iterations: u64,
    /// Its loss.
    pub loss: Option<f32>,
    /// Its duration.
    pub duration_ns: Option<u64>,
    /// What the simulator says of the plan in force.
    pub predicted_ns: Option<u64>,
    /// Lower bound on any plan's iteration under the present estimate.
    pub lower_bound_ns: Option<u64>,
    /// One per device.
    pub devices: Vec<DeviceStatus>,
    /// The last decision with its reason, in words.
    pub last_decision: Option<String>,
    /// Iteration of it.
    pub last_decision_step: Option<Step>,
    /// Switches so far.
    pub switches: u64,
    /// Why the run failed, in words.
    pub failure: Option<String>,
    /// Counters by name.
    pub counters: Vec<(String, u64)>,
}

/// A device in a [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: String,
    /// Layer ranges of its stages, half-open.
    pub stages: Vec<(u32, u32)>,
    /// Measured share of the last iteration that it did not work.
    pub bubble: Option<f64>,
    /// Estimated own slowdown, 1.0 = as its kind.
    pub slowdown: Option<f64>,
    /// Peak memory of the last iteration.
    pub peak_bytes: Option<u64>,
    /// Its memory.
    pub memory_bytes: u64,
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Not all ranks are there yet.
    #[default]
    Waiting,
    /// Training.
    Training,
    /// Training, and a new plan is being searched.
    Searching,
    /// Training, and a new plan is being prepared.
    Preparing,
    /// All iterations are done.
    Finished,
    /// A rank failed.
    Failed,
}

// ---- rank <-> rank -------------------------------------------------------------------------------------------------

/// Head of every message between ranks; the tensor's bytes follow. A receiver refuses another generation or epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerHeader {
    /// Membership.
    pub generation: Generation,
    /// Plan.
    pub epoch: Epoch,
    /// Sender.
    pub from: DeviceIndex,
    /// What follows.
    pub body: PeerBody,
}

/// What one rank sends another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PeerBody {
    /// Output of F or of I, for a stage of the receiver.
    Tensor {
        /// Iteration.
        step: Step,
        /// Which one.
        tag: TensorTag,
        /// When its transfer starts on the link, sender's clock.
        start_ns: u64,
        /// When it arrives, sender's clock; emulated links are held to it.
        due_ns: u64,
        /// Bytes that the link carries for it (emulated links carry more than the message holds).
        bytes: u64,
    },
    /// A rank's voice at the boundary.
    Vote(Vote),
    /// State of a layer that changes device; epoch of the header is the new plan's.
    LayerState {
        /// Which layer.
        layer: LayerIndex,
        /// Of the state at the sender.
        digest: Digest,
        /// When it arrives, sender's clock.
        due_ns: u64,
        /// Bytes that the link carries for it.
        bytes: u64,
    },
    /// A rank's voice after the moves of a switch: every layer is here with the digest it left with.
    Settled {
        /// First iteration under the new plan.
        step: Step,
        /// When it was ready, sender's clock.
        ready_ns: u64,
    },
    /// A transfer made to measure a link.
    Probe {
        /// When it starts on the link, sender's clock.
        start_ns: u64,
        /// When it arrives, sender's clock.
        due_ns: u64,
        /// Bytes that the link carries for it.
        bytes: u64,
    },
    /// The sender stops; do not wait for it.
    Stopping,
}

/// A tensor that crosses devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TensorTag {
    /// What it is.
    pub kind: TensorKind,
    /// The stage that consumes it.
    pub stage: StageIndex,
    /// Microbatch.
    pub microbatch: Microbatch,
}

/// Direction of a tensor through the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TensorKind {
    /// Output of the stage before, input of F.
    Activation,
    /// Input gradient of the stage behind, input of I or B.
    Gradient,
}

/// One rank's part of the all-gather before the optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    /// Where the voter stands.
    pub place: Place,
    /// Highest term it has seen.
    pub term: Term,
    /// The plan it is armed with, and the digest of its text.
    pub armed: Option<(Epoch, Digest)>,
    /// All its snapshots are done (true while there are none).
    pub rotated: bool,
    /// A generation it was told to drain for.
    pub drain: Option<Generation>,
    /// Why it can't go on, if so.
    pub failure: Option<Failure>,
    /// Sum of squares of each of its layers' gradients.
    pub squares: Vec<(LayerIndex, f64)>,
    /// Mean loss of the iteration, from the rank that holds the last layer.
    pub loss: Option<f32>,
    /// When its last instruction ended, its clock.
    pub ready_ns: u64,
    /// How long its optimizer step will take.
    pub apply_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_in_words_and_numbers() {
        let silent = Failure::PeerSilent { peer: DeviceIndex(2), waited_ns: 30_040_000_000 };
        assert_eq!(silent.to_string(), "device 2 did not answer within 30.0 s");
        let unequal = Failure::VoteUnequal { dissenters: vec![DeviceIndex(1), DeviceIndex(3)] };
        assert!(unequal.to_string().ends_with("device 1, 3"), "{unequal}");
        let invalid = Refusal::Invalid(vec!["one".to_owned(), "two".to_owned()]);
        assert_eq!(invalid.to_string(), "the plan breaks rules: one; two");
        let over = Rejection::RunOver { reason: "all iterations are done".to_owned() };
        let text = "this run is over: all iterations are done; start the coordinator with a new --dir";
        assert_eq!(over.to_string(), text);
    }
}
