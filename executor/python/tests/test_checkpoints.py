"""A checkpoint does not depend on the plan: training goes on from it to the bit, wherever its layers are then."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save, torch_save_to_dcp
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from adaptis import Schedule
from models import WIDTH, X, Y, batch, loss_fn, model, through
from plans import random_plan
from ranks import in_ranks
from refusing import assert_said, refusals
from test_conformance import own_state
from test_models import tied
from test_state import is_blank

STEPS, SAVED = 6, 3


class Job:
    """A training with dropout, two groups of parameters and a learning rate that falls."""

    def __init__(self, world: int, seed: int, dropout: float) -> None:
        self.schedule = Schedule(model(seed, dropout), 4, loss_fn, plan=random_plan(9, world, 4, 10 + seed), seed=3)
        own = dict(self.schedule.named_parameters())
        decayed = [parameter for parameter in own.values() if parameter.dim() > 1]
        others = [parameter for parameter in own.values() if parameter.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = self.schedule.attach(AdamW(groups, lr=0.01))
        self.rates = CosineAnnealingLR(self.optimizer, STEPS)

    def step(self) -> str:
        x, y = batch(self.schedule.steps)
        loss = self.schedule.step(x, target=y)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.rates.step()
        return str(loss.item().hex())


def _begun(rank: int, world: int, dir: Path, dropout: float) -> tuple[list[str], dict[str, Any]]:
    """Saves in the middle, in every way, and changes the plan after it."""
    job = Job(world, 0, dropout)
    losses = []
    for step in range(STEPS):
        if step == SAVED:
            job.schedule.save(dir / "shards")
            whole = job.schedule.whole_checkpoint()
            assert (whole is not None) == (rank == 0)
            if whole is not None:
                torch.save({**whole, "rates": job.rates.state_dict()}, dir / "whole.pt")
            torch.save(job.schedule.checkpoint(), dir / f"part{rank}.pt")
            job.schedule.change(random_plan(9, world, 4, 5, epoch=2))
        losses.append(job.step())
    return losses, own_state(job.schedule)


def _continued(rank: int, world: int, dir: Path, way: str, dropout: float) -> tuple[list[str], dict[str, Any]]:
    job = Job(world, 1 + world, dropout)
    saved = torch.load(dir / "whole.pt")
    if way == "whole":
        job.schedule.restore(saved)
    else:
        job.schedule.load(dir / way)
    job.rates.load_state_dict(saved["rates"])
    kept = [parameter for parameter in job.schedule.parameters() if job.optimizer.state.get(parameter)]
    assert not any(is_blank(parameter) for parameter in kept), "what other layers need is not kept"
    return [job.step() for _ in range(SAVED, STEPS)], own_state(job.schedule)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], dict[str, Any]]:
    """A run of three ranks: where it was saved, its losses, and its end."""
    dir = tmp_path_factory.mktemp("begun")
    results = in_ranks(3, _begun, dir, 0.2)
    torch_save_to_dcp(dir / "whole.pt", dir / "converted")
    state: dict[str, Any] = {}
    for _, own in results:
        state.update(own)
    return dir, results[0][0], state


@pytest.mark.parametrize("world, way", [(1, "shards"), (2, "whole"), (2, "shards"), (4, "shards"), (3, "converted")])
def test_training_goes_on_to_the_bit(begun: tuple[Path, list[str], dict[str, Any]], world: int, way: str) -> None:
    dir, losses, state = begun
    seen: dict[str, Any] = {}
    for found, own in in_ranks(world, _continued, dir, way, 0.2):
        assert found == losses[SAVED:]
        seen.update(own)
    assert seen.keys() == state.keys()
    assert all(torch.equal(seen[name], state[name]) for name in state)


class Noting(nn.Module):
    """Keeps something besides tensors, which is another kind of thing before it has run."""

    def __init__(self, notes: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.notes = notes

    def forward(self, x: torch.Tensor) -> Any:
        return self.linear(x)

    def get_extra_state(self) -> Any:
        return self.notes

    def set_extra_state(self, state: Any) -> None:
        self.notes = state


class Listing(SGD):
    """Keeps what has nothing in it for each parameter."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for part in group["params"]:
                if part.grad is not None:
                    self.state[part].setdefault("none", {})
                    assert self.state[part]["none"] == {}
                    self.state[part].setdefault("seen", []).append(1)
                    self.state[part].setdefault("also", [])
                    self.state[part].setdefault("by step", {7: 1.0})


