//! Files as people and tools write them: what is accepted, and the exact text of each refusal.

use crate::files::{check, plan_json, problem_json, refusal};
use crate::support::{Dice, one_f_one_b, problem};
use adaptis_plan::{FormatError, Plan, Predicted, Problem};
use serde_json::{Value, json};

#[test]
fn good_files_are_read() {
    let problem = Problem::read(&problem_json().to_string()).expect("it is sound");
    assert_eq!(problem.devices[1].memory_bytes, 80_000_000_000);
    assert_eq!(problem.devices[0].slowdown, 1.0);
    assert_eq!(problem.link(0, 1).latency_ns, 5);
    assert_eq!(problem.link(1, 0).bytes_per_second, 1e11);
    assert_eq!((problem.optimizer_of(0, 1), problem.optimizer_of(1, 1)), (2, 0));
    assert_eq!(Problem::read(&problem.write()), Ok(problem));
    let plan = Plan::read(&plan_json().to_string()).expect("it has its shape");
    assert_eq!(plan.epoch.0, 7);
    assert_eq!(plan.why, Some(json!({ "gain": [1.5, null], "note": 3 })));
    assert_eq!(Plan::read(&plan.write()), Ok(plan));
}

#[test]
fn what_is_optional_may_be_left_out_and_nothing_else() {
    let optional = ["slowdown", "pairs", "optimizer_ns", "constraints", "note", "predicted", "why", "recompute"];
    for root in [problem_json(), plan_json()] {
        for (pointer, key) in keys(&root) {
            let mut cut = root.clone();
            let parent = cut.pointer_mut(&pointer).and_then(Value::as_object_mut).expect("an object");
            parent.remove(&key);
            // Entries of maps are not fields; leaving one out is another error or none.
            if ["/costs", "/optimizer_ns", "/why"].contains(&pointer.as_str())
                || ["/constraints"].contains(&pointer.as_str())
            {
                continue;
            }
            let text = cut.to_string();
            let result = match root["format"] == "adaptis.plan/1" {
                true => Plan::read(&text).map(drop),
                false => Problem::read(&text).map(drop),
            };
            match result {
                Ok(()) => assert!(optional.contains(&key.as_str()), "{pointer}/{key} may not be left out"),
                Err(FormatError::Format { .. }) => assert_eq!(key, "format"),
                Err(FormatError::Shape { path, problem }) => {
                    assert!(!optional.contains(&key.as_str()), "{pointer}/{key} may be left out");
                    assert_eq!(problem, format!("field `{key}` is missing"));
                    assert!(path.ends_with(&key), "{path}");
                }
                Err(error) => panic!("{pointer}/{key}: {error}"),
            }
        }
    }
}

