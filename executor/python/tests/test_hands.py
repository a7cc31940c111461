"""Modules in which others have a hand: their weight gradients are worked out as these want it."""

from __future__ import annotations

import json
import random
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode

from adaptis import Plan, Schedule
from alone import gradients_alone, plain_gradients
from models import WIDTH
from plans import scheduled
from ranks import in_ranks


def _pruned(rank: int, world: int) -> list[list[str]]:
    """Which parameters have a gradient, of layers that were reparametrized after the schedule was made."""
    found = []
    for change in (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    ):
        for layer in (nn.Linear(WIDTH, WIDTH), nn.Embedding(WIDTH, WIDTH)):
            layers: list[nn.Module] = [layer, nn.Linear(WIDTH, WIDTH)]
            schedule = Schedule(layers, 1, functional.mse_loss)
            x = torch.arange(4) if isinstance(layer, nn.Embedding) else torch.randn(4, WIDTH)
            schedule.step(x, target=torch.randn(4, WIDTH))
            schedule.layers[0].zero_grad()
            change(layer)
            schedule.step(x, target=torch.randn(4, WIDTH))
            found.append([name for name, part in layer.named_parameters() if part.grad is not None])
    return found


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_layer_that_is_reparametrized_later_on_is_trained() -> None:
    weight, parametrized = "weight_orig", "parametrizations.weight.original"
    assert in_ranks(1, _pruned) == [[["bias", weight], [weight], ["bias", parametrized], [parametrized]]]


def _saves_little(rank: int, world: int) -> list[str]:
    """Layers that change in place what torch does not save of a product."""
    frozen = nn.Linear(WIDTH, WIDTH)
    frozen.weight.requires_grad_(False)
    clamped = nn.Linear(WIDTH, WIDTH)
    found = []
    for layer in (Within(frozen), Clamping(clamped)):
        Schedule([layer], 1, functional.mse_loss).step(torch.randn(4, WIDTH), target=torch.randn(4, WIDTH))
        found += [name for name, part in layer.named_parameters() if part.grad is not None]
    return found


class Within(nn.Module):
    """Adds a product to what it was made of, whose weight is not trained."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Any:
        x = x * 1.0
        x += self.linear(x)
        return x


class Clamping(Within):
    """Changes a weight after its use, of what wants no gradient."""

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        with torch.no_grad():
            self.linear.weight.clamp_(-1.0, 1.0)
        return y


def test_no_more_is_saved_than_by_torch() -> None:
    assert in_ranks(1, _saves_little) == [["linear.bias", "linear.weight", "linear.bias"]]


class Shaken(nn.Module):
    """Its gradients have noise."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        y.register_hook(lambda gradient: gradient + torch.randn_like(gradient))
        return y


def _shaken_loss(output: Tensor, target: Tensor) -> Tensor:
    """Draws in its backward."""
    shaken = output.clone()
    if shaken.requires_grad:
        shaken.register_hook(lambda gradient: gradient + torch.randn_like(gradient))
    return functional.mse_loss(shaken, target)


def _shaken(rank: int, world: int, loss_fn: Any) -> list[str]:
    """Gradients under orders and recomputations that differ."""
    found = []
    for program, recomputed in ((["0F0", "0B0", "0F1", "0B1"], []), (["0F0", "0F1", "0I0", "0I1", "0W0", "0W1"], [0])):
        torch.manual_seed(1)
        plan = json.loads(scheduled([(0, 2, 0)], 2, 1, 2, random.Random(0), 1).write())
        plan["programs"], plan["stages"][0]["recompute"] = [program], recomputed
        schedule = Schedule([Shaken(), Shaken()], 2, loss_fn, plan=Plan.read(json.dumps(plan)))
        schedule.step(torch.ones(4, WIDTH), target=torch.zeros(4, WIDTH))
        found.append(repr([part.grad for part in schedule.parameters()]))
    return found


def test_what_is_drawn_in_a_backward_does_not_depend_on_the_plan() -> None:
    for loss_fn in (functional.mse_loss, _shaken_loss):
        ((one, other),) = in_ranks(1, _shaken, loss_fn)
        assert one == other


class Halved(torch.autograd.Function):
    """A product whose gradients are its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight * 0.5, gradients[0].t() @ x * 0.5


def _halves(function: Callable[..., Any], arguments: Any, named: Any) -> Any:
    if function is functional.linear:
        x, weight = (torch.Tensor.as_subclass(part, torch.Tensor) for part in arguments[:2])
        return Halved.apply(x, weight)
    return function(*arguments, **named)


class Low(Tensor):
    """A weight that is trained in its own way, as low-precision ones are."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function is not functional.linear:
            return super().__torch_function__(function, types, arguments, named or {})
        with torch._C.DisableTorchFunctionSubclass():
            return _halves(function, arguments, named or {})


