//! Calibration: one layer of each signature is run a few times before training, so that the costs of a layer that the
//! device does not hold are known, too. It works on layers of its own and leaves no trace in the model.
//!
//! Nothing is in a hurry here, so the device waits for the host before each piece of work instead of letting it catch up:
//! what the host had to do in between is in no sample.

use super::Device;
use super::bench::Task;
use crate::backend::cpu::{Input, LayerType};
use crate::clock::Clock;
use adaptis_proto::Microbatch;
use adaptis_proto::sample::{Mark, Phase, Place};
use std::collections::HashSet;

/// How often each signature is run.
const REPEATS: u32 = 3;

impl<C: Clock> Device<C> {
    /// Runs F, I and W of one layer of each signature; samples bear [`Mark::Calibration`].
    pub fn calibrate(&mut self, place: Place) {
        self.bench.place = place;
        self.bench.mark = Mark::Calibration;
        let mut seen = HashSet::new();
        let distinct: Vec<usize> =
            (0..self.types.len()).filter(|&layer| seen.insert(self.truth.layers[layer].signature.clone())).collect();
        for layer in distinct {
            for repeat in 0..REPEATS {
                self.calibrate_layer(layer, Microbatch(repeat));
            }
        }
        self.bench.mark = Mark::Cold;
    }

    fn calibrate_layer(&mut self, at: usize, microbatch: Microbatch) {
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
        bench.close();
        bench.begin_level();
        let split_ns = cost.input_gradient_ns + cost.split_ns;
        bench.work(task(Phase::InputGradient, split_ns), || layer.input_gradient(&mut stash, gradient));
        bench.pace.end(fixed_ns);
        bench.close();
        bench.begin_level();
        bench.work(task(Phase::WeightGradient, cost.weight_gradient_ns), || layer.weight_gradient(stash));
        bench.pace.end(fixed_ns);
        bench.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::emulated::bench::Bench;
    use crate::backend::emulated::noise::Noise;
    use crate::backend::emulated::pace::Pace;
    use crate::tape::{Record, Tape};
    use adaptis_proto::Step;
    use adaptis_proto::sample::Sample;
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;
    use std::sync::Arc;

    /// A clock that somebody else's work moves on, too.
    #[derive(Clone, Default)]
    struct Busy(Rc<Cell<u64>>);

    impl Clock for Busy {
        fn now_ns(&self) -> u64 {
            self.0.get()
        }

        fn wait_until(&self, instant_ns: u64) {
            self.0.set(self.0.get().max(instant_ns));
        }
    }

    #[derive(Clone, Default)]
    struct Durations(Rc<RefCell<Vec<u64>>>);

    impl Record for Durations {
        fn record(&mut self, sample: Sample) {
            if let Sample::Work { mark: Mark::Calibration, duration_ns, .. } = sample {
                self.0.borrow_mut().push(duration_ns);
            }
        }

        fn set_step(&mut self, _: Step) {}
    }

    #[test]
    fn what_the_host_does_between_two_works_shortens_neither() {
        let (clock, durations) = (Busy::default(), Durations::default());
        let pace = Pace::new(clock.clone(), 1.0, Arc::default());
        let tape = Tape::new(Rc::new(RefCell::new(durations.clone())));
        let mut bench = Bench::new(pace, Noise::new(1, 0, 0.0), tape);
        bench.mark = Mark::Calibration;
        let cost_ns = 5_000_000;
        for phase in [Phase::Forward, Phase::InputGradient, Phase::WeightGradient] {
            // Weights are made, the machine is shared: less than what training would make up for.
            clock.0.set(clock.0.get() + 4_000_000);
            bench.begin_level();
            bench.work(Task { layer: 0, microbatch: Microbatch(0), phase, cost_ns }, || ());
            bench.pace.end(0);
            bench.close();
        }
        assert_eq!(*durations.0.borrow(), [cost_ns; 3]);
    }
}