/// Pointer of each object and each of its keys.
fn keys(root: &Value) -> Vec<(String, String)> {
    fn visit(value: &Value, pointer: &str, found: &mut Vec<(String, String)>) {
        match value {
            Value::Object(entries) => {
                for (key, inner) in entries {
                    found.push((pointer.to_owned(), key.clone()));
                    visit(inner, &format!("{pointer}/{key}"), found);
                }
            }
            Value::Array(elements) => {
                for (index, inner) in elements.iter().enumerate() {
                    visit(inner, &format!("{pointer}/{index}"), found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    visit(root, "", &mut found);
    found
}

#[test]
fn every_field_refuses_a_value_of_another_type_by_its_path() {
    for root in [problem_json(), plan_json()] {
        for (pointer, key) in keys(&root).into_iter().filter(|(pointer, _)| !pointer.starts_with("/why")) {
            if pointer.is_empty() && (key == "why" || key == "format") {
                continue;
            }
            let field = format!("{pointer}/{key}");
            let present = root.pointer(&field).expect("it is there").clone();
            let mut wrong = vec![json!(null), json!(true)];
            if !present.is_string() {
                wrong.push(json!("3"));
            }
            if !present.is_number() {
                wrong.push(json!(3));
            }
            if !present.is_array() {
                wrong.push(json!([]));
            }
            if !present.is_object() {
                wrong.push(json!({}));
            }
            for value in wrong {
                let text = refusal(&root, &field, value.clone());
                let path = field[1..].split('/').map(|step| match step.parse::<usize>() {
                    Ok(index) => format!("[{index}]"),
                    Err(_) => format!(".{step}"),
                });
                let path: String = path.collect();
                assert!(text.starts_with(&format!("{}: ", &path[1..])), "{field} = {value}: {text}");
            }
        }
    }
}

#[test]
fn formats_and_versions() {
    let (problem, plan) = (problem_json(), plan_json());
    check(
        &problem,
        &[
            ("/format", json!("adaptis.problem/2"), "format is \"adaptis.problem/2\", expected \"adaptis.problem/1\""),
            ("/format", json!("adaptis.report/1"), "format is \"adaptis.report/1\", expected \"adaptis.problem/1\""),
            ("/format", json!(1), "format is a number, expected \"adaptis.problem/1\""),
        ],
    );
    check(&plan, &[("/format", json!("adaptis.plan/0"), "format is \"adaptis.plan/0\", expected \"adaptis.plan/1\"")]);
    let refused = |text: &str| Plan::read(text).expect_err("it must be refused").to_string();
    assert_eq!(refused("{}"), "format is missing, expected \"adaptis.plan/1\"");
    assert_eq!(refused("[]"), "file: expected an object, found a list");
    assert_eq!(refused(""), "file: it is empty");
    assert_eq!(refused("\u{feff} \n"), "file: it is empty");
    assert!(Plan::read(&format!("\u{feff}{plan}")).is_ok(), "a byte order mark is passed over");
    assert!(refused("{\"format\": \"adaptis.plan/1\"} x").starts_with("file: it can't be read as JSON: trailing"));
    assert!(refused("nonsense").starts_with("file: it can't be read as JSON: expected"), "{}", refused("nonsense"));
    assert!(refused("{\"format\": ").starts_with("file: it ends in the middle: EOF"), "{}", refused("{\"format\": "));
    assert!(refused(&"[".repeat(1_000_000)).starts_with("file: it can't be read as JSON: recursion limit"));
    let deep = format!("{{\"format\": \"adaptis.plan/1\", \"why\": {}{}}}", "[".repeat(500), "]".repeat(500));
    assert!(refused(&deep).starts_with("file: it can't be read as JSON: recursion limit exceeded"));
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    check(
        &problem_json(),
        &[
            (
                "/microbatch",
                json!(1),
                "microbatch: unknown field `microbatch`; the nearest known one is `microbatches`",
            ),
            (
                "/layers/1/output_byte",
                json!(1),
                "layers[1].output_byte: unknown field `output_byte`; the nearest known one is `output_bytes`",
            ),
            (
                "/costs/a100-40g/0/forwards_ns",
                json!(1),
                "costs.a100-40g[0].forwards_ns: unknown field `forwards_ns`; the nearest known one is `forward_ns`",
            ),
            (
                "/links/default/latency",
                json!(1),
                "links.default.latency: unknown field `latency`; the nearest known one is `latency_ns`",
            ),
            (
                "/constraints/pinned/0/layers",
                json!(1),
                "constraints.pinned[0].layers: unknown field `layers`; the nearest known one is `layer`",
            ),
        ],
    );
    check(
        &plan_json(),
        &[
            ("/epok", json!(1), "epok: unknown field `epok`; the nearest known one is `epoch`"),
            (
                "/stages/1/recomputed",
                json!(1),
                "stages[1].recomputed: unknown field `recomputed`; the nearest known one is `recompute`",
            ),
            (
                "/predicted/bubbles",
                json!(1),
                "predicted.bubbles: unknown field `bubbles`; the nearest known one is `bubble`",
            ),
        ],
    );
}

#[test]
fn a_plan_follows_its_parent() {
    let later = "parent: 8 is later than the plan's own epoch 7: a plan follows its parent";
    check(&plan_json(), &[("/parent", json!(8), later)]);
}

#[test]
fn a_key_twice_is_refused_wherever_it_stands() {
    for (text, expected) in [
        (r#"{"format": "adaptis.plan/1", "format": "adaptis.plan/1"}"#, "file: key `format` stands twice"),
        (r#"{"format": "adaptis.plan/1", "why": {"a": {"b": 1, "b": 2}}}"#, "why.a: key `b` stands twice"),
        (r#"{"format": "adaptis.plan/1", "stages": [{"note": "", "note": ""}]}"#, "stages[0]: key `note` stands twice"),
    ] {
        let error = Plan::read(text).expect_err("it must be refused").to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn numbers_that_are_none() {
    let whole = "expected a whole number that is not negative, found";
    check(
        &problem_json(),
        &[
            ("/layers/0/state_bytes", json!(-1), &format!("layers[0].state_bytes: {whole} -1")),
            ("/layers/0/state_bytes", json!(1.5), &format!("layers[0].state_bytes: {whole} 1.5")),
            ("/layers/0/state_bytes", json!(1e20), &format!("layers[0].state_bytes: {whole} 100000000000000000000")),
            (
                "/microbatches",
                json!(5e9),
                "microbatches: expected a whole number from 0 to 4294967295, found 5000000000",
            ),
            ("/microbatches", json!(0), "microbatches: 0 is not from 1 to 1048576"),
            ("/microbatches", json!(2_000_000), "microbatches: 2000000 is not from 1 to 1048576"),
            ("/devices/0/slowdown", json!(0), "devices[0].slowdown: 0 is not a positive number"),
            ("/devices/0/slowdown", json!(-1.5), "devices[0].slowdown: -1.5 is not a positive number"),
            (
                "/links/default/bytes_per_second",
                json!(0.0),
                "links.default.bytes_per_second: 0 is not a positive number",
            ),
            (
                "/links/pairs/0/bytes_per_second",
                json!(-1),
                "links.pairs[0].bytes_per_second: -1 is not a positive number",
            ),
        ],
    );
    check(
        &plan_json(),
        &[
            ("/layers", json!(100_000), "layers: 100000 layers, at most 65536 are possible"),
            ("/stages/0/layers", json!([0]), "stages[0].layers: expected a list of 2, found one of 1"),
            (
                "/stages/0/layers",
                json!([0, -1]),
                "stages[0].layers[1]: expected a whole number from 0 to 4294967295, found -1",
            ),
            (
                "/programs/1/2",
                json!("1X0"),
                "programs[1][2]: `1X0` is not an instruction: write stage, one of F I W B, microbatch, as in `3F0`",
            ),
        ],
    );
    // Not a number in JSON at all.
    let text = problem_json().to_string();
    for wrong in ["1e999", "NaN", "Infinity"] {
        let text = text.replace("1.25", wrong);
        assert!(Problem::read(&text).expect_err("it must be refused").to_string().contains("line 1"), "{wrong}");
    }
}

#[test]
fn a_written_plan_reads_like_a_table() {
    let mut plan = one_f_one_b(&problem(&mut Dice(1), 2, 2, 2));
    plan.stages[1].recompute = vec![1];
    plan.predicted = Some(Predicted {
        iteration_ns: 12,
        peak_bytes: vec![3, 4],
        lower_bound_ns: 10,
        bubble: vec![0.25, 0.5],
        note: None,
    });
    let expected = r#"{
  "format": "adaptis.plan/1",
  "epoch": 1,
  "parent": 0,
  "layers": 2,
  "devices": ["g0", "g1"],
  "stages": [
    { "layers": [0, 1], "device": 0, "recompute": [] },
    { "layers": [1, 2], "device": 1, "recompute": [1] }
  ],
  "programs": [
    ["0F0", "0F1", "0B0", "0B1"],
    ["1F0", "1B0", "1F1", "1B1"]
  ],
  "predicted": {
    "iteration_ns": 12,
    "peak_bytes": [3, 4],
    "lower_bound_ns": 10,
    "bubble": [0.25, 0.5]
  }
}
"#;
    assert_eq!(plan.write(), expected);
}

#[test]
fn a_written_problem_has_a_line_per_cost() {
    let text = Problem::read(&problem_json().to_string()).expect("it is sound").write();
    let line = r#"      { "forward_ns": 1, "input_gradient_ns": 1, "weight_gradient_ns": 1, "activation_bytes": 9, "weight_gradient_bytes": 4 }"#;
    assert_eq!(text.matches(line).count(), 4, "{text}");
    assert!(text.contains(
        "    { \"name\": \"gpu1\", \"kind\": \"a100-40g\", \"memory_bytes\": 80000000000, \"slowdown\": 1.25 }\n"
    ));
}
