//! The folder of a run's rings: in memory where the system has such a place, gone when the run is.
//!
//! 1. A folder is locked before it gets the name by which others know it, and while its run lives, in whatever namespace
//!    that is.
//! 2. A launcher that was killed leaves its folder behind, unlocked; the next one takes it away.
//!
//! The lock is on the folder itself, so that no ring can stand in its way, and its name is random, for two containers that
//! share the memory files may have processes of one number.

use crate::failure;
use adaptis_ring::{CAPACITY_RECORDS_DEFAULT, ring_bytes};
use anyhow::Result;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const MEMORY: &str = "/dev/shm";
const PREFIX: &str = "adaptis-demo-";
/// What files in memory are rounded up to.
const PAGE_BYTES: u64 = 4096;
/// Of a folder that is not locked yet.
const UNBORN: &str = ".adaptis-demo-";

/// The folder; dropped, it is removed.
pub struct Rings {
    folder: PathBuf,
    /// Held for as long as the folder is in use.
    _lock: File,
}

impl Rings {
    /// Makes a folder, and removes those of runs that were killed. `otherwise` is where it stands on a system without
    /// memory files, or where nobody may make any.
    pub fn make(otherwise: &Path) -> Result<Rings> {
        Self::make_in_one_of(Path::new(MEMORY), otherwise)
    }

    fn make_in_one_of(memory: &Path, otherwise: &Path) -> Result<Rings> {
        let made = if memory.is_dir() { Self::make_in(memory).ok() } else { None };
        made.map_or_else(|| Self::make_in(otherwise), Ok)
            .map_err(|error| failure::environment(format!("{}: {error}", otherwise.display())))
    }

    /// Whether there is room for the rings of so many devices, to be asked before anything is made.
    ///
    /// # Errors
    /// How much is needed, and where.
    pub fn check(devices: usize) -> Result<()> {
        let memory = Path::new(MEMORY);
        if !memory.is_dir() {
            return Ok(());
        }
        sweep(memory);
        match room_bytes(memory).map_err(|error| failure::environment(format!("{MEMORY}: {error}")))? {
            Some(room_bytes) => check_room(memory, room_bytes, devices),
            None => Ok(()),
        }
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

/// What may still be written into a place; none where it has no limit of its own.
pub fn room_bytes(place: &Path) -> io::Result<Option<u64>> {
    let path = CString::new(place.as_os_str().as_bytes())?;
    // SAFETY: all zeros are a valid statvfs, and the call writes only into it; the path ends with a zero byte.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        match libc::statvfs(path.as_ptr(), &mut found) {
            // Files in memory without a limit have no blocks.
            0 if found.f_blocks == 0 => Ok(None),
            0 => Ok(Some(found.f_bavail.saturating_mul(found.f_frsize))),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// What the rings of so many devices take.
pub fn needed_bytes(devices: usize) -> u64 {
    ring_bytes(CAPACITY_RECORDS_DEFAULT).next_multiple_of(PAGE_BYTES).saturating_mul(devices as u64)
}

fn check_room(place: &Path, room_bytes: u64, devices: usize) -> Result<()> {
    let needed_bytes = needed_bytes(devices);
    if room_bytes >= needed_bytes {
        return Ok(());
    }
    Err(failure::environment(format!(
        "{}: {} KiB are free and the rings of {devices} devices need {} KiB: make room there",
        place.display(),
        room_bytes >> 10,
        needed_bytes.div_ceil(1 << 10)
    )))
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
    fn a_place_without_room_is_told_with_what_is_needed() {
        let place = Path::new("/place");
        assert!(check_room(place, 4 << 20, 4).is_ok(), "no ring is larger than a MiB");
        let error = check_room(place, 1 << 20, 4).expect_err("it holds one at most");
        assert_eq!(failure::code(&error), failure::ENVIRONMENT);
        assert!(error.to_string().contains("/place: 1024 KiB are free and the rings of 4 devices need"), "{error}");
        assert!(room_bytes(&std::env::temp_dir()).is_ok_and(|room_bytes| room_bytes != Some(0)));
    }

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
