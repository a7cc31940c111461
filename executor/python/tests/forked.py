"""Starts a script in several ranks, as torchrun does, by forks of one process, so that torch is imported once.

    python forked.py RANKS SCRIPT [ARGUMENTS]
"""

from __future__ import annotations

import os
import runpy
import sys

# It brings torch along.
from ranks import free_port


def main() -> None:
    ranks, script = int(sys.argv[1]), sys.argv[2]
    port = free_port()
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
            os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")
            sys.argv = sys.argv[2:]
            sys.path[0] = os.path.dirname(script)
            runpy.run_path(script, run_name="__main__")
            return
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(next((code for code in codes if code), 0))


if __name__ == "__main__":
    main()
