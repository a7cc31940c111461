//! What would win the lost time back: another plan where a stage is slow, else the cause mended.
//!
//! A recording knows no layers. Each chunk of the model is taken to have a number of equal ones; what the first and the last
//! have beyond an ordinary chunk is taken to be an embedding or a loss head, which is not cut, and the interval also holds
//! what comes out if it is spread over the chunk's layers. No device is to bear more of their activations than the fullest
//! one does today. B stays one operation: what its halves take is not
//! recorded. Both plans are replayed on the same draws of jitter and on the same resampled iterations, and the measured
//! iteration is scaled by their ratio.

use super::findings::{Candidate, Cause};
use super::interval::{self, median_ns, resampled};
use super::levels::Levels;
use super::recording::{Direction, Iteration, Recording, Work};
use super::times::DIRECTIONS;
use super::{BetterPlan, Options};
use crate::estimate::robust::{lower_median, median, scale_around};
use adaptis_plan::{Action, Cost, Device, Instruction, Layer, Link, Links, Pair, Plan, Problem, Stage, audit};
use adaptis_planner::noise::{Noise, draws};
use adaptis_planner::search::{Control, Outcome, search};
use adaptis_planner::simulate::simulate;
use adaptis_proto::Epoch;
use std::collections::BTreeMap;

/// Evaluations of the search for a plan of this many instructions or fewer; larger ones get in proportion fewer.
const EVALUATIONS: u64 = 4_000;
const INSTRUCTIONS: u64 = 1_024;
const EVALUATIONS_MIN: u64 = 64;
/// A cheaper kind of change is taken if it wins at least this share of what the best one does: to cut a model into more
/// stages is another job, to move layers a restart.
const MOST_OF_IT: f64 = 0.3;
/// Least gain, as a share of the iteration, that is worth another plan.
const GAIN_MIN: f64 = 0.005;
/// Iterations that are looked at for a whole one.
const TRIED: usize = 64;
/// Draws of jitter, resamplings of iterations that costs are fitted to.
const JITTER_DRAWS: usize = 16;
const RESAMPLINGS: usize = 64;
/// Of all devices.
const KIND: &str = "worker";
/// Bytes of every tensor, so that links can be given by their times.
const TENSOR_BYTES: u64 = 1_000_000_000;
/// Fastest link: of a tensor that takes no time.
const FASTEST: f64 = 1e18;

/// What a replay gave.
pub(super) struct Replay<'a> {
    pub simulated_ns: &'a [u64],
    pub measured_ns: &'a [u64],
    pub link_ns: &'a [f64],
}

/// The remedy of a cause.
pub(super) fn of(
    candidate: &Candidate,
    recording: &Recording,
    levels: &Levels,
    replay: &Replay<'_>,
    options: &Options,
) -> Option<BetterPlan> {
    let change = match &candidate.cause {
        Cause::Stage(_) => return another_plan(recording, levels, replay, options),
        Cause::Worker(dp_rank, stage, _) | Cause::Unsteady(dp_rank, stage, _) | Cause::Since(dp_rank, stage, ..) => {
            format!("replace the worker of dp rank {dp_rank}, stage {stage}, or leave it out")
        }
        Cause::Replica(dp_rank) => format!("replace the workers of dp rank {dp_rank}, or leave them out"),
        Cause::Links(..) => "mend the link, or place the stages so that less crosses it".to_owned(),
        Cause::Length => "give all microbatches and dp ranks sequences of the same total cost".to_owned(),
    };
    mended(candidate, replay, change, options)
}

/// An iteration without the cause.
fn mended(candidate: &Candidate, replay: &Replay<'_>, change: String, options: &Options) -> Option<BetterPlan> {
    let places = candidate.places().unwrap_or(0..replay.measured_ns.len());
    let (measured_ns, simulated_ns) = (&replay.measured_ns[places.clone()], &replay.simulated_ns[places.clone()]);
    let scaled = measured_ns.iter().zip(simulated_ns).zip(&candidate.without_ns[places]);
    let without: Vec<f64> = scaled
        .map(|((&measured, &simulated), &without)| measured as f64 * without as f64 / (simulated as f64).max(1.0))
        .collect();
    let interval = interval::of_median(&without, options.seed)?;
    Some(better(interval, median_ns(measured_ns), change))
}

