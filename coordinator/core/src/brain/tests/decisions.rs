//! The loop as a whole: ranks that truly cost something, real searches, real estimates.

use super::cluster::{Faults, World, config, job, plan_in};
use super::truth::{Noise, Truth};
use crate::admission;
use crate::brain::{Config, Event, Mode, Peer};
use crate::drift::Who;
use crate::ledger::{Decision, Reason, Verdict};
use adaptis_plan::{Cost, Device, Layer, Links, Problem};
use adaptis_proto::message::{Job, RankEvent, Refusal};
use adaptis_proto::{DeviceIndex, Epoch, Step};
use std::collections::BTreeMap;

pub(super) const DEVICES: usize = 4;
const FAULT: u64 = 40;

/// Eight layers, the last one heavy, on four devices of one kind.
fn truth(job: &Job) -> Problem {
    let cost = |layer: usize| {
        let weight = if layer + 1 == job.layers.len() { 3 } else { 1 };
        Cost {
            forward_ns: weight * 5_000_000,
            input_gradient_ns: weight * 5_000_000,
            weight_gradient_ns: weight * 5_000_000,
            activation_bytes: 100,
            weight_gradient_bytes: 50,
            ..Cost::default()
        }
    };
    let layer = |layer: &adaptis_proto::message::JobLayer| Layer {
        name: layer.name.clone(),
        signature: layer.signature.clone(),
        parameter_bytes: layer.parameter_bytes,
        state_bytes: layer.state_bytes,
        output_bytes: layer.output_bytes,
        moved_bytes: Some(layer.moved_bytes),
        note: None,
    };
    let device = |name: &String| Device {
        name: name.clone(),
        kind: "cpu".into(),
        memory_bytes: 1_000_000,
        slowdown: 1.0,
        reserved_bytes: 0,
        note: None,
    };
    Problem::new(
        job.microbatches,
        job.layers.iter().map(layer).collect(),
        job.devices.iter().map(device).collect(),
        BTreeMap::from([("cpu".to_owned(), (0..job.layers.len()).map(cost).collect())]),
        Links::all(10_000, 1e9),
    )
}

fn run(mode: Mode, is_static: bool, iterations: u64, fault: Option<(u64, usize, f64)>) -> World {
    run_with(mode, is_static, iterations, |truth| truth.faults.extend(fault))
}

pub(super) fn run_with(mode: Mode, is_static: bool, iterations: u64, change: impl FnOnce(&mut Truth)) -> World {
    let mut world = world_with(mode, is_static, iterations, change);
    world.run_until("the end", |world| world.done);
    world
}

pub(super) fn world_with(mode: Mode, is_static: bool, iterations: u64, change: impl FnOnce(&mut Truth)) -> World {
    world_of(Config { mode, is_static, ..config() }, iterations, change)
}

/// Two layers for each device, the last one a head.
fn world_of(config: Config, iterations: u64, change: impl FnOnce(&mut Truth)) -> World {
    let mut job = job(DEVICES, iterations);
    for (index, layer) in job.layers.iter_mut().enumerate() {
        let kind = if index + 1 == 2 * DEVICES { "head/1/bf16/b1xs8" } else { "mlp/8/f32/b1xs8" };
        layer.signature = kind.to_owned();
    }
    job.microbatches = 8;
    let mut truth = Truth::new(truth(&job), Noise::Even(0.02));
    change(&mut truth);
    let config = Config { search_evaluations: Some(3_000), ..config };
    let mut world = World::with(job, config, 1, Faults::default());
    world.truth = Some(truth);
    world
}

pub(super) fn of(world: &World, verdict: Verdict) -> Vec<&Decision> {
    world.ledger.held.decisions.iter().filter(|decision| decision.verdict == verdict).collect()
}

fn first_on(world: &World, epoch: Epoch) -> Option<Step> {
    world.ledger.held.iterations.iter().find(|iteration| iteration.epoch == epoch).map(|found| found.index)
}

#[test]
fn an_undisturbed_run_is_planned_once_and_refined_at_most_once() {
    let world = run(Mode::Adapt, false, 120, None);
    let switches = of(&world, Verdict::Switch);
    assert!((1..=2).contains(&switches.len()), "{:#?}", world.ledger.held.decisions);
    assert!(switches[0].iteration <= Step(8), "{:#?}", switches[0]);
    if let Some(second) = switches.get(1) {
        assert!(second.iteration.0 <= switches[0].iteration.0 + 20, "{second:#?}");
    }
    assert!(world.searched <= 3, "{} searches", world.searched);
    assert!(of(&world, Verdict::Revert).is_empty());
}

