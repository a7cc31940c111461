//! `adaptis keys`: makes the keys that let the parts trust one another across machines.

use crate::{failure, files};
use adaptis_link::Security;
use adaptis_link::keys::{KeyError, Keyring};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Makes the keys that let the parts trust one another across machines.
///
/// The folder gets a pair for the coordinator and one for each named device; rank and agent of a device share its pair.
/// Keys that are there stay as they are, so that a device is added by naming it. Copy the folder to each machine (a
/// machine needs the secret keys of its own devices only) and give it to every part with --keys. Without keys, only
/// loopback addresses are bound.
#[derive(clap::Args)]
#[command(after_help = "Example:
  adaptis keys cluster-keys gpu0 gpu1 gpu2 gpu3
  adaptis coordinator --dir run --listen tcp://10.0.0.1:29611 --keys cluster-keys")]
pub struct Arguments {
    /// The folder
    dir: PathBuf,
    /// Names of the devices
    #[arg(value_name = "DEVICE", required = true)]
    devices: Vec<String>,
    /// Print the public keys as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let mut names = arguments.devices.clone();
    names.sort();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(failure::usage(format!("DEVICE `{}` is named twice: name each device once", twice[0])));
    }
    let ring = Keyring::create(&arguments.dir, &arguments.devices).map_err(|error| fault("keys", &error))?;
    let keys: Vec<(&str, String)> = ring.allowed().map(|(name, key)| (name, key.to_string())).collect();
    if arguments.json {
        let keys: serde_json::Map<String, serde_json::Value> =
            keys.into_iter().map(|(name, key)| (name.to_owned(), key.into())).collect();
        files::print(&format!("{:#}\n", serde_json::json!({ "dir": arguments.dir, "public_keys": keys })))?;
    } else {
        let rows: String = keys.iter().map(|(name, key)| format!("{name:<16} {key}\n")).collect();
        files::print(&rows)?;
    }
    Ok(())
}

fn fault(what: &str, error: &KeyError) -> anyhow::Error {
    match error {
        KeyError::Read { .. } | KeyError::Write { .. } => failure::environment(format!("{what}: {error}")),
        other => failure::usage(format!("{what}: {other}")),
    }
}

/// The security of a part: keys from a folder under its own name, or none.
pub fn security(dir: Option<&Path>, name: &str) -> Result<Security> {
    match dir {
        None => Ok(Security::Open),
        Some(dir) => Keyring::load_as(dir, name).map(Security::Curve).map_err(|error| fault("--keys", &error)),
    }
}
