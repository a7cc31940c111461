//! What travels when one plan follows another.

use crate::costs::round_half_up;
use adaptis_plan::{Plan, Problem};
use std::collections::BTreeMap;

/// In place of a device's index: one that the problem does not have.
pub(crate) const GONE: u32 = u32::MAX;

/// The layers that change device, and their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// How many layers.
    pub layers: u32,
    /// `moved_bytes` of all of them.
    pub bytes: u64,
    /// Those among the layers whose old device is gone: they move wherever they go, and come from a replica.
    pub unavoidable_layers: u32,
    /// By directed pair of device indices, ascending: `(from, to, bytes)`; without what comes from devices that are gone.
    pub per_pair: Vec<(usize, usize, u64)>,
}

/// What moves when a plan follows another, told by their devices' names; `to` is one of the problem's devices.
pub fn moves(problem: &Problem, from: &Plan, to: &Plan) -> Moves {
    let moved: Vec<u64> = problem.layers.iter().map(adaptis_plan::Layer::moved).collect();
    between(&moved, &homes(problem, from), &homes(problem, to))
}

/// The problem's device that holds each layer in a plan, [`GONE`] where it has none of that name.
pub(crate) fn homes(problem: &Problem, plan: &Plan) -> Vec<u32> {
    let index = |name: &String| problem.device_index(name).map_or(GONE, |index| index as u32);
    let here: Vec<u32> = plan.devices.iter().map(index).collect();
    plan.device_of_layers().into_iter().map(|device| here.get(device as usize).copied().unwrap_or(GONE)).collect()
}

fn between(moved_bytes: &[u64], from: &[u32], to: &[u32]) -> Moves {
    let mut moves = Moves::default();
    let mut pairs: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for ((&bytes, &from), &to) in moved_bytes.iter().zip(from).zip(to).filter(|((_, from), to)| from != to) {
        moves.layers += 1;
        moves.bytes = moves.bytes.saturating_add(bytes);
        if from == GONE {
            moves.unavoidable_layers += 1;
            continue;
        }
        let pair = pairs.entry((from as usize, to as usize)).or_default();
        *pair = pair.saturating_add(bytes);
    }
    moves.per_pair = pairs.into_iter().map(|((from, to), bytes)| (from, to, bytes)).collect();
    moves
}

/// Nanoseconds until all has arrived: directed pairs at the same time, each pair one layer after the other. What comes
/// from devices that are gone is not counted: it takes as long in every plan.
pub fn transfer_ns(problem: &Problem, moves: &Moves) -> u64 {
    let time = |&(from, to, bytes): &(usize, usize, u64)| {
        let link = problem.link(from, to);
        round_half_up(bytes as f64 * 1e9 / link.bytes_per_second).saturating_add(link.latency_ns)
    };
    moves.per_pair.iter().map(time).max().unwrap_or(0)
}
