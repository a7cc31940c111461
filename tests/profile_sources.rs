//! Where profiles come from, as a user meets it: how a file was read, reading it otherwise, taking it out again.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use support::{Folder, data, fails, json, text};

/// The command with a store of its own.
fn profiles(home: &Folder, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.arg("profiles").args(arguments).env("ADAPTIS_STORE", home.path("store"));
    command.output().expect("the command starts")
}

fn became(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    json(output)["merged"][0]["became"].as_str().expect("a word").to_owned()
}

fn sources(home: &Folder) -> Vec<serde_json::Value> {
    json(&profiles(home, &["list", "--sources", "--json"]))["sources"].as_array().expect("a list").clone()
}

const SPLIT: [&str; 2] = ["--split-backward", "0.5:0.5"];

#[test]
fn each_argument_of_an_import_counts_and_is_told() {
    let home = Folder::new();
    let sailor = data("profiles/LLAMA-3-8.V100-16.json");
    let import = |more: &[&str]| profiles(&home, &[&["import", &sailor, "--json"][..], more].concat());
    assert_eq!(became(&import(&SPLIT)), "new");
    assert_eq!(became(&import(&SPLIT)), "known");
    let readings: [(&[&str], &str); 5] = [
        (&["--split-backward", "0.55:0.45"], "backward split 0.55:0.45"),
        (&["--split-backward", "0.5:0.5", "--kind", "V100-32"], "kind v100-32g"),
        (&["--split-backward", "0.5:0.5", "--dtype", "bf16"], "dtype bf16"),
        (&["--split-backward", "0.5:0.5", "--software", "driver 550"], "software \"driver 550\""),
        (&["--split-backward", "0.5:0.5", "--unit", "ms"], "unit ms"),
    ];
    let mut ids = std::collections::BTreeSet::new();
    for (arguments, told) in readings {
        let output = import(arguments);
        assert_eq!(became(&output), "replaced", "{arguments:?}");
        let [source] = sources(&home).try_into().expect("one file is one source");
        let how = source["how"].as_str().expect("a text");
        assert!(how.contains(told) && how.starts_with("import sailor, model llama-3-8, kind v100-"), "{how}");
        assert!(ids.insert(source["id"].as_str().expect("an id").to_owned()));
        let table = text(&profiles(&home, &["list", "--sources"]).stdout);
        for told in ["LLAMA-3-8.V100-16.json", told, &source["id"].as_str().expect("an id")[..10]] {
            assert!(table.contains(told), "{told}: {table}");
        }
    }
    let said = text(&profiles(&home, &[&["import", &sailor][..], &SPLIT].concat()).stdout);
    assert!(said.contains("take the place of LLAMA-3-8.V100-16.json") && said.contains("unit ms"), "{said}");
}

#[test]
fn a_store_that_may_not_grow_is_an_error_and_is_whole() {
    let home = Folder::new();
    let sailor = data("profiles/LLAMA-3-8.V100-16.json");
    let import = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
        command.args(["profiles", "import", &sailor]).args(SPLIT).env("ADAPTIS_STORE", home.path("store"));
        command
    };
    let mut limited = import();
    let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
    // SAFETY: between fork and exec one async-signal-safe call is made, with a valid place.
    let limited = unsafe {
        limited.pre_exec(move || match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    };
    let output = limited.output().expect("the command starts");
    let error = text(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code > 0), "an exit, no signal: {:?}", output.status);
    assert!(error.starts_with("adaptis: ") && !error.contains("panicked"), "{error}");
    assert!(import().output().expect("the command starts").status.success(), "and without the limit all is well");
    assert_eq!(sources(&home).len(), 1);
}

#[test]
fn the_same_bytes_under_another_name_are_no_other_measurement() {
    let home = Folder::new();
    let original = std::fs::read_to_string(data("profiles/LLAMA-3-8.V100-16.json")).expect("the data is there");
    let (one, other) = (home.write("LLAMA-3-8.V100-16.json", &original), home.write("OTHER.A100-40.json", &original));
    std::fs::create_dir(home.path("again")).expect("a folder");
    let again = home.write("again/LLAMA-3-8.V100-16.json", &original);
    let import = |files: &[&str]| profiles(&home, &[&["import"], files, &SPLIT].concat());
    fails(&import(&[&one, &other]), 2, &["OTHER.A100-40.json", "same bytes", "LLAMA-3-8.V100-16.json"]);
    assert!(!home.path("store").exists(), "nothing was kept");
    let twice = import(&[&one, &again]);
    assert!(twice.status.success() && text(&twice.stderr).contains("it is kept once"), "{}", text(&twice.stderr));
    let renamed = text(&import(&[&other]).stdout);
    for told in ["OTHER.A100-40.json: ", "take the place of LLAMA-3-8.V100-16.json", "kind v100-16g"] {
        assert!(renamed.contains(told), "{renamed}");
    }
    assert_eq!(sources(&home).len(), 1);
    // What the name said is said by an argument.
    let plain = home.write("OTHER.json", &original);
    let output = profiles(&home, &[&["import", &plain, "--kind", "A100-40"], &SPLIT[..]].concat());
    assert!(text(&output.stdout).contains("known already as OTHER.A100-40.json"), "{}", text(&output.stdout));
}

