//! What each operation of a recording should take, and what makes it take another time: its stage, its worker, the
//! length of its microbatch.
//!
//! ```text
//!   ln(time) = level(F or B) + stage(chunk, F or B) + worker(replica, chunk, F or B) + length(replica, microbatch) + noise
//! ```
//!
//! Fitted by medians, each over what the one before left, so that stalls move nothing. Which is which:
//!
//! 1. What all replicas have in a chunk is the stage's; what one replica has beyond the others, the worker's.
//! 2. What all stages of a replica have, in F and in B alike, is the length of the microbatch (or the whole replica,
//!    where it does not change from one microbatch to the next).
//! 3. Where half of those compared are slow, the lower half is the level: nothing becomes fast by accident.

use super::recording::Direction;
use super::times::{DIRECTIONS, Times};
use crate::estimate::robust::{MEDIAN_SD, lower_median, median, scale_around};

/// Differences up to this are no difference, where those that are alike are averaged.
const ALIKE_LN: f64 = 0.05;
/// Share of a length's part by which stages may differ in it.
const STAGES_DIFFER: f64 = 0.5;

fn of<T>(values: impl IntoIterator<Item = f64>, middle: impl FnOnce(&mut [f64]) -> Option<T>) -> Option<T> {
    let mut known: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    middle(&mut known)
}

/// Middle of what is known; no number where nothing is.
fn middle(values: impl IntoIterator<Item = f64>) -> f64 {
    of(values, median).unwrap_or(f64::NAN)
}

/// Lower middle of what is known; no number where nothing is.
fn lower(values: impl IntoIterator<Item = f64>) -> f64 {
    of(values, lower_median).unwrap_or(f64::NAN)
}

/// Middle of deviations, and of the two in the middle the smaller one: what only half of the stages show, as one of two that
/// became slow or recovered, is no length.
fn shared(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut known: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    known.sort_unstable_by(f64::total_cmp);
    let middle = [known.len().saturating_sub(1) / 2, known.len() / 2].map(|at| known.get(at).copied());
    match middle {
        [Some(low), Some(high)] => {
            if low.abs() <= high.abs() {
                low
            } else {
                high
            }
        }
        _ => f64::NAN,
    }
}

/// The middle of those that are usually at the level of the lower half: pairs of what each usually has, and has now.
fn level(values: impl IntoIterator<Item = (f64, f64)>) -> f64 {
    let known: Vec<(f64, f64)> =
        values.into_iter().filter(|(usual, now)| usual.is_finite() && now.is_finite()).collect();
    let usual = lower(known.iter().map(|(usual, _)| *usual));
    middle(known.iter().filter(|(own, _)| (own - usual).abs() <= ALIKE_LN).map(|(_, now)| *now))
}

/// What is common and what is not, of a whole recording.
pub(super) struct Levels {
    pub times: Times,
    /// By iteration, direction: what an even job's compute takes with a microbatch of usual length.
    even: Vec<[f64; DIRECTIONS]>,
    /// By chunk, direction: the stage's part.
    stage: Vec<[f64; DIRECTIONS]>,
    /// By replica, chunk, direction: the worker's part.
    worker: Vec<[f64; DIRECTIONS]>,
    /// By replica: what all its stages have at all times.
    pub replica: Vec<f64>,
    /// By iteration, replica, microbatch: the part of its length, the replica's included.
    length: Vec<f64>,
    /// By iteration: log of the mean of all lengths' factors.
    mean_length: Vec<f64>,
    /// Share of the lengths' variance that F and B agree on: 1 if all of it is length, 0 if all is noise.
    pub length_share: f64,
    /// By iteration, replica, chunk, direction: the median compute at a usual length.
    usual: Vec<f64>,
    /// The same over all iterations.
    settled: Vec<f64>,
}

