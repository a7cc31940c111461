//! The timer on a stand-in driver, each test in a process of its own: real loading, real calls, every fault.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod campaign;
mod device;
mod intervals;

use adaptis_agent_core::GovernorLimits;
use adaptis_proto::sample::{Mark, Sample};
use adaptis_ring::now_ns;
use adaptis_standin::{Library, Stage};
use adaptis_timer::{Options, Timer, TimerError, calibrate};
use device::{Device, HEAD_START, MS, Rank, is_near, next, rest, transfer, work, works};
use std::time::Duration;

/// Nothing is left out for its cost.
fn everything() -> Options {
    let governor = GovernorLimits { budget_share: 1.0, ..GovernorLimits::default() };
    Options { work_events: 64, transfer_events: 16, give_up_boundaries: 4, governor }
}

/// The device, in a process of its own; none in the process that runs the tests.
fn alone(test: &str) -> Option<Device> {
    Stage::with(&[Library::Cuda, Library::Cublas]).alone(test).map(|_| Device::open())
}

#[test]
fn works_and_transfers_are_timed_without_waiting() {
    let Some(device) = alone("works_and_transfers_are_timed_without_waiting") else { return };
    let mut rank = Rank::start(&everything());
    let synchronised = device.get("synchronised");
    let (compute, network) = (device.stream(), device.stream());
    let before_ns = now_ns();
    device.hold(compute);
    let after_ns = now_ns();
    let ticket = rank.timer.begin(compute, work(5, 0));
    device.work(compute, 3 * MS);
    rank.timer.end(compute, ticket.unwrap());
    device.hold(network);
    let ticket = rank.timer.begin(network, transfer(0));
    device.work(network, 2 * MS);
    rank.timer.end(network, ticket.unwrap());
    rest(HEAD_START + 4 * MS);
    rank.boundary();
    assert_eq!(rank.samples(), [], "an event is asked an iteration later, whenever it happened");
    rank.boundary();
    let samples = rank.samples();
    let [(layer, start_ns, duration, mark)] = works(&samples)[..] else { panic!("{samples:?}") };
    assert!(layer == 5 && mark == Mark::Warm && is_near(duration, 3 * MS), "{samples:?}");
    let error_ns = rank.timer.figures().alignment_error_ns.unwrap() as u64 + 2_000;
    let held_ns = device.get("launch_ns") as u64 + HEAD_START.as_nanos() as u64;
    let (from_ns, to_ns) = (before_ns + held_ns, after_ns + held_ns);
    assert!(start_ns + error_ns >= from_ns && start_ns <= to_ns + error_ns, "{start_ns} {from_ns} {to_ns} {error_ns}");
    let arrived = |sample: &&Sample| {
        matches!(sample, Sample::Transfer { from, bytes: 4096, duration_ns, .. }
        if from.0 == 3 && is_near(Duration::from_nanos(*duration_ns), 2 * MS))
    };
    assert_eq!(samples.iter().filter(arrived).count(), 1, "{samples:?}");
    assert_eq!(device.get("synchronised"), synchronised, "nobody waited");
    let counters = rank.timer.counters();
    assert_eq!((counters.begun, counters.recorded, counters.pending), (2, 2, 0));
}

#[test]
fn one_event_ends_a_layer_and_begins_the_next() {
    let Some(device) = alone("one_event_ends_a_layer_and_begins_the_next") else { return };
    let mut rank = Rank::start(&everything());
    let stream = device.stream();
    let recorded = device.get("recorded");
    device.hold(stream);
    let mut ticket = None;
    for layer in 0..5 {
        ticket = rank.timer.pass(stream, ticket, work(layer, 0));
        device.work(stream, MS * (layer + 1));
    }
    rank.timer.end(stream, ticket.unwrap());
    assert_eq!(device.get("recorded") - recorded, 6, "five layers have six ends");
    rest(HEAD_START + 16 * MS);
    rank.settle();
    let samples = works(&rank.samples());
    assert_eq!(samples.len(), 5);
    for (at, (layer, start_ns, duration, _)) in samples.iter().enumerate() {
        assert!(*layer == at as u32 && is_near(*duration, MS * (layer + 1)), "{samples:?}");
        let follows = at == 0 || start_ns.abs_diff(samples[at - 1].1 + samples[at - 1].2.as_nanos() as u64) < 3_000;
        assert!(follows, "{samples:?}");
    }
}

