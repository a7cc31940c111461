//! `adaptis profiles` and `adaptis plan --job` as a user meets them: files in, answers and exit codes out.

mod support;

use adaptis_coordinator::profiles::account::Memory;
use adaptis_coordinator::{Profiles, RECORDS_BYTES_MAX, Store};
use adaptis_coordinator_core::ledger::GenerationRecord;
use adaptis_coordinator_core::{Durable, Head};
use adaptis_proto::message::{DeviceCard, Job, JobLayer};
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::Phase;
use adaptis_proto::{Epoch, Generation, RunId, Term};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{Folder, data, fails, json, text};

/// The command, without what the environment says of stores.
fn adaptis(home: &Folder, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
    command.args(arguments).env_remove("ADAPTIS_STORE").env("XDG_CONFIG_HOME", home.path("config"));
    command.output().expect("the command starts")
}

const GIB: u64 = 1 << 30;
/// Signature, F, I, W in milliseconds on the first kind; the second takes twice as long.
const CLASSES: [(&str, [u64; 3]); 4] = [
    ("embedding/256000x2048/bf16", [1, 0, 2]),
    ("attention/2048h16/bf16/b1xs4096", [6, 8, 4]),
    ("mlp/2048x8192/bf16/b1xs4096", [9, 9, 9]),
    ("head/256000x2048/bf16", [20, 22, 18]),
];

fn layers(blocks: usize) -> Vec<JobLayer> {
    let layer = |(name, signature): (String, &str)| JobLayer {
        name,
        signature: signature.to_owned(),
        parameter_bytes: 50 << 20,
        state_bytes: 450 << 20,
        output_bytes: 16 << 20,
        moved_bytes: 400 << 20,
    };
    let block = |at| [(format!("attention{at}"), CLASSES[1].0), (format!("mlp{at}"), CLASSES[2].0)];
    let inner = (0..blocks).flat_map(block);
    let all = std::iter::once(("embed".to_owned(), CLASSES[0].0)).chain(inner);
    all.chain([("head".to_owned(), CLASSES[3].0)]).map(layer).collect()
}

/// A run as a coordinator leaves it: a job on devices of two kinds, with profiles of both.
fn record(dir: &Path, name: &str, kinds: [&str; 2], samples: u64) {
    let mut store = Store::open(dir, RECORDS_BYTES_MAX).expect("a folder");
    let head = store.reign().expect("the ledger is empty").head;
    let card = |at: usize| DeviceCard {
        name: format!("gpu{at}"),
        kind: kinds[at / 2].to_owned(),
        memory_bytes: [80, 40][at / 2] * GIB,
        reserved_bytes: GIB,
    };
    let job = Job {
        run: RunId(name.to_owned()),
        devices: (0..4).map(|at| format!("gpu{at}")).collect(),
        layers: layers(8),
        microbatches: 8,
        iterations: 100,
        start_plan: None,
    };
    let (generation, epoch, term) = (Generation(1), Epoch(0), Term(1));
    let cards = (0..4).map(card).collect();
    let record = GenerationRecord { generation, epoch, members: Vec::new(), cards, job, term };
    let now = Head { generation, ..head };
    store.commit(term, &[Durable::Generation(record), Durable::Head { was: head, now }]).expect("it is ours");
    let mut profiles = Profiles::default();
    for (kind, slower) in kinds.into_iter().zip([1, 2]) {
        for (signature, milliseconds) in CLASSES {
            let phases = [Phase::Forward, Phase::InputGradient, Phase::WeightGradient];
            for (phase, ms) in phases.into_iter().zip(milliseconds).filter(|(_, ms)| *ms > 0) {
                // Two percent to either side, the middle as it says.
                let time = |at: u64| ms * slower * (980_000 + 40_000 * at / (samples - 1));
                (0..samples).for_each(|at| profiles.record(signature, kind, phase, "", time(at)));
            }
            let memory =
                Memory { activation_bytes: 64 << 20, weight_gradient_bytes: Some(32 << 20), workspace_bytes: 0 };
            profiles.record_memory(signature, kind, memory);
        }
        for other in kinds {
            // 10 us and 1 ns for 20 bytes.
            for bytes in [1_u64 << 20, 16 << 20] {
                (0..9).for_each(|_| profiles.record_transfer(kind, other, bytes, 10_000 + bytes / 20));
            }
        }
    }
    store.merge(&mut profiles, 1_700_000_000).expect("it is ours");
}

