"""The loss of a model whose layers are on several ranks, forwards alone: nothing is learned, counted or drawn.

Every rank goes through the pieces of the batch, and through the stages of each in the model's order: so whoever sends is
never waited for by one that it waits for.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from adaptis import agreement, chance
from adaptis.forms import Bundle
from adaptis.worker import bundled

if TYPE_CHECKING:
    from adaptis.schedule import Schedule


def evaluate(
    schedule: Schedule, inputs: list[Bundle] | None, targets: list[Any] | None, error: Exception | None
) -> Tensor:
    """The mean loss, on every rank, of a batch in pieces; it is that of all replicas."""
    counts = _agree(schedule, inputs, targets, error)
    pieces = counts[schedule.replicas.rank]
    if len(set(counts)) > 1:
        # Shards are gathered together, so all go through equally many pieces.
        pieces, inputs, targets = 1, inputs and [_joined(inputs)], targets and [_joined(targets)]
    stages = schedule.plan.stages
    owner = stages[-1][2]
    loss = torch.zeros((), device=schedule.device)
    with _in_evaluation(schedule), torch.no_grad():
        for piece in range(pieces):
            output = _through(schedule, piece, inputs)
            if schedule.rank == owner:
                assert output is not None and targets is not None, "all ranks agreed that it is there"
                whole = output[0] if len(output) == 1 else output
                of_piece = schedule._worker.loss_fn(whole, targets[piece]).reshape(())
                loss = loss.to(summed(of_piece.dtype)) + of_piece
        schedule._exchange.end()
        schedule._worker.reshard()
    if schedule.rank == owner:
        loss /= pieces * schedule.replicas.size
        schedule.replicas.reduce(loss)
    # With its type, which nobody else knows before a step. (Whoever evaluates waits for a GPU.)
    told = torch.stack([loss.double(), torch.full_like(loss.double(), loss.dtype == torch.float64)])
    dist.broadcast(told, group=schedule.group, group_src=owner)
    return told[0].to(torch.float64 if told[1] else torch.float32)


def summed(dtype: torch.dtype) -> torch.dtype:
    """In which losses of this type are added up."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _joined(pieces: Sequence[Any]) -> Any:
    """Tensors, or tuples of them, as they were before they were cut."""
    if isinstance(pieces[0], Tensor):
        return torch.cat(list(pieces))
    return tuple(torch.cat(parts) for parts in zip(*pieces))


def _agree(schedule: Schedule, inputs: Any, targets: Any, error: Exception | None) -> list[int]:
    """Sees that all ranks have what they need, or refuses on all of them. Of how many pieces each replica's batch is."""
    stages = schedule.plan.stages
    is_first, is_last = stages[0][2] == schedule.rank, stages[-1][2] == schedule.rank
    counts = [len(data) for data in (inputs, targets) if data is not None]
    own = [
        int(error is not None),
        int(is_first and error is None and inputs is None),
        int(is_last and error is None and targets is None),
        min(counts, default=0),
        max(counts, default=0),
    ]
    every = agreement.of_replicas(schedule, agreement.gathered(schedule, own))
    if error is not None:
        raise error
    reasons = ("can't begin; they say why", "hold the first layer and need x", "hold the last layer and need target")
    for at, why in enumerate(reasons):
        ranks = [name for name, vote in agreement.called(every) if vote[at]]
        if ranks:
            raise ValueError(f"evaluate: ranks [{', '.join(ranks)}] {why}")
    counts_of_each = [{count for vote in votes for count in vote[3:] if count} for votes in every]
    if any(len(of) > 1 for of in counts_of_each):
        raise ValueError("evaluate: x and target differ in their first dimension, or from rank to rank")
    return [of.pop() for of in counts_of_each]


def _through(schedule: Schedule, piece: int, inputs: list[Bundle] | None) -> Bundle | None:
    """A piece through the stages of this rank; what the last one gives, if that is here."""
    exchange, stages = schedule._exchange, schedule.plan.stages
    value: Bundle | None = None
    for at, (first, end, rank, _) in enumerate(stages):
        if rank != schedule.rank:
            value = None
            continue
        if at == 0:
            assert inputs is not None, "all ranks agreed that it is there"
            value = inputs[piece]
        elif value is None:
            exchange.post(stages[at - 1][2], False, at, piece)
            value = exchange.take(stages[at - 1][2], False, at, piece)
        for layer in range(first, end):
            schedule._worker._generator.seed(chance.key(schedule._worker.seed, schedule.steps, layer, piece))
            value = tuple(part.contiguous() for part in bundled(schedule.layers[layer](*value), layer))
        if at + 1 < len(stages) and stages[at + 1][2] != rank:
            exchange.send(stages[at + 1][2], False, at + 1, piece, value)
    return value


@contextlib.contextmanager
def _in_evaluation(schedule: Schedule) -> Iterator[None]:
    """The layers here in evaluation mode, and as they were again."""
    modes = [(module, module.training) for _, layer in schedule._own() for module in layer.modules()]
    for module, _ in modes:
        module.training = False
    schedule._worker._generator.keep()
    schedule._exchange.begin(None)
    try:
        yield
    except BaseException:
        schedule._exchange.reset()
        raise
    finally:
        schedule._worker._generator.put_back()
        for module, mode in modes:
            module.training = mode
