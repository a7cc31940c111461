//! Traces of others: one as it was published, and files that are none.

use adaptis_coordinator::TraceError;
use adaptis_coordinator::replay::{Kind, Options, Place, ReplayError, replay};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn published() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/trace-ST.parquet")
}

#[test]
fn a_published_trace_is_replayed_to_its_times_and_its_last_stage_named() {
    let diagnosis = replay(&published(), &Options::default()).expect("a trace");
    assert_eq!(diagnosis.iterations, 32);
    let mut off: Vec<f64> = diagnosis
        .simulated_ns
        .iter()
        .zip(&diagnosis.measured_ns)
        .map(|(&simulated, &measured)| (simulated as f64 / measured as f64 - 1.0).abs())
        .collect();
    off.sort_unstable_by(f64::total_cmp);
    assert!(off[16] < 0.002 && off[31] < 0.005, "{off:?}");
    // Its authors: nearly all of the loss is the last stage, none of it a slow worker.
    let [finding] = &diagnosis.findings[..] else { panic!("{:#?}", diagnosis.findings) };
    assert_eq!((finding.kind, &finding.place), (Kind::Stage, &Place { stage: Some(3), ..Place::default() }));
    assert!(finding.lost_share > 0.8, "{finding:?}");
    assert!(finding.factor_low < finding.factor && finding.factor < finding.factor_high, "{finding:?}");
    assert!((1.55..1.75).contains(&finding.factor), "{finding:?}");
    let better = diagnosis.better_plan.expect("its last stage can be relieved");
    assert!(better.change.contains("off stage 3"), "{}", better.change);
    assert!((better.high_ns as f64) < 0.95 * diagnosis.measured_median_ns as f64, "{better:?}");
}

/// A row: rank, step, operation, start and duration in seconds, microbatch. One replica, a stage a rank.
type Row = (i32, i64, &'static str, f64, f64, i32);

/// One F and one B on each of two stages, with what passes between them.
fn rows() -> Vec<Row> {
    let one = [
        (0, "forward-compute", 0.0, 0.1, 0),
        (0, "forward-send", 0.1, 0.01, -1),
        (0, "backward-recv", 0.11, 0.31, -1),
        (0, "backward-compute", 0.42, 0.2, 0),
        (0, "optimizer", 0.62, 0.05, -1),
        (1, "forward-recv", 0.0, 0.11, -1),
        (1, "forward-compute", 0.11, 0.1, 0),
        (1, "backward-compute", 0.21, 0.2, 0),
        (1, "backward-send", 0.41, 0.01, -1),
    ];
    let of_step = |step| one.map(|(rank, optype, start, duration, mb)| (rank, step, optype, start, duration, mb));
    (7..10).flat_map(of_step).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Width {
    Narrow,
    Wide,
}

/// Writes rows as a trace; `edit` changes the schema's text.
fn write(path: &Path, rows: &[Row], width: Width, edit: impl Fn(String) -> String) {
    let (whole, number) = if width == Width::Wide { ("INT64", "DOUBLE") } else { ("INT32", "FLOAT") };
    let schema = edit(format!(
        "message trace {{ REQUIRED {whole} dp_rank; REQUIRED {whole} stage; REQUIRED {whole} rank; REQUIRED INT64 step;
         REQUIRED BYTE_ARRAY optype (UTF8); REQUIRED {number} start_ts; REQUIRED {number} duration; REQUIRED {whole} mb_id;
         REQUIRED {whole} gmc; }}"
    ));
    let schema = Arc::new(parse_message_type(&schema).expect("a schema"));
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let file = std::fs::File::create(path).expect("a file");
    let mut writer = SerializedFileWriter::new(file, schema.clone(), Arc::new(properties)).expect("a writer");
    // Two groups, so that rows are counted over both.
    for rows in rows.chunks(rows.len().div_ceil(2).max(1)) {
        let mut group = writer.next_row_group().expect("a group");
        for field in schema.get_fields() {
            let name = field.name();
            let whole = |row: &Row| match name {
                "dp_rank" => 0,
                "stage" | "rank" => i64::from(row.0),
                "step" => row.1,
                "mb_id" => i64::from(row.5),
                "gmc" if row.5 >= 0 => i64::from(row.0),
                "gmc" => -1,
                _ => 0,
            };
            let seconds = |row: &Row| if name == "start_ts" { row.3 } else { row.4 };
            let mut column = group.next_column().expect("columns are left").expect("a column");
            match field.get_physical_type() {
                parquet::basic::Type::INT32 => {
                    let values: Vec<i32> = rows.iter().map(|row| whole(row) as i32).collect();
                    column.typed::<Int32Type>().write_batch(&values, None, None).expect("written");
                }
                parquet::basic::Type::INT64 => {
                    let values: Vec<i64> = rows.iter().map(whole).collect();
                    column.typed::<Int64Type>().write_batch(&values, None, None).expect("written");
                }
                parquet::basic::Type::FLOAT => {
                    let values: Vec<f32> = rows.iter().map(|row| seconds(row) as f32).collect();
                    column.typed::<FloatType>().write_batch(&values, None, None).expect("written");
                }
                parquet::basic::Type::DOUBLE => {
                    let values: Vec<f64> = rows.iter().map(seconds).collect();
                    column.typed::<DoubleType>().write_batch(&values, None, None).expect("written");
                }
                _ => {
                    let values: Vec<ByteArray> = rows.iter().map(|row| row.2.into()).collect();
                    column.typed::<ByteArrayType>().write_batch(&values, None, None).expect("written");
                }
            }
            column.close().expect("closed");
        }
        group.close().expect("closed");
    }
    writer.close().expect("closed");
}

