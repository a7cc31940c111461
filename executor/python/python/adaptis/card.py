"""What a rank knows of its device: kind, memory, how much of it is in use, and how works on it are timed.

    Host    what is asked of it is done when the call returns: the host's own clock
    Cuda    what is asked of it waits in a stream: events in that stream

Nothing here waits for a device, but for `finish`.
"""

from __future__ import annotations

import os
import resource
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor

from adaptis import _native


class Host:
    """A device whose work is done when the call returns."""

    has_streams = False
    """Works wait in streams, where only events know when they run."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._record = self._highest()

    def kind_and_memory(self) -> tuple[str, int]:
        """Its kind, and its memory: of a host, this rank's share."""
        share = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        return "cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // max(1, share)

    def reserved_bytes(self, state_bytes: int) -> int:
        """What is in use by none of the layers, whose state is so large, between two iterations."""
        return max(0, self._held() - state_bytes)

    def peak_bytes(self) -> int:
        """The highest use since the last time, without a hand in the job's own counts: a new record where one was set, else
        what is in use."""
        highest = self._highest()
        if highest > self._record:
            self._record = highest
            return highest
        return self._held()

    def stream(self) -> int:
        """The number of the stream that works are put into now."""
        return 0

    def entered(self) -> AbstractContextManager[Any]:
        """Makes it the one that calls of the driver are for."""
        return nullcontext()

    def finish(self) -> None:
        """Waits until all that was asked of it is done. For the end, and for what is measured on purpose."""

    def fetch(self, number: Tensor) -> Callable[[], float | None]:
        """Tells what a number on it is, once that is known."""
        value = float(number)
        return lambda: value

    def _held(self) -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _highest(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class Cuda(Host):
    """A GPU. Its figures are those of torch's own allocator, which asks nobody else."""

    has_streams = True

    def __init__(self, device: torch.device) -> None:
        self.index = torch.cuda.current_device() if device.index is None else device.index
        super().__init__(torch.device("cuda", self.index))

    def kind_and_memory(self) -> tuple[str, int]:
        memory = torch.cuda.get_device_properties(self.index).total_memory
        name = torch.cuda.get_device_name(self.index)
        return _native.kind_of(name, memory) or name.lower().replace(" ", "-"), memory

    def reserved_bytes(self, state_bytes: int) -> int:
        # What the allocator held beyond its tensors when it held most, and tensors that are none of the layers'.
        figures = self._figures()
        spare = figures["reserved_bytes.all.peak"] - figures["allocated_bytes.all.peak"]
        return max(0, spare) + max(0, figures["allocated_bytes.all.current"] - state_bytes)

    def stream(self) -> int:
        # As `torch.cuda.current_stream(device).cuda_stream`, without an object for each call.
        return torch._C._cuda_getCurrentRawStream(self.index)

    def entered(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.index)

    def finish(self) -> None:
        torch.cuda.synchronize(self.index)

    def fetch(self, number: Tensor) -> Callable[[], float | None]:
        copy = torch.empty((), dtype=number.dtype, device="cpu", pin_memory=True)
        copy.copy_(number.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.index))
        return lambda: float(copy) if event.query() else None

    def _held(self) -> int:
        return self._figures()["reserved_bytes.all.current"]

    def _highest(self) -> int:
        return self._figures()["reserved_bytes.all.peak"]

    def _figures(self) -> dict[str, int]:
        # Nothing is told before the first tensor.
        return defaultdict(int, torch.cuda.memory_stats(self.index))


KINDS: dict[str, type[Host]] = {"cpu": Host, "cuda": Cuda}
"""By torch's type of device."""


def of(device: torch.device) -> Host:
    """The card behind a device.

    Raises ValueError for a type that can't be measured yet.
    """
    kind = KINDS.get(device.type)
    if kind is None:
        raise ValueError(f"layers on {device.type!r} can't be measured yet: {' and '.join(KINDS)} can")
    return kind(device)
