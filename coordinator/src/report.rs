//! The report of a run, `adaptis.report/1`, and the plans beside it. Everything in it stands in the store already.
//!
//! A phase runs from its first iteration to its last, both included. Its measured median is over all of its iterations,
//! so that a reader can check it with what the report lists.

use crate::profiles::MeasuredPhase;
use crate::{CoordinatorError, Mode, Options};
use adaptis_coordinator_core::estimate::CostFigure;
use adaptis_coordinator_core::ledger::{
    Decision, GenerationRecord, IterationRecord, PhaseRecord, PlanRecord, SwitchRecord,
};
use adaptis_coordinator_core::{Advice, Recovered};
use adaptis_plan::{Plan, Predicted};
use adaptis_proto::message::PeakMemory;
use adaptis_proto::{DeviceIndex, Digest, Epoch, Generation, LayerIndex, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the report in the run's folder.
pub const FILE: &str = "report.json";
/// Name of the folder of plans in the run's folder.
pub const PLANS: &str = "plans";
/// Folder of what would be better, in a run's folder: `plan.json` and the `problem.json` that it solves.
pub const ADVICE: &str = "advice";
const FORMAT: &str = "adaptis.report/1";

/// A fault that was made on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    iteration: u64,
    text: String,
}

/// What a report is made of.
pub(crate) struct Sources<'a> {
    pub(crate) recovered: Recovered,
    /// In order of index and generation.
    pub(crate) iterations: Vec<IterationRecord>,
    pub(crate) counters: Vec<(String, u64)>,
    /// How many costs come from where.
    pub(crate) figures: BTreeMap<&'static str, u64>,
    /// As last estimated.
    pub(crate) costs: Vec<CostFigure<'a>>,
    pub(crate) faults: &'a [Fault],
    pub(crate) options: &'a Options,
    pub(crate) mode: Mode,
}

#[derive(Serialize)]
struct Report<'a> {
    format: &'static str,
    configuration: Configuration<'a>,
    devices: Vec<DeviceRow<'a>>,
    plans: Vec<PlanRow>,
    iterations: Vec<IterationRow>,
    final_state_digest: Option<String>,
    faults: &'a [Fault],
    decisions: Vec<DecisionRow<'a>>,
    switches: Vec<SwitchRow>,
    phases: Vec<PhaseRow>,
    /// What each kind's works cost by the last estimate of this reign, with where that comes from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    estimate: Vec<EstimateRow<'a>>,
    /// How many costs, of a device, layer and phase each, come from where.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    figures: BTreeMap<&'static str, u64>,
    counters: BTreeMap<&'a str, u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    memory: Vec<MemoryRow<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

#[derive(Serialize)]
struct Configuration<'a> {
    run: &'a str,
    mode: &'static str,
    #[serde(rename = "static")]
    is_static: bool,
    seed: u64,
    search_budget_ns: u64,
    horizon_iterations: u64,
    microbatches: u32,
    iterations: u64,
    layers: Vec<LayerRow<'a>>,
}

#[derive(Serialize)]
struct LayerRow<'a> {
    name: &'a str,
    signature: &'a str,
    parameter_bytes: u64,
    state_bytes: u64,
    output_bytes: u64,
}

#[derive(Serialize)]
struct DeviceRow<'a> {
    name: &'a str,
    kind: &'a str,
    memory_bytes: u64,
    reserved_bytes: u64,
}

#[derive(Serialize)]
struct PlanRow {
    epoch: Epoch,
    parent: Epoch,
    /// First iteration under it; none if it never was in force.
    iteration: Option<Step>,
    aborted: bool,
    digest: String,
    predicted: Option<Predicted>,
    file: String,
}

#[derive(Serialize)]
struct IterationRow {
    index: Step,
    epoch: Epoch,
    generation: Generation,
    duration_ns: u64,
    loss: Option<f32>,
    loss_bits: String,
}

