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
from typing import Callable, Iterable, Sequence

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
    beside: int = 1
    """Ranks with the same part of the pipeline, itself among them, that may use some of the same cores."""

    @staticmethod
    def here(computing: float, beside: int) -> Own:
        cores = frozenset(os.sched_getaffinity(0))
        most = quota(_told(lambda: Path("/proc/self/cgroup").read_text()))
        # Containers of one machine share its cores, but none shares another one's quota.
        container = "" if most is None else _told(lambda: os.readlink("/proc/self/ns/cgroup"))
        host = _told(lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip()) or os.uname().nodename
        host += container
        return Own(host, cores, min(len(cores), most or len(cores)), torch.get_num_threads(), computing, beside)


def beside(own: Own, others: Sequence[Own]) -> int:
    """How many of these ranks, itself among them, may use some of a rank's cores."""
    return sum(other.host == own.host and bool(other.cores & own.cores) for other in others)


def crowds(owns: Sequence[Own | None]) -> list[tuple[list[int], float]]:
    """Ranks that share too few cores, and how many of them work at their own speed at one time. None: not on a host."""
    on_host: dict[str, dict[int, Own]] = defaultdict(dict)
    for rank, own in enumerate(owns):
        if own is not None:
            on_host[own.host][rank] = own
    found = []
    for of_host in on_host.values():
        for together in _overlapping({rank: own.cores for rank, own in of_host.items()}):
            members = [of_host[rank] for rank in together]
            cores: float = min(len(frozenset().union(*(own.cores for own in members))), max(own.at_most for own in members))
            # What other replicas leave: they do the same at the same time.
            cores *= len(members) / sum(own.beside for own in members)
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
    """How long the thread that works has waited for a core, in nanoseconds. It does not count as such that it had nothing to
    do. Counts of two threads have nothing in common: `follow` where another one may go on."""

    def __init__(self) -> None:
        self._file = -1
        self._thread = -1
        self.follow()

    def follow(self) -> None:
        """It is the calling thread that works."""
        thread = threading.get_native_id()
        if thread == self._thread:
            return
        self._close()
        self._thread = thread
        try:
            self._file = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            if int(os.pread(self._file, 64, 0).split()[0]) == 0:
                raise ValueError("it has run for no time at all")
            self._told()
        except (OSError, IndexError, ValueError):
            # A kernel that does not count it, or always tells 0: whatever the thread did not compute.
            self._close()

    def __call__(self) -> int:
        if self._file >= 0:
            try:
                return self._told()
            except (OSError, IndexError, ValueError):
                # That thread has ended.
                self._thread = -1
                self.follow()
        return perf_counter_ns() - thread_time_ns() if self._file < 0 else self._told()

    def _told(self) -> int:
        return int(os.pread(self._file, 64, 0).split()[1])

    def _close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        self._close()


CGROUPS = Path("/sys/fs/cgroup")


def quota(groups: str, root: Path = CGROUPS) -> float | None:
    """How many cores a process of these groups may use at one time, where that is limited: its group, or one that it is in.
    `groups` is what /proc/PID/cgroup says."""
    found = []
    for line in groups.splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        # Of the older kind each controller has a tree of its own.
        top = root / kinds if kinds else root
        within = top / path.lstrip("/")
        # In a container its own group is the root of what it sees.
        for at in [of for of in (within, *within.parents) if of.is_relative_to(top)] or [top]:
            found.append(_limit(at))
    limits = [limit for limit in found if limit is not None]
    return min(limits) if limits else None


def _limit(group: Path) -> float | None:
    for read in (
        lambda: (group / "cpu.max").read_text().split(),
        lambda: [(group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")],
    ):
        try:
            most, period = read()
            return int(most) / int(period) if most not in ("max", "-1") else None
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return None


def _told(tell: Callable[[], str]) -> str:
    """What the kernel tells; nothing where it does not."""
    try:
        return tell()
    except OSError:
        return ""
