//! What a change of a device looks like: which layers and phases took part in it, and whether works vary more.

use super::{Cause, Evidence, Reading};
use crate::estimate::robust;
use adaptis_proto::{LayerIndex, Step};
use std::collections::{BTreeMap, VecDeque};

/// Iterations kept; the oldest goes.
const KEPT: usize = 32;
/// Works since the onset below which nothing is told.
const WORKS_MIN: u32 = 8;
/// A layer or phase took no part if it changed by less than this share of the change, one took part alone if all others
/// did, and none is apart that noise alone would set apart by so many standard deviations.
const PART_SHARE: f64 = 0.5;
const APART_SD: f64 = 3.5;
/// Deviations that grew by this factor, and by so many standard deviations of such an estimate, tell of contention.
const DEVIATION_MIN: f64 = 1.5;
const DEVIATION_SD: f64 = 3.0;
const DEVIATION_MAX: f64 = 1e6;
/// Standard deviation of the logarithm of a median absolute deviation over n values: this over the root of n.
const MAD_SD: f64 = 1.2;

#[derive(Clone, Debug)]
struct Iteration {
    step: Step,
    layers: Vec<(LayerIndex, f64, u32)>,
    phases: [Option<(f64, u32)>; 3],
    deviation: f64,
    works: u32,
}

/// The last iterations of a device, by layer and phase.
#[derive(Clone, Debug, Default)]
pub(super) struct Trail(VecDeque<Iteration>);

/// How much a layer or phase changed, and how well that is known.
#[derive(Clone, Copy, Debug)]
struct Part {
    shift: f64,
    sd: f64,
}

/// What a change turned out to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Found {
    pub cause: Cause,
    pub evidence: Evidence,
    /// The layer that changed alone, and by how much.
    pub layer: Option<(LayerIndex, f64)>,
}

impl Trail {
    /// Takes an iteration, less what it has in common with other devices.
    pub fn add(&mut self, step: Step, reading: &Reading, common: f64) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        let part = |of: (f64, u32)| (of.0 - common, of.1);
        self.0.push_back(Iteration {
            step,
            layers: reading.layers.iter().map(|layer| (layer.layer, layer.ln_ratio - common, layer.works)).collect(),
            phases: reading.phases.map(|phase| phase.map(part)),
            deviation: reading.deviation,
            works: reading.works,
        });
    }

    /// Another reference: what was read against the one before says nothing beside it.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// How much a layer changed at an onset.
    pub fn layer_shift(&self, layer: LayerIndex, onset: Step) -> Option<f64> {
        let (before, since) = self.split(onset);
        let of = |iterations: &[&Iteration]| {
            let levels = iterations.iter().flat_map(|iteration| &iteration.layers).filter(|(of, ..)| *of == layer);
            level(levels.map(|&(_, ln, works)| (ln, works)))
        };
        Some(of(&since)?.0 - of(&before).map_or(0.0, |before| before.0))
    }

    fn split(&self, onset: Step) -> (Vec<&Iteration>, Vec<&Iteration>) {
        self.0.iter().partition(|iteration| iteration.step < onset)
    }

    /// What changed at `onset` by `shift`; `spread` is the relative standard deviation of one work.
    pub fn find(&self, onset: Step, shift: f64, spread: f64, slow_links: u32) -> Found {
        let (before, since) = self.split(onset);
        let layers = layers(&before, &since, spread);
        let phases = phases(&before, &since, spread);
        let works = since.iter().fold(0, |works: u32, iteration| works.saturating_add(iteration.works));
        let all = || layers.values().chain(&phases);
        let (least, most) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), part| {
            (least.min(part.shift), most.max(part.shift))
        });
        let deviation = grown(&before, &since);
        let evidence = Evidence {
            works,
            layers: layers.len() as u32,
            apart: if most >= least { (most - least).min(super::LARGEST_LN).exp() } else { 1.0 },
            deviation: deviation.unwrap_or(0.0),
            slow_links,
        };
        let layer = alone(&layers, shift);
        let is_apart = |part: &Part| {
            let apart = (part.shift - shift).abs();
            apart > PART_SHARE * shift.abs() && apart > APART_SD * part.sd
        };
        let noise = DEVIATION_SD * MAD_SD / f64::from(works.max(1)).sqrt();
        let varies = deviation.is_some_and(|grown| grown > DEVIATION_MIN * noise.exp());
        let cause = if layer.is_some() {
            Cause::OneLayer
        } else if shift > 0.0 && (varies || slow_links > 0) {
            Cause::Contention
        } else if works < WORKS_MIN || all().any(is_apart) {
            Cause::Unclear
        } else {
            Cause::Throttle
        };
        Found { cause, evidence, layer }
    }
}

