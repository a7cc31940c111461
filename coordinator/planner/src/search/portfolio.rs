//! Where the search starts: orders of devices, patterns of stages, named orders and the running plan.

use super::RungKind;
use super::early;
use super::judge::{Candidate, Judge};
use crate::costs::Costs;
use crate::partition::{Splitter, Weigh};
use crate::random::Random;
use crate::recipe::Genes;
use crate::replay::Replay;
use crate::rules::Rules;
use crate::schedule::{Bench, Name};
use crate::shape::{Shape, Tables};

/// Orders whose sequential split is looked at first.
pub(super) const ORDERS_MAX: usize = 48;
/// Orders that are then tried with every pattern.
const ORDERS_KEPT: usize = 4;
/// Candidates that survive, and how many of them may place all but one in so many layers alike: different starts are
/// worth keeping, also where they are somewhat worse.
const POOL_MAX: usize = 12;
const ALIKE_MAX: usize = 2;
const ALIKE_SHARE: usize = 6;
/// Slots of a device in the richest pattern.
const SLOTS_MAX: usize = 3;

/// Runs of like devices in an order up to which each is given rounds of its own.
const GROUPS_MAX: usize = 3;

/// Instructions that the best partition for one name may take.
const NAMED_INSTRUCTIONS_MAX: u64 = 600_000;
/// The same while none of its partitions has fitted.
const NAMED_UNFOUND_INSTRUCTIONS_MAX: u64 = 3_000_000;
/// Instructions after which no further order is looked at, and after which starting ends: where one listing takes long,
/// few have to do.
const ORDERS_INSTRUCTIONS_MAX: u64 = 8_000_000;
const STARTS_INSTRUCTIONS_MAX: u64 = 20_000_000;
/// Microbatches in flight that partitions leave memory for, in percent of 1F1B's: for each order of devices, of which so
/// many shapes are looked at, and for each pattern of the best orders.
const IN_FLIGHT_ORDERS: [usize; 4] = [100, 50, 20, 8];
const ORDER_SHAPES: usize = 2;
const IN_FLIGHT: [usize; 7] = [100, 60, 30, 20, 12, 6, 0];
/// Orders on which short passes first are tried.
const EARLY_ORDERS: usize = 6;
/// With a running plan only this part of them.
const RUNNING_SHARE: u64 = 5;
/// Starts this much worse than the best are not looked at to their end.
const START_WORTH: f64 = 1.12;

/// Relabellings of the running plan that are looked at.
pub(crate) const RELABELLINGS_MAX: usize = 24;

/// The best candidates so far, at most one of each shape, best first; and the best of each kind of change.
pub(crate) struct Pool {
    pub(crate) members: Vec<Candidate>,
    running: Option<Shape>,
    /// The best of what each kind of change adds to those before it, indexed by [`RungKind`].
    pub(crate) rungs: [Option<Candidate>; RungKind::ALL.len()],
}

impl Pool {
    /// Empty; kinds of change are told against a running shape.
    pub(crate) fn new(running: Option<Shape>) -> Self {
        Self { members: Vec::new(), running, rungs: Default::default() }
    }

    /// The best of a kind of change, or of one that it allows as well.
    pub(crate) fn rung(&self, kind: RungKind) -> Option<&Candidate> {
        let allowed = RungKind::ALL.into_iter().filter(|&other| kind.allows(other));
        allowed.filter_map(|other| self.rungs[other as usize].as_ref()).min_by(|a, b| a.value.total_cmp(&b.value))
    }

    /// Adds a candidate, if it is among the best.
    pub(crate) fn offer(&mut self, judge: &mut Judge, candidate: Candidate) {
        if let Some(running) = &self.running {
            let rung = &mut self.rungs[RungKind::of(running, &candidate.shape) as usize];
            if rung.as_ref().is_none_or(|held| candidate.value < held.value) {
                *rung = Some(candidate.clone());
            }
        }
        judge.note(candidate.iteration_ns, &candidate.shape);
        if let Some(same) = self.members.iter_mut().find(|member| member.shape == candidate.shape) {
            if candidate.value < same.value {
                *same = candidate;
            }
        } else {
            self.members.push(candidate);
        }
        self.members.sort_by(|a, b| a.value.total_cmp(&b.value));
        let mut placements: Vec<Vec<u32>> = Vec::new();
        self.members.retain(|member| {
            let own = member.shape.device_of_layers();
            let near = own.len() / ALIKE_SHARE;
            let apart = |other: &Vec<u32>| other.iter().zip(&own).filter(|(a, b)| a != b).count();
            let is_kept = placements.iter().filter(|other| apart(other) <= near).count() < ALIKE_MAX;
            if is_kept {
                placements.push(own);
            }
            is_kept
        });
        self.members.truncate(POOL_MAX);
    }
}

