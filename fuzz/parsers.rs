//! What each fuzz target and each file of the corpus goes through: bytes in, no panic, and what was read is written and
//! read again as the same.

#![allow(dead_code, reason = "each target uses one")]

#[path = "../src/duration.rs"]
mod duration_text;

use adaptis_coordinator::profiles::gathered::{Gathered, Text, gather};
use adaptis_coordinator::profiles::import::{self, Format, Given, Unit};
use adaptis_coordinator::profiles::sailor::Facts;
use adaptis_coordinator::profiles::{cells, exchange, measurement};
use adaptis_coordinator::replay;
use adaptis_executor::emulation::Emulation;
use adaptis_executor::launcher::Fault;
use adaptis_executor::preset::cluster::Cluster;
use adaptis_executor::preset::{self, model};
use adaptis_plan::{Plan, Problem, audit, iteration_ns, peak_bytes};
use adaptis_planner::bounds::lower_bound_ns;
use adaptis_planner::schedule::{Name, even, named};
use adaptis_planner::search::{Control, Options, search};
use adaptis_proto::message::{Batch, FromCoordinator, PeerHeader, ToCoordinator};
use adaptis_proto::sample::{Record, Sample};
use adaptis_proto::wire;
use adaptis_ring::Reader;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// `adaptis.problem/1`.
pub fn problem(bytes: &[u8]) {
    if let Some(Ok(problem)) = text(bytes).map(Problem::read) {
        assert_eq!(Problem::read(&problem.write()), Ok(problem));
    }
}

/// A small problem through everything that plans: what comes out is valid and takes what it claims.
pub fn planner(bytes: &[u8]) {
    const EVALUATIONS: u64 = 100;
    let Some(Ok(problem)) = text(bytes).map(Problem::read) else { return };
    if problem.layers.len() > 8 || problem.devices.len() > 4 || problem.microbatches > 8 {
        return;
    }
    let bound_ns = lower_bound_ns(&problem);
    let check = |plan: &Plan| {
        assert_eq!(audit(&problem, plan), []);
        let claimed = plan.predicted.as_ref().expect("a plan carries its prediction");
        assert_eq!(iteration_ns(&problem, plan), Ok(claimed.iteration_ns));
        assert_eq!(peak_bytes(&problem, plan).as_ref(), Ok(&claimed.peak_bytes));
        assert!(bound_ns <= claimed.iteration_ns, "{bound_ns} is no bound of {}", claimed.iteration_ns);
    };
    let _ = audit(&problem, &even(&problem));
    for name in Name::ALL {
        if let Ok(plan) = named(&problem, name) {
            check(&plan);
        }
    }
    let options = Options { evaluations: Some(EVALUATIONS), ..Options::default() };
    if let Ok(outcome) = search(&problem, None, &options, &mut |_| Control::Go) {
        check(&outcome.plan);
    }
}

/// `adaptis.plan/1`, and the audit of whatever it holds.
pub fn plan(bytes: &[u8]) {
    const PROBLEM: &str = include_str!("../tests/data/uniform_p4_m8.json");
    if let Some(Ok(plan)) = text(bytes).map(Plan::read) {
        let problem = Problem::read(PROBLEM).expect("the problem is well formed");
        let _ = audit(&problem, &plan);
        let _ = plan.map_to(&["gpu3".to_owned(), "gpu0".to_owned()]);
        assert_eq!(Plan::read(&plan.write()), Ok(plan));
    }
}

/// `adaptis.emulation/1`.
pub fn emulation(bytes: &[u8]) {
    if let Some(Ok(emulation)) = text(bytes).map(Emulation::read) {
        let _ = emulation.job();
        assert_eq!(Emulation::read(&emulation.write()), Ok(emulation));
    }
}

/// A list of devices, or the TOML of a cluster; and the problem that is made of it.
pub fn devices(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    for cluster in [Cluster::parse(text).ok(), Cluster::from_toml("devices.toml", text).ok()].into_iter().flatten() {
        let layers = model::layers(model::Preset::Llama);
        let problem = preset::problem(&layers, &cluster, 16);
        if problem.check().is_ok() {
            assert_eq!(Problem::read(&problem.write()), Ok(problem));
        }
    }
}

/// A fault of a demo.
pub fn fault(bytes: &[u8]) {
    if let Some(Ok(fault)) = text(bytes).map(str::parse::<Fault>) {
        let _ = fault.check(&["gpu0".to_owned(), "gpu1".to_owned()], 120);
        assert_eq!(fault.to_string().parse::<Fault>(), Ok(fault));
    }
}

