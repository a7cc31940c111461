//! The published schedules, each on the best partition by time for it: baselines, and starts of the search.

pub(crate) mod block;
pub(crate) mod orders;

use crate::costs::Costs;
use crate::listing::{Listing, admissible};
use crate::memory;
use crate::partition::{Splitter, Weigh};
use crate::program::{F, I, Op, Programs, W, op};
use crate::recipe::backward_first;
use crate::replay::Replay;
use crate::rules::Rules;
use crate::search::{Infeasible, STEPS_PER_INSTRUCTION, device_orders, within_limits};
use crate::shape::{Shape, Tables, predicted};
use adaptis_plan::{Plan, Problem};
use adaptis_proto::Epoch;
use std::fmt;
use std::str::FromStr;

/// Why a named schedule has no partition although layers suffice: see [`Infeasible::Schedule`].
pub const UNFIT: &str = "fits in memory and keeps the constraints";

/// Device orders that a named schedule tries.
const ORDERS_MAX: usize = 24;
/// Instructions after which no more of them are: a few hundred tries with 64 devices x 256 microbatches.
const TRIED_INSTRUCTIONS_MAX: u64 = 100_000_000;

/// A published schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// All forwards, then all backwards (Huang et al. 2019).
    Gpipe,
    /// One forward, one backward (Narayanan et al. 2019).
    OneFOneB,
    /// Several stages per device, round robin (Narayanan et al. 2021).
    Interleaved,
    /// W delayed within the memory of 1F1B (Qi et al. 2023).
    ZbH1,
    /// More microbatches in flight, no bubble once warm (Qi et al. 2023).
    ZbH2,
    /// Two stages per device in a V, the memory of 1F1B (Qi et al. 2023).
    ZbV,
    /// Two stages per device in a V, about half that memory (Qi et al. 2024).
    VHalf,
    /// Two stages per device in a V, about a third of that memory (Qi et al. 2024).
    VMin,
}

impl Name {
    /// All of them.
    pub const ALL: [Name; 8] =
        [Name::Gpipe, Name::OneFOneB, Name::Interleaved, Name::ZbH1, Name::ZbH2, Name::ZbV, Name::VHalf, Name::VMin];

    /// As in commands.
    pub fn text(self) -> &'static str {
        match self {
            Name::Gpipe => "gpipe",
            Name::OneFOneB => "1f1b",
            Name::Interleaved => "i1f1b",
            Name::ZbH1 => "zb-h1",
            Name::ZbH2 => "zb-h2",
            Name::ZbV => "zb-v",
            Name::VHalf => "v-half",
            Name::VMin => "v-min",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text())
    }
}

/// A text that names no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no schedule: write gpipe, 1f1b, i1f1b, zb-h1, zb-h2, zb-v, v-half or v-min")]
pub struct UnknownName(pub String);

impl FromStr for Name {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let letters = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
        let found = Name::ALL.into_iter().find(|name| letters(name.text()) == letters(text));
        found.ok_or_else(|| UnknownName(text.chars().take(32).collect()))
    }
}

/// Layers split evenly by count over all devices that are not forbidden, in order; 1F1B with fused B. Everything is
/// recomputed where it does not fit otherwise; where it still does not fit, the audit says so. Epoch 1, parent 0.
///
/// Pinned layers and groups are kept: the nearest split that keeps them is taken, or none of them if they contradict
/// one another.
pub fn even(problem: &Problem) -> Plan {
    let costs = Costs::new(problem);
    let usable: Vec<u32> = (0..costs.devices)
        .filter(|&device| !problem.constraints.forbidden.contains(&problem.devices[device].name))
        .map(|device| device as u32)
        .collect();
    let devices = if usable.is_empty() { (0..costs.devices as u32).collect() } else { usable };
    let mut shape = by_count(costs.layers, &devices);
    if let Ok(rules) = Rules::new(problem)
        && !rules.permits(&shape)
    {
        let kept = Splitter::default().split(&costs, &rules, &devices, Weigh::Count).unwrap_or(shape);
        shape = rules.repaired(&kept);
    }
    let listed = |shape: &Shape| {
        let tables = Tables::new(&costs, shape);
        let programs = match tables.local.iter().all(|local| local.len() <= 1) {
            true => orders::one_f_one_b(&tables),
            false => fused(&tables).unwrap_or_else(|| one_at_a_time(&tables)),
        };
        (memory::fits(&tables, &programs), programs)
    };
    let (fits, mut programs) = listed(&shape);
    if !fits {
        let mut eased = shape.clone();
        eased.recompute.fill(true);
        let (fits, others) = listed(&eased);
        if fits {
            (shape, programs) = (eased, others);
        }
    }
    finish(problem, &costs, &shape, &programs, Epoch(1))
}

