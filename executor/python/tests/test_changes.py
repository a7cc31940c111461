"""Plans that follow one another change nothing of the maths."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

import adaptis.schedule
from adaptis import Plan, PlanError, Schedule
from models import WIDTH, batch, loss_fn, model, through
from plans import random_plan, scheduled
from ranks import in_ranks
from refusing import assert_said, refusals
from test_conformance import own_state

STEPS = 50
CHANGES = {7: 1, 16: 2, 25: 3, 33: 4, 41: 5}


def _long(rank: int, world: int, changes: dict[int, int], dropout: float) -> tuple[list[float], dict[str, Any]]:
    """Losses of 50 steps, with a learning rate that decays, two groups of parameters, and clipping."""
    schedule = Schedule(model(dropout=dropout), 4, loss_fn, plan=random_plan(9, world, 4, 0), seed=3)
    names = dict(schedule.named_parameters())
    decayed = [parameter for name, parameter in names.items() if parameter.dim() > 1]
    others = [parameter for name, parameter in names.items() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = schedule.attach(AdamW(groups, lr=0.01))
    rates = CosineAnnealingLR(optimizer, STEPS)
    losses = []
    for step in range(STEPS):
        if step in changes:
            schedule.change(random_plan(9, world, 4, changes[step], epoch=1 + changes[step]))
        x, y = batch(step)
        losses.append(schedule.step(x, target=y).item())
        schedule.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
    return losses, own_state(schedule)


def _both(rank: int, world: int) -> Any:
    return _long(rank, world, {}, 0.2), _long(rank, world, CHANGES, 0.2)


def test_fifty_steps_with_five_changes_equal_those_without_to_the_bit() -> None:
    still: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    for (losses, state), (other_losses, other_state) in in_ranks(3, _both):
        assert losses == other_losses
        still.update(state)
        changed.update(other_state)
    assert losses[-1] < losses[0] - 0.05, "it learns"
    assert still.keys() == changed.keys() and len(still) == 24
    assert all(torch.equal(still[name], changed[name]) for name in still)


def _accumulated(rank: int, world: int) -> tuple[list[float], dict[str, Any]]:
    """Two steps before each of the optimizer's, with a change in between."""
    schedule = Schedule(model(), 2, loss_fn)
    optimizer = schedule.attach(SGD(schedule.parameters(), lr=0.1, momentum=0.9))
    losses = []
    for step in range(6):
        if step in (1, 3):
            schedule.change(random_plan(9, world, 2, step, epoch=1 + step))
        x, y = batch(step)
        losses.append(schedule.step(x, target=y).item())
        if step % 2:
            optimizer.step()
            optimizer.zero_grad(set_to_none=step != 3)
    return losses, own_state(schedule)


