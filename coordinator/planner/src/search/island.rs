//! Where the search goes on from, and when it has been there long enough.
//!
//! ```text
//!                             .--- near the best ---> all that was found, alone ---.
//!   starts, alone ---spent----+                                                    v
//!         ^                   '--- else ---> race of fresh islands ---.       spent, again
//!         '---------------------- the best of them -------------------'
//! ```
//!
//! Where memory binds, one descent ends up to 5% from the next, and which basin it ends in is decided early. So an island
//! that gains nothing is left. When it came near the best, the search goes on from all that was found, which profits from
//! both; else several fresh islands race, from starts of different numbers of stages: after each leg the worse half is
//! dropped.

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
/// Islands that race, and evaluations of each in the first leg; what one has spent in all doubles from leg to leg.
const RACERS: usize = 4;
const LEG_EVALUATIONS: u64 = 5_000;
/// Steps grow by so many percent from round to round, for so many rounds.
const GROWTH_PERCENT: usize = 120;
const GROWING_ROUNDS: u64 = 20;

/// What was found since the search began there.
pub(super) struct Island {
    pub(super) pool: Pool,
    /// Counted from 0.
    pub(super) number: u32,
    /// It began from starts, not from all that was found.
    is_fresh: bool,
    /// Tasks cut.
    cut: u64,
    pub(super) structure_steps: usize,
    pub(super) order_steps: usize,
    spent: u64,
    /// Best value, evaluations and tasks when it last gained.
    value: f64,
    gained_spent: u64,
    gained_cut: u64,
}

impl Island {
    fn fresh(number: u32, starts: &[Candidate]) -> Self {
        Self::new(number, true, starts, (STRUCTURE_STEPS, ORDER_STEPS))
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
        let value = self.best();
        if value < self.value * (1.0 - GAIN) {
            (self.value, self.gained_spent, self.gained_cut) = (value, self.spent, self.cut);
        }
    }

    fn best(&self) -> f64 {
        self.pool.members[0].value
    }

    /// It has gained nothing for long.
    fn is_spent(&self) -> bool {
        let patience = ((self.gained_spent as f64 * PATIENCE) as u64).max(PATIENCE_EVALUATIONS);
        self.spent > self.gained_spent + patience && self.cut > self.gained_cut + PATIENCE_TASKS
    }
}

/// The island that is worked on, those that race against it, and what comes after them.
pub(super) struct Islands {
    starts: Vec<Candidate>,
    devices: usize,
    /// One, or those that race.
    field: Vec<Island>,
    at: usize,
    leg: u32,
    /// Of the next island.
    number: u32,
}

impl Islands {
    /// There is at least one start.
    pub(super) fn new(starts: &[Candidate], devices: usize) -> Self {
        let (first, starts) = (Island::fresh(0, starts), starts.to_vec());
        Self { starts, devices, field: vec![first], at: 0, leg: 0, number: 1 }
    }

    /// The island that is worked on.
    pub(super) fn here(&mut self) -> &mut Island {
        &mut self.field[self.at]
    }

    /// The island of a number, if it was not left for good.
    pub(super) fn get(&mut self, number: u32) -> Option<&mut Island> {
        self.field.iter_mut().find(|island| island.number == number)
    }

    /// Goes on to another island if it is time to; `all` is the best of everything found.
    pub(super) fn move_on(&mut self, all: &[Candidate]) {
        let here = &self.field[self.at];
        if self.field.len() > 1 {
            if here.spent < LEG_EVALUATIONS << self.leg && !here.is_spent() {
                return;
            }
            self.at += 1;
            if self.at == self.field.len() {
                self.field.sort_by(|a, b| a.best().total_cmp(&b.best()));
                self.field.truncate(self.field.len().div_ceil(2));
                (self.at, self.leg) = (0, self.leg + 1);
            }
        } else if here.is_spent() {
            let is_rival = here.number > 0 && here.best() < all[0].value * (1.0 + RIVAL);
            self.field = match here.is_fresh && is_rival {
                true => vec![Island::new(self.number, false, all, (here.structure_steps, here.order_steps))],
                false => self.racers(),
            };
            (self.at, self.leg) = (0, 0);
            self.number += self.field.len() as u32;
        }
    }

    /// One from all starts, the others from those of one number of stages a device each.
    fn racers(&self) -> Vec<Island> {
        let rounds = |start: &Candidate| (2 * start.shape.stages.len() + self.devices) / (2 * self.devices);
        let mut kinds: Vec<usize> = Vec::new();
        for start in &self.starts {
            if !kinds.contains(&rounds(start)) {
                kinds.push(rounds(start));
            }
        }
        let racer = |place: usize| {
            let kind = kinds[place % kinds.len()];
            let own = self.starts.iter().filter(|start| place == 0 || rounds(start) == kind).cloned();
            Island::fresh(self.number + place as u32, &own.collect::<Vec<_>>())
        };
        (0..RACERS).map(racer).collect()
    }
}
