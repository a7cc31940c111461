"""What observing costs: a script's steps with and without it, in random order in one run.

    adaptis run -- python overhead.py [STEPS]

Prints the difference of the mean logarithms of step times as a percentage, with its 95% interval. Layers take a millisecond
or more. Steps that took over twice the median, in which something else had the processor, are left out on both sides.
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
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    torch.set_num_threads(1)
    model = nn.Sequential(*(Block() for _ in range(LAYERS)))
    observation = adaptis.observe(model)
    if observation is None:
        sys.exit("start it with: adaptis run -- python overhead.py")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    x = torch.randn(ROWS, WIDTH)
    chance = random.Random(7)
    taken: dict[bool, list[float]] = {True: [], False: []}
    for step in range(WARM + steps):
        if step == WARM // 2:
            # Until the coordinator follows.
            time.sleep(2.0)
        is_on = chance.random() < 0.5 or step < WARM
        observation.resume() if is_on else observation.pause()
        began = time.perf_counter()
        (model(x) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= WARM:
            taken[is_on].append(time.perf_counter() - began)
    if not observation.follows:
        sys.exit("the coordinator does not follow: nothing was measured")
    longest = 2 * statistics.median(taken[True] + taken[False])
    logs = {is_on: [math.log(took) for took in of if took < longest] for is_on, of in taken.items()}
    difference = statistics.mean(logs[True]) - statistics.mean(logs[False])
    error = math.sqrt(sum(statistics.variance(of) / len(of) for of in logs.values()))
    low, high = difference - 1.96 * error, difference + 1.96 * error
    median = statistics.median(taken[False]) * 1e3
    print(
        f"observing costs {difference:+.2%} of a step ({low:+.2%} to {high:+.2%} at 95%), over {len(logs[True])} steps with "
        f"and {len(logs[False])} without it; a step of {LAYERS} layers takes {median:.1f} ms"
    )


if __name__ == "__main__":
    main()
