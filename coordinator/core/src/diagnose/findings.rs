//! Which causes there may be, what each costs, and which of them count.

use super::graph::{Graph, Node, Pipeline};
use super::interval::{self, median_ns};
use super::levels::{DIRECTIONS, Levels};
use super::recording::{Direction, Recording};
use super::{BetterPlan, Finding, Kind, Options, Place, Refusal, remedy};
use crate::estimate::robust::{lower_median, median};

/// Least factor that is told: devices of a kind differ by some percent, and nobody mends that.
const FACTOR_MIN: f64 = 1.03;
/// Chance that noise alone makes any of a recording's possible causes look like one.
const FALSE_ALARMS: f64 = 0.01;
/// Least cost that is told, as a share of an even job's iteration.
const COST_MIN: f64 = 0.01;
/// Least share of the lost time that is told.
const SHARE_MIN: f64 = 0.05;
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
            (Cause::Replica(dp_rank), Node::Compute(worker, ..)) if worker.dp_rank == *dp_rank => {
                levels.replica[levels.times.replica(*dp_rank)]
            }
            (Cause::Length, Node::Compute(worker, _, _, microbatch)) => {
                let (replica, microbatch) = (levels.times.replica(worker.dp_rank), levels.times.microbatch(microbatch));
                levels.length(iteration, replica, microbatch) - levels.mean_length(iteration)
            }
            (Cause::Links(links, ln), Node::Transfer(link)) if links.contains(&link) => *ln,
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
    /// By iteration: an even job's time with this cause alone, and the recording's without it.
    alone_ns: Vec<u64>,
    pub without_ns: Vec<u64>,
}

impl Candidate {
    fn new(cause: Cause, kind: Kind, place: Place, factors: Vec<f64>) -> Candidate {
        Candidate { cause, kind, place, factors, alone_ns: Vec::new(), without_ns: Vec::new() }
    }

    /// Beyond what noise gives the largest of so many.
    fn is_beyond_noise(&self, among: usize) -> bool {
        let z = (2.0 * (among.max(1) as f64 / FALSE_ALARMS).ln()).sqrt();
        interval::ln_median(&self.factors).is_some_and(|(ln, sd)| ln - z * sd > FACTOR_MIN.ln())
    }
}

/// A recording replayed as it was, even, and with each possible cause alone or gone.
pub(super) struct Replayed {
    pub simulated_ns: Vec<u64>,
    pub even_ns: Vec<u64>,
    candidates: Vec<Candidate>,
    /// By link: the middle of its transfers.
    link_ns: Vec<f64>,
}