#[derive(Serialize)]
struct DecisionRow<'a> {
    #[serde(flatten)]
    decision: &'a Decision,
    /// Verdict, reason and numbers in words.
    text: String,
}

#[derive(Serialize)]
struct SwitchRow {
    iteration: Step,
    from: Epoch,
    to: Epoch,
    layers_moved: u32,
    bytes_moved: u64,
    pause_ns: u64,
}

#[derive(Serialize)]
struct PhaseRow {
    from: Step,
    to: Step,
    epoch: Epoch,
    measured_median_ns: u64,
    predicted_ns: Option<u64>,
    /// The change that it began with.
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<String>,
}

#[derive(Serialize)]
struct MemoryRow<'a> {
    epoch: Epoch,
    device: &'a str,
    predicted_bytes: Option<u64>,
    measured_bytes: u64,
    shortfall_bytes: Option<u64>,
    /// What a person should know of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<String>,
}

#[derive(Serialize)]
struct EstimateRow<'a> {
    kind: &'a str,
    signature: &'a str,
    phase: &'static str,
    ns: u64,
    /// Between it and `high_ns` the time lies in 90 of 100 cases.
    low_ns: u64,
    high_ns: u64,
    source: &'static str,
}

impl<'a> EstimateRow<'a> {
    fn of(CostFigure { kind, signature, phase, ns, figure }: CostFigure<'a>) -> Self {
        let times = |factor: f64| (ns as f64 * factor).round() as u64;
        let (low_ns, high_ns) = (times(figure.low()), times(figure.high()));
        let phase = MeasuredPhase::from(phase).word();
        Self { kind, signature, phase, ns, low_ns, high_ns, source: figure.source.word() }
    }
}

/// Writes the report into a folder, whole or not at all. Gives its path.
///
/// # Errors
/// The folder can't be written.
pub(crate) fn write(dir: &Path, sources: &Sources<'_>) -> Result<PathBuf, CoordinatorError> {
    let path = dir.join(FILE);
    let mut text = serde_json::to_string_pretty(&report(sources)).expect("a report has string keys");
    text.push('\n');
    replace(&path, text.as_bytes())?;
    Ok(path)
}

/// Whether a folder holds the report of a run that has ended.
pub(crate) fn is_final(dir: &Path) -> bool {
    let text = std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    !report["final_state_digest"].is_null() || !report["failure"].is_null()
}

/// Writes a plan into the folder of plans.
///
/// # Errors
/// The folder can't be written.
pub(crate) fn write_plan(dir: &Path, plan: &PlanRecord) -> Result<(), CoordinatorError> {
    let folder = dir.join(PLANS);
    std::fs::create_dir_all(&folder).map_err(|source| CoordinatorError::File { path: folder.clone(), source })?;
    replace(&folder.join(plan_file(plan.epoch)), plan.text.as_bytes())
}

/// Writes what would be better, the problem first: a plan is there only beside its problem. Where it is.
///
/// # Errors
/// A file that can't be written.
pub(crate) fn write_advice(dir: &Path, advice: &Advice) -> Result<PathBuf, CoordinatorError> {
    let folder = dir.join(ADVICE);
    std::fs::create_dir_all(&folder).map_err(|source| CoordinatorError::File { path: folder.clone(), source })?;
    replace(&folder.join("problem.json"), advice.problem.write().as_bytes())?;
    replace(&folder.join("plan.json"), advice.plan.write().as_bytes())?;
    Ok(folder)
}

/// Writes the plans of the ledger that the folder lacks: a reign may have ended between the two, or the disk was full.
///
/// # Errors
/// The first one that can't be written.
pub(crate) fn write_missing_plans<'a>(
    dir: &Path,
    plans: impl Iterator<Item = &'a PlanRecord>,
) -> Result<(), CoordinatorError> {
    let is_missing = |plan: &&PlanRecord| !dir.join(PLANS).join(plan_file(plan.epoch)).exists();
    plans.filter(is_missing).try_for_each(|plan| write_plan(dir, plan))
}

