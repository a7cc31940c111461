//! Intervals that hold more than one work: shared, interrupted, and whole iterations.

use crate::device::{HEAD_START, MS, Rank, is_near, rest, work, works};
use crate::{alone, everything};
use adaptis_proto::sample::{Phase, Sample};
use adaptis_proto::{LayerIndex, Microbatch, Step};
use adaptis_timer::{Share, Ticket, What};
use std::time::Duration;

fn share(layer: u32, phase: Phase, weight: u64) -> Share {
    Share { layer: LayerIndex(layer), phase, weight }
}

#[test]
fn an_interval_is_shared_by_works() {
    let Some(device) = alone("intervals::an_interval_is_shared_by_works") else { return };
    let mut rank = Rank::start(&everything());
    let stream = device.stream();
    let both = [share(4, Phase::InputGradient, 1), share(4, Phase::WeightGradient, 1)];
    let backward = rank.timer.share(&both).unwrap();
    let step = rank.timer.share(&[share(0, Phase::Optimizer, 1), share(1, Phase::Optimizer, 3)]).unwrap();
    assert_eq!(rank.timer.shares(step.number()), Some(step));
    assert_eq!((rank.timer.shares(2), rank.timer.share(&[])), (None, None));
    device.hold(stream);
    let what = |shares| What::Shared { shares, microbatch: Microbatch(0) };
    let ticket = rank.timer.begin(stream, what(backward));
    device.work(stream, 6 * MS);
    let ticket = rank.timer.pass(stream, ticket, what(step));
    device.work(stream, 4 * MS);
    // A ticket may be held as a number.
    rank.timer.end(stream, Ticket::from_number(ticket.unwrap().number()));
    rank.timer.end(stream, Ticket::from_number(0));
    rank.timer.end(stream, Ticket::from_number(u64::MAX));
    rest(HEAD_START + 11 * MS);
    rank.settle();
    let samples = rank.samples();
    let phases: Vec<Phase> = samples.iter().filter_map(phase).collect();
    assert_eq!(phases, [Phase::InputGradient, Phase::WeightGradient, Phase::Optimizer, Phase::Optimizer]);
    let of = works(&samples);
    for (at, ms) in [3, 3, 1, 3].into_iter().enumerate() {
        assert!(is_near(of[at].2, ms * MS), "{of:?}");
        let follows = at == 0 || of[at].1.abs_diff(of[at - 1].1 + of[at - 1].2.as_nanos() as u64) < 3_000;
        assert!(follows, "{of:?}");
    }
    assert_eq!(rank.timer.counters().recorded, 2, "each interval counts once");
}

fn phase(sample: &Sample) -> Option<Phase> {
    match sample {
        Sample::Work { phase, .. } => Some(*phase),
        _ => None,
    }
}

#[test]
fn a_work_that_interrupts_another_is_not_its_time() {
    let Some(device) = alone("intervals::a_work_that_interrupts_another_is_not_its_time") else { return };
    let mut rank = Rank::start(&everything());
    let (stream, other) = (device.stream(), device.stream());
    device.hold(stream);
    let outer = rank.timer.begin(stream, work(0, 0)).unwrap();
    device.work(stream, MS);
    for (layer, took) in [(1, 2), (2, 4)] {
        let inner = rank.timer.begin_within(stream, &outer, work(layer, 0)).unwrap();
        device.work(stream, took * MS);
        rank.timer.end_within(stream, inner, &outer);
    }
    // Elsewhere it interrupts nothing.
    let aside = rank.timer.begin(other, work(3, 0)).unwrap();
    rank.timer.end_within(other, aside, &outer);
    device.work(stream, 3 * MS);
    rank.timer.end(stream, outer);
    let failed = rank.timer.begin(stream, work(5, 0)).unwrap();
    rank.timer.forget(&failed);
    rank.timer.end(stream, failed);
    let late = rank.timer.begin(stream, work(4, 0)).unwrap();
    rank.timer.end_within(stream, late, &Ticket::from_number(1 << 40));
    rest(HEAD_START + 11 * MS);
    rank.settle();
    let samples = works(&rank.samples());
    let took = |layer| samples.iter().find(|sample| sample.0 == layer).map(|sample| sample.2);
    assert!(is_near(took(0).unwrap(), 4 * MS), "1 before and 3 after: {samples:?}");
    assert!(is_near(took(1).unwrap(), 2 * MS) && is_near(took(2).unwrap(), 4 * MS), "{samples:?}");
    assert_eq!((rank.timer.counters().recorded, rank.timer.counters().abandoned), (5, 1));
    // Every event is free again: as many as there are can be used.
    let open: Vec<_> = (0..40).map_while(|layer| rank.timer.begin(stream, work(layer, 1))).collect();
    assert_eq!(open.len(), 32);
    assert_eq!(device.get("rerecorded"), 0);
}

#[test]
fn iterations_follow_one_another_without_a_gap() {
    let Some(device) = alone("intervals::iterations_follow_one_another_without_a_gap") else { return };
    let mut rank = Rank::start(&everything());
    let stream = device.stream();
    device.hold(stream);
    for ms in [2, 5, 3, 4] {
        rank.timer.turn(stream);
        device.work(stream, ms * MS);
        rank.boundary();
    }
    rank.timer.forget_iteration();
    rank.timer.forget_iteration();
    rest(HEAD_START + 15 * MS);
    rank.settle();
    let samples = rank.samples();
    let iterations: Vec<(u64, u64, Duration)> = samples
        .iter()
        .map(|sample| match *sample {
            Sample::Iteration { place, start_ns, duration_ns, .. } => {
                (place.step.0, start_ns, Duration::from_nanos(duration_ns))
            }
            _ => panic!("nothing else was timed: {sample:?}"),
        })
        .collect();
    assert_eq!(iterations.len(), 3, "the last one has no end: {iterations:?}");
    for (at, ms) in [2, 5, 3].into_iter().enumerate() {
        assert!(iterations[at].0 == at as u64 && is_near(iterations[at].2, ms * MS), "{iterations:?}");
    }
    assert_eq!(rank.timer.counters().abandoned, 1);
}

