//! What the coordinator keeps on disk: the ledger, the samples, the profiles, the counters. One SQLite file in the run's folder.
//!
//! 1. A reign writes only while [`Head`] bears its term: every transaction of the ledger checks it, and one that finds
//!    another term writes nothing (DeposedIsSilent).
//! 2. What the ledger says is written once stays as it is; a second, different record is a conflict (NumbersOnce).
//! 3. A commit is on the disk when it returns: write-ahead log, `synchronous = FULL`.
//! 4. Samples are kept up to a limit in bytes; the oldest go first and are counted.
//! 5. One process writes a folder at a time; the lock ends with the process.
//!
//! 6. A store of the version before is brought to this one when a coordinator opens it, whole or not at all; who only reads
//!    leaves it as it is. One of any other version is refused with its number.

mod counters;
mod ledger;
mod profiles;
pub(crate) mod reading;
mod run;
mod samples;
mod upgrade;
mod work;

pub use counters::Counts;
pub use profiles::Profiles;
pub(crate) use profiles::absorb;
pub use run::{RunRecord, profiles_of, record_of};
pub use samples::{RECORDS_BYTES_MAX, Stored};
pub use work::work_of;
pub(crate) use work::{each_sample, ledger_of};

use adaptis_coordinator_core::Head;
use adaptis_coordinator_core::ledger::Contradiction;
use adaptis_proto::{Epoch, Term};
use reading::ReadingError;
use rusqlite::{Connection, OpenFlags};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Name of the file in the run's folder.
pub const FILE: &str = "store.db";
/// Name of the lock beside it.
pub const LOCK: &str = "store.lock";
/// Of a store that this build reads and writes.
pub const VERSION: i32 = 4;
/// "ADPT": tells our files from other SQLite files.
const APPLICATION: i32 = 0x4144_5054;

const SCHEMA: &str = "
CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), term INTEGER, generation INTEGER, epoch INTEGER);
INSERT INTO head VALUES (1, 0, 0, 0);
CREATE TABLE plans (epoch INTEGER PRIMARY KEY, parent INTEGER, generation INTEGER, term INTEGER, text TEXT, digest BLOB);
CREATE TABLE aborted (epoch INTEGER PRIMARY KEY);
CREATE TABLE generations (generation INTEGER PRIMARY KEY, body TEXT);
CREATE TABLE decisions (number INTEGER PRIMARY KEY, body TEXT);
CREATE TABLE switches (epoch INTEGER PRIMARY KEY, body TEXT);
CREATE TABLE phases (first INTEGER, epoch INTEGER, body TEXT, PRIMARY KEY (first, epoch));
CREATE TABLE endings (kind TEXT PRIMARY KEY, body TEXT);
CREATE TABLE rings (ring INTEGER PRIMARY KEY, device TEXT, next INTEGER, lost INTEGER, dropped INTEGER);
CREATE TABLE records (
    id INTEGER PRIMARY KEY, device TEXT, ring INTEGER, first_step INTEGER, last_step INTEGER, offset_ns INTEGER,
    error_ns INTEGER, body BLOB
);
CREATE INDEX records_by_step ON records (last_step);
CREATE TABLE iterations (
    step INTEGER, generation INTEGER, epoch INTEGER, duration_ns INTEGER, loss_bits INTEGER,
    PRIMARY KEY (step, generation)
);
CREATE TABLE counters (name TEXT PRIMARY KEY, count INTEGER);
CREATE TABLE health (device TEXT PRIMARY KEY, body TEXT);
";

/// Why a store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("{path} is in use by another coordinator: stop that one, or choose another folder")]
    InUse {
        /// The lock.
        path: PathBuf,
    },
    /// A file can't be made, opened or written.
    #[error("{path}: {source}")]
    Environment {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no store of ours.
    #[error("{path} is not a store of Adaptis: choose another folder, or move the file away")]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// The store is of a version that this build does not know.
    #[error(
        "{path} is a store of version {found}, and this build knows version {VERSION}: use the release that wrote it, or \
         choose another folder"
    )]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// An entry can't be read back.
    #[error("the store is damaged: {what} can't be read; take a copy of the folder that is whole, or another folder")]
    Damaged {
        /// Which entry.
        what: String,
    },
    /// Entries that can't all be true.
    #[error("the store contradicts itself: {0}; take a copy of the folder that is whole, or another folder")]
    Contradictory(Contradiction),
    /// Another coordinator reigns.
    #[error("this coordinator of term {ours} was deposed: the ledger is at term {term}, generation {generation}, plan {epoch}",
        term = .found.term, generation = .found.generation, epoch = .found.epoch)]
    Deposed {
        /// Our term.
        ours: Term,
        /// What the ledger says.
        found: Head,
    },
    /// A number would be used twice.
    #[error("{what} is in the ledger already, and differs")]
    Conflict {
        /// Which entry.
        what: String,
    },
    /// SQLite failed.
    #[error("the store failed: {0}; see to the disk, then start again: what was committed is there")]
    Database(#[source] rusqlite::Error),
}

