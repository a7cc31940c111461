//! From samples to a planning problem: what each layer costs on each kind, how much slower than its kind each device is,
//! what the links carry, and how well all of it is known.
//!
//! ```text
//!   Work       -> window  (medians per iteration, layer, phase; a segment ends at a change) -> fit ---+
//!                     `-> jitter (deviations within an iteration) ------------------------------------+
//!   Load       -> loads  -> covariates (a work's time over that at the mean load; all of the above is divided by it)
//!   Transfer   -> link    (latency and bandwidth per directed pair) ----------------------------------+-> assemble
//!   Iteration  -> iterations (what a plan takes; what is neither work nor optimizer) -----------------+   -> Estimated
//!   Between    -> between (what an instruction costs beside its layers, and what crosses) ------------+
//!   LayerMemory, DeviceMemory -> the last ones ------------------------------------------------------+
//!   DeviceMemory -> peaks (what a plan needed beyond what was estimated of it) ------------------------+
//!   calibrations of agents -> rates (kinds that ran nothing in common) ------------------------------+
//!   earlier jobs -> earlier (a row of the fit for each kind; what never ran anywhere, predicted) -----+
//! ```
//!
//! 1. A throttled device is a slow device, never slow layers (`fit` has the model and its convention for "1.0").
//! 2. After a change at step s no sample before s counts for the slowdown of that device or the speed of that link; for
//!    what layers cost in relation to each other it still does.
//! 3. Every number says where it comes from and how far it may be off; a guess is never as narrow as a measurement.
//! 4. Absorbing is constant time, and memory is bounded: each store names its limit.
//!
//! 5. Where microbatches differ and their loads are recorded, costs are those of the mean load of late ([`Covariates`]);
//!    else
//!    nothing is divided by anything.
//!
//! Left out on purpose: what a plan takes whose microbatches differ (the format has one cost for all), a second slowdown for memory
//! bound work (the format has one per device), what a separate I costs more than the same work in B (its samples come
//! as one), and recomputation, which is F again.

mod assemble;
pub mod between;
mod covariates;
pub mod earlier;
mod evidence;
mod figures;
mod fit;
mod hardware;
mod iterations;
mod jitter;
mod joint;
mod link;
mod loads;
mod normalise;
mod own;
mod peaks;
mod posterior;
pub(crate) mod random;
mod rates;
pub(crate) mod robust;
mod scatter;
mod source;
#[cfg(test)]
pub(crate) mod synthetic;
#[cfg(test)]
mod tests;
mod window;

pub use covariates::{Covariates, Fitted, Form};
pub use figures::{Estimated, Figure, LinkFigure, Missing, NotYet, PHASES, Uncertainty, phase_index};
pub use source::{CostFigure, Source};

pub use loads::Load;

pub(crate) use link::fit_sizes;
pub(crate) use loads::Loads;
pub(crate) use rates::ratio as ratio_of_rates;

use crate::drift::Who;
use adaptis_plan::problem::Constraints;
use adaptis_plan::{Plan, Problem};
use adaptis_proto::message::{Bounds, CrowdedHost, DeviceCard, JobLayer, PeakMemory};
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::Sample;
use adaptis_proto::{DeviceIndex, Epoch, Microbatch, Step};
use earlier::Earlier;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Least correction of a prediction.
pub const CORRECTION_MIN: f64 = 0.9;
/// Largest correction of a prediction.
pub const CORRECTION_MAX: f64 = 1.25;
/// The same where devices share the cores of a host: others may want them as well, and to wake up for works that are short
/// takes as long as these.
pub const CORRECTION_CROWDED_MAX: f64 = 3.0;
/// Warm iterations below which a prediction is not corrected.
const CORRECTION_ITERATIONS_MIN: usize = 3;
/// Devices that left, whose works still tell what their kind costs; the oldest goes.
const DEPARTED: usize = 8;

/// What the coordinator knows of a job without measuring.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    /// The model.
    pub layers: Vec<JobLayer>,
    /// In order of their index.
    pub devices: Vec<DeviceCard>,
    /// In an iteration.
    pub microbatches: u32,
}

/// What was measured of a plan's iterations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Median of their durations, boundary to boundary.
    pub median_ns: u64,
    /// How many warm ones count.
    pub iterations: usize,
}

