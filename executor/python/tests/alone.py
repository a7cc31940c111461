"""Gradients of layers that one rank runs: as one stage under a program, and without a schedule."""

from __future__ import annotations

import json
import random
from typing import Any

import torch
from torch import Tensor, nn

from adaptis import Plan, Schedule
from plans import scheduled


def gradients(layers: list[nn.Module]) -> dict[str, Tensor]:
    """By name, of those that have one."""
    return {
        name: parameter.grad.clone()
        for name, parameter in nn.ModuleList(layers).named_parameters()
        if parameter.grad is not None
    }


def plain_gradients(
    layers: list[nn.Module], x: Tensor, y: Tensor, criterion: Any, autocast: bool = False
) -> dict[str, Tensor]:
    """The same without a schedule."""
    value: Any = x
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for layer in layers:
            value = layer(value)
        loss = criterion(value, y)
    loss.backward()
    return gradients(layers)


def gradients_alone(
    layers: list[nn.Module], x: Tensor, y: Tensor, criterion: Any, programs: list[str], recomputed: bool, autocast: bool
) -> dict[str, Tensor]:
    """Gradients of one stage under a program."""
    whole = json.loads(scheduled([(0, len(layers), 0)], len(layers), 1, 1, random.Random(0), 1).write())
    whole["programs"] = [programs]
    whole["stages"][0]["recompute"] = list(range(len(layers))) if recomputed else []
    schedule = Schedule(layers, 1, criterion, plan=Plan.read(json.dumps(whole)))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        schedule.step(x, target=y)
    return gradients(layers)
