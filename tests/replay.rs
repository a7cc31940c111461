//! `adaptis replay` as people and scripts call it.

mod support;

use adaptis_coordinator::{RECORDS_BYTES_MAX, STORE_FILE, Store};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use support::{Folder, adaptis, data, fails, json, text};

/// Who is neither root nor owns anything.
const NOBODY: u32 = 65_534;

#[test]
fn a_trace_is_diagnosed_as_json_and_at_a_glance() {
    let trace = data("trace-ST.parquet");
    let output = adaptis(&["replay", &trace, "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let diagnosis = json(&output);
    assert_eq!(diagnosis["format"], "adaptis.diagnosis/1");
    assert_eq!(diagnosis["iterations"], 32);
    for member in ["simulated_ns", "measured_ns"] {
        assert_eq!(diagnosis[member].as_array().map(Vec::len), Some(32), "{member}");
    }
    let first = &diagnosis["findings"][0];
    assert_eq!(first["kind"], "stage");
    assert_eq!(first["where"], serde_json::json!({ "stage": 3 }));
    let share = first["lost_share"].as_f64().expect("a share");
    assert!(share > 0.8 && share <= 1.0, "{share}");
    let better = &diagnosis["better_plan"];
    assert!(better["iteration_ns"].as_u64() < diagnosis["measured_median_ns"].as_u64(), "{better}");
    let glance = text(&adaptis(&["replay", &trace]).stdout);
    assert!(glance.contains("stage 3, in all replicas: 1.6") && glance.contains("better: move"), "{glance}");
}

#[test]
fn what_is_no_recording_is_refused_with_its_name() {
    fails(&adaptis(&["replay", &data("uniform_p4_m8.json")]), 2, &["uniform_p4_m8.json", "not a Parquet file"]);
    fails(&adaptis(&["replay", &data("nowhere.parquet")]), 2, &["nowhere.parquet", "No such file"]);
    fails(&adaptis(&["replay", &data("")]), 2, &["store.db", "demo --out"]);
}

/// Replays a folder that may be read and not written.
fn replayed_by_a_stranger(dir: &Path) -> Output {
    std::fs::set_permissions(dir, Permissions::from_mode(0o555)).expect("it is ours");
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.arg("replay").arg(dir);
    // Root may write anywhere; who else it is may not write here either.
    // SAFETY: it takes nothing and changes nothing.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().expect("the command starts");
    std::fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("it is ours");
    output
}

#[test]
fn a_run_is_read_where_nobody_may_write() {
    let folder = Folder::new();
    std::fs::set_permissions(folder.path("."), Permissions::from_mode(0o755)).expect("it is ours");
    let (whole, torn) = (folder.path("whole"), folder.path("torn"));
    let store = Store::open(&whole, RECORDS_BYTES_MAX).expect("a folder");
    // A copy taken while it is open has a log that was not brought into it.
    std::fs::create_dir(&torn).expect("a folder");
    for name in [STORE_FILE.to_owned(), format!("{STORE_FILE}-wal")] {
        std::fs::copy(whole.join(&name), torn.join(&name)).expect("it is there");
    }
    drop(store);
    fails(&replayed_by_a_stranger(&whole), 2, &["no rank ever joined this run"]);
    fails(&replayed_by_a_stranger(&torn), 3, &["store.db-wal", "copy the folder"]);
}

#[test]
fn damage_is_no_trouble_of_the_disk() {
    let folder = Folder::new();
    let dir = folder.path("run");
    drop(Store::open(&dir, RECORDS_BYTES_MAX).expect("a folder"));
    let mut bytes = std::fs::read(dir.join(STORE_FILE)).expect("a store");
    let from = bytes.len().min(4_096);
    bytes[from..].fill(0xa5);
    std::fs::write(dir.join(STORE_FILE), &bytes).expect("written");
    let output = adaptis(&["replay", &folder.text("run")]);
    fails(&output, 2, &["damaged", "take a copy of the folder that is whole"]);
    assert!(!text(&output.stderr).contains("see to the disk"));
}
