//! Searches for the plan with the shortest iteration, anytime.
//!
//! ```text
//!      replan, from a running plan
//!         v
//!   portfolio --> pool of different shapes --> sketch: annealed by loads alone     --+
//!                   ^                      --> structure: each neighbour listed anew <-+--+
//!                   |                      --> order: each move timed              <------+
//!                   +------------------------------------------------------------- rounds, ever longer
//! ```
//!
//! Short restarts that intensify the best few beat one long anneal. A round works on the pool's members in turn; its
//! steps grow from round to round, so that the search needs no knowledge of its budget.
//!
//! 1. With a valid running plan the result is never worse than it, and moves nothing that does not pay.
//! 2. What is returned passed the audit.
//! 3. Left out on purpose: rayon. One core suffices for what is planned live, and a search is deterministic.

mod conclude;
mod judge;
mod order;
mod portfolio;
mod replan;
mod rung;
mod running;
mod sketch;
mod squeeze;
mod structure;

use crate::bounds;
use crate::costs::Costs;
use crate::memory::Shortage;
use crate::program::{MICROBATCHES_MAX, STAGES_MAX};
use crate::random::Random;
use crate::rules::Rules;
use adaptis_plan::{Plan, Problem};
use adaptis_proto::Epoch;
use judge::Judge;
use portfolio::Pool;
pub(crate) use portfolio::device_orders;
pub use rung::{Rung, RungKind};
use running::Running;
use structure::Freedom;

/// Steps of the first round, and by how many percent each round is longer than the one before.
const STRUCTURE_STEPS: usize = 400;
const ORDER_STEPS: usize = 1_500;
const GROWTH_PERCENT: usize = 120;
/// Rounds after which steps grow no more.
const GROWING_ROUNDS: u32 = 20;
/// Listings this much worse than the best plan are worth tuning.
const NEAR: f64 = 0.03;
/// Members of the pool that a round works on.
const WORKED_ON: usize = 2;
/// Share of the new shapes that come from a sketch, as long as listings bear them out.
const SKETCHED: f64 = 0.4;
const SKETCHED_LARGE: f64 = 0.8;
/// Instructions of a plan above which structure takes fewer steps, and sketches most of the new shapes.
const LARGE: usize = 10_000;
const STEPS_MIN: usize = 10;
/// An order this near to what its shape takes at least is not worth tuning, but for a share of the time.
const SETTLED: f64 = 0.0003;
const TUNED_ANYWAY: f64 = 0.2;

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
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, evaluations: None, horizon_iterations: 1000, epoch: Epoch(1) }
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
/// `from` is the running plan of the same layers, its devices matched by name. What leaves its device is then charged,
/// spread over the horizon; layers whose device is gone move in any case, so that they are not. A plan that does not
/// belong to the problem is not looked at. `tick` is called every millisecond or so of work, more rarely only where one
/// evaluation takes longer.
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
    let running = from.and_then(|plan| Running::of(problem, plan));
    let from = from.filter(|_| running.is_some());
    let mut judge = Judge::new(&costs, &rules, running.as_ref(), bound_ns, options, tick);
    let mut pool = Pool::new(running.as_ref().map(|running| running.shape.clone()));
    let mut random = Random::new(options.seed);
    if let Some(running) = &running {
        replan::climb(problem, &mut judge, &mut pool, running, &mut random);
    }
    portfolio::fill(&mut judge, &mut pool, running.as_ref().map(|running| &running.shape));
    if pool.members.is_empty()
        && let Some(shortage) = squeeze::squeeze(&mut judge, &mut pool, &mut random)
    {
        return Err(Infeasible::memory(problem, shortage));
    }
    rounds(&mut judge, &mut pool, &mut random);
    Ok(conclude::conclude(problem, &mut judge, &pool, from, options))
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

/// Works on the pool until the caller, the budget or the bound says that it is enough.
fn rounds(judge: &mut Judge, pool: &mut Pool, random: &mut Random) {
    let (mut structure_steps, mut order_steps) = (STRUCTURE_STEPS, ORDER_STEPS);
    let mut round = 0_u32;
    while !judge.done() {
        for turn in 0..WORKED_ON {
            if judge.done() {
                return;
            }
            // The best in every round, then whichever.
            let place = if turn == 0 { 0 } else { random.below(pool.members.len()) };
            let start = pool.members[place].clone();
            judge.stage = "structure";
            // A listing that takes long is worth choosing with care.
            let size = start.programs.iter().map(Vec::len).sum::<usize>();
            let is_large = size > LARGE;
            let steps = structure_steps * LARGE.min(size) / size.max(1);
            let share = if is_large { SKETCHED_LARGE } else { SKETCHED };
            let listed = if random.chance(share * judge.sketch.trust.share) {
                sketch::drawn(judge, &start.shape, random)
            } else {
                structure::relisted(judge, &start, random)
            };
            let mut tuned = start;
            if let Some(listed) = listed {
                let annealed = structure::anneal(judge, pool, &listed, Freedom::Full, steps.max(STEPS_MIN), random);
                // A tuned order beats any listing of its shape; a listing that comes near will beat it once tuned.
                let near = annealed.value < pool.members[0].value * (1.0 + NEAR);
                if near && (turn > 0 || round % 2 == 1) || annealed.value < tuned.value {
                    tuned = annealed;
                }
            }
            let floor_ns = judge.floor_ns(&tuned.shape);
            if tuned.iteration_ns as f64 <= floor_ns * (1.0 + SETTLED) && !random.chance(TUNED_ANYWAY) {
                pool.offer(judge, tuned);
                continue;
            }
            judge.stage = "order";
            order::anneal(judge, pool, &tuned, Some(Freedom::Full), order_steps, random);
        }
        round += 1;
        if round < GROWING_ROUNDS {
            structure_steps = structure_steps * GROWTH_PERCENT / 100;
            order_steps = order_steps * GROWTH_PERCENT / 100;
        }
    }
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
