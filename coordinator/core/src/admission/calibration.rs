//! Whether intervals hold what they say: of costs, of links, and of what a plan that a search picked would gain.
//!
//! Jobs whose layers differ, on two kinds of devices, of which one after another changes its speed; the plans follow. All
//! is drawn from fixed seeds, so the shares are always the same.

use super::{Admission, Candidate, Input, Policy, Trigger};
use crate::drift::Who;
use crate::estimate::random::Random;
use crate::estimate::synthetic::{Cluster, Noise, RUN};
use crate::estimate::{Estimated, Estimator, Source};
use adaptis_plan::{Plan, Problem};
use adaptis_planner::noise::{self, Jitter};
use adaptis_planner::schedule;
use adaptis_planner::search::{Control, Options, search};
use adaptis_proto::sample::{Mark, Place, Sample};
use adaptis_proto::{DeviceIndex, Epoch, Generation, Microbatch, Step};

const KINDS: [&str; 4] = ["h100", "h100", "h100", "a100"];
const LAYERS: usize = 16;
/// How much layers of a signature differ.
const OWN_SD: f64 = 0.03;
const JOBS: u64 = 32;
const CHANGES: usize = 3;
const EVALUATIONS: u64 = 400;
/// Iterations that a plan's true time is the mean of.
const TRUE_ITERATIONS: usize = 64;
const LATENCY_NS: f64 = 10_000.0;
const BYTES_PER_NS: f64 = 20.0;
const BYTES: u64 = 1_000_000;
/// In percent: of the intervals of 90%, and of the gains of which the lower tenth is told.
const BAND: std::ops::RangeInclusive<f64> = 87.0..=93.0;

/// Of so many, how many lie where they are said to.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    of: u64,
    count: u64,
}

impl Share {
    fn add(&mut self, is_one: bool) {
        self.of += 1;
        self.count += u64::from(is_one);
    }

    fn percent(self) -> f64 {
        100.0 * self.count as f64 / self.of.max(1) as f64
    }
}

#[derive(Debug, Default)]
struct Shares {
    costs: Share,
    links: Share,
    gains: Share,
}

/// A job under way.
struct Training {
    cluster: Cluster,
    estimator: Estimator,
    plan: Plan,
    jitter: Jitter,
    random: Random,
    step: u64,
}

impl Training {
    fn begin(noise: Noise, seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let mut cluster = Cluster::new(&KINDS, LAYERS, noise, seed);
        let own: Vec<f64> = (0..LAYERS).map(|_| random.factor(OWN_SD)).collect();
        for costs in &mut cluster.cost_ns {
            costs.iter_mut().zip(&own).for_each(|(phases, own)| phases.iter_mut().for_each(|ns| *ns *= own));
        }
        let mut estimator = Estimator::new(cluster.job.clone());
        cluster.calibrate().iter().for_each(|(device, sample)| estimator.absorb(*device, sample));
        let jitter = Jitter::measured((0..2_000).map(|_| cluster.noisy(1e9) as f64 / 1e9));
        let plan = schedule::even(&estimator.problem().expect("all was calibrated").problem);
        let mut training = Self { cluster, estimator, plan: plan.clone(), jitter, random, step: 0 };
        training.follow(plan);
        training
    }

    /// Another plan, until it is settled.
    fn follow(&mut self, plan: Plan) {
        for stage in &plan.stages {
            self.cluster.device_of[stage.range()].fill(stage.device as usize);
        }
        self.plan = plan;
        self.cluster.epoch += 1;
        (0..3).for_each(|_| self.train(Mark::Cold));
        (0..5).for_each(|_| self.train(Mark::Warm));
    }

    fn train(&mut self, mark: Mark) {
        self.cluster.train(&mut self.estimator, self.step, mark);
        let place = Place { step: Step(self.step), epoch: Epoch(self.cluster.epoch), generation: Generation(1) };
        for pair in self.plan.stages.windows(2) {
            for (from, to) in [(pair[0].device, pair[1].device), (pair[1].device, pair[0].device)] {
                for microbatch in 0..self.cluster.job.microbatches {
                    let duration_ns = self.cluster.noisy(LATENCY_NS + BYTES as f64 / BYTES_PER_NS);
                    let (from, microbatch) = (DeviceIndex::from(from as usize), Microbatch(microbatch));
                    let (bytes, start_ns) = (BYTES, 0);
                    let sample = Sample::Transfer { place, from, microbatch, mark, bytes, start_ns, duration_ns };
                    self.estimator.absorb(DeviceIndex::from(to as usize), &sample);
                }
            }
        }
        self.step += 1;
    }

    /// A device takes another time, and it is noticed.
    fn change(&mut self) {
        let device = (self.random.next() % KINDS.len() as u64) as usize;
        let was = self.cluster.slowdown[device];
        self.cluster.slowdown[device] = if was > 1.0 { 1.0 } else { 1.1 + self.random.uniform() };
        let from = Step(self.step);
        (0..2 + self.random.next() % 7).for_each(|_| self.train(Mark::Warm));
        self.estimator.restart_window(Who::Device(DeviceIndex::from(device)), from);
    }

