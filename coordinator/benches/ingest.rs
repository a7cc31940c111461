//! What the coordinator pays to take records in: a whole one (socket, decoding, store on disk, profiles, estimate, drift),
//! fed by a process of its own that sends as fast as it is acknowledged. The target is a million records per second of
//! one core. Counted is the processor time of the coordinator's process, all threads.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and may end where it fails")]

use adaptis_coordinator::{Mode, Options, run};
use adaptis_link::{Client, Limits, Security};
use adaptis_proto::message::{
    AgentEvent, AgentOrder, Batch, DeviceCard, FromCoordinator, Job, JobLayer, RankEvent, RankOrder, ToCoordinator,
};
use adaptis_proto::sample::{Mark, Phase, Place, Record, Sample};
use adaptis_proto::{DeviceIndex, Epoch, Generation, Incarnation, LayerIndex, Microbatch, RunId, Step, Term, wire};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DEVICES: u32 = 8;
const LAYERS_PER_DEVICE: u32 = 8;
const MICROBATCHES: u32 = 32;
/// As an agent closes them.
const BATCH_RECORDS: usize = 1_024;
/// Per device, unacknowledged; as an agent does.
const IN_FLIGHT: usize = 16;
/// Enough for the start not to count.
const STEPS: u64 = 240;

fn main() {
    match std::env::var("ADAPTIS_BENCH_FEED") {
        Ok(told) => {
            let (address, steps) = told.split_once(' ').unwrap();
            feed(address, steps.parse().unwrap());
        }
        Err(_) => measure(),
    }
}

