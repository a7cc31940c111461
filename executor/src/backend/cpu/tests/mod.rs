//! The layers' promises: true gradients, equal bits, and a loss that falls.

mod bits;
mod gradients;
mod training;

use super::{Input, Layer, LayerType, Shape, Stash, parameter::Draws};

/// Small, and with no two sizes equal.
const SHAPE: Shape = Shape { width: 8, heads: 2, hidden: 12, experts: 3, state: 6, sequence: 5, vocabulary: 11 };

/// One microbatch for a layer of any type.
struct Case {
    activation: Vec<f32>,
    tokens: Vec<u8>,
    targets: Vec<u8>,
    /// Random, empty for a head.
    output_gradient: Vec<f32>,
}

impl Case {
    fn new(layer_type: LayerType, seed: u64) -> Case {
        let mut draws = Draws::new(seed, 1000);
        let elements = SHAPE.sequence * SHAPE.width;
        let activation = draws.take(elements, 1.0);
        let output_gradient = match layer_type {
            LayerType::Head => Vec::new(),
            _ => draws.take(elements, 1.0),
        };
        // A token that comes twice, so that its gradients must add.
        Case { activation, tokens: vec![3, 10, 3, 0, 7], targets: vec![10, 3, 0, 7, 7], output_gradient }
    }

    fn input(&self, layer_type: LayerType) -> Input<'_> {
        match layer_type {
            LayerType::Embedding => Input::Tokens(&self.tokens),
            LayerType::Head => Input::ActivationWithTargets(&self.activation, &self.targets),
            _ => Input::Activation(&self.activation),
        }
    }
}

/// A layer whose parameters are all away from where they start.
fn stirred(layer_type: LayerType, seed: u64) -> Layer {
    let mut layer = Layer::new(layer_type, &SHAPE, seed, 2);
    let mut draws = Draws::new(seed, 2000);
    for parameter in layer.parameters_mut() {
        let offsets = draws.take(parameter.value.len(), 0.3);
        parameter.value.iter_mut().zip(offsets).for_each(|(value, offset)| *value += offset);
    }
    layer
}

fn forward(layer: &Layer, case: &Case) -> (Vec<f32>, Stash, Option<f32>) {
    layer.forward(&case.input(layer.layer_type()))
}

/// F, I and W; returns the output and the input's gradient.
fn forward_and_backward(layer: &mut Layer, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let (output, mut stash, _) = forward(layer, case);
    let input_gradient = layer.input_gradient(&mut stash, &case.output_gradient);
    layer.weight_gradient(stash);
    (output, input_gradient)
}
