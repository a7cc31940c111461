//! The load of each microbatch: what makes one take longer than another on the same device.

use adaptis_proto::sample::Place;
use adaptis_proto::{DeviceIndex, Generation, Microbatch, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Iterations whose loads are kept; the one farthest from what ranks report goes. Works of a device may come that much
/// later than its loads, or sooner. The mean is over them, so it follows a job whose lengths change.
const STEPS: usize = 32;
/// Iterations that a load may be from the one that most ranks have reported last.
const NEAR: u64 = 64;
/// Loads kept of an iteration; those beyond are left out.
const MICROBATCHES: usize = 4096;
/// A load counts that is no larger than so many times what 95 of 100 of those kept are not above. One that slips through
/// moves the mean of a few hundred by some percent; a job whose lengths jump further is followed once they are usual.
const FAR: f64 = 16.0;
const USUAL: f64 = 0.95;

/// Tokens, the sum of squared lengths, the load of the busiest expert.
pub(crate) const TERMS: usize = 3;

/// How much a microbatch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Tokens.
    pub tokens: f64,
    /// Sum of the squared lengths of its sequences.
    pub squares: f64,
    /// Tokens of the busiest expert; 0 where there are no experts.
    pub busiest: f64,
}

impl Load {
    /// As it was recorded.
    pub fn new(tokens: u64, squares: u64, busiest: u64) -> Self {
        Self { tokens: tokens as f64, squares: squares as f64, busiest: busiest as f64 }
    }

    /// Logarithm of how long it is: by its tokens, or what else is told of it.
    pub(crate) fn ln_size(self) -> f64 {
        let sizes = [self.tokens, self.squares.sqrt(), self.busiest];
        sizes.into_iter().find(|size| *size > 0.0).map_or(0.0, f64::ln)
    }

    pub(crate) fn terms(self) -> [f64; TERMS] {
        [self.tokens, self.squares, self.busiest]
    }

    /// There are sequences and experts that make it up: no sum of squares is above the square of the sum.
    fn is_possible(self) -> bool {
        let is_one_sequence_at_most = self.squares <= self.tokens * self.tokens * (1.0 + 4.0 * f64::EPSILON);
        self.tokens == 0.0 || (is_one_sequence_at_most && self.busiest <= self.tokens)
    }

    /// As a length: the largest that any of its terms tells.
    fn extent(self) -> f64 {
        self.tokens.max(self.squares.sqrt()).max(self.busiest)
    }
}

/// Loads of the last iterations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loads {
    /// Of an iteration.
    microbatches: u32,
    generation: Generation,
    of: BTreeMap<Step, BTreeMap<Microbatch, Load>>,
    /// By device: the last iteration whose end it reported.
    reported: BTreeMap<DeviceIndex, Step>,
    /// Longer ones are kept, to tell when they are usual, and do not count.
    extent_max: f64,
    first: Option<Load>,
    varies: bool,
    refused: u64,
}

impl Loads {
    /// Of a job with so many microbatches in an iteration.
    pub fn new(microbatches: u32) -> Self {
        Self { microbatches, extent_max: f64::INFINITY, ..Self::default() }
    }

    /// Takes what a rank says of a microbatch; the first one to say it counts. Constant time, but for the first load of an
    /// iteration, which looks at all that are kept.
    pub fn absorb(&mut self, place: Place, microbatch: Microbatch, load: Load) {
        if place.generation < self.generation {
            return;
        }
        if microbatch.0 >= self.microbatches || !load.is_possible() {
            self.refused += 1;
            return;
        }
        self.follow(place.generation);
        if !self.of.contains_key(&place.step) && !self.open(place.step) {
            self.refused += 1;
            return;
        }
        let of_step = self.of.entry(place.step).or_default();
        if of_step.len() >= MICROBATCHES || of_step.contains_key(&microbatch) {
            return;
        }
        of_step.insert(microbatch, load);
        self.refused += u64::from(load.extent() > self.extent_max);
        self.varies |= *self.first.get_or_insert(load) != load;
    }

    /// A device reports the end of an iteration.
    pub fn report(&mut self, device: DeviceIndex, place: Place) {
        if place.generation >= self.generation {
            self.follow(place.generation);
            self.reported.insert(device, place.step);
        }
    }

    /// Other devices: what the ones before reported says nothing of theirs.
    pub fn forget_reports(&mut self) {
        self.reported.clear();
    }

    /// In a new generation training went back to a restore point.
    fn follow(&mut self, generation: Generation) {
        if generation > self.generation {
            self.generation = generation;
            self.of.clear();
            self.reported.clear();
            self.extent_max = f64::INFINITY;
        }
    }

    /// Where training is: the iteration that half of the devices have reported, whatever single ones say.
    fn now(&self) -> Option<Step> {
        let mut steps: Vec<Step> = self.reported.values().copied().collect();
        let middle = steps.len().checked_sub(1)? / 2;
        Some(*steps.select_nth_unstable(middle).1)
    }

