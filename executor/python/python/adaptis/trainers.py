"""Which optimizers train the layers that are observed: the end of their steps ends iterations."""

from __future__ import annotations

import logging
import weakref
from typing import Sequence

from torch import nn
from torch.optim import Optimizer

from adaptis.facts import parameters_of

logger = logging.getLogger("adaptis")

STRANGE_STEPS = 16
"""Steps of an optimizer with none of the layers' parameters, and none of one that has some, after which its steps end
iterations: it trains copies of them, as in another precision."""


class Trainers:
    """The optimizers of some layers."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        # By its identity: an optimizer, its groups, and whether it trains a layer.
        self._known: dict[int, tuple[weakref.ref[Optimizer], int, bool]] = {}
        # Steps of each other one.
        self._strange: dict[int, int] = {}
        # The one that was taken for a trainer of copies.
        self._taken: int | None = None

    def has(self, optimizer: Optimizer) -> bool:
        """Whether it trains a layer."""
        known = self._known.get(id(optimizer))
        if known is not None and known[0]() is optimizer and known[1] == len(optimizer.param_groups):
            return known[2]
        own = {id(part) for layer in self._layers for part in layer.parameters()}
        is_one = any(id(part) in own for part in parameters_of(optimizer))
        if is_one and self._taken is not None:
            # It was not: it only came first.
            logger.warning("an optimizer (%s) trains the layers' own parameters: its steps end iterations from now on", type(optimizer).__name__)
            del self._known[self._taken]
            self._taken = None
        self._known[id(optimizer)] = weakref.ref(optimizer), len(optimizer.param_groups), is_one
        return is_one

    def takes(self, optimizer: Optimizer) -> bool:
        """After a step of one that trains none, where none does: whether it is taken for one that trains copies."""
        count = self._strange[id(optimizer)] = self._strange.get(id(optimizer), 0) + 1
        if count < STRANGE_STEPS:
            return False
        logger.warning(
            "no optimizer trains the layers' own parameters, so steps of another one (%s) are taken to end iterations, as of one "
            "that trains copies in another precision; what it keeps is not counted as the layers'", type(optimizer).__name__
        )
        self._known[id(optimizer)] = weakref.ref(optimizer), len(optimizer.param_groups), True
        self._taken = id(optimizer)
        return True

    def known(self) -> list[Optimizer]:
        """Those that train a layer and are still there."""
        found = [of() for of, _, is_one in self._known.values() if is_one]
        return [optimizer for optimizer in found if optimizer is not None]
