//! A store of profiles: one SQLite file in a folder of the user or the project, into which runs and files are merged.
//!
//! 1. A merge is one transaction: a killed one leaves the state before or after it, and of two at once both count.
//! 2. Of the accounts of an origin the last in their order counts ([`Account::replaces`]), so merging is idempotent and
//!    commutes, along whatever way an account came.
//! 3. To import a file is to say how it is read from now on: that reading counts, whatever the clock says.
//! 4. The file uses a rollback journal, not a write-ahead log: it may lie on a file system that a cluster shares.
//!
//! Left out on purpose: a memory of what was removed. A store that still has a source brings it back when it is merged.

use super::account::{Account, Collection, EMULATED, Source};
use super::error::LibraryError;
use super::exchange;
use super::tables::{self, TableError};
use crate::store::reading::{self, ReadingError};
use crate::store::{self, StoreError};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the file in its folder.
pub const FILE: &str = "profiles.db";
/// Of a store that this build reads and writes.
pub const VERSION: i32 = 1;
/// "ADPP": tells our files from other SQLite files.
const APPLICATION: i32 = 0x4144_5050;
/// What stands beside the store of a run whose devices were emulated.
const EMULATION: &str = "emulation.json";
/// How long a merge waits for others.
const PATIENCE: Duration = Duration::from_secs(60);
/// Larger files are no export of ours.
const TEXT_BYTES_MAX: u64 = 1 << 30;

/// What became of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// Its origin was not known.
    New,
    /// Its source was known with so many samples, and is now known better.
    Grown {
        /// Samples before.
        from: u64,
    },
    /// It took the place of another reading of the same file.
    Replaced {
        /// What that was.
        former: Source,
    },
    /// It was there already, with as many samples or more.
    Known {
        /// What is there.
        known: Source,
    },
    /// Another reading of the same file is there, a later one.
    Outdated {
        /// What that is.
        by: Source,
    },
}

/// A store of profiles, open for writing.
pub struct Library {
    path: PathBuf,
    connection: Connection,
}

impl Library {
    /// Opens the store of a folder, and makes both if they aren't there.
    ///
    /// # Errors
    /// See [`LibraryError`]; nothing is changed then.
    pub fn open(dir: &Path) -> Result<Library, LibraryError> {
        let environment = |source| LibraryError::Environment { path: dir.to_owned(), source };
        if dir.is_file() {
            return Err(LibraryError::NoFolder { path: dir.to_owned() });
        }
        std::fs::create_dir_all(dir).map_err(environment)?;
        let path = dir.join(FILE);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let connection = connect(&path, Connection::open_with_flags(&path, flags))?;
        Ok(Library { path, connection })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Merges accounts, all or none; they are on disk when this returns. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// The file fails; nothing is changed then.
    pub fn merge(&mut self, accounts: &[Account], now: u64) -> Result<Vec<Merged>, LibraryError> {
        self.import(accounts, &BTreeSet::new(), now)
    }

    /// [`Library::merge`], where the accounts of some origins are files that were read just now: their reading counts.
    ///
    /// # Errors
    /// The file fails; nothing is changed then.
    pub fn import(
        &mut self,
        accounts: &[Account],
        read_now: &BTreeSet<String>,
        now: u64,
    ) -> Result<Vec<Merged>, LibraryError> {
        let path = self.path.clone();
        let merged = merge(&mut self.connection, accounts, read_now, now);
        merged.map_err(|error| of_tables(&path, error))
    }

    /// Removes sources with all they told, all or none. Gives what went.
    ///
    /// # Errors
    /// The file fails; nothing is changed then.
    pub fn remove(&mut self, ids: &[&str]) -> Result<Vec<Account>, LibraryError> {
        let path = self.path.clone();
        let mut remove = || -> Result<Vec<Account>, TableError> {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut went = Vec::new();
            for source in tables::sources(&transaction)?.into_iter().filter(|source| ids.contains(&source.id.as_str()))
            {
                went.push(tables::account(&transaction, source)?);
            }
            went.iter().try_for_each(|account| tables::remove(&transaction, &account.source.id))?;
            transaction.commit()?;
            Ok(went)
        };
        remove().map_err(|error| of_tables(&path, error))
    }
}

fn merge(
    connection: &mut Connection,
    accounts: &[Account],
    read_now: &BTreeSet<String>,
    now: u64,
) -> Result<Vec<Merged>, TableError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let by_origin = |source: Source| (source.origin().to_owned(), source);
    let mut all: BTreeMap<String, Source> = tables::sources(&transaction)?.into_iter().map(by_origin).collect();
    let mut merged = Vec::with_capacity(accounts.len());
    for account in accounts {
        let mut account = account.clone();
        let origin = account.source.origin().to_owned();
        let Some(known) = all.get(&origin).cloned() else {
            account.source.merged = now;
            tables::replace_account(&transaction, &account)?;
            all.insert(origin, account.source);
            merged.push(Merged::New);
            continue;
        };
        let is_same = known.id == account.source.id;
        let mut replaces = false;
        if !read_now.contains(&origin) {
            replaces = account.replaces(&tables::account(&transaction, known.clone())?);
        } else if is_same {
            // Said again, it is the later word against what another store was told.
            let last_seen = known.last_seen.max(now);
            tables::put_source(&transaction, &Source { last_seen, ..known.clone() })?;
        } else {
            // The clock may have been set back, or the second be the same.
            account.source.last_seen = account.source.last_seen.max(known.last_seen.saturating_add(1));
            replaces = true;
        }
        let samples = account.source.samples;
        if replaces {
            tables::remove(&transaction, &known.id)?;
            account.source.merged = now;
            tables::replace_account(&transaction, &account)?;
            all.insert(origin, account.source);
        }
        merged.push(match (is_same, replaces) {
            (true, true) if samples > known.samples => Merged::Grown { from: known.samples },
            (true, _) => Merged::Known { known },
            (false, true) => Merged::Replaced { former: known },
            (false, false) => Merged::Outdated { by: known },
        });
    }
    transaction.commit()?;
    Ok(merged)
}

