//! `adaptis profiles import`.

use super::sources;
use super::store::{Into, bad, merge, merged_text, read};
use crate::{failure, files, values};
use adaptis_coordinator::profiles::account::{Account, Collection};
use adaptis_coordinator::profiles::content_of;
use adaptis_coordinator::profiles::doubt::doubts;
use adaptis_coordinator::profiles::import::{Format, Given, Unit, detect, import};
use adaptis_coordinator::profiles::kind::kind_of;
use adaptis_coordinator::profiles::library::FILE;
use adaptis_coordinator::profiles::sailor::Facts;
use adaptis_coordinator::profiles::straggler;
use adaptis_executor::preset::card::Card;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Keeps what others measured.
///
/// sailor: MODEL.GPU.json, seconds. aceso: MODEL_mbs1_tp1_algo0.csv, a row per operator. straggler: a trace of
/// StragglerAnalysis, seconds, of which each chunk of the pipeline is a layer. adaptis: what `profiles export` writes. The
/// format is told by the file where it is plain. What a file does not say is asked for and never guessed: the unit of its
/// times, the kind of GPU, how its backward splits into the gradients of input and weights (all of an embedding's is the
/// weights': tokens have no gradient). One file is one measurement: imported again with other arguments, or under another
/// name that says another thing, it takes the place of what it was; `adaptis profiles list --sources` tells how each was
/// read, `adaptis profiles remove` takes it out.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  adaptis profiles import OPT-30.A100-40.json --split-backward 0.5:0.5
  adaptis profiles import gpt_1_3B_mbs1_tp1_algo0.csv --unit us --kind v100-32g --split-backward 0.55:0.45
  adaptis profiles import profiles.json --into project/profiles")]