#[test]
fn waiting_for_input_is_not_work() {
    let Some(device) = alone("waiting_for_input_is_not_work") else { return };
    let mut rank = Rank::start(&everything());
    let (upstream, stream) = (device.stream(), device.stream());
    for late in [0, 1, 5, 9] {
        device.hold(upstream);
        device.work(upstream, MS * late);
        device.wait(stream, upstream);
        let ticket = rank.timer.begin(stream, work(late, 0));
        device.work(stream, 2 * MS);
        rank.timer.end(stream, ticket.unwrap());
        rest(HEAD_START + MS * late + 4 * MS);
    }
    rank.settle();
    let samples = works(&rank.samples());
    assert_eq!(samples.len(), 4);
    assert!(samples.iter().all(|(_, _, duration, _)| is_near(*duration, 2 * MS)), "{samples:?}");
}

#[test]
fn a_phase_that_waits_for_the_host_is_marked() {
    let Some(device) = alone("a_phase_that_waits_for_the_host_is_marked") else { return };
    let mut rank = Rank::start(&everything());
    let stream = device.stream();
    let ticket = rank.timer.begin(stream, work(0, 0));
    // The device has nothing to do while the host prepares the next launch.
    device.work(stream, MS / 10);
    rest(3 * MS);
    rank.timer.end(stream, ticket.unwrap());
    let ticket = rank.timer.begin(stream, work(1, 0));
    device.hold(stream);
    rank.timer.end(stream, ticket.unwrap());
    rest(HEAD_START + 4 * MS);
    rank.settle();
    let marks: Vec<(u32, Mark)> = works(&rank.samples()).iter().map(|(layer, _, _, mark)| (*layer, *mark)).collect();
    assert_eq!(marks, [(0, Mark::Hasty), (1, Mark::Warm)]);
}

#[test]
fn an_empty_pool_skips_and_counts_and_those_begun_can_end() {
    let Some(device) = alone("an_empty_pool_skips_and_counts_and_those_begun_can_end") else { return };
    let mut rank = Rank::start(&Options { work_events: 10, ..everything() });
    let stream = device.stream();
    let tickets: Vec<_> = (0..9).map(|layer| rank.timer.begin(stream, work(layer, 0))).collect();
    let begun: Vec<_> = tickets.into_iter().flatten().collect();
    assert_eq!((begun.len(), rank.timer.counters().pool_empty), (5, 4), "each holds its beginning and its end");
    device.work(stream, MS);
    begun.into_iter().for_each(|ticket| rank.timer.end(stream, ticket));
    // The other lane has a pool of its own.
    let ticket = rank.timer.begin(stream, transfer(0)).unwrap();
    rank.timer.end(stream, ticket);
    rank.settle();
    assert_eq!(rank.timer.counters().recorded, 6);
    assert!(rank.timer.begin(stream, work(0, 0)).is_some(), "the events came back");
    assert_eq!(device.get("rerecorded"), 0);
}

#[test]
fn an_event_never_ready_is_given_up_and_not_recorded_again() {
    let Some(device) = alone("an_event_never_ready_is_given_up_and_not_recorded_again") else { return };
    let mut rank = Rank::start(&Options { work_events: 12, ..everything() });
    let stuck = device.stream();
    let events = device.get("events");
    for layer in 0..40 {
        device.set("never_ready", i64::from(layer < 3));
        // What waits behind it in the same stream is fine in the stand-in; each has a stream of its own here.
        let stream = if layer < 3 { stuck } else { device.stream() };
        if let Some(ticket) = rank.timer.begin(stream, work(layer, 0)) {
            device.work(stream, MS / 10);
            rank.timer.end(stream, ticket);
        }
        device.set("never_ready", 0);
        rest(MS);
        rank.boundary();
    }
    rank.settle();
    let counters = rank.timer.counters();
    assert_eq!((counters.given_up, counters.pending, counters.pool_empty), (3, 0, 0), "{counters:?}");
    assert_eq!(counters.recorded, 37);
    assert_eq!(device.get("rerecorded"), 0, "a pending event is left to itself");
    assert_eq!(device.get("events"), events, "what was given up was destroyed, and made anew");
    drop(rank);
    assert_eq!(device.get("events"), 0);
}

#[test]
fn a_work_that_never_ends_gives_its_event_back() {
    let Some(device) = alone("a_work_that_never_ends_gives_its_event_back") else { return };
    let mut rank = Rank::start(&Options { work_events: 4, ..everything() });
    let stream = device.stream();
    let forgotten: Vec<_> = (0..2).map(|layer| rank.timer.begin(stream, work(layer, 0)).unwrap()).collect();
    assert!(rank.timer.begin(stream, work(2, 0)).is_none());
    (0..6).for_each(|_| rank.boundary());
    assert_eq!(rank.timer.counters().abandoned, 2);
    forgotten.into_iter().for_each(|ticket| rank.timer.end(stream, ticket));
    assert_eq!(rank.timer.counters().abandoned, 2, "too late to matter");
    assert!(rank.timer.begin(stream, work(3, 0)).is_some());
}

