//! Works on the pool, task by task, on as many threads as there are: with one result.
//!
//! ```text
//!   pool --cut--> task 0, 1, 2, ...  --any thread--> what each found --in the tasks' order--> pool
//! ```
//!
//! Short restarts that intensify the best few beat one long anneal. A task is such a restart: structure, then order. Its
//! steps grow from round to round, so that the search needs no knowledge of its budget; [`Islands`] say what it starts from.
//!
//! 1. A task is a value: where it starts, its steps and evaluations, its random numbers. What it finds depends on nothing
//!    else.
//! 2. Task k is cut when the pool holds what the tasks up to k - `ahead` found, no more and no less. So the result does
//!    not depend on how many threads there are, nor on how long each takes.
//! 3. What was spent and what tasks at work may still spend is never more than the budget.

use super::island::Islands;
use super::judge::{Candidate, Judge};
use super::portfolio::{self, Pool};
use super::running::Running;
use super::sketch::{self, Trust};
use super::structure::{self, Freedom};
use super::{Control, Options, Progress, RungKind, order};
use crate::random::{Random, mixed};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Steps of the first round.
pub(super) const STRUCTURE_STEPS: usize = 400;
pub(super) const ORDER_STEPS: usize = 1_500;
/// Tasks of a round: the first one works on the best member of the pool.
const WORKED_ON: u64 = 2;
/// Listings this much worse than the best plan are worth tuning.
const NEAR: f64 = 0.03;
/// Share of the new shapes that come from a sketch, as long as listings bear them out.
const SKETCHED: f64 = 0.4;
const SKETCHED_LARGE: f64 = 0.8;
/// Instructions of a plan above which structure takes fewer steps, and sketches most of the new shapes.
pub(super) const LARGE: usize = 10_000;
pub(super) const STEPS_MIN: usize = 10;
/// An order this near to what its shape takes at least is not worth tuning, but for a share of the time.
const SETTLED: f64 = 0.0003;
const TUNED_ANYWAY: f64 = 0.2;
/// Evaluations of a task beside its steps.
const EVALUATIONS_BESIDE: u64 = 16;
/// Tasks that are cut before the first of them must be back, where the result must not depend on the threads.
const AHEAD: usize = 8;
/// The same for each thread where it may, so that none waits for a longer task.
const AHEAD_PER_THREAD: usize = 2;
/// Evaluations near a running plan for each one from nothing, and as how many instructions those count that come before
/// the first of these.
const NEAR_SHARE: u64 = 3;
const NEAR_FIRST_INSTRUCTIONS: u64 = 25_000_000;
/// Threads at most.
const THREADS_MAX: usize = 64;
/// Between two looks at whether the caller wants to stop, while threads work.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// One restart.
struct Task {
    start: Candidate,
    /// Of the best member when the task was cut.
    best_value: f64,
    best_ns: u64,
    /// A shape that comes near the best is tuned even if its listing is worse than the start.
    tunes_near: bool,
    is_sketched: bool,
    /// Far from the running plan as well as near.
    is_free: bool,
    structure_steps: usize,
    order_steps: usize,
    evaluations_max: u64,
    trust: Trust,
    random: Random,
}

/// What a task found.
struct Found {
    offers: Vec<Candidate>,
    /// What a listing told of its sketch.
    learnt: Option<sketch::Lesson>,
    evaluations: u64,
}

impl Task {
    fn work(mut self, judge: &mut Judge) -> Found {
        judge.begin(self.best_ns, self.evaluations_max, self.is_free, self.trust);
        // What is found is offered to the true pool in the tasks' order.
        let mut aside = Pool::new(None);
        let random = &mut self.random;
        judge.stage = "structure";
        let listed = match self.is_sketched {
            true => sketch::drawn(judge, &self.start.shape, random),
            false => structure::relisted(judge, &self.start, random),
        };
        let mut offers = Vec::new();
        let mut tuned = self.start;
        let mut is_near = false;
        if let Some(listed) = listed {
            let steps = self.structure_steps;
            let annealed = structure::anneal(judge, &mut aside, &listed, Freedom::Full, steps, random);
            offers.push(annealed.clone());
            // A tuned order beats any listing of its shape; a listing that comes near will beat it once tuned.
            is_near = annealed.value < self.best_value * (1.0 + NEAR);
            if is_near && self.tunes_near || annealed.value < tuned.value {
                tuned = annealed;
            }
        }
        let floor_ns = judge.floor_ns(&tuned.shape);
        if tuned.iteration_ns as f64 <= floor_ns * (1.0 + SETTLED) && !random.chance(TUNED_ANYWAY) {
            offers.push(tuned);
        } else {
            judge.stage = "order";
            let steps = self.order_steps;
            offers.push(order::anneal(judge, &mut aside, &tuned, Some(Freedom::Full), steps, random));
        }
        let learnt = judge.sketch.lesson.take().map(|lesson| sketch::Lesson { is_near, ..lesson });
        Found { offers, learnt, evaluations: judge.evaluations }
    }
}

