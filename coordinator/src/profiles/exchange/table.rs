//! Profiles as a table: a row for each key, over all sources.

use crate::profiles::account::{BadProfile, Collection, Distribution, WorkKey};
use crate::profiles::measurement::MeasuredPhase;
use std::fmt::Write;

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// One row of a table: a profile over all sources.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it is of.
    pub key: WorkKey,
    /// Samples.
    pub count: u64,
    /// Median in seconds.
    pub seconds: f64,
    /// 5th percentile.
    pub low: f64,
    /// 95th percentile.
    pub high: f64,
    /// Standard deviation of the logarithm; none below four samples.
    pub ln_spread: Option<f64>,
    /// In seconds since 1970.
    pub first_seen: u64,
    /// In seconds since 1970.
    pub last_seen: u64,
}

/// All profiles of works, one row for each key.
///
/// # Errors
/// Names the profile that can't be read.
pub fn rows(collection: &Collection) -> Result<Vec<Row>, BadProfile> {
    let row = |(key, distribution): (WorkKey, Distribution)| {
        let bad = |why| BadProfile { what: format!("{} on {}", key.signature, key.kind), why };
        let sketch = distribution.sketch().map_err(bad)?;
        Ok(Row {
            count: distribution.count,
            seconds: seconds(sketch.median_ns()),
            low: seconds(sketch.quantile_ns(0.05)),
            high: seconds(sketch.quantile_ns(0.95)),
            ln_spread: sketch.ln_spread(),
            first_seen: distribution.first_seen,
            last_seen: distribution.last_seen,
            key,
        })
    };
    collection.works()?.into_iter().map(row).collect()
}

/// Columns of the table.
pub const COLUMNS: [&str; 10] =
    ["kind", "signature", "phase", "software", "count", "seconds", "low", "high", "first_seen", "last_seen"];

/// Rows as CSV, with a head.
pub fn csv(rows: &[Row]) -> String {
    let mut out = COLUMNS.join(",") + "\n";
    for row in rows {
        let phase = MeasuredPhase::from(row.key.phase).word();
        let texts = [&row.key.kind, &row.key.signature, phase, &row.key.software].map(quoted);
        let (times, seen) = ([row.seconds, row.low, row.high], [row.first_seen, row.last_seen]);
        let [seconds, low, high] = times;
        let _ = writeln!(out, "{},{},{seconds},{low},{high},{},{}", texts.join(","), row.count, seen[0], seen[1]);
    }
    out
}

/// A text as a field of CSV (RFC 4180).
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}