NOTES: list[tuple[Any, Any]] = [
    ({"scale": 2.0}, {}),
    ({}, {"scale": 1.0}),
    ({"most": [1, {"a": 2}]}, {"most": []}),
    ({0: 1, True: [], (1, 2): None, torch.float32: {}}, {}),
]


def _noted(rank: int, world: int, dir: Path, loads: bool) -> list[str]:
    """What modules and the optimizer keep, of layers that are here."""
    schedule = Schedule([Noting(pair[loads]) for pair in NOTES], 2, mse_loss)
    optimizer = schedule.attach(Listing(schedule.parameters(), lr=0.1, momentum=0.9))
    if loads:
        schedule.load(dir / "noted")
    schedule.step(X, target=Y)
    optimizer.step()
    if not loads:
        schedule.save(dir / "noted")
        # Another step, as after it was loaded.
        optimizer.zero_grad()
        schedule.step(X, target=Y)
        optimizer.step()
    names = {id(part): name for name, part in schedule.named_parameters()}
    kept = [f"{names[id(part)]} {state['seen']} {state['also']} {state['by step']}" for part, state in optimizer.state.items()]
    return [f"{at} {layer.notes}" for at, layer in schedule._own()] + kept


def test_what_is_no_tensor_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    saved, loaded = in_ranks(2, _noted, tmp_path, False), in_ranks(3, _noted, tmp_path, True)
    assert sorted(sum(loaded, [])) == sorted(sum(saved, []))
    assert "1 {}" in sum(loaded, [])


