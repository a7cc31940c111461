//! A plan made for other devices.

use crate::support::{program, small};
use adaptis_plan::{CannotMap, Plan, Predicted, audit};

fn names(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn indices_and_programs_follow_the_names() {
    let (mut problem, mut plan) = small();
    plan.predicted = Some(Predicted::default());
    assert_eq!(plan.map_to(&plan.devices).as_ref(), Ok(&plan), "the same list changes nothing");
    let mapped = plan.map_to(&names("new g1 g0")).expect("both are there");
    assert_eq!(mapped.devices, names("new g1 g0"));
    assert_eq!(mapped.stages.iter().map(|stage| stage.device).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(mapped.programs, [vec![], plan.programs[1].clone(), plan.programs[0].clone()]);
    assert_eq!(mapped.predicted, None);
    let mut new = problem.devices[0].clone();
    new.name = "new".into();
    problem.devices = vec![new, problem.devices[1].clone(), problem.devices[0].clone()];
    assert_eq!(audit(&problem, &mapped), []);
}

#[test]
fn a_device_that_holds_nothing_may_be_missing() {
    let (_, mut plan) = small();
    plan.stages[1].device = 0;
    plan.programs = vec![program("0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1"), vec![]];
    assert_eq!(plan.map_to(&names("g0")).expect("g1 is empty").programs.len(), 1);
}

#[test]
fn what_does_not_fit_is_named() {
    let (_, plan) = small();
    let broken = |change: fn(&mut Plan)| {
        let mut plan = plan.clone();
        change(&mut plan);
        plan
    };
    for (plan, devices, expected) in [
        (plan.clone(), "g0 g2", CannotMap::Missing { device: "g1".into() }),
        (plan.clone(), "g0 g1 g0", CannotMap::Twice { device: "g0".into() }),
        (broken(|plan| plan.devices[1] = "g0".into()), "g0 g1", CannotMap::Twice { device: "g0".into() }),
        (broken(|plan| plan.programs.clear()), "g1 g0", CannotMap::Programs { programs: 0, devices: 2 }),
        (broken(|plan| plan.stages[1].device = 9), "g1 g0", CannotMap::Stage { stage: 1, device: 9 }),
    ] {
        assert_eq!(plan.map_to(&names(devices)), Err(expected));
    }
}
