"""What a layer gives: whether it goes on changing it, and whether a recomputation gives it once more."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptis.forms import Bundle
from adaptis.memory import storage_of
from adaptis.state import bytes_of

LOOKS = 3
"""Runs of a layer of which the next one gets copies."""
AGAIN = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
AGAIN_ELSE = 1e-4
"""Shares of the largest value that a recomputation may be off by, for kernels that add up in any order."""


class Given:
    """What a layer has given: the first times as copies, to see whether it goes on changing it."""

    def __init__(self, layer: int) -> None:
        self._layer = layer
        self._runs = 0
        self._has_changed = False
        # Of the last run, with versions.
        self._last: list[tuple[Tensor, int]] = []

    def pass_on(self, outputs: Bundle, inputs: Bundle) -> Bundle:
        """Each part contiguous, and none of it in memory that the layer goes on changing."""
        if any(part._version != version for part, version in self._last):
            if self._runs > LOOKS:
                raise RuntimeError(
                    f"layer {self._layer} changes in place what it gave for an earlier microbatch, which is still needed: let it "
                    "keep a copy, as x.detach().clone()"
                )
            self._has_changed = True
        self._runs += 1
        self._last = []
        is_copied = self._has_changed or self._runs <= LOOKS
        parts = []
        for part in outputs:
            whole = part.contiguous()
            # What was worked out of what is trained is new, but for views of what was not.
            of = whole._base if whole._is_view() and whole._base is not None else whole
            is_old = of.grad_fn is None and storage_of(whole) not in map(storage_of, inputs)
            if whole is part and not is_old and not self._has_changed:
                self._last.append((whole.detach(), whole._version))
            parts.append(whole.detach().clone() if whole is part and (is_old or is_copied) else whole)
        return tuple(parts)

    def let_go(self) -> None:
        """A backward came to it: nobody needs it any longer, but to look at in the first runs."""
        if self._runs > LOOKS:
            self._last = []


def is_again(gave: Tensor, again: Tensor) -> bool:
    """Whether a recomputation gave what the F did, but for the order in which kernels add up. Waits for a GPU: it is looked
    at once for each layer and plan, and then of all layers and microbatches one at a time."""
    if gave.shape != again.shape or gave.dtype != again.dtype:
        return False
    # Numbers of a byte are not reckoned with.
    if not (gave.is_floating_point() or gave.is_complex()) or gave.element_size() < 2:
        return torch.equal(bytes_of(gave.detach()), bytes_of(again.detach()))
    with torch.no_grad():
        scale = float(gave.detach().abs().nan_to_num(0.0, 0.0, 0.0).amax()) if gave.numel() else 0.0
        off = AGAIN.get(gave.dtype, AGAIN_ELSE) * scale
        return torch.allclose(gave, again, rtol=0.0, atol=off, equal_nan=True)