class Mode(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return _halves(function, arguments, named or {})


class Taken(nn.Module):
    """A product that a mode takes over."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Any:
        with Mode():
            return self.linear(x)


class Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Tangent(nn.Module):
    """Takes a derivative forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(self.linear(forward_ad.make_dual(x, torch.ones_like(x)))).tangent + x


class Ragged(nn.Module):
    """Rows of unequal length."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        nested = torch.nested.as_nested_tensor([x[:1], x[1:]], layout=torch.jagged)
        return torch.cat(list(self.linear(nested).unbind()))


def _low() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Low))
    return layer


MAKES: dict[str, Callable[[], nn.Module]] = {
    "a weight of its own class": _low, "a mode": Taken, "forwards": Tangent, "ragged": Ragged
}


def _handled(rank: int, world: int) -> list[str]:
    """What is off, of each under every way of running it."""
    wrong = []
    for name, make in MAKES.items():
        def layers() -> list[nn.Module]:
            torch.manual_seed(5)
            return [nn.Linear(WIDTH, WIDTH), make(), nn.Linear(WIDTH, WIDTH)]

        torch.manual_seed(6)
        x, y = torch.randn(4, WIDTH), torch.randn(4, WIDTH)
        expected = plain_gradients(layers(), x, y, functional.mse_loss)
        for programs in (["0F0", "0B0"], ["0F0", "0I0", "0W0"]):
            for recomputed in (False, True):
                found = gradients_alone(layers(), x, y, functional.mse_loss, programs, recomputed, False)
                if found.keys() != expected.keys() or any(
                    not torch.allclose(found[at], value, rtol=1e-4, atol=1e-6) for at, value in expected.items()
                ):
                    wrong.append(f"{name}, {programs}, recomputed {recomputed}")
    return wrong


def test_gradients_are_as_those_want_them_who_take_a_product_over() -> None:
    assert in_ranks(1, _handled) == [[]]


def _of_another_class(rank: int, world: int) -> list[bool]:
    """Whether the loss is that of the class which a module has by now, or of a forward that was put into torch's."""
    x, y = torch.randn(4, WIDTH), torch.randn(4, WIDTH)
    found = []
    layer = nn.Linear(WIDTH, WIDTH)
    schedule = Schedule([layer], 1, functional.mse_loss)
    layer.__class__ = Doubling
    found.append(bool(schedule.step(x, target=y) == functional.mse_loss(2 * functional.linear(x, layer.weight, layer.bias), y)))
    plain = nn.Linear.forward
    patched = nn.Linear(WIDTH, WIDTH)
    later = Schedule([patched], 1, functional.mse_loss)
    nn.Linear.forward = lambda self, input: 3 * plain(self, input)  # type: ignore[method-assign]
    try:
        loss = later.step(x, target=y)
    finally:
        nn.Linear.forward = plain  # type: ignore[method-assign]
    found.append(bool(loss == functional.mse_loss(3 * functional.linear(x, patched.weight, patched.bias), y)))
    return found


def test_a_module_of_another_class_runs_as_that() -> None:
    assert in_ranks(1, _of_another_class) == [[True, True]]


class Counting(nn.Module):
    """A parametrization that counts its runs."""

    runs: list[int] = []

    def forward(self, weight: Tensor) -> Tensor:
        self.runs.append(1)
        return weight * 1.0


def _counted(rank: int, world: int) -> int:
    Counting.runs.clear()
    layer = nn.Linear(WIDTH, WIDTH)
    schedule = Schedule([layer], 1, functional.mse_loss)
    parametrize.register_parametrization(layer, "weight", Counting())
    Counting.runs.clear()
    schedule.step(torch.randn(4, WIDTH), target=torch.randn(4, WIDTH))
    return len(Counting.runs)


def test_a_later_parametrization_runs_once() -> None:
    assert in_ranks(1, _counted) == [1]


def _wider(rank: int, world: int) -> str:
    """The type of a gradient that is wanted wider than its parameter."""
    layer = nn.Linear(WIDTH, WIDTH).bfloat16()
    for part in layer.parameters():
        part.grad_dtype = torch.float32  # type: ignore[attr-defined]
    plan = json.loads(scheduled([(0, 1, 0)], 1, 1, 1, random.Random(0), 1).write())
    plan["programs"], plan["stages"][0]["recompute"] = [["0F0", "0I0", "0W0"]], []
    schedule = Schedule([layer], 1, functional.mse_loss, plan=Plan.read(json.dumps(plan)))
    x = torch.randn(4, WIDTH).bfloat16()
    schedule.step(x, target=x.flip(0))
    return str(layer.weight.grad.dtype) if layer.weight.grad is not None else "none"


def test_gradients_are_of_the_type_that_is_wanted() -> None:
    assert in_ranks(1, _wider) == ["torch.float32"]
