"""Layers that differentiate by themselves, that others lend parameters to, or that remember."""

from __future__ import annotations

import json
import random
from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import LBFGS, SGD
from torch.utils.checkpoint import checkpoint

from adaptis import Plan, Schedule
from adaptis.channels import Tagged
from adaptis.exchange import Exchange
from adaptis.forms import Form
from adaptis.tape import Tape
from alone import gradients, gradients_alone, plain_gradients
from models import WIDTH
from plans import scheduled
from ranks import in_ranks
from refusing import assert_said, refusals, said


class Equilibrium(nn.Module):
    """A fixed point, whose backward solves for the gradient with products of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        def once(z: Tensor) -> Tensor:
            return torch.tanh(0.3 * self.inner(z) + x)

        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(4):
                z = once(z)
        z = once(z)
        at = z.detach().requires_grad_()
        after = once(at)

        def solve(gradient: Tensor) -> Tensor:
            solved = gradient
            for _ in range(4):
                solved = torch.autograd.grad(after, at, solved, retain_graph=True)[0] + gradient
            return solved

        z.register_hook(solve)
        return z


class Adapted(nn.Module):
    """A frozen product with a low rank on top, lent to it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(WIDTH, 2))
        self.up = nn.Parameter(torch.randn(2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        lent = {"weight": self.base.weight + self.down @ self.up}
        return torch.func.functional_call(self.base, lent, (x,))


class Ensemble(nn.Module):
    """The mean of several, in one go."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.turns = nn.Parameter(torch.randn(3, WIDTH, WIDTH) / WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda turn: self.linear(x @ turn))(self.turns).mean(0)


class _ByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.run, ctx.parameters = run, parameters
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    def backward(ctx: Any, *incoming: Any) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            again = ctx.run(at)
        return None, *torch.autograd.grad(again, (at, *ctx.parameters), incoming)


class ByHand(nn.Module):
    """Recomputes in an autograd function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _ByHand.apply(self.linear, x, *self.linear.parameters())
        return result


class Sparing(nn.Module):
    """A gradient inside a layer, under activation checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def _inner(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x if x.requires_grad else x.requires_grad_()
            return x + torch.autograd.grad(self.linear(at).tanh().sum(), at, create_graph=True)[0]

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self._inner, x, use_reentrant=False)


def _inner(rank: int, world: int) -> list[str]:
    wrong = []
    for kind in (Equilibrium, Adapted, Ensemble, ByHand, Sparing):

        def make() -> list[nn.Module]:
            torch.manual_seed(5)
            return [nn.Linear(WIDTH, WIDTH), kind(), nn.Linear(WIDTH, WIDTH)]

        plain = make()
        x, y = torch.randn(4, WIDTH), torch.randn(4, WIDTH)
        expected = plain_gradients(plain, x, y, functional.mse_loss)
        for programs in (["0F0", "0B0"], ["0F0", "0I0", "0W0"]):
            for recomputed in (False, True):
                found = gradients_alone(make(), x, y, functional.mse_loss, programs, recomputed, False)
                off = {
                    at: float((found[at] - value).norm() / value.norm().clamp_min(1e-9)) if at in found else 1.0
                    for at, value in expected.items()
                }
                if found.keys() != expected.keys() or max(off.values()) > 1e-5:
                    wrong.append(f"{kind.__name__}, {programs}, recomputed {recomputed}: {off}")
    return wrong


def test_gradients_inside_a_layer_are_its_own_affair() -> None:
    assert in_ranks(1, _inner) == [[]]


class Centred(nn.Module):
    """Takes off a running mean that it updates first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return self.linear(x - self.mean)


DICE = torch.Generator().manual_seed(3)


class Dicing(nn.Module):
    """Draws by a generator that is not its own, which is not put back."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.drawn: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        self.drawn.append(torch.rand(WIDTH, generator=DICE))
        return self.linear(x) * self.drawn[-1]


class Listing(nn.Module):
    """Changes its buffers through a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.means = [self.mean]

    def forward(self, x: Tensor) -> Any:
        for mean in self.means:
            mean.mul_(0.5).add_(x.detach().mean(0), alpha=0.5)
        return self.linear(x)


def _remembering(rank: int, world: int, kind: Callable[[], nn.Module], recomputed: bool) -> dict[str, Tensor]:
    torch.manual_seed(9)
    layers = [nn.Linear(WIDTH, WIDTH), kind(), nn.Linear(WIDTH, WIDTH)]
    x, y = torch.randn(6, WIDTH), torch.randn(6, WIDTH)
    whole = json.loads(scheduled([(0, 3, 0)], 3, 1, 3, random.Random(0), 1).write())
    whole["programs"] = [["0F0", "0F1", "0F2", "0B0", "0B1", "0B2"]]
    whole["stages"][0]["recompute"] = [0, 1, 2] if recomputed else []
    Schedule(layers, 3, functional.mse_loss, plan=Plan.read(json.dumps(whole))).step(x, target=y)
    return {**gradients(layers), **dict(nn.ModuleList(layers).named_buffers())}


def test_a_layer_is_recomputed_as_it_was() -> None:
    (kept,) = in_ranks(1, _remembering, Centred, False)
    (again,) = in_ranks(1, _remembering, Centred, True)
    assert kept.keys() == again.keys() and "1.mean" in kept
    for name, value in kept.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[name])), name