/// Replays a recording.
pub(super) fn replay(recording: &Recording, pipeline: &Pipeline, levels: &Levels) -> Result<Replayed, Refusal> {
    let transfers = Transfers::of(recording, pipeline)?;
    let mut candidates = transfers.candidates(pipeline, levels);
    candidates.extend(of_computes(recording, levels));
    let among = candidates.len();
    candidates.retain(|candidate| candidate.is_beyond_noise(among));
    let even_link_ns = transfers.even_ns(pipeline);
    let mut replayed =
        Replayed { simulated_ns: Vec::new(), even_ns: Vec::new(), candidates, link_ns: transfers.middle_ns };
    let mut ends = Vec::new();
    for (number, iteration) in recording.iterations.iter().enumerate() {
        let graph = pipeline.graph(iteration)?;
        let even = |node: Node, ns: u64| match node {
            Node::Compute(_, direction, ..) => levels.even(number, direction).exp(),
            Node::Transfer(link) => even_link_ns[pipeline.links[link].direction as usize],
            Node::Begin | Node::Join => ns as f64,
        };
        replayed.simulated_ns.push(graph.end_ns(&mut ends, |_, ns| ns));
        replayed.even_ns.push(graph.end_ns(&mut ends, |node, ns| even(node, ns).round() as u64));
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
        candidates.extend(recording.workers.iter().map(|worker| of_worker(levels, worker.dp_rank, worker.stage)));
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

/// Transfers by link.
struct Transfers {
    /// By link and iteration, in nanoseconds; no number where there was none.
    by_iteration: Vec<Vec<f64>>,
    middle_ns: Vec<f64>,
}

impl Transfers {
    fn of(recording: &Recording, pipeline: &Pipeline) -> Result<Transfers, Refusal> {
        let mut by_iteration = vec![Vec::with_capacity(recording.iterations.len()); pipeline.links.len()];
        for iteration in &recording.iterations {
            let Graph { nodes, ns, .. } = pipeline.graph(iteration)?;
            let mut seen = vec![Vec::new(); pipeline.links.len()];
            for (node, &ns) in nodes.iter().zip(&ns) {
                if let Node::Transfer(link) = node {
                    seen[*link].push((ns as f64).max(1.0));
                }
            }
            for (of, mut seen) in by_iteration.iter_mut().zip(seen) {
                of.push(median(&mut seen).unwrap_or(f64::NAN));
            }
        }
        let middle_ns = by_iteration.iter().map(|of| known(of.iter().copied(), median)).collect();
        Ok(Transfers { by_iteration, middle_ns })
    }

    /// By direction: what a transfer takes in an even job.
    fn even_ns(&self, pipeline: &Pipeline) -> [f64; DIRECTIONS] {
        Direction::ALL.map(|direction| {
            let own = pipeline.links.iter().zip(&self.middle_ns).filter(|(link, _)| link.direction == direction);
            let even = known(own.map(|(_, ns)| *ns), lower_median);
            if even.is_finite() { even } else { 0.0 }
        })
    }

    /// Each link against the same one of the other replicas, or, with one replica, against the other links.
    fn candidates(&self, pipeline: &Pipeline, levels: &Levels) -> Vec<Candidate> {
        let links = &pipeline.links;
        let iterations = levels.times.iterations;
        let factors = |own: &[usize], others: &[usize]| -> Vec<f64> {
            let level = |of: &[usize], at: usize| known(of.iter().map(|&link| self.by_iteration[link][at]), lower_median);
            let ratios = (0..iterations).map(|at| level(own, at) / level(others, at));
            ratios.filter(|ratio| ratio.is_finite() && *ratio > 0.0).collect()
        };
        let candidate = |own: Vec<usize>, others: &[usize], dp_rank: Option<u32>| {
            let (from_stage, to_stage) = (Some(links[own[0]].from), Some(links[own[0]].to));
            let place = Place { dp_rank, from_stage, to_stage, ..Place::default() };
            let factors = factors(&own, others);
            let ln = interval::ln_median(&factors).map_or(0.0, |(ln, _)| ln);
            Candidate::new(Cause::Links(own, ln), Kind::Link, place, factors)
        };
        let all = |is: &dyn Fn(usize) -> bool| (0..links.len()).filter(|&link| is(link)).collect::<Vec<usize>>();
        let mut candidates = Vec::new();
        for (number, link) in links.iter().enumerate() {
            let is_same_pair = |at: usize| {
                (links[at].from, links[at].to, links[at].direction) == (link.from, link.to, link.direction)
            };
            let twins = all(&|at| at != number && is_same_pair(at));
            let others = all(&|at| !is_same_pair(at) && links[at].direction == link.direction);
            if !twins.is_empty() {
                candidates.push(candidate(vec![number], &twins, Some(link.dp_rank)));
            }
            let is_first = all(&is_same_pair).first() == Some(&number);
            if is_first && !others.is_empty() {
                let dp_rank = twins.is_empty().then_some(link.dp_rank);
                candidates.push(candidate(all(&is_same_pair), &others, dp_rank));
            }
        }
        candidates
    }
}

fn known(values: impl Iterator<Item = f64>, middle: impl FnOnce(&mut [f64]) -> Option<f64>) -> f64 {
    middle(&mut values.filter(|value| value.is_finite()).collect::<Vec<_>>()).unwrap_or(f64::NAN)
}

impl Replayed {
    /// The causes that count, most lost time first, and what would win time back.
    pub fn conclude(
        &self,
        recording: &Recording,
        levels: &Levels,
        measured_ns: &[u64],
        options: &Options,
    ) -> (Vec<Finding>, Option<BetterPlan>) {
        let (even_ns, simulated_ns) = (median_ns(&self.even_ns) as f64, median_ns(&self.simulated_ns) as f64);
        let lost_ns = median_differences(&self.simulated_ns, &self.even_ns);
        let mut found: Vec<(f64, &Candidate)> = Vec::new();
        for candidate in &self.candidates {
            let alone_ns = median_differences(&candidate.alone_ns, &self.even_ns);
            let last_ns = median_differences(&self.simulated_ns, &candidate.without_ns);
            let cost_ns = alone_ns.max(0.0).midpoint(last_ns.max(0.0));
            let is_worth_telling = alone_ns.max(last_ns) >= COST_MIN * even_ns;
            if lost_ns > 0.0 && is_worth_telling && cost_ns >= SHARE_MIN * lost_ns {
                found.push((cost_ns / lost_ns, candidate));
            }
        }
        found.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let total = found.iter().map(|(share, _)| share).sum::<f64>().max(1.0);
        let without = |candidate: &Candidate| {
            let ratio = median_ns(&candidate.without_ns) as f64 / simulated_ns.max(1.0);
            (median_ns(measured_ns) as f64 * ratio).round() as u64
        };
        let finding = |(share, candidate): &(f64, &Candidate)| {
            let factor = interval::of_median(&candidate.factors, options.seed)?;
            Some(Finding {
                kind: candidate.kind,
                place: candidate.place.clone(),
                factor: factor.middle,
                factor_low: factor.low,
                factor_high: factor.high,
                lost_share: share / total,
                without_ns: without(candidate),
            })
        };
        let findings: Vec<Finding> = found.iter().filter_map(finding).collect();
        let first = found.first().map(|(_, candidate)| *candidate);
        let better = first.and_then(|first| {
            let replay = remedy::Replay { simulated_ns: &self.simulated_ns, measured_ns, link_ns: &self.link_ns };
            remedy::of(first, recording, levels, &replay, options)
        });
        (findings, better)
    }
}

fn median_differences(more: &[u64], less: &[u64]) -> f64 {
    let mut differences: Vec<f64> = more.iter().zip(less).map(|(&more, &less)| more as f64 - less as f64).collect();
    median(&mut differences).unwrap_or(0.0)
}