/// Reads a list of faults.
///
/// # Errors
/// The file can't be read, or is no such list.
pub(crate) fn read_faults(path: &Path) -> Result<Vec<Fault>, CoordinatorError> {
    let path = path.to_owned();
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|source| CoordinatorError::Faults { path, source }),
        Err(source) => Err(CoordinatorError::File { path, source }),
    }
}

fn plan_file(epoch: Epoch) -> String {
    format!("epoch-{epoch}.json")
}

/// Replaces a file: whoever reads it finds the old text or the new one, also after a crash.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), CoordinatorError> {
    let temporary = path.with_extension("json.new");
    let replaced = put(&temporary, path, bytes);
    if replaced.is_err() {
        // What is half written is of no use to anyone, and takes the space that was missing.
        let _ = std::fs::remove_file(&temporary);
    }
    replaced.map_err(|source| CoordinatorError::File { path: path.to_owned(), source })
}

fn put(temporary: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(temporary)?;
    file.write_all(bytes).and_then(|()| file.sync_all())?;
    std::fs::rename(temporary, path)?;
    path.parent().map(std::fs::File::open).transpose()?.map_or(Ok(()), |folder| folder.sync_all())
}

fn report<'a>(sources: &'a Sources<'_>) -> Report<'a> {
    let Sources { recovered, counters, faults, options, mode, .. } = sources;
    let generation = recovered.generation.as_ref();
    let cards = generation.map_or(&[][..], |record| &record.cards);
    let name_of = |device: DeviceIndex| {
        cards.get(device.index()).map_or_else(|| format!("device {device}"), |card| card.name.clone())
    };
    let latest = latest(&sources.iterations);
    Report {
        format: FORMAT,
        configuration: configuration(options, *mode, generation),
        devices: cards
            .iter()
            .map(|card| DeviceRow {
                name: &card.name,
                kind: &card.kind,
                memory_bytes: card.memory_bytes,
                reserved_bytes: card.reserved_bytes,
            })
            .collect(),
        plans: plans(recovered, &latest),
        iterations: sources.iterations.iter().map(iteration).collect(),
        final_state_digest: recovered.finished.as_ref().map(|finished| state_digest(&finished.layers)),
        faults,
        decisions: recovered
            .decisions
            .iter()
            .map(|decision| DecisionRow { decision, text: decision.text(name_of) })
            .collect(),
        switches: recovered.switches.iter().map(switch).collect(),
        phases: phases(&recovered.phases, &latest, name_of),
        estimate: sources.costs.iter().cloned().map(EstimateRow::of).collect(),
        figures: sources.figures.clone(),
        counters: counters.iter().map(|(name, count)| (name.as_str(), *count)).collect(),
        memory: recovered.peaks.iter().map(memory).collect(),
        failure: recovered.failed.as_ref().map(ToString::to_string),
    }
}

fn configuration<'a>(options: &Options, mode: Mode, generation: Option<&'a GenerationRecord>) -> Configuration<'a> {
    let job = generation.map(|record| &record.job);
    let layers = job.map_or(&[][..], |job| &job.layers);
    Configuration {
        run: job.map_or("", |job| &job.run.0),
        mode: mode.word(),
        is_static: options.static_plan,
        seed: options.seed,
        search_budget_ns: u64::try_from(options.search_budget.as_nanos()).unwrap_or(u64::MAX),
        horizon_iterations: options.horizon_iterations,
        microbatches: job.map_or(0, |job| job.microbatches),
        iterations: job.map_or(0, |job| job.iterations),
        layers: layers
            .iter()
            .map(|layer| LayerRow {
                name: &layer.name,
                signature: &layer.signature,
                parameter_bytes: layer.parameter_bytes,
                state_bytes: layer.state_bytes,
                output_bytes: layer.output_bytes,
            })
            .collect(),
    }
}

