//! The plan, `adaptis.plan/1`: partition, placement, schedule and recomputation in one immutable value.

use crate::instruction::Instruction;
use crate::json::{self, FormatError};
use adaptis_proto::{Digest, Epoch};
use serde::{Deserialize, Serialize};

/// Name and version in every file of this format.
pub const FORMAT: &str = "adaptis.plan/1";

/// Who runs what, in which order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`FORMAT`].
    pub format: String,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Its number.
    pub epoch: Epoch,
    /// The number of the plan that it follows; 0 for none.
    pub parent: Epoch,
    /// Number of layers of the model.
    #[serde(deserialize_with = "json::whole_u32")]
    pub layers: u32,
    /// The problem's device names, in its order.
    pub devices: Vec<String>,
    /// Contiguous runs of layers, in model order.
    pub stages: Vec<Stage>,
    /// One ordered program per device.
    pub programs: Vec<Vec<Instruction>>,
    /// What the simulator says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
    /// Why it was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<serde_json::Value>,
}

/// A contiguous run of layers on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Half-open range of layers.
    #[serde(deserialize_with = "json::range")]
    pub layers: [u32; 2],
    /// Index into [`Plan::devices`].
    #[serde(deserialize_with = "json::whole_u32")]
    pub device: u32,
    /// Layers, by their index in the model, whose activations are dropped after F.
    #[serde(default, deserialize_with = "json::list_of_indices")]
    pub recompute: Vec<u32>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Stage {
    /// Its layers, as a range of indices.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.layers[0] as usize..self.layers[1] as usize
    }
}

/// What the simulator says of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicted {
    /// Boundary to boundary.
    #[serde(deserialize_with = "json::whole")]
    pub iteration_ns: u64,
    /// Per device.
    #[serde(deserialize_with = "json::list_of_whole")]
    pub peak_bytes: Vec<u64>,
    /// No plan for the same problem takes less.
    #[serde(deserialize_with = "json::whole")]
    pub lower_bound_ns: u64,
    /// Per device: share of the iteration not spent in instructions.
    pub bubble: Vec<f64>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Plan {
    /// Reads a plan. Its rules are checked by [`crate::audit`], against a problem.
    ///
    /// # Errors
    /// Names the path of the first field that is missing, unknown or of a wrong type.
    pub fn read(text: &str) -> Result<Plan, FormatError> {
        json::read(text, FORMAT)
    }

    /// As JSON, one line per program.
    pub fn write(&self) -> String {
        json::write(self)
    }

    /// The digest of a plan's text: what ranks vote on.
    pub fn digest(text: &str) -> Digest {
        Digest(*blake3::hash(text.as_bytes()).as_bytes())
    }

    /// Device of each layer.
    pub fn device_of_layers(&self) -> Vec<u32> {
        let mut of = vec![0; self.layers as usize];
        for stage in &self.stages {
            for layer in stage.range() {
                if let Some(slot) = of.get_mut(layer) {
                    *slot = stage.device;
                }
            }
        }
        of
    }
}
