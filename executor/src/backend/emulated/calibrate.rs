//! Calibration: one layer of each signature is run a few times before training, so that the costs of a layer that the
//! device does not hold are known, too. It works on layers of its own and leaves no trace in the model.

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
        bench.pace.begin(0);
        let (_, mut stash, _) = bench.work(task(Phase::Forward, cost.forward_ns), || layer.forward(&input));
        bench.pace.end(fixed_ns);
        bench.close();
        bench.pace.begin(0);
        let split_ns = cost.input_gradient_ns + cost.split_ns;
        bench.work(task(Phase::InputGradient, split_ns), || layer.input_gradient(&mut stash, gradient));
        bench.pace.end(fixed_ns);
        bench.close();
        bench.pace.begin(0);
        bench.work(task(Phase::WeightGradient, cost.weight_gradient_ns), || layer.weight_gradient(stash));
        bench.pace.end(fixed_ns);
        bench.close();
    }
}
