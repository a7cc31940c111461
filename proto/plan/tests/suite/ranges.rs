//! Problems of the right shape whose values make no sense: the exact text of each refusal.

use crate::files::{check, cost_json, problem_json, put};
use adaptis_plan::Problem;
use serde_json::json;

#[test]
fn names_and_lists_that_do_not_fit() {
    check(
        &problem_json(),
        &[
            ("/layers", json!([]), "layers: the list is empty, at least one is needed"),
            ("/devices", json!([]), "devices: the list is empty, at least one is needed"),
            (
                "/layers/1/name",
                json!("embed"),
                "layers[1].name: \"embed\" is also the name of layers[0]: names are unique",
            ),
            (
                "/devices/1/name",
                json!("gpu0"),
                "devices[1].name: \"gpu0\" is also the name of devices[0]: names are unique",
            ),
            ("/devices/1/name", json!(""), "devices[1].name: the name is empty"),
            (
                "/layers/1/name",
                json!("block\u{1b}[2J"),
                "layers[1].name: \"block\\u{1b}[2J\" holds a control character: names are shown on terminals",
            ),
            (
                "/devices/1/kind",
                json!("a100-80g"),
                "devices[1].kind: kind \"a100-80g\" of device \"gpu1\" has no costs; the nearest known one is \"a100-40g\"",
            ),
            (
                "/costs/a100-40g",
                json!([cost_json()]),
                "costs.a100-40g: 1 entries for 2 layers: one per layer is needed",
            ),
            (
                "/costs/h100-80g/1/weight_gradient_bytes",
                json!(10),
                "costs.h100-80g[1].weight_gradient_bytes: 10 is more than activation_bytes, 9, of which it is a part",
            ),
            (
                "/links/pairs/0/to",
                json!("gpu7"),
                "links.pairs[0].to: there is no device \"gpu7\"; the nearest known one is \"gpu0\"",
            ),
            (
                "/links/pairs/0/to",
                json!("gpu0"),
                "links.pairs[0]: from and to are both \"gpu0\": a pair joins two devices",
            ),
            (
                "/links/pairs",
                json!([
                    { "from": "gpu0", "to": "gpu1", "latency_ns": 5, "bytes_per_second": 10 },
                    { "from": "gpu1", "to": "gpu0", "latency_ns": 5, "bytes_per_second": 10 },
                    { "from": "gpu0", "to": "gpu1", "latency_ns": 6, "bytes_per_second": 10 }
                ]),
                "links.pairs[2]: from \"gpu0\" to \"gpu1\" is listed twice",
            ),
            (
                "/hosts",
                json!([{ "devices": ["gpu0", "gpu7"], "at_once": 1 }]),
                "hosts[0].devices[1]: there is no device \"gpu7\"; the nearest known one is \"gpu0\"",
            ),
            (
                "/hosts",
                json!([{ "devices": ["gpu0"], "at_once": 0.5 }, { "devices": ["gpu1", "gpu0"], "at_once": 1 }]),
                "hosts[1].devices[1]: device \"gpu0\" is on hosts[0] already: it has one host",
            ),
            ("/hosts", json!([{ "devices": ["gpu0"], "at_once": 0 }]), "hosts[0].at_once: 0 is not a positive number"),
            (
                "/hosts",
                json!([{ "devices": ["gpu0", "gpu1"], "at_once": 1e-18 }]),
                "hosts[0].at_once: the work of an iteration, 2.0e18 times as long with all of its devices at work, may come to 4.0e19 ns, more than 1152921504606846976",
            ),
            (
                "/hosts",
                json!([{ "devices": [], "at_once": 1 }]),
                "hosts[0].devices: it is empty: a host has a device at least",
            ),
            (
                "/optimizer_ns/h100-80g",
                json!([1]),
                "optimizer_ns.h100-80g: 1 entries for 2 layers: one per layer is needed",
            ),
            (
                "/optimizer_ns/h200",
                json!([1, 2]),
                "optimizer_ns.h200: there is no kind \"h200\" among the costs; the nearest known one is \"h100-80g\"",
            ),
            ("/receive_buffers", json!("some"), "receive_buffers: unknown value \"some\"; known are \"none\", \"all\""),
        ],
    );
}

