"""What layers hold for a microbatch, weighed from outside: nearly all that a backward needs is what a layer's parts take and
give, each counted once."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Sequence

from torch import Tensor, nn

from adaptis.memory import storage_of, storages_of

Guard = Callable[[Callable[..., None]], Callable[..., None]]


def tensors(value: Any) -> list[Tensor]:
    """Those of a layer's arguments or results that are tensors."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return [part for part in parts if isinstance(part, Tensor)]


class Scales:
    """Hooks on the parts of layers, for as long as they are wanted."""

    def __init__(self, layers: Sequence[nn.Module], guard: Guard) -> None:
        self.bytes: dict[int, int] = {}
        self._layers = layers
        self._guard = guard
        self._handles: list[Any] = []
        self._is_over = False
        # The layer under way, and the storages that its parts have taken and given.
        self._at: int | None = None
        self._held: set[tuple[int, int]] = set()

    def hook(self) -> None:
        """Weighs from now on."""
        if self._is_over or self._handles:
            return
        for layer in self._layers:
            for part in layer.modules():
                if part is not layer and not any(True for _ in part.children()):
                    self._handles.append(part.register_forward_hook(self._guard(self._passed)))

    def unhook(self) -> None:
        """Weighs nothing until it is hooked again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def end(self) -> None:
        """Has weighed all that it will."""
        self._is_over = True
        self.unhook()

    def put_on(self, at: int) -> None:
        """A layer begins."""
        is_new = not self._is_over and at not in self.bytes
        self._at, self._held = (at if is_new else None), set()

    def take_off(self, at: int, module: nn.Module, inputs: Any) -> None:
        """It ends."""
        if self._at == at:
            own = storages_of(module)
            held = self._held | _storages(tensors(inputs))
            # Parts that are compiled tell nothing.
            if self._held or not any(True for _ in module.children()):
                self.bytes[at] = sum(size for place, size in held if place not in own)
        self._at = None

    def _passed(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if self._at is not None:
            self._held |= _storages((*tensors(inputs), *tensors(outputs)))


def _storages(parts: Iterable[Tensor]) -> set[tuple[int, int]]:
    return {found for part in parts if (found := storage_of(part)) is not None}
