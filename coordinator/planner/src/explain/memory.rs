//! Where memory presses, and what recomputing costs and buys.

use crate::costs::Costs;
use crate::memory::peak_bytes;
use crate::replay::Replay;
use crate::shape::{Shape, Tables, programs_of};
use crate::simulate::Timeline;
use adaptis_plan::{Plan, Problem};
use serde::Serialize;

/// A device's memory over an iteration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceMemory {
    /// The device.
    pub device: String,
    /// Highest use.
    pub peak_bytes: u64,
    /// What it has.
    pub limit_bytes: u64,
    /// Of the peak, what it holds all iteration long: layers' state, buffers, the reserve.
    pub always_bytes: u64,
    /// How much higher the peak would be if nothing were recomputed.
    pub recompute_saves_bytes: u64,
    /// It runs no layer.
    pub is_empty: bool,
    /// It would not fit without recomputing, or has no room for the activations of one more microbatch in flight on any
    /// of its stages; or it is empty and has no room for any layer.
    pub is_binding: bool,
}

impl DeviceMemory {
    /// Left at the peak.
    pub fn free_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.peak_bytes)
    }
}

/// Each device's memory, and the iteration in the same order without recomputation, if there is any.
pub(super) fn pressure(problem: &Problem, plan: &Plan, timeline: &Timeline) -> (Vec<DeviceMemory>, Option<u64>) {
    let costs = Costs::new(problem);
    let shape = Shape::of(plan);
    let is_any = shape.recompute.contains(&true);
    let mut kept = shape.clone();
    kept.recompute.fill(false);
    let (tables, without) = (Tables::new(&costs, &shape), Tables::new(&costs, &kept));
    let programs = programs_of(plan);
    let of = |device: usize| {
        let peak = timeline.peak_bytes[device];
        let limit_bytes = tables.limit_bytes[device];
        let recompute_saves_bytes = match is_any {
            true => peak_bytes(&without, device, &programs[device]).saturating_sub(peak),
            false => 0,
        };
        let local = || tables.local[device].iter().map(|&stage| &tables.cost[stage as usize]);
        let is_needed = recompute_saves_bytes > limit_bytes.saturating_sub(peak);
        let is_empty = tables.local[device].is_empty();
        let one_more = match is_empty {
            true => (0..problem.layers.len()).map(|layer| costs.least_needed(problem, device, &[layer])).min(),
            false => local().map(|cost| cost.stash_bytes).filter(|&bytes| bytes > 0).min(),
        };
        DeviceMemory {
            device: problem.devices[device].name.clone(),
            peak_bytes: peak,
            limit_bytes,
            always_bytes: tables.base_bytes[device],
            recompute_saves_bytes,
            is_empty,
            is_binding: is_needed || one_more.is_some_and(|bytes| limit_bytes.saturating_sub(peak) < bytes),
        }
    };
    let devices = (0..problem.devices.len()).map(of).collect();
    let without_ns = is_any.then(|| Replay::default().run(&without, &programs)).flatten();
    (devices, without_ns.map(|end_ns| end_ns.saturating_add(without.tail_ns)))
}
