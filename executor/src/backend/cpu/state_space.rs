//! A gated diagonal linear recurrence:
//!
//! ```text
//!   [u | g] = normed(x) . input                 per token
//!   h[t]    = a h[t-1] + (1 - a) u[t]           a = sigmoid(decay), per channel; h[-1] = 0
//!   out     = x + (h * silu(g)) . output
//! ```
//!
//! The factor `1 - a` keeps `h` at the size of `u` whatever the decay, as in an exponential moving average.

use super::{
    activation::{sigmoid, silu_derivative},
    matmul::{View, ViewMut, multiply_add, product},
    norm::{Normed, add_weight_gradient, scaled},
    parameter::{Decay, Draws, Parameter},
    shape::Shape,
};

#[derive(Debug)]
pub(super) struct StateSpace {
    shape: Shape,
    pub(super) gain: Parameter,
    /// `width x 2 state`.
    pub(super) input: Parameter,
    /// `state`, before the sigmoid.
    pub(super) decay: Parameter,
    /// `state x width`.
    pub(super) output: Parameter,
}

/// Held from F to I.
#[derive(Debug)]
pub(super) struct Forward {
    normed: Normed,
    /// `[u | g]`, `tokens x 2 state`.
    projected: Vec<f32>,
    /// `h`, `tokens x state`.
    states: Vec<f32>,
    /// `sigmoid(g)`, `tokens x state`.
    gate_sigmoid: Vec<f32>,
}

/// Held from I to W.
#[derive(Debug)]
pub(super) struct Weight {
    unit: Vec<f32>,
    /// Of `[u | g]`.
    projected_gradient: Vec<f32>,
    /// `h * silu(g)`.
    gated: Vec<f32>,
    /// `sum_t d u[t] (h[t-1] - u[t])`, `state`: the decay's gradient but for a factor.
    decay_gradient: Vec<f32>,
    output_gradient: Vec<f32>,
}

/// Logits of the first and the last channel's decay: memories of about two tokens to a hundred.
const DECAY_LOGITS: (f32, f32) = (0.0, 4.6);

impl StateSpace {
    pub(super) fn new(shape: Shape, draws: &mut Draws, residual: f32) -> StateSpace {
        let Shape { width, state, .. } = shape;
        let (low, high) = DECAY_LOGITS;
        let spread = |channel: usize| low + (high - low) * channel as f32 / (state.max(2) - 1) as f32;
        StateSpace {
            shape,
            gain: Parameter::gain(width),
            input: draws.projection("input", width, 2 * state, 1, 1.0),
            decay: Parameter::new("decay", (0..state).map(spread).collect(), Decay::Free),
            output: draws.projection("output", state, width, 1, residual),
        }
    }

    pub(super) fn forward(&self, input: &[f32]) -> (Vec<f32>, Forward) {
        let Shape { width, state, .. } = self.shape;
        let normed = Normed::of(input, width);
        let scaled = scaled(&normed.unit, &self.gain.value);
        let projected = product(View::of(&scaled, width), View::of(&self.input.value, 2 * state));
        let kept = self.kept();
        let mut current = vec![0.0; state];
        let mut states = Vec::with_capacity(projected.len() / 2);
        let mut gate_sigmoid = Vec::with_capacity(projected.len() / 2);
        for row in projected.chunks_exact(2 * state) {
            let (entering, gate) = row.split_at(state);
            for ((h, a), u) in current.iter_mut().zip(&kept).zip(entering) {
                *h = a * *h + (1.0 - a) * u;
            }
            states.extend_from_slice(&current);
            gate_sigmoid.extend(gate.iter().map(|g| sigmoid(*g)));
        }
        let gated = gated(&states, &projected, &gate_sigmoid, state);
        let mut output = input.to_vec();
        multiply_add(View::of(&gated, state), View::of(&self.output.value, width), ViewMut::of(&mut output, width));
        (output, Forward { normed, projected, states, gate_sigmoid })
    }

