"""Cores of hosts that have fewer of them than their ranks have threads.

    Own      what a rank may use: of which host, which of its cores
    crowds   which ranks share cores, once all have told theirs
    Waits    how long a thread waited for a core; what it works is the rest
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns, thread_time_ns
from typing import Iterable, Sequence

import torch


@dataclass(frozen=True)
class Own:
    """The cores of a rank whose layers are on a host."""

    host: str
    """The same for all ranks that a core may go round among."""
    cores: frozenset[int]
    at_most: float
    """Of these cores, at one time, for all processes of the container together."""
    threads: int
    computing: float
    """The share of its works, but for waits for a core, in which a thread of it computes: a layer may also sleep."""
    beside: int
    """Ranks of its host, itself and those of other replicas among them, that go round among the same cores."""

    @staticmethod
    def here(computing: float, replicas: int) -> Own:
        cores = frozenset(os.sched_getaffinity(0))
        quota = _quota()
        # Containers of one machine share its cores, but none shares another one's quota.
        container = "" if quota is None else _text("/proc/self/ns/cgroup", os.readlink)
        host = _text("/proc/sys/kernel/random/boot_id", lambda path: Path(path).read_text().strip()) + container
        # Who is bound to some of the cores has them for itself.
        local = os.environ.get("LOCAL_WORLD_SIZE", "")
        is_among_all = replicas > 1 and local.isdecimal() and len(cores) == os.cpu_count()
        beside = int(local) if is_among_all else 1
        return Own(host, cores, min(len(cores), quota or len(cores)), torch.get_num_threads(), computing, beside)


def crowds(owns: Sequence[Own | None]) -> list[tuple[list[int], float]]:
    """Ranks that share too few cores, and how many of them work at their own speed at one time. None: not on a host."""
    ranks_of: dict[str, list[int]] = defaultdict(list)
    for rank, own in enumerate(owns):
        if own is not None:
            ranks_of[own.host].append(rank)
    found = []
    for ranks in ranks_of.values():
        for together in _overlapping({rank: owns[rank].cores for rank in ranks}):  # type: ignore[union-attr]
            members = [own for rank in together if (own := owns[rank]) is not None]
            cores = min(len(frozenset().union(*(own.cores for own in members))), max(own.at_most for own in members))
            # What other replicas leave: they do the same at the same time.
            cores *= len(members) / max(len(members), *(own.beside for own in members))
            demand = sum(own.threads * own.computing for own in members) / len(members)
            if demand * len(members) > cores:
                found.append((together, cores / demand))
    return found


def _overlapping(cores_of: dict[int, frozenset[int]]) -> Iterable[list[int]]:
    """Ranks, put together as far as their cores overlap."""
    parts: list[tuple[list[int], frozenset[int]]] = []
    for rank, cores in cores_of.items():
        apart = [part for part in parts if not part[1] & cores]
        joined = [part for part in parts if part[1] & cores]
        ranks = sorted([rank, *(of for part in joined for of in part[0])])
        parts = [*apart, (ranks, cores.union(*(part[1] for part in joined)))]
    return [ranks for ranks, _ in parts]


class Waits:
    """How long the thread that made it has waited for a core, in nanoseconds. It does not count as such that it had nothing
    to do."""

    def __init__(self) -> None:
        try:
            self._file = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            int(os.pread(self._file, 64, 0).split()[1])
        except (OSError, IndexError, ValueError):
            # A kernel that does not count it: whatever the thread did not compute.
            self._file = -1

    def __call__(self) -> int:
        if self._file < 0:
            return perf_counter_ns() - thread_time_ns()
        return int(os.pread(self._file, 64, 0).split()[1])

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


def _quota() -> float | None:
    """How many cores this container may use at one time, where that is limited."""
    try:
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _text(path: str, read) -> str:  # type: ignore[no-untyped-def]
    try:
        return str(read(path))
    except OSError:
        return ""