/// The one layer that changed while all others together did not.
fn alone(layers: &BTreeMap<LayerIndex, Part>, shift: f64) -> Option<(LayerIndex, f64)> {
    let sign = shift.signum();
    let (&layer, part) = layers.iter().max_by(|a, b| (sign * a.1.shift).total_cmp(&(sign * b.1.shift)))?;
    let mut others: Vec<f64> = layers.iter().filter(|(of, _)| **of != layer).map(|(_, part)| part.shift).collect();
    let others_sd = layers.values().map(|part| part.sd.powi(2)).sum::<f64>().sqrt() / layers.len() as f64;
    let (own, rest) = (sign * part.shift, sign * robust::median(&mut others)?);
    let is_alone =
        own > shift.abs() && rest < PART_SHARE / 2.0 * own && own - rest > APART_SD * part.sd.hypot(others_sd);
    is_alone.then_some((layer, part.shift))
}

/// Mean of levels by their works, and the works.
fn level(levels: impl Iterator<Item = (f64, u32)>) -> Option<(f64, u32)> {
    let (sum, works) =
        levels.fold((0.0, 0u32), |(sum, all), (ln, works)| (sum + ln * f64::from(works), all.saturating_add(works)));
    (works > 0).then(|| (sum / f64::from(works), works))
}

fn part(before: Option<(f64, u32)>, since: (f64, u32), spread: f64) -> Part {
    let variance = |works: u32| (robust::MEDIAN_SD * spread).powi(2) / f64::from(works.max(1));
    Part {
        shift: since.0 - before.map_or(0.0, |before| before.0),
        sd: (variance(since.1) + before.map_or(0.0, |before| variance(before.1))).sqrt(),
    }
}

fn layers(before: &[&Iteration], since: &[&Iteration], spread: f64) -> BTreeMap<LayerIndex, Part> {
    let of = |iterations: &[&Iteration]| {
        let mut levels: BTreeMap<LayerIndex, Vec<(f64, u32)>> = BTreeMap::new();
        for &(layer, ln, works) in iterations.iter().flat_map(|iteration| &iteration.layers) {
            levels.entry(layer).or_default().push((ln, works));
        }
        levels
    };
    let before = of(before);
    let of_layer = |(layer, since): (LayerIndex, Vec<(f64, u32)>)| {
        let before = before.get(&layer).and_then(|levels| level(levels.iter().copied()));
        Some((layer, part(before, level(since.into_iter())?, spread)))
    };
    of(since).into_iter().filter_map(of_layer).collect()
}

fn phases(before: &[&Iteration], since: &[&Iteration], spread: f64) -> Vec<Part> {
    let of = |iterations: &[&Iteration], phase: usize| {
        level(iterations.iter().filter_map(|iteration| iteration.phases[phase]))
    };
    (0..3).filter_map(|phase| Some(part(of(before, phase), of(since, phase)?, spread))).collect()
}

/// Deviation of single works since the onset over the one before it.
fn grown(before: &[&Iteration], since: &[&Iteration]) -> Option<f64> {
    let of = |iterations: &[&Iteration]| {
        let deviations = iterations.iter().map(|iteration| iteration.deviation).filter(|deviation| *deviation > 0.0);
        robust::median(&mut deviations.collect::<Vec<_>>())
    };
    // Numbers that a file can hold.
    Some((of(since)? / of(before)?).min(DEVIATION_MAX)).filter(|grown| grown.is_finite())
}
