//! The contract of a ring, seen from both sides of one process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use adaptis_proto::sample::{Mark, Phase, Place, Record, Sample};
use adaptis_proto::{Incarnation, LayerIndex, Microbatch, Step};
use adaptis_ring::{CAPACITY_RECORDS_MAX, Reader, Recorder, RingError, ring_bytes};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder can be made"))
    }

    fn ring(&self) -> PathBuf {
        self.0.path().join("gpu0.ring")
    }
}

fn sample(number: u64) -> Sample {
    Sample::Work {
        place: Place { step: Step(number), ..Place::default() },
        layer: LayerIndex(7),
        microbatch: Microbatch(3),
        phase: Phase::Forward,
        mark: Mark::Warm,
        start_ns: number,
        duration_ns: !number,
    }
}

fn records(numbers: std::ops::Range<u64>) -> Vec<Record> {
    numbers.map(|number| sample(number).into()).collect()
}

fn read_all(reader: &Reader, from: u64) -> Vec<Record> {
    let mut out = Vec::new();
    let next = reader.read(from, &mut out, usize::MAX);
    assert_eq!(next, from.max(reader.committed()) + out.len() as u64);
    out
}

#[test]
fn records_come_out_in_order_with_their_numbers() {
    let folder = Folder::new();
    let mut recorder = Recorder::create(&folder.ring(), "gpu0", Incarnation(5), 64).unwrap();
    let mut reader = Reader::open(&folder.ring()).unwrap();
    assert_eq!((reader.device(), reader.incarnation(), reader.capacity_records()), ("gpu0", Incarnation(5), 64));
    for round in 0..10 {
        let from = round * 50;
        (from..from + 50).for_each(|number| recorder.record(sample(number)));
        let mut first = Vec::new();
        assert_eq!(reader.read(from, &mut first, 20), from + 20, "a limit is kept");
        assert_eq!(first, records(from..from + 20));
        assert_eq!(read_all(&reader, from + 20), records(from + 20..from + 50), "reading frees nothing, skips nothing");
        reader.commit(from + 50);
        assert!(read_all(&reader, 0).is_empty());
    }
    assert_eq!((recorder.recorded(), recorder.dropped(), reader.head(), reader.committed()), (500, 0, 500, 500));
}

#[test]
fn a_full_ring_drops_the_new_and_counts_it() {
    let folder = Folder::new();
    let mut recorder = Recorder::create(&folder.ring(), "gpu0", Incarnation(1), 8).unwrap();
    let mut reader = Reader::open(&folder.ring()).unwrap();
    (0..13).for_each(|number| recorder.record(sample(number)));
    assert_eq!((recorder.recorded(), recorder.dropped(), reader.dropped()), (8, 5, 5));
    assert_eq!(read_all(&reader, 0), records(0..8), "the old ones stand");
    reader.commit(3);
    (8..13).for_each(|number| recorder.record(sample(number)));
    assert_eq!(
        (recorder.recorded(), recorder.dropped()),
        (11, 7),
        "three slots were free, and dropping takes no number"
    );
    assert_eq!(read_all(&reader, 0), records(3..11));
}

#[test]
fn a_new_reader_goes_on_where_the_last_one_committed() {
    let folder = Folder::new();
    let mut recorder = Recorder::create(&folder.ring(), "gpu0", Incarnation(1), 16).unwrap();
    (0..10).for_each(|number| recorder.record(sample(number)));
    let mut reader = Reader::open(&folder.ring()).unwrap();
    assert_eq!(read_all(&reader, 0).len(), 10);
    reader.commit(4);
    drop(reader);
    let reader = Reader::open(&folder.ring()).unwrap();
    assert_eq!(reader.committed(), 4);
    assert_eq!(read_all(&reader, 0), records(4..10), "what was read and not committed is read again");
}

#[test]
fn a_commit_neither_goes_back_nor_passes_the_head() {
    let folder = Folder::new();
    let mut recorder = Recorder::create(&folder.ring(), "gpu0", Incarnation(1), 8).unwrap();
    let mut reader = Reader::open(&folder.ring()).unwrap();
    (0..5).for_each(|number| recorder.record(sample(number)));
    for (next, committed) in [(3, 3), (1, 3), (99, 5)] {
        reader.commit(next);
        assert_eq!(reader.committed(), committed);
    }
}

