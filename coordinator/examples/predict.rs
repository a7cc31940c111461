//! How well removed measurements are predicted, over a folder of Sailor's files:
//!
//!     cargo run --release -p adaptis-coordinator --example predict -- FOLDER [EVERY]
//!
//! EVERY: of single measurements, one in so many is removed in turn (1). A kind that is new keeps a few measurements, a
//! model that is new those of one kind.

#![expect(clippy::print_stdout, reason = "an example prints its result")]

#[path = "../tests/removal/mod.rs"]
mod removal;

use removal::{
    Outcome, Summary, by_kind_layer_phase, groups, judge, kinds_but_for, layer, measured, model, singles, summary,
};
use std::collections::BTreeSet;
use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = arguments.first().expect("a folder of Sailor's files");
    let every = arguments.get(1).map_or(1, |every| every.parse().expect("a number"));
    let all = measured(Path::new(folder), "");
    println!("{:<44} {:>5} {:>8} {:>8} {:>8}", "removed, predicted from the rest", "cells", "median", "p90", "covered");
    let outcomes = judge(&all, &singles(&all, every));
    split("single", &outcomes);
    let outcomes = judge(&all, &by_kind_layer_phase(&all));
    split("(kind, type, phase)", &outcomes);
    let models: BTreeSet<&str> = all.iter().map(|found| model(&found.cell)).collect();
    for name in &models {
        let alone: Vec<_> = all.iter().filter(|found| model(&found.cell) == *name).cloned().collect();
        row(&format!("single, {name} alone"), summary(&judge(&alone, &singles(&alone, every))));
        row(&format!("(kind, type, phase), {name} alone"), summary(&judge(&alone, &by_kind_layer_phase(&alone))));
    }
    let kinds: BTreeSet<&str> = all.iter().map(|found| found.cell.kind.as_str()).collect();
    for name in kinds {
        let without: Vec<_> = all.iter().filter(|found| found.cell.kind != name).cloned().collect();
        row(&format!("(kind, type, phase), without {name}"), summary(&judge(&without, &by_kind_layer_phase(&without))));
    }
    row("(kind, model)", summary(&judge(&all, &groups(&all, |cell| (&cell.kind, model(cell))))));
    row("model", summary(&judge(&all, &groups(&all, model))));
    row("kind", summary(&judge(&all, &groups(&all, |cell| &cell.kind))));
    for few in [3, 6, 12] {
        row(&format!("kind but for {few}"), summary(&judge(&all, &kinds_but_for(&all, few))));
    }
}

fn split(what: &str, outcomes: &[Outcome]) {
    row(what, summary(outcomes));
    let part = |name: String, is_such: &dyn Fn(&Outcome) -> bool| {
        row(&format!("{what}: {name}"), summary(outcomes.iter().filter(|outcome| is_such(outcome))));
    };
    for phase in adaptis_coordinator::profiles::MeasuredPhase::ALL {
        part(phase.to_string(), &|outcome| outcome.cell.phase == phase);
    }
    let layers: BTreeSet<&str> = outcomes.iter().map(|outcome| layer(&outcome.cell)).collect();
    for name in layers {
        part(name.to_owned(), &|outcome| layer(&outcome.cell) == name);
    }
    let sources: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.source).collect();
    for source in sources {
        part(format!("from {}", source.word()), &|outcome| outcome.source == source);
    }
}

fn row(what: &str, found: Option<Summary>) {
    let Some(Summary { count, median, p90, covered }) = found else { return };
    let [median, p90, covered] = [median, p90, covered].map(|share| share * 100.0);
    println!("{what:<44} {count:>5} {median:>7.1}% {p90:>7.1}% {covered:>7.1}%");
}
