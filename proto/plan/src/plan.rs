//! The plan, `adaptis.plan/1`: partition, placement, schedule and recomputation in one immutable value.

use crate::instruction::Instruction;
use crate::json::{self, FormatError};
use crate::problem::{LAYERS_MAX, Problem};
use adaptis_proto::{Digest, Epoch};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Name and version in every file of this format.
pub const FORMAT: &str = "adaptis.plan/1";

/// Who runs what, in which order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`FORMAT`].
    pub format: String,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Its number.
    pub epoch: Epoch,
    /// The number of the plan that it follows; 0 for none.
    pub parent: Epoch,
    /// Number of layers of the model.
    pub layers: u32,
    /// The problem's device names, in its order.
    pub devices: Vec<String>,
    /// Contiguous runs of layers, in model order.
    pub stages: Vec<Stage>,
    /// One ordered program per device.
    pub programs: Vec<Vec<Instruction>>,
    /// What the simulator says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
    /// Why it was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<serde_json::Value>,
}

/// A contiguous run of layers on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Half-open range of layers.
    pub layers: [u32; 2],
    /// Index into [`Plan::devices`].
    pub device: u32,
    /// Layers, by their index in the model, whose activations are dropped after F.
    #[serde(default)]
    pub recompute: Vec<u32>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Stage {
    /// Its layers, as a range of indices.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.layers[0] as usize..self.layers[1] as usize
    }
}

/// What the simulator says of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicted {
    /// Boundary to boundary.
    pub iteration_ns: u64,
    /// Per device.
    pub peak_bytes: Vec<u64>,
    /// No plan for the same problem takes less.
    pub lower_bound_ns: u64,
    /// Per device: share of the iteration not spent in instructions.
    pub bubble: Vec<f64>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Why a plan does not fit another list of devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotMap {
    /// A device of the plan that holds stages or a program is not in the list.
    #[error("device {device} of the plan holds work and is not among the devices: replan instead of mapping")]
    Missing {
        /// Its name.
        device: String,
    },
    /// A name stands twice in one of the lists.
    #[error("device {device} is named twice")]
    Twice {
        /// The name.
        device: String,
    },
    /// The plan's own number of programs is not its number of devices.
    #[error("the plan has {programs} programs for {devices} devices")]
    Programs {
        /// Programs in the plan.
        programs: usize,
        /// Devices in the plan.
        devices: usize,
    },
    /// A stage of the plan is on a device that the plan does not name.
    #[error("stage {stage} is on device {device}, which the plan does not name")]
    Stage {
        /// Index of the stage.
        stage: usize,
        /// Its device.
        device: u32,
    },
}

/// Neighbours of a stage that are on another device: what its F, I and B each send to or receive from.
pub fn crossings(stages: &[Stage], stage: usize) -> u64 {
    let neighbours = [stage.checked_sub(1), stage.checked_add(1)].into_iter().flatten();
    let devices = neighbours.filter_map(|other| stages.get(other)).map(|other| other.device);
    devices.filter(|&device| device != stages[stage].device).count() as u64
}

impl Plan {
    /// The first plan of a problem, with nothing predicted. Whether it is a valid one an audit tells.
    pub fn new(problem: &Problem, stages: Vec<Stage>, programs: Vec<Vec<Instruction>>) -> Plan {
        Plan {
            format: FORMAT.to_owned(),
            note: None,
            epoch: Epoch(1),
            parent: Epoch(0),
            layers: problem.layers.len() as u32,
            devices: problem.devices.iter().map(|device| device.name.clone()).collect(),
            stages,
            programs,
            predicted: None,
            why: None,
        }
    }

    /// Reads a plan. Its rules are checked by [`crate::audit()`], against a problem.
    ///
    /// # Errors
    /// Names the path of the first field that is missing, unknown or of a wrong type, a model beyond [`LAYERS_MAX`], an
    /// epoch that no other one could follow, and a parent that comes after it.
    pub fn read(text: &str) -> Result<Plan, FormatError> {
        let plan: Plan = json::read(text, FORMAT)?;
        if plan.layers as usize > LAYERS_MAX {
            let problem = format!("{} layers, at most {LAYERS_MAX} are possible", plan.layers);
            return Err(FormatError::value("layers", problem));
        }
        if plan.epoch == plan.epoch.next() {
            return Err(FormatError::value(
                "epoch",
                format!("{} is the last number there is: take a smaller one", plan.epoch),
            ));
        }
        if plan.parent > plan.epoch {
            let problem =
                format!("{} is later than the plan's own epoch {}: a plan follows its parent", plan.parent, plan.epoch);
            return Err(FormatError::value("parent", problem));
        }
        Ok(plan)
    }

    /// As JSON, one line per program.
    pub fn write(&self) -> String {
        json::write(self)
    }

    /// The digest of a plan's text: what ranks vote on.
    pub fn digest(text: &str) -> Digest {
        Digest(*blake3::hash(text.as_bytes()).as_bytes())
    }

    /// The same plan for another list of devices, matched by name. Rows and indices follow the new order, devices that
    /// the plan does not know get empty programs, those that it knows and that hold nothing may be missing. A
    /// prediction does not travel: it was made for the old list.
    ///
    /// # Errors
    /// A device that holds work is missing, a name stands twice, or the plan's own lists do not fit together.
    pub fn map_to(&self, devices: &[String]) -> Result<Plan, CannotMap> {
        if self.devices == devices {
            return Ok(self.clone());
        }
        for list in [&self.devices[..], devices] {
            let mut seen = BTreeSet::new();
            if let Some(twice) = list.iter().find(|name| !seen.insert(*name)) {
                return Err(CannotMap::Twice { device: twice.clone() });
            }
        }
        if self.programs.len() != self.devices.len() {
            return Err(CannotMap::Programs { programs: self.programs.len(), devices: self.devices.len() });
        }
        let place: BTreeMap<&str, usize> = devices.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        let new_index = |old: usize| {
            let name = self.devices[old].as_str();
            place.get(name).copied().ok_or_else(|| CannotMap::Missing { device: name.to_owned() })
        };
        let mut stages = self.stages.clone();
        for (index, stage) in stages.iter_mut().enumerate() {
            let old = stage.device as usize;
            if old >= self.devices.len() {
                return Err(CannotMap::Stage { stage: index, device: stage.device });
            }
            stage.device = u32::try_from(new_index(old)?).expect("a list of devices is shorter than 2^32");
        }
        let mut programs = vec![Vec::new(); devices.len()];
        for (old, program) in self.programs.iter().enumerate().filter(|(_, program)| !program.is_empty()) {
            programs[new_index(old)?] = program.clone();
        }
        Ok(Plan { devices: devices.to_vec(), stages, programs, predicted: None, ..self.clone() })
    }

    /// Device of each layer; 0 for a layer that no stage covers.
    pub fn device_of_layers(&self) -> Vec<u32> {
        let mut of = vec![0; self.layers as usize];
        for stage in &self.stages {
            let range = stage.range();
            let (from, to) = (range.start.min(of.len()), range.end.min(of.len()));
            of[from..to.max(from)].fill(stage.device);
        }
        of
    }
}