#[test]
fn no_plan_is_switched_to_that_nothing_would_be_trained_on() {
    let mut switches = 0;
    for iterations in 6..=12 {
        let world = run(Mode::Adapt, false, iterations, None);
        for decision in of(&world, Verdict::Switch) {
            let epoch = decision.epoch.expect("a switch has a plan");
            assert!(first_on(&world, epoch).is_some(), "of {iterations} iterations none is on {epoch}: {decision:#?}");
            switches += 1;
        }
    }
    assert!(switches > 0, "where iterations are left, it switches");
}

#[test]
fn a_throttled_device_is_answered_within_eight_iterations() {
    // Enough to make it the slowest, whatever it holds.
    let world = run(Mode::Adapt, false, 90, Some((FAULT, 1, 2.5)));
    let after: Vec<_> =
        of(&world, Verdict::Switch).into_iter().filter(|decision| decision.iteration >= Step(FAULT)).collect();
    let decision = after.first().unwrap_or_else(|| panic!("{:#?}", world.ledger.held.decisions));
    assert!(decision.detected_iteration.0 < FAULT + 5, "{decision:#?}");
    let change = decision.change.expect("a change caused it");
    assert!(change.onset.0.abs_diff(FAULT) <= 1, "{change:?}");
    let epoch = decision.epoch.expect("a switch has a plan");
    let first = first_on(&world, epoch).expect("it took effect");
    assert!(first.0 <= FAULT + 8, "first iteration on the new plan: {first}");
    assert!(decision.predicted_after_ns < decision.predicted_before_ns);
}

#[test]
fn a_decision_tells_of_the_device_where_one_of_its_layers_changed_too() {
    for layer in 0..2 * DEVICES {
        let world = run_with(Mode::Adapt, false, 60, |truth| {
            truth.faults.push_back((FAULT, 1, 2.5));
            truth.odd_layer = Some((FAULT, layer, 1.3));
        });
        let of_change = world.ledger.held.decisions.iter().find_map(|decision| decision.change);
        let change = of_change.unwrap_or_else(|| panic!("{:#?}", world.ledger.held.decisions));
        assert_eq!(change.who, Who::Device(DeviceIndex(1)), "beside layer {layer}");
    }
}

#[test]
fn every_phase_is_predicted_within_five_percent() {
    phases_are_predicted(&run(Mode::Adapt, false, 90, Some((FAULT, 1, 1.6))), 0.05);
}

#[test]
fn jitter_is_part_of_every_prediction() {
    let world = run_with(Mode::Adapt, false, 90, |truth| {
        // A standard deviation of 20%.
        *truth = Truth::new(truth.problem.clone(), Noise::Even(0.35));
        truth.faults.push_back((FAULT, 1, 1.6));
    });
    phases_are_predicted(&world, 0.05);
    let fit = world.brain.adapt.as_ref().and_then(|adapt| adapt.fit.as_ref()).expect("it was fitted");
    assert!((fit.correction - 1.0).abs() < 0.02, "nothing is left to correct: {}", fit.correction);
}

fn phases_are_predicted(world: &World, off_max: f64) {
    let phases = &world.ledger.held.phases;
    assert!(phases.len() >= 3, "{phases:#?}");
    for (at, phase) in phases.iter().enumerate() {
        let end = phases.get(at + 1).map_or(Step(u64::MAX), |next| next.from);
        let mut durations: Vec<u64> = world
            .ledger
            .held
            .iterations
            .iter()
            .filter(|iteration| iteration.index >= phase.from && iteration.index < end)
            .map(|iteration| iteration.duration_ns)
            .collect();
        durations.sort_unstable();
        let Some(&median) = durations.get(durations.len() / 2) else { continue };
        let predicted = phase.predicted_ns.unwrap_or_else(|| panic!("no prediction: {phase:?}"));
        let ratio = median as f64 / predicted as f64;
        assert!((ratio - 1.0).abs() < off_max, "{phase:?}: measured {median}, ratio {ratio}");
    }
}

