//! A coordinator as a service: real sockets, a real folder, ranks and agents that speak the wire.

#![allow(clippy::unwrap_used, reason = "what fails in a test may end it there")]

mod speaking;

use adaptis_coordinator::profiles::library::{self, Library};
use adaptis_coordinator::{CoordinatorError, Ended, Options, REPORT_FILE, Store, run, work_of};
use adaptis_proto::message::{
    AgentEvent, AgentOrder, Answer, Ask, FromCoordinator, Health, RankEvent, RankOrder, Rejection, State, Status,
    ToCoordinator,
};
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::{Mark, Phase, Place, Sample};
use adaptis_proto::{Digest, Epoch, Generation, Incarnation, LayerIndex, Microbatch, Step, Term, wire};
use speaking::*;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn a_run_from_hello_to_report() {
    let dir = tempfile::tempdir().unwrap();
    let faults = dir.path().join("faults.json");
    std::fs::write(&faults, r#"[{"iteration": 1, "text": "throttle:gpu0:1.8"}]"#).unwrap();
    let service = Service::start(dir.path(), |options| options.faults = Some(faults));
    let (rank, agent, person) = (service.client("rank"), service.client("agent"), service.client("person"));

    let (plan, digest) = ask(&rank, &hello(), |message| match message {
        FromCoordinator::Rank(RankOrder::Start { epoch: Epoch(1), plan, digest, .. }) => Some((plan, digest)),
        _ => None,
    });
    assert_eq!(adaptis_plan::Plan::digest(&plan), digest);
    assert_eq!(std::fs::read_to_string(dir.path().join("plans/epoch-1.json")).unwrap(), plan);

    let epoch = status(&person).place.epoch;
    assert_eq!(epoch, Epoch(1), "the plan in force is known before an iteration is recorded");

    assert_eq!(ask(&agent, &batch(0, &iterations()), stored), 3);
    say(&agent, batch(1, &iterations()[1..]));
    say(&agent, batch(7, &iterations()[..1]));
    agent.send(b"no message of ours".to_vec()).unwrap();
    let pong = ToCoordinator::Agent(AgentEvent::Ping { device: "gpu0".into(), sent_ns: 5 });
    ask(&agent, &pong, |message| match message {
        FromCoordinator::Agent(AgentOrder::Pong { sent_ns: 5, received_ns }) => Some(received_ns),
        _ => None,
    });

    let place = Place { step: Step(3), epoch: Epoch(1), generation: Generation(1) };
    let layers = vec![(LayerIndex(1), Digest([2; 32])), (LayerIndex(0), Digest([1; 32]))];
    let finished = ToCoordinator::Rank(RankEvent::Finished { incarnation: Incarnation(7), place, layers });
    ask(&rank, &finished, |message| match message {
        FromCoordinator::Rank(RankOrder::Dismissed { .. }) => Some(()),
        _ => None,
    });

    let ToCoordinator::Rank(RankEvent::Hello { card, job, endpoint, place, seen, .. }) = hello() else {
        unreachable!()
    };
    let late = RankEvent::Hello { incarnation: Incarnation(8), card, job, endpoint, place, seen };
    ask(&rank, &ToCoordinator::Rank(late), |message| match message {
        FromCoordinator::Rank(RankOrder::Rejected { reason: Rejection::RunOver { .. }, .. }) => Some(()),
        _ => None,
    });

    let status = status(&person);
    assert_eq!((status.state, status.place.step), (State::Finished, Step(2)));
    let received = counter(&status, "records_received");
    let kept = counter(&status, "records_stored");
    let dropped = counter(&status, "records_duplicate") + counter(&status, "records_beyond_gap");
    assert_eq!((received, kept), (kept + dropped, 3), "received = stored + dropped + queued");
    assert_eq!(counter(&status, "messages_malformed"), 1);
    assert_eq!(counter(&status, "gpu0.records_dropped_ring_full"), 2);

    let alive = service.get("/livez");
    assert!(alive.starts_with("HTTP/1.1 200") && alive.contains("connection: close"), "{alive}");
    assert!(service.get("/healthz").starts_with("HTTP/1.1 200"));
    assert!(service.get("/readyz").starts_with("HTTP/1.1 200"));
    let metrics = service.get("/metrics");
    assert!(metrics.contains("adaptis_iteration 2"), "{metrics}");
    assert!(metrics.contains(r#"adaptis_events_total{name="records_stored"} 3"#), "{metrics}");
    assert!(service.get("/status").contains(r#""state":"Finished""#));
    assert!(service.get_as("/status.json", "text/html").contains("application/json"));
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    for page in [service.get("/"), service.get_as("/status", browser)] {
        assert!(page.contains("text/html") && page.contains("<td>gpu0</td>") && page.contains("finished"), "{page}");
    }

    let path = ask(&person, &ToCoordinator::Ask(Ask::Report), |message| match message {
        FromCoordinator::Answer(Answer::Report { path }) => Some(path),
        _ => None,
    });
    check_report(&std::fs::read_to_string(path).unwrap());
    assert_eq!(service.end(), Ended::Finished);
    assert_eq!(work_of(dir.path(), 0..=1).unwrap().len(), 2);
}

fn check_report(text: &str) {
    let report: serde_json::Value = serde_json::from_str(text).unwrap();
    let keys: Vec<&str> = report.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [
        "format",
        "configuration",
        "devices",
        "plans",
        "iterations",
        "final_state_digest",
        "faults",
        "decisions",
        "switches",
        "phases",
        "counters",
    ];
    expected.sort_unstable();
    let mut sorted = keys;
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    assert_eq!(report["format"], "adaptis.report/1");
    let first = serde_json::json!({
        "index": 0, "epoch": 1, "generation": 1, "duration_ns": 100, "loss": 4.1, "loss_bits": "40833333"
    });
    let mut found = report["iterations"][0].clone();
    assert!((found["loss"].as_f64().unwrap() - 4.1).abs() < 1e-6);
    found["loss"] = 4.1.into();
    assert_eq!(found, first);
    assert_eq!(report["iterations"].as_array().unwrap().len(), 3);
    assert_eq!(report["faults"], serde_json::json!([{ "iteration": 1, "text": "throttle:gpu0:1.8" }]));
    assert_eq!(report["plans"][0]["epoch"], 1);
    assert_eq!(report["plans"][0]["parent"], 0);
    assert_eq!(report["plans"][0]["iteration"], 0);
    let phase = serde_json::json!({
        "from": 0, "to": 2, "epoch": 1, "measured_median_ns": 101, "predicted_ns": null
    });
    assert_eq!(report["phases"], serde_json::json!([phase]));
    // BLAKE3 over 32 ones and 32 twos.
    let digest = blake3::hash(&[[1u8; 32], [2u8; 32]].concat()).to_hex().to_string();
    assert_eq!(report["final_state_digest"], digest);
    assert_eq!(report["counters"]["records_stored"], 3);
}

#[test]
fn memory_beyond_its_plan_is_told_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path(), |_| {});
    let (rank, agent, person) = (service.client("rank"), service.client("agent"), service.client("person"));
    ask(&rank, &hello(), is_started);
    let place = |step| Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
    let peak =
        |step, peak_bytes| Sample::DeviceMemory { place: place(step), peak_bytes, reserved_bytes: 5, late_ns: 0 };
    let works = [LayerIndex(0), LayerIndex(1)].into_iter().flat_map(|layer| {
        let memory = Sample::LayerMemory {
            place: place(0),
            layer,
            activation_bytes: 10,
            weight_gradient_bytes: 5,
            workspace_bytes: 0,
        };
        let work = move |step, microbatch, phase| Sample::Work {
            place: place(step),
            layer,
            microbatch: Microbatch(microbatch),
            phase,
            mark: Mark::Warm,
            start_ns: 0,
            duration_ns: 1_000_000,
        };
        let phases = [Phase::Forward, Phase::InputGradient, Phase::WeightGradient];
        let works = (0..8)
            .flat_map(move |step| (0..2).flat_map(move |microbatch| phases.map(|phase| work(step, microbatch, phase))));
        std::iter::once(memory).chain(works)
    });
    let mut samples: Vec<Sample> = works.collect();
    let end = |step| Sample::Iteration { place: place(step), start_ns: step, duration_ns: 100, loss_bits: 0 };
    samples.extend((0..8).flat_map(|step| [peak(step, 2 << 20), end(step)]));
    let count = samples.len() as u64;
    assert_eq!(ask(&agent, &batch(0, &samples), stored), count);

    let peaks = ask(&person, &ToCoordinator::Ask(Ask::Memory), |message| match message {
        FromCoordinator::Answer(Answer::Memory(peaks)) => Some(peaks),
        _ => None,
    });
    let [known] = &peaks[..] else { panic!("{peaks:?}") };
    // What it reserves, the state of two layers, and one microbatch in flight: layer by layer 10 and 10.
    assert_eq!(known.predicted_bytes, Some(5 + 8 + 20), "as first estimated");
    assert_eq!((known.measured_bytes, known.is_close()), (2 << 20, true));
    let begun = Instant::now();
    while !service.get("/status.json").contains(r#""measured_bytes":2097152"#) {
        assert!(begun.elapsed() < PATIENCE, "{}", service.get("/status.json"));
    }
    assert!(service.get("/").contains("most of what was left"), "{}", service.get("/"));
    assert_eq!(service.end(), Ended::Stopped);
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join(REPORT_FILE)).unwrap()).unwrap();
    let row = &report["memory"][0];
    assert_eq!((&row["epoch"], &row["device"], &row["predicted_bytes"]), (&1.into(), &"gpu0".into(), &33.into()));
    assert_eq!(row["shortfall_bytes"], (2 << 20) - 33);
    let remark = row["remark"].as_str().unwrap();
    assert!(remark.starts_with("plan 1 needed 2097119 bytes more on gpu0 than predicted"), "{remark}");
}

#[test]
fn samples_of_a_job_that_the_ledger_does_not_hold_stay_with_their_agent() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path(), |_| {});
    let (agent, person) = (service.client("agent"), service.client("person"));
    say(&agent, batch(0, &iterations()));
    let begun = Instant::now();
    while counter(&status(&person), "batches_deferred") == 0 {
        assert!(begun.elapsed() < PATIENCE, "the batch arrives");
        say(&agent, batch(0, &iterations()));
    }
    while let Some(bytes) = agent.receive(Duration::from_millis(100)).unwrap() {
        assert_eq!(stored(wire::decode(&bytes).unwrap()), None, "nobody said that it is safe");
    }
    ask(&service.client("rank"), &hello(), is_started);
    assert_eq!(ask(&agent, &batch(0, &iterations()), stored), 3, "now there is a job");
    assert_eq!(service.end(), Ended::Stopped);
}

