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

mod agent;
mod job;
mod peer;
mod people;
mod rank;

pub use agent::{AgentEvent, AgentOrder, Batch, ClockOffset, Health};
pub use job::{DeviceCard, Job, JobLayer};
pub use peer::{PeerBody, PeerHeader, TensorKind, TensorTag, Vote};
pub use people::{Answer, Ask, DeviceStatus, PeakMemory, State, Status};
pub use rank::{Bounds, CrowdedHost, Failure, Member, Mode, RankEvent, RankOrder, Refusal, Rejection};

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
