//! The ledger's reads and writes.

use super::{Store, StoreError, epoch_name, number, sql};
use crate::profiles::tables;
use adaptis_coordinator_core::brain::HISTORY_MAX;
use adaptis_coordinator_core::ledger::{GenerationRecord, IterationRecord, PlanRecord};
use adaptis_coordinator_core::{Durable, Head, Recovered};
use adaptis_plan::Plan;
use adaptis_proto::{Digest, Epoch, Generation, Step, Term};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Serialize, de::DeserializeOwned};

/// Made when it is first written to, so that a store without it is one of this version, too.
const PEAKS: &str =
    "CREATE TABLE IF NOT EXISTS peaks (epoch INTEGER, device TEXT, body TEXT, PRIMARY KEY (epoch, device))";

/// The same.
const ASKED: &str = "CREATE TABLE IF NOT EXISTS asked (id INTEGER PRIMARY KEY CHECK (id = 1), body TEXT)";

impl Store {
    /// Begins a reign: the next term is ours, whoever reigned before. Gives what the ledger holds.
    ///
    /// # Errors
    /// The file fails, or an entry of it can't be read.
    pub fn reign(&mut self) -> Result<Recovered, StoreError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let head = read_head(&transaction)?;
        write_head(&transaction, Head { term: head.term.next(), ..head })?;
        let recovered = read(&transaction)?;
        transaction.commit()?;
        Ok(recovered)
    }

    /// Writes entries, all or none, if the ledger still bears our term. They are on disk when this returns.
    ///
    /// # Errors
    /// Another coordinator reigns; a number is used twice; the file fails.
    pub fn commit(&mut self, term: Term, entries: &[Durable]) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let found = read_head(&transaction)?;
        if found.term != term {
            return Err(StoreError::Deposed { ours: term, found });
        }
        for entry in entries {
            write(&transaction, term, entry)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// What the ledger holds.
    ///
    /// # Errors
    /// The file fails, or an entry of it can't be read.
    pub fn recovered(&self) -> Result<Recovered, StoreError> {
        read(&self.connection)
    }
}

fn write(transaction: &Transaction<'_>, term: Term, entry: &Durable) -> Result<(), StoreError> {
    match entry {
        Durable::Head { was, now } => {
            let found = read_head(transaction)?;
            if found != *was {
                return Err(StoreError::Deposed { ours: term, found });
            }
            write_head(transaction, *now)
        }
        Durable::Plan(plan) => {
            let values = params![
                sql(plan.epoch.0),
                sql(plan.parent.0),
                sql(plan.generation.0),
                sql(plan.term.0),
                plan.text,
                plan.digest.0
            ];
            let statement =
                "INSERT INTO plans (epoch, parent, generation, term, text, digest) VALUES (?, ?, ?, ?, ?, ?)";
            transaction.execute(statement, values).map_err(|error| taken(error, || epoch_name("plan", plan.epoch)))?;
            Ok(())
        }
        Durable::Aborted(epoch) => {
            transaction.execute("INSERT OR IGNORE INTO aborted VALUES (?)", [sql(epoch.0)])?;
            Ok(())
        }
        Durable::Generation(record) => once(transaction, "generations", sql(record.generation.0), record),
        Durable::Decision(decision) => once(transaction, "decisions", sql(decision.number), decision),
        Durable::Switch(switch) => {
            let statement = "INSERT OR REPLACE INTO switches VALUES (?, ?)";
            transaction.execute(statement, params![sql(switch.to.0), text(switch)])?;
            Ok(())
        }
        Durable::Phase(phase) => {
            let (first, epoch) = (sql(phase.from.0), sql(phase.epoch.0));
            let statement = "SELECT body FROM phases WHERE first = ? AND epoch = ?";
            let known: Option<String> =
                transaction.query_row(statement, [first, epoch], |row| row.get(0)).optional()?;
            if let Some(known) = known {
                let known: adaptis_coordinator_core::ledger::PhaseRecord = parse(&known, "a phase")?;
                if known.predicted_ns.is_some() && known != *phase {
                    return Err(StoreError::Conflict { what: format!("the prediction from iteration {}", phase.from) });
                }
            }
            let statement = "INSERT OR REPLACE INTO phases VALUES (?, ?, ?)";
            transaction.execute(statement, params![first, epoch, text(phase)])?;
            Ok(())
        }
        Durable::Peak(peak) => {
            transaction.execute_batch(PEAKS)?;
            let statement = "INSERT OR REPLACE INTO peaks VALUES (?, ?, ?)";
            transaction.execute(statement, params![sql(peak.epoch.0), peak.device, text(peak)])?;
            Ok(())
        }
        Durable::Asked(mode) => {
            transaction.execute_batch(ASKED)?;
            transaction.execute("INSERT OR REPLACE INTO asked VALUES (1, ?)", [text(mode)])?;
            Ok(())
        }
        Durable::Finished(finished) => {
            let statement = "INSERT INTO endings VALUES ('finished', ?)";
            let result = transaction.execute(statement, [text(finished)]);
            result.map_err(|error| taken(error, || "the end of the run".to_owned()))?;
            Ok(())
        }
        Durable::Failed(failure) => {
            transaction.execute("INSERT OR REPLACE INTO endings VALUES ('failed', ?)", [text(failure)])?;
            Ok(())
        }
    }
}

fn once<T: Serialize>(transaction: &Transaction<'_>, table: &str, key: i64, value: &T) -> Result<(), StoreError> {
    let result = transaction.execute(&format!("INSERT INTO {table} VALUES (?, ?)"), params![key, text(value)]);
    result.map_err(|error| taken(error, || format!("entry {key} of {table}")))?;
    Ok(())
}

