"""How tensors get from one rank to another.

    Tagged     Gloo: what is received is the tensor that was sent with the same tag
    Ordered    NCCL, which knows no tags: a communicator of two ranks for each direction, whose tensors come in the order in
               which they were sent

1. Rows are written so that a receiver asks for a sender's tensors in the order in which they are sent, and so that no rank
   waits in a circle, not even where a send ends only when its tensor is received. So both carry any plan.
2. What ranks tell one another of a step goes over `control`, a group of hosts: nothing waits for a device by it.
3. A communicator is made when a plan first needs it, by its two ranks alone, and in one order by all: making it waits for
   the other one.
"""

from __future__ import annotations

import abc
import os
import random
import weakref
from typing import Any, Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from adaptis import runtime

Group = dist.ProcessGroup | None

Pair = tuple[int, int]
"""A sender and a receiver, by their ranks in the group."""


class Channels(abc.ABC):
    """Between all ranks of a group."""

    wait_is_the_devices = False
    """To wait for what was sent or received makes a device wait, and not the host."""

    def __init__(self, control: Group) -> None:
        self.control = control

    def open(self, pairs: Iterable[Pair]) -> None:
        """Makes what is needed to send from each first rank to the second one. To be called alike on every rank."""

    def close_but(self, pairs: Iterable[Pair]) -> None:
        """Frees what these do not need, where all that it carried has arrived. To be called alike on every rank."""

    def fail(self) -> None:
        """What was sent may never arrive."""

    @abc.abstractmethod
    def send(self, tensor: Tensor, to: int, tag: int) -> Any:
        """Begins to send. The tensor stays as it is until the result was waited for."""

    @abc.abstractmethod
    def receive(self, tensor: Tensor, sender: int, tag: int) -> Any:
        """Begins to receive. The tensor is there when the result was waited for."""


class Tagged(Channels):
    """By tags, over the group that carries what is told."""

    def send(self, tensor: Tensor, to: int, tag: int) -> Any:
        return dist.isend(tensor, group=self.control, group_dst=to, tag=tag)

    def receive(self, tensor: Tensor, sender: int, tag: int) -> Any:
        return dist.irecv(tensor, group=self.control, group_src=sender, tag=tag)


class Ordered(Channels):
    """By order, over a communicator for each direction of each pair: what goes one way holds up nothing that goes another.

    They are not torch's groups, which all ranks of the job would have to make together.
    """

    wait_is_the_devices = True

    def __init__(self, group: Group, control: Group, device: torch.device, backend: str) -> None:
        super().__init__(control)
        self.group = group
        self.device = device
        self.ranks = dist.get_process_group_ranks(group)
        self.rank = dist.get_rank(group)
        name = [random.SystemRandom().getrandbits(64)]
        dist.broadcast_object_list(name, group=control, group_src=0)
        self._name = f"adaptis/{name[0]:x}"
        self._make = MAKERS[backend]
        self._opened = 0
        self._ways: dict[Pair, Any] = {}
        # They are not destroyed with torch's groups.
        self._at_exit = weakref.finalize(self, _end, self._ways, device, os.getpid())

    def open(self, pairs: Iterable[Pair]) -> None:
        for sender, to in sorted(set(pairs)):
            # Of a pair that was closed a second one has another name.
            self._opened += 1
            if self.rank not in (sender, to) or (sender, to) in self._ways:
                continue
            name = f"{self._name}/{self._opened}"
            store = dist.distributed_c10d.PrefixStore(name, dist.distributed_c10d._get_default_store())
            both = [self.ranks[sender], self.ranks[to]]
            self._ways[sender, to] = self._make(store, int(self.rank == to), both, self.group)
            # Its first use is what makes it.
            word = torch.zeros(1, device=self.device)
            work = self.send(word, to, 0) if self.rank == sender else self.receive(word, sender, 0)
            work.wait()

    def close_but(self, pairs: Iterable[Pair]) -> None:
        kept = set(pairs)
        closed = [self._ways.pop(pair) for pair in list(self._ways) if pair not in kept]
        if closed and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        _abort(closed)

    def fail(self) -> None:
        # Nobody waits for what will never come.
        self._at_exit.detach()
        self._at_exit = weakref.finalize(self, _end, self._ways, None, os.getpid())

    def send(self, tensor: Tensor, to: int, tag: int) -> Any:
        return self._ways[self.rank, to].send([_bytes(tensor)], 1, 0) if tensor.numel() else _Nothing()

    def receive(self, tensor: Tensor, sender: int, tag: int) -> Any:
        return self._ways[sender, self.rank].recv([_bytes(tensor)], 0, 0) if tensor.numel() else _Nothing()


