//! `adaptis agent`: drains the ring of one device and streams to the coordinator.

use crate::signals::Stop;
use crate::{failure, keys};
use adaptis_agent::Options;
use anyhow::Result;
use std::path::PathBuf;

/// Runs the agent of one device.
///
/// It drains the ring that the training process writes, probes the device, and streams samples to the coordinator. What
/// the coordinator does not take is kept in the spool. It never stops training, whatever happens to it.
#[derive(clap::Args)]
#[command(after_help = "Example:
  adaptis agent --device gpu0 --ring /dev/shm/gpu0 --spool spool/gpu0 --coordinator tcp://127.0.0.1:29611")]
pub struct Arguments {
    /// Name of the device
    #[arg(long)]
    device: String,
    /// The ring that the training process writes
    #[arg(long, value_name = "FILE")]
    ring: PathBuf,
    /// Address of the coordinator
    #[arg(long, env = "ADAPTIS_COORDINATOR", default_value = "tcp://127.0.0.1:29611")]
    coordinator: String,
    /// Folder for what the coordinator does not take for long
    #[arg(long, value_name = "DIR")]
    spool: PathBuf,
    /// Most bytes in that folder
    #[arg(long, value_name = "BYTES", default_value_t = Options::SPOOL_BYTES_MAX_DEFAULT)]
    spool_bytes: u64,
    /// The GPU to probe, as GPU-... or its number; none for a device that is no GPU
    #[arg(long)]
    gpu: Option<String>,
    /// Leave once the training process has ended and all is acknowledged
    #[arg(long)]
    until_closed: bool,
    /// Folder of keys, made by `adaptis keys`
    #[arg(long, env = "ADAPTIS_KEYS", value_name = "DIR")]
    keys: Option<PathBuf>,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let stop = Stop::listen_as_service()?;
    let mut options = Options::new(&arguments.device, arguments.ring, &arguments.coordinator, arguments.spool);
    options.security = keys::security(arguments.keys.as_deref(), &arguments.device)?;
    options.spool_bytes_max = arguments.spool_bytes;
    options.gpu_uuid_or_index = arguments.gpu;
    options.until_closed = arguments.until_closed;
    let summary = adaptis_agent::run(options, stop.flag()).map_err(failure::environment)?;
    let counters: Vec<String> = summary.counters.iter().map(|(name, value)| format!("{name} {value}")).collect();
    eprintln!("{}", counters.join(", "));
    Ok(())
}
