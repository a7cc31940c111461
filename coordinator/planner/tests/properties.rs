//! What holds for every plan that leaves this crate, on random problems with every optional field.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use adaptis_plan::audit::peak_bytes;
use adaptis_plan::problem::Pin;
use adaptis_plan::{Host, Plan, Problem, audit, iteration_ns};
use adaptis_planner::bounds::lower_bound_ns;
use adaptis_planner::moves::moves;
use adaptis_planner::schedule::{Name, even, named};
use adaptis_planner::search::{Control, Infeasible, Options, Outcome, RungKind, Short, search};
use adaptis_planner::simulate::simulate;
use adaptis_proto::Epoch;
use proptest::prelude::*;
use support::{any_crowded_problem, any_problem, naive_iteration_ns};

fn searched(problem: &Problem, from: Option<&Plan>, evaluations: u64, seed: u64) -> Result<Outcome, Infeasible> {
    let options = Options { seed, evaluations: Some(evaluations), epoch: Epoch(7), ..Options::default() };
    search(problem, from, &options, &mut |_| Control::Go)
}

/// The plan is valid, and simulator, audit, bound and independent replay agree on it.
fn agreed(problem: &Problem, plan: &Plan) -> Result<u64, TestCaseError> {
    let findings = audit(problem, plan);
    prop_assert!(findings.is_empty(), "{findings:?}");
    let timeline = simulate(problem, plan).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert!(timeline.fits);
    prop_assert_eq!(&timeline.peak_bytes, &peak_bytes(problem, plan).unwrap());
    prop_assert_eq!(timeline.iteration_ns, naive_iteration_ns(problem, plan));
    prop_assert_eq!(timeline.iteration_ns, iteration_ns(problem, plan).unwrap());
    prop_assert!(lower_bound_ns(problem) <= timeline.iteration_ns);
    let predicted = plan.predicted.as_ref().expect("a plan carries its prediction");
    prop_assert_eq!(predicted.iteration_ns, timeline.iteration_ns);
    prop_assert_eq!(&predicted.peak_bytes, &timeline.peak_bytes);
    prop_assert_eq!(predicted.lower_bound_ns, lower_bound_ns(problem));
    Ok(timeline.iteration_ns)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_found_plan_is_valid_and_told_truly(problem in any_problem(), seed in 0..4_u64) {
        prop_assume!(problem.check().is_ok());
        if let Ok(outcome) = searched(&problem, None, 1_500, seed) {
            let best = agreed(&problem, &outcome.plan)?;
            prop_assert_eq!(outcome.plan.epoch, Epoch(7));
            prop_assert!(outcome.rungs.is_empty());
            for name in Name::ALL {
                if let Ok(plan) = named(&problem, name) {
                    agreed(&problem, &plan)?;
                }
            }
            let again = searched(&problem, None, 1_500, seed).unwrap();
            prop_assert_eq!(simulate(&problem, &again.plan).unwrap().iteration_ns, best);
            prop_assert_eq!(again.plan, outcome.plan);
        } else {
            // What a named schedule can do, the search can.
            for name in Name::ALL {
                prop_assert!(named(&problem, name).is_err(), "{} fits", name);
            }
        }
    }

    #[test]
    fn a_running_plan_is_never_made_worse(mut problem in any_problem(), slower in 0..4_usize) {
        prop_assume!(problem.check().is_ok());
        let Ok(before) = searched(&problem, None, 300, 1) else { return Ok(()) };
        let at = slower % problem.devices.len();
        problem.devices[at].slowdown *= 2.0;
        let running = simulate(&problem, &before.plan).unwrap();
        let outcome = searched(&problem, Some(&before.plan), 1_500, 2).unwrap();
        let after = agreed(&problem, &outcome.plan)?;
        prop_assert!(after <= running.iteration_ns);
        prop_assert_eq!(outcome.plan.parent, before.plan.epoch);
        for rung in &outcome.rungs {
            prop_assert_eq!(agreed(&problem, &rung.plan)?, rung.iteration_ns);
            let moved = moves(&problem, &before.plan, &rung.plan);
            prop_assert_eq!((moved.layers, moved.bytes), (rung.moved_layers, rung.moved_bytes));
            let (old, new) = (&before.plan.stages, &rung.plan.stages);
            match rung.kind {
                RungKind::Order => prop_assert_eq!(old, new),
                RungKind::Recompute => prop_assert_eq!(moved.layers, 0),
                RungKind::Relabel => prop_assert_eq!(old.len(), new.len()),
                RungKind::Boundary => prop_assert!(
                    old.iter().map(|stage| stage.device).eq(new.iter().map(|stage| stage.device))
                ),
                RungKind::Full | RungKind::Anew => {}
            }
        }
        if let Some([full, anew]) = outcome.rungs.last_chunk() {
            prop_assert_eq!((full.kind, anew.kind), (RungKind::Full, RungKind::Anew));
            // A plan near the running one is taken up to 3% worse than the best. What it is worth without the toll lies
            // between its time and its value, and values are rounded up.
            let [least, most] = [full.iteration_ns, full.value_ns].map(|worth| 0.97 * worth as f64);
            if (anew.value_ns as f64) < least {
                prop_assert_eq!(&outcome.plan, &anew.plan);
            } else if anew.value_ns as f64 - 1.0 >= most {
                prop_assert_eq!(&outcome.plan, &full.plan);
            } else {
                prop_assert!(outcome.plan == full.plan || outcome.plan == anew.plan);
            }
        }
    }

    #[test]
    fn an_even_plan_breaks_memory_and_constraints_at_most(problem in any_problem()) {
        prop_assume!(problem.check().is_ok());
        let plan = even(&problem);
        let rules: Vec<_> = audit(&problem, &plan).iter().map(|finding| finding.rule()).collect();
        prop_assert!(rules.iter().all(|&rule| rule == "memory" || rule == "constraint"), "{rules:?}");
        let timeline = simulate(&problem, &plan).unwrap();
        prop_assert_eq!(timeline.fits, !rules.contains(&"memory"));
        prop_assert_eq!(timeline.iteration_ns, naive_iteration_ns(&problem, &plan));
        prop_assert_eq!(timeline.peak_bytes, peak_bytes(&problem, &plan).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn on_crowded_hosts_simulator_audit_and_bound_agree(problem in any_crowded_problem(), seed in 0..4_u64) {
        prop_assume!(problem.check().is_ok());
        let even = even(&problem);
        let found = searched(&problem, None, 300, seed).ok().map(|outcome| outcome.plan);
        let alone = Problem { hosts: Vec::new(), ..problem.clone() };
        for plan in std::iter::once(&even).chain(&found) {
            let timeline = simulate(&problem, plan).unwrap();
            let checked_ns = iteration_ns(&problem, plan).unwrap();
            // Times are fractions: what arrives, at a rounded one, may begin a nanosecond later by one of the clocks.
            let arrivals = 1 + timeline.spans.iter().map(Vec::len).sum::<usize>() as u64;
            prop_assert!(timeline.iteration_ns.abs_diff(checked_ns) <= arrivals, "{} {checked_ns}", timeline.iteration_ns);
            let working: u64 = timeline.spans.iter().flatten().map(|span| span.end_ns - span.start_ns).sum();
            let alone_ns: u64 =
                simulate(&alone, plan).unwrap().spans.iter().flatten().map(|span| span.end_ns - span.start_ns).sum();
            prop_assert!(working >= alone_ns, "no instruction is shorter beside others");
            prop_assert!(timeline.spans.iter().all(|spans| spans.windows(2).all(|two| two[0].end_ns <= two[1].start_ns)));
        }
        if let Some(plan) = found {
            prop_assert!(audit(&problem, &plan).is_empty());
            let predicted = plan.predicted.as_ref().expect("a plan carries its prediction");
            prop_assert_eq!(predicted.iteration_ns, simulate(&problem, &plan).unwrap().iteration_ns);
            prop_assert!(lower_bound_ns(&problem) <= predicted.iteration_ns);
        }
    }

    #[test]
    fn a_host_that_is_large_enough_changes_nothing(problem in any_problem()) {
        prop_assume!(problem.check().is_ok());
        let names: Vec<String> = problem.devices.iter().map(|device| device.name.clone()).collect();
        // Too small by nothing: the replay goes through time.
        let (first, at_once) = (names[..1].to_vec(), 0.999_999_999);
        let plan = even(&problem);
        let mut roomy = problem.clone();
        roomy.hosts.push(Host { at_once: names.len() as f64, devices: names, note: None });
        prop_assert_eq!(simulate(&roomy, &plan).unwrap(), simulate(&problem, &plan).unwrap());
        prop_assert_eq!(iteration_ns(&roomy, &plan).unwrap(), naive_iteration_ns(&problem, &plan));
        let mut nearly = problem.clone();
        nearly.hosts.push(Host { devices: first, at_once, note: None });
        let (timeline, exact_ns) = (simulate(&nearly, &plan).unwrap(), naive_iteration_ns(&problem, &plan));
        // Whatever crosses may begin a nanosecond later.
        prop_assert!(timeline.iteration_ns - exact_ns <= 2 + timeline.transfers.len() as u64);
    }
}

#[test]
fn a_change_of_order_alone_keeps_what_is_recomputed() {
    let problem = support::uniform(2, 4, 4, support::cost(5, 5, 5), 1);
    let mut running = even(&problem);
    running.stages[0].recompute = vec![1];
    let outcome = searched(&problem, Some(&running), 600, 1).unwrap();
    let order = outcome.rungs.iter().find(|rung| rung.kind == RungKind::Order).unwrap();
    assert_eq!(order.plan.stages, running.stages);
    assert!(outcome.plan.stages.iter().all(|stage| stage.recompute.is_empty()), "memory is ample");
}

/// The fast device holds both layers for one microbatch at a time, if they are two stages and the first is recomputed.
#[test]
fn a_tiny_problem_is_planned_in_the_only_way_that_fits_on_the_fast_device() {
    let mut problem = support::uniform(2, 2, 2, support::cost(10, 10, 0), 1);
    problem.costs.insert("slow".to_owned(), vec![support::cost(60, 60, 0); 2]);
    problem.devices[1].kind = "slow".to_owned();
    problem.layers[0].state_bytes = 3;
    problem.layers[0].output_bytes = 1;
    problem.devices[0].memory_bytes = 3 + 4;
    let plan = searched(&problem, None, 2_000, 1).unwrap().plan;
    assert_eq!(agreed(&problem, &plan).unwrap(), 2 * 50);
}

#[test]
fn a_search_that_is_stopped_at_once_still_answers() {
    let problem = support::uniform(4, 8, 8, support::cost(5, 5, 5), 1);
    let outcome = search(&problem, None, &Options::default(), &mut |_| Control::Stop).unwrap();
    assert!(audit(&problem, &outcome.plan).is_empty());
}

#[test]
fn idle_devices_get_empty_programs() {
    let problem = support::uniform(5, 2, 3, support::cost(5, 5, 5), 1);
    for plan in [even(&problem), searched(&problem, None, 500, 1).unwrap().plan] {
        assert!(audit(&problem, &plan).is_empty());
        assert!(plan.programs.iter().filter(|program| program.is_empty()).count() >= 3);
    }
}

#[test]
fn pins_that_no_pattern_of_stages_suits_are_kept() {
    let mut problem = support::uniform(4, 8, 6, support::cost(5, 5, 5), 1);
    let pin = |layer, device: &str| Pin { layer, device: device.to_owned(), note: None };
    problem.constraints.pinned = vec![pin(0, "gpu1"), pin(1, "gpu0"), pin(2, "gpu1"), pin(5, "gpu0")];
    problem.constraints.together = vec![vec![0, 7], vec![1, 3]];
    let plan = searched(&problem, None, 3_000, 1).unwrap().plan;
    assert!(audit(&problem, &plan).is_empty());
    // gpu0 must take layers 1, 3 and 5, gpu1 layers 0, 2 and 7: three layers of 15 ns for 6 microbatches.
    let time = plan.predicted.unwrap().iteration_ns;
    assert!((6 * 45..=6 * 45 + 60).contains(&time), "{time}");
}

#[test]
fn what_does_not_fit_is_said_with_the_bytes_that_are_short() {
    let mut problem = support::uniform(2, 2, 3, support::cost(5, 5, 5), 1);
    for layer in &mut problem.layers {
        layer.state_bytes = 100;
    }
    for device in &mut problem.devices {
        device.memory_bytes = 90;
    }
    let error = searched(&problem, None, 500, 1).unwrap_err();
    let short = |device: &str, needed_bytes| Short {
        device: device.into(),
        needed_bytes,
        available_bytes: 90,
        short_bytes: needed_bytes - 90,
        is_idle: false,
    };
    assert_eq!(error, Infeasible::Memory { short: vec![short("gpu0", 104), short("gpu1", 104)], is_proved: true });
    problem.devices.iter_mut().for_each(|device| device.memory_bytes = 104);
    assert!(searched(&problem, None, 500, 1).is_ok());
}

#[test]
fn a_device_that_reserves_more_than_it_has_is_said_to() {
    let mut problem = support::uniform(2, 2, 3, support::cost(5, 5, 5), 1);
    (problem.devices[1].reserved_bytes, problem.devices[1].memory_bytes) = (80, 50);
    problem.constraints.forbidden = vec!["gpu1".to_owned()];
    let error = searched(&problem, None, 500, 1).unwrap_err();
    assert!(error.to_string().starts_with("device gpu1 reserves 80 bytes and has 50, before"), "{error}");
}

#[test]
fn a_caller_who_stops_at_once_gets_a_plan_of_what_is_easy_and_waits_not_long_for_what_is_not() {
    let asked = std::cell::Cell::new(0);
    let stopped = |problem: &Problem| {
        search(problem, None, &Options::default(), &mut |_| {
            asked.set(asked.get() + 1);
            Control::Stop
        })
    };
    let easy = support::uniform(4, 16, 8, support::cost(5, 5, 5), 1);
    assert!(audit(&easy, &stopped(&easy).unwrap().plan).is_empty());
    // Sums leave room for 2,048 layers of uneven size that do not go up in 64 unlike devices.
    let mut hard = support::uniform(64, 2_048, 8, support::cost(5, 5, 5), 1);
    for (index, layer) in hard.layers.iter_mut().enumerate() {
        layer.state_bytes = 1_000_000 + index as u64 % 7 * 300_000;
    }
    let all: u64 = hard.layers.iter().map(|layer| layer.state_bytes).sum();
    for (index, device) in hard.devices.iter_mut().enumerate() {
        device.slowdown = 1.0 + index as f64 / 100.0;
        device.memory_bytes = all / 64 + 2_000 * 8;
    }
    asked.set(0);
    assert_eq!(stopped(&hard).unwrap_err(), Infeasible::NoneYet);
    // It asks after every millisecond or so of work.
    assert!(asked.get() < 1_000, "asked {} times", asked.get());
}

#[test]
fn as_many_devices_as_the_search_holds_and_no_more() {
    let many = support::uniform(4_097, 2, 1, support::cost(5, 5, 5), 1);
    let error = searched(&many, None, 10, 1).unwrap_err();
    assert_eq!(error, Infeasible::TooLarge { what: "devices", found: 4_097, limit: 4_096 });
}

#[test]
fn a_layer_pinned_to_any_of_like_devices_costs_nothing() {
    let free = support::uniform(4, 8, 16, support::cost(5, 5, 5), 1);
    for name in Name::ALL {
        let time = |problem: &Problem| named(problem, name).unwrap().predicted.unwrap().iteration_ns;
        for device in 0..4 {
            let mut pinned = free.clone();
            pinned.constraints.pinned = vec![Pin { layer: 0, device: format!("gpu{device}"), note: None }];
            assert_eq!(time(&pinned), time(&free), "{name}, layer 0 on gpu{device}");
        }
    }
}
