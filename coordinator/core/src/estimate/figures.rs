//! What the estimate says: a planning problem, and how well each of its numbers is known.

use super::covariates::Covariates;
use super::joint::{Drawn, Joint};
use super::loads::Load;
use super::random::Random;
use super::source::Source;
use crate::drift::Who;
use adaptis_plan::{Pair, Plan, Problem};
use adaptis_planner::noise::{Draws, Noise, draws};
use adaptis_proto::sample::Phase;
use adaptis_proto::{DeviceIndex, LayerIndex};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How well a positive number is known: its logarithm is normal with this standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Where it comes from.
    pub source: Source,
    /// Standard deviation of its logarithm.
    pub ln_sd: f64,
}

impl Figure {
    /// The factor that 5 in 100 true values lie below.
    pub fn low(self) -> f64 {
        (-NORMAL_95 * self.ln_sd).exp()
    }

    /// The factor that 5 in 100 true values lie above.
    pub fn high(self) -> f64 {
        (NORMAL_95 * self.ln_sd).exp()
    }
}

/// Draws of jitter that a plan is predicted on, and their seed: one luck for all plans.
const JITTER_DRAWS: usize = 32;
const JITTER_SEED: u64 = 1;
/// 95th percentile of the standard normal distribution.
const NORMAL_95: f64 = 1.644_853_626_951_472_7;

/// Phases that a figure is kept for, in their order: F, I, W, optimizer.
pub const PHASES: [Phase; 4] = [Phase::Forward, Phase::InputGradient, Phase::WeightGradient, Phase::Optimizer];

/// Index of a phase in [`PHASES`]; recomputation has the cost of F and no figure of its own.
pub fn phase_index(phase: Phase) -> Option<usize> {
    PHASES.iter().position(|&known| known == phase)
}

/// A directed link's fit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkFigure {
    /// Sending device.
    pub from: usize,
    /// Receiving device.
    pub to: usize,
    /// How well its transfer times are known.
    pub figure: Figure,
    /// Latency and bandwidth were told apart. If not, the latency is 0 or an older one, and transfers of other sizes
    /// than those seen are less certain.
    pub separated: bool,
}

/// How well the numbers of an estimated problem are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Uncertainty {
    /// By device, layer and [`PHASES`].
    pub figures: Vec<Vec<[Figure; 4]>>,
    /// By device: standard deviation of the logarithm of its slowdown.
    pub slowdown_ln_sd: Vec<f64>,
    /// Every directed pair that is known, in the order of the problem's pairs.
    pub links: Vec<LinkFigure>,
    /// Standard deviation of the logarithm of the default link's transfer times.
    pub default_link_ln_sd: f64,
    /// What each instruction costs besides its layers.
    pub instruction: Figure,
    /// What each transfer costs the devices at its ends.
    pub transfer: Figure,
    /// Relative standard deviation of a single work around its layer's cost, over all devices.
    pub spread: f64,
    /// How works deviate within an iteration, one independently of another: no uncertainty of a cost, but what lengthens
    /// iterations.
    pub noise: Noise,
    /// How times follow the loads of microbatches, where these differ: costs are then of the mean load.
    pub covariates: Option<Arc<Covariates>>,
    /// Costs and slowdowns as they are known together; none of numbers that no fit told.
    pub(crate) joint: Option<Arc<Joint>>,
}

impl Default for Figure {
    fn default() -> Self {
        Self { source: Source::None, ln_sd: 0.0 }
    }
}

/// A planning problem fitted to samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimated {
    /// Costs per kind, slowdown per device, links per directed pair.
    pub problem: Problem,
    /// How well each is known.
    pub uncertainty: Uncertainty,
}

