//! `adaptis agent`: drains the ring of one device and streams to the coordinator.

use crate::signals::Stop;
use crate::{failure, files, keys, values};
use adaptis_agent::{AgentError, Calibrating, Options};
use adaptis_ring::RingError;
use anyhow::Result;
use clap::builder::NonEmptyStringValueParser;
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
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
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
    #[arg(long, value_name = "BYTES", default_value_t = Options::SPOOL_BYTES_MAX_DEFAULT,
        value_parser = values::whole(SPOOL_BYTES_MIN..=u64::MAX), allow_negative_numbers = true)]
    spool_bytes: u64,
    /// The GPU to probe, as GPU-... or its number; none for a device that is no GPU
    #[arg(long)]
    gpu: Option<String>,
    /// Do not calibrate the device. Without this, an agent that starts before training runs a few products and copies
    /// within a second, on the GPU of --gpu (whose memory is given back at once) or else on the host's processor, so that
    /// layers have an expected time on a kind that nobody has profiled
    #[arg(long)]
    no_calibration: bool,
    /// Leave once the training process has ended and all is acknowledged
    #[arg(long)]
    until_closed: bool,
    /// Folder of keys, made by `adaptis keys`
    #[arg(long, env = "ADAPTIS_KEYS", value_name = "DIR")]
    keys: Option<PathBuf>,
}

/// Less holds no batch.
const SPOOL_BYTES_MIN: u64 = 1 << 20;

pub fn run(arguments: Arguments) -> Result<()> {
    let stop = Stop::listen_as_service()?;
    let mut options = Options::new(&arguments.device, arguments.ring, &arguments.coordinator, arguments.spool);
    options.security = keys::security(arguments.keys.as_deref(), &arguments.device)?;
    options.spool_bytes_max = arguments.spool_bytes;
    options.gpu_uuid_or_index = arguments.gpu;
    options.until_closed = arguments.until_closed;
    options.calibrating = if arguments.no_calibration { Calibrating::Never } else { Calibrating::AtStart };
    let summary = adaptis_agent::run(options, stop.flag()).map_err(end)?;
    let counters: Vec<String> = summary.counters.iter().map(|(name, value)| format!("{name} {value}")).collect();
    files::say(&counters.join(", "));
    Ok(())
}

fn end(error: AgentError) -> anyhow::Error {
    use adaptis_link::Error as Link;
    match &error {
        AgentError::Link(Link::BadAddress { .. } | Link::BadIdentity { .. })
        | AgentError::Ring(RingError::Foreign { .. } | RingError::Version { .. } | RingError::Truncated { .. }) => {
            failure::usage(error)
        }
        _ => failure::environment(error),
    }
}
