"""Both clocks are told of the same works by the same hooks: what ends, what interrupts, and what fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import adaptis
from adaptis import _native, card
from adaptis.clock import Clock, EventClock, HostClock, Work
from adaptis.hooks import Hooks
from adaptis.tape import FORWARD, INPUT_GRADIENT, OPTIMIZER, RECOMPUTE, WEIGHT_GRADIENT, Tape
from ranks import free_port

WIDTH = 4


class Book:
    """In the place of a timer: notes what would be timed."""

    def __init__(self) -> None:
        self.works: list[tuple[int, int, int]] = []
        self.forgotten = 0
        self.followed = 0
        self._shares: list[list[tuple[int, int, int]]] = []
        self._open: dict[int, tuple[int, int]] = {}
        self._last = 0

    def share(self, parts: list[tuple[int, int, int]]) -> int:
        """As the timer's."""
        self._shares.append(parts)
        return len(self._shares) - 1

    def begin(self, on: int, shares: int, microbatch: int) -> int:
        """As the timer's."""
        assert on == 7
        self._last += 1
        self._open[self._last] = shares, microbatch
        return self._last

    def begin_after(self, on: int, ended: int, shares: int, microbatch: int) -> int:
        """As the timer's."""
        assert 0 < ended <= self._last and ended not in self._open
        self.followed += 1
        return self.begin(on, shares, microbatch)

    def begin_within(self, on: int, outer: int, shares: int, microbatch: int) -> int:
        """As the timer's."""
        assert outer in self._open
        return self.begin(on, shares, microbatch)

    def end(self, on: int, number: int) -> None:
        """As the timer's."""
        assert on == 7
        shares, microbatch = self._open.pop(number)
        self.works += [(layer, phase, microbatch) for layer, phase, _ in self._shares[shares]]

    def pass_on(self, on: int, number: int, shares: int, microbatch: int) -> int:
        """As the timer's."""
        if number:
            self.end(on, number)
        return self.begin(on, shares, microbatch)

    def end_within(self, on: int, number: int, outer: int) -> None:
        """As the timer's."""
        assert outer in self._open
        self.end(on, number)

    def forget(self, number: int) -> None:
        """As the timer's."""
        del self._open[number]
        self.forgotten += 1

    @property
    def open(self) -> int:
        """Works that have begun and not ended."""
        return len(self._open)


