"""Layers that change something when they run, recomputed: on what they were, and changed once."""

from __future__ import annotations

import json
import random
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from adaptis import Plan, Schedule
from adaptis.before import COPIED_BYTES, Before, Keeper
from models import WIDTH
from plans import scheduled
from ranks import in_ranks
from refusing import said


class Tabled(nn.Module):
    """A large table, which it changes from a step on, as the average of a codebook that begins late."""

    def __init__(self, begins: int, microbatch: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("table", torch.ones(4 * COPIED_BYTES // 4 // WIDTH, WIDTH))
        self.runs = 0
        self.begins, self.microbatch = begins, microbatch

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x) * self.table[0].clone()
        if self.begins <= self.step_of and (self.step_of > self.begins or self.runs % 2 >= self.microbatch):
            with torch.no_grad():
                self.table.mul_(0.9)
        self.runs += 1
        return y

    step_of = 0


def _tabled(rank: int, world: int, begins: int, microbatch: int, recomputed: bool) -> tuple[list[str], list[int], str]:
    """Gradients of each step, and how many tables were copied in it."""
    torch.manual_seed(1)
    layer = Tabled(begins, microbatch)
    plan = json.loads(scheduled([(0, 1, 0)], 1, 1, 2, random.Random(0), 1).write())
    plan["programs"] = [["0F0", "0F1", "0B0", "0B1"]]
    plan["stages"][0]["recompute"] = [0] if recomputed else []
    schedule = Schedule([layer], 2, functional.mse_loss, plan=Plan.read(json.dumps(plan)))
    found, copies, told = [], [], ""
    before = Keeper.before
    taken: list[int] = []

    def counted(self: Keeper, at: int, is_looked_at: bool) -> Before:
        kept = before(self, at, is_looked_at)
        taken.append(sum("table" in was and was["table"] is not store["table"] for store, was in kept.stores))
        return kept

    Keeper.before = counted  # type: ignore[method-assign]
    try:
        for step in range(4):
            layer.step_of = step
            torch.manual_seed(10 + step)
            layer.zero_grad()
            taken.clear()
            schedule.step(torch.randn(4, WIDTH), target=torch.randn(4, WIDTH))
            assert layer.linear.weight.grad is not None
            found.append(layer.linear.weight.grad.numpy().tobytes().hex())
            copies.append(sum(taken))
    except RuntimeError as error:
        told = str(error)
    finally:
        Keeper.before = before  # type: ignore[method-assign]
    return found, copies, told


def test_a_large_table_is_copied_for_recomputations_only_once_it_changes() -> None:
    ((plain, _, _),) = in_ranks(1, _tabled, 2, 0, False)
    assert len(plain) == 4
    ((found, copies, _),) = in_ranks(1, _tabled, 2, 0, True)
    assert found == plain
    assert copies == [0, 0, 1, 2], "of its first change the graph is kept"
    ((_, _, told),) = in_ranks(1, _tabled, 1, 1, True)
    assert "layer 0 changed a large buffer for a later microbatch" in told


class Stretched(nn.Module):
    """Scales by what it works out anew where sequences grow beyond the longest so far."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.longest = 0
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Any:
        if x.shape[1] > self.longest:
            self.longest = x.shape[1]
            self.scale = self.scale / (1 + self.longest)
        return self.linear(x) * self.scale


class Cached(nn.Module):
    """Keeps a table as long as the longest sequence so far."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.longest = 0
        self.register_buffer("table", torch.empty(0), persistent=False)

    def forward(self, x: Tensor) -> Any:
        if x.shape[1] > self.longest:
            self.longest = x.shape[1]
            self.register_buffer("table", torch.linspace(0.5, 1.0, self.longest), persistent=False)
        return self.linear(x) * self.table[: x.shape[1], None]


class Dropping(nn.Module):
    """Is left out at times, by lot of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        return x if random.random() < 0.5 else self.linear(x)


class Wide(nn.Module):
    """Statistics that are large, and no norm's, which a kernel changes without a word; and a count kept by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(COPIED_BYTES))
        self.register_buffer("variance", torch.ones(COPIED_BYTES))
        self.register_buffer("count", torch.zeros(COPIED_BYTES))

    def forward(self, x: Tensor) -> Any:
        wide = functional.pad(x.flatten(0, 1), (0, COPIED_BYTES - WIDTH))
        normed = functional.batch_norm(wide, self.mean, self.variance, training=self.training)
        self.count.data += 1
        return self.linear(normed[:, :WIDTH].view_as(x)) + self.count[0]


class Views(nn.Module):
    """Changes a buffer through another one that lies in it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("whole", torch.ones(2, WIDTH))
        self.register_buffer("row", self.whole[0])

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x) * self.row.clone()
        with torch.no_grad():
            self.whole.mul_(0.9)
        return y


class Taught(nn.Module):
    """A frozen parameter that follows a trained one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.teacher = nn.Parameter(torch.zeros(WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.teacher.mul_(0.9).add_(self.linear.bias, alpha=0.1)
        return self.linear(x) + self.teacher.clone()


class Momentum(nn.Module):
    """A frozen parameter that follows a trained one, without a new version."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.teacher = nn.Parameter(torch.zeros(WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        self.teacher.data = self.teacher.data * 0.9 + self.linear.bias.data * 0.1
        return self.linear(x) + self.teacher.clone()


class Growing(nn.Module):
    """Makes a part of itself when it first runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "norm"):
            self.norm = nn.BatchNorm1d(WIDTH, affine=False)
        return self.norm(self.linear(x).flatten(0, 1)).view_as(x)


class Padded(nn.Module):
    """A large table with what is no number in it, which nobody changes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("table", torch.full((COPIED_BYTES,), float("nan")))
        self.register_buffer("pairs", torch.eye(WIDTH).to_sparse())

    def forward(self, x: Tensor) -> Any:
        return self.linear(x) + (torch.sparse.mm(self.pairs, x[0].t()).t() + self.table[0].nan_to_num(0.0))


class Scaled(nn.Module):
    """Works out its scale anew once in a while, as delayed scaling does: other microbatches ran with the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.runs = 0
        self.scale = 1.0

    def forward(self, x: Tensor) -> Any:
        if self.runs % 4 == 1:
            self.scale = 1.0 + float(x.detach().abs().max())
        self.runs += 1
        return self.linear(x) * self.scale


class Alternating(nn.Module):
    """An attribute that is a tensor in every other run, and plain in the others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.last: Any = None

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x) if self.last is None else self.linear(x) * 0.5 + self.last
        self.last = x.detach().mean() if self.last is None else None
        return y


class Codebook(nn.Module):
    """A large table that changes from some run on, without a new version."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.runs = 0
        self.register_buffer("codes", torch.ones(COPIED_BYTES, WIDTH))

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x) * self.codes[0].clone()
        self.runs += 1
        if self.runs > 8:
            self.codes.data = self.codes.data * 0.9
        return y


class Late(nn.Module):
    """Draws by Python from some run on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.runs = 0

    def forward(self, x: Tensor) -> Any:
        self.runs += 1
        return self.linear(x) * (random.random() if self.runs > 8 else 1.0)


class Packed(Tensor):
    """A weight as others' quantizers pack it: it knows next to no operation."""

    whole: Tensor

    @staticmethod
    def __new__(cls, whole: Tensor) -> Packed:
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=torch.float32)  # type: ignore[no-any-return, attr-defined]

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].whole)
        return NotImplemented


