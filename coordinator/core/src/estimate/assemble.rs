//! The planning problem from the fitted parts, each number with its source.

use super::earlier;
use super::evidence::{Evidence, Names};
use super::figures::{Estimated, Figure, Missing, NotYet, PHASES, Uncertainty};
use super::fit::{self, Fit};
use super::joint::Joint;
use super::scatter::Scatter;
use super::source::Source;
use super::{Estimator, hardware, jitter, rates, robust};
use adaptis_plan::{Cost, FormatError, Layer, Problem};
use adaptis_proto::message::DeviceCard;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Relative standard deviation of a work before any was measured.
const SPREAD_PRIOR: f64 = 0.05;
/// What another device of the kind adds to the uncertainty.
const OTHER_DEVICE_SD: f64 = 0.02;
/// What another layer of the signature adds to it.
const OTHER_LAYER_SD: f64 = 0.02;
/// Least uncertainty of a cost carried over from another kind: what a class by kind model misses at its best.
const OTHER_KIND_SD: f64 = 0.1;
/// Uncertainty of a cost carried over between kinds of which nothing is known: about what taking them to be equal misses
/// on the profiles that `rates` names.
const UNKNOWN_KIND_SD: f64 = 1.7;
/// Longest time that is written: sums over a plan's works stay far from overflow.
pub(super) const LONGEST_NS: f64 = 1e15;
/// How far a device that never ran anything may be from its kind, standard deviation of the logarithm: of a kind that
/// nobody knows, and of one that earlier jobs tell of.
const UNSEEN_DEVICE_SD: f64 = 0.3;
const UNSEEN_DEVICE_OF_KNOWN_KIND_SD: f64 = 0.05;

/// Fits and puts together.
pub(super) fn assemble(estimator: &Estimator) -> Result<Estimated, NotYet> {
    let job = &estimator.job;
    if job.layers.is_empty() || job.devices.is_empty() {
        return Err(NotYet::Empty(if job.layers.is_empty() { Missing::Layers } else { Missing::Devices }));
    }
    let names = Names::of(estimator);
    let spread = estimator.spread().unwrap_or(SPREAD_PRIOR);
    let scatter = Scatter::of(estimator, spread);
    let evidence = Evidence::gather(estimator, &names, &scatter);
    let fit = fit::fit(names.kinds.len(), names.signatures.len(), &names.signature_of, &evidence.rows, &evidence.seen);
    let costs = Costs { estimator, names: &names, evidence: &evidence, fit: &fit };
    let figures = costs.figures();
    let (mut links, link_figures, default_link_ln_sd) = hardware::links(estimator);
    let mut kinds = BTreeMap::new();
    let mut optimizer_ns = BTreeMap::new();
    for card in &job.devices {
        let kind = names.kind(&card.kind);
        kinds.insert(card.kind.clone(), costs.of_kind(kind)?);
        let of_layer = |layer| costs.ns(kind, layer, 3).map(|(ns, _)| ns);
        optimizer_ns.insert(card.kind.clone(), (0..job.layers.len()).map(of_layer).collect::<Result<_, _>>()?);
    }
    let unseen = |kind: &str| match evidence.earlier_row.contains_key(&names.kind(kind)) {
        true => (0.0, UNSEEN_DEVICE_OF_KNOWN_KIND_SD),
        false => (0.0, UNSEEN_DEVICE_SD),
    };
    let slowdown = |(row, card): (&Option<usize>, &DeviceCard)| row.map_or(unseen(&card.kind), |row| fit.rows[row]);
    let slowdowns: Vec<(f64, f64)> = evidence.latest.iter().zip(&job.devices).map(slowdown).collect();
    let earlier = |card: &DeviceCard| estimator.earlier.kinds.get(&card.kind)?.overhead;
    let earlier: Vec<_> = job.devices.iter().filter_map(earlier).collect();
    let [(stage_ns, instruction), (crossing_ns, transfer)] = estimator.between.costs(&earlier);
    // An empty tensor's way has one call to send it and one to receive it, which devices pay for.
    links.default.latency_ns = links.default.latency_ns.saturating_sub(crossing_ns.saturating_mul(2));
    for pair in &mut links.pairs {
        pair.latency_ns = pair.latency_ns.saturating_sub(crossing_ns.saturating_mul(2));
    }
    let problem = Problem {
        optimizer_ns,
        constraints: estimator.constraints.clone(),
        boundary_ns: estimator.iterations.boundary_ns().unwrap_or(0),
        stage_ns,
        crossing_ns,
        hosts: hardware::hosts(estimator),
        ..Problem::new(
            job.microbatches.max(1),
            layers(estimator),
            hardware::devices(estimator, &slowdowns),
            kinds,
            links,
        )
    };
    problem.check().map_err(|error| match error {
        FormatError::Format { .. } => unreachable!("a check reads no text"),
        FormatError::Shape { path, problem } | FormatError::Value { path, problem } => {
            NotYet::Implausible { path, problem }
        }
    })?;
    let slowdown_ln_sd = slowdowns.iter().map(|slowdown| slowdown.1).collect();
    let noise = jitter::noise(estimator);
    let joint = joint(&names, &evidence, fit).map(Arc::new);
    let (links, covariates) = (link_figures, None);
    let uncertainty = Uncertainty {
        figures,
        slowdown_ln_sd,
        links,
        default_link_ln_sd,
        instruction,
        transfer,
        spread,
        noise,
        covariates,
        joint,
    };
    Ok(Estimated { problem, uncertainty })
}