impl Estimated {
    /// Time of a work on a device over what it takes at the speed of its kind and, where microbatches differ, the mean load;
    /// of unknown load: as works are in the middle.
    pub fn over_usual(&self, device: DeviceIndex, layer: LayerIndex, phase: Phase, load: Option<Load>) -> f64 {
        let Some(card) = self.problem.devices.get(device.index()) else { return 1.0 };
        // Recomputation is F again.
        let phase = if phase == Phase::Recompute { Phase::Forward } else { phase };
        let of_load = match (&self.uncertainty.covariates, phase_index(phase)) {
            (Some(covariates), Some(phase)) => match load {
                Some(load) => covariates.factor(&card.kind, layer.index(), phase, load).0,
                None => covariates.typical(&card.kind, layer.index(), phase).0.exp(),
            },
            _ => 1.0,
        };
        card.slowdown * of_load
    }

    /// What iterations of a plan take while works jitter: their median is what is measured. The same draws for every
    /// plan, in this order. None if the plan can't be simulated.
    pub fn iterations(&self, plan: &Plan) -> Option<Draws> {
        draws(&self.problem, plan, &self.uncertainty.noise, JITTER_DRAWS, JITTER_SEED).ok()
    }

    /// With what a device, link or layer takes in the mean, where its present time is not the mean: each times a factor.
    pub fn averaged(mut self, factors: impl IntoIterator<Item = (Who, f64)>) -> Self {
        let problem = &mut self.problem;
        for (who, factor) in factors {
            match who {
                Who::Device(device) => {
                    if let Some(device) = problem.devices.get_mut(device.index()) {
                        device.slowdown *= factor;
                    }
                }
                Who::Link(from, to) => {
                    let name = |of: DeviceIndex| problem.devices.get(of.index()).map(|device| device.name.clone());
                    let (from, to) = (name(from), name(to));
                    let is_it = |pair: &&mut Pair| Some(&pair.from) == from.as_ref() && Some(&pair.to) == to.as_ref();
                    if let Some(pair) = problem.links.pairs.iter_mut().find(is_it) {
                        pair.bytes_per_second /= factor;
                        pair.latency_ns = scale(pair.latency_ns, factor);
                    }
                }
                Who::Layer(_, layer) => {
                    for cost in problem.costs.values_mut().filter_map(|costs| costs.get_mut(layer.index())) {
                        cost.forward_ns = scale(cost.forward_ns, factor);
                        cost.input_gradient_ns = scale(cost.input_gradient_ns, factor);
                        cost.weight_gradient_ns = scale(cost.weight_gradient_ns, factor);
                    }
                }
            }
        }
        self
    }

    /// The problem with its numbers drawn from their intervals. The same `seed` and `index` give the same draw, so that
    /// plans are compared on the same ones. Costs and slowdowns vary as the fit knows them together. What it does not
    /// hold has one deviation per kind, signature and phase, one per layer and phase, one per device; each link has one, and
    /// so have what an instruction and what a transfer costs besides.
    pub fn draw(&self, seed: u64, index: u64) -> Problem {
        let mut problem = self.problem.clone();
        let mut random = Random::new(seed, index);
        let together = self.uncertainty.joint.as_deref().map(|joint| joint.draw(&mut random));
        self.draw_costs(&mut problem, &mut random, together.as_ref());
        for (at, (device, ln_sd)) in problem.devices.iter_mut().zip(&self.uncertainty.slowdown_ln_sd).enumerate() {
            let own = ln_sd * random.normal();
            let drawn = together.as_ref().and_then(|drawn| drawn.slowdown(&device.kind, at));
            device.slowdown *= drawn.unwrap_or(own).exp();
        }
        problem.links.default.bytes_per_second /= random.factor(self.uncertainty.default_link_ln_sd);
        // In the order of the pairs.
        let known = self.uncertainty.links.iter().map(Some).chain(std::iter::repeat(None));
        for (pair, known) in problem.links.pairs.iter_mut().zip(known) {
            let z = random.normal();
            let factor = (z * known.map_or(self.uncertainty.default_link_ln_sd, |link| link.figure.ln_sd)).exp();
            pair.bytes_per_second /= factor;
            pair.latency_ns = (pair.latency_ns as f64 * factor).round() as u64;
        }
        problem.stage_ns = scale(problem.stage_ns, random.factor(self.uncertainty.instruction.ln_sd));
        problem.crossing_ns = scale(problem.crossing_ns, random.factor(self.uncertainty.transfer.ln_sd));
        problem
    }

