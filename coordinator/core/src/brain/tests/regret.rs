//! Decisions held against the truth, over random jobs whose devices slow down and recover.
//!
//! An oracle knows the true costs at each iteration and has the best plan that a long search finds for them at once.
//! Beside what all of this costs against the oracle: how many of the switches pay, and whether what is said to lie within
//! an interval does so as often as it is said to.
//!
//! A few scenarios run with all tests. For the figures:
//! `SCENARIOS=300 cargo test --release -p adaptis-coordinator-core regret -- --nocapture`.

use super::cluster::{Faults, World, config, plan_in};
use super::truth::{Noise, Truth};
use crate::brain::{Config, Event, Mode};
use crate::estimate::random::Random;
use crate::estimate::{PHASES, Source};
use crate::ledger::Verdict;
use adaptis_plan::{Cost, Device, Layer, Links, Plan, Problem};
use adaptis_planner::moves::{moves, transfer_ns};
use adaptis_planner::search::{Control, Options, search};
use adaptis_proto::message::{Job, JobLayer};
use adaptis_proto::sample::Phase;
use adaptis_proto::{Epoch, RunId, Step};
use std::collections::BTreeMap;

const ITERATIONS: u64 = 240;
/// Scenarios where nobody says how many.
const SCENARIOS: u64 = 3;
/// Evaluations of a search of the coordinator, and of the oracle.
const EVALUATIONS: u64 = 8_000;
const ORACLE_EVALUATIONS: u64 = 8_000;
/// Iterations after a change that an answer to it may take.
const ANSWER_ITERATIONS: u64 = 8;
/// Standard deviations to either side that hold 90 in 100 of a normal distribution.
const NORMAL_90: f64 = 1.645;
/// Iterations that a plan's true time is the mean of.
const TRUE_ITERATIONS: u64 = 96;

/// A job, what it truly costs, and what befalls it.
pub(super) struct Scenario {
    pub(super) job: Job,
    pub(super) truth: Problem,
    kinds: Vec<&'static str>,
    noise: Noise,
    faults: Vec<(u64, usize, f64)>,
}

/// Types of layers: weight of F, I and W in them, and how much slower each is on the second kind.
const TYPES: [(&str, [f64; 3], f64); 4] = [
    ("attention/8h2/f32/b1xs8", [1.0, 1.3, 0.8], 2.0),
    ("mlp/8/f32/b1xs8", [1.5, 1.6, 1.5], 2.4),
    ("moe/8/f32/b1xs8", [2.0, 2.2, 1.7], 1.7),
    ("head/8/f32/b1xs8", [1.0, 1.1, 1.0], 2.6),
];

