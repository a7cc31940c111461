"""What a rank's works take, layer by layer, in an iteration."""

from __future__ import annotations

import contextlib
from time import perf_counter_ns
from typing import Any, Iterable, Iterator

import torch
from torch import Tensor, nn

from adaptis.split import Debt

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, RECOMPUTE, OPTIMIZER = range(5)

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

    def start(self) -> None:
        """An instruction begins."""
        if self.is_running:
            self._since = perf_counter_ns()

    def took(self, layer: int, phase: int, microbatch: int) -> None:
        """The work of a layer ends."""
        if self.is_running:
            now = perf_counter_ns()
            self.works.append((layer, phase, microbatch, self._since, now - self._since))
            self._since = now

    def take(self) -> list[Work]:
        """All works since the last time."""
        works, self.works = self.works, []
        return works

    def weighing(
        self, layer: int, microbatch: int, module: nn.Module, inputs: Iterable[Tensor], is_due: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Weighs what a layer's forward leaves behind, if that is due and not known."""
        if not is_due or not self.is_weighing or microbatch != 0 or layer in self.activation_bytes:
            return contextlib.nullcontext()
        return self._weighing(layer, module, inputs)

    @contextlib.contextmanager
    def _weighing(self, layer: int, module: nn.Module, inputs: Iterable[Tensor]) -> Iterator[None]:
        own = {part.untyped_storage().data_ptr() for part in module.parameters()}
        held = {_storage(part) for part in inputs}

        def pack(saved: Tensor) -> Tensor:
            held.add(_storage(saved))
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            yield
        self.activation_bytes[layer] = sum(size for at, size in held if at not in own)

    def weigh_debts(self, layer: int, microbatch: int, debts: list[Debt], module: nn.Module) -> None:
        """Weighs what is held from I to W."""
        if not self.is_weighing or microbatch != 0 or layer in self.weight_gradient_bytes:
            return
        own = {part.untyped_storage().data_ptr() for part in module.parameters()}
        held = {_storage(part) for debt in debts for part in _captured(debt)}
        self.weight_gradient_bytes[layer] = sum(size for at, size in held if at not in own)


def _storage(part: Tensor) -> tuple[int, int]:
    storage = part.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _captured(debt: Any) -> Iterator[Tensor]:
    for cell in debt.__closure__ or ():
        if isinstance(cell.cell_contents, Tensor):
            yield cell.cell_contents
