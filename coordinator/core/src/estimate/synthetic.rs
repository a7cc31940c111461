//! A made-up cluster for tests: true costs, slowdowns and links, and the samples that its agents would send.

use super::random::Random;
use super::{Estimator, JobView, Load};
use adaptis_proto::message::{DeviceCard, JobLayer};
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{DeviceIndex, Epoch, Generation, LayerIndex, Microbatch, Step};

/// Works of an iteration per layer and phase.
pub(crate) const MICROBATCHES: u32 = 8;
/// F, I and W, which calibration runs.
pub(crate) const RUN: [Phase; 3] = [Phase::Forward, Phase::InputGradient, Phase::WeightGradient];

/// How single works deviate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Noise {
    /// Normal, relative standard deviation.
    Normal(f64),
    /// Student t with 4 degrees, scaled.
    Heavy(f64),
    /// A few percent, and one in fifty works stalls for 3 ms.
    Stalls,
}

/// Microbatches of one sequence each, whose length is log-normal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    /// Standard deviation of the logarithm.
    pub ln_sd: f64,
    /// The first device records loads.
    pub are_told: bool,
}

/// By signature: shares of its time at the usual load that are fixed, follow tokens, squares and the busiest expert.
const SHARES: [[f64; 4]; 6] = [
    [0.1, 0.9, 0.0, 0.0],
    [0.1, 0.5, 0.4, 0.0],
    [0.05, 0.95, 0.0, 0.0],
    [0.05, 0.45, 0.0, 0.5],
    [0.1, 0.9, 0.0, 0.0],
    [0.0, 1.0, 0.0, 0.0],
];
/// Median length, and the part of it that the busiest of the experts gets in the median.
const LENGTH: f64 = 2_000.0;
const BUSIEST: f64 = 0.25;

impl Lengths {
    fn draw(self, random: &mut Random) -> Load {
        let tokens = (LENGTH * random.factor(self.ln_sd)).round();
        Load { tokens, squares: tokens * tokens, busiest: (BUSIEST * tokens * random.factor(0.2)).round() }
    }

    /// Time of a layer's work with a load over that with the usual one: the mean of the distributions.
    fn factor(self, signature: usize, load: Load) -> f64 {
        let tokens = LENGTH * (self.ln_sd.powi(2) / 2.0).exp();
        let usual = [tokens, (LENGTH * self.ln_sd.powi(2).exp()).powi(2), BUSIEST * tokens * 0.02_f64.exp()];
        let shares = SHARES[signature];
        load.terms()
            .iter()
            .zip(usual)
            .zip(&shares[1..])
            .fold(shares[0], |sum, ((of, usual), share)| sum + share * of / usual)
    }
}

pub(crate) struct Cluster {
    pub job: JobView,
    /// By kind (in order of first use), layer, phase: nanoseconds.
    pub cost_ns: Vec<Vec<[f64; 3]>>,
    pub kind_of: Vec<usize>,
    pub slowdown: Vec<f64>,
    pub device_of: Vec<usize>,
    pub noise: Noise,
    pub random: Random,
    pub epoch: u64,
    pub lengths: Option<Lengths>,
    /// Of the iteration's microbatches.
    loads: Vec<Load>,
    /// Its own stream: all else is as without lengths.
    loads_random: Random,
    clock_ns: u64,
}

const SIGNATURES: [&str; 6] = ["embedding/e", "attention/a", "mlp/m", "moe/x", "mamba/s", "head/h"];
/// Times on the first kind.
const BASE_NS: [[f64; 3]; 6] = [
    [0.3e6, 0.2e6, 0.4e6],
    [1.0e6, 1.3e6, 0.8e6],
    [1.5e6, 1.6e6, 1.5e6],
    [2.0e6, 2.2e6, 1.7e6],
    [0.9e6, 1.4e6, 0.6e6],
    [4.0e6, 4.4e6, 4.1e6],
];
/// Ratio of the second kind: depends on the type of layer more than on the phase.
const RATIO: [[f64; 3]; 6] =
    [[1.5, 1.5, 1.6], [2.0, 2.1, 2.0], [2.4, 2.4, 2.5], [2.2, 2.2, 2.3], [1.8, 1.9, 1.8], [2.6, 2.7, 2.7]];

