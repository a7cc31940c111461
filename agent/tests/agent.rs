//! The agent against a stand-in coordinator: real rings, real files, real sockets, real processes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod coordinator;

use adaptis_agent::{AgentError, Calibrating, Limits, Options, Summary, run};
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{Incarnation, LayerIndex, Microbatch, Step};
use adaptis_ring::{Recorder, RingError};
use adaptis_standin::{Library, Stage};
use coordinator::Coordinator;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
/// The environment of an agent that runs as a process of its own.
const FOLDER: &str = "ADAPTIS_TEST_FOLDER";
const ADDRESS: &str = "ADAPTIS_TEST_ADDRESS";

fn options(folder: &Path, address: &str) -> Options {
    let mut options = Options::new("gpu0", folder.join("gpu0.ring"), address, folder.join("spool"));
    options.limits = Limits {
        batch_records_max: 64,
        batch_age_ns_max: 20_000_000,
        resend_ns: 60_000_000,
        resend_ns_max: 250_000_000,
        report_ns: 300_000_000,
        ..Limits::default()
    };
    // Its tests are named so; the others need no processor kept busy beside them.
    options.calibrating = Calibrating::Never;
    options
}

fn calibrating(folder: &Path, address: &str) -> Options {
    Options { calibrating: Calibrating::AtStart, ..options(folder, address) }
}

/// The agent leaves once training has ended.
fn until_closed(folder: &Path, address: &str) -> Options {
    Options { until_closed: true, ..options(folder, address) }
}

fn recorder(folder: &Path, ring: u64, capacity: usize) -> Recorder {
    Recorder::create(&folder.join("gpu0.ring"), "gpu0", Incarnation(ring), capacity).unwrap()
}

fn record(recorder: &mut Recorder, count: u64) {
    for _ in 0..count {
        let number = recorder.recorded();
        recorder.record(Sample::Work {
            place: Place { step: Step(number), ..Place::default() },
            layer: LayerIndex(number as u32 % 4),
            microbatch: Microbatch(0),
            phase: Phase::Forward,
            mark: Mark::Warm,
            start_ns: number,
            duration_ns: 1_000_000,
        });
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An agent on a thread.
struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Summary, AgentError>>,
}

impl Running {
    fn start(options: Options) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let shared = stop.clone();
        Self { stop, thread: std::thread::spawn(move || run(options, shared)) }
    }

    fn stop(self) -> Summary {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(self) -> Summary {
        let summary = self.thread.join().unwrap().unwrap();
        let counter = |name: &str| summary.counter(name).unwrap();
        let dropped = counter("dropped_ring_full") + counter("dropped_spool_full") + counter("dropped_unreadable");
        assert_eq!(counter("taken"), counter("stored") + dropped + counter("queued"));
        summary
    }
}

/// An agent that can be killed.
struct Process(Child);

impl Process {
    fn start(folder: &Path, address: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "agent_process", "--nocapture"]).env(FOLDER, folder).env(ADDRESS, address);
        Self(command.stdout(Stdio::null()).spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn agent_process() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let address = std::env::var(ADDRESS).unwrap();
    run(options(&folder, &address), Arc::new(AtomicBool::new(false))).unwrap();
}

#[test]
fn a_closed_ring_is_delivered_and_summed_up() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start();
    let options = until_closed(folder.path(), coordinator.address());
    let agent = Running::start(options);
    let mut recorder = recorder(folder.path(), 1, 1024);
    for _ in 0..10 {
        record(&mut recorder, 100);
        std::thread::sleep(Duration::from_millis(60));
    }
    drop(recorder);
    let summary = agent.join();
    assert_eq!(coordinator.stored(1), 1_000);
    assert_eq!((summary.counter("stored"), summary.counter("queued")), (Some(1_000), Some(0)));
    assert_eq!(summary.counter("spool_batches"), Some(0), "with the coordinator there, the spool is not used");
    let medians: Vec<_> = summary.layers.iter().map(|layer| (layer.layer.0, layer.count, layer.ns_p50)).collect();
    assert_eq!(medians.len(), 4);
    assert!(medians.iter().all(|(_, count, ns)| *count == 250 && ns.abs_diff(1_000_000) <= 10_000), "{medians:?}");
    let clock = summary.clock.expect("clocks were exchanged");
    let truth = coordinator::CLOCK_AHEAD_NS;
    assert!(clock.offset_ns.abs_diff(truth) <= clock.error_ns, "{clock:?}");
    let health = coordinator.health().expect("health was reported");
    assert!(health.readings.iter().any(|(name, _)| name == "agent_cpu_share"), "{health:?}");
    assert!(health.readings.iter().any(|(name, value)| name == "forward_ns_p50" && *value > 0.0), "{health:?}");
    assert!(health.counters.iter().any(|(name, _)| name == "taken"));
}

