//! What a device that nobody knows can do: a few matrix products and copies, timed by events.
//!
//! Runs when a device joins, before it trains, so it may wait, for as long as the caller lets it; it asks for events by
//! query all the same, since a call that synchronises would also wait for other streams. Products are of numbers that look random: zeros draw less power,
//! and a card would seem faster than it is.
//!
//! Left out on purpose: anything that depends on the model. These are the device's rates, with which costs known of other
//! kinds can be scaled until its own are measured. They are readings and no samples: a sample marked as calibration is
//! the cost of a layer.

use crate::driver::{Blas, Driver, NOT_READY, SUCCESS, checked};
use crate::error::TimerError;
use adaptis_proto::rates::Rates;
use adaptis_ring::now_ns;
use std::ffi::c_int;

/// Sides of the square matrices that are multiplied.
const SIDES: [usize; 3] = [1024, 2048, 4096];
/// Bytes copied within the device's memory.
const COPIES: [usize; 2] = [4 << 20, 32 << 20];
/// Of each; the first one warms up and is left out.
const REPETITIONS: usize = 6;
/// For one of them: a device that takes longer hangs.
const PATIENCE_NS: u64 = 1_000_000_000;
/// A matrix of the largest side, in numbers of 16 bits.
const MATRIX_BYTES: usize = SIDES[SIDES.len() - 1] * SIDES[SIDES.len() - 1] * 2;
/// What is uploaded, and copied on within the device.
const BLOCK_BYTES: usize = 1 << 20;

const _: () = assert!(COPIES[COPIES.len() - 1] <= MATRIX_BYTES && MATRIX_BYTES.is_multiple_of(BLOCK_BYTES));

/// One kernel, several times.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// `product_bf16_4096` or `copy_32MiB`.
    pub name: String,
    /// Operations of a product, bytes of a copy.
    pub work: f64,
    /// How long each took, warm.
    pub durations_ns: Vec<u64>,
}

impl Measured {
    /// Operations or bytes a second, by the median; none where nothing was measured.
    pub fn per_second(&self) -> Option<f64> {
        let mut durations = self.durations_ns.clone();
        durations.sort_unstable();
        let median_ns = *durations.get(durations.len() / 2)?;
        (median_ns > 0).then(|| self.work / median_ns as f64 * 1e9)
    }

    /// The rate as a reading, by name with the unit last: `product_bf16_4096_operations_per_s`, `copy_32MiB_bytes_per_s`.
    pub fn reading(&self) -> Option<(String, f64)> {
        let unit = if self.name.starts_with("copy") { "bytes_per_s" } else { "operations_per_s" };
        self.per_second().map(|rate| (format!("{}_{unit}", self.name), rate))
    }
}

/// The rates of a device: those of the largest product and of the largest copy, which starting and caches help least.
pub fn rates(measured: &[Measured]) -> Rates {
    let largest = |name: &str| {
        let of_it = measured.iter().filter(|measured| measured.name.starts_with(name));
        let timed = of_it.filter_map(|measured| Some((measured.work, measured.per_second()?)));
        timed.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, rate)| rate.round() as u64)
    };
    Rates { operations_per_s: largest("product"), bytes_per_s: largest("copy") }
}

/// Measures the device whose context is current: copies, and products where there is cuBLAS. Before each one it asks
/// whether to go on; told not to, it gives what it has.
///
/// # Errors
/// No driver or context, no room for 96 MiB, a call that failed, or a device that does not get ready.
pub fn calibrate(go_on: &dyn Fn() -> bool) -> Result<Vec<Measured>, TimerError> {
    let driver = Driver::load()?;
    driver.require_context()?;
    let bench = Bench::new(driver, go_on)?;
    bench.fill()?;
    let mut measured = Vec::new();
    for bytes in COPIES {
        let name = format!("copy_{}MiB", bytes >> 20);
        measured.push(bench.measure(name, bytes as f64, || bench.copy(bytes))?);
    }
    if let Ok(blas) = Blas::load() {
        measured.extend(bench.products(&blas)?);
    }
    Ok(measured)
}

