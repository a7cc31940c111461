//! The store of profiles: whether it, or what it would be made in, can be written and locked.

use super::Finding;
use super::Verdict::{Fine, Fix, Note};
use crate::profiles::store::place;
use std::path::Path;

const ABOUT: &str = "store";

pub(super) fn look(named: Option<&Path>) -> Finding {
    let Ok(store) = place(named.filter(|path| !path.as_os_str().is_empty()), "--store") else {
        let text = "no home folder to keep profiles in: set HOME, or give --store DIR where one is asked for";
        return Finding::new(ABOUT, Note, text);
    };
    let name = store.display();
    // What is not there yet is made in the nearest folder that is; links that lead nowhere and files are found to be so.
    let Some(there) = store.ancestors().find(|path| path.symlink_metadata().is_ok()) else {
        return Finding::new(ABOUT, Fix, format!("{name}: no folder on the way to it is there: name another --store"));
    };
    let locked = tempfile::NamedTempFile::new_in(there).and_then(|file| Ok(file.as_file().try_lock()?));
    match locked {
        Err(error) => {
            let folder = there.display();
            let text = format!("{name}: {folder} takes no file that can be locked ({error}): name another --store");
            Finding::new(ABOUT, Fix, text)
        }
        Ok(()) if there == store => Finding::new(ABOUT, Fine, format!("{name} can be written and locked")),
        Ok(()) => Finding::new(ABOUT, Fine, format!("{name} is not there yet and can be made")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_can_be_written_or_made() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "no folder").expect("a file");
        for (place, verdict, word) in [
            (folder.path().to_owned(), Fine, "can be written and locked"),
            (folder.path().join("a/b"), Fine, "can be made"),
            (file.join("a"), Fix, "takes no file"),
            ("/proc/adaptis".into(), Fix, "takes no file"),
        ] {
            let found = look(Some(&place));
            assert_eq!(found.verdict, verdict, "{found:?}");
            assert!(found.text.contains(word), "{found:?}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1, "nothing is left behind");
    }
}