impl Scenario {
    pub(super) fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed, 0);
        let pick = |random: &mut Random, count: usize| (random.next() % count as u64) as usize;
        let devices = 3 + pick(&mut random, 3);
        let slow = pick(&mut random, devices / 2 + 1);
        let kinds: Vec<&str> = (0..devices).map(|at| if at + slow >= devices { "slow" } else { "fast" }).collect();
        let count = devices * (3 + pick(&mut random, 3));
        let head = 1.0 + 6.0 * random.uniform();
        let types: Vec<usize> =
            (0..count).map(|at| if at + 1 == count { 3 } else { [0, 1, pick(&mut random, 3)][at % 3] }).collect();
        let layer = |(index, &of): (usize, &usize)| JobLayer {
            name: format!("layer{index}"),
            signature: TYPES[of].0.into(),
            parameter_bytes: 10_000_000,
            state_bytes: 160_000_000,
            output_bytes: 8_000_000,
            moved_bytes: 140_000_000,
        };
        let job = Job {
            run: RunId("test".into()),
            devices: (0..devices).map(|index| format!("gpu{index}")).collect(),
            layers: types.iter().enumerate().map(layer).collect(),
            microbatches: 6 + 2 * pick(&mut random, 6) as u32,
            iterations: ITERATIONS,
            start_plan: None,
        };
        // What layers of a type differ by is the same on each kind.
        let own: Vec<f64> = (0..count).map(|_| random.factor(0.03)).collect();
        let costs = |slower: fn(f64) -> f64| {
            let cost = |(layer, &of): (usize, &usize)| {
                let (_, weights, ratio) = TYPES[of];
                let heavy = if of == 3 { head } else { 1.0 };
                let ns = |phase: usize| (2e6 * weights[phase] * heavy * slower(ratio) * own[layer]) as u64;
                Cost {
                    forward_ns: ns(0),
                    input_gradient_ns: ns(1),
                    weight_gradient_ns: ns(2),
                    activation_bytes: 40_000_000,
                    weight_gradient_bytes: 15_000_000,
                    ..Cost::default()
                }
            };
            types.iter().enumerate().map(cost).collect()
        };
        let truth = problem(
            &job,
            &kinds,
            BTreeMap::from([("fast".to_owned(), costs(|_| 1.0)), ("slow".to_owned(), costs(|ratio| ratio))]),
        );
        let start =
            search(&truth, None, &Options { evaluations: Some(ORACLE_EVALUATIONS), ..Options::default() }, &mut |_| {
                Control::Go
            });
        let start = start.expect("memory is ample").plan;
        let job = Job { start_plan: Some(start.write()), ..job };
        let mut faults = Vec::new();
        for _ in 0..1 + pick(&mut random, 3) {
            let step = 25 + pick(&mut random, 160) as u64;
            let device = pick(&mut random, devices);
            faults.push((step, device, 1.1 + 1.4 * random.uniform()));
            if random.uniform() < 0.4 {
                faults.push((step + 30 + pick(&mut random, 80) as u64, device, 1.0));
            }
        }
        faults.sort_by_key(|fault| fault.0);
        let noise = Noise::Heavy(if random.uniform() < 0.5 { 0.05 } else { 0.1 });
        Self { job, truth, kinds, noise, faults }
    }

    /// The whole run, told of earlier jobs once it has begun.
    pub(super) fn run(&self, seed: u64, earlier: Option<Event>) -> World {
        let config = Config { mode: Mode::Adapt, search_evaluations: Some(EVALUATIONS), seed, ..config() };
        let mut world = World::with(self.job.clone(), config, seed, Faults::default());
        for (rank, &kind) in world.ranks.iter_mut().zip(&self.kinds) {
            rank.kind = kind;
            rank.memory_bytes = self.truth.devices[rank.index].memory_bytes;
        }
        world.truth = Some(self.luck());
        world.run_until("training", |world| world.brain.running.is_some());
        earlier.into_iter().for_each(|event| world.feed(event));
        world.run_until("the end", |world| world.done);
        world
    }

    /// The same job, which no device disturbs, on a network of this bandwidth.
    pub(super) fn on_network(mut self, bytes_per_second: f64) -> Self {
        self.faults.clear();
        self.truth.links = Links::all(10_000, bytes_per_second);
        self
    }

    /// The truth before the first iteration.
    fn luck(&self) -> Truth {
        let mut truth = Truth::new(self.truth.clone(), self.noise);
        truth.faults.extend(&self.faults);
        truth
    }
}

fn problem(job: &Job, kinds: &[&str], costs: BTreeMap<String, Vec<Cost>>) -> Problem {
    let layer = |layer: &JobLayer| Layer {
        name: layer.name.clone(),
        signature: layer.signature.clone(),
        parameter_bytes: layer.parameter_bytes,
        state_bytes: layer.state_bytes,
        output_bytes: layer.output_bytes,
        moved_bytes: Some(layer.moved_bytes),
        note: None,
    };
    let device = |(name, kind): (&String, &&str)| Device {
        name: name.clone(),
        kind: (*kind).into(),
        memory_bytes: 16_000_000_000,
        slowdown: 1.0,
        reserved_bytes: 0,
        note: None,
    };
    let mut costs = costs;
    costs.retain(|kind, _| kinds.contains(&kind.as_str()));
    let devices = job.devices.iter().zip(kinds).map(device).collect();
    Problem::new(job.microbatches, job.layers.iter().map(layer).collect(), devices, costs, Links::all(10_000, 2e10))
}

/// Of so many, how many.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    of: u64,
    count: u64,
}

impl Share {
    fn add(&mut self, is_one: bool) {
        self.of += 1;
        self.count += u64::from(is_one);
    }

    pub(super) fn percent(self) -> f64 {
        100.0 * self.count as f64 / self.of.max(1) as f64
    }
}

/// What many runs came to.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Against the oracle, by run.
    pub(super) regrets: Vec<f64>,
    /// The same without the iterations right after a change.
    settled: Vec<f64>,
    /// Against the first plan throughout.
    gains: Vec<f64>,
    pub(super) switches: Share,
    /// Costs within their intervals, by where they come from.
    costs: BTreeMap<Source, Share>,
    links: Share,
    /// True gains of the switches above their lower tenth: what was said to be exceeded in 90 of 100.
    gain_low: Share,
    reverts: u64,
}

