"""Ranks that are more than the cores of their host: who shares them, and what a work takes beside others."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import statistics
import subprocess
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest

from adaptis.clock import HostClock, Work
from adaptis.cores import Own, Waits, beside, crowds, quota
from adaptis.tape import FORWARD, RECOMPUTE
from test_examples import bits, file
from test_session import COMMAND, clean, torchrun

LONGEST_S = 300.0


def _own(
    of: set[int], threads: int = 1, host: str = "a", at_most: float | None = None, computing: float = 1.0, beside: int = 1
) -> Own:
    return Own(host, frozenset(of), len(of) if at_most is None else at_most, threads, computing, beside)


def test_ranks_share_cores_where_they_have_more_threads_than_there_are() -> None:
    four = {0, 1, 2, 3}
    assert crowds([_own(four)] * 4) == []
    assert crowds([_own(four)] * 5) == [([0, 1, 2, 3, 4], 4.0)]
    assert crowds([_own(four, threads=2)] * 3) == [([0, 1, 2], 2.0)]
    # Each for itself on a core, on two hosts, beside ranks on GPUs.
    assert crowds([_own({0}), _own({1}), _own({2}), _own({3})]) == []
    assert crowds([_own({0, 1}), _own({0, 1}, host="b"), _own({0, 1}), _own({0, 1})]) == [([0, 2, 3], 2.0)]
    assert crowds([None, _own({0}), None, _own({0})]) == [([1, 3], 1.0)]
    # Those that overlap by a third one's cores are in one crowd.
    assert crowds([_own({0}), _own({1}), _own({0, 1})]) == [([0, 1, 2], 2.0)]
    # A container may use fewer cores than it sees.
    assert crowds([_own(four, at_most=1.5)] * 2) == [([0, 1], 1.5)]
    # Who sleeps half of the time leaves a core to others; another replica takes half of them.
    assert crowds([_own({0, 1}, computing=0.5)] * 4) == []
    assert crowds([_own({0, 1}, computing=0.8)] * 4) == [([0, 1, 2, 3], 2.5)]
    assert crowds([_own({0, 1}, beside=2)] * 2) == [([0, 1], 1.0)]
    assert crowds([_own(four, beside=2)] * 2) == []
    assert crowds([]) == []


def test_a_quota_is_that_of_the_group_or_of_one_around_it(tmp_path: Path) -> None:
    assert quota("0::/a/b\n", tmp_path) is None
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    assert quota("0::/a/b\n", tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert quota("0::/../elsewhere\n", tmp_path) == 0.5
    # The older kind, beside the newer one that limits nothing.
    older = tmp_path / "older" / "cpu,cpuacct" / "pod"
    older.mkdir(parents=True)
    (older / "cpu.cfs_quota_us").write_text("200000\n")
    (older / "cpu.cfs_period_us").write_text("100000\n")
    assert quota("4:memory:/pod\n3:cpu,cpuacct:/pod\n0::/\n", tmp_path / "older") == 2.0
    (older / "cpu.cfs_quota_us").write_text("-1\n")
    assert quota("3:cpu,cpuacct:/pod\n", tmp_path / "older") is None


def test_replicas_that_may_use_the_same_cores_are_counted() -> None:
    own = _own({0, 1})
    assert beside(own, [own, _own({1, 2}), _own({2, 3}), _own({0, 1}, host="b")]) == 2


def _keep_busy() -> None:
    while True:
        pass


@pytest.fixture
def busy_core() -> Iterator[None]:
    """This process has one core, which two others keep busy."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(own)})
    others = [multiprocessing.get_context("fork").Process(target=_keep_busy, daemon=True) for _ in range(2)]
    try:
        for other in others:
            other.start()
        yield
    finally:
        for other in others:
            other.kill()
            other.join()
        os.sched_setaffinity(0, own)


