#!/usr/bin/env python3
"""Makes those problems of `tests/data/problems` that come from published tables and profiles.

Usage: tests/data/make_problems.py PROFILES     a folder with Sailor's JSON files in sailor/ and Aceso's CSV files in aceso/

What the sources lack is assumed here, once, and said in each problem's note.
"""
import csv
import json
import pathlib
import sys

MIB = 1 << 20
GIB = 1 << 30
OUT = pathlib.Path(__file__).resolve().parent / "problems"


def write(name, note, microbatches, layers, devices, links):
    """`layers`: (name, signature, parameter_bytes, output_bytes, {kind: cost}); 18 bytes of state per 2 of weights."""
    problem = {
        "format": "adaptis.problem/1",
        "note": note,
        "microbatches": microbatches,
        "layers": [
            {"name": name, "signature": signature, "parameter_bytes": weights, "state_bytes": 9 * weights, "output_bytes": output}
            for name, signature, weights, output, _ in layers
        ],
        "devices": [{"name": f"gpu{at}", "kind": kind, "memory_bytes": memory} for at, (kind, memory) in enumerate(devices)],
        "costs": {kind: [layer[4][kind] for layer in layers] for kind in sorted({kind for kind, _ in devices})},
        "links": links,
    }
    (OUT / f"{name}.json").write_text(json.dumps(problem, separators=(",", ":")) + "\n")


def cost(forward_ns, input_gradient_ns, weight_gradient_ns, activation_bytes, weight_gradient_bytes):
    return {
        "forward_ns": round(forward_ns),
        "input_gradient_ns": round(input_gradient_ns),
        "weight_gradient_ns": round(weight_gradient_ns),
        "activation_bytes": round(activation_bytes),
        "weight_gradient_bytes": round(weight_gradient_bytes),
    }


