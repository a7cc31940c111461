"""What a layer was before a run, besides its trained parameters, so that a recomputation gives the same once more.

    before = keeper.before(layer, is_looked_at)
    the layer runs
    keeper.holds(layer, before)       False: it changed what was not kept, so its graph is to be
    keeper.has_stayed(layer, before)  what was not kept is as it was
    with before.again(): the layer runs

1. Small buffers are copied. Large ones are mostly tables that nobody changes: they are copied once a run has changed them,
   as are parameters that are not trained. A change is seen by their version, and at times by their values.
2. Attributes, as counters and what is carried from run to run, are what they were, whichever run has replaced them since:
   the objects themselves, but tensors without their graph, which is to be freed. A tensor that a run changes in place is seen
   by its version: then the graph of the run is kept. What containers and objects hold is for `Attributes.inside`.
3. A recomputation leaves nothing behind: what it replaced is what the runs had made of it.
4. Random numbers are drawn by a key for each layer and microbatch (`chance`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from operator import is_
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm

from adaptis import replicas
from adaptis.memory import storage_of
from adaptis.state import bytes_of

COPIED_BYTES = 1 << 16
"""Buffers up to which a copy costs nothing worth saving."""
LOOKS = 3
"""Runs of a layer under a plan after which the values of what is not copied are compared with those before."""
SAMPLED = 4096
"""Bytes of them that are compared of parameters, and later on, spread over all."""

Store = dict[str, Any]
"""The buffers or the parameters of a module, by name."""


@dataclass
class Left:
    """What was not copied."""

    store: Store
    name: str
    tensor: Tensor
    version: int
    # Of its bytes every so many one as they were, where values are looked at.
    value: Tensor | None
    every: int

    @property
    def key(self) -> tuple[int, str]:
        return id(self.store), self.name

    @property
    def is_the_same(self) -> bool:
        """By all that costs nothing."""
        return self.store.get(self.name) is self.tensor and self.tensor._version == self.version

    @property
    def has_its_value(self) -> bool:
        """As far as it was looked at."""
        return self.value is None or torch.equal(self.value, bytes_of(self.tensor.detach())[:: self.every])


@dataclass
class Before:
    """A layer as it was before a run."""

    # Copies, or what was not copied, by name.
    stores: list[tuple[Store, Store]]
    left: list[Left]
    modules: list[nn.Module]
    # Tensors without their graph.
    attributes: list[tuple[Store, Store]]
    # What a run changes in place is not kept: trained parameters, and tensors that are attributes.
    versions: list[tuple[Tensor, int]]

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Everything as it was, for a run.

        Raises Bypassed after it, where it has changed what was put away for it.
        """
        now = [(store, dict(store)) for store, _ in self.stores]
        attributes = [(store, dict(store)) for store, _ in self.attributes]
        away = [(part, part._version) for store, was in self.stores for part in _others(store, was)]
        _put_back(self.stores)
        _replace(self.attributes)
        try:
            yield
        finally:
            _put_back(now)
            _replace(attributes)
        if _have_changed(away):
            raise Bypassed


class Bypassed(Exception):
    """A layer changes its buffers by other ways than their names, as through a list of them."""


_ABSENT: Any = object()


