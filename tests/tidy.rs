//! The rules of the house that a compiler does not check: who may depend on whom, and what no file may hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// For each crate of ours, the crates of ours that it may depend on (development dependencies aside).
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    let shells = ["adaptis-agent", "adaptis-coordinator", "adaptis-executor"];
    let mut root = vec!["adaptis-proto", "adaptis-plan", "adaptis-link", "adaptis-ring", "adaptis-planner"];
    root.extend(shells);
    BTreeMap::from([
        ("zmq-sys", vec![]),
        ("adaptis-proto", vec![]),
        ("adaptis-plan", vec!["adaptis-proto"]),
        ("adaptis-link", vec!["adaptis-proto", "zmq-sys"]),
        ("adaptis-ring", vec!["adaptis-proto"]),
        ("adaptis-agent-core", vec!["adaptis-proto", "adaptis-plan"]),
        // In the training process, beside the ring; the governor that it obeys is pure.
        ("adaptis-timer", vec!["adaptis-agent-core", "adaptis-proto", "adaptis-ring"]),
        ("adaptis-planner", vec!["adaptis-proto", "adaptis-plan"]),
        ("adaptis-coordinator-core", vec!["adaptis-proto", "adaptis-plan", "adaptis-planner"]),
        ("adaptis-executor-core", vec!["adaptis-proto", "adaptis-plan"]),
        // The timer too: its kernels calibrate the device before anybody trains on it.
        (
            "adaptis-agent",
            vec![
                "adaptis-agent-core",
                "adaptis-proto",
                "adaptis-plan",
                "adaptis-link",
                "adaptis-ring",
                "adaptis-timer",
            ],
        ),
        (
            "adaptis-coordinator",
            vec!["adaptis-coordinator-core", "adaptis-planner", "adaptis-proto", "adaptis-plan", "adaptis-link"],
        ),
        (
            "adaptis-executor",
            vec![
                "adaptis-executor-core",
                "adaptis-session",
                "adaptis-proto",
                "adaptis-plan",
                "adaptis-link",
                "adaptis-ring",
            ],
        ),
        // What both trainers share: one conversation with the coordinator.
        ("adaptis-session", vec!["adaptis-executor-core", "adaptis-proto", "adaptis-plan", "adaptis-link"]),
        (
            "adaptis-python",
            vec![
                "adaptis-executor-core",
                "adaptis-session",
                "adaptis-plan",
                "adaptis-planner",
                "adaptis-proto",
                "adaptis-link",
                "adaptis-ring",
                // Layers on a GPU, timed in this process, within the governor's limits.
                "adaptis-timer",
                "adaptis-agent-core",
            ],
        ),
        ("adaptis", root),
        // Of tests alone: nobody may depend on them otherwise.
        ("adaptis-standin", vec![]),
        ("adaptis-standin-cuda", vec!["adaptis-standin"]),
        ("adaptis-standin-nvml", vec!["adaptis-standin"]),
        ("adaptis-standin-cublas", vec![]),
    ])
}

/// What a pure crate may not depend on.
const IMPURE: [&str; 11] = [
    "tokio",
    "zmq",
    "zmq-sys",
    "rusqlite",
    "axum",
    "memmap2",
    "rand",
    "getrandom",
    "crossbeam",
    "nvml-wrapper",
    "cudarc",
];
const PURE: [&str; 6] = [
    "adaptis-proto",
    "adaptis-plan",
    "adaptis-agent-core",
    "adaptis-planner",
    "adaptis-coordinator-core",
    "adaptis-executor-core",
];

/// Direct dependencies of each crate of the workspace, without those of tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| {
            let used = package["dependencies"].as_array().expect("dependencies").iter();
            let used = used.filter(|dependency| dependency["kind"].as_str() != Some("dev"));
            (text(&package["name"]), used.map(|dependency| text(&dependency["name"])).collect())
        })
        .collect()
}

#[test]
fn crates_depend_only_on_whom_they_may() {
    let allowed = allowed();
    let dependencies = dependencies();
    let ours: BTreeSet<&str> = dependencies.keys().map(String::as_str).collect();
    let known: BTreeSet<&str> = allowed.keys().copied().collect();
    assert_eq!(ours, known, "a crate was added or removed: say here what it may depend on");
    for (name, used) in &dependencies {
        for other in used.iter().filter(|other| ours.contains(other.as_str())) {
            assert!(allowed[name.as_str()].contains(&other.as_str()), "{name} may not depend on {other}");
        }
    }
}

#[test]
fn pure_crates_reach_for_nothing_outside() {
    let dependencies = dependencies();
    for name in PURE {
        for impure in IMPURE {
            assert!(!dependencies[name].contains(impure), "{name} is pure and may not depend on {impure}");
        }
    }
}

#[test]
fn only_the_link_knows_zmq_and_only_the_command_uses_anyhow() {
    for (name, used) in dependencies() {
        assert!(!used.contains("zmq") || name == "adaptis-link", "{name} uses zmq");
        assert!(!used.contains("anyhow") || name == "adaptis", "{name} uses anyhow");
    }
}

/// The files under version control, as far as they are text of ours.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the project").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", ".git", "runs", "node_modules"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if ["rs", "toml", "md", "sh"].iter().any(|end| path.extension().is_some_and(|e| e == *end)) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn files_hold_no_path_of_a_machine_and_nothing_unfinished() {
    // Written apart so that this file does not hold them.
    let forbidden = [
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
        concat!("#[ig", "nore"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
    ];
    for path in sources() {
        let text = std::fs::read_to_string(&path).expect("a text file");
        for (number, line) in text.lines().enumerate() {
            for word in forbidden {
                assert!(!line.contains(word), "{}:{}: holds `{word}`", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn a_file_is_one_thing() {
    const LINES_MAX: usize = 620;
    for path in sources().into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs")) {
        let lines = std::fs::read_to_string(&path).expect("a text file").lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines; cut it by concern", path.display());
    }
}