/// Signature of a layer of `count`: the head last, the embedding first, the rest in turn.
fn signature(layer: usize, count: usize) -> usize {
    match layer {
        0 => 0,
        _ if layer + 1 == count => 5,
        _ => 1 + layer % 4,
    }
}

impl Cluster {
    /// `kinds` names the kind of each device; layers are spread evenly, in order.
    pub fn new(kinds: &[&str], layers: usize, noise: Noise, seed: u64) -> Self {
        let mut names: Vec<&str> = Vec::new();
        let mut kind_of = Vec::new();
        for kind in kinds {
            let at = names.iter().position(|name| name == kind).unwrap_or_else(|| {
                names.push(kind);
                names.len() - 1
            });
            kind_of.push(at);
        }
        let layer = |at: usize| JobLayer {
            name: format!("layer{at}"),
            signature: SIGNATURES[signature(at, layers)].to_owned(),
            parameter_bytes: 1_000_000,
            state_bytes: 16_000_000,
            output_bytes: 1_000_000,
            moved_bytes: 14_000_000,
        };
        let card = |(at, kind): (usize, &&str)| DeviceCard {
            name: format!("gpu{at}"),
            kind: (*kind).to_owned(),
            memory_bytes: 80 << 30,
            reserved_bytes: 1 << 30,
        };
        let cost = |kind: usize, at: usize| {
            let signature = signature(at, layers);
            std::array::from_fn(|phase| {
                BASE_NS[signature][phase] * if kind == 0 { 1.0 } else { RATIO[signature][phase] }
            })
        };
        Self {
            job: JobView {
                layers: (0..layers).map(layer).collect(),
                devices: kinds.iter().enumerate().map(card).collect(),
                microbatches: MICROBATCHES,
            },
            cost_ns: (0..names.len()).map(|kind| (0..layers).map(|at| cost(kind, at)).collect()).collect(),
            kind_of,
            slowdown: vec![1.0; kinds.len()],
            device_of: (0..layers).map(|at| at * kinds.len() / layers).collect(),
            noise,
            random: Random::new(seed, 0),
            epoch: 1,
            lengths: None,
            loads: Vec::new(),
            loads_random: Random::new(seed, 1),
            clock_ns: 1_000_000,
        }
    }

    /// True time of a layer's phase on a device.
    pub fn true_ns(&self, device: usize, layer: usize, phase: usize) -> f64 {
        self.cost_ns[self.kind_of[device]][layer][phase] * self.slowdown[device]
    }

    /// The same with a load.
    pub fn true_ns_at(&self, device: usize, layer: usize, phase: usize, load: Load) -> f64 {
        let factor = self.lengths.map(|lengths| lengths.factor(signature(layer, self.job.layers.len()), load));
        self.true_ns(device, layer, phase) * factor.unwrap_or(1.0)
    }

    /// Such a time once measured.
    pub fn noisy(&mut self, ns: f64) -> u64 {
        let normal = self.random.normal();
        let noisy = match self.noise {
            Noise::Normal(sd) => ns * (1.0 + sd * normal),
            Noise::Heavy(scale) => {
                let squares: f64 = (0..4).map(|_| self.random.normal().powi(2)).sum();
                ns * (1.0 + scale * normal / (squares / 4.0).sqrt())
            }
            Noise::Stalls => {
                let stall = if self.random.uniform() < 0.02 { 3e6 } else { 0.0 };
                ns * (1.0 + 0.03 * normal) + stall
            }
        };
        noisy.max(0.2 * ns).round() as u64
    }

    fn place(&self, step: u64) -> Place {
        Place { step: Step(step), epoch: Epoch(self.epoch), generation: Generation(1) }
    }

    fn work(&mut self, step: u64, mark: Mark, device: usize, layer: usize, phase: usize, microbatch: u32) -> Sample {
        let ns = match self.loads.get(microbatch as usize) {
            Some(&load) => self.true_ns_at(device, layer, phase, load),
            None => self.true_ns(device, layer, phase),
        };
        let duration_ns = self.noisy(ns);
        Sample::Work {
            place: self.place(step),
            layer: LayerIndex::from(layer),
            microbatch: Microbatch(microbatch),
            phase: RUN[phase],
            mark,
            start_ns: self.clock_ns,
            duration_ns,
        }
    }