/// Cuts tasks and takes in what they found.
struct Desk<'p> {
    /// The best of everything.
    pool: &'p mut Pool,
    /// Near the running plan, if there is one to stay near to.
    near: Territory,
    /// Beside that, once its time has come: as if there were none, and the best of everything by what it is worth without
    /// the toll.
    anew: Option<(Territory, Pool)>,
    /// There is a plan to stay near to.
    stays_near: bool,
    /// There is one that is not to be stayed near to.
    is_free: bool,
    devices: usize,
    seed: u64,
    cut: u64,
    trust: Trust,
    best_ns: u64,
    bound_ns: u64,
    /// A plan is known by which the search may end: near the running one or, without one, anywhere.
    is_proved: bool,
    spent: u64,
    spent_max: u64,
    /// The tasks that are out, oldest first.
    out: VecDeque<Out>,
}

/// Islands, and what was spent on them or may be by tasks that are out.
struct Territory {
    islands: Islands,
    spent: u64,
}

/// A task that is out.
struct Out {
    is_anew: bool,
    island: u32,
    evaluations_max: u64,
}

impl Desk<'_> {
    /// It is time to search as if there were no running plan, too: starting that takes as long as many tasks.
    fn is_anew_due(&self) -> bool {
        let size = self.pool.members[0].programs.iter().map(Vec::len).sum::<usize>() as u64;
        self.stays_near && self.anew.is_none() && self.near.spent * size >= NEAR_FIRST_INSTRUCTIONS
    }

    /// Starts to.
    fn start_anew(&mut self, judge: &mut Judge) {
        let out: u64 = self.out.iter().map(|out| out.evaluations_max).sum();
        let left = self.spent_max.saturating_sub(self.spent).saturating_sub(out);
        judge.begin(self.best_ns, left, false, self.trust);
        let (territory, all) = anew(judge, self.pool, self.devices);
        let spent = judge.evaluations.min(left);
        self.spent += spent;
        self.best_ns = judge.best_ns;
        self.anew = Some((Territory { spent, ..territory }, all));
    }

    /// The next task; none if the tasks that are out may spend all that is left.
    fn cut(&mut self) -> Option<Task> {
        let out = self.out.iter().map(|out| out.evaluations_max).sum();
        let left = self.spent_max.saturating_sub(self.spent).saturating_sub(out);
        if left == 0 {
            return None;
        }
        let near_spent = self.near.spent;
        let is_anew = self.anew.as_ref().is_some_and(|(anew, all)| {
            anew.spent < near_spent / NEAR_SHARE && all.members[0].iteration_ns > self.bound_ns
        });
        let (territory, all) = match &mut self.anew {
            Some((anew, all)) if is_anew => (anew, &all.members),
            _ => (&mut self.near, &self.pool.members),
        };
        territory.islands.move_on(all);
        let island = territory.islands.here();
        let (round, turn) = island.cut(WORKED_ON);
        let mut random = Random::new(mixed(self.seed.wrapping_add(self.cut)));
        self.cut += 1;
        let members = &island.pool.members;
        // The best in every round, then whichever.
        let start = members[if turn == 0 { 0 } else { random.below(members.len()) }].clone();
        // A listing that takes long is worth choosing with care.
        let size = start.programs.iter().map(Vec::len).sum::<usize>();
        let share = if size > LARGE { SKETCHED_LARGE } else { SKETCHED };
        let is_sketched = random.chance(share * self.trust.share);
        let fewer = |steps: usize| (steps * LARGE.min(size) / size.max(1)).max(STEPS_MIN);
        let (structure_steps, order_steps) = (fewer(island.structure_steps), fewer(island.order_steps));
        let sketched = if is_sketched { self.trust.evaluations(start.shape.stages.len()) } else { 0 };
        let steps = (structure_steps + order_steps) as u64;
        // A step's look at the floor counts as a part of an evaluation.
        let evaluations_max = (steps + steps / 8 + sketched + EVALUATIONS_BESIDE).min(left);
        let best_value = members[0].value;
        island.send(evaluations_max);
        self.out.push_back(Out { is_anew, island: island.number, evaluations_max });
        territory.spent += evaluations_max;
        Some(Task {
            start,
            best_value,
            best_ns: self.best_ns,
            tunes_near: turn > 0 || round % 2 == 1,
            is_sketched,
            is_free: self.is_free || is_anew,
            structure_steps,
            order_steps,
            evaluations_max,
            trust: self.trust,
            random,
        })
    }

    /// Takes in what the oldest task found.
    fn take_in(&mut self, judge: &mut Judge, found: Found) {
        let Out { is_anew, island, evaluations_max } = self.out.pop_front().expect("what was found was out");
        self.spent += found.evaluations;
        if let Some(lesson) = found.learnt {
            // Near a running plan there is no time for long anneals.
            match self.stays_near && !is_anew {
                true => self.trust.heed(lesson),
                false => self.trust.learn(lesson),
            }
        }
        for candidate in found.offers {
            self.best_ns = self.best_ns.min(candidate.iteration_ns);
            self.is_proved |= !is_anew && judge.proves(candidate.iteration_ns, &candidate.shape, self.stays_near);
            let territory = self.territory(is_anew);
            if let Some(island) = territory.islands.get(island) {
                island.pool.offer(judge, candidate.clone());
            }
            self.offer(judge, candidate, is_anew);
        }
        let territory = self.territory(is_anew);
        territory.spent = territory.spent + found.evaluations - evaluations_max;
        if let Some(island) = territory.islands.get(island) {
            island.spend(found.evaluations, evaluations_max);
        }
    }

    fn territory(&mut self, is_anew: bool) -> &mut Territory {
        match &mut self.anew {
            Some((anew, _)) if is_anew => anew,
            _ => &mut self.near,
        }
    }

    /// To the best of everything, with the toll and without.
    fn offer(&mut self, judge: &mut Judge, mut candidate: Candidate, is_anew: bool) {
        if let Some((_, all)) = &mut self.anew {
            if is_anew {
                judge.settle(&mut candidate);
            }
            let toll = judge.toll(&candidate.shape);
            let without = if is_anew { candidate.value } else { candidate.value - toll };
            all.offer(judge, Candidate { value: without, ..candidate.clone() });
            candidate.value = without + toll;
        }
        self.pool.offer(judge, candidate);
    }
}

