//! Timer, calibration and readings on the GPU of this machine, with what they cost; and the same on the stand-ins.
//!
//! `tests/gpu` runs `on_this_machine` in a release build and shows what it prints. Where there is no GPU it says so. On
//! the stand-ins the checks are the same and the costs are our own alone, since their calls do nearly nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod card;

use adaptis_agent::call_costs;
use adaptis_agent_core::GovernorLimits;
use adaptis_proto::sample::{Mark, Phase, Place, Record, Sample};
use adaptis_proto::{Incarnation, LayerIndex, Microbatch, Step};
use adaptis_ring::{Reader, Recorder, now_ns};
use adaptis_standin::{Library, Stage};
use adaptis_timer::{Figures, Next, Options, Timer, What, calibrate};
use card::Card;

/// Named when a run without a GPU is a failure.
const REQUIRED: &str = "ADAPTIS_GPU";
const MICROBATCHES: u32 = 8;
const LAYERS: u32 = 16;
const ITERATIONS: u64 = 24;
/// Copied for each layer: some tens of microseconds on a card.
const LAYER_BYTES: usize = 32 << 20;

#[test]
fn on_this_machine() {
    match Card::open() {
        Ok(card) => check(&card),
        Err(reason) => {
            println!("NOT RUN: no GPU here: {reason}");
            assert!(std::env::var_os(REQUIRED).is_none(), "a GPU was asked for by {REQUIRED}");
        }
    }
}

#[test]
fn on_the_stand_ins() {
    let script = "nvml.0.sm_clock_mhz 1980\nnvml.0.power_mw 350500\nnvml.0.temperature_c 61\nnvml.0.memory_total 1000
nvml.0.memory_used 300\nnvml.0.field.138 5\nnvml.0.field.139 6\n";
    let stage = Stage::with(&[Library::Cuda, Library::Nvml, Library::Cublas]).script(script);
    if stage.alone("on_the_stand_ins").is_some() {
        check(&Card::open().unwrap());
    }
}

fn check(card: &Card) {
    println!("{}", card.name());
    driver_calls(card);
    timer(card);
    asking(card);
    calibration();
    readings(card);
}

fn show(what: &str, value: f64, unit: &str) {
    println!("  {what:<48} {value:>12.1} {unit}");
}

/// What the driver's own calls take, so that the timer's can be told from them.
fn driver_calls(card: &Card) {
    println!("driver");
    let costs = card.call_costs();
    for (name, ns) in costs {
        show(name, ns, "ns");
    }
}

fn next(step: u64) -> Next {
    Next { place: Place { step: Step(step), ..Place::default() }, mark: Mark::Warm, microbatches: MICROBATCHES }
}

/// A small training loop of copies: what is recorded must be true, whatever card it is.
fn timer(card: &Card) {
    println!("timer");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gpu0.ring");
    let mut recorder = Recorder::create(&path, "gpu0", Incarnation(1), 1 << 14).unwrap();
    let reader = Reader::open(&path).unwrap();
    let governor = GovernorLimits { budget_share: 1.0, ..GovernorLimits::default() };
    let mut timer = Timer::start(&Options { governor, ..Options::default() }, next(0)).unwrap();
    let stream = card.stream();
    let mut windows = Vec::new();
    let (mut passes, mut pass_ns, mut boundary_ns) = (0, 0, 0);
    for step in 0..ITERATIONS {
        let begin_ns = now_ns();
        for microbatch in 0..MICROBATCHES {
            let mut ticket = None;
            for layer in 0..LAYERS {
                let what =
                    What::Work { layer: LayerIndex(layer), microbatch: Microbatch(microbatch), phase: Phase::Forward };
                let from_ns = now_ns();
                ticket = timer.pass(stream, ticket, what);
                pass_ns += now_ns() - from_ns;
                passes += 1;
                card.copy(LAYER_BYTES);
            }
            timer.end(stream, ticket.unwrap());
        }
        // A training process would go on at once; here every instant shall be known.
        card.synchronise();
        windows.push((begin_ns, now_ns()));
        let from_ns = now_ns();
        timer.boundary(next(step + 1), &mut recorder);
        boundary_ns += now_ns() - from_ns;
    }
    timer.boundary(next(ITERATIONS + 1), &mut recorder);
    let counters = timer.counters();
    let figures = timer.figures();
    assert!(counters.add_up(), "{counters:?}");
    assert_eq!((counters.pending, counters.given_up, counters.lost, counters.unplaced), (0, 0, 0, 0), "{counters:?}");
    assert_eq!(counters.recorded, ITERATIONS * u64::from(MICROBATCHES * LAYERS), "{counters:?}");
    let mut records: Vec<Record> = Vec::new();
    reader.read(0, &mut records, usize::MAX);
    let durations = truths(&records, &windows, &figures);
    show("begin and end, one event between layers", pass_ns as f64 / passes as f64, "ns a layer");
    show("boundary, a layer resolved", boundary_ns as f64 / counters.recorded as f64, "ns a layer");
    show("event, on the device", figures.event_device_ns.unwrap_or(f64::NAN), "ns at most");
    show("error of the clocks' alignment", figures.alignment_error_ns.unwrap(), "ns at most");
    show("boundaries without an anchor", figures.anchor_misses as f64, "");
    show("a layer's copy, in the median", durations, "ns");
    assert_eq!((figures.clock_breaks, figures.broken), (0, None));
}

