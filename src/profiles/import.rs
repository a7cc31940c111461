//! `adaptis profiles import`.

use super::store::{Into, merge, merged_text};
use crate::{failure, files, values};
use adaptis_coordinator::profiles::account::Collection;
use adaptis_coordinator::profiles::import::{Format, Given, Unit, detect, import};
use adaptis_coordinator::profiles::sailor::Facts;
use adaptis_coordinator::profiles::straggler;
use anyhow::Result;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Keeps what others measured.
///
/// sailor: MODEL.GPU.json, seconds. aceso: MODEL_mbs1_tp1_algo0.csv, a row per operator. straggler: a trace of
/// StragglerAnalysis, seconds, of which each chunk of the pipeline is a layer. adaptis: what `profiles export` writes. The format is told by the file where it is plain. What a file does not say is asked for and never guessed: the
/// unit of its times, the kind of GPU, how its backward splits into the gradients of input and weights (all of an
/// embedding's is the weights': tokens have no gradient). A file that is imported again, with other arguments, takes the
/// place of what it was.
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
    /// Print {"into", "merged": [{"id", "name", "how", "samples", "profiles", "became"}]}
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
    };
    let now = adaptis_coordinator::profiles::now();
    let mut collection = Collection::default();
    for path in &arguments.files {
        let wrong = |why: &dyn std::fmt::Display| failure::usage(format!("{}: {why}", path.display()));
        if matches!(arguments.format, Some(FormatName::Straggler)) || (arguments.format.is_none() && is_parquet(path)) {
            collection.take(straggler::import(path, &given, now).map_err(|error| wrong(&error))?);
            continue;
        }
        let text = files::text(path)?;
        let format = match arguments.format {
            Some(FormatName::Straggler) => unreachable!("a trace is no text"),
            Some(FormatName::Sailor) => Format::Sailor,
            Some(FormatName::Aceso) => Format::Aceso,
            Some(FormatName::Adaptis) => Format::Adaptis,
            None => detect(&text).ok_or_else(|| {
                wrong(&"its format is not plain: say it with --format sailor, aceso, straggler or adaptis")
            })?,
        };
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        collection.take_all(import(&name, &text, format, &given, now).map_err(|error| wrong(&error))?);
    }
    let merged = merge(&into, collection)?;
    match arguments.json {
        true => files::print(&format!("{:#}\n", serde_json::json!({ "into": into, "merged": merged }))),
        false => files::print(&merged_text(&into, &merged)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        assert_eq!(split("0.55:0.45"), Ok(0.55));
        assert_eq!(split("0:1"), Ok(0.0));
        for text in ["0.5", "0.5:0.6", "-0.5:1.5", "a:b", "nan:1", ""] {
            assert!(split(text).is_err(), "{text}");
        }
    }
}
