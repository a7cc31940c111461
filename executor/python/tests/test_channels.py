"""Without tags, with sends that end when they are received, and with a stream for each communicator, as NCCL has it: any
plan computes the same, and goes over to any other."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import AdamW

import rendezvous
from adaptis import Plan, Schedule, channels
from adaptis.state import rounds
from models import batch, loss_fn, model, reference
from plans import random_plan, scheduled
from ranks import in_ranks
from test_conformance import own_state

STEPS = 3
CHANGES = 4


def _trained(rank: int, world: int, seeds: list[int]) -> list[Any]:
    """For each seed: losses of steps under one plan after another, and the state at the end."""
    group = rendezvous.group()
    results = []
    for seed in seeds:
        microbatches = [1, 2, 4][seed % 3]
        layers = model()
        schedule = Schedule(
            layers, microbatches, loss_fn, plan=random_plan(9, world, microbatches, 100 * seed), group=group
        )
        assert type(schedule.channels) is channels.Ordered
        optimizer = schedule.attach(AdamW(schedule.parameters(), lr=0.01))
        losses = []
        for step in range(CHANGES * STEPS):
            if step and step % STEPS == 0:
                schedule.change(random_plan(9, world, microbatches, 100 * seed + step, epoch=1 + step))
            x, y = batch(step)
            losses.append(schedule.step(x, target=y).item())
            schedule.clip_grad_norm_(1e9)
            optimizer.step()
            optimizer.zero_grad()
        x, y = batch(0)
        losses.append(schedule.evaluate(x, target=y).item())
        whole = schedule.whole_checkpoint()
        assert (whole is None) == (rank > 0)
        results.append((losses, own_state(schedule)))
    return results


@pytest.mark.parametrize("world", [2, 4])
def test_any_plan_and_any_change_computes_what_one_process_computes(world: int) -> None:
    seeds = list(range(10 * world, 10 * world + 8))
    results = in_ranks(world, _trained, seeds)
    expected = {count: reference(CHANGES * STEPS, count) for count in (1, 2, 4)}
    for at, seed in enumerate(seeds):
        losses, layers = expected[[1, 2, 4][seed % 3]]
        whole = nn.ModuleList(layers).state_dict()
        seen: dict[str, torch.Tensor] = {}
        for rank in range(world):
            found, state = results[rank][at]
            assert found[:-1] == pytest.approx(losses, rel=1e-5), f"plan {seed}"
            assert found[-1] == results[0][at][0][-1] < losses[0], "an evaluation says the same on all ranks"
            seen.update(state)
        assert seen.keys() == whole.keys()
        for name, value in whole.items():
            error = (seen[name] - value).norm() / value.norm().clamp_min(1e-6)
            assert error < 1e-5, f"plan {seed}: {name} is off by {error:.1e}"


def _out_of_order(rank: int, world: int) -> list[str]:
    """What a communicator without tags says of tensors that are asked for in another order."""
    group = rendezvous.group()
    tensors = [torch.ones(3), torch.ones(2)]
    if rank == 0:
        works = [dist.isend(tensor, group=group, group_dst=1) for tensor in tensors]
    else:
        works = [dist.irecv(tensor, group=group, group_src=0) for tensor in reversed(tensors)]
    said = []
    for work in works:
        try:
            work.wait()
        except RuntimeError as error:
            said.append(str(error))
    return said


def test_the_stand_in_tells_tensors_that_come_in_another_order() -> None:
    said = in_ranks(2, _out_of_order)
    assert said == [[], ["12 bytes came, 8 were asked for", "8 bytes came, 12 were asked for"]]


def _reopened(rank: int, world: int) -> list[float]:
    """What comes from each other rank, over all ways, some of which were closed in between."""
    made = channels.of(rendezvous.group(), torch.device("cpu"))
    assert isinstance(made, channels.Ordered)
    every = [(sender, to) for sender in range(world) for to in range(world) if sender != to]
    for pairs in (every, every[:2]):
        made.open(pairs)
        made.close_but(pairs[:1])
    assert set(made._ways) == ({every[0]} if rank in every[0] else set())
    made.open(reversed(every))
    others = [other for other in range(world) if other != rank]
    blanks = [torch.zeros(2, dtype=torch.float64) for _ in others]
    works = [made.receive(blank, other, 0) for blank, other in zip(blanks, others)]
    nothing = [made.receive(torch.empty(0), other, 0) for other in others]
    for other in others:
        works.append(made.send(torch.full((2,), rank + 0.5, dtype=torch.float64), other, 0))
        nothing.append(made.send(torch.empty(0), other, 0))
    for work in works + nothing:
        work.wait()
    return [float(value) for blank in blanks for value in blank]


def test_a_way_may_be_closed_and_made_again() -> None:
    assert in_ranks(3, _reopened) == [
        [other + 0.5 for other in range(3) if other != rank for _ in range(2)] for rank in range(3)
    ]


def _failed_on_the_way(rank: int, world: int) -> list[str]:
    """What is said of a change of plan that fails on every rank, and of a step after it."""
    schedule = Schedule([nn.Linear(4, 4) for _ in range(4)], 2, nn.functional.mse_loss, plan=_chain([0, 1, 0, 1], 1))
    x = torch.ones(4, 4)
    schedule.step(x, target=x)

    def full(*_: Any) -> int:
        raise MemoryError("no room for a layer")

    schedule._mover.move = full  # type: ignore[method-assign]
    schedule.change(_chain([1, 0, 1, 0], 2))
    said = []
    for _ in range(2):
        try:
            schedule.step(x, target=x)
        except (MemoryError, RuntimeError) as error:
            said.append(str(error))
    return said


def test_no_step_follows_a_change_of_plan_that_failed_on_its_way() -> None:
    for first, second in in_ranks(2, _failed_on_the_way):
        assert first == "no room for a layer"
        assert "an earlier step failed on its way" in second


def _chain(places: list[int], epoch: int) -> Plan:
    """A layer on each of these ranks."""
    stages = [(at, at + 1, rank) for at, rank in enumerate(places)]
    return scheduled(stages, len(places), max(places) + 1, 2, random.Random(epoch), epoch)


def _wandered(rank: int, world: int) -> list[set[tuple[int, int]]]:
    """The ways that are open after each of several changes of plan."""
    layers = [nn.Linear(4, 4) for _ in range(4)]
    orders = [[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2]]
    schedule = Schedule(layers, 2, nn.functional.mse_loss, plan=_chain(orders[0], 1), group=rendezvous.group())
    assert isinstance(schedule.channels, channels.Ordered)
    x, found = torch.ones(4, 4), []
    for epoch, order in enumerate(orders, start=1):
        if epoch > 1:
            schedule.change(_chain(order, epoch))
        schedule.step(x, target=x)
        found.append({pair for pair in schedule.channels._ways if pair[0] == rank})
    return found


def test_ways_that_neither_this_plan_nor_the_one_before_needs_are_closed() -> None:
    first = in_ranks(4, _wandered)[0]
    assert first == [{(0, 1)}, {(0, 1), (0, 2)}, {(0, 2), (0, 3)}]


class _Failing(nn.Linear):
    """Fails in a call."""

    calls_left = 1 << 30

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise ArithmeticError("out of luck")
        return super().forward(x)


def _failed(rank: int, world: int, is_ordered: bool) -> list[str]:
    """What is said of steps after one that failed on every rank, where some tensors were sent already."""
    group = rendezvous.group() if is_ordered else None
    layers: list[Any] = [_Failing(4, 4) for _ in range(2)]
    schedule = Schedule(layers, 4, torch.nn.functional.mse_loss, plan="gpipe", group=group)
    x = torch.ones(4, 4)
    schedule.step(x, target=x)
    said = []
    for left in (2 - rank, 1 << 30):
        layers[rank].calls_left = left
        for run in ("step", "evaluate"):
            try:
                getattr(schedule, run)(x, target=x)
            except (ArithmeticError, RuntimeError) as error:
                said.append(str(error))
    return said


@pytest.mark.parametrize("is_ordered", [False, True])
def test_no_step_follows_one_that_failed_on_its_way(is_ordered: bool) -> None:
    for first, *others in in_ranks(2, _failed, is_ordered):
        assert first == "out of luck"
        assert len(others) == 3 and all("an earlier step failed on its way" in text for text in others)


def _failed_alone(rank: int, world: int) -> float:
    layers: list[Any] = [_Failing(4, 4) for _ in range(2)]
    schedule = Schedule(layers, 2, torch.nn.functional.mse_loss)
    x = torch.ones(4, 4)
    layers[1].calls_left = 1
    with pytest.raises(ArithmeticError):
        schedule.step(x, target=x)
    layers[1].calls_left = 1 << 30
    return schedule.step(x, target=x).item()


def test_one_rank_alone_goes_on() -> None:
    assert in_ranks(1, _failed_alone)[0] > 0


def test_in_a_round_a_rank_sends_one_layer_and_receives_one() -> None:
    shift = [(layer, layer, layer + 1) for layer in range(7)]
    assert rounds(shift) == [shift], "all at once"
    plans = [(at, at % 3, (at * 7 + 1) % 4) for at in range(30) if at % 3 != (at * 7 + 1) % 4]
    found = rounds(plans)
    assert sorted(move for among in found for move in among) == sorted(plans)
    for among in found:
        for side in (1, 2):
            ranks = [move[side] for move in among]
            assert len(ranks) == len(set(ranks))
    for side in (1, 2):
        most = max(sum(move[side] == rank for move in plans) for rank in range(4))
        assert len(found) <= 2 * most


def _refused(rank: int, world: int, device: str) -> str:
    try:
        Schedule([nn.Linear(2, 2)], 1, torch.nn.functional.mse_loss, device=device)
    except RuntimeError as error:
        return str(error)
    return "taken"


def test_what_a_group_can_t_carry_is_named() -> None:
    (said,) = in_ranks(1, _refused, "cuda")
    assert said == (
        "group: layers are on cuda, for which its backend is gloo; a schedule needs nccl there, as of "
        "init_process_group('cpu:gloo,cuda:nccl')"
    )
    (said,) = in_ranks(1, _refused, "meta")
    assert said == "layers: they are on meta; a schedule runs on cpu and cuda"
