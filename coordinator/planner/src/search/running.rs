//! The running plan as a problem sees it: its devices matched by name, those that are gone marked as such.

use crate::moves::{self, GONE};
use crate::program::Programs;
use crate::shape::{Shape, programs_of};
use crate::simulate::simulate;
use adaptis_plan::{Plan, Problem, audit};
use std::collections::BTreeSet;

/// A plan to start from.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    /// Its stages on the problem's devices, or on [`GONE`].
    pub(crate) shape: Shape,
    /// Device of each layer, or [`GONE`].
    pub(crate) homes: Vec<u32>,
    /// Its programs by the problem's list of devices, if they keep every rule but for memory and the constraints.
    pub(crate) programs: Option<Programs>,
    /// It carries a prediction: a search or a schedule made it on measured costs.
    pub(crate) is_planned: bool,
    plan: Plan,
}

impl Running {
    /// None if the plan is not one of the problem's layers.
    pub(crate) fn of(problem: &Problem, plan: &Plan) -> Option<Self> {
        let mut next = 0;
        let covers = plan.stages.iter().all(|stage| {
            let [start, end] = stage.layers;
            let fits = start == next && end > start && (stage.device as usize) < plan.devices.len();
            next = end;
            fits && stage.recompute.iter().all(|layer| (start..end).contains(layer))
        });
        let is_one_of_each = plan.devices.iter().collect::<BTreeSet<_>>().len() == plan.devices.len();
        if !covers || !is_one_of_each || next as usize != problem.layers.len() || plan.layers != next {
            return None;
        }
        let homes = moves::homes(problem, plan);
        let mut shape = Shape::of(plan);
        shape.stages.iter_mut().for_each(|slot| slot.device = homes[slot.start as usize]);
        let is_planned = plan.predicted.is_some();
        Some(Self { shape, homes, programs: programs(problem, plan), is_planned, plan: plan.clone() })
    }

    /// Some device that held layers is gone.
    pub(crate) fn lacks_devices(&self) -> bool {
        self.homes.contains(&GONE)
    }

    /// The devices of its stages, in their order; those that are gone left out.
    pub(crate) fn sequence(&self) -> Vec<u32> {
        self.shape.stages.iter().map(|slot| slot.device).filter(|&device| device != GONE).collect()
    }

    /// Devices of the problem that hold none of its layers, as indices.
    pub(crate) fn spare(&self, usable: &[u32]) -> Vec<u32> {
        usable.iter().copied().filter(|device| !self.homes.contains(device)).collect()
    }

    /// The same plan with spare devices in the place of those that are gone; none while there are too few.
    pub(crate) fn replaced(&self, problem: &Problem, spare: &[u32]) -> Option<(Shape, Option<Programs>)> {
        let mut plan = self.plan.clone();
        let mut spare = spare.iter();
        let held: BTreeSet<u32> = plan.stages.iter().map(|stage| stage.device).collect();
        for index in held {
            if problem.device_index(&plan.devices[index as usize]).is_none() {
                let name = &problem.devices[*spare.next()? as usize].name;
                // One that the plan knows and left without work is not named twice.
                let idle = plan.devices.iter().position(|known| known == name);
                let gone = std::mem::replace(&mut plan.devices[index as usize], name.clone());
                if let Some(idle) = idle {
                    plan.devices[idle] = gone;
                }
            }
        }
        let homes = moves::homes(problem, &plan);
        let mut shape = self.shape.clone();
        shape.stages.iter_mut().for_each(|slot| slot.device = homes[slot.start as usize]);
        Some((shape, programs(problem, &plan)))
    }
}

/// A plan's programs by the problem's list of devices, if they keep every rule but for memory and the constraints.
fn programs(problem: &Problem, plan: &Plan) -> Option<Programs> {
    let names: Vec<String> = problem.devices.iter().map(|device| device.name.clone()).collect();
    let plan = plan.map_to(&names).ok()?;
    let mut findings = audit(problem, &plan).into_iter();
    let runs = simulate(problem, &plan).is_ok() && findings.all(|of| matches!(of.rule(), "memory" | "constraint"));
    runs.then(|| programs_of(&plan))
}
