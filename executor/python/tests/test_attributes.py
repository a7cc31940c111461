"""What modules keep by themselves goes where their layer goes."""

from __future__ import annotations

import argparse
import collections
import logging
import pickle
import random
import threading
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from adaptis import Schedule
from adaptis.attributes import Attributes
from models import WIDTH
from plans import random_plan
from ranks import in_ranks

CPU = torch.device("cpu")


@dataclass
class Meter:
    """An object of a script's own."""

    sums: list[float] = field(default_factory=list)
    mean: Tensor = field(default_factory=lambda: torch.zeros(2))
    of: Any = None


class Slotted:
    __slots__ = ("count", "late")
    count: int
    late: str

    def __init__(self) -> None:
        self.count = 0


class Private:
    __slots__ = ("__n",)

    def __init__(self) -> None:
        self.__n = 0

    def count(self) -> None:
        self.__n += 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Private) and self.__n == other.__n


class Named(dict[str, Any]):
    """With its entries as attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Point(NamedTuple):
    x: int
    others: list[int]


class Keeping(nn.Module):
    """Keeps things of all kinds."""

    table: Tensor
    kept: Any
    config: Any

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("table", torch.arange(6.0))
        self.kept = None


def moved(make: Callable[[Keeping], Any], change: Callable[[Keeping], None]) -> tuple[Keeping, Keeping, Any]:
    """Two ranks' layer, built alike, after one has changed it and it has moved to the other; what that one held before."""
    torch.manual_seed(0)
    here, there = Keeping(), Keeping()
    here.kept, there.kept = make(here), make(there)
    sender, receiver = Attributes([here], []), Attributes([there], [])
    before = there.kept
    change(here)
    receiver.take(0, pickle.loads(pickle.dumps(sender.leave(0))), CPU)
    return here, there, before


def test_what_a_list_or_an_object_holds_moves_into_the_one_that_is_there() -> None:
    def grown(layer: Keeping) -> None:
        layer.kept.append(3)

    def counted(layer: Keeping) -> None:
        layer.kept["n"] += 1
        layer.kept["more"] = {2: [torch.ones(3)]}

    def met(layer: Keeping) -> None:
        layer.kept.sums.append(0.5)
        layer.kept.mean += 2

    def slotted(layer: Keeping) -> None:
        layer.kept.count, layer.kept.late = 3, "now"

    for make, change in (
        (lambda _: [1, 2], grown),
        (lambda _: collections.deque([1, 2], maxlen=2), grown),
        (lambda _: {"n": 0}, counted),
        (lambda _: collections.defaultdict(int), counted),
        (lambda _: Meter(), met),
        (lambda _: Slotted(), slotted),
        (lambda _: {1, 2}, lambda layer: layer.kept.add(5)),
        (lambda _: torch.zeros(3), lambda layer: layer.kept.add_(1.5)),
        (lambda _: collections.OrderedDict(a=1, b=2), lambda layer: layer.kept.move_to_end("a")),
        (lambda _: Named(a=1), lambda layer: layer.kept.update(a=2)),
        (lambda _: argparse.Namespace(rate=1.0), lambda layer: vars(layer.kept).update(rate=0.5)),
        (lambda _: numpy.zeros(3), lambda layer: layer.kept.__iadd__(1)),
        (lambda _: bytearray(b"a"), lambda layer: layer.kept.extend(b"b")),
        (lambda _: list(range(5000)), grown),
        (lambda _: Private(), lambda layer: layer.kept.count()),
    ):
        here, there, before = moved(make, change)
        assert there.kept is before and there.kept is not here.kept
        assert _told(there.kept) == _told(here.kept)
    assert _told(moved(lambda _: Meter(), met)[1].kept) == _told(Meter([0.5], torch.full((2,), 2.0)))
    assert moved(lambda _: collections.deque([1, 2], maxlen=2), grown)[1].kept == collections.deque([2, 3])


