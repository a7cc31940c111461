//! A mixture of experts with one of them per token (Fedus et al., Switch Transformers, 2021):
//! `out = x + p[e] mlp_e(normed(x))`, with `p = softmax(normed(x) . router)` and `e` its largest entry, the first of
//! equal ones.
//!
//! Tokens are sorted by expert, in order of position within one, so that an expert's tokens are adjacent rows; only
//! input and output are in the sequence's order. The gradient reaches the router through the gate `p[e]`. There is no
//! capacity limit and no load-balancing loss.

use super::{
    activation::{dot, softmax},
    matmul::{View, ViewMut, multiply, multiply_add, product},
    mlp::{Hidden, HiddenGradient},
    norm::{Normed, add_weight_gradient, scaled},
    parameter::{Draws, Parameter},
    shape::Shape,
};
use std::ops::Range;

#[derive(Debug)]
pub(super) struct Moe {
    shape: Shape,
    pub(super) gain: Parameter,
    /// `width x experts`.
    pub(super) router: Parameter,
    /// `experts x width x hidden`.
    pub(super) up: Parameter,
    /// `experts x hidden x width`.
    pub(super) down: Parameter,
}

/// Which tokens go where.
#[derive(Debug)]
struct Routing {
    /// Position of each sorted row in the sequence.
    positions: Vec<usize>,
    /// The first sorted row of each expert, and the number of rows.
    firsts: Vec<usize>,
}

/// Held from F to I. Rows are sorted by expert.
#[derive(Debug)]
pub(super) struct Forward {
    routing: Routing,
    normed: Normed,
    /// `tokens x experts`.
    probability: Vec<f32>,
    /// Of each expert that has tokens.
    hidden: Vec<Option<Hidden>>,
    /// `tokens x width`, before the gate.
    expert_output: Vec<f32>,
}

/// Held from I to W. Rows are sorted by expert.
#[derive(Debug)]
pub(super) struct Weight {
    routing: Routing,
    unit: Vec<f32>,
    logit_gradient: Vec<f32>,
    hidden: Vec<Option<HiddenGradient>>,
    /// Of the expert's output, after the gate.
    expert_gradient: Vec<f32>,
}

impl Moe {
    pub(super) fn new(shape: Shape, draws: &mut Draws, residual: f32) -> Moe {
        let Shape { width, hidden, experts, .. } = shape;
        Moe {
            shape,
            gain: Parameter::gain(width),
            router: draws.projection("router", width, experts, 1, 1.0),
            up: draws.projection("up", width, hidden, experts, 1.0),
            down: draws.projection("down", hidden, width, experts, residual),
        }
    }

    pub(super) fn forward(&self, input: &[f32]) -> (Vec<f32>, Forward) {
        let Shape { width, hidden: inner, experts, .. } = self.shape;
        let normed = Normed::of(input, width);
        let rows = scaled(&normed.unit, &self.gain.value);
        let mut probability = product(View::of(&rows, width), View::of(&self.router.value, experts));
        probability.chunks_exact_mut(experts).for_each(|row| {
            softmax(row);
        });
        let routing = Routing::of(&probability, experts);
        let rows = routing.sorted(&rows, width);
        let probability = routing.sorted(&probability, experts);
        let normed = Normed { unit: routing.sorted(&normed.unit, width), inverse: routing.sorted(&normed.inverse, 1) };

        let mut expert_output = vec![0.0; rows.len()];
        let mut hidden = Vec::with_capacity(experts);
        for expert in 0..experts {
            let Some(of_expert) = routing.elements(expert, width) else {
                hidden.push(None);
                continue;
            };
            let activated = Hidden::of(product(View::of(&rows[of_expert.clone()], width), self.up_of(expert)));
            let output = ViewMut::of(&mut expert_output[of_expert], width);
            multiply(View::of(activated.activated(), inner), self.down_of(expert), output);
            hidden.push(Some(activated));
        }

        let mut output = input.to_vec();
        for (row, (expert, position)) in routing.rows().enumerate() {
            let gate = probability[row * experts + expert];
            let from = &expert_output[row * width..][..width];
            for (o, z) in output[position * width..][..width].iter_mut().zip(from) {
                *o += gate * z;
            }
        }
        (output, Forward { routing, normed, probability, hidden, expert_output })
    }