class Based(nn.Module):
    """What is trained beside a packed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.base = nn.Parameter(Packed(torch.randn(WIDTH, WIDTH)), requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        base: Any = self.base
        return self.linear(x) + x @ base.whole


KINDS: list[Callable[[], nn.Module]] = [
    Stretched, Cached, Dropping, Wide, Views, Taught, Momentum, Growing, Padded, Scaled, Alternating, Codebook, Late, Based
]


def _changing(rank: int, world: int) -> list[str]:
    """What is otherwise where the layer is recomputed: losses, gradients, or what it keeps."""
    wrong = []
    for kind in KINDS:
        first, again = _steps(kind, False), _steps(kind, True)
        for name, one, other in zip(("losses", "gradients", "state"), first, again):
            if one != other:
                wrong.append(f"{kind}: {name}")
    return wrong


def _steps(kind: Callable[[], nn.Module], recomputed: bool) -> tuple[list[str], list[str], str]:
    torch.manual_seed(2)
    random.seed(3)
    layers = [nn.Linear(WIDTH, WIDTH), kind(), nn.Linear(WIDTH, WIDTH)]
    plan = json.loads(scheduled([(0, 3, 0)], 3, 1, 2, random.Random(0), 1).write())
    plan["programs"] = [["0F0", "0F1", "0B0", "0B1"]]
    plan["stages"][0]["recompute"] = [1] if recomputed else []
    schedule = Schedule(layers, 2, functional.mse_loss, plan=Plan.read(json.dumps(plan)))
    optimizer = SGD(schedule.parameters(), lr=0.01)
    losses, gradients = [], []
    for step in range(8):
        torch.manual_seed(20 + step)
        x = torch.randn(4, 3 + step // 3, WIDTH)
        losses.append(schedule.step(x, target=x.flip(2)).item().hex())
        gradients += [repr(part.grad) for part in schedule.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    assert not any(name == "table" for _, name in schedule._worker._keeper._changing.get(1, set()) if kind is Padded)
    held = {name: value for name, value in nn.ModuleList(layers).state_dict().items() if type(value) is Tensor}
    kept = {name: repr(value.to_dense().sum()) for name, value in held.items()}
    return losses, gradients, repr(kept) + repr(random.getstate())


def test_a_layer_that_changes_something_is_recomputed_on_what_it_was() -> None:
    assert in_ranks(1, _changing) == [[]]


class Rarely(nn.Module):
    """Gives something else when it runs again, once in a while."""

    runs: list[int] = []

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Any:
        self.runs.append(1)
        return self.linear(x) * (2.0 if len(self.runs) == 30 else 1.0)


def _rarely(rank: int, world: int) -> list[str]:
    Rarely.runs.clear()
    plan = json.loads(scheduled([(0, 1, 0)], 1, 1, 1, random.Random(0), 1).write())
    plan["programs"], plan["stages"][0]["recompute"] = [["0F0", "0B0"]], [0]
    schedule = Schedule([Rarely()], 1, functional.mse_loss, plan=Plan.read(json.dumps(plan)))

    def train() -> None:
        for _ in range(20):
            schedule.step(torch.ones(2, WIDTH), target=torch.zeros(2, WIDTH))

    return said(train)


def test_a_recomputation_that_differs_once_is_told_of() -> None:
    ((text,),) = in_ranks(1, _rarely)
    assert "layer 0 gave another result when it ran again" in text
