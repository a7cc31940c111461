//! A recording's computes as a table.

use super::recording::{Recording, Work};
use std::collections::BTreeMap;

/// Times shorter than this are as good as none.
const LEAST_NS: f64 = 1_000.0;
/// Both directions.
pub(super) const DIRECTIONS: usize = 2;

/// Measured computes in a dense table; what was not recorded is no number.
pub(super) struct Times {
    pub iterations: usize,
    pub replicas: usize,
    pub chunks: usize,
    pub stages: usize,
    pub microbatches: usize,
    ln: Vec<f64>,
    /// The worker's stage that holds each chunk.
    pub stage_of: Vec<usize>,
    /// Position of a replica by its rank, of a microbatch by its number.
    replica_of: BTreeMap<u32, usize>,
    microbatch_of: BTreeMap<u32, usize>,
}

impl Times {
    pub fn of(recording: &Recording) -> Times {
        let computes = || {
            let all = recording.iterations.iter().enumerate();
            all.flat_map(|(number, iteration)| iteration.operations.iter().map(move |operation| (number, operation)))
                .filter_map(|(number, operation)| match operation.work {
                    Work::Compute { direction, chunk, microbatch } => {
                        Some((number, operation, direction, chunk, microbatch))
                    }
                    Work::Exchange(_) => None,
                })
        };
        let numbered = |ids: std::collections::BTreeSet<u32>| -> BTreeMap<u32, usize> {
            ids.into_iter().enumerate().map(|(position, id)| (id, position)).collect()
        };
        let replica_of = numbered(recording.workers.iter().map(|worker| worker.dp_rank).collect());
        let microbatch_of = numbered(computes().map(|(.., microbatch)| microbatch).collect());
        let chunks = computes().map(|(_, _, _, chunk, _)| chunk as usize + 1).max().unwrap_or(0);
        let mut times = Times {
            iterations: recording.iterations.len(),
            replicas: replica_of.len(),
            chunks,
            stages: recording.stages(),
            microbatches: microbatch_of.len(),
            ln: Vec::new(),
            stage_of: vec![0; chunks],
            replica_of,
            microbatch_of,
        };
        times.ln = vec![f64::NAN; times.iterations * times.replicas * chunks * DIRECTIONS * times.microbatches];
        for (number, operation, direction, chunk, microbatch) in computes() {
            let worker = recording.workers[operation.worker as usize];
            let replica = times.replica(worker.dp_rank);
            times.stage_of[chunk as usize] = worker.stage as usize;
            let at = times.at(number, replica, chunk as usize, direction as usize, times.microbatch(microbatch));
            times.ln[at] = (operation.duration_ns as f64).max(LEAST_NS).ln();
        }
        times
    }

    /// Cells that a recording's table has, to be asked before it is made.
    pub fn cells(recording: &Recording) -> usize {
        let mut microbatches = std::collections::BTreeSet::new();
        let mut chunks = 0;
        for operation in recording.iterations.iter().flat_map(|iteration| &iteration.operations) {
            if let Work::Compute { chunk, microbatch, .. } = operation.work {
                microbatches.insert(microbatch);
                chunks = chunks.max(chunk as usize + 1);
            }
        }
        let sizes = [recording.iterations.len(), recording.workers.len(), chunks, DIRECTIONS, microbatches.len()];
        sizes.into_iter().fold(1, usize::saturating_mul)
    }

    pub fn replica(&self, dp_rank: u32) -> usize {
        self.replica_of[&dp_rank]
    }

    pub fn microbatch(&self, number: u32) -> usize {
        self.microbatch_of[&number]
    }

    fn at(&self, iteration: usize, replica: usize, chunk: usize, direction: usize, microbatch: usize) -> usize {
        (((iteration * self.replicas + replica) * self.chunks + chunk) * DIRECTIONS + direction) * self.microbatches
            + microbatch
    }

    pub fn get(&self, iteration: usize, replica: usize, chunk: usize, direction: usize, microbatch: usize) -> f64 {
        self.ln[self.at(iteration, replica, chunk, direction, microbatch)]
    }

    /// The chunks that a stage's workers hold.
    pub fn chunks_of(&self, stage: usize) -> Vec<usize> {
        (0..self.chunks).filter(|&chunk| self.stage_of[chunk] == stage).collect()
    }

    /// Chunks and directions.
    pub fn kinds(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let chunks = self.chunks;
        (0..chunks).flat_map(|chunk| (0..DIRECTIONS).map(move |direction| (chunk, direction)))
    }
}
