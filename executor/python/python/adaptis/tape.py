"""What a rank's works take, layer by layer, in an iteration, and what they hold."""

from __future__ import annotations

from typing import Any, Callable, Iterable, TypeVar

import torch
from torch import Tensor, nn

from adaptis.before import rewinding
from adaptis.clock import Clock, HostClock, Parts
from adaptis.memory import storage, storage_of, storages_of
from adaptis.split import Debt, tensors_of_debt

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, RECOMPUTE, OPTIMIZER = range(5)

T = TypeVar("T")


class Tape:
    """Times works while it runs: each from where the one before it ends, so that no time of an instruction is lost."""

    def __init__(self) -> None:
        self.is_running = False
        # What each layer holds is measured for the first microbatch of this iteration.
        self.is_weighing = False
        self.clock: Clock = HostClock()
        # By layer: bytes held from F on, and from I to W.
        self.activation_bytes: dict[int, int] = {}
        self.weight_gradient_bytes: dict[int, int] = {}
        self._span: Any = None
        # Where the instruction before ended, if it was timed, and nothing is under way.
        self._left: Any = None
        # The work under way while another one interrupts it.
        self._outer: Any = None
        # The optimizer's step under way, and what it is of.
        self._step: Any = None
        self._parts: Parts = ()

    def begin(self, layer: int, phase: int, microbatch: int) -> None:
        """The work of a layer begins, and what was under way ends."""
        if not self.is_running:
            return
        left, self._left = self._left, None
        parts = ((layer, phase, 1),)
        if left is None:
            self._span = self.clock.passed(self._span, parts, microbatch)
        else:
            self._span = self.clock.begin_after(left, parts, microbatch)

    def end(self) -> None:
        """The work under way ends, and with it an instruction."""
        self._left = None
        if self._span is not None:
            self._left = self.clock.end(self._span)
            self._span = None
        if self._parts:
            # What the optimizer's closure computes is the layers' own.
            self.clock.dropped(self._step)
            self._step = self.clock.begin(self._parts, 0)

    def pass_over(self) -> None:
        """What passes before the next instruction is not measured."""
        self._left = None

    def carry(self, transfers: int) -> None:
        """So much is sent or received between two instructions, or got ready for."""
        if self._left is not None:
            self._left = self.clock.carried(self._left, transfers)

    def wait(self, wait: Callable[[], object]) -> None:
        """Waits for a transfer between two instructions."""
        if self._left is None:
            wait()
        else:
            self._left = self.clock.waited(self._left, wait)

    def interrupt(self, layer: int, phase: int, microbatch: int) -> None:
        """The work of a layer begins, in the middle of what is under way if something is."""
        if self.is_running:
            self._outer = self._span
            self._span = self.clock.begin_within(self._outer, ((layer, phase, 1),), microbatch)

    def go_on(self) -> None:
        """It ends, and what it interrupted goes on."""
        self.clock.interrupted(self._span, self._outer)
        self._span, self._outer = self._outer, None

    def begin_step(self, parts: Parts) -> None:
        """An optimizer's step begins, whose time layers share by weights."""
        if self.is_running:
            # One that failed has no end.
            self.clock.dropped(self._step)
            self._parts = parts
            self._step = self.clock.begin(parts, 0)

    def end_step(self) -> None:
        """It ends."""
        if self._parts:
            self.clock.end(self._step)
        self._step, self._parts = None, ()

    def rest(self) -> None:
        """Nothing is recorded of the iteration under way."""
        for span in (self._span, self._outer, self._step):
            self.clock.dropped(span)
        self._span = self._left = self._outer = self._step = None
        self._parts = ()
        self.clock.rest()

    def is_due(self, layer: int, microbatch: int) -> bool:
        """Whether what this layer holds is to be measured now."""
        return self.is_weighing and microbatch == 0 and layer not in self.activation_bytes

    def weigh(self, layer: int, module: nn.Module, inputs: Iterable[Tensor], run: Callable[[], T]) -> T:
        """Runs a layer's forward and weighs what it leaves behind."""
        rewind = rewinding(module)
        given = {of.data_ptr(): of for part in inputs if (of := storage(part)) is not None}
        held = dict(given)

        def pack(saved: Tensor) -> Tensor:
            own = storage(saved)
            if own is not None:
                held[own.data_ptr()] = own
            return saved

        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
                result = run()
        except RuntimeError as error:
            # Not every operation bears to be looked at so: torch.func does not. What the inputs take is told.
            if "saved tensor hooks" not in str(error):
                raise
            held = given
            rewind()
            result = run()
        parameters = storages_of(module)
        # Those that were gathered for this forward alone are empty by now.
        self.activation_bytes[layer] = sum(of.nbytes() for at, of in held.items() if at not in parameters)
        return result

    def weigh_debts(self, layer: int, microbatch: int, debts: list[Debt], module: nn.Module) -> None:
        """Weighs what is held from I to W."""
        if not self.is_weighing or microbatch != 0 or layer in self.weight_gradient_bytes:
            return
        own = storages_of(module)
        held = {storage_of(part) for debt in debts for part in tensors_of_debt(debt)}
        self.weight_gradient_bytes[layer] = sum(size for at, size in filter(None, held) if at not in own)

