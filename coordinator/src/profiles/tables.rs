//! Accounts as tables: the same ones in a run's own store, which holds one source, and in a store of profiles.

use super::account::{Account, Distribution, KindMemory, Memory, Sizes, Source, TransferKey, WorkKey, learn};
use super::sketch::Sketch;
use adaptis_coordinator_core::next_job::Overhead;
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::Phase;
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::collections::BTreeMap;

/// What holds accounts.
pub(crate) const SCHEMA: &str = "
CREATE TABLE sources (
    id TEXT PRIMARY KEY, name TEXT, how TEXT, samples INTEGER, first_seen INTEGER, last_seen INTEGER, merged INTEGER
) WITHOUT ROWID;
CREATE TABLE works (
    source TEXT, signature TEXT, kind TEXT, phase INTEGER, software TEXT, count INTEGER, first_seen INTEGER,
    last_seen INTEGER, sketch BLOB, PRIMARY KEY (source, signature, kind, phase, software)
) WITHOUT ROWID;
CREATE TABLE transfers (
    source TEXT, sender TEXT, receiver TEXT, bytes INTEGER, count INTEGER, first_seen INTEGER, last_seen INTEGER,
    sketch BLOB, PRIMARY KEY (source, sender, receiver, bytes)
) WITHOUT ROWID;
CREATE TABLE memories (
    source TEXT, signature TEXT, kind TEXT, activation INTEGER, weight_gradient INTEGER, workspace INTEGER,
    PRIMARY KEY (source, signature, kind)
) WITHOUT ROWID;
CREATE TABLE sizes (
    source TEXT, signature TEXT, parameter INTEGER, state INTEGER, output INTEGER, moved INTEGER,
    PRIMARY KEY (source, signature)
) WITHOUT ROWID;
CREATE TABLE kinds (source TEXT, kind TEXT, memory INTEGER, reserved INTEGER, PRIMARY KEY (source, kind)) WITHOUT ROWID;
";

/// Made when the first rates are written, in a file of any build that knows the others: those leave it alone.
const RATES: &str = "
CREATE TABLE IF NOT EXISTS rates (
    source TEXT, kind TEXT, operations INTEGER, bytes INTEGER, PRIMARY KEY (source, kind)
) WITHOUT ROWID;
";

/// Likewise, when the first overheads are.
const OVERHEADS: &str = "
CREATE TABLE IF NOT EXISTS overheads (
    source TEXT, kind TEXT, instruction INTEGER, transfer INTEGER, PRIMARY KEY (source, kind)
) WITHOUT ROWID;
";

/// All tables with rows of a source, `sources` and those made later aside.
const OF_SOURCE: [&str; 5] = ["works", "transfers", "memories", "sizes", "kinds"];

/// Why tables can't be read or written.
#[derive(Debug)]
pub(crate) enum TableError {
    /// SQLite says no.
    Sql(rusqlite::Error),
    /// What stands there can't be; which entry.
    Damaged(String),
}

impl From<rusqlite::Error> for TableError {
    fn from(error: rusqlite::Error) -> Self {
        TableError::Sql(error)
    }
}

/// SQLite's integers are signed: the bits are kept.
fn sql(number: u64) -> i64 {
    number.cast_signed()
}

fn number(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(at)?.cast_unsigned())
}

fn number_or_none(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(at)?.map(i64::cast_unsigned))
}

