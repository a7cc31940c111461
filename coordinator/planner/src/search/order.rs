//! Local search over the explicit order of instructions: most moves on the critical path, each replayed.
//!
//! A move takes one instruction past its neighbours in its device's program. What may not pass what follows from the
//! stage and microbatch alone; the rest (two stages of one device) shows in the replay. Memory is checked in the window
//! that changed. A few moves change the structure under the order: a layer over a boundary, a layer recomputed or not.

use super::judge::{Candidate, Judge};
use super::portfolio::Pool;
use super::structure::{Freedom, change};
use crate::memory;
use crate::program::{B, F, I, NONE, Op, W, kind, microbatch, op, stage};
use crate::random::Random;
use crate::recipe::works_ns;
use crate::replay::Deadline;
use crate::shape::Tables;

/// Temperature at the start and at the end, as a share of the value.
const HOT: f64 = 0.003;
const COLD: f64 = 0.00005;
/// Weight of the devices' mean end beside the last one's.
const MEAN_END: f64 = 0.02;
/// Share of moves that change the structure, and of the rest those on the critical path.
const STRUCTURAL: f64 = 0.06;
const CRITICAL: f64 = 0.8;

/// Two instructions of one device that may not change places.
fn bound(a: Op, b: Op) -> bool {
    stage(a) == stage(b)
        && (kind(a) == kind(b)
            || microbatch(a) == microbatch(b)
            || (kind(a) == B && kind(b) != F)
            || (kind(b) == B && kind(a) != F))
}

/// A state of the search.
struct Tuner<'j, 'a> {
    judge: &'j mut Judge<'a>,
    tables: Tables,
    current: Candidate,
    charge: f64,
    /// Work of each device.
    work_ns: Vec<u64>,
    /// `current.value` and the mean end's share.
    smooth: f64,
    /// Per device and position: what lives before it.
    live: Vec<Vec<i64>>,
    /// Position of each instruction in its program, `u32::MAX` if there is none.
    position: Vec<u32>,
    critical: Vec<Op>,
}

/// Anneals the order of a candidate; the best goes into the pool.
pub(crate) fn anneal(
    judge: &mut Judge,
    pool: &mut Pool,
    start: &Candidate,
    freedom: Option<Freedom>,
    steps: usize,
    random: &mut Random,
) -> Candidate {
    let mut best = start.clone();
    if let Some(mut tuner) = Tuner::new(judge, start, random) {
        if tuner.current.value < best.value {
            best = tuner.current.clone();
        }
        for step in 0..steps {
            if tuner.judge.done() {
                break;
            }
            let cool = step as f64 / steps as f64;
            let temperature = tuner.smooth * HOT * (COLD / HOT).powf(cool);
            let accept = tuner.smooth - temperature * random.unit().max(1e-12).ln();
            match freedom {
                Some(freedom) if random.chance(STRUCTURAL) => tuner.restructure(freedom, accept, random),
                _ => tuner.reorder(accept, random),
            }
            if tuner.current.value < best.value {
                best.clone_from(&tuner.current);
                tuner.judge.best_ns = tuner.judge.best_ns.min(best.iteration_ns);
            }
        }
    }
    pool.offer(judge, best.clone());
    best
}

impl<'j, 'a> Tuner<'j, 'a> {
    fn new(judge: &'j mut Judge<'a>, start: &Candidate, random: &mut Random) -> Option<Self> {
        let tables = Tables::new(judge.costs, &start.shape);
        let mut current = start.clone();
        // A separate W is freer; what nobody waits for is fused again in the end.
        for program in &mut current.programs {
            *program = program
                .iter()
                .flat_map(|&each| match kind(each) {
                    B => [op(I, stage(each), microbatch(each)), op(W, stage(each), microbatch(each))],
                    _ => [each, NONE],
                })
                .filter(|&each| each != NONE)
                .collect();
        }
        let charge = judge.charge(&current.shape);
        let mut tuner = Self {
            judge,
            work_ns: works_ns(&tables),
            tables,
            current,
            charge,
            smooth: 0.0,
            live: Vec::new(),
            position: Vec::new(),
            critical: Vec::new(),
        };
        tuner.index();
        let (iteration_ns, smooth) = tuner.measure(f64::INFINITY)?;
        tuner.settle(iteration_ns, smooth, random);
        Some(tuner)
    }

