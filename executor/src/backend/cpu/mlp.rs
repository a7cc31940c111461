//! Two projections around SiLU: `out = x + silu(normed(x) . up) . down`.

use super::{
    activation::{sigmoid, silu_derivative},
    matmul::{View, ViewMut, multiply_add, product},
    norm::{Normed, add_weight_gradient, scaled},
    parameter::{Draws, Parameter},
    shape::Shape,
};

#[derive(Debug)]
pub(super) struct Mlp {
    shape: Shape,
    pub(super) gain: Parameter,
    /// `width x hidden`.
    pub(super) up: Parameter,
    /// `hidden x width`.
    pub(super) down: Parameter,
}

/// Held from F to I.
#[derive(Debug)]
pub(super) struct Forward {
    normed: Normed,
    hidden: Hidden,
}

/// Held from I to W.
#[derive(Debug)]
pub(super) struct Weight {
    unit: Vec<f32>,
    gradient: HiddenGradient,
    output_gradient: Vec<f32>,
}

/// SiLU's output and its argument's sigmoid, `tokens x hidden` each: what its derivative needs, without a second
/// exponential.
#[derive(Debug)]
pub(super) struct Hidden {
    activated: Vec<f32>,
    sigmoid: Vec<f32>,
}

/// SiLU's output and its argument's gradient, `tokens x hidden` each.
#[derive(Debug)]
pub(super) struct HiddenGradient {
    pub(super) activated: Vec<f32>,
    pub(super) gradient: Vec<f32>,
}

impl Hidden {
    /// Applies SiLU.
    pub(super) fn of(mut projected: Vec<f32>) -> Hidden {
        let sigmoid: Vec<f32> = projected.iter().map(|x| sigmoid(*x)).collect();
        for (x, s) in projected.iter_mut().zip(&sigmoid) {
            *x *= s;
        }
        Hidden { activated: projected, sigmoid }
    }

    /// SiLU's output.
    pub(super) fn activated(&self) -> &[f32] {
        &self.activated
    }

    /// Takes the gradient of SiLU's output to that of its argument.
    pub(super) fn into_gradient(self, mut gradient: Vec<f32>) -> HiddenGradient {
        for ((g, s), a) in gradient.iter_mut().zip(&self.sigmoid).zip(&self.activated) {
            *g *= silu_derivative(*s, *a);
        }
        HiddenGradient { activated: self.activated, gradient }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.activated) + size_of_val(&*self.sigmoid)
    }
}

impl HiddenGradient {
    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.activated) + size_of_val(&*self.gradient)
    }
}

impl Mlp {
    pub(super) fn new(shape: Shape, draws: &mut Draws, residual: f32) -> Mlp {
        Mlp {
            shape,
            gain: Parameter::gain(shape.width),
            up: draws.projection("up", shape.width, shape.hidden, 1, 1.0),
            down: draws.projection("down", shape.hidden, shape.width, 1, residual),
        }
    }

    pub(super) fn forward(&self, input: &[f32]) -> (Vec<f32>, Forward) {
        let Shape { width, hidden: inner, .. } = self.shape;
        let normed = Normed::of(input, width);
        let scaled = scaled(&normed.unit, &self.gain.value);
        let hidden = Hidden::of(product(View::of(&scaled, width), View::of(&self.up.value, inner)));
        let mut output = input.to_vec();
        multiply_add(
            View::of(hidden.activated(), inner),
            View::of(&self.down.value, width),
            ViewMut::of(&mut output, width),
        );
        (output, Forward { normed, hidden })
    }

    pub(super) fn input_gradient(&self, held: Forward, output_gradient: &[f32]) -> (Vec<f32>, Weight) {
        let Shape { width, hidden: inner, .. } = self.shape;
        let Forward { normed, hidden } = held;
        let activated_gradient =
            product(View::of(output_gradient, width), View::of(&self.down.value, width).transposed());
        let gradient = hidden.into_gradient(activated_gradient);
        let scaled_gradient =
            product(View::of(&gradient.gradient, inner), View::of(&self.up.value, inner).transposed());
        let mut input_gradient = output_gradient.to_vec();
        normed.add_input_gradient(&self.gain.value, &scaled_gradient, &mut input_gradient);
        (input_gradient, Weight { unit: normed.unit, gradient, output_gradient: output_gradient.to_vec() })
    }

    pub(super) fn weight_gradient(&mut self, held: &Weight) {
        let Shape { width, hidden: inner, .. } = self.shape;
        multiply_add(
            View::of(&held.gradient.activated, inner).transposed(),
            View::of(&held.output_gradient, width),
            ViewMut::of(&mut self.down.gradient, width),
        );
        add_weight_gradient(
            &held.unit,
            &held.gradient.gradient,
            &self.gain.value,
            &mut self.gain.gradient,
            &self.up.value,
            &mut self.up.gradient,
        );
    }
}

impl Forward {
    pub(super) fn bytes(&self) -> usize {
        self.normed.bytes() + self.hidden.bytes()
    }
}

impl Weight {
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.unit) + self.gradient.bytes() + size_of_val(&*self.output_gradient)
    }
}