    pub(super) fn input_gradient(&self, held: Forward, output_gradient: &[f32]) -> (Vec<f32>, Weight) {
        let Shape { width, state, .. } = self.shape;
        let Forward { normed, projected, states, gate_sigmoid } = held;
        let gated = gated(&states, &projected, &gate_sigmoid, state);
        let gated_gradient =
            product(View::of(output_gradient, width), View::of(&self.output.value, width).transposed());
        let kept = self.kept();
        let mut projected_gradient = vec![0.0; projected.len()];
        let mut decay_gradient = vec![0.0; state];
        // Of h[t], as far as later tokens need it.
        let mut carried = vec![0.0; state];
        let before_first = vec![0.0; state];
        for token in (0..states.len() / state).rev() {
            let of_token = token * state..(token + 1) * state;
            let (entering, gate) = projected[2 * token * state..][..2 * state].split_at(state);
            let (du, dg) = projected_gradient[2 * token * state..][..2 * state].split_at_mut(state);
            let now = &states[of_token.clone()];
            let before = if token == 0 { &before_first[..] } else { &states[(token - 1) * state..][..state] };
            let (sigmoid, gradient) = (&gate_sigmoid[of_token.clone()], &gated_gradient[of_token]);
            for channel in 0..state {
                let (a, s, g) = (kept[channel], sigmoid[channel], gradient[channel]);
                let silu = gate[channel] * s;
                let dh = carried[channel] + g * silu;
                dg[channel] = g * now[channel] * silu_derivative(s, silu);
                du[channel] = dh * (1.0 - a);
                decay_gradient[channel] += du[channel] * (before[channel] - entering[channel]);
                carried[channel] = dh * a;
            }
        }
        let scaled_gradient =
            product(View::of(&projected_gradient, 2 * state), View::of(&self.input.value, 2 * state).transposed());
        let mut input_gradient = output_gradient.to_vec();
        normed.add_input_gradient(&self.gain.value, &scaled_gradient, &mut input_gradient);
        let output_gradient = output_gradient.to_vec();
        (input_gradient, Weight { unit: normed.unit, projected_gradient, gated, decay_gradient, output_gradient })
    }

    pub(super) fn weight_gradient(&mut self, held: &Weight) {
        let Shape { width, state, .. } = self.shape;
        multiply_add(
            View::of(&held.gated, state).transposed(),
            View::of(&held.output_gradient, width),
            ViewMut::of(&mut self.output.gradient, width),
        );
        // d a / d logit = a (1 - a); the 1 - a is in d u already.
        let kept = self.kept();
        for ((sum, d), a) in self.decay.gradient.iter_mut().zip(&held.decay_gradient).zip(&kept) {
            *sum += d * a;
        }
        add_weight_gradient(
            &held.unit,
            &held.projected_gradient,
            &self.gain.value,
            &mut self.gain.gradient,
            &self.input.value,
            &mut self.input.gradient,
        );
    }

    /// What each channel keeps from one token to the next.
    fn kept(&self) -> Vec<f32> {
        self.decay.value.iter().map(|logit| sigmoid(*logit)).collect()
    }
}

/// `h * silu(g)`.
fn gated(states: &[f32], projected: &[f32], gate_sigmoid: &[f32], state: usize) -> Vec<f32> {
    let mut output = Vec::with_capacity(states.len());
    let rows = states.chunks_exact(state).zip(gate_sigmoid.chunks_exact(state));
    for ((h, s), row) in rows.zip(projected.chunks_exact(2 * state)) {
        output.extend(h.iter().zip(s).zip(&row[state..]).map(|((h, s), g)| h * (g * s)));
    }
    output
}

impl Forward {
    pub(super) fn bytes(&self) -> usize {
        self.normed.bytes()
            + size_of_val(&*self.projected)
            + size_of_val(&*self.states)
            + size_of_val(&*self.gate_sigmoid)
    }
}

impl Weight {
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.unit)
            + size_of_val(&*self.projected_gradient)
            + size_of_val(&*self.gated)
            + size_of_val(&*self.decay_gradient)
            + size_of_val(&*self.output_gradient)
    }
}
