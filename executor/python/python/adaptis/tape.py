"""What a rank's works take, layer by layer, in an iteration."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any, Callable, Iterable, Iterator, TypeVar

import torch
from torch import Tensor, nn

from adaptis.replicas import local
from adaptis.split import Debt

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, RECOMPUTE, OPTIMIZER = range(5)

T = TypeVar("T")

Work = tuple[int, int, int, int, int]
"""Layer, phase, microbatch, start and duration in nanoseconds of the monotonic clock."""


class Tape:
    """Takes works while it runs: each from the end of the one before it, so that no time of an instruction is lost."""

    def __init__(self) -> None:
        self.is_running = False
        # What each layer holds is measured for the first microbatch of this iteration.
        self.is_weighing = False
        self.works: list[Work] = []
        # By layer: bytes held from F on, and from I to W.
        self.activation_bytes: dict[int, int] = {}
        self.weight_gradient_bytes: dict[int, int] = {}
        self._since = 0
        # Nanoseconds of a work that another one interrupts.
        self._by = 0

    def start(self) -> None:
        """An instruction begins."""
        if self.is_running:
            self._since = perf_counter_ns()
        self._by = 0

    def took(self, layer: int, phase: int, microbatch: int) -> None:
        """The work of a layer ends."""
        if self.is_running:
            now = perf_counter_ns()
            by, self._by = (0, self._by) if phase == RECOMPUTE else (self._by, 0)
            self.works.append((layer, phase, microbatch, self._since - by, now - self._since + by))
            self._since = now

    def put_by(self) -> None:
        """What was done since the last work belongs to the next one that is no recomputation."""
        if self.is_running:
            now = perf_counter_ns()
            self._by += now - self._since
            self._since = now

    def take(self) -> list[Work]:
        """All works since the last time."""
        works, self.works = self.works, []
        return works

    def is_due(self, layer: int, microbatch: int) -> bool:
        """Whether what this layer holds is to be measured now."""
        return self.is_weighing and microbatch == 0 and layer not in self.activation_bytes

    def weigh(self, layer: int, module: nn.Module, inputs: Iterable[Tensor], run: Callable[[], T]) -> T:
        """Runs a layer's forward and weighs what it leaves behind."""
        given = {part.untyped_storage().data_ptr(): part.untyped_storage() for part in inputs}
        held = dict(given)

        def pack(saved: Tensor) -> Tensor:
            storage = saved.untyped_storage()
            held[storage.data_ptr()] = storage
            return saved

        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
                result = run()
        except RuntimeError as error:
            # Not every operation bears to be looked at so: torch.func does not. What the inputs take is told.
            if "saved tensor hooks" not in str(error):
                raise
            held = given
            result = run()
        own = storages_of(module)
        # Parameters that were gathered for this forward alone are empty by now.
        self.activation_bytes[layer] = sum(storage.nbytes() for at, storage in held.items() if at not in own)
        return result

    def weigh_debts(self, layer: int, microbatch: int, debts: list[Debt], module: nn.Module) -> None:
        """Weighs what is held from I to W."""
        if not self.is_weighing or microbatch != 0 or layer in self.weight_gradient_bytes:
            return
        own = storages_of(module)
        held = {storage_of(part) for debt in debts for part in _captured(debt)}
        self.weight_gradient_bytes[layer] = sum(size for at, size in held if at not in own)


def storages_of(module: nn.Module) -> set[int]:
    """Where the parameters of a module lie."""
    return {local(part).untyped_storage().data_ptr() for part in module.parameters()}


def storage_of(part: Tensor) -> tuple[int, int]:
    """Where a tensor's memory begins, and how much it is."""
    storage = part.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _captured(debt: Any) -> Iterator[Tensor]:
    for cell in debt.__closure__ or ():
        if isinstance(cell.cell_contents, Tensor):
            yield cell.cell_contents