#[test]
fn progress_and_the_end_are_seen() {
    let folder = Folder::new();
    let mut recorder = Recorder::create(&folder.ring(), "gpu0", Incarnation(1), 8).unwrap();
    let reader = Reader::open(&folder.ring()).unwrap();
    assert_eq!((reader.step(), reader.closed()), (Step(0), false));
    recorder.set_step(Step(42));
    recorder.record(sample(0));
    assert_eq!((reader.step(), reader.closed()), (Step(42), false));
    drop(recorder);
    assert!(reader.closed());
    assert_eq!(read_all(&reader, 0), records(0..1), "what was recorded outlives the recorder");
}

#[test]
fn a_new_ring_replaces_the_old_one_without_disturbing_its_reader() {
    let folder = Folder::new();
    let mut old = Recorder::create(&folder.ring(), "gpu0", Incarnation(1), 8).unwrap();
    old.record(sample(0));
    let reader = Reader::open(&folder.ring()).unwrap();
    assert!(!reader.replaced_at(&folder.ring()));
    drop(old);
    let _new = Recorder::create(&folder.ring(), "gpu0", Incarnation(2), 8).unwrap();
    assert!(reader.replaced_at(&folder.ring()));
    assert_eq!(read_all(&reader, 0), records(0..1));
    assert_eq!(Reader::open(&folder.ring()).unwrap().incarnation(), Incarnation(2));
    let files = std::fs::read_dir(folder.0.path()).unwrap().count();
    assert_eq!(files, 1, "no temporary file is left");
}

#[test]
fn what_is_no_ring_is_refused_by_name() {
    let folder = Folder::new();
    let open = || Reader::open(&folder.ring()).map(|_| ());
    assert!(matches!(open(), Err(RingError::Missing { .. })));
    assert!(matches!(Reader::open(folder.0.path()).map(|_| ()), Err(RingError::Foreign { .. })), "a folder");
    std::fs::write(folder.ring(), "short").unwrap();
    assert!(matches!(open(), Err(RingError::Foreign { .. })));
    std::fs::write(folder.ring(), vec![7; 4096]).unwrap();
    assert!(matches!(open(), Err(RingError::Foreign { .. })));

    std::fs::remove_file(folder.ring()).unwrap();
    drop(Recorder::create(&folder.ring(), "gpu0", Incarnation(1), 16).unwrap());
    let whole = std::fs::read(folder.ring()).unwrap();
    std::fs::write(folder.ring(), &whole[..whole.len() - 48]).unwrap();
    let (expected, found) = (ring_bytes(16), ring_bytes(15));
    assert!(
        matches!(open(), Err(RingError::Truncated { expected_bytes, found_bytes, .. }) if (expected_bytes, found_bytes) == (expected, found))
    );
    let mut other = whole.clone();
    other[8] = 9;
    std::fs::write(folder.ring(), &other).unwrap();
    assert!(matches!(open(), Err(RingError::Version { found: 9, .. })));
    let mut damaged = whole;
    damaged[16] = 15;
    std::fs::write(folder.ring(), &damaged).unwrap();
    assert!(matches!(open(), Err(RingError::Foreign { .. })), "a capacity that is no power of two");
}

fn check(path: &Path) -> Result<(), RingError> {
    Recorder::check(path, "gpu0", Incarnation(3), 8)
}