/// A time as people write it.
pub fn duration(bytes: &[u8]) {
    if let Some(text) = text(bytes) {
        let _ = duration_text::duration(text);
    }
}

/// Profiles in every format that is imported, whatever their name says; what is ours is written and read again as the same.
pub fn profiles(bytes: &[u8]) {
    const NOW: u64 = 1_790_000_000;
    let Some(text) = text(bytes) else { return };
    let _ = import::detect(text);
    let given = Given { split_backward: Some(0.4), ..Given::default() };
    let of_none = Given { unit: Some(Unit::Milliseconds), kind: Some("V100 16GB".to_owned()), ..given.clone() };
    for (name, format) in [
        ("OPT-30.A100-40.json", Format::Sailor),
        ("gpt_1_3B_mbs1_tp1_algo0.csv", Format::Aceso),
        ("a", Format::Adaptis),
    ] {
        for given in [&given, &of_none] {
            if let Ok(collection) = import::import(name, text, format, given, NOW) {
                let written = exchange::write(&collection).expect("what was read is written");
                let again = exchange::read("again", &written, None, NOW).expect("what was written is read");
                assert_eq!(again, collection);
            }
        }
    }
    for name in ["OPT-30.A100-40.json", "profiles.json"] {
        if let Ok(gathered) = gather(&[Text { name, text }], &Facts::default()) {
            let written = measurement::write(&gathered.measurements);
            let again = measurement::read(&written).expect("what was written is read");
            assert_eq!(measurement::write(&again), written);
        }
    }
}

/// Cells that a prediction is asked for.
pub fn cells(bytes: &[u8]) {
    if let Some(text) = text(bytes) {
        let _ = cells::read(text, &Gathered::default(), &Facts::default());
    }
}

/// A recorded job, through all of its diagnosis.
pub fn trace(bytes: &[u8]) {
    let file = tempfile::Builder::new().suffix(".parquet").tempfile().expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("a temporary file can be written");
    let _ = replay::replay(file.path(), &replay::Options::default());
}

/// Every message of the wire. Bytes are compared, since a loss that is no number is not equal to itself.
pub fn wire(bytes: &[u8]) {
    fn comes_back<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
        if let Ok(message) = wire::decode::<T>(bytes) {
            let written = wire::encode(&message);
            let read: T = wire::decode(&written).expect("what was encoded is decoded");
            assert_eq!(wire::encode(&read), written);
        }
    }
    comes_back::<ToCoordinator>(bytes);
    comes_back::<FromCoordinator>(bytes);
    comes_back::<Batch>(bytes);
    if let Ok((header, payload)) = wire::decode_with::<PeerHeader>(bytes) {
        let written = wire::encode_with(&header, payload);
        let (read, rest) = wire::decode_with::<PeerHeader>(&written).expect("what was encoded is decoded");
        assert_eq!((wire::encode(&read), rest), (wire::encode(&header), payload));
    }
}

/// A record of the ring.
pub fn record(bytes: &[u8]) {
    for chunk in bytes.chunks_exact(Record::BYTES) {
        let mut words = [0; Record::WORDS];
        for (word, bytes) in words.iter_mut().zip(chunk.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        if let Ok(sample) = Sample::try_from(Record(words)) {
            assert_eq!(Sample::try_from(Record::from(sample)), Ok(sample));
        }
    }
}

/// A ring's file: the bytes as it is mapped, made as long as its header asks for.
pub fn ring(bytes: &[u8]) {
    const CAPACITY_AT: usize = 2 * 8;
    const SLOTS_AT: usize = 64 * 8;
    const BYTES_MAX: u64 = 1 << 16;
    let mut whole = bytes.to_vec();
    if let Some(capacity) = bytes.get(CAPACITY_AT..CAPACITY_AT + 8) {
        let capacity = u64::from_le_bytes(capacity.try_into().expect("eight bytes"));
        let length = capacity.saturating_mul(Record::BYTES as u64).saturating_add(SLOTS_AT as u64);
        if length <= BYTES_MAX {
            whole.resize(length as usize, 0);
        }
    }
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), &whole).expect("a temporary file can be written");
    let Ok(mut reader) = Reader::open(file.path()) else { return };
    let mut records = Vec::new();
    let next = reader.read(0, &mut records, usize::MAX);
    assert!(records.len() as u64 <= reader.capacity_records());
    for record in records {
        let _ = Sample::try_from(record);
    }
    let _ = (reader.step(), reader.dropped(), reader.closed(), reader.device().len());
    reader.commit(next);
}
