//! The second reading: each iteration's works on the plan that it ran on, replayed as recorded and without what was slow.

use super::Slowdown;
use crate::diagnose::graph::{Draft, Graph};
use crate::drift::Who;
use crate::estimate::robust::median;
use adaptis_plan::{Action, Instruction, Plan, Problem, crossings};
use adaptis_proto::sample::{Mark, Phase, Sample};
use adaptis_proto::{DeviceIndex, Epoch, Microbatch, Step};
use std::collections::BTreeMap;

/// Iterations that are open at once; the oldest is replayed as it is.
const OPEN: usize = 8;
/// F, I, W and F again.
const PHASES: usize = 4;

/// What a node of an iteration's graph stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::diagnose) enum Run {
    /// Work of a device on a stage, what it would take if all microbatches were alike, and what it takes besides, whatever the
    /// device's speed.
    Work { device: usize, stage: usize, even_ns: u64, fixed_ns: u64 },
    /// A tensor on its way, and what it would take if all were alike.
    Transfer { from: usize, to: usize, even_ns: u64 },
}

impl Run {
    fn fixed_ns(self) -> u64 {
        match self {
            Run::Work { fixed_ns, .. } => fixed_ns,
            Run::Transfer { .. } => 0,
        }
    }
}

/// What is known of an iteration so far.
#[derive(Clone, Debug, Default)]
struct Recorded {
    epoch: Epoch,
    /// By layer, phase and microbatch.
    works: BTreeMap<(usize, usize, usize), u64>,
    /// The same of works that show the host and not their device.
    hasty: BTreeMap<(usize, usize, usize), u64>,
    /// By directed pair: start and duration.
    transfers: BTreeMap<(usize, usize), Vec<(u64, u64)>>,
    optimizer_ns: Vec<u64>,
    duration_ns: u64,
    ended: Vec<DeviceIndex>,
}

/// What an iteration spends on no layer's work, as a problem has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Once.
    pub boundary_ns: u64,
    /// In each instruction.
    pub stage_ns: u64,
    /// In each that sends or receives, for each neighbour on another device.
    pub crossing_ns: u64,
}

impl Fixed {
    /// Of a problem.
    pub fn of(problem: &Problem) -> Self {
        Self { boundary_ns: problem.boundary_ns, stage_ns: problem.stage_ns, crossing_ns: problem.crossing_ns }
    }

    fn of_instruction(self, plan: &Plan, instruction: Instruction) -> u64 {
        let crossings = match instruction.action {
            Action::WeightGradient => 0,
            _ => crossings(&plan.stages, instruction.stage.index()),
        };
        self.stage_ns.saturating_add(self.crossing_ns.saturating_mul(crossings))
    }
}

/// Takes samples in the order in which they were stored.
#[derive(Clone, Debug)]
pub struct Works {
    plans: BTreeMap<Epoch, Plan>,
    slowdowns: Vec<Slowdown>,
    devices: usize,
    fixed: Fixed,
    open: BTreeMap<Step, Recorded>,
    done: Option<Step>,
    /// By plan, layer and phase: what works took in the iterations before.
    before: BTreeMap<(Epoch, usize, usize), u64>,
    /// By device and layer: the optimizer in the iterations before.
    optimizer_ns: BTreeMap<(usize, usize), u64>,
    /// Works, and those of them that show the host.
    works: u64,
    hasty: u64,
    replayed: Replayed,
}

/// All iterations that could be replayed.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// Which.
    pub steps: Vec<Step>,
    /// The plans that they ran on.
    pub epochs: Vec<Epoch>,
    /// Boundary to boundary.
    pub measured_ns: Vec<u64>,
    /// The replay of their works.
    pub simulated_ns: Vec<u64>,
    /// By slowdown, in their order.
    pub without_ns: Vec<Vec<u64>>,
    /// By slowdown: with it alone, and works of a layer and phase all alike.
    pub alone_ns: Vec<Vec<u64>>,
    /// Without any of them, and works of a layer and phase all alike.
    pub even_ns: Vec<u64>,
    /// Share of the works that show the host and not their device.
    pub hasty: f64,
}

impl Replayed {
    /// Measured iterations of a plan.
    pub fn of_epoch(&self, epoch: Epoch) -> Vec<u64> {
        let of = self.epochs.iter().zip(&self.measured_ns).filter(|(of, _)| **of == epoch);
        of.map(|(_, &ns)| ns).collect()
    }
}

