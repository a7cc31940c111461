//! What a stage costs on a device: the one source of DESIGN section 3.1's cost semantics.
//!
//! Everything that needs a time or a size of a stage asks here, so that simulator, schedules, bounds and search can't
//! disagree. Sums over a range of layers come from prefix sums per kind of device.
//!
//! 1. A scaled time is rounded once per instruction, half up, after the sum over the stage's layers and before
//!    `stage_ns`.
//! 2. What crosses to another device adds `crossing_ns` to the instructions at both ends: a stage's cost is without it, since
//!    it depends on the neighbours.
//! 3. No arithmetic wraps: sums are 128 bits wide, results saturate at `u64::MAX`.

use crate::crowd::Crowd;
use crate::program;
use adaptis_plan::{Problem, ReceiveBuffers};
use std::ops::Range;
use std::sync::Arc;

/// A number to the nearest whole, half up; saturates.
pub(crate) fn round_half_up(value: f64) -> u64 {
    let floor = value.floor();
    (if value - floor >= 0.5 { floor + 1.0 } else { floor }) as u64
}

fn narrow(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn scaled(sum: u128, slowdown: f64) -> u64 {
    if slowdown == 1.0 { narrow(sum) } else { round_half_up(narrow(sum) as f64 * slowdown) }
}

impl StageCost {
    /// F, I and B take so much more.
    pub(crate) fn add_crossings(&mut self, ns: u64) {
        for kind in [program::F, program::I, program::B] {
            let own = &mut self.ns[kind as usize];
            *own = own.saturating_add(ns);
        }
    }
}

/// Times and sizes of one stage, per microbatch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StageCost {
    /// F, I, W and B in nanoseconds, in [`crate::shape::Tables`] with what crosses, indexed by `program::{F, I, W, B}`.
    pub ns: [u64; 4],
    /// Held from the start of F.
    pub stash_bytes: u64,
    /// Highest of the walk of I or B above `stash_bytes`.
    pub rise_bytes: u64,
    /// Held from the end of I to the end of W.
    pub gradient_bytes: u64,
    /// Counts during every instruction.
    pub workspace_bytes: u64,
    /// Of its layers, always.
    pub state_bytes: u64,
    /// Of its layers, before the slowdown.
    pub optimizer_ns: u128,
}

/// A link between two devices.
#[derive(Clone, Copy, Debug)]
struct Wire {
    latency_ns: u64,
    bytes_per_second: f64,
}

#[derive(Clone, Debug)]
struct Kind {
    /// Prefix sums over the layers.
    forward: Vec<u128>,
    input_gradient: Vec<u128>,
    split: Vec<u128>,
    weight_gradient: Vec<u128>,
    activation: Vec<u128>,
    gradient: Vec<u128>,
    optimizer: Vec<u128>,
    /// Some layer needs a workspace.
    has_workspace: bool,
    /// Per layer.
    layer: Vec<LayerCost>,
}

/// What the memory walk needs of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerCost {
    /// F, before the slowdown.
    pub forward_ns: u64,
    /// I without `split_ns`, before the slowdown.
    pub input_gradient_ns: u64,
    /// W, before the slowdown.
    pub weight_gradient_ns: u64,
    /// Held from F on.
    pub activation_bytes: u64,
    /// The part of it held from the end of I to the end of W.
    pub gradient_bytes: u64,
    workspace_bytes: u64,
}

/// The works that a layer adds to the instructions of its stage, each in nanoseconds of its device, unrounded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Works {
    pub forward_ns: f64,
    /// Without `split_ns`.
    pub input_gradient_ns: f64,
    pub split_ns: f64,
    pub weight_gradient_ns: f64,
    /// F again, in I or B.
    pub again_ns: f64,
}

