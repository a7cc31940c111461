//! A writer killed at any instant leaves no torn record and no gap, and its reader may be killed as well.
//!
//! The test binary runs itself again as the writer, under an environment variable.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use adaptis_proto::sample::{Mark, Place, Record, Sample};
use adaptis_proto::{DeviceIndex, Incarnation, Microbatch, Step};
use adaptis_ring::{Reader, Recorder, RingError};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RING: &str = "ADAPTIS_TEST_RING";
const KILLS: u64 = 40;
const CAPACITY_RECORDS: usize = 1024;

fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ x >> 27
}

/// All six words follow from the number.
fn sample(number: u64) -> Sample {
    Sample::Transfer {
        place: Place { step: Step(number), ..Place::default() },
        from: DeviceIndex(mix(number) as u32),
        microbatch: Microbatch(number as u32 & 0xff_ffff),
        mark: Mark::Warm,
        bytes: number,
        start_ns: mix(number),
        duration_ns: !mix(number),
    }
}

#[test]
fn writer_process() {
    let Some(path) = std::env::var_os(RING) else { return };
    let incarnation = Incarnation(u64::from(std::process::id()));
    let mut recorder = Recorder::create(Path::new(&path), "gpu0", incarnation, CAPACITY_RECORDS).unwrap();
    loop {
        recorder.record(sample(recorder.recorded()));
    }
}

fn open(path: &Path, other_than: Incarnation) -> Reader {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        match Reader::open(path) {
            Ok(reader) if reader.incarnation() != other_than => return reader,
            Ok(_) | Err(RingError::Missing { .. }) => {}
            Err(error) => panic!("a ring is never seen half made: {error}"),
        }
        assert!(Instant::now() < patience, "the writer starts");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A writer process that is killed at the latest when the test ends.
struct Writer(Child);

impl Writer {
    fn start(path: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a test knows its own path"));
        command.args(["--exact", "writer_process", "--nocapture"]).env(RING, path);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the writer can be started"))
    }

    fn kill(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("the writer can be killed");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn killed_writers_leave_neither_torn_records_nor_gaps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gpu0.ring");
    let (mut last, mut total) = (Incarnation(0), 0);
    for round in 0..KILLS {
        let mut writer = Writer::start(&path);
        let mut reader = open(&path, last);
        last = reader.incarnation();
        assert!(!reader.is_deserted(), "the writer lives");
        let end = Instant::now() + Duration::from_micros(2_000 + mix(round) % 8_000);
        let (mut next, mut killed) = (0, false);
        loop {
            if !killed && Instant::now() >= end {
                writer.kill();
                killed = true;
            }
            let mut records = Vec::new();
            let after = reader.read(next, &mut records, 300);
            assert_eq!(after, next + records.len() as u64);
            for (number, record) in (next..).zip(&records) {
                assert_eq!(*record, Record::from(sample(number)), "record {number} is whole");
            }
            next = after;
            reader.commit(next);
            // A reader that dies and comes back finds what it committed.
            if mix(next).is_multiple_of(7) {
                reader = Reader::open(&path).unwrap();
                assert_eq!(reader.committed(), next);
            }
            if killed && next == reader.head() {
                break;
            }
        }
        assert!(!reader.closed(), "a killed writer closes nothing");
        assert!(reader.is_deserted(), "its lock went with it");
        total += next;
    }
    assert!(total > KILLS * 1_000, "the writers wrote: {total}");
}