pub(super) fn better(interval: interval::Interval, instead_of_ns: u64, change: String) -> BetterPlan {
    let ns = |value: f64| value.round().max(0.0) as u64;
    let (low_ns, high_ns) = (ns(interval.low), ns(interval.high));
    BetterPlan { iteration_ns: ns(interval.middle), low_ns, high_ns, change, instead_of_ns }
}

/// Other places of the layers, or another order.
fn another_plan(recording: &Recording, levels: &Levels, replay: &Replay<'_>, options: &Options) -> Option<BetterPlan> {
    let layers = options.layers.max(1);
    let all: Vec<usize> = (0..levels.times.iterations).collect();
    let mut problem = problem(recording, levels, replay, layers, &all, Excess::Apart);
    let (running, peak_bytes) = running(recording, levels, layers, &problem)?;
    problem.devices.iter_mut().for_each(|device| device.memory_bytes = peak_bytes);
    let instructions = running.programs.iter().map(|program| program.len() as u64).sum::<u64>().max(1);
    let evaluations = (EVALUATIONS * INSTRUCTIONS / instructions).clamp(EVALUATIONS_MIN, EVALUATIONS);
    let search_options = adaptis_planner::search::Options {
        seed: options.seed,
        evaluations: Some(evaluations),
        epoch: Epoch(2),
        ..Default::default()
    };
    let outcome = search(&problem, Some(&running), &search_options, &mut |_| Control::Go).ok()?;
    let plan = cheapest(&problem, &running, outcome)?;
    let noise = Noise::of_instructions(problem.devices.len(), levels.spread());
    let median_of = |problem: &Problem, plan: &Plan| {
        draws(problem, plan, &noise, JITTER_DRAWS, options.seed).ok().map(|draws| draws.median_ns().max(1) as f64)
    };
    let ratio = |problem: &Problem| Some(median_of(problem, &plan)? / median_of(problem, &running)?);
    let middle = ratio(&problem)?;
    if middle > 1.0 - GAIN_MIN {
        return None;
    }
    let one = |number: usize, excess: Excess| {
        let drawn = resampled(all.len(), options.seed, number);
        let measured: Vec<u64> = drawn.iter().map(|&at| replay.measured_ns[at]).collect();
        let problem = self::problem(recording, levels, replay, layers, &drawn, excess);
        ratio(&problem).map_or(f64::NAN, |ratio| ratio * median_ns(&measured) as f64)
    };
    let measured_ns = median_ns(replay.measured_ns);
    let [interval, spread] = [Excess::Apart, Excess::Spread].map(|excess| {
        let drawn: Vec<f64> = (0..RESAMPLINGS).map(|number| one(number, excess)).collect();
        interval::around(middle * measured_ns as f64, drawn).of_count(all.len())
    });
    let interval =
        interval::Interval { low: interval.low.min(spread.low), high: interval.high.max(spread.high), ..interval };
    Some(better(interval, measured_ns, change(&running, &plan)))
}

/// The cheapest kind of change that gives most of the gain.
fn cheapest(problem: &Problem, running: &Plan, outcome: Outcome) -> Option<Plan> {
    let before_ns = simulate(problem, running).ok()?.iteration_ns as f64;
    let best_ns = outcome.plan.predicted.as_ref().map_or(before_ns, |predicted| predicted.iteration_ns as f64);
    let enough_ns = before_ns - MOST_OF_IT * (before_ns - best_ns);
    let rung = outcome.rungs.into_iter().find(|rung| rung.iteration_ns as f64 <= enough_ns);
    Some(rung.map_or(outcome.plan, |rung| rung.plan))
}

/// The plan that was recorded, with the memory that it takes: the order of computes of the first replica in the first
/// iteration that has all of them in an order that can be.
fn running(recording: &Recording, levels: &Levels, layers: u32, problem: &Problem) -> Option<(Plan, u64)> {
    let whole = |iteration: &Iteration| {
        let plan = recorded(recording, iteration, levels, layers)?;
        let peak_bytes = simulate(problem, &plan).ok()?.peak_bytes.into_iter().max()?;
        audit(problem, &plan).is_empty().then_some((plan, peak_bytes))
    };
    recording.iterations.iter().take(TRIED).find_map(whole)
}