impl Levels {
    pub fn fit(times: Times) -> Levels {
        let Times { iterations, replicas, chunks, microbatches, .. } = times;
        let cell = |replica: usize, chunk: usize, direction: usize| {
            lower((0..iterations).flat_map(|iteration| {
                let times = &times;
                (0..microbatches).map(move |microbatch| times.get(iteration, replica, chunk, direction, microbatch))
            }))
        };
        let mut cells = vec![f64::NAN; replicas * chunks * DIRECTIONS];
        for replica in 0..replicas {
            for (chunk, direction) in times.kinds() {
                cells[(replica * chunks + chunk) * DIRECTIONS + direction] = cell(replica, chunk, direction);
            }
        }
        let of_cell =
            |replica: usize, chunk: usize, direction: usize| cells[(replica * chunks + chunk) * DIRECTIONS + direction];
        let common = |chunk: usize, direction: usize| lower((0..replicas).map(|at| of_cell(at, chunk, direction)));
        // With one stage a slow worker and a slow replica are the same: it counts as the worker.
        let replica: Vec<f64> = (0..replicas)
            .map(|at| match times.stages {
                0 | 1 => 0.0,
                _ => lower(
                    times.kinds().map(|(chunk, direction)| of_cell(at, chunk, direction) - common(chunk, direction)),
                ),
            })
            .map(|part| if part.is_finite() { part } else { 0.0 })
            .collect();
        let mut levels = Levels {
            even: Vec::new(),
            stage: vec![[0.0; DIRECTIONS]; chunks],
            worker: vec![[0.0; DIRECTIONS]; replicas * chunks],
            length: vec![0.0; iterations * replicas * microbatches],
            mean_length: vec![0.0; iterations],
            length_share: 0.0,
            usual: Vec::new(),
            settled: Vec::new(),
            replica,
            times,
        };
        levels.fit_lengths(&cells);
        levels.fit_usual();
        levels.fit_parts();
        levels
    }

    /// Lengths, by what all stages of a replica have in common; each as far as F and B agree on it.
    fn fit_lengths(&mut self, cells: &[f64]) {
        let Times { iterations, replicas, chunks, microbatches, .. } = self.times;
        let times = &self.times;
        let left = |iteration: usize, replica: usize, chunk: usize, direction: usize, microbatch: usize| {
            times.get(iteration, replica, chunk, direction, microbatch)
                - cells[(replica * chunks + chunk) * DIRECTIONS + direction]
        };
        let mut deviations = vec![[f64::NAN; 3]; iterations * replicas * microbatches];
        for iteration in 0..iterations {
            for replica in 0..replicas {
                for microbatch in 0..microbatches {
                    let by = |direction: usize| {
                        shared((0..chunks).map(|chunk| left(iteration, replica, chunk, direction, microbatch)))
                    };
                    let all = times.kinds().map(|(chunk, way)| left(iteration, replica, chunk, way, microbatch));
                    deviations[(iteration * replicas + replica) * microbatches + microbatch] =
                        [by(0), by(1), shared(all)];
                }
            }
        }
        // What a whole iteration has in common is no length.
        let per_iteration = replicas * microbatches;
        for of in deviations.chunks_mut(per_iteration.max(1)) {
            for which in 0..3 {
                let common = middle(of.iter().map(|deviation| deviation[which]));
                of.iter_mut().for_each(|deviation| deviation[which] -= common);
            }
        }
        let sums = deviations
            .iter()
            .filter(|deviation| deviation.iter().all(|value| value.is_finite()))
            .fold([0.0; 3], |[both, forward, backward], [f, b, _]| [both + f * b, forward + f * f, backward + b * b]);
        let [both, forward, backward] = sums;
        let agreed = if forward * backward > 0.0 { (both / (forward * backward).sqrt()).clamp(0.0, 1.0) } else { 0.0 };
        // Of the mean of both, noise is half of what it is in either (Spearman and Brown's correction).
        self.length_share = 2.0 * agreed / (1.0 + agreed);
        for iteration in 0..iterations {
            let mut factors = Vec::with_capacity(per_iteration);
            for replica in 0..replicas {
                for microbatch in 0..microbatches {
                    let at = (iteration * replicas + replica) * microbatches + microbatch;
                    let [_, _, deviation] = deviations[at];
                    if deviation.is_finite() {
                        self.length[at] = self.replica[replica] + self.length_share * deviation;
                        factors.push(self.length[at].exp());
                    }
                }
            }
            self.mean_length[iteration] = (factors.iter().sum::<f64>() / factors.len().max(1) as f64).max(1e-9).ln();
        }
    }

    fn fit_usual(&mut self) {
        let Times { iterations, replicas, chunks, microbatches, .. } = self.times;
        let mut usual = Vec::with_capacity(iterations * replicas * chunks * DIRECTIONS);
        for iteration in 0..iterations {
            for replica in 0..replicas {
                for (chunk, direction) in self.times.kinds() {
                    usual.push(middle((0..microbatches).map(|microbatch| {
                        self.times.get(iteration, replica, chunk, direction, microbatch)
                            - self.length(iteration, replica, microbatch)
                    })));
                }
            }
        }
        self.usual = usual;
        let cells = replicas * chunks * DIRECTIONS;
        let settled = |cell: usize| middle((0..iterations).map(|iteration| self.usual[iteration * cells + cell]));
        self.settled = (0..cells).map(settled).collect();
    }

