//! What the search knows of its problem, what a plan is worth, and what was spent.

use super::relabel;
use super::running::Running;
use super::sketch::{Estimate, Extremes, Sketch, Trust};
use super::{Control, Options, Progress};
use crate::costs::Costs;
use crate::listing::{Listing, admissible};
use crate::memory;
use crate::moves::GONE;
use crate::partition::{Splitter, Weigh};
use crate::program::Programs;
use crate::recipe::Genes;
use crate::replay::Replay;
use crate::rules::Rules;
use crate::shape::{Shape, Slot, Tables};

/// Instructions replayed between two calls of the caller's `tick`: well under two milliseconds.
const TICK_INSTRUCTIONS: u64 = 30_000;
/// Steps of splitting the model that take as long as an instruction.
pub(crate) const STEPS_PER_INSTRUCTION: u64 = 4;
/// Instructions after which a caller who wants to stop is not kept waiting for a first plan: about half a second.
const OVERDUE_INSTRUCTIONS: u64 = 10_000_000;
/// What an evaluation takes beside its instructions.
const INSTRUCTIONS_PER_EVALUATION: u64 = 200;
/// Stages of sketches that cost about as much as an evaluation.
pub(super) const SKETCHED_STAGES: usize = 500;
/// Charge for moving all layers, as a share of the lower bound, so that noise does not shuffle layers: for the first few
/// of them and for those beyond, which are many to move for little.
const MOVED_SHARE: f64 = 0.02;
const MOVED_BEYOND_SHARE: f64 = 0.3;
/// Share of the layers that are few; that of new devices comes on top.
const FEW_SHARE: f64 = 0.15;
/// Iterations over which layers beyond the few are charged in full: a plan that runs longer may move more.
const BEYOND_ITERATIONS: f64 = 1000.0;
/// A toll that is not worth searching on for, as a share of the lower bound.
const TOLL_LITTLE: f64 = 0.005;
/// Charge per stage beyond one a device, or those of the running plan, as a share of the lower bound, so that stages are
/// not cut for nothing and the running plan bears no charge.
const STAGE_SHARE: f64 = 0.0001;

/// A plan in the making.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) shape: Shape,
    pub(crate) programs: Programs,
    /// What its programs were listed from, if they were.
    pub(crate) genes: Genes,
    pub(crate) iteration_ns: u64,
    /// `iteration_ns` and the charge for stages and for what moves.
    pub(crate) value: f64,
}

