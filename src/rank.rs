//! `adaptis rank`: one device of an emulated job.

use crate::signals::Stop;
use crate::{failure, files, keys};
use adaptis_executor::{Ended, ExecutorError, Options};
use adaptis_ring::RingError;
use anyhow::Result;
use clap::builder::NonEmptyStringValueParser;
use std::path::{Path, PathBuf};

/// Runs one rank of an emulated job.
///
/// It introduces itself to the coordinator, waits until all ranks are there, and trains: real arithmetic, paced to the
/// device that the emulation file describes.
#[derive(clap::Args)]
#[command(after_help = "Example:
  adaptis rank --device gpu0 --emulation run/emulation.json --ring /dev/shm/gpu0 --coordinator tcp://127.0.0.1:29611")]
pub struct Arguments {
    /// Name of the device
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    device: String,
    /// What it trains and what it is paced to, adaptis.emulation/1 (the demo leaves one in its run folder)
    #[arg(long, value_name = "FILE")]
    emulation: PathBuf,
    /// Where to put the ring that the agent reads
    #[arg(long, value_name = "FILE")]
    ring: PathBuf,
    /// Address of the coordinator
    #[arg(long, env = "ADAPTIS_COORDINATOR", default_value = "tcp://127.0.0.1:29611")]
    coordinator: String,
    /// Where to listen for the other ranks
    #[arg(long, default_value = "tcp://127.0.0.1:*")]
    listen: String,
    /// Folder of keys, made by `adaptis keys`
    #[arg(long, env = "ADAPTIS_KEYS", value_name = "DIR")]
    keys: Option<PathBuf>,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let stop = Stop::listen_as_service()?;
    let security = keys::security(arguments.keys.as_deref(), &arguments.device)?;
    let mut options = Options::new(arguments.coordinator, arguments.device, arguments.emulation, arguments.ring);
    options.security = security;
    options.listen = arguments.listen;
    let emulation = options.emulation.clone();
    match adaptis_executor::run(options, stop.flag()).map_err(|error| end(error, &emulation))? {
        Ended::Finished { place, late, dropped } => {
            files::say(&format!(
                "finished after {} iterations on plan {}; {} instructions were too slow for their pace, by {:.1} ms in \
                 all; {dropped} samples dropped",
                place.step,
                place.epoch,
                late.count,
                late.ns as f64 / 1e6
            ));
        }
        Ended::Stopped => files::say("stopped as asked"),
    }
    Ok(())
}

fn end(error: ExecutorError, emulation: &Path) -> anyhow::Error {
    use ExecutorError as E;
    use adaptis_link::Error as Link;
    match error {
        E::File { ref path, .. } | E::Emulation { ref path, .. } if path == emulation => {
            failure::usage(format!("--emulation {error}"))
        }
        E::File { .. }
        | E::Emulation { .. }
        | E::Text { .. }
        | E::UnknownDevice { .. }
        | E::Rejected(_)
        | E::Link(Link::BadAddress { .. } | Link::Unprotected { .. })
        | E::Ring(
            RingError::DeviceName { .. }
            | RingError::Foreign { .. }
            | RingError::Version { .. }
            | RingError::Truncated { .. },
        )
        | E::PeerKey { .. } => failure::usage(error),
        E::Failed { .. } => failure::negative(error),
        E::Link(_) | E::Wire(_) | E::Ring(_) | E::Thread(_) | E::Unconfirmed => failure::environment(error),
    }
}
