//! What the device can do at best: a few kernels, once, before it trains, so that a kind that nobody knows starts with a
//! number.
//!
//! ```text
//!   agent starts --first look at the ring--> somebody trains already: left out, and counted
//!                                        `-> a thread of its own: lock of the host | context of the card
//!                                              kernel, kernel, ... until done, TIME_MAX, or the ring's first record
//! ```
//!
//! 1. Nobody waits for it, and nothing ends because of it: a failure is told once and counted.
//! 2. It gives way: between two kernels it looks whether training began or its time is up. What was measured by then
//!    counts.
//! 3. A card is calibrated in a context that lives no longer than that, and never one that only one process may use.
//! 4. Agents of one host measure its processor one after the other; together they would measure each other.

use crate::probes::node::Node;
use crate::probes::{Readings, cuda, nvml};
use adaptis_proto::rates::Calibrated;
use adaptis_timer::{Measured, TimerError, calibrate, calibrate_host, rates};
use cudarc::driver::DriverError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For all kernels together.
const TIME_MAX: Duration = Duration::from_secs(1);
/// For the agents of the host that measure before this one.
const TURN_MAX: Duration = Duration::from_secs(30);
/// Between two looks whether it is this one's turn.
const TURN_EVERY: Duration = Duration::from_millis(10);
/// At the agent's end, for the kernel that runs.
const END_MAX: Duration = Duration::from_millis(200);

/// Why there are no rates.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CalibrationError {
    #[error("the CUDA driver has no such GPU, or lacks a function")]
    NoCard,
    #[error("only one process may use this GPU at a time (compute mode {0}), and that is the training process")]
    Exclusive(i32),
    #[error("no context on the GPU: {0}")]
    Context(DriverError),
    #[error(transparent)]
    Kernel(#[from] TimerError),
    #[error("no thread: {0}")]
    Thread(std::io::Error),
    #[error("the other agents of this host took too long")]
    NoTurn,
}

/// What came of it.
#[derive(Debug, Default)]
enum Outcome {
    #[default]
    Pending,
    Done(Readings),
    Failed,
    Skipped,
}

/// A calibration: to come, running, or over.
#[derive(Debug, Default)]
pub(crate) struct Calibration {
    is_begun: bool,
    give_way: Arc<AtomicBool>,
    outcome: Arc<Mutex<Outcome>>,
    thread: Option<JoinHandle<()>>,
}

impl Calibration {
    /// Told at every look at the ring: begins at the first one unless somebody trains, and gives way as soon as somebody
    /// does.
    pub(crate) fn look(&mut self, gpu: Option<&str>, is_training: impl FnOnce() -> bool) {
        if self.is_begun {
            if self.is_running() && !self.give_way.load(Ordering::Relaxed) && is_training() {
                self.give_way.store(true, Ordering::Relaxed);
            }
            return;
        }
        self.is_begun = true;
        if is_training() {
            tracing::info!("training runs already: the device is not calibrated");
            return self.end(Outcome::Skipped);
        }
        let (gpu, give_way, outcome) = (gpu.map(str::to_owned), self.give_way.clone(), self.outcome.clone());
        let run = move || {
            let found = match &gpu {
                Some(gpu) => of_card(gpu, &give_way),
                None => of_host(Node::open().as_ref(), &give_way),
            };
            let of = if gpu.is_some() { Calibrated::Card } else { Calibrated::Host };
            *outcome.lock().unwrap_or_else(PoisonError::into_inner) = told(found, of);
        };
        match std::thread::Builder::new().name("calibration".into()).spawn(run) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => self.end(told(Err(CalibrationError::Thread(error)), Calibrated::Host)),
        }
    }

    fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn end(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
    }

    /// What was measured; nothing before it is over.
    pub(crate) fn readings(&self) -> Readings {
        match &*self.outcome.lock().unwrap_or_else(PoisonError::into_inner) {
            Outcome::Done(readings) => readings.clone(),
            Outcome::Pending | Outcome::Failed | Outcome::Skipped => Readings::new(),
        }
    }

    /// That it failed or was left out.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let name = match *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) {
            Outcome::Failed => "calibrations_failed",
            Outcome::Skipped => "calibrations_skipped",
            Outcome::Pending | Outcome::Done(_) => return Vec::new(),
        };
        vec![(name.to_owned(), 1)]
    }
}

