//! Between an agent and the coordinator.

use crate::Incarnation;
use crate::sample::Record;
use serde::{Deserialize, Serialize};

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
