//! Stages in passes over the devices: short ones first, so that all devices start early, and a last one that evens out
//! what they have to do.
//!
//! ```text
//!   device 0   layers 0-1                       8-15        A device starts when the first microbatch has come down
//!   device 1              2-3                  16-22        to it: with many devices and one stage on each, the last
//!   device 2                   4-5             23-27        ones wait for most of the model.
//! ```
//!
//! The short ones are the lead: any number of stages over the devices in turn, or there and back. Where memory binds, the
//! first of them, which are held longest, are recomputed; how long a lead is best, and where the last pass is to begin,
//! depends on all of it, so every lead is sketched, and what is likely best is listed.
//!
//! With the lead given, starts are known, and a dynamic program over the boundaries of the last pass minimises the latest
//! of `start + microbatches x load` over the devices, then the sum of squares. Memory is left to the listing.

use super::judge::{Judge, STEPS_PER_INSTRUCTION};
use super::portfolio::{Pool, worth};
use crate::costs::Costs;
use crate::recipe::Genes;
use crate::rules::Rules;
use crate::shape::{Shape, Slot};

/// Runs of the second pass are looked at up to so many times a device's share of the layers, and some.
const RUN_MAX: usize = 4;

/// A dynamic program's cell.
#[derive(Clone, Copy)]
struct Cell {
    latest: f64,
    squares: f64,
    from: u32,
}

const NONE: Cell = Cell { latest: f64::INFINITY, squares: f64::INFINITY, from: 0 };

/// From so many devices times microbatches on, one whole pass of short stages is tried, on several orders of devices and
/// listed in so many ways: there no device should wait long for the first.
const LARGE: usize = 1_000;
const LARGE_GENES: usize = 3;
/// Elsewhere, on the first order, all leads by how long they likely take: so many are listed in so many ways, and so many
/// of those in all.
const LISTED_MAX: usize = 80;
const GENES: usize = 5;
const KEPT: usize = 10;
/// Beside a running plan, where time is short, so many times fewer.
const BESIDE_RUNNING: usize = 4;
/// Steps of their dynamic programs, over all leads: of many devices and layers not all leads are looked at.
const STEPS_MAX: u64 = 100_000_000;
/// Layers of a short stage, at most.
const FIRST_MAX: usize = 3;
/// Passes of short stages, at most.
const PASSES_MAX: usize = 3;
/// Recomputed passes of short stages, in halves.
const EASED_HALVES: [usize; 4] = [0, 2, 3, 4];
/// A layer that takes less than this share of the longest is not counted.
const SLIGHT: f64 = 0.15;

/// What comes before the last pass, and how that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lead {
    /// Layers of a short stage; those that take next to nothing are not counted.
    first: usize,
    /// Short stages, over the devices in turn.
    count: usize,
    /// Every second pass of them goes back.
    is_wave: bool,
    /// The first so many of them are recomputed.
    eased: usize,
    /// Place of the device with which the last pass begins; it goes on from there, or back.
    last: usize,
    turned: bool,
}

impl Lead {
    /// Whole passes of short stages, up to so many.
    fn whole(devices: usize, passes: usize) -> Vec<Self> {
        let lead =
            |first, passes| Self { first, count: passes * devices, is_wave: false, eased: 0, last: 0, turned: false };
        let both = |lead: Self| [lead, Self { last: devices - 1, turned: true, ..lead }];
        let leads = (1..=passes).flat_map(|passes| (1..=FIRST_MAX).map(move |first| lead(first, passes)));
        leads.flat_map(both).collect()
    }

    /// Any number of short stages, none recomputed; the last pass begins at the next device, in either direction, or turns
    /// back at the last one.
    fn all(devices: usize) -> Vec<Self> {
        let counts = (1..=FIRST_MAX).flat_map(|first| (1..=PASSES_MAX * devices).map(move |count| (first, count)));
        let ways = counts.flat_map(|(first, count)| [false, true].map(|is_wave| (first, count, is_wave)));
        let leads =
            ways.filter(|&(_, count, is_wave)| !is_wave || count > devices).flat_map(|(first, count, is_wave)| {
                let goes_back = is_wave && (count - 1) / devices % 2 == 1;
                let place = place(devices, is_wave, count - 1);
                let next = (place + if goes_back { devices - 1 } else { 1 }) % devices;
                let lasts = [(next, goes_back), (next, !goes_back), (place, !goes_back)];
                lasts.map(|(last, turned)| Self { first, count, is_wave, eased: 0, last, turned })
            });
        leads.collect()
    }