/// What a layer holds, as measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    activation_bytes: u64,
    weight_gradient_bytes: u64,
    workspace_bytes: u64,
}

/// Keeps what samples say, and fits a problem to it when asked.
#[derive(Clone, Debug)]
pub struct Estimator {
    job: JobView,
    histories: Vec<window::History>,
    departed: Vec<(String, window::History)>,
    links: BTreeMap<(usize, usize), link::History>,
    loads: Loads,
    /// By kind and layer.
    memory: BTreeMap<(String, usize), Memory>,
    reserved_bytes: Vec<Option<u64>>,
    peaks: Vec<peaks::Peaks>,
    /// By kind: what it did in calibrations.
    rates: BTreeMap<String, Rates>,
    earlier: Earlier,
    iterations: iterations::Iterations,
    between: between::Between,
    constraints: Constraints,
    /// By index of their devices.
    crowded: Vec<CrowdedHost>,
    correction: f64,
}

impl Estimator {
    /// Plans are to obey these bounds.
    pub fn constrain(&mut self, bounds: &Bounds) {
        let devices: Vec<String> = self.job.devices.iter().map(|card| card.name.clone()).collect();
        self.constraints = Constraints::of(bounds, &devices, self.job.layers.len());
    }

    /// Devices share the cores of these hosts.
    pub fn crowd(&mut self, hosts: &[CrowdedHost]) {
        self.crowded = hosts.to_vec();
    }

    /// Knows the job and nothing measured.
    pub fn new(job: JobView) -> Self {
        let (devices, loads) = (job.devices.len(), Loads::new(job.microbatches));
        Self {
            job,
            histories: vec![window::History::default(); devices],
            departed: Vec::new(),
            links: BTreeMap::new(),
            loads,
            memory: BTreeMap::new(),
            reserved_bytes: vec![None; devices],
            peaks: vec![peaks::Peaks::default(); devices],
            rates: BTreeMap::new(),
            earlier: Earlier::default(),
            iterations: iterations::Iterations::new(devices),
            between: between::Between::new(devices),
            constraints: Constraints::default(),
            crowded: Vec::new(),
            correction: 1.0,
        }
    }

    /// The job.
    pub fn job(&self) -> &JobView {
        &self.job
    }

    /// What kinds did in the calibrations of their agents, in the place of what was known. It counts where nothing else
    /// tells one kind from another.
    pub fn set_rates(&mut self, rates: BTreeMap<String, Rates>) {
        self.rates = rates;
    }

    /// What kinds did in the calibrations of their agents.
    pub fn rates(&self) -> &BTreeMap<String, Rates> {
        &self.rates
    }

    /// What earlier jobs measured, in the place of what was known of them. It counts as far as its errors say; what is
    /// measured here counts besides, and where it disagrees by far, alone.
    pub fn set_earlier(&mut self, earlier: Earlier) {
        self.earlier = earlier;
    }

    /// Another membership: a device of the same name and kind keeps what is known of it, unless `restarted` names it as
    /// another piece of the same kind. What departed ones measured still counts for their kind.
    pub fn set_devices(&mut self, devices: Vec<DeviceCard>, restarted: &[DeviceIndex]) {
        let mut old: Vec<Option<window::History>> = self.histories.drain(..).map(Some).collect();
        let stays = |(at, card): (usize, &DeviceCard)| {
            let same = self.job.devices.iter().position(|had| had.name == card.name && had.kind == card.kind);
            same.filter(|_| !restarted.iter().any(|index| index.index() == at))
        };
        let from: Vec<Option<usize>> = devices.iter().enumerate().map(stays).collect();
        self.histories = from.iter().map(|from| from.and_then(|from| old[from].take()).unwrap_or_default()).collect();
        self.reserved_bytes = from.iter().map(|from| from.and_then(|from| self.reserved_bytes[from])).collect();
        let peaks = std::mem::take(&mut self.peaks);
        self.peaks = from.iter().map(|from| from.map(|from| peaks[from].clone()).unwrap_or_default()).collect();
        let gone = old.into_iter().zip(&self.job.devices).filter_map(|(old, card)| Some((card.kind.clone(), old?)));
        self.departed.extend(gone);
        self.departed.drain(..self.departed.len().saturating_sub(DEPARTED));
        let now = |had: usize| from.iter().position(|from| *from == Some(had));
        let links = std::mem::take(&mut self.links);
        self.links = links.into_iter().filter_map(|((a, b), link)| Some(((now(a)?, now(b)?), link))).collect();
        self.iterations = iterations::Iterations::new(devices.len());
        self.between = self.between.placed(&from);
        self.loads.forget_reports();
        // Their ranks say it anew.
        self.crowded.clear();
        self.job.devices = devices;
    }

