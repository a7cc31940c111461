//! Which causes there may be, what each costs, and which of them count.

use super::graph::{Node, Pipeline};
use super::interval::{self, median_ns};
use super::levels::{DIRECTIONS, Levels};
use super::recording::{Direction, Recording, Worker};
use super::transfers::Transfers;
use super::{BetterPlan, Finding, Kind, Options, Place, Refusal, onset, remedy};
use crate::estimate::random::Random;
use crate::estimate::robust::{MAD_TO_SD, lower_median, median};
use std::cell::RefCell;
use std::ops::Range;

/// Least factor that is told: devices of a kind differ by some percent, and nobody mends that.
const FACTOR_MIN: f64 = 1.03;
/// Least mean factor of a worker that is slow at times only: means follow stalls.
const UNSTEADY_MIN: f64 = 1.05;
/// Standard deviations of what workers differ by, beyond which one is no longer like the others.
const UNLIKE_SD: f64 = 4.0;
/// Standard deviation of the logarithm that workers of a kind differ by at most, lengths aside: where many are slow, they
/// are no measure of it themselves.
const LIKE_SD_MAX: f64 = 0.03;
/// Root mean square of lengths' logarithms up to which sequences count as even.
const EVEN_LENGTHS: f64 = 0.05;
/// Chance that noise alone makes any of a recording's possible causes look like one.
const FALSE_ALARMS: f64 = 0.01;
/// Least cost that is told, as a share of an even job's iteration.
const COST_MIN: f64 = 0.01;
/// Least share of the lost time that is told.
const SHARE_MIN: f64 = 0.05;
/// Least loss beyond noise that is told as untold, as a share of an even job's iteration and of all that is lost.
const UNTOLD_MIN: f64 = 0.05;
const UNTOLD_SHARE_MIN: f64 = 0.5;
/// One in so many iterations, those that lost most and those that lost least, are strange.
const STRANGE: usize = 10;
/// Deviations that noise is drawn from.
const RESIDUALS: usize = 100_000;
/// F and B differ by less than this where only one of them is slow.
const OTHER_WAY_LN: f64 = 0.03;
/// Lengths count only where F and B agree on at least this share of their variance.
const LENGTH_SHARE_MIN: f64 = 0.5;
const BOTH: [usize; DIRECTIONS] = [0, 1];

/// What a cause does to operations.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cause {
    Stage(usize),
    /// One worker; one direction of it, or both.
    Worker(u32, u32, Option<Direction>),
    /// One worker at times: the logarithm of its mean factor.
    Unsteady(u32, u32, f64),
    /// One worker in a part of the iterations, by their places: the logarithm of its factor there.
    Since(u32, u32, Range<usize>, f64),
    Replica(u32),
    /// Links by number, and the logarithm of their factor.
    Links(Vec<usize>, f64),
    Length,
}

impl Cause {
    /// Logarithm of what it does to a node's time.
    fn ln(&self, levels: &Levels, iteration: usize, node: Node) -> f64 {
        match (self, node) {
            (Cause::Stage(stage), Node::Compute(worker, direction, chunk, _)) if worker.stage as usize == *stage => {
                levels.stage(chunk as usize, direction as usize)
            }
            (Cause::Worker(dp_rank, stage, only), Node::Compute(worker, direction, chunk, _))
                if (worker.dp_rank, worker.stage) == (*dp_rank, *stage) && only.is_none_or(|of| of == direction) =>
            {
                levels.worker(levels.times.replica(*dp_rank), chunk as usize, direction as usize)
            }
            (Cause::Unsteady(dp_rank, stage, ln), Node::Compute(worker, ..))
                if (worker.dp_rank, worker.stage) == (*dp_rank, *stage) =>
            {
                *ln
            }
            (Cause::Since(dp_rank, stage, places, ln), Node::Compute(worker, ..))
                if (worker.dp_rank, worker.stage) == (*dp_rank, *stage) && places.contains(&iteration) =>
            {
                *ln
            }
            (Cause::Replica(dp_rank), Node::Compute(worker, ..)) if worker.dp_rank == *dp_rank => {
                levels.replica[levels.times.replica(*dp_rank)]
            }
            (Cause::Length, Node::Compute(worker, _, _, microbatch)) => {
                let (replica, microbatch) = (levels.times.replica(worker.dp_rank), levels.times.microbatch(microbatch));
                levels.length(iteration, replica, microbatch) - levels.mean_length(iteration)
            }
            (Cause::Links(links, ln), Node::Transfer(link, partner))
                if links.contains(&link) || partner.is_some_and(|partner| links.contains(&partner)) =>
            {
                *ln
            }
            _ => 0.0,
        }
    }
}

