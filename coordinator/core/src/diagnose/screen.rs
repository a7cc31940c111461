//! Before anything is fitted: which iterations are as the others are.
//!
//! One cell that a recorder wrote wrong gives an iteration a chunk, a worker or a microbatch that no other has. Such an
//! iteration tells nothing, and what it would add to the tables is mostly holes. So:
//!
//! 1. A row that stands twice counts once.
//! 2. An iteration is whole if, in each replica, every chunk that most iterations have ran F and B of the same
//!    microbatches, each once, and nothing else did.
//! 3. Iterations that are not whole are set aside, each with its first reason, as long as half of all are whole. Where
//!    fewer are, the recorder leaves things out on purpose: all stay, and it is said.
//! 4. What is left has workers and chunks numbered without holes.

use super::doubt::Doubt;
use super::recording::{Direction, Iteration, Operation, Recording, Work, Worker};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A compute, by what tells it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Compute {
    /// Replica.
    pub dp_rank: u32,
    /// Position in the pipeline.
    pub stage: u32,
    /// F or B.
    pub operation: &'static str,
    /// Position of its chunk in the whole model.
    pub chunk: u32,
    /// Its microbatch.
    pub microbatch: u32,
}

/// Why an iteration is not as the others are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Oddity {
    /// It has a compute that has no like: of its chunk in other iterations, or of its microbatch in other chunks.
    Stray(Compute),
    /// It lacks a compute that the others have.
    Missing(Compute),
    /// It has a compute twice, at different times.
    Twice(Compute),
}

/// An iteration that nothing was concluded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SetAside {
    /// As the recorder counts.
    pub iteration: i64,
    /// Why.
    #[serde(flatten)]
    pub oddity: Oddity,
}

impl std::fmt::Display for SetAside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Oddity::Stray(of) | Oddity::Missing(of) | Oddity::Twice(of)) = self.oddity;
        let Compute { dp_rank, stage, operation, chunk, microbatch } = of;
        let what = format!("{operation} of chunk {chunk} (gmc) and microbatch {microbatch} (mb_id)");
        let at = format!("dp rank {dp_rank}, stage {stage}");
        write!(f, "iteration {}: {at}: ", self.iteration)?;
        match self.oddity {
            Oddity::Stray(_) => write!(f, "a {what} has no like"),
            Oddity::Missing(_) => write!(f, "no {what}"),
            Oddity::Twice(_) => write!(f, "a {what} stands twice, at different times"),
        }
    }
}

/// A recording fit to be diagnosed, and what was left out of it.
pub(super) struct Screened {
    pub recording: Recording,
    pub set_aside: Vec<SetAside>,
    pub doubts: Vec<Doubt>,
}

/// A compute: worker, chunk, direction, microbatch.
type Key = (u32, u32, Direction, u32);

pub(super) fn screen(recording: &Recording) -> Screened {
    let mut recording = recording.clone();
    let rows = recording.iterations.iter_mut().map(drop_duplicates).sum();
    let keys: Vec<Vec<Key>> = recording.iterations.iter().map(keys).collect();
    let usual = usual(&keys);
    let oddities: Vec<Option<Oddity>> = keys.iter().map(|keys| oddity(&recording.workers, keys, &usual)).collect();
    let (all, odd) = (oddities.len(), oddities.iter().flatten().count());
    let mut doubts = Vec::new();
    if rows > 0 {
        doubts.push(Doubt::Duplicates { rows });
    }
    let mut set_aside = Vec::new();
    if all >= 2 * odd && odd < all {
        let reasons = recording.iterations.iter().zip(&oddities);
        set_aside.extend(reasons.filter_map(|(of, odd)| Some(SetAside { iteration: of.number, oddity: (*odd)? })));
        let mut is_whole = oddities.iter().map(Option::is_none);
        recording.iterations.retain(|_| is_whole.next().unwrap_or(false));
    } else if odd > 0 {
        doubts.push(Doubt::Incomplete { iterations: odd, of: all });
    }
    Screened { recording: renumbered(recording), set_aside, doubts }
}

/// Leaves one of the rows that are equal in all; gives how many went. Sends and receives have no number, so equal ones are
/// the same only where computes show that rows were doubled.
fn drop_duplicates(iteration: &mut Iteration) -> usize {
    let before = iteration.operations.len();
    let mut seen = BTreeSet::new();
    let key = |of: &Operation| {
        let what = match of.work {
            Work::Compute { direction, chunk, microbatch } => (direction as usize, chunk, microbatch),
            Work::Exchange(of) => {
                let sides = [of.sends[0], of.sends[1], of.receives[0], of.receives[1]];
                (2, sides.iter().fold(0, |bits, &side| 2 * bits + u32::from(side)), 0)
            }
        };
        (of.worker, what, of.start_ns, of.duration_ns)
    };
    let is_compute = |of: &Operation| matches!(of.work, Work::Compute { .. });
    iteration.operations.retain(|of| !is_compute(of) || seen.insert(key(of)));
    if iteration.operations.len() < before {
        iteration.operations.retain(|of| is_compute(of) || seen.insert(key(of)));
    }
    before - iteration.operations.len()
}

