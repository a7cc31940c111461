//! The columns of a trace, whatever width their numbers have.

use super::TraceError;
use parquet::basic::{LogicalType, Type};
use parquet::column::page::Page;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::RowGroupReader;
use parquet::schema::types::SchemaDescriptor;

const INTEGERS: [&str; COUNT] = ["dp_rank", "stage", "rank", "step", "mb_id", "gmc"];
const FLOATS: [&str; 2] = ["start_ts", "duration"];
const TEXT: &str = "optype";
/// Whole numbers that are read.
const COUNT: usize = 6;

/// A row of a trace.
pub(super) struct Row<'a> {
    pub dp_rank: i64,
    pub stage: i64,
    pub rank: i64,
    pub step: i64,
    pub mb_id: i64,
    pub gmc: i64,
    pub start_s: f64,
    pub duration_s: f64,
    pub optype: &'a [u8],
}

/// Where in a file each column is.
pub(super) struct Columns {
    integers: [usize; COUNT],
    floats: [usize; 2],
    optype: usize,
}

impl Columns {
    /// Finds the columns and checks their types.
    pub fn find(schema: &SchemaDescriptor) -> Result<Columns, TraceError> {
        let find = |column: &'static str| {
            let is_it = |at: &usize| schema.column(*at).path().string() == column;
            let expected = || {
                let all = INTEGERS.iter().chain(&FLOATS).chain([&TEXT]);
                all.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
            };
            (0..schema.num_columns()).find(is_it).ok_or_else(|| TraceError::Missing { column, expected: expected() })
        };
        let checked = |column: &'static str, types: &[Type], expected: &'static str| {
            let at = find(column)?;
            let found = schema.column(at);
            let is_plain = found.max_rep_level() == 0
                && !matches!(
                    found.logical_type_ref(),
                    Some(LogicalType::Timestamp { .. } | LogicalType::Decimal { .. } | LogicalType::Time { .. })
                );
            match types.contains(&found.physical_type()) && is_plain {
                true => Ok(at),
                false => {
                    let logical = found.logical_type_ref().map(|of| format!(" ({of:?})")).unwrap_or_default();
                    Err(TraceError::Type { column, found: format!("{}{logical}", found.physical_type()), expected })
                }
            }
        };
        let mut integers = [0; COUNT];
        for (at, column) in integers.iter_mut().zip(INTEGERS) {
            *at = checked(column, &[Type::INT32, Type::INT64], "whole numbers")?;
        }
        let optype = checked(TEXT, &[Type::BYTE_ARRAY], "texts")?;
        let mut floats = [0; 2];
        for (at, column) in floats.iter_mut().zip(FLOATS) {
            *at = checked(column, &[Type::FLOAT, Type::DOUBLE], "seconds as floating-point numbers")?;
        }
        Ok(Columns { integers, floats, optype })
    }

    /// Calls `each` with every row of a group, in order, the first of them being row `first` of the file; so many are in memory at a
    /// time.
    pub fn read(
        &self,
        group: &dyn RowGroupReader,
        first: u64,
        batch: usize,
        each: &mut dyn FnMut(&Row<'_>) -> Result<(), TraceError>,
    ) -> Result<(), TraceError> {
        let open = |at: usize| {
            check_dictionaries(group, at)?;
            group.get_column_reader(at).map_err(|error| TraceError::of_parquet(&error))
        };
        let mut integers: Vec<ColumnReader> = self.integers.iter().map(|&at| open(at)).collect::<Result<_, _>>()?;
        let mut floats: Vec<ColumnReader> = self.floats.iter().map(|&at| open(at)).collect::<Result<_, _>>()?;
        let mut optype = open(self.optype)?;
        let mut left = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let mut row = first;
        while left > 0 {
            let count = left.min(batch);
            let mut whole: Vec<Vec<i64>> = Vec::with_capacity(COUNT);
            for (reader, column) in integers.iter_mut().zip(INTEGERS) {
                whole.push(whole_numbers(reader, column, row, count)?);
            }
            let starts = numbers(&mut floats[0], FLOATS[0], row, count)?;
            let durations = numbers(&mut floats[1], FLOATS[1], row, count)?;
            let texts = texts(&mut optype, row, count)?;
            for at in 0..count {
                each(&Row {
                    dp_rank: whole[0][at],
                    stage: whole[1][at],
                    rank: whole[2][at],
                    step: whole[3][at],
                    mb_id: whole[4][at],
                    gmc: whole[5][at],
                    start_s: starts[at],
                    duration_s: durations[at],
                    optype: texts[at].data(),
                })?;
            }
            (left, row) = (left - count, row + count as u64);
        }
        Ok(())
    }
}

/// Sees that a dictionary has no more values than bytes: as much memory is taken as it says that it has.
fn check_dictionaries(group: &dyn RowGroupReader, at: usize) -> Result<(), TraceError> {
    let checked = || -> Result<Option<String>, ParquetError> {
        let mut pages = group.get_column_page_reader(at)?;
        while let Some(page) = pages.peek_next_page()? {
            if !page.is_dict {
                pages.skip_next_page()?;
                continue;
            }
            if let Some(Page::DictionaryPage { buf, num_values, .. }) = pages.get_next_page()?
                && num_values as usize > buf.len()
            {
                return Ok(Some(format!("a dictionary of {num_values} values in {} bytes", buf.len())));
            }
        }
        Ok(None)
    };
    match checked().map_err(|error| TraceError::of_parquet(&error))? {
        Some(what) => Err(TraceError::NotParquet { what: format!("damaged: {what}") }),
        None => Ok(()),
    }
}

fn whole_numbers(
    reader: &mut ColumnReader,
    column: &'static str,
    row: u64,
    count: usize,
) -> Result<Vec<i64>, TraceError> {
    match reader {
        ColumnReader::Int32ColumnReader(of) => Ok(values(of, column, row, count)?.into_iter().map(i64::from).collect()),
        ColumnReader::Int64ColumnReader(of) => values(of, column, row, count),
        _ => unreachable!("the types of the columns were checked"),
    }
}

fn numbers(reader: &mut ColumnReader, column: &'static str, row: u64, count: usize) -> Result<Vec<f64>, TraceError> {
    match reader {
        ColumnReader::FloatColumnReader(of) => Ok(values(of, column, row, count)?.into_iter().map(f64::from).collect()),
        ColumnReader::DoubleColumnReader(of) => values(of, column, row, count),
        _ => unreachable!("the types of the columns were checked"),
    }
}

fn texts(reader: &mut ColumnReader, row: u64, count: usize) -> Result<Vec<ByteArray>, TraceError> {
    match reader {
        ColumnReader::ByteArrayColumnReader(of) => values(of, TEXT, row, count),
        _ => unreachable!("the types of the columns were checked"),
    }
}

/// The next values of a column, none of them missing.
fn values<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    column: &'static str,
    row: u64,
    count: usize,
) -> Result<Vec<T::T>, TraceError> {
    let (mut values, mut levels) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut read = 0;
    while read < count {
        let (records, ..) = reader
            .read_records(count - read, Some(&mut levels), None, &mut values)
            .map_err(|error| TraceError::of_parquet(&error))?;
        if records == 0 {
            let what = format!("column `{column}` ends at row {}", row + read as u64);
            return Err(TraceError::NotParquet { what });
        }
        read += records;
    }
    if values.len() < count {
        // A level of 0 is a value that is missing; a column that may miss none has no levels.
        let at = levels.iter().position(|&level| level == 0).unwrap_or(values.len());
        return Err(TraceError::Null { column, row: row + at as u64 });
    }
    Ok(values)
}