#[test]
fn the_state_of_a_gpu_reaches_the_coordinator() {
    let script = "nvml.0.sm_clock_mhz 1980\nnvml.0.throttle_bits 4\n";
    let stage = Stage::with(&[Library::Cuda, Library::Nvml]).script(script);
    if stage.alone("the_state_of_a_gpu_reaches_the_coordinator").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start();
    let mut options = options(folder.path(), coordinator.address());
    options.gpu_uuid_or_index = Some("0".into());
    let agent = Running::start(options);
    let reading = |name: &str| {
        let health = coordinator.health()?;
        health.readings.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    };
    wait_for("a clock", || reading("sm_clock_mhz").is_some());
    assert_eq!((reading("sm_clock_mhz"), reading("throttled_by_power_cap")), (Some(1980.0), Some(1.0)));
    assert_eq!(reading("power_w"), None, "what the card does not say is not there");
    assert!(reading("gpu_probe_core_share").is_some_and(|share| share < 0.1));
    let summary = agent.stop();
    assert!(summary.counter("nvml_calls") >= Some(15), "{summary:?}");
    assert_eq!(summary.card.map(|card| card.uuid), Some("GPU-00000000-0000-0000-0000-000000000000".into()));
}

/// The reading of an agent that the coordinator last heard of.
fn reading(coordinator: &Coordinator, name: &str) -> Option<f64> {
    coordinator.health()?.readings.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

fn health_counter(coordinator: &Coordinator, name: &str) -> Option<u64> {
    coordinator.health()?.counters.iter().find(|(known, _)| known == name).map(|(_, count)| *count)
}

#[test]
fn what_a_gpu_can_do_reaches_the_coordinator() {
    let script = "cuda.flops 123000000000000\ncuda.copy_bytes_per_s 800000000000\n";
    let stage = Stage::with(&[Library::Cuda, Library::Nvml, Library::Cublas]).script(script);
    if stage.alone("what_a_gpu_can_do_reaches_the_coordinator").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start();
    let mut options = calibrating(folder.path(), coordinator.address());
    options.gpu_uuid_or_index = Some("0".into());
    let agent = Running::start(options);
    wait_for("rates", || reading(&coordinator, "calibrated_operations_per_s").is_some());
    let of = |name: &str, truth: f64| reading(&coordinator, name).unwrap() / truth;
    assert!((0.9..1.01).contains(&of("calibrated_operations_per_s", 1.23e14)), "of the largest product");
    assert!((0.9..1.01).contains(&of("calibrated_bytes_per_s", 8e11)), "of the largest copy");
    assert!(reading(&coordinator, "product_bf16_1024_operations_per_s").is_some());
    assert_eq!(reading(&coordinator, "calibrated_host_bytes_per_s"), None, "a card's agent leaves the host alone");
    let contexts = || {
        // SAFETY: the test's process has the stand-in as its driver, and this is its function.
        unsafe {
            let get = cudarc::driver::sys::culib()
                .get::<unsafe extern "C" fn(*const std::ffi::c_char) -> i64>(b"standinGet\0")
                .unwrap();
            get(c"contexts".as_ptr())
        }
    };
    assert_eq!(contexts(), 0, "the context ends with the calibration");
    agent.stop();
}

#[test]
fn a_gpu_for_one_process_alone_is_left_to_the_training() {
    let stage = Stage::with(&[Library::Cuda, Library::Nvml, Library::Cublas]).script("cuda.compute_mode 3\n");
    if stage.alone("a_gpu_for_one_process_alone_is_left_to_the_training").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start();
    let mut options = calibrating(folder.path(), coordinator.address());
    options.gpu_uuid_or_index = Some("0".into());
    let agent = Running::start(options);
    wait_for("a failure", || health_counter(&coordinator, "calibrations_failed") == Some(1));
    assert_eq!(reading(&coordinator, "calibrated_bytes_per_s"), None);
    agent.stop();
}

#[test]
fn a_host_is_calibrated_before_it_trains_and_not_while_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start();
    let start = || calibrating(folder.path(), coordinator.address());
    let first = Running::start(start());
    wait_for("rates", || reading(&coordinator, "calibrated_host_operations_per_s").is_some());
    for name in ["calibrated_host_operations_per_s", "calibrated_host_bytes_per_s"] {
        assert!((1e8..1e14).contains(&reading(&coordinator, name).unwrap()), "{name}");
    }
    first.stop();

    let mut recorder = recorder(folder.path(), 1, 1024);
    record(&mut recorder, 10);
    let second = Running::start(start());
    wait_for("the skip", || health_counter(&coordinator, "calibrations_skipped") == Some(1));
    assert_eq!(reading(&coordinator, "calibrated_host_operations_per_s"), None);
    second.stop();

    let switched_off = Running::start(options(folder.path(), coordinator.address()));
    let quiet = || health_counter(&coordinator, "calibrations_skipped").is_none();
    wait_for("its word", quiet);
    std::thread::sleep(Duration::from_millis(700));
    assert!(quiet() && reading(&coordinator, "calibrated_host_operations_per_s").is_none());
    switched_off.stop();
}