#[test]
fn a_recorded_job_is_planned_for_other_kinds_from_the_store_alone() {
    let home = Folder::new();
    record(&home.path("job"), "job", ["h100-80g", "a100-40g"], 11);
    record(&home.path("other"), "other", ["gh-96", "v100-32g"], 11);
    let (job, store) = (home.text("job"), home.text("store"));
    let merged = adaptis(&home, &["profiles", "merge", "--into", &store, &home.text("other"), "--json"]);
    assert_eq!(json(&merged)["merged"][0]["became"], "new", "{}", text(&merged.stderr));
    let (problem, plan) = (home.text("problem.json"), home.text("plan.json"));
    let asked = ["plan", "--job", &job, "--devices", "2xgh-96,2xv100-32g", "--store", &store, "--microbatches", "12"];
    let written = ["--problem-out", &problem, "--out", &plan, "--evaluations", "300", "--json"];
    let output = adaptis(&home, &[&asked[..], &written].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer = json(&output);
    assert!(answer["iteration_ns"].as_u64() >= answer["lower_bound_ns"].as_u64());
    // Eleven times: three of each class but the embedding, which has no input gradient.
    assert_eq!(answer["basis"]["measured"]["gh-96"], serde_json::json!({ "times": 11, "samples": 121 }));
    assert_eq!(answer["basis"]["memory"]["v100-32g"], "profiles");
    assert_eq!(answer["basis"]["predicted"], serde_json::json!([]));
    let audited = adaptis(&home, &["audit", &problem, &plan]);
    assert_eq!(audited.status.code(), Some(0), "{}", text(&audited.stderr));

    let problem: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&problem).expect("a problem")).expect("JSON");
    assert_eq!((&problem["microbatches"], problem["layers"].as_array().map(Vec::len)), (&12.into(), Some(18)));
    for (kind, slower) in [("gh-96", 1.0), ("v100-32g", 2.0)] {
        for (at, [forward, input, weight]) in [(0, CLASSES[0].1), (1, CLASSES[1].1), (17, CLASSES[3].1)] {
            let cost = &problem["costs"][kind][at];
            for (field, ms) in [("forward_ns", forward), ("input_gradient_ns", input), ("weight_gradient_ns", weight)] {
                let (told, true_ns) = (cost[field].as_f64().expect("a number"), ms as f64 * slower * 1e6);
                assert!((told - true_ns).abs() <= 0.001 * true_ns, "{kind} {at} {field}: {told}, is {true_ns}");
            }
            assert_eq!(
                (&cost["activation_bytes"], &cost["weight_gradient_bytes"]),
                (&(64 << 20).into(), &(32 << 20).into())
            );
        }
    }
    assert_eq!(problem["devices"][3]["memory_bytes"], 40 * GIB);
    let link = &problem["links"]["default"];
    assert!((link["bytes_per_second"].as_f64().expect("a number") / 20e9 - 1.0).abs() < 0.01, "{link}");
    assert!(link["latency_ns"].as_u64().expect("whole").abs_diff(10_000) < 500, "{link}");
}