/// Who works on tasks; what they found comes back in the order in which they were given.
trait Workers {
    fn give(&mut self, judge: &mut Judge, task: Task);
    /// What the oldest task found; none if it is lost.
    fn take(&mut self, judge: &mut Judge) -> Option<Found>;
}

/// The caller's thread.
#[derive(Default)]
struct Alone {
    found: VecDeque<Found>,
}

impl Workers for Alone {
    fn give(&mut self, judge: &mut Judge, task: Task) {
        self.found.push_back(task.work(judge));
    }

    fn take(&mut self, _judge: &mut Judge) -> Option<Found> {
        self.found.pop_front()
    }
}

/// Threads, while the caller's waits and asks whether to stop. Neither channel ever holds more tasks than are out.
struct Crew<'s> {
    tasks: Sender<(u64, Task)>,
    /// None: a thread panicked, and their scope says so when all have ended.
    found: Receiver<Option<(u64, Found)>>,
    stop: &'s AtomicBool,
    given: u64,
    taken: u64,
    early: BTreeMap<u64, Found>,
}

impl Workers for Crew<'_> {
    fn give(&mut self, _judge: &mut Judge, task: Task) {
        // Nobody is there to take it only after a panic, which is told by what is found.
        let _ = self.tasks.send((self.given, task));
        self.given += 1;
    }

    fn take(&mut self, judge: &mut Judge) -> Option<Found> {
        loop {
            if let Some(found) = self.early.remove(&self.taken) {
                self.taken += 1;
                judge.shown += found.evaluations;
                return Some(found);
            }
            match self.found.recv_timeout(LOOK_EVERY) {
                Ok(Some((number, found))) => drop(self.early.insert(number, found)),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(None) | Err(RecvTimeoutError::Disconnected) => return None,
            }
            judge.look();
            self.stop.fetch_or(judge.is_stopped(), Ordering::Relaxed);
        }
    }
}

