//! A recorded job: which worker did what when, and for how long.

use std::collections::BTreeMap;

/// Towards the loss, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// F, activations.
    Forward = 0,
    /// B, gradients.
    Backward = 1,
}

impl Direction {
    /// Both, in order of their numbers.
    pub const ALL: [Direction; 2] = [Direction::Forward, Direction::Backward];

    /// As recorders name its compute.
    pub fn operation(self) -> &'static str {
        match self {
            Direction::Forward => "forward-compute",
            Direction::Backward => "backward-compute",
        }
    }
}

/// A set of sends and receives that a worker waits for as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// By [`Direction`]: hands a tensor to the next worker, or to the one before.
    pub sends: [bool; 2],
    /// By [`Direction`]: takes one from the worker before, or from the next.
    pub receives: [bool; 2],
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// F or B of a chunk of the model for a microbatch.
    Compute {
        /// F or B.
        direction: Direction,
        /// Position of the chunk in the whole model.
        chunk: u32,
        /// Which microbatch of its data-parallel rank.
        microbatch: u32,
    },
    /// Sends and receives.
    Exchange(Exchange),
}

/// One operation of an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Index into [`Recording::workers`].
    pub worker: u32,
    /// What it does.
    pub work: Work,
    /// On the worker's clock.
    pub start_ns: i64,
    /// How long it took; a send or receive lasts until both sides are done.
    pub duration_ns: u64,
}

impl Operation {
    /// When it ended, on the worker's clock.
    pub fn end_ns(&self) -> i64 {
        self.start_ns.saturating_add_unsigned(self.duration_ns)
    }
}

/// A pipeline rank of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker {
    /// Which replica.
    pub dp_rank: u32,
    /// Position in the pipeline.
    pub stage: u32,
}

/// One iteration.
#[derive(Clone, Debug, PartialEq)]
pub struct Iteration {
    /// As the recorder counts.
    pub number: i64,
    /// In any order.
    pub operations: Vec<Operation>,
}

impl Iteration {
    /// From the first start to the last end, clocks taken as they are.
    pub fn measured_ns(&self) -> u64 {
        let first = self.operations.iter().map(|operation| operation.start_ns).min().unwrap_or(0);
        let last = self.operations.iter().map(Operation::end_ns).max().unwrap_or(0);
        last.saturating_sub(first).max(0).unsigned_abs()
    }
}

/// A recorded job: the same workers in every iteration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recording {
    /// Ascending.
    pub workers: Vec<Worker>,
    /// In order of their numbers.
    pub iterations: Vec<Iteration>,
}

impl Recording {
    /// Pipeline ranks of a replica.
    pub fn stages(&self) -> usize {
        self.workers.iter().map(|worker| worker.stage as usize + 1).max().unwrap_or(0)
    }

    /// Index of each worker.
    pub(super) fn index(&self) -> BTreeMap<Worker, usize> {
        self.workers.iter().enumerate().map(|(index, worker)| (*worker, index)).collect()
    }
}
