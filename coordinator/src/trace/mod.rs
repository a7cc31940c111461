//! Reads the traces that StragglerAnalysis (OSDI'25) publishes: a Parquet file, a row for each operation of each worker.
//!
//! | column | what |
//! |---|---|
//! | `dp_rank`, `stage`, `rank` | the worker: its replica, its place in the pipeline, its number in the job |
//! | `step` | the iteration |
//! | `optype` | `forward-compute`, `backward-send`, .. ; a batch of sends and receives joins their names |
//! | `start_ts`, `duration` | seconds; a send and its receive each last until both sides are done |
//! | `mb_id`, `gmc` | of a compute: its microbatch, and the position of its chunk in the whole model |
//!
//! 1. A file is read once, in batches of rows; what is kept is bounded by a limit on its rows, checked before the first.
//! 2. What can't be so is refused with the column, the row and the fix; nothing is guessed.
//!
//! Left out on purpose: what happens outside of the pipeline (collectives among replicas, the optimizer), whose rows are
//! known and passed over, and `seq_id` and `mc`, which say nothing that is not said by the others.

mod columns;
mod damaged;
mod error;
mod optype;

pub use error::TraceError;

use adaptis_coordinator_core::diagnose::{Iteration, Operation, Recording, Work, Worker};
use columns::{Columns, Row};
use optype::Optype;
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// Rows of a file; a larger one is refused before it is read.
const ROWS_MAX: u64 = 20_000_000;
/// Rows read at a time.
const BATCH: usize = 8_192;
/// No iteration takes longer: such a file is not in seconds.
const ITERATION_MAX_NS: u64 = 1_800_000_000_000;
const NS_PER_SECOND: f64 = 1e9;
/// Instants beyond it do not fit.
const SECONDS_MAX: f64 = 4e9;
/// Numbers of replicas, stages, chunks and microbatches are below it.
const NUMBER_MAX: i64 = 1 << 20;

/// Reads a trace.
///
/// # Errors
/// See [`TraceError`].
pub fn read(path: &Path) -> Result<Recording, TraceError> {
    damaged::read(|| whole(path))
        .unwrap_or_else(|what| Err(TraceError::NotParquet { what: format!("damaged: {what}") }))
}

fn whole(path: &Path) -> Result<Recording, TraceError> {
    let file = File::open(path).map_err(TraceError::Io)?;
    let reader = SerializedFileReader::new(file).map_err(|error| TraceError::of_parquet(&error))?;
    let rows = reader.metadata().file_metadata().num_rows();
    match u64::try_from(rows).unwrap_or(0) {
        0 => return Err(TraceError::Empty),
        rows if rows > ROWS_MAX => return Err(TraceError::TooLarge { rows, limit: ROWS_MAX }),
        _ => {}
    }
    let columns = Columns::find(reader.metadata().file_metadata().schema_descr())?;
    let mut gathered = Gathered::default();
    for number in 0..reader.num_row_groups() {
        let group = reader.get_row_group(number).map_err(|error| TraceError::of_parquet(&error))?;
        let first = gathered.rows;
        columns.read(group.as_ref(), first, BATCH, &mut |row| gathered.add(row))?;
    }
    gathered.recording()
}

/// Rows as they come.
#[derive(Default)]
struct Gathered {
    rows: u64,
    /// The lowest rank of each worker: ranks beside it hold parts of the same layers, and work in step with it.
    rank_of: BTreeMap<Worker, i64>,
    by_step: BTreeMap<i64, Vec<(Worker, i64, Operation)>>,
}

impl Gathered {
    fn add(&mut self, row: &Row<'_>) -> Result<(), TraceError> {
        let at = self.rows;
        self.rows += 1;
        let value = |column, value: String, fix| TraceError::Value { column, row: at, value, fix };
        let Some(optype) = Optype::parse(row.optype) else {
            return Err(TraceError::Optype { row: at, value: String::from_utf8_lossy(row.optype).into_owned() });
        };
        let number = |column, number: i64| {
            let fits = (0..NUMBER_MAX).contains(&number).then(|| u32::try_from(number).ok()).flatten();
            fits.ok_or_else(|| value(column, number.to_string(), "a whole number from 0 on"))
        };
        if !row.start_s.is_finite() || row.start_s.abs() > SECONDS_MAX {
            return Err(value("start_ts", row.start_s.to_string(), "seconds, on one clock a job"));
        }
        if !(row.duration_s >= 0.0 && row.duration_s <= SECONDS_MAX) {
            return Err(value("duration", row.duration_s.to_string(), "seconds, not negative"));
        }
        let worker = Worker { dp_rank: number("dp_rank", row.dp_rank)?, stage: number("stage", row.stage)? };
        let lowest = self.rank_of.entry(worker).or_insert(row.rank);
        *lowest = (*lowest).min(row.rank);
        let work = match optype {
            Optype::Other => return Ok(()),
            Optype::Compute(direction) => {
                Work::Compute { direction, chunk: number("gmc", row.gmc)?, microbatch: number("mb_id", row.mb_id)? }
            }
            Optype::Exchange(exchange) => Work::Exchange(exchange),
        };
        let operation = Operation {
            worker: 0,
            work,
            start_ns: (row.start_s * NS_PER_SECOND).round() as i64,
            duration_ns: (row.duration_s * NS_PER_SECOND).round() as u64,
        };
        self.by_step.entry(row.step).or_default().push((worker, row.rank, operation));
        Ok(())
    }

    fn recording(self) -> Result<Recording, TraceError> {
        let Gathered { rank_of, by_step, .. } = self;
        let workers: BTreeSet<Worker> = by_step.values().flatten().map(|(worker, ..)| *worker).collect();
        let workers: Vec<Worker> = workers.into_iter().collect();
        let mut iterations = Vec::with_capacity(by_step.len());
        for (number, rows) in by_step {
            let own = rows.into_iter().filter(|(worker, rank, _)| rank_of.get(worker) == Some(rank));
            let operation = |(worker, _, operation): (Worker, i64, Operation)| {
                let worker = workers.binary_search(&worker).expect("every worker is listed");
                Operation { worker: u32::try_from(worker).expect("there are fewer workers than rows"), ..operation }
            };
            let iteration = Iteration { number, operations: own.map(operation).collect() };
            if iteration.measured_ns() > ITERATION_MAX_NS {
                return Err(TraceError::Unit { step: number, seconds: iteration.measured_ns() / 1_000_000_000 });
            }
            iterations.push(iteration);
        }
        if iterations.is_empty() {
            return Err(TraceError::Empty);
        }
        Ok(Recording { workers, iterations })
    }
}
