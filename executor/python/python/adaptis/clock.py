"""Clocks for works: the host's for what is done when a call returns, events for what waits in a stream of a GPU.

    begin -> span -> end          a work, or several that share an interval by weights
             span -> passed       ends it where the next one begins
             span -> end -> left -> begin_after    what passes between two works is measured, too
                            left -> carried        something was sent or received meanwhile
                            left -> waited         that long is none of it
             span -> interrupted  ends it, and it was none of the time of the one that it interrupted
             span -> dropped      nothing is recorded of it

1. A span is None where nothing is timed: every call takes it. What is left of None is not given back to the clock.
2. No call waits for a device.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from time import perf_counter_ns, thread_time_ns
from typing import Any, Callable, Mapping, Protocol

from adaptis import _native, card, cores

logger = logging.getLogger("adaptis")

Work = tuple[int, int, int, int, int]
"""Layer, phase, microbatch, start and duration in nanoseconds of the monotonic clock."""

Parts = tuple[tuple[int, int, int], ...]
"""Works that share an interval: layer, phase and weight of each."""

EVENTS_MIN = 2048
"""Events of a device, at least."""
EVENTS_MAX = 1 << 15
"""At most; where there are too few, works go untimed and are counted."""
BUDGET = 0.003
"""Of an iteration, as far as the host's clock tells: what recording them may take."""
EVENTS_EACH = 12
"""For each layer and microbatch: F, a whole backward and a recomputation have two ends, in the iteration under way and in
the one before, which is asked of at its end."""


class Clock(Protocol):
    """Times works."""

    may_be_told_later: bool
    """Of an iteration in which nothing was measured it can be told after later ones have begun."""

    def follow(self, native: _native.Session, places: Mapping[int, int], microbatches: int) -> None:
        """A coordinator will follow: the model's number of each layer here, and the microbatches of an iteration."""

    def begin(self, parts: Parts, microbatch: int) -> Any: ...

    def begin_within(self, outer: Any, parts: Parts, microbatch: int) -> Any:
        """Begins what interrupts another work."""

    def end(self, span: Any) -> Any:
        """Ends it. What `begin_after` takes."""

    def carried(self, left: Any, transfers: int) -> Any:
        """So much was sent or received after works have ended, or got ready for. What `begin_after` takes then."""

    def waited(self, left: Any, wait: Callable[[], object]) -> Any:
        """Waits for a transfer after works have ended. What `begin_after` takes then."""

    def begin_after(self, left: Any, parts: Parts, microbatch: int) -> Any:
        """Begins the first works of an instruction that follows another one."""

    def passed(self, span: Any, parts: Parts, microbatch: int) -> Any: ...

    def interrupted(self, span: Any, outer: Any) -> None: ...

    def dropped(self, span: Any) -> None: ...

    @property
    def count(self) -> int:
        """Works that wait for the end of the iteration."""

    def record(self, native: _native.Session) -> None:
        """At the end of an iteration whose layers were measured."""

    def iterated(self, native: _native.Session, start_ns: int, duration_ns: int, loss: float = math.nan) -> None:
        """At the end of an iteration, with the host's times, and its loss if that is known."""

    def knows(self, step: int, loss: float) -> None:
        """The loss of an iteration came from the device. Once one was told, all will be."""

    def turn(self) -> None:
        """The session has heard which iteration begins."""

    def rest(self) -> None:
        """Nothing is measured until something begins again."""

    @property
    def counters(self) -> dict[str, int]:
        """What became of all that was to be timed, where that is not plain."""

    def tell(self) -> None:
        """Says so, at the end."""


@dataclass(slots=True)
class _Span:
    """A work under way on a host."""

    parts: Parts
    microbatch: int
    start_ns: int
    waits_ns: int
    """What the thread had waited for cores at its start, and in works that interrupted it."""
    computed_ns: int
    apart_ns: int = 0
    """How long others interrupted it."""


@dataclass(slots=True)
class _Left:
    """What a work that has ended leaves to the next instruction."""

    end_ns: int
    """Put off by what was waited for since."""
    waits_ns: int
    """What the thread had waited for cores, put off likewise."""
    has_carried: bool = False
    transfers: int = 0


