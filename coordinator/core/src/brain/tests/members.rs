//! Gathering, starting, losing, ending.

use super::cluster::{DEADLINES, Faults, World, epochs_of, job, plan_in};
use crate::brain::{Effect, Event};
use crate::ledger::RunFailure;
use crate::membership::Peer;
use adaptis_proto::message::{Failure, RankEvent, RankOrder, Rejection, State};
use adaptis_proto::sample::Place;
use adaptis_proto::sample::Sample;
use adaptis_proto::{Epoch, Generation, Incarnation, Step};

#[test]
fn a_run_starts_even_and_ends_with_every_digest() {
    let mut world = World::new(2, 8, 1, Faults::default());
    assert_eq!(world.brain.status().state, State::Waiting);
    world.run_until("the end", |world| world.done);
    let plan = plan_in(&world, Epoch(1));
    assert_eq!(plan.stages.iter().map(|stage| stage.layers).collect::<Vec<_>>(), [[0, 2], [2, 4]]);
    assert_eq!(world.head().generation, Generation(1));
    let finished = world.finished().expect("the run ended");
    assert_eq!((finished.step, finished.layers.len()), (Step(8), 4));
    assert_eq!(world.brain.status().state, State::Finished);
    assert_eq!(world.ledger.held.phases.len(), 1);
}

#[test]
fn messages_may_be_lost_doubled_and_late() {
    for seed in 0..40 {
        let faults = Faults { loss: 30, doubling: 30, delay_ticks_max: 7, ..Faults::default() };
        let mut world = World::new(3, 12, seed, faults);
        world.run_until("the end", |world| world.done);
        assert_eq!(epochs_of(&world.ledger.held.plans), [1], "seed {seed}");
    }
}

#[test]
fn a_start_plan_is_taken_if_it_is_valid() {
    let mut donor = World::new(2, 2, 1, Faults::default());
    donor.run_until("a plan", |world| world.head().epoch == Epoch(1));
    let text = donor.ledger.held.plans[&Epoch(1)].text.clone();
    let moved = text.replacen("2,", "3,", 1);
    for (start, is_valid) in [(text.as_str(), true), ("no plan", false), (moved.as_str(), false)] {
        let mut job = job(2, 4);
        job.start_plan = Some(start.to_owned());
        let mut world = World::with(job, super::cluster::config(), 1, Faults::default());
        world.run_until("an answer", |world| world.head().epoch > Epoch(0) || world.ledger.held.failed.is_some());
        let failed = matches!(world.ledger.held.failed, Some(RunFailure::StartPlan { .. }));
        assert_eq!(!failed, is_valid, "{start}");
    }
}