/// A possible cause.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub cause: Cause,
    kind: Kind,
    place: Place,
    /// By iteration.
    factors: Vec<f64>,
    /// Their mean counts and not their median: what comes and goes.
    is_unsteady: bool,
    /// Standard deviation of the logarithm of all factors in common, which no iteration shows.
    common_sd: f64,
    /// By iteration: an even job's time with this cause alone, and the recording's without it.
    alone_ns: Vec<u64>,
    pub without_ns: Vec<u64>,
}

impl Candidate {
    pub fn new(cause: Cause, kind: Kind, place: Place, factors: Vec<f64>) -> Candidate {
        Candidate {
            cause,
            kind,
            place,
            factors,
            is_unsteady: false,
            common_sd: 0.0,
            alone_ns: Vec::new(),
            without_ns: Vec::new(),
        }
    }

    /// Logarithm of its factor, and its standard deviation.
    fn ln(&self) -> (f64, f64) {
        let ln = if self.is_unsteady { interval::ln_mean(&self.factors) } else { interval::ln_median(&self.factors) };
        ln.unwrap_or((0.0, 0.0))
    }

    /// Places of the iterations that it shows in, where those are not all.
    pub fn places(&self) -> Option<Range<usize>> {
        if let Cause::Since(_, _, places, _) = &self.cause { Some(places.clone()) } else { None }
    }

    /// Beyond what noise gives the largest of so many.
    fn is_beyond_noise(&self, among: usize) -> bool {
        let z = (2.0 * (among.max(1) as f64 / FALSE_ALARMS).ln()).sqrt();
        let least = if self.is_unsteady { UNSTEADY_MIN } else { FACTOR_MIN };
        let (ln, sd) = self.ln();
        ln - z * sd.hypot(self.common_sd) > least.ln()
    }
}

/// A recording replayed as it was, even, and with each possible cause alone or gone.
pub(super) struct Replayed {
    pub simulated_ns: Vec<u64>,
    pub even_ns: Vec<u64>,
    /// By iteration: an even job in which each compute deviates as some compute of the recording does from its like.
    noisy_ns: Vec<u64>,
    candidates: Vec<Candidate>,
    /// By link: the middle of its transfers.
    link_ns: Vec<f64>,
}

/// Replays a recording.
pub(super) fn replay(recording: &Recording, pipeline: &Pipeline, levels: &Levels) -> Result<Replayed, Refusal> {
    let transfers = Transfers::of(recording, pipeline)?;
    let mut candidates = transfers.candidates(pipeline, levels);
    candidates.extend(of_computes(recording, levels));
    let among = recording.workers.len() + candidates.len();
    candidates.retain(|candidate| candidate.is_beyond_noise(among));
    let even_link_ns = transfers.even_ns(pipeline);
    let mut replayed = Replayed {
        simulated_ns: Vec::new(),
        even_ns: Vec::new(),
        noisy_ns: Vec::new(),
        candidates,
        link_ns: transfers.middle_ns,
    };
    let residuals = levels.residuals(RESIDUALS);
    let mut ends = Vec::new();
    for (number, iteration) in recording.iterations.iter().enumerate() {
        let graph = pipeline.graph(iteration)?;
        let even = |node: Node, ns: u64| match node {
            Node::Compute(_, direction, ..) => levels.even(number, direction).exp(),
            Node::Transfer(link, _) => even_link_ns[pipeline.links[link].direction as usize],
            Node::Begin | Node::Join => ns as f64,
        };
        replayed.simulated_ns.push(graph.end_ns(&mut ends, |_, ns| ns));
        replayed.even_ns.push(graph.end_ns(&mut ends, |node, ns| even(node, ns).round() as u64));
        let random = RefCell::new(Random::new(number as u64, 0));
        let noisy = |node: Node, ns: u64| match node {
            Node::Compute(..) if !residuals.is_empty() => {
                let drawn = (random.borrow_mut().uniform() * residuals.len() as f64) as usize;
                (even(node, ns) * residuals[drawn.min(residuals.len() - 1)].exp()).round() as u64
            }
            _ => even(node, ns).round() as u64,
        };
        replayed.noisy_ns.push(graph.end_ns(&mut ends, noisy));
        for candidate in &mut replayed.candidates {
            let ln = |node: Node| candidate.cause.ln(levels, number, node);
            let alone = |node: Node, ns: u64| (even(node, ns) * ln(node).exp()).round() as u64;
            let without = |node: Node, ns: u64| (ns as f64 / ln(node).exp()).round() as u64;
            let (alone_ns, without_ns) = (graph.end_ns(&mut ends, alone), graph.end_ns(&mut ends, without));
            candidate.alone_ns.push(alone_ns);
            candidate.without_ns.push(without_ns);
        }
    }
    Ok(replayed)
}

