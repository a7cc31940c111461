"""What a rank holds, and what a change of plan costs."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, AdamW

from adaptis import Plan, Schedule
from adaptis.exchange import GRADIENTS_MAX
from adaptis.state import Mover
from models import WIDTH, X, Y, batch, linears, loss_fn, model
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


class _Listing(SGD):
    """Keeps a list of tensors for each parameter, as optimizers with factors do."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for part in group["params"]:
                if part.grad is not None:
                    kept = self.state[part].setdefault("factors", [torch.zeros(1), {"most": torch.zeros(1)}])
                    kept[0] += part.grad.abs().sum()
                    kept[1]["most"] = torch.maximum(kept[1]["most"], part.grad.abs().max())


def _swapped(rank: int, world: int, changes: bool) -> tuple[list[int], dict[str, list[float]]]:
    """Two ranks that change places: how many layers each holds when one comes, and what its optimizer keeps in the end."""
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH) for _ in range(8)]
    names = ["rank0", "rank1"]
    schedule = Schedule(layers, 2, functional.mse_loss, plan=Plan.even(8, names, 2))
    optimizer = schedule.attach(_Listing(schedule.parameters(), lr=0.01))
    held: list[int] = []
    receive = Mover._receive

    def counted(self: Mover, *arguments: Any) -> int:
        held.append(sum(not is_blank(layer.weight) for layer in layers))
        return receive(self, *arguments)

    Mover._receive = counted  # type: ignore[method-assign]
    for step in range(3):
        if step == 1 and changes:
            plan = json.loads(schedule.plan.write())
            plan["epoch"] = 2
            for stage in plan["stages"]:
                stage["device"] = 1 - stage["device"]
            plan["programs"].reverse()
            schedule.change(Plan.read(json.dumps(plan)))
        schedule.step(X, target=Y)
        optimizer.step()
        optimizer.zero_grad()
    Mover._receive = receive  # type: ignore[method-assign]
    kept = {
        name: [state["factors"][0].item(), state["factors"][1]["most"].item()]
        for name, part in schedule.named_parameters()
        if (state := optimizer.state.get(part))
    }
    return held, kept


def test_a_layer_is_given_up_before_the_next_one_comes() -> None:
    still, changed = in_ranks(2, _swapped, False), in_ranks(2, _swapped, True)
    assert [held for held, _ in changed] == [[3, 3, 3, 3]] * 2
    assert [kept for _, kept in changed] == [kept for _, kept in reversed(still)]


def _unanswered(rank: int, world: int) -> list[int]:
    """Of each step, the most bundles that were sent and not let go of."""
    schedule = Schedule(linears(), 8, functional.mse_loss, plan="1f1b")
    exchange, most = schedule._exchange, []
    send = exchange.send

    def counted(*arguments: Any) -> None:
        send(*arguments)
        most[-1] = max(most[-1], sum(map(bool, exchange._unanswered.values())))

    exchange.send = counted  # type: ignore[method-assign]
    for _ in range(3):
        most.append(0)
        schedule.step(X, target=Y)
        assert not exchange._unanswered
    return most


def test_what_was_sent_is_let_go_of_when_its_gradient_comes() -> None:
    first, _ = in_ranks(2, _unanswered)
    assert max(first) <= 2, "as many as are in flight under 1F1B, of 8 microbatches"


def _gradients_on_their_way(rank: int, world: int) -> int:
    """The most gradients that were sent and not let go of."""
    x = torch.ones(64, WIDTH)
    schedule = Schedule(linears(), 32, functional.mse_loss, plan="gpipe")
    exchange, most = schedule._exchange, 0
    send = exchange.send

    def counted(*arguments: Any) -> None:
        nonlocal most
        send(*arguments)
        most = max(most, len(exchange._sent))

    # Of the first step nothing is known before.
    schedule.step(x, target=x)
    exchange.send = counted  # type: ignore[method-assign]
    schedule.step(x, target=x)
    return most


def test_of_gradients_that_hosts_carry_few_are_held() -> None:
    assert in_ranks(2, _gradients_on_their_way) == [0, GRADIENTS_MAX]


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
