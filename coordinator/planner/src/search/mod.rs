//! Searches for the plan with the shortest iteration, anytime.
//!
//! ```text
//!   portfolio --> pool of different shapes --> sketch: annealed by loads alone     --+
//!                   ^                      --> structure: each neighbour listed anew <-+--+
//!                   |                      --> order: each move timed              <------+
//!                   +------------------------------------------------------------- rounds, ever longer
//! ```
//!
//! 1. With a valid running plan the result is never worse than it, and moves nothing that does not pay.
//! 2. What is returned passed the audit.
//! 3. The same seed and number of evaluations give the same plan, on any number of threads.

mod early;
mod judge;
pub(crate) mod order;
mod portfolio;
mod rounds;
mod sketch;
mod squeeze;
mod structure;

use crate::bounds;
use crate::costs::Costs;
use crate::memory::Shortage;
use crate::moves;
use crate::partition::Weigh;
use crate::program::{MICROBATCHES_MAX, STAGES_MAX};
use crate::random::Random;
use crate::recipe::Genes;
use crate::rules::Rules;
use crate::shape::{Shape, predicted, programs_of};
use crate::simulate::simulate;
use adaptis_plan::{Plan, Problem, audit};
use adaptis_proto::Epoch;
use judge::{Candidate, Judge};
use portfolio::Pool;
pub(crate) use portfolio::device_orders;
use rounds::{ORDER_STEPS, STRUCTURE_STEPS};
use structure::Freedom;

/// Sets of layers of a stage whose recomputation is tried to be left out in the end.
const IDLE_RECOMPUTE_TRIES: usize = 17;
/// Instructions replayed for that.
const IDLE_RECOMPUTE_INSTRUCTIONS: u64 = 3_000_000;
/// How to search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Of the random choices.
    pub seed: u64,
    /// Evaluations after which to stop; none: until the caller stops it or the bound is reached.
    pub evaluations: Option<u64>,
    /// Iterations that the plan will run: weighs what moves.
    pub horizon_iterations: u64,
    /// Number of the new plan.
    pub epoch: Epoch,
    /// Threads to search on, the caller's or so many others. With a number of evaluations the result does not depend on
    /// it.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, evaluations: None, horizon_iterations: 1000, epoch: Epoch(1), threads: 1 }
    }
}

/// What the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Search on.
    Go,
    /// Return the best so far.
    Stop,
}

/// Where a search stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Plans evaluated so far.
    pub evaluations: u64,
    /// Iteration time of the best plan so far; `u64::MAX` before there is one.
    pub best_ns: u64,
    /// No plan takes less.
    pub lower_bound_ns: u64,
    /// What is being done.
    pub stage: &'static str,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The best plan, `predicted` filled in, valid by its audit.
    pub plan: Plan,
    /// With a plan to start from: the best of each kind of change, cheapest kind first.
    pub rungs: Vec<Rung>,
    /// Plans evaluated.
    pub evaluations: u64,
    /// No plan takes less.
    pub lower_bound_ns: u64,
}

/// A kind of change to the running plan; cheapest first. Each allows what those before it allow, except that
/// boundaries move under the old sequence of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RungKind {
    /// Only the order of instructions.
    Order,
    /// Also which layers are recomputed.
    Recompute,
    /// Also which device runs which stage; the stages stay.
    Relabel,
    /// Also where stages begin and end; their devices stay in sequence. (As [`RungKind::Recompute`] otherwise.)
    Boundary,
    /// Anything.
    Full,
}

impl RungKind {
    /// From the cheapest on.
    pub const ALL: [RungKind; 5] =
        [RungKind::Order, RungKind::Recompute, RungKind::Relabel, RungKind::Boundary, RungKind::Full];
}

/// The best plan of a kind of change.
#[derive(Clone, Debug, PartialEq)]
pub struct Rung {
    /// What was allowed to change.
    pub kind: RungKind,
    /// The plan.
    pub plan: Plan,
    /// Its time.
    pub iteration_ns: u64,
    /// Layers that change device.
    pub moved_layers: u32,
    /// What they weigh.
    pub moved_bytes: u64,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Infeasible {
    /// The constraints contradict one another.
    #[error("layer {layer} may run on no device: {because}")]
    Constraints {
        /// A layer that has no device.
        layer: usize,
        /// Why.
        because: &'static str,
    },
    /// Memory does not suffice, even with everything recomputed and one microbatch in flight.
    #[error(
        "device {device} needs {needed_bytes} bytes and has {available_bytes}, with every layer recomputed and one microbatch in flight: {short_bytes} more bytes there, a smaller microbatch or more devices would make it fit"
    )]
    Memory {
        /// The device that lacks most, on the partition found that lacks least.
        device: String,
        /// What it needs.
        needed_bytes: u64,
        /// What it has.
        available_bytes: u64,
        /// The difference.
        short_bytes: u64,
    },
    /// Memory or the constraints leave a named schedule no partition; they may leave another one some.
    #[error("no partition of {name} fits in memory and keeps the constraints; another schedule, or a free search, may")]
    Schedule {
        /// Which one.
        name: &'static str,
    },
    /// More than the search's words hold.
    #[error("{what} {found} are more than {limit}")]
    TooLarge {
        /// Layers or microbatches.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
}

