//! Which store: the one that is named, else `ADAPTIS_STORE`, else the user's own.

use crate::failure;
use adaptis_coordinator::profiles::LibraryError;
use adaptis_coordinator::profiles::account::{Account, Collection};
use adaptis_coordinator::profiles::library::{self, Library, Merged};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Names the store where no argument does.
const VARIABLE: &str = "ADAPTIS_STORE";

/// Where profiles are read.
#[derive(clap::Args)]
pub struct Store {
    /// The store: a folder of profiles, a run's folder, or an export as JSON [default: ~/.config/adaptis]
    #[arg(long, env = VARIABLE, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// Where profiles are kept.
#[derive(clap::Args)]
pub struct Into {
    /// The store to keep them in, made if it is not there [default: ~/.config/adaptis]
    #[arg(long, env = VARIABLE, value_name = "DIR")]
    into: Option<PathBuf>,
}

impl Store {
    /// An argument names the store.
    pub fn is_argument(&self) -> bool {
        self.store.is_some() && self.store.as_deref().map(Path::as_os_str) != std::env::var_os(VARIABLE).as_deref()
    }

    /// The store that is named, if one is.
    pub fn named(&self) -> Option<&Path> {
        self.store.as_deref().filter(|path| !path.as_os_str().is_empty())
    }

    /// Where it is, by name or by default.
    pub fn path(&self) -> Result<PathBuf> {
        place(self.named(), "--store")
    }

    /// All that is in it.
    pub fn read(&self) -> Result<(PathBuf, Collection)> {
        let path = self.path()?;
        let collection = read(&path)?;
        Ok((path, collection))
    }
}

impl Into {
    /// Where it is.
    pub fn path(&self) -> Result<PathBuf> {
        place(self.into.as_deref().filter(|path| !path.as_os_str().is_empty()), "--into")
    }
}

/// The folder that is named, else the user's own.
pub fn place(named: Option<&Path>, argument: &str) -> Result<PathBuf> {
    let own = || {
        let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
        config.map(|config| config.join("adaptis"))
    };
    named.map(Path::to_owned).or_else(own).ok_or_else(|| {
        failure::usage(format!("{argument}: there is no home folder to keep profiles in: name a folder"))
    })
}

/// The user's own store, if it is there.
pub fn own_if_there() -> Option<PathBuf> {
    let path = place(None, "--store").ok()?;
    path.join(library::FILE).is_file().then_some(path)
}

/// All that is in a store, run or export.
pub fn read(path: &Path) -> Result<Collection> {
    library::read(path).map_err(failed)
}

/// Merges all accounts of a collection into a store; those of some origins are files that were read just now.
pub fn merge(into: &Path, collection: Collection, read_now: &BTreeSet<String>) -> Result<Vec<serde_json::Value>> {
    let accounts = collection.into_accounts();
    let mut library = Library::open(into).map_err(failed)?;
    let merged = library.import(&accounts, read_now, adaptis_coordinator::profiles::now()).map_err(failed)?;
    Ok(accounts.iter().zip(&merged).map(|(account, merged)| row(account, merged)).collect())
}

fn row(account: &Account, merged: &Merged) -> serde_json::Value {
    let mut row = serde_json::json!({
        "id": account.source.id,
        "name": account.source.name,
        "how": account.source.how,
        "samples": account.source.samples,
        "samples_before": 0,
        "profiles": account.works.len(),
    });
    let (became, other) = match merged {
        Merged::New => ("new", None),
        Merged::Grown { from } => {
            row["samples_before"] = (*from).into();
            ("grown", None)
        }
        Merged::Replaced { former } => ("replaced", Some(("former", former))),
        Merged::Known { known } => ("known", Some(("known", known))),
        Merged::Outdated { by } => ("outdated", Some(("by", by))),
    };
    row["became"] = became.into();
    if let Some((field, source)) = other {
        row[field] = serde_json::json!({ "id": source.id, "name": source.name, "how": source.how });
    }
    row
}

/// What was merged, in words.
pub fn merged_text(into: &Path, merged: &[serde_json::Value]) -> String {
    let mut out = String::new();
    for row in merged {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let (name, profiles, samples) = (text(&row["name"]), &row["profiles"], &row["samples"]);
        out += &match row["became"].as_str() {
            Some("new") => format!("{name}: {profiles} profiles, {samples} samples\n"),
            Some("grown") => {
                format!("{name}: {profiles} profiles, {samples} samples, before {}\n", row["samples_before"])
            }
            Some("replaced") => format!(
                "{name}: {profiles} profiles, {samples} samples; they take the place of {}, the same bytes read otherwise: \
                 {}\n",
                text(&row["former"]["name"]),
                text(&row["former"]["how"])
            ),
            Some("outdated") => format!(
                "{name}: left out; {}, the same bytes, was read otherwise since, and that counts: {}\n",
                text(&row["by"]["name"]),
                text(&row["by"]["how"])
            ),
            _ if row["known"]["name"] == row["name"] => format!("{name}: known already, nothing to add\n"),
            _ => format!("{name}: known already as {}, nothing to add\n", text(&row["known"]["name"])),
        };
    }
    out + &format!("kept in {}\n", into.display())
}

/// The end of a command because of a store.
pub fn failed(error: LibraryError) -> anyhow::Error {
    match error.is_of_file() {
        true => failure::usage(error),
        false => failure::environment(error),
    }
}

/// The end of a command because of a profile in a store.
pub fn bad(path: &Path, error: impl std::fmt::Display) -> anyhow::Error {
    failure::usage(format!("{}: {error}; take a copy that is whole", path.display()))
}
