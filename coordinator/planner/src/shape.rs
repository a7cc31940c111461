//! Partition, placement and recomputation, and the flat tables that they make of a problem.

use crate::costs::{Costs, StageCost};
use crate::crowd::Crowd;
use crate::program::{Programs, pack, unpack};
use adaptis_plan::{Plan, Predicted, Problem, Stage};
use adaptis_proto::Epoch;
use std::ops::Range;
use std::sync::Arc;

/// A contiguous run of layers on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) device: u32,
}

impl Slot {
    pub(crate) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A plan without its programs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// In model order, none empty.
    pub(crate) stages: Vec<Slot>,
    /// Per layer of the model.
    pub(crate) recompute: Vec<bool>,
}

impl Shape {
    /// The shape of a plan that covers its layers.
    pub(crate) fn of(plan: &Plan) -> Self {
        let mut recompute = vec![false; plan.layers as usize];
        for &layer in plan.stages.iter().flat_map(|stage| &stage.recompute) {
            recompute[layer as usize] = true;
        }
        let stages = plan
            .stages
            .iter()
            .map(|stage| Slot { start: stage.layers[0], end: stage.layers[1], device: stage.device })
            .collect();
        Self { stages, recompute }
    }

    /// Stages from their first layers and devices; nothing recomputed.
    pub(crate) fn new(layers: usize, stages: Vec<Slot>) -> Self {
        Self { stages, recompute: vec![false; layers] }
    }

    /// Device of each layer.
    pub(crate) fn device_of_layers(&self) -> Vec<u32> {
        self.stages.iter().flat_map(|slot| slot.range().map(|_| slot.device)).collect()
    }

    /// Joins neighbouring stages of one device, which exchange for free and only cost `stage_ns`.
    pub(crate) fn merge(&mut self) {
        self.stages.dedup_by(|next, slot| {
            let same = next.device == slot.device;
            if same {
                slot.end = next.end;
            }
            same
        });
    }

    /// The stages of another placement of the layers, whose neighbours on one device are joined, but for those that
    /// this shape holds apart.
    pub(crate) fn placed(&self, device_of_layers: &[u32]) -> Vec<Slot> {
        let mut apart =
            self.stages.windows(2).filter(|pair| pair[0].device == pair[1].device).map(|pair| pair[1].start);
        let mut next_apart = apart.next();
        let mut stages: Vec<Slot> = Vec::with_capacity(self.stages.len() + 2);
        for (layer, &device) in device_of_layers.iter().enumerate() {
            let layer = layer as u32;
            let is_apart = next_apart == Some(layer);
            if is_apart {
                next_apart = apart.next();
            }
            match stages.last_mut() {
                Some(slot) if slot.device == device && !is_apart => slot.end += 1,
                _ => stages.push(Slot { start: layer, end: layer + 1, device }),
            }
        }
        stages
    }

    /// Cuts a stage in two on its device; `at` is the first layer of the second.
    pub(crate) fn cut(&mut self, stage: usize, at: u32) {
        let slot = self.stages[stage];
        debug_assert!(slot.start < at && at < slot.end, "both parts hold a layer");
        self.stages[stage].end = at;
        self.stages.insert(stage + 1, Slot { start: at, ..slot });
    }

    /// As a plan with programs.
    pub(crate) fn plan(&self, problem: &Problem, programs: &Programs, epoch: Epoch, parent: Epoch) -> Plan {
        let stages = self.stages.iter().map(|slot| Stage {
            layers: [slot.start, slot.end],
            device: slot.device,
            recompute: (slot.start..slot.end).filter(|&layer| self.recompute[layer as usize]).collect(),
            note: None,
        });
        let programs = programs.iter().map(|program| program.iter().map(|&op| unpack(op)).collect()).collect();
        Plan { epoch, parent, ..Plan::new(problem, stages.collect(), programs) }
    }
}

/// The packed programs of a plan within the limits of [`crate::program`].
pub(crate) fn programs_of(plan: &Plan) -> Programs {
    plan.programs.iter().map(|program| program.iter().map(|&instruction| pack(instruction)).collect()).collect()
}

/// How a stage's result reaches its neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// Receiving device.
    pub(crate) to: u32,
    /// Directed pair, `from x devices + to`; [`Hop::LOCAL`] where both stages share a device.
    pub(crate) pair: u32,
    /// Occupies the pair.
    pub(crate) transfer_ns: u64,
    /// From the end of the transfer to the arrival.
    pub(crate) latency_ns: u64,
    /// What crosses.
    pub(crate) bytes: u64,
}

impl Hop {
    /// No transfer: neighbours on one device.
    pub(crate) const LOCAL: u32 = u32::MAX;
    /// No neighbour: the end of the model.
    pub(crate) const END: u32 = u32::MAX - 1;