    fn truth(&self, estimated: &Problem) -> Problem {
        let mut truth = estimated.clone();
        for (device, slowdown) in truth.devices.iter_mut().zip(&self.cluster.slowdown) {
            device.slowdown = *slowdown;
        }
        for (device, &kind) in self.cluster.kind_of.iter().enumerate() {
            let costs = truth.costs.get_mut(KINDS[device]).expect("every kind has costs");
            for (cost, ns) in costs.iter_mut().zip(&self.cluster.cost_ns[kind]) {
                (cost.forward_ns, cost.input_gradient_ns, cost.weight_gradient_ns) =
                    (ns[0] as u64, ns[1] as u64, ns[2] as u64);
            }
        }
        let links = &mut truth.links;
        for (latency_ns, bytes_per_second) in
            std::iter::once((&mut links.default.latency_ns, &mut links.default.bytes_per_second))
                .chain(links.pairs.iter_mut().map(|pair| (&mut pair.latency_ns, &mut pair.bytes_per_second)))
        {
            (*latency_ns, *bytes_per_second) = (LATENCY_NS as u64, 1e9 * BYTES_PER_NS);
        }
        truth
    }

    fn look(&self, estimated: &Estimated, shares: &mut Shares) {
        for (device, figures) in estimated.uncertainty.figures.iter().enumerate() {
            for (layer, figures) in figures.iter().enumerate() {
                let cost = &estimated.problem.costs_of(device)[layer];
                let said = [cost.forward_ns, cost.input_gradient_ns, cost.weight_gradient_ns];
                for phase in (0..RUN.len()).filter(|&phase| figures[phase].source == Source::Measured) {
                    let said = said[phase] as f64 * estimated.problem.devices[device].slowdown;
                    let ratio = self.cluster.true_ns(device, layer, phase) / said;
                    shares.costs.add((figures[phase].low()..=figures[phase].high()).contains(&ratio));
                }
            }
        }
        for link in &estimated.uncertainty.links {
            let found = estimated.problem.link(link.from, link.to);
            let said = found.latency_ns as f64 + BYTES as f64 * 1e9 / found.bytes_per_second;
            let ratio = (LATENCY_NS + BYTES as f64 / BYTES_PER_NS) / said;
            shares.links.add((link.figure.low()..=link.figure.high()).contains(&ratio));
        }
    }

    /// What a search finds, and whether it gains as much as is said.
    fn decide(&self, estimated: &Estimated, shares: &mut Shares) -> Plan {
        let options = Options { evaluations: Some(EVALUATIONS), seed: self.step, ..Options::default() };
        let found = search(&estimated.problem, Some(&self.plan), &options, &mut |_| Control::Go);
        let candidates = [Candidate { plan: found.expect("memory is ample").plan, transfer_ns: 0 }];
        let [Candidate { plan, .. }] = &candidates;
        if (&plan.stages, &plan.programs) == (&self.plan.stages, &self.plan.programs) {
            return plan.clone();
        }
        let weighed = Admission::new(Policy::default()).decide(&Input {
            step: Step(self.step),
            now_ns: 0,
            trigger: Trigger::Operator,
            estimated,
            running: &self.plan,
            candidates: &candidates,
            horizon_iterations: 1_000,
            correction: 1.0,
            seed: self.step,
        });
        let truth = self.truth(&estimated.problem);
        let noise = noise::Noise { devices: vec![[(); 3].map(|()| self.jitter.clone()); KINDS.len()], together: 0.0 };
        let mean_ns = |plan: &Plan| {
            noise::draws(&truth, plan, &noise, TRUE_ITERATIONS, 77).expect("it was simulated").mean_ns() as f64
        };
        let gain_ns = mean_ns(&self.plan) - mean_ns(plan);
        shares.gains.add(gain_ns >= weighed.gain_low_ns as f64);
        plan.clone()
    }
}

#[test]
fn intervals_hold_what_they_say() {
    // So few gains of each noise that all of them are told together.
    let mut all_gains = Share::default();
    for noise in [Noise::Normal(0.05), Noise::Normal(0.1), Noise::Heavy(0.05), Noise::Heavy(0.1)] {
        let mut shares = Shares::default();
        for seed in 0..JOBS {
            let mut training = Training::begin(noise, 500 + seed);
            for _ in 0..CHANGES {
                training.change();
                let estimated = training.estimator.problem().expect("all was measured");
                training.look(&estimated, &mut shares);
                let plan = training.decide(&estimated, &mut shares);
                training.follow(plan);
                let estimated = training.estimator.problem().expect("all was measured");
                training.look(&estimated, &mut shares);
            }
        }
        let Shares { costs, links, gains } = shares;
        for (what, share) in [("costs", costs), ("links", links), ("gains", gains)] {
            println!("{noise:?} {what}: {:.1}% of {}", share.percent(), share.of);
        }
        for (what, share) in [("costs", costs), ("links", links)] {
            assert!(BAND.contains(&share.percent()), "{noise:?} {what}: {:.1}%", share.percent());
        }
        (all_gains.of, all_gains.count) = (all_gains.of + gains.of, all_gains.count + gains.count);
    }
    println!("gains: {:.1}% of {}", all_gains.percent(), all_gains.of);
    // One of them is a quarter of a percent, a standard deviation 1.5: another library's logarithm may tip some.
    let band = BAND.start() - 1.5..=BAND.end() + 1.5;
    assert!(band.contains(&all_gains.percent()), "gains: {:.1}%", all_gains.percent());
}