class HostClock:
    """The host's. Where ranks share cores, what a work waited for one is none of its time: it would be another one's."""

    may_be_told_later = True

    def __init__(self) -> None:
        self.works: list[Work] = []
        # Instructions, what passed before them, and transfers meanwhile: of those without any, and of the others.
        self._between = [[0, 0, 0], [0, 0, 0]]
        self._places: Mapping[int, int] = {}
        self._microbatches = 0
        self._waits: Callable[[], int] = lambda: 0
        self._computes: Callable[[], int] | None = None
        self._computed_ns = self._worked_ns = 0

    def follow(self, native: _native.Session, places: Mapping[int, int], microbatches: int) -> None:
        self._places, self._microbatches = places, microbatches

    def share_cores(self) -> None:
        """The calling thread, which works, may have to wait for a core from now on."""
        self._waits = cores.Waits()

    def look_who_computes(self) -> None:
        """From now on `computing` is found out."""
        self.share_cores()
        self._computes = thread_time_ns

    def computing(self) -> float:
        """The share of works, but for waits for a core, in which their thread computed. It is no longer looked for, nor are
        cores taken to be shared."""
        self._waits, self._computes = (lambda: 0), None
        return min(1.0, self._computed_ns / self._worked_ns) if self._worked_ns else 1.0

    def begin(self, parts: Parts, microbatch: int) -> Any:
        return self._span(parts, microbatch, perf_counter_ns(), self._waits())

    def _span(self, parts: Parts, microbatch: int, now: int, waits: int) -> _Span:
        computes = self._computes
        return _Span(parts, microbatch, now, waits, 0 if computes is None else computes())

    def begin_within(self, outer: Any, parts: Parts, microbatch: int) -> Any:
        return self.begin(parts, microbatch)

    def end(self, span: Any) -> Any:
        now, waited = perf_counter_ns(), self._waits()
        if span is not None:
            self._took(span, now, waited)
        return _Left(now, waited)

    def carried(self, left: Any, transfers: int) -> Any:
        left.has_carried = True
        left.transfers += transfers
        return left

    def waited(self, left: Any, wait: Callable[[], object]) -> Any:
        begun, waited = perf_counter_ns(), self._waits()
        wait()
        left.end_ns += perf_counter_ns() - begun
        left.waits_ns += self._waits() - waited
        return left

    def begin_after(self, left: Any, parts: Parts, microbatch: int) -> Any:
        now, waits = perf_counter_ns(), self._waits()
        of = self._between[left.has_carried]
        of[0] += 1
        of[1] += max(0, now - left.end_ns - (waits - left.waits_ns))
        of[2] += left.transfers
        return self._span(parts, microbatch, now, waits)

    def passed(self, span: Any, parts: Parts, microbatch: int) -> Any:
        now, waited = perf_counter_ns(), self._waits()
        if span is not None:
            self._took(span, now, waited)
        return self._span(parts, microbatch, now, waited)

    def interrupted(self, span: Any, outer: Any) -> None:
        if span is None or outer is None:
            return
        now, waited = perf_counter_ns(), self._waits()
        self._took(span, now, waited)
        outer.apart_ns += now - span.start_ns
        outer.waits_ns += waited - span.waits_ns

    def dropped(self, span: Any) -> None: ...

    def _took(self, span: _Span, now: int, waits: int) -> None:
        parts, microbatch = span.parts, span.microbatch
        start = span.start_ns + span.apart_ns
        took = max(0, now - start - (waits - span.waits_ns))
        if self._computes is not None and not span.apart_ns:
            self._worked_ns += took
            self._computed_ns += self._computes() - span.computed_ns
        if len(parts) == 1:
            ((at, phase, _),) = parts
            self.works.append((at, phase, microbatch, start, took))
            return
        total = max(1, sum([weight for _, _, weight in parts]))
        before, begun = 0, 0
        for at, phase, weight in parts:
            before += weight
            ended = took * before // total
            self.works.append((at, phase, microbatch, start + begun, ended - begun))
            begun = ended

    @property
    def count(self) -> int:
        return len(self.works)

    def record(self, native: _native.Session) -> None:
        places, count = self._places, self._microbatches
        native.works(
            [
                (places[at], phase, microbatch, start, took)
                for at, phase, microbatch, start, took in self.works
                if at in places and microbatch < count
            ]
        )
        for has_carried, (instructions, took, transfers) in enumerate(self._between):
            if instructions and (transfers or not has_carried):
                native.between(instructions, took, transfers)

    def iterated(self, native: _native.Session, start_ns: int, duration_ns: int, loss: float = math.nan) -> None:
        native.iteration(start_ns, duration_ns, loss)

    def knows(self, step: int, loss: float) -> None: ...

    def turn(self) -> None:
        self.rest()
        if isinstance(self._waits, cores.Waits):
            self._waits.follow()

    def rest(self) -> None:
        self.works = []
        self._between = [[0, 0, 0], [0, 0, 0]]

    @property
    def counters(self) -> dict[str, int]:
        return {}

    def tell(self) -> None: ...


