//! `adaptis profiles export`.

use super::list::Filter;
use super::store::{Store, bad};
use crate::{failure, files};
use adaptis_coordinator::profiles::columns::parquet;
use adaptis_coordinator::profiles::exchange::{csv, rows, write};
use anyhow::Result;
use std::path::PathBuf;

/// Writes all profiles.
///
/// json: adaptis.profiles/1 with everything, sources and distributions included; `profiles import` or `merge` of it gives
/// the same profiles again. csv and parquet: a row per kind, signature and phase over all sources, for people and other
/// tools: samples, median, 5th and 95th percentile in seconds.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis profiles export --to json --out profiles.json
  adaptis profiles export --to parquet --out profiles.parquet
  adaptis profiles export --to csv --store RUN --kind a100-40g > a100.csv")]
pub struct Arguments {
    /// The format
    #[arg(long, value_enum)]
    to: Target,
    /// Where to; standard output without it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    filter: Filter,
    /// Print {"format", "profiles", "sources", "out"} about what was written
    #[arg(long, requires = "out")]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Target {
    /// adaptis.profiles/1
    Json,
    /// A table
    Csv,
    /// The same table in columns
    Parquet,
}

pub fn run(arguments: Arguments) -> Result<()> {
    if matches!((arguments.to, &arguments.out), (Target::Parquet, None)) {
        return Err(failure::usage("--to parquet: name a file with --out: it is no text to print"));
    }
    let named = arguments.store.named().filter(|path| path.is_file());
    files::distinct(&[("--store", named), ("--out", arguments.out.as_deref())])?;
    let (path, mut collection) = arguments.store.read()?;
    collection.retain(|kind, signature| arguments.filter.takes(kind, signature));
    let bad = |error| bad(&path, error);
    let (name, bytes) = match arguments.to {
        Target::Json => ("json", write(&collection).map_err(bad)?.into_bytes()),
        Target::Csv => ("csv", csv(&rows(&collection).map_err(bad)?).into_bytes()),
        Target::Parquet => {
            let columns = parquet(&rows(&collection).map_err(bad)?);
            ("parquet", columns.map_err(|error| failure::environment(format!("the table was not made: {error}")))?)
        }
    };
    let Some(out) = &arguments.out else {
        return files::print(&String::from_utf8_lossy(&bytes));
    };
    files::write(out, &bytes)?;
    if arguments.json {
        let profiles = collection.works().map_err(bad)?.len();
        let sources = collection.accounts().count();
        let answer = serde_json::json!({ "format": name, "profiles": profiles, "sources": sources, "out": out });
        return files::print(&format!("{answer:#}\n"));
    }
    Ok(())
}