#[test]
fn modes_do_no_more_than_they_say() {
    let observed = run(Mode::Observe, false, 60, Some((30, 1, 1.6)));
    assert_eq!((observed.searched, observed.ledger.held.decisions.len()), (0, 0));
    assert!(observed.ledger.held.phases.iter().all(|phase| phase.predicted_ns.is_some()), "it predicts all the same");
    let kept = run(Mode::Adapt, true, 60, Some((30, 1, 1.6)));
    assert_eq!((kept.searched, kept.head().epoch), (0, Epoch(1)));
    let advised = run(Mode::Advise, false, 60, Some((30, 1, 1.6)));
    assert!(!of(&advised, Verdict::Switch).is_empty(), "{:#?}", advised.ledger.held.decisions);
    assert_eq!(advised.head().epoch, Epoch(1), "and changes nothing");
    let advice = advised.advised.last().expect("the plan can be had");
    assert_eq!(adaptis_plan::audit(&advice.problem, &advice.plan), [], "with the problem that it solves");
    assert!(kept.advised.is_empty() && observed.advised.is_empty());
}

#[test]
fn a_job_gets_the_mode_that_it_asks_for_where_nobody_else_said_one() {
    for (is_mode_open, asked, switches) in [
        (true, Some(Mode::Adapt), true),
        (true, Some(Mode::Advise), false),
        (true, None, false),
        (false, Some(Mode::Adapt), false),
    ] {
        let mut world = world_of(Config { mode: Mode::Observe, is_mode_open, ..config() }, 60, |_| {});
        world.asked = asked;
        world.run_until("the end", |world| world.done);
        assert_eq!(world.head().epoch > Epoch(1), switches, "{is_mode_open} {asked:?}");
        let mode = asked.filter(|_| is_mode_open).unwrap_or(Mode::Observe);
        assert_eq!(world.brain.mode(), mode);
        let said = world.announced.iter().filter(|said| said.contains("as the job asks for")).count();
        assert_eq!(said, usize::from(mode != Mode::Observe), "once");
        // Who reigns next knows it, also where nobody says it again; another job says what it asks for, or that it does not.
        world.crash();
        world.boot();
        assert_eq!(world.brain.mode(), mode);
        let event = Box::new(RankEvent::Asked { incarnation: world.ranks[0].incarnation, mode: None });
        world.feed(Event::RankSaid { peer: Peer(0), event });
        assert_eq!(world.brain.mode(), Mode::Observe);
    }
}

#[test]
fn a_plan_that_does_not_keep_its_promise_is_taken_back() {
    let world = run_with(Mode::Adapt, false, 60, |truth| truth.burden = Some((Epoch(2), 1.6)));
    let reverts = of(&world, Verdict::Revert);
    let [revert] = reverts.as_slice() else { panic!("{:#?}", world.ledger.held.decisions) };
    let epoch = revert.epoch.expect("it goes back by a new plan");
    assert!(first_on(&world, epoch).is_some_and(|step| step.0 <= 24), "{revert:#?}");
    let (first, again) = (plan_in(&world, Epoch(1)), plan_in(&world, epoch));
    assert_eq!((first.stages, first.programs), (again.stages, again.programs));
    assert_eq!(again.parent, Epoch(2));
}

#[test]
fn what_an_aborted_plan_was_wanted_for_is_wanted_again() {
    for (refusal, may_repeat) in
        [(Refusal::Stopped, true), (Refusal::Memory { needed_bytes: 2, available_bytes: 1 }, false)]
    {
        for is_restart in [false, true] {
            let mut world = world_with(Mode::Adapt, false, 80, |_| {});
            world.ranks[1].refuses = Some(refusal.clone());
            world.run_until("an abort", |world| !world.ledger.held.aborted.is_empty());
            world.ranks[1].refuses = None;
            if is_restart {
                world.boot();
            }
            let aborted = of(&world, Verdict::Keep).last().expect("an abort is a decision").iteration;
            world.run_until("the next plan", |world| world.head().epoch == Epoch(3));
            let switches = of(&world, Verdict::Switch);
            assert!(is_restart || switches[1].iteration.0 >= aborted.0 + 4, "not at once: {switches:#?}");
            let (first, second) = (plan_in(&world, Epoch(2)), plan_in(&world, Epoch(3)));
            let is_same = (first.stages, first.programs) == (second.stages, second.programs);
            assert!(is_restart || may_repeat || !is_same, "a plan that found no memory is not tried again");
        }
    }
}