class EventClock:
    """Events in the stream that works are put into, kept by the session, which asks for them an iteration later."""

    # Its boundaries are events in the stream.
    may_be_told_later = False

    def __init__(self, of: card.Host) -> None:
        self.timer: _native.Timer | None = None
        self._stream = of.stream
        self._card = of
        self._places: Mapping[int, int] = {}
        self._microbatches = 0
        # By the parts that they have here: the numbers of what the timer shares, none where no layer of ours is.
        self._shares: dict[Parts, int | None] = {}

    def follow(self, native: _native.Session, places: Mapping[int, int], microbatches: int) -> None:
        events = min(max(EVENTS_MIN, EVENTS_EACH * len(places) * microbatches), EVENTS_MAX)
        with self._card.entered():
            self.timer = native.time(events, BUDGET)
        self._places, self._microbatches = places, microbatches

    def begin(self, parts: Parts, microbatch: int) -> Any:
        shares = self._shared(parts, microbatch)
        if shares is None or self.timer is None:
            return None
        return self.timer.begin(self._stream(), shares, microbatch) or None

    def begin_within(self, outer: Any, parts: Parts, microbatch: int) -> Any:
        if outer is None:
            return self.begin(parts, microbatch)
        shares = self._shared(parts, microbatch)
        if shares is None or self.timer is None:
            return None
        return self.timer.begin_within(self._stream(), outer, shares, microbatch) or None

    # What is left is the number of what ended.

    def end(self, span: Any) -> Any:
        if span is not None and self.timer is not None:
            self.timer.end(self._stream(), span)
        return span

    def carried(self, left: Any, transfers: int) -> Any:
        # It is the device that waits, and nobody knows for how long.
        return None

    def waited(self, left: Any, wait: Callable[[], object]) -> Any:
        wait()
        return None

    def begin_after(self, left: Any, parts: Parts, microbatch: int) -> Any:
        shares = self._shared(parts, microbatch)
        if shares is None or self.timer is None:
            return None
        return self.timer.begin_after(self._stream(), left, shares, microbatch) or None

    def passed(self, span: Any, parts: Parts, microbatch: int) -> Any:
        shares = self._shared(parts, microbatch)
        if shares is None or self.timer is None:
            self.end(span)
            return None
        return self.timer.pass_on(self._stream(), span or 0, shares, microbatch) or None

    def interrupted(self, span: Any, outer: Any) -> None:
        if outer is None or span is None:
            # Without the one, the time of the other is not known.
            self.end(span)
            self.dropped(outer)
        elif self.timer is not None:
            self.timer.end_within(self._stream(), span, outer)

    def dropped(self, span: Any) -> None:
        if span is not None and self.timer is not None:
            self.timer.forget(span)

    def _shared(self, parts: Parts, microbatch: int) -> int | None:
        if microbatch >= self._microbatches or self.timer is None:
            return None
        if parts not in self._shares:
            own = [(self._places[at], phase, weight) for at, phase, weight in parts if at in self._places]
            self._shares[parts] = self.timer.share(own) if own else None
        return self._shares[parts]

    @property
    def count(self) -> int:
        return 0

    def record(self, native: _native.Session) -> None: ...

    def iterated(self, native: _native.Session, start_ns: int, duration_ns: int, loss: float = math.nan) -> None: ...

    def knows(self, step: int, loss: float) -> None:
        if self.timer is not None:
            self.timer.knows(step, loss)

    def turn(self) -> None:
        if self.timer is not None:
            self.timer.boundary(self._stream())

    def rest(self) -> None:
        if self.timer is not None:
            self.timer.forget_iteration()

    @property
    def counters(self) -> dict[str, int]:
        return {} if self.timer is None else self.timer.counters

    def tell(self) -> None:
        counters = self.counters
        if counters:
            is_whole = counters["given_up"] == counters["lost"] == 0
            text = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counters.items() if count)
            logger.log(logging.INFO if is_whole else logging.WARNING, "times by events of the GPU: %s", text)


def of(device: card.Host) -> Clock:
    """The clock for a device."""
    return EventClock(device) if device.has_streams else HostClock()