/// What a work costs that is not chosen.
fn asking(card: &Card) {
    const WORKS: u64 = 100_000;
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::create(&folder.path().join("gpu0.ring"), "gpu0", Incarnation(1), 1 << 14).unwrap();
    let governor = GovernorLimits { budget_share: 1e-6, ..GovernorLimits::default() };
    let mut timer = Timer::start(&Options { governor, ..Options::default() }, next(0)).unwrap();
    let what = |layer| What::Work { layer: LayerIndex(layer), microbatch: Microbatch(3), phase: Phase::WeightGradient };
    let first = timer.begin(card.stream(), what(0)).expect("everything is timed until the cost is known");
    timer.end(card.stream(), first);
    timer.boundary(next(1), &mut recorder);
    assert_eq!(timer.figures().period, u64::from(MICROBATCHES * governor.iterations_max));
    let (from_ns, mut timed) = (now_ns(), 0);
    for number in 0..WORKS {
        if let Some(ticket) = timer.begin(card.stream(), what(number as u32)) {
            timed += 1;
            timer.end(card.stream(), ticket);
        }
    }
    let ns = (now_ns() - from_ns) as f64 / WORKS as f64;
    assert!((50..1_000).contains(&timed), "one in 512 layers: {timed}");
    show("a work that is not chosen, with one in 512 that is", ns, "ns");
}

/// Every work lies within the iteration that it was enqueued and waited for in, and they follow one another.
fn truths(records: &[Record], windows: &[(u64, u64)], figures: &Figures) -> f64 {
    let error_ns = 2 * figures.alignment_error_ns.unwrap() as u64 + 50_000;
    let mut durations = Vec::new();
    let mut last_end_ns = 0;
    for record in records {
        let Sample::Work { place, start_ns, duration_ns, .. } = Sample::try_from(*record).unwrap() else {
            panic!("only works were timed: {record:?}");
        };
        let (from_ns, to_ns) = windows[place.step.0 as usize];
        let end_ns = start_ns + duration_ns;
        assert!(
            start_ns + error_ns >= from_ns && end_ns <= to_ns + error_ns,
            "{start_ns} + {duration_ns} in {from_ns}..{to_ns}"
        );
        assert!(start_ns + error_ns >= last_end_ns, "one after the other");
        assert!(duration_ns > 0);
        last_end_ns = end_ns;
        durations.push(duration_ns);
    }
    durations.sort_unstable();
    durations[durations.len() / 2] as f64
}

fn calibration() {
    println!("calibration");
    let measured = calibrate(&|| true).unwrap();
    assert!(measured.len() >= 2, "{measured:?}");
    for measured in measured {
        let rate = measured.per_second().unwrap();
        assert!(rate > 1e8, "{measured:?}");
        let unit = if measured.name.starts_with("copy") { "GB/s" } else { "GFLOP/s" };
        show(&measured.name, rate / 1e9, unit);
    }
}

fn readings(card: &Card) {
    println!("management library");
    let Some(costs) = call_costs(&card.uuid(), 20) else {
        println!("  not there");
        return;
    };
    for cost in &costs {
        match cost.ns_p50 {
            Some(ns) => show(cost.question, ns as f64 / 1e3, &format!("us, asked every {} looks", cost.every_looks)),
            None => println!("  {:<48} {:>12}", cost.question, "not known"),
        }
    }
    let share: f64 =
        costs.iter().filter_map(|cost| Some(cost.ns_p50? as f64 / cost.every_looks as f64)).sum::<f64>() / 2e9;
    show("all of it, of one core", share * 1e6, "millionths");
    assert!(costs.iter().any(|cost| cost.question == "sm_clock" && cost.ns_p50.is_some()), "{costs:?}");
}