/// Stages, workers, replicas and lengths.
fn of_computes(recording: &Recording, levels: &Levels) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    if levels.times.stages > 1 {
        for stage in 0..levels.times.stages {
            let own = |at, chunk, way| levels.of_replicas(at, chunk, way, None);
            let other = |at, _, way| levels.of_other_stages(at, stage, way);
            let factors = levels.ratios(&levels.times.chunks_of(stage), &BOTH, own, other);
            let place = Place { stage: Some(stage as u32), ..Place::default() };
            candidates.push(Candidate::new(Cause::Stage(stage), Kind::Stage, place, factors));
        }
    }
    if levels.times.replicas > 1 {
        let worker = |worker: &Worker| Candidate {
            common_sd: levels.worker_sd(),
            ..of_worker(levels, worker.dp_rank, worker.stage)
        };
        let steady: Vec<Candidate> = recording.workers.iter().map(worker).collect();
        let unsteady = recording.workers.iter().zip(&steady).map(|(worker, steady)| of_times(levels, *worker, steady));
        let unsteady: Vec<Candidate> =
            beyond_their_like(unsteady.collect(), f64::INFINITY).into_iter().filter(|of| of.is_unsteady).collect();
        let since: Vec<Candidate> = recording.workers.iter().filter_map(|of| since(recording, levels, *of)).collect();
        // A worker that became slow is that, and neither slow all along nor at times.
        let is_told = |of: &Candidate| {
            let place = |of: &Candidate| (of.place.dp_rank, of.place.stage);
            since.iter().any(|since| place(since) == place(of))
        };
        let steady = beyond_their_like(steady, like_sd_max(levels));
        let others = unsteady.into_iter().chain(steady).filter(|of| !is_told(of));
        candidates.extend(others.collect::<Vec<_>>());
        candidates.extend(since);
    }
    let lengths = levels.length_factors();
    if levels.length_share >= LENGTH_SHARE_MIN {
        candidates.push(Candidate::new(Cause::Length, Kind::Length, Place::default(), lengths));
    } else if levels.times.replicas > 1 && levels.times.stages > 1 {
        let ranks: std::collections::BTreeSet<u32> = recording.workers.iter().map(|worker| worker.dp_rank).collect();
        for dp_rank in ranks {
            let place = Place { dp_rank: Some(dp_rank), ..Place::default() };
            let factors = levels.replica_factors(levels.times.replica(dp_rank));
            candidates.push(Candidate::new(Cause::Replica(dp_rank), Kind::Worker, place, factors));
        }
    }
    candidates
}

/// What workers differ by at most where nobody is slow. With one stage and uneven sequences nothing is known of it: their
/// middle may be a long one for some and a short one for others.
fn like_sd_max(levels: &Levels) -> f64 {
    let lengths_hide = levels.times.stages < 2 && levels.length_rms() > EVEN_LENGTHS;
    if lengths_hide { f64::INFINITY } else { LIKE_SD_MAX.hypot(levels.worker_sd()) }
}

/// Those that differ by more than most of them do, or by more than `sd_max` allows.
fn beyond_their_like(mut workers: Vec<Candidate>, sd_max: f64) -> Vec<Candidate> {
    let ln = |worker: &Candidate| worker.ln().0;
    let scale = MAD_TO_SD * lower_median(&mut workers.iter().map(|of| ln(of).abs()).collect::<Vec<_>>()).unwrap_or(0.0);
    workers.retain(|worker| ln(worker) > UNLIKE_SD * scale.min(sd_max));
    workers
}

/// A worker against the others of its stage; one type of operation of it, if only that one is slow.
fn of_worker(levels: &Levels, dp_rank: u32, stage: u32) -> Candidate {
    let (replica, chunks) = (levels.times.replica(dp_rank), levels.times.chunks_of(stage as usize));
    let factors = |ways: &[usize]| {
        let own = |at, chunk, way| levels.usual(at, replica, chunk, way);
        let other = |at, chunk, way| levels.of_replicas(at, chunk, way, Some(replica));
        levels.ratios(&chunks, ways, own, other)
    };
    let by_way = Direction::ALL.map(|direction| factors(&[direction as usize]));
    let ln = by_way.each_ref().map(|factors| interval::ln_median(factors).map_or(0.0, |(ln, _)| ln));
    let slow = if ln[0] > ln[1] { Direction::Forward } else { Direction::Backward };
    let other = 1 - slow as usize;
    let mut place = Place { dp_rank: Some(dp_rank), stage: Some(stage), ..Place::default() };
    if ln[slow as usize] > 2.0 * OTHER_WAY_LN && ln[other].abs() < OTHER_WAY_LN {
        place.operation = Some(slow.operation().to_owned());
        let cause = Cause::Worker(dp_rank, stage, Some(slow));
        let [forward, backward] = by_way;
        let factors = if slow == Direction::Forward { forward } else { backward };
        return Candidate::new(cause, Kind::Operation, place, factors);
    }
    Candidate::new(Cause::Worker(dp_rank, stage, None), Kind::Worker, place, factors(&BOTH))
}

