//! A made-up job: what its layers, devices and links truly take in an iteration, and the samples that say so.

use adaptis_coordinator_core::estimate::JobView;
use adaptis_proto::message::{DeviceCard, JobLayer};
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{DeviceIndex, Epoch, Generation, LayerIndex, Microbatch, Step};

/// Layers of each device.
pub const LAYERS: usize = 3;
/// Iterations that are cold.
pub const COLD: u64 = 3;
const PHASES: [Phase; 3] = [Phase::Forward, Phase::InputGradient, Phase::WeightGradient];
const SIGNATURES: [&str; 3] = ["attention/a", "mlp/m", "moe/x"];
const COST_NS: [[f64; 3]; 3] = [[1.0e6, 1.3e6, 0.8e6], [1.5e6, 1.6e6, 1.5e6], [2.0e6, 2.2e6, 1.7e6]];
const KINDS: [(&str, f64); 2] = [("h100-80g", 1.0), ("a100-40g", 2.1)];
const TRANSFER_BYTES: u64 = 1_000_000;
const TRANSFER_NS: f64 = 1.0e6;

/// What kind of job, and how noisy.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub devices: usize,
    /// Works that a device records in an iteration; as many transfers per link.
    pub samples: u32,
    /// Relative standard deviation of one work, independent of the others: Student t, 4 degrees.
    pub noise: f64,
    /// The same of an iteration as a whole, on all devices and links alike.
    pub common: f64,
    /// The same of an iteration of one device.
    pub own: f64,
    /// Sequences of the microbatches.
    pub lengths: Lengths,
}

/// How long the sequences of microbatches are, each of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths {
    /// Standard deviation of the logarithm of one.
    pub one: f64,
    /// The same of all in an iteration.
    pub all: f64,
    /// A rank records them.
    pub are_told: bool,
}

/// By signature: shares of its time that are fixed, follow the length, and its square.
const SHARES: [[f64; 3]; 3] = [[0.1, 0.5, 0.4], [0.05, 0.95, 0.0], [0.2, 0.8, 0.0]];
const LENGTH: f64 = 2_000.0;

/// Time of a layer's work with a length, over that with the usual one.
fn of_length(layer: usize, length: f64) -> f64 {
    let [fixed, tokens, squares] = SHARES[layer % SHARES.len()];
    fixed + tokens * length + squares * length * length
}

/// What is slower than it was, in one iteration.
#[derive(Clone, Debug)]
pub struct Condition {
    /// By device.
    pub devices: Vec<f64>,
    /// One layer.
    pub layer: Option<(usize, f64)>,
    /// By receiving device: the link from the one before it.
    pub links: Vec<f64>,
}

impl Condition {
    pub fn normal(devices: usize) -> Self {
        Self { devices: vec![1.0; devices], layer: None, links: vec![1.0; devices] }
    }
}

/// SplitMix64.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd1b5_4a32_d192_ed03).wrapping_add(77))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    /// Uniform in (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Student's t of 4 degrees with variance 1: its chi-square of 4 degrees is twice the sum of two exponentials.
    fn heavy(&mut self) -> f64 {
        let exponentials = -(self.uniform() * self.uniform()).ln();
        self.normal() / (exponentials / 2.0).sqrt() / std::f64::consts::SQRT_2
    }
}

pub struct Job {
    pub setting: Setting,
    pub dice: Dice,
    clock_ns: u64,
}

impl Job {
    pub fn new(setting: Setting, seed: u64) -> Self {
        Self { setting, dice: Dice::new(seed), clock_ns: 1_000_000 }
    }

    pub fn view(&self) -> JobView {
        let layer = |at: usize| JobLayer {
            name: format!("layer{at}"),
            signature: SIGNATURES[at % SIGNATURES.len()].to_owned(),
            parameter_bytes: 1_000_000,
            state_bytes: 16_000_000,
            output_bytes: TRANSFER_BYTES,
            moved_bytes: 14_000_000,
        };
        let card = |at: usize| DeviceCard {
            name: format!("gpu{at}"),
            kind: KINDS[at * KINDS.len() / self.setting.devices].0.to_owned(),
            memory_bytes: 80 << 30,
            reserved_bytes: 1 << 30,
        };
        JobView {
            layers: (0..LAYERS * self.setting.devices).map(layer).collect(),
            devices: (0..self.setting.devices).map(card).collect(),
            microbatches: self.setting.samples.max(64),
        }
    }

