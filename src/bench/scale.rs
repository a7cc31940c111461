//! Cost against size: uniform and mixed clusters from 4 devices to 256, and what each took.

use super::measure::Row;
use super::problems::Named;
use adaptis_plan::{Cost, Device, Layer, Link, Links, Pair, Problem};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Devices, microbatches and layers.
const SIZES: [(usize, u32, usize); 6] =
    [(4, 8, 16), (8, 32, 64), (16, 64, 128), (32, 128, 256), (64, 256, 512), (256, 1024, 1024)];
/// The most devices of a size.
pub const DEVICES_MAX: u64 = 256;

/// A card: its name, memory, and how much longer than an H100 it takes for attention and for MLP.
struct Card {
    kind: &'static str,
    memory_bytes: u64,
    attention: f64,
    mlp: f64,
}

/// Ratios of dense half-precision peak and of memory bandwidth, from the datasheets, between which layers fall.
const CARDS: [Card; 4] = [
    Card { kind: "h100-80g", memory_bytes: 80 << 30, attention: 1.0, mlp: 1.0 },
    Card { kind: "a100-80g", memory_bytes: 80 << 30, attention: 1.9, mlp: 2.6 },
    Card { kind: "a100-40g", memory_bytes: 40 << 30, attention: 2.0, mlp: 2.6 },
    Card { kind: "l40s-48g", memory_bytes: 48 << 30, attention: 2.6, mlp: 2.3 },
];
/// Devices of a node, at most; a node's cards are alike.
const NODE: usize = 8;
const NANOSECONDS_PER_MILLISECOND: f64 = 1e6;

/// The problems of up to so many devices, by size.
pub fn problems(devices_max: u64) -> Vec<Named> {
    let within = SIZES.into_iter().filter(|&(devices, ..)| devices as u64 <= devices_max);
    let both = |size: (usize, u32, usize)| {
        [("uniform", 1), ("mixed", CARDS.len())].map(|(what, kinds)| {
            let (devices, microbatches, layers) = size;
            let name = format!("{what}_p{devices}_m{microbatches}_l{layers}");
            Named { name, problem: problem(size, &CARDS[..kinds]) }
        })
    };
    within.flat_map(both).collect()
}

/// A transformer with an embedding and a head over nodes of cards that take turns.
fn problem((devices, microbatches, layers): (usize, u32, usize), cards: &[Card]) -> Problem {
    let node = NODE.min(devices / CARDS.len());
    let device = |at: usize| {
        let card = &cards[at / node % cards.len()];
        Device {
            name: format!("gpu{at}"),
            kind: card.kind.to_owned(),
            memory_bytes: card.memory_bytes,
            slowdown: 1.0,
            reserved_bytes: 1 << 30,
            note: None,
        }
    };
    let names: Vec<String> = (0..devices).map(|at| device(at).name).collect();
    let within = |from: usize| {
        let others = (from / node * node..((from / node + 1) * node).min(devices)).filter(move |&to| to != from);
        others.map(move |to| (from, to))
    };
    let pair = |(from, to): (usize, usize)| Pair {
        from: names[from].clone(),
        to: names[to].clone(),
        latency_ns: 5_000,
        bytes_per_second: 2e11,
        note: None,
    };
    let links = Links {
        default: Link { latency_ns: 10_000, bytes_per_second: 4e10, note: () },
        pairs: (0..devices).flat_map(within).map(pair).collect(),
        note: None,
    };
    let costs = cards.iter().map(|card| (card.kind.to_owned(), (0..layers).map(|at| cost(at, layers, card)).collect()));
    let layer = |at: usize| layer(at, layers);
    let costs: BTreeMap<String, Vec<Cost>> = costs.collect();
    Problem::new(microbatches, (0..layers).map(layer).collect(), (0..devices).map(device).collect(), costs, links)
}

/// What a layer is: the first embeds, the last is the head, between them attention and MLP take turns.
#[derive(Clone, Copy)]
enum Part {
    Embedding,
    Attention,
    Mlp,
    Head,
}