#[test]
fn a_source_is_removed_when_that_is_confirmed() {
    let home = Folder::new();
    fails(&profiles(&home, &["remove", "x"]), 2, &["nothing there", "--store"]);
    let names = ["LLAMA-3-8.V100-16.json", "gpt_1_3B_mbs1_tp1_algo0.csv"];
    let [sailor, aceso] = names.map(|name| data(&format!("profiles/{name}")));
    assert!(profiles(&home, &["import", &sailor, SPLIT[0], SPLIT[1]]).status.success());
    let of_aceso = ["--unit", "us", "--kind", "v100-32g", SPLIT[0], SPLIT[1]];
    assert!(profiles(&home, &[&["import", &aceso], &of_aceso[..]].concat()).status.success());
    fails(
        &profiles(&home, &["remove", "gpt_1_3B"]),
        2,
        &["no source is called `gpt_1_3B`", "nearest name", "--sources"],
    );
    let asked = profiles(&home, &["remove", names[1]]);
    assert!(asked.status.success(), "{}", text(&asked.stderr));
    for told in [names[1], "import aceso, model gpt-1-3b/b1, kind v100-32g", "nothing was removed: add --yes"] {
        assert!(text(&asked.stdout).contains(told), "{told}: {}", text(&asked.stdout));
    }
    assert_eq!(sources(&home).len(), 2);
    let went = profiles(&home, &["remove", names[1], "--yes", "--json"]);
    let went = json(&went);
    assert_eq!((&went["is_removed"], went["sources"].as_array().map(Vec::len)), (&true.into(), Some(1)), "{went}");
    let left = sources(&home);
    assert_eq!((left.len(), &left[0]["name"]), (1, &names[0].into()));
    let listed = json(&profiles(&home, &["list", "--json"]));
    let kinds = listed["profiles"].as_array().expect("rows").iter().map(|row| row["kind"].clone());
    assert!(kinds.into_iter().all(|kind| kind == "v100-16g"));
    let id = left[0]["id"].as_str().expect("an id")[..10].to_owned();
    let last = text(&profiles(&home, &["remove", &id, "--yes"]).stdout);
    assert!(last.contains("1 source with") && last.contains("removed from"), "{last}");
    assert!(sources(&home).is_empty());
    let run = home.path("run");
    std::fs::create_dir(&run).expect("a folder");
    fails(&profiles(&home, &["remove", "x", "--store", &home.text("run")]), 2, &["no store of profiles"]);
}

#[test]
fn a_kind_that_nobody_knows_is_asked_after() {
    let home = Folder::new();
    let sailor = data("profiles/LLAMA-3-8.V100-16.json");
    let import = |kind: &[&str]| profiles(&home, &[&["import", &sailor, SPLIT[0], SPLIT[1]][..], kind].concat());
    fails(&import(&["--kind", "v10-16g"]), 2, &["--kind v10-16g", "did you mean `v100-16g`?", "--new-kind"]);
    fails(&import(&["--kind", "my own card"]), 2, &["--new-kind", "h100-80g, "]);
    assert!(import(&["--kind", "my own card", "--new-kind"]).status.success());
    assert!(import(&["--kind", "My own card"]).status.success(), "now it is known");
}

#[test]
fn a_file_that_cannot_be_read_is_told_with_its_place() {
    let home = Folder::new();
    let import = |name: &str, text: &str| profiles(&home, &[&["import", &home.write(name, text)], &SPLIT[..]].concat());
    let whole = std::fs::read_to_string(data("profiles/LLAMA-3-8.V100-16.json")).expect("the data is there");
    let cut = &whole[..whole.len() / 2];
    fails(&import("M.A100-40.json", cut), 2, &["M.A100-40.json: line ", ", column ", "ends in the middle, in "]);
    let nan = "{\"1\": {\"2\": {\"0\": [0.1,\n NaN, 0.0]}}}";
    fails(&import("M.A100-40.json", nan), 2, &["line 2, column ", "in 1.2.0[1]", "`NaN` is no JSON", "null"]);
    let zeros = r#"{"1": {"1": {"0": [0.0, 0.0, 0.0], "1": [0, 0, 0], "2": [0, 0]}}}"#;
    fails(&import("M.A100-40.json", zeros), 2, &["M.A100-40.json: no time in it is above zero", "nothing to keep"]);
    assert!(!home.path("store").exists(), "nothing was kept");
}

