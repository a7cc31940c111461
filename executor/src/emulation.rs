//! The emulation file, `adaptis.emulation/1`: what an emulated job trains and what its devices are paced to.
//!
//! The launcher writes it, every rank reads it. The *truth* is an `adaptis.problem/1` whose costs the devices take; the
//! coordinator never sees it. The arithmetic is a small language model's, whatever the truth says a layer weighs.

use crate::backend::cpu::{LayerType, Shape};
use adaptis_plan::{FormatError, Plan, Problem, json, plan, problem};
use adaptis_proto::RunId;
use adaptis_proto::message::{DeviceCard, Job, JobLayer};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Name and version in every file of this format.
pub const FORMAT: &str = "adaptis.emulation/1";

/// An emulated job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Emulation {
    /// [`FORMAT`].
    pub format: String,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The run.
    pub job: Run,
    /// Costs in force, in the time that ranks are paced to.
    pub truth: Problem,
    /// What each layer of the truth computes: `embedding` first, `head` last, between them `attention`, `mlp`, `moe`
    /// and `ssm`.
    pub layer_types: Vec<String>,
    /// Sizes of the model that is really trained.
    pub shape: Sizes,
    /// Of parameters, batches and noise.
    pub seed: u64,
    /// File of the text to train on.
    pub text: PathBuf,
    /// Standard deviation of each operation's time, as a share of it.
    pub noise: f64,
    /// What goes wrong with devices and links.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// The plan to start on; none = the coordinator's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_plan: Option<Plan>,
}

/// A run's name and length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Its name.
    pub run: RunId,
    /// Iterations; 0 = until stopped.
    pub iterations: u64,
}

/// [`Shape`], as it stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Elements of a token's vector between two layers.
    pub width: usize,
    /// Heads of an attention layer; they divide the width.
    pub heads: usize,
    /// Inner width of an MLP, and of each expert.
    pub hidden: usize,
    /// Experts of a mixture.
    pub experts: usize,
    /// Channels of a state-space layer's recurrence.
    pub state: usize,
    /// Tokens of a microbatch, at most 1024.
    pub sequence: usize,
    /// Tokens that exist: 256, since they are bytes.
    pub vocabulary: usize,
}

/// What goes wrong at the start of an iteration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Fault {
    /// A device takes `factor` times as long as the truth says; 1.0 ends it.
    Throttle {
        /// From this iteration on.
        iteration: u64,
        /// Its name.
        device: String,
        /// Positive.
        factor: f64,
    },
    /// Both directions between two devices have a `factor`-th of their bandwidth; 1.0 ends it.
    SlowLink {
        /// From this iteration on.
        iteration: u64,
        /// Their names.
        between: [String; 2],
        /// Positive.
        factor: f64,
    },
}

impl Fault {
    /// The iteration from whose start it is in force.
    pub fn iteration(&self) -> u64 {
        match *self {
            Fault::Throttle { iteration, .. } | Fault::SlowLink { iteration, .. } => iteration,
        }
    }
}

const TOKENS: usize = 256;
const SEQUENCE_MAX: usize = 1024;

impl Emulation {
    /// Reads and checks an emulation.
    ///
    /// # Errors
    /// Names the path of the first field that is missing, unknown, of a wrong type or out of its range.
    pub fn read(text: &str) -> Result<Emulation, FormatError> {
        let emulation: Emulation = json::read(text, FORMAT)?;
        emulation.check()?;
        Ok(emulation)
    }

    /// As JSON, indented.
    ///
    /// # Panics
    /// On a number that is not finite, which no checked emulation holds.
    pub fn write(&self) -> String {
        serde_json::to_string_pretty(self).expect("an emulation has string keys and finite numbers")
    }

    /// Checks what the types can't.
    ///
    /// # Errors
    /// Names the first field that makes no sense.
    pub fn check(&self) -> Result<(), FormatError> {
        let format = |found: &str, expected| match found == expected {
            true => Ok(()),
            false => Err(FormatError::Format { found: found.to_owned(), expected }),
        };
        format(&self.format, FORMAT)?;
        format(&self.truth.format, problem::FORMAT)?;
        if let Some(start) = &self.start_plan {
            format(&start.format, plan::FORMAT)?;
        }
        self.truth.check()?;
        self.types()?;
        self.check_numbers()
    }

