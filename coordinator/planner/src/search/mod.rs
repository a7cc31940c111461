//! Searches for the plan with the shortest iteration, anytime.
//!
//! ```text
//!      replan, from a running plan
//!         v
//!   portfolio --> pool of different shapes --> sketch: annealed by loads alone     --+
//!                   ^                      --> structure: each neighbour listed anew <-+--+
//!                   |                      --> order: each move timed              <------+
//!                   +------------------------------------------------------------- rounds, on one island or the next
//! ```
//!
//! 1. With a valid running plan the result is never worse than it, and moves nothing that does not pay.
//! 2. What is returned passed the audit.
//! 3. The same seed and number of evaluations give the same plan, on any number of threads.

mod conclude;
mod early;
mod island;
mod judge;
pub(crate) mod order;
mod portfolio;
mod relabel;
mod replan;
mod rounds;
mod rung;
mod running;
mod short;
mod sketch;
mod squeeze;
mod structure;
mod tiny;

use crate::bounds;
use crate::costs::Costs;
use crate::program::{DEVICES_MAX, MICROBATCHES_MAX, STAGES_MAX};
use crate::random::Random;
use crate::rules::Rules;
use adaptis_plan::{Plan, Problem};
use adaptis_proto::Epoch;
use judge::Judge;
pub(crate) use judge::STEPS_PER_INSTRUCTION;
use portfolio::Pool;
pub(crate) use portfolio::device_orders;
use rounds::{LARGE, ORDER_STEPS, STEPS_MIN, STRUCTURE_STEPS};
pub use rung::{Rung, RungKind};
use running::Running;
pub use short::Short;

/// How to search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Of the random choices.
    pub seed: u64,
    /// Evaluations after which to stop; none: until the caller stops it or the bound is reached, from a running plan by one
    /// that moves little.
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
    #[error("{}", short::text(.short, *.is_proved))]
    Memory {
        /// The devices that lack memory on the partition found that lacks least, the one that lacks most first. With so
        /// much more on each of them it fits.
        short: Vec<Short>,
        /// No partition fits; otherwise none was found.
        is_proved: bool,
    },
    /// The caller stopped before any plan was found that fits, and none that does not fit is one.
    #[error("no plan was found in the time given; memory may be tight: more time, or more memory, may find one")]
    NoneYet,
    /// A named schedule has no partition here; another one may.
    #[error("no partition of {name} {because}; another schedule, or a free search, may")]
    Schedule {
        /// Which one.
        name: &'static str,
        /// What none does.
        because: &'static str,
    },
    /// More than the search's words hold.
    #[error("{what} {found} are more than {limit}")]
    TooLarge {
        /// Devices, layers or microbatches.
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
/// belong to the problem is not looked at. `tick` is called on the caller's thread, every millisecond or so of work, more
/// rarely only where one evaluation takes longer.
///
/// # Errors
/// No plan fits, or the constraints contradict one another. A caller who stops before there is a plan waits about a
/// second more at most, and then gets [`Infeasible::NoneYet`].
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
    tiny::offer(&mut judge, &mut pool);
    if pool.members.is_empty() {
        squeeze::squeeze(problem, &mut judge, &mut pool, &mut random)?;
    }
    rounds::rounds(&mut judge, &mut pool, running.as_ref(), options, &mut random);
    Ok(conclude::conclude(problem, &mut judge, &pool, from, options))
}

/// Counts that the search's words hold.
pub(crate) fn within_limits(problem: &Problem) -> Result<(), Infeasible> {
    let within = |what, found: usize, limit: usize| match found <= limit {
        true => Ok(()),
        false => Err(Infeasible::TooLarge { what, found, limit }),
    };
    within("devices", problem.devices.len(), DEVICES_MAX)?;
    within("layers", problem.layers.len(), STAGES_MAX)?;
    within("microbatches", problem.microbatches as usize, MICROBATCHES_MAX)
}