def _plain() -> tuple[nn.ModuleList, AdamW]:
    whole = nn.ModuleList(model(7))
    decayed = [parameter for parameter in whole.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in whole.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return whole, AdamW(groups, lr=0.01)


def _plain_step(whole: nn.ModuleList, optimizer: AdamW, step: int) -> float:
    x, y = batch(step)
    total = 0.0
    for part, target in zip(x.chunk(4), y.chunk(4)):
        loss = loss_fn(through(list(whole), part), target)
        (loss / 4).backward()
        total += loss.item() / 4
    optimizer.step()
    optimizer.zero_grad()
    return total


def test_a_plain_script_goes_on_from_it_and_it_from_a_plain_script(tmp_path: Path) -> None:
    results = in_ranks(3, _begun, tmp_path, 0.0)
    losses = [float.fromhex(loss) for loss in results[0][0]]
    dcp_to_torch_save(tmp_path / "shards", tmp_path / "shards.pt")
    for file in ("whole.pt", "shards.pt"):
        # As every script does it.
        saved = torch.load(tmp_path / file)
        whole, optimizer = _plain()
        whole.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizers"][0])
        rates = CosineAnnealingLR(optimizer, STEPS)
        rates.load_state_dict(torch.load(tmp_path / "whole.pt")["rates"])
        of_optimizer = saved["optimizers"][0]
        for parameter, name in zip(optimizer.param_groups[0]["params"], of_optimizer["param_groups"][0]["params"]):
            assert parameter is whole.get_parameter(name)
            kept = of_optimizer["state"][name]
            assert all(torch.equal(value, kept[detail]) for detail, value in optimizer.state[parameter].items())
        for step in range(SAVED, STEPS):
            assert _plain_step(whole, optimizer, step) == pytest.approx(losses[step], rel=1e-5)
            rates.step()
    whole, optimizer = _plain()
    rates = CosineAnnealingLR(optimizer, STEPS)
    for step in range(SAVED):
        _plain_step(whole, optimizer, step)
        rates.step()
    state = {"model": whole.state_dict(), "optimizers": [optimizer.state_dict()], "steps": SAVED}
    torch.save({**state, "rates": rates.state_dict()}, tmp_path / "whole.pt")
    expected = []
    for step in range(SAVED, STEPS):
        expected.append(_plain_step(whole, optimizer, step))
        rates.step()
    for found, _ in in_ranks(2, _continued, tmp_path, "whole", 0.0):
        assert [float.fromhex(loss) for loss in found] == pytest.approx(expected, rel=1e-5)


def _tied(rank: int, world: int, dir: Path) -> list[str]:
    """Layers that share a parameter, and an optimizer that keeps nothing yet."""
    schedule = Schedule(tied(), 2, loss_fn, plan=random_plan(5, world, 2, 8, 1, [[0, 4]]))
    optimizer = schedule.attach(SGD(schedule.parameters(), lr=0.1, momentum=0.9))
    if world == 2:
        schedule.save(dir)
    else:
        with torch.no_grad():
            for parameter in schedule.parameters():
                parameter.zero_()
        schedule.load(dir)
        assert not optimizer.state
    losses = []
    for step in range(2):
        x, y = batch(step)
        losses.append(str(schedule.step(x, target=y).item().hex()))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_before_the_first_step_and_with_tied_layers(tmp_path: Path) -> None:
    (losses, _), (again,) = in_ranks(2, _tied, tmp_path), in_ranks(1, _tied, tmp_path)
    assert losses == again


def _refused(rank: int, world: int, dir: Path) -> list[str]:
    schedule = Schedule(model(1), 4, loss_fn)
    optimizer = schedule.attach(AdamW(schedule.parameters()))
    before = own_state(schedule)
    whole, mine = torch.load(dir / "whole.pt"), schedule.checkpoint()
    other = {**whole, "model": {**whole["model"], "9.weight": torch.zeros(1)}}
    extra = {**whole, "model": {**whole["model"], f"{8 * rank}.extra": torch.zeros(1)}}
    names = [name for group in whole["optimizers"][0]["param_groups"] for name in group["params"]]
    renamed = {"state": {}, "param_groups": [{"lr": 0.1, "params": ["9.weight", *names[1:]]}]}
    states = (
        {"model": whole["model"]},
        torch.load(dir / f"part{(rank + 1) % 2}.pt"),
        other,
        extra,
        {**mine, "model": {**mine["model"], **({} if rank else {"0.weight": torch.zeros(1)})}},
        whole,
        {**whole, "optimizers": []},
        {**whole, "optimizers": [renamed]},
    )
    texts = refusals(partial(schedule.restore, state) for state in states)
    assert all(torch.equal(value, before[name]) for name, value in own_state(schedule).items())
    assert not optimizer.state and schedule.steps == 0
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    return texts + refusals([schedule.checkpoint])


def test_what_does_not_fit_is_refused_and_changes_nothing(begun: tuple[Path, list[str], dict[str, Any]]) -> None:
    expected = [
        "the checkpoint has no 'optimizers'",
        "a rank needs the parts of all",
        "the checkpoint has a layer 9, the model has 9 layers",
        ".extra, which layer",
        "restore: 0.weight is of shape|restore: ranks [0] can't take this checkpoint",
        "groups of [10, 13] parameters, this one of [23]",
        "the checkpoint has 0 optimizers, 1 are attached",
        "groups its parameters otherwise: ['0.weight', '9.weight']",
        "that is in none of the schedule's layers",
    ]
    for texts in in_ranks(2, _refused, begun[0]):
        assert_said(texts, expected)


def _cut_off(rank: int, world: int, dir: Path) -> None:
    """Reads a checkpoint whose files end too early."""
    schedule = Schedule(model(1), 4, loss_fn)
    schedule.save(dir)
    dist.barrier()
    if rank == 0:
        for file in dir.glob("*.distcp"):
            os.truncate(file, file.stat().st_size // 2)
    dist.barrier()
    with torch.no_grad():
        for part in schedule.state_dict().values():
            part.add_(1)
    before = {name: value.clone() for name, value in own_state(schedule).items()}
    with pytest.raises(BaseException, match="(?i)checkpoint|read|archive|file"):
        schedule.load(dir)
    assert all(torch.equal(value, before[name]) for name, value in own_state(schedule).items())


def test_what_can_not_be_read_changes_nothing(tmp_path: Path) -> None:
    in_ranks(2, _cut_off, tmp_path)


class Choosy(nn.Linear):
    """Does not take its state on one rank."""

    takes_it = True

    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        if not self.takes_it:
            raise ValueError("this version is not supported")


def _half_way(rank: int, world: int, dir: Path) -> list[str]:
    layers = [Choosy(WIDTH, WIDTH) for _ in range(2)]
    schedule = Schedule(layers, 2, mse_loss)
    part = schedule.checkpoint()
    schedule.save(dir)
    layers[1].takes_it = False
    texts = refusals([lambda: schedule.restore(part), lambda: schedule.step(X, target=Y)])
    layers[1].takes_it = True
    schedule.restore(part)
    schedule.step(X, target=Y)
    # On a machine that has not got it.
    with pytest.raises((OSError, RuntimeError)) as refused:
        schedule.load(dir if rank == 0 else dir / "elsewhere")
    return [*texts, str(refused.value)]


def test_all_ranks_take_a_checkpoint_or_none_does(tmp_path: Path) -> None:
    refused = "an earlier restore failed half-way"
    first, second = in_ranks(2, _half_way, tmp_path / "saved")
    assert_said(first, ["restore: ranks [1] failed half-way", refused, "load: ranks [1] can't read this checkpoint"])
    assert_said(second, ["this version is not supported", refused, "No such file"])
