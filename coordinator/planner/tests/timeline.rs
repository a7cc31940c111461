//! Hand-drawn timelines. One column is one nanosecond; `F0`'s cell is drawn as `0` for F, `a` for I, `A` for W and `b`,
//! `c`.. shifted by microbatch; a dot is idleness.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use adaptis_plan::{Action, Plan, Problem};
use adaptis_planner::schedule::even;
use adaptis_planner::simulate::{CannotSimulate, simulate};
use support::{cost, device, link, uniform};

/// F of microbatch m is the digit m; I its small letter; W its capital; B is `x`, `y`, `z`.
fn drawn(problem: &Problem, plan: &Plan) -> Vec<String> {
    let timeline = simulate(problem, plan).unwrap();
    let row = |spans: &Vec<adaptis_planner::simulate::Span>| {
        let mut row = vec![b'.'; timeline.iteration_ns as usize];
        for span in spans {
            let m = span.instruction.microbatch.index() as u8;
            let cell = match span.instruction.action {
                Action::Forward => b'0' + m,
                Action::InputGradient => b'a' + m,
                Action::WeightGradient => b'A' + m,
                Action::Backward => b'x' + m,
            };
            row[span.start_ns as usize..span.end_ns as usize].fill(cell);
        }
        String::from_utf8(row).unwrap()
    };
    timeline.spans.iter().map(row).collect()
}

fn with_programs(problem: &Problem, programs: &[&[&str]]) -> Plan {
    let mut plan = even(problem);
    let read = |program: &&[&str]| program.iter().map(|text| text.parse().unwrap()).collect();
    plan.programs = programs.iter().map(read).collect();
    plan
}

#[test]
fn one_f_one_b_over_two_devices() {
    let problem = uniform(2, 2, 3, cost(1, 1, 1), 0);
    assert_eq!(
        drawn(&problem, &even(&problem)),
        [
            "01..xx2yy.zz", //
            ".0xx1yy2zz..",
        ]
    );
}

#[test]
fn a_separate_w_lets_the_gradient_go_earlier() {
    let problem = uniform(2, 2, 2, cost(1, 1, 1), 0);
    let plan = with_programs(
        &problem,
        &[&["0F0", "0F1", "0I0", "0W0", "0I1", "0W1"], &["1F0", "1I0", "1F1", "1I1", "1W0", "1W1"]],
    );
    assert_eq!(
        drawn(&problem, &plan),
        [
            "01.aAbB", //
            ".0a1bAB",
        ]
    );
}

#[test]
fn transfers_queue_behind_one_another_and_then_take_the_latency() {
    // Two bytes at one byte per nanosecond, then three to arrive; the return is the same.
    let mut problem = uniform(2, 2, 2, cost(1, 1, 1), 3);
    problem.links.default = link(3, 1e9);
    problem.layers[0].output_bytes = 2;
    let plan = with_programs(&problem, &[&["0F0", "0F1", "0B0", "0B1"], &["1F0", "1F1", "1B0", "1B1"]]);
    assert_eq!(
        drawn(&problem, &plan),
        [
            "01..............xxyy", //
            "......0.1xxyy.......",
        ]
    );
    let transfers = simulate(&problem, &plan).unwrap().transfers;
    let times: Vec<_> =
        transfers.iter().map(|each| (each.from.0, each.start_ns, each.end_ns, each.arrival_ns)).collect();
    assert_eq!(times, [(0, 1, 3, 6), (0, 3, 5, 8), (1, 11, 13, 16), (1, 13, 15, 18)]);
}

#[test]
fn a_slow_device_rounds_once_per_instruction_and_pays_the_fixed_cost_unslowed() {
    let mut problem = uniform(1, 3, 1, cost(1, 1, 0), 0);
    problem.devices[0] = device(0, "k0", 1 << 20, 1.5);
    problem.stage_ns = 1;
    problem.boundary_ns = 2;
    problem.optimizer_ns.insert("k0".into(), vec![1, 0, 0]);
    // F and B: 3 x 1.5 = 4.5 -> 5, + 1. Then 2 for the boundary and 1.5 -> 2 for the optimizer.
    assert_eq!(drawn(&problem, &even(&problem)), ["000000xxxxxx...."]);
}

#[test]
fn what_cannot_run_is_named() {
    let problem = uniform(2, 2, 1, cost(1, 1, 1), 0);
    let cases: [(&[&[&str]], &str); 5] = [
        (&[&["0F0", "0B0"], &["1B0", "1F0"]], "device 1 comes to 1B0 before 1F0"),
        (&[&["0F0"], &["1F0", "1B0"]], "device 0 never runs 0I0"),
        (&[&["0F0", "0B0", "0B0"], &["1F0", "1B0"]], "device 0 runs 0B0 though that work was already done"),
        (&[&["0F0", "1F0"], &[]], "device 0 is told to run 1F0, which it does not hold"),
        (&[&["0F1"], &[]], "device 0 is told to run 0F1, which it does not hold"),
    ];
    for (programs, text) in cases {
        assert_eq!(simulate(&problem, &with_programs(&problem, programs)).unwrap_err().to_string(), text);
    }
    let other = uniform(3, 3, 1, cost(1, 1, 1), 0);
    assert!(matches!(simulate(&other, &even(&problem)), Err(CannotSimulate::Devices { .. })));
}

#[test]
fn programs_that_wait_for_one_another_are_told() {
    let mut problem = uniform(2, 4, 1, cost(1, 1, 1), 0);
    problem.microbatches = 2;
    let mut plan = even(&problem);
    // Stages 0 and 2 on device 0, 1 and 3 on device 1; device 0 wants 2F0 before 0F1, device 1 1F1 before 1F0's.. 3F0.
    plan.stages = (0..4_u32)
        .map(|at| adaptis_plan::Stage { layers: [at, at + 1], device: at % 2, recompute: vec![], note: None })
        .collect();
    let read = |program: &[&str]| program.iter().map(|text| text.parse().unwrap()).collect();
    plan.programs = vec![
        read(&["0F0", "2F0", "0F1", "2F1", "2B0", "0B0", "2B1", "0B1"]),
        read(&["1F0", "1F1", "3F0", "3B0", "1B0", "3F1", "3B1", "1B1"]),
    ];
    assert!(simulate(&problem, &plan).is_ok());
    plan.programs[0] = read(&["0F0", "2F0", "2B0", "0F1", "2F1", "0B0", "2B1", "0B1"]);
    let error = simulate(&problem, &plan).unwrap_err();
    assert!(matches!(error, CannotSimulate::Deadlock { device: 0, .. }), "{error}");
}