/// A worker by the mean of its times, where most of what it is slower by does not show in the middle of them.
fn of_times(levels: &Levels, worker: Worker, steady: &Candidate) -> Candidate {
    let Worker { dp_rank, stage } = worker;
    let factors = levels.mean_factors(levels.times.replica(dp_rank), stage as usize);
    let ln = interval::ln_mean(&factors).map_or(0.0, |(ln, _)| ln);
    let place = Place { dp_rank: Some(dp_rank), stage: Some(stage), ..Place::default() };
    Candidate {
        is_unsteady: steady.ln().0 < 0.5 * ln,
        common_sd: steady.common_sd,
        ..Candidate::new(Cause::Unsteady(dp_rank, stage, ln), Kind::Worker, place, factors)
    }
}

/// A worker that became slower within the recording, or recovered: what it takes over the others of its stage is more from
/// an iteration on, or up to one, and little in the others. One that they were slower than before did not change itself.
fn since(recording: &Recording, levels: &Levels, worker: Worker) -> Option<Candidate> {
    let Worker { dp_rank, stage } = worker;
    let (replica, chunks) = (levels.times.replica(dp_rank), levels.times.chunks_of(stage as usize));
    let own = |at, chunk, way| levels.usual(at, replica, chunk, way);
    let other = |at, chunk, way| levels.of_replicas(at, chunk, way, Some(replica));
    let ln: Vec<f64> = levels.ratios(&chunks, &BOTH, own, other).into_iter().map(f64::ln).collect();
    // One without a value would move the places of those behind it.
    if ln.len() != levels.times.iterations {
        return None;
    }
    let candidate = |found: onset::Onset| {
        let before = found.before.max(0.0);
        let (change, ends) = (found.after - before, [found.places.start, found.places.end - 1]);
        let [first, last] = ends.map(|at| u64::try_from(recording.iterations[at].number).ok());
        let place = Place {
            dp_rank: Some(dp_rank),
            stage: Some(stage),
            iteration: first.filter(|_| found.places.start > 0),
            last_iteration: last.filter(|_| found.places.end < ln.len()),
            ..Place::default()
        };
        let factors = ln[found.places.clone()].iter().map(|ln| (ln - before).exp()).collect();
        let recovered = found.places.end < ln.len();
        // A run of longer sequences looks like it, and of many stretches one may well have one.
        let by_length = match recovered || levels.times.stages < 2 {
            true => levels.worker_sd() * (ln.len() as f64 / found.places.len() as f64).sqrt(),
            false => 0.0,
        };
        let candidate = Candidate {
            common_sd: found.before_sd.hypot(by_length),
            ..Candidate::new(Cause::Since(dp_rank, stage, found.places.clone(), change), Kind::Worker, place, factors)
        };
        // It could have begun in any iteration, and ended in any.
        let last_ones = if recovered { levels.times.iterations } else { 1 };
        let among = recording.workers.len() * levels.times.iterations * last_ones;
        let is_slow = found.after > FACTOR_MIN.ln() && before < 0.5 * found.after;
        (is_slow && candidate.is_beyond_noise(among)).then_some(candidate)
    };
    onset::stretch(&ln).and_then(candidate).or_else(|| onset::of(&ln).and_then(candidate))
}

