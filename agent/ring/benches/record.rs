//! What recording costs the training process. The budget is 25 ns a sample over the clock read.

use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{Incarnation, LayerIndex, Microbatch, Step};
use adaptis_ring::{CAPACITY_RECORDS_DEFAULT, Reader, Recorder, now_ns};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};

/// Fewer than a ring holds, so that the reader empties it outside of the measured part.
const RECORDS: u64 = 8_192;

fn main() {
    divan::main();
}

fn sample(number: u64, start_ns: u64) -> Sample {
    Sample::Work {
        place: Place { step: Step(number), ..Place::default() },
        layer: LayerIndex(number as u32 & 63),
        microbatch: Microbatch(number as u32 & 15),
        phase: Phase::Forward,
        mark: Mark::Warm,
        start_ns,
        duration_ns: number,
    }
}

struct Ring {
    recorder: Recorder,
    reader: Reader,
    _folder: tempfile::TempDir,
}

fn ring() -> Ring {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder can be made");
    let path = folder.path().join("bench.ring");
    let recorder = Recorder::create(&path, "gpu0", Incarnation(1), CAPACITY_RECORDS_DEFAULT).expect("a ring fits");
    let reader = Reader::open(&path).expect("the ring was just made");
    Ring { recorder, reader, _folder: folder }
}

#[divan::bench]
fn clock_alone(bencher: Bencher) {
    bencher.counter(ItemsCount::new(RECORDS)).bench_local(|| {
        for _ in 0..RECORDS {
            black_box(now_ns());
        }
    });
}

#[divan::bench]
fn record(bencher: Bencher) {
    let mut ring = ring();
    bencher.counter(ItemsCount::new(RECORDS)).bench_local(|| {
        for number in 0..RECORDS {
            ring.recorder.record(black_box(sample(number, number)));
        }
        ring.reader.commit(u64::MAX);
    });
    assert_eq!(ring.recorder.dropped(), 0);
}

#[divan::bench]
fn record_with_clock(bencher: Bencher) {
    let mut ring = ring();
    bencher.counter(ItemsCount::new(RECORDS)).bench_local(|| {
        for number in 0..RECORDS {
            ring.recorder.record(black_box(sample(number, now_ns())));
        }
        ring.reader.commit(u64::MAX);
    });
    assert_eq!(ring.recorder.dropped(), 0);
}

#[divan::bench]
fn record_into_full_ring(bencher: Bencher) {
    let mut ring = ring();
    (0..2 * RECORDS).for_each(|number| ring.recorder.record(sample(number, number)));
    bencher.counter(ItemsCount::new(RECORDS)).bench_local(|| {
        for number in 0..RECORDS {
            ring.recorder.record(black_box(sample(number, number)));
        }
    });
}

#[divan::bench]
fn read(bencher: Bencher) {
    let mut ring = ring();
    (0..RECORDS).for_each(|number| ring.recorder.record(sample(number, number)));
    let mut out = Vec::with_capacity(RECORDS as usize);
    bencher.counter(ItemsCount::new(RECORDS)).bench_local(|| {
        out.clear();
        black_box(ring.reader.read(0, &mut out, usize::MAX));
    });
}
