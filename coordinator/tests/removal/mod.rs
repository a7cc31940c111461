//! Measurements removed from published profiles, and predicted from the rest.

#![allow(dead_code, reason = "each user needs its part")]

use adaptis_coordinator::profiles::gathered::{Text, gather};
use adaptis_coordinator::profiles::sailor::Facts;
use adaptis_coordinator::profiles::{Cell, Measurement, Predictor, Source, condense};
use std::collections::BTreeMap;
use std::path::Path;

/// Shorter works are launches, timed by a clock that is as coarse as they are: they are measured, and not judged.
pub const SECONDS_MIN: f64 = 5e-5;

/// How a prediction came out.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub cell: Cell,
    /// As a share of the truth.
    pub off: f64,
    pub is_covered: bool,
    pub source: Source,
}

/// One measurement a cell, of all files of a folder whose names begin so.
pub fn measured(folder: &Path, beginning: &str) -> Vec<Measurement> {
    let entries = std::fs::read_dir(folder).expect("a folder of profiles").flatten();
    let is_wanted = |name: &String| name.starts_with(beginning) && name.ends_with(".json");
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(is_wanted).collect();
    names.sort();
    let texts: Vec<String> =
        names.iter().map(|name| std::fs::read_to_string(folder.join(name)).expect("a profile")).collect();
    let files: Vec<Text<'_>> = names.iter().zip(&texts).map(|(name, text)| Text { name, text }).collect();
    condense(&gather(&files, &Facts::default()).expect("files of Sailor").measurements)
}

/// The type of a cell's layer.
pub fn layer(cell: &Cell) -> &str {
    cell.signature.split('/').next().unwrap_or("")
}

/// The model of a cell's layer.
pub fn model(cell: &Cell) -> &str {
    cell.signature.split('/').nth(1).unwrap_or("")
}

/// Indices of measurements by what they have in common.
pub fn groups<'a, K: Ord>(measurements: &'a [Measurement], common: impl Fn(&'a Cell) -> K) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<K, Vec<usize>> = BTreeMap::new();
    for (index, found) in measurements.iter().enumerate() {
        groups.entry(common(&found.cell)).or_default().push(index);
    }
    groups.into_values().collect()
}

/// One of every so many measurements, each alone; spread, since measurements are sorted and phases alternate.
pub fn singles(measurements: &[Measurement], every: usize) -> Vec<Vec<usize>> {
    const SPREAD: usize = 40_503;
    let of_all = 0..measurements.len();
    of_all.filter(|index| index.wrapping_mul(SPREAD) % 65_536 < 65_536 / every).map(|index| vec![index]).collect()
}

/// Everything of one kind, layer type and phase.
pub fn by_kind_layer_phase(measurements: &[Measurement]) -> Vec<Vec<usize>> {
    groups(measurements, |cell| (&cell.kind, layer(cell), cell.phase))
}

/// Of each kind all but at most `few`, spread over what is sorted.
pub fn kinds_but_for(measurements: &[Measurement], few: usize) -> Vec<Vec<usize>> {
    let mut of_kinds = groups(measurements, |cell| &cell.kind);
    for of_kind in &mut of_kinds {
        let apart = of_kind.len().div_ceil(few);
        let mut number = 0;
        of_kind.retain(|_| {
            number += 1;
            number % apart != 0
        });
    }
    of_kinds
}

/// Each group removed in turn and predicted from all others; what nothing can be said of is not judged.
pub fn judge(measurements: &[Measurement], groups: &[Vec<usize>]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for group in groups.iter().filter(|group| group.iter().any(|&index| is_judged(&measurements[index]))) {
        let kept: Vec<Measurement> = measurements
            .iter()
            .enumerate()
            .filter(|(index, _)| !group.contains(index))
            .map(|(_, one)| one.clone())
            .collect();
        let predictor = Predictor::fit(&kept, &[]);
        for found in group.iter().map(|&index| &measurements[index]).filter(|found| is_judged(found)) {
            let Ok(predicted) = predictor.predict(&found.cell) else { continue };
            outcomes.push(Outcome {
                cell: found.cell.clone(),
                off: (predicted.seconds / found.seconds - 1.0).abs(),
                is_covered: (predicted.low..=predicted.high).contains(&found.seconds),
                source: predicted.source,
            });
        }
    }
    outcomes
}

fn is_judged(found: &Measurement) -> bool {
    found.seconds >= SECONDS_MIN
}

/// How many predictions came out.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub count: usize,
    /// Of `off`.
    pub median: f64,
    /// Of `off`.
    pub p90: f64,
    /// Share of truths within their interval.
    pub covered: f64,
}

/// None of no outcome.
pub fn summary<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Option<Summary> {
    let outcomes: Vec<&Outcome> = outcomes.into_iter().collect();
    let mut offs: Vec<f64> = outcomes.iter().map(|outcome| outcome.off).collect();
    offs.sort_by(f64::total_cmp);
    let at = |share: f64| offs.get(((offs.len() - 1) as f64 * share).round() as usize).copied();
    let covered = outcomes.iter().filter(|outcome| outcome.is_covered).count();
    let count = offs.len();
    (count > 0).then(|| Summary {
        count,
        median: at(0.5).unwrap_or(f64::NAN),
        p90: at(0.9).unwrap_or(f64::NAN),
        covered: covered as f64 / count as f64,
    })
}
