//! The whole loop in real processes: a demo, its control, and what may die meanwhile.
//!
//! Two runs at a time would disturb each other on a small machine, so all stories are told one after another.

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Iterations of the runs here: enough for a first re-plan, a fault at 24 and what follows from it.
const ITERATIONS: &str = "48";
const FAULT: &str = "24:throttle:gpu1:1.8";

fn command(dir: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.args(["demo", "--seed", "7", "--iterations", ITERATIONS, "--out"]).arg(dir).args(extra);
    command
}

fn run(dir: &Path, extra: &[&str]) -> Value {
    let output = command(dir, extra).output().expect("the demo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(dir.join("report.json")).expect("a report");
    serde_json::from_str(&text).expect("the report is JSON")
}

fn losses(report: &Value) -> Vec<String> {
    let rows = report["iterations"].as_array().expect("iterations");
    let losses: Vec<String> = rows.iter().map(|row| row["loss_bits"].as_str().expect("bits").to_owned()).collect();
    assert_eq!(losses.len(), ITERATIONS.parse::<usize>().expect("a number"), "every iteration is in the report");
    assert!(rows.iter().enumerate().all(|(index, row)| row["index"].as_u64() == Some(index as u64)));
    losses
}

fn median_ns(report: &Value, from: u64, to: u64) -> u64 {
    let rows = report["iterations"].as_array().expect("iterations").iter();
    let mut durations: Vec<u64> = rows
        .filter(|row| row["index"].as_u64().is_some_and(|index| (from..to).contains(&index)))
        .map(|row| row["duration_ns"].as_u64().expect("a duration"))
        .collect();
    durations.sort_unstable();
    durations[durations.len() / 2]
}

fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_string_lossy().into_owned();
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    entries
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|line| line.contains(&dir) && !line.contains("nextest"))
        .collect()
}

fn is_gone(dir: &Path) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if processes_of(dir).is_empty() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    false
}

#[test]
fn the_plan_follows_the_fault_and_the_training_does_not_notice() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let adaptive = run(&folder.path().join("adaptive"), &["--fault", FAULT]);
    let control = run(&folder.path().join("control"), &["--fault", FAULT, "--static"]);
    assert_eq!(losses(&adaptive), losses(&control));
    assert_eq!(adaptive["final_state_digest"], control["final_state_digest"]);
    assert_eq!(adaptive["final_state_digest"].as_str().map(str::len), Some(64));
    assert_eq!(control["switches"].as_array().map(Vec::len), Some(0));
    memory_is_as_predicted(&adaptive);
    memory_is_as_predicted(&control);

    // Replayed from its folder alone, the run tells what was slow, since when, and by how much.
    let replayed = Command::new(env!("CARGO_BIN_EXE_adaptis"))
        .args(["replay", "--json"])
        .arg(folder.path().join("adaptive"))
        .output()
        .expect("the command starts");
    let diagnosis: Value = serde_json::from_slice(&replayed.stdout).expect("the diagnosis is JSON");
    // A host that is held up through all of a plan may leave times that no replay of works explains, and then says so.
    let code = i32::from(diagnosis["reliable"] == false);
    assert_eq!(replayed.status.code(), Some(code), "{}", String::from_utf8_lossy(&replayed.stderr));
    let finding = &diagnosis["findings"][0];
    assert_eq!((&finding["kind"], &finding["where"]["device"]), (&"worker".into(), &"gpu1".into()), "{finding}");
    let since = finding["where"]["iteration"].as_u64().expect("an iteration");
    assert!((24..=26).contains(&since), "{finding}");
    let factor = finding["factor"].as_f64().expect("a factor");
    assert!((factor / 1.8 - 1.0).abs() < 0.1, "{finding}");

    let switches = adaptive["switches"].as_array().expect("switches");
    let after_fault = switches.iter().find(|switch| switch["iteration"].as_u64() >= Some(24));
    let switched = after_fault.expect("a switch follows the throttle")["iteration"].as_u64().expect("an iteration");
    assert!(switched <= 24 + 8, "switched only at {switched}");
    let last = switches.last().expect("a switch")["iteration"].as_u64().expect("an iteration");
    let under = median_ns(&adaptive, 24, switched);
    let after = median_ns(&adaptive, last, 48);
    assert!((after as f64) <= 0.80 * under as f64, "{after} ns after, {under} ns under the throttle");
    assert!(median_ns(&adaptive, last, 48) < median_ns(&control, last, 48));
    for file in ["timeline.svg", "trace.json", "truth.json", "store.db"] {
        assert!(folder.path().join("adaptive").join(file).exists(), "{file} is missing");
    }
    assert!(is_gone(folder.path()), "left running: {:?}", processes_of(folder.path()));
}

/// Emulated devices need what their layers add up to: predictions of memory are true to the byte.
fn memory_is_as_predicted(report: &Value) {
    let memory = report["memory"].as_array().expect("memory, by plan and device");
    let plans = 1 + report["switches"].as_array().expect("switches").len();
    assert_eq!(memory.len(), plans * report["devices"].as_array().expect("devices").len());
    for row in memory {
        assert!(row["measured_bytes"].as_u64() > Some(1 << 30), "{row}");
        assert_eq!((&row["predicted_bytes"], &row["shortfall_bytes"]), (&row["measured_bytes"], &0.into()), "{row}");
    }
}

