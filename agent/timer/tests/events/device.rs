//! The stand-in's side of a test, and a rank that trains on it.

use adaptis_proto::sample::{Mark, Phase, Place, Record, Sample};
use adaptis_proto::{DeviceIndex, Incarnation, LayerIndex, Microbatch, Step};
use adaptis_ring::{Reader, Recorder};
use adaptis_timer::{Next, Options, Stream, Timer, What};
use cudarc::driver::sys;
use std::ffi::{CString, c_char};
use std::time::{Duration, Instant};

/// What every test runs on.
pub struct Device {
    set: unsafe extern "C" fn(*const c_char, i64),
    get: unsafe extern "C" fn(*const c_char) -> i64,
    work: unsafe extern "C" fn(usize, u64),
}

impl Device {
    pub fn open() -> Self {
        // SAFETY: the test's process has the stand-in as its driver, and these are its functions.
        unsafe {
            assert!(sys::is_culib_present());
            let library = sys::culib();
            Self {
                set: *library.get(b"standinSet\0").unwrap(),
                get: *library.get(b"standinGet\0").unwrap(),
                work: *library.get(b"standinWork\0").unwrap(),
            }
        }
    }

    pub fn set(&self, knob: &str, value: i64) {
        let knob = CString::new(knob).unwrap();
        // SAFETY: a string that lives through the call.
        unsafe { (self.set)(knob.as_ptr(), value) }
    }

    pub fn get(&self, knob: &str) -> i64 {
        let knob = CString::new(knob).unwrap();
        // SAFETY: a string that lives through the call.
        unsafe { (self.get)(knob.as_ptr()) }
    }

    pub fn work(&self, stream: Stream, duration: Duration) {
        // SAFETY: the stand-in takes any stream.
        unsafe { (self.work)(raw(stream), duration.as_nanos() as u64) }
    }

    /// Keeps a stream busy, so that what follows does not wait for the host, however busy that is.
    pub fn hold(&self, stream: Stream) {
        self.work(stream, HEAD_START);
    }

    pub fn stream(&self) -> Stream {
        let mut stream = std::ptr::null_mut();
        // SAFETY: a valid place, and the stream lives as long as the process.
        unsafe {
            assert_eq!(sys::cuStreamCreate(&mut stream, 1), sys::CUresult::CUDA_SUCCESS);
            Stream::from_raw(stream as usize)
        }
    }

    /// Makes a stream wait for what is in another one so far.
    pub fn wait(&self, waiting: Stream, upstream: Stream) {
        let mut event = std::ptr::null_mut();
        // SAFETY: handles of the stand-in.
        unsafe {
            assert_eq!(sys::cuEventCreate(&mut event, 2), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuEventRecord(event, raw(upstream) as _), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuStreamWaitEvent(raw(waiting) as _, event, 0), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuEventDestroy_v2(event), sys::CUresult::CUDA_SUCCESS);
        }
    }
}

fn raw(stream: Stream) -> usize {
    // A stream shows its number only so.
    let text = format!("{stream:?}");
    text.trim_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap()
}

pub const MS: Duration = Duration::from_millis(1);
/// More than a busy machine keeps a process waiting.
pub const HEAD_START: Duration = Duration::from_millis(30);

pub fn work(layer: u32, microbatch: u32) -> What {
    What::Work { layer: LayerIndex(layer), microbatch: Microbatch(microbatch), phase: Phase::Forward }
}

pub fn transfer(microbatch: u32) -> What {
    What::Transfer { from: DeviceIndex(3), microbatch: Microbatch(microbatch), bytes: 4096 }
}

pub fn next(step: u64) -> Next {
    Next { place: Place { step: Step(step), ..Place::default() }, mark: Mark::Warm, microbatches: 4 }
}

/// A timer with its ring.
pub struct Rank {
    pub timer: Timer,
    pub recorder: Recorder,
    reader: Reader,
    read: u64,
    step: u64,
    _folder: tempfile::TempDir,
}

impl Rank {
    pub fn start(options: &Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpu0.ring");
        let recorder = Recorder::create(&path, "gpu0", Incarnation(1), 1 << 14).unwrap();
        let reader = Reader::open(&path).unwrap();
        Self { timer: Timer::start(options, next(0)).unwrap(), recorder, reader, read: 0, step: 0, _folder: folder }
    }

    pub fn boundary(&mut self) {
        self.step += 1;
        self.timer.boundary(next(self.step), &mut self.recorder);
        assert!(self.timer.counters().add_up(), "{:?}", self.timer.counters());
    }

    /// Boundaries that do nothing but resolve, after the device has come to rest.
    pub fn settle(&mut self) {
        for _ in 0..3 {
            rest(4 * MS);
            self.boundary();
        }
    }

    /// The samples since the last look.
    pub fn samples(&mut self) -> Vec<Sample> {
        let mut records: Vec<Record> = Vec::new();
        self.read = self.reader.read(self.read, &mut records, usize::MAX);
        self.reader.commit(self.read);
        records.into_iter().map(|record| Sample::try_from(record).unwrap()).collect()
    }
}

/// Works alone, as (layer, start, duration, mark).
pub fn works(samples: &[Sample]) -> Vec<(u32, u64, Duration, Mark)> {
    let of = |sample: &Sample| match *sample {
        Sample::Work { layer, start_ns, duration_ns, mark, .. } => {
            Some((layer.0, start_ns, Duration::from_nanos(duration_ns), mark))
        }
        _ => None,
    };
    samples.iter().filter_map(of).collect()
}

/// Lets time pass without giving the processor away: the stand-in's queues are in real time.
pub fn rest(duration: Duration) {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// Near enough, for 32 bits of milliseconds.
pub fn is_near(found: Duration, expected: Duration) -> bool {
    found.abs_diff(expected) < Duration::from_micros(2)
}
