//! Commands on files as a user meets them: files in, answers and exit codes out.

mod support;

use std::process::Command;
use support::{Folder, adaptis, data, fails, json, signal, text, with_signals};

fn problem_text() -> String {
    std::fs::read_to_string(data("uniform_p4_m8.json")).expect("the data is there")
}

#[test]
fn a_plan_is_found_audited_simulated_and_drawn() {
    let folder = Folder::new();
    let (problem, plan) = (data("uniform_p4_m8.json"), folder.text("plan.json"));
    let output = adaptis(&["plan", &problem, "--evaluations", "4000", "--out", &plan, "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let promised = json(&output);
    let audited = adaptis(&["audit", &problem, &plan, "--json"]);
    assert_eq!(audited.status.code(), Some(0));
    assert_eq!(json(&audited)["valid"], true);
    let (svg, trace) = (folder.text("timeline.svg"), folder.text("trace.json"));
    let output = adaptis(&["simulate", &problem, &plan, "--json", "--svg", &svg, "--trace", &trace]);
    let simulated = json(&output);
    assert_eq!(simulated["iteration_ns"], promised["iteration_ns"]);
    assert_eq!(simulated["fits"], true);
    assert!(simulated["lower_bound_ns"].as_u64() <= simulated["iteration_ns"].as_u64());
    // 25.5 ms is the optimum of this textbook case.
    assert!(simulated["iteration_ns"].as_u64() >= Some(25_500_000));
    assert!(simulated["iteration_ns"].as_u64() <= Some(27_500_000), "{simulated}");
    assert!(std::fs::read_to_string(svg).expect("a picture").starts_with("<svg"));
    let trace: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(trace).expect("a trace")).expect("JSON");
    assert!(trace["traceEvents"].as_array().is_some_and(|events| events.len() > 64));
}

#[test]
fn the_same_seed_and_evaluations_give_the_same_plan() {
    let plan = |seed: &str| {
        let output = adaptis(&["plan", &data("uniform_p4_m8.json"), "--evaluations", "1500", "--seed", seed]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout
    };
    assert_eq!(plan("3"), plan("3"));
}

#[test]
fn a_running_plan_is_kept_where_nothing_is_gained() {
    let folder = Folder::new();
    let (problem, plan) = (data("uniform_p4_m8.json"), folder.text("plan.json"));
    assert!(adaptis(&["plan", &problem, "--evaluations", "4000", "--out", &plan]).status.success());
    let next = folder.text("next.json");
    let output = adaptis(&["plan", &problem, "--from", &plan, "--evaluations", "500", "--out", &next, "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let before = json(&adaptis(&["simulate", &problem, &plan, "--json"]));
    assert!(json(&output)["iteration_ns"].as_u64() <= before["iteration_ns"].as_u64());
}

#[test]
fn a_broken_plan_is_refused_by_rule() {
    let folder = Folder::new();
    let (problem, plan) = (data("uniform_p4_m8.json"), folder.text("plan.json"));
    assert!(adaptis(&["plan", &problem, "--schedule", "1f1b", "--out", &plan]).status.success());
    let text = std::fs::read_to_string(&plan).expect("the plan is there");
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let program = value["programs"][0].as_array_mut().expect("a program");
    let last = program.len() - 1;
    program.swap(0, last);
    let broken = folder.write("broken.json", &value.to_string());
    let output = adaptis(&["audit", &problem, &broken, "--json"]);
    fails(&output, 1, &["not valid"]);
    let rules: Vec<String> = json(&output)["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .map(|finding| finding["rule"].as_str().expect("a rule").to_owned())
        .collect();
    assert!(rules.contains(&"dependency".to_owned()) || rules.contains(&"order".to_owned()), "{rules:?}");
}

#[test]
fn files_that_are_not_of_their_format_are_named_with_the_field() {
    let folder = Folder::new();
    let missing = folder.text("missing.json");
    fails(&adaptis(&["plan", &missing]), 2, &["missing.json"]);
    let cut = folder.write("cut.json", &problem_text()[..200]);
    fails(&adaptis(&["plan", &cut]), 2, &["cut.json"]);
    let other = folder.write("other.json", &problem_text().replace("adaptis.problem/1", "adaptis.problem/9"));
    fails(&adaptis(&["plan", &other]), 2, &["format", "adaptis.problem/9"]);
    let negative =
        folder.write("negative.json", &problem_text().replacen("\"memory_bytes\":8388608", "\"memory_bytes\":-1", 1));
    fails(&adaptis(&["plan", &negative]), 2, &["devices[0].memory_bytes"]);
    let unknown = folder.write("unknown.json", &problem_text().replacen("\"memory_bytes\"", "\"memory_byte\"", 1));
    fails(&adaptis(&["plan", &unknown]), 2, &["memory_byte", "memory_bytes"]);
    let problem = data("uniform_p4_m8.json");
    fails(&adaptis(&["audit", &problem, &problem]), 2, &["format"]);
}

#[test]
fn a_problem_that_fits_nowhere_says_what_is_missing() {
    let folder = Folder::new();
    let tight =
        folder.write("tight.json", &problem_text().replace("\"memory_bytes\":8388608", "\"memory_bytes\":524288"));
    fails(&adaptis(&["plan", &tight, "--time", "1s"]), 1, &["bytes"]);
}

#[test]
fn wrong_usage_is_told_before_anything_starts() {
    fails(&adaptis(&["demo", "--devices", "2xh100-80q,2xa100-40g"]), 2, &["h100-80q", "h100-80g"]);
    fails(&adaptis(&["demo", "--devices", "0xh100-80g"]), 2, &["2 to 8"]);
    fails(&adaptis(&["demo", "--devices", "9xh100-80g"]), 2, &["2 to 8"]);
    fails(&adaptis(&["demo", "--model", "gemna"]), 2, &["gemna", "gemma"]);
    fails(&adaptis(&["demo", "--fault", "40:throttle:gpu9:1.8"]), 2, &["gpu9", "gpu0"]);
    fails(&adaptis(&["demo", "--fault", "fire"]), 2, &["fire"]);
    fails(&adaptis(&["demo", "--text", "/nonexistent"]), 2, &["/nonexistent"]);
    fails(&adaptis(&["plan", "x.json", "--time", "1 parsec"]), 2, &["--time"]);
    fails(&adaptis(&["plan", &data("uniform_p4_m8.json"), "--schedule", "zbx"]), 2, &["zbx"]);
    fails(&adaptis(&["plan", &data("uniform_p4_m8.json"), "--horizon", "9"]), 2, &["--from"]);
    fails(&adaptis(&["plan", &data("uniform_p4_m8.json"), "--store", "x"]), 2, &["--store", "--job"]);
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    fails(&adaptis(&["coordinator", "--dir", &run.to_string_lossy(), "--listen", "nowhere"]), 2, &["nowhere"]);
    assert!(!run.exists(), "a coordinator that could not start leaves no folder");
}

#[test]
fn a_plan_for_more_devices_than_are_left_is_a_start_all_the_same() {
    let folder = Folder::new();
    let (problem, plan) = (data("uniform_p4_m8.json"), folder.text("plan.json"));
    assert!(adaptis(&["plan", &problem, "--evaluations", "500", "--out", &plan]).status.success());
    let mut fewer: serde_json::Value = serde_json::from_str(&problem_text()).expect("JSON");
    let devices = fewer["devices"].as_array_mut().expect("devices");
    devices.pop();
    devices.iter_mut().for_each(|device| device["memory_bytes"] = 33_554_432_u64.into());
    let fewer = folder.write("fewer.json", &fewer.to_string());
    let next = folder.text("next.json");
    let output = adaptis(&["plan", &fewer, "--from", &plan, "--evaluations", "500", "--out", &next, "--json"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for words in ["gpu3 is gone", "of 8 layers change device", "because their device is gone"] {
        assert!(said.contains(words), "{said}");
    }
    let figures = json(&output);
    assert!(figures["unavoidable_layers"].as_u64() >= Some(1), "{figures}");
    assert!(figures["moved_layers"].as_u64() >= figures["unavoidable_layers"].as_u64(), "{figures}");
    assert_eq!(adaptis(&["audit", &fewer, &next]).status.code(), Some(0));
}

#[test]
fn what_is_no_plain_file_is_written_into_and_a_link_is_followed() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    let folder = Folder::new();
    let problem = data("uniform_p4_m8.json");
    let plan_to = |out: &str| adaptis(&["plan", &problem, "--schedule", "1f1b", "--out", out]);

    let target = folder.write("target.json", "old");
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o640)).expect("its owner may");
    symlink("target.json", folder.path("link.json")).expect("a link");
    assert!(plan_to(&folder.text("link.json")).status.success());
    assert!(std::fs::symlink_metadata(folder.path("link.json")).expect("the link").is_symlink());
    assert!(std::fs::read_to_string(&target).expect("the target").contains("adaptis.plan/1"));
    assert_eq!(std::fs::metadata(&target).expect("the target").permissions().mode() & 0o777, 0o640);

    symlink("new.json", folder.path("dangling.json")).expect("a link");
    assert!(plan_to(&folder.text("dangling.json")).status.success());
    assert!(std::fs::read_to_string(folder.path("new.json")).expect("a plan").contains("adaptis.plan/1"));

    // By way of a link, so that no mistake can cost this machine its device.
    symlink("/dev/full", folder.path("full")).expect("a link");
    fails(&plan_to(&folder.text("full")), 3, &["full", "no space left"]);
    assert!(std::fs::metadata("/dev/full").expect("the device").file_type().is_char_device());

    let fifo = std::ffi::CString::new(folder.text("fifo")).expect("no zero in it");
    // SAFETY: the text ends in a zero and outlives the call.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let reader = std::thread::spawn({
        let fifo = folder.path("fifo");
        move || std::fs::read_to_string(fifo).expect("what was written")
    });
    assert!(plan_to(&folder.text("fifo")).status.success());
    assert!(reader.join().expect("the reader ends well").contains("adaptis.plan/1"));
    assert!(std::fs::metadata(folder.path("fifo")).expect("the fifo").file_type().is_fifo());
    let count = std::fs::read_dir(folder.path("")).expect("the folder").count();
    assert_eq!(count, 6, "nothing is left beside what was asked for");
}

#[test]
fn a_place_that_takes_no_file_says_what_would_help() {
    let folder = Folder::new();
    let problem = data("uniform_p4_m8.json");
    let plan_to = |out: &str| adaptis(&["plan", &problem, "--schedule", "1f1b", "--out", out]);
    fails(&plan_to(&folder.text("no/such/plan.json")), 3, &["no/such", "is not there"]);
    fails(&plan_to(&folder.text("")), 3, &["it is a folder"]);
    fails(&plan_to("/proc/plan.json"), 3, &["/proc takes no such file"]);
}

#[test]
fn one_file_is_not_two_results_and_not_what_was_read() {
    let folder = Folder::new();
    let problem = folder.write("problem.json", &problem_text());
    let plan = folder.text("plan.json");
    fails(&adaptis(&["plan", &problem, "--schedule", "1f1b", "--out", &problem]), 2, &["--out", "PROBLEM", "same"]);
    assert!(adaptis(&["plan", &problem, "--schedule", "1f1b", "--out", &plan]).status.success());
    let (one, same) = (folder.text("one"), folder.text("./one"));
    let output = adaptis(&["simulate", &problem, &plan, "--svg", &one, "--trace", &same]);
    fails(&output, 2, &["--trace", "--svg", "same"]);
    fails(&adaptis(&["export", &problem, &plan, "--to", "svg", "--out", &plan]), 2, &["--out", "PLAN", "same"]);
    // What stands beside --out is a result, too.
    let beside = folder.text("plan.csv");
    std::fs::copy(&plan, &beside).expect("a copy of the plan");
    let output = adaptis(&["export", &problem, &beside, "--to", "torchtitan", "--out", &folder.text("plan.py")]);
    fails(&output, 2, &["plan.csv", "beside --out", "PLAN", "same"]);
    assert!(!folder.path("plan.py").exists() && std::fs::read(&beside).ok() == std::fs::read(&plan).ok());
    let output = adaptis(&["export", &problem, &plan, "--to", "torchtitan", "--out", "/dev/null"]);
    fails(&output, 2, &["--out /dev/null", "/dev/null.csv would stand beside", "plain file"]);
    assert_eq!(std::fs::read_to_string(&problem).expect("the problem"), problem_text());
}

#[test]
fn a_standard_error_that_is_full_or_closed_changes_no_exit_code() {
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("the device");
    let problem = data("uniform_p4_m8.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    let status = command.args(["audit", &problem, "/nonexistent"]).stderr(full()).status().expect("it starts");
    assert_eq!(status.code(), Some(2));
    let folder = Folder::new();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.args(["coordinator", "--dir", &folder.text("run"), "--listen", "tcp://127.0.0.1:*", "--http", "none"]);
    let mut child = command.stderr(writer).spawn().expect("it starts");
    std::thread::sleep(std::time::Duration::from_secs(1));
    // SAFETY: the child was not waited for, so its number still names it.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn noise_lengthens_an_iteration_and_changes_nothing_else() {
    let folder = Folder::new();
    let (problem, plan) = (data("uniform_p4_m8.json"), folder.text("plan.json"));
    assert!(adaptis(&["plan", &problem, "--schedule", "1f1b", "--out", &plan]).status.success());
    let exact = json(&adaptis(&["simulate", &problem, &plan, "--json"]));
    let noisy = |more: &[&str]| json(&adaptis(&[&["simulate", &problem, &plan, "--json", "--noise"], more].concat()));
    let mut tenth = noisy(&["10%"]);
    assert_eq!(tenth, noisy(&["0.1", "--draws", "64", "--seed", "1"]));
    let noise = tenth.as_object_mut().and_then(|tenth| tenth.remove("noise")).expect("noise");
    assert_eq!(tenth, exact);
    let of = |noise: &serde_json::Value, key: &str| noise[key].as_u64().expect("a whole number");
    let exact_ns = of(&exact, "iteration_ns");
    assert!(exact_ns < of(&noise, "mean_ns") && of(&noise, "p50_ns") < of(&noise, "p95_ns"), "{noise}");
    assert!(of(&noise, "mean_ns") < exact_ns * 11 / 10, "{noise}");
    let none = &noisy(&["0", "--draws", "2"])["noise"];
    assert_eq!([of(none, "mean_ns"), of(none, "p50_ns"), of(none, "p95_ns")], [exact_ns; 3]);
    let output = adaptis(&["simulate", &problem, &plan, "--noise", "10%", "--draws", "9"]);
    assert!(
        text(&output.stdout).contains("with 10% noise on every instruction, 9 draws: mean"),
        "{}",
        text(&output.stdout)
    );
    fails(&adaptis(&["simulate", &problem, &plan, "--draws", "9"]), 2, &["--noise"]);
    fails(&adaptis(&["simulate", &problem, &plan, "--noise", "110%"]), 2, &["--noise", "0% to 100%"]);
}

#[test]
fn numbers_below_zero_are_told_their_range() {
    for (arguments, words) in [
        (["demo", "--seed", "-1"].as_slice(), ["--seed", "not negative"]),
        (&["demo", "--iterations", "-1"], ["--iterations", "from 1 to 1000000"]),
        (&["demo", "--noise", "-0.1"], ["--noise", "from 0 to 1"]),
        (&["demo", "--fault", "-1:kill:gpu0"], ["-1:kill:gpu0", "iteration"]),
        (&["demo", "--devices", "-2xh100-80g"], ["--devices -2xh100-80g", "unknown"]),
        (&["plan", "x.json", "--time", "-1s"], ["--time", "10s"]),
        (&["plan", "x.json", "--evaluations", "-1"], ["--evaluations", "not negative"]),
        (&["plan", "x.json", "--horizon", "0"], ["--horizon", "from 1 on"]),
        (&["coordinator", "--dir", "x", "--search-time", "0s"], ["--search-time", "no time"]),
        (&["agent", "--device", "a", "--ring", "r", "--spool", "s", "--spool-bytes", "0"], ["--spool-bytes", "from"]),
        (&["agent", "--device", "", "--ring", "r", "--spool", "s"], ["--device", "value"]),
    ] {
        fails(&adaptis(arguments), 2, &words);
    }
}

#[test]
fn faults_and_devices_that_cannot_be_say_what_could() {
    fails(&adaptis(&["demo", "--fault", "40:throttle:gpu1:0"]), 2, &["the factor is `0`", "0.01 to 1000"]);
    fails(&adaptis(&["demo", "--fault", "40:pause:gpu1:40s"]), 2, &["`40s`", "25s"]);
    fails(&adaptis(&["demo", "--devices", "/nonexistent/my.toml"]), 2, &["--devices /nonexistent/my.toml"]);
    let unknown = adaptis(&["demo", "--devices", "2xzzz"]);
    fails(&unknown, 2, &["--devices 2xzzz", "`zzz` is unknown", "h100-80g"]);
    assert!(!text(&unknown.stderr).contains("did you mean"), "{}", text(&unknown.stderr));
    fails(&adaptis(&["demo", "--devices", "2xh100-80q"]), 2, &["did you mean `h100-80g`"]);
    let folder = Folder::new();
    let devices = "[[device]]\nname = \"left-a\"\nkind = \"h100-80g\"\n[[device]]\nkind = \"h100-80g\"\n";
    let toml = folder.write("two.toml", devices);
    let fault = ["--fault", "4:slowlink:left-a-gpu9:100"];
    fails(&adaptis(&["demo", "--devices", &toml, fault[0], fault[1]]), 2, &["there is no device `left`"]);
}

#[test]
fn devices_that_nobody_could_have_are_told_by_their_field() {
    let folder = Folder::new();
    let card = "[[kind]]\nname = \"c\"\nmemory_gib = 80\ntflops = 100.0\nmemory_gb_per_second = 1000.0\n";
    let (two, plain) = ("[[device]]\nkind = \"c\"\n".repeat(2), card.to_owned());
    for (text, words) in [
        (two.clone() + &plain + &plain, ["name of `c`", "unique"]),
        (two.clone() + &plain.replace("100.0", "1e-300"), ["tflops of `c` is 1e-300", "from 0.1"]),
        (two.clone() + &plain.replace("1000.0", "1e-9"), ["memory_gb_per_second of `c`", "from 1 to"]),
        (two.clone() + "slowdown = 1e200\n" + &plain, ["slowdown of `gpu1` is 1e200", "0.01 to 1000"]),
        (two.clone() + "name = \"..\"\n" + &plain, ["name of `..`", "not beginning with `.`"]),
        (two.clone() + "name = \".a\"\n" + &plain, ["name of `.a`", "not beginning with `.`"]),
        (two.clone() + "name = \"-a\"\n" + &plain, ["name of `-a`", "not beginning with `.` or `-`"]),
        (two.clone() + &plain + &plain.replace("\"c\"", "\"\""), ["name of `[[kind]] number 2`", "a name"]),
        (two + &plain + "[links]\nbetween_nodes_gb_per_second = 1e-9\n", ["between_nodes_gb_per_second", "1e-9"]),
    ] {
        let toml = folder.write("devices.toml", &text);
        fails(&adaptis(&["demo", "--devices", &toml, "--out", &folder.text("run")]), 2, &words);
    }
    assert!(!folder.path("run").exists());
}

#[test]
fn what_a_demo_cannot_take_is_told_before_anything_is_made() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::new();
    let large = std::fs::File::create(folder.path("large")).expect("a file");
    large.set_len(3 << 30).expect("a sparse file");
    let output = adaptis(&["demo", "--text", &folder.text("large"), "--out", &folder.text("run")]);
    fails(&output, 2, &["--text", "more than 67108864 bytes"]);
    let out = folder.path("run").join(std::ffi::OsStr::from_bytes(b"\xff"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    fails(&command.args(["demo", "--out"]).arg(out).output().expect("it starts"), 2, &["--out", "UTF-8"]);
    assert!(!folder.path("run").exists());
}

#[test]
fn a_demo_that_is_interrupted_while_it_plans_leaves_nothing() {
    use std::io::Read;
    let folder = Folder::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.args(["demo", "--devices", "8xh100-80g", "--out", &folder.text("run")]);
    let command = with_signals(&mut command, false).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut said = [0; 8];
    let stderr = child.stderr.as_mut().expect("it is piped");
    stderr.read_exact(&mut said).expect("it says what it does");
    assert_eq!(&said, b"planning");
    signal(&child, libc::SIGINT);
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(!folder.path("run").exists());
}

/// A problem, a plan for it as a file and as JSON to be changed.
fn planned(folder: &Folder) -> (String, String, serde_json::Value) {
    let (problem, plan) = (data("uniform_p4_m8.json"), folder.text("plan.json"));
    assert!(adaptis(&["plan", &problem, "--schedule", "1f1b", "--out", &plan]).status.success());
    let text = std::fs::read_to_string(&plan).expect("the plan is there");
    (problem, plan, serde_json::from_str(&text).expect("JSON"))
}

#[test]
fn a_plan_that_cannot_run_is_not_taken_for_a_running_one() {
    let folder = Folder::new();
    let (problem, plan, good) = planned(&folder);
    let from = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut plan = good.clone();
        change(&mut plan);
        let plan = folder.write("changed.json", &plan.to_string());
        adaptis(&["plan", &problem, "--from", &plan, "--evaluations", "50"])
    };
    fails(&from(&|plan| plan["epoch"] = u64::MAX.into()), 2, &["epoch", "last number"]);
    fails(&from(&|plan| plan["programs"][0] = serde_json::json!([])), 2, &["--from", "program:"]);
    fails(&from(&|plan| plan["stages"][0]["layers"] = serde_json::json!([0, 1])), 2, &["--from", "layers:"]);
    // A running plan of another number of microbatches is one.
    assert!(from(&|plan| plan["epoch"] = 7.into()).status.success());
    let fewer = problem_text().replacen("\"microbatches\":8", "\"microbatches\":4", 1);
    assert_ne!(fewer, problem_text());
    let fewer = folder.write("fewer.json", &fewer);
    let output = adaptis(&["plan", &fewer, "--from", &plan, "--evaluations", "50"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn what_fits_nowhere_leaves_no_folder() {
    let folder = Folder::new();
    let output = adaptis(&["demo", "--devices", "2xcpu", "--out", &folder.text("run")]);
    fails(&output, 1, &["does not fit"]);
    assert!(!folder.path("run").exists());
}

#[test]
fn a_plan_that_no_executor_runs_has_no_time() {
    let folder = Folder::new();
    let (problem, _, good) = planned(&folder);
    let changed = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let mut plan = good.clone();
        change(&mut plan);
        adaptis(&["simulate", &problem, &folder.write(name, &plan.to_string())])
    };
    // Microbatches 0 and 1 change places everywhere: it could run, in an order that sums gradients differently.
    let output = changed("order.json", &|plan| {
        for text in
            plan["programs"].as_array_mut().expect("programs").iter_mut().flat_map(|p| p.as_array_mut()).flatten()
        {
            let action = text.as_str().expect("a text").to_owned();
            let (head, microbatch) = action.split_at(action.find(['F', 'I', 'W', 'B']).expect("a letter") + 1);
            *text = format!(
                "{head}{}",
                match microbatch {
                    "0" => "1",
                    "1" => "0",
                    other => other,
                }
            )
            .into();
        }
    });
    fails(&output, 1, &["order"]);
    fails(
        &changed("device.json", &|plan| plan["stages"][0]["device"] = 99.into()),
        1,
        &["stage 0 is on device 99", "there are 4"],
    );
    fails(&changed("none.json", &|plan| plan["stages"] = serde_json::json!([])), 1, &["layers 0 to 7 are in no stage"]);
    let output = changed("recompute.json", &|plan| plan["stages"][0]["recompute"] = serde_json::json!([60]));
    fails(&output, 1, &["recompute"]);
}

#[test]
fn a_plan_is_exported_for_other_tools() {
    let folder = Folder::new();
    let (problem, plan) = (data("uniform_p4_m8.json"), folder.text("plan.json"));
    assert!(adaptis(&["plan", &problem, "--schedule", "1f1b", "--out", &plan]).status.success());
    let output = adaptis(&["export", &problem, &plan, "--to", "torch"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert_eq!(rows.len(), 4);
    assert!(rows[3].starts_with("3F0,3B0,3F1,3B1,"), "{}", rows[3]);
    assert!(text(&output.stderr).contains("the order alone"), "{}", text(&output.stderr));
    // To a file: then it says which rank builds which stage.
    let out = folder.text("schedule.csv");
    let output = adaptis(&["export", &problem, &plan, "--to", "torch", "--out", &out]);
    assert_eq!(std::fs::read_to_string(&out).expect("a schedule"), rows.join("\n") + "\n");
    assert!(text(&output.stdout).contains("block6 to block7"), "{}", text(&output.stdout));
    // torchtitan's schedule lies beside its configuration.
    let out = folder.text("titan.py");
    let answer = json(&adaptis(&["export", &problem, &plan, "--to", "torchtitan", "--out", &out, "--json"]));
    assert_eq!(answer["ranks"].as_array().map(Vec::len), Some(4), "{answer}");
    assert_eq!(answer["files"][1]["path"], folder.text("titan.csv"), "{answer}");
    assert!(folder.path("titan.csv").exists());
    fails(&adaptis(&["export", &problem, &plan, "--to", "megatron"]), 1, &["problem.layers[0]", "embedding"]);
    for to in ["perfetto", "svg"] {
        let answer = json(&adaptis(&["export", &problem, &plan, "--to", to, "--json"]));
        assert!(answer["files"][0]["text"].as_str().is_some_and(|text| text.len() > 1000), "{answer}");
    }
}

#[test]
fn a_plan_explains_itself() {
    let folder = Folder::new();
    let problem = data("uniform_p4_m8.json");
    let arguments = ["plan", &problem, "--schedule", "1f1b", "--explain"];
    // Without --out the plan alone is on standard output.
    let output = adaptis(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(json(&output)["format"], "adaptis.plan/1");
    for words in ["Where the time goes", "for gpu1 to compute", "no room for one more", "one more unit"] {
        assert!(text(&output.stderr).contains(words), "`{words}` is not in: {}", text(&output.stderr));
    }
    let plan = folder.text("plan.json");
    let output = adaptis(&[&arguments[..], &["--out", &plan]].concat());
    assert!(text(&output.stdout).contains("Where the time goes"), "{}", text(&output.stdout));
    let answer = json(&adaptis(&[&arguments[..], &["--out", &plan, "--json"]].concat()));
    let explanation = &answer["explanation"];
    assert_eq!(explanation["iteration_ns"], answer["iteration_ns"]);
    // 1F1B on four equal devices: the first waits for three times the backward of the second, less its own forwards.
    assert_eq!(explanation["devices"][0]["waiting_ns"], 9_000_000);
    assert_eq!(explanation["waits"][0]["from"], "gpu1");
    assert!(explanation["wishes"].as_array().is_some_and(|wishes| wishes.len() >= 3), "{answer}");
}
