//! Why a plan takes as long as it does: where each device's time goes, who waits for whom, where memory presses, and
//! what more of something would buy.
//!
//! 1. A device's [`Split`] adds up to the iteration, to the nanosecond, and its waits to its `waiting_ns`.
//! 2. What a wish buys is found by planning again with it, from the plan and from nothing, and measured against planning
//!    again without it on the same budget, so that a longer search is not taken for a gain. It is what a search found,
//!    so at least that much is to be had.
//! 3. The same plan, options and budget give the same explanation.

mod memory;
mod time;
mod wish;

pub use memory::DeviceMemory;
pub use time::{Split, Wait};
pub use wish::{Answer, Ask, Wish};

use crate::bounds::lower_bound_ns;
use crate::search::Control;
use crate::simulate::{CannotSimulate, simulate};
use adaptis_plan::{Plan, Problem};
use serde::Serialize;

/// How to answer what more of something would buy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Of the random choices.
    pub seed: u64,
    /// Evaluations of each time that it plans again.
    pub evaluations: u64,
}

/// Where the time of a plan goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Boundary to boundary.
    pub iteration_ns: u64,
    /// No plan takes less.
    pub lower_bound_ns: u64,
    /// Per device, in the problem's order.
    pub devices: Vec<Split>,
    /// Who waits for whom, longest first.
    pub waits: Vec<Wait>,
    /// Per device, in the problem's order.
    pub memory: Vec<DeviceMemory>,
    /// The iteration if nothing had to be recomputed and the order stayed, whatever it would hold; none if nothing is
    /// recomputed.
    pub without_recompute_ns: Option<u64>,
    /// The iteration after planning again without a wish, on the budget of each wish; none if the caller stopped before.
    pub again_ns: Option<u64>,
    /// What more of something would buy, most first.
    pub wishes: Vec<Answer>,
    /// Wishes that the caller stopped before.
    pub unasked: usize,
}

/// Explains a plan. `tick` is called often while it plans again; the first part is instant and always complete.
///
/// # Errors
/// The plan belongs to another problem, or can't run.
pub fn explain(
    problem: &Problem,
    plan: &Plan,
    options: &Options,
    tick: &mut dyn FnMut(&Ask) -> Control,
) -> Result<Explanation, CannotSimulate> {
    let timeline = simulate(problem, plan)?;
    let (devices, waits) = time::split(problem, plan, &timeline);
    let (memory, without_recompute_ns) = memory::pressure(problem, plan, &timeline);
    let mut explanation = Explanation {
        iteration_ns: timeline.iteration_ns,
        lower_bound_ns: lower_bound_ns(problem),
        devices,
        waits,
        memory,
        without_recompute_ns,
        again_ns: None,
        wishes: Vec::new(),
        unasked: 0,
    };
    wish::ask(problem, plan, options, tick, &mut explanation);
    Ok(explanation)
}
