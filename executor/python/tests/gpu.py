"""Observes a model on the GPU of this machine: what is recorded of its layers beside what torch's own events say of them,
and what observing costs a step.

    adaptis run --out DIR -- python gpu.py FILE      trains, and writes what torch's events said into the file
    python gpu.py --compare DIR FILE                 fails where the two differ

`--device cpu` does the same on the host, with its clock in the place of events.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import adaptis

TIMES = (1, 4, 2, 3, 1, 2)
"""Widths of the layers' inner products, so that layers differ."""
WARM = 24
STEPS = 400
MICROBATCHES = 2
SHARE_MAX = 0.15
"""By how much the medians of two clocks may differ; theirs are not the same steps."""


class Stopwatch:
    """Instants of a device, looked at once all is done."""

    def __init__(self, device: torch.device) -> None:
        self._is_host = device.type == "cpu"

    def instant(self) -> Any:
        """Now, or when the stream gets here."""
        if self._is_host:
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_ns(self, start: Any, end: Any) -> float:
        """After the device has come to rest."""
        return float(end - start) if self._is_host else start.elapsed_time(end) * 1e6


class Block(nn.Module):
    """Two products and a residual."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, times * width)
        self.down = nn.Linear(times * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def _timed_by_torch(layers: list[nn.Module], watch: Stopwatch, spans: list[tuple[int, Any, Any]]) -> list[Any]:
    """Hooks that note both ends of each layer's F."""

    def hooks(at: int, layer: nn.Module) -> list[Any]:
        start: list[Any] = [None]

        def before(*_: Any) -> None:
            start[0] = watch.instant()

        def after(*_: Any) -> None:
            spans.append((at, start[0], watch.instant()))

        return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]

    return [handle for at, layer in enumerate(layers) for handle in hooks(at, layer)]


def train(told: Path, device: torch.device, steps: int) -> None:
    """Steps that are observed, that are not, and that torch's events time, in random order."""
    width, rows = (4096, 8192) if device.type == "cuda" else (256, 64)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    layers: list[nn.Module] = [Block(width, times) for times in TIMES]
    model = nn.Sequential(*layers).to(device, dtype)
    observation = adaptis.observe(model)
    if observation is None:
        sys.exit("start it with: adaptis run -- python gpu.py FILE")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    watch, chance = Stopwatch(device), random.Random(7)
    x = torch.randn(rows, width, device=device, dtype=dtype)
    taken: dict[bool, list[float]] = {True: [], False: []}
    forwards: dict[int, list[float]] = defaultdict(list)
    for step in range(WARM + steps):
        if step == WARM // 2:
            # Until the coordinator follows.
            time.sleep(2.0)
        is_by_torch = step >= WARM and chance.random() < 0.2
        is_on = not is_by_torch and (chance.random() < 0.5 or step < WARM)
        observation.resume() if is_on else observation.pause()
        spans: list[tuple[int, Any, Any]] = []
        handles = _timed_by_torch(layers, watch, spans) if is_by_torch else []
        start = watch.instant()
        for part in x.chunk(MICROBATCHES):
            loss = model(part).float().square().mean() / MICROBATCHES
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        end = watch.instant()
        # The job waits for its device, as one does that looks at its loss.
        loss.item()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        for handle in handles:
            handle.remove()
        for at, began, ended in spans:
            forwards[at].append(watch.between_ns(began, ended))
        if step >= WARM and not is_by_torch:
            taken[is_on].append(watch.between_ns(start, end))
    if not observation.follows:
        sys.exit("the coordinator does not follow: nothing was measured")
    _tell_cost(taken)
    observation.close()
    counters = observation.counters
    if device.type == "cuda":
        print("works by events:", ", ".join(f"{name} {count}" for name, count in counters.items()))
        kept = ("recorded", "given_up", "abandoned", "unplaced", "lost", "pending")
        assert counters["begun"] == sum(counters[name] for name in kept), counters
        assert counters["recorded"] > 0.9 * counters["begun"] > 0, counters
    told.write_text(json.dumps([statistics.median(forwards[at]) for at in range(len(layers))]))


def _tell_cost(taken: dict[bool, list[float]]) -> None:
    longest = 2 * statistics.median(taken[True] + taken[False])
    logs = {is_on: [math.log(took) for took in of if took < longest] for is_on, of in taken.items()}
    difference = statistics.mean(logs[True]) - statistics.mean(logs[False])
    error = math.sqrt(sum(statistics.variance(of) / len(of) for of in logs.values()))
    low, high = difference - 1.96 * error, difference + 1.96 * error
    median = statistics.median(taken[False]) / 1e6
    print(
        f"observing costs {difference:+.2%} of a step ({low:+.2%} to {high:+.2%} at 95%), over {len(logs[True])} steps with "
        f"and {len(logs[False])} without it; a step of {len(TIMES)} layers takes {median:.1f} ms"
    )


def compare(run: Path, told: Path) -> None:
    """What the coordinator was told of each layer's F, beside what torch's events said."""
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    by_torch: list[float] = json.loads(told.read_text())
    costs = {row["signature"]: row["ns"] for row in report["estimate"] if row["phase"] == "forward"}
    apart = []
    for at, layer in enumerate(report["configuration"]["layers"]):
        ours, theirs = costs[layer["signature"]], by_torch[at]
        apart.append(abs(ours / theirs - 1))
        print(f"  layer {at}: {ours / 1e3:10.1f} us, by torch's events {theirs / 1e3:10.1f} us, {ours / theirs - 1:+.1%}")
    if max(apart) > SHARE_MAX:
        sys.exit(f"the clocks differ by {max(apart):.0%}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("told", type=Path)
    parser.add_argument("--compare", type=Path, metavar="DIR")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    if options.compare is not None:
        compare(options.compare, options.told)
    else:
        train(options.told, options.device, options.steps)


if __name__ == "__main__":
    main()
