//! `adaptis profiles remove`.

use super::store::{failed, place, read};
use super::{sources, text};
use crate::{failure, files};
use adaptis_coordinator::profiles::account::{Account, Collection};
use adaptis_coordinator::profiles::library::{FILE, Library};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Takes sources out of a store, each with all that it told.
///
/// Without --yes it shows what would go and removes nothing. A source that another store or the run's own folder still has
/// comes back when that is merged again.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis profiles list --sources                             # their ids and names
  adaptis profiles remove OPT-30.A100-40.json                 # what would go
  adaptis profiles remove 6f1b2c3d4e --store project/profiles --yes")]
pub struct Arguments {
    /// Sources: their names, or the beginnings of their ids
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// The store, a folder of profiles [default: ~/.config/adaptis]
    #[arg(long, env = "ADAPTIS_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    /// Remove them
    #[arg(long)]
    yes: bool,
    /// Print {"store", "is_removed", "sources": [{"id", "name", "how", "samples", "profiles", "kinds", ..}]}
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let named = arguments.store.as_deref().filter(|path| !path.as_os_str().is_empty());
    let store = place(named, "--store")?;
    if !store.join(FILE).is_file() {
        let problem = match store.exists() {
            true => {
                "no store of profiles: a run's folder and an export keep what they hold; name the store it was merged into"
            }
            false => "nothing there: name a store with --store",
        };
        return Err(failure::usage(format!("{}: {problem}", store.display())));
    }
    let collection = read(&store.join(FILE))?;
    let mut wanted: Vec<&Account> = Vec::new();
    for name in &arguments.sources {
        let found = find(&collection, name).map_err(|why| failure::usage(format!("{}: {why}", store.display())))?;
        if wanted.iter().all(|known| known.source.id != found.source.id) {
            wanted.push(found);
        }
    }
    let removed;
    let went: Vec<&Account> = if arguments.yes {
        let ids: Vec<&str> = wanted.iter().map(|account| account.source.id.as_str()).collect();
        removed = Library::open(&store).and_then(|mut library| library.remove(&ids)).map_err(failed)?;
        if removed.len() < ids.len() {
            return Err(failure::negative(format!(
                "{}: {} of {} sources went; another process took out or replaced the others meanwhile: look at `adaptis \
                 profiles list --sources`",
                store.display(),
                removed.len(),
                ids.len()
            )));
        }
        removed.iter().collect()
    } else {
        wanted
    };
    if arguments.json {
        let rows: Vec<_> = went.iter().map(|account| sources::json(account)).collect();
        let answer = serde_json::json!({ "store": store, "is_removed": arguments.yes, "sources": rows });
        return files::print(&format!("{answer:#}\n"));
    }
    files::print(&words(&store, &went, arguments.yes))
}

/// The one source that is meant.
fn find<'a>(collection: &'a Collection, wanted: &str) -> Result<&'a Account, String> {
    let all: Vec<&Account> = collection.accounts().collect();
    let named: Vec<&Account> = all.iter().copied().filter(|account| account.source.name == wanted).collect();
    let exact = all.iter().copied().find(|account| account.source.id == wanted);
    let begins = |account: &&Account| !wanted.is_empty() && account.source.id.starts_with(wanted);
    let found = match (exact, named.is_empty()) {
        (Some(exact), _) => vec![exact],
        (None, false) => named,
        (None, true) => all.iter().copied().filter(begins).collect(),
    };
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            let near = adaptis_plan::json::nearest(wanted, all.iter().map(|account| account.source.name.as_str()));
            let near = near.map_or_else(String::new, |near| format!("; the nearest name is `{near}`"));
            Err(format!(
                "no source is called `{wanted}`, and no id begins so{near}; `adaptis profiles list --sources` has all"
            ))
        }
        several => {
            let ids: Vec<String> = several.iter().map(|account| account.source.id.clone()).collect();
            Err(format!("`{wanted}` are {} sources: give an id of {}", several.len(), ids.join(", ")))
        }
    }
}

fn words(store: &Path, went: &[&Account], is_removed: bool) -> String {
    let mut out = sources::table(went.iter().copied());
    let profiles: usize = went.iter().map(|account| account.works.len()).sum();
    let samples = went.iter().fold(0_u64, |sum, account| sum.saturating_add(account.source.samples));
    let all = format!("{} with {profiles} profiles, {samples} samples", text::count(went.len(), "source"));
    out += &match is_removed {
        true => format!("{all}: removed from {}\n", store.display()),
        false => format!("{all} would go from {}; nothing was removed: add --yes\n", store.display()),
    };
    out
}