    /// Makes room for an iteration; false if it is too far from the others.
    fn open(&mut self, step: Step) -> bool {
        let now = self.now();
        let is_near = |of: Step| now.is_none_or(|now| now.0.abs_diff(of.0) <= NEAR);
        if !is_near(step) {
            return false;
        }
        self.of.retain(|of, _| is_near(*of));
        self.extent_max = self.usual_extent().map_or(f64::INFINITY, |usual| FAR * usual);
        let Some(around) = now.or_else(|| self.of.keys().next().copied()) else {
            return true;
        };
        let distance = |of: &Step| around.0.abs_diff(of.0);
        if self.of.len() >= STEPS {
            // Of two as far the older one goes.
            let farthest = self.of.keys().copied().rev().max_by_key(distance).expect("some are kept");
            if distance(&step) > distance(&farthest) {
                return false;
            }
            self.of.remove(&farthest);
        }
        true
    }

    fn usual_extent(&self) -> Option<f64> {
        let mut extents: Vec<f64> = self.of.values().flatten().map(|(_, load)| load.extent()).collect();
        // Below the last one: a single load is never what is usual.
        let at = (USUAL * extents.len().checked_sub(1)? as f64) as usize;
        Some(*extents.select_nth_unstable_by(at, f64::total_cmp).1)
    }

    /// Those that count.
    fn all(&self) -> impl Iterator<Item = Load> {
        self.of.values().flatten().map(|(_, load)| *load).filter(|load| load.extent() <= self.extent_max)
    }

    /// Of a microbatch in an iteration.
    pub fn get(&self, step: Step, microbatch: Microbatch) -> Option<Load> {
        self.of.get(&step)?.get(&microbatch).copied().filter(|load| load.extent() <= self.extent_max)
    }

    /// Nobody records them.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Any two differed.
    pub fn vary(&self) -> bool {
        self.varies
    }

    /// Loads that can't be, or are of an iteration far from those that ranks report, or far beyond the others.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Logarithm of a middling microbatch's size over that of the mean one.
    pub fn middle_ln(&self) -> f64 {
        let (sum, count) = self.all().fold((0.0, 0.0), |(sum, count), load| (sum + load.ln_size(), count + 1.0));
        self.mean().map_or(0.0, |mean| sum / count - mean.ln_size())
    }

    /// The mean of those kept; none of none.
    pub fn mean(&self) -> Option<Load> {
        let (mut sums, mut count) = ([0.0; TERMS], 0.0);
        for load in self.all() {
            sums.iter_mut().zip(load.terms()).for_each(|(sum, term)| *sum += term);
            count += 1.0;
        }
        let [tokens, squares, busiest] = sums.map(|sum| sum / count);
        (count > 0.0).then_some(Load { tokens, squares, busiest })
    }

