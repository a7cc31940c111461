//! Made-up jobs for tests: 1F1B with sends and receives that block, as Megatron-LM runs it, with something slow in it.

use super::recording::{Direction, Exchange, Iteration, Operation, Recording, Work, Worker};
use crate::estimate::random::Random;
use std::collections::BTreeMap;

const FORWARD_NS: f64 = 60e6;
const BACKWARD_NS: f64 = 130e6;
const TRANSFER_NS: f64 = 0.5e6;

/// What is slow.
#[derive(Clone, Debug, Default)]
pub(super) struct Job {
    pub replicas: u32,
    pub stages: u32,
    pub microbatches: u32,
    pub iterations: u32,
    /// Standard deviation of each operation; Student's t with 4 degrees where `is_heavy`.
    pub noise: f64,
    pub is_heavy: bool,
    /// Standard deviation of the logarithm of what a whole iteration has in common.
    pub common: f64,
    /// The same of an iteration of one worker.
    pub own: f64,
    /// Replica, stage, factor on F and on B.
    pub workers: Vec<(u32, u32, [f64; 2])>,
    /// The share of their operations in which they are slow; all if it is 0.
    pub at_times: f64,
    /// The first iteration in which they are slow.
    pub from: u32,
    /// The first one in which they are not any more.
    pub until: Option<u32>,
    /// Sends do not block, and all F come before all B (GPipe).
    pub is_async: bool,
    /// Stage, factor.
    pub slow_stages: Vec<(u32, f64)>,
    /// Replica, from, to, factor.
    pub links: Vec<(u32, u32, u32, f64)>,
    /// Standard deviation of the logarithm of a microbatch's length.
    pub length: f64,
    /// How far each worker's clock is off.
    pub clocks_ns: i64,
}

impl Job {
    pub fn new(replicas: u32, stages: u32, microbatches: u32) -> Job {
        Job { replicas, stages, microbatches, iterations: 24, noise: 0.02, ..Job::default() }
    }

    pub fn record(&self, seed: u64) -> Recording {
        let mut random = Random::new(seed, 0);
        let workers: Vec<Worker> = (0..self.replicas)
            .flat_map(|dp_rank| (0..self.stages).map(move |stage| Worker { dp_rank, stage }))
            .collect();
        let iterations = (0..self.iterations).map(|number| {
            let common = (self.common * random.normal()).exp();
            let mut operations = Vec::new();
            // Before and after, nobody is slow.
            let quiet = Job { workers: Vec::new(), ..self.clone() };
            let is_quiet = number < self.from || self.until.is_some_and(|until| number >= until);
            let job = if is_quiet { &quiet } else { self };
            for replica in 0..self.replicas {
                match self.is_async {
                    true => job.replica_async(replica, &mut random, &mut operations),
                    false => job.replica(replica, common, &mut random, &mut operations),
                }
            }
            Iteration { number: i64::from(number), operations }
        });
        Recording { workers: workers.clone(), iterations: iterations.collect() }
    }

    /// One replica's iteration: operations of all its stages, each begun as soon as it can be.
    fn replica(&self, replica: u32, common: f64, random: &mut Random, operations: &mut Vec<Operation>) {
        let lengths: Vec<f64> =
            (0..self.microbatches).map(|_| (self.length * random.normal()).exp() * common).collect();
        let owns: Vec<f64> = (0..self.stages).map(|_| (self.own * random.normal()).exp()).collect();
        let programs: Vec<Vec<Vec<Step>>> = (0..self.stages).map(|stage| self.program(stage)).collect();
        let stages = self.stages as usize;
        let (mut at, mut free) = (vec![0; stages], vec![0.0_f64; stages]);
        let mut first = operations.len();
        // A batch of transfers runs once the others have come to theirs; computes run at once.
        while (0..stages).any(|stage| at[stage] < programs[stage].len()) {
            let mut has_moved = false;
            for stage in 0..stages {
                let Some(batch) = programs[stage].get(at[stage]) else { continue };
                if let [Step::Compute(direction, microbatch)] = batch[..] {
                    let ns = self.compute_ns(replica, stage as u32, direction, random)
                        * lengths[microbatch as usize]
                        * owns[stage];
                    let work = Work::Compute { direction, chunk: stage as u32, microbatch };
                    operations.push(self.operation(replica, stage as u32, work, free[stage], free[stage] + ns));
                    (free[stage], at[stage], has_moved) = (free[stage] + ns, at[stage] + 1, true);
                    continue;
                }
                let peer = match batch[0] {
                    Step::Exchange(_, _, peer) => peer as usize,
                    Step::Compute(..) => unreachable!("computes stand alone"),
                };
                let is_there = programs[peer]
                    .get(at[peer])
                    .is_some_and(|other| matches!(other[0], Step::Exchange(_, _, back) if back as usize == stage));
                if is_there && stage < peer {
                    let start = free[stage].max(free[peer]);
                    let slowest = batch.iter().map(|step| self.transfer_ns(replica, stage, peer, step, random));
                    let end = start + slowest.fold(0.0, f64::max);
                    for side in [stage, peer] {
                        for step in &programs[side][at[side]] {
                            let Step::Exchange(direction, is_send, _) = *step else { continue };
                            let mut exchange = Exchange::default();
                            let sides = if is_send { &mut exchange.sends } else { &mut exchange.receives };
                            sides[direction as usize] = true;
                            let work = Work::Exchange(exchange);
                            operations.push(self.operation(replica, side as u32, work, free[side], end));
                        }
                        (free[side], at[side]) = (end, at[side] + 1);
                    }
                    has_moved = true;
                }
            }
            assert!(has_moved, "the programs wait for one another");
        }
        for operation in &mut operations[first..] {
            first = operation.worker as usize % stages;
            operation.start_ns += self.clocks_ns * first as i64;
        }
    }