    /// With more and more of its short stages recomputed.
    fn eased(self, devices: usize) -> impl Iterator<Item = Self> {
        let mut eased = EASED_HALVES.map(|halves| (halves * devices / 2).min(self.count)).to_vec();
        eased.dedup();
        eased.into_iter().skip(1).map(move |eased| Self { eased, ..self })
    }
}

/// Place of the device of a short stage.
fn place(devices: usize, is_wave: bool, short: usize) -> usize {
    let (pass, place) = (short / devices, short % devices);
    if is_wave && pass % 2 == 1 { devices - 1 - place } else { place }
}

/// Steps of the dynamic program, at most.
fn steps(costs: &Costs, devices: usize) -> u64 {
    (devices * costs.layers * width(costs.layers, devices)) as u64
}

/// Layers of a stage of the last pass, at most.
fn width(layers: usize, devices: usize) -> usize {
    layers.div_ceil(devices) * RUN_MAX + 1
}

/// Shapes whose first passes over the devices are short: where there are many devices to wait for one another, and where
/// memory binds with the first passes, which are held longest, recomputed.
pub(super) fn offer(judge: &mut Judge, pool: &mut Pool, orders: &[Vec<u32>]) {
    let devices = judge.rules.usable.len();
    if devices * judge.costs.microbatches >= LARGE {
        for order in orders {
            for lead in Lead::whole(devices, 1) {
                offer_lead(judge, pool, order, &lead, LARGE_GENES);
                if judge.done() {
                    return;
                }
            }
        }
    } else if judge.homes().is_some() {
        // Next to a running plan they seldom pay.
        for lead in Lead::whole(devices, PASSES_MAX) {
            for eased in [0, devices] {
                offer_lead(judge, pool, &orders[0], &Lead { eased, ..lead }, GENES);
                if judge.done() {
                    return;
                }
            }
        }
    } else {
        let shapes = likely(judge, &orders[0]);
        offer_best(judge, pool, shapes);
    }
}

fn offer_lead(judge: &mut Judge, pool: &mut Pool, order: &[u32], lead: &Lead, genes: usize) {
    judge.work(steps(judge.costs, order.len()) / STEPS_PER_INSTRUCTION);
    if let Some(shape) = split(judge.costs, judge.rules, order, lead) {
        offer_listed(judge, pool, &shape, &Genes::STANDARD[..genes]);
    }
}

/// Shapes of all leads over an order of devices, those first that likely take least.
fn likely(judge: &mut Judge, order: &[u32]) -> Vec<Shape> {
    let devices = order.len();
    let mut likely: Vec<(f64, Shape)> = Vec::new();
    let each = steps(judge.costs, devices);
    let mut left = STEPS_MAX;
    // Whole passes first: where there are many devices, they may be all that is looked at.
    let whole = Lead::whole(devices, PASSES_MAX);
    let others = Lead::all(devices).into_iter().filter(|lead| !whole.contains(lead));
    for lead in whole.iter().copied().chain(others) {
        let mut sketch = |lead: Lead| {
            let shape = split(judge.costs, judge.rules, order, &lead)?;
            judge.work(each / STEPS_PER_INSTRUCTION);
            left = left.saturating_sub(each);
            let estimate = judge.estimate(&shape);
            likely.push((estimate.likely_ns, shape));
            Some(estimate.is_tight)
        };
        if sketch(lead) == Some(true) {
            lead.eased(devices).for_each(|lead| {
                sketch(lead);
            });
        }
        if left == 0 || judge.done() {
            break;
        }
    }
    likely.sort_by(|a, b| a.0.total_cmp(&b.0));
    likely.dedup_by(|a, b| a.1 == b.1);
    likely.into_iter().map(|(_, shape)| shape).take(LISTED_MAX / share(judge)).collect()
}

