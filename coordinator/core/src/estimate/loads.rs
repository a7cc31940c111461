//! The load of each microbatch: what makes one take longer than another on the same device.

use adaptis_proto::sample::Place;
use adaptis_proto::{Generation, Microbatch, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Iterations whose loads are kept; the oldest goes. Works of a device may come that much later than its loads, or sooner.
const STEPS: usize = 32;
/// Loads kept of an iteration; those beyond are left out.
const MICROBATCHES: usize = 4096;

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
    pub(crate) fn new(tokens: u64, squares: u64, busiest: u64) -> Self {
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
}

/// Loads of the last iterations, and of all the job so far in the mean.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loads {
    generation: Generation,
    of: BTreeMap<Step, BTreeMap<Microbatch, Load>>,
    first: Option<Load>,
    sums: [f64; TERMS],
    /// Of the logarithms of sizes.
    ln_sum: f64,
    count: f64,
    varies: bool,
}

impl Loads {
    /// Takes what a rank says of a microbatch; the first one to say it counts.
    pub fn absorb(&mut self, place: Place, microbatch: Microbatch, load: Load) {
        if place.generation < self.generation {
            return;
        }
        if place.generation > self.generation {
            // Training went back to a restore point.
            self.generation = place.generation;
            self.of.clear();
        }
        if self.of.len() >= STEPS && self.of.keys().next().is_some_and(|first| place.step < *first) {
            return;
        }
        let of_step = self.of.entry(place.step).or_default();
        if of_step.len() >= MICROBATCHES || of_step.contains_key(&microbatch) {
            return;
        }
        of_step.insert(microbatch, load);
        if self.of.len() > STEPS {
            self.of.pop_first();
        }
        self.varies |= *self.first.get_or_insert(load) != load;
        self.sums.iter_mut().zip(load.terms()).for_each(|(sum, term)| *sum += term);
        self.ln_sum += load.ln_size();
        self.count += 1.0;
    }

    /// Of a microbatch in an iteration.
    pub fn get(&self, step: Step, microbatch: Microbatch) -> Option<Load> {
        self.of.get(&step)?.get(&microbatch).copied()
    }

    /// Nobody records them.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Any two differ.
    pub fn vary(&self) -> bool {
        self.varies
    }

    /// Logarithm of a middling microbatch's size over that of the mean one.
    pub fn middle_ln(&self) -> f64 {
        self.mean().map_or(0.0, |mean| self.ln_sum / self.count - mean.ln_size())
    }

    /// The mean of all so far; none of none.
    pub fn mean(&self) -> Option<Load> {
        let [tokens, squares, busiest] = self.sums.map(|sum| sum / self.count);
        (self.count > 0.0).then_some(Load { tokens, squares, busiest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::Epoch;

    fn place(step: u64, generation: u64) -> Place {
        Place { step: Step(step), epoch: Epoch(1), generation: Generation(generation) }
    }

    fn load(tokens: f64) -> Load {
        Load { tokens, squares: tokens * tokens, busiest: 0.0 }
    }

    #[test]
    fn the_first_word_counts_and_memory_is_bounded() {
        let mut loads = Loads::default();
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
        }
        assert_eq!((loads.of.len(), loads.get(Step(1), Microbatch(0))), (STEPS, None));
        loads.absorb(place(1, 1), Microbatch(0), load(4.0));
        assert_eq!(loads.get(Step(1), Microbatch(0)), None, "too late");
        loads.absorb(place(50, 2), Microbatch(0), load(7.0));
        loads.absorb(place(99, 1), Microbatch(5), load(7.0));
        assert_eq!(loads.of.len(), 1, "iterations are done again, and what is late of the first time is left out");
    }
}
