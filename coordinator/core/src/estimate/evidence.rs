//! What was seen of devices, as the fit wants it.

use super::earlier::OfKind;
use super::figures::PHASES;
use super::fit::{self, Observation, Origin, Row};
use super::scatter::Scatter;
use super::{Estimator, window};
use std::collections::{BTreeMap, BTreeSet};

/// Shorter works are overhead of the clock: they count as this layer's cost but say nothing of a device's speed.
const NEGLIGIBLE_NS: f64 = 100.0;
/// Part of a work's time that scheduling blurs whatever its length.
const BLUR_NS: f64 = 10_000.0;
/// What cold iterations may be off by, standard deviation of the logarithm; a calibration is as cold.
const COLD_SD: f64 = 0.05;
/// No observation is taken to be better than a clock.
const SD_MIN: f64 = 1e-3;

/// Kinds and signatures by number.
pub(super) struct Names {
    pub kinds: Vec<String>,
    pub signatures: Vec<String>,
    pub signature_of: Vec<usize>,
}

impl Names {
    pub fn of(estimator: &Estimator) -> Self {
        let now = estimator.job.devices.iter().map(|card| &card.kind);
        let kinds = now.chain(estimator.departed.iter().map(|(kind, _)| kind)).cloned().collect::<BTreeSet<_>>();
        let mut signatures: Vec<String> = Vec::new();
        let mut number: BTreeMap<&str, usize> = BTreeMap::new();
        let signature_of = estimator.job.layers.iter().map(|layer| {
            *number.entry(&layer.signature).or_insert_with(|| {
                signatures.push(layer.signature.clone());
                signatures.len() - 1
            })
        });
        let signature_of = signature_of.collect();
        Self { kinds: kinds.into_iter().collect(), signatures, signature_of }
    }

    pub fn kind(&self, name: &str) -> usize {
        self.kinds.iter().position(|kind| kind == name).expect("every kind of the job is named")
    }

    /// What two signatures have in common if they are of one type: the text before the first slash.
    pub fn layer_type(&self, signature: usize) -> &str {
        self.signatures[signature].split('/').next().unwrap_or_default()
    }
}

/// What was seen, as the fit wants it.
pub(super) struct Evidence {
    pub rows: Vec<Row>,
    pub seen: Vec<Observation>,
    /// By device: its latest row.
    pub latest: Vec<Option<usize>>,
    /// By device: standard deviation of what the iterations of its latest row have in common beyond it.
    pub common_sd: Vec<f64>,
    /// By device: layer and phase measured in training since its last change, and how well.
    pub measured: Vec<BTreeMap<window::Key, f64>>,
    /// By device: signature and phase ever measured on it in training.
    pub known: Vec<BTreeSet<(usize, usize)>>,
    /// Kind, signature and phase ever measured in training.
    pub of_kind: BTreeSet<(usize, usize, usize)>,
    /// Kind, signature and phase ever measured in a calibration.
    pub calibrated: BTreeSet<(usize, usize, usize)>,
    /// Kind, signature and phase that earlier jobs measured.
    pub earlier: BTreeSet<(usize, usize, usize)>,
    /// By kind: the row of earlier jobs.
    pub earlier_row: BTreeMap<usize, usize>,
    /// By kind, signature and phase: works too short to tell anything by.
    pub negligible: BTreeMap<(usize, usize, usize), f64>,
    /// Signatures of which an F was seen in a whole iteration of training: a phase that they lack does not exist.
    pub trained: BTreeSet<usize>,
}

