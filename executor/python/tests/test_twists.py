"""Where deferred gradients, recomputation and shapes that are learned could go wrong without a word."""

from __future__ import annotations

import json
import random
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from adaptis import Plan, Schedule
from adaptis.tape import Tape
from alone import gradients_alone, plain_gradients
from models import WIDTH, WORDS, Block, batch, loss_fn, model, through
from plans import scheduled
from ranks import in_ranks
from refusing import assert_said


class Wide(nn.Module):
    """A product in full precision whatever autocast says."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.linear(x.float())


class Rotated(nn.Module):
    """A buffer that is in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("cosine", torch.linspace(0.5, 1.0, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.cosine


class Spectrum(nn.Module):
    """Complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.linear(x))


class Rotation(nn.Module):
    """Complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.complex64)
        self.convolution = nn.Conv1d(2, 2, 3, padding=1, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        turned = self.linear(torch.complex(x, x.flip(1)))
        turned = turned + self.convolution(turned.unflatten(1, (2, -1))).flatten(1)
        return turned.abs()


class Magnitude(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Force(nn.Module):
    """A gradient inside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            energy = self.second(torch.tanh(self.first(at))).sum()
            return x + torch.autograd.grad(energy, at, create_graph=True)[0]


def _makes() -> dict[str, Any]:
    return {
        "wide": lambda: [nn.Linear(WIDTH, WIDTH), Wide(), nn.Linear(WIDTH, WIDTH)],
        "norm": lambda: [nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), Rotated()],
        "complex": lambda: [nn.Linear(WIDTH, WIDTH), Spectrum(), Magnitude()],
        "complex weights": lambda: [nn.Linear(WIDTH, WIDTH), Rotation()],
        "force": lambda: [nn.Linear(WIDTH, WIDTH), Force(), nn.Linear(WIDTH, WIDTH)],
        "images": lambda: [nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(12, WIDTH)],
    }


def _twisted(rank: int, world: int) -> list[str]:
    """What is off, of every model under every way of running it."""
    wrong = []
    for name, make in _makes().items():
        for autocast in (False, True):
            torch.manual_seed(5)
            plain = make()
            torch.manual_seed(6)
            x, y = torch.randn(4, WIDTH), torch.randn(4, WIDTH)
            if name.startswith("complex") and autocast:
                continue
            expected = plain_gradients(plain, x, y, functional.mse_loss, autocast)
            buffers = dict(nn.ModuleList(plain).named_buffers())
            seen = []
            for programs in (["0F0", "0B0"], ["0F0", "0I0", "0W0"]):
                for recomputed in (False, True):
                    torch.manual_seed(5)
                    layers = make()
                    found = gradients_alone(layers, x, y, functional.mse_loss, programs, recomputed, autocast)
                    seen.append(found)
                    how = f"{name}, autocast {autocast}, {programs}, recomputed {recomputed}"
                    if found.keys() != expected.keys():
                        wrong.append(f"{how}: {sorted(found)} have gradients")
                        continue
                    for at, value in expected.items():
                        error = (found[at] - value).norm() / value.norm().clamp_min(1e-9)
                        if error > (1e-2 if autocast else 1e-5):
                            wrong.append(f"{how}: {at} is off by {error:.1e}")
                    for at, buffer in nn.ModuleList(layers).named_buffers():
                        if not torch.allclose(buffer.float(), buffers[at].float()):
                            wrong.append(f"{how}: the buffer {at} differs")
            first = seen[0]
            for other in seen[1:]:
                if any(not torch.equal(first[at], other[at]) for at in first):
                    wrong.append(f"{name}, autocast {autocast}: B and I with W differ")
    return wrong


def test_every_way_of_running_a_layer_gives_its_gradients() -> None:
    assert in_ranks(1, _twisted) == [[]]


def _elsewhere(rank: int, world: int) -> list[bool]:
    """Layers that a schedule had, run by themselves and by another schedule; hooks; what is frozen."""
    x, y = torch.randn(4, WIDTH), torch.randn(4, WIDTH)
    layer = nn.Linear(WIDTH, WIDTH)
    Schedule([layer], 1, functional.mse_loss)
    functional.mse_loss(layer(x), y).backward()
    alone = layer.weight.grad is not None and layer.bias.grad is not None
    layer.zero_grad()
    again = Schedule([layer], 1, functional.mse_loss)
    again.step(x, target=y)
    second = layer.weight.grad is not None
    layer.zero_grad()
    layer.weight.register_hook(lambda gradient: gradient * 0)
    again.step(x, target=y)
    hooked = bool((layer.weight.grad == 0).all())
    layers = [nn.Linear(WIDTH, WIDTH).requires_grad_(False), nn.Linear(WIDTH, WIDTH)]
    frozen = Schedule(layers, 1, functional.mse_loss)
    frozen.step(x, target=y)
    return [alone, second, hooked, layers[0].weight.grad is None and layers[1].weight.grad is not None]


def test_layers_are_as_ever_outside_a_step() -> None:
    assert in_ranks(1, _elsewhere) == [[True, True, True, True]]


class Refilled(nn.Module):
    """Gives its inner layer a buffer that each microbatch fills anew."""

    def __init__(self, inner: nn.Module, buffer: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("held", buffer)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.held.copy_(x)
        return self.inner(self.held)


def _refilled(rank: int, world: int) -> list[str]:
    """What is said under programs in which it was filled again before the gradients were worked out, and under one where
    it was not."""
    texts = []
    layers = {
        "Linear": lambda: (Refilled(nn.Linear(WIDTH, WIDTH), torch.zeros(2, WIDTH)), torch.randn(4, WIDTH)),
        "Embedding": lambda: (Refilled(nn.Embedding(9, WIDTH), torch.zeros(2, dtype=torch.long)), torch.arange(4)),
    }
    for make in layers.values():
        for program in (
            ["0F0", "0I0", "0F1", "0W0", "0I1", "0W1"], ["0F0", "0F1", "0B0", "0B1"], ["0F0", "0B0", "0F1", "0B1"]
        ):
            layer, x = make()
            plan = json.loads(scheduled([(0, 1, 0)], 1, 1, 2, random.Random(0), 1).write())
            plan["programs"], plan["stages"][0]["recompute"] = [program], []
            schedule = Schedule([layer], 2, functional.mse_loss, plan=Plan.read(json.dumps(plan)))
            try:
                schedule.step(x, target=torch.randn(4, WIDTH))
                texts.append("trained")
            except RuntimeError as error:
                texts.append(str(error))
    return texts


def test_what_a_weight_gradient_is_worked_out_of_must_stay_as_it_is() -> None:
    (texts,) = in_ranks(1, _refilled)
    of_torch = "modified by an inplace operation"
    assert_said(
        texts,
        ["layer 0 changes in place what its Linear was given", of_torch, "trained"]
        + ["layer 0 changes in place what its Embedding was given", of_torch, "trained"],
    )


class Counted(nn.Module):
    """What can't be looked at while it saves, behind a norm that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Any:
        return torch.func.vmap(torch.func.grad(lambda row: (row**3).sum()))(self.norm(x))


def test_a_layer_that_is_weighed_in_vain_runs_once() -> None:
    torch.manual_seed(0)
    layer, x = Counted(), torch.randn(4, WIDTH)
    Tape().weigh(0, layer, (x,), lambda: layer(x))
    other = Counted()
    other(x)
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, dict(other.named_buffers())[name]), name


class Curious(nn.Module):
    """Differentiates by itself, with a table that others use as well, and counts."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.runs = 0

    def forward(self, x: Tensor) -> Any:
        self.runs += 1
        y = self.linear(x) * self.of.table
        return y + torch.func.grad(lambda row: (row**3).sum())(y)


def test_a_layer_that_is_weighed_in_vain_leaves_the_graphs_of_others_as_they_are() -> None:
    torch.manual_seed(0)
    of = nn.Module()
    of.register_buffer("table", torch.rand(WIDTH))
    layers, x = [Curious(of), Curious(of)], torch.randn(4, WIDTH)
    tape = Tape()
    for at, layer in enumerate(layers):
        x = tape.weigh(at, layer, (x,), partial(layer, x))
    x.sum().backward()
    assert [layer.runs for layer in layers] == [1, 1]


class Strange(nn.Module):
    """Saves what has no memory of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        if self.kind == "sparse":
            return torch.sparse.mm(torch.eye(len(x)).to_sparse(), y)
        if self.kind == "nested":
            rows = torch.nested.nested_tensor([row[None] for row in y.detach()], layout=torch.jagged)
            return y * torch.sigmoid(rows).values().sum()
        return y.to_mkldnn().relu().to_dense()


@pytest.mark.parametrize("kind", ["sparse", "nested", "mkldnn"])
def test_what_has_no_memory_of_its_own_is_not_weighed_and_fails_nothing(kind: str) -> None:
    layer, x = Strange(kind), torch.randn(4, WIDTH)
    tape = Tape()
    tape.weigh(0, layer, (x,), lambda: layer(x)).sum().backward()
    assert tape.activation_bytes[0] >= x.nbytes


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mul_(0.5))


def _in_place(rank: int, world: int) -> list[str]:
    texts = []
    for layers in ([InPlace()], [nn.Linear(WIDTH, WIDTH), InPlace()]):
        try:
            Schedule(layers, 1, functional.mse_loss).step(torch.randn(4, WIDTH), target=torch.randn(4, WIDTH))
        except RuntimeError as error:
            texts.append(str(error))
    return texts


def test_a_layer_that_changes_its_input_is_named() -> None:
    (texts,) = in_ranks(1, _in_place)
    assert ["layer 0 changes its input in place" in texts[0], "layer 1 changes its input in place" in texts[1]] == [
        True,
        True,
    ]


class Masked(nn.Module):
    """Uses a buffer that all layers share."""

    def __init__(self, mask: nn.Module) -> None:
        super().__init__()
        self.mask = mask
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.mask.scale


class Mask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 2.0, WIDTH))


