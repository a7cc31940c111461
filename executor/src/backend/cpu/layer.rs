//! The unit that a plan places: one layer's parameters, gradients and moments, and its three functions.

use super::{
    AdamW, LayerType, Shape, Stash,
    attention::Attention,
    embedding::Embedding,
    head::Head,
    mlp::Mlp,
    moe::Moe,
    parameter::{Draws, Parameter},
    stash::{Held, Phase},
    state_space::StateSpace,
};

/// Deviation of what a fresh block adds to its input, relative to a plain projection: about `1 / sqrt(2 x depth)` for
/// a model of a dozen blocks. A constant, so that a layer does not depend on how many others there are.
const RESIDUAL_DEVIATION: f32 = 0.2;

/// A layer of the model with all of its state.
#[derive(Debug)]
pub struct Layer {
    layer_type: LayerType,
    shape: Shape,
    body: Body,
    /// Optimizer steps applied so far.
    pub(super) step: u64,
}

#[derive(Debug)]
enum Body {
    Embedding(Embedding),
    Attention(Attention),
    Mlp(Mlp),
    Moe(Moe),
    StateSpace(StateSpace),
    Head(Head),
}

/// What a layer is run on: one microbatch, which is one sequence.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// `sequence` bytes, each below the vocabulary. For an embedding.
    Tokens(&'a [u8]),
    /// `sequence x width`, row-major. For every layer between the first and the last.
    Activation(&'a [f32]),
    /// The same, and the byte that follows each token. For a head.
    ActivationWithTargets(&'a [f32], &'a [u8]),
}

impl Layer {
    /// A fresh layer, a pure function of the arguments; `index` is its place in the model.
    ///
    /// # Panics
    /// If a size of the shape is zero, or the heads do not divide the width.
    pub fn new(layer_type: LayerType, shape: &Shape, seed: u64, index: usize) -> Layer {
        shape.assert_valid();
        let draws = &mut Draws::new(seed, index);
        let body = match layer_type {
            LayerType::Embedding => Body::Embedding(Embedding::new(*shape, draws)),
            LayerType::Attention => Body::Attention(Attention::new(*shape, draws, RESIDUAL_DEVIATION)),
            LayerType::Mlp => Body::Mlp(Mlp::new(*shape, draws, RESIDUAL_DEVIATION)),
            LayerType::Moe => Body::Moe(Moe::new(*shape, draws, RESIDUAL_DEVIATION)),
            LayerType::StateSpace => Body::StateSpace(StateSpace::new(*shape, draws, RESIDUAL_DEVIATION)),
            LayerType::Head => Body::Head(Head::new(*shape, draws)),
        };
        Layer { layer_type, shape: *shape, body, step: 0 }
    }

    /// The same layer in an iteration of `count` microbatches: a head's gradients become those of the mean of their
    /// losses, not of the sum. Other layers take the scale from the gradient that reaches them. One until told.
    ///
    /// # Panics
    /// If `count` is zero.
    #[must_use]
    pub fn with_microbatches(mut self, count: u32) -> Layer {
        assert!(count > 0, "an iteration has microbatches");
        if let Body::Head(head) = &mut self.body {
            head.microbatches = count;
        }
        self
    }

    /// What it computes.
    pub fn layer_type(&self) -> LayerType {
        self.layer_type
    }

    /// The sizes it was made with.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Optimizer steps applied so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// F. Returns the output, `sequence x width` (empty for a head); what I needs; and a head's loss, the mean of the
    /// microbatch's tokens in nats.
    ///
    /// # Panics
    /// If the input is not of this layer's kind, its size is not a whole number of tokens, there are too many of them,
    /// or one is outside the vocabulary.
    pub fn forward(&self, input: &Input<'_>) -> (Vec<f32>, Stash, Option<f32>) {
        if let Input::Activation(x) | Input::ActivationWithTargets(x, _) = input {
            let tokens = x.len() / self.shape.width;
            assert_eq!(tokens * self.shape.width, x.len(), "an activation is whole tokens of {}", self.shape.width);
            assert!((1..=self.shape.sequence).contains(&tokens), "1 to {} tokens, not {tokens}", self.shape.sequence);
        }
        match (&self.body, input) {
            (Body::Embedding(body), Input::Tokens(tokens)) => {
                let (output, held) = body.forward(tokens);
                (output, Stash(Held::Embedding(Phase::Forward(held))), None)
            }
            (Body::Attention(body), Input::Activation(x)) => {
                let (output, held) = body.forward(x);
                (output, Stash(Held::Attention(Phase::Forward(held))), None)
            }
            (Body::Mlp(body), Input::Activation(x)) => {
                let (output, held) = body.forward(x);
                (output, Stash(Held::Mlp(Phase::Forward(held))), None)
            }
            (Body::Moe(body), Input::Activation(x)) => {
                let (output, held) = body.forward(x);
                (output, Stash(Held::Moe(Phase::Forward(held))), None)
            }
            (Body::StateSpace(body), Input::Activation(x)) => {
                let (output, held) = body.forward(x);
                (output, Stash(Held::StateSpace(Phase::Forward(held))), None)
            }
            (Body::Head(body), Input::ActivationWithTargets(x, targets)) => {
                let (loss, held) = body.forward(x, targets);
                (Vec::new(), Stash(Held::Head(Phase::Forward(held))), Some(loss))
            }
            _ => panic!("the input is of the kind that a layer of type {} takes", self.layer_type),
        }
    }

    /// I. Returns the gradient of the input, `sequence x width` (empty for an embedding), given that of the output
    /// (empty for a head), and reduces the stash to what W needs, a copy of the output's gradient included.
    ///
    /// # Panics
    /// If the stash is not this layer type's, I has run on it, or the gradient has not the output's size.
    pub fn input_gradient(&self, stash: &mut Stash, output_gradient: &[f32]) -> Vec<f32> {
        match (&self.body, &mut stash.0) {
            (Body::Embedding(body), Held::Embedding(phase)) => {
                phase.advance(|held| body.input_gradient(held, output_gradient))
            }
            (Body::Attention(body), Held::Attention(phase)) => {
                phase.advance(|held| body.input_gradient(held, output_gradient))
            }
            (Body::Mlp(body), Held::Mlp(phase)) => phase.advance(|held| body.input_gradient(held, output_gradient)),
            (Body::Moe(body), Held::Moe(phase)) => phase.advance(|held| body.input_gradient(held, output_gradient)),
            (Body::StateSpace(body), Held::StateSpace(phase)) => {
                phase.advance(|held| body.input_gradient(held, output_gradient))
            }
            (Body::Head(body), Held::Head(phase)) => {
                assert!(output_gradient.is_empty(), "nothing follows a head");
                phase.advance(|held| body.input_gradient(held))
            }
            _ => panic!("the stash is of a layer of type {}", self.layer_type),
        }
    }

    /// W. Adds one microbatch's gradients to the layer's. Their sum depends on the order of calls, which is the
    /// caller's to keep.
    ///
    /// # Panics
    /// If the stash is not this layer type's, or I has not run on it.
    pub fn weight_gradient(&mut self, stash: Stash) {
        match (&mut self.body, &stash.0) {
            (Body::Embedding(body), Held::Embedding(phase)) => body.weight_gradient(phase.weight()),
            (Body::Attention(body), Held::Attention(phase)) => body.weight_gradient(phase.weight()),
            (Body::Mlp(body), Held::Mlp(phase)) => body.weight_gradient(phase.weight()),
            (Body::Moe(body), Held::Moe(phase)) => body.weight_gradient(phase.weight()),
            (Body::StateSpace(body), Held::StateSpace(phase)) => body.weight_gradient(phase.weight()),
            (Body::Head(body), Held::Head(phase)) => body.weight_gradient(phase.weight()),
            _ => panic!("the stash is of a layer of type {}", self.layer_type),
        }
    }

    /// Gradients to zero, for the next iteration.
    pub fn clear_gradients(&mut self) {
        for parameter in self.parameters_mut() {
            parameter.gradient.fill(0.0);
        }
    }

    /// Sum of the squares of all gradients, summed parameter by parameter in order of declaration.
    pub fn gradient_square_sum(&self) -> f64 {
        let mut sum = 0.0;
        for parameter in self.parameters() {
            for gradient in &parameter.gradient {
                sum += f64::from(*gradient) * f64::from(*gradient);
            }
        }
        sum
    }

    /// The optimizer step: `step` is how many came before it, `scale` the factor on every gradient that clipping asks
    /// for (1 for none). Gradients stay until they are cleared.
    pub fn apply(&mut self, optimizer: &AdamW, step: u64, scale: f32) {
        let update = optimizer.update(step, scale);
        for parameter in self.parameters_mut() {
            update.apply(parameter);
        }
        self.step = step + 1;
    }

    /// Bytes of the parameters alone.
    pub fn parameter_bytes(&self) -> usize {
        self.parameters().iter().map(|parameter| size_of_val(&*parameter.value)).sum()
    }

    /// Bytes of parameters, gradients and moments, which stay as long as the layer does.
    pub fn state_bytes(&self) -> usize {
        // A value, a gradient and two moments, all of one size.
        4 * self.parameter_bytes()
    }

    /// Bytes of a full sequence's output; none for a head.
    pub fn output_bytes(&self) -> usize {
        match self.layer_type {
            LayerType::Head => 0,
            _ => self.shape.sequence * self.shape.width * size_of::<f32>(),
        }
    }

    /// The most bytes that a microbatch of a full sequence takes here: the input and the stash after F, or the stash
    /// after I if that is more. Found by running both on zeros.
    pub fn activation_bytes(&self) -> usize {
        let (after_forward, after_input_gradient) = self.stash_bytes();
        let input_bytes = match self.layer_type {
            LayerType::Embedding => self.shape.sequence,
            _ => self.shape.sequence * self.shape.width * size_of::<f32>(),
        };
        after_input_gradient.max(input_bytes + after_forward)
    }

    /// Bytes of a full sequence's stash from the end of I to W. Found as [`Layer::activation_bytes`].
    pub fn weight_gradient_bytes(&self) -> usize {
        self.stash_bytes().1
    }

    /// Bytes of a full sequence's stash after F and after I.
    pub(super) fn stash_bytes(&self) -> (usize, usize) {
        let tokens = vec![0; self.shape.sequence];
        let zeros = vec![0.0; self.shape.sequence * self.shape.width];
        let (input, output_gradient) = match self.layer_type {
            LayerType::Embedding => (Input::Tokens(&tokens), &zeros[..]),
            LayerType::Head => (Input::ActivationWithTargets(&zeros, &tokens), &[][..]),
            _ => (Input::Activation(&zeros), &zeros[..]),
        };
        let (_, mut stash, _) = self.forward(&input);
        let after_forward = stash.bytes();
        self.input_gradient(&mut stash, output_gradient);
        (after_forward, stash.bytes())
    }

    /// All parameters, in the one order that sums, digests and exports use.
    pub(super) fn parameters(&self) -> Vec<&Parameter> {
        match &self.body {
            Body::Embedding(body) => vec![&body.table, &body.position],
            Body::Attention(body) => vec![&body.gain, &body.query_key_value, &body.output],
            Body::Mlp(body) => vec![&body.gain, &body.up, &body.down],
            Body::Moe(body) => vec![&body.gain, &body.router, &body.up, &body.down],
            Body::StateSpace(body) => vec![&body.gain, &body.input, &body.decay, &body.output],
            Body::Head(body) => vec![&body.gain, &body.output],
        }
    }

    /// The same, in the same order.
    pub(super) fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        match &mut self.body {
            Body::Embedding(body) => vec![&mut body.table, &mut body.position],
            Body::Attention(body) => vec![&mut body.gain, &mut body.query_key_value, &mut body.output],
            Body::Mlp(body) => vec![&mut body.gain, &mut body.up, &mut body.down],
            Body::Moe(body) => vec![&mut body.gain, &mut body.router, &mut body.up, &mut body.down],
            Body::StateSpace(body) => vec![&mut body.gain, &mut body.input, &mut body.decay, &mut body.output],
            Body::Head(body) => vec![&mut body.gain, &mut body.output],
        }
    }
}
