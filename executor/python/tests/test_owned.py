"""What is kept for later is nobody else's: gradients that debts hold, what layers give, the script's own random numbers."""

from __future__ import annotations

import json
import random
from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from adaptis import Plan, Schedule
from models import WIDTH, X, Y, linears
from plans import scheduled
from ranks import in_ranks
from refusing import assert_said, refusals, said

MICROBATCHES = 4
ORDERS = {
    "B": [f"0{kind}{at}" for at in range(MICROBATCHES) for kind in "FB"],
    "late W": [f"0{kind}{at}" for kind in "FIW" for at in range(MICROBATCHES)],
}


class Placed(nn.Module):
    """Words and places, as a GPT has them: the gradient of the places is that of the output, but for a dimension of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WIDTH, WIDTH)
        self.places = nn.Parameter(torch.randn(3, WIDTH))

    def forward(self, x: Tensor) -> Any:
        return self.words(x) + self.places[None]


class Shifted(nn.Module):
    """The same beside a product or a convolution."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.shift = nn.Parameter(torch.randn(3, WIDTH))

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) + self.shift.unsqueeze(0)


class Doubling(torch.autograd.Function):
    """Doubles the gradient in place, as some extensions do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0].mul_(2)


class Doubled(nn.Module):
    """Behind a product whose gradient is then another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        # Later in the backward, as what is earlier in the forward.
        doubled = Doubling.apply(x)
        return self.inner(x) + doubled


class Halving(torch.autograd.Function):
    """Halves the gradient by its data, which nothing tells."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradients[0].data.mul_(0.5)
        return gradients[0]


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        halved = Halving.apply(x)
        return self.inner(x) + halved


class Trailing(nn.Module):
    """Keeps its first output, and moves it on by each of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.mean: Any = None

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        if self.mean is None:
            self.mean = y.detach()
        else:
            self.mean.lerp_(y.detach(), 0.5)
        return y


class Half(nn.Module):
    """Uses its parts twice, and trains some of them in one of these uses."""

    def __init__(self, inner: nn.Module, frozen: str) -> None:
        super().__init__()
        self.inner = inner
        self.frozen = frozen

    def forward(self, x: Tensor) -> Any:
        part = getattr(self.inner, self.frozen)
        part.requires_grad_(False)
        y = self.inner(x)
        part.requires_grad_(True)
        return y + self.inner(torch.tanh(x))


class Averaging(nn.Module):
    """Gives an average along that it changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.mean.mul_(0.5).add_(x.mean((0, 1)))
        return self.linear(x), self.mean


class Using(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mean: Tensor) -> Any:
        return self.linear(x * (1 + mean))


def _linear() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


MODELS: dict[str, Callable[[], list[nn.Module]]] = {
    "words": lambda: [Placed(), _linear()],
    "product": lambda: [_linear(), Shifted(_linear()), _linear()],
    "convolution": lambda: [Shifted(nn.Conv1d(3, 3, 1)), _linear()],
    "in place": lambda: [_linear(), Doubled(), _linear()],
    "average": lambda: [Averaging(), Using()],
    "by data": lambda: [_linear(), Halved(), _linear()],
    "trailing": lambda: [_linear(), Trailing(), nn.Tanh(), _linear()],
    "half a product": lambda: [_linear(), Half(_linear(), "bias"), _linear()],
    "half a convolution": lambda: [_linear(), Half(nn.Conv1d(3, 3, 1), "weight"), _linear()],
}


def _data(step: int, name: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(50 + step)
    x = torch.randint(WIDTH, (MICROBATCHES, 3)) if name == "words" else torch.randn(MICROBATCHES, 3, WIDTH)
    return x, torch.randn(MICROBATCHES, 3, WIDTH)


def _alone(name: str) -> list[str]:
    """Gradients of each step without a schedule."""
    torch.manual_seed(4)
    layers = MODELS[name]()
    found = []
    for step in range(6):
        nn.ModuleList(layers).zero_grad()
        x, y = _data(step, name)
        for part, target in zip(x.split(1), y.split(1)):
            value: Any = (part,)
            for layer in layers:
                value = layer(*value)
                value = value if isinstance(value, tuple) else (value,)
            (functional.mse_loss(value[0], target) / MICROBATCHES).backward()
        found.append(_gradients(layers))
    return found


def _gradients(layers: list[nn.Module]) -> str:
    return repr([part.grad for part in nn.ModuleList(layers).parameters()])


def _plan(layers: int, order: str, epoch: int) -> Plan:
    """An order of one rank."""
    plan = json.loads(scheduled([(0, layers, 0)], layers, 1, MICROBATCHES, random.Random(0), epoch).write())
    plan["programs"], plan["stages"][0]["recompute"] = [ORDERS[order]], []
    return Plan.read(json.dumps(plan))


def _scheduled(rank: int, world: int, name: str, *orders: str) -> list[str]:
    """The same under orders of one rank, each of them for some steps."""
    torch.manual_seed(4)
    layers = MODELS[name]()
    plans = [_plan(len(layers), order, epoch) for epoch, order in enumerate(orders, start=1)]
    schedule = Schedule(layers, MICROBATCHES, functional.mse_loss, plan=plans[0])
    found = []
    for step in range(6):
        if step > 0 and step * len(plans) % 6 == 0:
            schedule.change(plans[step * len(plans) // 6])
        nn.ModuleList(layers).zero_grad()
        x, y = _data(step, name)
        schedule.step(x, target=y)
        found.append(_gradients(layers))
    return found


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_held_for_later_is_what_it_was(name: str, order: str) -> None:
    assert in_ranks(1, _scheduled, name, order) == [_alone(name)]


@pytest.mark.parametrize("name", MODELS)
def test_it_is_so_where_an_order_is_changed_that_holds_nothing_for_later(name: str) -> None:
    assert in_ranks(1, _scheduled, name, "B", "late W") == [_alone(name)]


def _sent(rank: int, world: int, name: str) -> list[float]:
    torch.manual_seed(4)
    schedule = Schedule(MODELS[name](), MICROBATCHES, functional.mse_loss, plan="gpipe")
    return [schedule.step(x, target=y).item() for x, y in (_data(step, name) for step in range(3))]


@pytest.mark.parametrize("name", ["average", "trailing"])
def test_what_is_sent_stays_as_it_was(name: str) -> None:
    one, two = in_ranks(1, _sent, name), in_ranks(2, _sent, name)
    assert two == one * 2


class Late(nn.Module):
    """Begins to change what it gave when that was not to be expected any longer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.runs = 0
        self.mean: Any = None

    def forward(self, x: Tensor) -> Any:
        self.runs += 1
        y = self.linear(x)
        if self.mean is not None:
            self.mean.lerp_(y.detach(), 0.5)
        elif self.runs > 6:
            self.mean = y.detach()
        return y