fn recorded(recording: &Recording, iteration: &Iteration, levels: &Levels, layers: u32) -> Option<Plan> {
    let dp_rank = recording.workers.first()?.dp_rank;
    let (chunks, stages) = (levels.times.chunks, levels.times.stages);
    let mut programs: Vec<Vec<(i64, usize, Action, u32)>> = vec![Vec::new(); stages];
    for operation in &iteration.operations {
        let worker = recording.workers[operation.worker as usize];
        if let Work::Compute { direction, chunk, microbatch } = operation.work
            && worker.dp_rank == dp_rank
        {
            let action = if direction == Direction::Forward { Action::Forward } else { Action::Backward };
            programs[worker.stage as usize].push((operation.start_ns, chunk as usize, action, microbatch));
        }
    }
    programs.iter_mut().for_each(|program| program.sort_unstable_by_key(|&(start_ns, ..)| start_ns));
    // Microbatches by the order in which they enter the model, whatever their numbers.
    let entering = programs.iter().flatten().filter(|(_, chunk, action, _)| *chunk == 0 && *action == Action::Forward);
    let place: BTreeMap<u32, usize> =
        entering.enumerate().map(|(place, &(_, _, _, microbatch))| (microbatch, place)).collect();
    let instruction = |&(_, chunk, action, microbatch): &(i64, usize, Action, u32)| {
        place.get(&microbatch).map(|&place| Instruction::new(chunk, action, place))
    };
    let stage = |chunk: usize| Stage {
        layers: [chunk as u32 * layers, (chunk as u32 + 1) * layers],
        device: levels.times.stage_of[chunk] as u32,
        recompute: Vec::new(),
        note: None,
    };
    Some(Plan {
        format: adaptis_plan::plan::FORMAT.to_owned(),
        note: None,
        epoch: Epoch(1),
        parent: Epoch(0),
        layers: chunks as u32 * layers,
        devices: (0..stages).map(name).collect(),
        stages: (0..chunks).map(stage).collect(),
        programs: programs
            .iter()
            .map(|program| program.iter().map(instruction).collect::<Option<Vec<_>>>())
            .collect::<Option<Vec<_>>>()?,
        predicted: None,
        why: None,
    })
}

fn name(stage: usize) -> String {
    format!("stage {stage}")
}

/// Where what the first or last chunk has beyond an ordinary one is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Excess {
    /// In its first or last layer.
    Apart,
    /// In all of its layers.
    Spread,
}

/// A planning problem of what the stages took in some iterations.
fn problem(
    recording: &Recording,
    levels: &Levels,
    replay: &Replay<'_>,
    layers: u32,
    at: &[usize],
    excess: Excess,
) -> Problem {
    let times = &levels.times;
    let ns = |chunk: usize, way: usize| {
        let mut of: Vec<f64> = at
            .iter()
            .map(|&iteration| levels.of_replicas(iteration, chunk, way, None) + levels.mean_length(iteration))
            .filter(|ln| ln.is_finite())
            .collect();
        median(&mut of).map_or(0.0, |ln| ln.exp() / f64::from(layers))
    };
    let of_layer: Vec<[f64; DIRECTIONS]> =
        (0..times.chunks).map(|chunk| std::array::from_fn(|way| ns(chunk, way))).collect();
    let ordinary: [f64; DIRECTIONS] = std::array::from_fn(|way| {
        lower_median(&mut of_layer.iter().map(|of| of[way]).collect::<Vec<f64>>()).unwrap_or(0.0)
    });
    let mut costs = Vec::new();
    let mut model = Vec::new();
    for (chunk, mean) in of_layer.iter().enumerate() {
        let heavy = match excess {
            Excess::Apart if chunk + 1 == times.chunks => Some(layers - 1),
            Excess::Apart if chunk == 0 => Some(0),
            _ => None,
        };
        for layer in 0..layers {
            let ns: [u64; DIRECTIONS] = std::array::from_fn(|way| {
                let light = heavy.map_or(mean[way], |_| mean[way].min(ordinary[way]));
                let own = if heavy == Some(layer) { (mean[way] - light) * f64::from(layers) } else { 0.0 };
                (light + own).round() as u64
            });
            let [forward_ns, input_gradient_ns] = ns;
            costs.push(Cost { forward_ns, input_gradient_ns, activation_bytes: 1, ..Cost::default() });
            model.push(Layer {
                name: format!("{chunk}.{layer}"),
                signature: format!("chunk{chunk}"),
                parameter_bytes: 0,
                state_bytes: 0,
                output_bytes: TENSOR_BYTES,
                moved_bytes: Some(0),
                note: None,
            });
        }
    }
    let device = |stage: usize| Device {
        name: name(stage),
        kind: KIND.to_owned(),
        memory_bytes: adaptis_plan::problem::TOTAL_MAX,
        slowdown: 1.0,
        reserved_bytes: 0,
        note: None,
    };
    let microbatches = u32::try_from(times.microbatches).unwrap_or(u32::MAX);
    let devices = (0..times.stages).map(device).collect();
    Problem::new(microbatches, model, devices, [(KIND.to_owned(), costs)].into(), links(recording, replay))
}

