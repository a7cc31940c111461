//! A whole model, trained for a while.

use crate::backend::cpu::{AdamW, Input, Layer, LayerType, Shape, Stash, Text, parameter::mix};

const SHAPE: Shape = Shape { width: 32, heads: 4, hidden: 64, experts: 2, state: 32, sequence: 32, vocabulary: 256 };
const MICROBATCHES: u32 = 8;
const SEED: u64 = 1;
/// Largest norm of the gradient over all layers.
const NORM_MAX: f64 = 1.0;

/// Sentences of common words in random order.
fn text() -> Text {
    const WORDS: [&str; 32] = [
        "the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "was", "on", "are", "as", "with", "they", "at",
        "one", "have", "this", "from", "by", "water", "some", "what", "there", "out", "other", "were", "time", "river",
        "people",
    ];
    let mut text = String::new();
    for i in 0..4000 {
        text += WORDS[(mix(i) % WORDS.len() as u64) as usize];
        text += if mix(i) % 97 < 12 { ".\n" } else { " " };
    }
    Text::from_bytes(text.into_bytes()).unwrap()
}

fn model(blocks: usize) -> Vec<Layer> {
    const PATTERN: [LayerType; 4] = [LayerType::Attention, LayerType::Mlp, LayerType::StateSpace, LayerType::Moe];
    let types =
        std::iter::once(LayerType::Embedding).chain(PATTERN.into_iter().cycle().take(blocks)).chain([LayerType::Head]);
    let layer = |(index, layer_type)| Layer::new(layer_type, &SHAPE, SEED, index).with_microbatches(MICROBATCHES);
    types.enumerate().map(layer).collect()
}

/// One iteration; returns the mean loss.
fn iterate(layers: &mut [Layer], text: &Text, step: u64) -> f32 {
    let mut losses = 0.0;
    for microbatch in 0..MICROBATCHES {
        let (tokens, targets) = text.batch(SEED, step, microbatch, SHAPE.sequence);
        let mut activation = Vec::new();
        let mut stashes: Vec<Stash> = Vec::new();
        for layer in layers.iter() {
            let input = match layer.layer_type() {
                LayerType::Embedding => Input::Tokens(&tokens),
                LayerType::Head => Input::ActivationWithTargets(&activation, &targets),
                _ => Input::Activation(&activation),
            };
            let (output, stash, loss) = layer.forward(&input);
            losses += loss.unwrap_or(0.0);
            activation = output;
            stashes.push(stash);
        }
        let mut gradient = Vec::new();
        for (layer, mut stash) in layers.iter_mut().zip(stashes).rev() {
            gradient = layer.input_gradient(&mut stash, &gradient);
            layer.weight_gradient(stash);
        }
    }
    let norm = layers.iter().map(Layer::gradient_square_sum).sum::<f64>().sqrt();
    let scale = (NORM_MAX / norm).min(1.0) as f32;
    for layer in layers {
        layer.apply(&AdamW::default(), step, scale);
        layer.clear_gradients();
    }
    losses / MICROBATCHES as f32
}

#[test]
fn the_loss_of_twenty_layers_falls() {
    let text = text();
    let mut layers = model(18);
    let losses: Vec<f32> = (0..60).map(|step| iterate(&mut layers, &text, step)).collect();
    assert!((losses[0] - 256.0_f32.ln()).abs() < 0.2, "a fresh model knows nothing: {}", losses[0]);
    let last = losses[55..].iter().sum::<f32>() / 5.0;
    assert!(last < 2.8, "the loss fell from {} to {last}", losses[0]);
}

#[test]
fn two_runs_agree_to_the_bit() {
    let text = text();
    let run = || {
        let mut layers = model(4);
        let losses: Vec<u32> = (0..4).map(|step| iterate(&mut layers, &text, step).to_bits()).collect();
        (losses, layers.iter().map(Layer::digest).collect::<Vec<_>>())
    };
    assert_eq!(run(), run());
}
