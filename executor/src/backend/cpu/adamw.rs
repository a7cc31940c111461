//! AdamW (Loshchilov and Hutter, 2019) with a linear warm-up.

use super::parameter::{Decay, Parameter};

/// Steps until the learning rate is full.
const WARM_UP_STEPS: u64 = 10;

/// The optimizer's constants; its moments belong to the layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// After the warm-up.
    pub learning_rate: f32,
    /// Decay of the mean of gradients, below 1.
    pub beta1: f32,
    /// Decay of the mean of squared gradients, below 1.
    pub beta2: f32,
    /// Keeps the quotient finite; positive.
    pub epsilon: f32,
    /// Share of a matrix that a step takes away, before the learning rate.
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> AdamW {
        AdamW { learning_rate: 3e-3, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.01 }
    }
}

/// One step's constants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Update {
    optimizer: AdamW,
    gradient_scale: f32,
    learning_rate: f32,
    /// `1 / (1 - beta^t)`: the moments start at zero and are corrected for it.
    first_correction: f32,
    second_correction: f32,
}

impl AdamW {
    /// The step that `step` others came before, with every gradient multiplied by `gradient_scale`.
    pub(super) fn update(&self, step: u64, gradient_scale: f32) -> Update {
        let number = step + 1;
        let warm = number.min(WARM_UP_STEPS) as f32 / WARM_UP_STEPS as f32;
        let correction = |beta: f32| (1.0 / (1.0 - power(f64::from(beta), number))) as f32;
        Update {
            optimizer: *self,
            gradient_scale,
            learning_rate: self.learning_rate * warm,
            first_correction: correction(self.beta1),
            second_correction: correction(self.beta2),
        }
    }
}

impl Update {
    /// Moves value and moments.
    pub(super) fn apply(&self, parameter: &mut Parameter) {
        let AdamW { beta1, beta2, epsilon, weight_decay, .. } = self.optimizer;
        let decay = match parameter.decay {
            Decay::Decayed => weight_decay,
            Decay::Free => 0.0,
        };
        let values = parameter.value.iter_mut().zip(&parameter.gradient);
        let moments = parameter.first_moment.iter_mut().zip(&mut parameter.second_moment);
        for ((value, gradient), (first, second)) in values.zip(moments) {
            let g = gradient * self.gradient_scale;
            *first = beta1 * *first + (1.0 - beta1) * g;
            *second = beta2 * *second + (1.0 - beta2) * (g * g);
            let quotient = *first * self.first_correction / ((*second * self.second_correction).sqrt() + epsilon);
            *value -= self.learning_rate * (quotient + decay * *value);
        }
    }
}

/// `base^exponent` by squaring: `powi` leaves its last bits to the platform.
fn power(base: f64, exponent: u64) -> f64 {
    let (mut result, mut square, mut rest) = (1.0, base, exponent);
    while rest > 0 {
        if rest & 1 == 1 {
            result *= square;
        }
        square *= square;
        rest >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_moves_by_the_warm_learning_rate_whatever_the_gradient() {
        let optimizer = AdamW { weight_decay: 0.0, ..AdamW::default() };
        let mut parameter = Parameter::new("x", vec![1.0, 1.0], Decay::Decayed);
        parameter.gradient = vec![1e-3, -50.0];
        optimizer.update(0, 1.0).apply(&mut parameter);
        let moved = optimizer.learning_rate / WARM_UP_STEPS as f32;
        assert!((parameter.value[0] - (1.0 - moved)).abs() < 1e-6);
        assert!((parameter.value[1] - (1.0 + moved)).abs() < 1e-6);
    }

    #[test]
    fn decay_takes_only_what_is_decayed() {
        for (decay, expected) in [(Decay::Decayed, 1.0 - 3e-3 * 0.01), (Decay::Free, 1.0)] {
            let mut parameter = Parameter::new("x", vec![1.0], decay);
            AdamW::default().update(WARM_UP_STEPS, 1.0).apply(&mut parameter);
            assert_eq!(parameter.value[0], expected);
        }
    }

    #[test]
    fn power_multiplies() {
        assert_eq!(power(0.5, 10), 1.0 / 1024.0);
        assert_eq!(power(0.9, 0), 1.0);
        assert_eq!(power(0.9, u64::MAX), 0.0);
    }
}
