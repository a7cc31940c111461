//! Vectors to the loss: final norm, projection to the vocabulary, softmax cross-entropy, mean over tokens.

use super::{
    activation::softmax,
    matmul::{View, product},
    norm::{Normed, add_weight_gradient, scaled},
    parameter::{Draws, Parameter},
    shape::Shape,
};

/// Deviation of the first logits: near zero, so that the first loss is near `ln(vocabulary)`.
const DEVIATION: f32 = 0.1;

#[derive(Debug)]
pub(super) struct Head {
    shape: Shape,
    /// What the loss is divided by to be a part of the iteration's mean.
    pub(super) microbatches: u32,
    pub(super) gain: Parameter,
    /// `width x vocabulary`.
    pub(super) output: Parameter,
}

/// Held from F to I.
#[derive(Debug)]
pub(super) struct Forward {
    normed: Normed,
    /// `tokens x vocabulary`.
    probability: Vec<f32>,
    targets: Vec<u8>,
}

/// Held from I to W.
#[derive(Debug)]
pub(super) struct Weight {
    unit: Vec<f32>,
    logit_gradient: Vec<f32>,
}

impl Head {
    pub(super) fn new(shape: Shape, draws: &mut Draws) -> Head {
        let output = draws.projection("output", shape.width, shape.vocabulary, 1, DEVIATION);
        Head { shape, microbatches: 1, gain: Parameter::gain(shape.width), output }
    }

    /// The loss is the microbatch's own mean over its tokens.
    pub(super) fn forward(&self, input: &[f32], targets: &[u8]) -> (f32, Forward) {
        let Shape { width, vocabulary, .. } = self.shape;
        assert_eq!(input.len(), targets.len() * width, "one target per token");
        let normed = Normed::of(input, width);
        let scaled = scaled(&normed.unit, &self.gain.value);
        let mut logits = product(View::of(&scaled, width), View::of(&self.output.value, vocabulary));
        let mut loss = 0.0;
        for (row, target) in logits.chunks_exact_mut(vocabulary).zip(targets) {
            let logit = row[usize::from(*target)];
            loss += softmax(row).surprise(logit);
        }
        (loss / targets.len() as f32, Forward { normed, probability: logits, targets: targets.to_vec() })
    }

    pub(super) fn input_gradient(&self, held: Forward) -> (Vec<f32>, Weight) {
        let Shape { width, vocabulary, .. } = self.shape;
        let Forward { normed, probability: mut gradient, targets } = held;
        let share = 1.0 / (targets.len() as f32 * self.microbatches as f32);
        for (row, target) in gradient.chunks_exact_mut(vocabulary).zip(&targets) {
            row[usize::from(*target)] -= 1.0;
            row.iter_mut().for_each(|g| *g *= share);
        }
        let scaled_gradient =
            product(View::of(&gradient, vocabulary), View::of(&self.output.value, vocabulary).transposed());
        let mut input_gradient = vec![0.0; targets.len() * width];
        normed.add_input_gradient(&self.gain.value, &scaled_gradient, &mut input_gradient);
        (input_gradient, Weight { unit: normed.unit, logit_gradient: gradient })
    }

    pub(super) fn weight_gradient(&mut self, held: &Weight) {
        add_weight_gradient(
            &held.unit,
            &held.logit_gradient,
            &self.gain.value,
            &mut self.gain.gradient,
            &self.output.value,
            &mut self.output.gradient,
        );
    }
}

impl Forward {
    pub(super) fn bytes(&self) -> usize {
        self.normed.bytes() + size_of_val(&*self.probability) + self.targets.len()
    }
}

impl Weight {
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.unit) + size_of_val(&*self.logit_gradient)
    }
}
