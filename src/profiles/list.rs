//! `adaptis profiles list`.

use super::store::{Store, bad};
use super::text;
use crate::files;
use adaptis_coordinator::profiles::MeasuredPhase;
use adaptis_coordinator::profiles::exchange::{Row, rows};
use anyhow::Result;

/// A row per signature, kind of device and phase: samples, median, spread, when it was seen last.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis profiles list --kind a100-40g
  adaptis profiles list --store RUN --signature attention --json")]
pub struct Arguments {
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    filter: Filter,
    /// Print {"profiles": [{"kind", "signature", "phase", "software", "count", "seconds", "low", "high", ..}], "sources"}
    #[arg(long)]
    json: bool,
}

/// Which profiles.
#[derive(clap::Args)]
pub struct Filter {
    /// Only this kind of device
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Only signatures that contain this
    #[arg(long, value_name = "TEXT")]
    signature: Option<String>,
}

impl Filter {
    /// Whether a profile is wanted.
    pub fn takes(&self, kind: &str, signature: &str) -> bool {
        let of_kind = self.kind.as_deref().is_none_or(|wanted| wanted == kind);
        of_kind && self.signature.as_deref().is_none_or(|part| signature.contains(part))
    }
}

pub fn run(arguments: Arguments) -> Result<()> {
    let (path, collection) = arguments.store.read()?;
    let mut rows = rows(&collection).map_err(|error| bad(&path, error))?;
    rows.retain(|row| arguments.filter.takes(&row.key.kind, &row.key.signature));
    if arguments.json {
        let sources = collection.accounts().map(|account| super::show::source(&account.source));
        let answer = serde_json::json!({
            "store": path,
            "profiles": rows.iter().map(json).collect::<Vec<_>>(),
            "sources": sources.collect::<Vec<_>>(),
        });
        return files::print(&format!("{answer:#}\n"));
    }
    if rows.is_empty() {
        return files::print(&format!("no such profiles in {}\n", path.display()));
    }
    files::print(&table(&rows))
}

/// A row as JSON.
pub fn json(row: &Row) -> serde_json::Value {
    serde_json::json!({
        "kind": row.key.kind,
        "signature": row.key.signature,
        "phase": MeasuredPhase::from(row.key.phase).word(),
        "software": row.key.software,
        "count": row.count,
        "seconds": row.seconds,
        "low": row.low,
        "high": row.high,
        "spread": row.ln_spread,
        "first_seen": row.first_seen,
        "last_seen": row.last_seen,
    })
}

/// Rows as a table.
pub fn table(rows: &[Row]) -> String {
    let has_software = rows.iter().any(|row| !row.key.software.is_empty());
    let head = ["signature", "kind", "phase", "samples", "median", "spread", "seen last", "software"];
    let are_numbers = [false, false, false, true, true, true, false, false];
    let columns = if has_software { head.len() } else { head.len() - 1 };
    let cells = |row: &Row| {
        let mut cells = vec![
            row.key.signature.clone(),
            row.key.kind.clone(),
            MeasuredPhase::from(row.key.phase).word().to_owned(),
            row.count.to_string(),
            text::time(row.seconds),
            row.ln_spread.map_or("-".to_owned(), |spread| format!("{:.1}%", spread * 100.0)),
            text::instant(row.last_seen),
            row.key.software.clone(),
        ];
        cells.truncate(columns);
        cells
    };
    text::table(&head[..columns], &are_numbers[..columns], &rows.iter().map(cells).collect::<Vec<_>>())
}
