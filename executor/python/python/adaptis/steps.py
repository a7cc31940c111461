"""Of a training script that says nothing of its layers: how long its steps take, and what memory it needs.

    optimizer.step ends --> an iteration ends

1. Nothing of the model is hooked, so nothing is known of its layers: the job is one layer on one device, and is not planned.
2. Of several optimizers the one with the most parameters counts, and of processes that train alike the first one.
3. Nothing here keeps the optimizer alive, and nothing is done in a process that was forked.
"""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from time import perf_counter_ns
from typing import Sequence

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from adaptis import _native, card, clock, replicas
from adaptis._native import Plan
from adaptis.facts import Fact, bytes_here, parameters_of, told
from adaptis.session import FAREWELL_SECONDS, Settings, in_its_place, last_error
from adaptis.state import DIGEST_BYTES_MAX, bytes_of

logger = logging.getLogger("adaptis")

LOOK_NS = 100_000_000
"""How often memory is looked at: that may take longer than a step."""


class Steps:
    """The steps of one optimizer."""

    def __init__(self, optimizer: Optimizer, settings: Settings) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._parameters = _count(optimizer)
        self._process = os.getpid()
        fact = Fact.of_all(optimizer)
        devices = {part.device for part in parameters_of(optimizer)}
        self._card = card.of(next(iter(devices)) if len(devices) == 1 else torch.device("cpu"))
        self._clock = clock.of(self._card)
        self._reserved_bytes = self._card.reserved_bytes(fact.state_bytes)
        self._steps = 0
        self._looked_ns = 0
        self._began_ns = perf_counter_ns()
        native = _native.Session(
            coordinator=settings.coordinator,
            ring=settings.ring("rank0"),
            run=settings.name(),
            rank=0,
            devices=["rank0"],
            card=(*self._card.kind_and_memory(), self._reserved_bytes),
            layers=[told(fact)],
            microbatches=1,
            plan=Plan.even(1, ["rank0"], 1),
            pinned=[],
            together=[],
            is_fixed=True,
            keys=settings.keys,
        )
        settings.is_written("rank0")
        try:
            self._clock.follow(native, {}, 1)
        except BaseException as error:
            native.fail(str(error), 0.0)
            raise
        self._native: _native.Session | None = native
        atexit.register(self._end)

    def ended(self, optimizer: Optimizer) -> None:
        """A step of an optimizer has ended."""
        native = self._native
        if native is None or os.getpid() != self._process:
            return
        if self._optimizer() is None and _count(optimizer) == self._parameters:
            # The next one of several that are trained in turn.
            self._optimizer = weakref.ref(optimizer)
        if self._optimizer() is not optimizer:
            return
        try:
            now = perf_counter_ns()
            if native.epoch is not None:
                if now - self._looked_ns > LOOK_NS:
                    self._looked_ns = now
                    native.device_memory(self._card.peak_bytes(), self._reserved_bytes)
                self._clock.iterated(native, self._began_ns, now - self._began_ns)
            self._steps += 1
            _, _, reason = native.hear([native.word()], self._steps)
            self._clock.turn()
            self._began_ns = perf_counter_ns()
            if reason is not None:
                logger.warning("the coordinator does not follow this job: %s", reason)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self._native = None
            native.fail(f"{type(error).__name__}: {error}", 0.0)
            logger.warning("this job is not observed any longer: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """Ends the measuring, as the end of the process does."""
        atexit.unregister(self._end)
        self._end()

    @property
    def counters(self) -> dict[str, int]:
        """What became of what was to be timed on a GPU."""
        return self._clock.counters

    def _end(self) -> None:
        native, self._native = self._native, None
        if native is None or os.getpid() != self._process:
            return
        error = last_error()
        try:
            if error is not None:
                native.fail(f"{type(error).__name__}: {error}", FAREWELL_SECONDS)
                return
            self._card.finish()
            optimizer = self._optimizer()
            is_told = optimizer is not None and sum(map(bytes_here, parameters_of(optimizer))) <= DIGEST_BYTES_MAX
            native.finish([(0, _digest(optimizer))] if optimizer is not None and is_told else [], FAREWELL_SECONDS)
            self._clock.tell()
        except Exception as trouble:
            native.fail(f"{type(trouble).__name__}: {trouble}", FAREWELL_SECONDS)
            logger.warning("the end of the job was not told: %s: %s", type(trouble).__name__, trouble)


def _count(optimizer: Optimizer) -> int:
    return sum(part.numel() for part in parameters_of(optimizer))


def _digest(optimizer: Optimizer) -> str:
    """Of all parameters, one after the other: their memory is not there twice."""
    parts = (bytes_of(replicas.local(part).detach()).cpu() for part in parameters_of(optimizer))
    return _native.digest("".join(_native.digest(part.numpy().tobytes()) for part in parts).encode())


def begin(optimizers: Sequence[Optimizer], settings: Settings | None = None) -> Steps | None:
    """Measures the steps of a job, if that is wanted, from the next one on; None where nothing is."""
    settings = settings or Settings.found(None)
    is_first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    if settings is None or not is_first or not optimizers:
        return None
    try:
        return Steps(max(optimizers, key=_count), settings)
    except OSError as error:
        why = in_its_place(error)
        if why is None:
            raise
        logger.warning("this process is not observed: %s", why)
        return None
