"""The end of a process that has threads of Gloo.

A thread of Gloo frees what it carried a moment after whoever waited for it goes on, for which it needs Python. Where Python is
ending by then, the whole process is aborted after its last step ("terminate called without an active exception"). So the
threads get the time that they need.
"""

from __future__ import annotations

import atexit
import time
from pathlib import Path

TASKS = Path("/proc/self/task")
NAME = "pt_gloo_runloop"
LOOK_S = 0.005
LOOKS_QUIET = 2
"""Looks in a row in which no thread has done anything."""
LONGEST_S = 2.0
BLIND_S = 0.05
"""Where threads can't be looked at."""


def settle_at_exit() -> None:
    """Has the process wait for them at its end. Once is enough."""
    # What was registered before runs after it.
    atexit.unregister(settle)
    atexit.register(settle)


def settle() -> None:
    """Waits until Gloo's threads have nothing left to do."""
    before, quiet, end = _seen(), 0, time.monotonic() + LONGEST_S
    if before is None:
        time.sleep(BLIND_S)
        return
    while before and quiet < LOOKS_QUIET and time.monotonic() < end:
        # They may have Python meanwhile.
        time.sleep(LOOK_S)
        now = _seen() or {}
        is_quiet = now == before and all(state == "S" for state, _ in now.values())
        before, quiet = now, quiet + 1 if is_quiet else 0


def _seen() -> dict[str, tuple[str, str]] | None:
    """By thread: whether it sleeps, and how often it has begun to. None where that can't be told."""
    found: dict[str, tuple[str, str]] = {}
    try:
        tasks = list(TASKS.iterdir())
    except OSError:
        return None
    for task in tasks:
        try:
            if (task / "comm").read_text().strip() == NAME:
                lines = (task / "status").read_text().splitlines()
                told = dict(line.split(":", 1) for line in lines if ":" in line)
                found[task.name] = told["State"].split()[0], told["voluntary_ctxt_switches"]
        except (ProcessLookupError, FileNotFoundError):
            # It has just ended.
            continue
        except (OSError, KeyError):
            return None
    return found
