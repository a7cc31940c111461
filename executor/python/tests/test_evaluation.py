"""The loss of a model on several ranks, between two steps."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from adaptis import Schedule
from models import WIDTH
from plans import scheduled
from ranks import in_ranks
from refusing import assert_said, refusals


class Noisy(nn.Module):
    """What differs between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Any:
        return x + functional.dropout(self.norm(self.linear(x)), 0.3, self.training)


def _layers() -> list[nn.Module]:
    torch.manual_seed(12)
    return [nn.Linear(WIDTH, WIDTH), Noisy(), Noisy(), nn.Linear(WIDTH, WIDTH)]


def _data(step: int, rows: int) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(step)
    return torch.randn(rows, WIDTH, generator=numbers), torch.randn(rows, WIDTH, generator=numbers)


def _trained(rank: int, world: int, evaluates: bool) -> tuple[list[str], list[tuple[float, float]]]:
    """Losses of six steps, two changes of plan among them; what `evaluate` says after each, and a plain model that has its
    state."""
    plan = scheduled([(0, 2, 0), (2, 4, 1)], 4, 2, 2, random.Random(0), 1)
    schedule = Schedule(_layers(), 2, functional.mse_loss, plan=plan)
    optimizer = schedule.attach(SGD(schedule.parameters(), lr=0.1))
    losses, evaluated = [], []
    for step in range(6):
        if step in (2, 4):
            stages = [(0, 1, 1), (1, 2, 0), (2, 3, 1), (3, 4, 0)] if step == 2 else [(0, 4, 1)]
            schedule.change(scheduled(stages, 4, 2, 2, random.Random(step), 1 + step))
        x, y = _data(step, 8)
        losses.append(schedule.step(x, target=y).item().hex())
        optimizer.step()
        optimizer.zero_grad()
        if evaluates:
            x, y = _data(100 + step, 5 if step % 2 else 6)
            found = schedule.evaluate(x, target=y).item()
            whole = schedule.whole_checkpoint()
            if whole is not None:
                plain = nn.ModuleList(_layers()).eval()
                plain.load_state_dict(whole["model"])
                value: Any = x
                for layer in plain:
                    value = layer(value)
                evaluated.append((found, functional.mse_loss(value, y).item()))
            assert all(layer.training for layer in schedule.layers)
    return losses, evaluated


def test_evaluation_is_that_of_the_whole_model_and_changes_nothing() -> None:
    without = in_ranks(2, _trained, False)
    found = in_ranks(2, _trained, True)
    assert [losses for losses, _ in found] == [losses for losses, _ in without]
    (_, evaluated), _ = found
    assert len(evaluated) == 6
    for value, expected in evaluated:
        assert value == pytest.approx(expected, rel=1e-6)


def _lacking(rank: int, world: int) -> list[str]:
    schedule = Schedule(_layers(), 2, functional.mse_loss)
    x, y = _data(1, 8)
    texts = refusals(
        [
            lambda: schedule.evaluate(target=y),
            lambda: schedule.evaluate(x),
            lambda: schedule.evaluate(x, target=y[:5]),
            lambda: schedule.evaluate(torch.tensor(1.0), target=y) if rank else schedule.evaluate(x, target=y),
        ]
    )
    sparing = schedule.evaluate(x) if rank == 0 else schedule.evaluate(target=y)
    assert sparing.item() > 0.0
    return texts


def test_what_an_evaluation_lacks_is_said_on_every_rank() -> None:
    for rank, texts in enumerate(in_ranks(2, _lacking)):
        last = "a first dimension to cut" if rank else "can't begin"
        assert_said(texts, ["need x", "need target", "target: 5 rows for 8 of x", last])
