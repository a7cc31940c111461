//! Between a person's tool and the coordinator.

use crate::sample::Place;
use crate::{Epoch, RunId, Step, Term};
use serde::{Deserialize, Serialize};

/// What a tool asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ask {
    /// Where things stand.
    Status,
    /// Write the report and tell where.
    Report,
    /// What memory came to under each plan.
    Memory,
    /// Where the costs that plans are made by come from.
    Figures,
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
    /// What memory came to, by plan and device.
    Memory(Vec<PeakMemory>),
    /// How many costs, of a device, layer and phase each, come from where, by the word for it (`measured`,
    /// `earlier_jobs`...).
    Figures(Vec<(String, u64)>),
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

impl Status {
    /// Iterations done so far: a count, where `place` holds the index of the last one that was recorded.
    pub fn iterations_done(&self) -> u64 {
        match self.state {
            // Without agents nothing was recorded of them.
            State::Finished => self.iterations,
            _ => self.duration_ns.map_or(0, |_| self.place.step.0.saturating_add(1)),
        }
    }
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
    /// Share of the last iteration measured in which it did not work.
    pub bubble: Option<f64>,
    /// Estimated own slowdown, 1.0 = as its kind.
    pub slowdown: Option<f64>,
    /// Peak memory of the last iteration measured.
    pub peak_bytes: Option<u64>,
    /// Its memory.
    pub memory_bytes: u64,
}

/// The memory of a device under a plan: what was predicted, and what came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeakMemory {
    /// The plan.
    pub epoch: Epoch,
    /// Name of the device.
    pub device: String,
    /// Peak as predicted with the plan; of a plan without a prediction, as first estimated. None before that.
    pub predicted_bytes: Option<u64>,
    /// Highest peak of any iteration under the plan.
    pub measured_bytes: u64,
    /// The device's memory.
    pub memory_bytes: u64,
}

impl PeakMemory {
    /// By how much the plan needed more than was predicted; none without a prediction, 0 where it needed less.
    pub fn shortfall_bytes(&self) -> Option<u64> {
        Some(self.measured_bytes.saturating_sub(self.predicted_bytes?))
    }

    /// What the plan left free on the device, as predicted.
    pub fn margin_bytes(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.predicted_bytes.unwrap_or(self.memory_bytes))
    }

    /// The shortfall takes more than half of what the plan left free: the next one like it may not fit.
    pub fn is_close(&self) -> bool {
        self.shortfall_bytes().is_some_and(|shortfall_bytes| shortfall_bytes > self.margin_bytes() / 2)
    }
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
