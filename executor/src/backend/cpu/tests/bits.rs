//! Equal arguments, equal bits; and state that moves whole.

use super::*;
use crate::backend::cpu::{AdamW, StateError};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn gradients(layer: &Layer) -> Vec<u32> {
    layer.parameters().iter().flat_map(|parameter| bits(&parameter.gradient)).collect()
}

/// A layer after some steps, so that moments and step differ from a fresh one's.
fn trained(layer_type: LayerType, seed: u64) -> Layer {
    let mut layer = stirred(layer_type, seed);
    for step in 0..3 {
        layer.clear_gradients();
        forward_and_backward(&mut layer, &Case::new(layer_type, step));
        layer.apply(&AdamW::default(), step, 0.5);
    }
    layer
}

#[test]
fn a_fresh_layer_is_a_function_of_seed_and_index() {
    for layer_type in LayerType::ALL {
        let digest = |seed, index| Layer::new(layer_type, &SHAPE, seed, index).digest();
        assert_eq!(digest(1, 2), digest(1, 2), "{layer_type}");
        assert_ne!(digest(1, 2), digest(1, 3), "{layer_type}");
        assert_ne!(digest(1, 2), digest(2, 2), "{layer_type}");
    }
}

#[test]
fn recomputing_changes_no_bit() {
    for layer_type in LayerType::ALL {
        let case = Case::new(layer_type, 1);
        let mut kept = stirred(layer_type, 1);
        let mut recomputed = stirred(layer_type, 1);
        let (output, input_gradient) = forward_and_backward(&mut kept, &case);
        drop(forward(&recomputed, &case));
        // Another microbatch passes through before the stash is made again.
        drop(forward(&recomputed, &Case::new(layer_type, 2)));
        let (output_again, input_gradient_again) = forward_and_backward(&mut recomputed, &case);
        assert_eq!(bits(&output), bits(&output_again), "{layer_type}");
        assert_eq!(bits(&input_gradient), bits(&input_gradient_again), "{layer_type}");
        assert_eq!(gradients(&kept), gradients(&recomputed), "{layer_type}");
    }
}

#[test]
fn delaying_weight_gradients_changes_no_bit() {
    for layer_type in LayerType::ALL {
        let cases: Vec<Case> = (0..4).map(|seed| Case::new(layer_type, seed)).collect();
        let mut fused = stirred(layer_type, 1);
        for case in &cases {
            forward_and_backward(&mut fused, case);
        }
        let mut delayed = stirred(layer_type, 1);
        let stashes: Vec<Stash> = cases
            .iter()
            .map(|case| {
                let (_, mut stash, _) = forward(&delayed, case);
                delayed.input_gradient(&mut stash, &case.output_gradient);
                stash
            })
            .collect();
        for stash in stashes {
            delayed.weight_gradient(stash);
        }
        assert_eq!(gradients(&fused), gradients(&delayed), "{layer_type}");
        assert_eq!(fused.gradient_square_sum().to_bits(), delayed.gradient_square_sum().to_bits(), "{layer_type}");
        assert!(fused.gradient_square_sum() > 0.0, "{layer_type}");
        fused.clear_gradients();
        assert_eq!(fused.gradient_square_sum(), 0.0, "{layer_type}");
    }
}

#[test]
fn the_input_gradient_frees_what_only_it_needs() {
    for layer_type in LayerType::ALL {
        let layer = Layer::new(layer_type, &SHAPE, 1, 1);
        let case = Case::new(layer_type, 1);
        let (_, mut stash, _) = forward(&layer, &case);
        let after_forward = stash.bytes();
        layer.input_gradient(&mut stash, &case.output_gradient);
        assert_eq!((after_forward, stash.bytes()), layer.stash_bytes(), "{layer_type}");
        assert!(stash.bytes() > 0, "{layer_type}");
        assert!(layer.weight_gradient_bytes() <= layer.activation_bytes(), "{layer_type}");
    }
}

