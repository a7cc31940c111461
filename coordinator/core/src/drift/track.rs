//! What becomes of a confirmed change: it lasts, it passes, or it comes and goes.
//!
//! ```text
//!   confirmed -> Changed --shown by four iterations--> Lasts
//!                   `------back before that----------> Passed
//!   up, down, up again, by the same and about as long -> Changed (periodic), Lasts; every flip from then on: Turned
//!   no flip for twice as long as ever before --------> Changed (step), Lasts
//! ```

use super::{Change, Course, Passed, Shift};
use adaptis_proto::Step;
use std::collections::VecDeque;

/// Iterations that must show a change before it is acted on: a transient of three is over by then.
const LASTING: u32 = 4;
/// Iterations after which a change lasts even if some of them did not show it.
const HELD_MAX: u64 = 12;
/// Shifts kept; the oldest goes.
const TURNS: usize = 8;
/// Shifts that make a period: up, down and up again.
const PERIODIC_TURNS: usize = 3;
/// A period longer than this is acted on as one change after the other.
const PERIOD_MAX: f64 = 160.0;
/// Shifts are of one size, and slow or fast stretches of one length, up to these factors.
const SIZE_ALIKE: f64 = 1.5;
const SPAN_ALIKE: f64 = 2.0;
/// Iterations beyond twice the longest stretch on a level after which what does not turn is no longer periodic.
const OVERDUE: u64 = 4;
/// Iterations without another part after which a gradual drift is over.
const GRADUAL_MAX: u64 = 64;
/// A larger shift is no part of a gradual drift unless it is one itself.
const PART_MAX_LN: f64 = 0.12;
/// A shift back to within this share of the level before is a way back.
const BACK_SHARE: f64 = 0.5;

#[derive(Clone, Copy, Debug)]
struct Turn {
    onset: Step,
    shift: f64,
}

/// A change that may pass.
#[derive(Clone, Copy, Debug)]
struct Held {
    change: Change,
    shift: f64,
    showing: u32,
}

/// The present course of a device, link or layer.
#[derive(Clone, Debug, Default)]
pub(super) struct Track {
    held: Option<Held>,
    turns: VecDeque<Turn>,
    /// The newest of the shifts.
    last: Option<Change>,
    /// Factor of the mean over the present level.
    periodic: Option<f64>,
    /// Where a gradual drift began, and its logarithm so far.
    gradual: Option<(Step, f64)>,
}

impl Track {
    /// A change is told and has not lasted yet.
    pub fn is_open(&self) -> bool {
        self.held.is_some()
    }

    /// It drifts little by little: what it does next is more of the same change.
    pub fn is_gradual(&self) -> bool {
        self.gradual.is_some()
    }

    /// It changed to slower of late.
    pub fn is_slower(&self) -> bool {
        self.held.is_some_and(|held| held.shift > 0.0)
    }

    /// An iteration that confirmed nothing: `off` is its distance from the present level, none if it was not read.
    pub fn quiet(&mut self, step: Step, off: Option<f64>) -> Vec<Shift> {
        if let Some(held) = &mut self.held {
            let shows = off.is_some_and(|off| held.shift.signum() * off > -BACK_SHARE * held.shift.abs());
            held.showing += u32::from(shows);
            let lasts = held.showing >= LASTING || step.0 >= held.change.onset.0 + HELD_MAX;
            return if lasts {
                self.held.take().map(|held| Shift::Lasts(held.change)).into_iter().collect()
            } else {
                vec![]
            };
        }
        if self.last.is_some_and(|last| step.0 > last.detected.0 + GRADUAL_MAX) {
            self.gradual = None;
        }
        self.overdue(step)
    }

    /// A confirmed shift, shown by so many iterations.
    pub fn confirmed(&mut self, mut change: Change, showing: u32) -> Vec<Shift> {
        let shift = change.factor.ln();
        self.add_up(&mut change, shift);
        self.last = Some(change);
        self.turns.push_back(Turn { onset: change.onset, shift });
        if self.turns.len() > TURNS {
            self.turns.pop_front();
        }
        let is_known = self.periodic.is_some();
        if let Some(course) = self.period() {
            let Course::Periodic { average, .. } = course else { unreachable!("a period is periodic") };
            (self.periodic, self.held) = (Some(average), None);
            let change = Change { course, ..change };
            return if is_known {
                vec![Shift::Turned(change)]
            } else {
                vec![Shift::Changed(change), Shift::Lasts(change)]
            };
        }
        if let Some(average) = self.periodic.take() {
            // What was planned for was the mean, not the level before.
            change.factor /= average;
        }
        self.begin(change, shift, showing)
    }