fn measure() {
    let steps = if std::env::args().any(|argument| argument == "--test") { 8 } else { STEPS };
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("tcp://127.0.0.1:{port}");
    let mut options = Options::new(folder.path().join("run"));
    (options.listen, options.http, options.mode) = (address.clone(), None, Mode::Observe);
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let coordinator = std::thread::spawn(move || run(options, flag));
    let own = std::env::current_exe().unwrap();
    let (before, begun) = (processor_time(), Instant::now());
    let fed = Command::new(own).env("ADAPTIS_BENCH_FEED", format!("{address} {steps}")).output().unwrap();
    let (used, took) = (processor_time() - before, begun.elapsed());
    assert!(fed.status.success(), "the feeding process failed: {}", String::from_utf8_lossy(&fed.stderr));
    let records: u64 = String::from_utf8(fed.stdout).unwrap().trim().parse().unwrap();
    stop.store(true, Ordering::Relaxed);
    coordinator.join().unwrap().unwrap();
    println!(
        "ingest: {records} records, {:.2} M records per second of one core ({:.0} ns a record), {:.2} s, {:.0}% of a core",
        records as f64 / used.as_secs_f64() / 1e6,
        used.as_nanos() as f64 / records as f64,
        took.as_secs_f64(),
        100.0 * used.as_secs_f64() / took.as_secs_f64()
    );
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Plays the ranks until they train, then the agents. Prints how many records were acknowledged.
fn feed(address: &str, steps: u64) {
    let connect = |name: String| Client::connect(address, &name, &Security::Open, Limits::default()).unwrap();
    let ranks: Vec<Client> = (0..DEVICES).map(|device| connect(format!("rank{device}"))).collect();
    let mut started = vec![false; ranks.len()];
    while started.contains(&false) {
        for (device, (rank, started)) in ranks.iter().zip(&mut started).enumerate() {
            rank.send(wire::encode(&hello(device as u32))).unwrap();
            while let Some(bytes) = rank.receive(Duration::from_millis(20)).unwrap() {
                let message = wire::decode(&bytes).unwrap();
                *started |= matches!(message, FromCoordinator::Rank(RankOrder::Start { .. }));
            }
        }
    }
    let mut agents: Vec<Agent> =
        (0..DEVICES).map(|device| Agent::new(device, steps, connect(format!("agent{device}")))).collect();
    while agents.iter().any(|agent| agent.stored < agent.sent_records()) {
        agents.iter_mut().for_each(Agent::turn);
        std::thread::sleep(Duration::from_micros(200));
    }
    println!("{}", agents.iter().map(|agent| agent.stored).sum::<u64>());
}

struct Agent {
    client: Client,
    batches: Vec<(u64, Vec<u8>)>,
    sent: usize,
    stored: u64,
}

impl Agent {
    fn new(device: u32, steps: u64, client: Client) -> Self {
        let records: Vec<Record> = (0..steps).flat_map(|step| iteration(device, step)).map(Record::from).collect();
        let batch = |(number, records): (usize, &[Record])| {
            let first = (number * BATCH_RECORDS) as u64;
            let batch = Batch {
                device: format!("gpu{device}"),
                ring: incarnation(device),
                first,
                records: records.to_vec(),
                dropped: 0,
                clock: None,
            };
            let message = ToCoordinator::Agent(AgentEvent::Batch(batch));
            (first + records.len() as u64, wire::encode(&message))
        };
        Self { client, batches: records.chunks(BATCH_RECORDS).enumerate().map(batch).collect(), sent: 0, stored: 0 }
    }

    fn sent_records(&self) -> u64 {
        self.batches.last().map_or(0, |(end, _)| *end)
    }

    fn turn(&mut self) {
        while let Some(bytes) = self.client.try_receive().unwrap() {
            if let FromCoordinator::Agent(AgentOrder::Stored { next, .. }) = wire::decode(&bytes).unwrap() {
                self.stored = self.stored.max(next);
            }
        }
        let acknowledged = self.batches.partition_point(|(end, _)| *end <= self.stored);
        while self.sent < self.batches.len().min(acknowledged + IN_FLIGHT) {
            self.client.send(self.batches[self.sent].1.clone()).unwrap();
            self.sent += 1;
        }
    }
}

/// All that a device tells of an iteration; times vary by some percent.
fn iteration(device: u32, step: u64) -> Vec<Sample> {
    let place = Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
    let iteration_ns = 400_000_000;
    let begin_ns = step * iteration_ns;
    let jitter = |number: u64| (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 44) % 50_000;
    let mark = if step < 3 { Mark::Cold } else { Mark::Warm };
    let mut samples = Vec::new();
    for microbatch in 0..MICROBATCHES {
        let at_ns = begin_ns + u64::from(microbatch) * 10_000_000;
        if device > 0 {
            samples.push(Sample::Transfer {
                place,
                from: DeviceIndex(device - 1),
                microbatch: Microbatch(microbatch),
                mark,
                bytes: 1 << 24,
                start_ns: at_ns,
                duration_ns: 200_000 + jitter(at_ns),
            });
        }
        for (phase, cost_ns) in
            [(Phase::Forward, 300_000), (Phase::InputGradient, 350_000), (Phase::WeightGradient, 320_000)]
        {
            for layer in device * LAYERS_PER_DEVICE..(device + 1) * LAYERS_PER_DEVICE {
                samples.push(Sample::Work {
                    place,
                    layer: LayerIndex(layer),
                    microbatch: Microbatch(microbatch),
                    phase,
                    mark,
                    start_ns: at_ns,
                    duration_ns: cost_ns + jitter(at_ns + u64::from(layer)),
                });
            }
        }
    }
    samples.push(Sample::Iteration {
        place,
        start_ns: begin_ns,
        duration_ns: iteration_ns + jitter(step),
        loss_bits: 2.5_f32.to_bits(),
    });
    samples
}

fn incarnation(device: u32) -> Incarnation {
    Incarnation(100 + u64::from(device))
}

fn hello(device: u32) -> ToCoordinator {
    let layer = |number: u32| JobLayer {
        name: format!("layer{number}"),
        signature: "mlp/4096/bf16/b1xs4096".into(),
        parameter_bytes: 1 << 20,
        state_bytes: 1 << 24,
        output_bytes: 1 << 24,
        moved_bytes: 1 << 24,
    };
    let card =
        DeviceCard { name: format!("gpu{device}"), kind: "a100-80g".into(), memory_bytes: 80 << 30, reserved_bytes: 0 };
    let job = Job {
        run: RunId("bench".into()),
        devices: (0..DEVICES).map(|device| format!("gpu{device}")).collect(),
        layers: (0..DEVICES * LAYERS_PER_DEVICE).map(layer).collect(),
        microbatches: MICROBATCHES,
        iterations: STEPS + 1,
        start_plan: None,
    };
    ToCoordinator::Rank(RankEvent::Hello {
        incarnation: incarnation(device),
        card,
        job,
        endpoint: format!("tcp://127.0.0.1:{}", 1 + device),
        place: None,
        seen: Term(0),
    })
}
