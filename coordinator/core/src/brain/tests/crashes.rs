//! Rounds under loss, refusal, crash and deposition. The stand-ins check NumbersOnce, AbortedStaysAborted,
//! OneEpochPerStep and DeposedIsSilent at every event; AlwaysAWayOn is that the run ends.

use super::cluster::{Faults, World, epochs_of};
use crate::ledger::{Reason, Verdict};
use adaptis_proto::message::Refusal;
use adaptis_proto::sample::{Place, Sample};
use adaptis_proto::{Epoch, Generation, Step};

/// Two plans on the way of a short run; gives the world at its end.
fn two_switches(seed: u64, faults: Faults) -> World {
    let mut world = World::new(2, 24, seed, faults);
    let mut decided = 0;
    world.run_until("the end", |_| true);
    let limit = 2_000;
    while !(world.done && world.finished().is_some()) {
        assert!(world.ticks < limit, "AlwaysAWayOn: {faults:?} {:?} {:?}", world.head(), world.ledger.held.failed);
        world.tick();
        let step = world.ranks[0].place.step;
        let is_idle = world.brain.round.is_none() && !world.done && world.brain.running.is_some();
        if is_idle && decided < 2 && step >= Step([4, 12][decided]) && step < Step(20) {
            world.decide();
            decided += 1;
        }
    }
    world
}

#[test]
fn plans_take_effect_one_after_the_other() {
    let world = two_switches(1, Faults::default());
    assert_eq!(world.head().epoch, Epoch(3));
    assert_eq!(epochs_of(&world.ledger.held.plans), [1, 2, 3]);
    let phases = &world.ledger.held.phases;
    assert_eq!(phases.iter().map(|phase| phase.epoch.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(phases[1].predicted_ns, Some(1), "what was predicted when it was decided");
}

#[test]
fn a_crash_at_any_effect_leaves_a_way_on() {
    let undisturbed = two_switches(1, Faults::default());
    for zombie in [false, true] {
        for after in 0..undisturbed.steps {
            let faults = Faults { crash_after: Some(after), zombie, ..Faults::default() };
            let world = two_switches(1, faults);
            assert!(world.head().epoch >= Epoch(2), "crash after {after}: {:?}", world.head());
            for rank in &world.ranks {
                assert_eq!(rank.place.epoch, world.head().epoch, "the ledger follows the ranks");
            }
        }
    }
}

#[test]
fn crashes_and_a_bad_wire_together() {
    for seed in 0..60 {
        let faults = Faults {
            loss: 20,
            doubling: 20,
            delay_ticks_max: 6,
            crash_after: Some(seed as usize * 2),
            zombie: seed % 2 == 0,
        };
        let world = two_switches(seed, faults);
        assert!(world.finished().is_some(), "seed {seed}");
    }
}

#[test]
fn a_refusal_aborts_the_plan_and_says_why() {
    let mut world = World::new(2, 40, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    world.ranks[1].refuses = Some(Refusal::Memory { needed_bytes: 2, available_bytes: 1 });
    world.decide();
    world.run_until("an abort", |world| world.ledger.held.aborted == [Epoch(2)]);
    let last = world.ledger.held.decisions.last().expect("the abort is a decision");
    assert_eq!((last.verdict, last.epoch), (Verdict::Keep, Some(Epoch(2))));
    assert!(matches!(last.reason, Reason::Refused { .. }), "{:?}", last.reason);
    world.ranks[1].refuses = None;
    world.decide();
    world.run_until("the next plan", |world| world.head().epoch == Epoch(3));
    assert_eq!(plan_parent(&world, Epoch(3)), Epoch(1), "the aborted number is skipped");
}

#[test]
fn a_plan_that_is_not_armed_in_time_is_aborted() {
    let mut world = World::new(2, 200, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    world.faults.loss = 100;
    world.decide();
    world.run_until("an abort", |world| world.ledger.held.aborted == [Epoch(2)]);
    let last = world.ledger.held.decisions.last().expect("the abort is a decision");
    assert!(matches!(&last.reason, Reason::NotArmedInTime { missing } if missing.len() == 2), "{:?}", last.reason);
}

#[test]
fn a_lost_abort_is_said_again_to_whoever_is_still_armed() {
    let mut world = World::new(2, 200, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    world.ranks[1].refuses = Some(Refusal::Stopped);
    world.decide();
    world.run_until("one armed", |world| world.ranks[0].armed.is_some());
    world.run_until("disarmed", |world| world.ranks[0].armed.is_none() && world.ranks[0].floor == Epoch(3));
}

#[test]
fn a_vote_that_was_faster_than_the_abort_counts() {
    let mut world = World::new(2, 200, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    world.decide();
    world.run_until("all armed", |world| world.ranks.iter().all(|rank| rank.armed.is_some()));
    // The coordinator gives up, and no rank hears of it before the vote.
    world.faults.loss = 100;
    world.brain.abort_round(Reason::RunEnded);
    world.feed(crate::brain::Event::TimePassed);
    world.run_until("the vote", |world| world.ranks[0].place.epoch == Epoch(2));
    world.faults.loss = 0;
    world.run_until("the ledger follows", |world| world.head().epoch == Epoch(2));
    assert_eq!(world.ledger.held.aborted, [Epoch(2)]);
}

#[test]
fn a_switch_is_complete_after_a_crash() {
    let mut world = World::new(2, 200, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    let place = Place { step: Step(2), epoch: Epoch(2), generation: Generation(1) };
    for (device, bytes_received, pause_ns) in [("gpu0", 100, 5), ("gpu1", 40, 9)] {
        let sample = Sample::Switch { place, layers_moved: 1, bytes_received, pause_ns, from: 1 };
        // Stored, and the reign ends before it takes them in.
        world.ledger.store(device, &[sample]);
    }
    world.crash();
    world.run_until("the switch", |world| !world.ledger.held.switches.is_empty());
    let switch = world.ledger.held.switches[0];
    assert_eq!((switch.to, switch.bytes_moved, switch.pause_ns), (Epoch(2), 140, 9));
}

fn plan_parent(world: &World, epoch: Epoch) -> Epoch {
    super::cluster::plan_in(world, epoch).parent
}
