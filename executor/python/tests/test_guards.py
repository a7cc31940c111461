"""What would train otherwise than plain PyTorch, without a word: refused, with what would do; and what is not."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from adaptis import Plan, PlanError, Schedule
from models import WIDTH, X, Y, linears
from plans import scheduled
from ranks import in_ranks
from refusing import assert_said, refusals, said


def _of_what_is_trained_elsewhere(rank: int, world: int) -> list[str]:
    tied, of_one = linears(), linears()
    tied[3].weight.data = tied[0].weight.data
    whole = nn.Parameter(torch.randn(2 * WIDTH, WIDTH))
    for at in (0, 3):
        of_one[at].weight = nn.Parameter(whole.data[at : at + WIDTH])
    frozen = linears()
    frozen[3].weight.data = frozen[0].weight.data
    for at in (0, 3):
        frozen[at].requires_grad_(False)
    plain = Schedule(frozen, 2, functional.mse_loss)
    sparse = linears()
    sparse[1].register_buffer("pairs", torch.eye(2).to_sparse())
    return refusals(
        [
            lambda: Schedule(sparse, 2, functional.mse_loss),
            lambda: Schedule(tied, 2, functional.mse_loss),
            lambda: Schedule(of_one, 2, functional.mse_loss),
            lambda: plain.step((X, X[:4]), target=Y),
            lambda: plain.step(X, target=torch.cat([Y, Y[:4]])),
        ]
    )


def test_what_would_part_or_be_cut_otherwise_is_refused() -> None:
    assert_said(
        in_ranks(2, _of_what_is_trained_elsewhere)[0],
        [
            "'pairs' of layer 1 is a tensor of torch.sparse_coo, which does not move",
            "'weight' of layer 3 lies in the memory of 'weight' of layer 0",
            "'weight' of layer 3 lies in the memory of 'weight' of layer 0",
            "x: tensors of 8 and of 4 rows",
            "target: 12 rows for 8 of x",
        ],
    )


class Moody(nn.Module):
    """Another result in some runs, of which it takes a while to come."""

    def __init__(self, moods: set[int], length: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.moods, self.length = moods, length

    def forward(self, x: Tensor) -> Tensor:
        # What is its own would be put back, or seen.
        Moody.runs += 1
        return self.linear(x) * (2 if Moody.runs % self.length in self.moods else 1)

    runs = 0


def _moody(rank: int, world: int, layer: nn.Module) -> tuple[int, list[str]]:
    Moody.runs = 0
    layers = [*linears(1), layer]
    plan = json.loads(Plan.even(2, ["rank0"], 2).write())
    plan["stages"][0]["recompute"] = [1]
    schedule = Schedule(layers, 2, functional.mse_loss, plan=Plan.read(json.dumps(plan)))
    told = refusals([lambda: [schedule.step(X, target=Y) for _ in range(60)]])
    return schedule.steps, told


def test_a_layer_that_is_recomputed_otherwise_later_on_is_refused() -> None:
    ((steps, told),) = in_ranks(1, _moody, Moody({0}, 5))
    assert len(told) == 1 and "layer 1 gives another result when it runs again" in told[0], told
    assert steps > 0, "the first look saw nothing"
    # Each step runs it four times, in two of them it is looked at.
    ((steps, told),) = in_ranks(1, _moody, Moody({6}, 1000))
    assert told == [] and steps == 60, "once is no habit"


def _infinite(rank: int, world: int) -> tuple[bool, list[str]]:
    schedule = Schedule(linears(), 2, functional.mse_loss)
    schedule.step(X, target=Y)
    if rank == 0:
        next(iter(schedule._own()))[1].weight.grad[0, 0] = float("nan")  # type: ignore[union-attr,index]
    told = refusals([lambda: schedule.clip_grad_norm_(1.0, error_if_nonfinite=True)])
    schedule.clip_grad_norm_(1.0)
    return all(bool(part.grad.isnan().all()) for part in schedule.parameters() if part.grad is not None), told


def test_gradients_without_a_norm_become_what_torch_makes_of_them() -> None:
    for are_all_nan, told in in_ranks(2, _infinite):
        assert are_all_nan
        assert len(told) == 1 and "the norm of all gradients is nan" in told[0], told


def _shared_norm(rank: int, world: int, norm: nn.Module, stages: list[tuple[int, int, int]]) -> str:
    layers = linears(5)
    layers[1] = layers[3] = norm
    plan = scheduled(stages, 5, 1, 2, random.Random(1), 1)
    schedule = Schedule(layers, 2, functional.mse_loss, plan=plan)
    told = refusals([lambda: schedule.step(X, target=Y)])
    return told[0] if told else ""


def test_a_buffer_that_one_layer_changes_and_another_uses_is_refused() -> None:
    norm = nn.BatchNorm1d(WIDTH, affine=False)
    (told,) = in_ranks(1, _shared_norm, norm, [(0, 2, 0), (2, 5, 0)])
    assert "layer 1 changes the buffer 'running_mean' again and again" in told and "another layer uses as well" in told, told
    (told,) = in_ranks(1, _shared_norm, norm, [(0, 5, 0)])
    assert told == "", "one stage runs them as one process does"


class Tabled(nn.Module):
    """Adds a table by the length of x that grows when it is needed, and one that is worked out again each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(0))
        self.register_buffer("again", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.table.shape[0] < x.shape[0]:
            self.table = torch.arange(x.shape[0], dtype=x.dtype)
        self.again.copy_(torch.linspace(0, 1, WIDTH))
        return x + self.table[: x.shape[0], None] + self.again


class Masked(nn.Module):
    """Puts something else in the place of a tensor that it was given with others, each time."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        self.mask = self.mask + 1
        return x * self.mask.sign()


def _tables(rank: int, world: int) -> list[float]:
    layers = linears(7)
    layers[1] = layers[3] = Tabled()
    mask = torch.ones(WIDTH)
    layers[4], layers[6] = Masked(mask), Masked(mask)
    # What is no number in it is no change.
    padding = torch.full((WIDTH,), float("nan"))
    for at in (0, 2):
        layers[at].register_buffer("padding", padding)
    losses = []
    schedule = None if world == 1 else Schedule(layers, 2, functional.mse_loss, plan="1f1b")
    for rows in (4, 8, 8, 12, 12):
        x = torch.ones(rows, WIDTH)
        if schedule is None:
            with torch.no_grad():
                parts = [functional.mse_loss(nn.Sequential(*layers)(part), part) for part in x.chunk(2)]
            losses.append(torch.stack(parts).mean().item())
        else:
            losses.append(schedule.step(x, target=x).item())
    return losses


def test_a_table_that_layers_share_may_be_worked_out_by_each_rank() -> None:
    (expected,) = in_ranks(1, _tables)
    for losses in in_ranks(2, _tables):
        assert losses == pytest.approx(expected, rel=1e-5)


class Either(nn.Module):
    """Of what it gives, one part or the other wants a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return (y, y.detach()) if x[0, 0] > 0 else (y.detach(), y)


class Both(nn.Module):
    """Takes both."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(x) + 2 * y


def _in_turn(rank: int, world: int) -> list[float]:
    torch.manual_seed(4)
    layers = [Either(), Both()]
    optimizer: Any = SGD([part for layer in layers for part in layer.parameters()], lr=0.1)
    losses = []
    schedule = None if world == 1 else Schedule(layers, 4, functional.mse_loss)
    for step in range(6):
        x = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(step))
        # Of four microbatches, two take one way and two the other.
        x[[0, 8], 0], x[[4, 12], 0] = 1.0, -1.0
        if schedule is None:
            parts = [functional.mse_loss(layers[1](*layers[0](part)), part.flip(1)) for part in x.chunk(4)]
            loss = torch.stack(parts).mean()
            loss.backward()
        else:
            loss = schedule.step(x, target=x.flip(1))
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_what_wants_a_gradient_may_change_with_the_microbatch() -> None:
    (expected,) = in_ranks(1, _in_turn)
    for losses in in_ranks(2, _in_turn):
        assert losses == pytest.approx(expected, rel=1e-5)


def _sparse(rank: int, world: int, is_sparse: bool) -> list[float]:
    """Clipped, and moved in the middle of an accumulation."""
    torch.manual_seed(5)
    layers: list[nn.Module] = [nn.Embedding(9, WIDTH, sparse=is_sparse), *linears(3)]
    stages = ([(0, 2, 0), (2, 4, 1)], [(0, 2, 1), (2, 4, 0)])
    plans = [scheduled(of, 4, 2, 2, random.Random(at), 1 + at) for at, of in enumerate(stages)]
    schedule = Schedule(layers, 2, functional.mse_loss, plan=plans[0])
    optimizer = schedule.attach(SGD(schedule.parameters(), lr=0.1))
    x = torch.arange(8) % 5
    found = []
    for step in range(4):
        schedule.step(x, target=Y)
        if step == 1:
            schedule.change(plans[1])
        schedule.step(x, target=Y)
        if step == 1 and rank == 1:
            of_words = layers[0].weight.grad
            assert isinstance(of_words, Tensor) and of_words.is_sparse == is_sparse
        found.append(schedule.clip_grad_norm_(0.1).item())
        optimizer.step()
        optimizer.zero_grad()
    return found


def test_sparse_gradients_are_clipped_and_move() -> None:
    sparse, dense = (in_ranks(2, _sparse, is_sparse)[0] for is_sparse in (True, False))
    assert sparse == pytest.approx(dense, rel=1e-5) and len(set(sparse)) == 4


def _stored(rank: int, world: int) -> bytes:
    layers = linears(2)
    Schedule(layers, 2, functional.mse_loss).step(X, target=Y)
    kept = io.BytesIO()
    torch.save(nn.Sequential(*layers), kept)
    return kept.getvalue()


def test_a_model_that_was_stored_whole_is_loaded_without_us(tmp_path: Path) -> None:
    (kept,) = in_ranks(1, _stored)
    (tmp_path / "model.pt").write_bytes(kept)
    script = (
        "import sys, torch; sys.modules['adaptis'] = sys.modules['adaptis.split'] = None; "
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False); "
        "x = torch.ones(2, 8, requires_grad=True); model(x).sum().backward(); print(model[0].weight.grad.norm().item())"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0 and float(said.stdout) > 0, said.stderr


def _wrong(rank: int, world: int) -> list[str]:
    schedule = Schedule(linears(), 2, functional.mse_loss)
    lazy: list[nn.Module] = [nn.LazyLinear(WIDTH) for _ in range(4)]
    loose: Any = Schedule

    with torch.no_grad():
        schedule.step(X, target=Y)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in schedule.parameters())

    def in_inference() -> None:
        with torch.inference_mode():
            schedule.step(X, target=Y)

    calls: list[Callable[[], Any]] = [
        lambda: loose(nn.Linear(2, 2), 2, functional.mse_loss),
        lambda: loose({"a": nn.Linear(2, 2)}, 2, functional.mse_loss),
        lambda: loose([nn.Linear(2, 2), 3], 2, functional.mse_loss),
        lambda: loose(lazy, 2, functional.mse_loss),
        lambda: loose(linears(), 2, "mse"),
        lambda: loose(linears(), 2, nn.MSELoss),
        lambda: loose(linears(), 2, functional.mse_loss, seed=1.5),
        lambda: loose(linears(), 2, functional.mse_loss, device="gpu"),
        lambda: loose(linears(), 2, functional.mse_loss, coordinator=5),
        lambda: loose(linears(), 2, functional.mse_loss, plan=3),
        lambda: schedule.attach(None),  # type: ignore[type-var]
        lambda: schedule.change("zb-v"),  # type: ignore[arg-type]
        lambda: schedule.step((), target=Y),
        lambda: schedule.step(X, target=()),
        lambda: schedule.step(5, target=Y),
        lambda: schedule.step(X.clone().requires_grad_() * 2, target=Y),
        lambda: schedule.step(nn.Parameter(X.clone()), target=Y),
        in_inference,
        lambda: schedule.evaluate((), target=()),
        lambda: schedule.restore({"model": schedule.state_dict(), "optimizers": 3, "steps": 0}),
        lambda: Plan.even(10**9, ["rank0"], 2),
    ]
    told = refusals(calls)
    # None of these leaves anything behind.
    schedule.step(X, target=Y)
    return told


def test_wrong_arguments_are_named() -> None:
    assert_said(
        in_ranks(1, _wrong)[0],
        [
            "layers: a list of modules in their order, not a Linear",
            "layers: a list of modules in their order, not a dict",
            "layers: number 1 is a int",
            "layers: number 0 has parameters of no shape yet",
            "loss_fn: a function of the output and the target, not a str",
            "loss_fn: MSELoss is a class; give one of its kind",
            "seed: 1.5 is not a whole number",
            "device: 'gpu' is none of torch's",
            "coordinator: an address",
            "plan: a Plan or the name of a schedule, not a int",
            "attach: an optimizer of torch or a GradScaler, not a NoneType",
            "change: a Plan, not a str",
            "x: an empty tuple",
            "target: an empty tuple",
            "x: a tensor or a tuple of tensors with a first dimension to cut, not a int",
            "x: it is what others were made into that are trained",
            "x: it is what others were made into that are trained",
            "torch.inference_mode forbids",
            "x: an empty tuple",
            "restore: optimizers is a list of what Optimizer.state_dict gives",
            "layers: 1000000000 of them",
        ],
    )


def _half(rank: int, world: int) -> list[str]:
    schedule = Schedule(linears(), 2, functional.mse_loss, coordinator="tcp://127.0.0.1:1" if rank == 1 else "")
    return said(lambda: [schedule.step(X, target=Y) for _ in range(4)])


def test_that_some_ranks_lack_a_coordinator_is_said_once() -> None:
    assert in_ranks(2, _half) == [
        [],
        ["this job is not measured: ranks [0] have no coordinator; ADAPTIS_COORDINATOR is to be set on all"],
    ]


def _tied(rank: int, world: int) -> list[str]:
    layers = linears(6)
    layers[5].weight = layers[0].weight
    try:
        Schedule(layers, 4, functional.mse_loss, plan="1f1b")
    except PlanError as error:
        return [str(error), str(layers[1].forward.__qualname__)]
    return []


def test_a_named_schedule_that_parts_tied_layers_says_so() -> None:
    for told in in_ranks(2, _tied):
        assert "share parameters, as of [[0, 5]] some do" in told[0], told
        assert told[1] == "Linear.forward", "the layers are as they were"
