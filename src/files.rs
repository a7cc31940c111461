//! Reading the files that commands take, with errors that name the file.

pub use crate::duration::duration;

use crate::failure;
use adaptis_plan::{Plan, Problem};
use anyhow::Result;
use std::io::Write;
use std::path::Path;

/// Larger files are no problem or plan of ours.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// The text of a file.
pub fn text(path: &Path) -> Result<String> {
    let fail = |error: std::io::Error| failure::usage(format!("{}: {error}", path.display()));
    let length = std::fs::metadata(path).map_err(fail)?.len();
    if length > FILE_BYTES_MAX {
        return Err(failure::usage(format!("{}: {length} bytes is more than {FILE_BYTES_MAX}", path.display())));
    }
    let bytes = std::fs::read(path).map_err(fail)?;
    String::from_utf8(bytes).map_err(|_| failure::usage(format!("{}: not a UTF-8 text", path.display())))
}

/// A planning problem.
pub fn problem(path: &Path) -> Result<Problem> {
    Problem::read(&text(path)?).map_err(|error| failure::usage(format!("{}: {error}", path.display())))
}

/// A plan.
pub fn plan(path: &Path) -> Result<Plan> {
    Plan::read(&text(path)?).map_err(|error| failure::usage(format!("{}: {error}", path.display())))
}

/// Writes a file as a whole or not at all: beside it first, then in its place.
pub fn write(path: &Path, contents: &[u8]) -> Result<()> {
    let fail = |error: std::io::Error| failure::environment(format!("{}: {error}", path.display()));
    let name = path.file_name().ok_or_else(|| failure::usage(format!("{}: not a file's name", path.display())))?;
    let beside = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = std::fs::File::create(&beside)
        .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written.map_err(fail)
}

/// Prints to standard output. A reader that has left is no error; a full disk is.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(failure::environment(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}
