//! `adaptis profiles predict`.

use super::store;
use crate::{failure, files};
use adaptis_coordinator::profiles::account::Collection;
use adaptis_coordinator::profiles::cells::{self, AskedCell};
use adaptis_coordinator::profiles::evidence::{evidence, keep_comparable, measurements};
use adaptis_coordinator::profiles::gathered::{self, Text};
use adaptis_coordinator::profiles::library;
use adaptis_coordinator::profiles::sailor::Facts;
use adaptis_coordinator::profiles::{CannotPredict, Cell, Measurement, Prediction, Predictor};
use adaptis_proto::rates::Rates;
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What layers cost where they were never measured, with an interval in which nine of ten lie.
///
/// A cell is answered from what is nearest to it: the cell itself, the same layer with other microbatches or splits,
/// its other phases, other kinds of device in the ratio that the kinds have elsewhere. A kind on which nothing was measured
/// is taken to stand to others as what agents calibrated of both, where a store or a run keeps that; else as their mean.
/// `source` says which that was. The interval is as wide as the measurements, each predicted without itself, show that it
/// has to be, and of calibrated rates as wide as they miss.
///
/// Exit code 0: all are answered. 1: of some cells nothing is known; the others are answered. 2: a file is not of its
/// format.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  adaptis profiles predict --from OPT-30.A100-40.json OPT-30.V100-16.json --cells cells.json
  adaptis profiles predict --from profiles.json --cells cells.json --json
  adaptis profiles predict --from RUN ~/.config/adaptis --cells cells.json