#[test]
fn a_restarted_coordinator_goes_on_where_the_ledger_stands() {
    let dir = tempfile::tempdir().unwrap();
    let first = Service::start(dir.path(), |_| {});
    let started = |message| match message {
        FromCoordinator::Rank(RankOrder::Start { term, .. }) => Some(term),
        _ => None,
    };
    assert_eq!(ask(&first.client("rank"), &hello(), started), Term(1));
    assert_eq!(first.end(), Ended::Stopped);

    std::fs::remove_file(dir.path().join("plans/epoch-1.json")).unwrap();
    let second = Service::start(dir.path(), |_| {});
    let rank = second.client("rank");
    let place = Place { step: Step(1), epoch: Epoch(1), generation: Generation(1) };
    let beat = ToCoordinator::Rank(RankEvent::Beat { incarnation: Incarnation(7), place, armed: None });
    let term = ask(&rank, &beat, |message| match message {
        FromCoordinator::Rank(RankOrder::Introduce { term }) => Some(term),
        _ => None,
    });
    assert_eq!(term, Term(2));
    assert!(dir.path().join("plans/epoch-1.json").is_file(), "a plan that only the ledger holds is written again");
    assert_eq!(ask(&second.client("agent"), &batch(0, &iterations()), stored), 3);
    let status = status(&second.client("person"));
    assert_eq!((status.state, status.place.epoch, status.run.0.as_str()), (State::Training, Epoch(1), "test"));
    assert_eq!(second.end(), Ended::Stopped);
    assert!(dir.path().join(REPORT_FILE).is_file(), "a stopped coordinator leaves its report");
}

