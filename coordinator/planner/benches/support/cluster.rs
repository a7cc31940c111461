//! Equal devices with ample memory, nearly equal layers.

use adaptis_plan::{Cost, Device, Layer, Links, Problem};
use std::collections::BTreeMap;

pub fn problem(devices: usize, layers: usize, microbatches: u32) -> Problem {
    let cost = |at: usize| Cost {
        forward_ns: 1_000_000 + 50_000 * (at as u64 % 3),
        input_gradient_ns: 1_000_000,
        weight_gradient_ns: 800_000,
        activation_bytes: 1 << 20,
        weight_gradient_bytes: 1 << 19,
        ..Cost::default()
    };
    let layer = |at: usize| Layer {
        name: format!("layer{at}"),
        signature: "block".to_owned(),
        parameter_bytes: 0,
        state_bytes: 1 << 20,
        output_bytes: 1 << 16,
        moved_bytes: None,
        note: None,
    };
    let device = |at: usize| Device {
        name: format!("gpu{at}"),
        kind: "k".to_owned(),
        memory_bytes: 1 << 40,
        slowdown: 1.0,
        reserved_bytes: 0,
        note: None,
    };
    Problem::new(
        microbatches,
        (0..layers).map(layer).collect(),
        (0..devices).map(device).collect(),
        BTreeMap::from([("k".to_owned(), (0..layers).map(cost).collect())]),
        Links::all(10_000, 1e10),
    )
}
