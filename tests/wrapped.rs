//! `adaptis run` around commands that are no training at all: what a user's script must be able to rely on.

mod support;

use std::process::{Command, Stdio};
use support::{Folder, adaptis, fails, signal, text, until, with_signals};

fn run(folder: &Folder, rest: &[&str]) -> std::process::Output {
    let dir = folder.text("run");
    adaptis(&[&["run", "--out", dir.as_str(), "--"], rest].concat())
}

#[test]
fn the_exit_code_of_a_command_is_ours() {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)] {
        let output = run(&Folder::new(), &["sh", "-c", script]);
        assert_eq!(output.status.code(), Some(code), "{script}: {}", text(&output.stderr));
        let is_told = text(&output.stderr).contains(&format!("the command ended with exit code {code}"));
        assert_eq!(is_told, code != 0, "{script}: {}", text(&output.stderr));
    }
}

#[test]
fn a_command_finds_the_coordinator_and_says_what_it_wants() {
    let open = run(&Folder::new(), &["sh", "-c", "echo ${ADAPTIS_MODE-none}"]);
    assert_eq!(text(&open.stdout), "none\n", "the job may ask for one");
    let folder = Folder::new();
    let script =
        "echo $ADAPTIS_COORDINATOR; echo $ADAPTIS_MODE; test -d $ADAPTIS_RINGS && echo $ADAPTIS_RUN; echo x >&2";
    let output = adaptis(&["run", "--mode", "advise", "--out", &folder.text("run"), "--", "sh", "-c", script]);
    let said: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert!(said[0].starts_with("tcp://127.0.0.1:"), "{said:?}");
    assert_eq!((said[1].as_str(), said[2].as_str(), said.len()), ("advise", "run", 3), "its words alone");
    let error = text(&output.stderr);
    assert!(error.contains("no rank of the command spoke to the coordinator"), "{error}");
    assert!(error.contains("run folder"), "{error}");
    assert!(folder.path("run/logs/coordinator.log").exists());
}

#[test]
fn signals_reach_the_command_and_its_end_is_ours() {
    let folder = Folder::new();
    let (dir, ready) = (folder.text("run"), folder.text("ready"));
    let script = format!("trap 'exit 42' TERM; touch {ready}; while true; do sleep 0.05; done");
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.args(["run", "--out", &dir, "--", "sh", "-c", &script]).stderr(Stdio::null());
    let mut child = with_signals(&mut command, false).spawn().expect("it starts");
    until("the command runs", || folder.path("ready").exists());
    signal(&child, libc::SIGTERM);
    assert_eq!(child.wait().expect("it ends").code(), Some(42));
}