class _Failing(nn.Linear):
    """Fails at its second call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise ArithmeticError("a bad batch")
        return super().forward(x)


def _events() -> tuple[EventClock, Book]:
    clock, book = EventClock(card.Host(torch.device("cpu"))), Book()
    clock.timer = book  # type: ignore[assignment]
    clock._stream = lambda: 7
    clock._places, clock._microbatches = {0: 0, 1: 1, 2: 2}, 2
    return clock, book


def _hooked(clock: Clock, middle: nn.Module) -> tuple[list[nn.Module], Hooks]:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH), middle, nn.Linear(WIDTH, WIDTH)]
    hooks = Hooks([(0, layer) for layer in layers], clock, lambda hook: hook)
    for at in range(3):
        hooks.put_on(at)
    return layers, hooks


def _plain(layers: list[nn.Module], hooks: Hooks) -> None:
    for _ in range(2):
        x = torch.ones(2, WIDTH)
        for layer in layers:
            x = layer(x)
        x.sum().backward()


def _recomputed(layers: list[nn.Module], hooks: Hooks) -> None:
    first, middle, last = layers
    x = first(torch.ones(2, WIDTH))
    x = checkpoint(lambda y: last(middle(y)), x, use_reentrant=False, early_stop=False)
    x.sum().backward()


def _stopped_early(layers: list[nn.Module], hooks: Hooks) -> None:
    first, middle, last = layers
    for _ in range(2):
        x = checkpoint(middle, first(torch.ones(2, WIDTH)), use_reentrant=False)
        last(x).sum().backward()


def _failing(layers: list[nn.Module], hooks: Hooks) -> None:
    _plain(layers[:1] + layers[2:], hooks)
    for layer in layers[1:2] * 2:
        try:
            layer(torch.ones(2, WIDTH))
        except ArithmeticError:
            pass
    _plain(layers, hooks)


def _split(layers: list[nn.Module], hooks: Hooks) -> None:
    def forward() -> Tensor:
        x = torch.ones(2, WIDTH)
        for layer in layers:
            x = layer(x)
        return x

    for chunk in range(2):
        out = hooks.within(0, "F", chunk, forward)
        hooks.within(0, "I", chunk, lambda: out.sum().backward(retain_graph=True))
        hooks.weights(0, chunk, lambda: out.sum().backward())
    assert hooks.order == ["0F0", "0I0", "0W0", "0F1", "0I1", "0W1"]


def _closed(layers: list[nn.Module], hooks: Hooks) -> None:
    hooks.step_begins()
    _plain(layers, hooks)
    hooks.step_ends(True)
    hooks.step_begins()
    hooks.step_ends(False)


JOBS = [_plain, _recomputed, _stopped_early, _failing, _split, _closed]


@pytest.mark.parametrize("job", JOBS)
def test_both_clocks_are_told_of_the_same_works(job: Callable[[list[nn.Module], Hooks], None]) -> None:
    def middle() -> nn.Module:
        return _Failing(WIDTH, WIDTH) if job is _failing else nn.Linear(WIDTH, WIDTH)

    host = HostClock()
    job(*_hooked(host, middle()))
    clock, book = _events()
    job(*_hooked(clock, middle()))
    # What an iteration repeats beyond its microbatches is nobody's.
    seen = [(at, phase, microbatch) for at, phase, microbatch, _, _ in host.works if microbatch < 2]
    assert book.works == seen
    # At most the recomputation that its layer's next run will find.
    assert book.open <= (1 if job is _stopped_early else 0)
    assert {phase for _, phase, _ in seen} >= {FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT}
    assert (RECOMPUTE in {phase for _, phase, _ in seen}) == (job is _recomputed)
    assert [phase for _, phase, _ in seen].count(OPTIMIZER) == (3 if job is _closed else 0)


def test_what_interrupts_is_not_the_others_time() -> None:
    clock = HostClock()
    outer = clock.begin(((0, INPUT_GRADIENT, 1), (0, WEIGHT_GRADIENT, 1)), 0)
    inner = clock.begin_within(outer, ((1, RECOMPUTE, 1),), 0)
    clock.interrupted(inner, outer)
    clock.end(outer)
    (_, _, _, _, again), (_, _, _, start, first), (_, _, _, follows, second) = clock.works
    assert outer.apart_ns >= again and follows == start + first and abs(first - second) <= 1


def _instructions(tape: Tape, pause: Callable[[], None]) -> None:
    """Five: before the third one something is sent, and something waited for; the fifth begins another iteration."""
    for at in range(5):
        if at == 2:
            tape.carry(1)
            tape.carry(0)
            tape.carry(1)
            tape.wait(lambda: time.sleep(0.2))
        if at == 4:
            tape.pass_over()
        tape.begin(0, FORWARD, 0)
        tape.begin(1, FORWARD, 0)
        tape.end()
        pause()
    # An optimizer's step is none.
    tape.begin_step(((0, OPTIMIZER, 1),))
    tape.end_step()


def test_what_passes_between_instructions_is_measured_and_no_wait_is() -> None:
    told: list[tuple[int, int, int]] = []

    class Native:
        def works(self, works: list[Work]) -> None:
            assert len(works) == 11

        def between(self, instructions: int, own_ns: int, transfers: int) -> None:
            told.append((instructions, own_ns, transfers))

    tape, host = Tape(), HostClock()
    tape.clock, tape.is_running = host, True
    host.follow(Native(), {0: 0, 1: 1}, 1)  # type: ignore[arg-type]
    _instructions(tape, lambda: time.sleep(0.01))
    host.record(Native())  # type: ignore[arg-type]
    (alone, took, none), (carrying, also_took, transfers) = told
    assert (alone, none, carrying, transfers) == (2, 0, 1, 2)
    assert 20e6 <= took and 10e6 <= also_took < 200e6, "the pauses are, the wait is not"
    tape.rest()
    host.works = [(0, FORWARD, 0, 0, 0)] * 11
    host.record(Native())  # type: ignore[arg-type]
    assert len(told) == 2, "of an iteration that is not recorded nothing is told"


def test_on_a_gpu_what_carries_something_follows_nothing() -> None:
    tape = Tape()
    tape.clock, book = _events()
    tape.is_running = True
    _instructions(tape, lambda: None)
    assert book.followed == 2 and book.open == 0 and len(book.works) == 11


def test_without_one_of_them_the_time_of_what_was_interrupted_is_not_known() -> None:
    clock, book = _events()
    outer = clock.begin(((0, INPUT_GRADIENT, 1),), 0)
    clock.interrupted(None, outer)
    assert (book.forgotten, book.open, book.works) == (1, 0, [])


def test_a_model_may_be_moved_after_it_began_to_be_observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Streams(card.Host):
        has_streams = True

    monkeypatch.setitem(card.KINDS, "cpu", Streams)
    monkeypatch.setenv("ADAPTIS_RINGS", str(tmp_path))
    layer = nn.Linear(WIDTH, WIDTH, device="meta")
    observation = adaptis.observe([layer], coordinator=f"tcp://127.0.0.1:{free_port()}")
    assert observation is not None and isinstance(observation.clock, HostClock)
    try:
        layer.to_empty(device="cpu")
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(2):
            layer(torch.ones(2, WIDTH)).sum().backward()
            optimizer.step()
        assert isinstance(observation.clock, EventClock) and observation._hooks.clock is observation.clock
    finally:
        observation.close()


def test_layers_on_two_devices_are_not_observed(caplog: pytest.LogCaptureFixture) -> None:
    layers = [nn.Linear(2, 2), nn.Linear(2, 2, device="meta")]
    assert adaptis.observe(layers, coordinator="tcp://127.0.0.1:1") is None
    assert "layers on several devices can't be measured yet: cpu, meta" in caplog.text


def test_a_gpu_is_of_the_kind_that_profiles_know() -> None:
    assert _native.kind_of("NVIDIA H100 80GB HBM3", 85_520_809_984) == "h100-80g"
    assert _native.kind_of("NVIDIA GeForce RTX 3090", 25_296_896_000) is None


def test_a_device_that_cannot_be_measured_is_named() -> None:
    with pytest.raises(ValueError, match="layers on 'meta' can't be measured yet: cpu and cuda can"):
        card.of(torch.device("meta"))
