//! How long a rank waits for its peers: as long as what they have to do may take, and then some.
//!
//! Everyday picture: a guest who is late on a snowy road is waited for longer than one who lives next door, and nobody
//! calls the police while the snow still explains it.
//!
//! 1. All of an iteration's instructions and transfers one behind the other take longer than any schedule of them, and
//!    all moves of a switch one behind the other longer than the moves. So no peer that works is taken for a dead one,
//!    however slow its device or link has become.
//! 2. Every rank reads the same faults at the same iterations, so every rank waits equally long.
//! 3. A host that is late is covered by the floor and by [`PLAN_ITERATIONS`] of what the plan predicts.

use crate::emulation::Fault;
use adaptis_executor_core::Migration;
use adaptis_plan::{Plan, Problem};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A peer is waited for at least as long as this many predicted iterations.
const PLAN_ITERATIONS: u64 = 5;
/// Noise makes single operations longer; in sum never twice as long.
const NOISE: f64 = 2.0;

/// What a rank waits for, and how slow everything is at present.
#[derive(Clone, Debug)]
pub struct Patience {
    truth: Arc<Problem>,
    floor: Duration,
    /// By device.
    throttled: Vec<f64>,
    /// By sender and receiver.
    slowed: BTreeMap<(usize, usize), f64>,
}

impl Patience {
    /// Nothing is slower than the truth says; `floor` is the least that a peer is waited for.
    pub fn new(truth: Arc<Problem>, floor: Duration) -> Patience {
        let throttled = vec![1.0; truth.devices.len()];
        Patience { truth, floor, throttled, slowed: BTreeMap::new() }
    }

    /// A fault holds from now on.
    pub fn suffer(&mut self, fault: &Fault) {
        match fault {
            Fault::Throttle { device, factor, .. } => {
                if let Some(device) = self.truth.device_index(device) {
                    self.throttled[device] = *factor;
                }
            }
            Fault::SlowLink { between, factor, .. } => {
                if let [Some(one), Some(other)] = [0, 1].map(|end| self.truth.device_index(&between[end])) {
                    self.slowed.insert((one, other), *factor);
                    self.slowed.insert((other, one), *factor);
                }
            }
        }
    }

    /// How long a peer is waited for while iterations run under `plan`.
    pub fn iteration(&self, plan: &Plan) -> Duration {
        let predicted_ns = plan.predicted.as_ref().map_or(0, |predicted| predicted.iteration_ns);
        let usual = Duration::from_nanos(predicted_ns.saturating_mul(PLAN_ITERATIONS));
        self.floor.max(usual).saturating_add(nanoseconds(NOISE * (self.work_ns(plan) + self.exchange_ns(plan))))
    }

    /// How long a peer is waited for while layers move, on top of what the iterations before and after take.
    pub fn switch(&self, migration: &Migration, next: &Plan) -> Duration {
        let of = |one: &adaptis_executor_core::Move| {
            self.transfer_ns(one.from.index(), one.to.index(), self.truth.layers[one.layer.index()].moved())
        };
        self.iteration(next).saturating_add(nanoseconds(migration.moves.iter().map(of).sum()))
    }

    /// All instructions of an iteration and the optimizer, each recomputing all it may.
    fn work_ns(&self, plan: &Plan) -> f64 {
        let of_stage = |stage: &adaptis_plan::Stage| {
            let device = stage.device as usize;
            let costs = &self.truth.costs_of(device)[stage.range()];
            let each = |cost: &adaptis_plan::Cost| {
                let parts = [cost.forward_ns, cost.forward_ns, cost.input_gradient_ns, cost.split_ns];
                parts.into_iter().chain([cost.weight_gradient_ns]).map(|ns| ns as f64).sum::<f64>()
            };
            let optimizer: f64 = stage.range().map(|layer| self.truth.optimizer_of(device, layer) as f64).sum();
            let slowdown = self.truth.devices[device].slowdown * self.throttled[device];
            let microbatches = f64::from(self.truth.microbatches);
            slowdown * (microbatches * costs.iter().map(each).sum::<f64>() + optimizer)
                + microbatches * 3.0 * (self.truth.stage_ns as f64 + 2.0 * self.truth.crossing_ns as f64)
        };
        plan.stages.iter().map(of_stage).sum::<f64>() + self.truth.boundary_ns as f64
    }

    /// All activations and gradients of an iteration.
    fn exchange_ns(&self, plan: &Plan) -> f64 {
        let between = |pair: &[adaptis_plan::Stage]| {
            let [one, next] = [pair[0].device as usize, pair[1].device as usize];
            let bytes = self.truth.layers[pair[1].range().start - 1].output_bytes;
            self.transfer_ns(one, next, bytes) + self.transfer_ns(next, one, bytes)
        };
        plan.stages.windows(2).map(between).sum::<f64>() * f64::from(self.truth.microbatches)
    }

    fn transfer_ns(&self, from: usize, to: usize, bytes: u64) -> f64 {
        if from == to {
            return 0.0;
        }
        let link = self.truth.link(from, to);
        let slowed = self.slowed.get(&(from, to)).copied().unwrap_or(1.0);
        link.latency_ns as f64 + bytes as f64 * 1e9 / link.bytes_per_second * slowed
    }
}

fn nanoseconds(ns: f64) -> Duration {
    Duration::from_nanos(ns as u64)
}
