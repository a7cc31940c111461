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

/// Rows of the estimate of works that the kind did in no iteration of the run.
fn not_run(report: &Value) -> Vec<&Value> {
    let rows = report["estimate"].as_array().expect("an estimate");
    rows.iter().filter(|row| row["source"] == "earlier_jobs" || row["source"] == "calibrated").collect()
}

#[test]
fn a_second_run_begins_with_what_the_first_measured() {
    let folder = Folder::new();
    // The first one plans again, so that layers run on both kinds.
    demo(&folder, "first", None, &["--iterations", "20", "--seed", "7"]);
    let store = folder.text("store");
    let merged = adaptis(&["profiles", "merge", "--into", &store, &folder.text("first")]);
    assert!(merged.status.success(), "{}", text(&merged.stderr));

    let short = ["--iterations", "8", "--seed", "8", "--static"];
    let (with, said) = demo(&folder, "with", Some(&store), &short);
    let (without, said_without) = demo(&folder, "without", None, &short);
    // Before an iteration ended it was said what one takes, and so it was.
    let told = said.lines().find(|line| line.contains("earlier jobs tell")).unwrap_or_else(|| panic!("{said}"));
    let number = told.rsplit_once("takes ").and_then(|(_, rest)| rest.strip_suffix(" ms"));
    let predicted_ms: f64 = number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{told}"));
    let measured_ms = with["phases"][0]["measured_median_ns"].as_f64().expect("a phase") / 1e6;
    assert!((predicted_ms / measured_ms - 1.0).abs() < 0.1, "{predicted_ms} ms said, {measured_ms} ms measured");
    assert!(!said_without.contains("earlier jobs") && !said.contains("WARN"), "{said}");

    // What a kind did not run in eight iterations on an even split stands on the first run, and is known better.
    let (own, other) = (not_run(&with), not_run(&without));
    let of_first: Vec<&&Value> = own.iter().filter(|row| row["source"] == "earlier_jobs").collect();
    assert!(!of_first.is_empty(), "{own:#?}");
    assert!(other.iter().all(|row| row["source"] == "calibrated"), "{other:#?}");
    let truth = std::fs::read_to_string(folder.path("with").join("truth.json")).expect("the truth");
    let truth: Value = serde_json::from_str(&truth).expect("JSON");
    for row in of_first {
        let [ns, low, high] = ["ns", "low_ns", "high_ns"].map(|name| row[name].as_f64().expect("a time"));
        assert!(low < ns && ns < high, "{row}");
        let layers = truth["layers"].as_array().expect("layers");
        let layer = layers.iter().position(|layer| layer["signature"] == row["signature"]).expect("its layer");
        let cost = &truth["costs"][row["kind"].as_str().expect("a kind")][layer];
        let phase = format!("{}_ns", row["phase"].as_str().expect("a phase"));
        // Works of nothing take as long as the clock needs.
        if let Some(true_ns) = cost[&phase].as_f64().filter(|ns| *ns > 1e5) {
            assert!((ns / true_ns - 1.0).abs() < 0.1, "{row}, in truth {true_ns}");
        }
    }
    let figures = |report: &Value| report["counters"]["figures.earlier_jobs"].as_u64();
    assert!(figures(&with) > Some(0) && figures(&without).is_none());
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