/// All sources, by id.
pub(crate) fn sources(connection: &Connection) -> Result<Vec<Source>, TableError> {
    let mut statement =
        connection.prepare("SELECT id, name, how, samples, first_seen, last_seen, merged FROM sources ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        Ok(Source {
            id: row.get(0)?,
            name: row.get(1)?,
            how: row.get(2)?,
            samples: number(row, 3)?,
            first_seen: number(row, 4)?,
            last_seen: number(row, 5)?,
            merged: number(row, 6)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Writes what is said of a source itself.
pub(crate) fn put_source(connection: &Connection, source: &Source) -> Result<(), TableError> {
    let values = params![
        source.id,
        source.name,
        source.how,
        sql(source.samples),
        sql(source.first_seen),
        sql(source.last_seen),
        sql(source.merged)
    ];
    connection.prepare_cached("INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?, ?, ?)")?.execute(values)?;
    Ok(())
}

/// All that a source tells.
pub(crate) fn account(connection: &Connection, source: Source) -> Result<Account, TableError> {
    let mut account = Account { source, ..Account::default() };
    let id = account.source.id.clone();
    let mut statement = connection.prepare_cached(
        "SELECT signature, kind, phase, software, count, first_seen, last_seen, sketch FROM works WHERE source = ?",
    )?;
    let mut rows = statement.query([&id])?;
    while let Some(row) = rows.next()? {
        let (signature, phase): (String, i64) = (row.get(0)?, row.get(2)?);
        let phase = usize::try_from(phase).ok().and_then(|phase| Phase::ALL.get(phase).copied());
        let phase = phase.ok_or_else(|| TableError::Damaged(format!("the phase of a profile of {signature}")))?;
        let key = WorkKey { signature, kind: row.get(1)?, phase, software: row.get(3)? };
        account.works.insert(key, distribution(row, 4)?);
    }
    let mut statement = connection.prepare_cached(
        "SELECT sender, receiver, bytes, count, first_seen, last_seen, sketch FROM transfers WHERE source = ?",
    )?;
    let mut rows = statement.query([&id])?;
    while let Some(row) = rows.next()? {
        let key = TransferKey { sender: row.get(0)?, receiver: row.get(1)?, bytes: number(row, 2)? };
        account.transfers.insert(key, distribution(row, 3)?);
    }
    let mut statement = connection.prepare_cached(
        "SELECT signature, kind, activation, weight_gradient, workspace FROM memories WHERE source = ?",
    )?;
    let mut rows = statement.query([&id])?;
    while let Some(row) = rows.next()? {
        let memory = Memory {
            activation_bytes: number(row, 2)?,
            weight_gradient_bytes: number_or_none(row, 3)?,
            workspace_bytes: number(row, 4)?,
        };
        account.memories.insert((row.get(0)?, row.get(1)?), memory);
    }
    let mut statement =
        connection.prepare_cached("SELECT signature, parameter, state, output, moved FROM sizes WHERE source = ?")?;
    let mut rows = statement.query([&id])?;
    while let Some(row) = rows.next()? {
        let sizes = Sizes {
            parameter_bytes: number_or_none(row, 1)?,
            state_bytes: number_or_none(row, 2)?,
            output_bytes: number_or_none(row, 3)?,
            moved_bytes: number_or_none(row, 4)?,
        };
        account.sizes.insert(row.get(0)?, sizes);
    }
    account.kinds = account_kinds(connection, &id)?;
    account.rates = rates(connection, Some(&id))?;
    account.overheads = overheads(connection, &id)?;
    Ok(account)
}

/// By kind: what devices did at best in calibrations, of one source or of all.
pub(crate) fn rates(connection: &Connection, source: Option<&str>) -> Result<BTreeMap<String, Rates>, TableError> {
    if !has(connection, "rates")? {
        return Ok(BTreeMap::new());
    }
    let mut statement =
        connection.prepare("SELECT kind, operations, bytes FROM rates WHERE source = ?1 OR ?1 IS NULL")?;
    let rows = statement.query_map([source], |row| {
        Ok((row.get(0)?, Rates { operations_per_s: number_or_none(row, 1)?, bytes_per_s: number_or_none(row, 2)? }))
    })?;
    let mut rates: BTreeMap<String, Rates> = BTreeMap::new();
    for row in rows {
        let (kind, found): (String, Rates) = row?;
        let known = rates.entry(kind).or_default();
        *known = known.best(found);
    }
    Ok(rates)
}

fn has(connection: &Connection, table: &str) -> Result<bool, TableError> {
    let statement = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?";
    Ok(connection.query_row(statement, [table], |row| row.get::<_, i64>(0))? > 0)
}

/// Writes what devices of a kind did in calibrations, or the better of it and what was known.
pub(crate) fn put_rates(connection: &Connection, id: &str, kind: &str, new: &Rates) -> Result<(), TableError> {
    connection.execute_batch(RATES)?;
    let best = rates(connection, Some(id))?.remove(kind).unwrap_or_default().best(*new);
    let values = params![id, kind, best.operations_per_s.map(sql), best.bytes_per_s.map(sql)];
    connection.execute("INSERT OR REPLACE INTO rates VALUES (?, ?, ?, ?)", values)?;
    Ok(())
}

/// By kind: what an instruction costs devices besides its layers, as a source tells.
fn overheads(connection: &Connection, id: &str) -> Result<BTreeMap<String, Overhead>, TableError> {
    if !has(connection, "overheads")? {
        return Ok(BTreeMap::new());
    }
    let mut statement = connection.prepare("SELECT kind, instruction, transfer FROM overheads WHERE source = ?")?;
    let rows = statement.query_map([id], |row| {
        Ok((row.get(0)?, Overhead { instruction_ns: number_or_none(row, 1)?, transfer_ns: number_or_none(row, 2)? }))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Writes what an instruction costs devices of a kind besides its layers, over what was known of it.
pub(crate) fn put_overhead(connection: &Connection, id: &str, kind: &str, new: Overhead) -> Result<(), TableError> {
    connection.execute_batch(OVERHEADS)?;
    let mut known = overheads(connection, id)?;
    learn(&mut known, kind, new);
    let values = params![id, kind, known[kind].instruction_ns.map(sql), known[kind].transfer_ns.map(sql)];
    connection.execute("INSERT OR REPLACE INTO overheads VALUES (?, ?, ?, ?)", values)?;
    Ok(())
}

/// What a source tells of the devices of each kind.
pub(crate) fn account_kinds(connection: &Connection, id: &str) -> Result<BTreeMap<String, KindMemory>, TableError> {
    let mut statement = connection.prepare_cached("SELECT kind, memory, reserved FROM kinds WHERE source = ?")?;
    let rows = statement.query_map([id], |row| {
        Ok((row.get(0)?, KindMemory { memory_bytes: number(row, 1)?, reserved_bytes: number(row, 2)? }))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Count, first and last instant, sketch, from a column on.
fn distribution(row: &Row<'_>, at: usize) -> Result<Distribution, TableError> {
    Ok(Distribution {
        count: number(row, at)?,
        first_seen: number(row, at + 1)?,
        last_seen: number(row, at + 2)?,
        packed: row.get(at + 3)?,
    })
}

/// Writes all that a source tells, in the place of what was known of it.
pub(crate) fn replace_account(connection: &Connection, account: &Account) -> Result<(), TableError> {
    let id = &account.source.id;
    remove(connection, id)?;
    account.rates.iter().try_for_each(|(kind, rates)| put_rates(connection, id, kind, rates))?;
    account.overheads.iter().try_for_each(|(kind, overhead)| put_overhead(connection, id, kind, *overhead))?;
    put_source(connection, &account.source)?;
    for (key, distribution) in &account.works {
        put_work(connection, id, key, distribution)?;
    }
    for (key, distribution) in &account.transfers {
        put_transfer(connection, id, key, distribution)?;
    }
    for ((signature, kind), memory) in &account.memories {
        put_memory(connection, id, signature, kind, memory)?;
    }
    for (signature, sizes) in &account.sizes {
        let values = params![
            id,
            signature,
            sizes.parameter_bytes.map(sql),
            sizes.state_bytes.map(sql),
            sizes.output_bytes.map(sql),
            sizes.moved_bytes.map(sql)
        ];
        connection.prepare_cached("INSERT INTO sizes VALUES (?, ?, ?, ?, ?, ?)")?.execute(values)?;
    }
    for (kind, memory) in &account.kinds {
        put_kind(connection, id, kind, memory)?;
    }
    Ok(())
}

/// Removes a source with all that it tells.
pub(crate) fn remove(connection: &Connection, id: &str) -> Result<(), TableError> {
    for table in OF_SOURCE {
        connection.prepare_cached(&format!("DELETE FROM {table} WHERE source = ?"))?.execute([id])?;
    }
    for table in ["rates", "overheads"] {
        if has(connection, table)? {
            connection.execute(&format!("DELETE FROM {table} WHERE source = ?"), [id])?;
        }
    }
    connection.execute("DELETE FROM sources WHERE id = ?", [id])?;
    Ok(())
}

fn put_work(connection: &Connection, id: &str, key: &WorkKey, of: &Distribution) -> Result<(), TableError> {
    let values = params![
        id,
        key.signature,
        key.kind,
        key.phase as u8,
        key.software,
        sql(of.count),
        sql(of.first_seen),
        sql(of.last_seen),
        of.packed
    ];
    let statement = "INSERT OR REPLACE INTO works VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    connection.prepare_cached(statement)?.execute(values)?;
    Ok(())
}

fn put_transfer(connection: &Connection, id: &str, key: &TransferKey, of: &Distribution) -> Result<(), TableError> {
    let values = params![
        id,
        key.sender,
        key.receiver,
        sql(key.bytes),
        sql(of.count),
        sql(of.first_seen),
        sql(of.last_seen),
        of.packed
    ];
    let statement = "INSERT OR REPLACE INTO transfers VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    connection.prepare_cached(statement)?.execute(values)?;
    Ok(())
}

/// Writes what a layer holds on a kind.
pub(crate) fn put_memory(
    connection: &Connection,
    id: &str,
    signature: &str,
    kind: &str,
    memory: &Memory,
) -> Result<(), TableError> {
    let values = params![
        id,
        signature,
        kind,
        sql(memory.activation_bytes),
        memory.weight_gradient_bytes.map(sql),
        sql(memory.workspace_bytes)
    ];
    connection.prepare_cached("INSERT OR REPLACE INTO memories VALUES (?, ?, ?, ?, ?, ?)")?.execute(values)?;
    Ok(())
}

/// Writes what devices of a kind have.
pub(crate) fn put_kind(connection: &Connection, id: &str, kind: &str, memory: &KindMemory) -> Result<(), TableError> {
    let values = params![id, kind, sql(memory.memory_bytes), sql(memory.reserved_bytes)];
    connection.prepare_cached("INSERT OR REPLACE INTO kinds VALUES (?, ?, ?, ?)")?.execute(values)?;
    Ok(())
}

/// Adds a sketch to what a source tells of some work.
pub(crate) fn add_work(
    connection: &Connection,
    id: &str,
    key: &WorkKey,
    sketch: &Sketch,
    seen: u64,
) -> Result<(), TableError> {
    let statement = "SELECT count, first_seen, last_seen, sketch FROM works
        WHERE source = ? AND signature = ? AND kind = ? AND phase = ? AND software = ?";
    let values = params![id, key.signature, key.kind, key.phase as u8, key.software];
    let known = known(connection, statement, values)?;
    put_work(connection, id, key, &grown(known, sketch, seen, &key.signature)?)
}

/// Adds a sketch to what a source tells of some transfers.
pub(crate) fn add_transfer(
    connection: &Connection,
    id: &str,
    key: &TransferKey,
    sketch: &Sketch,
    seen: u64,
) -> Result<(), TableError> {
    let statement = "SELECT count, first_seen, last_seen, sketch FROM transfers
        WHERE source = ? AND sender = ? AND receiver = ? AND bytes = ?";
    let values = params![id, key.sender, key.receiver, sql(key.bytes)];
    let known = known(connection, statement, values)?;
    put_transfer(connection, id, key, &grown(known, sketch, seen, "transfers")?)
}

fn known(
    connection: &Connection,
    statement: &str,
    values: impl rusqlite::Params,
) -> Result<Option<Distribution>, TableError> {
    let row = |row: &Row<'_>| {
        let (first_seen, last_seen) = (number(row, 1)?, number(row, 2)?);
        Ok(Distribution { count: number(row, 0)?, first_seen, last_seen, packed: row.get(3)? })
    };
    Ok(connection.prepare_cached(statement)?.query_row(values, row).optional()?)
}

fn grown(known: Option<Distribution>, sketch: &Sketch, seen: u64, what: &str) -> Result<Distribution, TableError> {
    let new = Distribution::new(sketch, seen, seen);
    let all: Vec<&Distribution> = known.iter().chain([&new]).collect();
    let together = Distribution::of_all(&all);
    let damaged = |error| TableError::Damaged(format!("the profile of {what} ({error})"));
    Ok(together.map_err(damaged)?.expect("there is at least the new one"))
}
