//! An explanation adds up, and what it promises is there.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use adaptis_plan::Host;
use adaptis_planner::explain::{Answer, Explanation, Options, Wish, explain};
use adaptis_planner::schedule::{Name, named};
use adaptis_planner::search::{self, Control, search};
use proptest::prelude::*;
use support::{any_crowded_problem, any_problem, cost, link, uniform};

const OPTIONS: Options = Options { seed: 1, evaluations: 600 };

fn sums(explanation: &Explanation) -> Vec<u64> {
    let of = |split: &adaptis_planner::explain::Split| {
        assert!(split.recompute_ns <= split.work_ns);
        let working_ns = split.work_ns + split.sharing_ns;
        working_ns + split.warm_up_ns + split.waiting_ns + split.drain_ns + split.optimizer_ns + split.boundary_ns
    };
    explanation.devices.iter().map(of).collect()
}

fn gain(explanation: &Explanation, is_it: impl Fn(&Wish) -> bool) -> &Answer {
    explanation.wishes.iter().find(|answer| is_it(&answer.wish)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_device_adds_up(problem in prop_oneof![any_problem(), any_crowded_problem()]) {
        let options = search::Options { evaluations: Some(200), ..search::Options::default() };
        let Ok(found) = search(&problem, None, &options, &mut |_| Control::Go) else { return Ok(()) };
        // Stopped at once: the instant part is complete all the same.
        let explanation = explain(&problem, &found.plan, &OPTIONS, &mut |_| Control::Stop).unwrap();
        prop_assert_eq!(sums(&explanation), vec![explanation.iteration_ns; problem.devices.len()]);
        for split in &explanation.devices {
            let waited: u64 =
                explanation.waits.iter().filter(|wait| wait.device == split.device).map(|wait| wait.total_ns()).sum();
            prop_assert_eq!(waited, split.waiting_ns);
        }
        for (memory, device) in explanation.memory.iter().zip(&problem.devices) {
            prop_assert!(memory.peak_bytes <= memory.limit_bytes && memory.always_bytes <= memory.peak_bytes);
            prop_assert_eq!(memory.limit_bytes, device.memory_bytes);
        }
        prop_assert!(explanation.without_recompute_ns.is_none_or(|ns| ns <= explanation.iteration_ns));
        prop_assert!(explanation.wishes.is_empty());
    }
}

#[test]
fn a_textbook_pipeline_is_told_as_the_textbook_tells_it() {
    // 1F1B, two stages of F 1000 and B 2000, two microbatches:  FF.BB / .FBFB
    let problem = uniform(2, 2, 2, cost(1000, 1000, 1000), 0);
    let plan = named(&problem, Name::OneFOneB).unwrap();
    let explanation = explain(&problem, &plan, &OPTIONS, &mut |_| Control::Stop).unwrap();
    let [first, last] = &explanation.devices[..] else { panic!("two devices") };
    assert_eq!((first.work_ns, first.warm_up_ns, first.waiting_ns, first.drain_ns), (6000, 0, 3000, 0));
    assert_eq!((last.work_ns, last.warm_up_ns, last.waiting_ns, last.drain_ns), (6000, 1000, 0, 2000));
    let [wait] = &explanation.waits[..] else { panic!("{:?}", explanation.waits) };
    assert_eq!((wait.device.as_str(), wait.from.as_str()), ("gpu0", "gpu1"));
    assert_eq!((wait.for_device_ns, wait.for_link_ns), (3000, 0));
    assert_eq!(explanation.again_ns, None);
    assert!(explanation.unasked > 0);
}

#[test]
fn what_devices_wait_for_cores_is_no_work() {
    let mut problem = uniform(2, 2, 2, cost(1000, 1000, 1000), 0);
    let plan = named(&problem, Name::OneFOneB).unwrap();
    let devices = problem.devices.iter().map(|device| device.name.clone()).collect();
    problem.hosts = vec![Host { devices, at_once: 1.0, note: None }];
    let explanation = explain(&problem, &plan, &OPTIONS, &mut |_| Control::Stop).unwrap();
    let works: Vec<u64> = explanation.devices.iter().map(|split| split.work_ns).collect();
    assert_eq!(works, [6000, 6000], "as each by itself");
    // One core for both: it is idle only while one waits for the other.
    assert!(explanation.devices.iter().all(|split| split.sharing_ns > 0), "{:?}", explanation.devices);
    assert_eq!(sums(&explanation), vec![explanation.iteration_ns; 2]);
}

#[test]
fn a_slow_link_is_waited_for_and_worth_doubling() {
    let mut problem = uniform(2, 2, 4, cost(1000, 1000, 1000), 0);
    problem.layers[0].output_bytes = 3_000;
    problem.links.default = link(0, 1e9);
    let plan = named(&problem, Name::OneFOneB).unwrap();
    let explanation = explain(&problem, &plan, &OPTIONS, &mut |_| Control::Go).unwrap();
    assert!(explanation.waits[0].for_link_ns > 0, "{:?}", explanation.waits);
    let answer = gain(&explanation, |wish| matches!(wish, Wish::Bandwidth { .. }));
    assert!(answer.gain_ns > 0, "{:?}", explanation.wishes);
    assert_eq!(Some(answer.iteration_ns + answer.gain_ns), explanation.again_ns);
    assert_eq!(explanation.unasked, 0);
}

#[test]
fn one_more_device_shortens_what_devices_bound() {
    let problem = uniform(2, 6, 12, cost(1000, 1000, 1000), 0);
    let plan = named(&problem, Name::ZbH2).unwrap();
    let explanation = explain(&problem, &plan, &OPTIONS, &mut |_| Control::Go).unwrap();
    let answer = gain(&explanation, |wish| matches!(wish, Wish::Device { .. }));
    // A third device takes a third of the work.
    assert!(answer.iteration_ns * 4 < explanation.iteration_ns * 3, "{answer:?}");
    let again = explain(&problem, &plan, &OPTIONS, &mut |_| Control::Go).unwrap();
    assert_eq!(again, explanation);
}

#[test]
fn memory_that_forces_recomputation_is_named_with_its_price() {
    let mut problem = uniform(2, 4, 6, cost(1000, 1000, 1000), 0);
    problem.devices.iter_mut().for_each(|device| device.memory_bytes = 9);
    let plan = named(&problem, Name::OneFOneB).unwrap();
    // Two microbatches in flight on the first device hold 16 bytes unless it recomputes.
    assert!(!plan.stages[0].recompute.is_empty(), "{:?}", plan.stages);
    let explanation = explain(&problem, &plan, &OPTIONS, &mut |_| Control::Go).unwrap();
    for stage in &plan.stages {
        let split = &explanation.devices[stage.device as usize];
        assert_eq!(split.recompute_ns, stage.recompute.len() as u64 * 6 * 1000);
    }
    assert_eq!(explanation.memory[0].recompute_saves_bytes, 16 - explanation.memory[0].peak_bytes);
    assert!(explanation.memory.iter().all(|memory| memory.is_binding));
    assert!(explanation.without_recompute_ns.unwrap() < explanation.iteration_ns);
    let answer = gain(&explanation, |wish| matches!(wish, Wish::Memory { devices, .. } if devices.len() == 2));
    assert!(answer.gain_ns > 0, "{:?}", explanation.wishes);
}