/// Types of numbers of 16 bits, as cuBLAS numbers them; older cards have no bfloat16.
const TYPES: [(&str, c_int); 2] = [("bf16", 14), ("fp16", 2)];
/// `CUBLAS_COMPUTE_32F`.
const COMPUTE_F32: c_int = 68;
/// `CUBLAS_GEMM_DEFAULT`.
const ANY_ALGORITHM: c_int = -1;

/// Memory, a stream and two events.
struct Bench<'a> {
    driver: Driver,
    stream: usize,
    events: Vec<usize>,
    memory: u64,
    go_on: &'a dyn Fn() -> bool,
}

impl<'a> Bench<'a> {
    fn new(driver: Driver, go_on: &'a dyn Fn() -> bool) -> Result<Self, TimerError> {
        let stream = driver.new_stream()?;
        let mut bench = Self { driver, stream, events: Vec::new(), memory: 0, go_on };
        for _ in 0..2 {
            bench.events.push(driver.new_event()?);
        }
        bench.memory = allocate(&driver, 3 * MATRIX_BYTES)?;
        Ok(bench)
    }

    /// Numbers between -1 and 1, whether they are read as bfloat16 or as half precision.
    fn fill(&self) -> Result<(), TimerError> {
        let mut state = 0x9e37_79b9_u32;
        let block: Vec<u16> = (0..BLOCK_BYTES / 2)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                // A sign and a fraction; the exponent keeps to what is below 1 in both formats.
                (state as u16 & 0x81ff) | 0x3800
            })
            .collect();
        // SAFETY: the block is read whole before it is freed, since memory that is not pinned is staged by the call; the
        // target holds it.
        let code = unsafe { (self.driver.memory_upload)(self.memory, block.as_ptr().cast(), BLOCK_BYTES, self.stream) };
        checked("cuMemcpyHtoDAsync", code)?;
        for at in (BLOCK_BYTES..3 * MATRIX_BYTES).step_by(BLOCK_BYTES) {
            // SAFETY: both blocks lie within the memory.
            let code =
                unsafe { (self.driver.memory_copy)(self.memory + at as u64, self.memory, BLOCK_BYTES, self.stream) };
            checked("cuMemcpyDtoDAsync", code)?;
        }
        // The block must outlive the upload.
        self.time(|| Ok(())).map(drop)
    }

    fn copy(&self, bytes: usize) -> Result<(), TimerError> {
        let to = self.memory + MATRIX_BYTES as u64;
        // SAFETY: both ends lie within the memory and do not overlap.
        checked("cuMemcpyDtoDAsync", unsafe { (self.driver.memory_copy)(to, self.memory, bytes, self.stream) })
    }

    fn products(&self, blas: &Blas) -> Result<Vec<Measured>, TimerError> {
        let mut handle = 0;
        // SAFETY: `handle` is valid and writable for the duration of the call.
        checked("cublasCreate", unsafe { (blas.create)(&mut handle) })?;
        // SAFETY: both were just made.
        let mut result = checked("cublasSetStream", unsafe { (blas.set_stream)(handle, self.stream) });
        let mut measured = Vec::new();
        if result.is_ok() {
            let known = TYPES.into_iter().find(|(_, kind)| self.product(blas, handle, *kind, SIDES[0]).is_ok());
            for side in SIDES {
                let Some((name, kind)) = known else { break };
                let (name, work) = (format!("product_{name}_{side}"), 2.0 * (side as f64).powi(3));
                match self.measure(name, work, || self.product(blas, handle, kind, side)) {
                    Ok(found) => measured.push(found),
                    Err(error) => result = Err(error),
                }
            }
        }
        // SAFETY: made above, and used no more.
        let _ = unsafe { (blas.destroy)(handle) };
        result.map(|()| measured)
    }

    fn product(&self, blas: &Blas, handle: usize, kind: c_int, side: usize) -> Result<(), TimerError> {
        let [a, b, c] = [0, 1, 2].map(|matrix| self.memory + (matrix * MATRIX_BYTES) as u64);
        let (n, one, none) = (side as c_int, 1.0, 0.0);
        // SAFETY: three matrices of the largest side lie one behind the other in the memory; the factors are read by the
        // call.
        let code = unsafe {
            (blas.product)(
                handle,
                0,
                0,
                n,
                n,
                n,
                &one,
                a,
                kind,
                n,
                b,
                kind,
                n,
                &none,
                c,
                kind,
                n,
                COMPUTE_F32,
                ANY_ALGORITHM,
            )
        };
        checked("cublasGemmEx", code)
    }

    fn measure(
        &self,
        name: String,
        work: f64,
        launch: impl Fn() -> Result<(), TimerError>,
    ) -> Result<Measured, TimerError> {
        let mut durations_ns = Vec::new();
        for repetition in (0..REPETITIONS).take_while(|_| (self.go_on)()) {
            let ns = self.time(&launch)?;
            if repetition > 0 {
                durations_ns.push(ns.round() as u64);
            }
        }
        Ok(Measured { name, work, durations_ns })
    }

    /// Device time of what is put into the stream.
    fn time(&self, launch: impl Fn() -> Result<(), TimerError>) -> Result<f64, TimerError> {
        let [start, end] = [self.events[0], self.events[1]];
        checked("cuEventRecord", self.driver.record(start, self.stream))?;
        launch()?;
        checked("cuEventRecord", self.driver.record(end, self.stream))?;
        wait(&self.driver, end, now_ns() + PATIENCE_NS)?;
        let elapsed = self.driver.elapsed_ns(start, end);
        elapsed.map_err(|code| TimerError::Call { function: "cuEventElapsedTime", code })
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        if self.memory != 0 {
            // SAFETY: allocated in `new`, and used no more.
            let _ = unsafe { (self.driver.memory_free)(self.memory) };
        }
        self.events.iter().for_each(|event| self.driver.destroy_event(*event));
        self.driver.destroy_stream(self.stream);
    }
}