fn joint(names: &Names, evidence: &Evidence, fit: Fit) -> Option<Joint> {
    let row = |(row, common_sd): (&Option<usize>, &f64)| row.map(|row| (row, *common_sd));
    Some(Joint {
        posterior: fit.posterior?,
        bases: fit.bases,
        kinds: names.kinds.clone(),
        signatures: names.signatures.len(),
        signature_of: names.signature_of.clone(),
        rows: evidence.latest.iter().zip(&evidence.common_sd).map(row).collect(),
    })
}

/// Costs per kind, seen or carried over.
struct Costs<'a> {
    estimator: &'a Estimator,
    names: &'a Names,
    evidence: &'a Evidence,
    fit: &'a Fit,
}

impl Costs<'_> {
    fn of_kind(&self, kind: usize) -> Result<Vec<Cost>, NotYet> {
        let of_layer = |layer: usize| {
            let memory = hardware::memory(self.estimator, &self.names.kinds[kind], layer)?;
            Ok(Cost {
                forward_ns: self.ns(kind, layer, 0)?.0,
                input_gradient_ns: self.ns(kind, layer, 1)?.0,
                weight_gradient_ns: self.ns(kind, layer, 2)?.0,
                activation_bytes: memory.activation_bytes,
                weight_gradient_bytes: memory.weight_gradient_bytes.min(memory.activation_bytes),
                workspace_bytes: memory.workspace_bytes,
                ..Cost::default()
            })
        };
        (0..self.names.signature_of.len()).map(of_layer).collect()
    }

    /// Time of a layer's phase on a kind, and how sure it is if no device of the kind is told apart.
    fn ns(&self, kind: usize, layer: usize, phase: usize) -> Result<(u64, Figure), NotYet> {
        let signature = self.names.signature_of[layer];
        let (own, own_sd) = self.fit.layers[layer][phase];
        let written = |ln: f64| (ln + own).exp().min(LONGEST_NS).round() as u64;
        if let Some((ln, sd)) = self.fit.cells[kind][signature][phase] {
            let figure = Figure { source: Source::OtherDeviceOfKind, ln_sd: sd.hypot(own_sd.min(OTHER_LAYER_SD)) };
            return Ok((written(ln), figure));
        }
        let negligible = |kind| self.evidence.negligible.get(&(kind, signature, phase));
        let any_negligible = || (0..self.names.kinds.len()).find_map(negligible);
        if let Some(ns) = negligible(kind) {
            return Ok((ns.round() as u64, Figure { source: Source::OtherDeviceOfKind, ln_sd: 0.0 }));
        }
        let told = self.told(kind, signature, phase).into_iter().chain(self.carried_over(kind, signature, phase));
        if let Some((ln, figure)) = told.min_by(|a, b| a.1.ln_sd.total_cmp(&b.1.ln_sd)) {
            return Ok((written(ln), figure));
        }
        if let Some(ns) = any_negligible() {
            return Ok((ns.round() as u64, Figure { source: Source::OtherKind, ln_sd: 0.0 }));
        }
        let absent = phase != 0 && (self.evidence.trained.contains(&signature) || self.trained_earlier(signature));
        if PHASES[phase] == adaptis_proto::sample::Phase::Optimizer || absent {
            return Ok((0, Figure { source: Source::None, ln_sd: 0.0 }));
        }
        Err(NotYet::Cost { signature: self.names.signatures[signature].clone(), phase: PHASES[phase] })
    }

    /// The logarithm of a cell that never ran on a kind, as earlier jobs tell it; less what they are off by in what did run
    /// on it.
    fn told(&self, kind: usize, signature: usize, phase: usize) -> Option<(f64, Figure)> {
        let earlier = self.estimator.earlier.kinds.get(&self.names.kinds[kind])?;
        let name = &self.names.signatures[signature];
        if let Some(earlier::Time { ln_ns, ln_sd }) = earlier.measured(name, phase) {
            return Some((ln_ns, Figure { source: Source::EarlierJobs, ln_sd }));
        }
        let time = earlier.predicted(name, phase)?;
        let (off, off_sd) = self.evidence.earlier_row.get(&kind).map_or((0.0, 0.0), |row| self.fit.rows[*row]);
        Some((time.ln_ns - off, Figure { source: Source::PredictedByEarlierJobs, ln_sd: time.ln_sd.hypot(off_sd) }))
    }

    /// Whether earlier jobs trained layers of a signature: a phase that they lack does not exist.
    fn trained_earlier(&self, signature: usize) -> bool {
        let kinds = self.estimator.earlier.kinds.values();
        kinds.filter_map(|of| of.measured.get(&self.names.signatures[signature])).any(|of| {
            let [forward, input_gradient, weight_gradient, _] = of;
            forward.is_some() && (input_gradient.is_some() || weight_gradient.is_some())
        })
    }

    /// Whether nothing but earlier jobs tells of a cell.
    fn is_earlier(&self, cell: (usize, usize, usize)) -> bool {
        let Evidence { earlier, of_kind, calibrated, .. } = self.evidence;
        earlier.contains(&cell) && !of_kind.contains(&cell) && !calibrated.contains(&cell)
    }

    /// The logarithm of a cell that never ran on a kind, from the other kinds that ran it.
    fn carried_over(&self, kind: usize, signature: usize, phase: usize) -> Option<(f64, Figure)> {
        let others = (0..self.names.kinds.len()).filter(|other| *other != kind);
        let guesses = others.filter_map(|other| {
            let (ln, sd) = self.fit.cells[other][signature][phase]?;
            let (ratio, Figure { source, ln_sd }) = self.kind_ratio(kind, other, signature, phase);
            let is_earlier = source == Source::OtherKind && self.is_earlier((other, signature, phase));
            let source = if is_earlier { Source::PredictedByEarlierJobs } else { source };
            Some((ln + ratio, Figure { source, ln_sd: sd.hypot(ln_sd) }))
        });
        let (mut sum, mut weight, mut best) = (0.0, 0.0, None::<Figure>);
        for (ln, figure) in guesses {
            sum += ln * figure.ln_sd.powi(-2);
            weight += figure.ln_sd.powi(-2);
            best = Some(best.filter(|best| best.ln_sd <= figure.ln_sd).unwrap_or(figure));
        }
        // Guesses from several kinds err together: their mean is not taken to be better than the best of them.
        best.map(|best| (sum / weight, best))
    }

    /// Log of how much longer `kind` takes than `other`, by signatures that ran on both: of the same type if there are
    /// such, else of the same phase, else of any; where none did, by the kinds' calibrations.
    fn kind_ratio(&self, kind: usize, other: usize, signature: usize, phase: usize) -> (f64, Figure) {
        let mut same_type = Vec::new();
        let mut same_phase = Vec::new();
        let mut any = Vec::new();
        let (mut here_is_earlier, mut there_is_earlier) = (false, false);
        for shared in 0..self.names.signatures.len() {
            for at in 0..PHASES.len() {
                let (Some((here, _)), Some((there, _))) =
                    (self.fit.cells[kind][shared][at], self.fit.cells[other][shared][at])
                else {
                    continue;
                };
                here_is_earlier |= self.is_earlier((kind, shared, at));
                there_is_earlier |= self.is_earlier((other, shared, at));
                any.push(here - there);
                if at == phase {
                    same_phase.push(here - there);
                    if self.names.layer_type(shared) == self.names.layer_type(signature) {
                        same_type.push(here - there);
                    }
                }
            }
        }
        // What earlier jobs are off by in all of a kind is in every difference, hence not in their scatter. The other
        // kind's cancels where the cell itself is of earlier jobs.
        let here_sd = if here_is_earlier { self.earlier_level_sd(kind) } else { 0.0 };
        let is_mixed = there_is_earlier && !self.is_earlier((other, signature, phase));
        let there_sd = if is_mixed { self.earlier_level_sd(other) } else { 0.0 };
        for (ratios, factor) in [(&mut same_type, 1.0), (&mut same_phase, 1.5), (&mut any, 2.0)] {
            if let Some(ratio) = robust::median(ratios) {
                let sd = robust::scale_around(ratios, ratio).unwrap_or(0.0).hypot(here_sd).hypot(there_sd);
                return (ratio, Figure { source: Source::OtherKind, ln_sd: sd.hypot(factor * OTHER_KIND_SD) });
            }
        }
        match self.rates_ratio(kind, other, signature, phase) {
            Some((ratio, ln_sd)) => (ratio, Figure { source: Source::OtherKindByRates, ln_sd }),
            None => (0.0, Figure { source: Source::UnknownKind, ln_sd: UNKNOWN_KIND_SD }),
        }
    }

    /// What earlier jobs may be off by in all that they tell of a kind, as far as what ran here left that open.
    fn earlier_level_sd(&self, kind: usize) -> f64 {
        self.evidence.earlier_row.get(&kind).map_or(0.0, |row| self.fit.rows[*row].1)
    }

    fn rates_ratio(&self, kind: usize, other: usize, signature: usize, phase: usize) -> Option<(f64, f64)> {
        let [here, there] = [kind, other].map(|kind| {
            let name = self.names.kinds[kind].as_str();
            self.estimator.rates.get(name).map(|rates| (name, rates))
        });
        rates::ratio(here?, there?, self.names.layer_type(signature), phase == fit::OPTIMIZER)
    }

    /// By device, layer and phase.
    fn figures(&self) -> Vec<Vec<[Figure; 4]>> {
        let devices = self.estimator.job.devices.iter().enumerate();
        let of_device = |(device, card): (usize, &DeviceCard)| {
            let kind = self.names.kind(&card.kind);
            let of_layer = |layer: usize| std::array::from_fn(|phase| self.figure(device, kind, layer, phase));
            (0..self.names.signature_of.len()).map(of_layer).collect()
        };
        devices.map(of_device).collect()
    }

    fn figure(&self, device: usize, kind: usize, layer: usize, phase: usize) -> Figure {
        let Ok((_, of_kind)) = self.ns(kind, layer, phase) else { return Figure::default() };
        if of_kind.source != Source::OtherDeviceOfKind {
            return of_kind;
        }
        let (latest, signature) = (self.evidence.latest[device], self.names.signature_of[layer]);
        let fitted = latest.and_then(|row| self.fit.sd((kind, signature, phase), layer, row));
        let (left_out, common) = (self.fit.model_sd, self.evidence.common_sd[device]);
        if let Some(&sd) = self.evidence.measured[device].get(&(layer, phase)) {
            // The share of what was measured here that the fit follows: so much of its noise is in the fit, and the rest
            // of what the model leaves out is not.
            let follows = fitted.map_or(1.0, |fitted| (fitted.powi(2) / sd.hypot(left_out).powi(2)).min(1.0));
            let known = (follows * sd.powi(2) + (1.0 - follows) * left_out.powi(2)).sqrt();
            let ln_sd = known.hypot(common).hypot(self.misfit(device, layer, phase));
            return Figure { source: Source::Measured, ln_sd };
        }
        let row_sd = latest.map_or(OTHER_DEVICE_SD, |row| self.fit.rows[row].1);
        let ln_sd = fitted.unwrap_or(of_kind.ln_sd.hypot(row_sd)).hypot(left_out).hypot(common);
        if self.evidence.known[device].contains(&(signature, phase)) {
            return Figure { source: Source::SameSignature, ln_sd };
        }
        let cell = (kind, signature, phase);
        let source = match (self.evidence.of_kind.contains(&cell), self.evidence.earlier.contains(&cell)) {
            (true, _) => Source::OtherDeviceOfKind,
            (false, true) => Source::EarlierJobs,
            (false, false) => Source::Calibrated,
        };
        Figure { source, ln_sd: ln_sd.hypot(OTHER_DEVICE_SD) }
    }

    /// Distance of the fit from what the device's latest rows say of a layer and phase, beyond what noise makes it.
    fn misfit(&self, device: usize, layer: usize, phase: usize) -> f64 {
        let Some(latest) = self.evidence.latest[device] else { return 0.0 };
        let of_device = |row: usize| {
            std::iter::successors(Some(latest), |row| self.evidence.rows[*row].before).any(|known| known == row)
        };
        let seen = self
            .evidence
            .seen
            .iter()
            .rev()
            .find(|seen| seen.layer == layer && seen.phase == phase && seen.row <= latest && of_device(seen.row));
        seen.map_or(0.0, |seen| {
            let kind = self.evidence.rows[seen.row].kind;
            let cell = self.fit.cells[kind][self.names.signature_of[layer]][phase].map_or(0.0, |cell| cell.0);
            let off = seen.ln_ns - cell - self.fit.layers[layer][phase].0 - self.fit.rows[seen.row].0;
            (off.abs() - robust::BEND * seen.sd.hypot(self.fit.model_sd)).max(0.0)
        })
    }
}

fn layers(estimator: &Estimator) -> Vec<Layer> {
    let layer = |layer: &adaptis_proto::message::JobLayer| Layer {
        name: layer.name.clone(),
        signature: layer.signature.clone(),
        parameter_bytes: layer.parameter_bytes,
        state_bytes: layer.state_bytes,
        output_bytes: layer.output_bytes,
        moved_bytes: Some(layer.moved_bytes),
        note: None,
    };
    estimator.job.layers.iter().map(layer).collect()
}