#[test]
fn the_last_word_of_an_agent_is_what_it_sums_up() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start();
    let mut options = until_closed(folder.path(), coordinator.address());
    // No report is due while it runs.
    options.limits.report_ns = 3_600_000_000_000;
    let mut recorder = recorder(folder.path(), 1, 1024);
    record(&mut recorder, 700);
    drop(recorder);
    let summary = Running::start(options).join();
    wait_for("the last word", || coordinator.health().is_some());
    let health = coordinator.health().unwrap();
    let said = |name: &str| health.counters.iter().find(|(known, _)| known == name).map(|(_, count)| *count);
    for name in ["taken", "stored", "queued", "dropped_ring_full"] {
        assert_eq!(said(name), summary.counter(name), "{name}");
    }
    assert_eq!((said("taken"), said("stored"), said("queued")), (Some(700), Some(700), Some(0)));
}

#[test]
fn an_agent_leaves_when_training_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start();
    let options = until_closed(folder.path(), coordinator.address());
    let elsewhere = tempfile::tempdir().unwrap();
    let mut living = recorder(elsewhere.path(), 1, 1024);
    record(&mut living, 700);
    // As a killed process leaves it: neither closed nor locked.
    std::fs::copy(elsewhere.path().join("gpu0.ring"), folder.path().join("gpu0.ring")).unwrap();
    let summary = Running::start(options).join();
    assert_eq!((summary.counter("stored"), summary.counter("queued")), (Some(700), Some(0)));
    assert_eq!(coordinator.stored(1), 700);
}