    pub(super) fn input_gradient(&self, held: Forward, output_gradient: &[f32]) -> (Vec<f32>, Weight) {
        let Shape { width, experts, .. } = self.shape;
        let Forward { routing, normed, probability, hidden, expert_output } = held;
        let mut expert_gradient = routing.sorted(output_gradient, width);
        let logit_gradient = self.gate_gradient(&routing, probability, &expert_output, &mut expert_gradient);
        let mut scaled_gradient =
            product(View::of(&logit_gradient, experts), View::of(&self.router.value, experts).transposed());
        let mut hidden_gradient = Vec::with_capacity(experts);
        for (expert, hidden) in hidden.into_iter().enumerate() {
            let of_expert = routing.elements(expert, width);
            hidden_gradient.push(hidden.zip(of_expert).map(|(hidden, of_expert)| {
                self.expert_gradient(
                    expert,
                    hidden,
                    &expert_gradient[of_expert.clone()],
                    &mut scaled_gradient[of_expert],
                )
            }));
        }
        let mut sorted = vec![0.0; output_gradient.len()];
        normed.add_input_gradient(&self.gain.value, &scaled_gradient, &mut sorted);
        let mut input_gradient = output_gradient.to_vec();
        for (row, (_, position)) in routing.rows().enumerate() {
            let from = &sorted[row * width..][..width];
            for (i, s) in input_gradient[position * width..][..width].iter_mut().zip(from) {
                *i += s;
            }
        }
        let weight = Weight { routing, unit: normed.unit, logit_gradient, hidden: hidden_gradient, expert_gradient };
        (input_gradient, weight)
    }

    pub(super) fn weight_gradient(&mut self, held: &Weight) {
        let Shape { width, hidden: inner, .. } = self.shape;
        add_weight_gradient(
            &held.unit,
            &held.logit_gradient,
            &self.gain.value,
            &mut self.gain.gradient,
            &self.router.value,
            &mut self.router.gradient,
        );
        for (expert, hidden) in held.hidden.iter().enumerate() {
            let Some((hidden, of_expert)) = hidden.as_ref().zip(held.routing.elements(expert, width)) else {
                continue;
            };
            let matrix = expert * width * inner..(expert + 1) * width * inner;
            multiply_add(
                View::of(&hidden.activated, inner).transposed(),
                View::of(&held.expert_gradient[of_expert.clone()], width),
                ViewMut::of(&mut self.down.gradient[matrix.clone()], width),
            );
            add_weight_gradient(
                &held.unit[of_expert],
                &hidden.gradient,
                &self.gain.value,
                &mut self.gain.gradient,
                &self.up.value[matrix.clone()],
                &mut self.up.gradient[matrix],
            );
        }
    }

    /// Turns `gradient`, of the gated output, into that of the expert's output, and returns that of the router's
    /// logits: with `d p[e] = dout . mlp_e`, it is `p[e] (1{j = e} - p[j]) d p[e]`.
    fn gate_gradient(
        &self,
        routing: &Routing,
        probability: Vec<f32>,
        expert_output: &[f32],
        gradient: &mut [f32],
    ) -> Vec<f32> {
        let Shape { width, experts, .. } = self.shape;
        let mut logit_gradient = probability;
        let rows = gradient.chunks_exact_mut(width).zip(expert_output.chunks_exact(width));
        for (((gradient, output), logits), (expert, _)) in
            rows.zip(logit_gradient.chunks_exact_mut(experts)).zip(routing.rows())
        {
            let gate = logits[expert];
            let of_gate = dot(gradient, output) * gate;
            logits.iter_mut().for_each(|p| *p *= -of_gate);
            logits[expert] += of_gate;
            gradient.iter_mut().for_each(|g| *g *= gate);
        }
        logit_gradient
    }

