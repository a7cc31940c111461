//! Constraints: which layer may run where, and which share a device.

use crate::search::Infeasible;
use crate::shape::{Shape, Slot};
use adaptis_plan::Problem;

/// A problem's constraints, resolved.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// `layer x devices + device`. Members of a group allow what all of them allow.
    allowed: Vec<bool>,
    devices: usize,
    /// Disjoint groups of at least two layers.
    groups: Vec<Vec<usize>>,
    /// Devices that are not forbidden, in order.
    pub(crate) usable: Vec<u32>,
    /// Nothing is pinned or together.
    pub(crate) free: bool,
}

impl Rules {
    /// Resolves the constraints.
    ///
    /// # Errors
    /// A layer is left without a device.
    pub(crate) fn new(problem: &Problem) -> Result<Self, Infeasible> {
        let (layers, devices) = (problem.layers.len(), problem.devices.len());
        let constraints = &problem.constraints;
        let forbidden = |device: usize| constraints.forbidden.contains(&problem.devices[device].name);
        let usable: Vec<u32> = (0..devices).filter(|&device| !forbidden(device)).map(|device| device as u32).collect();
        let mut allowed: Vec<bool> = (0..layers * devices).map(|slot| !forbidden(slot % devices)).collect();
        for pin in &constraints.pinned {
            let pinned = problem.device_index(&pin.device);
            let row = &mut allowed[pin.layer as usize * devices..][..devices];
            for (device, allowed) in row.iter_mut().enumerate() {
                *allowed &= pinned == Some(device);
            }
        }
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for together in &constraints.together {
            let mut group: Vec<usize> = together.iter().map(|&layer| layer as usize).collect();
            let touches = |other: &Vec<usize>| other.iter().any(|layer| together.contains(&(*layer as u32)));
            for joined in groups.extract_if(.., |other| touches(other)) {
                group.extend(joined);
            }
            group.sort_unstable();
            group.dedup();
            groups.push(group);
        }
        groups.retain(|group| group.len() > 1);
        for group in &groups {
            for device in 0..devices {
                let all = group.iter().all(|layer| allowed[layer * devices + device]);
                group.iter().for_each(|layer| allowed[layer * devices + device] = all);
            }
        }
        if let Some(layer) = (0..layers).find(|layer| !allowed[layer * devices..][..devices].contains(&true)) {
            let because = if usable.is_empty() {
                "every device is forbidden"
            } else {
                "its pin, the forbidden devices and the layers it stays together with exclude one another"
            };
            return Err(Infeasible::Constraints { layer, because });
        }
        let free = constraints.pinned.is_empty() && groups.is_empty();
        Ok(Self { allowed, devices, groups, usable, free })
    }

    /// The same devices with nothing pinned or together: for a start that is then repaired.
    pub(crate) fn relaxed(&self) -> Self {
        let usable = |slot: usize| self.usable.contains(&((slot % self.devices) as u32));
        let allowed = (0..self.allowed.len()).map(usable).collect();
        Self { allowed, devices: self.devices, groups: Vec::new(), usable: self.usable.clone(), free: true }
    }

    /// A layer may run on a device, as far as it alone is concerned.
    pub(crate) fn allows(&self, layer: usize, device: usize) -> bool {
        self.allowed[layer * self.devices + device]
    }

    /// Disjoint groups of layers that share a device.
    pub(crate) fn groups(&self) -> &[Vec<usize>] {
        &self.groups
    }

    /// A shape keeps every constraint.
    pub(crate) fn permits(&self, shape: &Shape) -> bool {
        let mut slots = shape.stages.iter();
        if self.free {
            return slots.all(|slot| self.allows(0, slot.device as usize));
        }
        if !slots.all(|slot| slot.range().all(|layer| self.allows(layer, slot.device as usize))) {
            return false;
        }
        let of = shape.device_of_layers();
        self.groups.iter().all(|group| group.iter().all(|&layer| of[layer] == of[group[0]]))
    }

    /// The nearest shape that keeps every constraint: layers in the wrong place become stages of their own, or join a
    /// neighbour.
    pub(crate) fn repaired(&self, shape: &Shape) -> Shape {
        if self.permits(shape) {
            return shape.clone();
        }
        let mut of = shape.device_of_layers();
        for layer in 0..of.len() {
            if !self.allows(layer, of[layer] as usize) {
                let before = layer.checked_sub(1).map(|before| of[before]);
                let behind = of.get(layer + 1).copied();
                let near = [before, behind].into_iter().flatten().find(|&device| self.allows(layer, device as usize));
                let any = || (0..self.devices as u32).find(|&device| self.allows(layer, device as usize));
                of[layer] = near.or_else(any).expect("a resolved layer has a device");
            }
        }
        for group in &self.groups {
            let held = |device: u32| group.iter().filter(|&&layer| of[layer] == device).count();
            let most = (0..self.devices as u32)
                .filter(|&device| self.allows(group[0], device as usize))
                .max_by_key(|&device| held(device))
                .expect("a resolved group has a device");
            group.iter().for_each(|&layer| of[layer] = most);
        }
        Shape { stages: runs(&of), recompute: shape.recompute.clone() }
    }
}

/// The stages of a placement of layers.
pub(crate) fn runs(of: &[u32]) -> Vec<Slot> {
    let mut stages: Vec<Slot> = Vec::new();
    for (layer, &device) in of.iter().enumerate() {
        match stages.last_mut() {
            Some(slot) if slot.device == device => slot.end += 1,
            _ => stages.push(Slot { start: layer as u32, end: layer as u32 + 1, device }),
        }
    }
    stages
}
