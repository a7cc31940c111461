//! `adaptis profiles merge`.

use super::store::{Into, merge, merged_text, read};
use crate::files;
use adaptis_coordinator::profiles::account::Collection;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Keeps what runs, stores and exports hold.
///
/// Every source, which is a run or an imported file, is kept apart with what it told. So to merge a thing twice, or along
/// two ways, counts it once, and a run that has gone on is merged again with what it measured since. Of two readings of one
/// imported file the later one counts. All is merged or nothing; two merges at once both count.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis profiles merge RUN                          # into the user's own store
  adaptis profiles merge --into project/profiles RUN OTHER-RUN old/profiles")]
pub struct Arguments {
    #[command(flatten)]
    into: Into,
    /// Run folders, stores, exports as JSON
    #[arg(required = true, value_name = "FROM")]
    from: Vec<PathBuf>,
    /// Print {"into", "merged": [{"id", "name", "how", "samples", "samples_before", "profiles", "became": "new" | "grown" |
    /// "replaced" | "known" | "outdated"}]}
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let into = arguments.into.path()?;
    let mut collection = Collection::default();
    for path in &arguments.from {
        collection.take_all(read(path)?);
    }
    let merged = merge(&into, collection, &BTreeSet::new())?;
    match arguments.json {
        true => files::print(&format!("{:#}\n", serde_json::json!({ "into": into, "merged": merged }))),
        false => files::print(&merged_text(&into, &merged)),
    }
}