#[test]
fn traces_of_two_jobs_share_no_signature_unless_they_are_said_to() {
    let home = Folder::new();
    let whole = std::fs::read(data("trace-ST.parquet")).expect("the data is there");
    let trace = home.path("trace.parquet");
    std::fs::write(&trace, whole).expect("a file is written");
    let trace = trace.to_string_lossy().into_owned();
    let import = |more: &[&str]| {
        let output = profiles(
            &home,
            &[&["import", &trace, "--kind", "h100-80g", SPLIT[0], SPLIT[1], "--json"][..], more].concat(),
        );
        became(&output)
    };
    let signatures = || {
        let listed = json(&profiles(&home, &["list", "--json"]));
        let of = |row: &serde_json::Value| row["signature"].as_str().expect("a text").to_owned();
        listed["profiles"].as_array().expect("rows").iter().map(of).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(import(&[]), "new");
    let own = signatures();
    let id = sources(&home)[0]["id"].as_str().expect("an id")[..8].to_owned();
    assert!(own.iter().all(|signature| signature.starts_with(&format!("chunk/trace-{id}/"))), "{own:?}");
    assert_eq!(import(&["--model", "Llama 70B"]), "replaced");
    let named = signatures();
    assert!(named.len() == own.len() && named.iter().all(|signature| signature.starts_with("chunk/llama-70b/")));
}

/// Whoever runs the tests may be one whom no permission stops: the command is then run by nobody.
#[test]
fn a_store_where_nobody_may_write_is_read() {
    const NOBODY: u32 = 65_534;
    let home = Folder::new();
    let sailor = data("profiles/LLAMA-3-8.V100-16.json");
    assert!(profiles(&home, &["import", &sailor, SPLIT[0], SPLIT[1]]).status.success());
    let cells = home
        .write("cells.json", r#"[{"kind": "v100-16g", "signature": "block/llama-3-8/b1/tp4", "phase": "forward"}]"#);
    let program = home.path("adaptis");
    std::fs::copy(env!("CARGO_BIN_EXE_adaptis"), &program).expect("a copy");
    let allow = |path: &std::path::Path, mode: u32| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("it is ours");
    };
    allow(&home.path("store").join("profiles.db"), 0o444);
    for path in [home.path("store"), program.parent().expect("a folder").to_owned()] {
        allow(&path, 0o555);
    }
    let is_root = std::fs::File::create(home.path("store").join("probe")).is_ok();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("profiles").args(arguments).env("ADAPTIS_STORE", home.path("store"));
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output().expect("the command starts")
    };
    let store = home.text("store");
    for arguments in [
        &["list"][..],
        &["list", "--sources"],
        &["show", "block/llama-3-8/b1/tp4"],
        &["diff", &store, &store],
        &["export", "--to", "csv"],
        &["predict", "--from", &store, "--cells", &cells],
        &["remove", "LLAMA-3-8.V100-16.json"],
    ] {
        let output = run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        assert!(!output.stdout.is_empty());
    }
    fails(&run(&["remove", "LLAMA-3-8.V100-16.json", "--yes"]), 3, &["profiles.db"]);
    for path in [program.parent().expect("a folder").to_owned(), home.path("store")] {
        allow(&path, 0o755);
    }
}

/// The file of GPT-Neo on a GH is no such thing: it has another number of layers than the others of its model.
#[test]
fn a_file_that_does_not_fit_to_the_others_is_kept_and_told() {
    let home = Folder::new();
    let names = ["OPT-30.A100-40", "OPT-30.GH-96", "OPT-30.V100-16", "LLAMA-3-8.A100-40", "LLAMA-3-8.GH-96"];
    let more = ["GPT-Neo-2.7.A100-40", "GPT-Neo-2.7.A100-80", "GPT-Neo-2.7.V100-16"];
    let import = |name: &str| {
        let file = data(&format!("sailor/{name}.json"));
        let output = profiles(&home, &["import", &file, SPLIT[0], SPLIT[1], "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        (json(&output)["doubts"].as_array().expect("a list").clone(), text(&output.stderr))
    };
    for name in names.into_iter().chain(more) {
        let (doubts, said) = import(name);
        assert!(doubts.is_empty() && said.is_empty(), "{name}: {said}");
    }
    let (doubts, said) = import("GPT-Neo-2.7.GH-96");
    assert!(!doubts.is_empty() && doubts.iter().all(|of| of["kind"] == "gh-96"), "{doubts:?}");
    for told in ["GPT-Neo-2.7.GH-96.json: ", " on gh-96: ", "times what the other profiles predict", "profiles remove"]
    {
        assert!(said.contains(told), "{said}");
    }
    assert_eq!(sources(&home).len(), names.len() + more.len() + 1, "it is kept");
    let (again, said) = import("GPT-Neo-2.7.GH-96");
    assert!(again.is_empty() && said.is_empty(), "it is known already: {said}");
}

#[test]
fn a_wrong_unit_of_a_model_that_nobody_ran_is_told() {
    let home = Folder::new();
    let import = |name: &str, more: &[&str]| {
        let file = data(&format!("sailor/{name}.json"));
        let output = profiles(&home, &[&["import", &file, SPLIT[0], SPLIT[1], "--json"], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        json(&output)["doubts"].as_array().expect("a list").clone()
    };
    for name in ["OPT-30.A100-40", "OPT-30.V100-16", "LLAMA-3-8.A100-40"] {
        assert!(import(name, &[]).is_empty(), "{name}");
    }
    let doubts = import("GPT-Neo-2.7.A100-40", &["--unit", "us"]);
    let types: Vec<&str> = doubts.iter().filter_map(|of| of["type"].as_str()).collect();
    assert_eq!(types, ["block", "embedding", "head"], "{doubts:?}");
}