    fn fit_parts(&mut self) {
        let Times { iterations, replicas, chunks, .. } = self.times;
        let even = |iteration: usize, way: usize| self.of_chunks(iteration, way, |_| true);
        self.even = (0..iterations).map(|iteration| std::array::from_fn(|way| even(iteration, way))).collect();
        for (chunk, direction) in self.times.kinds() {
            let over = |replica: Option<usize>| {
                middle((0..iterations).map(|iteration| match replica {
                    None => self.of_replicas(iteration, chunk, direction, None) - self.even[iteration][direction],
                    Some(replica) => {
                        self.usual(iteration, replica, chunk, direction)
                            - self.of_replicas(iteration, chunk, direction, Some(replica))
                    }
                }))
            };
            let known = |value: f64| if value.is_finite() { value } else { 0.0 };
            let stage = known(over(None));
            let workers: Vec<f64> = (0..replicas).map(|replica| known(over(Some(replica)))).collect();
            self.stage[chunk][direction] = stage;
            for (replica, part) in workers.into_iter().enumerate() {
                self.worker[replica * chunks + chunk][direction] = part;
            }
        }
    }

    /// What a compute of usual length took in an iteration, in the middle.
    pub fn usual(&self, iteration: usize, replica: usize, chunk: usize, direction: usize) -> f64 {
        self.usual[((iteration * self.times.replicas + replica) * self.times.chunks + chunk) * DIRECTIONS + direction]
    }

    /// The stage's part of a chunk's computes.
    pub fn stage(&self, chunk: usize, direction: usize) -> f64 {
        self.stage[chunk][direction]
    }

    /// The worker's part of a replica's computes of a chunk.
    pub fn worker(&self, replica: usize, chunk: usize, direction: usize) -> f64 {
        self.worker[replica * self.times.chunks + chunk][direction]
    }

    /// The part of a microbatch's length.
    pub fn length(&self, iteration: usize, replica: usize, microbatch: usize) -> f64 {
        self.length[(iteration * self.times.replicas + replica) * self.times.microbatches + microbatch]
    }

    /// The length that all microbatches of an iteration would have if they were alike.
    pub fn mean_length(&self, iteration: usize) -> f64 {
        self.mean_length[iteration]
    }

