//! The table of profiles as Parquet, with the columns of the CSV.

use super::exchange::Row;
use super::measurement::MeasuredPhase;
use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::sync::Arc;

/// In the order of [`super::exchange::COLUMNS`].
const SCHEMA: &str = "message profiles {
    REQUIRED BYTE_ARRAY kind (UTF8);
    REQUIRED BYTE_ARRAY signature (UTF8);
    REQUIRED BYTE_ARRAY phase (UTF8);
    REQUIRED BYTE_ARRAY software (UTF8);
    REQUIRED INT64 count;
    REQUIRED DOUBLE seconds;
    REQUIRED DOUBLE low;
    REQUIRED DOUBLE high;
    REQUIRED INT64 first_seen;
    REQUIRED INT64 last_seen;
}";

/// Rows as a Parquet file of one group.
///
/// # Errors
/// What the encoder says.
pub fn parquet(rows: &[Row]) -> Result<Vec<u8>, ParquetError> {
    let texts: [fn(&Row) -> &str; 4] = [
        |row| &row.key.kind,
        |row| &row.key.signature,
        |row| MeasuredPhase::from(row.key.phase).word(),
        |row| &row.key.software,
    ];
    let times: [fn(&Row) -> f64; 3] = [|row| row.seconds, |row| row.low, |row| row.high];
    let wholes: [fn(&Row) -> u64; 3] = [|row| row.count, |row| row.first_seen, |row| row.last_seen];
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, Arc::new(parse_message_type(SCHEMA)?), Arc::new(properties))?;
    let mut group = file.next_row_group()?;
    let (mut texts, mut times, mut wholes) = (texts.iter(), times.iter(), wholes.iter());
    while let Some(mut column) = group.next_column()? {
        match column.untyped() {
            ColumnWriter::ByteArrayColumnWriter(writer) => {
                let of = texts.next().expect("the schema has as many columns of texts");
                let values: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(of(row))).collect();
                writer.write_batch(&values, None, None)?;
            }
            ColumnWriter::DoubleColumnWriter(writer) => {
                let of = times.next().expect("the schema has as many columns of times");
                writer.write_batch(&rows.iter().map(of).collect::<Vec<_>>(), None, None)?;
            }
            ColumnWriter::Int64ColumnWriter(writer) => {
                let of = wholes.next().expect("the schema has as many columns of whole numbers");
                let values: Vec<i64> = rows.iter().map(|row| i64::try_from(of(row)).unwrap_or(i64::MAX)).collect();
                writer.write_batch(&values, None, None)?;
            }
            _ => unreachable!("the schema has no other types"),
        }
        column.close()?;
    }
    group.close()?;
    file.close()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profiles::account::WorkKey;
    use adaptis_proto::sample::Phase;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    #[test]
    fn a_table_is_read_by_others() {
        let row = |at: u64| Row {
            key: WorkKey {
                signature: format!("mlp/{at}"),
                kind: "a100-40g".into(),
                phase: Phase::WeightGradient,
                software: String::new(),
            },
            count: at,
            seconds: at as f64 / 8.0,
            low: 0.25,
            high: 7.5,
            ln_spread: None,
            first_seen: 3,
            last_seen: 1_700_000_000,
        };
        let rows: Vec<Row> = (0..1_000).map(row).collect();
        let file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &file, &parquet(&rows).unwrap()).unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        let read: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(read.len(), 1_000);
        let columns: Vec<(&str, Field)> =
            read[7].get_column_iter().map(|(name, field)| (name.as_str(), field.clone())).collect();
        let text = |text: &str| Field::Str(text.to_owned());
        let expected = [
            text("a100-40g"),
            text("mlp/7"),
            text("weight_gradient"),
            text(""),
            Field::Long(7),
            Field::Double(0.875),
            Field::Double(0.25),
            Field::Double(7.5),
            Field::Long(3),
            Field::Long(1_700_000_000),
        ];
        let expected: Vec<(&str, Field)> = crate::profiles::exchange::COLUMNS.into_iter().zip(expected).collect();
        assert_eq!(columns, expected);
        assert!(parquet(&[]).is_ok());
    }
}
