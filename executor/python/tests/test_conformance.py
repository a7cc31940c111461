"""Any audited plan computes what one process computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from adaptis import Plan, Schedule
from models import batch, loss_fn, model, reference
from plans import random_plan
from ranks import in_ranks

STEPS = 3


def _train(plan: Plan, microbatches: int, dropout: float = 0.0) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, and the state of this rank's layers."""
    layers = model(dropout=dropout)
    schedule = Schedule(layers, microbatches, loss_fn, plan=plan)
    optimizer = schedule.attach(AdamW(schedule.parameters(), lr=0.01))
    losses = []
    for step in range(STEPS):
        x, y = batch(step)
        losses.append(schedule.step(x, target=y).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, own_state(schedule)


def own_state(schedule: Schedule) -> dict[str, torch.Tensor]:
    """By name, the state of the layers of this rank."""
    of = schedule.plan.device_of_layers()
    state = nn.ModuleList(schedule.layers).state_dict()
    return {name: value.clone() for name, value in state.items() if of[int(name.split(".")[0])] == schedule.rank}


def _many(rank: int, world: int, seeds: list[int]) -> list[Any]:
    results = []
    for seed in seeds:
        microbatches = [1, 2, 4][seed % 3]
        results.append(_train(random_plan(9, world, microbatches, seed), microbatches))
    return results


@pytest.mark.parametrize("world", [2, 4])
def test_any_plan_computes_what_one_process_computes(world: int) -> None:
    seeds = list(range(30 * world, 30 * world + 30))
    results = in_ranks(world, _many, seeds)
    expected = {count: reference(STEPS, count) for count in (1, 2, 4)}
    for at, seed in enumerate(seeds):
        losses, layers = expected[[1, 2, 4][seed % 3]]
        whole = nn.ModuleList(layers).state_dict()
        seen = {}
        for rank in range(world):
            found, state = results[rank][at]
            assert found == pytest.approx(losses, rel=1e-5), f"plan {seed}"
            seen.update(state)
        assert seen.keys() == whole.keys()
        for name, value in whole.items():
            error = (seen[name] - value).norm() / value.norm().clamp_min(1e-6)
            assert error < 1e-5, f"plan {seed}: {name} is off by {error:.1e}"


def _double_model() -> list[nn.Module]:
    return [layer.double() for layer in model()]


def _in_double(rank: int, world: int) -> list[float]:
    schedule = Schedule(_double_model(), 2, loss_fn)
    optimizer = schedule.attach(AdamW(schedule.parameters(), lr=0.01))
    losses = []
    for step in range(STEPS):
        x, y = batch(step)
        before = schedule.evaluate(x, target=y)
        loss = schedule.step(x, target=y)
        assert loss.dtype == before.dtype == torch.float64
        assert before.item() == pytest.approx(loss.item(), rel=1e-13)
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_losses_in_double_precision_stay_so() -> None:
    expected, _ = reference(STEPS, 2, _double_model)
    assert in_ranks(2, _in_double) == [pytest.approx(expected, rel=1e-13)] * 2