impl Works {
    /// Replays on these plans.
    pub fn new(plans: BTreeMap<Epoch, Plan>, slowdowns: &[Slowdown], devices: usize, fixed: Fixed) -> Self {
        let each = vec![Vec::new(); slowdowns.len()];
        let replayed = Replayed { without_ns: each.clone(), alone_ns: each, ..Replayed::default() };
        let (slowdowns, open, done) = (slowdowns.to_vec(), BTreeMap::new(), None);
        let (before, optimizer_ns, works, hasty) = (BTreeMap::new(), BTreeMap::new(), 0, 0);
        Self { plans, slowdowns, devices, fixed, open, done, before, optimizer_ns, works, hasty, replayed }
    }

    /// Takes a sample of a device.
    pub fn absorb(&mut self, device: DeviceIndex, sample: &Sample) {
        let place = match *sample {
            Sample::Work { place, mark, .. } | Sample::Transfer { place, mark, .. } if mark != Mark::Calibration => {
                place
            }
            Sample::Iteration { place, .. } => place,
            _ => return,
        };
        if device.index() >= self.devices || self.done.is_some_and(|done| place.step <= done) {
            return;
        }
        let recorded = self.open.entry(place.step).or_default();
        recorded.epoch = place.epoch;
        recorded.optimizer_ns.resize(self.devices, 0);
        match *sample {
            Sample::Work { layer, phase: Phase::Optimizer, duration_ns, mark, .. } => {
                let before = self.optimizer_ns.entry((device.index(), layer.index())).or_insert(duration_ns);
                if mark != Mark::Hasty {
                    *before = duration_ns;
                }
                let of = &mut recorded.optimizer_ns[device.index()];
                *of = of.saturating_add(*before);
            }
            Sample::Work { layer, phase, microbatch, duration_ns, mark, .. } => {
                let of = if mark == Mark::Hasty { &mut recorded.hasty } else { &mut recorded.works };
                of.insert((layer.index(), phase as usize, microbatch.index()), duration_ns);
                self.works += 1;
                self.hasty += u64::from(mark == Mark::Hasty);
            }
            Sample::Transfer { from, start_ns, duration_ns, .. } => {
                let of = recorded.transfers.entry((from.index(), device.index())).or_default();
                of.push((start_ns, duration_ns));
            }
            Sample::Iteration { duration_ns, .. } => {
                recorded.duration_ns = recorded.duration_ns.max(duration_ns);
                recorded.ended.push(device);
            }
            _ => {}
        }
        let is_whole = self.open.get(&place.step).is_some_and(|recorded| recorded.ended.len() >= self.devices);
        if is_whole {
            // Those before it lack the end of some device, and always will.
            self.replay_until(place.step);
        } else if self.open.len() > OPEN
            && let Some(&oldest) = self.open.keys().next()
        {
            self.replay_until(oldest);
        }
    }

    fn replay_until(&mut self, last: Step) {
        while let Some((&step, _)) = self.open.first_key_value()
            && step <= last
        {
            let recorded = self.open.remove(&step).expect("it is the first one");
            self.replay(step, recorded);
            self.done = Some(step);
        }
    }