/// Distinct orders of the usable devices: no two that differ only by devices that no plan can tell apart. As given, by
/// the layers pinned to them, by speed, by memory, and reversed first.
pub(crate) fn device_orders(costs: &Costs, rules: &Rules, most: usize) -> Vec<Vec<u32>> {
    // A pin tells any two apart.
    let class = if rules.free { costs.classes() } else { (0..costs.devices).collect() };
    let given = rules.usable.clone();
    let speed = |device: u32| {
        let of = |layer| {
            let cost = costs.layer(device as usize, layer);
            (cost.forward_ns + cost.input_gradient_ns + cost.weight_gradient_ns) as f64
        };
        (0..costs.layers).map(of).sum::<f64>() * costs.slowdown[device as usize]
    };
    let mut seen = std::collections::BTreeSet::new();
    let mut orders: Vec<Vec<u32>> = Vec::new();
    let mut add = |order: Vec<u32>| {
        let names: Vec<usize> = order.iter().map(|&device| class[device as usize]).collect();
        if seen.insert(names) {
            orders.push(order);
        }
        orders.len() < most
    };
    let mut sorted = given.clone();
    add(given.clone());
    add(by_pins(costs, rules));
    sorted.sort_by(|&a, &b| speed(a).total_cmp(&speed(b)));
    add(sorted.clone());
    add(sorted.iter().rev().copied().collect());
    sorted.sort_by_key(|&device| costs.memory_bytes[device as usize]);
    add(sorted.clone());
    add(sorted.iter().rev().copied().collect());
    add(given.iter().rev().copied().collect());
    let mut random = Random::new(given.len() as u64);
    // Few devices: nearly all orders come up. Many: a sample, from which the search swaps on.
    for _ in 0..most * 8 {
        let mut order = given.clone();
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at + 1));
        }
        if !add(order) {
            break;
        }
    }
    orders
}

/// Devices to which layers are pinned where those lie in the model, the others around them as given.
fn by_pins(costs: &Costs, rules: &Rules) -> Vec<u32> {
    let count = rules.usable.len();
    let mut order: Vec<Option<u32>> = vec![None; count];
    let mut rest = Vec::new();
    for &device in &rules.usable {
        let others = || rules.usable.iter().filter(|&&other| other != device);
        let is_pinned = |&layer: &usize| {
            rules.allows(layer, device as usize) && !others().any(|&other| rules.allows(layer, other as usize))
        };
        let pinned: Vec<usize> = if rules.free { Vec::new() } else { (0..costs.layers).filter(is_pinned).collect() };
        if pinned.is_empty() || count < 2 {
            rest.push(device);
            continue;
        }
        let mean = pinned.iter().sum::<usize>() / pinned.len();
        let wanted = (mean * count / costs.layers).min(count - 1);
        let near = (0..count).filter(|&place| order[place].is_none()).min_by_key(|place| place.abs_diff(wanted));
        order[near.expect("there are as many places as devices")] = Some(device);
    }
    let mut rest = rest.into_iter();
    order.into_iter().filter_map(|held| held.or_else(|| rest.next())).collect()
}

/// Patterns of stages over an order of devices; `class` tells which devices are alike.
pub(super) fn patterns(order: &[u32], class: &[usize], layers: usize) -> Vec<Vec<u32>> {
    let back = || order.iter().rev();
    let mut patterns = vec![order.to_vec()];
    if order.len() < 2 {
        return patterns;
    }
    let mut wrapped = order.to_vec();
    wrapped.push(order[0]);
    patterns.push(wrapped);
    for rounds in 2..=SLOTS_MAX {
        patterns.push(order.iter().copied().cycle().take(order.len() * rounds).collect());
    }
    patterns.push(order.iter().chain(back()).copied().collect());
    patterns.push(order.iter().chain(back()).chain(order).copied().collect());
    patterns.extend(by_groups(order, class));
    patterns.retain(|pattern| pattern.len() <= layers.max(order.len()));
    patterns
}

/// Each run of like devices has its own number of rounds: slow devices that take few layers each start sooner if they
/// take them in turn.
fn by_groups(order: &[u32], class: &[usize]) -> Vec<Vec<u32>> {
    let groups: Vec<&[u32]> = order.chunk_by(|&a, &b| class[a as usize] == class[b as usize]).collect();
    if groups.len() < 2 || groups.len() > GROUPS_MAX {
        return Vec::new();
    }
    let combinations = SLOTS_MAX.pow(groups.len() as u32);
    let pattern = |number: usize| {
        let rounds = |place: usize| number / SLOTS_MAX.pow(place as u32) % SLOTS_MAX + 1;
        let repeated = |(place, group): (usize, &&[u32])| group.repeat(rounds(place));
        groups.iter().enumerate().flat_map(repeated).collect()
    };
    // All once is the order itself.
    (1..combinations).map(pattern).collect()
}

/// Fills the pool with everything that is known before searching; `running` is the shape of the running plan.
pub(crate) fn fill(judge: &mut Judge, pool: &mut Pool, running: Option<&Shape>) {
    judge.stage = "starts";
    starts(judge, pool, running);
    judge.worth = f64::INFINITY;
}

