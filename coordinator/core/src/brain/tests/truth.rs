//! What layers truly cost, and what devices record of it.

use crate::estimate::random::Random;
use adaptis_plan::{Action, Plan, Problem, peak_bytes};
use adaptis_planner::noise::{self, Jitter, draws};
use adaptis_planner::simulate::{Span, Timeline, simulate};
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{Epoch, Step};
use std::collections::VecDeque;

/// Values that tell a distribution.
const VALUES: u64 = 2_000;

/// Relative deviations, one independently of another.
#[derive(Clone, Copy, Debug)]
pub enum Noise {
    /// Even up to this, either way.
    Even(f64),
    /// Student's t with 4 degrees, scaled to this standard deviation.
    Heavy(f64),
}

impl Noise {
    fn factor(self, random: &mut Random) -> f64 {
        match self {
            Noise::Even(most) => 1.0 + most * (2.0 * random.uniform() - 1.0),
            Noise::Heavy(sd) => {
                let squares: f64 = (0..4).map(|_| random.normal().powi(2)).sum();
                let student = random.normal() / (squares / 4.0).sqrt();
                (1.0 + sd * student / std::f64::consts::SQRT_2).max(0.2)
            }
        }
    }

    fn jitter(self) -> Jitter {
        let mut random = Random::new(11, 0);
        Jitter::measured((0..VALUES).map(|_| self.factor(&mut random)))
    }
}

/// A device, an iteration, and what the device takes by iterations since.
pub type Course = (usize, u64, fn(u64) -> f64);

/// The truth.
pub struct Truth {
    pub problem: Problem,
    /// From that iteration on, that device takes so many times as long; in the order of the iterations.
    pub faults: VecDeque<(u64, usize, f64)>,
    /// From that iteration on, that device takes so many times as long.
    pub course: Option<Course>,
    /// From that iteration on, that layer takes so many times as long, wherever it is.
    pub odd_layer: Option<(u64, usize, f64)>,
    /// Iterations on that plan take so many times as long as their works say.
    pub burden: Option<(Epoch, f64)>,
    /// What each device's memory comes to beyond its layers, if it tells of it.
    pub more_bytes: Option<u64>,
    /// How single works and transfers deviate.
    pub noise: Noise,
    pub duration_ns: u64,
    random: Random,
    jitter: Jitter,
    timeline: Option<(Step, Timeline)>,
    since: (Epoch, Step),
}

impl Truth {
    pub fn new(problem: Problem, noise: Noise) -> Self {
        let since = (Epoch(0), Step(0));
        Self {
            problem,
            faults: VecDeque::new(),
            course: None,
            odd_layer: None,
            burden: None,
            more_bytes: None,
            noise,
            duration_ns: 0,
            random: Random::new(88_172_645_463_325_252, 0),
            jitter: noise.jitter(),
            timeline: None,
            since,
        }
    }

    fn noisy(&mut self, ns: u64) -> u64 {
        (ns as f64 * self.noise.factor(&mut self.random)).round() as u64
    }

    /// What an iteration takes whose works deviate.
    pub fn jittered_ns(&self, plan: &Plan, step: Step) -> u64 {
        let devices = vec![[(); 3].map(|()| self.jitter.clone()); self.problem.devices.len()];
        let noise = noise::Noise { devices, together: 0.0 };
        let drawn = draws(&self.problem, plan, &noise, 1, 77 + step.0);
        drawn.expect("a plan in force can be simulated").iteration_ns[0]
    }

    /// The faults up to an iteration are in force.
    pub fn disturb(&mut self, step: Step) {
        while let Some((_, device, factor)) = self.faults.pop_front_if(|fault| fault.0 <= step.0) {
            self.problem.devices[device].slowdown = factor;
        }
        if let Some((device, onset, factor)) = self.course.filter(|(_, onset, _)| *onset <= step.0) {
            self.problem.devices[device].slowdown = factor(step.0 - onset);
        }
    }

    /// What a device records of an iteration under a plan.
    pub fn samples(&mut self, device: usize, place: Place, text: &str) -> Vec<Sample> {
        let plan = Plan::read(text).expect("plans of the ledger can be read");
        if self.since.0 != place.epoch {
            self.since = (place.epoch, place.step);
        }
        self.disturb(place.step);
        if self.timeline.as_ref().is_none_or(|(step, _)| *step != place.step) {
            let timeline = simulate(&self.problem, &plan).expect("a plan in force can be simulated");
            let burden = self.burden.filter(|(epoch, _)| *epoch == place.epoch).map_or(1.0, |(_, factor)| factor);
            self.duration_ns = (self.jittered_ns(&plan, place.step) as f64 * burden) as u64;
            self.timeline = Some((place.step, timeline));
        }
        let (_, timeline) = self.timeline.clone().expect("just simulated");
        let mark = if place.step.0 < self.since.1.0 + 3 { Mark::Cold } else { Mark::Warm };
        let mut samples = Vec::new();
        for span in &timeline.spans[device] {
            let layers = plan.stages[span.instruction.stage.index()].range();
            for layer in layers {
                self.work(device, place, mark, span, layer, &mut samples);
            }
        }
        for transfer in timeline.transfers.iter().filter(|transfer| transfer.to.index() == device) {
            let (from, microbatch, bytes) = (transfer.from, transfer.tag.microbatch, transfer.bytes);
            let (start_ns, duration_ns) = (transfer.start_ns, self.noisy(transfer.arrival_ns - transfer.start_ns));
            samples.push(Sample::Transfer { place, from, microbatch, mark, bytes, start_ns, duration_ns });
        }
        for stage in plan.stages.iter().filter(|stage| stage.device as usize == device) {
            samples.extend(stage.range().map(|layer| Sample::LayerMemory {
                place,
                layer: layer.into(),
                activation_bytes: self.problem.costs_of(device)[layer].activation_bytes,
                weight_gradient_bytes: self.problem.costs_of(device)[layer].weight_gradient_bytes,
                workspace_bytes: 0,
            }));
        }
        if let (Some(more_bytes), Ok(peaks)) = (self.more_bytes, peak_bytes(&self.problem, &plan)) {
            let peak_bytes = peaks[device] + more_bytes;
            samples.push(Sample::DeviceMemory { place, peak_bytes, reserved_bytes: 0, late_ns: 0 });
        }
        samples
    }

    fn work(&mut self, device: usize, place: Place, mark: Mark, span: &Span, layer: usize, samples: &mut Vec<Sample>) {
        let odd = self.odd_layer.filter(|&(from, odd, _)| odd == layer && place.step >= Step(from));
        let slowdown = self.problem.devices[device].slowdown * odd.map_or(1.0, |(_, _, factor)| factor);
        let cost = self.problem.costs_of(device)[layer].clone();
        let phases = match span.instruction.action {
            Action::Forward => vec![(Phase::Forward, cost.forward_ns)],
            Action::InputGradient => vec![(Phase::InputGradient, cost.input_gradient_ns)],
            Action::WeightGradient => vec![(Phase::WeightGradient, cost.weight_gradient_ns)],
            Action::Backward => {
                vec![(Phase::InputGradient, cost.input_gradient_ns), (Phase::WeightGradient, cost.weight_gradient_ns)]
            }
        };
        for (phase, ns) in phases {
            let duration_ns = self.noisy((ns as f64 * slowdown) as u64);
            let (layer, microbatch, start_ns) = (layer.into(), span.instruction.microbatch, span.start_ns);
            samples.push(Sample::Work { place, layer, microbatch, phase, mark, start_ns, duration_ns });
        }
    }
}