#[test]
fn a_lost_gpu_is_left_alone() {
    let Some(device) = alone("a_lost_gpu_is_left_alone") else { return };
    for at in ["begin", "end", "boundary"] {
        device.set("error", 0);
        let mut rank = Rank::start(&everything());
        let stream = device.stream();
        let first = rank.timer.begin(stream, work(0, 0)).unwrap();
        rank.timer.end(stream, first);
        let open = rank.timer.begin(stream, work(1, 0)).unwrap();
        rank.boundary();
        let fail = || device.set("error", 719);
        match at {
            "begin" => {
                fail();
                assert_eq!(rank.timer.begin(stream, work(2, 0)), None);
                rank.timer.end(stream, open);
            }
            "end" => {
                fail();
                rank.timer.end(stream, open);
            }
            _ => {
                fail();
                rank.boundary();
                rank.timer.end(stream, open);
            }
        }
        (0..3).for_each(|_| rank.boundary());
        // A stream that cannot be asked is taken for one in a capture; the boundary then finds out.
        let counters = rank.timer.counters();
        assert_eq!((counters.pending, counters.recorded), (0, 0), "{at}: {counters:?}");
        assert_eq!(rank.timer.figures().broken, Some(719), "{at}");
        device.set("error", 0);
        let recorded = device.get("recorded");
        assert_eq!(rank.timer.begin(stream, work(3, 0)), None);
        rank.boundary();
        assert_eq!(device.get("recorded"), recorded, "nothing more is asked");
    }
}

#[test]
fn a_graph_that_is_being_captured_is_left_alone() {
    let Some(device) = alone("a_graph_that_is_being_captured_is_left_alone") else { return };
    let mut rank = Rank::start(&everything());
    let stream = device.stream();
    let open = rank.timer.begin(stream, work(0, 0)).unwrap();
    let timed = rank.timer.begin(stream, work(1, 0)).unwrap();
    device.work(stream, MS);
    rank.timer.end(stream, timed);
    device.set("capturing", 1);
    assert_eq!(rank.timer.begin(stream, work(2, 0)), None);
    rank.timer.end(stream, open);
    rest(2 * MS);
    (0..2).for_each(|_| rank.boundary());
    let counters = rank.timer.counters();
    assert_eq!((counters.recorded, counters.abandoned, counters.capturing), (1, 1, 2), "{counters:?}");
    assert_eq!(device.get("captured"), 0, "no event of ours became part of a graph, no question ended a capture");
}

#[test]
fn clocks_that_drift_apart_are_held_together() {
    let Some(device) = alone("clocks_that_drift_apart_are_held_together") else { return };
    device.set("drift_ppb", 90_000);
    let mut rank = Rank::start(&everything());
    let stream = device.stream();
    let mut truths = Vec::new();
    for _ in 0..8 {
        rest(130 * MS);
        let before_ns = now_ns();
        let ticket = rank.timer.begin(stream, work(0, 0)).unwrap();
        truths.push((before_ns, now_ns() + device.get("launch_ns") as u64));
        device.work(stream, 2 * MS);
        rank.timer.end(stream, ticket);
        rest(3 * MS);
        rank.boundary();
    }
    rank.settle();
    let samples = works(&rank.samples());
    assert_eq!(samples.len(), truths.len());
    // Alone, the drift is 0.1 ms in the second that this takes.
    let worst = rank.timer.figures().alignment_error_ns.unwrap() as u64;
    for ((_, start_ns, _, _), (from_ns, to_ns)) in samples.iter().zip(&truths).skip(3) {
        let room_ns = 3 * worst + 3_000;
        assert!(
            start_ns + room_ns >= *from_ns && *start_ns <= to_ns + room_ns,
            "{start_ns} {from_ns} {to_ns} {room_ns}"
        );
    }
    assert_eq!(rank.timer.figures().clock_breaks, 0);
}

#[test]
fn dear_events_are_used_less() {
    let Some(device) = alone("dear_events_are_used_less") else { return };
    let mut rank = Rank::start(&Options { work_events: 4096, ..Options::default() });
    let stream = device.stream();
    let mut shares = Vec::new();
    for step in 0..40 {
        if step == 20 {
            device.set("record_host_ns", 20_000);
        }
        let end_ns = now_ns() + 20_000_000;
        for microbatch in 0..4 {
            for layer in 0..25 {
                if let Some(ticket) = rank.timer.begin(stream, work(layer, microbatch)) {
                    rank.timer.end(stream, ticket);
                }
            }
        }
        rest(Duration::from_nanos(end_ns.saturating_sub(now_ns())));
        rank.boundary();
        shares.push((rank.timer.figures().cost_share, rank.timer.figures().period));
    }
    let median = |shares: &[(f64, u64)]| {
        let mut shares: Vec<f64> = shares.iter().map(|(share, _)| *share).collect();
        shares.sort_by(f64::total_cmp);
        shares[shares.len() / 2]
    };
    assert!(median(&shares[24..]) <= 0.0125, "{shares:?}");
    let periods = |of: std::ops::Range<usize>| shares[of].iter().map(|(_, period)| *period);
    assert!(periods(25..40).max() > periods(5..20).min().map(|period| 4 * period), "{shares:?}");
    assert!(rank.timer.counters().begun > 40);
}

