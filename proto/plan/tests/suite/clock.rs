//! The audit's clock, against timelines drawn by hand.

use crate::support::small;
use adaptis_plan::{Host, Plan, Problem, iteration_ns};

/// F 20, I 20, W 10 and B 30 ns a stage; two bytes cross, in two nanoseconds and one of latency.
fn timed() -> (Problem, Plan) {
    let (mut problem, plan) = small();
    for cost in problem.costs.get_mut("cpu").expect("the kind is there") {
        (cost.forward_ns, cost.input_gradient_ns, cost.weight_gradient_ns) = (10, 10, 5);
    }
    (problem, plan)
}

#[test]
fn results_arrive_after_transfer_and_latency() {
    // g0  0F0 0-20   0F1 20-40                             0B0 66-96              0B1 126-156
    // g1             1F0 23-43   1I0 43-63   1F1 63-83   1W0 83-93   1B1 93-123
    let (problem, plan) = timed();
    assert_eq!(iteration_ns(&problem, &plan), Ok(156));
}

#[test]
fn a_pair_carries_one_transfer_at_a_time() {
    // g0  0F0 0-20   0F1 20-40                                   0B0 320-350   0B1 380-410
    // ->      20-50      50-80
    // g1      1F0 150-170   1I0 170-190   1F1 190-210   1W0 210-220   1B1 220-250
    // <-                        190-220                                  250-280
    let (mut problem, plan) = timed();
    problem.links.default.latency_ns = 100;
    problem.links.default.bytes_per_second = 2e9 / 30.0;
    assert_eq!(iteration_ns(&problem, &plan), Ok(410));
}

#[test]
fn recomputation_slowdown_and_fixed_costs_count() {
    // g0  0F0 0-21   0F1 21-42                             0B0 89-130            0B1 182-223
    // g1             1F0 24-55   1I0 55-86   1F1 86-117   1W0 117-133   1B1 133-179
    let (mut problem, mut plan) = timed();
    plan.stages[0].recompute = vec![0];
    problem.devices[1].slowdown = 1.5;
    problem.stage_ns = 1;
    problem.boundary_ns = 7;
    problem.optimizer_ns.insert("cpu".to_owned(), vec![1, 2, 3, 4]);
    // The last B of g1 ends at 179 and its gradient arrives at 182; 0B1 takes 41; then 7, and 10.5 of g1's optimizer.
    assert_eq!(iteration_ns(&problem, &plan), Ok(182 + 41 + 7 + 11));
}

#[test]
fn what_crosses_takes_its_share_of_both_devices() {
    // g0  0F0 0-23   0F1 23-46                             0B0 75-108              0B1 141-174
    // g1             1F0 26-49   1I0 49-72   1F1 72-95   1W0 95-105   1B1 105-138
    let (mut problem, plan) = timed();
    problem.crossing_ns = 3;
    assert_eq!(iteration_ns(&problem, &plan), Ok(174));
}

#[test]
fn devices_that_share_a_core_are_slower_while_both_work() {
    // g0  0F0 0-20   0F1 20-57              0B0 83-143              0B1 173-203
    // g1       1F0 23-60   1I0 60-80   1F1 80-117   1W0 117-137   1B1 137-170
    let (mut problem, plan) = timed();
    let devices = vec!["g0".to_owned(), "g1".to_owned()];
    problem.hosts.push(Host { devices, at_once: 1.0, note: None });
    assert_eq!(iteration_ns(&problem, &plan), Ok(203));
    problem.hosts[0].at_once = 2.0;
    assert_eq!(iteration_ns(&problem, &plan), Ok(156));
}

#[test]
fn stages_on_one_device_exchange_for_free() {
    let (mut problem, mut plan) = timed();
    problem.links.default.latency_ns = 1_000_000;
    problem.crossing_ns = 1_000_000;
    plan.stages[1].device = 0;
    plan.programs = vec![crate::support::program("0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1"), Vec::new()];
    assert_eq!(iteration_ns(&problem, &plan), Ok(2 * (20 + 20 + 30 + 30)));
}

#[test]
fn a_plan_that_cannot_run_has_no_time() {
    let (problem, mut plan) = timed();
    plan.programs[0].swap(0, 3);
    assert!(iteration_ns(&problem, &plan).is_err());
}