def rewinding(layer: nn.Module) -> Callable[[], None]:
    """What puts a layer back as it is now, after a run that failed: in place, as others may use its buffers, and what that
    run has changed alone."""
    buffers = [
        (module._buffers, name, buffer, buffer._version, buffer.detach().clone())
        for module in layer.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    attributes = [(vars(module), dict(vars(module))) for module in layer.modules()]

    def rewind() -> None:
        with torch.no_grad():
            for store, name, buffer, version, value in buffers:
                store[name] = buffer
                # Norms' kernels change theirs without a new version.
                is_dense = buffer.layout == torch.strided
                if not is_dense or buffer._version != version or not torch.equal(buffer, value):
                    buffer.copy_(value)
        _replace(attributes)

    return rewind


def _put_back(stores: Sequence[tuple[Store, Store]]) -> None:
    for store, was in stores:
        store.clear()
        store.update(was)


def _replace(attributes: Sequence[tuple[Store, Store]]) -> None:
    """Makes attributes the objects that they were."""
    for store, was in attributes:
        # Nearly all are.
        if len(store) == len(was) and all(map(is_, store.values(), was.values())):
            continue
        for name, value in was.items():
            if store.get(name, _ABSENT) is not value:
                store[name] = value
        for name in store.keys() - was.keys():
            del store[name]


def _others(store: Store, was: Store) -> Iterator[Tensor]:
    return (part for name, part in store.items() if part is not None and was.get(name) is not part)


def _have_changed(versions: Sequence[tuple[Tensor, int]]) -> bool:
    return any(part._version != version for part, version in versions)


class Keeper:
    """Keeps what layers were before their runs."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        # By layer: what is not copied by itself and was changed by a run.
        self._changing: dict[int, set[tuple[int, str]]] = {}
        # By layer, under the plan in force: how often it has run.
        self._looks: dict[int, int] = {}

    def adopt(self) -> None:
        """Another plan is in force."""
        self._looks.clear()

    def before(self, layer: int, is_looked_at: bool) -> Before:
        """What a layer is now; the values of what is not copied may be looked at."""
        looks = self._looks[layer] = self._looks.get(layer, 0) + 1
        is_sampled = looks > LOOKS
        is_looked_at = is_looked_at or not is_sampled
        changing = self._changing.setdefault(layer, set())
        modules = list(self.layers[layer].modules())
        copies = _Copies(modules)
        stores: list[tuple[Store, Store]] = []
        left: list[Left] = []
        for module in modules:
            own: Store = module._buffers
            held = dict(own)
            for name, buffer in own.items():
                if buffer is None:
                    continue
                # Norms' kernels change theirs without a new version.
                is_small = buffer.layout != torch.strided or buffer.nbytes <= COPIED_BYTES
                if is_small or isinstance(module, batchnorm._NormBase) or (id(own), name) in changing:
                    held[name] = copies.of(buffer)
                else:
                    left.append(_left(own, name, buffer, is_looked_at, is_sampled))
            stores.append((own, held))
            stores += self._frozen(module, changing, left, is_looked_at)
        attributes = [(vars(module), dict(vars(module))) for module in modules]
        versions: list[tuple[Tensor, int]] = []
        for _, was in attributes:
            carried = [(name, value) for name, value in was.items() if isinstance(value, Tensor)]
            for name, value in carried:
                versions.append((value.detach(), value._version))
                if value.grad_fn is not None:
                    was[name] = value.detach()
            for part in was["_parameters"].values():
                if part is not None and part.requires_grad and not replicas.is_sharded(part):
                    versions.append((part, part._version))
        return Before(stores, left, modules, attributes, versions)

    def _frozen(
        self, module: nn.Module, changing: set[tuple[int, str]], left: list[Left], is_looked_at: bool
    ) -> Iterator[tuple[Store, Store]]:
        """Parameters that are not trained; copies of those that runs change."""
        own: Store = module._parameters
        held = {}
        for name, part in own.items():
            if part is None or part.requires_grad or replicas.is_sharded(part):
                continue
            if (id(own), name) in changing:
                held[name] = nn.Parameter(part.detach().clone(), requires_grad=False)
            else:
                left.append(_left(own, name, part, is_looked_at, True))
        if held:
            yield own, {**own, **held}

    def holds(self, layer: int, before: Before) -> bool:
        """After the run: whether all that it changed was kept. What was not will be from now on."""
        changed = {
            of.key
            for of in before.left
            if not of.is_the_same or not of.has_its_value
        }
        for of in before.left:
            of.value = None
        self._changing[layer] |= changed
        # Of a module that it has made, nobody knows what it was.
        has_made = len(before.modules) != sum(1 for _ in self.layers[layer].modules())
        return not changed and not has_made and not _have_changed(before.versions)

    def has_stayed(self, layer: int, before: Before) -> bool:
        """Before a recomputation: whether what was not kept is as it was before the run."""
        changing = self._changing.get(layer, set())
        return all(of.is_the_same and of.key not in changing for of in before.left)


def _left(store: Store, name: str, tensor: Tensor, is_looked_at: bool, is_sampled: bool) -> Left:
    # What has no memory of its own, as a packed weight of others, is known by itself.
    is_looked_at = is_looked_at and tensor.layout == torch.strided and storage_of(tensor) is not None
    # Odd, so that it is not always the same byte of a number.
    every = max(1, tensor.nbytes // SAMPLED) | 1 if is_looked_at and is_sampled else 1
    value = bytes_of(tensor.detach())[::every].clone() if is_looked_at else None
    return Left(store, name, tensor, tensor._version, value, every)


class _Copies:
    """Copies of buffers: of one that stands twice one, and of those that share memory such that share it."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._copies: dict[int, Tensor] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._users: dict[int, set[int]] = {}
        for module in modules:
            for buffer in module._buffers.values():
                if buffer is not None and type(buffer) is Tensor and buffer.layout == torch.strided:
                    self._users.setdefault(buffer.untyped_storage().data_ptr(), set()).add(id(buffer))

    def of(self, buffer: Tensor) -> Tensor:
        if id(buffer) not in self._copies:
            self._copies[id(buffer)] = self._of(buffer)
        return self._copies[id(buffer)]

    def _of(self, buffer: Tensor) -> Tensor:
        if type(buffer) is not Tensor or buffer.layout != torch.strided:
            return buffer.clone()
        storage = buffer.untyped_storage()
        at = storage.data_ptr()
        if at == 0 or len(self._users[at]) == 1:
            return buffer.clone()
        if at not in self._storages:
            self._storages[at] = storage.clone()
        copy = torch.empty(0, dtype=buffer.dtype, device=buffer.device)
        return copy.set_(self._storages[at], buffer.storage_offset(), buffer.size(), buffer.stride())