def _told(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _told(part) for name, part in value.items()}
    if isinstance(value, (list, collections.deque, tuple)):
        return [_told(part) for part in value]
    if isinstance(value, Meter):
        return [_told(value.sums), _told(value.mean)]
    if isinstance(value, numpy.ndarray):
        return value.tolist()
    return (value.count, value.late) if isinstance(value, Slotted) else value


def test_other_values_are_replaced_and_objects_are_made_where_there_are_none() -> None:
    def drawn(layer: Keeping) -> None:
        layer.kept.random()

    def draw(layer: Keeping) -> None:
        torch.rand(2, generator=layer.kept)

    for make in (lambda _: random.Random(3), lambda _: numpy.random.default_rng(3)):
        here, there, before = moved(make, drawn)
        assert there.kept is before and there.kept.random() == here.kept.random()
    here, there, before = moved(lambda _: torch.Generator().manual_seed(3), draw)
    assert there.kept is before
    assert torch.equal(torch.rand(2, generator=there.kept), torch.rand(2, generator=here.kept))
    here, there, _ = moved(lambda _: 0, lambda layer: vars(layer).update(kept=torch.eye(2).to_sparse()))
    assert there.kept.to_dense().tolist() == torch.eye(2).tolist()
    for value in (Point(1, [2]), (1, (2.5, "a")), frozenset({3}), [Meter([1.0])], torch.bfloat16, float("nan"), print, 1 + 2j):
        here, there, _ = moved(lambda _: None, lambda layer: vars(layer).update(kept=value))
        assert repr(there.kept) == repr(value) and type(there.kept) is type(value)


def test_what_stands_twice_or_in_itself_stays_so() -> None:
    def twice(layer: Keeping) -> None:
        again: list[Any] = [1]
        again.append(again)
        layer.kept = {"a": again, "b": again}
        vars(layer.linear)["other"] = again

    _, there, _ = moved(lambda _: None, twice)
    assert there.kept["a"] is there.kept["b"] is vars(there.linear)["other"] and there.kept["a"][1] is there.kept["a"]


def test_what_is_one_there_becomes_two() -> None:
    def make(_: Keeping) -> Any:
        both, lock = torch.zeros(2), threading.Lock()
        return {"before": both, "now": both, "lists": [[both]], "locks": [lock, lock]}

    def change(layer: Keeping) -> None:
        layer.kept["now"] = layer.kept["before"] + 1
        layer.kept["before"] += 5

    _, there, _ = moved(make, change)
    assert _told(there.kept["before"]) == [5.0, 5.0] and _told(there.kept["now"]) == [1.0, 1.0]
    assert there.kept["lists"][0][0] is there.kept["before"]
    assert there.kept["locks"][0] is there.kept["locks"][1] is not None


def test_what_belongs_to_the_layer_is_named() -> None:
    def make(layer: Keeping) -> Any:
        return {"modules": [layer.linear], "weight": layer.linear.weight, "table": layer.table, "n": 0}

    def change(layer: Keeping) -> None:
        layer.kept["n"] = 1

    here, there, _ = moved(make, change)
    assert there.kept["modules"][0] is there.linear and there.kept["weight"] is there.linear.weight
    assert there.kept["table"] is there.table and there.kept["n"] == 1

    # A tensor in the memory of a buffer is one there, though nothing else has changed; the buffer came before.
    torch.manual_seed(0)
    here, there = Keeping(), Keeping()
    for layer in (here, there):
        layer.kept = layer.table[2:4]
    sender, receiver = Attributes([here], []), Attributes([there], [])
    there.table.data = torch.full((6,), 7.0)
    receiver.take(0, sender.leave(0), CPU)
    there.table[2] = 9.0
    assert there.kept.tolist() == [9.0, 7.0]

    def as_complex(layer: Keeping) -> None:
        layer.kept = torch.view_as_complex(layer.table.view(3, 2)).conj()

    here, there, _ = moved(lambda _: None, as_complex)
    there.table[1] = 5.0
    assert there.kept.tolist() == [5j.conjugate(), 2 - 3j, 4 - 5j]