#[test]
fn any_width_of_numbers_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    for width in [Width::Narrow, Width::Wide] {
        let path = folder.path().join("trace.parquet");
        write(&path, &rows(), width, |schema| schema);
        let diagnosis = replay(&path, &Options::default()).expect("a trace");
        assert_eq!((diagnosis.iterations, diagnosis.findings.len()), (3, 0));
        for (simulated, measured) in diagnosis.simulated_ns.iter().zip(&diagnosis.measured_ns) {
            assert!(simulated.abs_diff(620_000_000) < 1_000 && measured.abs_diff(620_000_000) < 1_000);
        }
    }
}

fn refused(rows: &[Row], edit: impl Fn(String) -> String) -> TraceError {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.parquet");
    write(&path, rows, Width::Narrow, edit);
    match replay(&path, &Options::default()) {
        Err(ReplayError::Trace { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_can_not_be_is_refused_with_its_place() {
    let with = |at: usize, change: &dyn Fn(&mut Row)| {
        let mut rows = rows();
        change(&mut rows[at]);
        refused(&rows, |schema| schema).to_string()
    };
    let text = with(20, &|row| row.4 = -0.5);
    assert!(text.contains("row 20, column `duration`: -0.5"), "{text}");
    let text = with(3, &|row| row.3 = f64::NAN);
    assert!(text.contains("row 3, column `start_ts`: NaN"), "{text}");
    let text = with(26, &|row| row.2 = "sideways-compute");
    assert!(text.contains("row 26, column `optype`: `sideways-compute`"), "{text}");
    let text = with(0, &|row| row.5 = -1);
    assert!(text.contains("row 0, column `gmc`: -1") || text.contains("row 0, column `mb_id`: -1"), "{text}");
    let text = refused(&rows(), |schema| schema.replace("duration;", "length;")).to_string();
    assert!(text.contains("no column `duration`") && text.contains("`start_ts`"), "{text}");
    let text = refused(&rows(), |schema| schema.replace("FLOAT duration;", "INT64 duration;")).to_string();
    assert!(text.contains("column `duration` holds INT64: it must hold seconds"), "{text}");
    let milliseconds: Vec<Row> =
        rows().into_iter().map(|row| (row.0, row.1, row.2, row.3 * 1e7, row.4 * 1e7, row.5)).collect();
    assert!(matches!(refused(&milliseconds, |schema| schema), TraceError::Unit { step: 7, .. }));
    let outside: Vec<Row> = rows().into_iter().filter(|row| row.2 == "optimizer").collect();
    assert!(matches!(refused(&outside, |schema| schema), TraceError::Empty));
}

#[test]
fn files_that_are_no_traces_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.parquet");
    let whole = std::fs::read(published()).expect("the trace");
    for bytes in
        [&b""[..], b"PAR1PAR1", b"{\"format\": \"adaptis.problem/1\"}", &whole[..whole.len() / 2], &whole[1000..]]
    {
        std::fs::write(&path, bytes).expect("written");
        assert!(matches!(replay(&path, &Options::default()), Err(ReplayError::Trace { .. })), "{} bytes", bytes.len());
    }
    assert!(matches!(replay(folder.path(), &Options::default()), Err(ReplayError::NoRun { .. })));
}
