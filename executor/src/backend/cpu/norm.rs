//! RMS normalisation (Zhang and Sennrich, 2019) in front of a projection.
//!
//! ```text
//!   unit = x / sqrt(mean(x^2) + epsilon)        per token
//!   z    = (unit * gain) . weight               gain per column of unit
//! ```
//!
//! The gain is folded into the projection, so that W of both needs only `unit` and `dz`: with `A = unit^T . dz`,
//! `d weight[i][j] = gain[i] A[i][j]` and `d gain[i] = sum_j weight[i][j] A[i][j]`.

use super::{
    activation::dot,
    matmul::{View, product},
};

/// Keeps the norm of a vector of zeros finite.
const EPSILON: f32 = 1e-5;

/// Tokens of unit root mean square.
#[derive(Debug)]
pub(super) struct Normed {
    /// `tokens x width`.
    pub(super) unit: Vec<f32>,
    /// What each token was multiplied by.
    pub(super) inverse: Vec<f32>,
}

impl Normed {
    /// Normalises each row of `width` elements.
    pub(super) fn of(input: &[f32], width: usize) -> Normed {
        let mut unit = Vec::with_capacity(input.len());
        let mut inverse = Vec::with_capacity(input.len() / width);
        for row in input.chunks_exact(width) {
            let factor = 1.0 / (dot(row, row) / width as f32 + EPSILON).sqrt();
            unit.extend(row.iter().map(|x| x * factor));
            inverse.push(factor);
        }
        Normed { unit, inverse }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.unit) + size_of_val(&*self.inverse)
    }

    /// Adds to `input_gradient` what `scaled_gradient`, the gradient of `unit * gain`, means for the input.
    pub(super) fn add_input_gradient(&self, gain: &[f32], scaled_gradient: &[f32], input_gradient: &mut [f32]) {
        assert_eq!(input_gradient.len(), self.unit.len(), "the size of what was normalised");
        let width = gain.len();
        let mut unit_gradient = vec![0.0; width];
        let rows = self.unit.chunks_exact(width).zip(scaled_gradient.chunks_exact(width));
        for (((unit, scaled), factor), output) in rows.zip(&self.inverse).zip(input_gradient.chunks_exact_mut(width)) {
            for ((u, s), g) in unit_gradient.iter_mut().zip(scaled).zip(gain) {
                *u = s * g;
            }
            let along = dot(&unit_gradient, unit) / width as f32;
            for ((o, u), n) in output.iter_mut().zip(&unit_gradient).zip(unit) {
                *o += factor * (u - n * along);
            }
        }
    }
}

/// `unit * gain`, what a projection multiplies.
pub(super) fn scaled(unit: &[f32], gain: &[f32]) -> Vec<f32> {
    let mut output = Vec::with_capacity(unit.len());
    for row in unit.chunks_exact(gain.len()) {
        output.extend(row.iter().zip(gain).map(|(u, g)| u * g));
    }
    output
}

/// Adds the gradients of `weight` and `gain` in `z = (unit * gain) . weight`, given `dz`.
pub(super) fn add_weight_gradient(
    unit: &[f32],
    output_gradient: &[f32],
    gain: &[f32],
    gain_gradient: &mut [f32],
    weight: &[f32],
    weight_gradient: &mut [f32],
) {
    let columns = weight.len() / gain.len();
    let outer = product(View::of(unit, gain.len()).transposed(), View::of(output_gradient, columns));
    let rows = outer.chunks_exact(columns).zip(weight.chunks_exact(columns));
    let gradients = weight_gradient.chunks_exact_mut(columns).zip(gain_gradient);
    for (((outer, weight), (weight_gradient, gain_gradient)), gain) in rows.zip(gradients).zip(gain) {
        *gain_gradient += dot(outer, weight);
        for (w, o) in weight_gradient.iter_mut().zip(outer) {
            *w += gain * o;
        }
    }
}
