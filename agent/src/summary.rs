//! What an agent has done, for its last words.

use crate::probes::cuda::Card;
use adaptis_agent_core::LayerSummary;
use adaptis_proto::message::ClockOffset;

/// What an agent has done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Counters by name: `taken = stored + dropped_* + queued`, then those of spool and link.
    pub counters: Vec<(String, u64)>,
    /// What each layer cost in each phase.
    pub layers: Vec<LayerSummary>,
    /// Offset to the coordinator's clock.
    pub clock: Option<ClockOffset>,
    /// The GPU, if one was named and found.
    pub card: Option<Card>,
}

impl Summary {
    /// A counter by its name.
    pub fn counter(&self, name: &str) -> Option<u64> {
        self.counters.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }
}