def _late(rank: int, world: int) -> list[str]:
    schedule = Schedule([_linear(), Late()], MICROBATCHES, functional.mse_loss, plan="gpipe")
    return refusals([lambda: [schedule.step(*_data(0, "late")[:1], target=_data(0, "late")[1]) for _ in range(4)]])


def test_what_is_changed_after_all_is_refused_by_its_layer() -> None:
    assert_said(in_ranks(1, _late)[0], ["layer 1 changes in place what it gave for an earlier microbatch"])


def _watched(rank: int, world: int, before: bool) -> tuple[list[Tensor], list[str]]:
    """What a hook sees that is on the node by which a parameter's gradients are added up, as older wrappers have it."""
    layer = nn.Linear(WIDTH, WIDTH)
    (node, _), *_ = layer.weight.expand_as(layer.weight).grad_fn.next_functions  # type: ignore[union-attr]
    seen: list[Tensor] = []
    if before:
        node.register_prehook(lambda gradients: seen.append(gradients[0].clone()))
    else:
        node.register_hook(lambda *_: seen.append(layer.weight.grad.clone()))  # type: ignore[union-attr]
    schedule = Schedule([_linear(), layer, _linear()], 2, functional.mse_loss, plan="zb-h1")
    for _ in range(2):
        schedule.step(X.unsqueeze(1), target=Y.unsqueeze(1))
    assert layer.weight.grad is not None
    return seen, [repr(sum(seen) if before else seen[-1]), repr(layer.weight.grad)]


@pytest.mark.parametrize("before", [True, False])
def test_hooks_on_the_node_of_a_parameter_see_its_gradients(before: bool) -> None:
    ((seen, (found, expected)),) = in_ranks(1, _watched, before)
    assert len(seen) == 4 and found == expected


class Skipping(nn.Module):
    """Is left out at times, by lot of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        return x if random.random() < 0.5 else self.linear(x)


def _skipped(rank: int, world: int, order: str) -> tuple[list[float], list[float]]:
    """Losses, and what the script draws between steps."""
    torch.manual_seed(6)
    random.seed(7)
    layers: list[nn.Module] = [_linear(), Skipping(), _linear(), Skipping()]
    schedule = Schedule(layers, MICROBATCHES, functional.mse_loss, plan=order)
    losses, drawn = [], []
    for step in range(4):
        drawn.append(random.random())
        x, y = _data(step, "product")
        losses.append(schedule.step(x, target=y).item())
    return losses, drawn


def test_draws_of_layers_are_keyed_and_no_part_of_the_script_s() -> None:
    (one,) = in_ranks(1, _skipped, "1f1b")
    random.seed(7)
    assert one[1] == [random.random() for _ in range(4)]
    for order in ("1f1b", "gpipe", "zb-h1"):
        for losses, drawn in in_ranks(2, _skipped, order):
            assert drawn == one[1], "ranks go on alike"
            assert losses == pytest.approx(one[0], rel=1e-6), "draws do not depend on the plan"


def _used_twice(rank: int, world: int) -> list[str]:
    layers = linears()
    first = Schedule(layers, 2, functional.mse_loss)
    first.close()
    texts = refusals([lambda: Schedule([*linears()[:2], layers[2]], 2, functional.mse_loss)])
    # Built anew.
    other = Schedule(linears(), 2, functional.mse_loss)
    other.step(X, target=Y)
    return texts


def test_layers_that_another_schedule_has_are_refused() -> None:
    for texts in in_ranks(2, _used_twice):
        assert_said(texts, ["layers: number 2 is in another schedule of this process"])


def _loss_in_place(output: Tensor, target: Tensor) -> Tensor:
    output /= 2
    return functional.mse_loss(output, target)


def _in_place(rank: int, world: int) -> list[str]:
    schedule = Schedule(linears(), 2, _loss_in_place)
    return refusals([lambda: schedule.step(X, target=Y)])


def test_a_loss_that_changes_the_output_is_named() -> None:
    assert_said(in_ranks(1, _in_place)[0], ["loss_fn changes the output in place; let it work on a copy"])


def _apart(rank: int, world: int, differs: bool) -> list[str]:
    schedule = Schedule(linears(), 2, functional.mse_loss)
    optimizer = schedule.attach(SGD(schedule.parameters(), lr=0.1))

    def train() -> None:
        for _ in range(3):
            schedule.step(X + rank if differs else X, target=Y)
            optimizer.step()

    return said(train)


def test_ranks_that_load_batches_of_their_own_are_told() -> None:
    told, silent = in_ranks(2, _apart, True)
    assert_said(told, ["x differs from rank to rank"])
    assert silent == [] and in_ranks(2, _apart, False) == [[], []]
