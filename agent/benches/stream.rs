//! What an agent costs while its process records 10,000 samples a second: from the ring through sketches, batches and the
//! link to a sink that acknowledges. The agent runs as a process of its own; counted is its processor time, all threads.
//! The target is 1% of a core.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and may end where it fails")]

use adaptis_agent::Options;
use adaptis_link::{Limits, Security, Server};
use adaptis_proto::message::{AgentEvent, AgentOrder, FromCoordinator, ToCoordinator};
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{Incarnation, LayerIndex, Microbatch, Step, wire};
use adaptis_ring::{CAPACITY_RECORDS_DEFAULT, Recorder, now_ns};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const RECORDS_PER_SECOND: u64 = 10_000;
/// Recorded at a time, as works of a microbatch end close together.
const BURST: u64 = 20;

fn main() {
    match std::env::var("ADAPTIS_BENCH_AGENT") {
        Ok(told) => agent(&told),
        Err(_) => measure(),
    }
}

/// Runs an agent on `ring address spool`, and prints its processor time in nanoseconds.
fn agent(told: &str) {
    let told: Vec<&str> = told.split(' ').collect();
    let mut options = Options::new("gpu0", PathBuf::from(told[0]), told[1], PathBuf::from(told[2]));
    options.until_closed = true;
    adaptis_agent::run(options, Arc::new(AtomicBool::new(false))).unwrap();
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    println!("{}", Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32).as_nanos());
}

fn measure() {
    let seconds = if std::env::args().any(|argument| argument == "--test") { 1 } else { 20 };
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let ring = folder.path().join("bench.ring");
    let server = Server::bind("tcp://127.0.0.1:*", &Security::Open, Limits::default()).unwrap();
    let told = format!("{} {} {}", ring.display(), server.endpoint(), folder.path().join("spool").display());
    let recorder = Recorder::create(&ring, "gpu0", Incarnation(1), CAPACITY_RECORDS_DEFAULT).unwrap();
    let own = std::env::current_exe().unwrap();
    let agent = Command::new(own).env("ADAPTIS_BENCH_AGENT", &told).stdout(Stdio::piped()).spawn().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let sink = std::thread::spawn(move || acknowledge(&server, &flag));
    let recorded = record(recorder, RECORDS_PER_SECOND * seconds);
    let ended = agent.wait_with_output().unwrap();
    stop.store(true, Ordering::Relaxed);
    let acknowledged = sink.join().unwrap();
    assert!(ended.status.success(), "the agent failed");
    assert_eq!(acknowledged, recorded, "records are missing");
    let used: u64 = String::from_utf8(ended.stdout).unwrap().trim().parse().unwrap();
    println!(
        "agent: {recorded} records in {seconds} s, {:.2}% of a core ({} ns a record)",
        used as f64 / (seconds * 1_000_000_000) as f64 * 100.0,
        used / recorded
    );
}

/// Gives how many were recorded.
fn record(mut recorder: Recorder, in_all: u64) -> u64 {
    let begun = Instant::now();
    for number in 0..in_all {
        if number % BURST == 0 {
            let due = begun + Duration::from_micros(number * 1_000_000 / RECORDS_PER_SECOND);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        recorder.record(Sample::Work {
            place: Place { step: Step(number / 1_000), ..Place::default() },
            layer: LayerIndex(number as u32 % 8),
            microbatch: Microbatch(number as u32 / 8 % 32),
            phase: [Phase::Forward, Phase::InputGradient, Phase::WeightGradient][number as usize / 256 % 3],
            mark: Mark::Warm,
            start_ns: now_ns(),
            duration_ns: 300_000 + number * 7_919 % 40_000,
        });
    }
    recorder.close();
    assert_eq!(recorder.dropped(), 0, "the agent was too slow");
    recorder.recorded()
}

/// Acknowledges what comes, until told to stop. Gives how many records came.
fn acknowledge(server: &Server, stop: &AtomicBool) -> u64 {
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let Some(message) = server.receive(Duration::from_millis(50)).unwrap() else { continue };
        let order = match wire::decode(&message.payload).unwrap() {
            ToCoordinator::Agent(AgentEvent::Batch(batch)) => {
                next = next.max(batch.first + batch.records.len() as u64);
                AgentOrder::Stored { ring: batch.ring, next }
            }
            ToCoordinator::Agent(AgentEvent::Ping { sent_ns, .. }) => {
                AgentOrder::Pong { sent_ns, received_ns: now_ns() }
            }
            _ => continue,
        };
        server.send(&message.peer, wire::encode(&FromCoordinator::Agent(order))).unwrap();
    }
    next
}