def _shared(rank: int, world: int) -> list[float]:
    torch.manual_seed(7)
    mask = Mask()
    layers: list[nn.Module] = [Masked(mask) for _ in range(4)]
    data = [(torch.randn(4, WIDTH), torch.randn(4, WIDTH)) for _ in range(4)]
    losses = []
    if world == 1:
        for x, y in data:
            value: Any = x
            for layer in layers:
                value = layer(value)
            losses.append(functional.mse_loss(value, y).item())
        return losses
    schedule = Schedule(layers, 2, functional.mse_loss)
    for step, (x, y) in enumerate(data):
        if step:
            stages = [[(0, 1, 1), (1, 4, 0)], [(0, 4, 1)], [(0, 2, 0), (2, 4, 1)]][step - 1]
            schedule.change(scheduled(stages, 4, 2, 2, random.Random(step), 1 + step))
        losses.append(schedule.step(x, target=y).item())
    return losses


def test_buffers_that_layers_share_stay_where_one_of_them_is() -> None:
    (expected,) = in_ranks(1, _shared)
    for losses in in_ranks(2, _shared):
        assert losses == pytest.approx(expected, rel=1e-5)


def _thawed(rank: int, world: int) -> list[bool]:
    """A layer that is unfrozen between two steps, with another rank behind it."""
    torch.manual_seed(8)
    layers: list[nn.Module] = [nn.Embedding(WORDS, WIDTH), Block(), nn.Linear(WIDTH, WORDS)]
    plan = scheduled([(0, 1, 0), (1, 3, 1)], 3, 2, 2, random.Random(0), 1)
    schedule = Schedule(layers, 2, loss_fn, plan=plan)
    found = []
    for step, is_free in enumerate((False, True)):
        layers[0].requires_grad_(is_free)
        x, y = batch(step)
        schedule.step(x, target=y)
        found.append(layers[0].weight.grad is not None)
    return found