/// Searches for the plan with the shortest iteration.
///
/// `from` is the running plan on the same devices and layers; what leaves its device is then charged, spread over the
/// horizon. One that does not belong to the problem is not looked at. `tick` is called on the caller's thread, every
/// millisecond or so of work, more rarely only where one evaluation takes longer.
///
/// # Errors
/// No plan fits, or the constraints contradict one another. Both are decided however early the caller stops.
pub fn search(
    problem: &Problem,
    from: Option<&Plan>,
    options: &Options,
    tick: &mut dyn FnMut(&Progress) -> Control,
) -> Result<Outcome, Infeasible> {
    within_limits(problem)?;
    let costs = Costs::new(problem);
    let rules = Rules::new(problem)?;
    let bound_ns = bounds::of(&costs, problem);
    let from = from.filter(|plan| belongs(problem, plan));
    let shape = from.map(Shape::of);
    let mut judge = Judge::new(&costs, &rules, shape.as_ref(), bound_ns, options, tick);
    let mut pool = Pool::new(shape.clone());
    let running = from.and_then(|plan| running(problem, plan, &mut judge));
    portfolio::fill(&mut judge, &mut pool, running.as_ref(), shape.as_ref());
    let mut random = Random::new(options.seed);
    if pool.members.is_empty()
        && let Some(shortage) = squeeze::squeeze(&mut judge, &mut pool, &mut random)
    {
        return Err(Infeasible::memory(problem, shortage));
    }
    if let Some(shape) = &shape {
        climb(&mut judge, &mut pool, shape, &mut random);
    }
    rounds::rounds(&mut judge, &mut pool, shape.as_ref(), options, &mut random);
    Ok(conclude(problem, &mut judge, &pool, from, options))
}

/// Counts that the search's words hold.
pub(crate) fn within_limits(problem: &Problem) -> Result<(), Infeasible> {
    let within = |what, found: usize, limit: usize| match found <= limit {
        true => Ok(()),
        false => Err(Infeasible::TooLarge { what, found, limit }),
    };
    within("layers", problem.layers.len(), STAGES_MAX)?;
    within("microbatches", problem.microbatches as usize, MICROBATCHES_MAX)
}

fn belongs(problem: &Problem, plan: &Plan) -> bool {
    let mut next = 0;
    let covers = plan.stages.iter().all(|stage| {
        let [start, end] = stage.layers;
        let fits = start == next && end > start && (stage.device as usize) < problem.devices.len();
        next = end;
        fits && stage.recompute.iter().all(|layer| (start..end).contains(layer))
    });
    covers
        && next as usize == problem.layers.len()
        && plan.layers == next
        && plan.devices.iter().eq(problem.devices.iter().map(|device| &device.name))
}

/// The running plan as a candidate, if it is still valid.
fn running(problem: &Problem, plan: &Plan, judge: &mut Judge) -> Option<Candidate> {
    if simulate(problem, plan).is_err() || !audit(problem, plan).is_empty() {
        return None;
    }
    judge.given(&Shape::of(plan), programs_of(plan), Genes::STANDARD[0])
}

