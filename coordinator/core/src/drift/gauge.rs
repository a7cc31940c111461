//! From samples to readings: each work against what the reference expects of it, one number per iteration.

use super::{OfLayer, Reading, Readings, Who};
use crate::estimate::{Estimated, Load, Loads, phase_index, robust};
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{DeviceIndex, Generation, LayerIndex, Microbatch, Step};
use std::collections::{BTreeMap, BTreeSet};

/// Iterations that are open at once; the oldest is given out as it is.
const OPEN: usize = 4;
/// Works kept of a device or link in an iteration; those beyond are left out.
const WORKS: usize = 4096;
/// A work counts if its expected time is known at least this well, while there are such.
const WELL_KNOWN_LN_SD: f64 = 0.05;
/// Shorter works are overhead of the clock.
const NEGLIGIBLE_NS: u64 = 100;
/// Scheduling blurs works by some microseconds whatever their length: a layer whose works are shorter tells of that, and
/// is not watched by itself.
const LAYER_NS: f64 = 100_000.0;
/// Relative standard deviation of a transfer, which has no learned one.
const TRANSFER_SPREAD: f64 = 0.05;

/// What is expected of a work.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Expected {
    /// Layer, and index of the phase; none of a transfer.
    of: Option<(LayerIndex, usize)>,
    ln_ns: f64,
    ln_sd: f64,
    is_guess: bool,
}

/// One work against its expectation.
#[derive(Clone, Copy, Debug)]
struct Ratio {
    of: Option<(LayerIndex, usize)>,
    microbatch: Microbatch,
    expected_ln_ns: f64,
    ln: f64,
    ln_sd: f64,
    /// How well it is known what its load makes of its time, standard deviation.
    load_ln_sd: f64,
    is_guess: bool,
}

#[derive(Clone, Debug, Default)]
struct Iteration {
    of: BTreeMap<Who, Vec<Ratio>>,
    cold: bool,
    ended: Vec<DeviceIndex>,
}

/// Turns samples into readings against a reference: an estimated problem.
#[derive(Clone, Debug)]
pub struct Gauge {
    reference: Estimated,
    generation: Generation,
    loads: Loads,
    open: BTreeMap<Step, Iteration>,
    /// Iterations up to it were given out.
    done: Option<Step>,
    /// Works that were read although their loads are not known.
    without_load: u64,
}

impl Gauge {
    /// Measures against `reference`.
    pub fn new(reference: &Estimated) -> Self {
        let (generation, loads) = (Generation(0), Loads::new(reference.problem.microbatches));
        let (reference, open) = (reference.clone(), BTreeMap::new());
        Self { reference, generation, loads, open, done: None, without_load: 0 }
    }

    /// Replaces the reference. Iterations that are half measured are dropped; tell [`super::Drift`] as well.
    pub fn set_reference(&mut self, reference: &Estimated) {
        self.reference = reference.clone();
        self.open.clear();
    }

    /// Works that were read although their loads are not known: most of their device's iteration had none.
    pub fn without_load(&self) -> u64 {
        self.without_load
    }

    /// Takes a sample of a device. Gives the readings of each iteration that it completes, in order: one that every
    /// device reported the end of, and any older ones. Calibration and samples of iterations given out before are left
    /// out.
    pub fn absorb(&mut self, device: DeviceIndex, sample: &Sample) -> Vec<Readings> {
        match *sample {
            Sample::Work { place, layer, microbatch, phase, mark, duration_ns, .. } => {
                let expected = self.work(device, layer, phase);
                self.add(place, mark, (Who::Device(device), microbatch), expected, duration_ns);
            }
            Sample::Transfer { place, from, microbatch, mark, bytes, duration_ns, .. } => {
                let expected = self.transfer(from, device, bytes);
                self.add(place, mark, (Who::Link(from, device), microbatch), expected, duration_ns);
            }
            Sample::Load { place, microbatch, tokens, squares, busiest } => {
                self.loads.absorb(place, microbatch, Load::new(tokens, squares, busiest));
            }
            Sample::Iteration { place, .. } => return self.end(device, place),
            Sample::LayerMemory { .. }
            | Sample::DeviceMemory { .. }
            | Sample::Switch { .. }
            | Sample::Between { .. } => {}
        }
        self.overflow()
    }

