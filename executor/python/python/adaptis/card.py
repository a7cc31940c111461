"""What a rank tells of its device: kind, memory, and how much of it is in use."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch


def kind_and_memory(device: torch.device) -> tuple[str, int]:
    """Its kind, and its memory: of a host, this rank's share."""
    if device.type == "cpu":
        share = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        return "cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // max(1, share)
    memory = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.get_device_name(device).lower().replace(" ", "-"), memory


def resident_bytes(device: torch.device) -> int:
    """What the process holds of it now."""
    if device.type == "cpu":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return torch.cuda.memory_reserved(device)


class Peak:
    """The highest use of an iteration, without a hand in the job's own counts: a new record where one was set, else what is
    in use."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._record = self._highest()

    def bytes(self) -> int:
        """Since the last time."""
        highest = self._highest()
        if highest > self._record:
            self._record = highest
            return highest
        return resident_bytes(self.device)

    def _highest(self) -> int:
        if self.device.type != "cpu":
            return torch.cuda.max_memory_reserved(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
