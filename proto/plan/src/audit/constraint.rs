//! `constraint`: pinned layers are on their device, forbidden devices are empty, groups share a device.

use super::name;
use crate::plan::Plan;
use crate::problem::Problem;

/// A constraint that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A pinned layer is on another device.
    #[error("layer {layer} is on {found}, but is pinned to {device}")]
    Pinned {
        /// The layer.
        layer: u32,
        /// Where it must be.
        device: String,
        /// Where it is.
        found: String,
    },
    /// A forbidden device has a stage.
    #[error("stage {stage} is on {device}, which is forbidden")]
    Forbidden {
        /// The device.
        device: String,
        /// Index of the stage.
        stage: usize,
    },
    /// Layers of a group are on two devices.
    #[error("layers {} and {} must share a device, but are on {} and {}", layers[0], layers[1], devices[0], devices[1])]
    Together {
        /// The group's first layer and one that is elsewhere.
        layers: [u32; 2],
        /// Their devices.
        devices: [String; 2],
    },
}

/// Needs `layers` and `devices`.
pub(super) fn check(problem: &Problem, plan: &Plan) -> Vec<Fault> {
    let constraints = &problem.constraints;
    let of_layer: Vec<usize> =
        plan.stages.iter().flat_map(|stage| stage.range().map(|_| stage.device as usize)).collect();
    let mut faults = Vec::new();
    for pin in &constraints.pinned {
        let found = &problem.devices[of_layer[pin.layer as usize]].name;
        if *found != pin.device {
            faults.push(Fault::Pinned { layer: pin.layer, device: pin.device.clone(), found: found.clone() });
        }
    }
    for (stage, device) in plan.stages.iter().map(|stage| name(plan, stage.device as usize)).enumerate() {
        if constraints.forbidden.contains(&device) {
            faults.push(Fault::Forbidden { device, stage });
        }
    }
    for group in &constraints.together {
        let Some((first, rest)) = group.split_first() else {
            continue;
        };
        let device = |layer: u32| of_layer[layer as usize];
        if let Some(other) = rest.iter().find(|other| device(**other) != device(*first)) {
            let devices = [name(plan, device(*first)), name(plan, device(*other))];
            faults.push(Fault::Together { layers: [*first, *other], devices });
        }
    }
    faults
}
