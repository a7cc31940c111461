//! What layers truly cost, and what devices record of it.

use adaptis_plan::{Action, Plan, Problem};
use adaptis_planner::noise::{Jitter, Noise, draws};
use adaptis_planner::simulate::{Span, Timeline, simulate};
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{Epoch, Step};

/// A device, an iteration, and what the device takes by iterations since.
pub type Course = (usize, u64, fn(u64) -> f64);

/// The truth.
pub struct Truth {
    pub problem: Problem,
    /// From that iteration on, that device takes so many times as long.
    pub fault: Option<(u64, usize, f64)>,
    /// From that iteration on, that device takes so many times as long.
    pub course: Option<Course>,
    /// Iterations on that plan take so many times as long as their works say.
    pub burden: Option<(Epoch, f64)>,
    /// Relative deviation of a single work, even between its bounds.
    pub noise: f64,
    pub duration_ns: u64,
    random: u64,
    timeline: Option<(Step, Timeline)>,
    since: (Epoch, Step),
}

impl Truth {
    pub fn new(problem: Problem, noise: f64) -> Self {
        let since = (Epoch(0), Step(0));
        Self {
            problem,
            fault: None,
            course: None,
            burden: None,
            noise,
            duration_ns: 0,
            random: 88_172_645_463_325_252,
            timeline: None,
            since,
        }
    }

    fn noisy(&mut self, ns: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let deviation = (self.random >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0;
        (ns as f64 * (1.0 + self.noise * deviation)).round() as u64
    }

    /// What an iteration takes whose works deviate.
    fn jittered_ns(&self, plan: &Plan, step: Step) -> u64 {
        let even = |at: u32| 1.0 + self.noise * (f64::from(at) / 50.0 - 1.0);
        let jitter = Jitter::measured((0..=100).map(even));
        let devices = vec![[jitter.clone(), jitter.clone(), jitter]; self.problem.devices.len()];
        let drawn = draws(&self.problem, plan, &Noise { devices, together: 0.0 }, 1, 77 + step.0);
        drawn.expect("a plan in force can be simulated").iteration_ns[0]
    }

    /// What a device records of an iteration under a plan.
    pub fn samples(&mut self, device: usize, place: Place, text: &str) -> Vec<Sample> {
        let plan = Plan::read(text).expect("plans of the ledger can be read");
        if self.since.0 != place.epoch {
            self.since = (place.epoch, place.step);
        }
        if let Some((step, device, factor)) = self.fault.filter(|fault| fault.0 <= place.step.0) {
            self.problem.devices[device].slowdown = factor;
            self.fault = self.fault.filter(|fault| fault.0 != step);
        }
        if let Some((device, onset, factor)) = self.course.filter(|(_, onset, _)| *onset <= place.step.0) {
            self.problem.devices[device].slowdown = factor(place.step.0 - onset);
        }
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
            let (start_ns, duration_ns) = (transfer.start_ns, transfer.arrival_ns - transfer.start_ns);
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
        samples
    }

    fn work(&mut self, device: usize, place: Place, mark: Mark, span: &Span, layer: usize, samples: &mut Vec<Sample>) {
        let slowdown = self.problem.devices[device].slowdown;
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