def test_a_module_that_no_layer_has_moves_and_another_layers_is_refused() -> None:
    def follow(layer: Keeping) -> None:
        with torch.no_grad():
            layer.kept[0].weight.lerp_(torch.ones(2, 2), 0.5)

    here, there, before = moved(lambda _: [nn.Linear(2, 2)], follow)
    assert there.kept[0] is before[0] and torch.equal(there.kept[0].weight, here.kept[0].weight)

    def closing(layer: Keeping) -> Any:
        count = 0

        def counted() -> int:
            nonlocal count
            count += 1
            return count

        return counted

    assert moved(closing, lambda layer: layer.kept())[1].kept() == 2
    last = Keeping()
    others: list[nn.Module] = [nn.Linear(2, 2), last]
    last.kept = [others[0]]
    assert Attributes(others, []).holding == {"1.kept": "layer 0"}
    last.kept = [others[0].weight]
    assert "1.kept holds 0.weight of another layer" in Attributes(others, []).reaching[0]
    # The model itself is no layer.
    last.kept = [nn.Sequential(*others)]
    found = Attributes(others, [])
    assert found.reaching == [] and found.holding == {}


class Counted(nn.Module):
    """A loss that counts, and keeps a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.mean: Tensor
        self.steps = 0

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.steps += 1
        self.mean.lerp_(output.detach().mean(0), 0.1)
        return functional.mse_loss(output - self.mean, target) / self.steps


def _changing(rank: int, world: int, kind: type[nn.Module], loss: Callable[[], Any], changes: dict[int, int]) -> list[float]:
    torch.manual_seed(1)
    schedule = Schedule([kind() for _ in range(4)], 2, loss(), plan=random_plan(4, world, 2, 0))
    x, y = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(2))
    losses = []
    for step in range(9):
        if step in changes:
            schedule.change(random_plan(4, world, 2, changes[step], epoch=1 + changes[step]))
        losses.append(schedule.step(x, target=y).item())
    return losses


CHANGES = {1: 1, 3: 2, 5: 3, 6: 4, 7: 5}


class Plain(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)


def test_what_a_loss_keeps_goes_with_the_last_layer() -> None:
    assert in_ranks(2, _changing, Plain, Counted, CHANGES) == in_ranks(2, _changing, Plain, Counted, {})


class Rows(nn.Module):
    """Buffers in the memory of others, and one that is another."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("table", torch.zeros(3, WIDTH))
        self.table: Tensor
        self.register_buffer("row", self.table[1])
        self.register_buffer("same", self.table)

    def forward(self, x: Tensor) -> Tensor:
        self.table += 0.1
        return self.linear(x) + self.get_buffer("row") + self.get_buffer("same")[2]


def test_buffers_that_lie_in_one_another_do_so_after_a_move() -> None:
    assert in_ranks(2, _changing, Rows, nn.MSELoss, CHANGES) == in_ranks(2, _changing, Rows, nn.MSELoss, {})


def test_what_was_deleted_is_and_what_changed_back_does() -> None:
    torch.manual_seed(0)
    here, there = Keeping(), Keeping()
    vars(here.linear)["gone"] = vars(there.linear)["gone"] = 3
    one, other = Attributes([here], []), Attributes([there], [])
    assert one.leave(0) == []
    here.kept = 5
    del here.linear.gone
    other.take(0, one.leave(0), CPU)
    assert there.kept == 5 and not hasattr(there.linear, "gone")
    there.kept = None
    one.take(0, other.leave(0), CPU)
    assert here.kept is None


