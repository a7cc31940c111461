//! Can any plan fit? Answered without the planner, from DESIGN section 3.1 alone.
//!
//! Memory is least with one microbatch at a time, every layer a stage of its own, B in one, and a layer recomputed
//! wherever its input is smaller than its activation: when the device's last layer has run its F, what its other layers
//! hold is live in every plan. So what a device needs is a function of the set of its layers, and a plan fits if and only
//! if the layers can be divided into sets that fit. `literal` checks that claim against the audit.

use adaptis_plan::{Problem, ReceiveBuffers};

/// What is known about fitting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Some plan fits.
    Possible,
    /// None does.
    Impossible,
    /// Too many placements to look at all, and none was found.
    Unknown,
}

/// Layers on one device, as what they need there.
struct Needs<'a> {
    problem: &'a Problem,
    /// Union of the groups, pins and forbidden devices: per layer, the devices that it may run on.
    allowed: Vec<Vec<bool>>,
}

impl<'a> Needs<'a> {
    fn new(problem: &'a Problem) -> Needs<'a> {
        let names = |device: usize| &problem.devices[device].name;
        let may = |layer: usize, device: usize| {
            let pins = &problem.constraints.pinned;
            !problem.constraints.forbidden.contains(names(device))
                && pins.iter().all(|pin| pin.layer as usize != layer || pin.device == *names(device))
        };
        let devices = problem.devices.len();
        let allowed = (0..problem.layers.len()).map(|layer| (0..devices).map(|device| may(layer, device)).collect());
        Needs { problem, allowed: allowed.collect() }
    }

    /// Bytes that a device needs for the layers of `holds`.
    fn bytes(&self, device: usize, holds: &dyn Fn(usize) -> bool) -> u64 {
        let (layers, costs) = (&self.problem.layers, self.problem.costs_of(device));
        let input = |layer: usize| if layer == 0 { 0 } else { layers[layer - 1].output_bytes };
        let mut base = self.problem.devices[device].reserved_bytes;
        let (mut held, mut highest) = (0, 0);
        for layer in (0..layers.len()).filter(|&layer| holds(layer)) {
            base += layers[layer].state_bytes;
            if self.problem.receive_buffers == ReceiveBuffers::All {
                let (first, last) = (layer == 0, layer + 1 == layers.len());
                let above = if first || holds(layer - 1) { 0 } else { input(layer) };
                let below = if last || holds(layer + 1) { 0 } else { layers[layer].output_bytes };
                base += (above + below) * u64::from(self.problem.microbatches);
            }
            highest = highest.max(held + costs[layer].activation_bytes + costs[layer].workspace_bytes);
            held += costs[layer].activation_bytes.min(input(layer));
        }
        base + highest
    }

    fn short(&self, device: usize, holds: &dyn Fn(usize) -> bool) -> u64 {
        self.bytes(device, holds).saturating_sub(self.problem.devices[device].memory_bytes)
    }
}

/// Whether any plan fits, all placements looked at.
pub fn exhaustive(problem: &Problem) -> Fit {
    let needs = Needs::new(problem);
    let layers = problem.layers.len();
    let all = (1_usize << layers) - 1;
    let kept = |set: usize| {
        let together = &problem.constraints.together;
        together.iter().all(|group| {
            let held = group.iter().filter(|&&layer| set & (1 << layer) != 0).count();
            held == 0 || held == group.len()
        })
    };
    // Which sets of layers the devices so far can hold between them.
    let mut held = vec![false; all + 1];
    held[0] = true;
    for device in 0..problem.devices.len() {
        let fits: Vec<bool> = (0..=all)
            .map(|set| {
                let allowed = (0..layers).all(|layer| set & (1 << layer) == 0 || needs.allowed[layer][device]);
                allowed && kept(set) && needs.short(device, &|layer| set & (1 << layer) != 0) == 0
            })
            .collect();
        let mut next = vec![false; all + 1];
        for (set, next) in next.iter_mut().enumerate() {
            // Every subset of `set` as the share of this device, the empty one last.
            let mut share = set;
            loop {
                if fits[share] && held[set & !share] {
                    *next = true;
                    break;
                }
                if share == 0 {
                    break;
                }
                share = (share - 1) & set;
            }
        }
        held = next;
    }
    if held[all] { Fit::Possible } else { Fit::Impossible }
}

/// A placement that fits, looked for by chance: for problems with too many placements.
pub fn sampled(problem: &Problem, dice: &mut super::generate::Dice) -> Fit {
    const STEPS: usize = 4_000;
    let needs = Needs::new(problem);
    let (layers, devices) = (problem.layers.len(), problem.devices.len());
    let mut group: Vec<usize> = (0..layers).collect();
    for together in &problem.constraints.together {
        for &layer in together {
            let (old, new) = (group[layer as usize], group[together[0] as usize]);
            group.iter_mut().filter(|of| **of == old).for_each(|of| *of = new);
        }
    }
    let may = |of: usize, device: usize| (0..layers).all(|layer| group[layer] != of || needs.allowed[layer][device]);
    let mut on: Vec<usize> = (0..layers).map(|layer| (layer * devices / layers).min(devices - 1)).collect();
    for layer in 0..layers {
        let of = group[layer];
        match (0..devices).filter(|&device| may(of, device)).min_by_key(|&device| device.abs_diff(on[of])) {
            Some(device) => on[layer] = device,
            None => return Fit::Impossible,
        }
    }
    let shortage =
        |on: &[usize]| -> u64 { (0..devices).map(|device| needs.short(device, &|layer| on[layer] == device)).sum() };
    let mut short = shortage(&on);
    for _ in 0..STEPS {
        if short == 0 {
            return Fit::Possible;
        }
        let mut next = on.clone();
        // A boundary, a group, or two layers' places.
        let layer = dice.below(layers);
        let device = match dice.below(3) {
            0 => on[(layer + 1).min(layers - 1)],
            1 => on[layer.saturating_sub(1)],
            _ => dice.below(devices),
        };
        let mut move_to = |layer: usize, device: usize| {
            let of = group[layer];
            if may(of, device) {
                (0..layers).filter(|&other| group[other] == of).for_each(|other| next[other] = device);
            }
        };
        move_to(layer, device);
        if dice.below(4) == 0 {
            move_to(dice.below(layers), on[layer]);
        }
        let next_short = shortage(&next);
        if next_short <= short {
            (on, short) = (next, next_short);
        }
    }
    Fit::Unknown
}