/// Lists shapes; a few listings of each tell which are worth the others.
fn offer_best(judge: &mut Judge, pool: &mut Pool, shapes: Vec<Shape>) {
    let (few, others) = Genes::STANDARD.split_at(GENES);
    let mut listed: Vec<(f64, Shape)> = Vec::new();
    for shape in shapes {
        if let Some(value) = offer_listed(judge, pool, &shape, few) {
            listed.push((value, shape));
        }
        if judge.done() {
            return;
        }
    }
    listed.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (_, shape) in listed.into_iter().take(KEPT / share(judge)) {
        offer_listed(judge, pool, &shape, others);
        if judge.done() {
            return;
        }
    }
}

/// How many times fewer shapes are listed.
fn share(judge: &Judge) -> usize {
    if judge.has_running() { BESIDE_RUNNING } else { 1 }
}

/// The best of some listings of a shape, and what it is worth.
fn offer_listed(judge: &mut Judge, pool: &mut Pool, shape: &Shape, genes: &[Genes]) -> Option<f64> {
    judge.worth = worth(judge, pool);
    let candidate = judge.best_listing(shape, genes)?;
    let value = candidate.value;
    pool.offer(judge, candidate);
    Some(value)
}

/// The best last pass over an order of devices, after a lead of short stages. None where layers are too few or something
/// is pinned.
fn split(costs: &Costs, rules: &Rules, order: &[u32], lead: &Lead) -> Option<Shape> {
    let (layers, count) = (costs.layers, order.len());
    if !rules.free {
        return None;
    }
    let own_ns = |layer: usize| {
        let cost = costs.layer(order[0] as usize, layer);
        (cost.forward_ns + cost.input_gradient_ns + cost.weight_gradient_ns) as f64
    };
    let slight_ns = (0..layers).map(own_ns).fold(0.0, f64::max) * SLIGHT;
    let mut stages: Vec<Slot> = Vec::with_capacity(lead.count + count);
    // When each place starts, and then what all microbatches take of it.
    let mut begins: Vec<Option<f64>> = vec![None; count];
    let mut busy_ns: Vec<f64> = vec![0.0; count];
    let mut start_ns = 0.0;
    let mut recompute = vec![false; layers];
    let mut begun = 0;
    for short in 0..lead.count {
        let place = place(count, lead.is_wave, short);
        let device = order[place];
        let mut end = begun;
        let mut counted = 0;
        while end < layers && counted < lead.first {
            counted += usize::from(own_ns(end) >= slight_ns);
            end += 1;
        }
        if counted < lead.first {
            return None;
        }
        let slot = Slot { start: begun as u32, end: end as u32, device };
        recompute[slot.range()].fill(short < lead.eased);
        let mut cost = costs.stage(device as usize, slot.range(), &recompute);
        let mut link_ns = 0.0;
        begins[place].get_or_insert(start_ns);
        let next = order[self::place(count, lead.is_wave, short + 1)];
        if next != device && end < layers {
            let (transfer_ns, latency_ns) = costs.transfer(device as usize, next as usize, costs.output_bytes[end - 1]);
            link_ns = (transfer_ns + latency_ns) as f64;
        }
        let from_before = stages.last().is_some_and(|before| before.device != device);
        cost.add_crossings(costs.crossings_ns(from_before, next != device && end < layers));
        busy_ns[place] += cost.ns[..3].iter().map(|&ns| ns as f64).sum::<f64>() * costs.microbatches as f64;
        start_ns += cost.ns[0] as f64 + link_ns;
        stages.push(slot);
        begun = end;
    }
    if begun + count > layers {
        return None;
    }
    let places: Vec<usize> = (0..count)
        .map(|step| if lead.turned { (lead.last + count - step) % count } else { (lead.last + step) % count })
        .collect();
    let width = width(layers - begun, count);
    let mut rows: Vec<Vec<Cell>> = vec![vec![NONE; layers + 1]];
    rows[0][begun] = Cell { latest: 0.0, squares: 0.0, from: 0 };
    for (row_number, &place) in places.iter().enumerate() {
        let device = order[place];
        let begin_ns = begins[place].unwrap_or(start_ns) + busy_ns[place];
        let sums = whole_sums(costs, device as usize);
        let before = &rows[row_number];
        let mut row = vec![NONE; layers + 1];
        for start in (begun..=layers).filter(|&start| before[start].latest.is_finite()) {
            let held = before[start];
            for end in start..=layers.min(start + width) {
                let besides_ns = if start < end { besides_ns(costs, start, end) } else { 0.0 };
                let end_ns = begin_ns + sums[end] - sums[start] + besides_ns;
                let cell = Cell {
                    latest: held.latest.max(end_ns),
                    squares: held.squares + end_ns * end_ns,
                    from: start as u32,
                };
                if (cell.latest, cell.squares) < (row[end].latest, row[end].squares) {
                    row[end] = cell;
                }
            }
        }
        rows.push(row);
    }
    if rows[count][layers].latest.is_infinite() {
        return None;
    }
    let mut end = layers as u32;
    for (row_number, &place) in places.iter().enumerate().rev() {
        let start = rows[row_number + 1][end as usize].from;
        if start < end {
            stages.insert(lead.count, Slot { start, end, device: order[place] });
        }
        end = start;
    }
    let mut shape = Shape::new(layers, stages);
    shape.recompute = recompute;
    shape.merge();
    Some(shape)
}