fn keys(iteration: &Iteration) -> Vec<Key> {
    let key = |of: &Operation| match of.work {
        Work::Compute { direction, chunk, microbatch } => Some((of.worker, chunk, direction, microbatch)),
        Work::Exchange(_) => None,
    };
    let mut keys: Vec<Key> = iteration.operations.iter().filter_map(key).collect();
    keys.sort_unstable();
    keys
}

/// Chunks with their workers, of at least half of the iterations.
fn usual(iterations: &[Vec<Key>]) -> BTreeSet<(u32, u32)> {
    let mut seen: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for keys in iterations {
        let chunks: BTreeSet<(u32, u32)> = keys.iter().map(|&(worker, chunk, ..)| (worker, chunk)).collect();
        chunks.into_iter().for_each(|of| *seen.entry(of).or_default() += 1);
    }
    seen.into_iter().filter(|(_, count)| 2 * count >= iterations.len()).map(|(of, _)| of).collect()
}

fn oddity(workers: &[Worker], keys: &[Key], usual: &BTreeSet<(u32, u32)>) -> Option<Oddity> {
    let compute = |(worker, chunk, direction, microbatch): Key| {
        let Worker { dp_rank, stage } = workers[worker as usize];
        Compute { dp_rank, stage, operation: direction.operation(), chunk, microbatch }
    };
    if let Some(&stray) = keys.iter().find(|(worker, chunk, ..)| !usual.contains(&(*worker, *chunk))) {
        return Some(Oddity::Stray(compute(stray)));
    }
    if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        return Some(Oddity::Twice(compute(twice[0])));
    }
    let replica = |worker: u32| workers[worker as usize].dp_rank;
    let mut chunks: BTreeMap<u32, usize> = BTreeMap::new();
    usual.iter().for_each(|(worker, _)| *chunks.entry(replica(*worker)).or_default() += Direction::ALL.len());
    let mut having: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    keys.iter().for_each(|&(worker, _, _, of)| *having.entry((replica(worker), of)).or_default() += 1);
    for (&dp_rank, &all) in &chunks {
        let own = having.range((dp_rank, 0)..=(dp_rank, u32::MAX));
        let partial =
            own.clone().filter(|(_, count)| **count < all).map(|(&(_, microbatch), &count)| (microbatch, count));
        let partial: Vec<(u32, usize)> = partial.collect();
        let Some(&(microbatch, _)) = partial.first() else {
            if own.count() == 0 {
                let &(worker, chunk) = usual.iter().find(|(worker, _)| replica(*worker) == dp_rank)?;
                return Some(Oddity::Missing(compute((worker, chunk, Direction::Forward, 0))));
            }
            continue;
        };
        // A wrong number leaves one microbatch that few have, and another that lacks one; a part of an iteration lacks many.
        if let Some((wrong, _)) = partial.iter().find(|(_, count)| partial.len() <= 2 && 2 * count < all) {
            let stray = keys.iter().find(|&&(worker, _, _, of)| (replica(worker), of) == (dp_rank, *wrong))?;
            return Some(Oddity::Stray(compute(*stray)));
        }
        let places = usual.iter().filter(|(worker, _)| replica(*worker) == dp_rank);
        let places = places.flat_map(|&(worker, chunk)| Direction::ALL.map(|way| (worker, chunk, way, microbatch)));
        let missing = places.into_iter().find(|key| keys.binary_search(key).is_err())?;
        return Some(Oddity::Missing(compute(missing)));
    }
    None
}

/// The workers that are left, and chunks without holes in their order.
fn renumbered(mut recording: Recording) -> Recording {
    let operations = || recording.iterations.iter().flat_map(|iteration| &iteration.operations);
    let workers: BTreeSet<u32> = operations().map(|of| of.worker).collect();
    let chunk = |of: &Operation| match of.work {
        Work::Compute { chunk, .. } => Some(chunk),
        Work::Exchange(_) => None,
    };
    let chunks: BTreeSet<u32> = operations().filter_map(chunk).collect();
    let place = |of: BTreeSet<u32>| -> BTreeMap<u32, u32> { of.into_iter().zip(0..).collect() };
    let (workers, chunks) = (place(workers), place(chunks));
    for operation in recording.iterations.iter_mut().flat_map(|iteration| &mut iteration.operations) {
        operation.worker = workers[&operation.worker];
        if let Work::Compute { chunk, .. } = &mut operation.work {
            *chunk = chunks[chunk];
        }
    }
    recording.workers = workers.keys().map(|&worker| recording.workers[worker as usize]).collect();
    recording
}
