//! Causal multi-head self-attention: `out = x + softmax(Q K^T / sqrt(head width)) V . output`, Q, K and V being
//! projections of the normalised input.
//!
//! Q, K and V of all heads are the columns of one matrix, `[Q | K | V]`, each with its heads side by side; a head is a
//! strided view of it.

use super::{
    activation::{dot, softmax},
    matmul::{View, ViewMut, multiply, multiply_add, product},
    norm::{Normed, add_weight_gradient, scaled},
    parameter::{Draws, Parameter},
    shape::Shape,
};

#[derive(Debug)]
pub(super) struct Attention {
    shape: Shape,
    pub(super) gain: Parameter,
    /// `width x 3 width`.
    pub(super) query_key_value: Parameter,
    /// `width x width`.
    pub(super) output: Parameter,
}

/// Held from F to I.
#[derive(Debug)]
pub(super) struct Forward {
    normed: Normed,
    /// `tokens x 3 width`.
    query_key_value: Vec<f32>,
    /// `heads x tokens x tokens`, zero above the diagonals.
    probability: Vec<f32>,
    /// `tokens x width`, what the heads read.
    context: Vec<f32>,
}

/// Held from I to W.
#[derive(Debug)]
pub(super) struct Weight {
    unit: Vec<f32>,
    query_key_value_gradient: Vec<f32>,
    context: Vec<f32>,
    output_gradient: Vec<f32>,
}

impl Attention {
    pub(super) fn new(shape: Shape, draws: &mut Draws, residual: f32) -> Attention {
        let width = shape.width;
        Attention {
            shape,
            gain: Parameter::gain(width),
            query_key_value: draws.projection("query_key_value", width, 3 * width, 1, 1.0),
            output: draws.projection("output", width, width, 1, residual),
        }
    }

    pub(super) fn forward(&self, input: &[f32]) -> (Vec<f32>, Forward) {
        let width = self.shape.width;
        let tokens = input.len() / width;
        let normed = Normed::of(input, width);
        let query_key_value = product(
            View::of(&scaled(&normed.unit, &self.gain.value), width),
            View::of(&self.query_key_value.value, 3 * width),
        );
        let mut probability = vec![0.0; self.shape.heads * tokens * tokens];
        let mut context = vec![0.0; tokens * width];
        for (head, probability) in probability.chunks_exact_mut(tokens * tokens).enumerate() {
            let [query, key, value] = self.head(&query_key_value, head);
            multiply(query, key.transposed(), ViewMut::of(probability, tokens));
            self.causal_softmax(probability, tokens);
            let (first, count) = self.head_columns(head);
            multiply(View::of(probability, tokens), value, ViewMut::columns_of(&mut context, width, first, count));
        }
        let mut output = input.to_vec();
        multiply_add(View::of(&context, width), View::of(&self.output.value, width), ViewMut::of(&mut output, width));
        (output, Forward { normed, query_key_value, probability, context })
    }

    pub(super) fn input_gradient(&self, held: Forward, output_gradient: &[f32]) -> (Vec<f32>, Weight) {
        let width = self.shape.width;
        let tokens = output_gradient.len() / width;
        let Forward { normed, query_key_value, probability, context } = held;
        let context_gradient =
            product(View::of(output_gradient, width), View::of(&self.output.value, width).transposed());
        let mut query_key_value_gradient = vec![0.0; query_key_value.len()];
        let mut score_gradient = vec![0.0; tokens * tokens];
        for (head, probability) in probability.chunks_exact(tokens * tokens).enumerate() {
            let [query, key, value] = self.head(&query_key_value, head);
            let (first, count) = self.head_columns(head);
            let context_gradient = View::columns_of(&context_gradient, width, first, count);
            multiply(context_gradient, value.transposed(), ViewMut::of(&mut score_gradient, tokens));
            self.softmax_gradient(probability, &mut score_gradient, tokens);
            let scores = View::of(&score_gradient, tokens);
            let probability = View::of(probability, tokens);
            let mut into = |part: usize, left: View<'_>, right: View<'_>| {
                let columns =
                    ViewMut::columns_of(&mut query_key_value_gradient, 3 * width, part * width + first, count);
                multiply(left, right, columns);
            };
            into(0, scores, key);
            into(1, scores.transposed(), query);
            into(2, probability.transposed(), context_gradient);
        }
        let scaled_gradient = product(
            View::of(&query_key_value_gradient, 3 * width),
            View::of(&self.query_key_value.value, 3 * width).transposed(),
        );
        let mut input_gradient = output_gradient.to_vec();
        normed.add_input_gradient(&self.gain.value, &scaled_gradient, &mut input_gradient);
        let output_gradient = output_gradient.to_vec();
        (input_gradient, Weight { unit: normed.unit, query_key_value_gradient, context, output_gradient })
    }

    pub(super) fn weight_gradient(&mut self, held: &Weight) {
        let width = self.shape.width;
        multiply_add(
            View::of(&held.context, width).transposed(),
            View::of(&held.output_gradient, width),
            ViewMut::of(&mut self.output.gradient, width),
        );
        add_weight_gradient(
            &held.unit,
            &held.query_key_value_gradient,
            &self.gain.value,
            &mut self.gain.gradient,
            &self.query_key_value.value,
            &mut self.query_key_value.gradient,
        );
    }

    /// First column and number of columns of a head within one of Q, K, V.
    fn head_columns(&self, head: usize) -> (usize, usize) {
        let count = self.shape.head_width();
        (head * count, count)
    }

    /// Q, K and V of one head.
    fn head<'a>(&self, query_key_value: &'a [f32], head: usize) -> [View<'a>; 3] {
        let width = self.shape.width;
        let (first, count) = self.head_columns(head);
        [0, 1, 2].map(|part| View::columns_of(query_key_value, 3 * width, part * width + first, count))
    }

    /// Factor on the scores.
    fn scale(&self) -> f32 {
        1.0 / (self.shape.head_width() as f32).sqrt()
    }

    /// Scores to probabilities: a token sees itself and those before it.
    fn causal_softmax(&self, scores: &mut [f32], tokens: usize) {
        let scale = self.scale();
        for (token, row) in scores.chunks_exact_mut(tokens).enumerate() {
            let (seen, unseen) = row.split_at_mut(token + 1);
            seen.iter_mut().for_each(|score| *score *= scale);
            softmax(seen);
            unseen.fill(0.0);
        }
    }

    /// Gradient of the probabilities to that of the scores, in place; zero where the probability is.
    fn softmax_gradient(&self, probability: &[f32], gradient: &mut [f32], tokens: usize) {
        let scale = self.scale();
        for (probability, gradient) in probability.chunks_exact(tokens).zip(gradient.chunks_exact_mut(tokens)) {
            let mean = dot(probability, gradient);
            for (g, p) in gradient.iter_mut().zip(probability) {
                *g = p * (*g - mean) * scale;
            }
        }
    }
}

impl Forward {
    pub(super) fn bytes(&self) -> usize {
        self.normed.bytes()
            + size_of_val(&*self.query_key_value)
            + size_of_val(&*self.probability)
            + size_of_val(&*self.context)
    }
}

impl Weight {
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.unit)
            + size_of_val(&*self.query_key_value_gradient)
            + size_of_val(&*self.context)
            + size_of_val(&*self.output_gradient)
    }
}