impl Tally {
    pub(super) fn add(&mut self, scenario: &Scenario, seed: u64, earlier: Option<Event>) {
        let world = scenario.run(seed, earlier);
        self.cover(scenario, &world);
        self.pay(scenario, &world);
        let ours = spent_ns(scenario, |step, _| plan_at(&world, step));
        let first = plan_in(&world, Epoch(1));
        let still = spent_ns(scenario, |_, _| first.clone());
        let mut known: Option<(Problem, Plan)> = None;
        let oracle = spent_ns(scenario, |_, truth| {
            let is_stale = known.as_ref().is_none_or(|(problem, _)| problem != truth);
            if is_stale {
                let from = known.take().map_or_else(|| first.clone(), |(_, plan)| plan);
                known = Some((truth.clone(), best(truth, &from)));
            }
            known.as_ref().expect("just found").1.clone()
        });
        self.regrets.push(ours.all_ns / oracle.all_ns - 1.0);
        self.settled.push(ours.settled_ns / oracle.settled_ns - 1.0);
        self.gains.push(still.all_ns / ours.all_ns);
        let reverts = world.ledger.held.decisions.iter().filter(|decision| decision.verdict == Verdict::Revert);
        self.reverts += reverts.count() as u64;
    }

    /// What is estimated in the end, and what is true.
    fn cover(&mut self, scenario: &Scenario, world: &World) {
        let mut truth = scenario.luck();
        truth.disturb(Step(ITERATIONS));
        let truth = truth.problem;
        let estimator = &world.brain.adapt.as_ref().expect("it adapts").estimator;
        let estimated = estimator.problem().expect("all was measured");
        let is_within = |said: f64, is: f64, ln_sd: f64| (said.ln() - is.ln()).abs() <= NORMAL_90 * ln_sd;
        for (device, figures) in estimated.uncertainty.figures.iter().enumerate() {
            for (layer, figures) in figures.iter().enumerate() {
                let ns = |problem: &Problem, phase: usize| {
                    let cost = &problem.costs_of(device)[layer];
                    let ns = match PHASES[phase] {
                        Phase::Forward => cost.forward_ns,
                        Phase::InputGradient => cost.input_gradient_ns,
                        _ => cost.weight_gradient_ns,
                    };
                    ns as f64 * problem.devices[device].slowdown
                };
                for (phase, figure) in figures.iter().enumerate().take(3) {
                    let within = is_within(ns(&estimated.problem, phase), ns(&truth, phase), figure.ln_sd);
                    self.costs.entry(figure.source).or_default().add(within);
                }
            }
        }
        for link in &estimated.uncertainty.links {
            let time = |problem: &Problem| {
                let found = problem.link(link.from, link.to);
                found.latency_ns as f64 + 8e6 * 1e9 / found.bytes_per_second
            };
            self.links.add(is_within(time(&estimated.problem), time(&truth), link.figure.ln_sd));
        }
    }

    /// What each switch won until the next one or the end, and what was said of it.
    fn pay(&mut self, scenario: &Scenario, world: &World) {
        let held = &world.ledger.held;
        for decision in held.decisions.iter().filter(|decision| decision.verdict == Verdict::Switch) {
            let Some(epoch) = decision.epoch else { continue };
            let on: Vec<Step> = held.iterations.iter().filter(|of| of.epoch == epoch).map(|of| of.index).collect();
            let Some(&first) = on.first() else { continue };
            let (before, after) = (plan_in(world, plan_in(world, epoch).parent), plan_in(world, epoch));
            let mut truth = scenario.luck();
            // As it was when that was said: what changes later is no error of it.
            truth.disturb(decision.iteration);
            let moved_ns = transfer_ns(&truth.problem, &moves(&truth.problem, &before, &after));
            let apart = |truth: &Truth, step: Step| {
                truth.jittered_ns(&before, step) as f64 - truth.jittered_ns(&after, step) as f64
            };
            let mean = (0..TRUE_ITERATIONS).map(|at| apart(&truth, Step(at))).sum::<f64>() / TRUE_ITERATIONS as f64;
            self.gain_low.add(mean >= decision.gain_low_ns as f64);
            truth.disturb(first);
            let won: f64 = on
                .iter()
                .map(|&step| {
                    truth.disturb(step);
                    apart(&truth, step)
                })
                .sum();
            self.switches.add(won > moved_ns as f64);
        }
    }

