//! Why a file is no trace.

use parquet::errors::ParquetError;

/// Why a file can't be read as a trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It can't be opened or read.
    #[error("{0}")]
    Io(#[source] std::io::Error),
    /// It is no Parquet file, or a damaged one.
    #[error("not a Parquet file that can be read: {what}; give a trace of StragglerAnalysis, or the folder of a run")]
    NotParquet {
        /// What the reader says.
        what: String,
    },
    /// It is compressed in a way that this build does not read.
    #[error(
        "compressed with {codec}, which this build does not read: write it again with Snappy, as by python3 -c \"import \
         pyarrow.parquet as p; p.write_table(p.read_table('trace.parquet'), 'snappy.parquet', compression='snappy')\""
    )]
    Codec {
        /// Which way.
        codec: String,
    },
    /// A column is missing.
    #[error("there is no column `{column}`; a trace has {expected}")]
    Missing {
        /// Which one.
        column: &'static str,
        /// All of them.
        expected: String,
    },
    /// A column is of another type.
    #[error("column `{column}` holds {found}: it must hold {expected}")]
    Type {
        /// Which one.
        column: &'static str,
        /// What it holds.
        found: String,
        /// What it must.
        expected: &'static str,
    },
    /// A cell is empty.
    #[error("row {row}, column `{column}`: there is no value; every row has all of them")]
    Null {
        /// Which column.
        column: &'static str,
        /// Counted from 0.
        row: u64,
    },
    /// A value can't be so.
    #[error("row {row}, column `{column}`: {value} can't be; write {fix}")]
    Value {
        /// Which column.
        column: &'static str,
        /// Counted from 0.
        row: u64,
        /// The value.
        value: String,
        /// What would be right.
        fix: &'static str,
    },
    /// An operation that no trace has.
    #[error(
        "row {row}, column `optype`: `{value}` is not known; a pipeline has forward-compute, backward-compute, \
         forward-send, forward-recv, backward-send, backward-recv"
    )]
    Optype {
        /// Counted from 0.
        row: u64,
        /// Its name.
        value: String,
    },
    /// No operation of a pipeline is in it.
    #[error("it holds no operation of a pipeline: record an iteration at least")]
    Empty,
    /// More rows than are read.
    #[error("{rows} rows are more than {limit}: cut the trace to fewer steps")]
    TooLarge {
        /// How many.
        rows: u64,
        /// How many there may be.
        limit: u64,
    },
    /// Times that no iteration takes.
    #[error(
        "step {step} would take {seconds} s: columns `start_ts` and `duration` are in seconds, and `start_ts` of one step on \
         one clock; divide milliseconds by 1e3, microseconds by 1e6, nanoseconds by 1e9"
    )]
    Unit {
        /// Which step.
        step: i64,
        /// How long it would be.
        seconds: u64,
    },
}

impl TraceError {
    pub(super) fn of_parquet(error: &ParquetError) -> TraceError {
        match error {
            ParquetError::NYI(what) => TraceError::Codec { codec: codec(what) },
            ParquetError::General(what) if what.contains("codec") || what.contains("feature") => {
                TraceError::Codec { codec: codec(what) }
            }
            other => TraceError::NotParquet { what: other.to_string() },
        }
    }
}

/// The name of a compression in what the reader says of it; all of that where it names none that is in use.
fn codec(said: &str) -> String {
    let lower = said.to_ascii_lowercase();
    let known = [("zstd", "Zstandard"), ("gzip", "gzip"), ("flate2", "gzip"), ("brotli", "Brotli"), ("lz4", "LZ4")];
    let found = known.iter().find(|(word, _)| lower.contains(word));
    found.map_or_else(|| said.to_owned(), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compression_is_named_with_what_to_do() {
        for (said, name) in [
            ("Disabled feature at compile time: zstd", "Zstandard"),
            ("Disabled feature at compile time: flate2", "gzip"),
            ("unknown codec 9", "unknown codec 9"),
        ] {
            let text = TraceError::of_parquet(&ParquetError::General(said.to_owned())).to_string();
            assert!(
                text.starts_with(&format!("compressed with {name}, ")) && text.contains("compression='snappy'"),
                "{text}"
            );
        }
    }
}