/// Layers split evenly by count over some devices, in order.
pub(crate) fn by_count(layers: usize, devices: &[u32]) -> Shape {
    let used = devices.len().min(layers);
    // Each boundary to the nearest layer.
    let cut = |place: usize| ((2 * place * layers + used) / (2 * used)) as u32;
    let slot = |place: usize| crate::shape::Slot { start: cut(place), end: cut(place + 1), device: devices[place] };
    Shape::new(layers, (0..used).map(slot).collect())
}

/// Each microbatch alone, all of it: the least memory.
pub(crate) fn one_at_a_time(tables: &Tables) -> Programs {
    let program = |local: &Vec<u32>| {
        let round = |m: usize| {
            let forward = local.iter().map(move |&stage| op(F, stage as usize, m));
            forward.chain(local.iter().rev().map(move |&stage| op(crate::program::B, stage as usize, m)))
        };
        (0..tables.microbatches).flat_map(round).collect()
    };
    tables.local.iter().map(program).collect()
}

fn fused(tables: &Tables) -> Option<Programs> {
    let count = tables.stages();
    let mut recipe = backward_first(tables, |stage| (count - stage) as u32);
    recipe.fused.fill(true);
    list(tables, &recipe)
}

fn list(tables: &Tables, recipe: &crate::listing::Recipe) -> Option<Programs> {
    let mut listing = Listing::default();
    if !admissible(tables) {
        return None;
    }
    listing.run(tables, recipe, u64::MAX)?;
    Some(listing.programs)
}

impl Name {
    /// The devices of its stages, for an order of devices: each list is one pattern to try.
    fn patterns(self, order: &[u32], layers: usize) -> Vec<Vec<u32>> {
        let rounds = |count: usize| order.iter().copied().cycle().take(order.len() * count).collect::<Vec<u32>>();
        match self {
            Name::Interleaved => {
                let most = (layers / order.len().max(1)).clamp(1, 4);
                (2.min(most)..=most).map(rounds).collect()
            }
            Name::ZbV | Name::VHalf | Name::VMin => vec![order.iter().chain(order.iter().rev()).copied().collect()],
            _ => vec![order.to_vec()],
        }
    }

    /// Microbatches in flight, in percent of 1F1B's.
    fn in_flight(self) -> usize {
        match self {
            Name::Gpipe => 100_000,
            Name::ZbH2 => 200,
            Name::VHalf => 50,
            Name::VMin => 34,
            _ => 100,
        }
    }

    /// Its programs over a shape of one of its patterns, each order that it is known by; none where it has none there.
    pub(crate) fn orders(self, tables: &Tables) -> impl Iterator<Item = Programs> {
        // Of unequal stages a repeated block may do better than the order that was written for equal ones.
        let block = if self == Name::ZbV { v_programs(tables, 6) } else { None };
        self.programs(tables).into_iter().chain(block)
    }

    /// Its programs over a shape of one of its patterns; `None` where it has none there.
    pub(crate) fn programs(self, tables: &Tables) -> Option<Programs> {
        let count = tables.stages();
        let single = tables.local.iter().all(|local| local.len() <= 1);
        match self {
            Name::Gpipe => Some(orders::gpipe(tables)),
            Name::OneFOneB => single.then(|| orders::one_f_one_b(tables)),
            Name::Interleaved => Some(orders::interleaved(tables)),
            Name::ZbH1 | Name::ZbH2 if !single => None,
            Name::ZbH1 => Some(orders::zero_bubble(tables, |stage| (count - stage, stage))),
            Name::ZbH2 => Some(orders::zero_bubble(tables, |stage| (2 * (count - stage) - 1, 2 * stage))),
            Name::ZbV => is_v(tables).then(|| orders::zb_v(tables)),
            Name::VHalf => v_programs(tables, 3),
            Name::VMin => v_programs(tables, 2),
        }
    }
}

/// Whether the stages lie in a V, two on each device.
fn is_v(tables: &Tables) -> bool {
    let count = tables.stages();
    count.is_multiple_of(2)
        && (0..count / 2).all(|stage| tables.device[stage] == tables.device[count - 1 - stage])
        && tables.local.iter().all(|local| local.len() <= 2)
}

/// The repeated block of slope `k` as programs, sorted by time; `None` where the stages are no V.
fn v_programs(tables: &Tables, k: usize) -> Option<Programs> {
    if !is_v(tables) {
        return None;
    }
    let block = block::v(tables.stages() / 2, k)?;
    let mut programs = Vec::with_capacity(tables.devices);
    for local in &tables.local {
        let mut timed: Vec<(usize, Op)> = Vec::with_capacity(local.len() * 3 * tables.microbatches);
        for &stage in local {
            let stage = stage as usize;
            for m in 0..tables.microbatches {
                let at = m * block::PERIOD;
                timed.push((at + block.forward[stage], op(F, stage, m)));
                timed.push((at + block.backward[stage], op(I, stage, m)));
                timed.push((at + block.weight[stage], op(W, stage, m)));
            }
        }
        timed.sort_unstable();
        programs.push(timed.into_iter().map(|(_, op)| op).collect());
    }
    Some(programs)
}