class _Nothing:
    """The carriage of a tensor without elements."""

    def wait(self) -> None: ...

    def is_completed(self) -> bool:
        return True


def _bytes(tensor: Tensor) -> Tensor:
    """Its memory, as what all of NCCL's versions carry."""
    return tensor.detach().view(-1).view(torch.uint8)


def _end(ways: dict[Pair, Any], device: torch.device | None, process: int) -> None:
    """Lets go of communicators, once what they carry has arrived."""
    if os.getpid() != process:
        return
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    _abort(list(ways.values()))
    ways.clear()


def _abort(ways: list[Any]) -> None:
    for way in ways:
        try:
            way.abort()
        except RuntimeError:
            # It ends with the process.
            pass


def _nccl(store: Any, rank: int, ranks: list[int], group: Group) -> Any:
    runtime.check("a schedule over NCCL", [(dist, "ProcessGroupNCCL", ())], is_first=False)
    options: Any = dist.ProcessGroupNCCL.Options()
    options.global_ranks_in_group = ranks
    options.group_name = f"adaptis {ranks[0]} to {ranks[1]}"
    of_group: Any = group or dist.group.WORLD
    try:
        # As long as the job wants to wait.
        options._timeout = of_group._get_backend(torch.device("cuda")).options._timeout
    except (AttributeError, RuntimeError):
        pass
    return dist.ProcessGroupNCCL(store, rank, len(ranks), options)


MAKERS: dict[str, Callable[[Any, int, list[int], Group], Any]] = dict.fromkeys(
    ("nccl", "nccl2", "nccl-lazy", "nccl-legacy"), _nccl
)
"""By backend, those without tags: makes this rank's end of a communicator of two of the job's ranks, sender first."""
FITTING = {"cpu": "gloo", "cuda": "nccl"}
"""What carries tensors of each type of device from rank to rank."""


def of(group: Group, device: torch.device) -> Channels:
    """The channels between the ranks of a group. To be called on all of them.

    Raises RuntimeError where tensors of this device can't be sent.
    """
    if device.type not in FITTING:
        raise RuntimeError(f"layers: they are on {device}; a schedule runs on {' and '.join(FITTING)}")
    backend = _backends(group).get(device.type, "none")
    if backend in MAKERS:
        return Ordered(group, control(group), device, backend)
    if backend != FITTING[device.type]:
        raise RuntimeError(
            f"group: layers are on {device}, for which its backend is {backend}; a schedule needs "
            f"{FITTING[device.type]} there, as of init_process_group({_wanted(device.type)!r})"
        )
    return Tagged(group)


def control(group: Group) -> Group:
    """The group of the same ranks that carries what is told, in the memory of hosts.

    Raises RuntimeError where there is none.
    """
    if _backends(group).get("cpu") == "gloo":
        return group
    if _backends(None).get("cpu") == "gloo" and dist.get_process_group_ranks(group) == list(range(dist.get_world_size())):
        return None
    raise RuntimeError(
        "group: it carries tensors of GPUs alone, and ranks also agree on what is in the memory of hosts; start with "
        f"init_process_group({_wanted('cuda')!r})"
    )


def _wanted(device: str) -> str:
    return ",".join(f"{of}:{backend}" for of, backend in FITTING.items()) if device == "cuda" else FITTING[device]


def _backends(group: Group) -> dict[str, str]:
    """By type of device."""
    parts = dist.get_backend_config(group).split(",")
    return {device: backend for device, _, backend in (part.partition(":") for part in parts)}
