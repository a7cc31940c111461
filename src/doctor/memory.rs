//! Where rings lie: files in memory that ranks write and agents read.

use super::Finding;
use super::Verdict::{Fine, Fix};
use crate::launch::rings;
use std::path::{Path, PathBuf};

const ABOUT: &str = "rings";

/// The folder, or the one that it would be made in.
pub(super) fn made_in(folder: &Path) -> PathBuf {
    let full = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    full.ancestors().find(|folder| folder.exists()).unwrap_or(&full).to_owned()
}

/// Whether so many rings can lie there.
pub(super) fn look(place: &Path, devices: usize) -> Finding {
    let name = place.display();
    if !place.is_dir() {
        let text = format!("{name} is not there: mount it (tmpfs), or give ranks and agents --ring FILE elsewhere");
        return Finding::new(ABOUT, Fix, text);
    }
    if let Err(error) = tempfile::tempfile_in(place) {
        let text = format!("{name} can't be written ({error}): mount it writable, or give --ring FILE elsewhere");
        return Finding::new(ABOUT, Fix, text);
    }
    let room = match rings::room_bytes(place) {
        Ok(room) => room,
        Err(error) => return Finding::new(ABOUT, Fix, format!("{name}: {error}")),
    };
    let needed = rings::needed_bytes(devices);
    match room {
        None => Finding::new(ABOUT, Fine, format!("{name} is writable and has no limit")),
        Some(room) if room < needed => {
            let (room, needed) = (room >> 10, needed.div_ceil(1 << 10));
            let text = format!("{name} has {room} KiB left and {devices} ranks need {needed}: make room there");
            Finding::new(ABOUT, Fix, text)
        }
        Some(room) => {
            let text =
                format!("{name} is writable, {} MiB left, {} KiB a rank", room >> 20, rings::needed_bytes(1) >> 10);
            Finding::new(ABOUT, Fine, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_there_writable_and_has_room() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "no folder").expect("a file");
        for (place, devices, verdict, word) in [
            (folder.path(), 8, Fine, "is writable"),
            (folder.path(), usize::MAX >> 24, Fix, "make room"),
            (file.as_path(), 1, Fix, "is not there"),
            (Path::new("/proc"), 1, Fix, "can't be written"),
        ] {
            let found = look(place, devices);
            assert_eq!(found.verdict, verdict, "{found:?}");
            assert!(found.text.contains(word), "{found:?}");
        }
    }
}
