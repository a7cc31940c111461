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
    /// Standard deviation of the logarithm of a microbatch's length: works take longer or shorter by it, and what is trained
    /// on does not change.
    #[serde(default, skip_serializing_if = "are_alike")]
    pub lengths: f64,
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
const WIDTH_MAX: usize = 4096;
const HEADS_MAX: usize = 64;
const HIDDEN_MAX: usize = 16_384;
const EXPERTS_MAX: usize = 256;
const STATE_MAX: usize = 4096;
/// Width times inner width times experts, at most: a quarter of a gibibyte in each of a layer's matrices.
const MATRIX_MAX: usize = 1 << 26;
const _: () = assert!(WIDTH_MAX * WIDTH_MAX <= MATRIX_MAX && WIDTH_MAX * STATE_MAX <= MATRIX_MAX);
const _: () = assert!(WIDTH_MAX.checked_mul(HIDDEN_MAX * EXPERTS_MAX).is_some());

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
    /// On a number that is not finite or a path that is not UTF-8, which no checked emulation holds.
    pub fn write(&self) -> String {
        serde_json::to_string_pretty(self).expect("an emulation has string keys, finite numbers and UTF-8 paths")
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
        let limits = [
            ("width", width, WIDTH_MAX),
            ("heads", heads, HEADS_MAX),
            ("hidden", hidden, HIDDEN_MAX),
            ("experts", experts, EXPERTS_MAX),
            ("state", state, STATE_MAX),
            ("sequence", sequence, SEQUENCE_MAX),
        ];
        if let Some((name, found, most)) = limits.into_iter().find(|(_, found, most)| found > most) {
            return Err(wrong(&format!("shape.{name}"), &format!("at most {most}, not {found}")));
        }
        if width * hidden * experts > MATRIX_MAX {
            return Err(wrong("shape", &format!("width x hidden x experts is at most {MATRIX_MAX}")));
        }
        if !width.is_multiple_of(heads) {
            return Err(wrong("shape.heads", "heads divide the width"));
        }
        if vocabulary != TOKENS {
            return Err(wrong("shape.vocabulary", "tokens are bytes: 256"));
        }
        if !(0.0..=1.0).contains(&self.noise) {
            return Err(wrong("noise", "from 0 to 1"));
        }
        if !(0.0..=1.0).contains(&self.lengths) {
            return Err(wrong("lengths", "from 0 to 1"));
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
            if (layer_type == LayerType::Embedding) != (at == 0)
                || (layer_type == LayerType::Head) != (at == layers - 1)
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn are_alike(lengths: &f64) -> bool {
    *lengths == 0.0
}

fn wrong(path: &str, problem: &str) -> FormatError {
    FormatError::Value { path: path.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{
        "format": "adaptis.emulation/1",
        "job": { "run": "demo", "iterations": 120 },
        "truth": {
            "format": "adaptis.problem/1", "microbatches": 2,
            "layers": [
                { "name": "a", "signature": "embedding/x", "state_bytes": 1, "output_bytes": 1 },
                { "name": "b", "signature": "head/x", "state_bytes": 1, "output_bytes": 1, "moved_bytes": 7 } ],
            "devices": [
                { "name": "gpu0", "kind": "k", "memory_bytes": 10, "reserved_bytes": 3 },
                { "name": "gpu1", "kind": "k", "memory_bytes": 10 } ],
            "costs": { "k": [
                { "forward_ns": 1, "input_gradient_ns": 1, "weight_gradient_ns": 1, "activation_bytes": 1,
                  "weight_gradient_bytes": 1 },
                { "forward_ns": 1, "input_gradient_ns": 1, "weight_gradient_ns": 1, "activation_bytes": 1,
                  "weight_gradient_bytes": 1 } ] },
            "links": { "default": { "latency_ns": 0, "bytes_per_second": 1e9 } } },
        "layer_types": ["embedding", "head"],
        "shape": { "width": 8, "heads": 2, "hidden": 8, "experts": 2, "state": 4, "sequence": 16, "vocabulary": 256 },
        "seed": 1, "text": "text", "noise": 0.1,
        "faults": [
            { "iteration": 40, "kind": "throttle", "device": "gpu1", "factor": 1.8 },
            { "iteration": 50, "kind": "slowlink", "between": ["gpu0", "gpu1"], "factor": 4.0 } ] }"#;

    #[test]
    fn a_file_reads_back_as_it_was_written() {
        let emulation = Emulation::read(TEXT).unwrap();
        let slow = Fault::SlowLink { iteration: 50, between: ["gpu0".into(), "gpu1".into()], factor: 4.0 };
        assert_eq!(emulation.faults[1], slow);
        assert_eq!(Emulation::read(&emulation.write()).unwrap(), emulation);
        let differing = Emulation { lengths: 0.3, ..emulation.clone() };
        assert_eq!(Emulation::read(&differing.write()).unwrap(), differing);
        assert!(!emulation.write().contains("lengths"), "a reader one version older knows the file of a run without");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_path() {
        let cases = [
            ("adaptis.emulation/1", "adaptis.emulation/2", "adaptis.emulation/2"),
            ("\"noise\": 0.1", "\"noise\": 2.0", "noise"),
            ("\"noise\": 0.1", "\"nose\": 0.1", "nose"),
            ("\"noise\": 0.1", "\"noise\": 0.1, \"lengths\": 1.5", "lengths"),
            ("\"heads\": 2", "\"heads\": 3", "shape.heads"),
            ("\"hidden\": 8", "\"hidden\": 1000000000000000", "shape.hidden"),
            ("\"experts\": 2", "\"experts\": 18446744073709551615", "shape.experts"),
            ("\"width\": 8, \"heads\": 2, \"hidden\": 8", "\"width\": 4096, \"heads\": 2, \"hidden\": 16384", "shape"),
            ("\"vocabulary\": 256", "\"vocabulary\": 300", "shape.vocabulary"),
            ("[\"embedding\", \"head\"]", "[\"head\", \"head\"]", "layer_types[0]"),
            ("[\"embedding\", \"head\"]", "[\"embedding\", \"haed\"]", "layer_types[1]"),
            ("[\"embedding\", \"head\"]", "[\"embedding\"]", "layer_types"),
            ("\"device\": \"gpu1\"", "\"device\": \"gpu9\"", "faults[0]"),
            ("\"factor\": 4.0", "\"factor\": 0.0", "faults[1].factor"),
            ("\"slowlink\"", "\"slowlunk\"", "faults[1]"),
            ("\"memory_bytes\": 10,", "\"memory_bytes\": -10,", "truth.devices[0].memory_bytes"),
        ];
        for (right, wrong, path) in cases {
            assert!(TEXT.contains(right));
            let error = Emulation::read(&TEXT.replacen(right, wrong, 1)).unwrap_err().to_string();
            assert!(error.contains(path), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_job_and_a_card_say_sizes_and_no_costs() {
        let emulation = Emulation::read(TEXT).unwrap();
        let job = emulation.job();
        assert_eq!((job.microbatches, job.iterations, job.devices.len()), (2, 120, 2));
        assert_eq!(job.layers.iter().map(|layer| layer.moved_bytes).collect::<Vec<_>>(), [1, 7]);
        assert_eq!(emulation.card(0).reserved_bytes, 3);
    }
}