    fn place(step: u64) -> Place {
        Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) }
    }

    /// What each layer holds, told once.
    pub fn memory(&self) -> Vec<(DeviceIndex, Sample)> {
        let of_layer = |layer: usize| {
            let sample = Sample::LayerMemory {
                place: Self::place(0),
                layer: LayerIndex::from(layer),
                activation_bytes: 5_000_000,
                weight_gradient_bytes: 2_000_000,
                workspace_bytes: 0,
            };
            (DeviceIndex::from(layer / LAYERS), sample)
        };
        (0..LAYERS * self.setting.devices).map(of_layer).collect()
    }

    fn noisy(&mut self, ns: f64) -> u64 {
        (ns * (1.0 + self.setting.noise * self.dice.heavy()).max(0.1)).round() as u64
    }

    /// By sample: the length of its microbatch over the usual one. No draw where all are alike.
    fn lengths(&mut self, place: Place, samples: &mut Vec<(DeviceIndex, Sample)>) -> Vec<f64> {
        let Lengths { one, all, are_told } = self.setting.lengths;
        if one == 0.0 && all == 0.0 {
            return vec![1.0; self.setting.samples as usize];
        }
        let all = (all * self.dice.normal()).exp();
        let lengths: Vec<f64> = (0..self.setting.samples).map(|_| all * (one * self.dice.normal()).exp()).collect();
        for (length, microbatch) in lengths.iter().zip(0..).filter(|_| are_told) {
            let (microbatch, tokens) = (Microbatch(microbatch), (LENGTH * length).round() as u64);
            let load = Sample::Load { place, microbatch, tokens, squares: tokens * tokens, busiest: 0 };
            samples.push((DeviceIndex(0), load));
        }
        lengths
    }

    /// Samples of an iteration, those that end it last.
    pub fn iteration(&mut self, step: u64, condition: &Condition, samples: &mut Vec<(DeviceIndex, Sample)>) {
        samples.clear();
        let mark = if step < COLD { Mark::Cold } else { Mark::Warm };
        let place = Self::place(step);
        let common = (self.setting.common * self.dice.normal()).exp();
        let lengths = self.lengths(place, samples);
        let (start_ns, mut end_ns) = (self.clock_ns, self.clock_ns);
        for device in 0..self.setting.devices {
            let own = (self.setting.own * self.dice.normal()).exp();
            let level = KINDS[device * KINDS.len() / self.setting.devices].1 * condition.devices[device] * common * own;
            let index = DeviceIndex::from(device);
            let mut now_ns = start_ns;
            for sample in 0..self.setting.samples {
                // Whichever is recorded, all layers and phases have their turn.
                let cell = (step as usize * self.setting.samples as usize + sample as usize) % (LAYERS * PHASES.len());
                let (layer, phase) = (device * LAYERS + cell / PHASES.len(), cell % PHASES.len());
                let of_layer = condition.layer.filter(|(slow, _)| *slow == layer).map_or(1.0, |(_, factor)| factor);
                let of_length = of_length(layer, lengths[sample as usize]);
                let duration_ns = self.noisy(COST_NS[layer % SIGNATURES.len()][phase] * level * of_layer * of_length);
                let (microbatch, layer) = (Microbatch(sample), LayerIndex::from(layer));
                let phase = PHASES[phase];
                let work = Sample::Work { place, layer, microbatch, phase, mark, start_ns: now_ns, duration_ns };
                now_ns += duration_ns;
                samples.push((index, work));
            }
            end_ns = end_ns.max(now_ns);
            for sample in 0..if device > 0 { self.setting.samples } else { 0 } {
                let duration_ns = self.noisy(TRANSFER_NS * condition.links[device] * common);
                let (from, microbatch, bytes) = (DeviceIndex::from(device - 1), Microbatch(sample), TRANSFER_BYTES);
                samples.push((index, Sample::Transfer { place, from, microbatch, mark, bytes, start_ns, duration_ns }));
            }
        }
        let duration_ns = end_ns - start_ns + 2_000_000;
        for device in 0..self.setting.devices {
            let end = Sample::Iteration { place, start_ns, duration_ns, loss_bits: 0 };
            samples.push((DeviceIndex::from(device), end));
        }
        self.clock_ns = start_ns + duration_ns;
    }
}