    /// What computes deviate by from the usual one of their length.
    pub fn left(&self, at: usize, replica: usize, chunk: usize, way: usize) -> impl Iterator<Item = f64> + '_ {
        let usual = self.usual(at, replica, chunk, way);
        (0..self.times.microbatches).map(move |microbatch| {
            self.times.get(at, replica, chunk, way, microbatch) - self.length(at, replica, microbatch) - usual
        })
    }

    /// What computes deviate by from the usual one of their length, some of all.
    pub fn residuals(&self, most: usize) -> Vec<f64> {
        let cells = self.times.iterations * self.times.replicas * self.times.chunks * DIRECTIONS;
        let every = (cells * self.times.microbatches / most.max(1)).max(1);
        let of = |at: usize| {
            let (replica, rest) = (at / DIRECTIONS / self.times.chunks, at % (DIRECTIONS * self.times.chunks));
            let (iteration, replica) = (replica / self.times.replicas, replica % self.times.replicas);
            self.left(iteration, replica, rest / DIRECTIONS, rest % DIRECTIONS)
        };
        (0..cells).flat_map(of).filter(|left| left.is_finite()).step_by(every).collect()
    }

    /// By iteration: a replica over the others, in all its stages.
    pub fn replica_factors(&self, replica: usize) -> Vec<f64> {
        let own = |iteration: usize, replica: usize, (chunk, way): (usize, usize)| {
            self.usual(iteration, replica, chunk, way) + self.replica[replica]
        };
        let factor = |iteration: usize| {
            let beyond = self.times.kinds().map(|kind| {
                let others = (0..self.times.replicas).filter(|&other| other != replica);
                own(iteration, replica, kind) - lower(others.map(|other| own(iteration, other, kind)))
            });
            lower(beyond).exp()
        };
        (0..self.times.iterations).map(factor).filter(|factor| factor.is_finite()).collect()
    }

    /// By iteration: the mean of a worker's times, lengths aside, over what the others of its stage usually take.
    pub fn mean_factors(&self, replica: usize, stage: usize) -> Vec<f64> {
        let factor = |iteration: usize| {
            let (mut own, mut other) = (0.0, 0.0);
            for chunk in self.times.chunks_of(stage) {
                for way in 0..DIRECTIONS {
                    let level = self.of_replicas(iteration, chunk, way, Some(replica)).exp();
                    for microbatch in 0..self.times.microbatches {
                        let ln = self.times.get(iteration, replica, chunk, way, microbatch);
                        if ln.is_finite() && level.is_finite() {
                            own += (ln - self.length(iteration, replica, microbatch)).exp();
                            other += level;
                        }
                    }
                }
            }
            own / other
        };
        (0..self.times.iterations).map(factor).filter(|factor| factor.is_finite() && *factor > 0.0).collect()
    }

    /// What lengths leave uncertain of a worker's level against others, standard deviation of the logarithm: replicas do
    /// not get the same sequences, and not all stages take as much longer for longer ones. With one stage nothing tells a
    /// slow worker from one that happened to get longer sequences.
    pub fn worker_sd(&self) -> f64 {
        let sd = scale_around(&self.length, 0.0).unwrap_or(0.0);
        let count = (self.times.iterations * self.times.microbatches).max(1) as f64;
        let part = if self.times.stages > 1 { STAGES_DIFFER } else { 1.0 };
        part * std::f64::consts::SQRT_2 * MEDIAN_SD * sd / count.sqrt()
    }

    /// Root mean square of the logarithms of lengths.
    pub fn length_rms(&self) -> f64 {
        let squares: f64 = self.length.iter().map(|ln| ln * ln).sum();
        (squares / self.length.len().max(1) as f64).sqrt()
    }

    /// By iteration: the longest microbatch over the mean.
    pub fn length_factors(&self) -> Vec<f64> {
        let per_iteration = self.times.replicas * self.times.microbatches;
        let longest = |(iteration, of): (usize, &[f64])| {
            (of.iter().copied().fold(f64::NEG_INFINITY, f64::max) - self.mean_length[iteration]).exp()
        };
        self.length.chunks(per_iteration.max(1)).enumerate().map(longest).collect()
    }

    /// What a compute takes in an even job: every stage, worker and microbatch alike, no noise.
    pub fn even(&self, iteration: usize, direction: Direction) -> f64 {
        self.even[iteration][direction as usize] + self.mean_length[iteration]
    }

    /// Time of a set of chunks' F and B over a comparison, one number per iteration: the slower, the larger.
    pub fn ratios(
        &self,
        chunks: &[usize],
        ways: &[usize],
        own: impl Fn(usize, usize, usize) -> f64,
        other: impl Fn(usize, usize, usize) -> f64,
    ) -> Vec<f64> {
        let ratio = |iteration: usize| {
            let sum = |ln: &dyn Fn(usize, usize, usize) -> f64| -> f64 {
                let all = chunks.iter().flat_map(|&chunk| ways.iter().map(move |&way| (chunk, way)));
                all.map(|(chunk, way)| ln(iteration, chunk, way).exp()).sum()
            };
            sum(&own) / sum(&other)
        };
        (0..self.times.iterations).map(ratio).filter(|ratio| ratio.is_finite() && *ratio > 0.0).collect()
    }

    /// The level of a chunk over replicas, all or all but one.
    pub fn of_replicas(&self, iteration: usize, chunk: usize, way: usize, but: Option<usize>) -> f64 {
        let others = (0..self.times.replicas).filter(|&replica| Some(replica) != but);
        level(others.map(|replica| (self.settled(replica, chunk, way), self.usual(iteration, replica, chunk, way))))
    }

    /// The level of all chunks but a stage's.
    pub fn of_other_stages(&self, iteration: usize, stage: usize, way: usize) -> f64 {
        self.of_chunks(iteration, way, |chunk| self.times.stage_of[chunk] != stage)
    }

    /// The level of some chunks.
    fn of_chunks(&self, iteration: usize, way: usize, is_one: impl Fn(usize) -> bool) -> f64 {
        let chunks = (0..self.times.chunks).filter(|&chunk| is_one(chunk));
        level(chunks.map(|chunk| {
            let settled = lower((0..self.times.replicas).map(|replica| self.settled(replica, chunk, way)));
            (settled, self.of_replicas(iteration, chunk, way, None))
        }))
    }

    fn settled(&self, replica: usize, chunk: usize, way: usize) -> f64 {
        self.settled[(replica * self.times.chunks + chunk) * DIRECTIONS + way]
    }
}
