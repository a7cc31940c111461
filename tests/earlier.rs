//! A run begins with what earlier ones measured: two demos and the store between them, in real processes; and stores that
//! can't be read.

mod support;

use adaptis_coordinator::profiles::library::{FILE, Library};
use adaptis_link::{Client, Limits, Security};
use adaptis_proto::message::{Ask, FromCoordinator, ToCoordinator};
use adaptis_proto::wire;
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{Folder, adaptis, hello, signal, text, until};

/// Runs a demo; gives its report and what its coordinator said.
fn demo(folder: &Folder, name: &str, store: Option<&str>, extra: &[&str]) -> (Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.args(["demo", "--fault", "none", "--out", &folder.text(name)]).args(extra);
    match store {
        Some(store) => command.env("ADAPTIS_STORE", store),
        None => command.env_remove("ADAPTIS_STORE"),
    };
    let output = command.output().expect("the demo starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let read = |path: &str| std::fs::read_to_string(folder.path(name).join(path)).expect("the demo wrote it");
    (serde_json::from_str(&read("report.json")).expect("JSON"), read("logs/coordinator.log"))
}

/// Rows of the estimate that come from there.
fn rows<'a>(report: &'a Value, source: &str) -> Vec<&'a Value> {
    let rows = report["estimate"].as_array().into_iter().flatten();
    rows.filter(|row| row["source"] == source).collect()
}

#[test]
fn a_second_run_begins_with_what_the_first_measured() {
    let folder = Folder::new();
    // Of one seed: the demo scales time by a search.
    let run =
        |name, store, iterations| demo(&folder, name, store, &["--static", "--seed", "7", "--iterations", iterations]);
    let (first, _) = run("first", None, "12");
    let store = folder.text("store");
    let merged = adaptis(&["profiles", "merge", "--into", &store, &folder.text("first")]);
    assert!(merged.status.success(), "{}", text(&merged.stderr));

    // Too short for a fit of its own: what is known in the end was known before the first iteration.
    let (with, said) = run("with", Some(store.as_str()), "5");
    let (without, said_without) = run("without", None, "5");
    let told = said.lines().find(|line| line.contains("earlier jobs tell")).unwrap_or_else(|| panic!("{said}"));
    let number = told.rsplit_once("takes ").and_then(|(_, rest)| rest.strip_suffix(" ms"));
    let predicted_ms: f64 = number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{told}"));
    let measured_ms = with["phases"][0]["measured_median_ns"].as_f64().expect("a phase") / 1e6;
    assert!((predicted_ms / measured_ms - 1.0).abs() < 0.1, "{predicted_ms} ms said, {measured_ms} ms measured");
    assert!(!said.contains("WARN") && !said_without.contains("earlier jobs"), "{said}");
    assert!(without["estimate"].is_null(), "nobody told it anything");
    assert!(with["figures"]["earlier_jobs"].as_u64() > Some(0), "{}", with["figures"]);
    let mut counters = with["counters"].as_object().expect("counters").keys();
    assert!(!counters.any(|name| name.starts_with("figures")), "they go up and down: {}", with["counters"]);

    // Optimizer steps and works of nothing are short: a host that is busy makes of them what it will.
    let is_long = |row: &&Value| row["phase"] != "optimizer" && row["ns"].as_f64() > Some(3e5);
    let measured: Vec<&Value> = rows(&first, "measured").into_iter().filter(is_long).collect();
    assert!(measured.len() >= 12, "{}: {measured:#?}", measured.len());
    let known = rows(&with, "earlier_jobs");
    for row in measured {
        let key = |row: &Value| ["kind", "signature", "phase"].map(|name| row[name].clone());
        let found = known.iter().find(|known| key(known) == key(row)).unwrap_or_else(|| panic!("{row} is not known"));
        let [ns, low, high] = ["ns", "low_ns", "high_ns"].map(|name| found[name].as_f64().expect("a time"));
        let measured_ns = row["ns"].as_f64().expect("a time");
        assert!(low < measured_ns && measured_ns < high, "{found} {row}");
        assert!(high / low > 1.2, "another job is not known as well as this one: {found}");
        assert!((ns / measured_ns - 1.0).abs() < 0.1, "{found} {row}");
    }
}

/// Runs a coordinator with a store that can't be read, with a rank that is there; gives what it said.
fn with_store(folder: &Folder, name: &str, store: &str) -> String {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port();
    let address = format!("tcp://127.0.0.1:{port}");
    let log = folder.path(&format!("{name}.log"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.args([
        "coordinator",
        "--dir",
        &folder.text(name),
        "--listen",
        &address,
        "--http",
        "none",
        "--store",
        store,
    ]);
    let output = std::fs::File::create(&log).expect("a log");
    let mut child = command.stdout(Stdio::null()).stderr(output).spawn().expect("it starts");
    let rank = Client::connect(&address, "rank/host", &Security::Open, Limits::default()).expect("an address");
    let person = Client::connect(&address, "person", &Security::Open, Limits::default()).expect("an address");
    let said = || std::fs::read_to_string(&log).expect("the log");
    until("nothing was said of the store", || {
        rank.send(wire::encode(&hello())).expect("it is sent");
        std::thread::sleep(Duration::from_millis(50));
        said().contains("begins without") || said().contains("earlier jobs tell")
    });
    // And it goes on.
    person.send(wire::encode(&ToCoordinator::Ask(Ask::Status))).expect("it is sent");
    let answer = person.receive(Duration::from_secs(10)).expect("a link").expect("an answer");
    let answer = format!("{:?}", wire::decode::<FromCoordinator>(&answer));
    assert!(answer.contains("Training"), "{answer}");
    signal(&child, libc::SIGTERM);
    assert!(child.wait().expect("it ends").success());
    said()
}

#[test]
fn a_store_that_can_not_be_read_costs_one_warning() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("foreign")).expect("a folder");
    folder.write(&format!("foreign/{FILE}"), &"no database, but long enough to be looked at. ".repeat(100));
    Library::open(&folder.path("damaged")).expect("a folder");
    let path = folder.path("damaged").join(FILE);
    let mut bytes = std::fs::read(&path).expect("the store");
    bytes[100..].fill(0x5a);
    std::fs::write(&path, bytes).expect("the store");
    for (name, word) in [("foreign", "is not a store"), ("damaged", "damaged")] {
        let said = with_store(&folder, &format!("run-{name}"), &folder.text(name));
        let warnings: Vec<&str> = said.lines().filter(|line| line.contains("WARN")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(word) && warnings[0].contains(FILE), "{said}");
    }
}
