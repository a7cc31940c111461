//! A coordinator on a thread, and what a rank and an agent say to it.

use adaptis_coordinator::{CoordinatorError, Ended, Mode, Options, run};
use adaptis_link::{Client, Limits, Security};
use adaptis_proto::message::{
    AgentEvent, AgentOrder, Answer, Ask, Batch, DeviceCard, FromCoordinator, Job, JobLayer, RankEvent, Status,
    ToCoordinator,
};
use adaptis_proto::sample::{Place, Sample};
use adaptis_proto::{Epoch, Generation, Incarnation, RunId, Step, Term, wire};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Service {
    pub stop: Arc<AtomicBool>,
    pub thread: JoinHandle<Result<Ended, CoordinatorError>>,
    pub address: String,
    pub http: String,
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Service {
    pub fn start(dir: &Path, change: impl FnOnce(&mut Options)) -> Service {
        let (address, http) = (format!("tcp://127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let mut options = Options::new(dir.to_owned());
        (options.listen, options.http, options.mode) = (address.clone(), Some(http.clone()), Mode::Observe);
        change(&mut options);
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || run(options, flag));
        Service { stop, thread, address, http }
    }

    pub fn client(&self, name: &str) -> Client {
        Client::connect(&self.address, name, &Security::Open, Limits::default()).unwrap()
    }

    pub fn get(&self, path: &str) -> String {
        self.get_as(path, "*/*")
    }

    pub fn get_as(&self, path: &str, accept: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Ok(mut stream) = TcpStream::connect(&self.http) {
                write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nAccept: {accept}\r\n\r\n").unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                return text;
            }
            assert!(begun.elapsed() < PATIENCE, "no page");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn end(self) -> Ended {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap()
    }
}

pub fn say(client: &Client, message: ToCoordinator) {
    client.send(wire::encode(&message)).unwrap();
}

/// Says something until an answer fits.
pub fn ask<T>(client: &Client, message: &ToCoordinator, mut fits: impl FnMut(FromCoordinator) -> Option<T>) -> T {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        say(client, message.clone());
        let until = Instant::now() + Duration::from_millis(300);
        while let Some(bytes) = client.receive(until.saturating_duration_since(Instant::now())).unwrap() {
            if let Some(found) = fits(wire::decode(&bytes).unwrap()) {
                return found;
            }
        }
    }
    panic!("no answer to {message:?}");
}

pub fn job() -> Job {
    let layer = |name: &str| JobLayer {
        name: name.into(),
        signature: "mlp/8/f32/b1xs8".into(),
        parameter_bytes: 1,
        state_bytes: 4,
        output_bytes: 1,
        moved_bytes: 3,
    };
    Job {
        run: RunId("test".into()),
        devices: vec!["gpu0".into()],
        layers: vec![layer("a"), layer("b")],
        microbatches: 2,
        iterations: 3,
        start_plan: None,
    }
}

pub fn hello() -> ToCoordinator {
    let card = DeviceCard { name: "gpu0".into(), kind: "cpu".into(), memory_bytes: 1 << 20, reserved_bytes: 0 };
    ToCoordinator::Rank(RankEvent::Hello {
        incarnation: Incarnation(7),
        card,
        job: job(),
        endpoint: "tcp://127.0.0.1:1".into(),
        place: None,
        seen: Term(0),
    })
}

pub fn iterations() -> Vec<Sample> {
    let end = |step: u64| {
        let place = Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
        Sample::Iteration { place, start_ns: step, duration_ns: 100 + step, loss_bits: 0x4083_3333 }
    };
    (0..3).map(end).collect()
}

pub fn batch(first: u64, samples: &[Sample]) -> ToCoordinator {
    ToCoordinator::Agent(AgentEvent::Batch(Batch {
        device: "gpu0".into(),
        ring: Incarnation(7),
        first,
        records: samples.iter().map(|&sample| sample.into()).collect(),
        dropped: 2,
        clock: None,
    }))
}

pub fn stored(message: FromCoordinator) -> Option<u64> {
    match message {
        FromCoordinator::Agent(AgentOrder::Stored { ring: Incarnation(7), next }) => Some(next),
        _ => None,
    }
}

pub fn status(client: &Client) -> Status {
    ask(client, &ToCoordinator::Ask(Ask::Status), |message| match message {
        FromCoordinator::Answer(Answer::Status(status)) => Some(*status),
        _ => None,
    })
}

pub fn counter(status: &Status, name: &str) -> u64 {
    let found = status.counters.iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("no counter {name} in {:?}", status.counters)).1
}