#[test]
fn constraints_that_cannot_hold() {
    let unknown = "there is no device \"gpu9\"; the nearest known one is \"gpu0\"";
    let pin = |layer: u32, device: &str| json!({ "layer": layer, "device": device });
    check(
        &problem_json(),
        &[
            (
                "/constraints/pinned/0/layer",
                json!(2),
                "constraints.pinned[0].layer: there is no layer 2, the last one is 1",
            ),
            ("/constraints/pinned/0/device", json!("gpu9"), &format!("constraints.pinned[0].device: {unknown}")),
            (
                "/constraints/pinned",
                json!([pin(0, "gpu0"), pin(0, "gpu1")]),
                "constraints.pinned[1]: layer 0 is pinned to both \"gpu0\" and \"gpu1\"",
            ),
            (
                "/constraints/pinned",
                json!([pin(0, "gpu0"), pin(1, "gpu1")]),
                "constraints.together: layers 0 and 1 must share a device, but are pinned to \"gpu0\" and \"gpu1\"",
            ),
            (
                "/constraints/forbidden",
                json!(["gpu0"]),
                "constraints.pinned[0]: layer 0 is pinned to \"gpu0\", a forbidden device",
            ),
            (
                "/constraints",
                json!({ "forbidden": ["gpu0", "gpu1"] }),
                "constraints.forbidden: every device is forbidden: at least one must be left",
            ),
            ("/constraints/forbidden", json!(["gpu9"]), &format!("constraints.forbidden[0]: {unknown}")),
            (
                "/constraints/together",
                json!([[0], [1, 5]]),
                "constraints.together[1][1]: there is no layer 5, the last one is 1",
            ),
        ],
    );
}

#[test]
fn sums_that_would_overflow() {
    let limit = 1_u64 << 60;
    let above = format!("{} is more than {limit}, the largest possible one", limit + 1);
    check(
        &problem_json(),
        &[
            ("/boundary_ns", json!(limit + 1), &format!("boundary_ns: {above}")),
            ("/layers/0/state_bytes", json!(limit + 1), &format!("layers[0].state_bytes: {above}")),
            ("/costs/h100-80g/0/split_ns", json!(limit + 1), &format!("costs.h100-80g[0].split_ns: {above}")),
            (
                "/costs/h100-80g/0/forward_ns",
                json!(limit / 2),
                "costs: the work of an iteration may come to 2.3e18 ns, more than 1152921504606846976",
            ),
            (
                "/devices/0/slowdown",
                json!(1e300),
                "costs: the work of an iteration may come to 1.6e301 ns, more than 1152921504606846976",
            ),
            (
                "/links/default/bytes_per_second",
                json!(1e-200),
                "links: the transfers of an iteration may come to 4.0e209 ns, more than 1152921504606846976",
            ),
            (
                "/stage_ns",
                json!(limit / 2),
                "stage_ns, crossing_ns, boundary_ns and optimizer_ns: the fixed costs of an iteration may come to 6.9e18 ns, more than 1152921504606846976",
            ),
            (
                "/crossing_ns",
                json!(limit / 4),
                "stage_ns, crossing_ns, boundary_ns and optimizer_ns: the fixed costs of an iteration may come to 6.9e18 ns, more than 1152921504606846976",
            ),
            (
                "/costs/h100-80g/0/activation_bytes",
                json!(limit),
                "costs.h100-80g: activations of all microbatches may come to 2.3e18 bytes, more than 1152921504606846976",
            ),
            (
                "/layers/0/output_bytes",
                json!(300_000_000_000_000_000_u64),
                "links: the transfers of an iteration may come to 1.2e26 ns, more than 1152921504606846976",
            ),
        ],
    );
    // The memory of a device is only compared with, so it may be boundless.
    let mut boundless = problem_json();
    put(&mut boundless, "/devices/0/memory_bytes", json!(u64::MAX));
    Problem::read(&boundless.to_string()).expect("it is sound");
}
