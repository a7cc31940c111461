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

import random
import weakref
from typing import Any, Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None


class Tagged:
    """By tags, over one group."""

    def __init__(self, group: Group, control: Group, device: torch.device, backend: str) -> None:
        self.group = group
        self.control = control

    def open(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Makes what is needed to send from each first rank to the second one. To be called alike on every rank."""

    def send(self, tensor: Tensor, to: int, tag: int) -> Any:
        """Begins to send. The tensor stays as it is until the result was waited for."""
        return dist.isend(tensor, group=self.group, group_dst=to, tag=tag)

    def receive(self, tensor: Tensor, sender: int, tag: int) -> Any:
        """Begins to receive. The tensor is there when the result was waited for."""
        return dist.irecv(tensor, group=self.group, group_src=sender, tag=tag)


class Ordered(Tagged):
    """By order, over a communicator for each direction of each pair: what goes one way holds up nothing that goes another.

    They are not torch's groups, which all ranks of the job would have to make together.
    """

    def __init__(self, group: Group, control: Group, device: torch.device, backend: str) -> None:
        super().__init__(group, control, device, backend)
        self.device = device
        self.ranks = dist.get_process_group_ranks(group)
        self.rank = dist.get_rank(group)
        name = [random.SystemRandom().getrandbits(64)]
        dist.broadcast_object_list(name, group=control, group_src=0)
        self._name = f"adaptis/{name[0]:x}"
        self._make = MAKERS[backend]
        self._ways: dict[tuple[int, int], Any] = {}
        # They are not destroyed with torch's groups.
        weakref.finalize(self, _abort, self._ways)

    def open(self, pairs: Iterable[tuple[int, int]]) -> None:
        for sender, to in sorted(set(pairs)):
            if self.rank not in (sender, to) or (sender, to) in self._ways:
                continue
            store = dist.distributed_c10d.PrefixStore(f"{self._name}/{sender}/{to}", dist.distributed_c10d._get_default_store())
            self._ways[sender, to] = self._make(store, int(self.rank == to), [self.ranks[sender], self.ranks[to]])
            # Its first use is what makes it.
            word = torch.zeros(1, device=self.device)
            work = self.send(word, to, 0) if self.rank == sender else self.receive(word, sender, 0)
            work.wait()

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


def _abort(ways: dict[tuple[int, int], Any]) -> None:
    for way in ways.values():
        way.abort()


def _nccl(store: Any, rank: int, ranks: list[int]) -> Any:
    options: Any = dist.ProcessGroupNCCL.Options()
    options.global_ranks_in_group = ranks
    options.group_name = f"adaptis {ranks[0]} to {ranks[1]}"
    return dist.ProcessGroupNCCL(store, rank, len(ranks), options)


MAKERS: dict[str, Callable[[Any, int, list[int]], Any]] = {"nccl": _nccl}
"""By backend: makes this rank's end of a communicator of two of the job's ranks, sender first."""
FITTING = {"cpu": "gloo", "cuda": "nccl"}
"""What carries tensors of each type of device from rank to rank."""


def of(group: Group, device: torch.device) -> Tagged:
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
    return Tagged(group, group, device, backend)


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