def test_what_cannot_move_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "adaptis"):
        _, there, _ = moved(lambda _: None, lambda layer: vars(layer).update(kept=[1, threading.Lock()]))
        assert there.kept == [1, None]
        _, there, _ = moved(lambda _: {"lock": None}, lambda layer: layer.kept.update(lock=threading.Lock()))
    assert ["'kept' that does not move with it (_thread.lock)" in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()
    # What is there on each rank stays, and functions are what they are.
    with caplog.at_level(logging.WARNING, "adaptis"):
        _, there, before = moved(lambda _: [threading.Lock(), lambda: 3, 0], lambda layer: layer.kept.append(4))
        assert there.kept is before and len(there.kept) == 4 and there.kept[1]() == 3
    assert not caplog.records


class Angry:
    """Is not to be looked at."""

    def __len__(self) -> int:
        raise ValueError("no")

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise ValueError("no")


def test_the_device_of_one_rank_is_that_of_the_other() -> None:
    here, there = Keeping(), Keeping()
    sender, receiver = Attributes([here], []), Attributes([there], [])
    here.kept = {"of": torch.device("cuda:0"), "host": torch.device("cpu")}
    receiver.take(0, pickle.loads(pickle.dumps(sender.leave(0))), torch.device("cuda:1"))
    assert there.kept == {"of": torch.device("cuda:1"), "host": CPU}


def test_what_can_not_be_looked_at_ends_nothing() -> None:
    for value in (
        Angry(), torch.empty(3, device="meta"), torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), nn.Linear(2, 2, device="meta"),
    ):
        moved(lambda _, value=value: [value, 0], lambda layer: layer.kept.append(1))


def test_what_several_layers_share_stays_and_is_told_if_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    def layers() -> list[Keeping]:
        both, config = [0.0], Meter()
        made = [Keeping() for _ in range(3)]
        for layer in made:
            layer.config = config
        made[0].kept, made[2].kept = {"losses": both}, both
        return made

    here, there = layers(), layers()
    sender, receiver = Attributes(here, []), Attributes(there, [])
    before = sender.watch()
    sender.tell(before)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "adaptis"):
        here[2].kept.append(1.0)
        sender.tell(before)
    assert ["(0.kept, 2.kept)" in record.getMessage() for record in caplog.records] == [True]
    for layer in range(3):
        receiver.take(layer, sender.leave(layer), CPU)
    assert there[2].kept == [0.0] and there[0].kept["losses"] is there[2].kept
    # Layers that share a parameter are always on one rank.
    sender, receiver = Attributes(here, [[0, 2]]), Attributes(there, [[0, 2]])
    here[2].kept.append(2.0)
    receiver.take(2, sender.leave(2), CPU)
    assert there[2].kept == [0.0, 1.0, 2.0] and there[0].kept["losses"] is there[2].kept


class Growing(nn.Module):
    """Gives a result that depends on what a list, a dict, an object and a tensor hold, as they change from run to run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.history: list[float] = []
        self.counts = {"runs": 0}
        self.meter = Meter()
        self.last = torch.zeros(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.counts["runs"] += 1
        self.history.append(float(self.counts["runs"] % 3))
        self.meter.sums = [*self.meter.sums[-2:], float(x.detach().mean())]
        self.meter.mean += self.meter.sums[-1]
        scale = 1 + 0.01 * sum(self.history[-5:]) + float(self.meter.mean.sum()) / (1 + len(self.history))
        y = x + torch.tanh(self.linear(x)) * scale + self.last
        self.last = 0.1 * y.detach().mean(dim=0)
        return y


def _growing(rank: int, world: int, changes: dict[int, int]) -> list[float]:
    torch.manual_seed(1)
    schedule = Schedule([Growing() for _ in range(6)], 3, functional.mse_loss, plan=random_plan(6, world, 3, 0))
    optimizer = schedule.attach(SGD(schedule.parameters(), lr=0.1))
    generator = torch.Generator().manual_seed(2)
    losses = []
    for step in range(12):
        if step in changes:
            schedule.change(random_plan(6, world, 3, changes[step], epoch=1 + changes[step]))
        x, y = torch.randn(2, 6, WIDTH, generator=generator)
        losses.append(schedule.step(x, target=y).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def _with_changes_and_without(rank: int, world: int) -> tuple[list[float], list[float]]:
    return _growing(rank, world, {}), _growing(rank, world, {2: 1, 4: 2, 6: 3, 7: 4, 9: 5})


def test_losses_are_those_without_changes_of_plan() -> None:
    for losses, others in in_ranks(3, _with_changes_and_without):
        assert losses == others