    fn check_numbers(&self) -> Result<(), FormatError> {
        let Sizes { width, heads, hidden, experts, state, sequence, vocabulary } = self.shape;
        if [width, heads, hidden, experts, state, sequence].contains(&0) {
            return Err(wrong("shape", "every size is at least 1"));
        }
        if !width.is_multiple_of(heads) {
            return Err(wrong("shape.heads", "heads divide the width"));
        }
        if vocabulary != TOKENS {
            return Err(wrong("shape.vocabulary", "tokens are bytes: 256"));
        }
        if sequence > SEQUENCE_MAX {
            return Err(wrong("shape.sequence", "at most 1024"));
        }
        if !(0.0..=1.0).contains(&self.noise) {
            return Err(wrong("noise", "from 0 to 1"));
        }
        for (at, fault) in self.faults.iter().enumerate() {
            let (names, factor) = match fault {
                Fault::Throttle { device, factor, .. } => (std::slice::from_ref(device), *factor),
                Fault::SlowLink { between, factor, .. } => (&between[..], *factor),
            };
            if !(factor.is_finite() && factor > 0.0) {
                return Err(wrong(&format!("faults[{at}].factor"), "a positive number"));
            }
            if let Some(name) = names.iter().find(|name| self.truth.device_index(name).is_none()) {
                return Err(wrong(&format!("faults[{at}]"), &format!("`{name}` is not a device of the truth")));
            }
        }
        Ok(())
    }

    /// What each layer computes.
    ///
    /// # Errors
    /// A name that is no type, a number of them that is not the truth's, or an embedding or a head elsewhere than
    /// first and last.
    pub fn types(&self) -> Result<Vec<LayerType>, FormatError> {
        let layers = self.truth.layers.len();
        if self.layer_types.len() != layers || layers < 2 {
            return Err(wrong("layer_types", &format!("one for each of the {layers} layers, at least 2")));
        }
        let types = self.layer_types.iter().enumerate().map(|(at, name)| {
            let path = format!("layer_types[{at}]");
            let layer_type: LayerType = name.parse().map_err(|error| wrong(&path, &format!("{error}")))?;
            if (layer_type == LayerType::Embedding) != (at == 0) || (layer_type == LayerType::Head) != (at == layers - 1)
            {
                return Err(wrong(&path, "the first layer is an embedding, the last a head, no other is either"));
            }
            Ok(layer_type)
        });
        types.collect()
    }

    /// Sizes of the model that is really trained.
    pub fn shape(&self) -> Shape {
        let Sizes { width, heads, hidden, experts, state, sequence, vocabulary } = self.shape;
        Shape { width, heads, hidden, experts, state, sequence, vocabulary }
    }

    /// The job as its ranks declare it: sizes, never costs.
    pub fn job(&self) -> Job {
        Job {
            run: self.job.run.clone(),
            devices: self.truth.devices.iter().map(|device| device.name.clone()).collect(),
            layers: self
                .truth
                .layers
                .iter()
                .map(|layer| JobLayer {
                    name: layer.name.clone(),
                    signature: layer.signature.clone(),
                    parameter_bytes: layer.parameter_bytes,
                    state_bytes: layer.state_bytes,
                    output_bytes: layer.output_bytes,
                    moved_bytes: layer.moved(),
                })
                .collect(),
            microbatches: self.truth.microbatches,
            iterations: self.job.iterations,
            start_plan: self.start_plan.as_ref().map(Plan::write),
        }
    }

    /// A device's description of itself.
    ///
    /// # Panics
    /// If there is no such device.
    pub fn card(&self, device: usize) -> DeviceCard {
        let device = &self.truth.devices[device];
        DeviceCard {
            name: device.name.clone(),
            kind: device.kind.clone(),
            memory_bytes: device.memory_bytes,
            reserved_bytes: device.reserved_bytes,
        }
    }
}

fn wrong(path: &str, problem: &str) -> FormatError {
    FormatError::Value { path: path.to_owned(), problem: problem.to_owned() }
}