def test_gradients_that_are_accumulated_move_with_their_layer() -> None:
    layers = model()
    optimizer = SGD(nn.ModuleList(layers).parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(6):
        x, y = batch(step)
        total = 0.0
        for part, target in zip(x.chunk(2), y.chunk(2)):
            output = through(layers, part)
            (loss_fn(output, target) / 2).backward()
            total += loss_fn(output, target).item() / 2
        losses.append(total)
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    whole = nn.ModuleList(layers).state_dict()
    seen: dict[str, Any] = {}
    for found, state in in_ranks(2, _accumulated):
        assert all(abs(one - other) < 1e-5 for one, other in zip(found, losses)), (found, losses)
        seen.update(state)
    for name, value in whole.items():
        if name != "2.mean":
            assert torch.allclose(seen[name], value, rtol=1e-5, atol=1e-6), name


def test_what_is_no_text_of_a_plan_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text("{}")
    told = refusals([lambda: Plan.read(str(file)), lambda: Plan.read("nonsense"), lambda: Plan.read("{}")])
    assert "name of a file" in told[0] and "read_text()" in told[0], told
    assert "can't be read as JSON" in told[1] and "format is missing" in told[2], told


def _refused(rank: int, world: int) -> list[str]:
    schedule = Schedule(model(), 4, loss_fn)
    texts = []
    for plan in (
        Plan.even(8, ["a", "b"], 4),
        Plan.even(9, ["a", "b", "c"], 4),
        Plan.even(9, ["a", "b"], 2),
    ):
        try:
            schedule.change(plan)
        except PlanError as error:
            texts.append(str(error))
    x, y = batch(0)
    return texts + refusals(
        [
            lambda: schedule.step(x[:6], target=y[:6]),
            lambda: schedule.step((x, 3), target=y),
            lambda: Schedule(model(), 0, loss_fn),
            lambda: Schedule([], 1, loss_fn),
            lambda: Schedule(model(), 4, loss_fn, plan="1f2b"),
        ]
    )


def test_what_can_not_run_is_refused_before_it_runs() -> None:
    for texts in in_ranks(2, _refused):
        expected = [
            "the plan is for 8 layers, the model has 9",
            "the plan is for 3 devices, the group has 2 ranks",
            "the plan is not valid",
            "x: 6 rows can't be cut into 4",
            "x: a tensor or a tuple of tensors",
            "microbatches: 0",
            "layers: there are none",
            "1f2b",
        ]
        assert_said(texts, expected)


class Remembering(nn.Module):
    """What it keeps between runs in all the ways there are besides parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("shift", None)
        self.register_buffer("now", torch.zeros(WIDTH))
        self.register_buffer("before", torch.zeros(WIDTH))
        self.register_buffer("same", torch.zeros(WIDTH))
        self.calls_left = 0
        self.is_ready = False
        self.usual = 0.0
        # It comes and goes.
        self.is_odd = False
        self._factors = [1.0]

    def get_extra_state(self) -> Any:
        return {"factors": self._factors}

    def set_extra_state(self, state: Any) -> None:
        self._factors = state["factors"]

    def forward(self, x: Tensor) -> Tensor:
        self.is_odd = not self.is_odd if self.calls_left == 0 else self.is_odd
        self.calls_left = 2 if self.calls_left == 0 else self.calls_left - 1
        if not self.is_ready:
            self.is_ready = True
            self.made_later = nn.Dropout(0.0)
            self.register_buffer("table", torch.ones(1), persistent=False)
            self.scale.data /= x.detach().std(0) + 1
            self.shift = x.detach().mean(0)
        self.usual = 0.9 * self.usual + 0.1 * float(x.detach().abs().mean())
        self._factors = [self._factors[0] * 0.99]
        assert self.shift is not None
        self.before, self.now = self.now, x.detach().mean(0)
        x = x * self.table + 0.01 * (self.before + self.same) * (2 if self.is_odd else 1)
        self.same = self.now
        return (x - self.shift) * self.scale * self._factors[0] / (1 + self.usual)


def _remembering() -> list[nn.Module]:
    torch.manual_seed(4)
    convolution = nn.Conv2d(2, 4, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return [
        nn.Linear(WIDTH, WIDTH),
        Remembering(),
        nn.Sequential(nn.Unflatten(1, (2, 2, WIDTH // 4)), convolution, nn.Flatten()),
        nn.Linear(2 * WIDTH, WIDTH),
    ]


def _remembered(rank: int, world: int) -> tuple[list[float], list[bool]]:
    """Losses with all layers on the other rank after each step, and how the convolution's weights lie then."""
    schedule = Schedule(_remembering(), 2, functional.mse_loss, plan=_turned(0, world))
    optimizer = schedule.attach(SGD(schedule.parameters(), lr=0.05, momentum=0.9))
    losses, lies = [], []
    for step in range(6):
        if step:
            schedule.change(_turned(step, world))
        torch.manual_seed(step)
        x, y = torch.randn(8, WIDTH), torch.randn(8, WIDTH)
        losses.append(schedule.step(x, target=y).item())
        schedule.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if 2 in dict(schedule._own()):
            convolution = schedule.layers[2].get_submodule("1")
            assert isinstance(convolution, nn.Conv2d)
            weight = convolution.weight
            lies.append(weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous())
    return losses, lies


def _of_many_kinds(rank: int, world: int, most: int) -> list[float]:
    """Steps on batches of one length after another, of which so many are remembered at a time."""
    torch.manual_seed(1)
    schedule = Schedule([nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH)], 2, functional.mse_loss)
    if rank == world - 1 > 0:
        number = dict(schedule.layers[0].named_parameters())["weight"]
        assert number.isnan().all()
    norm = schedule.layers[1]
    assert isinstance(norm, nn.BatchNorm1d) and norm.num_batches_tracked is not None
    is_here = 1 in dict(schedule._own())
    assert norm.num_batches_tracked.item() == (0 if is_here else torch.iinfo(torch.int64).max)
    losses = []
    kept, adaptis.schedule.KINDS_MAX = adaptis.schedule.KINDS_MAX, most
    for rows in (4, 8, 12, 4, 8, 12, 4):
        x = torch.linspace(0, 1, rows * WIDTH).reshape(rows, WIDTH)
        losses.append(schedule.step(x, target=x).item())
        assert len(schedule._forms) <= most
    adaptis.schedule.KINDS_MAX = kept
    return losses


def test_kinds_of_iterations_that_are_forgotten_are_learned_again() -> None:
    forgetful, other = in_ranks(2, _of_many_kinds, 2), in_ranks(2, _of_many_kinds, 100)
    assert forgetful == other and len(forgetful[0]) == 7


def _turned(step: int, world: int) -> Plan:
    stages = [(0, 2, step % world), (2, 4, (step + 1) % world)]
    plan = json.loads(scheduled(stages, 4, world, 2, random.Random(1), 1 + step).write())
    for stage in plan["stages"]:
        stage["recompute"] = []
    return Plan.read(json.dumps(plan))


def test_what_a_layer_keeps_besides_its_tensors_moves_with_it() -> None:
    ((still, _),) = in_ranks(1, _remembered)
    found = in_ranks(2, _remembered)
    assert all(losses == still for losses, _ in found), (found, still)
    assert all(lies and all(lies) for _, lies in found)
