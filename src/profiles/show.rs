//! `adaptis profiles show`.

use super::sources::source;
use super::store::{Store, bad};
use super::{list, text};
use crate::simulate::size;
use crate::{failure, files};
use adaptis_coordinator::profiles::MeasuredPhase;
use adaptis_coordinator::profiles::account::{Account, Collection, Source};
use adaptis_coordinator::profiles::exchange::{Row, rows};
use adaptis_coordinator::profiles::sketch::Sketch;
use anyhow::Result;
use std::collections::BTreeSet;
use std::fmt::Write;

/// All about one signature: how its times are distributed, what it holds, where that comes from.
#[derive(clap::Args)]
#[command(after_help = "Example:
  adaptis profiles show attention/4096h32/bf16/b1xs4096 --store RUN")]
pub struct Arguments {
    /// The signature, or a part that only one has
    signature: String,
    #[command(flatten)]
    store: Store,
    /// Print {"signature", "profiles": [{.., "quantiles", "sources"}], "memories", "layers", "sources"}
    #[arg(long)]
    json: bool,
}

/// Shares of the samples that are shown.
const QUANTILES: [(&str, f64); 7] =
    [("least", 0.0), ("5%", 0.05), ("25%", 0.25), ("50%", 0.5), ("75%", 0.75), ("95%", 0.95), ("most", 1.0)];
/// Columns of the histogram, and its marks from few to many.
const BINS: usize = 32;
const MARKS: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '#', '@'];

pub fn run(arguments: Arguments) -> Result<()> {
    let (path, collection) = arguments.store.read()?;
    let signature =
        find(&collection, &arguments.signature).map_err(|why| failure::usage(format!("{}: {why}", path.display())))?;
    let mut rows = rows(&collection).map_err(|error| bad(&path, error))?;
    rows.retain(|row| row.key.signature == signature);
    let works = collection.works().map_err(|error| bad(&path, error))?;
    let sketch = |row: &Row| works[&row.key].sketch().map_err(|error| bad(&path, error));
    let sketches: Vec<Sketch> = rows.iter().map(sketch).collect::<Result<_>>()?;
    match arguments.json {
        true => files::print(&format!("{:#}\n", json(&collection, &signature, &rows, &sketches))),
        false => files::print(&words(&collection, &signature, &rows, &sketches)),
    }
}

/// The one signature that is meant.
fn find(collection: &Collection, wanted: &str) -> Result<String, String> {
    let of = |account: &Account| account.works.keys().map(|key| key.signature.clone()).collect::<Vec<_>>();
    let known: BTreeSet<String> = collection.accounts().flat_map(of).collect();
    if known.contains(wanted) {
        return Ok(wanted.to_owned());
    }
    let parts: Vec<&String> = known.iter().filter(|signature| signature.contains(wanted)).collect();
    match parts.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(match adaptis_plan::json::nearest(wanted, known.iter().map(String::as_str)) {
            Some(near) => format!("no signature contains `{wanted}`; the nearest is `{near}`"),
            None => format!("no signature contains `{wanted}`: there are no profiles"),
        }),
        several => {
            let names: Vec<&str> = several.iter().take(8).map(|name| name.as_str()).collect();
            let more = if several.len() > names.len() { ", ..." } else { "" };
            Err(format!(
                "{} signatures contain `{wanted}`: {}{more}; give one as a whole",
                several.len(),
                names.join(", ")
            ))
        }
    }
}

fn told_by<'a>(collection: &'a Collection, row: &'a Row) -> impl Iterator<Item = (&'a Source, u64)> {
    collection.accounts().filter_map(|account| Some((&account.source, account.works.get(&row.key)?.count)))
}

