//! Good files as JSON values, and what becomes of them when one value is changed.

use adaptis_plan::{Plan, Problem};
use serde_json::{Value, json};

pub fn problem_json() -> Value {
    json!({
        "format": "adaptis.problem/1",
        "microbatches": 2,
        "layers": [
            { "name": "embed", "signature": "embedding/8x8/f32", "state_bytes": 3, "output_bytes": 1 },
            { "name": "head", "signature": "head/8x8/f32", "state_bytes": 3, "output_bytes": 0 }
        ],
        "devices": [
            { "name": "gpu0", "kind": "h100-80g", "memory_bytes": 100 },
            { "name": "gpu1", "kind": "a100-40g", "memory_bytes": 8e10, "slowdown": 1.25 }
        ],
        "costs": {
            "note": "measured",
            "h100-80g": [cost_json(), cost_json()],
            "a100-40g": [cost_json(), cost_json()]
        },
        "links": {
            "default": { "latency_ns": 0, "bytes_per_second": 1e11, "note": "a guess" },
            "pairs": [{ "from": "gpu0", "to": "gpu1", "latency_ns": 5, "bytes_per_second": 10 }]
        },
        "optimizer_ns": { "note": "by datasheet", "h100-80g": [1, 2] },
        "constraints": { "pinned": [{ "layer": 0, "device": "gpu0" }], "together": [[0, 1]], "note": "tied" }
    })
}

pub fn cost_json() -> Value {
    json!({
        "forward_ns": 1, "input_gradient_ns": 1, "weight_gradient_ns": 1, "activation_bytes": 9,
        "weight_gradient_bytes": 4
    })
}

pub fn plan_json() -> Value {
    json!({
        "format": "adaptis.plan/1", "epoch": 7.0, "parent": 6, "layers": 2, "devices": ["gpu0", "gpu1"],
        "stages": [
            { "layers": [0, 1], "device": 0, "recompute": [0] },
            { "layers": [1.0, 2e0], "device": 1, "recompute": [], "note": "slow" }
        ],
        "programs": [["0F0", "0B0"], ["1F0", "1I0", "1W0"]],
        "predicted": {
            "iteration_ns": 1, "peak_bytes": [1, 2], "lower_bound_ns": 1, "bubble": [0.03, 0], "note": "simulated"
        },
        "why": { "gain": [1.5, null], "note": 3 }
    })
}

/// Puts `value` at a JSON pointer, whose last step may be new.
pub fn put(root: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer has a slash");
    match root.pointer_mut(parent).expect("the parent is there") {
        Value::Object(entries) => drop(entries.insert(key.to_owned(), value)),
        Value::Array(elements) => elements[key.parse::<usize>().expect("an index")] = value,
        other => panic!("{other} holds nothing"),
    }
}

pub fn refusal(root: &Value, pointer: &str, value: Value) -> String {
    let mut root = root.clone();
    put(&mut root, pointer, value);
    let text = root.to_string();
    let error = match root["format"].as_str().unwrap_or_default().starts_with("adaptis.plan") {
        true => Plan::read(&text).map(drop),
        false => Problem::read(&text).map(drop),
    };
    error.expect_err("it must be refused").to_string()
}

pub fn check(root: &Value, table: &[(&str, Value, &str)]) {
    for (pointer, value, expected) in table {
        assert_eq!(refusal(root, pointer, value.clone()), *expected, "{pointer} = {value}");
    }
}