    fn work(&self, device: DeviceIndex, layer: LayerIndex, phase: Phase) -> Option<Expected> {
        let problem = &self.reference.problem;
        let card = problem.devices.get(device.index())?;
        let cost = problem.costs.get(&card.kind)?.get(layer.index())?;
        let (ns, phase) = match phase {
            Phase::Forward | Phase::Recompute => (cost.forward_ns, Phase::Forward),
            Phase::InputGradient => (cost.input_gradient_ns, phase),
            Phase::WeightGradient => (cost.weight_gradient_ns, phase),
            // Bound by memory and once per iteration: it says little of a device's compute.
            Phase::Optimizer => return None,
        };
        let phase = phase_index(phase)?;
        let figure = self.reference.uncertainty.figures.get(device.index())?.get(layer.index())?[phase];
        let (of, ln_sd, is_guess) = (Some((layer, phase)), figure.ln_sd, figure.source.is_guess());
        (ns >= NEGLIGIBLE_NS).then(|| Expected { of, ln_ns: (ns as f64 * card.slowdown).ln(), ln_sd, is_guess })
    }

    fn transfer(&self, from: DeviceIndex, to: DeviceIndex, bytes: u64) -> Option<Expected> {
        let problem = &self.reference.problem;
        let (from, to) = (from.index(), to.index());
        if from >= problem.devices.len() || to >= problem.devices.len() {
            return None;
        }
        let known = self.reference.uncertainty.links.iter().find(|link| link.from == from && link.to == to);
        let ln_sd = known.map_or(self.reference.uncertainty.default_link_ln_sd, |link| link.figure.ln_sd);
        let link = problem.link(from, to);
        let ns = link.latency_ns as f64 + bytes as f64 * 1e9 / link.bytes_per_second;
        let is_guess = known.is_some_and(|link| link.figure.source.is_guess());
        (ns >= NEGLIGIBLE_NS as f64).then(|| Expected { of: None, ln_ns: ns.ln(), ln_sd, is_guess })
    }

    fn add(
        &mut self,
        place: Place,
        mark: Mark,
        (who, microbatch): (Who, Microbatch),
        expected: Option<Expected>,
        duration_ns: u64,
    ) {
        if matches!(mark, Mark::Calibration | Mark::Hasty) {
            return;
        }
        let Some(expected) = expected else { return };
        let Some(iteration) = self.iteration(place) else { return };
        iteration.cold |= mark == Mark::Cold;
        let ratios = iteration.of.entry(who).or_default();
        if ratios.len() < WORKS {
            let ln = (duration_ns.max(1) as f64).ln() - expected.ln_ns;
            let Expected { of, ln_ns: expected_ln_ns, ln_sd, is_guess } = expected;
            ratios.push(Ratio { of, microbatch, expected_ln_ns, ln, ln_sd, load_ln_sd: 0.0, is_guess });
        }
    }

    fn iteration(&mut self, place: Place) -> Option<&mut Iteration> {
        if place.generation > self.generation {
            // Training went back to a restore point.
            self.generation = place.generation;
            self.open.clear();
            self.done = None;
        }
        let stale = place.generation < self.generation || self.done.is_some_and(|done| place.step <= done);
        (!stale).then(|| self.open.entry(place.step).or_default())
    }

    fn end(&mut self, device: DeviceIndex, place: Place) -> Vec<Readings> {
        let devices = self.reference.problem.devices.len();
        if device.index() < devices {
            self.loads.report(device, place);
        }
        let Some(iteration) = self.iteration(place) else { return Vec::new() };
        if !iteration.ended.contains(&device) {
            iteration.ended.push(device);
        }
        if iteration.ended.len() < devices {
            return self.overflow();
        }
        let later = self.open.split_off(&place.step.next());
        let complete = std::mem::replace(&mut self.open, later);
        self.done = Some(place.step);
        complete.into_iter().map(|(step, iteration)| self.read(step, iteration)).collect()
    }

    fn overflow(&mut self) -> Vec<Readings> {
        let mut readings = Vec::new();
        while self.open.len() > OPEN {
            let (step, iteration) = self.open.pop_first().expect("there are more than the limit");
            self.done = Some(step);
            readings.push(self.read(step, iteration));
        }
        readings
    }