fn part(at: usize, layers: usize) -> Part {
    match at {
        0 => Part::Embedding,
        _ if at + 1 == layers => Part::Head,
        _ if at % 2 == 1 => Part::Attention,
        _ => Part::Mlp,
    }
}

fn layer(at: usize, layers: usize) -> Layer {
    let (signature, state_bytes) = match part(at, layers) {
        Part::Embedding => ("embedding/128000x4096", 8_400_000_000),
        Part::Attention => ("attention/4096h32", 1_070_000_000),
        Part::Mlp => ("mlp/4096x16384", 2_150_000_000),
        Part::Head => ("head/4096x128000", 8_400_000_000),
    };
    Layer {
        name: format!("layer{at}"),
        signature: signature.to_owned(),
        parameter_bytes: state_bytes / 8,
        state_bytes,
        output_bytes: 8 << 20,
        moved_bytes: None,
        note: None,
    }
}

fn cost(at: usize, layers: usize, card: &Card) -> Cost {
    // F on an H100, in milliseconds; bytes held, and those of them until W.
    let (milliseconds, slower, activation_mib, gradient_mib, workspace_mib) = match part(at, layers) {
        Part::Embedding => (0.1, card.attention, 1, 1, 0),
        Part::Attention => (1.4, card.attention, 24, 12, 0),
        Part::Mlp => (2.6, card.mlp, 40, 24, 0),
        Part::Head => (3.1, card.mlp, 8, 8, 512),
    };
    let forward_ns = milliseconds * slower * NANOSECONDS_PER_MILLISECOND;
    Cost {
        forward_ns: forward_ns as u64,
        input_gradient_ns: (forward_ns * 1.05) as u64,
        weight_gradient_ns: (forward_ns * 0.85) as u64,
        activation_bytes: activation_mib << 20,
        weight_gradient_bytes: gradient_mib << 20,
        workspace_bytes: workspace_mib << 20,
        ..Cost::default()
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// One line per problem.
pub fn write(rows: &[Row], heading: &str) -> String {
    let mut out = format!("{heading}\n\n");
    let _ = writeln!(
        out,
        "{:<8}  {:>7}  {:>12}  {:>6}  {:>10}  {:>12}  {:>10}  {:>10}  {:>11}  {:>7}  {:>11}",
        "cluster",
        "devices",
        "microbatches",
        "layers",
        "operations",
        "first plan s",
        "plan/named",
        "plan/bound",
        "evaluations",
        "CPU s",
        "memory MiB"
    );
    for row in rows {
        let run = row.median();
        let _ = writeln!(
            out,
            "{:<8}  {:>7}  {:>12}  {:>6}  {:>10}  {:>12}  {:>10}  {:>10}  {:>11}  {:>7}  {:>11}",
            row.problem.split('_').next().unwrap_or_default(),
            row.devices,
            row.microbatches,
            row.layers,
            or_dash(run.map(|run| run.operations.to_string())),
            or_dash(run.map(|run| format!("{:.3}", run.first_plan_ns as f64 / 1e9))),
            or_dash(row.ratio().map(|ratio| format!("{ratio:.3}"))),
            or_dash(row.gap().map(|gap| format!("{:.3}", gap + 1.0))),
            or_dash(run.map(|run| run.evaluations.to_string())),
            or_dash(run.map(|run| format!("{:.1}", run.cpu_ns as f64 / 1e9))),
            or_dash(run.and_then(|run| run.memory_max_bytes).map(|bytes| (bytes >> 20).to_string())),
        );
        for wrong in row.refusal.iter().chain(&row.wrong) {
            let _ = writeln!(out, "{:8}  WRONG: {wrong}", "");
        }
    }
    let wrong: usize = rows.iter().map(|row| row.wrong.len()).sum();
    let _ = writeln!(out, "\nfirst plan: CPU time until there is one; named: the best named schedule that fits;");
    let _ = writeln!(out, "memory: the most that the process held while it searched; {wrong} findings");
    out
}