#[test]
fn a_living_writers_ring_stays_where_it_is() {
    let folder = Folder::new();
    let mut first = Recorder::create(&folder.ring(), "gpu0", Incarnation(1), 8).unwrap();
    let reader = Reader::open(&folder.ring()).unwrap();
    for _ in 0..2 {
        assert!(matches!(check(&folder.ring()), Err(RingError::InUse { .. })));
        let second = Recorder::create(&folder.ring(), "gpu0", Incarnation(2), 8).map(|_| ());
        assert!(matches!(second, Err(RingError::InUse { .. })), "{second:?}");
    }
    first.record(sample(0));
    assert!(!reader.replaced_at(&folder.ring()));
    assert_eq!(read_all(&reader, 0), records(0..1));
    drop(first);
    check(&folder.ring()).unwrap();
    assert_eq!(Reader::open(&folder.ring()).unwrap().incarnation(), Incarnation(1), "a check changes nothing");
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_file_that_is_no_ring_is_never_replaced() {
    let folder = Folder::new();
    let create = || Recorder::create(&folder.ring(), "gpu0", Incarnation(1), 8).map(|_| ());
    for text in ["", "{}", "{ \"format\": \"adaptis.problem/1\" }"] {
        std::fs::write(folder.ring(), text).unwrap();
        assert!(matches!(check(&folder.ring()), Err(RingError::Foreign { .. })), "{text:?}");
        assert!(matches!(create(), Err(RingError::Foreign { .. })), "{text:?}");
        assert_eq!(std::fs::read_to_string(folder.ring()).unwrap(), text);
    }
    std::fs::remove_file(folder.ring()).unwrap();
    std::os::unix::fs::symlink("elsewhere", folder.ring()).unwrap();
    assert!(matches!(create(), Err(RingError::Foreign { .. })), "a link");
    std::fs::remove_file(folder.ring()).unwrap();
    std::fs::create_dir(folder.ring()).unwrap();
    assert!(matches!(create(), Err(RingError::Foreign { .. })), "a folder");
}

#[test]
fn of_many_that_put_a_ring_in_one_place_one_succeeds() {
    for _ in 0..20 {
        let folder = Folder::new();
        let gate = std::sync::Barrier::new(4);
        let made: Vec<_> = std::thread::scope(|scope| {
            let create = |at: u64| {
                gate.wait();
                Recorder::create(&folder.ring(), "gpu0", Incarnation(at), 8)
            };
            let threads: Vec<_> = (0..4).map(|at| scope.spawn(move || create(at))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
        assert!(made.iter().flat_map(|made| made.as_ref().err()).all(|error| matches!(error, RingError::InUse { .. })));
        assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 1);
    }
}

#[test]
fn what_cannot_be_made_is_refused_by_name() {
    let folder = Folder::new();
    let create = |path: &Path, device: &str, capacity| {
        let made = Recorder::create(path, device, Incarnation(1), capacity).map(|_| ());
        let checked = Recorder::check(path, device, Incarnation(1), capacity);
        assert_eq!(format!("{made:?}"), format!("{checked:?}"), "a check says what a ring's making would");
        made
    };
    for capacity in [0, 3, CAPACITY_RECORDS_MAX * 2] {
        let made = create(&folder.ring(), "gpu0", capacity);
        assert!(matches!(made, Err(RingError::Capacity { requested }) if requested == capacity));
    }
    let made = create(&folder.ring(), &"x".repeat(129), 8);
    assert!(matches!(made, Err(RingError::DeviceName { length: 129 })));
    let nowhere = folder.0.path().join("missing").join("gpu0.ring");
    assert!(matches!(create(&nowhere, "gpu0", 8), Err(RingError::Folder { path }) if path == nowhere));
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_tail_that_cannot_be_stops_neither_side() {
    use std::os::unix::fs::FileExt;
    let folder = Folder::new();
    let mut recorder = Recorder::create(&folder.ring(), "gpu0", Incarnation(1), 8).unwrap();
    let reader = Reader::open(&folder.ring()).unwrap();
    (0..8).for_each(|number| recorder.record(sample(number)));
    let file = std::fs::OpenOptions::new().write(true).open(folder.ring()).unwrap();
    file.write_all_at(&1_000_000_u64.to_le_bytes(), 48 * 8).unwrap();
    recorder.record(sample(8));
    assert_eq!((recorder.recorded(), recorder.dropped()), (8, 1));
    assert!(read_all(&reader, 0).is_empty());
}

proptest! {
    /// Whatever the order of recording, reading and committing, nothing is lost but what was counted as dropped.
    #[test]
    fn recorded_plus_dropped_is_offered(steps in prop::collection::vec((0_u64..12, 0_usize..12, any::<bool>()), 1..60)) {
        let folder = Folder::new();
        let mut recorder = Recorder::create(&folder.ring(), "gpu0", Incarnation(1), 8).unwrap();
        let mut reader = Reader::open(&folder.ring()).unwrap();
        let (mut offered, mut next, mut seen) = (0, 0, Vec::new());
        for (push, pull, commit) in steps {
            for _ in 0..push {
                recorder.record(sample(recorder.recorded()));
                offered += 1;
            }
            next = reader.read(next, &mut seen, pull);
            if commit {
                reader.commit(next);
            }
            prop_assert_eq!(recorder.recorded() + recorder.dropped(), offered);
            prop_assert!(recorder.recorded() - reader.committed() <= 8);
        }
        prop_assert_eq!(seen, records(0..next));
    }
}
