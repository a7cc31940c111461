//! A stand-in for the coordinator: stores batches in order of their numbers, answers, and can be killed and revived on
//! the same address, with what it had stored.

use adaptis_link::{Incoming, Limits, PeerId, Security, Server};
use adaptis_proto::message::{AgentEvent, AgentOrder, Batch, FromCoordinator, Health, ToCoordinator};
use adaptis_proto::sample::Record;
use adaptis_proto::wire;
use adaptis_ring::now_ns;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How far this coordinator's clock is ahead.
pub const CLOCK_AHEAD_NS: i64 = 5_000_000_000;

/// What survives a kill.
#[derive(Default)]
struct Disk {
    next: BTreeMap<u64, u64>,
    records: BTreeMap<(u64, u64), Record>,
    doubled: u64,
    health: Option<Health>,
    /// Counters of the last health said that something is or was in the spool.
    spool_seen: bool,
}

pub struct Coordinator {
    address: String,
    disk: Arc<Mutex<Disk>>,
    life: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Coordinator {
    pub fn start() -> Self {
        let server = Server::bind("tcp://127.0.0.1:*", &Security::Open, Limits::default()).unwrap();
        let mut coordinator =
            Self { address: server.endpoint().to_owned(), disk: Arc::new(Mutex::new(Disk::default())), life: None };
        coordinator.serve(server);
        coordinator
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whatever is on its way to it, or in its hands, is lost.
    pub fn kill(&mut self) {
        let (stop, thread) = self.life.take().expect("it lives");
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
    }

    pub fn revive(&mut self) {
        let server = Server::bind(&self.address, &Security::Open, Limits::default()).unwrap();
        self.serve(server);
    }

    fn serve(&mut self, server: Server) {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, disk) = (stop.clone(), self.disk.clone());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                if let Some(Incoming { peer, payload }) = server.receive(Duration::from_millis(5)).unwrap() {
                    answer(&server, &peer, &payload, &mut disk.lock().unwrap());
                }
            }
        });
        self.life = Some((stop, thread));
    }

    /// Records of a ring that are stored, none missing among them.
    pub fn stored(&self, ring: u64) -> u64 {
        let disk = self.disk.lock().unwrap();
        let records = disk.records.range((ring, 0)..(ring + 1, 0));
        for (expected, ((_, number), record)) in (0..).zip(records.clone()) {
            assert_eq!((*number, record.0[3]), (expected, expected), "no gap, and each record under its number");
        }
        records.count() as u64
    }

    pub fn doubled(&self) -> u64 {
        self.disk.lock().unwrap().doubled
    }

    pub fn health(&self) -> Option<Health> {
        self.disk.lock().unwrap().health.clone()
    }

    pub fn spooled_range_was_seen(&self) -> bool {
        self.disk.lock().unwrap().spool_seen
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if self.life.is_some() {
            self.kill();
        }
    }
}

fn answer(server: &Server, peer: &PeerId, payload: &[u8], disk: &mut Disk) {
    let order = match wire::decode(payload).unwrap() {
        ToCoordinator::Agent(AgentEvent::Batch(batch)) => store(disk, &batch),
        ToCoordinator::Agent(AgentEvent::Ping { sent_ns, .. }) => {
            AgentOrder::Pong { sent_ns, received_ns: now_ns().checked_add_signed(CLOCK_AHEAD_NS).unwrap() }
        }
        ToCoordinator::Agent(AgentEvent::Health(health)) => {
            disk.spool_seen |= health.counters.iter().any(|(name, value)| name == "spool_bytes" && *value > 0);
            disk.health = Some(health);
            return;
        }
        other => panic!("an agent says nothing else: {other:?}"),
    };
    // A peer that is gone is no fault.
    let _ = server.send(peer, wire::encode(&FromCoordinator::Agent(order)));
}

fn store(disk: &mut Disk, batch: &Batch) -> AgentOrder {
    let next = disk.next.entry(batch.ring.0).or_insert(0);
    let end = batch.first + batch.records.len() as u64;
    if batch.records.is_empty() {
        *next = (*next).max(batch.first);
    } else if batch.first <= *next {
        for (number, record) in (batch.first..).zip(&batch.records).filter(|(number, _)| *number >= *next) {
            disk.doubled += u64::from(disk.records.insert((batch.ring.0, number), *record).is_some());
        }
        *next = end.max(*next);
    }
    AgentOrder::Stored { ring: batch.ring, next: *next }
}
