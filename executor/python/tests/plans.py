"""Random plans of every kind that the audit lets through."""

from __future__ import annotations

import json
import random
from typing import Any

from adaptis import Plan


def random_plan(layers: int, ranks: int, microbatches: int, seed: int, epoch: int = 1, together: Any = ()) -> Plan:
    """A random partition, placement, recomputation and schedule: several stages on a rank, none on another, I and W
    apart, B fused, or both in turn."""
    dice = random.Random(seed)
    while True:
        cuts = [0] + [at for at in range(1, layers) if dice.random() < 0.45] + [layers]
        stages = [(first, end, dice.randrange(ranks)) for first, end in zip(cuts, cuts[1:])]
        of = [rank for first, end, rank in stages for _ in range(first, end)]
        if all(len({of[layer] for layer in group}) == 1 for group in together):
            return scheduled(stages, layers, ranks, microbatches, dice, epoch)


def scheduled(
    stages: list[tuple[int, int, int]], layers: int, ranks: int, microbatches: int, dice: random.Random, epoch: int
) -> Plan:
    """A random schedule and recomputation of given stages."""
    programs = order(stages, ranks, microbatches, dice)
    return Plan.read(
        json.dumps(
            {
                "format": "adaptis.plan/1",
                "epoch": epoch,
                "parent": epoch - 1,
                "layers": layers,
                "devices": [f"rank{rank}" for rank in range(ranks)],
                "stages": [
                    {
                        "layers": [first, end],
                        "device": rank,
                        "recompute": [layer for layer in range(first, end) if dice.random() < 0.3],
                    }
                    for first, end, rank in stages
                ],
                "programs": programs,
            }
        )
    )


def order(stages: list[tuple[int, int, int]], ranks: int, microbatches: int, dice: random.Random) -> list[list[str]]:
    """Draws one of the instructions that can run, again and again."""
    count = len(stages)
    forwards, inputs, weights = [0] * count, [0] * count, [0] * count
    programs: list[list[str]] = [[] for _ in range(ranks)]
    fused = dice.choice([0.0, 0.5, 1.0])
    while True:
        ready = []
        for at in range(count):
            if forwards[at] < microbatches and (at == 0 or forwards[at - 1] > forwards[at]):
                ready.append((at, "F", forwards[at]))
            if inputs[at] < forwards[at] and (at + 1 == count or inputs[at + 1] > inputs[at]):
                is_fused = weights[at] == inputs[at] and dice.random() < fused
                ready.append((at, "B" if is_fused else "I", inputs[at]))
            if weights[at] < inputs[at]:
                ready.append((at, "W", weights[at]))
        if not ready:
            return programs
        at, action, microbatch = dice.choice(ready)
        forwards[at] += action == "F"
        inputs[at] += action in "IB"
        weights[at] += action in "WB"
        programs[stages[at][2]].append(f"{at}{action}{microbatch}")