cells.json:
  [ { \"kind\": \"a100-40g\", \"signature\": \"block/opt-30/b4/tp2\", \"phase\": \"forward\" },
    { \"kind\": \"A100-40\", \"model\": \"OPT-30\", \"microbatch\": 4, \"tp\": 2, \"layer\": 7, \"phase\": \"backward\" } ]

A layer of Sailor's files has the signature TYPE/MODEL/bMICROBATCH/tpN, without /tp1; TYPE is embedding, block, norm or
head.")]
pub struct Arguments {
    /// What was measured: files of Sailor, named MODEL.GPU.json, and of adaptis.profiles/1; stores; run folders
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    from: Vec<PathBuf>,
    /// What is asked for: a list of {"kind", "signature", "phase"}, or in Sailor's terms
    #[arg(long, value_name = "FILE")]
    cells: PathBuf,
    /// Print the list of cells, each with "seconds", "low", "high" and "source", or with "error"
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let is_store = |path: &&PathBuf| path.is_dir() || path.extension().is_some_and(|extension| extension == "db");
    let (stores, texts): (Vec<&PathBuf>, Vec<&PathBuf>) = arguments.from.iter().partition(is_store);
    let names: Vec<String> = texts.iter().map(|path| path.display().to_string()).collect();
    let texts: Vec<String> = texts.iter().map(|path| files::text(path)).collect::<Result<_>>()?;
    let named: Vec<Text<'_>> = names.iter().zip(&texts).map(|(name, text)| Text { name, text }).collect();
    let facts = Facts::default();
    let mut gathered = gathered::gather(&named, &facts).map_err(failure::usage)?;
    let mut rates = BTreeMap::new();
    if !stores.is_empty() {
        let (measurements, calibrated) = of_stores(&stores, texts.is_empty())?;
        gathered.measurements.extend(measurements);
        rates = calibrated;
    }
    for left_out in &gathered.left_out {
        files::say(&format!("adaptis: {left_out}"));
    }
    let path = arguments.cells.display();
    let asked = cells::read(&files::text(&arguments.cells)?, &gathered, &facts);
    let asked = asked.map_err(|error| failure::usage(format!("{path}: {error}")))?;
    let cells: Vec<Cell> = asked.iter().map(|asked| asked.cell.clone()).collect();
    let predictor = Predictor::fit(&gathered.measurements, &cells).with_rates(rates);
    let answers: Vec<Answer> =
        asked.into_iter().map(|asked| Answer { predicted: predictor.predict(&asked.cell), asked }).collect();
    if arguments.json {
        let rows: Vec<Value> = answers.iter().map(Answer::json).collect();
        files::print(&format!("{:#}\n", Value::Array(rows)))?;
    } else {
        files::print(&table(&answers))?;
    }
    let unknown: Vec<String> = answers.iter().enumerate().filter_map(|(row, answer)| answer.error(row)).collect();
    match unknown.as_slice() {
        [] => Ok(()),
        [one] => Err(failure::negative(format!("{path}: {one}"))),
        [one, more @ ..] => Err(failure::negative(format!("{path}: {one}; and {} more", more.len()))),
    }
}

/// What stores and runs measured, each source once, and what kinds did in calibrations. Emulated devices have a clock of their own: their times are left out
/// unless all is of runs that were emulated alike, and nothing else was given.
fn of_stores(paths: &[&PathBuf], is_all: bool) -> Result<(Vec<Measurement>, BTreeMap<String, Rates>)> {
    let mut collection = Collection::default();
    for path in paths {
        collection.take_all(store::read(path)?);
    }
    let emulations: BTreeSet<Option<String>> = paths.iter().map(|path| library::emulated(folder(path))).collect();
    let emulation = emulations.first().filter(|_| is_all && emulations.len() == 1).cloned().flatten();
    let left_out = keep_comparable(&mut collection, emulation.as_deref());
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let paths = paths.join(", ");
    let (profiles, _) = evidence(&collection).map_err(|error| failure::usage(format!("{paths}: {error}")))?;
    let count: usize = left_out.iter().map(|of| of.profiles).sum();
    if count > 0 {
        files::say(&format!(
            "adaptis: {paths}: {count} profiles left out: emulated and real devices differ in their clocks"
        ));
    }
    // Emulated devices were calibrated on no clock.
    let rates = if emulation.is_some() { BTreeMap::new() } else { collection.rates() };
    Ok((measurements(&profiles), rates))
}

/// The folder of a run or a store, which may be named by its file.
fn folder(path: &Path) -> &Path {
    if path.is_dir() { path } else { path.parent().unwrap_or(path) }
}

/// A cell with its answer.
struct Answer {
    asked: AskedCell,
    predicted: Result<Prediction, CannotPredict>,
}

impl Answer {
    /// The cell as it was asked for, answered.
    fn json(&self) -> Value {
        let mut row = self.asked.asked.clone();
        row.entry("signature").or_insert_with(|| self.asked.cell.signature.clone().into());
        for profiled in ["seconds", "count", "low", "high"] {
            row.remove(profiled);
        }
        match &self.predicted {
            Ok(predicted) => {
                for (name, seconds) in
                    [("seconds", predicted.seconds), ("low", predicted.low), ("high", predicted.high)]
                {
                    row.insert(name.to_owned(), json!(seconds));
                }
                row.insert("source".to_owned(), predicted.source.word().into());
            }
            Err(error) => {
                row.insert("error".to_owned(), error.to_string().into());
            }
        }
        Value::Object(row)
    }

    fn error(&self, row: usize) -> Option<String> {
        self.predicted.as_ref().err().map(|error| format!("cells[{row}]: {error}"))
    }
}

fn table(answers: &[Answer]) -> String {
    let heads = ["kind", "signature", "phase"];
    let texts = |answer: &Answer| {
        let Cell { kind, signature, phase } = &answer.asked.cell;
        [kind.clone(), signature.clone(), phase.word().to_owned()]
    };
    let rows: Vec<_> = answers.iter().map(texts).collect();
    let wide = [0, 1, 2].map(|column| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.chain([heads[column].len()]).max().unwrap_or(0)
    });
    let mut out = String::new();
    let mut line = |texts: [&str; 3], rest: &str| {
        let [kind, signature, phase] = texts;
        let _ = writeln!(out, "{kind:<0$}  {signature:<1$}  {phase:<2$}  {rest}", wide[0], wide[1], wide[2]);
    };
    line(heads, &format!("{:>11} {:>11} {:>11}  from", "ms", "90%: from", "to"));
    for (row, answer) in rows.iter().zip(answers) {
        let rest = match &answer.predicted {
            Ok(found) => {
                let [seconds, low, high] = [found.seconds, found.low, found.high].map(|seconds| seconds * 1e3);
                format!("{seconds:>11.4} {low:>11.4} {high:>11.4}  {}", found.source.word())
            }
            Err(error) => error.to_string(),
        };
        line([&row[0], &row[1], &row[2]], &rest);
    }
    out
}