    fn draw_costs(&self, problem: &mut Problem, random: &mut Random, together: Option<&Drawn<'_>>) {
        let kinds: Vec<String> = problem.costs.keys().cloned().collect();
        // A layer's own deviation is the same work on every kind, hence drawn once for all of them.
        let own: Vec<[f64; 4]> = problem.layers.iter().map(|_| std::array::from_fn(|_| random.normal())).collect();
        for kind in kinds {
            let Some(device) = problem.devices.iter().position(|device| device.kind == kind) else { continue };
            let mut common: Vec<(String, [f64; 4])> = Vec::new();
            for (layer, own) in own.iter().enumerate() {
                let signature = &problem.layers[layer].signature;
                let shared = match common.iter().find(|(known, _)| known == signature) {
                    Some((_, shared)) => *shared,
                    None => {
                        let shared = std::array::from_fn(|_| random.normal());
                        common.push((signature.clone(), shared));
                        shared
                    }
                };
                let factor = |phase: usize| {
                    if let Some(off) = together.and_then(|drawn| drawn.cost(&kind, layer, phase)) {
                        return off.exp();
                    }
                    let ln_sd = self.best_figure(&kind, device, layer, phase).ln_sd;
                    // Three quarters of the variance in common: layers of a signature are wrong together.
                    (ln_sd * (0.866 * shared[phase] + 0.5 * own[phase])).exp()
                };
                if let Some(cost) = problem.costs.get_mut(&kind).and_then(|costs| costs.get_mut(layer)) {
                    cost.forward_ns = scale(cost.forward_ns, factor(0));
                    cost.input_gradient_ns = scale(cost.input_gradient_ns, factor(1));
                    cost.weight_gradient_ns = scale(cost.weight_gradient_ns, factor(2));
                }
                if let Some(of) = problem.optimizer_ns.get_mut(&kind).and_then(|of| of.get_mut(layer)) {
                    *of = scale(*of, factor(3));
                }
            }
        }
    }

    /// The figure of a kind's cost: of its device that knows it best.
    fn best_figure(&self, kind: &str, first: usize, layer: usize, phase: usize) -> Figure {
        let of = |device: usize| self.uncertainty.figures[device][layer][phase];
        (0..self.problem.devices.len())
            .filter(|&device| self.problem.devices[device].kind == kind)
            .map(of)
            .min_by(|a, b| a.ln_sd.total_cmp(&b.ln_sd))
            .unwrap_or_else(|| of(first))
    }
}

fn scale(ns: u64, factor: f64) -> u64 {
    (ns as f64 * factor).round() as u64
}

/// Why there is no estimate yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NotYet {
    /// Nobody measured this phase of any layer of this signature.
    #[error("no sample yet of {phase:?} of {signature}")]
    Cost {
        /// The signature.
        signature: String,
        /// The phase.
        phase: Phase,
    },
    /// Nobody measured what any layer of this signature holds.
    #[error("no sample yet of the memory of {signature}")]
    Memory {
        /// The signature.
        signature: String,
    },
    /// The job's sizes, or what was measured, make no sense.
    #[error("{path}: {problem}")]
    Implausible {
        /// Which number of the problem.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There are no devices or no layers.
    #[error("the job has no {0}")]
    Empty(Missing),
}

/// What a job lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Missing {
    /// No layers.
    Layers,
    /// No devices.
    Devices,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Missing::Layers => "layers",
            Missing::Devices => "devices",
        })
    }
}
