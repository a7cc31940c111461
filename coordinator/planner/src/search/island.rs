//! Where the search goes on from, and when it has been there long enough.
//!
//! ```text
//!                             .--- near the best ---> all that was found, alone ---.
//!   race of the starts -spent-+                                                    v
//!         ^                   '--- else ---> race of fresh islands ---.       spent, again
//!         '---------------------- the best of them -------------------'
//! ```
//!
//! Where memory binds, one descent ends up to 5% from the next, and which basin it ends in is decided early. So an island
//! that gains nothing is left. When it came near the best, the search goes on from all that was found, which profits from
//! both; else several fresh islands race, from starts of different numbers of stages: after each leg the worse half is
//! dropped. So the search begins, too, where the best starts are of three such kinds or more: which of them leads to the
//! best plan does not show in the starts.

use super::judge::Candidate;
use super::portfolio::Pool;
use super::rounds::{LARGE, ORDER_STEPS, STRUCTURE_STEPS};

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
/// A kind whose best racer was so much worse than another's after the first leg does not race again.
const BEHIND: f64 = 0.03;
/// Kinds of start this much worse than the best do not race.
const WORTH: f64 = 1.12;
/// The first race is one of so many kinds or more, and its first leg takes so many evaluations.
const FIRST_KINDS: usize = 3;
const FIRST_LEG_EVALUATIONS: u64 = 1_500;
/// Steps grow by so many percent from round to round, for so many rounds.
const GROWTH_PERCENT: usize = 120;
const GROWING_ROUNDS: u64 = 20;

/// What was found since the search began there.
pub(super) struct Island {
    pub(super) pool: Pool,
    /// Counted from 0.
    pub(super) number: u32,
    /// Number of stages a device of its starts; none where they have several.
    kind: Option<usize>,
    /// It began from starts, not from all that was found.
    is_fresh: bool,
    /// Tasks cut.
    cut: u64,
    pub(super) structure_steps: usize,
    pub(super) order_steps: usize,
    spent: u64,
    /// Evaluations that the tasks that are out may take.
    out: u64,
    /// Best value, evaluations and tasks when it last gained.
    value: f64,
    gained_spent: u64,
    gained_cut: u64,
}

impl Island {
    fn fresh(number: u32, kind: Option<usize>, starts: &[Candidate]) -> Self {
        Self { kind, ..Self::new(number, true, starts, (STRUCTURE_STEPS, ORDER_STEPS)) }
    }

    fn new(number: u32, is_fresh: bool, members: &[Candidate], (structure_steps, order_steps): (usize, usize)) -> Self {
        let mut pool = Pool::new(None);
        pool.members = members.to_vec();
        let value = pool.members[0].value;
        let (cut, spent, out, gained_spent, gained_cut) = (0, 0, 0, 0, 0);
        let kind = None;
        Self {
            pool,
            number,
            kind,
            is_fresh,
            cut,
            structure_steps,
            order_steps,
            spent,
            out,
            value,
            gained_spent,
            gained_cut,
        }
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

    /// A task that was cut here goes out; it may take so many evaluations.
    pub(super) fn send(&mut self, evaluations_max: u64) {
        self.out += evaluations_max;
    }

    /// It ended after so many, its finds are in the pool.
    pub(super) fn spend(&mut self, evaluations: u64, evaluations_max: u64) {
        self.spent += evaluations;
        self.out -= evaluations_max;
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
    leg_evaluations: u64,
    /// Kinds that do not race again.
    behind: Vec<usize>,
    /// Of the next island: so many there have been.
    number: u32,
}

impl Islands {
    /// There is at least one start. The first island is one from all of them, but where those of several kinds may race, and do unless
    /// a leg would take long.
    pub(super) fn new(starts: &[Candidate], devices: usize, may_race: bool) -> Self {
        let starts = starts.to_vec();
        let (at, leg, leg_evaluations, number) = (0, 0, FIRST_LEG_EVALUATIONS, 0);
        let (field, behind) = (Vec::new(), Vec::new());
        let mut islands = Self { starts, devices, field, at, leg, leg_evaluations, behind, number };
        let kinds = islands.kinds().len();
        let is_large = islands.starts[0].programs.iter().map(Vec::len).sum::<usize>() > LARGE;
        let races = may_race && kinds >= FIRST_KINDS && !is_large;
        islands.field = islands.racers(if races { kinds } else { 1 });
        islands.number = islands.field.len() as u32;
        islands
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
            let taken = |&at: &usize| self.field[at].spent + self.field[at].out;
            self.at = (0..self.field.len()).min_by_key(taken).expect("several race");
            if self.field.iter().all(|island| island.spent >= self.leg_evaluations << self.leg) {
                self.field.sort_by(|a, b| a.best().total_cmp(&b.best()));
                if self.leg == 0 {
                    self.leave_behind();
                }
                self.field.truncate(self.field.len().div_ceil(2));
                (self.at, self.leg) = (0, self.leg + 1);
            }
        } else if here.is_spent() {
            let is_rival = self.number > 1 && here.best() < all[0].value * (1.0 + RIVAL);
            self.field = match here.is_fresh && is_rival {
                true => vec![Island::new(self.number, false, all, (here.structure_steps, here.order_steps))],
                false => self.racers(RACERS),
            };
            (self.at, self.leg, self.leg_evaluations) = (0, 0, LEG_EVALUATIONS);
            self.number += self.field.len() as u32;
        }
    }

    /// Notes the kinds that are behind after the first leg; the field is sorted.
    fn leave_behind(&mut self) {
        let most = self.field[0].best() * (1.0 + BEHIND);
        for kind in self.kinds() {
            // A racer from all starts may be of any kind.
            let mut own = self.field.iter().filter(|island| island.kind == Some(kind)).peekable();
            if own.peek().is_some() && own.all(|island| island.best() > most) {
                self.behind.push(kind);
            }
        }
    }

    /// Stages a device, on average.
    fn rounds(&self, start: &Candidate) -> usize {
        (2 * start.shape.stages.len() + self.devices) / (2 * self.devices)
    }

    /// Numbers of stages a device of the starts, but of those that are much worse than the best; those of better ones first.
    fn kinds(&self) -> Vec<usize> {
        let most = self.starts[0].value * WORTH;
        let mut kinds: Vec<usize> = Vec::new();
        for start in self.starts.iter().filter(|start| start.value <= most) {
            let kind = self.rounds(start);
            if !kinds.contains(&kind) && !self.behind.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds
    }

    /// One from all starts, the others from those of one number of stages a device each.
    fn racers(&self, count: usize) -> Vec<Island> {
        let kinds = self.kinds();
        let racer = |place: usize| {
            // Where all are behind one another in turn, all starts are left.
            let kind = kinds.get(place % kinds.len().max(1)).copied().filter(|_| place > 0);
            let own = self.starts.iter().filter(|start| kind.is_none_or(|kind| self.rounds(start) == kind)).cloned();
            Island::fresh(self.number + place as u32, kind, &own.collect::<Vec<_>>())
        };
        (0..count).map(racer).collect()
    }
}