    /// I of one expert's MLP: adds to the gradient of its normalised input.
    fn expert_gradient(
        &self,
        expert: usize,
        hidden: Hidden,
        output_gradient: &[f32],
        scaled_gradient: &mut [f32],
    ) -> HiddenGradient {
        let Shape { width, hidden: inner, .. } = self.shape;
        let activated_gradient = product(View::of(output_gradient, width), self.down_of(expert).transposed());
        let gradient = hidden.into_gradient(activated_gradient);
        multiply_add(
            View::of(&gradient.gradient, inner),
            self.up_of(expert).transposed(),
            ViewMut::of(scaled_gradient, width),
        );
        gradient
    }

    fn up_of(&self, expert: usize) -> View<'_> {
        let elements = self.shape.width * self.shape.hidden;
        View::of(&self.up.value[expert * elements..][..elements], self.shape.hidden)
    }

    fn down_of(&self, expert: usize) -> View<'_> {
        let elements = self.shape.width * self.shape.hidden;
        View::of(&self.down.value[expert * elements..][..elements], self.shape.width)
    }
}

impl Routing {
    /// Sends each token to its most probable expert.
    fn of(probability: &[f32], experts: usize) -> Routing {
        let chosen: Vec<usize> = probability.chunks_exact(experts).map(most_probable).collect();
        let mut positions = Vec::with_capacity(chosen.len());
        let mut firsts = Vec::with_capacity(experts + 1);
        for expert in 0..experts {
            firsts.push(positions.len());
            positions.extend((0..chosen.len()).filter(|position| chosen[*position] == expert));
        }
        firsts.push(positions.len());
        Routing { positions, firsts }
    }

    /// Rows of `width` elements, sorted by expert.
    fn sorted(&self, rows: &[f32], width: usize) -> Vec<f32> {
        let mut output = Vec::with_capacity(rows.len());
        for position in &self.positions {
            output.extend_from_slice(&rows[position * width..][..width]);
        }
        output
    }

    /// Where an expert's rows lie in a sorted matrix; none if it has no token.
    fn elements(&self, expert: usize, width: usize) -> Option<Range<usize>> {
        let (first, end) = (self.firsts[expert], self.firsts[expert + 1]);
        (first < end).then(|| first * width..end * width)
    }

    /// Expert and position of each sorted row.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.firsts
            .windows(2)
            .enumerate()
            .flat_map(|(expert, ends)| self.positions[ends[0]..ends[1]].iter().map(move |position| (expert, *position)))
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.positions) + size_of_val(&*self.firsts)
    }
}

/// Index of the largest entry, the first of equal ones.
fn most_probable(probability: &[f32]) -> usize {
    let mut best = 0;
    for (expert, value) in probability.iter().enumerate() {
        if *value > probability[best] {
            best = expert;
        }
    }
    best
}

impl Forward {
    pub(super) fn bytes(&self) -> usize {
        self.routing.bytes()
            + self.normed.bytes()
            + size_of_val(&*self.probability)
            + self.hidden.iter().flatten().map(Hidden::bytes).sum::<usize>()
            + size_of_val(&*self.expert_output)
    }
}

impl Weight {
    pub(super) fn bytes(&self) -> usize {
        self.routing.bytes()
            + size_of_val(&*self.unit)
            + size_of_val(&*self.logit_gradient)
            + self.hidden.iter().flatten().map(HiddenGradient::bytes).sum::<usize>()
            + size_of_val(&*self.expert_gradient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_experts_is_chosen() {
        let routing = Routing::of(&[0.4, 0.4, 0.2, 0.2, 0.4, 0.4, 0.5, 0.3, 0.2], 3);
        assert_eq!(routing.rows().collect::<Vec<_>>(), [(0, 0), (0, 2), (1, 1)]);
        assert_eq!(routing.elements(2, 4), None);
    }
}