fn allocate(driver: &Driver, bytes: usize) -> Result<u64, TimerError> {
    let mut memory = 0;
    // SAFETY: `memory` is valid and writable for the duration of the call.
    checked("cuMemAlloc", unsafe { (driver.memory_allocate)(&mut memory, bytes) })?;
    Ok(memory)
}

/// Asks until an event has happened.
fn wait(driver: &Driver, event: usize, end_ns: u64) -> Result<(), TimerError> {
    loop {
        match driver.query(event) {
            SUCCESS => return Ok(()),
            NOT_READY if now_ns() < end_ns => std::thread::yield_now(),
            code => return Err(TimerError::Call { function: "cuEventQuery", code }),
        }
    }
}

/// Events recorded one after the other to see what one costs the device.
const COST_EVENTS: usize = 17;
/// Copied before them, so that the device has not caught up with the host when it gets to them.
const HEAD_START_BYTES: usize = 32 << 20;
const COST_PATIENCE_NS: u64 = 20_000_000;

/// What an event costs the device: an upper bound, since a host that is slower than the device adds its own pace. None
/// where it cannot be had, which is no failure. Waits for some microseconds; at the start only.
pub(crate) fn event_device_ns(driver: &Driver, stream: usize) -> Option<f64> {
    let memory = allocate(driver, 2 * HEAD_START_BYTES).ok()?;
    let events: Vec<usize> = (0..COST_EVENTS).map_while(|_| driver.new_event().ok()).collect();
    let found = (events.len() == COST_EVENTS).then(|| chain_ns(driver, stream, memory, &events)).flatten();
    events.iter().for_each(|event| driver.destroy_event(*event));
    // SAFETY: allocated above, and used no more: the call waits for the copy.
    let _ = unsafe { (driver.memory_free)(memory) };
    found
}

fn chain_ns(driver: &Driver, stream: usize, memory: u64, events: &[usize]) -> Option<f64> {
    // SAFETY: both halves lie within the memory.
    let code = unsafe { (driver.memory_copy)(memory + HEAD_START_BYTES as u64, memory, HEAD_START_BYTES, stream) };
    checked("cuMemcpyDtoDAsync", code).ok()?;
    for event in events {
        checked("cuEventRecord", driver.record(*event, stream)).ok()?;
    }
    let [first, .., last] = events else { return None };
    wait(driver, *last, now_ns() + COST_PATIENCE_NS).ok()?;
    Some(driver.elapsed_ns(*first, *last).ok()? / (events.len() - 1) as f64)
}
