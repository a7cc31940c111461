"""What a rank holds, and what a change of plan costs."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from adaptis import Plan, Schedule
from models import batch, loss_fn, model
from plans import random_plan
from ranks import in_ranks


def is_blank(tensor: torch.Tensor) -> bool:
    """Whether it only stands for a tensor that is on another rank."""
    return all(stride == 0 for stride in tensor.stride())


def _held(rank: int, world: int) -> list[tuple[int, int, int]]:
    """After each change: numbers that this rank's layers have, that it holds memory for, and that its optimizer keeps."""
    schedule = Schedule(model(), 2, loss_fn)
    optimizer = schedule.attach(AdamW(schedule.parameters()))
    found = []
    for step in range(4):
        if step:
            schedule.change(random_plan(9, world, 2, step, epoch=1 + step))
        x, y = batch(step)
        schedule.step(x, target=y)
        optimizer.step()
        optimizer.zero_grad()
        of = schedule.plan.device_of_layers()
        own = [layer for layer, device in zip(schedule.layers, of) if device == rank]
        every = list(schedule.parameters())
        blank = [parameter for parameter in every if is_blank(parameter)]
        assert all(torch.isnan(parameter).all() for parameter in blank), "what is elsewhere can't be taken for a value"
        assert all(parameter.untyped_storage().nbytes() <= 4 for parameter in blank)
        kept = [parameter for parameter in every if optimizer.state.get(parameter)]
        found.append(
            (
                sum(parameter.numel() for layer in own for parameter in layer.parameters()),
                sum(parameter.numel() for parameter in every if not is_blank(parameter)),
                sum(parameter.numel() for parameter in kept),
            )
        )
    return found


def test_a_rank_holds_its_own_layers_alone() -> None:
    whole = sum(parameter.numel() for parameter in nn.ModuleList(model()).parameters())
    ranks: list[Any] = in_ranks(3, _held)
    for step in range(4):
        assert sum(found[step][0] for found in ranks) == whole
        for own, held, kept in (found[step] for found in ranks):
            assert own == held == kept


def _reordered(rank: int, world: int) -> list[float]:
    """Milliseconds of changes that touch nothing but the order."""
    schedule = Schedule(model(), 4, loss_fn)
    plans = [Plan.even(9, [f"rank{rank}" for rank in range(world)], 4, name) for name in ("gpipe", "1f1b")]
    times = []
    for step in range(12):
        x, y = batch(step)
        began = time.perf_counter()
        schedule.change(plans[step % 2])
        schedule._switch()
        times.append(1e3 * (time.perf_counter() - began))
        schedule.step(x, target=y)
    return times


def test_another_order_alone_costs_little() -> None:
    for times in in_ranks(2, _reordered):
        # Far above what it takes, for machines that are busy: a move takes longer.
        assert statistics.median(times) < 2.0, times
