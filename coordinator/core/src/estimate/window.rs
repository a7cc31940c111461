//! What one device's works took: segments of history, each with the last iterations of every layer and phase.
//!
//! ```text
//!   calibration | epoch 1 .............. | change | epoch 1 | epoch 2 ......
//!   segment 0     segment 1                         2         3 (the latest)
//! ```
//!
//! 1. Within a segment neither the plan nor, as far as known, the device's speed changed.
//! 2. An iteration counts once per layer and phase, as the median of its works: a stall of one work moves nothing.
//! 3. Memory is bounded: [`SEGMENTS`] x layers x phases x [`ITERATIONS`], [`WORKS`] durations of one iteration, and what
//!    [`Deviations`] keeps. Where loads are recorded, works of each iteration are kept with theirs: how times follow loads
//!    is learned as more of them are seen, and then counts for all iterations. They are [`KEPT`] of 24 bytes in the latest
//!    segment and [`KEPT_BEFORE`] in others: at most 28 KB for a layer and phase, 85 MB for 1,024 layers.

use super::fit::OPTIMIZER;
use super::jitter::{self, Deviations};
use super::loads::{Load, Loads, TERMS};
use super::robust;
use adaptis_proto::sample::Mark;
use adaptis_proto::{Epoch, Generation, Microbatch, Step};
use std::collections::{BTreeMap, VecDeque};

/// Segments kept. Beyond them the oldest one goes that is neither the calibration nor the first of training, which say
/// what the device was like before it changed.
const SEGMENTS: usize = 6;
/// Iterations kept of a layer and phase; the oldest goes.
pub(crate) const ITERATIONS: usize = 8;
/// Works kept of a layer and phase in one iteration; those beyond are left out.
const WORKS: usize = 128;
/// Works kept one by one of a closed iteration, evenly over its microbatches, where loads are recorded.
const KEPT: usize = 64;
/// The same of an iteration of a segment before the latest: the median of them is all that is asked for.
const KEPT_BEFORE: usize = 16;

/// Layer, and index of the phase in [`super::PHASES`].
pub(crate) type Key = (usize, usize);

/// A work, and its load as soon as it is known. There are many of them, and single precision is enough for a load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub ns: u64,
    pub microbatch: Microbatch,
    /// Terms; the first one is no number while it is not known.
    load: [f32; TERMS],
}

const _: () = assert!(size_of::<Kept>() == 24, "the bound above counts on it");

impl Kept {
    fn new(microbatch: Microbatch, ns: u64) -> Self {
        Self { ns, microbatch, load: [f32::NAN; TERMS] }
    }

    /// Of its microbatch.
    pub fn load(&self) -> Option<Load> {
        let [tokens, squares, busiest] = self.load.map(f64::from);
        (!tokens.is_nan()).then_some(Load { tokens, squares, busiest })
    }
}

/// The works of one layer and phase in one iteration.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub step: Step,
    pub median_ns: f64,
    pub works: usize,
    /// None where loads are not recorded.
    pub kept: Vec<Kept>,
}

impl Past {
    /// Loads may come after the works.
    fn look_up(&mut self, loads: &Loads) {
        for kept in self.kept.iter_mut().filter(|kept| kept.load[0].is_nan()) {
            if let Some(load) = loads.get(self.step, kept.microbatch) {
                kept.load = load.terms().map(|term| term as f32);
            }
        }
    }

    /// Keeps fewer works: evenly, and those of known load first.
    fn thin(&mut self) {
        if self.kept.iter().any(|kept| !kept.load[0].is_nan()) {
            self.kept.retain(|kept| !kept.load[0].is_nan());
        }
        let every = self.kept.len().div_ceil(KEPT_BEFORE).max(1);
        self.kept = self.kept.iter().step_by(every).copied().collect();
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    pub past: VecDeque<Past>,
    pub open_step: Step,
    pub open: Vec<(Microbatch, u64)>,
    /// Of the last closed iteration.
    pub sides: jitter::Sides,
    pub cold_ns: VecDeque<u64>,
}

/// What a segment says of a layer and phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    /// Median over iterations of their medians.
    pub median_ns: f64,
    /// Works behind it.
    pub works: usize,
    /// Medians that it is the median of.
    pub medians: usize,
    /// Iterations behind it, the open one not counted.
    pub closed: usize,
    /// Cold iterations are all there is.
    pub cold: bool,
}

