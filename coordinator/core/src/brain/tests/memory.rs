//! Memory that devices need beyond what layers add up to.

use super::cluster::{TICK_NS, World};
use super::decisions::world_with;
use crate::brain::Mode;
use adaptis_plan::{Plan, peak_bytes};
use adaptis_proto::Epoch;
use adaptis_proto::message::PeakMemory;

/// What each device has, and what it needs beyond its layers. Three layers on a device fit the first and not the rest.
const MEMORY_BYTES: u64 = 1_500;
const MORE_BYTES: u64 = 400;

fn run(measured_bytes: Option<u64>) -> World {
    let mut world = world_with(Mode::Adapt, false, 60, |truth| truth.more_bytes = measured_bytes);
    world.ranks.iter_mut().for_each(|rank| rank.memory_bytes = MEMORY_BYTES);
    world.run_until("the end", |world| world.done);
    world
}

/// By plan after the first, what the fullest device truly needs.
fn fullest(world: &World) -> Vec<u64> {
    let problem = &world.truth.as_ref().expect("they train").problem;
    let plans = world.ledger.held.plans.range(Epoch(2)..);
    let peak = |text: &str| {
        let plan = Plan::read(text).expect("it is in the ledger");
        let peaks = peak_bytes(problem, &plan).expect("it was audited");
        peaks.into_iter().max().expect("there are devices") + MORE_BYTES
    };
    plans.map(|(_, record)| peak(&record.text)).collect()
}

#[test]
fn the_next_plan_fits_what_the_one_before_it_was_seen_to_need() {
    let told = run(Some(MORE_BYTES));
    let untold = run(None);
    assert!(fullest(&untold).iter().any(|&bytes| bytes > MEMORY_BYTES), "{:?}", fullest(&untold));
    assert!(!fullest(&told).is_empty(), "a better plan fits");
    assert!(fullest(&told).iter().all(|&bytes| bytes <= MEMORY_BYTES), "{:?}", fullest(&told));

    assert!(untold.ledger.held.peaks.is_empty(), "nothing was measured");
    let peaks = &told.ledger.held.peaks;
    let of = |epoch: u64| peaks.iter().filter(move |peak| peak.epoch == Epoch(epoch));
    assert_eq!(of(1).count(), 4, "one for each device: {peaks:?}");
    assert!(of(1).all(|peak| peak.shortfall_bytes() == Some(MORE_BYTES)), "as first estimated: {peaks:?}");
    assert!(
        of(2).all(|peak| peak.shortfall_bytes() == Some(0) && peak.predicted_bytes > Some(MORE_BYTES)),
        "{peaks:?}"
    );
    assert!(of(2).count() == 4 && peaks.iter().all(|peak| peak.memory_bytes == MEMORY_BYTES), "{peaks:?}");
}

#[test]
fn what_is_known_of_memory_outlives_the_coordinator() {
    let mut world = world_with(Mode::Adapt, false, 60, |truth| truth.more_bytes = Some(MORE_BYTES));
    world.run_until("some iterations", |world| world.ledger.held.iterations.len() > 5);
    let before = world.brain.peaks();
    assert_eq!(before.len(), 4);
    world.crash();
    world.now_ns += TICK_NS;
    world.boot();
    assert_eq!(world.brain.peaks(), before);
    assert_eq!(world.ledger.held.peaks.len(), before.len());
}

#[test]
fn a_shortfall_that_takes_most_of_what_was_left_is_told_apart() {
    let peak = |predicted_bytes, measured_bytes| PeakMemory {
        predicted_bytes,
        measured_bytes,
        memory_bytes: 100,
        ..PeakMemory::default()
    };
    for (of, shortfall_bytes, is_close) in [
        (peak(None, 120), None, false),
        (peak(Some(90), 80), Some(0), false),
        (peak(Some(90), 95), Some(5), false),
        (peak(Some(90), 96), Some(6), true),
        (peak(Some(90), 101), Some(11), true),
        (peak(Some(110), 111), Some(1), true),
    ] {
        assert_eq!((of.shortfall_bytes(), of.is_close()), (shortfall_bytes, is_close), "{of:?}");
    }
}