fn starts(judge: &mut Judge, pool: &mut Pool, running: Option<&Shape>) {
    let begun = judge.instructions;
    // Next to a running plan starts seldom pay.
    let share = if judge.homes().is_some() { RUNNING_SHARE } else { 1 };
    let (orders_max, starts_max) = (ORDERS_INSTRUCTIONS_MAX / share, STARTS_INSTRUCTIONS_MAX / share);
    let (costs, rules) = (judge.costs, judge.rules);
    let mut bench = Bench { costs, rules, splitter: Splitter::default(), replay: Replay::default() };
    // What a user can get by name is the least that a search gives; a running plan is worth keeping more.
    let is_new = pool.members.is_empty();
    for name in Name::ALL.into_iter().filter(|_| is_new) {
        let mut spent = 0;
        let mut goes_on = |is_found: bool, instructions: u64| {
            spent += instructions;
            // Within the usual the caller is not asked: the best of each name is worth the millisecond or two.
            if spent > NAMED_INSTRUCTIONS_MAX {
                judge.work(instructions);
            }
            let most = if is_found { NAMED_INSTRUCTIONS_MAX } else { NAMED_UNFOUND_INSTRUCTIONS_MAX };
            spent < most && !judge.is_overdue()
        };
        if let Some((_, shape, programs)) = bench.best(name, &mut goes_on)
            && let Some(candidate) = judge.given(&shape, programs, Genes::STANDARD[0])
        {
            pool.offer(judge, candidate);
        }
        if judge.done() {
            return;
        }
    }
    let mut ranked: Vec<(f64, Vec<u32>)> = Vec::new();
    let mut orders = device_orders(costs, rules, ORDERS_MAX);
    if let Some(running) = running {
        orders.insert(0, running_order(rules, running));
    }
    early::offer(judge, pool, &orders[..orders.len().min(EARLY_ORDERS)]);
    for order in orders {
        judge.worth = worth(judge, pool);
        let mut value = f64::INFINITY;
        let mut tried: Vec<Shape> = Vec::new();
        for in_flight in IN_FLIGHT_ORDERS {
            let Some(shape) = judge.split(&order, Weigh::Time { in_flight }) else {
                if judge.done() {
                    return;
                }
                continue;
            };
            let shape = rules.repaired(&shape);
            // Where memory is ample they are all alike.
            if tried.len() == ORDER_SHAPES || tried.contains(&shape) {
                break;
            }
            tried.push(shape.clone());
            if let Some(candidate) = judge.best_listing(&shape, &Genes::STANDARD[..3]) {
                value = value.min(candidate.value);
                pool.offer(judge, candidate);
            }
            value = value.min(offer_named(judge, pool, &shape));
            if judge.done() {
                return;
            }
            if judge.instructions - begun > orders_max {
                break;
            }
        }
        ranked.push((value, order));
        if judge.instructions - begun > orders_max && !pool.members.is_empty() {
            break;
        }
    }
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let class = costs.classes();
    for (_, order) in ranked.iter().take(ORDERS_KEPT) {
        for pattern in patterns(order, &class, costs.layers) {
            judge.worth = worth(judge, pool);
            let mut tried: Vec<Shape> = Vec::new();
            for in_flight in IN_FLIGHT {
                if let Some(shape) = judge.split(&pattern, Weigh::Time { in_flight })
                    && !tried.contains(&shape)
                {
                    offer_all(judge, pool, &shape);
                    tried.push(shape);
                }
                if judge.done() || judge.instructions - begun > starts_max && !pool.members.is_empty() {
                    return;
                }
            }
        }
    }
}

/// What a start may be worth at most to be looked at to its end. Next to a running plan only what is better: the search
/// goes on from there.
pub(super) fn worth(judge: &Judge, pool: &Pool) -> f64 {
    let factor = if judge.homes().is_some() { 1.0 } else { START_WORTH };
    pool.members.first().map_or(f64::INFINITY, |best| best.value * factor)
}

/// Named orders over a shape; the best value among them.
fn offer_named(judge: &mut Judge, pool: &mut Pool, shape: &Shape) -> f64 {
    if judge.homes().is_some() && judge.floor_ns(shape) + judge.charge(shape) > judge.worth {
        return f64::INFINITY;
    }
    let tables = Tables::new(judge.costs, shape);
    let mut best = f64::INFINITY;
    for name in Name::ALL {
        for programs in name.orders(&tables) {
            if let Some(candidate) = judge.given(shape, programs, Genes::STANDARD[0]) {
                best = best.min(candidate.value);
                pool.offer(judge, candidate);
            }
        }
    }
    best
}

fn offer_all(judge: &mut Judge, pool: &mut Pool, shape: &Shape) {
    let shape = judge.rules.repaired(shape);
    offer_named(judge, pool, &shape);
    let mut merged = shape.clone();
    merged.merge();
    if let Some(candidate) = judge.best_listing(&merged, &Genes::STANDARD) {
        pool.offer(judge, candidate);
    }
}

/// The devices of a shape by their first layers, then those without.
fn running_order(rules: &Rules, shape: &Shape) -> Vec<u32> {
    let mut order: Vec<u32> = Vec::new();
    for device in shape.stages.iter().map(|slot| slot.device).chain(rules.usable.iter().copied()) {
        if !order.contains(&device) && rules.usable.contains(&device) {
            order.push(device);
        }
    }
    order
}