/// Tells of a panic, so that nobody waits for what was lost.
struct Alarm<'s>(&'s Sender<Option<(u64, Found)>>);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send(None);
        }
    }
}

impl Desk<'_> {
    fn run(&mut self, judge: &mut Judge, ahead: usize, workers: &mut impl Workers) {
        loop {
            while !judge.is_stopped() && !self.is_proved && self.out.len() < ahead {
                if self.is_anew_due() {
                    self.start_anew(judge);
                }
                let Some(task) = self.cut() else { break };
                workers.give(judge, task);
            }
            // What is out when the search may end is not needed, and would depend on nothing but chance.
            if self.out.is_empty() || self.is_proved {
                return;
            }
            let Some(found) = workers.take(judge) else { return };
            self.take_in(judge, found);
        }
    }
}

/// Works on the pool until the caller, the budget or the bound says that it is enough.
pub(super) fn rounds(
    judge: &mut Judge,
    pool: &mut Pool,
    running: Option<&Running>,
    options: &Options,
    random: &mut Random,
) {
    if judge.done() {
        return;
    }
    let threads = options.threads.clamp(1, THREADS_MAX);
    let ahead = match options.evaluations {
        Some(_) => AHEAD,
        None if threads == 1 => 1,
        None => threads * AHEAD_PER_THREAD,
    };
    let is_free = judge.is_free;
    let devices = judge.rules.usable.len();
    let stays_near = running.is_some() && !is_free;
    let mut desk = Desk {
        near: Territory { islands: Islands::new(&pool.members, devices, !stays_near), spent: 0 },
        anew: None,
        stays_near,
        is_free,
        devices,
        pool,
        seed: random.bits(),
        cut: 0,
        trust: judge.sketch.trust,
        best_ns: judge.best_ns,
        bound_ns: judge.bound_ns,
        is_proved: false,
        spent: judge.evaluations,
        spent_max: options.evaluations.unwrap_or(u64::MAX),
        out: VecDeque::new(),
    };
    match threads.min(ahead) {
        1 => desk.run(judge, ahead, &mut Alone::default()),
        threads => {
            let (costs, rules, bound_ns, stop) = (judge.costs, judge.rules, judge.bound_ns, AtomicBool::new(false));
            let (tasks, to_do) = channel::<(u64, Task)>();
            let (report, found) = channel();
            let to_do = Mutex::new(to_do);
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    let (report, to_do, stop) = (report.clone(), &to_do, &stop);
                    scope.spawn(move || {
                        let alarm = Alarm(&report);
                        let mut look = |_: &Progress| match stop.load(Ordering::Relaxed) {
                            true => Control::Stop,
                            false => Control::Go,
                        };
                        let mut judge = Judge::new(costs, rules, running, bound_ns, options, &mut look);
                        loop {
                            let next = to_do.lock().unwrap_or_else(PoisonError::into_inner).recv();
                            let Ok((number, task)) = next else { break };
                            if report.send(Some((number, task.work(&mut judge)))).is_err() {
                                break;
                            }
                        }
                        drop(alarm);
                    });
                }
                drop(report);
                let mut crew = Crew { tasks, found, stop: &stop, given: 0, taken: 0, early: BTreeMap::new() };
                desk.run(judge, ahead, &mut crew);
                // Whoever is still at work is not waited for longer than a look takes.
                stop.store(true, Ordering::Relaxed);
            });
        }
    }
    (judge.evaluations, judge.best_ns, judge.is_free) = (desk.spent, desk.best_ns, is_free);
    if let Some((_, all)) = desk.anew {
        let best = all.members[0].clone();
        let value = best.value + judge.toll(&best.shape);
        desk.pool.rungs[RungKind::Anew as usize] = Some(Candidate { value, ..best });
    }
}

/// Where to search as if there were no running plan: starts that bear no toll, and what was found near the running one.
fn anew(judge: &mut Judge, pool: &Pool, devices: usize) -> (Territory, Pool) {
    let mut all = Pool::new(None);
    judge.is_free = true;
    portfolio::fill(judge, &mut all, None);
    all.members.iter_mut().for_each(|member| judge.settle(member));
    judge.is_free = false;
    // A stopped search may have looked at none.
    let starts = if all.members.is_empty() { pool.members.clone() } else { all.members.clone() };
    for member in &pool.members {
        let value = member.value - judge.toll(&member.shape);
        all.offer(judge, Candidate { value, ..member.clone() });
    }
    (Territory { islands: Islands::new(&starts, devices, true), spent: 0 }, all)
}
