//! What the commands that start parts of their own share: services that stay up, the folder of rings, and the summary of a
//! run that is over.

mod gains;
mod pictures;
pub mod rings;
pub mod service;
pub mod summary;

use anyhow::{Context, Result};

/// A port of this machine that nobody has, now.
pub fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}