def _diced(rank: int, world: int) -> tuple[list[str], Tensor, Tensor]:
    """What is said, and the gradient of a layer that can't be recomputed, besides that of plain PyTorch by its draws."""
    torch.manual_seed(9)
    layer = Dicing()
    x, y = torch.randn(6, WIDTH), torch.randn(6, WIDTH)
    whole = json.loads(scheduled([(0, 1, 0)], 1, 1, 3, random.Random(0), 1).write())
    whole["programs"], whole["stages"][0]["recompute"] = [["0F0", "0F1", "0F2", "0B0", "0B1", "0B2"]], [0]
    schedule = Schedule([layer], 3, functional.mse_loss, plan=Plan.read(json.dumps(whole)))
    told = said(lambda: schedule.step(x, target=y))
    found = layer.linear.weight.grad
    assert found is not None and len(layer.drawn) == 3, "not of the run that is to see"
    layer.linear.weight.grad = None
    for part, target, drawn in zip(x.split(2), y.split(2), list(layer.drawn)):
        (functional.mse_loss(layer.linear(part) * drawn, target) / 3).backward()
    expected = layer.linear.weight.grad
    assert expected is not None
    return told, found, expected


def test_a_layer_that_is_another_one_when_it_runs_again_is_not_recomputed() -> None:
    ((told, found, expected),) = in_ranks(1, _diced)
    assert_said(told, ["layer 0 gives another result when it runs again"])
    assert torch.allclose(torch.as_tensor(found), torch.as_tensor(expected), atol=1e-6)
    (kept,) = in_ranks(1, _remembering, Listing, False)
    (again,) = in_ranks(1, _remembering, Listing, True)
    for name, value in kept.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[name])), name


class Turned(nn.Module):
    """Gives a tensor that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x).transpose(1, 2)


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Any:
        return self.norm(functional.dropout(x, 0.2, self.training))


def _cut(rank: int, world: int, cut: int) -> list[str]:
    torch.manual_seed(4)
    layers = [Turned(), Dropped(), Turned(), nn.Linear(WIDTH, WIDTH)]
    plan = scheduled([(0, cut, 0), (cut, 4, 1)], 4, 2, 2, random.Random(cut), 1)
    schedule = Schedule(layers, 2, functional.mse_loss, plan=plan)
    optimizer = schedule.attach(SGD(schedule.parameters(), lr=0.1))
    losses = []
    for step in range(6):
        numbers = torch.Generator().manual_seed(step)
        x, y = (torch.randn(4, WIDTH, WIDTH, generator=numbers) for _ in range(2))
        losses.append(schedule.step(x, target=y).item().hex())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_neither_draws_nor_bits_depend_on_where_a_stage_ends() -> None:
    first, *others = [in_ranks(2, _cut, cut)[0] for cut in (1, 2, 3)]
    assert others == [first, first]


def _attached(rank: int, world: int) -> list[str]:
    schedule = Schedule([nn.Linear(WIDTH, WIDTH)], 1, functional.mse_loss)
    return refusals([lambda: schedule.attach(LBFGS(schedule.parameters()))])


def test_an_optimizer_that_needs_all_gradients_in_one_place_is_refused() -> None:
    (texts,) = in_ranks(1, _attached)
    assert_said(texts, ["LBFGS needs all gradients in one place"])


class Gate(nn.Module):
    """Asks for no gradient in every second call, from the first one on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        with torch.set_grad_enabled(self.calls % 2 == 0):
            return self.linear(x)


def _gated_model() -> list[nn.Module]:
    torch.manual_seed(0)
    return [Gate(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]


def _gated(rank: int, world: int) -> list[Any]:
    """Gradients of layers one of which asks for gradients of some microbatches alone, in two steps."""
    schedule = Schedule(_gated_model(), 4, functional.mse_loss)
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    found = []
    for _ in range(2):
        schedule.step(x, target=x)
        found.append(gradients(schedule.layers))
        for parameter in schedule.parameters():
            parameter.grad = None
    return found


def test_what_asks_for_gradients_of_some_microbatches_gets_those() -> None:
    results = in_ranks(2, _gated)
    layers = _gated_model()
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    for step in range(2):
        for part in x.chunk(4):
            (functional.mse_loss(nn.Sequential(*layers)(part), part) / 4).backward()
        expected = gradients(layers)
        found = {**results[0][step], **results[1][step]}
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-7), name
        for layer in layers:
            layer.zero_grad()


def test_what_had_no_gradient_and_has_one_is_refused() -> None:
    exchange = Exchange(Tagged(None), torch.device("cpu"), Tape())
    exchange.adopt([(0, 1), (1, 2)])
    exchange.begin({0: (Form(torch.float32, (2,), False),)})
    with pytest.raises(RuntimeError, match="layer 0 gave what has no gradient in earlier steps"):
        exchange.send(1, False, 1, 0, (torch.ones(2, requires_grad=True),))