fn taken(error: rusqlite::Error, what: impl FnOnce() -> String) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ConstraintViolation) => StoreError::Conflict { what: what() },
        _ => error.into(),
    }
}

fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("entries of the ledger have string keys and no maps of other keys")
}

fn parse<T: DeserializeOwned>(text: &str, what: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Damaged { what: format!("{what} ({error})") })
}

fn read_head(connection: &Connection) -> Result<Head, StoreError> {
    let row = connection.query_row("SELECT term, generation, epoch FROM head WHERE id = 1", [], |row| {
        Ok(Head {
            term: Term(number(row.get(0)?)),
            generation: Generation(number(row.get(1)?)),
            epoch: Epoch(number(row.get(2)?)),
        })
    });
    Ok(row?)
}

fn write_head(connection: &Connection, head: Head) -> Result<(), StoreError> {
    let values = [sql(head.term.0), sql(head.generation.0), sql(head.epoch.0)];
    connection.execute("UPDATE head SET term = ?, generation = ?, epoch = ? WHERE id = 1", values)?;
    Ok(())
}

/// What a ledger holds.
pub(super) fn read(connection: &Connection) -> Result<Recovered, StoreError> {
    let head = read_head(connection)?;
    let generation = bodies(connection, "a generation", "generations ORDER BY generation DESC LIMIT 1")?.pop();
    let mut iterations = iterations(connection, &format!("ORDER BY step DESC, generation DESC LIMIT {HISTORY_MAX}"))?;
    iterations.reverse();
    iterations.dedup_by(|newer, older| {
        let is_same = newer.index == older.index;
        if is_same {
            *older = *newer;
        }
        is_same
    });
    let recovered = Recovered {
        head,
        plans: plans(connection)?.into_iter().map(|plan| (plan.epoch, plan)).collect(),
        aborted: aborted(connection)?,
        generation,
        decisions: bodies(connection, "a decision", "decisions ORDER BY number")?,
        switches: bodies(connection, "a switch", "switches ORDER BY epoch")?,
        phases: bodies(connection, "a phase", "phases ORDER BY first, epoch")?,
        iterations,
        peaks: later(connection, "what memory came to", "peaks", "ORDER BY epoch, device")?,
        asked: later(connection, "the mode that the job asks for", "asked", "")?.pop().flatten(),
        finished: bodies(connection, "the end of the run", "endings WHERE kind = 'finished'")?.pop(),
        failed: bodies(connection, "the failure of the run", "endings WHERE kind = 'failed'")?.pop(),
        // A run's store holds one source.
        rates: tables::rates(connection, None)?,
    };
    match recovered.contradiction() {
        Some(found) => Err(StoreError::Contradictory(found)),
        None => Ok(recovered),
    }
}

/// `what` one of them is called, for people.
fn bodies<T: DeserializeOwned>(connection: &Connection, what: &str, from: &str) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare(&format!("SELECT body FROM {from}"))?;
    let texts: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    texts.iter().map(|text| parse(text, what)).collect()
}

/// The same of a table that there is once something was written to it.
fn later<T: DeserializeOwned>(
    connection: &Connection,
    what: &str,
    table: &str,
    order: &str,
) -> Result<Vec<T>, StoreError> {
    let statement = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?";
    match connection.query_row(statement, [table], |row| row.get::<_, i64>(0))? {
        0 => Ok(Vec::new()),
        _ => bodies(connection, what, &format!("{table} {order}")),
    }
}

/// All memberships, in order.
pub(super) fn generations(connection: &Connection) -> Result<Vec<GenerationRecord>, StoreError> {
    bodies(connection, "a generation", "generations ORDER BY generation")
}

fn aborted(connection: &Connection) -> Result<Vec<Epoch>, StoreError> {
    let mut statement = connection.prepare("SELECT epoch FROM aborted ORDER BY epoch")?;
    let epochs = statement.query_map([], |row| Ok(Epoch(number(row.get(0)?))))?;
    Ok(epochs.collect::<Result<_, _>>()?)
}

/// All plans, each checked against its digest and read.
fn plans(connection: &Connection) -> Result<Vec<PlanRecord>, StoreError> {
    let mut statement =
        connection.prepare("SELECT epoch, parent, generation, term, text, digest FROM plans ORDER BY epoch")?;
    let rows = statement.query_map([], |row| {
        Ok(PlanRecord {
            epoch: Epoch(number(row.get(0)?)),
            parent: Epoch(number(row.get(1)?)),
            generation: Generation(number(row.get(2)?)),
            term: Term(number(row.get(3)?)),
            text: row.get(4)?,
            digest: Digest(row.get(5)?),
        })
    })?;
    let plans: Vec<PlanRecord> = rows.collect::<Result<_, _>>()?;
    for plan in &plans {
        if Plan::digest(&plan.text) != plan.digest || Plan::read(&plan.text).is_err() {
            return Err(StoreError::Damaged { what: epoch_name("plan", plan.epoch) });
        }
    }
    Ok(plans)
}

/// Iterations in some order.
pub(super) fn iterations(connection: &Connection, order: &str) -> Result<Vec<IterationRecord>, StoreError> {
    let mut statement = connection
        .prepare(&format!("SELECT step, generation, epoch, duration_ns, loss_bits FROM iterations {order}"))?;
    let rows = statement.query_map([], |row| {
        Ok(IterationRecord {
            index: Step(number(row.get(0)?)),
            generation: Generation(number(row.get(1)?)),
            epoch: Epoch(number(row.get(2)?)),
            duration_ns: number(row.get(3)?),
            loss_bits: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