pub struct Arguments {
    /// The files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    into: Into,
    /// Whose format
    #[arg(long, value_enum)]
    format: Option<FormatName>,
    /// Unit of the files' times
    #[arg(long, value_enum)]
    unit: Option<UnitName>,
    /// Kind of GPU that the files are of: card and memory, as in v100-32g
    #[arg(long, value_name = "KIND", value_parser = values::text)]
    kind: Option<String>,
    /// The kind is one that no profile in the store is of and no table knows
    #[arg(long, requires = "kind")]
    new_kind: bool,
    /// Shares of the input gradient and of the weight gradient in a backward, as in 0.5:0.5
    #[arg(long, value_name = "I:W", value_parser = split, allow_hyphen_values = true)]
    split_backward: Option<f64>,
    /// Driver, library versions, power limit that the files were measured with: times of other software are kept apart
    #[arg(long, value_name = "TEXT", default_value = "")]
    software: String,
    /// Number format of a Sailor file's model, for its signatures, as in bf16
    #[arg(long, value_name = "NAME", value_parser = values::text)]
    dtype: Option<String>,
    /// Tokens of a Sailor file's sequences, for its signatures
    #[arg(long, value_name = "TOKENS", value_parser = values::whole(1..=u64::MAX), allow_negative_numbers = true)]
    sequence: Option<u64>,
    /// What a trace is of, for its signatures: traces of one model are compared. Else each has signatures of its own
    #[arg(long, value_name = "NAME", value_parser = values::text)]
    model: Option<String>,
    /// Print {"into", "merged": [{"id", "name", "how", "samples", "profiles", "became": "new" | "replaced" | "known",
    /// ..}], "doubts": [{"id", "name", "says", "kind", "type", "factor", "outside", "of"}]}
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FormatName {
    /// MODEL.GPU.json
    Sailor,
    /// MODEL_mbs1_tp1_algo0.csv
    Aceso,
    /// A trace of StragglerAnalysis, Parquet
    Straggler,
    /// adaptis.profiles/1
    Adaptis,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum UnitName {
    /// Seconds
    S,
    /// Milliseconds
    Ms,
    /// Microseconds
    Us,
    /// Nanoseconds
    Ns,
}

/// The input gradient's share by `I:W`.
fn split(text: &str) -> Result<f64, String> {
    let share = |text: &str| text.trim().parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    let shares = text.split_once(':').and_then(|(input, weight)| Some((share(input)?, share(weight)?)));
    let (input, _) = shares
        .filter(|(input, weight)| (input + weight - 1.0).abs() < 1e-6)
        .ok_or("write the shares of input and weight gradient, which add up to 1, as in 0.5:0.5")?;
    Ok(input)
}

/// Whether a file begins as Parquet does.
fn is_parquet(path: &Path) -> bool {
    let mut start = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok_and(|()| straggler::is_one(&start))
}

pub fn run(arguments: Arguments) -> Result<()> {
    let into = arguments.into.path()?;
    let known = if into.join(FILE).is_file() { read(&into.join(FILE))? } else { Collection::default() };
    if let Some(kind) = arguments.kind.as_ref().filter(|_| !arguments.new_kind) {
        check_kind(kind, &known).map_err(failure::usage)?;
    }
    let given = Given {
        unit: arguments.unit.map(|unit| match unit {
            UnitName::S => Unit::Seconds,
            UnitName::Ms => Unit::Milliseconds,
            UnitName::Us => Unit::Microseconds,
            UnitName::Ns => Unit::Nanoseconds,
        }),
        kind: arguments.kind.clone(),
        split_backward: arguments.split_backward,
        software: arguments.software.clone(),
        facts: Facts { dtype: arguments.dtype.clone(), sequence: arguments.sequence },
        model: arguments.model.clone(),
    };
    let mut collection = Collection::default();
    // What was read of each file, by its bytes.
    let mut read_now: BTreeMap<String, (&Path, BTreeSet<String>)> = BTreeMap::new();
    for path in &arguments.files {
        let (content, found) = one(path, arguments.format, &given)?;
        let ids: BTreeSet<String> = found.accounts().map(|account| account.source.id.clone()).collect();
        if let Some((other, read)) = read_now.get(&content) {
            let [path, other] = [path.as_path(), other].map(Path::display);
            if *read != ids {
                return Err(failure::usage(format!(
                    "{path} holds the same bytes as {other} and would be taken for another measurement: one of them is not \
                     what its name says; import the one that is"
                )));
            }
            files::say(&format!("adaptis: {path} holds the same bytes as {other}: it is kept once"));
            continue;
        }
        read_now.insert(content, (path, ids));
        collection.take_all(found);
    }
    let read_now: BTreeSet<String> = read_now.into_keys().collect();
    if arguments.kind.is_none() {
        let kinds: BTreeSet<&str> = collection.accounts().flat_map(sources::kinds).collect();
        for kind in kinds.into_iter().filter(|kind| check_kind(kind, &known).is_err()) {
            files::say(&format!(
                "adaptis: {kind}: no profile in the store and no table knows this kind, which a file's name says; if that is a \
                 slip, take it out again (adaptis profiles remove) and say which it is with --kind"
            ));
        }
    }
    let doubts = doubted(&into, known, &collection, &read_now)?;
    let merged = merge(&into, collection, &read_now)?;
    for doubt in &doubts {
        let [id, name, says] = ["id", "name", "says"].map(|key| doubt[key].as_str().unwrap_or_default());
        let store = into.display();
        files::say(&format!(
            "adaptis: {name}: {says}; is it of the model and the card that its name says? It is kept; `adaptis profiles \
             remove {id} --store {store}` takes it out"
        ));
    }
    match arguments.json {
        true => {
            files::print(&format!("{:#}\n", serde_json::json!({ "into": into, "merged": merged, "doubts": doubts })))
        }
        false => files::print(&merged_text(&into, &merged)),
    }
}

/// What does not fit to what is known, which with that is told: each new file is looked at beside all others.
/// What an export of profiles brings was looked at where it was read.
fn doubted(
    into: &Path,
    known: Collection,
    new: &Collection,
    read_now: &BTreeSet<String>,
) -> Result<Vec<serde_json::Value>> {
    let is_known = |account: &Account| known.accounts().any(|of| of.source.id == account.source.id);
    let is_new = |account: &&Account| read_now.contains(account.source.origin()) && !is_known(account);
    let fresh: Vec<&Account> = new.accounts().filter(is_new).collect();
    let mut all = known.clone();
    all.take_all(new.clone());
    let mut rows = Vec::new();
    for account in fresh {
        let (id, name) = (&account.source.id, &account.source.name);
        for of in doubts(&all, account).map_err(|error| bad(into, error))? {
            rows.push(serde_json::json!({
                "id": id, "name": name, "says": of.to_string(), "kind": of.kind, "type": of.layer_type, "factor": of.factor, "outside": of.outside, "of": of.of
            }));
        }
    }
    Ok(rows)
}

/// What a file tells, with the digest of its bytes.
fn one(path: &Path, format: Option<FormatName>, given: &Given) -> Result<(String, Collection)> {
    let wrong = |why: &dyn std::fmt::Display| failure::usage(format!("{}: {why}", path.display()));
    let now = adaptis_coordinator::profiles::now();
    if matches!(format, Some(FormatName::Straggler)) || (format.is_none() && is_parquet(path)) {
        let account = straggler::import(path, given, now).map_err(|error| wrong(&error))?;
        let mut collection = Collection::default();
        let content = account.source.origin().to_owned();
        collection.take(account);
        return Ok((content, collection));
    }
    let text = files::text(path)?;
    let format = match format {
        Some(FormatName::Straggler) => unreachable!("a trace is no text"),
        Some(FormatName::Sailor) => Format::Sailor,
        Some(FormatName::Aceso) => Format::Aceso,
        Some(FormatName::Adaptis) => Format::Adaptis,
        None => detect(&text).map_err(|error| wrong(&error))?,
    };
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let collection = import(&name, &text, format, given, now).map_err(|error| wrong(&error))?;
    Ok((content_of(text.as_bytes()), collection))
}

/// Whether a kind that was given is one that somebody knows: a slip of the pen would be a kind of its own for good.
fn check_kind(given: &str, store: &Collection) -> Result<(), String> {
    let kind = kind_of(given);
    let mut known: BTreeSet<&str> = store.accounts().flat_map(sources::kinds).collect();
    for kind in Card::kinds() {
        known.insert(kind);
    }
    // A group is known where its card is.
    let group = kind.split_once('x').filter(|(count, _)| count.parse::<u32>().is_ok());
    let card = group.map_or(kind.as_str(), |(_, card)| card);
    if known.contains(kind.as_str()) || known.contains(card) {
        return Ok(());
    }
    let near = adaptis_plan::json::similar(card, known.iter().copied());
    let near = near.map_or_else(String::new, |near| format!("did you mean `{near}`? "));
    let known = known.into_iter().collect::<Vec<_>>().join(", ");
    Err(format!("--kind {given}: {near}Known are {known}; if it is a new one, add --new-kind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_somebody_knows_are_taken() {
        let store = Collection::default();
        for kind in ["v100-32g", "V100-32", "gh-96g", "cpu", "4xA100-40", "rtx4090-24g"] {
            assert_eq!(check_kind(kind, &store), Ok(()), "{kind}");
        }
        for (kind, near) in [("v10-32g", "v100-32g"), ("h10-80g", "h100-80g"), ("4xl40-48g", "l40s-48g")] {
            let error = check_kind(kind, &store).expect_err(kind);
            assert!(error.contains(&format!("did you mean `{near}`")) && error.contains("--new-kind"), "{error}");
        }
    }

    #[test]
    fn shares_add_up() {
        assert_eq!(split("0.55:0.45"), Ok(0.55));
        assert_eq!(split("0:1"), Ok(0.0));
        for text in ["0.5", "0.5:0.6", "-0.5:1.5", "a:b", "nan:1", ""] {
            assert!(split(text).is_err(), "{text}");
        }
    }
}
