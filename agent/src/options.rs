//! What an agent is told.

use adaptis_agent_core::Limits;
use adaptis_link::Security;
use std::path::PathBuf;

/// Whether the device is measured before it trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Calibrating {
    /// Once, when the agent starts, unless training runs already: a few products and copies within a second.
    #[default]
    AtStart,
    /// Not at all.
    Never,
}

/// What an agent is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of its device.
    pub device: String,
    /// Where the training process puts its ring.
    pub ring: PathBuf,
    /// Address of the coordinator, `tcp://host:port`.
    pub coordinator: String,
    /// Folder for what the coordinator does not take for long. One agent, one folder.
    pub spool: PathBuf,
    /// Most bytes in that folder; beyond, the oldest batches are dropped and counted.
    pub spool_bytes_max: u64,
    /// Keys, or none.
    pub security: Security,
    /// The GPU to be probed, as `GPU-...` or by NVML's index; none for a device that is no GPU.
    pub gpu_uuid_or_index: Option<String>,
    /// Whether its device is calibrated: the GPU that is named, else the host's processor.
    pub calibrating: Calibrating,
    /// Whether to leave once the ring is closed and everything in it acknowledged.
    pub until_closed: bool,
    /// Limits of batching and delivery.
    pub limits: Limits,
}

impl Options {
    /// A quarter of a gibibyte: some 8 million records, an hour at 2,000 a second.
    pub const SPOOL_BYTES_MAX_DEFAULT: u64 = 256 << 20;

    /// With the defaults: no keys, no GPU, until stopped.
    pub fn new(device: &str, ring: PathBuf, coordinator: &str, spool: PathBuf) -> Self {
        Self {
            device: device.to_owned(),
            ring,
            coordinator: coordinator.to_owned(),
            spool,
            spool_bytes_max: Self::SPOOL_BYTES_MAX_DEFAULT,
            security: Security::Open,
            gpu_uuid_or_index: None,
            calibrating: Calibrating::default(),
            until_closed: false,
            limits: Limits::default(),
        }
    }
}
