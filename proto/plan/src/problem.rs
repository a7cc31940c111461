//! The planning problem, `adaptis.problem/1`: layers, devices, their costs and links.
//!
//! All times are whole nanoseconds, all sizes whole bytes. DESIGN section 3.1 gives the semantics; the fields say the
//! units, `check` the ranges.

mod check;

pub use check::{DEVICES_MAX, LAYERS_MAX, MICROBATCHES_MAX, TOTAL_MAX};

use crate::json::{self, FormatError};
use adaptis_proto::message::{Bounds, Job, JobLayer};
use adaptis_proto::{DeviceIndex, LayerIndex};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name and version in every file of this format.
pub const FORMAT: &str = "adaptis.problem/1";

/// Layers to be spread over devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// [`FORMAT`].
    pub format: String,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Microbatches in an iteration, 1 to [`MICROBATCHES_MAX`].
    pub microbatches: u32,
    /// The model, in order.
    pub layers: Vec<Layer>,
    /// The devices; their order is the order of a plan's programs.
    pub devices: Vec<Device>,
    /// For each kind of device, one cost per layer.
    pub costs: BTreeMap<String, Vec<Cost>>,
    /// What carries tensors between devices.
    pub links: Links,
    /// For each kind, gradient reduction and optimizer step of each layer; a kind left out takes none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub optimizer_ns: BTreeMap<String, Vec<u64>>,
    /// Buffers for what comes from other devices.
    #[serde(default, skip_serializing_if = "ReceiveBuffers::is_none")]
    pub receive_buffers: ReceiveBuffers,
    /// Gradient norm and vote.
    #[serde(default, skip_serializing_if = "json::is_zero")]
    pub boundary_ns: u64,
    /// Fixed cost of each instruction, not slowed down.
    #[serde(default, skip_serializing_if = "json::is_zero")]
    pub stage_ns: u64,
    /// What each F, I and B takes more of its device for each neighbouring stage that is on another one: to send to it or to
    /// receive from it. Not slowed down.
    #[serde(default, skip_serializing_if = "json::is_zero")]
    pub crossing_ns: u64,
    /// Devices that share the cores of a host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    /// What a plan may not do.
    #[serde(default, skip_serializing_if = "Constraints::is_default")]
    pub constraints: Constraints,
}

/// The smallest unit that moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Unique.
    pub name: String,
    /// Cost class across jobs: `type/shape/dtype/b<microbatch>xs<sequence>`.
    pub signature: String,
    /// Weights alone.
    #[serde(default)]
    pub parameter_bytes: u64,
    /// Weights, gradients and optimizer state, resident where the layer lives.
    pub state_bytes: u64,
    /// What crosses to the next layer, per microbatch.
    pub output_bytes: u64,
    /// What travels when the layer changes device; [`Layer::moved`] has the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_bytes: Option<u64>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Layer {
    /// Bytes that travel when the layer changes device.
    pub fn moved(&self) -> u64 {
        self.moved_bytes.unwrap_or(self.state_bytes)
    }
}

/// One pipeline rank's compute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Unique.
    pub name: String,
    /// Card and memory: a key of [`Problem::costs`].
    pub kind: String,
    /// Total memory; a plan may use all of it.
    pub memory_bytes: u64,
    /// Factor on all its times but `stage_ns` and `crossing_ns`, positive.
    #[serde(default = "json::one")]
    pub slowdown: f64,
    /// Context, communicator, fragmentation.
    #[serde(default, skip_serializing_if = "json::is_zero")]
    pub reserved_bytes: u64,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What a layer costs on a kind of device, per microbatch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// F.
    pub forward_ns: u64,
    /// I.
    pub input_gradient_ns: u64,
    /// W.
    pub weight_gradient_ns: u64,
    /// Held from the start of F.
    pub activation_bytes: u64,
    /// Of it, still held from the end of I to the end of W.
    pub weight_gradient_bytes: u64,
    /// Transient; the largest one of a stage counts during all of its instructions.
    #[serde(default, skip_serializing_if = "json::is_zero")]
    pub workspace_bytes: u64,
    /// What a separate I costs more than the same work inside B.
    #[serde(default, skip_serializing_if = "json::is_zero")]
    pub split_ns: u64,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What carries tensors between devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// For every directed pair that is not listed.
    pub default: Link,
    /// Directed pairs of their own.
    #[serde(default)]
    pub pairs: Vec<Pair>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Links {
    /// The same for every pair.
    pub fn all(latency_ns: u64, bytes_per_second: f64) -> Links {
        Links { default: Link { latency_ns, bytes_per_second, note: () }, pairs: Vec::new(), note: None }
    }
}

/// A link's two terms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// From the end of a transfer to its arrival.
    pub latency_ns: u64,
    /// Positive.
    pub bytes_per_second: f64,
    /// A note may stand there; it is not kept.
    #[serde(skip)]
    pub note: (),
}

/// A directed pair of devices with a link of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Sending device.
    pub from: String,
    /// Receiving device.
    pub to: String,
    /// From the end of a transfer to its arrival.
    pub latency_ns: u64,
    /// Positive.
    pub bytes_per_second: f64,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Whether a stage holds buffers for what comes from other devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReceiveBuffers {
    /// None.
    #[default]
    None,
    /// All iteration long, one per microbatch for input and output gradient, each if it comes from another device.
    All,
}

impl ReceiveBuffers {
    fn is_none(&self) -> bool {
        *self == ReceiveBuffers::None
    }
}