/// Reads profiles from wherever they are: a folder with a store, a run's folder, either file, or an exported text. A
/// folder that holds both has both.
///
/// # Errors
/// See [`LibraryError`].
pub fn read(path: &Path) -> Result<Collection, LibraryError> {
    let mut collection = Collection::default();
    if path.is_dir() {
        let (library, run) = (path.join(FILE), path.join(store::FILE));
        if !library.is_file() && !run.is_file() {
            return Err(LibraryError::NotThere { path: path.to_owned() });
        }
        if library.is_file() {
            collection.take_all(read_library(&library)?);
        }
        if run.is_file() {
            collection.take(of_run(path)?);
        }
        return Ok(collection);
    }
    if !path.is_file() {
        return Err(LibraryError::NotThere { path: path.to_owned() });
    }
    if path.file_name().is_some_and(|name| name == store::FILE) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        collection.take(of_run(folder)?);
        return Ok(collection);
    }
    if is_text(path)? { read_text(path) } else { read_library(path) }
}

/// All profiles of a run. Those of emulated devices say so in their software: their times are of another clock.
///
/// # Errors
/// The folder holds no run, or its store fails.
pub fn of_run(dir: &Path) -> Result<Account, LibraryError> {
    let run = |source| LibraryError::Run { path: dir.join(store::FILE), source };
    let mut account = store::profiles_of(dir).map_err(run)?;
    if let Some(emulated) = emulated(dir) {
        // Of the host that emulated them.
        account.rates.clear();
        account.overheads.clear();
        let works = std::mem::take(&mut account.works);
        for (mut key, distribution) in works {
            key.software.clone_from(&emulated);
            let known = account.works.remove(&key);
            let all: Vec<_> = known.iter().chain([&distribution]).collect();
            let together = super::account::Distribution::of_all(&all);
            let damaged = |error: super::sketch::Unreadable| {
                run(StoreError::Damaged { what: format!("the profile of {} ({error})", key.signature) })
            };
            account.works.extend(together.map_err(damaged)?.map(|together| (key.clone(), together)));
        }
    }
    Ok(account)
}

/// The software of a run's devices if they were emulated: runs on one scale of time have the same.
pub fn emulated(dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(dir.join(EMULATION)).ok()?;
    let emulation: serde_json::Value = serde_json::from_str(&text).ok()?;
    let digest = blake3::hash(emulation["truth"]["costs"].to_string().as_bytes()).to_hex();
    Some(format!("{EMULATED} {}", &digest[..8]))
}

