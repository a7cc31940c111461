//! Where the search goes on from, and when it has been there long enough.
//!
//! ```text
//!   starts --> island 0 --nothing gained for long--> starts --> island 1 --> everything found --> island 2 --> starts ...
//! ```
//!
//! Where memory binds, one descent ends up to 5% from the next. So an island that gains nothing is left for another one
//! from the same starts, and when that one comes near the best, for one on all that was found, which profits from both.

use super::judge::Candidate;
use super::portfolio::Pool;
use super::rounds::{ORDER_STEPS, STRUCTURE_STEPS};

/// A gain of a smaller share is none.
const GAIN: f64 = 0.0003;
/// An island is left after so many times the evaluations that it took to its last gain, at least so many and so many
/// tasks, without another.
const PATIENCE: f64 = 0.5;
const PATIENCE_EVALUATIONS: u64 = 8_000;
const PATIENCE_TASKS: u64 = 4;
/// An island this near to the best has something to add to it.
const RIVAL: f64 = 0.01;
/// Steps grow by so many percent from round to round, for so many rounds.
const GROWTH_PERCENT: usize = 120;
const GROWING_ROUNDS: u64 = 20;

/// What was found since the search began there.
pub(super) struct Island {
    pub(super) pool: Pool,
    /// Counted from 0.
    pub(super) number: u32,
    /// It began from the starts, not from all that was found.
    is_fresh: bool,
    /// Tasks cut.
    pub(super) cut: u64,
    pub(super) structure_steps: usize,
    pub(super) order_steps: usize,
    spent: u64,
    /// Best value, evaluations and tasks when it last gained.
    value: f64,
    gained_spent: u64,
    gained_cut: u64,
}

impl Island {
    /// The first; there is at least one start.
    pub(super) fn first(starts: &[Candidate]) -> Self {
        Self::new(0, true, starts, (STRUCTURE_STEPS, ORDER_STEPS))
    }

    fn new(number: u32, is_fresh: bool, members: &[Candidate], (structure_steps, order_steps): (usize, usize)) -> Self {
        let mut pool = Pool::new(None);
        pool.members = members.to_vec();
        let value = pool.members[0].value;
        let (cut, spent, gained_spent, gained_cut) = (0, 0, 0, 0);
        Self { pool, number, is_fresh, cut, structure_steps, order_steps, spent, value, gained_spent, gained_cut }
    }

    /// The round of the next task, of so many each, and its number there; counts it.
    pub(super) fn cut(&mut self, tasks: u64) -> (u64, u64) {
        let (round, turn) = (self.cut / tasks, self.cut % tasks);
        if turn == 0 && round > 0 && round < GROWING_ROUNDS {
            self.structure_steps = self.structure_steps * GROWTH_PERCENT / 100;
            self.order_steps = self.order_steps * GROWTH_PERCENT / 100;
        }
        self.cut += 1;
        (round, turn)
    }

    /// A task that began here ended, its finds are in the pool.
    pub(super) fn spend(&mut self, evaluations: u64) {
        self.spent += evaluations;
        let value = self.pool.members[0].value;
        if value < self.value * (1.0 - GAIN) {
            (self.value, self.gained_spent, self.gained_cut) = (value, self.spent, self.cut);
        }
    }

    /// It has gained nothing for long.
    pub(super) fn is_spent(&self) -> bool {
        let patience = ((self.gained_spent as f64 * PATIENCE) as u64).max(PATIENCE_EVALUATIONS);
        self.spent > self.gained_spent + patience && self.cut > self.gained_cut + PATIENCE_TASKS
    }

    /// The one after it, where `all` is the best of everything found.
    pub(super) fn next(&self, starts: &[Candidate], all: &[Candidate]) -> Self {
        let is_rival = self.number > 0 && self.pool.members[0].value < all[0].value * (1.0 + RIVAL);
        match self.is_fresh && is_rival {
            true => Self::new(self.number + 1, false, all, (self.structure_steps, self.order_steps)),
            false => Self::new(self.number + 1, true, starts, (STRUCTURE_STEPS, ORDER_STEPS)),
        }
    }
}