/// Two iterations of a layer and phase, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pair {
    /// The later one.
    pub step: Step,
    /// Logarithm of its median over that of the one before.
    pub ln_ratio: f64,
    /// Its variance over that of a single work's: the sum of what either median has.
    pub per_work: f64,
}

/// A stretch of history.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// Measured on purpose, outside training.
    pub calibration: bool,
    /// A change of the device's speed opened it.
    pub after_change: bool,
    epoch: Epoch,
    from: Step,
    pub(super) cells: BTreeMap<Key, Cell>,
}

impl Segment {
    fn new(calibration: bool, after_change: bool, epoch: Epoch, from: Step) -> Self {
        Self { calibration, after_change, epoch, from, cells: BTreeMap::new() }
    }

    /// Everything it says.
    pub fn seen(&self) -> impl Iterator<Item = (Key, Seen)> {
        self.cells.iter().filter_map(|(&key, cell)| Some((key, cell.seen()?)))
    }

    /// Its closed iterations of F, I and W, each with the one before.
    pub fn pairs(&self) -> impl Iterator<Item = Pair> {
        let compute = self.cells.iter().filter(|((_, phase), _)| *phase != OPTIMIZER);
        compute.flat_map(|(_, cell)| cell.past.iter().zip(cell.past.iter().skip(1))).map(|(before, after)| Pair {
            step: after.step,
            ln_ratio: (after.median_ns.max(1.0) / before.median_ns.max(1.0)).ln(),
            per_work: (before.works.max(1) as f64).recip() + (after.works.max(1) as f64).recip(),
        })
    }

    /// A layer's iteration is closed: the layers beside it, whose works were parts of the same instructions, closed it
    /// before or will do so after it.
    pub(super) fn compare_with_neighbours(&self, (layer, phase): Key, deviations: &mut Deviations) {
        let Some(own) = self.cells.get(&(layer, phase)) else { return };
        for neighbour in [layer.checked_sub(1), layer.checked_add(1)].into_iter().flatten() {
            if let Some(other) = self.cells.get(&(neighbour, phase)) {
                deviations.compare(&own.sides, &other.sides);
            }
        }
    }

    /// Of the same kind and time, with nothing in it.
    pub(super) fn emptied(&self) -> Self {
        Self { cells: BTreeMap::new(), ..Self::new(self.calibration, self.after_change, self.epoch, self.from) }
    }

    fn is_empty(&self) -> bool {
        self.cells.values().all(|cell| cell.seen().is_none())
    }
}

impl Cell {
    /// The same without the works that are kept one by one.
    pub(super) fn summary(&self) -> Self {
        let past =
            |past: &Past| Past { step: past.step, median_ns: past.median_ns, works: past.works, kept: Vec::new() };
        Self {
            past: self.past.iter().map(past).collect(),
            open_step: self.open_step,
            open: self.open.clone(),
            sides: self.sides.clone(),
            cold_ns: self.cold_ns.clone(),
        }
    }

    pub(super) fn open_median(&self) -> Option<f64> {
        robust::median(&mut self.open.iter().map(|&(_, ns)| ns as f64).collect::<Vec<_>>())
    }

    fn close(&mut self, loads: Option<&Loads>) -> Option<(f64, Vec<(Microbatch, u64)>)> {
        let median_ns = self.open_median()?;
        let works = std::mem::take(&mut self.open);
        if self.past.len() == ITERATIONS {
            self.past.pop_front();
        }
        let mut past = Past { step: self.open_step, median_ns, works: works.len(), kept: Vec::new() };
        if loads.is_some_and(|loads| !loads.is_empty()) {
            let every = works.len().div_ceil(KEPT).max(1);
            let kept = works.iter().step_by(every).map(|&(microbatch, ns)| Kept::new(microbatch, ns));
            past.kept = kept.collect();
        }
        self.past.push_back(past);
        if let Some(loads) = loads {
            self.past.iter_mut().for_each(|past| past.look_up(loads));
        }
        Some((median_ns, works))
    }

