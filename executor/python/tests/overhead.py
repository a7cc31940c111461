"""What observing costs: a script's steps with and without it, in pairs, each in random order.

    adaptis run -- python overhead.py [PAIRS]

Prints the mean of the logarithms of the ratios within pairs as a percentage, with its 95% interval: what changes slowly on
the machine is alike for both. Layers take a millisecond or more. Pairs of which a step took over twice the median, in which
something else had the processor, are left out.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time

import torch
from torch import nn

import adaptis

WIDTH = 384
ROWS = 64
LAYERS = 6
WARM = 20


class Block(nn.Module):
    """Two products and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    torch.set_num_threads(1)
    model = nn.Sequential(*(Block() for _ in range(LAYERS)))
    observation = adaptis.observe(model)
    if observation is None:
        sys.exit("start it with: adaptis run -- python overhead.py")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    x = torch.randn(ROWS, WIDTH)

    def step(is_on: bool) -> float:
        observation.resume() if is_on else observation.pause()
        began = time.perf_counter()
        (model(x) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    for warm in range(WARM):
        if warm == WARM // 2:
            # Until the coordinator follows.
            time.sleep(2.0)
        step(True)
    chance = random.Random(7)
    taken: list[tuple[float, float]] = []
    for _ in range(pairs):
        if chance.random() < 0.5:
            with_it = step(True)
            taken.append((with_it, step(False)))
        else:
            without_it = step(False)
            taken.append((step(True), without_it))
    if not observation.follows:
        sys.exit("the coordinator does not follow: nothing was measured")
    median = statistics.median(without_it for _, without_it in taken)
    longest = 2 * statistics.median(took for pair in taken for took in pair)
    logs = [math.log(with_it / without_it) for with_it, without_it in taken if max(with_it, without_it) < longest]
    mean = statistics.mean(logs)
    error = 1.96 * statistics.stdev(logs) / math.sqrt(len(logs))
    print(
        f"observing costs {mean:+.2%} of a step ({mean - error:+.2%} to {mean + error:+.2%} at 95%), over {len(logs)} pairs "
        f"of steps with and without it; a step of {LAYERS} layers takes {median * 1e3:.1f} ms"
    )


if __name__ == "__main__":
    main()