/// A problem's costs, indexed for speed.
#[derive(Clone, Debug)]
pub(crate) struct Costs {
    pub(crate) microbatches: usize,
    pub(crate) layers: usize,
    pub(crate) devices: usize,
    /// Per layer.
    pub(crate) output_bytes: Vec<u64>,
    pub(crate) moved_bytes: Vec<u64>,
    /// Per device.
    pub(crate) memory_bytes: Vec<u64>,
    pub(crate) reserved_bytes: Vec<u64>,
    pub(crate) slowdown: Vec<f64>,
    pub(crate) kind_of: Vec<usize>,
    pub(crate) boundary_ns: u64,
    pub(crate) stage_ns: u64,
    crossing_ns: u64,
    receive_buffers: ReceiveBuffers,
    state: Vec<u128>,
    kinds: Vec<Kind>,
    wires: Vec<Wire>,
    /// Where devices share cores.
    pub(crate) crowd: Option<Arc<Crowd>>,
}

fn prefix(values: impl Iterator<Item = u64>) -> Vec<u128> {
    let mut sum = 0;
    std::iter::once(0)
        .chain(values.map(|value| {
            sum += u128::from(value);
            sum
        }))
        .collect()
}

fn over(prefix: &[u128], range: &Range<usize>) -> u128 {
    prefix[range.end] - prefix[range.start]
}

impl Costs {
    /// Indexes a checked problem.
    pub(crate) fn new(problem: &Problem) -> Self {
        let names: Vec<&String> = problem.costs.keys().collect();
        let kind_of = |kind: &String| names.binary_search(&kind).expect("a checked problem has costs for every kind");
        let kinds = problem.costs.iter().map(|(name, costs)| Kind {
            forward: prefix(costs.iter().map(|cost| cost.forward_ns)),
            input_gradient: prefix(costs.iter().map(|cost| cost.input_gradient_ns)),
            split: prefix(costs.iter().map(|cost| cost.split_ns)),
            weight_gradient: prefix(costs.iter().map(|cost| cost.weight_gradient_ns)),
            activation: prefix(costs.iter().map(|cost| cost.activation_bytes)),
            gradient: prefix(costs.iter().map(|cost| cost.weight_gradient_bytes)),
            optimizer: match problem.optimizer_ns.get(name) {
                Some(of) => prefix(of.iter().copied()),
                None => prefix(costs.iter().map(|_| 0)),
            },
            has_workspace: costs.iter().any(|cost| cost.workspace_bytes > 0),
            layer: costs
                .iter()
                .map(|cost| LayerCost {
                    forward_ns: cost.forward_ns,
                    input_gradient_ns: cost.input_gradient_ns,
                    weight_gradient_ns: cost.weight_gradient_ns,
                    activation_bytes: cost.activation_bytes,
                    gradient_bytes: cost.weight_gradient_bytes,
                    workspace_bytes: cost.workspace_bytes,
                })
                .collect(),
        });
        let devices = problem.devices.len();
        let default = problem.links.default;
        let whole = Wire { latency_ns: default.latency_ns, bytes_per_second: default.bytes_per_second };
        let mut wires = vec![whole; devices * devices];
        // The first listed pair counts, as in `Problem::link`.
        for pair in problem.links.pairs.iter().rev() {
            if let (Some(from), Some(to)) = (problem.device_index(&pair.from), problem.device_index(&pair.to)) {
                wires[from * devices + to] =
                    Wire { latency_ns: pair.latency_ns, bytes_per_second: pair.bytes_per_second };
            }
        }
        Self {
            microbatches: problem.microbatches as usize,
            layers: problem.layers.len(),
            devices,
            output_bytes: problem.layers.iter().map(|layer| layer.output_bytes).collect(),
            moved_bytes: problem.layers.iter().map(adaptis_plan::Layer::moved).collect(),
            memory_bytes: problem.devices.iter().map(|device| device.memory_bytes).collect(),
            reserved_bytes: problem.devices.iter().map(|device| device.reserved_bytes).collect(),
            slowdown: problem.devices.iter().map(|device| device.slowdown).collect(),
            kind_of: problem.devices.iter().map(|device| kind_of(&device.kind)).collect(),
            boundary_ns: problem.boundary_ns,
            stage_ns: problem.stage_ns,
            crossing_ns: problem.crossing_ns,
            receive_buffers: problem.receive_buffers,
            state: prefix(problem.layers.iter().map(|layer| layer.state_bytes)),
            kinds: kinds.collect(),
            wires,
            crowd: Crowd::of(problem),
        }
    }