    fn seen(&self) -> Option<Seen> {
        let mut works: usize = self.past.iter().map(|past| past.works).sum();
        let mut medians: Vec<f64> = self.past.iter().map(|past| past.median_ns).collect();
        // An open iteration with as many works as the ones before is as good as they are.
        let usual = self.past.back().map_or(1, |past| past.works);
        if self.open.len() >= usual {
            medians.extend(self.open_median());
            works += self.open.len();
        }
        if let Some(median_ns) = robust::median(&mut medians) {
            return Some(Seen { median_ns, works, medians: medians.len(), closed: self.past.len(), cold: false });
        }
        let median_ns = robust::median(&mut self.cold_ns.iter().map(|&ns| ns as f64).collect::<Vec<_>>())?;
        Some(Seen { median_ns, works: self.cold_ns.len(), medians: 1, closed: 0, cold: true })
    }
}

/// One device's history.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(super) segments: VecDeque<Segment>,
    generation: Generation,
    pub(super) deviations: Deviations,
    /// Works of an iteration that was closed already.
    pub late: u64,
}

impl History {
    /// Oldest first.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> {
        self.segments.iter()
    }

    /// The same segments, otherwise measured.
    pub(super) fn with(&self, segments: VecDeque<Segment>, deviations: Deviations) -> Self {
        Self { segments, generation: self.generation, deviations, late: self.late }
    }

    /// How works deviated within their iterations.
    pub fn deviations(&self) -> &Deviations {
        &self.deviations
    }

    /// Takes a work.
    pub fn absorb(
        &mut self,
        (step, epoch, generation): (Step, Epoch, Generation),
        key: Key,
        microbatch: Microbatch,
        mark: Mark,
        duration_ns: u64,
        loads: &Loads,
    ) {
        match mark {
            Mark::Calibration => return self.calibrate(key, microbatch, duration_ns),
            Mark::Hasty => return,
            Mark::Warm | Mark::Cold => {}
        }
        if generation < self.generation {
            self.late += 1;
            return;
        }
        let latest = self.segments.back().filter(|segment| !segment.calibration);
        let opens = latest.is_none_or(|latest| epoch > latest.epoch || generation > self.generation);
        if !opens && latest.is_some_and(|latest| epoch < latest.epoch || step < latest.from) {
            self.late += 1;
            return;
        }
        if opens {
            self.generation = generation;
            self.open(Segment::new(false, false, epoch, step));
        }
        let latest = self.segments.back_mut().expect("a segment was found or opened");
        let cell = latest.cells.entry(key).or_default();
        if mark == Mark::Cold {
            if cell.cold_ns.len() == WORKS {
                cell.cold_ns.pop_front();
            }
            return cell.cold_ns.push_back(duration_ns);
        }
        if step < cell.open_step {
            self.late += 1;
            return;
        }
        if step > cell.open_step {
            let loads = (key.1 != OPTIMIZER).then_some(loads);
            let (closed, closed_step) = (cell.close(loads), std::mem::replace(&mut cell.open_step, step));
            if let Some((median_ns, works)) = closed {
                cell.sides = self.deviations.closed(key, closed_step, median_ns, &works);
                latest.compare_with_neighbours(key, &mut self.deviations);
            }
        }
        let cell = latest.cells.entry(key).or_default();
        if cell.open.len() < WORKS {
            cell.open.push((microbatch, duration_ns));
        }
    }

    fn calibrate(&mut self, key: Key, microbatch: Microbatch, duration_ns: u64) {
        if self.segments.front().is_none_or(|first| !first.calibration) {
            self.segments.push_front(Segment::new(true, false, Epoch(0), Step(0)));
        }
        let cell = self.segments[0].cells.entry(key).or_default();
        if cell.open.len() < WORKS {
            cell.open.push((microbatch, duration_ns));
        }
    }

    fn open(&mut self, segment: Segment) {
        // A segment without a single sample says nothing, but its change must not be forgotten.
        let mut segment = segment;
        if self.segments.back().is_some_and(|last| !last.calibration && last.is_empty()) {
            segment.after_change |= self.segments.pop_back().is_some_and(|empty| empty.after_change);
        }
        if let Some(before) = self.segments.back_mut() {
            before.cells.values_mut().flat_map(|cell| &mut cell.past).for_each(Past::thin);
        }
        self.segments.push_back(segment);
        if self.segments.len() > SEGMENTS {
            let first = usize::from(self.segments[0].calibration);
            let gone = self.segments.remove(first + 1);
            // What follows is still another speed than what came before the one that went.
            self.segments[first + 1].after_change |= gone.is_some_and(|gone| gone.after_change);
        }
    }

    /// The device's speed changed at `from`: what came since opens a segment of its own.
    pub fn change(&mut self, from: Step) {
        self.deviations.forget(from);
        let Some(latest) = self.segments.back_mut().filter(|segment| !segment.calibration) else {
            let epoch = Epoch(0);
            return self.open(Segment::new(false, true, epoch, Step(0)));
        };
        let mut next = Segment::new(false, true, latest.epoch, from.max(latest.from));
        for (&key, cell) in &mut latest.cells {
            let mut moved = Cell { open_step: cell.open_step, ..Cell::default() };
            if cell.open_step >= from {
                moved.open = std::mem::take(&mut cell.open);
            }
            moved.past = cell.past.iter().filter(|past| past.step >= from).cloned().collect();
            cell.past.retain(|past| past.step < from);
            next.cells.insert(key, moved);
        }
        self.open(next);
    }

    /// The change at `from` passed at `until`: its segment goes, and what came since belongs to the one before. False, and
    /// nothing done, if that segment is not the latest, or nothing came before it.
    pub fn rejoin(&mut self, from: Step, until: Step) -> bool {
        let is_it = |segment: &Segment| segment.after_change && segment.from == from;
        let before = self.segments.len().checked_sub(2).and_then(|at| self.segments.get(at));
        if before.is_none_or(|before| before.calibration) || !self.segments.back().is_some_and(is_it) {
            return false;
        }
        self.deviations.forget(from);
        let (Some(passed), Some(latest)) = (self.segments.pop_back(), self.segments.back_mut()) else { return false };
        for (key, mut cell) in passed.cells {
            let own = latest.cells.entry(key).or_default();
            own.past.extend(cell.past.drain(..).filter(|past| past.step >= until));
            own.past.drain(..own.past.len().saturating_sub(ITERATIONS));
            if cell.open_step >= until {
                own.open = std::mem::take(&mut cell.open);
            }
            own.open_step = cell.open_step;
        }
        latest.epoch = passed.epoch;
        true
    }

    /// A layer takes another time since `from`: what it took before says nothing any more.
    pub fn forget(&mut self, layer: usize, from: Step) {
        for (_, cell) in
            self.segments.iter_mut().flat_map(|segment| &mut segment.cells).filter(|((of, _), _)| *of == layer)
        {
            cell.past.retain(|past| past.step >= from);
            cell.cold_ns.clear();
            if cell.open_step < from {
                cell.open.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::DeviceIndex;
    use adaptis_proto::sample::Place;

    #[test]
    fn works_kept_with_their_loads_are_bounded() {
        let (mut history, mut loads) = (History::default(), Loads::new(256));
        let generation = Generation(1);
        for step in 0..200 {
            let (step, epoch) = (Step(step), Epoch(1 + step / 20));
            for microbatch in (0..256).map(Microbatch) {
                let load = Load::new(1_000 + u64::from(microbatch.0), 1_000_000, 0);
                loads.absorb(Place { step, epoch, generation }, microbatch, load);
                for phase in [0, OPTIMIZER] {
                    history.absorb((step, epoch, generation), (0, phase), microbatch, Mark::Warm, 1_000, &loads);
                }
            }
            loads.report(DeviceIndex(0), Place { step, epoch, generation });
        }
        let kept =
            |segment: &Segment, phase: usize| segment.cells[&(0, phase)].past.iter().map(|past| past.kept.len()).sum();
        let of = |phase: usize| history.segments().map(|segment| kept(segment, phase)).collect::<Vec<usize>>();
        let (latest, before) = (ITERATIONS * KEPT, ITERATIONS * KEPT_BEFORE);
        assert_eq!(of(0), [before, before, before, before, before, latest]);
        assert_eq!(of(OPTIMIZER), [0; SEGMENTS]);
        let bytes = of(0).iter().sum::<usize>() * size_of::<Kept>();
        assert!(bytes <= 28_000 && 1_024 * 3 * bytes <= 86_000_000, "{bytes}");
        // Whatever is kept has its load.
        let mut all = history.segments().flat_map(|segment| &segment.cells[&(0, 0)].past).flat_map(|past| &past.kept);
        assert!(all.all(|kept| kept.load() == Some(Load::new(1_000 + u64::from(kept.microbatch.0), 1_000_000, 0))));
    }
}
