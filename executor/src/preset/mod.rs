//! Emulated clusters: a model preset on a list of cards, as an `adaptis.problem/1` of what everything would cost.
//!
//! Times follow a roofline: `matrix flops / (rate x share) + attention flops / (rate x share) + traffic / memory rate`,
//! with the rates of [`card`] and the work of [`model`]. The result is the *truth* of a demo: the emulated devices are
//! paced to it, the coordinator never sees it.

pub mod card;
pub mod cluster;
pub mod model;

use adaptis_plan::{Cost, Device, Layer, Problem, ReceiveBuffers};
use card::{Card, MEMORY_SHARE};
use cluster::Cluster;
use model::PresetLayer;
use std::collections::BTreeMap;

/// Memory that a process holds beside its layers: CUDA context, NCCL buffers, fragmentation.
const RESERVED_BYTES: u64 = 2 << 30;
/// Gradient norm and vote, before scaling.
const BOUNDARY_NS: u64 = 2_000_000;

/// What a preset costs on a cluster, in the cluster's own time.
pub fn problem(layers: &[PresetLayer], cluster: &Cluster, microbatches: u32) -> Problem {
    let mut costs = BTreeMap::new();
    let mut optimizer_ns = BTreeMap::new();
    for machine in &cluster.machines {
        costs
            .entry(machine.card.kind.clone())
            .or_insert_with(|| layers.iter().map(|layer| cost(layer, &machine.card)).collect());
        optimizer_ns
            .entry(machine.card.kind.clone())
            .or_insert_with(|| layers.iter().map(|layer| optimizer(layer, &machine.card)).collect());
    }
    Problem {
        format: adaptis_plan::problem::FORMAT.to_owned(),
        note: None,
        microbatches,
        layers: layers
            .iter()
            .map(|layer| Layer {
                name: layer.name.clone(),
                signature: layer.signature.clone(),
                parameter_bytes: layer.parameter_bytes(),
                state_bytes: layer.state_bytes(),
                output_bytes: layer.output_bytes,
                moved_bytes: Some(layer.moved_bytes()),
                note: None,
            })
            .collect(),
        devices: cluster
            .machines
            .iter()
            .map(|machine| Device {
                name: machine.name.clone(),
                kind: machine.card.kind.clone(),
                memory_bytes: machine.card.memory_bytes,
                slowdown: machine.slowdown,
                reserved_bytes: RESERVED_BYTES,
                note: None,
            })
            .collect(),
        costs,
        links: cluster.links(),
        optimizer_ns,
        receive_buffers: ReceiveBuffers::None,
        boundary_ns: BOUNDARY_NS,
        stage_ns: 0,
        crossing_ns: 0,
        hosts: Vec::new(),
        constraints: Default::default(),
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

fn cost(layer: &PresetLayer, card: &Card) -> Cost {
    let matrix = layer.matrix_flops / (card.flops_per_second * card.matrix_share * layer.product_efficiency);
    let scores = layer.attention_flops / (card.flops_per_second * card.attention_share);
    let traffic = layer.traffic_bytes / (card.memory_bytes_per_second * MEMORY_SHARE);
    Cost {
        forward_ns: nanoseconds(matrix + scores + traffic),
        input_gradient_ns: if layer.first { 0 } else { nanoseconds(matrix + 2.5 * scores + 2.0 * traffic) },
        weight_gradient_ns: nanoseconds(matrix + 0.5 * traffic),
        activation_bytes: layer.activation_bytes,
        weight_gradient_bytes: layer.weight_gradient_bytes,
        workspace_bytes: layer.workspace_bytes,
        split_ns: 0,
        note: None,
    }
}

/// Adam streams its state: read and write of it all.
fn optimizer(layer: &PresetLayer, card: &Card) -> u64 {
    nanoseconds(2.0 * layer.state_bytes() as f64 / (card.memory_bytes_per_second * MEMORY_SHARE))
}

/// The same problem with time running `factor` times as fast or slow: times are multiplied, rates divided.
pub fn scale_time(problem: &Problem, factor: f64) -> Problem {
    let scaled = |ns: u64| (ns as f64 * factor).round() as u64;
    let mut problem = problem.clone();
    for cost in problem.costs.values_mut().flatten() {
        cost.forward_ns = scaled(cost.forward_ns);
        cost.input_gradient_ns = scaled(cost.input_gradient_ns);
        cost.weight_gradient_ns = scaled(cost.weight_gradient_ns);
        cost.split_ns = scaled(cost.split_ns);
    }
    for ns in problem.optimizer_ns.values_mut().flatten() {
        *ns = scaled(*ns);
    }
    problem.boundary_ns = scaled(problem.boundary_ns);
    problem.stage_ns = scaled(problem.stage_ns);
    problem.crossing_ns = scaled(problem.crossing_ns);
    problem.links.default.latency_ns = scaled(problem.links.default.latency_ns);
    problem.links.default.bytes_per_second /= factor;
    for pair in &mut problem.links.pairs {
        pair.latency_ns = scaled(pair.latency_ns);
        pair.bytes_per_second /= factor;
    }
    problem
}
