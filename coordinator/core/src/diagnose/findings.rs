//! Which causes there may be, what each costs, and which of them count.

use super::graph::{Node, Pipeline};
use super::interval::{self, median_ns};
use super::levels::Levels;
use super::recording::{Direction, Recording};
use super::transfers::Transfers;
use super::{BetterPlan, Finding, Kind, Options, Place, Refusal, computes, remedy};
use crate::estimate::random::Random;
use crate::estimate::robust::median;
use std::cell::RefCell;
use std::ops::Range;

/// Least factor that is told: devices of a kind differ by some percent, and nobody mends that.
pub(super) const FACTOR_MIN: f64 = 1.03;
/// Least mean factor of a worker that is slow at times only: means follow stalls.
const UNSTEADY_MIN: f64 = 1.05;
/// Chance that noise alone makes any of a recording's possible causes look like one.
const FALSE_ALARMS: f64 = 0.01;
/// Least cost that is told, as a share of an even job's iteration.
const COST_MIN: f64 = 0.01;
/// Least share of the lost time that is told.
const SHARE_MIN: f64 = 0.05;
/// Least loss beyond noise that is told as untold, as a share of an even job's iteration and of all that is lost.
const UNTOLD_MIN: f64 = 0.05;
const UNTOLD_SHARE_MIN: f64 = 0.5;
/// Iterations up to which a cause must show in nearly all.
const FEW: usize = 12;
/// One in so many iterations, those that lost most and those that lost least, are strange.
const STRANGE: usize = 10;
/// Deviations that noise is drawn from.
const RESIDUALS: usize = 100_000;

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
    pub kind: Kind,
    pub place: Place,
    /// By iteration.
    pub factors: Vec<f64>,
    /// Their mean counts and not their median: what comes and goes.
    pub is_unsteady: bool,
    /// Standard deviation of the logarithm of all factors in common, which no iteration shows.
    pub common_sd: f64,
    /// By iteration: an even job's time with this cause alone, and the recording's without it.
    pub alone_ns: Vec<u64>,
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
    pub fn ln(&self) -> (f64, f64) {
        let ln = if self.is_unsteady { interval::ln_mean(&self.factors) } else { interval::ln_median(&self.factors) };
        ln.unwrap_or((0.0, 0.0))
    }

    /// Its factor, with what is off in all iterations alike.
    fn factor(&self, seed: u64) -> Option<interval::Interval> {
        let factor = match self.is_unsteady {
            true => interval::of_mean(&self.factors, seed)?,
            false => interval::of_median(&self.factors, seed)?,
        };
        let common = (interval::NORMAL_95 * self.common_sd).exp();
        Some(interval::Interval { low: factor.low / common, high: factor.high * common, ..factor })
    }

    /// Places of the iterations that it shows in, where those are not all.
    pub fn places(&self) -> Option<Range<usize>> {
        if let Cause::Since(_, _, places, _) = &self.cause { Some(places.clone()) } else { None }
    }

    /// Beyond what noise gives the largest of so many.
    pub fn is_beyond_noise(&self, among: usize) -> bool {
        let z = (2.0 * (among.max(1) as f64 / FALSE_ALARMS).ln()).sqrt();
        // A mean over what comes and goes is of many more values than show it. Of three and fewer it is told that they are too
        // few, whatever is found.
        let count = self.factors.len();
        let is_estimated = !self.is_unsteady && count > 3;
        let z = if is_estimated { student(z, (count - 1) as f64) } else { z };
        let least = if self.is_unsteady { UNSTEADY_MIN } else { FACTOR_MIN };
        let (ln, sd) = self.ln();
        ln - z * sd.hypot(self.common_sd) > least.ln()
    }
}

/// How far out of a spread that was estimated from so few values what is as rare as `z` in a known one: the first terms of
/// Cornish and Fisher's expansion of Student's quantile.
fn student(z: f64, degrees: f64) -> f64 {
    let cubic = z.powi(3);
    let first = (cubic + z) / (4.0 * degrees);
    z + first + (5.0 * z.powi(5) + 16.0 * cubic + 3.0 * z) / (96.0 * degrees.powi(2))
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
    candidates.extend(computes::candidates(recording, levels));
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
            // A few iterations that differ among themselves tell less than as many operations would; in many, what comes and
            // goes shows without being there in all.
            let is_above = || candidate.factor(options.seed).is_some_and(|factor| factor.low > 1.0);
            let is_sure = || self.simulated_ns.len() >= FEW || is_above();
            if lost_ns > 0.0 && is_worth_telling && cost_ns >= SHARE_MIN * lost_ns && is_sure() {
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
            let factor = candidate.factor(options.seed)?;
            Some(Finding {
                kind: candidate.kind,
                place: candidate.place.clone(),
                factor: factor.middle,
                factor_low: factor.low,
                factor_high: factor.high,
                lost_share: share / total,
                is_reliable: true,
                without_ns: without(candidate),
            })
        };
        let findings: Vec<Finding> = found.iter().filter_map(finding).collect();
        let first = found.first().map(|(_, candidate)| *candidate);
        let better = first.and_then(|first| {
            let replay = remedy::Replay { simulated_ns: &self.simulated_ns, measured_ns, link_ns: &self.link_ns };
            let better = remedy::of(first, recording, levels, &replay, options)?;
            (better.iteration_ns < better.instead_of_ns).then_some(better)
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
