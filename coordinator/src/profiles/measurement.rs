//! The measurements of profiles, and the file that carries them: `adaptis.profiles/1`.
//!
//! ```text
//! { "format": "adaptis.profiles/1",
//!   "profiles": [ { "kind": "a100-40g", "signature": "block/opt-30/b4/tp2", "phase": "forward", "seconds": 0.294,
//!                   "count": 48, "low": 0.29, "high": 0.3 } ] }
//! ```
//!
//! `seconds` is the median. Optional: `count`, the samples behind it (1); `low` and `high`, their 5th and 95th
//! percentile. A `seconds` of null says that there is no measurement.

pub use adaptis_coordinator_core::predict::{Cell, MeasuredPhase, Measurement, UnknownPhase, condense};

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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    profiles: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    kind: String,
    signature: String,
    phase: String,
    #[serde(deserialize_with = "given")]
    seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    low: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    high: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
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
    let rows = measurements.iter().map(|measurement| Row {
        kind: measurement.cell.kind.clone(),
        signature: measurement.cell.signature.clone(),
        phase: measurement.cell.phase.word().to_owned(),
        seconds: Some(measurement.seconds),
        count: (measurement.count > 1).then_some(measurement.count),
        low: None,
        high: None,
        note: None,
    });
    adaptis_plan::json::write(&File { format: FORMAT.to_owned(), note: None, profiles: rows.collect() })
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
