"""A process does not end while threads of Gloo still free what they carried."""

from __future__ import annotations

import ctypes
import threading
import time

from adaptis import ending


def test_it_waits_for_threads_that_work_and_not_for_those_that_sleep() -> None:
    stop, is_idle = threading.Event(), threading.Event()

    def work() -> None:
        ctypes.CDLL(None).prctl(15, ending.NAME.encode(), 0, 0, 0)
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            time.sleep(0.001)
        is_idle.set()
        stop.wait()

    thread = threading.Thread(target=work)
    thread.start()
    while ending.NAME not in [(task / "comm").read_text().strip() for task in ending.TASKS.iterdir()]:
        time.sleep(0.001)
    ending.settle()
    assert is_idle.is_set()
    began = time.monotonic()
    ending.settle()
    assert time.monotonic() - began < ending.LONGEST_S / 2
    stop.set()
    thread.join()
    ending.settle()