#[test]
fn what_a_killed_coordinator_had_stored_is_in_the_profiles_of_its_successor_once() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(&dir.path().join("first"), |_| {});
    ask(&service.client("rank"), &hello(), is_started);
    let place = Place { step: Step(5), epoch: Epoch(1), generation: Generation(1) };
    let work = |microbatch: u32| Sample::Work {
        place,
        layer: LayerIndex(1),
        microbatch: Microbatch(microbatch),
        phase: Phase::Forward,
        mark: Mark::Warm,
        start_ns: 1,
        duration_ns: 1_000,
    };
    let memory = Sample::LayerMemory {
        place,
        layer: LayerIndex(1),
        activation_bytes: 64,
        weight_gradient_bytes: 32,
        workspace_bytes: 0,
    };
    assert_eq!(ask(&service.client("agent"), &batch(0, &[work(0), work(1), memory]), stored), 3);
    // As the files lie when it is killed now.
    let copy = dir.path().join("second");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(dir.path().join("first")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
        }
    }
    assert_eq!(service.end(), Ended::Stopped);
    let counts = |name: &str| {
        let profiles = Store::open(&dir.path().join(name), u64::MAX).unwrap().profiles().unwrap();
        (profiles.works.values().map(|work| work.count).sum::<u64>(), profiles.memories.len())
    };
    assert_eq!(counts("first"), (2, 1));
    assert_eq!(counts("second"), (0, 0), "the test's premise: nothing was merged");
    for _ in 0..2 {
        assert_eq!(Service::start(&copy, |_| {}).end(), Ended::Stopped);
        assert_eq!(counts("second"), (2, 1));
    }
}