    /// A layer on a device, before the slowdown.
    pub(crate) fn layer(&self, device: usize, layer: usize) -> &LayerCost {
        &self.kinds[self.kind_of[device]].layer[layer]
    }

    /// Bytes that a layer holds from F on if it is recomputed: its input.
    pub(crate) fn input_bytes(&self, layer: usize) -> u64 {
        if layer == 0 { 0 } else { self.output_bytes[layer - 1] }
    }

    /// Bytes that a layer holds at least on a device when one microbatch's F has run.
    pub(crate) fn least_held(&self, problem: &Problem, device: usize, layer: usize) -> u64 {
        let stash = self.layer(device, layer).activation_bytes.min(self.input_bytes(layer));
        problem.layers[layer].state_bytes.saturating_add(stash)
    }

    /// Bytes that layers take at least of a device that runs them: what they hold when the last of them has run its F, or
    /// what one of them needs in its I.
    pub(crate) fn least_needed(&self, problem: &Problem, device: usize, layers: &[usize]) -> u64 {
        let held = layers.iter().map(|&layer| self.least_held(problem, device, layer)).fold(0, u64::saturating_add);
        let state = layers.iter().map(|&layer| problem.layers[layer].state_bytes).fold(0, u64::saturating_add);
        let most = layers.iter().map(|&layer| self.layer(device, layer).activation_bytes).max().unwrap_or(0);
        held.max(state.saturating_add(most))
    }

    /// A stage on a device; `recompute` has an entry for every layer of the model.
    pub(crate) fn stage(&self, device: usize, range: Range<usize>, recompute: &[bool]) -> StageCost {
        let kind = &self.kinds[self.kind_of[device]];
        if !recompute[range.clone()].contains(&true) {
            return self.plain_stage(device, range);
        }
        let again =
            range.clone().filter(|&layer| recompute[layer]).map(|layer| u128::from(kind.layer[layer].forward_ns)).sum();
        let held = self.walk(kind, range.clone(), recompute);
        self.stage_of(device, range, again, held)
    }

    /// A stage that recomputes nothing: takes as long for many layers as for few, where none needs a workspace.
    pub(crate) fn plain_stage(&self, device: usize, range: Range<usize>) -> StageCost {
        // Nothing rises: what is at work holds what it held, what is done holds no more.
        let held = (narrow(over(&self.kinds[self.kind_of[device]].activation, &range)), 0);
        self.stage_of(device, range, 0, held)
    }

    fn stage_of(
        &self,
        device: usize,
        range: Range<usize>,
        again: u128,
        (stash_bytes, rise_bytes): (u64, u64),
    ) -> StageCost {
        let kind = &self.kinds[self.kind_of[device]];
        let forward = over(&kind.forward, &range);
        let input_gradient = over(&kind.input_gradient, &range) + again;
        let weight_gradient = over(&kind.weight_gradient, &range);
        let slowdown = self.slowdown[device];
        let time = |sum| scaled(sum, slowdown).saturating_add(self.stage_ns);
        StageCost {
            ns: [
                time(forward),
                time(input_gradient + over(&kind.split, &range)),
                time(weight_gradient),
                time(input_gradient + weight_gradient),
            ],
            stash_bytes,
            rise_bytes,
            gradient_bytes: narrow(over(&kind.gradient, &range)),
            workspace_bytes: match kind.has_workspace {
                true => range.clone().map(|layer| kind.layer[layer].workspace_bytes).max().unwrap_or(0),
                false => 0,
            },
            state_bytes: narrow(over(&self.state, &range)),
            optimizer_ns: over(&kind.optimizer, &range),
        }
    }

