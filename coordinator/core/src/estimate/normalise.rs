//! Histories as they would be if every microbatch had the mean load.
//!
//! Done at each fit and for all that is kept, so that old and new iterations are measured by one form. A job that records no
//! loads, or whose loads are all the same, or make no difference, is left as it is.

use super::covariates::{self, Covariates, Fitted, Group, Work, over};
use super::fit::OPTIMIZER;
use super::jitter::{Deviations, Sides};
use super::loads::{Load, Loads};
use super::window::{Cell, History, Key, Past};
use super::{Estimator, robust};
use adaptis_proto::{Microbatch, Step};
use std::collections::{BTreeMap, VecDeque};

/// Works that iterations of a layer and phase are taken together for, if they are shorter: a group tells by what differs
/// within it.
const GROUP_MIN: usize = 8;
/// Loads that tell what a work of unknown load is like.
const SOME: usize = 64;
/// How far slopes are apart, standard deviation: of a signature from the job's, of a phase from its signature's, of a kind
/// from that.
const APART: [f64; 3] = [0.4, 0.15, 0.1];

/// The estimator as it would be, and how times follow loads; none where nothing is to be done.
pub(super) fn at_mean_load(estimator: &Estimator) -> Option<(Estimator, Covariates)> {
    let mean = estimator.loads.mean().filter(|_| estimator.loads.vary())?;
    let covariates = fit(estimator, mean);
    if covariates.are_flat() {
        return None;
    }
    let at = |kind: &str, history: &History| normalised(history, kind, &covariates, &estimator.loads);
    let cards = estimator.job.devices.iter();
    let histories = cards.zip(&estimator.histories).map(|(card, history)| at(&card.kind, history)).collect();
    let departed = estimator.departed.iter().map(|(kind, history)| (kind.clone(), at(kind, history))).collect();
    let normalised = Estimator {
        job: estimator.job.clone(),
        histories,
        departed,
        links: estimator.links.clone(),
        loads: Loads::default(),
        memory: estimator.memory.clone(),
        reserved_bytes: estimator.reserved_bytes.clone(),
        peaks: estimator.peaks.clone(),
        rates: estimator.rates.clone(),
        earlier: estimator.earlier.clone(),
        iterations: estimator.iterations.clone(),
        between: estimator.between.clone(),
        constraints: estimator.constraints.clone(),
        crowded: estimator.crowded.clone(),
        correction: estimator.correction,
    };
    Some((normalised, covariates))
}

/// Groups by kind, signature and phase.
type Groups<'a> = BTreeMap<(&'a str, &'a str, usize), Vec<Group>>;

fn fit(estimator: &Estimator, mean: Load) -> Covariates {
    let layers = &estimator.job.layers;
    let mut groups = Groups::new();
    let histories = estimator.job.devices.iter().map(|card| &card.kind).zip(&estimator.histories);
    let departed = estimator.departed.iter().map(|(kind, history)| (kind, history));
    for (kind, history) in histories.chain(departed) {
        for segment in history.segments.iter().filter(|segment| !segment.calibration) {
            for (&(layer, phase), cell) in segment.cells.iter().filter(|((_, phase), _)| *phase != OPTIMIZER) {
                let of = groups.entry((kind, &layers[layer].signature, phase)).or_default();
                of.extend(grouped(&cell.past, mean));
            }
        }
    }
    let of = |is_of: &dyn Fn(&(&str, &str, usize)) -> bool, parent: Fitted, apart: f64| {
        let of: Vec<&Group> = groups.iter().filter(|(key, _)| is_of(key)).flat_map(|(_, groups)| groups).collect();
        covariates::fit(&of, parent, apart)
    };
    let job = of(&|_| true, Fitted::UNKNOWN, 0.0);
    let mut forms: BTreeMap<(&str, &str, usize), Fitted> = BTreeMap::new();
    let mut of_signature: BTreeMap<&str, Fitted> = BTreeMap::new();
    let mut of_phase: BTreeMap<(&str, usize), Fitted> = BTreeMap::new();
    for &(kind, signature, phase) in groups.keys() {
        let parent = *of_signature.entry(signature).or_insert_with(|| of(&|key| key.1 == signature, job, APART[0]));
        let parent = *of_phase
            .entry((signature, phase))
            .or_insert_with(|| of(&|key| (key.1, key.2) == (signature, phase), parent, APART[1]));
        forms.insert((kind, signature, phase), of(&|key| *key == (kind, signature, phase), parent, APART[2]));
    }
    let form = |kind: &str, signature: &str, phase: usize| {
        let of_kind = forms.get(&(kind, signature, phase)).or_else(|| of_phase.get(&(signature, phase)));
        *of_kind.or_else(|| of_signature.get(signature)).unwrap_or(&job)
    };
    let kinds = estimator.job.devices.iter().map(|card| &card.kind).chain(estimator.departed.iter().map(|of| &of.0));
    let of_kind = |kind: &String| {
        let of_layers = layers.iter().map(|layer| std::array::from_fn(|phase| form(kind, &layer.signature, phase)));
        (kind.clone(), of_layers.collect())
    };
    let some = estimator.loads.some(SOME);
    Covariates { mean, some, forms: kinds.map(of_kind).collect() }
}