    /// Takes a sample of a device. Constant time, bounded memory; one that names a device, layer or phase that the job
    /// does not have is left out.
    pub fn absorb(&mut self, device: DeviceIndex, sample: &Sample) {
        let at = device.index();
        let Some(card) = self.job.devices.get(at) else { return };
        match *sample {
            Sample::Work { place, layer, microbatch, phase, mark, start_ns, duration_ns } => {
                if layer.index() >= self.job.layers.len() {
                    return;
                }
                let work = iterations::Work { layer, microbatch, phase, mark, start_ns, duration_ns };
                self.iterations.work(device, place, work);
                if let Some(phase) = phase_index(phase) {
                    let when = (place.step, place.epoch, place.generation);
                    let key = (layer.index(), phase);
                    self.histories[at].absorb(when, key, microbatch, mark, duration_ns, &self.loads);
                }
            }
            Sample::Transfer { place, from, mark, bytes, duration_ns, .. } => {
                if from.index() < self.job.devices.len() && from != device {
                    let link = self.links.entry((from.index(), at)).or_default();
                    link.absorb(place.step, mark, bytes, duration_ns);
                }
            }
            Sample::LayerMemory { layer, activation_bytes, weight_gradient_bytes, workspace_bytes, .. } => {
                if layer.index() < self.job.layers.len() {
                    let memory = Memory { activation_bytes, weight_gradient_bytes, workspace_bytes };
                    self.memory.insert((card.kind.clone(), layer.index()), memory);
                }
            }
            Sample::DeviceMemory { place, peak_bytes, reserved_bytes, .. } => {
                self.reserved_bytes[at] = Some(reserved_bytes);
                self.peaks[at].absorb(place.epoch, peak_bytes);
            }
            Sample::Iteration { place, start_ns, duration_ns, .. } => {
                self.loads.report(device, place);
                self.iterations.iteration(device, place, start_ns, duration_ns);
            }
            Sample::Load { place, microbatch, tokens, squares, busiest } => {
                self.loads.absorb(place, microbatch, Load::new(tokens, squares, busiest));
            }
            Sample::Between { mark, instructions, own_ns, transfers, .. } => {
                self.between.absorb(device, mark, instructions, own_ns, transfers);
            }
            Sample::Switch { .. } => {}
        }
    }

    /// After a change at `from`: older samples no longer count for the slowdown of a device or the speed of a link, nor
    /// for what iterations take.
    pub fn restart_window(&mut self, who: Who, from: Step) {
        self.iterations.change(from);
        match who {
            Who::Device(device) => {
                self.between.change(device);
                if let Some(history) = self.histories.get_mut(device.index()) {
                    history.change(from);
                }
            }
            Who::Link(sender, receiver) => {
                if let Some(link) = self.links.get_mut(&(sender.index(), receiver.index())) {
                    link.change(from);
                }
            }
            // Wherever it ran before: a layer's own cost is one number.
            Who::Layer(_, layer) => self.histories.iter_mut().for_each(|history| history.forget(layer.index(), from)),
        }
    }

    /// What changed at `from` is as it was since `until`: what came between no longer counts, and what was before counts
    /// again.
    pub fn undo_change(&mut self, who: Who, from: Step, until: Step) {
        let rejoined = match who {
            Who::Device(device) => {
                self.histories.get_mut(device.index()).is_some_and(|history| history.rejoin(from, until))
            }
            Who::Link(..) | Who::Layer(..) => false,
        };
        if rejoined {
            self.iterations.change(until);
        } else {
            self.restart_window(who, until);
        }
    }

