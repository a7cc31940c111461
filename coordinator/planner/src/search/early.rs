//! Stages in passes over the devices: short ones first, so that all devices start early, and a last one that evens out
//! what they have to do.
//!
//! ```text
//!   device 0   layers 0-1                       8-15        A device starts when the first microbatch has come down
//!   device 1              2-3                  16-22        to it: with many devices and one stage on each, the last
//!   device 2                   4-5             23-27        ones wait for most of the model.
//! ```
//!
//! With the short passes given, starts are known, and a dynamic program over the boundaries of the last minimises the
//! latest of `start + microbatches x load` over the devices, then the sum of squares. Memory is left to the listing.

use crate::costs::Costs;
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

/// The best last pass over an order of devices, after `passes` that give each `first` layers; in the same direction, or
/// `turned` back. None where layers are too few or something is pinned.
pub(crate) fn split(
    costs: &Costs,
    rules: &Rules,
    order: &[u32],
    (first, passes): (usize, usize),
    turned: bool,
) -> Option<Shape> {
    let (layers, count) = (costs.layers, order.len());
    let begun = count * first * passes;
    if !rules.free || begun + count > layers {
        return None;
    }
    let mut stages: Vec<Slot> = Vec::with_capacity(2 * count);
    let mut begins: Vec<(u32, f64)> = Vec::with_capacity(count);
    let mut start_ns = 0.0;
    let recompute = vec![false; layers];
    for (place, &device) in order.iter().enumerate() {
        let slot = Slot { start: (place * first) as u32, end: ((place + 1) * first) as u32, device };
        let cost = costs.stage(device as usize, slot.range(), &recompute);
        let load_ns: f64 = cost.ns[..3].iter().map(|&ns| ns as f64).sum();
        begins.push((device, start_ns + load_ns * costs.microbatches as f64));
        start_ns += cost.ns[0] as f64;
        if let Some(&next) = order.get(place + 1) {
            let bytes = costs.output_bytes[slot.end as usize - 1];
            let (transfer_ns, latency_ns) = costs.transfer(device as usize, next as usize, bytes);
            start_ns += (transfer_ns + latency_ns) as f64;
        }
        stages.push(slot);
    }
    for pass in 1..passes {
        for (place, &device) in order.iter().enumerate() {
            let start = ((pass * count + place) * first) as u32;
            let slot = Slot { start, end: start + first as u32, device };
            begins[place].1 += costs.stage(device as usize, slot.range(), &recompute).ns[..3].iter().sum::<u64>()
                as f64
                * costs.microbatches as f64;
            stages.push(slot);
        }
    }
    if turned {
        begins.reverse();
    }
    let width = (layers - begun).div_ceil(count) * RUN_MAX + 1;
    let mut rows: Vec<Vec<Cell>> = vec![vec![NONE; layers + 1]];
    rows[0][begun] = Cell { latest: 0.0, squares: 0.0, from: 0 };
    for (place, &(device, begin_ns)) in begins.iter().enumerate() {
        let sums = whole_sums(costs, device as usize);
        let before = &rows[place];
        let mut row = vec![NONE; layers + 1];
        for start in (begun..=layers).filter(|&start| before[start].latest.is_finite()) {
            let held = before[start];
            for end in start..=layers.min(start + width) {
                let end_ns = begin_ns + sums[end] - sums[start];
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
    for (place, &(device, _)) in begins.iter().enumerate().rev() {
        let start = rows[place + 1][end as usize].from;
        if start < end {
            stages.insert(count * passes, Slot { start, end, device });
        }
        end = start;
    }
    let mut shape = Shape::new(layers, stages);
    shape.merge();
    Some(shape)
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

    #[test]
    fn the_second_pass_evens_out_what_the_first_left() {
        let problem = problem(4, 35);
        let (costs, rules) = (Costs::new(&problem), Rules::new(&problem).expect("no constraints"));
        for (turned, order) in [(false, [0, 1, 2, 3]), (true, [3, 2, 1, 0])] {
            let shape = split(&costs, &rules, &[0, 1, 2, 3], (1, 1), turned).expect("layers suffice");
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
    fn too_few_layers_and_pins_are_left_to_others() {
        let mut problem = problem(4, 8);
        let (costs, rules) = (Costs::new(&problem), Rules::new(&problem).expect("no constraints"));
        assert!(split(&costs, &rules, &[0, 1, 2, 3], (1, 1), false).is_some());
        assert_eq!(split(&costs, &rules, &[0, 1, 2, 3], (2, 1), false), None);
        let pinned = vec![Pin { layer: 0, device: "gpu1".to_owned(), note: None }];
        problem.constraints = Constraints { pinned, ..Constraints::default() };
        let rules = Rules::new(&problem).expect("a pin contradicts nothing");
        assert_eq!(split(&costs, &rules, &[0, 1, 2, 3], (1, 1), false), None);
    }
}
