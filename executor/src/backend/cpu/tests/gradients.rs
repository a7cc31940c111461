//! Gradients against central differences.

use super::*;

/// Half the distance of a central difference.
const OFFSET: f32 = 5e-3;
/// Largest difference from the numerical gradient, relative to the largest of its tensor.
const TOLERANCE: f64 = 4e-3;
const SEEDS: std::ops::Range<u64> = 0..3;

/// What the gradients are of: a head's loss, or the output's product with the output gradient.
fn objective(layer: &Layer, case: &Case) -> f64 {
    let (output, _, loss) = forward(layer, case);
    match loss {
        Some(loss) => f64::from(loss),
        None => output.iter().zip(&case.output_gradient).map(|(o, g)| f64::from(*o) * f64::from(*g)).sum(),
    }
}

fn assert_close(what: &str, gradient: &[f32], numerical: &[f64]) {
    assert_eq!(gradient.len(), numerical.len(), "{what}");
    let largest = numerical.iter().fold(0.0, |largest: f64, n| largest.max(n.abs()));
    assert!(largest > 1e-3, "{what} has a gradient worth checking, not {largest}");
    for (i, (gradient, numerical)) in gradient.iter().zip(numerical).enumerate() {
        let difference = (f64::from(*gradient) - numerical).abs();
        assert!(difference <= TOLERANCE * largest, "{what}[{i}]: {gradient}, by differences {numerical} of {largest}");
    }
}

#[test]
fn input_gradients_are_those_of_central_differences() {
    for layer_type in LayerType::ALL.into_iter().filter(|layer_type| *layer_type != LayerType::Embedding) {
        for seed in SEEDS {
            let layer = stirred(layer_type, seed);
            let mut case = Case::new(layer_type, seed);
            let (_, mut stash, _) = forward(&layer, &case);
            let gradient = layer.input_gradient(&mut stash, &case.output_gradient);
            let numerical: Vec<f64> = (0..case.activation.len())
                .map(|i| {
                    let at = case.activation[i];
                    let mut with = |value: f32| {
                        case.activation[i] = value;
                        objective(&layer, &case)
                    };
                    let difference = with(at + OFFSET) - with(at - OFFSET);
                    case.activation[i] = at;
                    difference / f64::from((at + OFFSET) - (at - OFFSET))
                })
                .collect();
            assert_close(&format!("{layer_type} seed {seed} input"), &gradient, &numerical);
        }
    }
}

#[test]
fn weight_gradients_are_those_of_central_differences() {
    for layer_type in LayerType::ALL {
        for seed in SEEDS {
            let mut layer = stirred(layer_type, seed);
            let case = Case::new(layer_type, seed);
            forward_and_backward(&mut layer, &case);
            for index in 0..layer.parameters().len() {
                let (name, count) = (layer.parameters()[index].name, layer.parameters()[index].value.len());
                let numerical: Vec<f64> = (0..count)
                    .map(|i| {
                        let at = layer.parameters()[index].value[i];
                        let mut with = |value: f32| {
                            layer.parameters_mut()[index].value[i] = value;
                            objective(&layer, &case)
                        };
                        let difference = with(at + OFFSET) - with(at - OFFSET);
                        with(at);
                        difference / f64::from((at + OFFSET) - (at - OFFSET))
                    })
                    .collect();
                let gradient = layer.parameters()[index].gradient.clone();
                assert_close(&format!("{layer_type} seed {seed} {name}"), &gradient, &numerical);
            }
        }
    }
}

#[test]
fn a_token_sees_none_after_it() {
    for layer_type in [LayerType::Attention, LayerType::Mlp, LayerType::Moe, LayerType::StateSpace] {
        let layer = stirred(layer_type, 4);
        let mut case = Case::new(layer_type, 4);
        let (before, ..) = forward(&layer, &case);
        let last = (SHAPE.sequence - 1) * SHAPE.width;
        case.activation[last..].iter_mut().for_each(|x| *x += 1.0);
        let (after, ..) = forward(&layer, &case);
        assert_eq!(before[..last], after[..last], "{layer_type}");
        assert_ne!(before[last..], after[last..], "{layer_type}");
    }
}

#[test]
fn a_head_gives_gradients_of_the_mean_over_microbatches() {
    let case = Case::new(LayerType::Head, 5);
    let gradient = |microbatches| {
        let layer = stirred(LayerType::Head, 5).with_microbatches(microbatches);
        let (_, mut stash, loss) = forward(&layer, &case);
        (layer.input_gradient(&mut stash, &[]), loss)
    };
    let ((one, one_loss), (of_four, loss_of_four)) = (gradient(1), gradient(4));
    assert_eq!(one_loss, loss_of_four, "the loss itself is the microbatch's own");
    for (whole, share) in one.iter().zip(of_four) {
        assert!((whole / 4.0 - share).abs() <= 1e-6);
    }
}

#[test]
fn a_fresh_head_knows_nothing() {
    let layer = Layer::new(LayerType::Head, &SHAPE, 6, 0);
    let (_, _, loss) = forward(&layer, &Case::new(LayerType::Head, 6));
    let uniform = (SHAPE.vocabulary as f32).ln();
    assert!((loss.unwrap() - uniform).abs() < 0.1, "{loss:?} is near {uniform}");
}