#[test]
fn a_coordinator_that_dies_or_never_comes_up_does_not_end_the_command() {
    let folder = Folder::new();
    let (dir, log) = (folder.text("run"), folder.text("run/logs/coordinator.log"));
    // Waits for the coordinator to stand, kills it as an operator would not, and goes on.
    let script =
        format!("until grep -q reigning {log}; do sleep 0.05; done; pkill -9 -f -- '[-]-dir {dir}'; sleep 1; exit 5");
    let output = adaptis(&["run", "--out", &dir, "--", "sh", "-c", &script]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{error}");
    assert!(error.contains("the coordinator ended (signal 9) and is started again"), "{error}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("tcp://{}", taken.local_addr().expect("its address"));
    let other = folder.text("other");
    let output = adaptis(&["run", "--out", &other, "--listen", &address, "--", "sh", "-c", "sleep 1; exit 6"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{error}");
    assert!(error.contains("in use"), "{error}");
}

#[test]
fn what_cannot_be_run_is_told() {
    let folder = Folder::new();
    fails(&run(&folder, &["no-such-program"]), 2, &["no-such-program"]);
    fails(&adaptis(&["run"]), 2, &["COMMAND"]);
    let unknown = ["run", "--out", &folder.text("none"), "--dir", "x", "--", "true"];
    fails(&adaptis(&unknown), 2, &["--dir: no option of `adaptis run`"]);
    assert!(!folder.path("none").exists(), "nothing was begun");
    std::fs::create_dir_all(folder.path("full/inside")).expect("a folder");
    fails(&adaptis(&["run", "--out", &folder.text("full"), "--", "true"]), 2, &["not empty"]);
    fails(&adaptis(&["run", "--mode", "fast", "--", "true"]), 2, &["observe, advise, adapt"]);
    fails(&adaptis(&["run", "--store", "/dev/null/store", "--", "true"]), 2, &["--store /dev/null/store"]);
    for (option, value, why) in [
        ("--listen", "nonsense", "--listen"),
        ("--listen", "tcp://0.0.0.0:45998", "there are no keys"),
        ("--listen", "tcp://127.0.0.1:*", "--listen"),
        ("--http", "0.0.0.0:45999", "there are no keys"),
        ("--http", "nowhere", "--http"),
        ("--coordinator", "nonsense", "--coordinator (ADAPTIS_COORDINATOR)"),
        ("--out", "a:b", "a colon in it"),
    ] {
        let out = folder.text("none");
        let given = if option == "--out" { vec!["run"] } else { vec!["run", "--out", &out] };
        fails(&adaptis(&[given, vec![option, value, "--", "true"]].concat()), 2, &[why]);
    }
    let mut unset = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    for name in ["ADAPTIS_COORDINATOR", "ADAPTIS_KEYS", "ADAPTIS_MODE", "ADAPTIS_STORE"] {
        unset.env(name, "");
    }
    let ended = unset.args(["run", "--out", &folder.text("unset"), "--", "true"]).output().expect("the command starts");
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert!(!folder.path("none").exists() && !std::path::Path::new("a:b").exists());
}

#[test]
fn what_nohup_ignores_the_command_ignores_too() {
    let folder = Folder::new();
    let dir = folder.text("run");
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.args(["run", "--out", &dir, "--", "sh", "-c", "kill -HUP $$; exit 3"]).stderr(Stdio::null());
    let status = with_signals(&mut command, true).status().expect("it starts");
    assert_eq!(status.code(), Some(3));
    let status = with_signals(
        Command::new(env!("CARGO_BIN_EXE_adaptis"))
            .args(["run", "--out", &folder.text("other"), "--", "sh", "-c", "kill -HUP $$; exit 3"])
            .stderr(Stdio::null()),
        false,
    )
    .status()
    .expect("it starts");
    assert_eq!(status.code(), Some(129), "otherwise it is the command's end, and told as shells do");
}

#[test]
fn a_command_runs_where_a_run_folder_or_memory_files_can_not_be_made() {
    let folder = Folder::new();
    // A file in the place of the folder of runs.
    std::fs::write(folder.path("runs"), "").expect("a file");
    std::fs::create_dir(folder.path("tmp")).expect("a folder");
    let run = |temporary: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
        command
            .args(["run", "--", "sh", "-c", "echo ${ADAPTIS_COORDINATOR:+measured}; exit 5"])
            .current_dir(folder.path("."));
        command.env("TMPDIR", folder.path(temporary)).output().expect("it starts")
    };
    let elsewhere = run("tmp");
    let said = text(&elsewhere.stderr);
    assert_eq!((elsewhere.status.code(), text(&elsewhere.stdout).as_str()), (Some(5), "measured\n"), "{said}");
    assert!(said.contains("runs/run-") && said.contains("--out names another folder"), "{said}");
    // A file again.
    std::fs::write(folder.path("full"), "").expect("a file");
    let unmeasured = run("full");
    let said = text(&unmeasured.stderr);
    assert_eq!((unmeasured.status.code(), text(&unmeasured.stdout).as_str()), (Some(5), "\n"), "{said}");
    assert!(said.contains("nothing is measured: runs/run-"), "{said}");
    fails(&adaptis(&["run", "--out", &folder.text("runs/named"), "--", "true"]), 3, &["--out", "runs/named"]);
}

#[test]
fn a_coordinator_of_others_is_told_of() {
    let folder = Folder::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.args(["run", "--mode", "adapt", "--out", &folder.text("run"), "--", "true"]);
    let output = command.env("ADAPTIS_COORDINATOR", "tcp://127.0.0.1:1").output().expect("it starts");
    let said = text(&output.stderr);
    assert!(
        output.status.success() && said.contains("ADAPTIS_COORDINATOR") && said.contains("its mode counts"),
        "{said}"
    );
}

#[test]
fn a_page_is_named_by_its_port() {
    let folder = Folder::new();
    let output = adaptis(&["run", "--out", &folder.text("run"), "--http", "127.0.0.1:0", "--", "true"]);
    let said = text(&output.stderr);
    assert!(said.contains("page: http://127.0.0.1:") && !said.contains("127.0.0.1:0/"), "{said}");
}