/// Links by the middle of their transfers, over all replicas.
fn links(recording: &Recording, replay: &Replay<'_>) -> Links {
    let pipeline = super::graph::Pipeline::of(recording);
    let mut seen: BTreeMap<(u32, u32), Vec<f64>> = BTreeMap::new();
    for (link, ns) in pipeline.links.iter().zip(replay.link_ns).filter(|(_, ns)| ns.is_finite()) {
        seen.entry((link.from, link.to)).or_default().push(*ns);
    }
    let rate = |ns: f64| (TENSOR_BYTES as f64 * 1e9 / ns.max(1e-9)).min(FASTEST);
    let all: Vec<f64> = seen.values().flatten().copied().collect();
    let default = median(&mut all.clone()).map_or(FASTEST, rate);
    let pairs = seen.into_iter().filter_map(|((from, to), mut of)| {
        let bytes_per_second = rate(median(&mut of)?);
        let (from, to) = (name(from as usize), name(to as usize));
        Some(Pair { from, to, latency_ns: 0, bytes_per_second, note: None })
    });
    let default = Link { latency_ns: 0, bytes_per_second: default, note: () };
    Links { default, pairs: pairs.collect(), note: None }
}

/// What another plan changes, in words.
fn change(from: &Plan, to: &Plan) -> String {
    let held = |plan: &Plan| {
        let mut layers = vec![0_i64; plan.devices.len()];
        for stage in &plan.stages {
            layers[stage.device as usize] += i64::from(stage.layers[1] - stage.layers[0]);
        }
        layers
    };
    let moved: Vec<i64> = held(from).iter().zip(held(to)).map(|(before, after)| after - before).collect();
    let count = |layers: i64| if layers == 1 { "1 layer".to_owned() } else { format!("{layers} layers") };
    let side = |sign: i64, word: &str| -> Vec<String> {
        let on = moved.iter().enumerate().filter(|(_, layers)| **layers * sign > 0);
        on.map(|(stage, layers)| format!("{} {word} stage {stage}", count(layers.abs()))).collect()
    };
    let (off, onto) = (side(-1, "off"), side(1, "to"));
    let mut text = match (off.is_empty(), from.stages.len() == to.stages.len()) {
        (false, _) => format!("move {} ({})", off.join(" and "), onto.join(", ")),
        (true, true) => "run the same stages in another order".to_owned(),
        (true, false) => String::new(),
    };
    if from.stages.len() != to.stages.len() {
        let join = if text.is_empty() { "" } else { ", and " };
        text = format!("{text}{join}cut the model into {} stages instead of {}", to.stages.len(), from.stages.len());
    }
    text
}

impl Levels {
    /// Relative standard deviation of a compute around what it should take.
    pub(super) fn spread(&self) -> f64 {
        let mut left = Vec::new();
        for iteration in 0..self.times.iterations {
            for replica in 0..self.times.replicas {
                for chunk in 0..self.times.chunks {
                    for way in 0..DIRECTIONS {
                        left.extend(self.left(iteration, replica, chunk, way).filter(|value| value.is_finite()));
                    }
                }
            }
        }
        scale_around(&left, 0.0).unwrap_or(0.0)
    }
}