    pub(super) fn say(&self, what: &str) {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let mut sorted = self.regrets.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| 100.0 * sorted[(share * (sorted.len() - 1) as f64) as usize];
        println!(
            "{what}: {} runs; regret mean {:.2}%, median {:.2}%, 90th {:.2}%, worst {:.2}%; without {ANSWER_ITERATIONS} iterations after \
             each change {:.2}%; the first plan throughout takes {:.3} times as long",
            sorted.len(),
            100.0 * mean(&sorted),
            at(0.5),
            at(0.9),
            at(1.0),
            100.0 * mean(&self.settled),
            mean(&self.gains)
        );
        let (pay, low, links) = (self.switches, self.gain_low, self.links);
        println!(
            "  {} switches, {:.1}% pay; the gain is above its lower tenth in {:.1}%; {} taken back",
            pay.of,
            pay.percent(),
            low.percent(),
            self.reverts
        );
        println!("  90% intervals: links {:.1}% of {}", links.percent(), links.of);
        for (source, share) in &self.costs {
            println!("  {source:?}: {:.1}% of {}", share.percent(), share.of);
        }
    }
}

/// The plan that an iteration ran on.
fn plan_at(world: &World, step: Step) -> Plan {
    let of = world.ledger.held.iterations.iter().find(|of| of.index == step).expect("every iteration was recorded");
    plan_in(world, of.epoch)
}

/// A long search's best, or the plan in force.
pub(super) fn best(truth: &Problem, from: &Plan) -> Plan {
    let options = Options { evaluations: Some(ORACLE_EVALUATIONS), ..Options::default() };
    let found = search(truth, Some(from), &options, &mut |_| Control::Go);
    found.map_or_else(|_| from.clone(), |outcome| outcome.plan)
}

/// What all iterations take.
#[derive(Default)]
struct Spent {
    all_ns: f64,
    /// But for those right after a change.
    settled_ns: f64,
}

/// All iterations, each on its plan, and what the moves between them take.
fn spent_ns(scenario: &Scenario, mut plan: impl FnMut(Step, &Problem) -> Plan) -> Spent {
    let mut truth = scenario.luck();
    let mut before: Option<Plan> = None;
    let mut spent = Spent::default();
    for step in (0..ITERATIONS).map(Step) {
        truth.disturb(step);
        let now = plan(step, &truth.problem);
        if let Some(before) = before.filter(|before| before.stages != now.stages) {
            spent.all_ns += transfer_ns(&truth.problem, &moves(&truth.problem, &before, &now)) as f64;
        }
        let iteration_ns = truth.jittered_ns(&now, step) as f64;
        spent.all_ns += iteration_ns;
        let answers = |fault: &(u64, usize, f64)| (fault.0..fault.0 + ANSWER_ITERATIONS).contains(&step.0);
        if !scenario.faults.iter().any(answers) {
            spent.settled_ns += iteration_ns;
        }
        before = Some(now);
    }
    spent
}

#[allow(clippy::disallowed_methods, reason = "whoever asks for the figures says of how many scenarios")]
pub(super) fn scenarios(usual: u64) -> u64 {
    std::env::var("SCENARIOS").map_or(usual, |text| text.parse().expect("a whole number"))
}

#[test]
fn decisions_are_nearly_those_of_an_oracle() {
    let scenarios = scenarios(SCENARIOS);
    let mut tally = Tally::default();
    for seed in 1..=scenarios {
        let scenario = Scenario::draw(seed);
        tally.add(&scenario, seed, None);
        if scenarios > SCENARIOS {
            let faults: Vec<String> = scenario
                .faults
                .iter()
                .map(|(step, device, factor)| format!("{step}:gpu{device}:{factor:.2}"))
                .collect();
            let regret = 100.0 * tally.regrets.last().expect("just added");
            println!("{seed:4} {:?} {} regret {regret:.2}%", scenario.kinds, faults.join(" "));
        }
    }
    tally.say("decisions");
    let mean = tally.regrets.iter().sum::<f64>() / tally.regrets.len() as f64;
    assert!(mean < 0.05, "regret {mean}");
    assert!(tally.switches.of >= scenarios, "{tally:?}");
    assert!(tally.switches.percent() >= 95.0, "{tally:?}");
}
