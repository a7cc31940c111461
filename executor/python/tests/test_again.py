"""Layers whose lists and objects change when they run, recomputed: on what these held, and changed once."""

from __future__ import annotations

import json
import random

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from adaptis import Plan, Schedule
from adaptis.writing import AGAIN_BYTES_MAX
from models import WIDTH
from plans import scheduled
from ranks import in_ranks
from refusing import said


class Listing(nn.Module):
    """What it lists counts only after many runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.runs: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.runs.append(1)
        return self.linear(x) * (0.5 if len(self.runs) > 7 else 1.0)


class Late(Listing):
    """Lists from its fourth run on, and every third time."""

    def forward(self, x: Tensor) -> Tensor:
        self.count = getattr(self, "count", 0) + 1
        if self.count > 3 and self.count % 3:
            self.runs.append(self.count)
        return self.linear(x) * (1.0 + 0.1 * len(self.runs))


class Drawing(Listing):
    """Draws by generators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generators = [torch.Generator().manual_seed(3)]
        self.random = random.Random(4)
        self.array = numpy.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        self.array += self.random.random()
        self.runs.append(len(self.runs))
        return self.linear(x) * torch.rand(WIDTH, generator=self.generators[0]) + float(self.array.sum())


class Bound(Listing):
    """Appends by a method that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.append = self.runs.append

    def forward(self, x: Tensor) -> Tensor:
        self.append(1)
        return self.linear(x) * (1.0 + 0.1 * len(self.runs))


class Trimmed(Listing):
    """Changes a list in place and puts another one in its place; so with a tensor in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = (torch.zeros(1), [0.0])
        self.memory = [torch.ones(WIDTH)]
        self.register_buffer("step", torch.zeros(1))
        self.step: Tensor

    def forward(self, x: Tensor) -> Tensor:
        # The tensor that was there is gone, and its number may be another's.
        self.step = self.step + 1
        self.runs.append(len(self.runs) + 1)
        if len(self.runs) > 3:
            self.runs = self.runs[-2:]
        self.kept[0].add_(1)
        y = self.linear(x) * self.memory[0] * (1.0 + 0.01 * sum(self.runs) + 0.1 * self.kept[0])
        if self.runs[-1] % 2:
            self.memory[0] = 1 + 0.1 * y.detach().mean(dim=0)
        vars(self.linear.weight)["seen"] = vars(self.linear.weight).get("seen", 0) + 1
        return y * (1.0 + 0.01 * vars(self.linear.weight)["seen"]) + self.step


class Trained(Listing):
    """Trains a tensor that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = [torch.ones(WIDTH, requires_grad=True)]

    def forward(self, x: Tensor) -> Tensor:
        self.runs.append(1)
        if self.scale[0].grad is not None:
            with torch.no_grad():
                self.scale[0] -= 0.1 * self.scale[0].grad
            self.scale[0].grad = None
        return self.linear(x) * self.scale[0].clone()


class Closing(Listing):
    """Has functions that close over numbers; one of them counts, from the second run on."""

    def __init__(self) -> None:
        super().__init__()
        slope, count = 0.1, 0
        self.activate = lambda x: torch.where(x > 0, x, slope * x)

        def counted() -> int:
            nonlocal count
            count += 1
            return count

        self.counted = counted

    def forward(self, x: Tensor) -> Tensor:
        self.runs.append(1)
        return self.activate(self.linear(x)) * (1.0 + 0.1 * self.counted())


class Sloped(Closing):
    """Only with one that does not."""

    def __init__(self) -> None:
        super().__init__()
        del self.counted

    def forward(self, x: Tensor) -> Tensor:
        self.runs.append(1)
        return self.activate(self.linear(x)) * (1.0 + 0.1 * len(self.runs))


class Large(Listing):
    def __init__(self) -> None:
        super().__init__()
        self.tables = [torch.zeros(AGAIN_BYTES_MAX)]

    def forward(self, x: Tensor) -> Tensor:
        self.tables[0] += 1
        return self.linear(x)


def _listing(rank: int, world: int, kind: type[Listing], recomputed: bool) -> tuple[list[float], int, str]:
    torch.manual_seed(1)
    layer = kind()
    plan = json.loads(scheduled([(0, 1, 0)], 1, 1, 2, random.Random(0), 1).write())
    plan["programs"] = [["0F0", "0F1", "0B0", "0B1"]]
    plan["stages"][0]["recompute"] = [0] if recomputed else []
    schedule = Schedule([layer], 2, functional.mse_loss, plan=Plan.read(json.dumps(plan)))
    optimizer = SGD(schedule.parameters(), lr=0.1)
    x, y = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(2))
    losses: list[float] = []

    def train() -> None:
        for _ in range(6):
            losses.append(schedule.step(x, target=y).item())
            optimizer.step()
            optimizer.zero_grad()

    told = said(train)
    return losses, len(layer.runs), "\n".join(told)


def test_a_layer_is_recomputed_on_what_its_lists_held() -> None:
    for kind in (Listing, Late, Drawing, Trimmed, Sloped, Bound, Trained, Closing):
        [(losses, runs, told)] = in_ranks(1, _listing, kind, True)
        [(expected, expected_runs, _)] = in_ranks(1, _listing, kind, False)
        assert (losses, runs) == (expected, expected_runs), kind
        # What has methods of its lists, what trains its own, and what a function counts, can't be made once more.
        assert ("it is not recomputed" in told) == (kind in (Bound, Trained, Closing)), told
    assert "it is not recomputed" in in_ranks(1, _listing, Large, True)[0][2], "it would take too much to put that back"