/// Judges candidates and counts.
pub(crate) struct Judge<'a> {
    pub(crate) costs: &'a Costs,
    pub(crate) rules: &'a Rules,
    /// Device of each layer in the running plan.
    homes: Option<&'a [u32]>,
    /// What moves bears its price alone, no toll: there is no plan worth staying near to.
    pub(crate) is_free: bool,
    horizon_iterations: f64,
    /// Charge per layer that moves, for the first so many and for each one beyond.
    moved_layer_ns: f64,
    few_layers: f64,
    moved_beyond_ns: f64,
    stage_charge_ns: f64,
    stages_free: usize,
    pub(crate) bound_ns: u64,
    pub(crate) evaluations: u64,
    evaluations_max: u64,
    /// Evaluations that `tick` is told of: all so far, while those above are a task's.
    pub(crate) shown: u64,
    tick: &'a mut dyn FnMut(&Progress) -> Control,
    since_tick: u64,
    /// Instructions listed or replayed.
    pub(crate) instructions: u64,
    /// Stages of sketches since the last that were counted.
    sketched: usize,
    stopped: bool,
    /// Instructions since then.
    since_stopped: u64,
    pub(crate) best_ns: u64,
    /// A plan is known by which the search may end: see [`Judge::proves`].
    pub(crate) is_proved: bool,
    /// Listings of a higher value are not wanted.
    pub(crate) worth: f64,
    pub(crate) stage: &'static str,
    pub(crate) replay: Replay,
    pub(crate) listing: Listing,
    pub(crate) sketch: Sketch,
    splitter: Splitter,
    relaxed: Rules,
    relaxed_splitter: Splitter,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(
        costs: &'a Costs,
        rules: &'a Rules,
        running: Option<&'a Running>,
        bound_ns: u64,
        options: &Options,
        tick: &'a mut dyn FnMut(&Progress) -> Control,
    ) -> Self {
        let running_stages = running.map_or(0, |running| running.shape.stages.len());
        let horizon_iterations = options.horizon_iterations.max(1) as f64;
        let layer_ns = bound_ns as f64 / costs.layers.max(1) as f64;
        // New devices are to get their share besides.
        let new = running.map_or(0, |running| running.spare(&rules.usable).len());
        let new_share = new as f64 / rules.usable.len().max(1) as f64;
        Self {
            costs,
            rules,
            homes: running.map(|running| running.homes.as_slice()),
            is_free: running.is_some_and(|running| !running.is_planned),
            horizon_iterations,
            moved_layer_ns: layer_ns * MOVED_SHARE,
            few_layers: (costs.layers as f64 * (FEW_SHARE + new_share)).floor(),
            moved_beyond_ns: layer_ns * MOVED_BEYOND_SHARE * (BEYOND_ITERATIONS / horizon_iterations).min(1.0),
            stage_charge_ns: bound_ns as f64 * STAGE_SHARE,
            stages_free: rules.usable.len().max(running_stages),
            bound_ns,
            evaluations: 0,
            evaluations_max: options.evaluations.unwrap_or(u64::MAX),
            shown: 0,
            tick,
            since_tick: 0,
            instructions: 0,
            sketched: 0,
            stopped: false,
            since_stopped: 0,
            best_ns: u64::MAX,
            is_proved: false,
            worth: f64::INFINITY,
            stage: "starts",
            replay: Replay::default(),
            listing: Listing::default(),
            sketch: Sketch::default(),
            splitter: Splitter::default(),
            relaxed: rules.relaxed(),
            relaxed_splitter: Splitter::default(),
        }
    }

    /// The caller, the budget or the bound says that it is enough. Before there is a plan, nothing is.
    pub(crate) fn done(&self) -> bool {
        let has_plan = self.best_ns != u64::MAX;
        has_plan && (self.stopped || self.evaluations >= self.evaluations_max || self.is_proved) || self.is_overdue()
    }

    /// Takes note of a plan that fits.
    pub(crate) fn note(&mut self, iteration_ns: u64, shape: &Shape) {
        self.best_ns = self.best_ns.min(iteration_ns);
        self.is_proved |= self.proves(iteration_ns, shape, self.homes().is_some());
    }

    /// Whether next to nothing can be worth more than a plan: it takes no more than the bound and, where it is to stay near to the
    /// running one, bears next to no toll.
    pub(crate) fn proves(&self, iteration_ns: u64, shape: &Shape, is_near: bool) -> bool {
        iteration_ns <= self.bound_ns && (!is_near || self.toll(shape) <= self.bound_ns as f64 * TOLL_LITTLE)
    }

    /// Counts an evaluation.
    pub(crate) fn spend(&mut self, instructions: usize) {
        self.evaluations += 1;
        self.shown += 1;
        self.since_tick += INSTRUCTIONS_PER_EVALUATION;
        self.work(instructions as u64);
    }

    /// Counts work that is no evaluation, as that of so many instructions.
    pub(crate) fn work(&mut self, instructions: u64) {
        self.instructions += instructions;
        self.since_tick += instructions;
        if self.stopped {
            self.since_stopped += instructions;
        }
        if self.since_tick >= TICK_INSTRUCTIONS {
            self.since_tick = 0;
            self.look();
        }
    }

    /// Tells the caller where the search stands, and asks whether to stop.
    pub(crate) fn look(&mut self) {
        let progress = Progress {
            evaluations: self.shown,
            best_ns: self.best_ns,
            lower_bound_ns: self.bound_ns,
            stage: self.stage,
        };
        self.stopped |= (self.tick)(&progress) == Control::Stop;
    }

    /// The caller wants the search to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The caller or the budget says that it is enough, whether there is a plan or not.
    pub(crate) fn is_over(&self) -> bool {
        self.stopped || self.evaluations >= self.evaluations_max
    }

    /// Counts as so many evaluations.
    pub(crate) fn count(&mut self, evaluations: u64) {
        self.evaluations += evaluations;
        self.shown += evaluations;
    }

    /// The caller has wanted it for long, and will have no plan if there is none by now.
    pub(crate) fn is_overdue(&self) -> bool {
        self.since_stopped > OVERDUE_INSTRUCTIONS
    }

    /// Starts anew with a task, as if nothing else had been evaluated.
    pub(crate) fn begin(&mut self, best_ns: u64, evaluations_max: u64, is_free: bool, trust: Trust) {
        self.is_free = is_free;
        (self.evaluations, self.evaluations_max) = (0, evaluations_max);
        (self.best_ns, self.is_proved) = (best_ns, false);
        self.sketched = 0;
        self.sketch.trust = trust;
        self.sketch.lesson = None;
    }

    /// Counts a sketch of so many stages: many make an evaluation.
    pub(crate) fn spend_sketch(&mut self, stages: usize) {
        self.sketched += stages;
        if self.sketched >= SKETCHED_STAGES {
            self.sketched = 0;
            self.spend(SKETCHED_STAGES);
        }
    }

    /// What a shape takes at least, whatever the order.
    pub(crate) fn floor_ns(&mut self, shape: &Shape) -> f64 {
        self.spend_sketch(shape.stages.len());
        self.sketch.estimate(self.costs, shape, 0.0).floor_ns
    }

    /// The devices that take longest and least, whatever the order.
    pub(crate) fn extremes(&mut self, shape: &Shape) -> Extremes {
        self.spend_sketch(shape.stages.len());
        self.sketch.extremes(self.costs, shape, &self.rules.usable)
    }

    /// About what an iteration of a shape takes.
    pub(crate) fn estimate(&mut self, shape: &Shape) -> Estimate {
        self.spend_sketch(shape.stages.len());
        self.sketch.estimate(self.costs, shape, f64::INFINITY)
    }

    /// The best split over a sequence of devices; where pins leave none, the best without them, to be repaired.
    pub(crate) fn split(&mut self, sequence: &[u32], weigh: Weigh) -> Option<Shape> {
        let mut split = self.splitter.split(self.costs, self.rules, sequence, weigh);
        if split.is_none() && !self.rules.free {
            split = self.relaxed_splitter.split(self.costs, &self.relaxed, sequence, weigh);
        }
        let steps = self.splitter.take_steps() + self.relaxed_splitter.take_steps();
        self.work(steps / STEPS_PER_INSTRUCTION);
        split
    }

    /// Splits over a sequence of devices that move few layers: one for each of some slacks, how much larger than the
    /// least possible the largest load may be. Pins are kept, or there are none.
    pub(crate) fn splits_near(&mut self, sequence: &[u32], weigh: Weigh, slacks: &[f64]) -> Vec<Shape> {
        let tolls = self.tolls();
        let near = self.splitter.split_near(self.costs, self.rules, sequence, weigh, slacks, &tolls);
        let steps = self.splitter.take_steps();
        self.work(steps / STEPS_PER_INSTRUCTION);
        near
    }

    /// What a shape costs beside its time: a little per stage, what moving to it takes, per iteration of the horizon,
    /// and the toll.
    pub(crate) fn charge(&self, shape: &Shape) -> f64 {
        let toll = if self.is_free { 0.0 } else { self.toll(shape) };
        self.stage_charge(shape) + self.price(shape) + toll
    }

    fn stage_charge(&self, shape: &Shape) -> f64 {
        shape.stages.len().saturating_sub(self.stages_free) as f64 * self.stage_charge_ns
    }

    /// Layers that leave their device, from where and where to. One whose device is gone moves wherever it goes: no
    /// reason to put it here or there.
    fn moved(&self, shape: &Shape) -> impl Iterator<Item = (usize, u32, u32)> {
        let homes = self.homes.unwrap_or_default();
        let of = |slot: &Slot| slot.range().zip(std::iter::repeat(slot.device));
        let places = shape.stages.iter().flat_map(of);
        places.filter_map(move |(layer, to)| {
            let from = *homes.get(layer)?;
            (from != to && from != GONE).then_some((layer, from, to))
        })
    }

    /// What moving to a shape takes, per iteration of the horizon.
    fn price(&self, shape: &Shape) -> f64 {
        let mut pairs: Vec<(u32, u32, u64)> = Vec::new();
        for (layer, from, to) in self.moved(shape) {
            let bytes = self.costs.moved_bytes[layer];
            match pairs.iter_mut().rfind(|pair| (pair.0, pair.1) == (from, to)) {
                Some(pair) => pair.2 = pair.2.saturating_add(bytes),
                None => pairs.push((from, to, bytes)),
            }
        }
        let time_ns = |&(from, to, bytes): &(u32, u32, u64)| {
            let (transfer_ns, latency_ns) = self.costs.transfer(from as usize, to as usize, bytes);
            transfer_ns.saturating_add(latency_ns)
        };
        pairs.iter().map(time_ns).max().unwrap_or(0) as f64 / self.horizon_iterations
    }

    /// Puts each part of a plan from nothing on that of several like devices which holds most of it in the running plan.
    pub(crate) fn settle(&self, candidate: &mut Candidate) {
        let Some(homes) = self.homes else { return };
        let before = self.price(&candidate.shape);
        if relabel::settle(self.costs, self.rules, homes, candidate) {
            candidate.value += self.price(&candidate.shape) - before;
        }
    }

    /// What keeps a plan near the running one, beside the price of moving.
    pub(crate) fn toll(&self, shape: &Shape) -> f64 {
        let moved = self.moved(shape).count() as f64;
        moved * self.moved_layer_ns + (moved - self.few_layers).max(0.0) * self.moved_beyond_ns
    }

    /// Device of each layer in the running plan that is to be stayed near to.
    pub(crate) fn homes(&self) -> Option<&'a [u32]> {
        self.homes.filter(|_| !self.is_free)
    }

    /// There is a running plan, to be stayed near to or not.
    pub(crate) fn has_running(&self) -> bool {
        self.homes.is_some()
    }

    /// What moving layers to a device adds to the charge at least: sums over the layers before each, by device.
    pub(crate) fn tolls(&self) -> Vec<Vec<f64>> {
        let of = |device: u32| {
            let mut sum = 0.0;
            let home = |layer: usize| self.homes.map_or(GONE, |homes| homes[layer]);
            let toll = |layer: usize| if home(layer) == device || home(layer) == GONE { 0.0 } else { 1.0 };
            std::iter::once(0.0)
                .chain((0..self.costs.layers).map(|layer| {
                    sum += toll(layer);
                    sum
                }))
                .collect()
        };
        (0..self.costs.devices as u32).map(of).collect()
    }

    /// Lists a shape's programs; their value, if they fit and end before `give_up`.
    pub(crate) fn list(&mut self, tables: &Tables, genes: Genes, charge: f64, give_up: f64) -> Option<(u64, f64)> {
        self.spend(tables.stages() * tables.microbatches * 3);
        let recipe = genes.recipe(tables);
        let most = (give_up - charge).max(0.0).min(u64::MAX as f64) as u64;
        let mut end = self.listing.run(tables, &recipe, most.saturating_sub(tables.tail_ns))?;
        if tables.crowd.is_some() {
            // It was listed as if every device had a core of its own.
            end = self.replay.run(tables, &self.listing.programs)?;
        }
        let time = end.saturating_add(tables.tail_ns);
        Some((time, time as f64 + charge))
    }

    /// The best listing of a shape over some genes.
    pub(crate) fn best_listing(&mut self, shape: &Shape, genes: &[Genes]) -> Option<Candidate> {
        if !self.rules.permits(shape) {
            return None;
        }
        let tables = Tables::new(self.costs, shape);
        if !admissible(&tables) {
            return None;
        }
        let charge = self.charge(shape);
        if self.worth < f64::INFINITY && self.floor_ns(shape) + charge > self.worth {
            return None;
        }
        let mut best: Option<Candidate> = None;
        for &genes in genes {
            let give_up = best.as_ref().map_or(self.worth, |best| best.value);
            if let Some((iteration_ns, value)) = self.list(&tables, genes, charge, give_up)
                && value < give_up
            {
                let programs = self.listing.programs.clone();
                best = Some(Candidate { shape: shape.clone(), programs, genes, iteration_ns, value });
            }
            if best.is_some() && self.done() {
                break;
            }
        }
        best
    }

    /// Judges given programs; `None` if they don't fit, can't run or break a rule.
    pub(crate) fn given(&mut self, shape: &Shape, programs: Programs, genes: Genes) -> Option<Candidate> {
        if !self.rules.permits(shape) {
            return None;
        }
        let tables = Tables::new(self.costs, shape);
        self.spend(programs.iter().map(Vec::len).sum());
        if !memory::fits(&tables, &programs) {
            return None;
        }
        let iteration_ns = self.replay.run(&tables, &programs)?.saturating_add(tables.tail_ns);
        let value = iteration_ns as f64 + self.charge(shape);
        Some(Candidate { shape: shape.clone(), programs, genes, iteration_ns, value })
    }
}
