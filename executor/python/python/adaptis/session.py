"""A rank's part in a run that a coordinator watches: what it declares, what it measures, and the plans that it takes.

    step 0          trains by itself; what passes between layers and what optimizers keep is learned
    step 1          all ranks declare the job, each introduces itself to the coordinator
    step k          START has come to all: from here on works, iterations and memory are recorded
    any step > k    all ranks are armed with a new plan: they go over to it

1. Training waits for neither agent nor coordinator, and fails with neither: without them it goes on by the plan in force.
   Nor does it wait for a GPU, but to measure links and to move layers: losses are told when they have come from there.
2. Ranks agree by the words that they tell one another at the beginning of every step, so they always do the same.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import random
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from adaptis import _native, card, clock, cores, state
from adaptis._native import Plan
from adaptis.clock import HostClock
from adaptis.facts import Fact, told
from adaptis.tape import OPTIMIZER, Tape

if TYPE_CHECKING:
    from adaptis.replicas import Replicas
    from adaptis.schedule import Schedule

logger = logging.getLogger("adaptis")

FAREWELL_SECONDS = 5.0
"""How long the coordinator gets to record the end."""
PROBE_BYTES = (8, 64 << 10, 1 << 20)
"""Sizes by which links are measured when a rank begins to take part."""
PROBE_BYTES_DEVICE = (8, 1 << 20, 16 << 20, 64 << 20)
"""Of links between GPUs, where a call takes longer than most tensors."""
PROBES = 3
"""Probes of each size; the quickest counts."""
PEERS_MAX = 16
"""Ranks up to which every pair is probed; beyond, neighbours at distances of powers of two."""


@dataclass(frozen=True)
class Settings:
    """Where the coordinator and the rings are."""

    coordinator: str
    rings: Path
    run: str | None
    keys: str | None

    @staticmethod
    def found(coordinator: str | None) -> Settings | None:
        """From the argument, else the environment; none where there is no coordinator, or it is not wanted."""
        variables = os.environ
        coordinator = variables.get("ADAPTIS_COORDINATOR", "") if coordinator is None else coordinator
        if not coordinator:
            return None
        rings = variables.get("ADAPTIS_RINGS") or f"/dev/shm/adaptis-{os.getuid()}"
        run = variables.get("ADAPTIS_RUN") or variables.get("SLURM_JOB_ID")
        return Settings(coordinator, Path(rings), run, variables.get("ADAPTIS_KEYS") or None)

    def name(self) -> str:
        """The run's, or one by chance."""
        return self.run or f"run-{random.SystemRandom().getrandbits(32):08x}"

    def ring(self, device: str) -> str:
        """Where the ring of a device is to be made; what goes wrong from now on can be read."""
        self.rings.mkdir(parents=True, exist_ok=True)
        try:
            _native.log(os.environ.get("ADAPTIS_LOG") or "warn")
        except ValueError as error:
            # What is said is not worth what is measured.
            logger.warning("%s; what goes wrong is told as at warn", error)
            _native.log("warn")
        return str(self.rings / device)

    def is_written(self, device: str) -> None:
        """This process made the ring of a device."""
        _own_rings.add((os.getpid(), str(self.rings / device)))


_own_rings: set[tuple[int, str]] = set()
"""Rings that this process writes or wrote, with its number: a forked one has them too, and not as its own."""


def in_its_place(error: Exception) -> str | None:
    """In words, if another took this one's place among the ranks."""
    if "another process writes this ring" not in str(error):
        return None
    if any(pid == os.getpid() and f"{ring}: another" in str(error) for pid, ring in _own_rings):
        return (
            "another schedule or observation of this process is measured already, and a run has one: this one trains "
            "unmeasured"
        )
    return (
        "another process of this command is measured in its place: start processes by torchrun, or give each its "
        "RANK, LOCAL_RANK and WORLD_SIZE"
    )


def last_error() -> BaseException | None:
    """What an interpreter that ends by an exception leaves behind."""
    return getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)