/// Devices that share the cores of a host: at any time each that works does so at the same speed, its own while no more than
/// `at_once` of them work, and `at_once / working` of it beyond. What waits for a tensor does not work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Their names; a device has one host at most.
    pub devices: Vec<String>,
    /// So many work at their own speed at one time: the host's cores over the threads of a device. Positive.
    pub at_once: f64,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What a plan may not do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraints {
    /// Layers that stay on a device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<Pin>,
    /// Devices that get nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forbidden: Vec<String>,
    /// Groups of layers that share a device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub together: Vec<Vec<u32>>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Constraints {
    /// Those of a job with so many layers, whose devices have these names; what names none of them is left out.
    pub fn of(bounds: &Bounds, devices: &[String], layers: usize) -> Constraints {
        let is_there = |layer: &LayerIndex| layer.index() < layers;
        let pin = |&(layer, device): &(LayerIndex, DeviceIndex)| {
            let device = devices.get(device.index())?.clone();
            Some(Pin { layer: layer.0, device, note: None })
        };
        let group =
            |layers: &Vec<LayerIndex>| layers.iter().filter(|&layer| is_there(layer)).map(|layer| layer.0).collect();
        Constraints {
            pinned: bounds.pinned.iter().filter(|(layer, _)| is_there(layer)).filter_map(pin).collect(),
            together: bounds.together.iter().map(group).collect(),
            ..Constraints::default()
        }
    }

    /// Nothing is constrained.
    pub fn is_empty(&self) -> bool {
        self.pinned.is_empty() && self.forbidden.is_empty() && self.together.is_empty()
    }

    fn is_default(&self) -> bool {
        self.is_empty() && self.note.is_none()
    }
}

/// A layer's device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Index of the layer.
    pub layer: u32,
    /// Name of the device.
    pub device: String,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Pair {
    /// Its two terms.
    pub fn link(&self) -> Link {
        Link { latency_ns: self.latency_ns, bytes_per_second: self.bytes_per_second, note: () }
    }
}

impl Problem {
    /// What must be said, everything else at its default.
    pub fn new(
        microbatches: u32,
        layers: Vec<Layer>,
        devices: Vec<Device>,
        costs: BTreeMap<String, Vec<Cost>>,
        links: Links,
    ) -> Problem {
        Problem {
            format: FORMAT.to_owned(),
            note: None,
            microbatches,
            layers,
            devices,
            costs,
            links,
            optimizer_ns: BTreeMap::new(),
            receive_buffers: ReceiveBuffers::None,
            boundary_ns: 0,
            stage_ns: 0,
            crossing_ns: 0,
            hosts: Vec::new(),
            constraints: Constraints::default(),
        }
    }

    /// A job before anything was measured: each layer costs the same everywhere and nothing takes memory, so that an
    /// audit judges a plan's structure alone.
    pub fn without_costs(job: &Job, devices: Vec<Device>) -> Problem {
        let cost = Cost { forward_ns: 1, input_gradient_ns: 1, weight_gradient_ns: 1, ..Cost::default() };
        let layer = |layer: &JobLayer| Layer {
            name: layer.name.clone(),
            signature: layer.signature.clone(),
            parameter_bytes: 0,
            state_bytes: 0,
            output_bytes: 0,
            moved_bytes: None,
            note: None,
        };
        let layers: Vec<Layer> = job.layers.iter().map(layer).collect();
        let costs = devices.iter().map(|device| (device.kind.clone(), vec![cost.clone(); layers.len()])).collect();
        Problem::new(job.microbatches, layers, devices, costs, Links::all(0, 1e12))
    }

    /// A job's structure alone: devices that hold anything, layers that cost alike. What the audit of a plan needs of one who
    /// does not know the costs.
    pub fn structure(job: &Job) -> Problem {
        let device = |name: &String| Device {
            name: name.clone(),
            kind: "any".to_owned(),
            // Above any sum of states, and far from where sums overflow.
            memory_bytes: 1 << 60,
            slowdown: 1.0,
            reserved_bytes: 0,
            note: None,
        };
        Self::without_costs(job, job.devices.iter().map(device).collect())
    }

    /// Reads and checks a problem.
    ///
    /// # Errors
    /// Names the path of the first field that is missing, unknown, of a wrong type or out of its range.
    pub fn read(text: &str) -> Result<Problem, FormatError> {
        let problem: Problem = json::read(text, FORMAT)?;
        problem.check()?;
        Ok(problem)
    }

    /// As JSON, indented.
    pub fn write(&self) -> String {
        json::write(self)
    }

    /// The costs of each layer on a device.
    ///
    /// # Panics
    /// If the problem was not checked: a kind without costs.
    pub fn costs_of(&self, device: usize) -> &[Cost] {
        &self.costs[&self.devices[device].kind]
    }

    /// The optimizer's nanoseconds for a layer on a device, before its slowdown.
    pub fn optimizer_of(&self, device: usize, layer: usize) -> u64 {
        self.optimizer_ns.get(&self.devices[device].kind).map_or(0, |of| of[layer])
    }

    /// The link from one device to another.
    pub fn link(&self, from: usize, to: usize) -> Link {
        let (from, to) = (&self.devices[from].name, &self.devices[to].name);
        let own = self.links.pairs.iter().find(|pair| pair.from == *from && pair.to == *to);
        own.map_or(self.links.default, Pair::link)
    }

    /// Index of a device by its name.
    pub fn device_index(&self, name: &str) -> Option<usize> {
        self.devices.iter().position(|device| device.name == name)
    }
}
