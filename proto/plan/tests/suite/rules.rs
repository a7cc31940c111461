//! One table per rule: a change to a valid plan, or to its problem, and the finding's exact text.

use crate::support::{program, small};
use adaptis_plan::problem::Pin;
use adaptis_plan::{Plan, Problem, ReceiveBuffers, Stage, audit, peak_bytes};

type Change = fn(&mut Problem, &mut Plan);

fn findings(change: Change) -> Vec<String> {
    let (mut problem, mut plan) = small();
    change(&mut problem, &mut plan);
    problem.check().expect("the table's problems are sound");
    audit(&problem, &plan).iter().map(|finding| format!("{}: {finding}", finding.rule())).collect()
}

fn check(table: &[(Change, &[&str])]) {
    for (row, (change, expected)) in table.iter().enumerate() {
        assert_eq!(findings(*change), *expected, "row {row}");
    }
}

fn stage(layers: [u32; 2], device: u32) -> Stage {
    Stage { layers, device, recompute: Vec::new(), note: None }
}

#[test]
fn a_valid_plan_has_no_findings() {
    check(&[
        (|_, _| {}, &[]),
        // A device without a stage; all stages on one device.
        (
            |_, plan| {
                plan.stages[1].device = 0;
                plan.programs = vec![program("0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1"), vec![]];
            },
            &[],
        ),
    ]);
}

#[test]
fn layers() {
    check(&[
        (|_, plan| plan.layers = 5, &["layers: the plan is for 5 layers and the problem has 4"]),
        (
            |_, plan| plan.stages[0].layers = [0, 1],
            &["layers: layers 1 to 1 are in no stage: stage 1 must begin with layer 1"],
        ),
        (
            |_, plan| plan.stages[1].layers = [1, 4],
            &["layers: stage 1 begins with layer 1, which an earlier stage has passed: it must begin with 2"],
        ),
        (
            |_, plan| plan.stages[1].layers = [2, 3],
            &["layers: layers 3 to 3 are in no stage: the last stage must end before layer 4"],
        ),
        (
            |_, plan| plan.stages[1].layers = [2, 9],
            &["layers: stage 1 ends before layer 9, but the model has 4 layers"],
        ),
        (
            |_, plan| {
                plan.stages.push(stage([4, 4], 1));
                plan.programs[1] = program("1F0 2F0 2B0 1B0 1F1 2F1 2B1 1B1");
            },
            &["layers: stage 2 has the layers [4, 4), which are none: a stage holds at least one"],
        ),
        (
            |_, plan| {
                plan.stages[0].layers = [2, 4];
                plan.stages[1].layers = [0, 2];
            },
            &[
                "layers: layers 0 to 1 are in no stage: stage 0 must begin with layer 0",
                "layers: stage 1 begins with layer 0, which an earlier stage has passed: it must begin with 4",
            ],
        ),
        (
            |_, plan| {
                plan.stages.clear();
                plan.programs = vec![vec![], vec![]];
            },
            &["layers: layers 0 to 3 are in no stage: the last stage must end before layer 4"],
        ),
    ]);
}

#[test]
fn devices() {
    check(&[
        (
            |_, plan| plan.devices.swap(0, 1),
            &[
                "devices: device 0 of the plan is g1, that of the problem is g0: map the plan by its names",
                "devices: device 1 of the plan is g0, that of the problem is g1: map the plan by its names",
            ],
        ),
        (|_, plan| plan.devices.push("g2".into()), &["devices: the plan names 3 devices and the problem has 2"]),
        (
            |_, plan| plan.programs.push(vec![]),
            &["devices: the plan has 3 programs for 2 devices: one each is needed, if an empty one"],
        ),
        (|_, plan| plan.stages[1].device = 2, &["devices: stage 1 is on device 2, but there are 2, counted from 0"]),
    ]);
}

#[test]
fn placement() {
    check(&[(|_, plan| plan.stages[1].device = 0, &["placement: g1 runs 1F0, and 4 more alike: stage 1 is on g0"])]);
}

