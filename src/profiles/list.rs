//! `adaptis profiles list`.

use super::store::{Store, bad};
use super::text;
use crate::files;
use adaptis_coordinator::profiles::MeasuredPhase;
use adaptis_coordinator::profiles::account::Account;
use adaptis_coordinator::profiles::exchange::{Row, rows};
use anyhow::Result;

/// A row per signature, kind of device and phase: samples, median, spread, when it was seen last. With --sources a row per
/// run and imported file: when it came, how its bytes were read, of which kinds and software it tells.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis profiles list --kind a100-40g
  adaptis profiles list --sources                     # where all of it comes from
  adaptis profiles list --store RUN --signature attention --json")]
pub struct Arguments {
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    filter: Filter,
    /// List where the profiles come from, instead of the profiles
    #[arg(long)]
    sources: bool,
    /// Print {"profiles": [{"kind", "signature", "phase", "software", "count", "seconds", "low", "high", ..}], "sources": [{"id", "name",
    /// "how", "samples", "first_seen", "last_seen", "merged", "profiles", "kinds", "software"}]}
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
    // A source without works, of links or memory alone, is nobody's to filter.
    let is_told = |account: &&Account| {
        let mut keys = account.works.keys();
        account.works.is_empty() || keys.any(|key| arguments.filter.takes(&key.kind, &key.signature))
    };
    let told: Vec<&Account> = collection.accounts().filter(is_told).collect();
    if arguments.sources && !arguments.json {
        return files::print(&super::sources::table(told));
    }
    if arguments.json {
        let sources = told.iter().map(|account| super::sources::json(account));
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
