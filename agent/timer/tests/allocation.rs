//! Timing allocates nothing after the start, whether works are timed, left out, or skipped for want of an event.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use adaptis_agent_core::GovernorLimits;
use adaptis_proto::sample::{Mark, Phase, Place};
use adaptis_proto::{Incarnation, LayerIndex, Microbatch, Step};
use adaptis_ring::Recorder;
use adaptis_standin::{Library, Stage};
use adaptis_timer::{Next, Options, Stream, Timer, What};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator unchanged; counting touches a thread-local of constant
// initialisation, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

// The stand-in is a library with an allocator of its own, which is not counted.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn next(step: u64) -> Next {
    Next { place: Place { step: Step(step), ..Place::default() }, mark: Mark::Warm, microbatches: 4 }
}

#[test]
fn timing_allocates_nothing() {
    if Stage::with(&[Library::Cuda]).alone("timing_allocates_nothing").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::create(&folder.path().join("gpu0.ring"), "gpu0", Incarnation(1), 1 << 14).unwrap();
    let governor = GovernorLimits { budget_share: 1.0, ..GovernorLimits::default() };
    let options = Options { work_events: 60, governor, ..Options::default() };
    let mut timer = Timer::start(&options, next(0)).unwrap();
    // SAFETY: the legacy default stream is always there.
    let stream = unsafe { Stream::from_raw(0) };
    let before = ALLOCATIONS.get();
    assert!(before > 0, "the counter counts");
    for step in 1..400 {
        for microbatch in 0..4 {
            let mut ticket = None;
            for layer in 0..12 {
                let (layer, microbatch) = (LayerIndex(layer), Microbatch(microbatch));
                ticket = timer.pass(stream, ticket, What::Work { layer, microbatch, phase: Phase::Forward });
            }
            if let Some(ticket) = ticket {
                timer.end(stream, ticket);
            }
        }
        timer.boundary(next(step), &mut recorder);
    }
    assert_eq!(ALLOCATIONS.get(), before);
    let counters = timer.counters();
    assert!(counters.recorded > 500 && counters.pool_empty > 0 && counters.begun < 399 * 48, "{counters:?}");
}