    fn replay(&mut self, step: Step, mut recorded: Recorded) {
        let Some(plan) = self.plans.get(&recorded.epoch) else { return };
        if recorded.duration_ns == 0 {
            return;
        }
        stand_in(&mut self.before, &mut recorded);
        let optimizer_ns = recorded.optimizer_ns.iter().copied().max().unwrap_or(0);
        let Some(graph) = graph(plan, &mut recorded, self.fixed) else { return };
        let tail_ns = optimizer_ns.saturating_add(self.fixed.boundary_ns);
        let mut ends = Vec::new();
        let usual = usual(&recorded.works);
        let slower = |slowdown: &Slowdown, node: Run| -> f64 {
            // The share of its time that is slower.
            let share = match (slowdown.who, node) {
                (Who::Device(of), Run::Work { device, .. }) if of.index() == device => 1.0,
                (Who::Link(of, at), Run::Transfer { from, to, .. }) if (of.index(), at.index()) == (from, to) => 1.0,
                (Who::Layer(of, layer), Run::Work { device, stage, .. }) if of.index() == device => {
                    share_of(plan, &usual, stage, layer.index())
                }
                _ => return 1.0,
            };
            let factor = slowdown.factor().max(1.0);
            if slowdown.is_at(step) { (1.0 - share + share / factor).recip() } else { 1.0 }
        };
        let scaled = |ns: u64, factor: f64| (ns as f64 / factor).round() as u64;
        let replayed = &mut self.replayed;
        replayed.simulated_ns.push(graph.end_ns(&mut ends, |_, ns| ns).saturating_add(tail_ns));
        for (slowdown, without_ns) in self.slowdowns.iter().zip(&mut replayed.without_ns) {
            let own = |node: Run, ns: u64| {
                scaled(ns.saturating_sub(node.fixed_ns()), slower(slowdown, node)) + node.fixed_ns()
            };
            let end_ns = graph.end_ns(&mut ends, own);
            without_ns.push(end_ns.saturating_add(tail_ns));
        }
        let even = |node: Run, but: Option<usize>| {
            let (Run::Work { even_ns, .. } | Run::Transfer { even_ns, .. }) = node;
            let others = self.slowdowns.iter().enumerate().filter(|(at, _)| Some(*at) != but);
            let all: f64 = others.map(|(_, slowdown)| slower(slowdown, node)).product();
            scaled(even_ns, all) + node.fixed_ns()
        };
        replayed.even_ns.push(graph.end_ns(&mut ends, |node, _| even(node, None)).saturating_add(tail_ns));
        for (at, alone_ns) in replayed.alone_ns.iter_mut().enumerate() {
            alone_ns.push(graph.end_ns(&mut ends, |node, _| even(node, Some(at))).saturating_add(tail_ns));
        }
        replayed.steps.push(step);
        replayed.epochs.push(recorded.epoch);
        replayed.measured_ns.push(recorded.duration_ns);
    }

    /// Replays what is left.
    pub fn finish(mut self) -> Replayed {
        self.replay_until(Step(u64::MAX));
        self.replayed.hasty = self.hasty as f64 / self.works.max(1) as f64;
        self.replayed
    }
}

/// Works that show the host count as if they had not been sampled: others of their layer and phase stand for them, of the
/// iteration, else of those before it. Where there are none, they are all that is known.
fn stand_in(before: &mut BTreeMap<(Epoch, usize, usize), u64>, recorded: &mut Recorded) {
    let epoch = recorded.epoch;
    let known = usual(&recorded.works);
    before.extend(known.iter().map(|(&(layer, phase), &ns)| ((epoch, layer, phase), ns)));
    for (key, ns) in std::mem::take(&mut recorded.hasty) {
        let (layer, phase, _) = key;
        if !known.contains_key(&(layer, phase)) {
            let ns = before.get(&(epoch, layer, phase)).copied().unwrap_or(ns);
            recorded.works.insert(key, ns);
        }
    }
}

/// An iteration's works and transfers as the plan orders them; none where F of a layer was never sampled.
fn graph(plan: &Plan, recorded: &mut Recorded, fixed: Fixed) -> Option<Graph<Run>> {
    let mut draft = Draft::default();
    let placed = Placed::of(plan, recorded, fixed, &mut draft)?;
    let arrivals = transfers(&placed, recorded, &mut draft);
    for (node, Instruction { stage, action, microbatch }) in &placed.nodes {
        let needed = match action {
            Action::Forward => stage.index().checked_sub(1).map(|from| (from, 0, *microbatch)),
            Action::InputGradient | Action::Backward => Some((stage.index() + 1, 1, *microbatch)),
            Action::WeightGradient => None,
        };
        if let Some(input) = needed.and_then(|key| arrivals.get(&key).or_else(|| placed.results.get(&key))) {
            draft.wait(*node, *input);
        }
    }
    draft.sorted()
}

/// A result: its stage, 0 for that of F and 1 for that of I or B, its microbatch.
type Made = (usize, usize, Microbatch);

/// The instructions of all devices as nodes.
#[derive(Default)]
struct Placed {
    nodes: Vec<(u32, Instruction)>,
    /// Who makes each result.
    results: BTreeMap<Made, u32>,
    /// By directed pair: what crosses it, in the sender's order.
    links: BTreeMap<(usize, usize), Vec<(Made, u32)>>,
}

