//! Calibration: one layer of each signature is run a few times before training, so that the costs of a layer that the
//! device does not hold are known, too. It works on layers of its own and leaves no trace in the model.
//!
//! Nothing is in a hurry here, so the device waits for the host before each piece of work instead of letting it catch up:
//! what the host had to do in between is in no sample. A host that was held up within a piece of work, or ended it late
//! since its caches were cold, runs it again: few works stand for many layers, and the machine is at its busiest when a
//! job starts.

use super::Device;
use super::bench::{Done, Task};
use crate::backend::cpu::{Input, LayerType};
use crate::clock::Clock;
use adaptis_proto::Microbatch;
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use std::collections::HashSet;

/// Works recorded of each signature and phase.
const REPEATS: usize = 3;
/// How often each signature is run at most until so many works of each phase were on time.
const ATTEMPTS: u32 = 12;
/// F, I and W.
const PHASES: usize = 3;

/// The works of one signature, by phase.
#[derive(Default)]
struct Trials {
    of: [Vec<Done>; PHASES],
}

impl Trials {
    fn add(&mut self, done: [Option<Done>; PHASES]) {
        self.of.iter_mut().zip(done).for_each(|(of, done)| of.extend(done));
    }

    /// Enough works of each phase were on time.
    fn are_enough(&self) -> bool {
        self.of.iter().all(|of| of.iter().filter(|done| done.is_on_time).count() >= REPEATS)
    }

    /// The works of each phase that are least off: on a host that is always held up, what it can do.
    fn best(mut self) -> impl Iterator<Item = Sample> {
        self.of.iter_mut().for_each(|of| of.sort_by_key(|done| (!done.is_on_time).then_some(done.off_ns)));
        self.of.into_iter().flat_map(|of| of.into_iter().take(REPEATS).map(|done| done.sample))
    }
}

impl<C: Clock> Device<C> {
    /// Runs F, I and W of one layer of each signature; samples bear [`Mark::Calibration`].
    pub fn calibrate(&mut self, place: Place) {
        self.bench.place = place;
        self.bench.mark = Mark::Calibration;
        let mut seen = HashSet::new();
        let distinct: Vec<usize> =
            (0..self.types.len()).filter(|&layer| seen.insert(self.truth.layers[layer].signature.clone())).collect();
        for layer in distinct {
            let mut trials = Trials::default();
            for attempt in 0..ATTEMPTS {
                trials.add(self.calibrate_layer(layer, Microbatch(attempt)));
                if trials.are_enough() {
                    break;
                }
            }
            trials.best().for_each(|sample| self.bench.tape().record(sample));
        }
        self.bench.mark = Mark::Cold;
    }

    fn calibrate_layer(&mut self, at: usize, microbatch: Microbatch) -> [Option<Done>; PHASES] {
        let mut layer = self.fresh(at);
        let cost = self.cost(at);
        let task = |phase, cost_ns| Task { layer: at, microbatch, phase, cost_ns };
        let (tokens, targets) = self.text.batch(self.seed, 0, microbatch.0, self.shape.sequence);
        let values: Vec<f32> =
            (0..self.shape.sequence * self.shape.width).map(|i| (i % 7) as f32 / 7.0 - 0.4).collect();
        let (input, gradient) = match layer.layer_type() {
            LayerType::Embedding => (Input::Tokens(&tokens), &values[..]),
            LayerType::Head => (Input::ActivationWithTargets(&values, &targets), &[][..]),
            _ => (Input::Activation(&values), &values[..]),
        };
        let (bench, fixed_ns) = (&mut self.bench, self.truth.stage_ns);
        bench.begin_level();
        let (_, mut stash, _) = bench.work(task(Phase::Forward, cost.forward_ns), || layer.forward(&input));
        bench.pace.end(fixed_ns);
        let forward = bench.complete();
        bench.begin_level();
        let split_ns = cost.input_gradient_ns + cost.split_ns;
        bench.work(task(Phase::InputGradient, split_ns), || layer.input_gradient(&mut stash, gradient));
        bench.pace.end(fixed_ns);
        let input_gradient = bench.complete();
        bench.begin_level();
        bench.work(task(Phase::WeightGradient, cost.weight_gradient_ns), || layer.weight_gradient(stash));
        bench.pace.end(fixed_ns);
        [forward, input_gradient, bench.complete()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::emulated::bench::Bench;
    use crate::backend::emulated::busy::Busy;
    use crate::backend::emulated::noise::Noise;
    use crate::backend::emulated::pace::{Pace, SLACK_NS};
    use crate::tape::Tape;
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;

    const COST_NS: u64 = 5_000_000;

    fn bench(clock: &Busy) -> Bench<Busy> {
        let pace = Pace::new(clock.clone(), 1.0, Arc::default());
        Bench::new(pace, Noise::new(1, 0, 0.0), Tape::new(Rc::new(RefCell::new(Vec::new()))))
    }

    fn duration_ns(sample: &Sample) -> u64 {
        if let Sample::Work { duration_ns, .. } = sample { *duration_ns } else { unreachable!("works only") }
    }

    /// A work in which the host does `held_ns` of other things.
    fn work(bench: &mut Bench<Busy>, clock: &Busy, phase: Phase, held_ns: u64) -> Option<Done> {
        bench.begin_level();
        bench.work(Task { layer: 0, microbatch: Microbatch(0), phase, cost_ns: COST_NS }, || clock.pass(held_ns));
        bench.pace.end(0);
        bench.complete()
    }

    #[test]
    fn what_the_host_does_between_two_works_shortens_neither() {
        let clock = Busy::default();
        let mut bench = bench(&clock);
        for phase in [Phase::Forward, Phase::InputGradient, Phase::WeightGradient] {
            // Weights are made, the machine is shared: less than what training would make up for.
            clock.pass(4_000_000);
            let done = work(&mut bench, &clock, phase, 0).expect("nobody stops it");
            assert_eq!(duration_ns(&done.sample), COST_NS);
        }
    }

    #[test]
    fn works_that_the_host_was_held_up_in_are_run_again_and_count_only_where_there_are_no_others() {
        let run = |held_ns: &[u64]| {
            let clock = Busy::default();
            let (mut bench, mut trials) = (bench(&clock), Trials::default());
            let mut attempts = 0;
            for &held_ns in held_ns {
                let of = [Phase::Forward, Phase::InputGradient, Phase::WeightGradient];
                trials.add(of.map(|phase| work(&mut bench, &clock, phase, held_ns)));
                attempts += 1;
                if trials.are_enough() {
                    break;
                }
            }
            (attempts, trials.best().map(|sample| duration_ns(&sample)).collect::<Vec<_>>())
        };
        let (late, overrun) = (4 * COST_NS, 2 * SLACK_NS);
        assert_eq!(run(&[0; 12]), (REPEATS, vec![COST_NS; 9]));
        assert_eq!(run(&[late, overrun, 0, late, 0, 0, 0]), (6, vec![COST_NS; 9]));
        // Never on time: those that are least off.
        assert_eq!(run(&[overrun, late + 2, late, late + 1]), (4, [late, late + 1, late + 2].repeat(3)));
    }
}