    /// A layer's works on a device, recomputed or not.
    pub(crate) fn works(&self, device: usize, layer: usize, is_recomputed: bool) -> Works {
        let kind = &self.kinds[self.kind_of[device]];
        let own = &kind.layer[layer];
        let slowed = |ns: u64| ns as f64 * self.slowdown[device];
        Works {
            forward_ns: slowed(own.forward_ns),
            input_gradient_ns: slowed(own.input_gradient_ns),
            split_ns: slowed(narrow(over(&kind.split, &(layer..layer + 1)))),
            weight_gradient_ns: slowed(own.weight_gradient_ns),
            again_ns: if is_recomputed { slowed(own.forward_ns) } else { 0.0 },
        }
    }

    /// Bytes held from F on, and how far the walk of the backward pass rises above them.
    fn walk(&self, kind: &Kind, range: Range<usize>, recompute: &[bool]) -> (u64, u64) {
        let held = |layer: usize| match recompute[layer] {
            true => self.input_bytes(layer),
            false => kind.layer[layer].activation_bytes,
        };
        let stash: u128 = range.clone().map(|layer| u128::from(held(layer))).sum();
        let (mut to_come, mut done, mut peak) = (stash, 0_u128, stash);
        for layer in range.rev() {
            to_come -= u128::from(held(layer));
            peak = peak.max(to_come + u128::from(kind.layer[layer].activation_bytes) + done);
            done += u128::from(kind.layer[layer].gradient_bytes);
        }
        (narrow(stash), narrow(peak - stash))
    }

    /// What sends and receives add to each F, I and B of a stage: `input` and `gradient` say whether each comes from another
    /// device.
    pub(crate) fn crossings_ns(&self, input: bool, gradient: bool) -> u64 {
        self.crossing_ns.saturating_mul(u64::from(input) + u64::from(gradient))
    }

    /// Receive buffers of a stage: `input` and `gradient` say whether each comes from another device.
    pub(crate) fn buffer_bytes(&self, range: &Range<usize>, input: bool, gradient: bool) -> u64 {
        if self.receive_buffers == ReceiveBuffers::None {
            return 0;
        }
        let input = if input { self.input_bytes(range.start) } else { 0 };
        let gradient = if gradient { self.output_bytes[range.end - 1] } else { 0 };
        narrow((u128::from(input) + u128::from(gradient)) * self.microbatches as u128)
    }

    /// Nanoseconds that some bytes occupy a link, and its latency.
    pub(crate) fn transfer(&self, from: usize, to: usize, bytes: u64) -> (u64, u64) {
        let wire = self.wires[from * self.devices + to];
        (round_half_up(bytes as f64 * 1e9 / wire.bytes_per_second), wire.latency_ns)
    }

    /// The optimizer's time on a device, from the sum over its layers.
    pub(crate) fn optimizer_ns(&self, device: usize, sum: u128) -> u64 {
        scaled(sum, self.slowdown[device])
    }

    /// Devices that no plan can tell apart share a number: same kind, slowdown, memory, host and links.
    pub(crate) fn classes(&self) -> Vec<usize> {
        let wire = |from: usize, to: usize| {
            let wire = self.wires[from * self.devices + to];
            (wire.latency_ns, wire.bytes_per_second.to_bits())
        };
        let alike = |a: usize, b: usize| {
            self.kind_of[a] == self.kind_of[b]
                && self.slowdown[a] == self.slowdown[b]
                && self.memory_bytes[a] == self.memory_bytes[b]
                && self.reserved_bytes[a] == self.reserved_bytes[b]
                && self.crowd.as_ref().is_none_or(|crowd| crowd.is_same(a, b))
                && wire(a, b) == wire(b, a)
                && (0..self.devices)
                    .filter(|&other| other != a && other != b)
                    .all(|other| wire(a, other) == wire(b, other) && wire(other, a) == wire(other, b))
        };
        let mut class: Vec<usize> = Vec::with_capacity(self.devices);
        for device in 0..self.devices {
            let same = (0..device).find(|&earlier| alike(earlier, device)).map(|earlier| class[earlier]);
            class.push(same.unwrap_or(device));
        }
        class
    }
}