#[test]
fn an_iteration_waits_for_a_loss_that_is_on_its_way_and_is_given_up_without_it() {
    let name = "intervals::an_iteration_waits_for_a_loss_that_is_on_its_way_and_is_given_up_without_it";
    let Some(device) = alone(name) else { return };
    let mut rank = Rank::start(&everything());
    let stream = device.stream();
    for step in 0..4 {
        rank.timer.turn(stream);
        if step == 0 {
            rank.timer.knows(Step(0), 0.5);
        }
        rank.boundary();
    }
    rank.timer.forget_iteration();
    rest(MS);
    let losses = |samples: &[Sample]| -> Vec<(u64, f32)> {
        let of = |sample: &Sample| match *sample {
            Sample::Iteration { place, loss_bits, .. } => Some((place.step.0, f32::from_bits(loss_bits))),
            _ => None,
        };
        samples.iter().filter_map(of).collect()
    };
    rank.boundary();
    assert_eq!(losses(&rank.samples()), [(0, 0.5)], "the others' are not known");
    rank.timer.knows(Step(2), f32::INFINITY);
    rank.boundary();
    assert_eq!(losses(&rank.samples()), [(2, f32::INFINITY)], "out of order, too");
    for _ in 0..16 {
        rank.boundary();
    }
    assert_eq!(losses(&rank.samples()), []);
    let counters = rank.timer.counters();
    assert_eq!((counters.recorded, counters.given_up, counters.pending), (2, 1, 0));
}

#[test]
fn a_thread_without_the_context_is_lent_it() {
    let Some(device) = alone("intervals::a_thread_without_the_context_is_lent_it") else { return };
    let mut rank = Rank::start(&everything());
    let stream = device.stream();
    device.hold(stream);
    assert_eq!(device.get("pushed"), 0);
    device.set("no_context", 1);
    let ticket = rank.timer.begin(stream, work(0, 0)).unwrap();
    device.work(stream, 2 * MS);
    rank.timer.end(stream, ticket);
    rest(HEAD_START + 4 * MS);
    rank.settle();
    assert_eq!(device.get("no_context"), 1, "each thread keeps its own");
    assert_eq!(device.get("pushed"), 5, "a begin, an end and three boundaries");
    let samples = works(&rank.samples());
    assert!(samples.len() == 1 && is_near(samples[0].2, 2 * MS), "{samples:?}");
    device.set("no_context", 0);
}

#[test]
fn what_passes_between_works_is_told_of_each_iteration() {
    let Some(device) = alone("intervals::what_passes_between_works_is_told_of_each_iteration") else { return };
    let mut rank = Rank::start(&everything());
    let (stream, other) = (device.stream(), device.stream());
    device.hold(stream);
    for pause in [1, 3] {
        let mut ended = None;
        for layer in 0..4 {
            let what = work(layer, 0);
            let ticket = match ended.take() {
                None => rank.timer.begin(stream, what),
                Some(ended) => rank.timer.begin_after(stream, &ended, what),
            };
            device.work(stream, 2 * MS);
            let number = ticket.as_ref().unwrap().number();
            rank.timer.end(stream, ticket.unwrap());
            // Before the last one the device waited.
            ended = (layer < 2).then(|| Ticket::from_number(number));
            device.work(stream, pause * MS);
        }
        rank.boundary();
    }
    // What ended elsewhere, before the boundary, or never began is followed by nothing.
    let aside = rank.timer.begin(other, work(7, 0)).unwrap();
    let number = aside.number();
    rank.timer.end(other, aside);
    let last = rank.timer.begin_after(stream, &Ticket::from_number(number), work(5, 0)).unwrap();
    let ended = last.number();
    rank.timer.end(stream, last);
    rank.boundary();
    let last = rank.timer.begin_after(stream, &Ticket::from_number(ended), work(5, 0)).unwrap();
    rank.timer.end(stream, last);
    let last = rank.timer.begin_after(stream, &Ticket::from_number(1 << 40), work(6, 0)).unwrap();
    rank.timer.forget(&last);
    rest(HEAD_START + 30 * MS);
    rank.settle();
    let samples = rank.samples();
    let told = |sample: &Sample| match *sample {
        Sample::Between { place, instructions, own_ns, .. } => Some((place.step.0, instructions, own_ns)),
        _ => None,
    };
    let told: Vec<(u64, u32, u64)> = samples.iter().filter_map(told).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    for ((step, instructions, own_ns), pause) in told.into_iter().zip([1, 3]) {
        assert_eq!((step, instructions), (pause / 2, 2));
        assert!(is_near(Duration::from_nanos(own_ns), 2 * pause as u32 * MS), "{own_ns} of {pause}");
    }
    // Every event is free again: as many as there are can be used.
    let open: Vec<_> = (0..40).map_while(|layer| rank.timer.begin(stream, work(layer, 1))).collect();
    assert_eq!(open.len(), 32);
    assert_eq!(device.get("rerecorded"), 0);
}
