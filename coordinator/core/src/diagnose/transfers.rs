//! How long tensors are on their way, by link, and which link may be slow.

use super::findings::{Candidate, Cause};
use super::graph::{Graph, Node, Pipeline};
use super::levels::Levels;
use super::recording::{Direction, Recording};
use super::times::DIRECTIONS;
use super::{Kind, Place, Refusal, interval};
use crate::estimate::robust::{lower_median, median};

/// Transfers by link.
pub(super) struct Transfers {
    /// By link and iteration: those that were alone if there are such, in nanoseconds; no number where there was none.
    by_iteration: Vec<Vec<f64>>,
    pub middle_ns: Vec<f64>,
}

impl Transfers {
    pub fn of(recording: &Recording, pipeline: &Pipeline) -> Result<Transfers, Refusal> {
        let mut by_iteration = vec![Vec::with_capacity(recording.iterations.len()); pipeline.links.len()];
        for iteration in &recording.iterations {
            let Graph { nodes, ns, .. } = pipeline.graph(iteration)?;
            let mut seen = vec![[Vec::new(), Vec::new()]; pipeline.links.len()];
            for (node, &ns) in nodes.iter().zip(&ns) {
                if let Node::Transfer(link, partner) = node {
                    seen[*link][usize::from(partner.is_some())].push((ns as f64).max(1.0));
                }
            }
            for (of, [mut alone, mut batched]) in by_iteration.iter_mut().zip(seen) {
                of.push(median(&mut alone).or_else(|| median(&mut batched)).unwrap_or(f64::NAN));
            }
        }
        let middle_ns = by_iteration.iter().map(|of| known(of.iter().copied(), median)).collect();
        Ok(Transfers { by_iteration, middle_ns })
    }

    /// By direction: what a transfer takes in an even job.
    pub fn even_ns(&self, pipeline: &Pipeline) -> [f64; DIRECTIONS] {
        Direction::ALL.map(|direction| {
            let own = pipeline.links.iter().zip(&self.middle_ns).filter(|(link, _)| link.direction == direction);
            let even = known(own.map(|(_, ns)| *ns), lower_median);
            if even.is_finite() { even } else { 0.0 }
        })
    }

    /// Each link against the same one of the other replicas, or, with one replica, against the other links.
    pub fn candidates(&self, pipeline: &Pipeline, levels: &Levels) -> Vec<Candidate> {
        let links = &pipeline.links;
        let iterations = levels.times.iterations;
        let factors = |own: &[usize], others: &[usize]| -> Vec<f64> {
            let level =
                |of: &[usize], at: usize| known(of.iter().map(|&link| self.by_iteration[link][at]), lower_median);
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
            let is_same_pair =
                |at: usize| (links[at].from, links[at].to, links[at].direction) == (link.from, link.to, link.direction);
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
