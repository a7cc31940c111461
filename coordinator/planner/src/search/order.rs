//! Local search over the explicit order of instructions: most moves on the critical path, each replayed.
//!
//! A move takes one instruction past its neighbours in its device's program. What may not pass what follows from the
//! stage and microbatch alone; the rest (two stages of one device) shows in the times. Memory is checked in the window
//! that changed, times follow through [`Course`]. A few moves change the structure under the order: a layer over a boundary, a layer recomputed or not.

use super::judge::{Candidate, Judge};
use super::portfolio::Pool;
use super::structure::{Freedom, change, stages_max};
use super::{Control, Options, Progress};
use crate::costs::Costs;
use crate::course::Course;
use crate::memory;
use crate::program::{B, F, I, NONE, Op, Programs, STAGES_MAX, W, kind, microbatch, op, stage};
use crate::random::Random;
use crate::recipe::{Genes, works_ns};
use crate::replay::Deadline;
use crate::rules::Rules;
use crate::shape::{Shape, Tables};
use std::cmp::Ordering;

/// Temperature at the start and at the end, as a share of the value.
const HOT: f64 = 0.003;
const COLD: f64 = 0.00005;
/// Weight of the devices' mean end beside the last one's.
const MEAN_END: f64 = 0.02;
/// Share of moves that change the structure, and of the rest those on the critical path.
const STRUCTURAL: f64 = 0.06;
const CRITICAL: f64 = 0.8;
/// Share of moves that cut a stage in two in its place, if everything may change.
const CUTTING: f64 = 0.0003;
/// Moves kept after which the critical path is followed anew, though the iteration takes as long as before.
const KEPT_MAX: u32 = 32;
/// What a visit costs, in replayed instructions.
const INSTRUCTIONS_PER_VISIT: usize = 5;

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
    course: Course,
    critical: Vec<Op>,
    /// Moves kept since the critical path was followed.
    kept: u32,
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
                Some(Freedom::Full) if random.chance(CUTTING) => tuner.cut(accept, random),
                Some(freedom) if random.chance(STRUCTURAL) => tuner.restructure(freedom, accept, random),
                _ => tuner.reorder(accept, random),
            }
            if tuner.current.value < best.value {
                best.clone_from(&tuner.current);
                tuner.judge.note(best.iteration_ns, &best.shape);
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
            course: Course::default(),
            critical: Vec::new(),
            kept: 0,
        };
        let (iteration_ns, smooth) = tuner.measure(f64::INFINITY)?;
        tuner.adopt(iteration_ns, smooth, random);
        Some(tuner)
    }

    /// Takes over what has just been replayed.
    fn adopt(&mut self, iteration_ns: u64, smooth: f64, random: &mut Random) {
        if self.tables.crowd.is_none() {
            self.course.adopt(&self.tables, &self.current.programs, &self.judge.replay);
        }
        let tables = &self.tables;
        self.live.resize(tables.devices, Vec::new());
        for (device, live) in self.live.iter_mut().enumerate() {
            live.clear();
            let mut now = i64::try_from(tables.base_bytes[device]).unwrap_or(i64::MAX);
            for &op in &self.current.programs[device] {
                live.push(now);
                now = now.saturating_add(memory::step(tables, op).1);
            }
        }
        self.settle(iteration_ns, smooth);
        self.trace(random);
    }

    /// Ends of programs after this make a value above `accept`.
    fn deadline_ns(&self, accept: f64) -> u64 {
        let share = MEAN_END / self.work_ns.len() as f64;
        let rest = self.charge + self.work_ns.iter().map(|&ns| ns as f64).sum::<f64>() * share;
        ((accept - rest).max(0.0) as u64).saturating_sub(self.tables.tail_ns)
    }

    /// Iteration time and smooth value, from the devices' ends.
    fn value(&self, end_ns: u64, ends_sum: f64) -> (u64, f64) {
        let share = MEAN_END / self.work_ns.len() as f64;
        let iteration_ns = end_ns.saturating_add(self.tables.tail_ns);
        (iteration_ns, iteration_ns as f64 + self.charge + share * ends_sum)
    }

    /// Replays everything; `None` for what can't run or is worse than `accept`.
    fn measure(&mut self, accept: f64) -> Option<(u64, f64)> {
        self.judge.spend(self.current.programs.iter().map(Vec::len).sum());
        let deadline = Deadline { work_ns: &self.work_ns, end_ns: self.deadline_ns(accept) };
        let end = self.judge.replay.run_until(&self.tables, &self.current.programs, deadline)?;
        let ends_sum: f64 = self.judge.replay.free.iter().map(|&ns| ns as f64).sum();
        let (iteration_ns, smooth) = self.value(end, ends_sum);
        (smooth <= accept).then_some((iteration_ns, smooth))
    }

    fn settle(&mut self, iteration_ns: u64, smooth: f64) {
        self.current.iteration_ns = iteration_ns;
        self.current.value = iteration_ns as f64 + self.charge;
        self.smooth = smooth;
    }

    fn trace(&mut self, random: &mut Random) {
        self.kept = 0;
        if self.tables.crowd.is_some() {
            return;
        }
        self.course.critical(&self.tables, &self.current.programs, &mut self.critical, || random.chance(0.5));
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
            let at = self.course.position(here);
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
        if !self.window_fits(device, low, high) {
            self.judge.spend(0);
            rotate(&mut self.current.programs[device], to, from);
            return;
        }
        if self.tables.crowd.is_some() {
            // Who works beside whom changes with every move: there is nothing to be kept up to date.
            match self.measure(accept) {
                Some((iteration_ns, smooth)) => {
                    self.relive(device, low, high);
                    self.settle(iteration_ns, smooth);
                }
                None => rotate(&mut self.current.programs[device], to, from),
            }
            return;
        }
        let deadline_ns = self.deadline_ns(accept);
        let runs = self.course.shift(&self.tables, &self.current.programs, device, (from, to), deadline_ns);
        self.judge.spend(self.course.effort() * INSTRUCTIONS_PER_VISIT);
        let (iteration_ns, smooth) = self.value(self.course.end_ns(), self.course.ends_sum());
        if runs && smooth <= accept && (self.course.is_sure() || self.agrees()) {
            self.course.keep(&self.current.programs);
            debug_assert!(self.agrees(), "times kept up to date are those of a replay");
            self.relive(device, low, high);
            self.kept += 1;
            let is_stale = iteration_ns != self.current.iteration_ns || self.kept >= KEPT_MAX;
            self.settle(iteration_ns, smooth);
            if is_stale {
                self.trace(random);
            }
        } else {
            rotate(&mut self.current.programs[device], to, from);
            self.course.undo(&self.tables, &self.current.programs);
        }
    }

    /// A replay confirms the times.
    fn agrees(&mut self) -> bool {
        let programs = &self.current.programs;
        let end = self.judge.replay.run(&self.tables, programs);
        end == Some(self.course.end_ns()) && self.course.starts_as(programs, &self.judge.replay)
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

    fn relive(&mut self, device: usize, low: usize, high: usize) {
        let mut now = self.live[device][low];
        for position in low..=high {
            self.live[device][position] = now;
            let op = self.current.programs[device][position];
            now = now.saturating_add(memory::step(&self.tables, op).1);
        }
    }

    /// Changes the structure under the order, where the number of stages and their devices stay.
    fn restructure(&mut self, freedom: Freedom, accept: f64, random: &mut Random) {
        let mut shape = self.current.shape.clone();
        let freedom = if freedom == Freedom::Full { Freedom::Boundary } else { freedom };
        if !change(self.judge, &mut shape, freedom, random) || !self.judge.rules.permits(&shape) {
            return;
        }
        self.reshape(shape, accept, random);
    }

    /// Takes over a shape for the current programs, if they fit and their value is at most `accept`.
    fn reshape(&mut self, shape: Shape, accept: f64, random: &mut Random) -> bool {
        let tables = Tables::new(self.judge.costs, &shape);
        if !memory::fits(&tables, &self.current.programs) {
            return false;
        }
        let charge = std::mem::replace(&mut self.charge, self.judge.charge(&shape));
        let work_ns = std::mem::replace(&mut self.work_ns, works_ns(&tables));
        let tables = std::mem::replace(&mut self.tables, tables);
        match self.measure(accept) {
            Some((iteration_ns, smooth)) => {
                self.current.shape = shape;
                self.adopt(iteration_ns, smooth, random);
                true
            }
            None => {
                self.charge = charge;
                self.work_ns = work_ns;
                self.tables = tables;
                false
            }
        }
    }
}

