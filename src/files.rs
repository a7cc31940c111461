//! The files that commands read and write, and what they print, with errors that name the file.
//!
//! 1. What is written is there as a whole or not at all, wherever the destination allows it: a regular file is replaced in
//!    one step, its permissions kept; a symbolic link is followed; a device, a FIFO or a socket is written into.
//! 2. A reader that has left is no error.

use crate::failure;
use adaptis_plan::{Plan, Problem};
use anyhow::Result;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Larger files are no problem or plan of ours.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// The text of a file.
pub fn text(path: &Path) -> Result<String> {
    let fail = |error: io::Error| failure::usage(format!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    // A device or a FIFO does not tell its length.
    File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(fail)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failure::usage(format!("{}: more than {FILE_BYTES_MAX} bytes", path.display())));
    }
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

/// A run folder: the one asked for, or `runs/NAME-TIME-PID`; not there yet, or empty.
pub fn unused_folder(asked: Option<&Path>, name: &str) -> Result<PathBuf> {
    let dir = asked.map(Path::to_path_buf).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Path::new("runs").join(format!("{name}-{}-{}", now.as_secs(), std::process::id()))
    });
    // It stands in files that hold nothing else.
    if std::path::absolute(&dir).is_ok_and(|full| full.to_str().is_none()) {
        let dir = dir.display();
        return Err(failure::usage(format!("--out {dir}: the full path is not UTF-8; name another folder")));
    }
    match fs::read_dir(&dir).map(|mut entries| entries.next()) {
        Ok(None) => Ok(dir),
        Err(error) if error.kind() == ErrorKind::NotFound => match dir.is_symlink() {
            true => Err(failure::usage(format!("--out {}: a link that leads nowhere", dir.display()))),
            false => Ok(dir),
        },
        Ok(Some(_)) => Err(failure::usage(format!(
            "--out {}: the folder is not empty and may hold another run; name an empty or a new one",
            dir.display()
        ))),
        // Nobody has named it: whoever makes it learns why that can't be done.
        Err(_) if asked.is_none() => Ok(dir),
        Err(error) => Err(failure::environment(format!("--out {}: {error}", dir.display()))),
    }
}

/// Symbolic links followed before it is a circle: as many as Linux follows.
const LINKS_MAX: usize = 40;

/// Writes a file as a whole or not at all, beside it first, then in its place; see the module for what is no plain file.
pub fn write(path: &Path, contents: &[u8]) -> Result<()> {
    into(path, contents)
        .map_err(|error| failure::environment(format!("cannot write {}: {}", path.display(), why(path, &error))))
}

/// Whether a file can be written, to be asked before long work; writes nothing.
pub fn check_writable(path: &Path) -> Result<()> {
    let tried = match fs::metadata(path) {
        // What is no plain file may not bear being opened twice.
        Ok(found) if !found.is_file() && !found.is_dir() => Ok(()),
        _ => followed(path).and_then(|place| match place.file_name() {
            Some(_) if !place.is_dir() => tempfile::tempfile_in(folder_of(&place)).map(drop),
            _ => Err(ErrorKind::IsADirectory.into()),
        }),
    };
    tried.map_err(|error| failure::environment(format!("cannot write {}: {}", path.display(), why(path, &error))))
}

fn into(path: &Path, contents: &[u8]) -> io::Result<()> {
    let permissions = match fs::metadata(path) {
        Ok(found) if !found.is_file() => return File::options().write(true).open(path)?.write_all(contents),
        Ok(found) => Some(found.permissions()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let place = followed(path)?;
    if place.file_name().is_none() {
        return Err(ErrorKind::IsADirectory.into());
    }
    let anew = fs::Permissions::from_mode(0o666);
    let mut beside = tempfile::Builder::new().permissions(anew).tempfile_in(folder_of(&place))?;
    let file = beside.as_file_mut();
    // Those of a new file are cut by the process's mask; those of one that is there are kept as they are.
    permissions.map_or(Ok(()), |permissions| file.set_permissions(permissions))?;
    file.write_all(contents)?;
    file.sync_all()?;
    beside.persist(&place)?;
    Ok(())
}

/// Where the symbolic links from a path on lead, also if nothing is there yet.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut place = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&place) {
            Ok(target) => place = place.parent().unwrap_or(Path::new("")).join(target),
            // Not a link, or nothing.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => return Ok(place),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// What kept a file from being written, and what would help.
fn why(path: &Path, error: &io::Error) -> String {
    let folder = folder_of(path);
    match error.kind() {
        ErrorKind::NotFound if !folder.is_dir() => {
            format!("the folder {} is not there: make it, or name another file", folder.display())
        }
        ErrorKind::NotFound => format!("{} takes no such file: name one elsewhere", folder.display()),
        ErrorKind::IsADirectory => "it is a folder: name a file in it".to_owned(),
        ErrorKind::PermissionDenied => "permission denied: name a file where you may write".to_owned(),
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only: name a file on another one".to_owned(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "no space left: make room, or name another place".to_owned()
        }
        _ => error.to_string(),
    }
}

/// One name for a file however it is given, also if it is not there yet.
fn place_of(path: &Path) -> PathBuf {
    let place = followed(path).unwrap_or_else(|_| path.to_owned());
    match (fs::canonicalize(folder_of(&place)), place.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => place,
    }
}

/// The folder that a file stands in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses two results for one file, or a result in the place of what was read.
///
/// # Errors
/// Which two, by the names of their arguments.
pub fn distinct(named: &[(&str, Option<&Path>)]) -> Result<()> {
    let mut seen: Vec<(&str, PathBuf)> = Vec::new();
    for (name, path) in named.iter().filter_map(|&(name, path)| Some((name, path?))) {
        // A device or a FIFO takes several texts one after the other.
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            continue;
        }
        let place = place_of(path);
        if let Some((other, _)) = seen.iter().find(|(_, known)| *known == place) {
            let path = path.display();
            return Err(failure::usage(format!("{name} {path}: {other} names the same file; name another one")));
        }
        seen.push((name, place));
    }
    Ok(())
}

/// Prints to standard output. A reader that has left is no error; a full disk is.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(failure::environment(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Says a thing on standard error. Where nobody listens it is not said: there is no one left to tell so.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