#[test]
fn programs() {
    check(&[
        (
            |_, plan| plan.programs[0] = program("0F0 0F1 0B0"),
            &[
                "program: stage 0 has no I or B for microbatch 1: one is needed",
                "program: stage 0 has no W or B for microbatch 1: one is needed",
            ],
        ),
        (
            |_, plan| plan.programs[1] = program("1F0 1I0 1F1 1B1"),
            &["program: stage 1 has no W or B for microbatch 0: one is needed"],
        ),
        (
            |_, plan| plan.programs[1] = program("1F0 1I0 1F1 1W0 1B1 1W1"),
            &["program: stage 1 has W or B for microbatch 1 more than once: B is I and W"],
        ),
        (
            |_, plan| plan.programs[0] = program("0F0 0F0 0F0 0F1 0B0 0B1"),
            &["program: stage 0 has F for microbatch 0 more than once, and 1 more alike: B is I and W"],
        ),
        (
            |_, plan| plan.programs[0] = program("0F0 0F1 0B0 0B1 0F2 0B2"),
            &["program: g0 runs 0F2, and 1 more alike: there are 2 microbatches, counted from 0"],
        ),
        (
            |_, plan| plan.programs[0].extend(program("7F0")),
            &["program: g0 runs 7F0: there are 2 stages, counted from 0"],
        ),
        (
            |_, plan| plan.programs[0] = vec![],
            &[
                "program: stage 0 has no F for microbatch 0, and 1 more alike: one is needed",
                "program: stage 0 has no I or B for microbatch 0, and 1 more alike: one is needed",
                "program: stage 0 has no W or B for microbatch 0, and 1 more alike: one is needed",
            ],
        ),
    ]);
}

#[test]
fn dependencies() {
    check(&[
        (
            |_, plan| plan.programs[0] = program("0F0 0B0 0B1 0F1"),
            &["dependency: g0 runs 0B1 before 0F1, which it needs"],
        ),
        (
            |_, plan| plan.programs[1] = program("1F0 1W0 1I0 1F1 1B1"),
            &["dependency: g1 runs 1W0 before 1I0, which it needs"],
        ),
        (
            |_, plan| {
                plan.programs = vec![program("0F0 0B0 0F1 0B1"), program("1F0 1F1 1I0 1W0 1B1")];
            },
            &[
                "dependency: g0 stops before 0B0 for good: it needs 1I0, and g1 waits for g0 in turn",
                "dependency: g1 stops before 1F1 for good: it needs 0F1, and g0 waits for g1 in turn",
            ],
        ),
    ]);
}

#[test]
fn order() {
    check(&[
        (
            |_, plan| plan.programs[0] = program("0F1 0F0 0B0 0B1"),
            // The other device waits for microbatch 0 first, which comes: only the order is wrong.
            &["order: g0 runs 0F1 before 0F0: a stage takes microbatches in ascending order"],
        ),
        (
            |_, plan| plan.programs[0] = program("0F0 0F1 0B1 0B0"),
            &["order: g0 runs 0B1 before 0B0: a stage takes microbatches in ascending order"],
        ),
        (
            |_, plan| plan.programs[1] = program("1F0 1I0 1F1 1B1 1W0"),
            &["order: g1 runs 1B1 before 1W0: a stage takes microbatches in ascending order"],
        ),
    ]);
}

#[test]
fn recompute() {
    check(&[
        (|_, plan| plan.stages[0].recompute = vec![0, 1], &[]),
        (
            |_, plan| plan.stages[0].recompute = vec![0, 2],
            &["recompute: stage 0 recomputes layer 2, but holds the layers [0, 2)"],
        ),
        (
            |_, plan| plan.stages[0].recompute = vec![1, 1],
            &["recompute: stage 0 recomputes layer 1 and then 1: list each once, in ascending order"],
        ),
        (
            |_, plan| plan.stages[1].recompute = vec![3, 2],
            &["recompute: stage 1 recomputes layer 3 and then 2: list each once, in ascending order"],
        ),
    ]);
}