    /// At most so many of them, evenly.
    pub fn some(&self, most: usize) -> Vec<Load> {
        let every = self.all().count().div_ceil(most).max(1);
        self.all().step_by(every).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::Epoch;

    const DEVICES: usize = 3;

    fn place(step: u64, generation: u64) -> Place {
        Place { step: Step(step), epoch: Epoch(1), generation: Generation(generation) }
    }

    fn load(tokens: f64) -> Load {
        Load { tokens, squares: tokens * tokens, busiest: 0.0 }
    }

    /// All ranks end an iteration.
    fn end(loads: &mut Loads, step: u64, generation: u64) {
        (0..DEVICES).for_each(|device| loads.report(DeviceIndex::from(device), place(step, generation)));
    }

    /// Iterations of eight microbatches each, all of this length.
    fn feed(loads: &mut Loads, steps: std::ops::Range<u64>, generation: u64, tokens: f64) {
        for step in steps {
            (0..8).for_each(|at| loads.absorb(place(step, generation), Microbatch(at), load(tokens)));
            end(loads, step, generation);
        }
    }

    fn mean_tokens(loads: &Loads) -> f64 {
        loads.mean().expect("some are kept").tokens
    }

    #[test]
    fn the_first_word_counts_and_memory_is_bounded() {
        let mut loads = Loads::new(u32::MAX);
        assert!(loads.is_empty() && loads.mean().is_none());
        for _ in 0..3 {
            loads.absorb(place(1, 1), Microbatch(0), load(4.0));
        }
        assert!(!loads.vary() && !loads.is_empty());
        loads.absorb(place(1, 1), Microbatch(0), load(9.0));
        assert_eq!((loads.get(Step(1), Microbatch(0)), loads.vary()), (Some(load(4.0)), false));
        loads.absorb(place(1, 1), Microbatch(1), load(8.0));
        assert_eq!(loads.mean(), Some(Load { tokens: 6.0, squares: 40.0, busiest: 0.0 }));
        assert!(loads.vary());
        for microbatch in 0..2 * MICROBATCHES as u32 {
            loads.absorb(place(2, 1), Microbatch(microbatch), load(4.0));
        }
        assert_eq!(loads.of[&Step(2)].len(), MICROBATCHES);
        for step in 3..100 {
            loads.absorb(place(step, 1), Microbatch(0), load(4.0));
            end(&mut loads, step, 1);
        }
        assert_eq!((loads.of.len(), loads.get(Step(1), Microbatch(0))), (STEPS, None));
        assert!(loads.of.contains_key(&Step(99)) && loads.of.contains_key(&Step(68)));
        loads.absorb(place(1, 1), Microbatch(0), load(4.0));
        assert_eq!(loads.get(Step(1), Microbatch(0)), None, "too late");
        loads.absorb(place(50, 2), Microbatch(0), load(7.0));
        loads.absorb(place(99, 1), Microbatch(5), load(7.0));
        assert_eq!(loads.of.len(), 1, "iterations are done again, and what is late of the first time is left out");
    }

    #[test]
    fn a_load_that_can_not_be_moves_no_mean() {
        let mut loads = Loads::new(8);
        feed(&mut loads, 0..1_250, 1, 2_000.0);
        let impossible = [
            (8, Load::new(2_000, 4_000_000, 0)),
            (0, Load::new(2_000, 4_000_001, 0)),
            (0, Load::new(2_000, 4_000_000, 2_001)),
        ];
        for (microbatch, load) in impossible {
            loads.absorb(place(1_250, 1), Microbatch(microbatch), load);
        }
        assert_eq!((loads.refused(), loads.of.contains_key(&Step(1_250))), (3, false));
        let far = [(1e9 as u64, 1 << 59), (u64::MAX, u64::MAX)];
        for ((tokens, squares), step) in far.into_iter().zip([1_250, 1_251]) {
            loads.absorb(place(step, 1), Microbatch(0), Load::new(tokens, squares, 0));
            assert_eq!(loads.get(Step(step), Microbatch(0)), None);
            feed(&mut loads, step..step + 1, 1, 2_000.0);
            assert!(mean_tokens(&loads) == 2_000.0 && loads.middle_ln().abs() < 1e-9);
        }
        assert_eq!(loads.refused(), 5);
        assert!(loads.some(16).iter().all(|of| *of == load(2_000.0)) && loads.some(16).len() <= 16);
    }

    #[test]
    fn the_very_first_load_may_be_the_wrong_one() {
        let mut loads = Loads::new(8);
        loads.absorb(place(0, 1), Microbatch(0), Load::new(u64::MAX, u64::MAX, 0));
        feed(&mut loads, 0..3, 1, 2_000.0);
        assert_eq!(mean_tokens(&loads), 2_000.0);
    }

    #[test]
    fn the_mean_follows_a_job_whose_lengths_change() {
        let mut loads = Loads::new(8);
        feed(&mut loads, 0..1_000, 1, 512.0);
        feed(&mut loads, 1_000..1_000 + STEPS as u64, 1, 4_096.0);
        assert_eq!((mean_tokens(&loads), loads.refused()), (4_096.0, 0));
        // By far more than what is taken for an error at first.
        feed(&mut loads, 1_032..1_032 + STEPS as u64, 1, 1e6);
        assert_eq!(mean_tokens(&loads), 1e6);
        // Back at a restore point.
        feed(&mut loads, 900..901, 2, 512.0);
        assert_eq!(mean_tokens(&loads), 512.0);
    }

    #[test]
    fn iterations_that_no_rank_is_at_displace_none() {
        let mut loads = Loads::new(8);
        feed(&mut loads, 100..140, 1, 2_000.0);
        for ahead in 0..2 * STEPS as u64 {
            loads.absorb(place(1_000_000 + ahead, 1), Microbatch(0), load(2_000.0));
        }
        assert_eq!(loads.refused(), 2 * STEPS as u64);
        // One rank that is astray counts for nothing.
        loads.report(DeviceIndex(0), place(1_000_000, 1));
        loads.absorb(place(1_000_000, 1), Microbatch(0), load(2_000.0));
        // A loader is ahead of training, and some loads are late.
        for step in [145, 120] {
            loads.absorb(place(step, 1), Microbatch(7), load(3_000.0));
        }
        feed(&mut loads, 140..141, 1, 2_000.0);
        let has = |step: u64| loads.get(Step(step), Microbatch(7)).is_some();
        assert!((115..=140).all(has) && has(145) && !has(1_000_000));
        assert_eq!(loads.of.len(), STEPS);
    }

    #[test]
    fn before_ranks_report_the_first_iterations_stay() {
        let mut loads = Loads::new(8);
        loads.absorb(place(5, 1), Microbatch(0), load(2_000.0));
        for ahead in 0..2 * STEPS as u64 {
            loads.absorb(place(1_000_000 + ahead, 1), Microbatch(0), load(2_000.0));
        }
        loads.absorb(place(6, 1), Microbatch(0), load(2_000.0));
        assert!(loads.get(Step(5), Microbatch(0)).is_some() && loads.get(Step(6), Microbatch(0)).is_some());
        end(&mut loads, 5, 1);
        loads.absorb(place(7, 1), Microbatch(0), load(2_000.0));
        assert_eq!(loads.of.keys().map(|step| step.0).collect::<Vec<_>>(), [5, 6, 7]);
    }
}