def zero_bubble(name, model, devices, microbatches, milliseconds, latency_ms, memory_percent):
    """A stage's F, I and W of the paper's table, as two equal halves."""
    forward, input_gradient, weight_gradient = (value * 1e6 / 2 for value in milliseconds)
    activation = 100 * MIB
    half = {"a100-80g": cost(forward, input_gradient, weight_gradient, activation, activation * 47 // 100)}
    memory = 2 * devices * activation * memory_percent // 100 + 4096
    write(
        name,
        f"stage times of the Zero Bubble paper, {model}, p{devices}, each in two halves; {memory_percent}% of the memory of 1F1B; "
        "100 MiB of activations a half by assumption, 47% of them until W",
        microbatches,
        [(f"half{at}", "half-stage", 0, 0, half) for at in range(2 * devices)],
        [("a100-80g", memory)] * devices,
        {"default": {"latency_ns": round(latency_ms * 1e6), "bytes_per_second": 1e15}, "pairs": []},
    )


def aceso_rows(path):
    return {row["op_name"].strip(): {key: float(value) for key, value in row.items() if key != "op_name"} for row in csv.DictReader(path.open())}


def aceso_layer(rows, signature, names, first=False):
    """Some operators as one layer. I:W is 55:45, and all W where the input is tokens; 40% is held until W."""
    rows = [rows[name] for name in names]
    backward = sum(row["backward-compute"] for row in rows) * 1e3
    weights = round(sum(row["weights"] for row in rows) * MIB)
    held = sum(row["activations"] for row in rows) * MIB
    share = 0.0 if first else 0.55
    forward = sum(row["forward-compute"] for row in rows) * 1e3
    costs = {"v100-32g": cost(forward, share * backward, (1 - share) * backward, held, 0.4 * held)}
    return signature, weights, round(rows[-1]["output_size"] * MIB), costs


def bandwidth(path, mebibytes):
    sizes, rates = csv.reader(path.open())
    return float(rates[[int(size) for size in sizes].index(mebibytes)]) * 1e9


def nodes(folder, devices, per_node, mebibytes):
    inside = {"latency_ns": 10_000, "bytes_per_second": bandwidth(folder / "p2p_intra_node.csv", mebibytes)}
    pairs = [
        {"from": f"gpu{a}", "to": f"gpu{b}", **inside}
        for a in range(devices)
        for b in range(devices)
        if a != b and a // per_node == b // per_node and devices > per_node
    ]
    across = {"latency_ns": 30_000, "bytes_per_second": bandwidth(folder / "p2p_inter_node.csv", mebibytes)}
    return {"default": across if devices > per_node else inside, "pairs": pairs}


ACESO = (
    "from the operator times that Aceso measured on V100-32GB (microsoft/SuperScaler, MIT, (c) Microsoft), microbatch 1; by assumption "
    "I:W is 55:45, 40% of the activations are held until W, state is 18 bytes a parameter, nothing is reserved"
)


def gpt(folder, name, model, path, blocks, devices, microbatches):
    rows = aceso_rows(folder / path)
    names = [op for op in rows if op.startswith("enc-")]
    cut = names.index("enc-2nd-layernorm")
    attention = aceso_layer(rows, f"{model}/attention", names[:cut])
    mlp = aceso_layer(rows, f"{model}/mlp", names[cut:])
    layers = [("embedding", *aceso_layer(rows, f"{model}/embedding", ["encoder-embedding"], first=True))]
    for block in range(blocks):
        layers += [(f"attention{block}", *attention), (f"mlp{block}", *mlp)]
    layers.append(("head", *aceso_layer(rows, f"{model}/head", ["final-layernorm", "gpt-post-process"])))
    links = nodes(folder, devices, 8, 8)
    write(name, f"{model}, {ACESO}", microbatches, layers, [("v100-32g", 32 * GIB)] * devices, links)


def t5(folder, name, model, path, blocks, devices, microbatches):
    rows = aceso_rows(folder / path)
    part = lambda prefix: [op for op in rows if op.startswith(prefix) and not op.endswith("final-layernorm")]
    encoder, decoder = (aceso_layer(rows, f"{model}/{kind}", part(f"{kind}-")) for kind in ("enc", "dec"))
    layers = [("encoder-embedding", *aceso_layer(rows, f"{model}/encoder-embedding", ["encoder-embedding"], first=True))]
    layers += [(f"enc{block}", *encoder) for block in range(blocks)]
    layers.append(("bridge", *aceso_layer(rows, f"{model}/bridge", ["enc-final-layernorm", "decoder-embedding"])))
    layers += [(f"dec{block}", *decoder) for block in range(blocks)]
    layers.append(("head", *aceso_layer(rows, f"{model}/head", ["dec-final-layernorm", "t5-post-process"])))
    links = nodes(folder, devices, 8, 4)
    note = f"{model} (encoder 2048, decoder 512), {ACESO}; activations bind, so recompute pays"
    write(name, note, microbatches, layers, [("v100-32g", 32 * GIB)] * devices, links)


def sailor_layers(folder, model, width, hidden_layers, vocabulary, tokens, sources):
    """`sources`: {kind: (file, tensor_parallel)}, microbatch 1. B is split in half into I and W."""
    times = {kind: list(json.loads((folder / path).read_text())["1"][str(split)].values()) for kind, (path, split) in sources.items()}
    output = 2 * tokens * width
    layers = []
    count = hidden_layers + 2
    for at in range(count):
        edge = at in (0, count - 1)
        role = {0: "embedding", count - 1: "head"}.get(at, "block")
        weights = 2 * (vocabulary * width if edge else 12 * width * width)
        held = output if at == 0 else 2 * output + 2 * tokens * vocabulary if edge else 34 * tokens * width
        costs = {}
        for kind, rows in times.items():
            assert len(rows) == count, (kind, len(rows))
            forward, backward = (1e9 * value for value in rows[at][:2])
            costs[kind] = cost(forward, backward / 2, backward / 2, held, held // 2)
        name = role if edge else f"block{at - 1}"
        layers.append((name, f"{model}/{role}", weights, output, costs))
    return layers


SAILOR = (
    "layer times measured by Sailor (eth-easl/sailor, MIT, (c) ETH Zurich), microbatch 1; by assumption B is half I and half W, sizes "
    "follow from the model's published width, 34 bytes of activations per token and channel, half of them until W, nothing is reserved"
)


def opt(folder):
    kinds = {"4xa100-40g": ("OPT-30.A100-40.json", 4), "8xv100-16g": ("OPT-30.V100-16.json", 8)}
    layers = sailor_layers(folder, "OPT-30", 7168, 48, 50_272, 2048, kinds)
    devices = [("4xa100-40g", 160 * GIB)] * 4 + [("8xv100-16g", 128 * GIB)] * 4
    note = f"OPT-30B on four groups of four A100-40 and four of eight V100-16: memory binds on the V100 side; {SAILOR}"
    write("opt_30b_a100_v100_p8_m24", note, 24, layers, devices, {"default": {"latency_ns": 20_000, "bytes_per_second": 1.2e10}, "pairs": []})


def neo(folder):
    kinds = {
        "a100-80g": ("GPT-Neo-2.7.A100-80.json", 1),
        "a100-40g": ("GPT-Neo-2.7.A100-40.json", 1),
        "v100-16g": ("GPT-Neo-2.7.V100-16.json", 1),
    }
    layers = sailor_layers(folder, "GPT-Neo-2.7", 2560, 32, 50_257, 2048, kinds)
    devices = [(kind, memory * GIB) for kind, memory in (("a100-80g", 80), ("a100-40g", 40), ("v100-16g", 16)) for _ in range(2)]
    note = f"GPT-Neo-2.7B on two each of A100-80, A100-40 and V100-16; {SAILOR}"
    write("gptneo_2.7b_mixed_p6_m96", note, 96, layers, devices, {"default": {"latency_ns": 20_000, "bytes_per_second": 1e10}, "pairs": []})


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    profiles = pathlib.Path(sys.argv[1])
    OUT.mkdir(exist_ok=True)
    zero_bubble("gpt_14.6b_p16_m64", "14.6B", 16, 64, (11.307, 11.254, 8.101), 0.379, 100)
    zero_bubble("gpt_28.3b_p32_m96", "28.3B", 32, 96, (10.402, 10.248, 7.698), 0.460, 150)
    gpt(profiles / "aceso", "gpt_1.3b_v100_p8_m48", "GPT-1.3B", "gpt_1_3B_mbs1_tp1_algo0.csv", 24, 8, 48)
    t5(profiles / "aceso", "t5_11b_v100_p16_m32", "T5-11B", "t5_11B_mbs1_tp1_algo0.csv", 24, 16, 32)
    opt(profiles / "sailor")
    neo(profiles / "sailor")


main()