#[test]
fn events_cost_the_device_what_is_measured() {
    let Some(device) = alone("events_cost_the_device_what_is_measured") else { return };
    device.set("event_ns", 7_000);
    let timer = Timer::start(&everything(), next(0)).unwrap();
    let cost_ns = timer.figures().event_device_ns.unwrap();
    assert!((7_000.0..60_000.0).contains(&cost_ns), "{cost_ns}");
    drop(timer);
    device.set("memory_bytes", 1 << 20);
    let timer = Timer::start(&everything(), next(0)).unwrap();
    assert_eq!(timer.figures().event_device_ns, None, "without room it is not known, and the timer runs");
}

#[test]
fn what_stands_in_the_way_of_a_timer_is_named() {
    let Some(device) = alone("what_stands_in_the_way_of_a_timer_is_named") else { return };
    let start = |options: &Options| Timer::start(options, next(0)).map(drop);
    let none = Options { work_events: 1, ..everything() };
    assert_eq!(start(&none), Err(TimerError::Pool { requested: 1 }));
    device.set("no_context", 1);
    assert_eq!(start(&everything()), Err(TimerError::NoContext));
    device.set("no_context", 0);
    device.set("create_error", 2);
    assert!(matches!(start(&everything()), Err(TimerError::Call { function: "cuEventCreate", code: 2 })));
    device.set("create_error", 0);
    assert_eq!(start(&everything()), Ok(()));
    assert_eq!(device.get("events"), 0, "whatever ended it, nothing is left");
}

#[test]
fn a_driver_without_a_function_is_named_and_nobody_panics() {
    let stage = Stage::with(&[Library::Cuda]).lacking(Library::Cuda, "cuEventQuery");
    let Some(_) = stage.alone("a_driver_without_a_function_is_named_and_nobody_panics") else { return };
    let error = Timer::start(&everything(), next(0)).map(drop).unwrap_err();
    assert_eq!(error, TimerError::MissingFunction { library: "CUDA driver", function: "cuEventQuery" });
    assert_eq!(error.to_string(), "the CUDA driver lacks cuEventQuery: update the driver");
    assert!(calibrate(&|| true).is_err());
}

#[test]
fn a_device_is_calibrated_by_products_and_copies() {
    let Some(device) = alone("a_device_is_calibrated_by_products_and_copies") else { return };
    device.set("flops", 123_000_000_000_000);
    device.set("copy_bytes_per_s", 800_000_000_000);
    let measured = calibrate(&|| true).unwrap();
    let names: Vec<&str> = measured.iter().map(|measured| measured.name.as_str()).collect();
    let products = ["product_bf16_1024", "product_bf16_2048", "product_bf16_4096"];
    assert_eq!(names, [&["copy_4MiB", "copy_32MiB"][..], &products[..]].concat());
    let rate = |at: usize| measured[at].per_second().unwrap();
    // Small ones begin late, as on a card.
    assert!((0.9..1.01).contains(&(rate(1) / 8e11)) && (0.9..1.01).contains(&(rate(4) / 1.23e14)), "{measured:?}");
    let (name, value) = measured[4].reading().unwrap();
    assert_eq!((name.as_str(), value), ("product_bf16_4096_operations_per_s", rate(4)));
    assert_eq!(measured[0].reading().unwrap().0, "copy_4MiB_bytes_per_s");
    assert_eq!(device.get("events"), 0);
    device.set("memory_bytes", 1 << 20);
    assert!(matches!(calibrate(&|| true), Err(TimerError::Call { function: "cuMemAlloc", code: 2 })));
    assert_eq!(device.get("events"), 0);
}

#[test]
fn without_cublas_a_device_is_calibrated_by_copies() {
    let stage = Stage::with(&[Library::Cuda, Library::Cublas]).lacking(Library::Cublas, "cublasGemmEx");
    let Some(_) = stage.alone("without_cublas_a_device_is_calibrated_by_copies") else { return };
    assert_eq!(calibrate(&|| true).unwrap().len(), 2);
}