def _work(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


@pytest.mark.parametrize("is_counted", [True, False])
def test_a_work_takes_what_it_takes_alone(busy_core: None, monkeypatch: pytest.MonkeyPatch, is_counted: bool) -> None:
    if not is_counted:

        def refuses(*_: object) -> int:
            raise FileNotFoundError

        monkeypatch.setattr(os, "open", refuses)
    clock = HostClock()
    clock.share_cores()
    began = time.perf_counter()
    # A recomputation within a forward, then another forward behind a pause in which nothing is to be done.
    outer = clock.begin(((0, FORWARD, 1),), 0)
    _work(0.05)
    inner = clock.begin_within(outer, ((1, RECOMPUTE, 1),), 0)
    _work(0.1)
    clock.interrupted(inner, outer)
    _work(0.05)
    left = clock.end(outer)
    left = clock.waited(left, lambda: time.sleep(0.2))
    _work(0.02)
    last = clock.begin_after(left, ((2, FORWARD, 1),), 0)
    _work(0.1)
    clock.end(last)
    took_s = time.perf_counter() - began
    assert took_s > 1.4 * (0.32 + 0.2), "the core is busy with others, too"
    of: dict[int, Work] = {work[0]: work for work in clock.works}
    for layer, seconds in ((0, 0.1), (1, 0.1), (2, 0.1)):
        assert of[layer][4] / 1e9 == pytest.approx(seconds, rel=0.15), clock.works
    assert clock._between[0][1] / 1e9 == pytest.approx(0.02, abs=0.01)


def test_a_layer_that_sleeps_does_not_compute(busy_core: None) -> None:
    clock = HostClock()
    clock.look_who_computes()
    for layer, sleeps_s in ((0, 0.0), (1, 0.05), (2, 0.05)):
        span = clock.begin(((layer, FORWARD, 1),), 0)
        _work(0.05)
        time.sleep(sleeps_s)
        clock.end(span)
    assert clock.computing() == pytest.approx(0.6, abs=0.1)
    # From here on it is not looked for.
    clock.end(clock.begin(((3, FORWARD, 1),), 0))
    assert HostClock().computing() == 1.0, "nothing else is known"


def test_what_a_thread_waits_for_is_no_wait_for_a_core() -> None:
    waits = Waits()
    before = waits()
    time.sleep(0.2)
    assert waits() - before < 0.1e9


def test_another_thread_may_go_on(busy_core: None) -> None:
    clock = HostClock()
    for _ in range(2):

        def first() -> None:
            clock.share_cores()
            clock.end(clock.begin(((0, FORWARD, 1),), 0))

        ended = threading.Thread(target=first)
        ended.start()
        ended.join()
        # The thread that was followed is no more; from the next iteration on it is this one.
        clock.end(clock.begin(((0, FORWARD, 1),), 0))
        clock.turn()
        span = clock.begin(((1, FORWARD, 1),), 0)
        _work(0.1)
        clock.end(span)
        assert clock.works[0][4] / 1e9 == pytest.approx(0.1, rel=0.15)


def test_four_ranks_on_too_few_cores_get_a_plan_that_gains_what_is_promised(tmp_path: Path) -> None:
    # The two cores that every machine has.
    few = sorted(os.sched_getaffinity(0))[:2]
    job = torchrun(4, [str(file("gpt")), "--steps", "50", "--slow", "2:1.8@20"])
    # The script itself asks for mode adapt.
    run = [COMMAND, "run", "--out", str(tmp_path / "run"), "--", *job]
    ended = subprocess.run(
        ["taskset", "--cpu-list", ",".join(map(str, few)), *run], env={**clean(), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=LONGEST_S,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["configuration"]["mode"] == "adapt"
    slow = [of for of in report["decisions"] if of["iteration"] >= 20 and "because rank2 takes" in of["text"]]
    assert slow and re.search(r"rank2 takes (1\.[5-9]|2\.\d)", slow[0]["text"]), report["decisions"]
    switches = [of for of in report["switches"] if of["iteration"] > 20]
    assert switches, report["decisions"]
    at = switches[0]["iteration"]
    took = {of["index"]: of["duration_ns"] for of in report["iterations"]}
    under = statistics.median(ns for step, ns in took.items() if 20 <= step < at)
    last = report["phases"][-1]
    assert last["measured_median_ns"] < 0.9 * under
    assert last["predicted_ns"] == pytest.approx(last["measured_median_ns"], rel=0.25)
    plain = subprocess.run(
        torchrun(4, [str(file("gpt")), "--steps", "50"]), env=clean(), capture_output=True, text=True, timeout=LONGEST_S, check=True
    )
    assert bits(ended.stdout) == bits(plain.stdout), "no bit of the result changes"
