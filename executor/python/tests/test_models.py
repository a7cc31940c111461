"""What models and scripts bring along: ties, autocast, convolutions, frozen layers, shapes that change, compilation."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from adaptis import PlanError, Schedule
from models import WIDTH, WORDS, Block, batch, loss_fn, through
from plans import random_plan
from ranks import in_ranks
from test_conformance import own_state


def _plain(
    layers: list[nn.Module], data: list[tuple[Any, Tensor]], microbatches: int, criterion: Any, autocast: bool = False
) -> tuple[list[float], dict[str, Tensor]]:
    """The same in one process without Adaptis."""
    optimizer = SGD([p for p in nn.ModuleList(layers).parameters() if p.requires_grad], lr=0.1)
    losses = []
    for x, y in data:
        total = 0.0
        for part, target in zip(x.chunk(microbatches), y.chunk(microbatches)):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output = through(layers, part)
                loss = criterion(output, target)
            (loss / microbatches).backward()
            total += loss.item()
        losses.append(total / microbatches)
        optimizer.step()
        optimizer.zero_grad()
    return losses, nn.ModuleList(layers).state_dict()


def _piped(
    rank: int,
    world: int,
    make: Callable[[], list[nn.Module]],
    data: list[tuple[Any, Tensor]],
    microbatches: int,
    criterion: Any,
    seeds: list[int],
    together: Any,
    autocast: bool,
) -> tuple[list[float], dict[str, Tensor]]:
    layers = make()
    schedule = Schedule(layers, microbatches, criterion)
    optimizer = schedule.attach(SGD([p for p in schedule.parameters() if p.requires_grad], lr=0.1))
    losses = []
    for step, (x, y) in enumerate(data):
        if step:
            plan = random_plan(len(layers), world, microbatches, seeds[step % len(seeds)], 1 + step, together)
            schedule.change(plan)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses.append(schedule.step(x, target=y).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, own_state(schedule)


def _same(
    make: Callable[[], list[nn.Module]],
    data: list[tuple[Any, Tensor]],
    criterion: Any,
    microbatches: int = 2,
    together: Any = (),
    autocast: bool = False,
    tolerance: float = 1e-5,
    world: int = 2,
) -> None:
    arguments = (make, data, microbatches, criterion, [3, 4, 5], together, autocast)
    results = in_ranks(world, _piped, *arguments)
    losses, whole = _plain(make(), data, microbatches, criterion, autocast)
    seen: dict[str, Tensor] = {}
    for found, state in results:
        assert all(abs(one - other) < tolerance * abs(other) for one, other in zip(found, losses)), (found, losses)
        seen.update(state)
    assert seen.keys() == whole.keys()
    start = nn.ModuleList(make()).state_dict()
    for name, value in whole.items():
        # Against what training changed: a gradient that is missing shows.
        changed = (value.float() - start[name].float()).norm()
        error = (seen[name].float() - value.float()).norm() / changed.clamp_min(1e-6)
        assert error < 10 * tolerance, f"{name} is off by {error:.1e}"


class Head(nn.Module):
    """Words from the embedding's own weight."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


def tied() -> list[nn.Module]:
    """The first and the last layer share a parameter."""
    torch.manual_seed(1)
    embedding = nn.Embedding(WORDS, WIDTH)
    return [embedding, Block(), Block(), Block(), Head(embedding)]


def test_layers_that_share_a_parameter_stay_and_move_together() -> None:
    _same(tied, [batch(step) for step in range(4)], loss_fn, together=[[0, 4]])


def _parted(rank: int, world: int) -> str:
    schedule = Schedule(tied(), 2, loss_fn)
    of = schedule.plan.device_of_layers()
    assert of[0] == of[4] and len(set(of)) == 2, of
    for seed in range(100):
        plan = random_plan(5, world, 2, seed)
        if plan.device_of_layers()[0] != plan.device_of_layers()[4]:
            try:
                schedule.change(plan)
            except PlanError as error:
                return str(error)
    return ""


def test_a_plan_that_parts_them_is_refused() -> None:
    for text in in_ranks(2, _parted):
        assert "layers [[0, 4]] share parameters" in text, text


def test_bfloat16_by_autocast_is_as_without_a_pipeline() -> None:
    _same(_blocks, [batch(step) for step in range(3)], loss_fn, autocast=True, tolerance=1e-3)


def _blocks() -> list[nn.Module]:
    torch.manual_seed(2)
    return [nn.Embedding(WORDS, WIDTH), Block(), Block(), Block(), nn.Linear(WIDTH, WORDS)]


def _images() -> list[nn.Module]:
    torch.manual_seed(3)
    return [
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2)),
        nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding="same"), nn.AvgPool2d(2)),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 5),
    ]


def test_a_convolutional_network() -> None:
    torch.manual_seed(4)
    data = [(torch.randn(4, 3, 16, 16), torch.randint(0, 5, (4,))) for _ in range(4)]
    _same(_images, data, functional.cross_entropy)


def _frozen() -> list[nn.Module]:
    layers = _blocks()
    for layer in (layers[0], layers[2]):
        layer.requires_grad_(False)
    return layers


def test_frozen_layers_keep_their_values() -> None:
    _same(_frozen, [batch(step) for step in range(4)], loss_fn)


def test_a_batch_of_another_shape() -> None:
    data = [batch(step, rows=8, words=5 + step % 2) for step in range(5)]
    _same(_blocks, data, loss_fn)


def _compiled() -> list[nn.Module]:
    layers = _blocks()
    return [torch.compile(layer, backend="aot_eager") if isinstance(layer, Block) else layer for layer in layers]


def test_compiled_layers() -> None:
    _same(_compiled, [batch(step) for step in range(3)], loss_fn)
