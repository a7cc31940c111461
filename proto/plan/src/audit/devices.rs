//! `devices`: the plan's devices are the problem's, in its order, each with a program; stages are on one of them.

use crate::plan::Plan;
use crate::problem::Problem;

/// How the devices do not match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Another number of devices.
    #[error("the plan names {plan} devices and the problem has {problem}")]
    Count {
        /// Devices of the plan.
        plan: usize,
        /// Devices of the problem.
        problem: usize,
    },
    /// Another device, or another order.
    #[error("device {index} of the plan is {plan}, that of the problem is {problem}: map the plan by its names")]
    Name {
        /// Index of the device.
        index: usize,
        /// Its name in the plan.
        plan: String,
        /// Its name in the problem.
        problem: String,
    },
    /// Not one program per device.
    #[error("the plan has {programs} programs for {devices} devices: one each is needed, if an empty one")]
    Programs {
        /// Programs of the plan.
        programs: usize,
        /// Devices of the problem.
        devices: usize,
    },
    /// A stage is nowhere.
    #[error("stage {stage} is on device {device}, but there are {devices}, counted from 0")]
    Stage {
        /// Index of the stage.
        stage: usize,
        /// Its device.
        device: u32,
        /// Devices of the problem.
        devices: usize,
    },
}

pub(super) fn check(problem: &Problem, plan: &Plan) -> Vec<Fault> {
    let mut faults = Vec::new();
    let devices = problem.devices.len();
    if plan.devices.len() != devices {
        faults.push(Fault::Count { plan: plan.devices.len(), problem: devices });
    }
    for (index, (plan, problem)) in plan.devices.iter().zip(&problem.devices).enumerate() {
        if *plan != problem.name {
            faults.push(Fault::Name { index, plan: plan.clone(), problem: problem.name.clone() });
        }
    }
    if plan.programs.len() != devices {
        faults.push(Fault::Programs { programs: plan.programs.len(), devices });
    }
    for (stage, device) in plan.stages.iter().map(|stage| stage.device).enumerate() {
        if device as usize >= devices {
            faults.push(Fault::Stage { stage, device, devices });
        }
    }
    faults
}
