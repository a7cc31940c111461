//! `adaptis profiles diff`.

use super::list::Filter;
use super::store::{bad, read};
use super::text;
use crate::files;
use adaptis_coordinator::profiles::MeasuredPhase;
use adaptis_coordinator::profiles::exchange::{Row, rows};
use anyhow::Result;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What takes longer in one store than in another: the ratio of the medians of every profile that both have, between
/// which it lies at 90%, sorted by what changed most; then what only one has.
///
/// The interval comes from the spread and the number of samples; there is none below four samples on either side.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis profiles diff RUN-OF-MAY RUN-OF-JUNE
  adaptis profiles diff ~/.config/adaptis RUN --kind h100-80g --json")]
pub struct Arguments {
    /// A store, a run's folder or an export: what the ratio is to
    a: PathBuf,
    /// Another one
    b: PathBuf,
    #[command(flatten)]
    filter: Filter,
    /// Compare profiles that differ in software too; else those of other software are other profiles
    #[arg(long)]
    any_software: bool,
    /// Print {"changed": [{"kind", "signature", "phase", "ratio", "low", "high", "a", "b"}], "only_a", "only_b"}
    #[arg(long)]
    json: bool,
}

/// Standard deviations from the middle of a normal distribution to the ends of the central 90%.
const CENTRAL_90_SD: f64 = 1.645;
/// Standard deviation of a median over that of a mean, for normal values.
const MEDIAN_SD: f64 = 1.2533;
/// Half of a bin of a sketch, as a part of the time: no median is better known.
const BIN_SD: f64 = 0.0005;

struct Change {
    a: Row,
    b: Row,
    ratio: f64,
    interval: Option<(f64, f64)>,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let a = side(&arguments, &arguments.a)?;
    let mut b = side(&arguments, &arguments.b)?;
    let (mut changes, mut only_a) = (Vec::new(), Vec::new());
    for (key, row) in a {
        match b.remove(&key) {
            Some(other) => changes.push(Change::of(row, other)),
            None => only_a.push(row),
        }
    }
    let only_b: Vec<Row> = b.into_values().collect();
    changes.sort_by(|a, b| b.ratio.ln().abs().total_cmp(&a.ratio.ln().abs()));
    if arguments.json {
        let rows = |rows: &[Row]| rows.iter().map(super::list::json).collect::<Vec<_>>();
        let answer = serde_json::json!({
            "changed": changes.iter().map(Change::json).collect::<Vec<_>>(),
            "only_a": rows(&only_a),
            "only_b": rows(&only_b),
        });
        return files::print(&format!("{answer:#}\n"));
    }
    files::print(&words(&arguments, &changes, &only_a, &only_b))
}

type Key = (String, String, &'static str, String);

fn side(arguments: &Arguments, path: &Path) -> Result<BTreeMap<Key, Row>> {
    let mut rows = rows(&read(path)?).map_err(|error| bad(path, error))?;
    rows.retain(|row| arguments.filter.takes(&row.key.kind, &row.key.signature));
    // Where the software does not count, the newest one does.
    rows.sort_by_key(|row| row.last_seen);
    let key = |row: &Row| {
        let software = if arguments.any_software { String::new() } else { row.key.software.clone() };
        let phase = MeasuredPhase::from(row.key.phase).word();
        (row.key.kind.clone(), row.key.signature.clone(), phase, software)
    };
    Ok(rows.into_iter().map(|row| (key(&row), row)).collect())
}

impl Change {
    fn of(a: Row, b: Row) -> Change {
        // A work below the clock's resolution counts as one nanosecond.
        let ln = |row: &Row| row.seconds.max(1e-9).ln();
        let ln_ratio = ln(&b) - ln(&a);
        let sd = |row: &Row| Some((MEDIAN_SD * row.ln_spread? / (row.count as f64).sqrt()).hypot(BIN_SD));
        let interval = sd(&a).zip(sd(&b)).map(|(a, b)| {
            let width = CENTRAL_90_SD * a.hypot(b);
            ((ln_ratio - width).exp(), (ln_ratio + width).exp())
        });
        Change { ratio: ln_ratio.exp(), interval, a, b }
    }

    fn json(&self) -> serde_json::Value {
        let side =
            |row: &Row| serde_json::json!({ "seconds": row.seconds, "count": row.count, "software": row.key.software });
        serde_json::json!({
            "kind": self.a.key.kind,
            "signature": self.a.key.signature,
            "phase": MeasuredPhase::from(self.a.key.phase).word(),
            "ratio": self.ratio,
            "low": self.interval.map(|interval| interval.0),
            "high": self.interval.map(|interval| interval.1),
            "a": side(&self.a),
            "b": side(&self.b),
        })
    }
}

fn words(arguments: &Arguments, changes: &[Change], only_a: &[Row], only_b: &[Row]) -> String {
    let (a, b) = (arguments.a.display(), arguments.b.display());
    let mut out = String::new();
    if changes.is_empty() {
        let _ = writeln!(out, "{a} and {b} have no profile in common");
    } else {
        let cells = |change: &Change| {
            vec![
                format!("{:.3}", change.ratio),
                change.interval.map_or("-".to_owned(), |(low, high)| format!("{low:.3} to {high:.3}")),
                text::time(change.a.seconds),
                text::time(change.b.seconds),
                change.a.count.to_string(),
                change.b.count.to_string(),
                change.a.key.kind.clone(),
                MeasuredPhase::from(change.a.key.phase).word().to_owned(),
                change.a.key.signature.clone(),
            ]
        };
        let head = ["ratio", "at 90%", "a", "b", "samples", "samples", "kind", "phase", "signature"];
        let are_numbers = [true, true, true, true, true, true, false, false, false];
        out += &text::table(&head, &are_numbers, &changes.iter().map(cells).collect::<Vec<_>>());
    }
    for (rows, path) in [(only_a, a), (only_b, b)] {
        if !rows.is_empty() {
            let _ = write!(out, "\nonly in {path}:\n{}", super::list::table(rows));
        }
    }
    out
}