def test_a_layer_that_is_unfrozen_gets_its_gradient() -> None:
    first, second = in_ranks(2, _thawed)
    assert (first, second) == ([False, True], [False, False])


def _sparing(rank: int, world: int) -> list[str]:
    """Data only where it is needed, and where it is not."""
    schedule = Schedule(model(), 2, loss_fn)
    x, y = batch(0)
    longer, target = batch(1, words=7)
    texts = []
    for own, their in (
        (dict(x=x), dict(target=y)),
        (dict(x=longer), dict(target=target)),
        (dict(x=x, target=y), dict(x=x, target=y)),
        (dict(target=y), dict(target=y)),
        (dict(x=x), dict()),
        (dict(x=x[:3]), dict(target=y)),
        (dict(x=x), dict(x=longer, target=y)),
    ):
        try:
            schedule.step(**(own if rank == 0 else their))
            texts.append("")
        except (ValueError, RuntimeError) as error:
            texts.append(str(error))
    return texts


def test_what_is_missing_is_said_on_every_rank() -> None:
    first, second = in_ranks(2, _sparing)
    assert first[:3] == second[:3] == ["", "", ""]
    words = ["needs x on rank 0", "needs target on rank 1", "3 rows can't be cut", "differs from rank to rank"]
    others = ["needs x on rank 0", "needs target on rank 1", "ranks [0] can't begin", "differs from rank to rank"]
    for text, word in [*zip(first[3:], words), *zip(second[3:], others)]:
        assert word in text, (text, word)


def _clipped(rank: int, world: int) -> list[float]:
    schedule = Schedule(model(), 1, loss_fn)
    optimizer = schedule.attach(SGD(schedule.parameters(), lr=0.5))
    norms = []
    for step in range(3):
        x, y = batch(step)
        schedule.step(x, target=y)
        norms.append(schedule.clip_grad_norm_(0.3).item())
        optimizer.step()
        optimizer.zero_grad()
    state = schedule.state_dict()
    schedule.load_state_dict({name: value * 0 for name, value in state.items()})
    assert all(not value.any() for value in schedule.state_dict().values())
    return norms


def test_the_norm_is_that_of_the_whole_model() -> None:
    layers = model()
    optimizer = SGD(nn.ModuleList(layers).parameters(), lr=0.5)
    norms = []
    for step in range(3):
        output = through(layers, batch(step)[0])
        loss_fn(output, batch(step)[1]).backward()
        norms.append(nn.utils.clip_grad_norm_(nn.ModuleList(layers).parameters(), 0.3).item())
        optimizer.step()
        optimizer.zero_grad()
    for found in in_ranks(2, _clipped):
        assert found == pytest.approx(norms, rel=1e-4)