/// Tries each kind of change to the running plan by itself, cheapest kind first.
fn climb(judge: &mut Judge, pool: &mut Pool, from: &Shape, random: &mut Random) {
    judge.stage = "changes to the running plan";
    let steps = STRUCTURE_STEPS;
    if let Some(kept) = judge.best_listing(from, &Genes::STANDARD) {
        let kept = structure::anneal(judge, pool, &kept, Freedom::Recompute, steps / 2, random);
        order::anneal(judge, pool, &kept, Some(Freedom::Recompute), ORDER_STEPS, random);
    }
    let devices: Vec<u32> = from.stages.iter().map(|slot| slot.device).collect();
    for order in device_orders(judge.costs, judge.rules, portfolio::RELABELLINGS_MAX) {
        let mut relabelled = from.clone();
        for slot in &mut relabelled.stages {
            let rank = judge.rules.usable.iter().position(|&device| device == slot.device);
            slot.device = rank.map_or(slot.device, |rank| order[rank]);
        }
        if let Some(candidate) = judge.best_listing(&relabelled, &Genes::STANDARD[..4]) {
            pool.offer(judge, candidate);
        }
    }
    for in_flight in [100, 60, 30, 0] {
        if let Some(shape) = judge.split(&devices, Weigh::Time { in_flight })
            && let Some(candidate) = judge.best_listing(&shape, &Genes::STANDARD)
        {
            pool.offer(judge, candidate);
        }
    }
    if let Some(best) = pool.rung(RungKind::Boundary).cloned() {
        let best = structure::anneal(judge, pool, &best, Freedom::Boundary, steps * 2, random);
        order::anneal(judge, pool, &best, Some(Freedom::Boundary), ORDER_STEPS, random);
    }
}

/// A candidate that recomputes only what its memory or time asks for: what was recomputed on the way to a better plan
/// may be of no use to it.
fn without_idle_recompute(judge: &mut Judge, candidate: &Candidate) -> Candidate {
    let mut lean = candidate.clone();
    let instructions_max = judge.instructions + IDLE_RECOMPUTE_INSTRUCTIONS;
    for stage in 0..candidate.shape.stages.len() {
        let recomputed: Vec<usize> =
            candidate.shape.stages[stage].range().filter(|&layer| candidate.shape.recompute[layer]).collect();
        let tries = std::iter::once(recomputed.as_slice()).chain(recomputed.chunks(1)).take(IDLE_RECOMPUTE_TRIES);
        for layers in tries.filter(|layers| !layers.is_empty()) {
            let mut shape = lean.shape.clone();
            layers.iter().for_each(|&layer| shape.recompute[layer] = false);
            if shape == lean.shape || judge.instructions > instructions_max {
                continue;
            }
            let tried = judge.given(&shape, lean.programs.clone(), lean.genes);
            if let Some(tried) = tried.filter(|tried| tried.value <= lean.value) {
                lean = tried;
            }
        }
    }
    lean
}

/// The best members as plans that passed the audit.
fn conclude(problem: &Problem, judge: &mut Judge, pool: &Pool, from: Option<&Plan>, options: &Options) -> Outcome {
    let parent = from.map_or(Epoch(0), |plan| plan.epoch);
    let audited = |judge: &mut Judge, candidate: &Candidate, kind: RungKind| {
        let lean = match kind {
            RungKind::Order => candidate.clone(),
            _ => without_idle_recompute(judge, candidate),
        };
        let joined = order::fused(judge, &lean);
        [joined.as_ref(), Some(&lean), Some(candidate)].into_iter().flatten().find_map(|candidate| {
            let mut plan = candidate.shape.plan(problem, &candidate.programs, options.epoch, parent);
            let timeline = simulate(problem, &plan).ok()?;
            plan.predicted = Some(predicted(&timeline, judge.bound_ns));
            (timeline.fits && audit(problem, &plan).is_empty()).then_some(plan)
        })
    };
    let plan = pool.members.iter().find_map(|member| audited(judge, member, RungKind::Full));
    let plan = plan.expect("candidates keep every rule of the audit by construction");
    let mut rungs = Vec::new();
    if let Some(from) = from {
        for kind in RungKind::ALL {
            let best = match kind {
                RungKind::Full => Some(plan.clone()),
                _ => pool.rung(kind).and_then(|candidate| audited(judge, candidate, kind)),
            };
            let Some(plan) = best else { continue };
            let moved = moves::moves(problem, from, &plan);
            let iteration_ns = plan.predicted.as_ref().map_or(u64::MAX, |predicted| predicted.iteration_ns);
            rungs.push(Rung { kind, plan, iteration_ns, moved_layers: moved.layers, moved_bytes: moved.bytes });
        }
    }
    Outcome { plan, rungs, evaluations: judge.evaluations, lower_bound_ns: judge.bound_ns }
}

impl Infeasible {
    fn memory(problem: &Problem, shortage: Shortage) -> Self {
        let device = &problem.devices[shortage.device];
        Infeasible::Memory {
            device: device.name.clone(),
            needed_bytes: shortage.needed_bytes,
            available_bytes: device.memory_bytes,
            short_bytes: shortage.short_bytes,
        }
    }
}