#[test]
fn long_sequences_are_neither_drift_nor_other_maths() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let differing = run(&folder.path().join("differing"), &["--fault", FAULT, "--lengths", "0.3"]);
    let alike = run(&folder.path().join("alike"), &["--fault", "none"]);
    assert_eq!(losses(&differing), losses(&alike));
    assert_eq!(differing["final_state_digest"], alike["final_state_digest"]);
    let switches = differing["switches"].as_array().expect("switches");
    let after_fault = switches.iter().find(|switch| switch["iteration"].as_u64() >= Some(24));
    let switched = after_fault.expect("a switch follows the throttle")["iteration"].as_u64().expect("an iteration");
    assert!(switched <= 24 + 8, "switched only at {switched}");
    let decisions = differing["decisions"].as_array().expect("decisions").iter();
    let changes = || decisions.clone().map(|decision| &decision["change"]).filter(|change| !change.is_null());
    let factors: Vec<f64> = changes().filter_map(|change| change["factor"].as_f64()).collect();
    assert!(
        factors.iter().any(|factor| (factor / 1.8 - 1.0).abs() < 0.1),
        "by lengths alone no factor is as clear: {factors:?}"
    );
    let log = std::fs::read_to_string(folder.path().join("differing/logs/coordinator.log")).expect("a log");
    assert!(log.contains("costs are those of the mean load"), "{log}");
    let replayed = Command::new(env!("CARGO_BIN_EXE_adaptis"))
        .args(["replay", "--json"])
        .arg(folder.path().join("differing"))
        .output()
        .expect("the command starts");
    let diagnosis: Value = serde_json::from_slice(&replayed.stdout).expect("the diagnosis is JSON");
    assert_eq!(diagnosis["findings"][0]["where"]["device"], "gpu1", "{diagnosis}");
}

#[test]
fn coordinator_and_agent_may_die_and_the_training_goes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let faults = ["--fault", "12:kill:coordinator", "--fault", "18:kill:agent:gpu2", "--fault", FAULT];
    let report = run(&folder.path().join("run"), &faults);
    assert_eq!(losses(&report).len(), 48);
    let switches = report["switches"].as_array().expect("switches");
    assert!(switches.iter().any(|switch| switch["iteration"].as_u64() >= Some(24)), "{switches:?}");
    assert!(is_gone(folder.path()), "left running: {:?}", processes_of(folder.path()));
}

#[test]
fn a_lost_rank_ends_the_demo_with_its_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = command(&folder.path().join("run"), &["--fault", "6:kill:gpu2"]).output().expect("the demo starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("gpu2"), "{error}");
    assert!(is_gone(folder.path()), "left running: {:?}", processes_of(folder.path()));
}

#[test]
fn a_rank_that_is_told_to_stop_is_the_one_that_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("run");
    let demo = command(&dir, &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the demo starts");
    let log = dir.join("logs/coordinator.log");
    support::until("training starts", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("training starts"))
    });
    let is_it = |line: &str| line.contains("rank\0--device\0gpu2\0--ring\0") && line.contains(&*dir.to_string_lossy());
    let ids = std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter(|entry| std::fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|line| is_it(&line)));
    let ids: Vec<i32> = ids.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect();
    assert_eq!(ids.len(), 1, "one rank has that device");
    // SAFETY: the process is a child of the demo, which waits for it only once it has ended.
    unsafe { libc::kill(ids[0], libc::SIGTERM) };
    let output = demo.wait_with_output().expect("the demo ends");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("rank gpu2 left, told to stop,"), "{error}");
    assert!(is_gone(folder.path()), "left running: {:?}", processes_of(folder.path()));
}

#[test]
fn a_rank_that_nobody_answers_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("run");
    let mut short = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    short.args(["demo", "--iterations", "1", "--fault", "none", "--out"]).arg(&dir);
    let output = short.output().expect("the demo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("tcp://{}", taken.local_addr().expect("its address"));
    let log = folder.path().join("log");
    let mut rank = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    rank.args(["rank", "--device", "gpu0", "--coordinator", &address, "--ring"]).arg(folder.path().join("ring"));
    rank.arg("--emulation").arg(dir.join("emulation.json"));
    rank.stderr(std::fs::File::create(&log).expect("a file"));
    let mut child = rank.spawn().expect("the rank starts");
    let said = || std::fs::read_to_string(&log).expect("the log");
    let end = Instant::now() + Duration::from_secs(30);
    while !said().contains("no answer") && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill().expect("it still runs");
    child.wait().expect("it ends");
    assert!(said().contains(&format!("no answer from {address} for 5 s")), "{}", said());
}

#[test]
fn a_killed_launcher_leaves_nothing_running() {
    for signal in [libc::SIGKILL, libc::SIGINT] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path().join("run");
        let mut command = command(&dir, &[]);
        let command = support::with_signals(&mut command, false).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the demo starts");
        let end = Instant::now() + Duration::from_secs(60);
        while processes_of(&dir).len() < 10 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
        std::thread::sleep(Duration::from_secs(2));
        support::signal(&child, signal);
        let status = child.wait().expect("the child ends");
        if signal == libc::SIGINT {
            assert_eq!(status.code(), Some(130));
        }
        assert!(is_gone(folder.path()), "left running: {:?}", processes_of(folder.path()));
        let names = [dir.clone(), dir.join("plans")].into_iter().flat_map(|folder| names_in(&folder));
        // As the command and the coordinator name what is not in its place yet.
        let halves: Vec<String> = names.filter(|name| name.starts_with('.') || name.ends_with(".new")).collect();
        assert!(halves.is_empty(), "{halves:?}");
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder of the run").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_folder_that_holds_a_run_is_not_written_over() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("notes"), "mine").expect("a file");
    let output = command(folder.path(), &[]).output().expect("the demo starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not empty"));
}
