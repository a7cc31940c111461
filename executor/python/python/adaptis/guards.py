"""What would train otherwise than in one process, found while layers run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import Tensor, nn

LOOKS = 4
"""Runs of a layer after which its shared buffers are compared with what they were, for which a GPU is waited for."""
DOUBTS_MAX = 4
"""How often that begins anew."""


@dataclass
class Watch:
    """Over what a layer does to a buffer that others use as well."""

    # Runs of the layer after which its value is still to be compared.
    looks: int = LOOKS
    # How often it was another one.
    changes: int = 0
    # How often it may have been, after the first looks.
    doubts: int = 0


@dataclass
class Shared:
    """A buffer that several layers use, before one of them runs."""

    module: nn.Module
    name: str
    watch: Watch
    buffer: Tensor
    version: int
    # Where it is compared.
    value: Tensor | None


class SharedBuffers:
    """Refuses a layer that changes what another one uses: that one would see it on this rank alone, and in the plan's order.

    What is worked out once, or is the same each time, as a table by the length of x, is no such change.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        users: dict[int, set[int]] = {}
        found: list[tuple[int, nn.Module, str, int]] = []
        for at, layer in enumerate(layers):
            for module in layer.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        users.setdefault(id(buffer), set()).add(at)
                        found.append((at, module, name, id(buffer)))
        # By layer: each such buffer with its module and name.
        self._of: dict[int, list[tuple[nn.Module, str, Watch]]] = {}
        for at, module, name, number in found:
            if len(users[number]) > 1:
                self._of.setdefault(at, []).append((module, name, Watch()))

    def before(self, layer: int) -> list[Shared]:
        """What a layer shares, as it is before it runs."""
        seen = []
        for module, name, watch in self._of.get(layer, ()):
            buffer = module._buffers[name]
            if buffer is not None:
                value = buffer.clone() if watch.looks > 0 else None
                seen.append(Shared(module, name, watch, buffer, buffer._version, value))
        return seen

    def after(self, layer: int, seen: Sequence[Shared]) -> None:
        """Looks at it after the run."""
        for was in seen:
            buffer, watch = was.module._buffers[was.name], was.watch
            if was.value is None:
                # Norms' kernels change theirs without a new version, but from the first run on.
                if (buffer is not was.buffer or was.buffer._version != was.version) and watch.doubts < DOUBTS_MAX:
                    watch.looks, watch.doubts = LOOKS, watch.doubts + 1
                continue
            watch.looks -= 1
            if buffer is None or buffer.shape != was.value.shape or torch.equal(buffer, was.value):
                continue
            watch.changes += 1
            if watch.changes > 1:
                raise RuntimeError(
                    f"layer {layer} changes the buffer {was.name!r} again and again, which another layer uses as well: it "
                    "would see that on this rank alone, and in the plan's order; give each layer its own, or make them one layer"
                )


def refuse_parameters(loss: Tensor, outputs: Sequence[Any]) -> None:
    """Refuses a loss with parameters: the rank of the last layer, whichever it is, would train its own ones alone."""
    known = {id(part) for part in outputs}
    reached, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in reached:
            continue
        reached.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise RuntimeError(
                f"loss_fn: the loss depends on a parameter of its own, of shape {tuple(leaf.shape)}, which would not move "
                "with the last layer; make it a part of that layer, which returns what loss_fn then needs"
            )
        ahead += [following for following, _ in node.next_functions]