    /// The same where a worker hands its results over and goes on.
    fn replica_async(&self, replica: u32, random: &mut Random, operations: &mut Vec<Operation>) {
        use Direction::{Backward, Forward};
        let stages = self.stages as usize;
        let numbers: Vec<u32> = (0..self.microbatches).collect();
        let program: Vec<(Direction, u32)> =
            [Forward, Backward].into_iter().flat_map(|way| numbers.iter().map(move |&number| (way, number))).collect();
        let (mut at, mut free) = (vec![0; stages], vec![0.0_f64; stages]);
        // By direction, microbatch and receiver: when it was handed over.
        let mut sent: BTreeMap<(Direction, u32, usize), f64> = BTreeMap::new();
        while (0..stages).any(|stage| at[stage] < program.len()) {
            for stage in 0..stages {
                let Some(&(direction, microbatch)) = program.get(at[stage]) else { continue };
                let (from, to) = match direction {
                    Forward => (stage.checked_sub(1), Some(stage + 1).filter(|&to| to < stages)),
                    Backward => (Some(stage + 1).filter(|&from| from < stages), stage.checked_sub(1)),
                };
                if let Some(from) = from {
                    let Some(&handed) = sent.get(&(direction, microbatch, stage)) else { continue };
                    let end = handed.max(free[stage]) + TRANSFER_NS * self.deviation(random);
                    let (mut give, mut take) = (Exchange::default(), Exchange::default());
                    (give.sends[direction as usize], take.receives[direction as usize]) = (true, true);
                    operations.push(self.operation(replica, from as u32, Work::Exchange(give), handed, end));
                    operations.push(self.operation(replica, stage as u32, Work::Exchange(take), free[stage], end));
                    free[stage] = end;
                }
                let end = free[stage] + self.compute_ns(replica, stage as u32, direction, random);
                let work = Work::Compute { direction, chunk: stage as u32, microbatch };
                operations.push(self.operation(replica, stage as u32, work, free[stage], end));
                (free[stage], at[stage]) = (end, at[stage] + 1);
                to.map(|to| sent.insert((direction, microbatch, to), end));
            }
        }
    }

    fn operation(&self, replica: u32, stage: u32, work: Work, start: f64, end: f64) -> Operation {
        Operation {
            worker: replica * self.stages + stage,
            work,
            start_ns: start.round() as i64,
            duration_ns: (end.round() - start.round()) as u64,
        }
    }

    fn compute_ns(&self, replica: u32, stage: u32, direction: Direction, random: &mut Random) -> f64 {
        let own = self.workers.iter().filter(|of| (of.0, of.1) == (replica, stage));
        let is_slow = self.at_times == 0.0 || random.uniform() < self.at_times;
        let worker: f64 = own.filter(|_| is_slow).map(|of| of.2[direction as usize]).product();
        let slow: f64 = self.slow_stages.iter().filter(|of| of.0 == stage).map(|of| of.1).product();
        [FORWARD_NS, BACKWARD_NS][direction as usize] * worker * slow * self.deviation(random)
    }

    fn deviation(&self, random: &mut Random) -> f64 {
        let normal = random.normal();
        let squares: f64 = (0..4).map(|_| random.normal().powi(2)).sum();
        let scale = if self.is_heavy { (squares / 4.0).sqrt() } else { 1.0 };
        (1.0 + self.noise * normal / scale).max(0.2)
    }

    fn transfer_ns(&self, replica: u32, stage: usize, peer: usize, step: &Step, random: &mut Random) -> f64 {
        let Step::Exchange(_, is_send, _) = *step else { return 0.0 };
        let (from, to) = if is_send { (stage, peer) } else { (peer, stage) };
        let slow = self.links.iter().filter(|of| (of.0, of.1 as usize, of.2 as usize) == (replica, from, to));
        TRANSFER_NS * slow.map(|of| of.3).product::<f64>() * self.deviation(random)
    }

    /// A stage's program: what happens together in one list.
    fn program(&self, stage: u32) -> Vec<Vec<Step>> {
        use Direction::{Backward, Forward};
        let (last, count) = (self.stages - 1, self.microbatches);
        let warm = (last - stage).min(count);
        let get = |direction| match direction {
            Forward => (stage > 0).then(|| Step::Exchange(Forward, false, stage - 1)),
            Backward => (stage < last).then(|| Step::Exchange(Backward, false, stage + 1)),
        };
        let give = |direction| match direction {
            Forward => (stage < last).then(|| Step::Exchange(Forward, true, stage + 1)),
            Backward => (stage > 0).then(|| Step::Exchange(Backward, true, stage - 1)),
        };
        let mut program: Vec<Vec<Step>> = Vec::new();
        for microbatch in 0..warm {
            program.push(get(Forward).into_iter().collect());
            program.push(vec![Step::Compute(Forward, microbatch)]);
            program.push(give(Forward).into_iter().collect());
        }
        if warm < count {
            program.push(get(Forward).into_iter().collect());
        }
        for number in 0..count - warm {
            program.push(vec![Step::Compute(Forward, warm + number)]);
            program.push(give(Forward).into_iter().chain(get(Backward)).collect());
            program.push(vec![Step::Compute(Backward, number)]);
            let next = get(Forward).filter(|_| number + 1 < count - warm);
            program.push(give(Backward).into_iter().chain(next).collect());
        }
        for number in count - warm..count {
            program.push(get(Backward).into_iter().collect());
            program.push(vec![Step::Compute(Backward, number)]);
            program.push(give(Backward).into_iter().collect());
        }
        program.retain(|batch| !batch.is_empty());
        program
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Compute(Direction, u32),
    /// Direction, whether it is a send, the peer's stage.
    Exchange(Direction, bool, u32),
}
