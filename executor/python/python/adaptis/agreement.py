"""What ranks tell one another before every step, and how they see by it that all are about to do the same.

1. All ranks of all replicas have the same words before them, so all go on or all refuse, each with the reason.
2. A kind of iteration is what decides the shapes between layers: of one kind, they are the same.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Iterator

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from adaptis.schedule import Schedule
    from adaptis.worker import Share

FITS, INPUTS, HAS_TARGETS, PLAN, MANNER, WANTS_IN, OF_SEAT = range(7)
"""The numbers of a vote; from OF_SEAT on those of the session."""

Votes = list[list[int]]
"""By rank."""


def number(what: Any) -> int:
    """A number that is the same on every rank for the same thing, and is not 0."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=7).digest(), "little") + 1


def votes(schedule: Schedule, share: Share, error: Exception | None, word: list[int]) -> Votes:
    """What each rank of this replica is about to do."""
    # A GPU would have to be waited for; there ranks have one scale since they skip steps together.
    scaler = schedule._scaler
    scale = scaler.get_scale() if scaler is not None and schedule.device.type == "cpu" else scaler is not None
    own = [
        int(error is None),
        0 if share.inputs is None else number([(part.dtype, tuple(part.shape)) for part in share.inputs[0]]),
        int(share.targets is not None),
        schedule._number_of_plan(),
        number((schedule.steps, _manner(schedule), scale, schedule.mode)),
        int(schedule._seat.wants_in),
        *word,
    ]
    return gathered(schedule, own)


def gathered(schedule: Schedule, own: list[int]) -> Votes:
    """The numbers of each rank of this replica."""
    # What ranks say of themselves stays on hosts, whatever torch's default device is.
    mine = torch.tensor(own, dtype=torch.int64, device="cpu")
    table = torch.empty(schedule.world * len(own), dtype=torch.int64, device="cpu")
    dist.all_gather_into_tensor(table, mine, group=schedule.channels.control)
    return table.view(schedule.world, len(own)).tolist()


def of_replicas(schedule: Schedule, own: Votes) -> list[Votes]:
    """The numbers of all replicas."""
    if schedule.replicas.size == 1:
        return [own]
    every: list[Votes] = schedule.replicas.gather(torch.tensor(own, dtype=torch.int64, device="cpu")).tolist()
    return every


def of_all(schedule: Schedule, own: Votes) -> list[Votes]:
    """The votes of all replicas, which take the plan that the first one has."""
    if schedule.replicas.size == 1:
        return [own]
    # Before the votes of its ranks, each replica's plan, and whether a coordinator plans it.
    head = [schedule._number_of_plan(), int(schedule._seat.native is not None)] + [0] * (len(own[0]) - 2)
    table = torch.tensor([head, *own], dtype=torch.int64, device="cpu")
    heads = [(replica[0], replica[1:]) for replica in schedule.replicas.gather(table).tolist()]
    (first, is_led, *_), _ = heads[0]
    if is_led and any(head[0] != first for head, _ in heads):
        schedule._lead()
    return [replica for _, replica in heads]


def kind(schedule: Schedule, every: list[Votes], error: Exception | None) -> int:
    """Sees that all are about to do the same. The kind of iteration that it is."""
    if error is not None:
        raise error
    failed = [name for name, vote in called(every) if not vote[FITS]]
    if failed:
        raise RuntimeError(f"step: ranks [{', '.join(failed)}] can't begin; they say why")
    what = "number of steps, training mode, autocast, GradScaler's scale, requires_grad or the mode that is asked for"
    fix = ": plan, microbatches and the number of layers are to be alike on all, and change is to be called on all"
    for at, differing, hint in ((PLAN, "the plan", fix), (MANNER, what, "")):
        told: dict[int, list[str]] = {}
        for name, vote in called(every):
            told.setdefault(vote[at], []).append(name)
        if len(told) > 1:
            apart = " and ".join(f"[{', '.join(ranks)}]" for ranks in told.values())
            raise RuntimeError(f"step: {differing} differs from rank to rank, between {apart}{hint}")
    of = schedule._coming_plan().device_of_layers()
    for name, vote in called(every, of[0]):
        if not vote[INPUTS]:
            raise ValueError(f"step() needs x on rank {name}, which holds the first layer")
    for name, vote in called(every, of[-1]):
        if not vote[HAS_TARGETS]:
            raise ValueError(f"step() needs target on rank {name}, which holds the last layer")
    sizes = {vote[INPUTS] for _, vote in called(every)} - {0}
    if len(sizes) > 1:
        raise ValueError("x: its shape or type differs from rank to rank")
    return number((sizes.pop(), _manner(schedule)))


def pinned(schedule: Schedule, every: list[Votes]) -> list[tuple[int, int]]:
    """The first and the last layer with their ranks, where not all have what these layers need."""
    of = schedule.plan.device_of_layers()
    ends = ((0, of[0], INPUTS), (len(of) - 1, of[-1], HAS_TARGETS))
    return [(layer, rank) for layer, rank, at in ends if not all(vote[at] for _, vote in called(every))]


def called(every: list[Votes], only: int | None = None) -> Iterator[tuple[str, list[int]]]:
    """All votes, or those of one place in the pipeline, by what their ranks are called."""
    for replica, own in enumerate(every):
        for rank, vote in enumerate(own):
            if only is None or rank == only:
                yield (str(rank) if len(every) == 1 else f"{rank} of replica {replica}"), vote


def _manner(schedule: Schedule) -> tuple[Any, ...]:
    """What else decides what passes between layers, alike on all ranks."""
    kind = schedule.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    modes = bytes(layer.training for layer in schedule.layers)
    return autocast, modes, bytes(parameter.requires_grad for parameter in schedule.parameters())
