//! What the tests of the command share.

#![allow(dead_code, reason = "each test uses its part")]

use adaptis_proto::message::{DeviceCard, Job, JobLayer, RankEvent, ToCoordinator};
use adaptis_proto::{Incarnation, RunId, Term};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn adaptis(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_adaptis")).args(arguments).output().expect("the command starts")
}

pub fn data(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).to_string_lossy().into_owned()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

/// Expects an exit code, and words in what stands on standard error.
pub fn fails(output: &Output, code: i32, words: &[&str]) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
}

/// Starts the child with INT and HUP as a terminal would, however this test was started, or with them ignored, as `nohup`
/// and shells in the background do.
pub fn with_signals(command: &mut Command, are_ignored: bool) -> &mut Command {
    use std::os::unix::process::CommandExt;
    let handler = if are_ignored { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: between fork and exec only async-signal-safe calls are made.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGINT, handler);
            libc::signal(libc::SIGHUP, handler);
            Ok(())
        })
    }
}

pub fn signal(child: &std::process::Child, signal: i32) {
    // SAFETY: the child was not waited for, so its number still names it.
    unsafe { libc::kill(child.id() as i32, signal) };
}

/// Looks again and again until it is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !is_so() {
        assert!(std::time::Instant::now() < patience, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).expect("a file is written");
        self.text(name)
    }
}

/// What a rank on this host's processor says at first.
pub fn hello() -> ToCoordinator {
    let layer = JobLayer {
        name: "a".into(),
        signature: "mlp/8/f32/b1xs8".into(),
        parameter_bytes: 1,
        state_bytes: 4,
        output_bytes: 1,
        moved_bytes: 3,
    };
    let job = Job {
        run: RunId("test".into()),
        devices: vec!["host".into()],
        layers: vec![layer],
        microbatches: 1,
        iterations: 1,
        start_plan: None,
    };
    let card = DeviceCard { name: "host".into(), kind: "cpu".into(), memory_bytes: 1 << 20, reserved_bytes: 0 };
    ToCoordinator::Rank(RankEvent::Hello {
        incarnation: Incarnation(7),
        card,
        job,
        endpoint: "tcp://127.0.0.1:1".into(),
        place: None,
        seen: Term(0),
    })
}