/// What an agent says of itself: all it took is stored, and 2 were dropped.
fn health(stored: u64) -> ToCoordinator {
    let counters = [("taken", stored + 2), ("stored", stored), ("dropped_ring_full", 2), ("queued", 0)];
    let counters = counters.map(|(name, count)| (name.to_owned(), count)).to_vec();
    let (device, readings) = ("gpu0".to_owned(), Vec::new());
    ToCoordinator::Agent(AgentEvent::Health(Health { device, incarnation: Incarnation(3), readings, counters }))
}

fn is_started(message: FromCoordinator) -> Option<()> {
    matches!(message, FromCoordinator::Rank(RankOrder::Start { .. })).then_some(())
}

/// Trains three iterations to their recorded end.
fn finish(service: &Service) {
    let (rank, agent) = (service.client("rank"), service.client("agent"));
    ask(&rank, &hello(), is_started);
    assert_eq!(ask(&agent, &batch(0, &iterations()), stored), 3);
    let place = Place { step: Step(3), epoch: Epoch(1), generation: Generation(1) };
    let layers = vec![(LayerIndex(0), Digest([1; 32])), (LayerIndex(1), Digest([2; 32]))];
    let finished = ToCoordinator::Rank(RankEvent::Finished { incarnation: Incarnation(7), place, layers });
    ask(&rank, &finished, |message| {
        matches!(message, FromCoordinator::Rank(RankOrder::Dismissed { .. })).then_some(())
    });
}

