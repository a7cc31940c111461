//! `adaptis doctor` on machines that are well and on machines that are not.

mod support;

use adaptis_standin::{Library, Stage};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use support::{Folder, fails, json, signal, text, until};

/// A machine made up in a folder: a place for rings, a home, a Python that says what it is told.
struct Machine {
    folder: Folder,
    http: String,
    listen: String,
    rings: String,
    variables: Vec<(&'static str, String)>,
}

impl Machine {
    fn new(python: &str) -> Machine {
        let folder = Folder::new();
        for name in ["bin", "rings", "home"] {
            std::fs::create_dir(folder.path(name)).expect("a folder");
        }
        folder.write("bin/python3", &format!("#!/bin/sh\n{python}\n"));
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path("bin/python3"), executable).expect("a script");
        let variables = vec![("HOME", folder.text("home")), ("PATH", format!("{}:/bin:/usr/bin", folder.text("bin")))];
        let rings = folder.text("rings");
        // Any free port is free.
        let (http, listen) = ("127.0.0.1:0".to_owned(), "tcp://127.0.0.1:0".to_owned());
        Machine { folder, http, listen, rings, variables }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
        command.env_clear().envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.args(["doctor", "--http", &self.http, "--listen", &self.listen, "--rings", &self.rings]);
        command.args(arguments);
        command
    }

    fn doctor(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the command starts")
    }
}

const WELL: &str = "printf 'python 3.11.7\\nadaptis True\\ntorch 2.15.0+cu132\\n'";

/// Verdict and text of what is said about a thing.
fn about(output: &Output, name: &str) -> (String, String) {
    let answer = json(output);
    let findings = answer["findings"].as_array().expect("findings").clone();
    let found = findings.iter().find(|finding| finding["about"] == name).expect("a finding");
    let word = |key: &str| found[key].as_str().expect("a text").to_owned();
    (word("verdict"), word("text"))
}

#[test]
fn a_machine_that_is_well_is_told_so() {
    let machine = Machine::new(WELL);
    let output = machine.doctor(&[]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
    for line in [
        "ok    rank        none here",
        "ok    rings       ",
        "ok    pages       127.0.0.1:0 is free",
        "ok    coordinator tcp://127.0.0.1:0 is free",
        "ok    store       ",
        "ok    python      3.11.7, torch 2.15.0+cu132, with the package adaptis",
    ] {
        assert!(said.contains(line), "`{line}` is not in:\n{said}");
    }
    assert!(!said.contains("fix:"), "{said}");
    assert!(!machine.folder.path("home/.config").exists(), "it changes nothing");
    assert_eq!(std::fs::read_dir(machine.folder.path("rings")).expect("the rings").count(), 0);
}

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    let mut machine = Machine::new("printf 'python 3.11.7\\nadaptis False\\nfailed OSError libcublas.so.13\\n'");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    machine.http = taken.local_addr().expect("its address").to_string();
    machine.listen = format!("tcp://{}", machine.http);
    machine.rings = machine.folder.write("file", "no folder");
    machine.variables.push(("RANK", "0".to_owned()));
    machine.variables.push(("XDG_CONFIG_HOME", machine.folder.text("file")));
    let output = machine.doctor(&["--json"]);
    fails(&output, 1, &["5 things are to be fixed"]);
    for (name, verdict, word) in [
        ("rank", "fix", "RANK is set and WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not"),
        ("rings", "fix", "is not there"),
        ("pages", "fix", "another program's"),
        ("coordinator", "note", "no coordinator answers"),
        ("store", "fix", "takes no file"),
        ("python", "fix", "OSError libcublas.so.13"),
    ] {
        let (found, text) = about(&output, name);
        assert_eq!(found, verdict, "{name}: {text}");
        assert!(text.contains(word), "{name}: {text}");
    }
}