    /// From its production to its arrival on an idle link.
    pub(crate) fn delay_ns(&self) -> u64 {
        self.transfer_ns.saturating_add(self.latency_ns)
    }
}

/// A shape's costs as structure of arrays: what replay, listing and memory read.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    pub(crate) microbatches: usize,
    pub(crate) devices: usize,
    /// Per stage.
    pub(crate) cost: Vec<StageCost>,
    pub(crate) device: Vec<u32>,
    /// Where F's output goes.
    pub(crate) onward: Vec<Hop>,
    /// Where I's or B's output goes.
    pub(crate) back: Vec<Hop>,
    /// Per device: its stages in model order, what it always holds, and its memory.
    pub(crate) local: Vec<Vec<u32>>,
    pub(crate) base_bytes: Vec<u64>,
    pub(crate) limit_bytes: Vec<u64>,
    /// `boundary_ns` and the longest optimizer.
    pub(crate) tail_ns: u64,
    /// Where devices share cores.
    pub(crate) crowd: Option<Arc<Crowd>>,
}

impl Tables {
    /// Tables of a shape whose stages cover the layers.
    pub(crate) fn new(costs: &Costs, shape: &Shape) -> Self {
        let count = shape.stages.len();
        let nowhere = Hop { to: 0, pair: Hop::END, transfer_ns: 0, latency_ns: 0, bytes: 0 };
        let mut tables = Self {
            microbatches: costs.microbatches,
            devices: costs.devices,
            cost: Vec::with_capacity(count),
            device: shape.stages.iter().map(|slot| slot.device).collect(),
            onward: vec![nowhere; count],
            back: vec![nowhere; count],
            local: vec![Vec::new(); costs.devices],
            base_bytes: costs.reserved_bytes.clone(),
            limit_bytes: costs.memory_bytes.clone(),
            tail_ns: 0,
            crowd: costs.crowd.clone(),
        };
        let mut optimizer = vec![0_u128; costs.devices];
        for (stage, slot) in shape.stages.iter().enumerate() {
            let device = slot.device as usize;
            let mut cost = costs.stage(device, slot.range(), &shape.recompute);
            optimizer[device] += cost.optimizer_ns;
            let other = |neighbour: Option<&Slot>| neighbour.is_some_and(|of| of.device != slot.device);
            let from_before = other(stage.checked_sub(1).map(|before| &shape.stages[before]));
            let from_behind = other(shape.stages.get(stage + 1));
            cost.add_crossings(costs.crossings_ns(from_before, from_behind));
            let buffers = costs.buffer_bytes(&slot.range(), from_before, from_behind);
            let base = &mut tables.base_bytes[device];
            *base = base.saturating_add(cost.state_bytes).saturating_add(buffers);
            tables.local[device].push(stage as u32);
            tables.cost.push(cost);
        }
        for stage in 1..count {
            let (before, here) = (shape.stages[stage - 1], shape.stages[stage]);
            let bytes = costs.output_bytes[before.end as usize - 1];
            tables.onward[stage - 1] = hop(costs, before.device, here.device, bytes);
            tables.back[stage] = hop(costs, here.device, before.device, bytes);
        }
        let longest = (0..costs.devices).map(|device| costs.optimizer_ns(device, optimizer[device])).max();
        tables.tail_ns = costs.boundary_ns.saturating_add(longest.unwrap_or(0));
        tables
    }

    /// Number of stages.
    #[inline]
    pub(crate) fn stages(&self) -> usize {
        self.cost.len()
    }

    /// Nanoseconds of an instruction.
    #[inline]
    pub(crate) fn ns(&self, op: u32) -> u64 {
        self.cost[crate::program::stage(op)].ns[crate::program::kind(op) as usize]
    }
}

fn hop(costs: &Costs, from: u32, to: u32, bytes: u64) -> Hop {
    if from == to {
        return Hop { to, pair: Hop::LOCAL, transfer_ns: 0, latency_ns: 0, bytes };
    }
    let (transfer_ns, latency_ns) = costs.transfer(from as usize, to as usize, bytes);
    Hop { to, pair: from * costs.devices as u32 + to, transfer_ns, latency_ns, bytes }
}

/// What the simulator says, in the form that a plan carries.
pub(crate) fn predicted(timeline: &crate::simulate::Timeline, lower_bound_ns: u64) -> Predicted {
    Predicted {
        iteration_ns: timeline.iteration_ns,
        peak_bytes: timeline.peak_bytes.clone(),
        lower_bound_ns,
        bubble: timeline.bubble.clone(),
        note: None,
    }
}
