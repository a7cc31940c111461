"""A process group for tests that carries tensors as NCCL does, with hosts in the place of GPUs.

1. A group is a communicator of its own, with one stream: what is asked of it is done one by one, in that order.
2. A send ends only when its tensor has been received, and everything behind it waits.
3. There are no tags: the next tensor that comes is the one that was asked for, and another size is an error.
4. Its first use waits for all other members.

To wait for something keeps the host waiting, where NCCL lets a stream wait: what comes of a host that is far ahead of its
device is not seen here.
"""

from __future__ import annotations

import queue
import threading
from datetime import timedelta
from typing import Any, Callable

import torch
import torch.distributed as dist

from adaptis import channels

NAME = "rendezvous"
FOREVER_S = 60.0
"""After which a test hangs."""


class _Work(dist._Work):
    """Something that the stream will have done."""

    def __init__(self) -> None:
        super().__init__()
        self.is_done = threading.Event()
        self.fault: BaseException | None = None

    def wait(self, timeout: Any = None) -> bool:
        """As NCCL's, which makes the current stream wait."""
        if not self.is_done.wait(FOREVER_S):
            raise RuntimeError("nobody came to the rendezvous")
        if self.fault is not None:
            raise self.fault
        return True

    def is_completed(self) -> bool:
        """As NCCL's."""
        return self.is_done.is_set()


class Group(dist.ProcessGroup):
    """One rank's end of a communicator."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta = timedelta(seconds=FOREVER_S)) -> None:
        super().__init__(rank, size)
        self._connect = lambda: dist.ProcessGroupGloo(store, rank, size, timeout)
        self._wire: Any = None
        self._asked: queue.SimpleQueue[tuple[Callable[[], None], _Work]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def getBackendName(self) -> str:
        """For messages."""
        return NAME

    def _serve(self) -> None:
        while True:
            do, work = self._asked.get()
            try:
                do()
            except BaseException as fault:
                work.fault = fault
            work.is_done.set()

    def _ask(self, do: Callable[[], None]) -> _Work:
        if self._wire is None:
            self._wire = self._connect()
        work = _Work()
        self._asked.put((do, work))
        return work

    def send(self, tensors: list[torch.Tensor], to: int, tag: int) -> _Work:
        """Ends when it is received."""
        (tensor,) = tensors

        def do() -> None:
            size = torch.tensor([tensor.numel() * tensor.element_size()])
            self._wire.send([size], to, 0).wait()
            self._wire.send([tensor], to, 0).wait()
            self._wire.recv([size], to, 0).wait()

        return self._ask(do)

    def recv(self, tensors: list[torch.Tensor], sender: int, tag: int) -> _Work:
        """Takes what comes next."""
        (tensor,) = tensors

        def do() -> None:
            size = torch.zeros(1, dtype=torch.int64)
            self._wire.recv([size], sender, 0).wait()
            expected = tensor.numel() * tensor.element_size()
            is_right = int(size) == expected
            room = tensor if is_right else torch.empty(int(size), dtype=torch.uint8)
            self._wire.recv([room], sender, 0).wait()
            self._wire.send([size], sender, 0).wait()
            if not is_right:
                raise RuntimeError(f"{int(size)} bytes came, {expected} were asked for")

        return self._ask(do)

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> _Work:
        """As in a stream."""
        return self._ask(lambda: self._wire.broadcast(tensors, options).wait() and None)

    def allreduce(self, tensors: list[torch.Tensor], options: Any = None) -> _Work:
        """As in a stream."""
        return self._ask(lambda: self._wire.allreduce(tensors, options).wait() and None)

    def abort(self) -> None:
        """Ends it."""


def group() -> Any:
    """All ranks of the job, as one that NCCL connects."""
    if NAME not in channels.MAKERS:
        dist.Backend.register_backend(NAME, Group, devices=["cpu"])
        channels.MAKERS[NAME] = lambda store, rank, ranks, _: Group(store, rank, len(ranks))
    return dist.new_group(backend=NAME)