impl StoreError {
    /// What is written in the file is wrong, and not where it lies or who else has it.
    pub fn is_of_the_file(&self) -> bool {
        match self {
            StoreError::Foreign { .. }
            | StoreError::Version { .. }
            | StoreError::Damaged { .. }
            | StoreError::Contradictory(_)
            | StoreError::Conflict { .. } => true,
            StoreError::InUse { .. }
            | StoreError::Environment { .. }
            | StoreError::Deposed { .. }
            | StoreError::Database(_) => false,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let extended = error.sqlite_error().map_or(0, |error| error.extended_code);
        match error.sqlite_error_code() {
            Some(Code::DatabaseCorrupt | Code::NotADatabase) => {
                StoreError::Damaged { what: "a page of the file".to_owned() }
            }
            // The file ends in the middle of a page.
            Some(Code::SystemIoFailure) if extended == rusqlite::ffi::SQLITE_IOERR_SHORT_READ => {
                StoreError::Damaged { what: "its end".to_owned() }
            }
            // All statements are ours and go with the version: a table or column that they name is gone.
            Some(Code::Unknown | Code::TypeMismatch) => StoreError::Damaged { what: error.to_string() },
            Some(_) => StoreError::Database(error),
            // A value is of another type or range than any that we write.
            None => StoreError::Damaged { what: error.to_string() },
        }
    }
}

/// The store of a run, open for writing.
pub struct Store {
    path: PathBuf,
    connection: Connection,
    records_bytes: u64,
    records_bytes_max: u64,
    counts: Counts,
    /// Held until the store is dropped, and by the system until the process ends.
    _lock: File,
}

impl Store {
    /// Opens the store of a folder, and makes both if they aren't there.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is changed then.
    pub fn open(dir: &Path, records_bytes_max: u64) -> Result<Store, StoreError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Environment { path, source }
        };
        std::fs::create_dir_all(dir).map_err(failed(dir))?;
        let lock_path = dir.join(LOCK);
        let options = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = options.map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StoreError::InUse { path: lock_path }),
            Err(std::fs::TryLockError::Error(source)) => return Err(failed(&lock_path)(source)),
        }
        let path = dir.join(FILE);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let (mut connection, version) = connect(&path, Connection::open_with_flags(&path, flags))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        if version == upgrade::BEFORE {
            upgrade::upgrade(&mut connection, written(&path))?;
        }
        let (records_bytes, counts) = (samples::bytes(&connection)?, counters::read(&connection)?);
        Ok(Store { path, connection, records_bytes, records_bytes_max, counts, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// When a file was written last, in seconds since 1970; 0 if nobody knows.
fn written(path: &Path) -> u64 {
    let modified = std::fs::metadata(path).and_then(|of| of.modified()).ok();
    modified.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}

/// Opens the store of a folder for reading: this version's, or the one before. The run may still be going on; the folder
/// may be one that nobody writes to.
fn open_to_read(dir: &Path) -> Result<(Connection, i32), StoreError> {
    let path = dir.join(FILE);
    let environment = |source| StoreError::Environment { path: path.clone(), source };
    let opened = match reading::open(&path) {
        Ok(connection) => Ok(connection),
        Err(ReadingError::Database(error)) => Err(error),
        Err(ReadingError::Io(source)) => return Err(environment(source)),
        Err(unfinished @ ReadingError::Unfinished(_)) => return Err(environment(std::io::Error::other(unfinished))),
    };
    connect(&path, opened)
}

/// Checks that the file is ours, and gives an empty one its tables if it may be written. Gives its version too: this one,
/// or the one before.
fn connect(path: &Path, opened: rusqlite::Result<Connection>) -> Result<(Connection, i32), StoreError> {
    let foreign = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => StoreError::Foreign { path: path.to_owned() },
        Some(
            rusqlite::ErrorCode::CannotOpen | rusqlite::ErrorCode::PermissionDenied | rusqlite::ErrorCode::ReadOnly,
        ) => StoreError::Environment { path: path.to_owned(), source: std::io::Error::other(error) },
        _ => error.into(),
    };
    let mut connection = opened.map_err(foreign)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    let number = |connection: &Connection, pragma: &str| {
        connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0)).map_err(foreign)
    };
    let (application, version) = (number(&connection, "application_id")?, number(&connection, "user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0)).map_err(foreign)?;
    match (application, version, tables) {
        (0, 0, 0) if connection.pragma_query_value(None, "query_only", |row| row.get::<_, i32>(0))? == 0 => {
            connection.pragma_update(None, "journal_mode", "WAL")?;
            let transaction = connection.transaction()?;
            transaction.execute_batch(SCHEMA)?;
            transaction.execute_batch(crate::profiles::tables::SCHEMA)?;
            let own = "INSERT INTO sources VALUES (lower(hex(randomblob(16))), '', 'run', 0, 0, 0, 0)";
            transaction.execute(own, [])?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.commit()?;
            return Ok((connection, VERSION));
        }
        (APPLICATION, VERSION | upgrade::BEFORE, _) => {}
        (APPLICATION, found, _) => return Err(StoreError::Version { path: path.to_owned(), found }),
        _ => return Err(StoreError::Foreign { path: path.to_owned() }),
    }
    Ok((connection, version))
}

/// SQLite's integers are signed: the bits are kept.
fn sql(number: u64) -> i64 {
    number.cast_signed()
}

/// The bits back.
fn number(sql: i64) -> u64 {
    sql.cast_unsigned()
}

fn epoch_name(what: &str, epoch: Epoch) -> String {
    format!("{what} {epoch}")
}
