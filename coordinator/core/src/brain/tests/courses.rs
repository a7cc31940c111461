//! What is acted on and what is not: steps, transients, what comes and goes, what drifts.

use super::cluster::World;
use super::decisions::{of, run_with};
use crate::brain::Mode;
use crate::drift::{Course, Who};
use crate::ledger::{Decision, Reason, Verdict};
use adaptis_proto::{DeviceIndex, Step};

/// First iteration that is not as before.
const ONSET: u64 = 40;
const ONE: Who = Who::Device(DeviceIndex(1));

/// A run in which device 1 takes so many times as long, by iterations since the onset.
fn course(iterations: u64, factor: fn(u64) -> f64) -> World {
    run_with(Mode::Adapt, false, iterations, |truth| truth.course = Some((1, ONSET, factor)))
}

fn late(world: &World, verdict: Verdict) -> Vec<&Decision> {
    of(world, verdict).into_iter().filter(|decision| decision.iteration >= Step(ONSET)).collect()
}

#[test]
fn a_transient_is_logged_and_not_acted_on() {
    for iterations in [2, 3] {
        let factor: fn(u64) -> f64 = if iterations == 2 {
            |since| if since < 2 { 2.5 } else { 1.0 }
        } else {
            |since| if since < 3 { 2.5 } else { 1.0 }
        };
        let world = course(80, factor);
        assert_eq!(late(&world, Verdict::Switch), Vec::<&Decision>::new());
        let is_logged = |decision: &&&Decision| {
            matches!(decision.reason, Reason::Transient { factor, iterations: seen }
                if (factor / 2.5 - 1.0).abs() < 0.1 && seen == iterations)
        };
        let kept = late(&world, Verdict::Keep);
        assert_eq!(kept.iter().filter(is_logged).count(), 1, "{kept:#?}");
        let adapt = world.brain.adapt.as_ref().expect("it follows a run");
        assert!(adapt.open.is_empty() && adapt.searching.is_none(), "nothing is left open");
        // What is known of the device is what was known before.
        let slowdown = adapt.estimator.problem().expect("all was measured").problem.devices[1].slowdown;
        assert!((slowdown - 1.0).abs() < 0.03, "{slowdown}");
    }
}

#[test]
fn a_step_is_acted_on_once_it_has_lasted() {
    let world = course(80, |_| 2.5);
    let switches = late(&world, Verdict::Switch);
    // The iteration whose last sample makes four of them is recorded right after.
    assert!(switches[0].iteration >= Step(ONSET + 2), "{switches:#?}");
    assert!(switches[0].detected_iteration <= Step(ONSET + 1), "{switches:#?}");
    let text = switches[0].text(|device| device.to_string());
    assert!(text.contains("2.5"), "{text}");
}

#[test]
fn what_comes_and_goes_is_planned_for_in_its_mean_and_left_alone_from_then_on() {
    let world = course(240, |since| if since % 24 < 12 { 1.8 } else { 1.0 });
    let by_period = |decision: &&&Decision| {
        decision.change.is_some_and(|change| change.who == ONE && matches!(change.course, Course::Periodic { .. }))
    };
    let decisions = &world.ledger.held.decisions;
    let all: Vec<&Decision> = decisions.iter().collect();
    let first = *all.iter().find(by_period).unwrap_or_else(|| panic!("{decisions:#?}"));
    assert!(first.iteration.0 <= ONSET + 24 + 8, "known on its second slow stretch: {first:#?}");
    let text = first.text(|device| device.to_string());
    assert!(text.contains("of every 24 iterations"), "{text}");
    let after = |decision: &&&Decision| decision.number > first.number && decision.verdict == Verdict::Switch;
    assert!(all.iter().filter(after).count() <= 1, "no to and fro: {decisions:#?}");
    assert!(of(&world, Verdict::Revert).is_empty(), "{decisions:#?}");
}

#[test]
fn a_gradual_drift_is_acted_on_when_its_sum_pays() {
    let world = course(200, |since| 1.0 + 0.01 * (since as f64).min(100.0));
    let switches = late(&world, Verdict::Switch);
    assert!(!switches.is_empty() && switches.len() <= 8, "{switches:#?}");
    let slowdown =
        world.brain.adapt.as_ref().and_then(|adapt| adapt.estimator.problem().ok()).expect("all was measured");
    assert!(
        (slowdown.problem.devices[1].slowdown / 2.0 - 1.0).abs() < 0.08,
        "{}",
        slowdown.problem.devices[1].slowdown
    );
}
