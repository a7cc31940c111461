//! Opens a database that is only read, wherever it lies: the folder may be one that nobody can write to.
//!
//! SQLite keeps a shared-memory file beside a database with a write-ahead log even for readers. Where it can't be made,
//! nobody writes, so the file is read as it stands; unless a log lies beside it that was never brought into it.

use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Another process that writes is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a database can't be opened for reading.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadingError {
    /// It is not there, or may not be read.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// It lies where nobody writes, and its log was never brought into it.
    #[error(
        "{0} was not brought into the database, and can't be where nobody may write: copy the folder to where you may, and \
         use the copy"
    )]
    Unfinished(PathBuf),
    /// SQLite says so.
    #[error("{0}")]
    Database(#[source] rusqlite::Error),
}

/// Opens an existing database; nothing can be written through the connection.
pub(crate) fn open(path: &Path) -> Result<Connection, ReadingError> {
    std::fs::File::open(path).map_err(ReadingError::Io)?;
    let tried = probed(Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE));
    let error = match tried {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    match error.sqlite_error_code() {
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {}
        _ => return Err(ReadingError::Database(error)),
    }
    // Of a write-ahead log, or of a rollback journal.
    let logs = ["-wal", "-journal"].map(|end| beside(path, end));
    if let Some(log) = logs.into_iter().find(|log| std::fs::metadata(log).is_ok_and(|log| log.len() > 0)) {
        return Err(ReadingError::Unfinished(log));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    probed(Connection::open_with_flags(immutable(path), flags)).map_err(ReadingError::Database)
}

/// Reads something, since opening alone touches nothing.
fn probed(opened: rusqlite::Result<Connection>) -> rusqlite::Result<Connection> {
    let connection = opened?;
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_query_value(None, "schema_version", |row| row.get::<_, i64>(0))?;
    Ok(connection)
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    PathBuf::from(name)
}

/// The address of a file that nobody writes while it is read.
fn immutable(path: &Path) -> String {
    let mut address = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => address.push(char::from(*byte)),
            other => write!(address, "%{other:02x}").expect("a text takes any"),
        }
    }
    address + "?immutable=1"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_taken_as_they_are() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a run? 100% #1.db");
        Connection::open(&path).and_then(|made| made.execute_batch("CREATE TABLE one (number)")).expect("a database");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let read = probed(Connection::open_with_flags(immutable(&path), flags)).expect("it is there");
        let tables: i64 = read.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0)).expect("a number");
        assert_eq!(tables, 1);
        assert!(read.execute_batch("CREATE TABLE two (number)").is_err());
    }
}