#[test]
fn a_kind_that_only_an_agent_calibrated_is_planned_with_wide_intervals() {
    let home = Folder::new();
    record(&home.path("job"), "job", ["h100-80g", "a100-40g"], 5);
    let mut store = Store::open(&home.path("calibrated"), RECORDS_BYTES_MAX).expect("a folder");
    let mut profiles = Profiles::default();
    for (kind, operations) in [("h100-80g", 800), ("a100-40g", 300), ("l4-24g", 100)] {
        let rates = Rates { operations_per_s: Some(operations * 1_000_000_000_000), bytes_per_s: None };
        profiles.record_rates(kind, rates);
    }
    store.merge(&mut profiles, 1_700_000_000).expect("it is ours");
    let (job, kept) = (home.text("job"), home.text("store"));
    let merged = adaptis(&home, &["profiles", "merge", "--into", &kept, &home.text("calibrated")]);
    assert!(merged.status.success(), "{}", text(&merged.stderr));
    let asked = ["plan", "--job", &job, "--devices", "2xh100-80g,2xl4-24g", "--evaluations", "50"];
    fails(&adaptis(&home, &asked), 1, &["on l4-24g", "none of l4-24g", "calibrated"]);
    let out = ["--store", &kept, "--out", &home.text("plan.json"), "--json"];
    let output = adaptis(&home, &[&asked[..], &out].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let predicted = json(&output)["basis"]["predicted"].clone();
    let rows = predicted.as_array().expect("rows");
    assert_eq!(rows.len(), 11, "{predicted}");
    let number = |row: &serde_json::Value, name: &str| row[name].as_f64().expect("a number");
    assert!(rows.iter().all(|row| row["source"] == "calibrated rates" && row["kind"] == "l4-24g"), "{predicted}");
    let head = rows.iter().find(|row| row["signature"] == CLASSES[3].0 && row["phase"] == "forward").expect("the head");
    // Eight times the h100's 20 ms by one, three times the a100's 40 by the other.
    assert!((0.12..0.16).contains(&number(head, "seconds")), "{head}");
    assert!(number(head, "high") / number(head, "low") > 8.0, "{head}");

    let cells = r#"[{"kind": "l4-24g", "signature": "head/256000x2048/bf16", "phase": "forward"}]"#;
    let cells = home.write("cells.json", cells);
    let answer = adaptis(&home, &["profiles", "predict", "--from", &job, &kept, "--cells", &cells, "--json"]);
    assert_eq!(json(&answer)[0]["source"], "calibrated rates", "{}", text(&answer.stderr));
}

#[test]
fn a_plan_without_profiles_says_what_is_missing() {
    let home = Folder::new();
    record(&home.path("job"), "job", ["h100-80g", "a100-40g"], 5);
    let job = home.text("job");
    let plan = |devices: &str| adaptis(&home, &["plan", "--job", &job, "--devices", devices, "--evaluations", "50"]);
    fails(
        &plan("2xh100-80g,2xl4-24g"),
        1,
        &["forward of attention/2048h16", "on l4-24g", "none of l4-24g: a few layers", "profiles merge"],
    );
    fails(&plan("2xh100-80g,2xgiant"), 2, &["giant", "memory_gib"]);
    fails(&plan("twoxh100-80g,0xa100-40g"), 2, &["`0xa100-40g`: a job has from 1 to"]);
    let fits = plan("2xh100-80g,2xa100-40g");
    assert!(fits.status.success(), "{}", text(&fits.stderr));
    for told in
        ["measured: 11 times on a100-40g, 55 samples", "memory of h100-80g: by profiles", "guessed: the optimizer"]
    {
        assert!(text(&fits.stderr).contains(told), "{}", text(&fits.stderr));
    }
    fails(
        &adaptis(&home, &["plan", "--job", &home.text("nowhere"), "--devices", "2xh100-80g"]),
        2,
        &["--job", "nowhere"],
    );
    fails(&adaptis(&home, &["plan"]), 2, &["PROBLEM"]);
    fails(&adaptis(&home, &["plan", "--job", &job]), 2, &["--devices"]);

    // Its devices were emulated: real profiles of the kinds are of another clock, and do not count.
    record(&home.path("real"), "real", ["l4-24g", "l40s-48g"], 5);
    std::fs::write(home.path("job").join("emulation.json"), r#"{"truth": {"costs": {"h100-80g": []}}}"#)
        .expect("a file");
    let store = home.text("real");
    let mixed = ["plan", "--job", &job, "--devices", "2xh100-80g,2xl4-24g", "--store", &store];
    fails(
        &adaptis(&home, &mixed),
        1,
        &["on l4-24g", "11 of l4-24g", "are of real devices", "adaptis demo --devices 2xh100"],
    );
    assert!(!text(&adaptis(&home, &mixed).stderr).contains("profiles import"), "an import would not count either");
}

/// A kind that ran the head and the embedding of the job, and an MLP of another shape: attention and MLP are predicted.
#[test]
fn a_layer_that_never_ran_on_a_kind_is_predicted_and_told_with_its_interval() {
    let home = Folder::new();
    record(&home.path("job"), "job", ["h100-80g", "a100-40g"], 11);
    let mut store = Store::open(&home.path("few"), RECORDS_BYTES_MAX).expect("a folder");
    store.reign().expect("the ledger is empty");
    let mut profiles = Profiles::default();
    for (signature, milliseconds) in [CLASSES[0], CLASSES[2], CLASSES[3]] {
        let phases = [Phase::Forward, Phase::InputGradient, Phase::WeightGradient];
        for (phase, ms) in phases.into_iter().zip(milliseconds).filter(|(_, ms)| *ms > 0) {
            (0..9).for_each(|_| profiles.record(signature, "l4-24g", phase, "", ms * 3_000_000));
        }
    }
    store.merge(&mut profiles, 1_700_000_000).expect("it is ours");
    drop(store);
    let (job, few, problem, out) =
        (home.text("job"), home.text("few"), home.text("problem.json"), home.text("plan.json"));
    let asked = ["plan", "--job", &job, "--devices", "2xa100-40g,2xl4-24g", "--store", &few, "--evaluations", "100"];
    let written = ["--problem-out", &problem, "--out", &out];
    let output = adaptis(&home, &[&asked[..], &written, &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer = json(&output);
    let basis = &answer["basis"];
    let predicted = basis["predicted"].as_array().expect("a list");
    assert_eq!(predicted.len(), 3, "{basis:#}");
    for (found, (phase, ms)) in
        predicted.iter().zip(["forward", "input_gradient", "weight_gradient"].iter().zip(CLASSES[1].1))
    {
        assert_eq!(
            (&found["kind"], &found["phase"], &found["source"]),
            (&"l4-24g".into(), &(*phase).into(), &"other kinds".into())
        );
        assert_eq!((found["layers"].as_array().map(Vec::len), &found["layers"][0]), (Some(8), &"attention0".into()));
        let [seconds, low, high] = ["seconds", "low", "high"].map(|name| found[name].as_f64().expect("a number"));
        let truth = ms as f64 * 3e-3;
        assert!((seconds / truth - 1.0).abs() < 0.15 && low < truth && truth < high, "{found}");
    }
    let number = |of: &serde_json::Value| of.as_f64().expect("a number");
    let share = number(&basis["predicted_share"]);
    assert!(share > 0.0 && share < 0.6, "attention is less than half of the work of any device: {share}");
    let [low, told, high] =
        [&basis["predicted_iteration"]["low_ns"], &answer["iteration_ns"], &basis["predicted_iteration"]["high_ns"]]
            .map(number);
    // Where the search puts little on the device with the predicted times, others may bound the iteration at their lower end.
    assert!(low <= told && told <= high && low < high, "{basis:#}");
    let widths = predicted.iter().map(|found| number(&found["high"]) / number(&found["low"]));
    let widest = &basis["predicted_widest"];
    assert_eq!(number(&widest["high"]) / number(&widest["low"]), widths.fold(0.0, f64::max));
    let guessed = basis["guessed"].to_string();
    assert!(guessed.contains("attention/2048h16/bf16/b1xs4096 holds on l4-24g what it holds on a100-40g"), "{guessed}");
    assert_eq!(adaptis(&home, &["audit", &problem, &out]).status.code(), Some(0));

    let output = adaptis(&home, &[&asked[..], &written].concat());
    for told in
        ["predicted: attention/2048h16/bf16/b1xs4096 (8 layers, attention0 to attention7) on l4-24g", "forward "]
    {
        assert!(text(&output.stderr).contains(told), "{}", text(&output.stderr));
    }
    for told in ["of the work in an iteration rests on predicted times", "widest: "] {
        assert!(text(&output.stdout).contains(told), "{}", text(&output.stdout));
    }
    // To standard output goes the plan alone.
    let output = adaptis(&home, &asked);
    assert!(text(&output.stderr).contains("widest: ") && json(&output)["format"] == "adaptis.plan/1");
}

#[test]
fn devices_of_a_file_have_its_memory_and_links() {
    let home = Folder::new();
    record(&home.path("job"), "job", ["h100-80g", "newcard"], 5);
    let file = home.write(
        "devices.toml",
        "[[device]]\nname = \"a\"\nkind = \"h100-80g\"\nnode = \"left\"\n[[device]]\nname = \"b\"\nkind = \"newcard\"\nnode = \"left\"\n\
         [[device]]\nkind = \"newcard\"\nnode = \"right\"\nslowdown = 1.5\n\
         [[kind]]\nname = \"newcard\"\nmemory_gib = 64\nreserved_gib = 2\n[links]\nbetween_nodes_gb_per_second = 3\n",
    );
    let (job, problem) = (home.text("job"), home.text("problem.json"));
    let asked = ["plan", "--job", &job, "--devices", &file, "--problem-out", &problem, "--evaluations", "50"];
    let output = adaptis(&home, &asked);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let problem = adaptis_plan::Problem::read(&std::fs::read_to_string(problem).expect("a file")).expect("a problem");
    let names: Vec<_> = problem.devices.iter().map(|device| (device.name.as_str(), device.slowdown)).collect();
    assert_eq!(names, [("a", 1.0), ("b", 1.0), ("gpu2", 1.5)]);
    assert_eq!((problem.devices[1].memory_bytes, problem.devices[1].reserved_bytes), (64 * GIB, 2 * GIB));
    assert_eq!(problem.link(0, 2).bytes_per_second, 3e9);
    assert!((problem.link(0, 1).bytes_per_second / 20e9 - 1.0).abs() < 0.01, "within a node as measured");
    let wrong = home.write("wrong.toml", "[[device]]\nkinds = \"h100-80g\"\n");
    fails(&adaptis(&home, &["plan", "--job", &job, "--devices", &wrong]), 2, &["wrong.toml", "kinds"]);
}

#[test]
fn profiles_are_kept_listed_shown_compared_and_exchanged() {
    let home = Folder::new();
    record(&home.path("may"), "may", ["h100-80g", "a100-40g"], 21);
    record(&home.path("june"), "june", ["a100-40g", "l40s-48g"], 21);
    let (may, june) = (home.text("may"), home.text("june"));
    fails(&adaptis(&home, &["profiles", "list"]), 2, &["no profiles there", "profiles merge"]);
    let merge = |from: &[&str]| {
        let output = adaptis(&home, &[&["profiles", "merge", "--json"], from].concat());
        json(&output)["merged"].as_array().expect("a list").iter().map(|row| row["became"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(merge(&[&may]), ["new"]);
    assert_eq!(merge(&[&may, &june]).iter().filter(|became| *became == "known").count(), 1);
    let own = home.path("config").join("adaptis");
    assert!(own.join("profiles.db").is_file(), "the user's own store");

    let listed = json(&adaptis(&home, &["profiles", "list", "--kind", "a100-40g", "--signature", "mlp", "--json"]));
    let rows = listed["profiles"].as_array().expect("rows");
    assert_eq!(rows.len(), 3, "{listed}");
    // Of May with 18 ms and of June with 9 ms.
    assert_eq!((&rows[0]["phase"], &rows[0]["count"]), (&"forward".into(), &42.into()));
    let table = adaptis(&home, &["profiles", "list"]);
    assert!(text(&table.stdout).contains("2023-11-14 22:13"), "{}", text(&table.stdout));

    let shown = adaptis(&home, &["profiles", "show", "mlp"]);
    for told in [
        "mlp/2048x8192/bf16/b1xs4096",
        "a100-40g weight_gradient: 42 samples",
        "21 of them: may (run, merged 20",
        "holds on h100-80g: 64.0 MiB",
    ] {
        assert!(text(&shown.stdout).contains(told), "{}", text(&shown.stdout));
    }
    fails(&adaptis(&home, &["profiles", "show", "bf16"]), 2, &["4 signatures contain `bf16`"]);
    fails(&adaptis(&home, &["profiles", "show", "atention"]), 2, &["atention", "the nearest is"]);

    let compared = json(&adaptis(&home, &["profiles", "diff", &may, &june, "--json"]));
    let changed = compared["changed"].as_array().expect("rows");
    assert_eq!(changed.len(), 11, "{compared}");
    for row in changed {
        let number = |field: &str| row[field].as_f64().expect("a number");
        assert!((number("ratio") - 0.5).abs() < 0.001 && number("low") < 0.5 && number("high") > 0.5, "{row}");
        assert!(number("low") > 0.48 && number("high") < 0.52, "{row}");
    }
    assert_eq!(
        (compared["only_a"].as_array().map(Vec::len), compared["only_b"].as_array().map(Vec::len)),
        (Some(11), Some(11))
    );

    let (all, copy) = (home.text("all.json"), home.text("copy"));
    assert!(adaptis(&home, &["profiles", "export", "--to", "json", "--out", &all]).status.success());
    assert!(adaptis(&home, &["profiles", "import", &all, "--into", &copy]).status.success());
    let export = |store: &str, to: &str| adaptis(&home, &["profiles", "export", "--to", to, "--store", store]).stdout;
    let csv = export(&own.to_string_lossy(), "csv");
    assert_eq!(text(&export(&copy, "csv")), text(&csv));
    assert!(
        text(&csv).starts_with("kind,signature,phase,software,count,seconds,low,high,first_seen,last_seen\na100-40g,")
    );
    assert_eq!(text(&csv).lines().count(), 34);
    let nothing = json(&adaptis(&home, &["profiles", "diff", &all, &copy, "--json"]));
    assert!(nothing["changed"].as_array().expect("rows").iter().all(|row| row["ratio"] == 1.0), "{nothing}");
}

#[test]
fn an_import_asks_for_what_a_file_lacks() {
    let home = Folder::new();
    let (aceso, sailor) = (data("profiles/gpt_1_3B_mbs1_tp1_algo0.csv"), data("profiles/LLAMA-3-8.V100-16.json"));
    let import = |arguments: &[&str]| adaptis(&home, &[&["profiles", "import"], arguments].concat());
    fails(&import(&[&aceso]), 2, &["gpt_1_3B", "--unit", "--kind", "--split-backward"]);
    fails(&import(&[&aceso, "--unit", "us", "--kind", "v100-32g"]), 2, &["--split-backward 0.5:0.5"]);
    fails(&import(&[&sailor]), 2, &["LLAMA-3-8.V100-16.json", "--split-backward"]);
    fails(&import(&[&sailor, "--split-backward", "0.5:0.6"]), 2, &["add up to 1"]);
    let unnamed = home.write("unnamed.json", &std::fs::read_to_string(&sailor).expect("the data is there"));
    fails(&import(&[&unnamed, "--split-backward", "0.5:0.5"]), 2, &["--kind"]);
    fails(&import(&[&home.write("x.txt", "what is this?")]), 2, &["x.txt", "--format"]);
    fails(&import(&[&aceso, "--format", "sailor"]), 2, &["gpt_1_3B"]);
    let file = home.write("store.json", "{}");
    fails(
        &import(&[&sailor, "--split-backward", "0.5:0.5", "--into", &file]),
        2,
        &["store.json is a file", "a folder"],
    );
    assert!(!home.path("config").exists(), "what was refused left nothing");

    let whole = ["--split-backward", "0.75:0.25"];
    let output = import(&[&[aceso.as_str(), "--unit", "us", "--kind", "V100-32"], &whole[..]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(import(&[&[sailor.as_str()], &whole[..]].concat()).status.success());
    let rows = |signature: &str| {
        let listed = json(&adaptis(&home, &["profiles", "list", "--signature", signature, "--json"]));
        let row = |row: &serde_json::Value| {
            let (kind, phase) = (row["kind"].as_str().expect("a kind").to_owned(), row["phase"].clone());
            (kind, phase, (row["seconds"].as_f64().expect("a number") * 1e6).round() as u64)
        };
        listed["profiles"].as_array().expect("rows").iter().map(row).collect::<Vec<_>>()
    };
    let kind = "v100-32g".to_owned();
    let near = |found: Vec<(String, serde_json::Value, u64)>, expected: [(&str, u64); 3]| {
        assert_eq!(found.len(), 3, "{found:?}");
        for ((of, phase, us), (expected_phase, expected_us)) in found.into_iter().zip(expected) {
            assert_eq!((of, phase.as_str()), (kind.clone(), Some(expected_phase)));
            assert!(us.abs_diff(expected_us) <= 1 + expected_us / 1000, "{expected_phase}: {us}, is {expected_us}");
        }
    };
    near(rows("enc-MLP-GEMM-1/"), [("forward", 867), ("input_gradient", 1107), ("weight_gradient", 369)]);
    let embedding = rows("encoder-embedding/");
    assert_eq!(embedding.len(), 2, "tokens have no gradient: {embedding:?}");
    assert!(rows("block/llama-3-8/b1/tp4").iter().all(|(kind, ..)| kind == "v100-16g"));
    // Given anew it takes the place of what it was.
    let output = import(&[&aceso, "--unit", "us", "--kind", "v100-32g", "--split-backward", "0.5:0.5", "--json"]);
    assert_eq!(json(&output)["merged"][0]["became"], "replaced", "{}", text(&output.stderr));
    near(rows("enc-MLP-GEMM-1/"), [("forward", 867), ("input_gradient", 738), ("weight_gradient", 738)]);
}

/// An export with so many profiles.
fn export(home: &Folder, name: &str, profiles: usize) -> String {
    let row = |at: usize| {
        let (kind, phase) = (["a100-40g", "h100-80g"][at % 2], ["F", "I", "W", "U", "R"][at / 2 % 5]);
        let signature = format!("mlp/{name}{}/bf16/b1xs4096", at / 10);
        format!(
            r#"{{"kind":"{kind}","signature":"{signature}","phase":"{phase}","seconds":0.0{},"count":64}}"#,
            1_000 + at
        )
    };
    let rows = (0..profiles).map(row).collect::<Vec<_>>().join(",\n");
    home.write(name, &format!(r#"{{"format":"adaptis.profiles/1","profiles":[{rows}]}}"#))
}

fn profiles_in(home: &Folder, store: &str) -> usize {
    let listed = adaptis(home, &["profiles", "list", "--store", store, "--json"]);
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    json(&listed)["profiles"].as_array().expect("rows").len()
}

#[test]
fn a_killed_merge_leaves_the_state_before_or_after_it() {
    let home = Folder::new();
    let store = home.text("store");
    let small = export(&home, "small.json", 10);
    assert!(adaptis(&home, &["profiles", "merge", "--into", &store, &small]).status.success());
    let large = export(&home, "large.json", 10_000);
    let mut seen = std::collections::BTreeSet::new();
    for delay_ms in [20, 60, 120, 200, 300, 450, 700] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adaptis"));
        command.args(["profiles", "merge", "--into", &store, &large]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the command starts");
        std::thread::sleep(Duration::from_millis(delay_ms));
        // It may have ended.
        let _ = child.kill();
        child.wait().expect("it was started here");
        let count = profiles_in(&home, &store);
        assert!(count == 10 || count == 10_010, "{count} profiles after {delay_ms} ms");
        seen.insert(count);
    }
    assert!(adaptis(&home, &["profiles", "merge", "--into", &store, &large]).status.success());
    assert_eq!(profiles_in(&home, &store), 10_010);
}

#[test]
fn a_store_that_cannot_grow_is_left_as_it_was() {
    let home = Folder::new();
    let store = home.text("store");
    let small = export(&home, "small.json", 10);
    assert!(adaptis(&home, &["profiles", "merge", "--into", &store, &small]).status.success());
    let large = export(&home, "large.json", 5_000);
    // A file may not become larger than 256 KiB, as on a disk that is full.
    let script = "trap '' XFSZ; ulimit -f 512; exec \"$0\" profiles merge --into \"$1\" \"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_adaptis"), &store, &large]);
    fails(&command.output().expect("a shell"), 3, &["profiles.db", "nothing was changed"]);
    assert_eq!(profiles_in(&home, &store), 10);
}
