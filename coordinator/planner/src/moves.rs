//! What travels when one plan follows another.

use crate::costs::{Costs, round_half_up};
use adaptis_plan::{Plan, Problem};
use std::collections::BTreeMap;

/// The layers that change device, and their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// How many layers.
    pub layers: u32,
    /// `moved_bytes` of all of them.
    pub bytes: u64,
    /// By directed pair of device indices, ascending: `(from, to, bytes)`.
    pub per_pair: Vec<(usize, usize, u64)>,
}

/// What moves between two plans of one problem's layers and devices.
pub fn moves(problem: &Problem, from: &Plan, to: &Plan) -> Moves {
    let moved: Vec<u64> = problem.layers.iter().map(adaptis_plan::Layer::moved).collect();
    between(&moved, &from.device_of_layers(), &to.device_of_layers())
}

pub(crate) fn between(moved_bytes: &[u64], from: &[u32], to: &[u32]) -> Moves {
    let mut moves = Moves::default();
    let mut pairs: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for ((&bytes, &from), &to) in moved_bytes.iter().zip(from).zip(to) {
        if from != to {
            moves.layers += 1;
            moves.bytes = moves.bytes.saturating_add(bytes);
            let pair = pairs.entry((from as usize, to as usize)).or_default();
            *pair = pair.saturating_add(bytes);
        }
    }
    moves.per_pair = pairs.into_iter().map(|((from, to), bytes)| (from, to, bytes)).collect();
    moves
}

/// Nanoseconds until all has arrived: directed pairs at the same time, each pair one layer after the other.
pub fn transfer_ns(problem: &Problem, moves: &Moves) -> u64 {
    let time = |&(from, to, bytes): &(usize, usize, u64)| {
        let link = problem.link(from, to);
        round_half_up(bytes as f64 * 1e9 / link.bytes_per_second).saturating_add(link.latency_ns)
    };
    moves.per_pair.iter().map(time).max().unwrap_or(0)
}

pub(crate) fn longest_ns(costs: &Costs, moves: &Moves) -> u64 {
    let time = |&(from, to, bytes): &(usize, usize, u64)| {
        let (transfer_ns, latency_ns) = costs.transfer(from, to, bytes);
        transfer_ns.saturating_add(latency_ns)
    };
    moves.per_pair.iter().map(time).max().unwrap_or(0)
}
