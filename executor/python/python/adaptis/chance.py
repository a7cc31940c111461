"""Random numbers that do not depend on the plan: each layer's draws are keyed by seed, step, layer and microbatch."""

from __future__ import annotations

import importlib
import random
import sys
from typing import Any

import torch

_MASK = (1 << 64) - 1


def _mixed(value: int) -> int:
    """SplitMix64's last step: all bits of the result depend on all of the value."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def key(seed: int, step: int, layer: int, microbatch: int) -> int:
    """One number for all of them."""
    value = _mixed(seed + 0x9E3779B97F4A7C15 & _MASK)
    for part in (step, layer, microbatch):
        value = _mixed(value + part * 0x9E3779B97F4A7C15 + 1 & _MASK)
    return value


class Generator:
    """The default generators of a device, of Python and of NumPy, seeded for the layer that runs next and put back after the
    iteration."""

    def __init__(self, device: torch.device) -> None:
        self.generators = [torch.default_generator]
        if device.type == "cuda":
            torch.cuda.init()
            index = torch.cuda.current_device() if device.index is None else device.index
            self.generators.append(torch.cuda.default_generators[index])
        if "numpy" in sys.modules:
            # It would come by itself in the middle of a step.
            importlib.import_module("numpy.random")
        self.kept: list[torch.Tensor] = []
        # Of Python, and of NumPy if it is there.
        self.others: list[Any] = []

    def keep(self) -> None:
        """What the job itself draws goes on as if no layer had drawn anything."""
        self.kept = [generator.get_state() for generator in self.generators]
        of_numpy = _numpy()
        self.others = [random.getstate(), None if of_numpy is None else of_numpy.get_state()]

    def seed(self, value: int) -> None:
        """The next draws depend on this alone."""
        for generator in self.generators:
            generator.manual_seed(value)
        random.seed(value)
        of_numpy = _numpy()
        if of_numpy is not None:
            of_numpy.seed(value & 0xFFFFFFFF)

    def put_back(self) -> None:
        """Undoes all since `keep`."""
        for generator, state in zip(self.generators, self.kept):
            generator.set_state(state)
        if self.others:
            python, numpys = self.others
            random.setstate(python)
            of_numpy = _numpy()
            if of_numpy is not None and numpys is not None:
                of_numpy.set_state(numpys)
        self.kept, self.others = [], []


def _numpy() -> Any:
    found = sys.modules.get("numpy.random")
    # Another thread may be importing it.
    return found if hasattr(found, "set_state") else None