#[test]
fn a_silent_rank_ends_the_run_with_its_name() {
    let mut world = World::new(2, 1_000, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    world.faults.loss = 100;
    world.run_until("a verdict", |world| world.ledger.held.failed.is_some());
    let Some(RunFailure::Silent { waited_ns, .. }) = &world.ledger.held.failed else {
        panic!("{:?}", world.ledger.held.failed);
    };
    assert!((DEADLINES.heartbeat_ns..2 * DEADLINES.heartbeat_ns).contains(waited_ns));
    assert_eq!(world.brain.status().state, State::Failed);
}

#[test]
fn the_cause_of_a_failure_replaces_its_consequences() {
    let mut world = World::new(2, 1_000, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    let place = world.ranks[0].place;
    let failed =
        |incarnation: u64, reason: Failure| RankEvent::Failed { incarnation: Incarnation(incarnation), place, reason };
    let out_of_memory = Failure::OutOfMemory { device: "gpu1".into(), needed_bytes: 2, limit_bytes: 1 };
    let told = [
        failed(100, Failure::PeerFailed { peer: adaptis_proto::DeviceIndex(1) }),
        failed(101, out_of_memory.clone()),
        failed(100, Failure::NotFinite),
    ];
    let mut texts = Vec::new();
    for event in told {
        world.feed(Event::RankSaid { peer: Peer(0), event: Box::new(event) });
        // Longer than the rank that failed first is waited for.
        world.now_ns += 1_000_000_000;
        world.feed(Event::TimePassed);
        texts.push(world.brain.status().failure.expect("the run has failed"));
    }
    let saw =
        format!("the rank of gpu1 stopped first, as gpu0 saw in iteration {}; the log of gpu1 says why", place.step);
    assert_eq!(texts[0], saw);
    assert!(texts[2].starts_with("the rank of gpu1 stopped"), "{}", texts[2]);
    let (device, reason) = ("gpu1".into(), out_of_memory);
    let expected = RunFailure::Stopped { device, step: place.step, reason, blamed: Vec::new() };
    assert_eq!(world.ledger.held.failed, Some(expected));
}

#[test]
fn a_rank_that_has_finished_may_leave_a_run_that_failed() {
    let mut world = World::new(2, 1_000, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    let place = world.ranks[0].place;
    let reason = Failure::NotFinite;
    let failed = RankEvent::Failed { incarnation: Incarnation(101), place, reason };
    world.feed(Event::RankSaid { peer: Peer(1), event: Box::new(failed) });
    world.now_ns += 1_000_000_000;
    world.feed(Event::TimePassed);
    assert!(world.brain.status().failure.is_some());
    let finished = RankEvent::Finished { incarnation: Incarnation(100), place, layers: world.ranks[0].layers() };
    let event = Event::RankSaid { peer: Peer(0), event: Box::new(finished) };
    let effects = world.brain.on_event(world.now_ns, event);
    let leaves = |effect: &Effect| matches!(effect, Effect::Send { to: Peer(0), order: RankOrder::Dismissed { .. } });
    assert!(effects.iter().any(leaves), "{effects:?}");
}

#[test]
fn a_failure_of_another_generation_is_no_failure() {
    let mut world = World::new(2, 1_000, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    let place = Place { generation: Generation(0), ..world.ranks[0].place };
    let event = RankEvent::Failed { incarnation: Incarnation(100), place, reason: Failure::NotFinite };
    world.feed(Event::RankSaid { peer: Peer(0), event: Box::new(event) });
    assert_eq!(world.ledger.held.failed, None);
}

#[test]
fn nobody_is_silent_while_the_coordinator_stands_still() {
    let mut world = World::new(2, 1_000, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    for is_restart in [false, true] {
        if is_restart {
            world.boot();
        }
        world.now_ns += 10 * DEADLINES.heartbeat_ns;
        let step = world.ranks[0].place.step;
        world.run_until("going on", |world| world.ranks[0].place.step > Step(step.0 + 4));
        assert_eq!(world.ledger.held.failed, None, "after a restart: {is_restart}");
    }
}

#[test]
fn the_rank_that_failed_first_is_named_and_has_the_first_word() {
    for speaks in [true, false] {
        let mut world = World::new(2, 1_000, 1, Faults::default());
        world.run_until("training", |world| world.ranks[0].place.step > Step(2));
        let place = world.ranks[0].place;
        let say = |world: &mut World, rank: u64, reason: Failure| {
            let event = RankEvent::Failed { incarnation: Incarnation(100 + rank), place, reason };
            world.feed(Event::RankSaid { peer: Peer(rank), event: Box::new(event) });
        };
        let told = Failure::PeerFailed { peer: adaptis_proto::DeviceIndex(1) };
        say(&mut world, 0, told.clone());
        assert_eq!(world.ledger.held.failed, None, "a neighbour's view is not the first word");
        if speaks {
            say(&mut world, 1, Failure::NotFinite);
        } else {
            world.now_ns += 1_000_000_000;
            say(&mut world, 0, told.clone());
        }
        let step = place.step;
        let expected = match speaks {
            true => RunFailure::Stopped { device: "gpu1".into(), step, reason: Failure::NotFinite, blamed: Vec::new() },
            false => RunFailure::Stopped { device: "gpu0".into(), step, reason: told, blamed: vec!["gpu1".into()] },
        };
        assert_eq!(world.ledger.held.failed, Some(expected.clone()));
        let said: Vec<_> = world.announced.iter().filter(|said| said.starts_with("the run failed")).collect();
        assert_eq!(said, [&format!("the run failed: {expected}")], "and nothing else is told");
    }
}

#[test]
fn a_rank_that_went_silent_is_named_though_others_saw_its_neighbour_stop() {
    let mut world = World::new(3, 1_000, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    let place = world.ranks[0].place;
    let silent = Failure::PeerSilent { peer: adaptis_proto::DeviceIndex(2), waited_ns: 30_000_000_000 };
    let saw = Failure::PeerFailed { peer: adaptis_proto::DeviceIndex(1) };
    let later = Failure::PeerFailed { peer: adaptis_proto::DeviceIndex(0) };
    for (rank, reason) in [(0, saw.clone()), (1, later.clone()), (1, silent.clone()), (0, saw), (1, later)] {
        let event = RankEvent::Failed { incarnation: Incarnation(100 + rank), place, reason };
        world.feed(Event::RankSaid { peer: Peer(rank), event: Box::new(event) });
    }
    world.now_ns += 1_000_000_000;
    world.feed(Event::TimePassed);
    let step = place.step;
    let expected = RunFailure::Stopped { device: "gpu1".into(), step, reason: silent, blamed: vec!["gpu2".into()] };
    assert_eq!(world.ledger.held.failed, Some(expected));
}

#[test]
fn silence_is_judged_only_when_everything_was_read() {
    let mut world = World::new(2, 1_000, 1, Faults::default());
    world.run_until("training", |world| world.ranks[0].place.step > Step(2));
    let beat = RankEvent::Beat { incarnation: Incarnation(100), place: world.ranks[0].place, armed: None };
    for _ in 0..2 * DEADLINES.heartbeat_ns / 1_000_000_000 {
        world.now_ns += 1_000_000_000;
        world.feed(Event::RankSaid { peer: Peer(0), event: Box::new(beat.clone()) });
    }
    assert_eq!(world.ledger.held.failed, None, "the other rank's words may be next in the queue");
    world.feed(Event::TimePassed);
    assert!(matches!(&world.ledger.held.failed, Some(RunFailure::Silent { device, .. }) if device == "gpu1"));
}

#[test]
fn records_of_another_process_tell_nothing() {
    let mut world = World::new(2, 1_000, 1, Faults::default());
    world.run_until("training", |world| world.brain.status().place.step > Step(2));
    let before = world.brain.status().place;
    let place = Place { step: Step(900), ..before };
    let sample = Sample::Iteration { place, start_ns: 0, duration_ns: 1, loss_bits: 0 };
    for device in ["gpu0", "gpu1"] {
        let event = |ring| Event::Absorbed { device: device.into(), ring, records: vec![sample.into()] };
        world.feed(event(Incarnation(999)));
    }
    assert_eq!(world.brain.status().place, before);
}

#[test]
fn a_rank_that_comes_after_the_end_is_told() {
    let mut world = World::new(2, 4, 1, Faults::default());
    world.run_until("the end", |world| world.done);
    let late =
        super::rank::Rank { incarnation: Incarnation(7), doing: super::rank::Doing::Waiting, ..world.ranks[0].clone() };
    let event = Event::RankSaid { peer: Peer(9), event: Box::new(late.hello()) };
    let effects = world.brain.on_event(world.now_ns, event);
    let is_told = |effect: &Effect| {
        matches!(
            effect,
            Effect::Send { to: Peer(9), order: RankOrder::Rejected { reason: Rejection::RunOver { .. }, .. } }
        )
    };
    assert!(effects.iter().any(is_told), "{effects:?}");
}

#[test]
fn a_job_that_the_ledger_does_not_hold_is_not_taken_over() {
    let mut running = World::new(2, 1_000, 1, Faults::default());
    running.run_until("training", |world| world.ranks[0].place.step > Step(2));
    let mut fresh = World::new(2, 1_000, 1, Faults::default());
    let say = |fresh: &mut World, rank: usize, event| {
        let peer = Peer(rank as u64);
        fresh.brain.on_event(fresh.now_ns, Event::RankSaid { peer, event: Box::new(event) })
    };
    for _ in 0..3 {
        for rank in 0..2 {
            let effects = say(&mut fresh, rank, running.ranks[rank].hello());
            let Some(Effect::Send { to, order: RankOrder::Rejected { reason, .. } }) = effects.last() else {
                panic!("{effects:?}");
            };
            assert_eq!((*to, reason.to_string().contains("--dir")), (Peer(rank as u64), true), "{reason}");
            assert_eq!(effects.len(), if fresh.brain.hellos_refused <= 2 { 2 } else { 1 }, "said once: {effects:?}");
        }
    }
    assert_eq!((fresh.brain.status().state, fresh.brain.generation()), (State::Waiting, None));
    assert!(fresh.brain.status().counters.contains(&("hellos_refused".to_owned(), 6)));
    // Likewise an older copy of the ledger, which lacks the plan in force.
    let mut behind = running.ranks[0].clone();
    behind.place.epoch = Epoch(9);
    let effects =
        running.brain.on_event(running.now_ns, Event::RankSaid { peer: Peer(0), event: Box::new(behind.hello()) });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Send { order: RankOrder::Rejected { .. }, .. })));
    assert_eq!(running.brain.failure(), None);
}