class Seat:
    """A rank's place in a run."""

    def __init__(self, schedule: Schedule, settings: Settings | None) -> None:
        self.schedule = schedule
        self.settings = settings
        self.native: _native.Session | None = None
        self.tape: Tape = schedule._worker.tape
        self._begun_ns = 0
        self._reserved_bytes = 0
        self._card = card.of(schedule.device)
        self.tape.clock = clock.of(self._card)
        # The share of their time in which layers on a host compute, once the first step has told.
        self._is_looking = False
        self._computing: float | None = None
        # Ranks of other replicas that share its cores, and itself.
        self._beside = 1
        if schedule.replicas.size > 1 and schedule.device.type == "cpu":
            self._beside = _beside(schedule.replicas)
        if settings is not None and isinstance(self.tape.clock, HostClock):
            # In the first step, of which nothing is recorded.
            self.tape.clock.look_who_computes()
            self.tape.is_running = self._is_looking = True
        # Of the iterations since, by their numbers: losses that are still on their way here.
        self._losses: deque[tuple[int, Callable[[], float | None]]] = deque()
        self._timed: set[int] = set()
        self._has_ended = False
        self._process = os.getpid()
        # That others have no coordinator.
        self._has_told = False

    # What is told to all others at the beginning of a step.

    @property
    def wants_in(self) -> bool:
        """There is a coordinator, and the job was not declared to it yet."""
        return self.settings is not None and self.native is None and not self._has_ended and bool(self.schedule._forms)

    def word(self) -> list[int]:
        """Numbers of fixed length for the others."""
        return [0] * _native.Session.NUMBERS if self.native is None else self.native.word()

    # What follows from what all told.

    def boundary(self, votes: Sequence[Sequence[int]]) -> Plan | None:
        """At a boundary that all ranks have reached: the iteration that ends is recorded. A plan to go over to."""
        if self.native is None:
            return None
        now = perf_counter_ns()
        self._record(now)
        what, plan, reason = self.native.hear(votes, self.schedule.steps)
        self._begun_ns = perf_counter_ns()
        self.tape.clock.turn()
        if what == "begin":
            self._begin()
        if plan is not None:
            return plan
        if what == "left":
            logger.warning("this rank leaves the coordinator and trains on by plan %s: %s", self.schedule.plan.epoch, reason)
            self._stop_recording()
        elif reason is not None:
            logger.warning("the coordinator turns this rank away, which trains on: %s", reason)
        self._look_out()
        return None

    def stepped(self, loss: Tensor) -> None:
        """An iteration has run through."""
        if self.native is not None:
            self._losses.append((self.schedule.steps, self._card.fetch(loss)))

    def settled(self, start_ns: int, layers_moved: int, bytes_received: int) -> None:
        """The layers of a change are here."""
        if self.native is None:
            return
        self._card.finish()
        end_ns = perf_counter_ns()
        self.native.settled(start_ns, end_ns, layers_moved, bytes_received)
        if self.schedule.rank == 0:
            pause = (end_ns - start_ns) / 1e6
            logger.info("plan %s: %s layers moved, %.1f ms", self.native.epoch, layers_moved, pause)
        self._begin_anew()
        self._look_out()

    def _begin_anew(self) -> None:
        """What was done since the boundary is none of the iteration's."""
        self.tape.rest()
        self._begun_ns = perf_counter_ns()
        self.tape.clock.turn()

    def _record(self, now: int) -> None:
        loss = self._losses_that_came()
        native = self.native
        if native is None or native.epoch is None or self._begun_ns == 0 or not self.tape.is_running:
            return
        self.tape.clock.record(native)
        for layer, size in self.tape.activation_bytes.items():
            native.layer_memory(layer, size, self.tape.weight_gradient_bytes.get(layer, 0))
        self.tape.activation_bytes.clear()
        self.tape.weight_gradient_bytes.clear()
        native.device_memory(self._card.peak_bytes(), self._reserved_bytes)
        self.tape.clock.iterated(native, self._begun_ns, max(0, now - self._begun_ns), loss)

    def _losses_that_came(self) -> float:
        """Tells them to the clock; the newest one."""
        newest = math.nan
        while self._losses:
            step, fetch = self._losses[0]
            loss = fetch()
            if loss is None:
                break
            self._losses.popleft()
            self.tape.clock.knows(step, loss)
            newest = loss
        return newest

    def _look_out(self) -> None:
        """What is measured in the iteration that begins."""
        if self.native is not None and self.native.epoch is not None:
            self.tape.is_running = True
            self.tape.is_weighing = self.native.is_first
            for optimizer in self.schedule.optimizers:
                self._time(optimizer)

    def forget(self) -> None:
        """The step under way failed: nothing of it is recorded."""
        self._begun_ns = 0
        self.tape.rest()

    def _stop_recording(self) -> None:
        self.tape.is_running = self.tape.is_weighing = False
        self.tape.rest()

    # Declaring the job.

    def join(self, votes: Sequence[bool], pinned: list[tuple[int, int]]) -> None:
        """Declares the job, if all ranks want to."""
        if self._is_looking and self.schedule._forms:
            assert isinstance(self.tape.clock, HostClock)
            self._computing = self.tape.clock.computing()
            self._is_looking = False
            self._stop_recording()
        if not all(votes):
            if any(votes) and self.settings is not None and not self._has_told:
                self._has_told = True
                without = [rank for rank, vote in enumerate(votes) if not vote]
                logger.warning(
                    "this job is not measured: ranks %s have no coordinator; ADAPTIS_COORDINATOR is to be set on all", without
                )
            return
        assert self.settings is not None
        schedule = self.schedule
        own: dict[int, Fact] | None = None
        try:
            own = {at: self._fact(at, layer) for at, layer in schedule._own()}
            self._reserved_bytes = self._card.reserved_bytes(sum(fact.state_bytes for fact in own.values()))
        except Exception as error:
            logger.warning("this rank can't describe its layers: %s: %s", type(error).__name__, error)
        run = self.settings.name()
        parts: list[Any] = [None] * schedule.world
        cores_here: cores.Own | None = None
        try:
            if self._computing is not None:
                cores_here = cores.Own.here(self._computing, self._beside)
        except Exception as error:
            logger.warning("this rank can't tell its cores: %s: %s", type(error).__name__, error)
        dist.all_gather_object(parts, (run, own, cores_here), group=schedule.channels.control)
        if any(part is None for _, part, _ in parts):
            self._has_ended = True
            return
        facts = {at: fact for _, part, _ in parts for at, fact in part.items()}
        hosts = cores.crowds([of for _, _, of in parts])
        native: _native.Session | None = None
        try:
            native = _native.Session(
                coordinator=self.settings.coordinator,
                ring=self.settings.ring(schedule.plan.devices[schedule.rank]),
                run=parts[0][0],
                rank=schedule.rank,
                devices=schedule.plan.devices,
                card=(*self._card.kind_and_memory(), self._reserved_bytes),
                layers=[told(facts[at]) for at in range(len(schedule.layers))],
                microbatches=schedule.microbatches,
                plan=schedule.plan,
                pinned=pinned,
                together=schedule._tied,
                hosts=hosts,
                mode=schedule.mode,
                keys=self.settings.keys,
            )
            every = {at: at for at in range(len(schedule.layers))}
            self.tape.clock.follow(native, every, schedule.microbatches)
        except Exception as error:
            self._has_ended = True
            logger.warning("this rank trains without a coordinator: %s", in_its_place(error) or error)
            if native is not None:
                native.fail(f"{type(error).__name__}: {error}", 0.0)
            return
        self.native = native
        self.settings.is_written(schedule.plan.devices[schedule.rank])
        atexit.register(self._end)
        for ranks, at_once in hosts:
            self._share_cores(ranks, at_once)

    def _share_cores(self, ranks: Sequence[int], at_once: float) -> None:
        """These ranks are more than the cores of their host can serve at one time."""
        clock, rank = self.tape.clock, self.schedule.rank
        if rank in ranks and isinstance(clock, HostClock):
            clock.share_cores()
        if rank == ranks[0]:
            logger.info(
                "ranks %s share cores, on which %.3g of them can work at one time: layers are measured without what they wait for "
                "a core, and plans are made for so many", ", ".join(map(str, ranks)), at_once
            )

    def _fact(self, at: int, layer: nn.Module) -> Fact:
        schedule = self.schedule
        forms = next(iter(schedule._forms.values()))
        inputs = forms[at - 1] if at > 0 else schedule._first_forms
        return Fact.of(at, layer, schedule.optimizers, inputs, forms[at])

    def _begin(self) -> None:
        self._probe()
        self._begin_anew()
        if self.schedule.rank == 0:
            logger.info("the coordinator at %s follows from step %s on", self.settings and self.settings.coordinator, self.schedule.steps)
        self._look_out()

    def _time(self, optimizer: Optimizer) -> None:
        if id(optimizer) in self._timed:
            return
        self._timed.add(id(optimizer))

        def before(*_: Any) -> None:
            # What is compiled would be traced through here.
            if not torch.compiler.is_compiling():
                self.tape.begin_step(self._parts(optimizer))

        def after(*_: Any) -> None:
            if not torch.compiler.is_compiling():
                self.tape.end_step()

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def _parts(self, optimizer: Optimizer) -> clock.Parts:
        """The layers here that an optimizer trains, by the parameters that it changes."""
        trained = {id(part) for group in optimizer.param_groups for part in group["params"]}
        sizes = [
            (at, sum(part.numel() for part in layer.parameters() if id(part) in trained))
            for at, layer in self.schedule._own()
        ]
        return tuple((at, OPTIMIZER, size) for at, size in sizes if size)

    def _probe(self) -> None:
        """Measures the links to this rank: a peer answers with so many bytes, less half of an empty round trip."""
        schedule, native = self.schedule, self.native
        assert native is not None
        world = schedule.world
        sizes = PROBE_BYTES_DEVICE if self._card.has_streams else PROBE_BYTES
        schedule.channels.open((peer, rank) for rank in range(world) for peer in _partners(rank, world))
        for asker in range(schedule.world):
            for peer in _partners(asker, schedule.world):
                if schedule.rank not in (asker, peer):
                    continue
                quickest: dict[int, tuple[int, int]] = {}
                for size in sizes:
                    for _ in range(PROBES):
                        start, took = self._round_trip(asker, peer, size)
                        if size not in quickest or took < quickest[size][1]:
                            quickest[size] = start, took
                if schedule.rank == asker:
                    empty = quickest[sizes[0]][1] // 2
                    for size, (start, took) in quickest.items():
                        native.probed(peer, size, start, max(1, took - empty))
        schedule._close_unused()

    def _round_trip(self, asker: int, peer: int, size: int) -> tuple[int, int]:
        schedule = self.schedule
        load = torch.zeros(size, dtype=torch.uint8, device=schedule.device)
        word = torch.zeros(1, dtype=torch.int64, device="cpu")
        self._card.finish()
        start = perf_counter_ns()
        if schedule.rank == asker:
            dist.send(word, group=schedule.channels.control, group_dst=peer)
            schedule.channels.receive(load, peer, 0).wait()
        else:
            dist.recv(word, group=schedule.channels.control, group_src=asker)
            schedule.channels.send(load, asker, 0).wait()
        self._card.finish()
        return start, perf_counter_ns() - start

    # The end.

    def _end(self) -> None:
        # A process that was forked from this one has no part in the run.
        if os.getpid() == self._process:
            self.leave(last_error())

    def leave(self, error: BaseException | None) -> None:
        """Training is over: the coordinator is told how it ended, and gets some seconds to record it."""
        native, self.native = self.native, None
        if native is None:
            return
        self._has_ended = True
        self._stop_recording()
        atexit.unregister(self._end)
        if error is not None or self.schedule._is_broken:
            # Nobody waits for a device that waits for what will not come.
            reason = "a step failed" if error is None else f"{type(error).__name__}: {error}"
            native.fail(reason, FAREWELL_SECONDS)
            return
        try:
            self._card.finish()
            self._losses_that_came()
            digests = state.digests(list(self.schedule._own()), self.schedule.optimizers)
            if not native.finish(digests, FAREWELL_SECONDS):
                logger.warning("the coordinator did not record the end of the run within %s s", FAREWELL_SECONDS)
            self.tape.clock.tell()
        except Exception as trouble:
            native.fail(f"{type(trouble).__name__}: {trouble}", FAREWELL_SECONDS)
            logger.warning("the end of the job was not told: %s: %s", type(trouble).__name__, trouble)


def _beside(others: Replicas) -> int:
    """Ranks of all replicas with this part of the pipeline that share this one's cores."""
    here: cores.Own | None = None
    try:
        here = cores.Own.here(1.0, 1)
    except Exception as error:
        logger.warning("this rank can't tell its cores: %s: %s", type(error).__name__, error)
    told = [own for own in others.told(here) if own is not None]
    return 1 if here is None else cores.beside(here, told)


def _partners(rank: int, world: int) -> list[int]:
    if world <= PEERS_MAX:
        return [other for other in range(world) if other != rank]
    distances = [1 << power for power in range(world.bit_length()) if 1 << power < world]
    return sorted({(rank + step) % world for step in distances} | {(rank - step) % world for step in distances})