fn json(collection: &Collection, signature: &str, rows: &[Row], sketches: &[Sketch]) -> serde_json::Value {
    let profile = |(row, sketch): (&Row, &Sketch)| {
        let mut value = list::json(row);
        let quantile = |&(_, share): &(&str, f64)| [share, sketch.quantile_ns(share) as f64 / 1e9];
        value["quantiles"] = QUANTILES.iter().map(quantile).map(Vec::from).collect();
        let of = |(source, count): (&Source, u64)| serde_json::json!({ "id": source.id, "name": source.name, "count": count });
        value["sources"] = told_by(collection, row).map(of).collect();
        value
    };
    let memories =
        collection.memories().into_iter().filter(|((of, _), _)| of == signature).map(|((_, kind), memory)| {
            serde_json::json!({
                "kind": kind,
                "activation_bytes": memory.activation_bytes,
                "weight_gradient_bytes": memory.weight_gradient_bytes,
                "workspace_bytes": memory.workspace_bytes,
            })
        });
    let layer = collection.sizes().get(signature).map(|sizes| {
        serde_json::json!({
            "parameter_bytes": sizes.parameter_bytes,
            "state_bytes": sizes.state_bytes,
            "output_bytes": sizes.output_bytes,
            "moved_bytes": sizes.moved_bytes,
        })
    });
    let sources = collection.accounts().filter(|account| account.works.keys().any(|key| key.signature == signature));
    serde_json::json!({
        "signature": signature,
        "profiles": rows.iter().zip(sketches).map(profile).collect::<Vec<_>>(),
        "memories": memories.collect::<Vec<_>>(),
        "layer": layer,
        "sources": sources.map(|account| source(&account.source)).collect::<Vec<_>>(),
    })
}

fn words(collection: &Collection, signature: &str, rows: &[Row], sketches: &[Sketch]) -> String {
    let mut out = format!("{signature}\n");
    for (row, sketch) in rows.iter().zip(sketches) {
        let software = if row.key.software.is_empty() { String::new() } else { format!(", {}", row.key.software) };
        let phase = MeasuredPhase::from(row.key.phase).word();
        let (first, last) = (text::instant(row.first_seen), text::instant(row.last_seen));
        let _ = writeln!(out, "\n{} {phase}{software}: {} samples from {first} to {last}", row.key.kind, row.count);
        let (head, values): (Vec<&str>, Vec<String>) =
            QUANTILES.iter().map(|&(name, share)| (name, text::time(sketch.quantile_ns(share) as f64 / 1e9))).unzip();
        for line in text::table(&head, &[true; QUANTILES.len()], &[values]).lines() {
            let _ = writeln!(out, "  {line}");
        }
        let _ = writeln!(out, "  |{}|", histogram(sketch));
        for (source, count) in told_by(collection, row) {
            let merged =
                if source.merged == 0 { String::new() } else { format!(", merged {}", text::instant(source.merged)) };
            let _ = writeln!(out, "  {count} of them: {} ({}{merged})", source.name, source.how);
        }
    }
    let sizes = collection.sizes();
    if let Some(sizes) = sizes.get(signature) {
        let named = [
            ("weights", sizes.parameter_bytes),
            ("state", sizes.state_bytes),
            ("output a microbatch", sizes.output_bytes),
            ("to move", sizes.moved_bytes),
        ];
        let known = named.iter().filter_map(|(name, bytes)| Some(format!("{name} {}", size((*bytes)?))));
        let _ = writeln!(out, "\nlayer: {}", known.collect::<Vec<_>>().join(", "));
    }
    for ((_, kind), memory) in collection.memories().iter().filter(|((of, _), _)| of == signature) {
        let until_w = memory.weight_gradient_bytes.map_or("not known how much".to_owned(), size);
        let _ = writeln!(
            out,
            "holds on {kind}: {} a microbatch, of it until its weight gradient {until_w}, workspace {}",
            size(memory.activation_bytes),
            size(memory.workspace_bytes)
        );
    }
    out
}

/// Where the samples lie, from the least to the most on a scale of logarithms.
fn histogram(sketch: &Sketch) -> String {
    let ln = |ns: u64| (ns.max(1) as f64).ln();
    let (least, most) = (ln(sketch.quantile_ns(0.0)), ln(sketch.quantile_ns(1.0)));
    let mut counts = [0_u64; BINS];
    for (ns, count) in sketch.bins() {
        let share = if most > least { (ln(ns) - least) / (most - least) } else { 0.5 };
        counts[((share * BINS as f64) as usize).min(BINS - 1)] += count;
    }
    let highest = counts.iter().copied().max().unwrap_or(0).max(1);
    let mark = |count: &u64| match count {
        0 => MARKS[0],
        count => MARKS[(count * (MARKS.len() as u64 - 1)).div_ceil(highest) as usize],
    };
    counts.iter().map(mark).collect()
}