fn read_library(path: &Path) -> Result<Collection, LibraryError> {
    let environment = |source| LibraryError::Environment { path: path.to_owned(), source };
    // The folder may be one that nobody can write to.
    let opened = match reading::open(path) {
        Ok(connection) => Ok(connection),
        Err(ReadingError::Database(error)) => Err(error),
        Err(ReadingError::Io(source)) => return Err(environment(source)),
        Err(unfinished @ ReadingError::Unfinished(_)) => return Err(environment(std::io::Error::other(unfinished))),
    };
    let connection = connect(path, opened)?;
    let accounts = || -> Result<Collection, TableError> {
        // One transaction: a merge that ends meanwhile is seen as a whole or not at all.
        let transaction = connection.unchecked_transaction()?;
        let mut collection = Collection::default();
        if state(&transaction)? == (0, 0, 0) {
            // Another process is about to give it its tables.
            return Ok(collection);
        }
        // A wrong bit may leave rows out without a word.
        let says: String = transaction.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if says != "ok" {
            return Err(TableError::Damaged(says));
        }
        for source in tables::sources(&transaction)? {
            collection.take(tables::account(&transaction, source)?);
        }
        Ok(collection)
    };
    accounts().map_err(|error| of_tables(path, error))
}

fn is_text(path: &Path) -> Result<bool, LibraryError> {
    let environment = |source| LibraryError::Environment { path: path.to_owned(), source };
    let mut start = Vec::new();
    std::fs::File::open(path).map_err(environment)?.take(64).read_to_end(&mut start).map_err(environment)?;
    Ok(start.trim_ascii_start().first() == Some(&b'{'))
}

fn read_text(path: &Path) -> Result<Collection, LibraryError> {
    let environment = |source| LibraryError::Environment { path: path.to_owned(), source };
    let text = |problem: String| LibraryError::Text { path: path.to_owned(), problem };
    let file = std::fs::File::open(path).map_err(environment)?;
    let mut read = String::new();
    let bytes = file.take(TEXT_BYTES_MAX + 1).read_to_string(&mut read).map_err(|error| text(error.to_string()))?;
    if bytes as u64 > TEXT_BYTES_MAX {
        return Err(text(format!("more than {TEXT_BYTES_MAX} bytes")));
    }
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    exchange::read(&name, &read, None, super::now()).map_err(|error| text(error.to_string()))
}

fn of_tables(path: &Path, error: TableError) -> LibraryError {
    match error {
        TableError::Sql(error) => LibraryError::of(path, error),
        TableError::Damaged(what) => LibraryError::Damaged { path: path.to_owned(), what },
    }
}

/// Checks that the file is ours, and gives an empty one its tables if it may be written.
fn connect(path: &Path, opened: rusqlite::Result<Connection>) -> Result<Connection, LibraryError> {
    let of = |error| LibraryError::of(path, error);
    let mut connection = opened.map_err(of)?;
    connection.busy_timeout(PATIENCE).map_err(of)?;
    // At one instant: another process may be giving it its tables.
    let found = connection.transaction().and_then(|reading| state(&reading)).map_err(of)?;
    let is_read = connection.pragma_query_value(None, "query_only", |row| row.get::<_, i32>(0)).map_err(of)? != 0;
    let found = match found {
        (0, 0, 0) if is_read => return Ok(connection),
        (0, 0, 0) => create(&mut connection).map_err(of)?,
        found => found,
    };
    match found {
        (APPLICATION, VERSION, _) => Ok(connection),
        (APPLICATION, found, _) => Err(LibraryError::Version { path: path.to_owned(), found }),
        _ => Err(LibraryError::Foreign { path: path.to_owned() }),
    }
}

/// Application, version, number of tables.
fn state(connection: &Connection) -> rusqlite::Result<(i32, i32, i64)> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    Ok((application, version, connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?))
}

/// Gives an empty file its tables, unless another process has just done so.
fn create(connection: &mut Connection) -> rusqlite::Result<(i32, i32, i64)> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if state(&transaction)? == (0, 0, 0) {
        transaction.execute_batch(tables::SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    state(connection)
}
