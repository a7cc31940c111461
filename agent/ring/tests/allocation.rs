//! Recording allocates nothing, neither into a ring with room nor into a full one.

use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{Incarnation, LayerIndex, Microbatch, Step};
use adaptis_ring::{Reader, Recorder, now_ns};
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

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn recording_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gpu0.ring");
    let mut recorder = Recorder::create(&path, "gpu0", Incarnation(1), 1024).unwrap();
    let mut reader = Reader::open(&path).unwrap();
    let before = ALLOCATIONS.get();
    assert!(before > 0, "the counter counts");
    for number in 0..10_000_u64 {
        recorder.set_step(Step(number));
        recorder.record(Sample::Work {
            place: Place { step: Step(number), ..Place::default() },
            layer: LayerIndex(1),
            microbatch: Microbatch(2),
            phase: Phase::Forward,
            mark: Mark::Warm,
            start_ns: now_ns(),
            duration_ns: number,
        });
        if number == 3_000 {
            reader.commit(recorder.recorded());
        }
    }
    assert_eq!(ALLOCATIONS.get(), before);
    assert_eq!((recorder.recorded(), recorder.dropped()), (2_048, 7_952), "both paths were taken");
}