    /// Where everything is, and what lives there.
    fn index(&mut self) {
        let tables = &self.tables;
        self.position.clear();
        self.position.resize(tables.stages() * tables.microbatches * 4, u32::MAX);
        self.live.resize(tables.devices, Vec::new());
        for device in 0..tables.devices {
            let program = &self.current.programs[device];
            let live = &mut self.live[device];
            live.clear();
            let mut now = i64::try_from(tables.base_bytes[device]).unwrap_or(i64::MAX);
            for (position, &op) in program.iter().enumerate() {
                live.push(now);
                now = now.saturating_add(memory::step(tables, op).1);
                self.position[slot(tables, op)] = position as u32;
            }
        }
    }

    /// Time and smooth value; `None` for what can't run or is worse than `accept`.
    fn measure(&mut self, accept: f64) -> Option<(u64, f64)> {
        self.judge.spend(self.current.programs.iter().map(Vec::len).sum());
        let share = MEAN_END / self.work_ns.len() as f64;
        let rest = self.charge + self.work_ns.iter().map(|&ns| ns as f64).sum::<f64>() * share;
        let end_ns = ((accept - rest).max(0.0) as u64).saturating_sub(self.tables.tail_ns);
        let deadline = Deadline { work_ns: &self.work_ns, end_ns };
        let end = self.judge.replay.run_until(&self.tables, &self.current.programs, deadline)?;
        let iteration_ns = end.saturating_add(self.tables.tail_ns);
        let ends: f64 = self.judge.replay.free.iter().map(|&ns| ns as f64).sum();
        let smooth = iteration_ns as f64 + self.charge + share * ends;
        (smooth <= accept).then_some((iteration_ns, smooth))
    }

    fn settle(&mut self, iteration_ns: u64, smooth: f64, random: &mut Random) {
        self.current.iteration_ns = iteration_ns;
        self.current.value = iteration_ns as f64 + self.charge;
        self.smooth = smooth;
        self.trace(random);
    }

    /// Follows what each instruction waited for, back from the last to end.
    fn trace(&mut self, random: &mut Random) {
        self.critical.clear();
        let replay = &self.judge.replay;
        let (tables, programs) = (&self.tables, &self.current.programs);
        let ends = |device: usize| replay.free[device];
        let Some(mut device) = (0..tables.devices).max_by_key(|&device| ends(device)) else { return };
        let mut position = programs[device].len();
        while position > 0 {
            let here = programs[device][position - 1];
            let start = replay.start[device][position - 1];
            self.critical.push(here);
            if start == 0 {
                break;
            }
            let before = position > 1
                && replay.start[device][position - 2].saturating_add(tables.ns(programs[device][position - 2]))
                    == start;
            if replay.ready(tables, here) == start && (!before || random.chance(0.5)) {
                let Some(producer) = self.producer(here) else { break };
                device = tables.device[stage(producer)] as usize;
                position = self.position[slot(tables, producer)] as usize + 1;
            } else {
                position -= 1;
            }
        }
    }

    fn producer(&self, consumer: Op) -> Option<Op> {
        let (stage, microbatch) = (stage(consumer), microbatch(consumer));
        if kind(consumer) == F {
            return stage.checked_sub(1).map(|before| op(F, before, microbatch));
        }
        if stage + 1 == self.tables.stages() {
            return Some(op(F, stage, microbatch));
        }
        [I, B]
            .into_iter()
            .map(|kind| op(kind, stage + 1, microbatch))
            .find(|&op| self.position[slot(&self.tables, op)] != u32::MAX)
    }

    /// Draws a move, and undoes it unless its value is at most `accept`.
    fn reorder(&mut self, accept: f64, random: &mut Random) {
        let magnitude = random.below(5);
        let far = 1 + random.below(1 << magnitude);
        let critical = random.chance(CRITICAL) && !self.critical.is_empty();
        let mut earlier = random.chance(0.6);
        let (device, from) = if critical {
            let here = self.critical[random.below(self.critical.len())];
            let device = self.tables.device[stage(here)] as usize;
            let at = self.position[slot(&self.tables, here)] as usize;
            // Either it comes earlier, or the one before it comes later.
            if earlier || at == 0 {
                earlier = true;
                (device, at)
            } else {
                (device, at - 1)
            }
        } else {
            let device = random.below(self.tables.devices);
            earlier = random.chance(0.5);
            (device, random.below(self.current.programs[device].len()))
        };
        let program = &mut self.current.programs[device];
        if program.is_empty() {
            return;
        }
        let moved = program[from];
        let mut to = from;
        if earlier {
            while to > 0 && from - to < far && !bound(program[to - 1], moved) {
                to -= 1;
            }
        } else {
            while to + 1 < program.len() && to - from < far && !bound(program[to + 1], moved) {
                to += 1;
            }
        }
        if to == from {
            return;
        }
        rotate(program, from, to);
        let (low, high) = (from.min(to), from.max(to));
        if self.window_fits(device, low, high)
            && let Some((iteration_ns, smooth)) = self.measure(accept)
        {
            self.reindex(device, low, high);
            self.settle(iteration_ns, smooth, random);
        } else {
            rotate(&mut self.current.programs[device], to, from);
        }
    }

