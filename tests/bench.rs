//! `adaptis bench` as a user meets it.

mod support;

use std::path::Path;
use support::{adaptis, text};

/// A folder with some of the problems under `tests/data`.
fn folder_of(problems: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for problem in problems {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(problem);
        let name = from.file_name().expect("a file's name");
        std::fs::copy(&from, folder.path().join(name)).expect("the data is there");
    }
    folder
}

#[test]
fn the_built_in_set_is_measured_and_every_plan_checked() {
    let output = adaptis(&["bench", "planner", "--time", "20ms", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["findings"], 0);
    let problems = answer["problems"].as_array().expect("problems");
    assert_eq!(problems.len(), 14);
    let count = |key: &str, value: u64| problems.iter().filter(|row| row[key].as_u64() == Some(value)).count();
    assert!(count("devices", 4) > 0 && count("devices", 32) > 0);
    assert!(count("microbatches", 8) > 0 && count("microbatches", 96) > 0);
    assert!(problems.iter().filter(|row| row["is_unequal"] == true).count() >= 8);
    for row in problems {
        assert_eq!(row["baselines"].as_array().map(Vec::len), Some(9), "{row}");
        assert!(row["lower_bound_ns"].as_u64() <= row["iteration_ns"].as_u64(), "{row}");
        assert!(row["ratio"].as_f64().is_some_and(|ratio| ratio > 0.3), "{row}");
    }
    let mean = answer["geometric_mean"]["all"].as_f64().expect("a mean");
    assert!(mean < 1.0, "{mean}");
}

#[test]
fn a_folder_is_measured_and_the_results_are_kept() {
    let (problems, out) = (folder_of(&["uniform_p4_m8.json"]), tempfile::tempdir().expect("a temporary folder"));
    // What fits nowhere is a row like any other.
    let tight = std::fs::read_to_string(problems.path().join("uniform_p4_m8.json")).expect("it was copied");
    let tight = tight.replace("\"memory_bytes\":8388608", "\"memory_bytes\":524288");
    std::fs::write(problems.path().join("tight.json"), tight).expect("a file is written");
    let (folder, kept) = (problems.path().to_string_lossy(), out.path().join("results"));
    let arguments = ["bench", "planner", "--time", "200ms", "--seeds", "2", "--problems", &folder, "--out"];
    let output = adaptis(&[&arguments[..], &[&kept.to_string_lossy()]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for word in ["uniform_p4_m8", "33.0", "25.5", "0.0%", "device gpu3 needs 1048576 bytes", "0 findings"] {
        assert!(table.contains(word), "`{word}` is not in:\n{table}");
    }
    assert_eq!(std::fs::read_to_string(kept.join("planner.txt")).expect("the table is kept"), table);
    assert!(std::fs::read_to_string(kept.join("planner.svg")).expect("the chart is kept").starts_with("<svg"));
    let problem = problems.path().join("uniform_p4_m8.json");
    let plan = kept.join("uniform_p4_m8.plan.json");
    let audit = adaptis(&["audit", &problem.to_string_lossy(), &plan.to_string_lossy()]);
    assert_eq!(audit.status.code(), Some(0), "{}", text(&audit.stdout));
}

#[test]
fn cost_against_size_is_measured() {
    let output = adaptis(&["bench", "planner", "--scale=8", "--time", "50ms", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["findings"], 0);
    let names: Vec<_> = answer["problems"].as_array().expect("problems").iter().map(|row| &row["problem"]).collect();
    assert_eq!(names, ["uniform_p4_m8_l16", "mixed_p4_m8_l16", "uniform_p8_m32_l64", "mixed_p8_m32_l64"]);
    for row in answer["problems"].as_array().expect("problems") {
        let run = &row["runs"][0];
        assert!(run["operations"].as_u64() >= Some(2 * 8 * 4), "{row}");
        assert!(run["first_plan_ns"].as_u64() > Some(0) && run["first_plan_ns"].as_u64() <= run["cpu_ns"].as_u64());
        assert!(run["memory_max_bytes"].as_u64() > Some(1 << 20), "{row}");
    }
    let table = text(&adaptis(&["bench", "planner", "--scale=4", "--time", "20ms"]).stdout);
    for word in ["cluster", "microbatches", "first plan s", "uniform", "mixed", "memory MiB", "0 findings"] {
        assert!(table.contains(word), "`{word}` is not in:\n{table}");
    }
}

#[test]
fn what_is_no_folder_of_problems_is_refused() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    let refused = |folder: &Path, word: &str| {
        let output = adaptis(&["bench", "planner", "--problems", &folder.to_string_lossy()]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
    };
    refused(empty.path(), "--problems");
    refused(&empty.path().join("missing"), "missing");
    std::fs::write(empty.path().join("plan.json"), "{}").expect("a file is written");
    refused(empty.path(), "format");
}