impl Tuner<'_, '_> {
    /// Cuts a stage in two on its device, each half's instructions one after the other: takes as long, and leaves more
    /// freedom.
    fn cut(&mut self, accept: f64, random: &mut Random) {
        let count = self.current.shape.stages.len();
        let cut = random.below(count);
        let slot = self.current.shape.stages[cut];
        if slot.end - slot.start < 2 || count >= stages_max(self.judge) || count >= STAGES_MAX {
            return;
        }
        let mut shape = self.current.shape.clone();
        shape.cut(cut, slot.start + 1 + random.below((slot.end - slot.start - 1) as usize) as u32);
        let renamed = |each: Op| {
            let (kind, at, microbatch) = (kind(each), stage(each), microbatch(each));
            let (low, high) = (op(kind, at, microbatch), op(kind, at + 1, microbatch));
            match (at.cmp(&cut), kind) {
                (Ordering::Less, _) => [low, NONE],
                (Ordering::Greater, _) => [high, NONE],
                (Ordering::Equal, F) => [low, high],
                (Ordering::Equal, _) => [high, low],
            }
        };
        let programs: Programs = self
            .current
            .programs
            .iter()
            .map(|program| program.iter().flat_map(|&each| renamed(each)).filter(|&each| each != NONE).collect())
            .collect();
        let before = std::mem::replace(&mut self.current.programs, programs);
        if !self.reshape(shape, accept, random) {
            self.current.programs = before;
        }
    }
}

/// Anneals the order of given programs and nothing else: how many moves were timed.
pub(crate) fn moves(costs: &Costs, rules: &Rules, shape: &Shape, programs: &Programs, steps: usize) -> Option<u64> {
    // No bound ends it early.
    let mut go = |_: &Progress| Control::Go;
    let mut judge = Judge::new(costs, rules, None, 0, &Options::default(), &mut go);
    let start = judge.given(shape, programs.clone(), Genes::STANDARD[0])?;
    anneal(&mut judge, &mut Pool::new(None), &start, None, steps, &mut Random::new(1));
    Some(judge.evaluations)
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