#[test]
fn nothing_is_lost_or_doubled_while_the_coordinator_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start();
    let agent = Running::start(options(folder.path(), coordinator.address()));
    // Small enough that the spool is needed.
    let mut recorder = recorder(folder.path(), 1, 512);
    for round in 0..80 {
        match round {
            20 | 50 => coordinator.kill(),
            40 | 60 => coordinator.revive(),
            _ => {}
        }
        record(&mut recorder, 50);
        std::thread::sleep(Duration::from_millis(25));
    }
    let recorded = recorder.recorded();
    wait_for("everything is stored", || coordinator.stored(1) == recorded);
    drop(recorder);
    let summary = agent.stop();
    assert_eq!(coordinator.doubled(), 0);
    assert!(coordinator.spooled_range_was_seen(), "the outage was long enough to matter");
    assert_eq!(summary.counter("dropped_spool_full"), Some(0));
    assert_eq!(summary.counter("spool_bytes"), Some(0), "what is stored is released");
}

#[test]
fn nothing_is_lost_or_doubled_by_killed_agents() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start();
    let mut recorder = recorder(folder.path(), 1, 512);
    for round in 0..8 {
        if round % 4 == 2 {
            coordinator.kill();
        }
        let agent = Process::start(folder.path(), coordinator.address());
        for _ in 0..12 + round {
            record(&mut recorder, 37);
            std::thread::sleep(Duration::from_millis(23));
        }
        agent.kill();
        if round % 4 == 3 {
            coordinator.revive();
        }
    }
    let recorded = recorder.recorded();
    assert!(recorded > 1_000);
    drop(recorder);
    let options = until_closed(folder.path(), coordinator.address());
    let summary = Running::start(options).join();
    assert_eq!(coordinator.stored(1), recorded);
    assert_eq!(coordinator.doubled(), 0);
    assert_eq!(summary.counter("queued"), Some(0));
}

#[test]
fn a_new_ring_is_taken_up_after_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start();
    let agent = Running::start(options(folder.path(), coordinator.address()));
    let mut recorded = Vec::new();
    for ring in 1..=4 {
        let mut recorder = recorder(folder.path(), ring, 256);
        wait_for("the ring is taken up", || {
            record(&mut recorder, 1);
            std::thread::sleep(Duration::from_millis(10));
            coordinator.stored(ring) > 0
        });
        // The last ones are in the ring alone when it is replaced, and its process is gone without closing it.
        record(&mut recorder, 100);
        recorded.push(recorder.recorded());
        std::mem::forget(recorder);
        // The lock of a process ends with it, and this one goes on: its place is cleared instead.
        std::fs::remove_file(folder.path().join("gpu0.ring")).unwrap();
    }
    wait_for("all of all rings is stored", || {
        (1..=4).zip(&recorded).all(|(ring, count)| coordinator.stored(ring) == *count)
    });
    agent.stop();
    assert_eq!(coordinator.doubled(), 0);
}

#[test]
fn a_stop_without_a_coordinator_is_bounded_and_saves_the_records() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start();
    coordinator.kill();
    let mut recorder = recorder(folder.path(), 1, 1024);
    record(&mut recorder, 300);
    let agent = Running::start(options(folder.path(), coordinator.address()));
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    let summary = agent.stop();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!((summary.counter("queued"), summary.counter("stored")), (Some(300), Some(0)));
    // The ring is gone with its process, as /dev/shm is; the spool is not.
    drop(recorder);
    std::fs::remove_file(folder.path().join("gpu0.ring")).unwrap();
    coordinator.revive();
    let agent = Running::start(options(folder.path(), coordinator.address()));
    wait_for("the spool is delivered", || coordinator.stored(1) == 300);
    assert_eq!(agent.stop().counter("queued"), Some(0));
}

#[test]
fn what_is_no_ring_of_ours_ends_the_agent_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let never = || Arc::new(AtomicBool::new(false));
    let options = options(folder.path(), "tcp://127.0.0.1:9");
    std::fs::write(&options.ring, vec![1; 8192]).unwrap();
    assert!(matches!(run(options.clone(), never()), Err(AgentError::Ring(RingError::Foreign { .. }))));
    std::fs::remove_file(&options.ring).unwrap();
    let _other = Recorder::create(&options.ring, "gpu7", Incarnation(1), 8).unwrap();
    assert!(matches!(run(options, never()), Err(AgentError::OtherDevice { found, .. }) if found == "gpu7"));
}