/// The last entry of each index, by index.
fn latest(iterations: &[IterationRecord]) -> BTreeMap<Step, IterationRecord> {
    iterations.iter().map(|iteration| (iteration.index, *iteration)).collect()
}

fn plans(recovered: &Recovered, latest: &BTreeMap<Step, IterationRecord>) -> Vec<PlanRow> {
    let first = |epoch: Epoch| latest.values().find(|iteration| iteration.epoch == epoch).map(|found| found.index);
    let row = |plan: &PlanRecord| PlanRow {
        epoch: plan.epoch,
        parent: plan.parent,
        iteration: first(plan.epoch),
        aborted: recovered.aborted.contains(&plan.epoch),
        digest: plan.digest.to_string(),
        predicted: Plan::read(&plan.text).ok().and_then(|plan| plan.predicted),
        file: format!("{PLANS}/{}", plan_file(plan.epoch)),
    };
    recovered.plans.values().map(row).collect()
}

fn iteration(record: &IterationRecord) -> IterationRow {
    let loss = f32::from_bits(record.loss_bits);
    IterationRow {
        index: record.index,
        epoch: record.epoch,
        generation: record.generation,
        duration_ns: record.duration_ns,
        loss: loss.is_finite().then_some(loss),
        loss_bits: format!("{:08x}", record.loss_bits),
    }
}

fn switch(record: &SwitchRecord) -> SwitchRow {
    SwitchRow {
        iteration: record.iteration,
        from: record.from,
        to: record.to,
        layers_moved: record.layers_moved,
        bytes_moved: record.bytes_moved,
        pause_ns: record.pause_ns,
    }
}

fn memory(peak: &PeakMemory) -> MemoryRow<'_> {
    let remark = || {
        format!(
            "plan {} needed {} bytes more on {} than predicted, of {} that it left free; what two iterations needed is reserved \
             for later plans",
            peak.epoch,
            peak.shortfall_bytes().unwrap_or(0),
            peak.device,
            peak.margin_bytes(),
        )
    };
    MemoryRow {
        epoch: peak.epoch,
        device: &peak.device,
        predicted_bytes: peak.predicted_bytes,
        measured_bytes: peak.measured_bytes,
        shortfall_bytes: peak.shortfall_bytes(),
        remark: peak.is_close().then(remark),
    }
}

/// Phases with at least one iteration, each until the next begins.
fn phases(
    records: &[PhaseRecord],
    latest: &BTreeMap<Step, IterationRecord>,
    name_of: impl Fn(DeviceIndex) -> String,
) -> Vec<PhaseRow> {
    let mut records = records.to_vec();
    records.sort_by_key(|record| (record.from, record.epoch));
    let ends = records.iter().skip(1).map(|next| next.from).chain([Step(u64::MAX)]);
    let phase = |(record, end): (&PhaseRecord, Step)| {
        if end <= record.from {
            return None;
        }
        let of: Vec<&IterationRecord> =
            latest.range(record.from..end).map(|(_, of)| of).filter(|of| of.epoch == record.epoch).collect();
        let (first, last) = (of.first()?.index, of.last()?.index);
        let measured_median_ns = median(of.iter().map(|of| of.duration_ns).collect());
        Some(PhaseRow {
            from: first,
            to: last,
            epoch: record.epoch,
            measured_median_ns,
            predicted_ns: record.predicted_ns,
            change: record.change.map(|change| format!("{} takes {change}", change.who.named(&name_of))),
        })
    };
    records.iter().zip(ends).filter_map(phase).collect()
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    let middle = values.len() / 2;
    match values.as_slice() {
        [] => 0,
        of if of.len().is_multiple_of(2) => of[middle - 1].midpoint(of[middle]),
        of => of[middle],
    }
}

/// One digest over those of all layers, in layer order.
fn state_digest(layers: &[(LayerIndex, Digest)]) -> String {
    let mut layers = layers.to_vec();
    layers.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for (_, digest) in &layers {
        hasher.update(&digest.0);
    }
    hasher.finalize().to_hex().to_string()
}