#[test]
fn a_coordinator_that_has_the_ports_is_known() {
    let mut machine = Machine::new(WELL);
    let port = || TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("a port").to_string();
    (machine.http, machine.listen) = (port(), format!("tcp://{}", port()));
    let mut child = Command::new(env!("CARGO_BIN_EXE_adaptis"))
        .args(["coordinator", "--dir", &machine.folder.text("run"), "--listen", &machine.listen])
        .args(["--http", &machine.http])
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    until("its pages are there", || TcpStream::connect(&machine.http).is_ok());
    let output = machine.doctor(&["--json"]);
    signal(&child, libc::SIGTERM);
    child.wait().expect("it ends");
    for name in ["pages", "coordinator"] {
        let (verdict, text) = about(&output, name);
        assert_eq!(verdict, "ok", "{text}");
        assert!(text.contains("a coordinator's"), "{text}");
    }
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn gpus_are_named_with_their_kinds() {
    let machine = Machine::new(WELL);
    let card = |at: usize, name: &str, mebibytes: u64| {
        let bytes = mebibytes << 20;
        format!("nvml.{at}.name {name}\nnvml.{at}.memory_total {bytes}\nnvml.{at}.memory_used 0\n")
    };
    let script = format!(
        "nvml.count 3\nnvml.2.lost 1\n{}{}",
        card(0, "NVIDIA A100-SXM4-40GB", 40_960),
        card(1, "NVIDIA Unheard 9000", 40_960)
    );
    let stage = Stage::with(&[Library::Cuda, Library::Nvml]).script(&script);
    let (passed, said) = stage.run(&mut machine.command(&[]));
    assert!(!passed, "a GPU is lost: {said}");
    for line in [
        "ok    driver      NVIDIA 550.54.15, CUDA 12.4",
        "ok    gpu 0       NVIDIA A100-SXM4-40GB, a100-40g, 40.0 GiB, GPU-00000000-0000-0000-0000-000000000000",
        "note  gpu 1       NVIDIA Unheard 9000, of no kind in the table",
        "fix:  gpus        1 of 3 do not answer",
    ] {
        assert!(said.contains(line), "`{line}` is not in:\n{said}");
    }
}

#[test]
fn who_hangs_is_not_waited_for() {
    let machine = Machine::new("exec sleep 600");
    let stage = Stage::with(&[Library::Nvml]).script("nvml.nvmlInit_v2.delay_us hang");
    let (passed, said) = stage.run(&mut machine.command(&["--time", "500ms"]));
    assert!(!passed, "{said}");
    assert!(said.contains("fix:  driver      it does not answer"), "{said}");
    assert!(said.contains("note  python      python3 says nothing within 0.5 s"), "{said}");
}

#[test]
fn its_help_teaches() {
    let output = support::adaptis(&["doctor", "--help"]);
    let said = text(&output.stdout);
    for word in ["adaptis doctor --json", "Exit codes", "It changes nothing"] {
        assert!(said.contains(word), "`{word}` is not in:\n{said}");
    }
}

#[test]
fn what_the_environment_of_the_job_names_is_looked_at() {
    let mut machine = Machine::new(WELL);
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("it has one");
    let python = machine.folder.write("other", "#!/bin/sh\nprintf 'python 3.9.1\\n'\n");
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).expect("a script");
    machine
        .variables
        .extend([("ADAPTIS_COORDINATOR", format!("tcp://{nobody}")), ("ADAPTIS_RINGS", "/proc/rings".to_owned())]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.env_clear().envs(machine.variables.iter().map(|(name, value)| (name, value)));
    let given = ["doctor", "--json", "--http", &machine.http, "--python", &python];
    let output = command.args(given).output().expect("the command starts");
    let (verdict, text) = about(&output, "coordinator");
    assert!(
        verdict == "note" && text.contains(&format!("ADAPTIS_COORDINATOR: tcp://{nobody} does not answer")),
        "{text}"
    );
    let (verdict, text) = about(&output, "rings");
    assert!(verdict == "fix" && text.contains("/proc can't be written"), "{text}");
    assert!(about(&output, "python").1.contains("3.9.1"), "{:?}", about(&output, "python"));
    // What is given counts before what is set.
    assert_eq!(about(&machine.doctor(&["--json"]), "coordinator").0, "ok");
    machine.variables[2].1 = "nonsense".to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.env_clear().envs(machine.variables.iter().map(|(name, value)| (name, value)));
    let wrong = command.args(["doctor", "--json", "--http", &machine.http]).output().expect("the command starts");
    assert_eq!(about(&wrong, "coordinator").0, "fix");
}
