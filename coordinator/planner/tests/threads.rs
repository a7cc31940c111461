//! A search on several threads.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use adaptis_plan::{Problem, audit};
use adaptis_planner::schedule::even;
use adaptis_planner::search::{Control, Options, Outcome, search};
use support::{cost, device, uniform};

/// Nine unlike layers on three devices, the last one slow.
fn unlike() -> Problem {
    let mut problem = uniform(3, 9, 6, cost(1_000, 1_100, 900), 50);
    let costs = problem.costs.get_mut("k0").unwrap();
    for (at, cost) in costs.iter_mut().enumerate() {
        cost.forward_ns += 317 * (at as u64 % 4);
        cost.weight_gradient_ns += 211 * (at as u64 % 3);
    }
    problem.devices[2] = device(2, "k0", 1 << 40, 1.7);
    problem
}

fn found(problem: &Problem, evaluations: u64, threads: usize) -> Outcome {
    let options = Options { evaluations: Some(evaluations), threads, ..Options::default() };
    search(problem, None, &options, &mut |_| Control::Go).unwrap()
}

#[test]
fn the_same_evaluations_give_the_same_plan_on_any_number_of_threads() {
    // From nothing but starts to many tasks at once.
    for evaluations in [1, 900, 30_000] {
        let one = found(&unlike(), evaluations, 1);
        for threads in [2, 4, 100] {
            assert_eq!(found(&unlike(), evaluations, threads), one, "{evaluations} evaluations, {threads} threads");
        }
        assert_eq!(audit(&unlike(), &one.plan), []);
    }
}

#[test]
fn a_running_plan_is_changed_alike_on_any_number_of_threads() {
    let problem = unlike();
    let from = even(&problem);
    let found = |threads| {
        let options = Options { evaluations: Some(9_000), threads, ..Options::default() };
        search(&problem, Some(&from), &options, &mut |_| Control::Go).unwrap()
    };
    assert_eq!(found(3), found(1));
}

#[test]
fn the_bound_ends_all_threads_at_the_same_plan() {
    // Two layers on two devices: the bound is reached at once, or after a few tasks.
    let problem = uniform(2, 2, 4, cost(1_000, 1_000, 1_000), 0);
    let (one, four) = (found(&problem, u64::MAX, 1), found(&problem, u64::MAX, 4));
    assert_eq!(one.plan.predicted.as_ref().unwrap().iteration_ns, one.lower_bound_ns);
    assert_eq!(one, four);
}

#[test]
fn whoever_calls_is_asked_on_its_own_thread_and_ends_all() {
    let caller = std::thread::current().id();
    let problem = unlike();
    for threads in [1, 3] {
        let options = Options { threads, ..Options::default() };
        let (mut asked, mut told) = (0, 0);
        let outcome = search(&problem, None, &options, &mut |progress| {
            assert_eq!(std::thread::current().id(), caller);
            assert!(progress.evaluations >= told, "never fewer than before");
            (asked, told) = (asked + 1, progress.evaluations);
            if asked < 300 { Control::Go } else { Control::Stop }
        });
        let outcome = outcome.unwrap();
        assert_eq!(audit(&problem, &outcome.plan), []);
        assert!(outcome.evaluations > 0 && told > 0);
    }
}