impl Placed {
    fn of(plan: &Plan, recorded: &Recorded, fixed: Fixed, draft: &mut Draft<Run>) -> Option<Placed> {
        let usual = usual(&recorded.works);
        let mut placed = Placed::default();
        for (device, program) in plan.programs.iter().enumerate() {
            let mut before = None;
            for instruction in program {
                let (ns, even_ns) = instruction_ns(plan, recorded, &usual, *instruction)?;
                let (stage, fixed_ns) = (instruction.stage.index(), fixed.of_instruction(plan, *instruction));
                let node = draft.add(Run::Work { device, stage, even_ns, fixed_ns }, ns.saturating_add(fixed_ns));
                if let Some(before) = before.replace(node) {
                    draft.wait(node, before);
                }
                placed.add(plan, device, node, *instruction);
            }
        }
        Some(placed)
    }

    fn add(&mut self, plan: &Plan, device: usize, node: u32, instruction: Instruction) {
        let Instruction { stage, action, microbatch } = instruction;
        self.nodes.push((node, instruction));
        let to = match action {
            Action::Forward => Some(stage.index() + 1).filter(|&to| to < plan.stages.len()),
            Action::InputGradient | Action::Backward => stage.index().checked_sub(1),
            Action::WeightGradient => return,
        };
        let result = (stage.index(), usize::from(action != Action::Forward), microbatch);
        self.results.insert(result, node);
        if let Some(peer) = to.map(|to| plan.stages[to].device as usize)
            && peer != device
        {
            self.links.entry((device, peer)).or_default().push((result, node));
        }
    }
}

/// What an instruction took, and what it would take if all microbatches were alike.
fn instruction_ns(
    plan: &Plan,
    recorded: &Recorded,
    usual: &BTreeMap<(usize, usize), u64>,
    Instruction { stage, action, microbatch }: Instruction,
) -> Option<(u64, u64)> {
    let phases: &[usize] = match action {
        Action::Forward => &[0],
        Action::InputGradient => &[1, 3],
        Action::WeightGradient => &[2],
        Action::Backward => &[1, 2, 3],
    };
    let (mut ns, mut even_ns) = (0_u64, 0_u64);
    for &phase in phases {
        for layer in plan.stages[stage.index()].range() {
            let Some(&even) = usual.get(&(layer, phase)) else {
                // Recomputation is of some layers only, and what takes no time may have no sample.
                if phase == 0 { return None } else { continue }
            };
            let own = recorded.works.get(&(layer, phase, microbatch.index())).copied().unwrap_or(even);
            (ns, even_ns) = (ns.saturating_add(own), even_ns.saturating_add(even));
        }
    }
    Some((ns, even_ns))
}

/// What crosses devices, each directed pair one after the other. Gives who brings each result.
fn transfers(placed: &Placed, recorded: &mut Recorded, draft: &mut Draft<Run>) -> BTreeMap<Made, u32> {
    let mut arrivals = BTreeMap::new();
    for (&(from, to), sent) in &placed.links {
        let seen = recorded.transfers.entry((from, to)).or_default();
        seen.sort_unstable();
        let even_ns = median(&mut seen.iter().map(|(_, ns)| *ns as f64).collect::<Vec<_>>()).unwrap_or(0.0) as u64;
        let is_whole = seen.len() == sent.len();
        let mut before = None;
        for (at, &(result, producer)) in sent.iter().enumerate() {
            let ns = if is_whole { seen[at].1 } else { even_ns };
            let transfer = draft.add(Run::Transfer { from, to, even_ns }, ns);
            draft.wait(transfer, producer);
            if let Some(before) = before.replace(transfer) {
                draft.wait(transfer, before);
            }
            arrivals.insert(result, transfer);
        }
    }
    arrivals
}

/// What a layer has of the time of a stage.
fn share_of(plan: &Plan, usual: &BTreeMap<(usize, usize), u64>, stage: usize, layer: usize) -> f64 {
    let range = plan.stages[stage].range();
    let of =
        |layer: usize| (0..PHASES).filter_map(|phase| usual.get(&(layer, phase))).map(|&ns| ns as f64).sum::<f64>();
    let all: f64 = range.clone().map(of).sum();
    if range.contains(&layer) && all > 0.0 { of(layer) / all } else { 0.0 }
}

/// By layer and phase: the middle of its works.
fn usual(works: &BTreeMap<(usize, usize, usize), u64>) -> BTreeMap<(usize, usize), u64> {
    let mut of: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for (&(layer, phase, _), &ns) in works.iter().filter(|((_, phase, _), _)| *phase < PHASES) {
        of.entry((layer, phase)).or_default().push(ns as f64);
    }
    of.into_iter().filter_map(|(key, mut all)| Some((key, median(&mut all)?.round() as u64))).collect()
}
