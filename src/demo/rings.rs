//! The folder of a demo's rings: in memory where the system has such a place, gone when the demo is.
//!
//! 1. A folder is locked before it gets the name by which others know it, and while its demo lives, in whatever namespace
//!    that is.
//! 2. A launcher that was killed leaves its folder behind, unlocked; the next one takes it away.
//!
//! The lock is on the folder itself, so that no ring can stand in its way, and its name is random, for two containers that
//! share the memory files may have processes of one number.

use crate::failure;
use anyhow::Result;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

const MEMORY: &str = "/dev/shm";
const PREFIX: &str = "adaptis-demo-";
/// Of a folder that is not locked yet.
const UNBORN: &str = ".adaptis-demo-";

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
        let place = if memory.is_dir() { memory } else { otherwise };
        Self::make_in(place).map_err(|error| failure::environment(format!("{}: {error}", place.display())))
    }

    fn make_in(place: &Path) -> io::Result<Rings> {
        std::fs::create_dir_all(place)?;
        sweep(place);
        let unborn = tempfile::Builder::new().prefix(UNBORN).tempdir_in(place)?;
        let lock = File::open(unborn.path())?;
        lock.lock()?;
        let name = unborn.path().file_name().unwrap_or_default().to_string_lossy().replacen(UNBORN, PREFIX, 1);
        let folder = place.join(name);
        std::fs::rename(unborn.path(), &folder)?;
        // Its name is another one now, and ours to remove.
        let _ = unborn.keep();
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

fn sweep(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(entry.path()) else { continue };
        if lock.try_lock().is_ok() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_lives_as_long_as_its_demo_and_no_longer() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let orphan = place.path().join(format!("{PREFIX}orphan"));
        std::fs::create_dir(&orphan).expect("a folder");
        let first = Rings::make_in(place.path()).expect("a folder of rings");
        assert!(!orphan.exists(), "what nobody holds is swept");
        std::fs::write(first.path().join("lock"), "the ring of a device of this name").expect("a ring");
        let second = Rings::make_in(place.path()).expect("another one");
        assert_ne!(first.path(), second.path());
        assert!(first.path().join("lock").exists(), "what is held stays");
        drop(first);
        drop(second);
        assert_eq!(std::fs::read_dir(place.path()).expect("the place").count(), 0);
    }
}
