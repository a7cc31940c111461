//! The planning problem of a job that has not begun, from profiles of earlier ones: layers as a recorded job had them,
//! devices as asked for, costs by kind and signature.
//!
//! 1. A time that was measured on the kind is taken as it was; one that was not is predicted; where nothing can be, the
//!    problem is refused with all that is missing. A kind on which nothing at all was measured has no speed to predict
//!    from, unless its devices were calibrated beside others of kinds that were measured.
//! 2. Of a phase that no profile of a signature knows, while its forward is known, it is said that the layer has none.
//! 3. Every number that is not measured on its kind is listed as predicted, or is a remark.
//!
//! Left out on purpose: differences between two devices of a kind, jitter, and what a boundary takes: they are known when
//! the job runs.

mod between;
mod predicted;
mod told;

pub use between::Overhead;
pub use predicted::{Predicted, Reliance};
pub use told::{Missing, NoPrediction, Remark};

use crate::predict::{CannotPredict, Cell, MeasuredPhase, Prediction, Source};
use adaptis_plan::problem::TOTAL_MAX;
use adaptis_plan::{Cost, Device, FormatError, Layer, Link, Problem};
use adaptis_proto::message::JobLayer;
use adaptis_proto::rates::Calibrated;
use adaptis_proto::sample::Phase;
use std::collections::{BTreeMap, BTreeSet};

/// A time and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Known {
    /// Median.
    pub seconds: f64,
    /// Between it and `high` the time lies in 90 of 100 cases.
    pub low: f64,
    /// See `low`.
    pub high: f64,
    /// Samples behind it.
    pub count: u64,
}

/// What a layer holds on a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerMemory {
    /// From the start of F.
    pub activation_bytes: u64,
    /// Of it, until the end of W; none where nobody measured it.
    pub weight_gradient_bytes: Option<u64>,
    /// Transient.
    pub workspace_bytes: u64,
}

/// Transfers of one size between devices of two kinds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfers {
    /// Size of one.
    pub bytes: u64,
    /// Median time of one.
    pub median_ns: f64,
    /// How many.
    pub count: u64,
    /// Standard deviation of the logarithm of one.
    pub ln_spread: f64,
}

/// What is known of kinds.
#[derive(Clone, Debug, Default)]
pub struct Profiles {
    /// By kind, signature, phase.
    pub times: BTreeMap<(String, String, Phase), Known>,
    /// By signature and kind.
    pub memories: BTreeMap<(String, String), LayerMemory>,
    /// By kind of sender and receiver.
    pub transfers: BTreeMap<(String, String), Vec<Transfers>>,
    /// By kind.
    pub overheads: BTreeMap<String, Overhead>,
}

/// A device of the job to come.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// As the problem has it.
    pub device: Device,
    /// Where it stands; devices of one node share its link.
    pub node: String,
}

/// What is asked.
pub struct Request<'a> {
    /// The model.
    pub layers: &'a [JobLayer],
    /// In an iteration.
    pub microbatches: u32,
    /// In the order of a plan's programs.
    pub devices: &'a [Wanted],
    /// Links within a node, if somebody gave one: it counts more than profiles.
    pub within_node: Option<Link>,
    /// Links between nodes, likewise.
    pub between_nodes: Option<Link>,
    /// For links that nobody gave and no profile knows.
    pub unseen_link: Link,
}

/// Who answers where nothing was measured.
pub type Predict<'a> = &'a dyn Fn(&Cell) -> Result<Prediction, CannotPredict>;

/// Why there is no problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Profiles are missing; each once.
    Missing(Vec<Missing>),
    /// The numbers make no problem.
    Implausible(FormatError),
}

/// A problem and what in it is no measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct NextJob {
    /// Checked.
    pub problem: Problem,
    /// In the order of kinds and layers, each once.
    pub predicted: Vec<Predicted>,
    /// In the order of kinds and layers, each once.
    pub remarks: Vec<Remark>,
    /// By kind: times that were measured on it, and samples behind them.
    pub measured: BTreeMap<String, (usize, u64)>,
}