/// What all microbatches together take of a device besides the layers of its stage, if its neighbours are on others.
fn besides_ns(costs: &Costs, start: usize, end: usize) -> f64 {
    let each_ns = 3 * u128::from(costs.stage_ns) + 2 * u128::from(costs.crossings_ns(start > 0, end < costs.layers));
    each_ns as f64 * costs.microbatches as f64
}

/// Prefix sums over the layers of what all microbatches together take of a device.
fn whole_sums(costs: &Costs, device: usize) -> Vec<f64> {
    let factor = costs.slowdown[device] * costs.microbatches as f64;
    let mut sum = 0.0;
    let whole = |layer: usize| {
        let cost = costs.layer(device, layer);
        sum += (cost.forward_ns as f64 + cost.input_gradient_ns as f64 + cost.weight_gradient_ns as f64) * factor;
        sum
    };
    std::iter::once(0.0).chain((0..costs.layers).map(whole)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_plan::{Constraints, Cost, Device, Layer, Links, Pin, Problem};
    use std::collections::BTreeMap;

    fn problem(devices: usize, layers: usize) -> Problem {
        let cost = Cost { forward_ns: 100, input_gradient_ns: 100, weight_gradient_ns: 100, ..Cost::default() };
        let layer = |at: usize| Layer {
            name: format!("layer{at}"),
            signature: "block".to_owned(),
            parameter_bytes: 0,
            state_bytes: 1,
            output_bytes: 1,
            moved_bytes: None,
            note: None,
        };
        let device = |at: usize| Device {
            name: format!("gpu{at}"),
            kind: "k".to_owned(),
            memory_bytes: 1 << 30,
            // The last is half as fast.
            slowdown: if at + 1 == devices { 2.0 } else { 1.0 },
            reserved_bytes: 0,
            note: None,
        };
        let costs = BTreeMap::from([("k".to_owned(), vec![cost; layers])]);
        let layers = (0..layers).map(layer).collect();
        Problem::new(8, layers, (0..devices).map(device).collect(), costs, Links::all(0, 1e12))
    }

    const ORDER: [u32; 4] = [0, 1, 2, 3];

    fn lead(count: usize) -> Lead {
        Lead { first: 1, count, is_wave: false, eased: 0, last: 0, turned: false }
    }

    #[test]
    fn the_last_pass_evens_out_what_the_lead_left() {
        let problem = problem(4, 35);
        let (costs, rules) = (Costs::new(&problem), Rules::new(&problem).expect("no constraints"));
        for (turned, order) in [(false, [0, 1, 2, 3]), (true, [3, 2, 1, 0])] {
            let lead = Lead { last: order[0] as usize, turned, ..lead(4) };
            let shape = split(&costs, &rules, &ORDER, &lead).expect("layers suffice");
            let of = shape.device_of_layers();
            assert_eq!(of.len(), 35);
            assert_eq!(of[..4], [0, 1, 2, 3]);
            let mut second = of[4..].to_vec();
            second.dedup();
            assert_eq!(second, order);
            // Ten each, and five where a layer takes twice as long.
            let count = |device: u32| of.iter().filter(|&&other| other == device).count();
            assert_eq!([0, 1, 2, 3].map(count), [10, 10, 10, 5]);
        }
    }

    #[test]
    fn what_crosses_counts_where_layers_are_dealt_out() {
        let counts = |crossing_ns| {
            let problem = Problem { crossing_ns, ..problem(4, 31) };
            let (costs, rules) = (Costs::new(&problem), Rules::new(&problem).expect("no constraints"));
            let of = split(&costs, &rules, &ORDER, &lead(4)).expect("layers suffice").device_of_layers();
            [0, 1, 2, 3].map(|device| of.iter().filter(|&&other| other == device).count())
        };
        assert_eq!(counts(0), [9, 9, 9, 4]);
        // Both stages of a device in the middle have eight transfers in all, of the first and the last device six.
        assert_eq!(counts(150), [10, 9, 8, 4]);
        assert_eq!(counts(300), [10, 8, 8, 5]);
    }

    #[test]
    fn a_lead_ends_anywhere_and_goes_back_where_it_is_a_wave() {
        let problem = problem(4, 40);
        let (costs, rules) = (Costs::new(&problem), Rules::new(&problem).expect("no constraints"));
        let of = |lead: &Lead| split(&costs, &rules, &ORDER, lead).expect("layers suffice").device_of_layers();
        let cycle = Lead { last: 2, turned: true, ..lead(6) };
        assert_eq!(of(&cycle)[..6], [0, 1, 2, 3, 0, 1]);
        let mut last = of(&cycle)[6..].to_vec();
        last.dedup();
        assert_eq!(last, [2, 1, 0, 3]);
        assert_eq!(of(&Lead { is_wave: true, last: 1, turned: true, ..cycle })[..6], [0, 1, 2, 3, 3, 2]);
    }

    #[test]
    fn what_is_recomputed_is_counted() {
        let problem = problem(4, 40);
        let (costs, rules) = (Costs::new(&problem), Rules::new(&problem).expect("no constraints"));
        let shape = |eased| split(&costs, &rules, &ORDER, &Lead { eased, ..lead(4) }).expect("layers suffice");
        assert_eq!(shape(2).recompute.iter().filter(|&&recomputed| recomputed).count(), 2);
        assert!(shape(2).recompute[..2].iter().all(|&recomputed| recomputed));
        let count = |eased: usize, device: u32| {
            shape(eased).device_of_layers().iter().filter(|&&other| other == device).count()
        };
        // The devices that recompute have less of the last pass.
        assert!(count(2, 0) <= count(0, 0) && count(2, 2) >= count(0, 2));
        let all =
            [lead(3), lead(4), lead(6), lead(12)].map(|lead| lead.eased(4).map(|lead| lead.eased).collect::<Vec<_>>());
        assert_eq!(all, [vec![3], vec![4], vec![4, 6], vec![4, 6, 8]]);
    }

    #[test]
    fn every_lead_begins_its_last_pass_at_a_device_and_none_comes_twice() {
        let all = Lead::all(5);
        for (at, lead) in all.iter().enumerate() {
            assert!(lead.last < 5 && lead.count > 0);
            assert!(!all[..at].contains(lead), "{lead:?}");
        }
    }

    #[test]
    fn too_few_layers_and_pins_are_left_to_others() {
        let mut problem = problem(4, 8);
        let (costs, rules) = (Costs::new(&problem), Rules::new(&problem).expect("no constraints"));
        assert!(split(&costs, &rules, &ORDER, &lead(4)).is_some());
        assert_eq!(split(&costs, &rules, &ORDER, &Lead { first: 2, ..lead(4) }), None);
        assert_eq!(split(&costs, &rules, &ORDER, &lead(9)), None);
        let pinned = vec![Pin { layer: 0, device: "gpu1".to_owned(), note: None }];
        problem.constraints = Constraints { pinned, ..Constraints::default() };
        let rules = Rules::new(&problem).expect("a pin contradicts nothing");
        assert_eq!(split(&costs, &rules, &ORDER, &lead(4)), None);
    }
}
