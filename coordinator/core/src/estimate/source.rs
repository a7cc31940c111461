//! Where figures come from, and a table of them for people.

use super::figures::{Estimated, Figure, PHASES, Uncertainty};
use adaptis_proto::sample::Phase;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Where a number comes from, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Source {
    /// This layer ran on this device since its last change.
    Measured,
    /// Another layer of the same signature ran on this device, or this one did before its last change.
    SameSignature,
    /// The signature ran on another device of the same kind.
    OtherDeviceOfKind,
    /// The signature ran on this kind in earlier jobs, whose profiles are in the store; in this one in a calibration at
    /// most.
    EarlierJobs,
    /// The signature ran on this kind in a calibration only: a few works of a machine that just woke.
    Calibrated,
    /// The signature ran on other kinds only: carried over by the ratio of the kinds.
    OtherKind,
    /// The signature never ran on this kind: predicted from what earlier jobs ran on it and on other kinds.
    PredictedByEarlierJobs,
    /// The signature ran on other kinds only, and they and this one ran nothing in common: carried over by the ratio of
    /// what the kinds did in their agents' calibrations, of products or of copies.
    OtherKindByRates,
    /// The signature ran on other kinds only, and nothing tells them from this one: taken to take as long there.
    UnknownKind,
    /// Nobody ever measured it; the number is 0, or a carried over optimizer rate.
    None,
}

impl Source {
    /// All.
    pub const ALL: [Source; 10] = [
        Source::Measured,
        Source::SameSignature,
        Source::OtherDeviceOfKind,
        Source::EarlierJobs,
        Source::Calibrated,
        Source::OtherKind,
        Source::PredictedByEarlierJobs,
        Source::OtherKindByRates,
        Source::UnknownKind,
        Source::None,
    ];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Source::Measured => "measured",
            Source::SameSignature => "same_signature",
            Source::OtherDeviceOfKind => "other_device_of_kind",
            Source::EarlierJobs => "earlier_jobs",
            Source::Calibrated => "calibrated",
            Source::OtherKind => "other_kind",
            Source::PredictedByEarlierJobs => "predicted_by_earlier_jobs",
            Source::OtherKindByRates => "other_kind_by_rates",
            Source::UnknownKind => "unknown_kind",
            Source::None => "none",
        }
    }

    /// Nothing of this kind ran it in training: where works differ from it, the figure was wrong and not the device.
    pub fn is_guess(self) -> bool {
        self > Source::OtherDeviceOfKind
    }
}

/// What a layer phase costs on a kind.
#[derive(Clone, Debug, PartialEq)]
pub struct CostFigure<'a> {
    /// On which.
    pub kind: &'a str,
    /// Of layers of which signature: of them the one that is known best.
    pub signature: &'a str,
    /// What is done.
    pub phase: Phase,
    /// Nanoseconds on a device as its kind.
    pub ns: u64,
    /// How well that is known on the device that knows it best.
    pub figure: Figure,
}

impl Estimated {
    /// Every kind, signature and phase.
    pub fn costs(&self) -> Vec<CostFigure<'_>> {
        let problem = &self.problem;
        let signatures: BTreeSet<&str> = problem.layers.iter().map(|layer| layer.signature.as_str()).collect();
        let mut costs = Vec::new();
        for (kind, of_kind) in &problem.costs {
            for &signature in &signatures {
                for (at, phase) in PHASES.into_iter().enumerate() {
                    let layers =
                        (0..problem.layers.len()).filter(|&layer| problem.layers[layer].signature == signature);
                    let known = layers.filter_map(|layer| Some((layer, self.kind_figure(kind, layer, at)?)));
                    let Some((layer, figure)) = known.min_by(|a, b| better(a.1, b.1)) else { continue };
                    let cost = &of_kind[layer];
                    let optimizer_ns = problem.optimizer_ns.get(kind).map_or(0, |of| of[layer]);
                    let ns = [cost.forward_ns, cost.input_gradient_ns, cost.weight_gradient_ns, optimizer_ns][at];
                    costs.push(CostFigure { kind, signature, phase, ns, figure });
                }
            }
        }
        costs
    }

    /// The figure of the device of a kind that knows a layer's phase best.
    fn kind_figure(&self, kind: &str, layer: usize, phase: usize) -> Option<Figure> {
        let devices = self.problem.devices.iter().zip(&self.uncertainty.figures);
        let of_kind = devices.filter(|(device, _)| device.kind == kind);
        of_kind.map(|(_, figures)| figures[layer][phase]).min_by(|a, b| better(*a, *b))
    }
}

fn better(a: Figure, b: Figure) -> std::cmp::Ordering {
    a.ln_sd.total_cmp(&b.ln_sd)
}

impl Uncertainty {
    /// How many figures come from where.
    pub fn sources(&self) -> BTreeMap<Source, u64> {
        let mut sources = BTreeMap::new();
        for figure in self.figures.iter().flatten().flatten() {
            *sources.entry(figure.source).or_default() += 1;
        }
        sources
    }
}