impl Drop for Calibration {
    /// A driver that is torn down under a running kernel may crash the process; one that hangs is left behind.
    fn drop(&mut self) {
        self.give_way.store(true, Ordering::Relaxed);
        let end = Instant::now() + END_MAX;
        while self.is_running() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn told(found: Result<Vec<Measured>, CalibrationError>, of: Calibrated) -> Outcome {
    match found {
        Ok(measured) => {
            let rates = rates(&measured);
            if rates.is_empty() {
                tracing::info!("training began before the device was calibrated");
                return Outcome::Skipped;
            }
            let mut readings: Readings = measured.iter().filter_map(Measured::reading).collect();
            readings.extend(rates.readings(of));
            tracing::info!(?rates, "calibrated the device");
            Outcome::Done(readings)
        }
        Err(error) => {
            tracing::warn!(%error, "the device could not be calibrated; going on without");
            Outcome::Failed
        }
    }
}

/// Whether to go on with the next kernel.
fn patience(give_way: &AtomicBool) -> impl Fn() -> bool {
    let end = Instant::now() + TIME_MAX;
    move || !give_way.load(Ordering::Relaxed) && Instant::now() < end
}

fn of_card(gpu: &str, give_way: &AtomicBool) -> Result<Vec<Measured>, CalibrationError> {
    // By NVML's number it may be another card than by CUDA's: what a process sees can be restricted.
    let uuid = nvml::open().and_then(|nvml| nvml::uuid(&nvml, gpu));
    let context = cuda::Context::open(uuid.as_deref().unwrap_or(gpu))?;
    let measured = calibrate(&patience(give_way));
    drop(context);
    Ok(measured?)
}

fn of_host(node: Option<&Node>, give_way: &AtomicBool) -> Result<Vec<Measured>, CalibrationError> {
    let end = Instant::now() + TURN_MAX;
    let turn = || node.map(|node| node.lock("calibration.lock"));
    let mut lock = turn();
    // Without a place where agents meet there is nobody to wait for.
    while matches!(lock, Some(None)) {
        if give_way.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        if Instant::now() >= end {
            return Err(CalibrationError::NoTurn);
        }
        std::thread::sleep(TURN_EVERY);
        lock = turn();
    }
    Ok(calibrate_host(&patience(give_way)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(calibration: &Calibration) {
        let end = Instant::now() + Duration::from_secs(30);
        while calibration.is_running() {
            assert!(Instant::now() < end, "it does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_host_is_calibrated_once_and_only_before_it_trains() {
        // A host that is busy with other things may not come to all of it within a second.
        let (mut calibration, readings) = std::iter::repeat_with(|| {
            let mut calibration = Calibration::default();
            calibration.look(None, || false);
            wait(&calibration);
            let readings = calibration.readings();
            (calibration, readings)
        })
        .take(20)
        .find(|(_, readings)| {
            let has = |name: &str| readings.iter().any(|(known, _)| known == name);
            has("product_fp32_512_operations_per_s") && has("copy_64MiB_bytes_per_s")
        })
        .expect("once it is quiet for a second");
        let rate = |name: &str| readings.iter().find(|(known, _)| known == name).unwrap().1;
        assert_eq!(rate("calibrated_host_operations_per_s"), rate("product_fp32_512_operations_per_s").round());
        assert_eq!(rate("calibrated_host_bytes_per_s"), rate("copy_64MiB_bytes_per_s").round());
        calibration.look(None, || panic!("it is over"));
        assert_eq!(calibration.readings(), readings);

        let mut late = Calibration::default();
        late.look(None, || true);
        assert!(!late.is_running() && late.readings().is_empty());
        assert_eq!(late.counters(), [("calibrations_skipped".to_owned(), 1)]);
    }

    #[test]
    fn it_gives_way_to_training_also_while_it_awaits_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (Node::in_folder(folder.path()), Node::in_folder(folder.path()));
        let held = first.lock("calibration.lock").unwrap();
        let give_way = Arc::new(AtomicBool::new(false));
        let told = give_way.clone();
        let waiting = std::thread::spawn(move || of_host(Some(&second), &told));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished(), "another agent measures");
        give_way.store(true, Ordering::Relaxed);
        assert!(waiting.join().unwrap().unwrap().is_empty());
        drop(held);
        let mut measured = (0..20).map(|_| of_host(Some(&first), &AtomicBool::new(false)).unwrap().len());
        assert!(measured.any(|count| count == 3), "all of it, once it is quiet for a second");
    }

    #[test]
    fn a_gpu_that_is_not_there_is_counted() {
        let mut calibration = Calibration::default();
        calibration.look(Some("GPU-00000000-0000-0000-0000-000000000000"), || false);
        wait(&calibration);
        assert_eq!(calibration.counters(), [("calibrations_failed".to_owned(), 1)]);
        assert!(calibration.readings().is_empty());
    }
}
