//! The measurements of profiles, and the file that carries them: `adaptis.profiles/1`.
//!
//! ```text
//! { "format": "adaptis.profiles/1",
//!   "profiles": [ { "kind": "a100-40g", "signature": "block/opt-30/b4/tp2", "phase": "forward", "seconds": 0.294,
//!                   "count": 48, "low": 0.29, "high": 0.3 } ] }
//! ```
//!
//! `seconds` is the median. Optional: `count`, the samples behind it (1); `low` and `high`, their 5th and 95th
//! percentile. A `seconds` of null says that there is no measurement. What else an export of a store holds, where its
//! profiles come from and how they are distributed, links and memories, is not looked at here.

pub use adaptis_coordinator_core::predict::{Cell, MeasuredPhase, Measurement, UnknownPhase, condense};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// Name and version in every file of this format.
pub const FORMAT: &str = "adaptis.profiles/1";

/// Why a text is no list of profiles.
#[derive(Debug, thiserror::Error)]
pub enum ProfilesError {
    /// Not JSON, or not of the shape.
    #[error("{path}: {problem}")]
    Shape {
        /// Where.
        path: String,
        /// What is wrong there.
        problem: String,
    },
    /// Another format or version.
    #[error("format is {found:?}, expected {FORMAT:?}")]
    Format {
        /// As found.
        found: String,
    },
    /// A phase that is none.
    #[error("profiles[{row}].phase: {source}")]
    Phase {
        /// Which row.
        row: usize,
        /// Why.
        source: UnknownPhase,
    },
    /// A time that is none.
    #[error("profiles[{row}].seconds: {seconds}: a time is positive and finite; leave out what was not measured")]
    Seconds {
        /// Which row.
        row: usize,
        /// As found.
        seconds: f64,
    },
    /// No samples behind a time.
    #[error("profiles[{row}].count: 0 samples: leave out what was not measured")]
    Count {
        /// Which row.
        row: usize,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    #[serde(default, rename = "note")]
    _note: IgnoredAny,
    profiles: Vec<Row>,
    #[serde(default, rename = "sources")]
    _sources: IgnoredAny,
    #[serde(default, rename = "links")]
    _links: IgnoredAny,
    #[serde(default, rename = "memories")]
    _memories: IgnoredAny,
    #[serde(default, rename = "layers")]
    _layers: IgnoredAny,
    #[serde(default, rename = "kinds")]
    _kinds: IgnoredAny,
    #[serde(default, rename = "rates")]
    _rates: IgnoredAny,
    #[serde(default, rename = "overheads")]
    _overheads: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    kind: String,
    signature: String,
    phase: String,
    #[serde(deserialize_with = "given")]
    seconds: Option<f64>,
    #[serde(default)]
    count: Option<u64>,
    #[serde(default, rename = "low")]
    _low: IgnoredAny,
    #[serde(default, rename = "high")]
    _high: IgnoredAny,
    #[serde(default, rename = "software")]
    _software: IgnoredAny,
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
    #[serde(default, rename = "first_seen")]
    _first_seen: IgnoredAny,
    #[serde(default, rename = "last_seen")]
    _last_seen: IgnoredAny,
    #[serde(default, rename = "sketch")]
    _sketch: IgnoredAny,
    #[serde(default, rename = "note")]
    _note: IgnoredAny,
}

/// A number or null, but not nothing.
fn given<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Option::deserialize(deserializer)
}

/// Reads `adaptis.profiles/1`.
///
/// # Errors
/// Not JSON, of another format, or not of the shape: the path to the first such place.
pub fn read(text: &str) -> Result<Vec<Measurement>, ProfilesError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let shape = |path: String, problem: String| ProfilesError::Shape { path, problem };
    let file: File = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| shape(error.path().to_string(), error.inner().to_string()))?;
    deserializer.end().map_err(|error| shape("file".to_owned(), error.to_string()))?;
    if file.format != FORMAT {
        return Err(ProfilesError::Format { found: file.format });
    }
    let mut measurements = Vec::with_capacity(file.profiles.len());
    for (row, profile) in file.profiles.into_iter().enumerate() {
        let phase = profile.phase.parse().map_err(|source| ProfilesError::Phase { row, source })?;
        let Some(seconds) = profile.seconds else { continue };
        if !(seconds > 0.0 && seconds.is_finite()) {
            return Err(ProfilesError::Seconds { row, seconds });
        }
        let count = profile.count.unwrap_or(1);
        if count == 0 {
            return Err(ProfilesError::Count { row });
        }
        let cell = Cell { kind: profile.kind, signature: profile.signature, phase };
        measurements.push(Measurement { cell, seconds, count });
    }
    Ok(measurements)
}

