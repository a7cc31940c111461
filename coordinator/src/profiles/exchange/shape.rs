//! The shape of `adaptis.profiles/1`.

use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) format: String,
    pub(super) profiles: Vec<ProfileRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) sources: Vec<SourceRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) links: Vec<LinkRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) memories: Vec<MemoryRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) layers: Vec<LayerRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) kinds: Vec<KindRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) rates: Vec<RateRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) overheads: Vec<OverheadRow>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceRow {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) how: String,
    pub(super) samples: u64,
    pub(super) first_seen: u64,
    pub(super) last_seen: u64,
    pub(super) merged: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProfileRow {
    pub(super) kind: String,
    pub(super) signature: String,
    pub(super) phase: String,
    pub(super) seconds: f64,
    #[serde(default = "one")]
    pub(super) count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) low: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) high: Option<f64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) software: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) first_seen: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_seen: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sketch: Option<Vec<[u64; 2]>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkRow {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    #[serde(default = "one")]
    pub(super) count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) first_seen: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_seen: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sketch: Option<Vec<[u64; 2]>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemoryRow {
    pub(super) kind: String,
    pub(super) signature: String,
    pub(super) activation_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) weight_gradient_bytes: Option<u64>,
    #[serde(default)]
    pub(super) workspace_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerRow {
    pub(super) signature: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parameter_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) state_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) output_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) moved_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KindRow {
    pub(super) kind: String,
    pub(super) memory_bytes: u64,
    #[serde(default)]
    pub(super) reserved_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RateRow {
    pub(super) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) operations_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bytes_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OverheadRow {
    pub(super) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) instruction_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) transfer_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
}

fn one() -> u64 {
    1
}
