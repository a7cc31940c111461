"""Processes over Gloo that run a test's work, kept from test to test: importing torch takes longer than most tests."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import runpy
import socket
import sys
import traceback
from multiprocessing import connection
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

# Forks of a process that has torch at hand and nothing running.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed.checkpoint", "torch.distributed.fsdp", "adaptis"])

GRACE_S = 5.0
"""How long the others may take to tell what they saw of a rank's end."""
LONGEST_S = 240.0
"""How long a test's work may take."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(rank: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    while True:
        world, port, work, arguments = pipe.recv()
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            dist.init_process_group("gloo", rank=rank, world_size=world)
            # Not by the queue's own way for tensors, which needs this process to stay until they are taken.
            result = _plain(work(rank, world, *arguments))
            dist.barrier()
            dist.destroy_process_group()
        except BaseException:
            pipe.send((None, traceback.format_exc()))
            raise
        pipe.send((result, None))


def run_script(path: str | Path, arguments: Sequence[str]) -> str:
    """What a script prints that is run in this process, in a group that is there already."""
    started, ended, kept, said = dist.init_process_group, dist.destroy_process_group, sys.argv, io.StringIO()
    sys.path.insert(0, str(Path(path).parent))
    try:
        dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None
        sys.argv = [str(path), *arguments]
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.path.pop(0)
        dist.init_process_group, dist.destroy_process_group, sys.argv = started, ended, kept
    return said.getvalue()


def _script(rank: int, world: int, path: Path, runs: Sequence[Sequence[str]]) -> list[str]:
    return [run_script(path, arguments) for arguments in runs]


def script_in_ranks(world: int, path: Path, *runs: Sequence[str]) -> list[list[str]]:
    """What each rank prints of a script, for each list of arguments."""
    return in_ranks(world, _script, path, runs)


def _plain(value: Any) -> Any:
    """Tensors as arrays, which travel by value."""
    if isinstance(value, torch.Tensor):
        return _Array(value.detach().float().numpy().copy() if value.dtype == torch.bfloat16 else value.numpy().copy())
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(part) for part in value)
    return value


class _Array:
    def __init__(self, array: Any) -> None:
        self.array = array


def _tensors(value: Any) -> Any:
    if isinstance(value, _Array):
        return torch.from_numpy(value.array)
    if isinstance(value, dict):
        return {key: _tensors(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_tensors(part) for part in value)
    return value


class _Rank:
    def __init__(self, rank: int) -> None:
        self.pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(rank, theirs), daemon=True)
        self.process.start()
        theirs.close()


_ranks: list[_Rank] = []


def _end() -> None:
    for rank in _ranks:
        rank.process.kill()
    _ranks.clear()


atexit.register(_end)


def in_ranks(world: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, world, ...)` returns in each of so many processes."""
    _ranks.extend(_Rank(rank) for rank in range(len(_ranks), world))
    port = free_port()
    waiting = {}
    for at, rank in enumerate(_ranks[:world]):
        rank.pipe.send((world, port, work, arguments))
        waiting[rank.pipe] = at
    results: list[Any] = [None] * world
    failures: list[str] = []
    while waiting:
        ready = connection.wait(list(waiting), GRACE_S if failures else LONGEST_S)
        for pipe in ready:
            rank = waiting.pop(pipe)
            try:
                results[rank], failure = pipe.recv()
            except EOFError:
                failure = "it ended without a word"
            if failure is not None:
                failures.append(f"rank {rank}: {failure}")
        if not ready:
            failures += [f"rank {rank}: no answer" for rank in waiting.values()]
            break
    if failures:
        _end()
    assert not failures, "\n".join(failures)
    return [_tensors(result) for result in results]
