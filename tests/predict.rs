//! `adaptis profiles predict` as a user meets it.

mod support;

use serde_json::{Value, json};
use support::{Folder, adaptis, data, json, text};

/// Files of Sailor, the forward of blocks on a V100 removed from one, and the command's answer to some cells.
fn asked(folder: &Folder, cells: &Value, more: &[&str]) -> std::process::Output {
    let (removed, list) = (folder.text("LLAMA-3-8.V100-16.json"), folder.text("cells.json"));
    let whole = std::fs::read_to_string(data("sailor/LLAMA-3-8.V100-16.json")).expect("the data is there");
    let mut profile: Value = serde_json::from_str(&whole).expect("JSON");
    for splits in profile.as_object_mut().expect("microbatches").values_mut() {
        for layers in splits.as_object_mut().expect("splits").values_mut() {
            for layer in 1..33 {
                layers[layer.to_string()][0] = Value::Null;
            }
        }
    }
    std::fs::write(&removed, profile.to_string()).expect("a file");
    std::fs::write(&list, cells.to_string()).expect("a file");
    let (other, third) = (data("sailor/LLAMA-3-8.A100-40.json"), data("sailor/LLAMA-3-8.GH-96.json"));
    let mut arguments = vec!["profiles", "predict", "--from", &removed, &other, &third, "--cells", &list];
    arguments.extend(more);
    adaptis(&arguments)
}

#[test]
fn what_was_removed_is_answered_cell_by_cell() {
    let folder = Folder::new();
    let cells = json!([
        { "kind": "v100-16g", "signature": "block/llama-3-8/b1/tp4", "phase": "forward" },
        { "kind": "V100-16", "model": "LLAMA-3-8", "microbatch": 1, "tp": 8, "layer": 7, "phase": "F" },
        { "kind": "V100-16", "signature": "block/llama-3-8/b1/tp8", "phase": "backward", "note": "measured" },
    ]);
    let output = asked(&folder, &cells, &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let answers = json(&output);
    for (index, (truth, source)) in
        [(0.1352, "other phase"), (0.0708, "other phase"), (0.1385, "measured")].into_iter().enumerate()
    {
        let answer = &answers[index];
        let [seconds, low, high] = ["seconds", "low", "high"].map(|name| answer[name].as_f64().expect("a number"));
        assert!((seconds / truth - 1.0).abs() < 0.15 && low <= truth && truth <= high, "{answer}");
        assert_eq!(answer["source"], source, "{answer}");
        for (name, value) in cells[index].as_object().expect("a cell") {
            assert_eq!(&answer[name], value, "echoed");
        }
    }
    let table = asked(&folder, &cells, &[]);
    let table = text(&table.stdout);
    assert!(table.contains("v100-16g  block/llama-3-8/b1/tp8  backward") && table.contains("measured"), "{table}");
}

#[test]
fn a_cell_of_which_nothing_is_known_says_what_is_missing() {
    let folder = Folder::new();
    let cells = json!([
        { "kind": "v100-16g", "signature": "moe/llama-3-8/b1/tp4", "phase": "forward" },
        { "kind": "l40s-48g", "signature": "block/other/b1/tp4", "phase": "forward" },
    ]);
    let output = asked(&folder, &cells, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("cells.json: cells[0]: no layer of type \"moe\" was measured"), "{said}");
    let answers = json(&output);
    assert!(answers[0]["error"].is_string() && answers[0]["seconds"].is_null(), "{answers}");
    let width = answers[1]["high"].as_f64().expect("a number") / answers[1]["low"].as_f64().expect("a number");
    assert!(width > 20.0, "{answers}");
}

#[test]
fn a_file_of_no_format_is_refused_with_its_name_and_place() {
    let folder = Folder::new();
    let (broken, list) = (folder.text("OPT-30.A100-40.json"), folder.text("cells.json"));
    std::fs::write(&broken, r#"{"1": {"2": {"0": ["fast"]}}}"#).expect("a file");
    std::fs::write(&list, "[]").expect("a file");
    let output = adaptis(&["profiles", "predict", "--from", &broken, "--cells", &list]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("OPT-30.A100-40.json: 1.2.0[0]: expected seconds"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_profile_of_another_model_is_left_out_and_told() {
    let folder = Folder::new();
    let list = folder.text("cells.json");
    let cells = json!([{ "kind": "gh-96", "signature": "block/gpt-neo-2.7/b1", "phase": "forward" }]);
    std::fs::write(&list, cells.to_string()).expect("a file");
    let files = ["A100-40", "A100-80", "GH-96"].map(|kind| data(&format!("sailor/GPT-Neo-2.7.{kind}.json")));
    let [one, two, three] = &files;
    let output = adaptis(&["profiles", "predict", "--from", one, two, three, "--cells", &list, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("GPT-Neo-2.7.GH-96.json: 26 layers"), "{}", text(&output.stderr));
    assert_eq!(json(&output)[0]["source"], "unknown kind");
}