impl Replayed {
    /// The causes that count, and what would win time back.
    pub fn conclude(
        &self,
        recording: &Recording,
        levels: &Levels,
        measured_ns: &[u64],
        options: &Options,
    ) -> Concluded {
        let (even_ns, middle_ns) = (median_ns(&self.even_ns) as f64, |of: &[u64]| (median_ns(of) as f64).max(1.0));
        // What did not last for the whole recording is not to be seen in the middle of it.
        let has_begun = self.candidates.iter().any(|candidate| candidate.places().is_some());
        let differences = if has_begun { mean_differences } else { median_differences };
        let lost_ns = differences(&self.simulated_ns, &self.even_ns);
        let mut found: Vec<(f64, &Candidate)> = Vec::new();
        for candidate in &self.candidates {
            let alone_ns = differences(&candidate.alone_ns, &self.even_ns);
            let last_ns = differences(&self.simulated_ns, &candidate.without_ns);
            let cost_ns = alone_ns.max(0.0).midpoint(last_ns.max(0.0));
            let is_worth_telling = alone_ns.max(last_ns) >= COST_MIN * even_ns;
            if lost_ns > 0.0 && is_worth_telling && cost_ns >= SHARE_MIN * lost_ns {
                found.push((cost_ns / lost_ns, candidate));
            }
        }
        found.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let total = found.iter().map(|(share, _)| share).sum::<f64>().max(1.0);
        let without = |candidate: &Candidate| {
            let places = candidate.places().unwrap_or(0..measured_ns.len());
            let without_ns = median_ns(&candidate.without_ns[places.clone()]) as f64;
            let ratio = without_ns / middle_ns(&self.simulated_ns[places.clone()]);
            (median_ns(&measured_ns[places]) as f64 * ratio).round() as u64
        };
        let finding = |(share, candidate): &(f64, &Candidate)| {
            let factor = match candidate.is_unsteady {
                true => interval::of_mean(&candidate.factors, options.seed)?,
                false => interval::of_median(&candidate.factors, options.seed)?,
            };
            Some(Finding {
                kind: candidate.kind,
                place: candidate.place.clone(),
                factor: factor.middle,
                factor_low: factor.low / (interval::NORMAL_95 * candidate.common_sd).exp(),
                factor_high: factor.high * (interval::NORMAL_95 * candidate.common_sd).exp(),
                lost_share: share / total,
                is_reliable: true,
                without_ns: without(candidate),
            })
        };
        let findings: Vec<Finding> = found.iter().filter_map(finding).collect();
        let first = found.first().map(|(_, candidate)| *candidate);
        let better = first.and_then(|first| {
            let replay = remedy::Replay { simulated_ns: &self.simulated_ns, measured_ns, link_ns: &self.link_ns };
            remedy::of(first, recording, levels, &replay, options)
        });
        let told: Vec<&Candidate> = found.iter().map(|(_, candidate)| *candidate).collect();
        Concluded { findings, better, untold_ns: self.untold_ns(&told) }
    }

    /// What an iteration loses beyond noise and beyond what is told, the strangest iterations aside; none if that is little.
    fn untold_ns(&self, told: &[&Candidate]) -> Option<u64> {
        let less = |more: u64, less: u64| more as f64 - less as f64;
        let count = self.simulated_ns.len();
        let told_ns = |candidate: &&Candidate, at: usize| {
            let alone = less(candidate.alone_ns[at], self.even_ns[at]).max(0.0);
            alone.midpoint(less(self.simulated_ns[at], candidate.without_ns[at]).max(0.0))
        };
        let untold = |at: usize| {
            let all: f64 = told.iter().map(|candidate| told_ns(candidate, at)).sum();
            less(self.simulated_ns[at], self.noisy_ns[at]) - all
        };
        let mut untold: Vec<f64> = (0..count).map(untold).collect();
        untold.sort_unstable_by(f64::total_cmp);
        let kept = &untold[count / STRANGE..count - count / STRANGE];
        let mean = kept.iter().sum::<f64>() / kept.len().max(1) as f64;
        let lost_ns = mean_differences(&self.simulated_ns, &self.even_ns);
        let is_much = mean > UNTOLD_MIN * median_ns(&self.even_ns) as f64 && mean > UNTOLD_SHARE_MIN * lost_ns;
        is_much.then_some(mean.round() as u64)
    }
}

/// What is told of a recording.
pub(super) struct Concluded {
    /// Most lost time first.
    pub findings: Vec<Finding>,
    pub better: Option<BetterPlan>,
    /// What an iteration loses that is neither noise nor told.
    pub untold_ns: Option<u64>,
}

/// Middle of how much longer the one takes than the other, iteration by iteration.
pub(super) fn median_differences(more: &[u64], less: &[u64]) -> f64 {
    let mut differences: Vec<f64> = more.iter().zip(less).map(|(&more, &less)| more as f64 - less as f64).collect();
    median(&mut differences).unwrap_or(0.0)
}

/// Mean of it.
fn mean_differences(more: &[u64], less: &[u64]) -> f64 {
    let sum: f64 = more.iter().zip(less).map(|(&more, &less)| more as f64 - less as f64).sum();
    sum / more.len().max(1) as f64
}