fn report(dir: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join(REPORT_FILE)).unwrap()).unwrap()
}

#[test]
fn counters_go_on_where_an_earlier_reign_left_them() {
    let dir = tempfile::tempdir().unwrap();
    let first = Service::start(dir.path(), |_| {});
    ask(&first.client("rank"), &hello(), is_started);
    let agent = first.client("agent");
    assert_eq!(ask(&agent, &batch(0, &iterations()[..2]), stored), 2);
    agent.send(b"no message of ours".to_vec()).unwrap();
    say(&agent, health(2));
    let person = first.client("person");
    let begun = Instant::now();
    while !status(&person).counters.iter().any(|(name, _)| name == "gpu0.agent.stored") {
        assert!(begun.elapsed() < PATIENCE, "no health");
    }
    let before = status(&person);
    drop(agent);
    assert_eq!(first.end(), Ended::Stopped);

    let second = Service::start(dir.path(), |_| {});
    let agent = second.client("agent");
    let after = status(&second.client("person"));
    let of_records = |status: &Status| -> Vec<(String, u64)> {
        let is_of_records = |(name, _): &&(String, u64)| name.contains("records_") || name.contains(".agent.");
        status.counters.iter().filter(is_of_records).cloned().collect()
    };
    assert_eq!(of_records(&after), of_records(&before));
    assert_eq!(counter(&after, "records_stored"), 2);
    assert_eq!(counter(&after, "messages_malformed"), 1);
    assert!(counter(&after, "link_received") > counter(&before, "link_received"));
    // The last record, and one that the first reign has: its acknowledgement was lost.
    assert_eq!(ask(&agent, &batch(1, &iterations()[1..]), stored), 3);
    say(&agent, health(3));
    assert_eq!(second.end(), Ended::Stopped);
    let counters = &report(dir.path())["counters"];
    let count = |name: &str| counters[name].as_u64().unwrap_or_else(|| panic!("no counter {name}"));
    assert_eq!((count("records_stored"), count("gpu0.agent.stored")), (3, 3));
    assert_eq!(count("records_dropped_ring_full"), 2);
    let refused = count("records_beyond_gap") + count("records_refused");
    assert!(count("records_duplicate") >= 1);
    assert_eq!(count("records_received"), count("records_stored") + count("records_duplicate") + refused);
}

#[test]
fn what_a_device_did_in_a_calibration_is_kept_by_its_kind() {
    let dir = tempfile::tempdir().unwrap();
    let kept = || library::of_run(dir.path()).unwrap().rates;
    // The device is a `cpu`: what a card did is not its kind's.
    let calibrated = |agent: u64, operations: f64| {
        let rates = [("calibrated_host_operations_per_s", operations), ("calibrated_bytes_per_s", 9e12)];
        let readings = rates.map(|(name, rate)| (name.to_owned(), rate)).to_vec();
        let (device, incarnation) = ("gpu0".to_owned(), Incarnation(agent));
        ToCoordinator::Agent(AgentEvent::Health(Health { device, incarnation, readings, counters: Vec::new() }))
    };
    let first = Service::start(dir.path(), |_| {});
    ask(&first.client("rank"), &hello(), is_started);
    let agent = first.client("agent");
    say(&agent, calibrated(3, 5e10));
    let seen = |service: &Service, rate: &str| {
        let begun = Instant::now();
        while !service.get("/metrics").contains(rate) {
            assert!(begun.elapsed() < PATIENCE, "no {rate}");
        }
    };
    seen(&first, "50000000000");
    assert_eq!(first.end(), Ended::Stopped);
    let of_run = Rates { operations_per_s: Some(50_000_000_000), bytes_per_s: None };
    assert_eq!(kept(), [("cpu".to_owned(), of_run)].into());

    // A slower one, as on a busy host, takes nothing away; a faster one is what the kind can do.
    let second = Service::start(dir.path(), |_| {});
    let agent = second.client("agent");
    say(&agent, calibrated(4, 4e10));
    seen(&second, "40000000000");
    assert_eq!(second.end(), Ended::Stopped);
    assert_eq!(kept()["cpu"], of_run);
    let third = Service::start(dir.path(), |_| {});
    let agent = third.client("agent");
    say(&agent, calibrated(5, 6e10));
    seen(&third, "60000000000");
    assert_eq!(third.end(), Ended::Stopped);
    assert_eq!(kept()["cpu"].operations_per_s, Some(60_000_000_000));

    let store = tempfile::tempdir().unwrap();
    Library::open(store.path()).unwrap().merge(&[library::of_run(dir.path()).unwrap()], 1).unwrap();
    assert_eq!(library::read(store.path()).unwrap().rates(), kept());
}

