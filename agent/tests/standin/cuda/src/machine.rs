//! The device: streams, events, memory and a clock.

use adaptis_standin::Script;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(crate) const SUCCESS: u32 = 0;
pub(crate) const INVALID_VALUE: u32 = 1;
pub(crate) const OUT_OF_MEMORY: u32 = 2;
pub(crate) const NO_DEVICE: u32 = 100;
pub(crate) const INVALID_DEVICE: u32 = 101;
pub(crate) const INVALID_CONTEXT: u32 = 201;
pub(crate) const INVALID_HANDLE: u32 = 400;
pub(crate) const NOT_READY: u32 = 600;
pub(crate) const CAPTURE_UNSUPPORTED: u32 = 900;
pub(crate) const CAPTURED_EVENT: u32 = 907;

/// What a test may set and ask for.
pub(crate) const KNOBS: [&str; 21] = [
    // Settings.
    "devices",        // number of devices
    "launch_ns",      // from a call to the device's beginning
    "event_ns",       // what an event costs the device
    "record_host_ns", // what recording one costs the caller, beyond the call
    "drift_ppb",      // of the device's clock
    "never_ready",    // events recorded while it is set never happen
    "error",          // every call answers it
    "create_error",   // creating an event answers it
    "no_context",     // no context is current
    "capturing",      // streams are capturing a graph
    "memory_bytes",   // of the device
    "flops",          // operations a second of a matrix product
    "copy_bytes_per_s",
    "compute_mode", // who may have a context: 0 several processes
    // What was seen.
    "events",       // events that exist
    "recorded",     // events recorded
    "rerecorded",   // events recorded again while pending
    "pushed",       // contexts put in the place of a thread's own
    "contexts",     // contexts that are retained
    "synchronised", // calls that wait
    "captured",     // events recorded into a graph, or asked for in the middle of a capture
];

/// An event, and when its queue gets there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Event {
    pub at_ns: Option<u64>,
    pub is_captured: bool,
}

/// One device.
pub(crate) struct Machine {
    start: Instant,
    knobs: [i64; KNOBS.len()],
    pub tails_ns: HashMap<usize, u64>,
    pub events: HashMap<usize, Event>,
    pub allocated: HashMap<u64, u64>,
    next_handle: usize,
    pub relaxed: bool,
    /// Of each context that was put in the place of another: whether there was none.
    pub pushed: Vec<i64>,
}

impl Machine {
    fn new() -> Self {
        let mut machine = Self {
            start: Instant::now(),
            knobs: [0; KNOBS.len()],
            tails_ns: HashMap::new(),
            events: HashMap::new(),
            allocated: HashMap::new(),
            next_handle: 0x1000,
            relaxed: false,
            pushed: Vec::new(),
        };
        for (knob, value) in [("devices", 1), ("launch_ns", 3_000), ("memory_bytes", 80 << 30)] {
            machine.set(knob, value);
        }
        machine.set("flops", 400_000_000_000_000);
        machine.set("copy_bytes_per_s", 1_500_000_000_000);
        for (knob, value) in Script::read().under("cuda.") {
            machine.set(knob, value.parse().unwrap_or_else(|_| panic!("cuda.{knob} {value}: no number")));
        }
        machine
    }

    pub fn get(&self, knob: &str) -> i64 {
        self.knobs[place(knob)]
    }

    pub fn set(&mut self, knob: &str, value: i64) {
        self.knobs[place(knob)] = value;
    }

    pub fn add(&mut self, knob: &str, value: i64) {
        self.knobs[place(knob)] += value;
    }

    /// On the host's clock, from the first call on.
    pub fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// On the device's clock.
    pub fn device_ns(&self, host_ns: u64) -> f64 {
        host_ns as f64 * (1.0 + self.get("drift_ppb") as f64 / 1e9)
    }

    pub fn handle(&mut self) -> usize {
        self.next_handle += 16;
        self.next_handle
    }

    /// Puts work into a stream's queue: when it ends.
    pub fn enqueue(&mut self, stream: usize, work_ns: u64) -> u64 {
        let begin = self.now_ns() + self.get("launch_ns") as u64;
        let tail = self.tails_ns.entry(stream).or_default();
        *tail = begin.max(*tail) + work_ns;
        *tail
    }

    /// Whether a stream may be used: made here, or one of the driver's own.
    pub fn knows(&self, stream: usize) -> bool {
        stream <= 2 || self.tails_ns.contains_key(&stream)
    }

    /// An event happened by now.
    pub fn is_ready(&self, event: &Event) -> bool {
        event.at_ns.is_none_or(|at| at <= self.now_ns())
    }
}

fn place(knob: &str) -> usize {
    KNOBS.iter().position(|known| *known == knob).unwrap_or_else(|| panic!("the stand-in has no knob {knob}"))
}

/// The device of this process.
pub(crate) fn machine() -> MutexGuard<'static, Machine> {
    static MACHINE: LazyLock<Mutex<Machine>> = LazyLock::new(|| Mutex::new(Machine::new()));
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