/// A named schedule on the best partition by time for it, over the devices as given or in a better order. Epoch 1,
/// parent 0.
///
/// # Errors
/// No partition of its kind fits, or the constraints contradict one another.
pub fn named(problem: &Problem, name: Name) -> Result<Plan, Infeasible> {
    named_while(problem, name, &mut || true)
}

/// As [`named`], for as long as `goes_on`, which is asked after each try: the best so far then.
///
/// # Errors
/// As [`named`]; or none was found so far.
pub fn named_while(problem: &Problem, name: Name, goes_on: &mut dyn FnMut() -> bool) -> Result<Plan, Infeasible> {
    within_limits(problem)?;
    let costs = Costs::new(problem);
    let rules = Rules::new(problem)?;
    let mut bench = Bench { costs: &costs, rules: &rules, splitter: Splitter::default(), replay: Replay::default() };
    let (mut left, mut is_stopped) = (TRIED_INSTRUCTIONS_MAX, false);
    let best = bench.best(name, &mut |is_found, instructions| {
        left = left.saturating_sub(instructions);
        is_stopped |= !goes_on();
        (left > 0 || !is_found) && !is_stopped
    });
    match best {
        Some((_, shape, programs)) => Ok(finish(problem, &costs, &shape, &programs, Epoch(1))),
        None if is_stopped => Err(Infeasible::NoneYet),
        None => {
            let least = name.patterns(&rules.usable, costs.layers).iter().map(Vec::len).min().unwrap_or(0);
            let because = match least > costs.layers {
                true => "has as few stages as there are layers",
                false => UNFIT,
            };
            Err(Infeasible::Schedule { name: name.text(), because })
        }
    }
}

/// Where named schedules are tried.
pub(crate) struct Bench<'a> {
    pub(crate) costs: &'a Costs,
    pub(crate) rules: &'a Rules,
    pub(crate) splitter: Splitter,
    pub(crate) replay: Replay,
}

impl Bench<'_> {
    /// The best shape and programs of a name that fit, with their time. `goes_on` is told, now and then, whether there is
    /// one and of as many instructions as were replayed, or split for, since the last time; when it says no, that is all.
    pub(crate) fn best(
        &mut self,
        name: Name,
        goes_on: &mut dyn FnMut(bool, u64) -> bool,
    ) -> Option<(u64, Shape, Programs)> {
        let mut best: Option<(u64, Shape, Programs)> = None;
        let tries = [name.in_flight(), name.in_flight() / 2, 0];
        for order in device_orders(self.costs, self.rules, ORDERS_MAX) {
            for pattern in name.patterns(&order, self.costs.layers) {
                for in_flight in tries {
                    let weigh = Weigh::Time { in_flight };
                    let split = self.splitter.split(self.costs, self.rules, &pattern, weigh);
                    if !goes_on(best.is_some(), self.splitter.take_steps() / STEPS_PER_INSTRUCTION) {
                        return best;
                    }
                    let Some(shape) = split else { continue };
                    if !self.rules.permits(&shape) {
                        continue;
                    }
                    for shape in eased(shape) {
                        let mut instructions = 0;
                        if let Some((time, programs)) = self.time(name, &shape, &mut instructions)
                            && best.as_ref().is_none_or(|(held, ..)| time < *held)
                        {
                            best = Some((time, shape, programs));
                        }
                        if !goes_on(best.is_some(), instructions) {
                            return best;
                        }
                    }
                }
            }
        }
        best
    }

    fn time(&mut self, name: Name, shape: &Shape, instructions: &mut u64) -> Option<(u64, Programs)> {
        let tables = Tables::new(self.costs, shape);
        let mut best: Option<(u64, Programs)> = None;
        for programs in name.orders(&tables) {
            *instructions += programs.iter().map(Vec::len).sum::<usize>() as u64;
            if memory::fits(&tables, &programs)
                && let Some(end) = self.replay.run(&tables, &programs)
                && best.as_ref().is_none_or(|(held, _)| end < *held)
            {
                best = Some((end, programs));
            }
        }
        best.map(|(end, programs)| (end.saturating_add(tables.tail_ns), programs))
    }
}

/// A shape as it is, and with everything recomputed.
fn eased(shape: Shape) -> [Shape; 2] {
    let mut all = shape.clone();
    all.recompute.fill(true);
    [shape, all]
}

/// As a plan with its prediction.
pub(crate) fn finish(problem: &Problem, costs: &Costs, shape: &Shape, programs: &Programs, epoch: Epoch) -> Plan {
    let mut plan = shape.plan(problem, programs, epoch, Epoch(0));
    let timeline = crate::simulate::simulate(problem, &plan).ok();
    plan.predicted = timeline.map(|timeline| predicted(&timeline, crate::bounds::of(costs, problem)));
    plan
}