/// Writes `adaptis.profiles/1`.
pub fn write(measurements: &[Measurement]) -> String {
    let rows = measurements.iter().map(|measurement| WrittenRow {
        kind: &measurement.cell.kind,
        signature: &measurement.cell.signature,
        phase: measurement.cell.phase.word(),
        seconds: measurement.seconds,
        count: (measurement.count > 1).then_some(measurement.count),
    });
    adaptis_plan::json::write(&WrittenFile { format: FORMAT, profiles: rows.collect() })
}

#[derive(Serialize)]
struct WrittenFile<'a> {
    format: &'static str,
    profiles: Vec<WrittenRow<'a>>,
}

#[derive(Serialize)]
struct WrittenRow<'a> {
    kind: &'a str,
    signature: &'a str,
    phase: &'static str,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(row: &str) -> String {
        format!("{{\"format\": \"adaptis.profiles/1\", \"profiles\": [{row}]}}")
    }

    #[test]
    fn what_was_written_is_read_again() {
        let cell = |phase| Cell { kind: "a100-40g".into(), signature: "block/opt-30/b4/tp2".into(), phase };
        let measurements = [
            Measurement { cell: cell(MeasuredPhase::Forward), seconds: 0.294, count: 48 },
            Measurement { cell: cell(MeasuredPhase::Optimizer), seconds: 1.0 / 3.0, count: 1 },
        ];
        assert_eq!(read(&write(&measurements)).expect("a file of ours"), measurements);
        assert!(read(&write(&[])).expect("a file of ours").is_empty());
    }

    #[test]
    fn what_an_export_of_a_store_holds_besides_is_not_looked_at() {
        let text = r#"{"format": "adaptis.profiles/1", "note": "x", "profiles": [{"kind": "k", "signature": "s",
            "phase": "forward", "seconds": 1.0, "count": 3, "low": 0.9, "high": 1.1, "software": "driver 1",
            "source": "6f1b", "first_seen": 1, "last_seen": 2, "sketch": [[1, 3]]}],
            "sources": [{"id": "6f1b"}], "links": [], "memories": [], "layers": [], "kinds": []}"#;
        let read = read(text).expect("of the format");
        assert_eq!((read.len(), read[0].count), (1, 3));
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let text = file(r#"{"kind": "k", "signature": "s", "phase": "B", "seconds": null}"#);
        assert!(read(&text).expect("of the format").is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let row = |fields: &str| file(&format!(r#"{{"kind": "k", "signature": "s", {fields}}}"#));
        for (text, said) in [
            (String::new(), "EOF"),
            ("{\"format\": \"adaptis.plan/1\", \"profiles\": []}".into(), "adaptis.plan/1"),
            (row(r#""phase": "F""#), "profiles[0]: missing field `seconds`"),
            (row(r#""phase": "X", "seconds": 1"#), "profiles[0].phase: unknown phase \"X\""),
            (row(r#""phase": "F", "seconds": -1"#), "profiles[0].seconds: -1"),
            (row(r#""phase": "F", "seconds": "1""#), "profiles[0].seconds: invalid type"),
            (row(r#""phase": "F", "seconds": 1, "count": 0"#), "profiles[0].count"),
            (row(r#""phase": "F", "second": 1"#), "unknown field `second`"),
            (file("") + "{}", "trailing"),
        ] {
            let said_really = read(&text).expect_err(&text).to_string();
            assert!(said_really.contains(said), "{text}: {said_really}");
        }
    }
}
