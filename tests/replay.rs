//! `adaptis replay` as people and scripts call it.

mod support;

use support::{adaptis, data, fails, json, text};

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