    fn read(&mut self, step: Step, iteration: Iteration) -> Readings {
        let mut without_load = 0;
        let spread = |who: Who| match who {
            Who::Device(_) | Who::Layer(..) => self.reference.uncertainty.spread,
            Who::Link(..) => TRANSFER_SPREAD.max(self.reference.uncertainty.spread),
        };
        let of = iteration.of.into_iter().filter_map(|(who, mut ratios)| {
            without_load += self.at_mean_load(step, who, &mut ratios);
            let is_guess = ratios.iter().all(|ratio| ratio.is_guess);
            ratios.retain(|ratio| ratio.is_guess == is_guess);
            if ratios.iter().any(|ratio| ratio.ln_sd <= WELL_KNOWN_LN_SD) {
                ratios.retain(|ratio| ratio.ln_sd <= WELL_KNOWN_LN_SD);
            }
            let spread = spread(who).hypot(load_spread(ratios.iter()));
            let lns = |of: &dyn Fn(&Ratio) -> bool| -> Vec<f64> {
                ratios.iter().filter(|ratio| of(ratio)).map(|ratio| ratio.ln).collect()
            };
            let ln_ratio = robust::location(&mut lns(&|_| true), spread)?;
            let phase = |phase: usize| {
                let mut of = lns(&|ratio| ratio.of.is_some_and(|of| of.1 == phase));
                Some((robust::location(&mut of, spread)?, count(&of)))
            };
            let phases = std::array::from_fn(phase);
            Some(Reading {
                who,
                ln_ratio,
                works: count(&ratios),
                spread,
                reference_ln_sd: robust::median(&mut ratios.iter().map(|ratio| ratio.ln_sd).collect::<Vec<_>>())?,
                is_guess,
                cold: iteration.cold,
                deviation: robust::scale_around(&lns(&|_| true), ln_ratio)?,
                layers: layers(&ratios, spread),
                phases,
            })
        });
        let of = of.collect();
        self.without_load += without_load;
        Readings { step, of }
    }
}

impl Gauge {
    /// Takes off what the load of each work's microbatch made of its time. Works of unknown load say nothing, unless they are
    /// most: then they are read as works usually are, spread as loads are. Gives how many these are.
    fn at_mean_load(&self, step: Step, who: Who, ratios: &mut Vec<Ratio>) -> u64 {
        let (Some(covariates), Who::Device(device)) = (&self.reference.uncertainty.covariates, who) else { return 0 };
        let Some(card) = self.reference.problem.devices.get(device.index()) else { return 0 };
        let load = |ratio: &Ratio| self.loads.get(step, ratio.microbatch);
        let unknown = ratios.iter().filter(|ratio| load(ratio).is_none()).count();
        let are_most = 2 * unknown > ratios.len();
        // Works of one microbatch have their load in common.
        let microbatches = ratios.iter().map(|ratio| ratio.microbatch).collect::<BTreeSet<_>>().len().max(1);
        let alike = (ratios.len() as f64 / microbatches as f64).sqrt();
        let mut typical: BTreeMap<(LayerIndex, usize), (f64, f64)> = BTreeMap::new();
        ratios.retain_mut(|ratio| {
            let Some((layer, phase)) = ratio.of else { return false };
            let (ln, ln_sd) = match load(ratio) {
                Some(load) => {
                    let (factor, ln_sd) = covariates.factor(&card.kind, layer.index(), phase, load);
                    (factor.ln(), ln_sd)
                }
                None if are_most => {
                    let of = || covariates.typical(&card.kind, layer.index(), phase);
                    let (ln, ln_sd) = *typical.entry((layer, phase)).or_insert_with(of);
                    (ln, ln_sd * alike)
                }
                None => return false,
            };
            (ratio.ln, ratio.load_ln_sd) = (ratio.ln - ln, ln_sd);
            true
        });
        if are_most { unknown as u64 } else { 0 }
    }
}

fn count<T>(of: &[T]) -> u32 {
    u32::try_from(of.len()).unwrap_or(u32::MAX)
}

/// What it is not known of works' loads makes of their times, as part of their spread: it differs as loads do.
fn load_spread<'a>(ratios: impl ExactSizeIterator<Item = &'a Ratio>) -> f64 {
    let count = ratios.len().max(1) as f64;
    (ratios.map(|ratio| ratio.load_ln_sd.powi(2)).sum::<f64>() / count).sqrt()
}

/// Each layer by itself, by its works that are long enough.
fn layers(ratios: &[Ratio], spread: f64) -> Vec<OfLayer> {
    let mut of: BTreeMap<LayerIndex, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for ratio in ratios.iter().filter(|ratio| ratio.expected_ln_ns >= LAYER_NS.ln()) {
        if let Some((layer, _)) = ratio.of {
            let (lns, sds) = of.entry(layer).or_default();
            lns.push(ratio.ln);
            sds.push(ratio.ln_sd);
        }
    }
    let of_layer = |(layer, (mut lns, mut sds)): (LayerIndex, (Vec<f64>, Vec<f64>))| {
        let (ln_ratio, reference_ln_sd) = (robust::location(&mut lns, spread)?, robust::median(&mut sds)?);
        Some(OfLayer { layer, ln_ratio, works: count(&lns), reference_ln_sd })
    };
    of.into_iter().filter_map(of_layer).collect()
}