    fn begin(&mut self, change: Change, shift: f64, showing: u32) -> Vec<Shift> {
        let before = self.held.take();
        if let Some(held) = before
            && held.shift * shift < 0.0
            && (held.shift + shift).abs() < BACK_SHARE * held.shift.abs()
        {
            return vec![Shift::Passed(Passed { began: held.change, ended: change })];
        }
        let (shift, showing) =
            before.map_or((shift, showing), |held| (held.shift + shift, held.showing.saturating_add(showing)));
        if showing >= LASTING {
            return vec![Shift::Changed(change), Shift::Lasts(change)];
        }
        self.held = Some(Held { change, shift, showing });
        vec![Shift::Changed(change)]
    }

    /// Parts of one gradual drift have one beginning and one sum; what is too short to be told from a step, and not larger
    /// than a part is, is one more of them.
    fn add_up(&mut self, change: &mut Change, shift: f64) {
        let before = self.gradual.take().filter(|(_, sum)| sum * shift > 0.0);
        let own = match change.course {
            Course::Gradual { from, .. } => Some((from, shift)),
            Course::Step | Course::Periodic { .. } => None,
        };
        let (from, sum) = match (before, own) {
            (Some((from, sum)), Some(_)) => (from, sum + shift),
            (Some((from, sum)), None) if shift.abs() < PART_MAX_LN => (from, sum + shift),
            (None, Some(own)) => own,
            (_, None) => return,
        };
        let sum = sum.clamp(-super::LARGEST_LN, super::LARGEST_LN);
        let iterations = change.detected.0.saturating_sub(from.0).max(1);
        let per_iteration = (sum / iterations as f64).exp();
        change.course = Course::Gradual { from, per_iteration, total: sum.exp() };
        self.gradual = Some((from, sum));
    }

    /// What was periodic stays on one level for longer than it ever did.
    fn overdue(&mut self, step: Step) -> Vec<Shift> {
        let (Some(average), Some(last), Some(change)) = (self.periodic, self.turns.back().copied(), self.last) else {
            return Vec::new();
        };
        let halves = self.turns.iter().zip(self.turns.iter().skip(1));
        let like = halves.filter(|(one, _)| one.shift * last.shift > 0.0).map(|(one, next)| next.onset.0 - one.onset.0);
        if step.0 <= last.onset.0 + 2 * like.max().unwrap_or_default() + OVERDUE {
            return Vec::new();
        }
        (self.periodic, self.turns) = (None, VecDeque::from([last]));
        // What was planned for was the mean.
        let change =
            Change { onset: last.onset, detected: step, factor: average.recip(), course: Course::Step, ..change };
        vec![Shift::Changed(change), Shift::Lasts(change)]
    }

    /// The period that the last shifts make, if they make one.
    fn period(&self) -> Option<Course> {
        let is_alike = |one: f64, other: f64| one < SIZE_ALIKE * other && other < SIZE_ALIKE * one;
        let follows =
            |one: &Turn, next: &Turn| one.shift * next.shift < 0.0 && is_alike(one.shift.abs(), next.shift.abs());
        let turns: Vec<Turn> = self.turns.iter().copied().collect();
        let first = (1..turns.len()).rev().find(|&at| !follows(&turns[at - 1], &turns[at])).unwrap_or(0);
        let turns = &turns[first..];
        if turns.len() < PERIODIC_TURNS {
            return None;
        }
        let half = |is_slow: bool| {
            let of = turns.windows(2).filter(|pair| (pair[0].shift > 0.0) == is_slow);
            let spans: Vec<f64> = of.map(|pair| pair[1].onset.0.saturating_sub(pair[0].onset.0) as f64).collect();
            let (least, most) =
                (spans.iter().copied().fold(f64::INFINITY, f64::min), spans.iter().copied().fold(0.0, f64::max));
            (most <= SPAN_ALIKE * least + 1.0).then(|| spans.iter().sum::<f64>() / spans.len() as f64)
        };
        let (slow, fast) = (half(true)?, half(false)?);
        let period_iterations = slow + fast;
        let size = turns.iter().map(|turn| turn.shift.abs()).sum::<f64>() / turns.len() as f64;
        let (slow_share, slow_factor) = (slow / period_iterations, size.exp());
        let mean = slow_share * slow_factor + 1.0 - slow_share;
        let is_slow = turns.last().is_some_and(|turn| turn.shift > 0.0);
        let average = if is_slow { mean / slow_factor } else { mean };
        (period_iterations <= PERIOD_MAX).then_some(Course::Periodic {
            period_iterations,
            slow_share,
            slow_factor,
            average,
        })
    }
}
