//! The job, as its ranks declare it.

use crate::RunId;
use serde::{Deserialize, Serialize};

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