/// One layer for each device, two of them of a fast kind. The head never ran on it, where it costs half of what the other
/// layers let expect.
pub(super) fn world_of_two_kinds(iterations: u64) -> World {
    let head = DEVICES - 1;
    let mut world = world_with(Mode::Adapt, false, iterations, |truth| {
        let problem = &mut truth.problem;
        problem.layers.drain(..DEVICES);
        problem.devices.iter_mut().take(2).for_each(|device| device.kind = "fast".into());
        let times = |cost: &Cost, factor: f64| {
            let of = |ns: u64| (ns as f64 * factor) as u64;
            let [forward_ns, input_gradient_ns] = [cost.forward_ns, cost.input_gradient_ns].map(of);
            Cost { forward_ns, input_gradient_ns, weight_gradient_ns: of(cost.weight_gradient_ns), ..cost.clone() }
        };
        let slow = problem.costs["cpu"][DEVICES..].to_vec();
        let faster = |(layer, cost)| times(cost, if layer == head { 0.25 } else { 0.5 });
        problem.costs.insert("fast".into(), slow.iter().enumerate().map(faster).collect());
        problem.costs.insert("cpu".into(), slow);
    });
    world.ranks.iter_mut().take(2).for_each(|rank| rank.kind = "fast");
    // Of the other layers' type, so that the guess is taken to be a good one.
    for rank in &mut world.ranks {
        rank.job.layers.drain(..DEVICES);
        rank.job.layers[head].signature = "mlp/256/f32/b1xs8".into();
    }
    world
}

#[test]
fn a_guess_that_was_wrong_is_no_change_of_a_device() {
    let head = DEVICES - 1;
    let mut world = world_of_two_kinds(90);
    world.run_until("the end", |world| world.done);
    let held = &world.ledger.held;
    let devices = plan_in(&world, Epoch(2)).device_of_layers();
    let beside = devices.iter().filter(|device| **device == devices[head]).count() - 1;
    assert!(devices[head] < 2 && beside == 0, "the head is alone on a fast device: {devices:?}");
    assert!(world.announced.iter().any(|said| said.contains("was corrected")), "{:#?}", world.announced);
    assert!(held.decisions.iter().all(|decision| decision.change.is_none()), "{:#?}", held.decisions);
    assert!(held.phases.iter().all(|phase| phase.change.is_none()), "{:#?}", held.phases);
}

#[test]
fn a_broken_promise_without_a_way_back_is_said() {
    let mut world = world_with(Mode::Adapt, false, 60, |truth| truth.burden = Some((Epoch(2), 1.6)));
    world.run_until("the first switch", |world| {
        world.brain.adapt.as_ref().is_some_and(|adapt| adapt.before.is_some()) && world.head().epoch == Epoch(2)
    });
    if let Some(adapt) = &mut world.brain.adapt {
        adapt.before = None;
    }
    let said = |decision: &Decision| {
        decision.verdict == Verdict::Keep && matches!(decision.reason, Reason::PromiseBroken { epoch: Epoch(2), .. })
    };
    world.run_until("a decision", |world| world.ledger.held.decisions.iter().any(said));
    assert!(of(&world, Verdict::Revert).is_empty());
}

#[test]
fn where_the_plan_before_is_no_longer_valid_a_search_finds_a_way_on() {
    let mut world = world_with(Mode::Adapt, false, 60, |truth| truth.burden = Some((Epoch(2), 1.6)));
    world.run_until("the first switch", |world| {
        world.brain.adapt.as_ref().is_some_and(|adapt| adapt.before.is_some()) && world.head().epoch == Epoch(2)
    });
    if let Some(before) = world.brain.adapt.as_mut().and_then(|adapt| adapt.before.as_mut()) {
        before.programs[0].clear();
    }
    let said = |decision: &Decision| matches!(decision.reason, Reason::Invalid { .. });
    world.run_until("a decision", |world| world.ledger.held.decisions.iter().any(said));
    let is_under_way = |adapt: &crate::brain::adapt::Adapt| adapt.wanted.is_some() || adapt.searching.is_some();
    assert!(world.brain.adapt.as_ref().is_some_and(is_under_way));
}

#[test]
fn a_change_that_was_seen_too_shortly_to_be_sure_is_looked_at_again_soon() {
    let world = run_with(Mode::Adapt, false, 90, |truth| {
        truth.noise = Noise::Heavy(0.4);
        truth.faults.push_back((FAULT, 1, 1.3));
    });
    let of_change: Vec<&Decision> =
        world.ledger.held.decisions.iter().filter(|decision| decision.change.is_some()).collect();
    let [first, second] = of_change[..] else { panic!("{of_change:#?}") };
    let is_unsure = |reason: &Reason| matches!(reason, Reason::Stays(admission::Reason::GainBelowModelError { .. }));
    assert!(first.verdict == Verdict::Keep && is_unsure(&first.reason), "{first:#?}");
    assert_eq!(first.change, second.change);
    assert!((3..=5).contains(&(second.iteration.0 - first.iteration.0)), "{second:#?}");
}
