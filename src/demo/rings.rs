//! The folder of a demo's rings: in memory where the system has such a place, gone when the demo is.
//!
//! It is locked while its demo lives, in whatever namespace that is. A launcher that was killed leaves its folder behind,
//! unlocked; the next one takes it away.

use crate::failure;
use anyhow::Result;
use std::fs::File;
use std::path::{Path, PathBuf};

const MEMORY: &str = "/dev/shm";
const PREFIX: &str = "adaptis-";
const LOCK: &str = "lock";

/// The folder; dropped, it is removed.
pub struct Rings {
    folder: PathBuf,
    /// Held for as long as the folder is in use.
    _lock: File,
}

impl Rings {
    /// Makes a folder, and removes those of demos that were killed. `otherwise` is where it stands on a system without
    /// memory files.
    pub fn make(otherwise: &Path) -> Result<Rings> {
        let memory = Path::new(MEMORY);
        let folder = match memory.is_dir() {
            true => {
                sweep(memory);
                memory.join(format!("{PREFIX}{}", std::process::id()))
            }
            false => otherwise.to_path_buf(),
        };
        let fail = |error: std::io::Error| failure::environment(format!("{}: {error}", folder.display()));
        std::fs::create_dir_all(&folder).map_err(fail)?;
        let lock = File::create(folder.join(LOCK)).map_err(fail)?;
        lock.lock().map_err(fail)?;
        Ok(Rings { folder, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn sweep(memory: &Path) {
    for entry in std::fs::read_dir(memory).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