    /// The problem that fits the samples best.
    ///
    /// # Errors
    /// [`NotYet`] while a layer's cost or memory can't even be guessed.
    pub fn problem(&self) -> Result<Estimated, NotYet> {
        match normalise::at_mean_load(self) {
            None => assemble::assemble(self),
            Some((estimator, covariates)) => {
                let mut estimated = assemble::assemble(&estimator)?;
                let middle_ln = self.loads.middle_ln();
                for (card, layers) in self.job.devices.iter().zip(&mut estimated.uncertainty.figures) {
                    for (layer, figures) in layers.iter_mut().enumerate() {
                        covariates.widen(&card.kind, layer, figures, middle_ln);
                    }
                }
                estimated.uncertainty.covariates = Some(Arc::new(covariates));
                Ok(estimated)
            }
        }
    }

    /// Holds the measured peaks of the plan in force against what the estimate says of it; what is missing on a device is
    /// reserved there, in `estimated` and from then on.
    pub fn reserve_for(&mut self, plan: &Plan, estimated: &mut Estimated) {
        let Ok(of_plan) = adaptis_plan::peak_bytes(&estimated.problem, plan) else { return };
        let devices = estimated.problem.devices.iter_mut().zip(&mut self.peaks).zip(of_plan);
        for ((device, peaks), peak_bytes) in devices {
            let before_bytes = peaks.reserved_bytes();
            peaks.compare(plan.epoch, peak_bytes.saturating_sub(before_bytes), device.memory_bytes);
            let own_bytes = device.reserved_bytes.saturating_sub(before_bytes);
            device.reserved_bytes = own_bytes.saturating_add(peaks.reserved_bytes());
        }
    }

    /// A problem without what peaks of memory made it reserve: what a plan is held against that ran on these devices.
    pub fn without_peaks(&self, problem: &Problem) -> Problem {
        let mut problem = problem.clone();
        for (device, peaks) in problem.devices.iter_mut().zip(&self.peaks) {
            device.reserved_bytes = device.reserved_bytes.saturating_sub(peaks.reserved_bytes());
        }
        problem
    }

    /// After a restart: what plans needed beyond their predictions, as far as their samples came again.
    pub fn recall_peaks(&mut self, predicted: &[PeakMemory]) {
        for (card, peaks) in self.job.devices.iter().zip(&mut self.peaks) {
            for of in predicted.iter().filter(|of| of.device == card.name) {
                of.predicted_bytes.into_iter().for_each(|bytes| peaks.recall(of.epoch, bytes));
            }
        }
    }

    /// Relative standard deviation of a single work around its layer's cost; none before there are samples.
    pub fn spread(&self) -> Option<f64> {
        let deviations: Vec<f64> = self.histories.iter().flat_map(|history| history.deviations().all()).collect();
        robust::scale_around(&deviations, 0.0)
    }

    /// Works that came after their iteration was closed, and so counted for nothing.
    pub fn late_works(&self) -> u64 {
        self.histories.iter().map(|history| history.late).sum()
    }

    /// Of a microbatch, if it was recorded of late.
    pub fn load(&self, step: Step, microbatch: Microbatch) -> Option<Load> {
        self.loads.get(step, microbatch)
    }

    /// Loads that were recorded and can't be, or not there, or are far beyond all others: they count for nothing.
    pub fn refused_loads(&self) -> u64 {
        self.loads.refused()
    }

    /// The last warm iterations of a plan, since the last change of any device or link; none before the first.
    pub fn measured(&self, epoch: Epoch) -> Option<Measured> {
        self.iterations.measured(epoch)
    }

    /// Ratio of the measured iterations of the plan in force to what was predicted of it, jitter included
    /// ([`Estimated::iterations`]), for predictions to be multiplied by: what the model leaves out. Bounded by [`CORRECTION_MIN`] and
    /// [`CORRECTION_MAX`], or [`CORRECTION_CROWDED_MAX`]. The last one is remembered for as long as a plan has too few iterations since a change.
    pub fn prediction_correction(&mut self, epoch: Epoch, predicted_ns: u64) -> f64 {
        if let Some(measured) = self.measured(epoch)
            && measured.iterations >= CORRECTION_ITERATIONS_MIN
            && predicted_ns > 0
        {
            let ratio = measured.median_ns as f64 / predicted_ns as f64;
            let most = if self.crowded.is_empty() { CORRECTION_MAX } else { CORRECTION_CROWDED_MAX };
            self.correction = ratio.clamp(CORRECTION_MIN, most);
        }
        self.correction
    }
}
