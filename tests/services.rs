//! The parts by hand and their keys, as a user meets them where something is wrong.

mod support;

use std::process::Command;
use support::{Folder, adaptis, fails, json, signal, text, until, with_signals};

#[test]
fn keys_are_made_once_and_kept() {
    let folder = Folder::new();
    let keys = folder.text("keys");
    let first = adaptis(&["keys", &keys, "gpu0", "gpu1", "--json"]);
    assert!(first.status.success(), "{}", text(&first.stderr));
    let public = json(&first)["public_keys"].clone();
    assert_eq!(public.as_object().map(serde_json::Map::len), Some(3), "{public}");
    let second = json(&adaptis(&["keys", &keys, "gpu2", "--json"]))["public_keys"].clone();
    assert_eq!(second["gpu0"], public["gpu0"]);
    assert!(second["gpu2"].is_string());
}

#[test]
fn without_keys_nothing_but_loopback_is_bound() {
    let folder = Folder::new();
    let dir = folder.text("run");
    let output = adaptis(&["coordinator", "--dir", &dir, "--listen", "tcp://0.0.0.0:29999"]);
    fails(&output, 2, &["0.0.0.0", "adaptis keys"]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("tcp://{}", taken.local_addr().expect("its address"));
    let folder = Folder::new();
    let output = adaptis(&["coordinator", "--dir", &folder.text("run"), "--listen", &address]);
    fails(&output, 3, &[&address, "in use"]);
}

#[test]
fn nobody_answers_where_no_coordinator_is() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("tcp://{}", taken.local_addr().expect("its address"));
    fails(&adaptis(&["status", "--coordinator", &address]), 3, &["no answer"]);
}

#[test]
fn pages_leave_this_machine_only_with_keys() {
    let folder = Folder::new();
    let arguments =
        ["coordinator", "--dir", &folder.text("run"), "--listen", "tcp://127.0.0.1:0", "--http", "0.0.0.0:0"];
    fails(&adaptis(&arguments), 2, &["0.0.0.0:0", "adaptis keys"]);
}

#[test]
fn wrong_arguments_of_services_are_wrong_usage() {
    let folder = Folder::new();
    let dir = folder.text("run");
    let coordinator = |name: &str, value: &str| {
        adaptis(&["coordinator", "--dir", &dir, "--listen", "tcp://127.0.0.1:*", name, value])
    };
    std::fs::write(folder.path("binary.json"), [0xff, 0xfe, 0x00]).expect("a file");
    fails(&coordinator("--faults", &folder.text("binary.json")), 2, &["--faults", "binary.json", "UTF-8"]);
    fails(&coordinator("--faults", &folder.text("missing.json")), 2, &["--faults", "missing.json"]);
    fails(&coordinator("--http", "junk"), 2, &["--http `junk`", "HOST:PORT"]);
    fails(&coordinator("--http", "127.0.0.1:99999"), 2, &["--http `127.0.0.1:99999`", "HOST:PORT"]);
    let (ring, spool) = (folder.text("ring"), folder.text("spool"));
    let agent = ["agent", "--device", "a", "--ring", &ring, "--spool", &spool, "--coordinator", "nowhere"];
    fails(&adaptis(&agent), 2, &["nowhere"]);
    let bound = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = bound.local_addr().expect("its address").to_string();
    fails(&coordinator("--http", &taken), 3, &[&taken, "in use"]);
    for left in ["run", "spool", "ring"] {
        assert!(!folder.path(left).exists(), "{left} was made for a service that never ran");
    }
}

#[test]
fn a_store_that_is_none_of_ours_or_damaged_is_told_with_its_file() {
    let folder = Folder::new();
    let start = |dir: &str| adaptis(&["coordinator", "--dir", dir, "--listen", "tcp://127.0.0.1:*", "--http", "none"]);
    std::fs::create_dir(folder.path("foreign")).expect("a folder");
    folder.write("foreign/store.db", &"no database at all, but long enough to be looked at. ".repeat(100));
    fails(&start(&folder.text("foreign")), 2, &["foreign/store.db", "not a store", "another folder"]);
    std::fs::create_dir(folder.path("damaged")).expect("a folder");
    let mut child = Command::new(env!("CARGO_BIN_EXE_adaptis"))
        .args(["coordinator", "--dir", &folder.text("damaged"), "--listen", "tcp://127.0.0.1:*", "--http", "none"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    let store = folder.path("damaged/store.db");
    until("the store is made", || store.metadata().is_ok_and(|found| found.len() > 0));
    std::thread::sleep(std::time::Duration::from_millis(500));
    signal(&child, libc::SIGTERM);
    assert!(child.wait().expect("it ends").success());
    let mut bytes = std::fs::read(&store).expect("the store");
    bytes[4096..].fill(0x5a);
    std::fs::write(&store, bytes).expect("the store");
    fails(&start(&folder.text("damaged")), 2, &["damaged/store.db", "damaged", "another folder"]);
}

#[test]
fn signals_that_were_ignored_at_the_start_stay_so() {
    let folder = Folder::new();
    for are_ignored in [true, false] {
        let dir = folder.text(if are_ignored { "ignored" } else { "heard" });
        let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
        command.args(["coordinator", "--dir", &dir, "--listen", "tcp://127.0.0.1:*", "--http", "none"]);
        let command = with_signals(&mut command, are_ignored).stderr(std::process::Stdio::null());
        let mut child = command.spawn().expect("it starts");
        let lock = std::path::Path::new(&dir).join("store.lock");
        until("it runs", || lock.exists());
        signal(&child, libc::SIGHUP);
        signal(&child, libc::SIGINT);
        if are_ignored {
            std::thread::sleep(std::time::Duration::from_millis(500));
            assert_eq!(child.try_wait().expect("a child"), None, "it goes on");
            signal(&child, libc::SIGTERM);
        }
        assert!(child.wait().expect("it ends").success(), "TERM, and what is not ignored, end it in order");
    }
}

#[test]
fn keys_of_bad_or_repeated_names_are_not_made() {
    let folder = Folder::new();
    let keys = folder.text("keys");
    fails(&adaptis(&["keys", &keys, "../x"]), 2, &["../x"]);
    fails(&adaptis(&["keys", &keys, "gpu0", "gpu0"]), 2, &["gpu0", "twice"]);
    assert!(!folder.path("keys").exists());
}

#[test]
fn an_agent_that_nobody_answers_says_so() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("tcp://{}", taken.local_addr().expect("its address"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.args(["agent", "--device", "a", "--ring", &folder.text("ring"), "--spool", &folder.text("spool")]);
    let log = std::fs::File::create(folder.path("log")).expect("a file");
    let mut child = command.args(["--coordinator", &address]).stderr(log).spawn().expect("it starts");
    let said = || std::fs::read_to_string(folder.path("log")).expect("the log");
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !said().contains("no answer") && std::time::Instant::now() < patience {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    child.kill().expect("it still runs");
    child.wait().expect("it ends");
    assert!(said().contains(&format!("no answer from {address} for 5 s")), "{}", said());
    assert!(said().contains("the same keys"), "{}", said());
}