    /// Each device runs the first layer of every signature three times; memory of every layer.
    pub fn calibrate(&mut self) -> Vec<(DeviceIndex, Sample)> {
        let mut samples = Vec::new();
        let layers = self.job.layers.len();
        let first: Vec<usize> =
            (0..layers).filter(|&at| !(0..at).any(|b| signature(b, layers) == signature(at, layers))).collect();
        for device in 0..self.job.devices.len() {
            for &layer in &first {
                for phase in 0..RUN.len() {
                    for repeat in 0..3 {
                        let work = self.work(0, Mark::Calibration, device, layer, phase, repeat);
                        samples.push((DeviceIndex::from(device), work));
                    }
                }
            }
        }
        samples.extend(self.memory());
        samples
    }

    /// What each layer holds, from the device that runs it.
    pub fn memory(&self) -> Vec<(DeviceIndex, Sample)> {
        let sample = |layer: usize| {
            let sample = Sample::LayerMemory {
                place: self.place(0),
                layer: LayerIndex::from(layer),
                activation_bytes: 5_000_000,
                weight_gradient_bytes: 2_000_000,
                workspace_bytes: 0,
            };
            (DeviceIndex::from(self.device_of[layer]), sample)
        };
        (0..self.job.layers.len()).map(sample).collect()
    }

    /// One iteration of training: every device's works one behind the other, an optimizer step of 1 ms a layer, a
    /// boundary of 2 ms.
    pub fn iteration(&mut self, step: u64, mark: Mark) -> Vec<(DeviceIndex, Sample)> {
        let mut samples = self.draw_loads(step);
        let start_ns = self.clock_ns;
        let (mut longest_ns, mut optimizer_ns) = (0, 0);
        for device in 0..self.job.devices.len() {
            self.clock_ns = start_ns;
            let layers: Vec<usize> = (0..self.job.layers.len()).filter(|&at| self.device_of[at] == device).collect();
            for microbatch in 0..MICROBATCHES {
                for &layer in &layers {
                    for phase in 0..RUN.len() {
                        let work = self.work(step, mark, device, layer, phase, microbatch);
                        if let Sample::Work { duration_ns, .. } = work {
                            self.clock_ns += duration_ns;
                        }
                        samples.push((DeviceIndex::from(device), work));
                    }
                }
            }
            longest_ns = longest_ns.max(self.clock_ns - start_ns);
            optimizer_ns = optimizer_ns.max(layers.len() as u64 * 1_000_000);
            for layer in layers {
                let place = self.place(step);
                let (layer, microbatch, phase) = (LayerIndex::from(layer), Microbatch(0), Phase::Optimizer);
                let (start_ns, duration_ns) = (self.clock_ns, 1_000_000);
                let work = Sample::Work { place, layer, microbatch, phase, mark, start_ns, duration_ns };
                samples.push((DeviceIndex::from(device), work));
            }
        }
        let duration_ns = longest_ns + optimizer_ns + 2_000_000;
        for device in 0..self.job.devices.len() {
            let sample = Sample::Iteration { place: self.place(step), start_ns, duration_ns, loss_bits: 0 };
            samples.push((DeviceIndex::from(device), sample));
        }
        self.clock_ns = start_ns + duration_ns;
        samples
    }

    /// Loads of an iteration, as far as they are told.
    fn draw_loads(&mut self, step: u64) -> Vec<(DeviceIndex, Sample)> {
        let Some(lengths) = self.lengths else { return Vec::new() };
        self.loads = (0..MICROBATCHES).map(|_| lengths.draw(&mut self.loads_random)).collect();
        let place = self.place(step);
        let sample = |(load, microbatch): (&Load, u32)| {
            let microbatch = Microbatch(microbatch);
            let [tokens, squares, busiest] = load.terms().map(|term| term as u64);
            (DeviceIndex(0), Sample::Load { place, microbatch, tokens, squares, busiest })
        };
        let told = if lengths.are_told { &self.loads[..] } else { &[] };
        told.iter().zip(0..).map(sample).collect()
    }

    /// An estimator that saw the calibration and some iterations, the first three of them cold.
    pub fn trained(&mut self, iterations: u64) -> Estimator {
        let mut estimator = Estimator::new(self.job.clone());
        self.calibrate().iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
        for step in 0..iterations {
            self.train(&mut estimator, step, if step < 3 { Mark::Cold } else { Mark::Warm });
        }
        estimator
    }

    pub fn train(&mut self, estimator: &mut Estimator, step: u64, mark: Mark) {
        self.iteration(step, mark).iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
    }
}
