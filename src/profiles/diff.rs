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
/// The interval comes from the spread and the number of samples on either side, and from how differently the profiles of a
/// kind moved: two runs of one thing differ by more than their samples do. There is none below four samples on either side.
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

/// Standard deviation of normal values over the median of their distances from the middle.
const MAD_SD: f64 = 1.4826;
/// Profiles of a kind that tell how its ratios scatter.
const SCATTER_MIN: usize = 8;

struct Change {
    a: Row,
    b: Row,
    ratio: f64,
    interval: Option<(f64, f64)>,
    /// Standard deviation of the ratio's logarithm by the samples alone.
    sampling_sd: Option<f64>,
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
    widen(&mut changes);
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

/// Widens intervals by what runs of one thing differ: per kind, the scatter of its ratios around their middle, less what the
/// samples explain. The middle half tells it, so that a few profiles that did change do not. A kind with few profiles is
/// taken to scatter as all kinds do.
fn widen(changes: &mut [Change]) {
    let mut kinds: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for change in changes.iter() {
        if let Some(sd) = change.sampling_sd {
            kinds.entry(change.a.key.kind.clone()).or_default().push((change.ratio.ln(), sd));
        }
    }
    for found in kinds.values_mut() {
        let middle = median(found.iter().map(|(ln_ratio, _)| *ln_ratio));
        found.iter_mut().for_each(|(ln_ratio, _)| *ln_ratio -= middle);
    }
    let all: Vec<(f64, f64)> = kinds.values().flatten().copied().collect();
    let of_all = between_sd(&all);
    let by_kind: BTreeMap<String, f64> = kinds
        .into_iter()
        .map(|(kind, found)| (kind, if found.len() >= SCATTER_MIN { between_sd(&found) } else { of_all }))
        .collect();
    for change in changes {
        let sd = by_kind.get(&change.a.key.kind).copied().unwrap_or(0.0);
        change.widen(sd);
    }
}

/// The scatter that samples do not explain, of ratios less their middle with what samples explain of each.
fn between_sd(found: &[(f64, f64)]) -> f64 {
    let scatter = MAD_SD * median(found.iter().map(|(off, _)| off.abs()));
    let sampling = median(found.iter().map(|(_, sd)| *sd));
    (scatter * scatter - sampling * sampling).max(0.0).sqrt()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
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
        let sampling_sd = sd(&a).zip(sd(&b)).map(|(a, b)| a.hypot(b));
        let mut change = Change { ratio: ln_ratio.exp(), interval: None, sampling_sd, a, b };
        change.widen(0.0);
        change
    }

    /// The interval, where runs differ by so much besides.
    fn widen(&mut self, between_sd: f64) {
        let ln_ratio = self.ratio.ln();
        self.interval = self.sampling_sd.map(|sampling_sd| {
            let width = CENTRAL_90_SD * sampling_sd.hypot(between_sd);
            ((ln_ratio - width).exp(), (ln_ratio + width).exp())
        });
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

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_coordinator::profiles::account::WorkKey;
    use adaptis_proto::sample::Phase;

    fn row(kind: &str, at: u64, seconds: f64) -> Row {
        let (signature, kind, software) = (format!("mlp/{at}"), kind.to_owned(), String::new());
        let key = WorkKey { signature, kind, phase: Phase::Forward, software };
        let (low, high) = (seconds, seconds);
        Row { key, count: 400, seconds, low, high, ln_spread: Some(0.02), first_seen: 0, last_seen: 0 }
    }

    /// Of two runs of the same things, 3% apart at random where their samples are known to a tenth of a percent.
    #[test]
    fn what_differs_between_runs_is_in_the_intervals() {
        let mut state = 7_u64;
        let mut normal = || {
            let uniform = |state: &mut u64| {
                *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (*state >> 33) as f64 / (1_u64 << 31) as f64
            };
            (0..12).map(|_| uniform(&mut state)).sum::<f64>() - 6.0
        };
        let mut changes: Vec<Change> =
            (0..400).map(|at| Change::of(row("k", at, 0.01), row("k", at, 0.01 * (0.03 * normal()).exp()))).collect();
        let excluding = |changes: &[Change]| {
            changes.iter().filter(|of| of.interval.is_some_and(|(low, high)| low > 1.0 || high < 1.0)).count()
        };
        assert!(excluding(&changes) > 300, "by the samples alone");
        widen(&mut changes);
        let found = excluding(&changes);
        assert!((20..=60).contains(&found), "{found} of 400 exclude 1, and 40 should");
        // One that did change is still told among many that did not.
        changes.push(Change::of(row("k", 400, 0.01), row("k", 400, 0.013)));
        widen(&mut changes);
        assert!(changes[400].interval.is_some_and(|(low, _)| low > 1.1));
    }
}