#[test]
fn a_report_of_an_ended_run_stays_until_there_is_news() {
    let dir = tempfile::tempdir().unwrap();
    let faults = dir.path().join("faults.json");
    std::fs::write(&faults, r#"[{"iteration": 1, "text": "throttle:gpu0:1.8"}]"#).unwrap();
    let first = Service::start(dir.path(), |options| (options.faults, options.seed) = (Some(faults), 5));
    finish(&first);
    assert_eq!(first.end(), Ended::Finished);
    let written = std::fs::read_to_string(dir.path().join(REPORT_FILE)).unwrap();

    let again = Service::start(dir.path(), |_| {});
    let person = again.client("person");
    assert_eq!(status(&person).state, State::Finished);
    ask(&person, &ToCoordinator::Ask(Ask::Report), |message| {
        matches!(message, FromCoordinator::Answer(Answer::Report { .. })).then_some(())
    });
    assert_eq!(again.end(), Ended::Finished);
    assert_eq!(std::fs::read_to_string(dir.path().join(REPORT_FILE)).unwrap(), written);

    let third = Service::start(dir.path(), |_| {});
    assert_eq!(ask(&third.client("agent"), &batch(3, &iterations()[..1]), stored), 4);
    assert_eq!(third.end(), Ended::Finished);
    assert_eq!(report(dir.path())["counters"]["records_stored"], 4, "what an agent had kept is news");
}

#[test]
fn the_report_waits_for_what_leaving_agents_say_last() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path(), |_| {});
    finish(&service);
    let agent = service.client("agent");
    say(&agent, health(2));
    let Service { stop, thread, .. } = service;
    stop.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(300));
    say(&agent, batch(3, &iterations()[..1]));
    say(&agent, health(4));
    assert_eq!(thread.join().unwrap().unwrap(), Ended::Finished);
    let counters = &report(dir.path())["counters"];
    assert_eq!(counters["records_stored"], 4);
    assert_eq!(counters["gpu0.agent.stored"], 4);
    assert_eq!(counters["gpu0.agent.taken"], 6);
}

#[test]
fn what_is_taken_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path(), |_| {});
    status(&service.client("person"));
    let stop = Arc::new(AtomicBool::new(false));
    let other = |dir: &Path, listen: &str, http: &str| {
        let mut options = Options::new(dir.to_owned());
        (options.listen, options.http) = (listen.to_owned(), Some(http.to_owned()));
        run(options, Arc::clone(&stop)).unwrap_err()
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let same = other(dir.path(), "tcp://127.0.0.1:*", "127.0.0.1:0");
    assert!(matches!(same, CoordinatorError::Store(adaptis_coordinator::StoreError::InUse { .. })), "{same}");
    let link = other(elsewhere.path(), &service.address, "127.0.0.1:0");
    assert!(matches!(link, CoordinatorError::Link(adaptis_link::Error::AddressInUse { .. })), "{link}");
    let pages = other(elsewhere.path(), "tcp://127.0.0.1:*", &service.http);
    assert!(matches!(pages, CoordinatorError::AddressInUse { .. }), "{pages}");
    service.end();
}