#[test]
fn a_moved_layer_is_equal_and_goes_on_equally() {
    for layer_type in LayerType::ALL {
        let mut original = trained(layer_type, 1);
        let mut moved = Layer::new(layer_type, &SHAPE, 99, 7);
        forward_and_backward(&mut moved, &Case::new(layer_type, 9));
        moved.import_state(&original.export_state()).unwrap();
        assert_eq!(moved.digest(), original.digest(), "{layer_type}");
        assert_eq!((moved.step(), moved.gradient_square_sum()), (3, 0.0), "{layer_type}");
        for layer in [&mut original, &mut moved] {
            layer.clear_gradients();
            forward_and_backward(layer, &Case::new(layer_type, 4));
            layer.apply(&AdamW::default(), 3, 1.0);
        }
        assert_eq!(moved.digest(), original.digest(), "{layer_type}");
    }
}

#[test]
fn the_digest_covers_parameters_moments_and_step() {
    for layer_type in LayerType::ALL {
        let original = trained(layer_type, 1).digest();
        let differs = |change: &dyn Fn(&mut Layer)| {
            let mut layer = trained(layer_type, 1);
            change(&mut layer);
            layer.digest() != original
        };
        assert!(!differs(&|layer| layer.clear_gradients()), "{layer_type}");
        assert!(differs(&|layer| layer.step += 1), "{layer_type}");
        for index in 0..trained(layer_type, 1).parameters().len() {
            assert!(differs(&|layer| layer.parameters_mut()[index].value[0] += 1.0), "{layer_type}");
            assert!(differs(&|layer| layer.parameters_mut()[index].first_moment[0] += 1.0), "{layer_type}");
            assert!(differs(&|layer| layer.parameters_mut()[index].second_moment[0] += 1.0), "{layer_type}");
        }
    }
}

#[test]
fn what_is_no_such_state_is_refused_and_changes_nothing() {
    let good = trained(LayerType::Mlp, 1).export_state();
    let other = trained(LayerType::Attention, 1).export_state();
    let wider = Layer::new(LayerType::Mlp, &Shape { hidden: 13, ..SHAPE }, 1, 1).export_state();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let longer = [&good[..], &[0; 3]].concat();
    let cases = [
        (changed(0, b'x'), StateError::Format { found: *b"xDLS" }),
        (changed(4, 2), StateError::Version { found: 2, expected: 1 }),
        (good[..good.len() - 1].to_vec(), StateError::Truncated { needed: 384, available: 383 }),
        (good[..3].to_vec(), StateError::Truncated { needed: 4, available: 3 }),
        (changed(19, 255), StateError::Truncated { needed: 0xff00_0004, available: good.len() - 20 }),
        (longer, StateError::Trailing { bytes: 3 }),
        (other, StateError::Name { found: "query_key_value".into(), expected: "up" }),
        (wider, StateError::Count { name: "up", found: 104, expected: 96 }),
    ];
    let mut layer = trained(LayerType::Mlp, 2);
    let before = layer.digest();
    for (bytes, expected) in cases {
        assert_eq!(layer.import_state(&bytes), Err(expected));
        assert_eq!(layer.digest(), before);
    }
}

#[test]
#[should_panic(expected = "follows the input gradient")]
fn a_weight_gradient_before_the_input_gradient_panics() {
    let mut layer = stirred(LayerType::Mlp, 1);
    let (_, stash, _) = forward(&layer, &Case::new(LayerType::Mlp, 1));
    layer.weight_gradient(stash);
}

#[test]
#[should_panic(expected = "follows a forward, once")]
fn a_second_input_gradient_panics() {
    let layer = stirred(LayerType::Mlp, 1);
    let case = Case::new(LayerType::Mlp, 1);
    let (_, mut stash, _) = forward(&layer, &case);
    layer.input_gradient(&mut stash, &case.output_gradient);
    layer.input_gradient(&mut stash, &case.output_gradient);
}

#[test]
fn a_gradient_of_another_size_panics() {
    for layer_type in LayerType::ALL {
        let layer = stirred(layer_type, 1);
        let case = Case::new(layer_type, 1);
        for tokens in [SHAPE.sequence - 1, SHAPE.sequence + 1] {
            let (_, mut stash, _) = forward(&layer, &case);
            let gradient = vec![1.0; tokens * SHAPE.width];
            let outcome = catch_unwind(AssertUnwindSafe(|| layer.input_gradient(&mut stash, &gradient)));
            assert!(outcome.is_err(), "{layer_type}");
        }
    }
}