/// Puts a problem together.
///
/// # Errors
/// What is missing, or what the problem's check says.
pub fn next_job(request: &Request<'_>, profiles: &Profiles, predict: Predict<'_>) -> Result<NextJob, Refused> {
    let mut assembly = Assembly {
        profiles,
        predict,
        predicted: Vec::new(),
        remarks: Vec::new(),
        missing: BTreeSet::new(),
        used: BTreeMap::new(),
    };
    let kinds: BTreeSet<&str> = request.devices.iter().map(|wanted| wanted.device.kind.as_str()).collect();
    let signatures: Vec<&str> = {
        let mut seen = BTreeSet::new();
        request.layers.iter().map(|layer| layer.signature.as_str()).filter(|of| seen.insert(*of)).collect()
    };
    let mut costs = BTreeMap::new();
    let mut optimizer_ns = BTreeMap::new();
    for kind in &kinds {
        let of_signature = assembly.of_kind(kind, &signatures);
        let of_layer = |layer: &JobLayer| of_signature[layer.signature.as_str()].clone();
        costs.insert((*kind).to_owned(), request.layers.iter().map(|layer| of_layer(layer).0).collect());
        optimizer_ns.insert((*kind).to_owned(), request.layers.iter().map(|layer| of_layer(layer).1).collect());
    }
    if !assembly.missing.is_empty() {
        return Err(Refused::Missing(assembly.missing.into_iter().collect()));
    }
    let overhead = between::overhead(request, profiles, &mut assembly.remarks);
    let crossing_ns = overhead.transfer_ns.unwrap_or(0);
    let mut on_hosts: BTreeMap<&str, usize> = BTreeMap::new();
    let is_host = |wanted: &&Wanted| Calibrated::of_kind(&wanted.device.kind) == Calibrated::Host;
    for wanted in request.devices.iter().filter(is_host) {
        *on_hosts.entry(&wanted.node).or_default() += 1;
    }
    let crowded = on_hosts.into_iter().filter(|&(_, ranks)| ranks > 1);
    assembly.remarks.extend(crowded.map(|(node, ranks)| Remark::OwnCores { node: node.to_owned(), ranks }));
    let links = between::links(request, profiles, crossing_ns, &mut assembly.remarks);
    let layer = |layer: &JobLayer| Layer {
        name: layer.name.clone(),
        signature: layer.signature.clone(),
        parameter_bytes: layer.parameter_bytes,
        state_bytes: layer.state_bytes,
        output_bytes: layer.output_bytes,
        moved_bytes: Some(layer.moved_bytes),
        note: None,
    };
    let layers = request.layers.iter().map(layer).collect();
    let devices = request.devices.iter().map(|wanted| wanted.device.clone()).collect();
    let problem = Problem {
        optimizer_ns,
        stage_ns: overhead.instruction_ns.unwrap_or(0),
        crossing_ns,
        ..Problem::new(request.microbatches, layers, devices, costs, links)
    };
    problem.check().map_err(Refused::Implausible)?;
    let used = assembly.used.iter();
    let measured = used.map(|(kind, of)| (kind.clone(), (of.len(), of.values().sum()))).collect();
    Ok(NextJob { problem, predicted: assembly.predicted, remarks: assembly.remarks, measured })
}

struct Assembly<'a> {
    profiles: &'a Profiles,
    predict: Predict<'a>,
    predicted: Vec<Predicted>,
    remarks: Vec<Remark>,
    missing: BTreeSet<Missing>,
    /// By kind: what was measured on it and is in the problem, with its samples.
    used: BTreeMap<String, BTreeMap<(String, Phase), u64>>,
}

