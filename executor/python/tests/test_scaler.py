"""A GradScaler over several ranks does what it does in one process: all of them skip a step, or none."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW, Optimizer

from adaptis import Schedule
from models import batch, loss_fn, model, through
from plans import random_plan
from ranks import in_ranks
from refusing import assert_said, refusals
from test_conformance import own_state

STEPS = 10
MICROBATCHES = 2


def _scaler(is_enabled: bool = True) -> GradScaler:
    return GradScaler("cpu", init_scale=2.0**13, growth_interval=3, enabled=is_enabled)


def _spoil(layers: list[nn.Module], step: list[int]) -> None:
    """Makes the gradient of a single parameter infinite in some steps."""

    def spoiled(gradient: Tensor) -> Tensor:
        return gradient * float("inf") if step[0] in (2, 6) else gradient

    layers[5].get_parameter("up.weight").register_hook(spoiled)


def _optimizer(kind: str, parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9) if kind == "sgd" else AdamW(parameters, lr=0.01, fused=kind == "fused")


def _plain(kind: str, dtype: torch.dtype) -> tuple[list[float], list[float], dict[str, Tensor]]:
    layers, step = model(), [0]
    _spoil(layers, step)
    scaler, optimizer = _scaler(), _optimizer(kind, nn.ModuleList(layers).parameters())
    losses, scales = [], []
    for step[0] in range(STEPS):
        x, y = batch(step[0])
        total = 0.0
        for part, target in zip(x.chunk(MICROBATCHES), y.chunk(MICROBATCHES)):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = loss_fn(through(layers, part), target)
            scaler.scale(loss / MICROBATCHES).backward()
            total += loss.item() / MICROBATCHES
        losses.append(total)
        if kind != "fused":
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(nn.ModuleList(layers).parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return losses, scales, nn.ModuleList(layers).state_dict()


def _piped(
    rank: int, world: int, kind: str, dtype: torch.dtype, changes: dict[int, int]
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    layers, step = model(), [0]
    _spoil(layers, step)
    # A rank without a layer, and so without a gradient, is among them.
    schedule = Schedule(layers, MICROBATCHES, loss_fn, plan=random_plan(9, world, MICROBATCHES, 2))
    optimizer = schedule.attach(_optimizer(kind, schedule.parameters()))
    scaler = schedule.attach(_scaler())
    losses, scales = [], []
    for step[0] in range(STEPS):
        if step[0] in changes:
            schedule.change(random_plan(9, world, MICROBATCHES, changes[step[0]], epoch=1 + step[0]))
        x, y = batch(step[0])
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            losses.append(schedule.step(x, target=y).item())
        if kind != "fused":
            scaler.unscale_(optimizer)
            schedule.clip_grad_norm_(1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return losses, scales, own_state(schedule)


@pytest.mark.parametrize("kind, dtype", [("sgd", torch.float32), ("adam", torch.float16), ("fused", torch.float32)])
def test_ranks_skip_a_step_together_as_one_process_does(kind: str, dtype: torch.dtype) -> None:
    losses, scales, whole = _plain(kind, dtype)
    assert sum(after < before for before, after in zip([2.0**13, *scales], scales)) >= 2, "steps are skipped"
    tolerance = 2e-3 if dtype == torch.float16 else 1e-5
    still, changed = (in_ranks(3, _piped, kind, dtype, changes) for changes in ({}, {3: 3, 6: 4, 7: 5}))
    seen: dict[str, Tensor] = {}
    for (found, found_scales, state), (other, other_scales, _) in zip(still, changed):
        assert found_scales == other_scales == scales
        assert found == other, "a change of plan changes no bit"
        assert found == pytest.approx(losses, rel=tolerance)
        seen.update(state)
    for name, value in whole.items():
        assert (seen[name] - value).norm() <= 10 * tolerance * value.norm().clamp_min(1e-6), name


def _misused(rank: int, world: int) -> list[str]:
    schedule = Schedule(model(), MICROBATCHES, loss_fn)
    scaler = schedule.attach(_scaler())
    assert schedule.attach(scaler) is scaler
    x, y = batch(0)
    if rank == 1:
        scaler.update(2.0)
    texts = refusals([lambda: schedule.attach(_scaler()), lambda: schedule.step(x, target=y)])
    # A checkpoint may hold the scaler itself.
    for other in (copy.deepcopy(scaler), pickle.loads(pickle.dumps(scaler))):
        assert other.state_dict() == scaler.state_dict() and other._unscale_grads_.__self__ is other
    off = Schedule(model(), MICROBATCHES, loss_fn)
    off.attach(_scaler(is_enabled=False))
    off.step(x, target=y)
    return texts


def test_what_a_scaler_can_not_do_is_refused() -> None:
    for texts in in_ranks(2, _misused):
        assert_said(
            texts,
            ["a schedule has one GradScaler", "GradScaler's scale, requires_grad or the mode that is asked for differs from rank to rank"],
        )
