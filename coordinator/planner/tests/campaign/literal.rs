//! Whether any plan fits, by the audit alone: every placement, every cut into stages, every set of recomputed layers,
//! one microbatch at a time. It checks [`crate::oracle`] where that many plans can be built.

use crate::generate;
use crate::oracle::{Fit, exhaustive};
use adaptis_plan::{Action, Instruction, Plan, Problem, Stage, audit};

const LAYERS_MAX: usize = 4;
const DEVICES_MAX: usize = 3;
const MICROBATCHES_MAX: u32 = 2;
const PROBLEMS: usize = 25;

fn any_plan_fits(problem: &Problem) -> bool {
    let (layers, devices) = (problem.layers.len(), problem.devices.len());
    let placements = devices.pow(layers as u32);
    (0..placements).any(|placement| {
        let on = |layer: usize| placement / devices.pow(layer as u32) % devices;
        (0..1_usize << (layers - 1)).any(|cuts| {
            let cut = |layer: usize| layer == 0 || on(layer) != on(layer - 1) || cuts & (1 << (layer - 1)) != 0;
            // Each set of cuts once: one that is there anyway is not asked for.
            let plain = (1..layers).all(|layer| cuts & (1 << (layer - 1)) == 0 || on(layer) == on(layer - 1));
            plain && (0..1_usize << layers).any(|again| audit(problem, &plan(problem, &on, &cut, again)).is_empty())
        })
    })
}

fn plan(problem: &Problem, on: &dyn Fn(usize) -> usize, cut: &dyn Fn(usize) -> bool, again: usize) -> Plan {
    let layers = problem.layers.len();
    let mut stages: Vec<Stage> = Vec::new();
    for layer in 0..layers {
        let at = layer as u32;
        if cut(layer) {
            stages.push(Stage { layers: [at, at], device: on(layer) as u32, recompute: Vec::new(), note: None });
        }
        let stage = stages.last_mut().unwrap();
        stage.layers[1] = at + 1;
        if again & (1 << layer) != 0 {
            stage.recompute.push(at);
        }
    }
    let mut programs = vec![Vec::new(); problem.devices.len()];
    for microbatch in 0..problem.microbatches as usize {
        let forward = (0..stages.len()).map(|stage| (stage, Action::Forward));
        for (stage, action) in forward.chain((0..stages.len()).rev().map(|stage| (stage, Action::Backward))) {
            programs[stages[stage].device as usize].push(Instruction::new(stage, action, microbatch));
        }
    }
    Plan::new(problem, stages, programs)
}

#[test]
fn what_is_said_to_fit_is_what_some_plan_does() {
    let small = |problem: &Problem| {
        problem.layers.len() <= LAYERS_MAX
            && problem.devices.len() <= DEVICES_MAX
            && problem.microbatches <= MICROBATCHES_MAX
    };
    let problems = (0..).map(generate::problem).filter(small).take(PROBLEMS);
    let mut impossible = 0;
    for problem in problems {
        let fit = exhaustive(&problem);
        assert_eq!(fit == Fit::Possible, any_plan_fits(&problem), "{fit:?}\n{}", problem.write());
        impossible += usize::from(fit == Fit::Impossible);
    }
    assert!((1..PROBLEMS).contains(&impossible), "{impossible} of {PROBLEMS} can't fit");
}
