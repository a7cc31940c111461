"""What passes between instructions, and what it tells of other plans: times of random plans, predicted by the even one's.

    torchrun --nproc-per-node 2 crossings.py [ROUNDS]

An even plan and five random ones take turns in one run. Prints how long each takes beside the even one: measured, and as
`adaptis simulate` says from the works of the even one's steps, with and without what an instruction and what a transfer
takes there. Layers take about half a millisecond. `ADAPTIS_COMMAND` is the command, else it is found by its name.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

import adaptis
from adaptis import Plan
from pipelined import WIDTH, Block
from plans import random_plan

LAYERS = 12
MICROBATCHES = 8
PLANS = 6
STEPS = 12
WARM = 3


def plan(number: int, epoch: int, world: int) -> Plan:
    """The even one, and random ones."""
    if number > 0:
        return random_plan(LAYERS, world, MICROBATCHES, number, epoch)
    text = json.loads(Plan.even(LAYERS, [f"rank{rank}" for rank in range(world)], MICROBATCHES).write())
    return Plan.read(json.dumps({**text, "epoch": epoch, "parent": epoch - 1}))


def measured(rounds: int) -> dict[str, Any]:
    """What a rank sees: steps of each plan, and of the even one works and what passes between them."""
    torch.manual_seed(1)
    world = dist.get_world_size()
    schedule = adaptis.Schedule(
        [Block() for _ in range(LAYERS)], MICROBATCHES, functional.mse_loss, plan=plan(0, 1, world), coordinator=""
    )
    tape, clock = schedule._worker.tape, schedule._worker.tape.clock
    tape.is_running = True
    x, y = torch.randn(16 * MICROBATCHES, WIDTH), torch.randn(16 * MICROBATCHES, WIDTH)
    steps: list[list[int]] = [[] for _ in range(PLANS)]
    works: dict[tuple[int, int], list[int]] = {}
    alone, carrying = [], []
    for turn in range(PLANS * rounds):
        number = turn % PLANS
        if turn:
            schedule.change(plan(number, turn + 1, world))
        for step in range(STEPS):
            clock.rest()
            dist.barrier()
            begun = perf_counter_ns()
            schedule.step(x, target=y)
            took = perf_counter_ns() - begun
            if step < WARM:
                continue
            steps[number].append(took)
            if number == 0:
                for layer, phase, _, _, ns in clock.works:
                    works.setdefault((layer, phase), []).append(ns)
                first, rest = clock._between
                if first[0]:
                    alone.append(first[1] / first[0])
                if rest[2]:
                    carrying.append(tuple(rest))
    each = statistics.median(alone) if alone else None
    return {
        "steps": [statistics.median(of) for of in steps],
        "works": {key: statistics.median(of) for key, of in works.items()},
        "alone": each,
        "carrying": statistics.median([(ns - count * (each or 0.0)) / sent for count, ns, sent in carrying]),
    }


def predicted(seen: list[dict[str, Any]], fixed: dict[str, int], number: int, folder: Path) -> int:
    """What the simulator says of a plan."""
    works = {key: ns for of in seen for key, ns in of["works"].items()}

    def cost(layer: int) -> dict[str, int]:
        names = ("forward_ns", "input_gradient_ns", "weight_gradient_ns")
        times = {name: round(works.get((layer, phase), 0.0)) for phase, name in enumerate(names)}
        return {**times, "activation_bytes": 1, "weight_gradient_bytes": 1}

    problem = {
        "format": "adaptis.problem/1",
        "microbatches": MICROBATCHES,
        "layers": [
            {"name": str(at), "signature": "block", "state_bytes": 1, "output_bytes": 64 * WIDTH} for at in range(LAYERS)
        ],
        "devices": [{"name": f"rank{at}", "kind": "cpu", "memory_bytes": 1 << 40} for at in range(len(seen))],
        "costs": {"cpu": [cost(layer) for layer in range(LAYERS)]},
        "links": {"default": {"latency_ns": 100_000, "bytes_per_second": 1e9}},
        **fixed,
    }
    (folder / "problem").write_text(json.dumps(problem))
    (folder / "plan").write_text(plan(number, 1, len(seen)).write())
    command = [os.environ.get("ADAPTIS_COMMAND", "adaptis"), "simulate", "problem", "plan", "--json"]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return int(json.loads(told.stdout)["iteration_ns"])


def main() -> None:
    """The table, by rank 0."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, measured(int(sys.argv[1]) if len(sys.argv) > 1 else 4))
    if dist.get_rank() == 0:
        steps = [max(part["steps"][number] for part in parts) for number in range(PLANS)]
        known = [part["alone"] for part in parts if part["alone"] is not None]
        each = statistics.median(known) if known else 0.0
        crossing = statistics.median([part["carrying"] for part in parts])
        print(f"an instruction {each / 1e3:.0f} us, a transfer {crossing / 1e3:.0f} us, the even plan {steps[0] / 1e6:.1f} ms")
        costs = {"stage_ns": round(each), "crossing_ns": round(crossing)}
        with tempfile.TemporaryDirectory() as folder:
            told = [[predicted(parts, fixed, of, Path(folder)) for of in range(PLANS)] for fixed in (costs, {})]
        for number in range(1, PLANS):
            took, with_them, without = (of[number] / of[0] for of in (steps, *told))
            print(f"plan {number}: {took:.3f} of it, predicted {with_them:.3f}, without {without:.3f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
