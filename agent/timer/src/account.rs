//! What is timed, how it is made, and what became of it.

use crate::shares::Shares;
use adaptis_agent_core::GovernorLimits;
use adaptis_proto::sample::{Mark, Phase, Place};
use adaptis_proto::{DeviceIndex, LayerIndex, Microbatch};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A layer's work, on a stream of computation. It begins after the stream has waited for its input, or waiting would
    /// count as work.
    Work {
        /// Which layer.
        layer: LayerIndex,
        /// Which microbatch.
        microbatch: Microbatch,
        /// Which phase.
        phase: Phase,
    },
    /// Works that one interval holds together; each is taken for its share.
    Shared {
        /// Which works.
        shares: Shares,
        /// Which microbatch (0 for the optimizer).
        microbatch: Microbatch,
    },
    /// A transfer to this device, on a stream of communication.
    Transfer {
        /// The sender.
        from: DeviceIndex,
        /// Which microbatch.
        microbatch: Microbatch,
        /// Bytes on the link.
        bytes: u64,
    },
    /// An iteration, boundary to boundary. Its loss is told by whoever knows it, if somebody does.
    Iteration,
}

impl What {
    /// Which pool of events.
    pub(crate) fn lane(&self) -> usize {
        match self {
            What::Work { .. } | What::Shared { .. } | What::Iteration => 0,
            What::Transfer { .. } => 1,
        }
    }
}

/// How a timer is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Events for works; each open one holds two, each timed one until it is resolved.
    pub work_events: usize,
    /// Events for transfers.
    pub transfer_events: usize,
    /// Boundaries after which an event that is not ready is given up.
    pub give_up_boundaries: u64,
    /// What measuring may cost.
    pub governor: GovernorLimits,
}

impl Default for Options {
    fn default() -> Self {
        Self { work_events: 2048, transfer_events: 512, give_up_boundaries: 8, governor: GovernorLimits::default() }
    }
}

/// The iteration that a boundary opens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Next {
    /// Its place in history.
    pub place: Place,
    /// Whether its samples are set apart.
    pub mark: Mark,
    /// Its microbatches.
    pub microbatches: u32,
}

/// What became of the works that were to be timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Begun with an event.
    pub begun: u64,
    /// Recorded as samples.
    pub recorded: u64,
    /// Their event was not ready for too long.
    pub given_up: u64,
    /// Begun and not ended, or ended in the middle of a capture.
    pub abandoned: u64,
    /// Nobody knows where they are on the host's clock.
    pub unplaced: u64,
    /// Begun before the driver failed.
    pub lost: u64,
    /// Not resolved yet.
    pub pending: u64,
    /// Not begun since no event was free.
    pub pool_empty: u64,
    /// Not begun since the stream was capturing a graph.
    pub capturing: u64,
}

impl Counters {
    /// Nothing disappears without a cause.
    pub fn add_up(&self) -> bool {
        self.begun == self.recorded + self.given_up + self.abandoned + self.unplaced + self.lost + self.pending
    }

    pub(crate) fn drop_one(&mut self, cause: impl FnOnce(&mut Self) -> &mut u64) {
        self.pending -= 1;
        *cause(self) += 1;
    }
}

/// What measuring is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// One in so many works is timed.
    pub period: u64,
    /// Even the least that must be timed costs more than the budget.
    pub is_at_floor: bool,
    /// Share of the last iteration that measuring took.
    pub cost_share: f64,
    /// What an event costs the device; none where it could not be measured.
    pub event_device_ns: Option<f64>,
    /// How far off the instants of the works resolved last may be; before any, those of the anchors; none without these.
    pub alignment_error_ns: Option<f64>,
    /// Boundaries at which no anchor could be had.
    pub anchor_misses: u64,
    /// Pairs of anchors between which no clock could have run; the older one alone was believed.
    pub clock_breaks: u64,
    /// Events that could not be made anew.
    pub slots_lost: u64,
    /// The driver's error after which nothing more was asked of it.
    pub broken: Option<u32>,
}