/// An iteration of a layer and phase: its median and its works.
type Closed = (f64, Vec<(Microbatch, u64)>);

/// The works of known load, in groups of one iteration or, where it has few, of several.
fn grouped(past: &VecDeque<Past>, mean: Load) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for past in past {
        if groups.last().is_none_or(|last| last.len() >= GROUP_MIN) {
            groups.push(Group::new());
        }
        let work = |ns: u64, load: Load| Work { ln_ns: (ns.max(1) as f64).ln(), over_mean: over(load, mean) };
        let works = past.kept.iter().filter_map(|kept| Some(work(kept.ns, kept.load()?)));
        groups.last_mut().expect("one is open").extend(works);
    }
    // What is left over belongs to the group before.
    if let [.., before, last] = &mut groups[..]
        && last.len() < GROUP_MIN
    {
        before.append(last);
        groups.pop();
    }
    groups
}

fn normalised(history: &History, kind: &str, covariates: &Covariates, loads: &Loads) -> History {
    let mut deviations = Deviations::default();
    // Made anew, for a copy would be of all works that are kept as well.
    let mut segments = VecDeque::with_capacity(history.segments.len());
    for before in &history.segments {
        let mut segment = before.emptied();
        // By iteration and layer, as they would have been closed.
        let mut closed: BTreeMap<(Step, Key), Closed> = BTreeMap::new();
        for (&key, cell) in &before.cells {
            let is_known = || cell.past.iter().any(|past| past.kept.iter().any(|kept| kept.load().is_some()));
            let cell = if before.calibration || key.1 == OPTIMIZER || !is_known() {
                cell.summary()
            } else {
                let factor = |load: Load| covariates.factor(kind, key.0, key.1, load).0;
                at_mean(cell, factor, loads, |step, of| drop(closed.insert((step, key), of)))
            };
            segment.cells.insert(key, cell);
        }
        // A device that changed its speed did so within an iteration: what works deviated by then is no jitter.
        let change = closed.keys().next().filter(|_| segment.after_change).map(|(step, _)| *step);
        for ((step, key), (median_ns, works)) in closed.iter().filter(|((step, _), _)| Some(*step) != change) {
            let sides: Sides = deviations.closed(*key, *step, *median_ns, works);
            if let Some(cell) = segment.cells.get_mut(key) {
                cell.sides = sides;
            }
            segment.compare_with_neighbours(*key, &mut deviations);
        }
        segments.push_back(segment);
    }
    history.with(segments, deviations)
}

/// A layer and phase whose works are divided by the `factor` of their load; `close` is told of its iterations.
fn at_mean(before: &Cell, factor: impl Fn(Load) -> f64, loads: &Loads, mut close: impl FnMut(Step, Closed)) -> Cell {
    let at_mean = |ns: u64, load: Load| (ns as f64 / factor(load)).round() as u64;
    let mut cell = Cell { open_step: before.open_step, cold_ns: before.cold_ns.clone(), ..Cell::default() };
    for past in &before.past {
        let works = past.kept.iter().filter_map(|kept| Some((kept.microbatch, at_mean(kept.ns, kept.load()?))));
        let works: Vec<(Microbatch, u64)> = works.collect();
        let Some(median_ns) = robust::median(&mut works.iter().map(|&(_, ns)| ns as f64).collect::<Vec<_>>()) else {
            continue;
        };
        cell.past.push_back(Past { step: past.step, median_ns, works: works.len(), kept: Vec::new() });
        close(past.step, (median_ns, works));
    }
    let open = before
        .open
        .iter()
        .filter_map(|&(microbatch, ns)| Some((microbatch, at_mean(ns, loads.get(before.open_step, microbatch)?))));
    cell.open = open.collect();
    cell
}
