//! Tokens to vectors: `out[t] = table[token[t]] + position[t]`.

use super::{
    parameter::{Decay, Draws, Parameter},
    shape::Shape,
};

/// Standard deviation of a table's entries.
const DEVIATION: f32 = 0.3;

#[derive(Debug)]
pub(super) struct Embedding {
    shape: Shape,
    /// `vocabulary x width`.
    pub(super) table: Parameter,
    /// `sequence x width`.
    pub(super) position: Parameter,
}

/// Held from F to I: the tokens.
#[derive(Debug)]
pub(super) struct Forward {
    tokens: Vec<u8>,
}

/// Held from I to W.
#[derive(Debug)]
pub(super) struct Weight {
    tokens: Vec<u8>,
    output_gradient: Vec<f32>,
}

impl Embedding {
    pub(super) fn new(shape: Shape, draws: &mut Draws) -> Embedding {
        let table = draws.take(shape.vocabulary * shape.width, DEVIATION);
        let position = draws.take(shape.sequence * shape.width, DEVIATION);
        Embedding {
            shape,
            table: Parameter::new("table", table, Decay::Free),
            position: Parameter::new("position", position, Decay::Free),
        }
    }

    pub(super) fn forward(&self, tokens: &[u8]) -> (Vec<f32>, Forward) {
        let width = self.shape.width;
        assert!(tokens.len() <= self.shape.sequence, "at most {} tokens", self.shape.sequence);
        let mut output = Vec::with_capacity(tokens.len() * width);
        for (token, position) in tokens.iter().zip(self.position.value.chunks_exact(width)) {
            let row = &self.table.value[usize::from(*token) * width..][..width];
            output.extend(row.iter().zip(position).map(|(t, p)| t + p));
        }
        (output, Forward { tokens: tokens.to_vec() })
    }

    /// Nothing lies before this layer: the gradient is kept for W.
    pub(super) fn input_gradient(&self, held: Forward, output_gradient: &[f32]) -> (Vec<f32>, Weight) {
        let Forward { tokens } = held;
        assert_eq!(output_gradient.len(), tokens.len() * self.shape.width, "the output's size");
        (Vec::new(), Weight { tokens, output_gradient: output_gradient.to_vec() })
    }

    pub(super) fn weight_gradient(&mut self, held: &Weight) {
        let width = self.shape.width;
        let positions = self.position.gradient.chunks_exact_mut(width);
        for ((token, gradient), position) in
            held.tokens.iter().zip(held.output_gradient.chunks_exact(width)).zip(positions)
        {
            let row = &mut self.table.gradient[usize::from(*token) * width..][..width];
            for ((t, p), g) in row.iter_mut().zip(position).zip(gradient) {
                *t += g;
                *p += g;
            }
        }
    }
}

impl Forward {
    pub(super) fn bytes(&self) -> usize {
        self.tokens.len()
    }
}

impl Weight {
    pub(super) fn bytes(&self) -> usize {
        self.tokens.len() + size_of_val(&*self.output_gradient)
    }
}