impl Evidence {
    pub fn gather(estimator: &Estimator, names: &Names, scatter: &Scatter) -> Self {
        let devices = estimator.job.devices.len();
        let mut evidence = Self {
            rows: Vec::new(),
            seen: Vec::new(),
            latest: vec![None; devices],
            common_sd: vec![0.0; devices],
            measured: vec![BTreeMap::new(); devices],
            known: vec![BTreeSet::new(); devices],
            of_kind: BTreeSet::new(),
            calibrated: BTreeSet::new(),
            earlier: BTreeSet::new(),
            earlier_row: BTreeMap::new(),
            negligible: BTreeMap::new(),
            trained: BTreeSet::new(),
        };
        for (device, (card, history)) in estimator.job.devices.iter().zip(&estimator.histories).enumerate() {
            evidence.add(Some(device), names.kind(&card.kind), history, names, scatter);
        }
        for (kind, history) in &estimator.departed {
            evidence.add(None, names.kind(kind), history, names, scatter);
        }
        for (kind, name) in names.kinds.iter().enumerate() {
            if let Some(earlier) = estimator.earlier.kinds.get(name) {
                evidence.add_earlier(kind, earlier, names);
            }
        }
        evidence
    }

    /// What earlier jobs measured of a kind, as a row of its own.
    fn add_earlier(&mut self, kind: usize, earlier: &OfKind, names: &Names) {
        let row = self.rows.len();
        let level_sd = earlier.level_sd.max(SD_MIN);
        for (signature, name) in names.signatures.iter().enumerate() {
            for phase in 0..PHASES.len() {
                let Some(time) = earlier.measured(name, phase) else { continue };
                if time.ln_ns < NEGLIGIBLE_NS.ln() {
                    continue;
                }
                // The optimizer says nothing of a row, so that what the row may be off by is in its own error.
                let common_sd = if phase == fit::OPTIMIZER { level_sd } else { 0.0 };
                let (layer, sd) = (names.signature_of.len() + signature, time.ln_sd.hypot(common_sd).max(SD_MIN));
                self.seen.push(Observation { row, layer, phase, ln_ns: time.ln_ns, sd });
                self.earlier.insert((kind, signature, phase));
            }
        }
        if self.seen.last().is_some_and(|seen| seen.row == row) {
            self.rows.push(Row { kind, before: None, after_change: false, origin: Origin::Earlier { level_sd } });
            self.earlier_row.insert(kind, row);
        }
    }

    fn add(&mut self, device: Option<usize>, kind: usize, history: &window::History, names: &Names, scatter: &Scatter) {
        let mut before = None;
        for segment in history.segments() {
            let row = self.rows.len();
            let origin = if segment.calibration { Origin::Calibration } else { Origin::Training };
            self.rows.push(Row { kind, before, after_change: segment.after_change, origin });
            before = Some(row);
            if let (Some(device), true) = (device, segment.after_change) {
                self.measured[device].clear();
            }
            let mut iterations = 0;
            for ((layer, phase), seen) in segment.seen() {
                iterations = iterations.max(seen.medians);
                let signature = names.signature_of[layer];
                if phase == 0 && seen.closed > 0 && !segment.calibration {
                    self.trained.insert(signature);
                }
                let works = scatter.median_sd(seen.works, seen.medians);
                let blur = BLUR_NS / seen.median_ns.max(1.0) / (seen.works as f64).sqrt();
                let cold = if seen.cold || segment.calibration { COLD_SD } else { 0.0 };
                let sd = works.hypot(blur).hypot(cold).max(SD_MIN);
                if segment.calibration {
                    self.calibrated.insert((kind, signature, phase));
                } else {
                    self.of_kind.insert((kind, signature, phase));
                    if let Some(device) = device {
                        self.known[device].insert((signature, phase));
                        self.measured[device].insert((layer, phase), sd);
                    }
                }
                if seen.median_ns < NEGLIGIBLE_NS {
                    let longest = self.negligible.entry((kind, signature, phase)).or_default();
                    *longest = longest.max(seen.median_ns);
                } else {
                    self.seen.push(Observation { row, layer, phase, ln_ns: seen.median_ns.ln(), sd });
                }
            }
            if let Some(device) = device {
                self.common_sd[device] = scatter.common_sd(iterations);
            }
        }
        if let Some(device) = device {
            self.latest[device] = before;
        }
    }
}