#[test]
fn constraints() {
    check(&[
        (
            |problem, _| problem.constraints.pinned.push(Pin { layer: 3, device: "g0".into(), note: None }),
            &["constraint: layer 3 is on g1, but is pinned to g0"],
        ),
        (
            |problem, _| problem.constraints.forbidden.push("g1".into()),
            &["constraint: stage 1 is on g1, which is forbidden"],
        ),
        (
            |problem, _| problem.constraints.together = vec![vec![0, 1], vec![], vec![0, 1, 3]],
            &["constraint: layers 0 and 3 must share a device, but are on g0 and g1"],
        ),
    ]);
}

#[test]
fn memory_is_that_of_design_3_1() {
    let peaks = |change: Change| {
        let (mut problem, mut plan) = small();
        change(&mut problem, &mut plan);
        peak_bytes(&problem, &plan).expect("only memory is judged")
    };
    // g0: 50000 reserved + 3000 state + two microbatches of 300 + workspace 7.
    // g1: 50000 + 7000 + after 1I0 1F1: 70 and 700, + workspace 5; 1B1 walks 1W0's 70 no more.
    assert_eq!(peaks(|_, _| {}), [53_607, 57_775]);
    // The walk: layer 1 is dropped to its input (1), so F holds 101 twice; at work in 0B0 it is full again: 300 + 101.
    assert_eq!(peaks(|_, plan| plan.stages[0].recompute = vec![1])[0], 53_408);
    // Layer 0 has no input to keep. 0B0 on layer 1: 200 full; on layer 0: 20 done + 100 full.
    assert_eq!(peaks(|_, plan| plan.stages[0].recompute = vec![0])[0], 53_407);
    // Both dropped: F holds 0 + 1 twice. 0B0 works on layer 1 (200, 0 to come), then layer 0 (100 + 20 done).
    assert_eq!(peaks(|_, plan| plan.stages[0].recompute = vec![0, 1])[0], 53_208);
    // Buffers: g0 waits for gradients of layer 1's output (2), g1 for that output, two microbatches each.
    assert_eq!(peaks(|problem, _| problem.receive_buffers = ReceiveBuffers::All), [53_611, 57_779]);
    // Deferred W: 1I0 leaves 70, and 1I1 starts from 70 + 700.
    assert_eq!(peaks(|_, plan| plan.programs[1] = program("1F0 1I0 1F1 1I1 1W0 1W1"))[1], 57_775);
    // A device without a program holds what it reserves.
    assert_eq!(
        peaks(|_, plan| {
            plan.stages[1].device = 0;
            plan.programs = vec![program("0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1"), vec![]];
        }),
        [61_005, 50_000]
    );
}

#[test]
fn memory_is_a_strict_limit() {
    check(&[
        (|problem, _| problem.devices[1].memory_bytes = 57_775, &[]),
        (
            |problem, _| problem.devices[1].memory_bytes = 57_774,
            &["memory: g1 needs 57775 bytes during 1F1 and has 57774: 1 bytes too many"],
        ),
        (
            |problem, plan| {
                problem.devices[1].memory_bytes = 49_000;
                plan.stages[1].device = 0;
                plan.programs = vec![program("0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1"), vec![]];
            },
            &["memory: g1 needs 50000 bytes and has 49000: 1000 bytes too many"],
        ),
    ]);
}

#[test]
fn what_other_rules_build_on_comes_alone() {
    // With a hole in a program neither memory nor order nor deadlock is judged; constraints still are.
    check(&[(
        |problem, plan| {
            problem.devices[0].memory_bytes = 1;
            problem.constraints.forbidden.push("g1".into());
            plan.programs[0] = program("0F1 0F0 0B0 0W1");
        },
        &[
            "program: stage 0 has no I or B for microbatch 1: one is needed",
            "constraint: stage 1 is on g1, which is forbidden",
        ],
    )]);
}

#[test]
fn each_layer_has_the_device_of_its_stage() {
    let (_, mut plan) = small();
    assert_eq!(plan.device_of_layers(), [0, 0, 1, 1]);
    plan.stages[1].layers = [3, 900];
    plan.stages.push(stage([7, 2], 5));
    assert_eq!(plan.device_of_layers(), [0, 0, 0, 1], "what is uncovered or absurd counts as device 0");
}