    fn window_fits(&self, device: usize, low: usize, high: usize) -> bool {
        let limit = i64::try_from(self.tables.limit_bytes[device]).unwrap_or(i64::MAX);
        let mut now = self.live[device][low];
        self.current.programs[device][low..=high].iter().all(|&op| {
            let (during, after) = memory::step(&self.tables, op);
            let fits = now.saturating_add(during) <= limit;
            now = now.saturating_add(after);
            fits
        })
    }

    fn reindex(&mut self, device: usize, low: usize, high: usize) {
        let mut now = self.live[device][low];
        for position in low..=high {
            let op = self.current.programs[device][position];
            self.live[device][position] = now;
            now = now.saturating_add(memory::step(&self.tables, op).1);
            self.position[slot(&self.tables, op)] = position as u32;
        }
    }

    /// Changes the structure under the order, where the number of stages and their devices stay.
    fn restructure(&mut self, freedom: Freedom, accept: f64, random: &mut Random) {
        let mut shape = self.current.shape.clone();
        let freedom = if freedom == Freedom::Full { Freedom::Boundary } else { freedom };
        if !change(self.judge, &mut shape, freedom, random) || !self.judge.rules.permits(&shape) {
            return;
        }
        let tables = Tables::new(self.judge.costs, &shape);
        if !memory::fits(&tables, &self.current.programs) {
            return;
        }
        let charge = std::mem::replace(&mut self.charge, self.judge.charge(&shape));
        let work_ns = std::mem::replace(&mut self.work_ns, works_ns(&tables));
        let tables = std::mem::replace(&mut self.tables, tables);
        match self.measure(accept) {
            Some((iteration_ns, smooth)) => {
                self.current.shape = shape;
                self.index();
                self.settle(iteration_ns, smooth, random);
            }
            None => {
                self.charge = charge;
                self.work_ns = work_ns;
                self.tables = tables;
            }
        }
    }
}

#[inline]
fn slot(tables: &Tables, op: Op) -> usize {
    (stage(op) * tables.microbatches + microbatch(op)) * 4 + kind(op) as usize
}

fn rotate(program: &mut [Op], from: usize, to: usize) {
    if from < to {
        program[from..=to].rotate_left(1);
    } else {
        program[to..=from].rotate_right(1);
    }
}

/// Joins I and W that follow each other where nobody waits for I: real runtimes run B cheaper.
pub(crate) fn fused(judge: &mut Judge, candidate: &Candidate) -> Option<Candidate> {
    let tables = Tables::new(judge.costs, &candidate.shape);
    judge.replay.run(&tables, &candidate.programs)?;
    let consumers = starts(&tables, judge, candidate);
    let mut programs = candidate.programs.clone();
    for program in &mut programs {
        crate::schedule::orders::fuse(program, |each| {
            let (stage, microbatch) = (stage(each), microbatch(each));
            let Some(before) = stage.checked_sub(1) else { return true };
            let ends = consumers[slot(&tables, each)].saturating_add(tables.cost[stage].ns[B as usize]);
            [I, B].into_iter().any(|kind| {
                let start = consumers[slot(&tables, op(kind, before, microbatch))];
                start != u64::MAX && start >= ends.saturating_add(tables.back[stage].delay_ns())
            })
        });
    }
    judge.given(&candidate.shape, programs, candidate.genes).filter(|joined| joined.value <= candidate.value)
}

/// When each instruction starts, `u64::MAX` if there is none.
fn starts(tables: &Tables, judge: &Judge, candidate: &Candidate) -> Vec<u64> {
    let mut starts = vec![u64::MAX; tables.stages() * tables.microbatches * 4];
    for (program, times) in candidate.programs.iter().zip(&judge.replay.start) {
        for (&op, &start) in program.iter().zip(times) {
            starts[slot(tables, op)] = start;
        }
    }
    starts
}