impl Assembly<'_> {
    /// Cost and optimizer step of each signature on a kind.
    fn of_kind<'s>(&mut self, kind: &str, signatures: &[&'s str]) -> BTreeMap<&'s str, (Cost, u64)> {
        let mut without_optimizer = 0;
        let mut costs = BTreeMap::new();
        for &signature in signatures {
            let memory = self.memory(kind, signature);
            let cost = Cost {
                forward_ns: self.time(kind, signature, Phase::Forward),
                input_gradient_ns: self.time(kind, signature, Phase::InputGradient),
                weight_gradient_ns: self.time(kind, signature, Phase::WeightGradient),
                activation_bytes: memory.activation_bytes,
                weight_gradient_bytes: memory.weight_gradient_bytes.unwrap_or(memory.activation_bytes),
                workspace_bytes: memory.workspace_bytes,
                ..Cost::default()
            };
            let optimizer = self.optimizer(kind, signature);
            without_optimizer += usize::from(optimizer.is_none());
            costs.insert(signature, (cost, optimizer.unwrap_or(0)));
        }
        if without_optimizer > 0 {
            self.remarks.push(Remark::NoOptimizer { kind: kind.to_owned(), signatures: without_optimizer });
        }
        costs
    }

    fn measured(&mut self, kind: &str, signature: &str, phase: Phase) -> Option<u64> {
        let known = self.profiles.times.get(&(kind.to_owned(), signature.to_owned(), phase))?;
        let used = self.used.entry(kind.to_owned()).or_default();
        used.insert((signature.to_owned(), phase), known.count);
        Some(nanoseconds(known.seconds))
    }

    fn time(&mut self, kind: &str, signature: &str, phase: Phase) -> u64 {
        if let Some(ns) = self.measured(kind, signature, phase) {
            return ns;
        }
        if phase != Phase::Forward && self.has_no(signature, phase) {
            return 0;
        }
        self.predicted(kind, signature, phase).unwrap_or_else(|why| {
            let (kind, signature) = (kind.to_owned(), signature.to_owned());
            self.missing.insert(Missing::Time { kind, signature, phase, why });
            0
        })
    }

    fn predicted(&mut self, kind: &str, signature: &str, phase: Phase) -> Result<u64, NoPrediction> {
        let (kind, signature) = (kind.to_owned(), signature.to_owned());
        let cell = Cell { kind: kind.clone(), signature: signature.clone(), phase: MeasuredPhase::from(phase) };
        let time = (self.predict)(&cell).map_err(NoPrediction::Nothing)?;
        if time.source == Source::UnknownKind {
            return Err(NoPrediction::UnknownKind);
        }
        self.predicted.push(Predicted { kind, signature, phase, time });
        Ok(nanoseconds(time.seconds))
    }

    /// The optimizer step of layers, of which no kind need know one: nobody may have measured it.
    fn optimizer(&mut self, kind: &str, signature: &str) -> Option<u64> {
        let is_known = |(_, of, phase): &(String, String, Phase)| of == signature && *phase == Phase::Optimizer;
        match self.measured(kind, signature, Phase::Optimizer) {
            None if self.profiles.times.keys().any(is_known) => self.predicted(kind, signature, Phase::Optimizer).ok(),
            measured => measured,
        }
    }

    /// Whether layers of a signature lack a phase: of some kind both other phases of training are known, or this kind of
    /// layer was trained without any backward, and this one is known of none.
    fn has_no(&self, signature: &str, phase: Phase) -> bool {
        let is_known = |phase| self.profiles.times.keys().any(|(_, of, known)| of == signature && *known == phase);
        let backward = [Phase::InputGradient, Phase::WeightGradient];
        !is_known(phase) && is_known(Phase::Forward) && backward.into_iter().any(is_known)
    }

    fn memory(&mut self, kind: &str, signature: &str) -> LayerMemory {
        let memories = &self.profiles.memories;
        let own = memories.get(&(signature.to_owned(), kind.to_owned()));
        let other = || memories.iter().find(|((of, _), _)| of == signature);
        let memory = match (own, own.map_or_else(other, |_| None)) {
            (Some(memory), _) => *memory,
            (None, Some(((_, measured), memory))) => {
                let (signature, kind, measured) = (signature.to_owned(), kind.to_owned(), measured.clone());
                self.remarks.push(Remark::MemoryOfOtherKind { signature, kind, measured });
                *memory
            }
            (None, None) => {
                self.missing.insert(Missing::Memory { signature: signature.to_owned() });
                return LayerMemory { activation_bytes: 0, weight_gradient_bytes: None, workspace_bytes: 0 };
            }
        };
        let remark = Remark::HeldUntilW { signature: signature.to_owned() };
        if memory.weight_gradient_bytes.is_none() && !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
        memory
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).clamp(0.0, TOTAL_MAX as f64).round() as u64
}
