"""What would train otherwise than in one process, found while layers run."""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from adaptis import state
from adaptis.facts import parameters_of

if TYPE_CHECKING:
    from adaptis.schedule import Schedule

logger = logging.getLogger("adaptis")

LOOKS = 4
"""Runs of a layer after which its shared buffers are compared with what they were, for which a GPU is waited for."""
DOUBTS_MAX = 4
"""How often that begins anew."""


@dataclass
class Watch:
    """Over what a layer does to a buffer that others use as well."""

    # Runs of the layer after which its value is still to be compared.
    looks: int = LOOKS
    # How often it was another one.
    changes: int = 0
    # How often it may have been, after the first looks.
    doubts: int = 0


@dataclass
class Shared:
    """A buffer that several layers use, before one of them runs."""

    module: nn.Module
    name: str
    watch: Watch
    # Whether several layers have the module itself, and so see what takes the buffer's place.
    is_of_several: bool
    buffer: Tensor
    version: int
    # Where it is compared.
    value: Tensor | None


class SharedBuffers:
    """Refuses a layer that changes what another one uses: that one would see it on this rank alone, and in the plan's order.

    What is worked out once, or is the same each time, is no such change, and buffers that no checkpoint holds are taken
    for tables that each rank works out by itself.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        users: dict[int, set[int]] = {}
        of_module: dict[int, set[int]] = {}
        found: list[tuple[int, nn.Module, str, int]] = []
        for at, layer in enumerate(layers):
            for module in layer.modules():
                of_module.setdefault(id(module), set()).add(at)
                for name, buffer in module._buffers.items():
                    if buffer is not None and name not in module._non_persistent_buffers_set:
                        users.setdefault(id(buffer), set()).add(at)
                        found.append((at, module, name, id(buffer)))
        # By layer: each such buffer with its module and name.
        self._of: dict[int, list[tuple[nn.Module, str, Watch, bool]]] = {}
        for at, module, name, number in found:
            if len(users[number]) > 1:
                self._of.setdefault(at, []).append((module, name, Watch(), len(of_module[id(module)]) > 1))

    def before(self, layer: int) -> list[Shared]:
        """What a layer shares, as it is before it runs."""
        seen = []
        for module, name, watch, is_of_several in self._of.get(layer, ()):
            buffer = module._buffers.get(name)
            if buffer is not None:
                value = buffer.clone() if watch.looks > 0 else None
                seen.append(Shared(module, name, watch, is_of_several, buffer, buffer._version, value))
        return seen

    def after(self, layer: int, seen: Sequence[Shared]) -> None:
        """Looks at it after the run."""
        for was in seen:
            now, watch = was.module._buffers.get(was.name), was.watch
            # What takes its place in a module that no other layer has is seen by none: the old one counts.
            buffer = now if was.is_of_several else was.buffer
            if was.value is None:
                # Norms' kernels change theirs without a new version, but from the first run on.
                if (buffer is not was.buffer or was.buffer._version != was.version) and watch.doubts < DOUBTS_MAX:
                    watch.looks, watch.doubts = LOOKS, watch.doubts + 1
                continue
            watch.looks -= 1
            if buffer is None or buffer.shape != was.value.shape or _are_alike(buffer, was.value):
                continue
            watch.changes += 1
            if watch.changes > 1:
                raise RuntimeError(
                    f"layer {layer} changes the buffer {was.name!r} again and again, which another layer uses as well: it "
                    "would see that on this rank alone, and in the plan's order; give each layer its own, or make them one layer"
                )


def _are_alike(one: Tensor, other: Tensor) -> bool:
    """By all bits, so that what is no number is like itself."""
    if one.layout != torch.strided or one.dtype != other.dtype:
        return torch.equal(one, other)
    return torch.equal(state.bytes_of(one), state.bytes_of(other))


def tell_strangers(schedule: Schedule) -> None:
    """Has it said, once for each, that an optimizer trains layers of a schedule which does not know of it, or what only its
    loss uses."""
    if not _hooked:
        # It stays: torch goes through such hooks one by one.
        _hooked.append(register_optimizer_step_post_hook(_stepped))
    _schedules[:] = [entry for entry in _schedules if entry[0]() is not None]
    _schedules.append((weakref.ref(schedule), {}))


_hooked: list[Any] = []
_schedules: list[tuple[weakref.ref[Schedule], dict[int, weakref.ref[Optimizer]]]] = []
"""All of this process, with the optimizers that were looked at."""


def _stepped(optimizer: Optimizer, *_: Any) -> None:
    # What is compiled would be traced through here.
    if torch.compiler.is_compiling():
        return
    for of, looked_at in _schedules:
        schedule, known_as = of(), looked_at.get(id(optimizer))
        if schedule is None or schedule.steps == 0 or (known_as is not None and known_as() is optimizer):
            continue
        looked_at[id(optimizer)] = weakref.ref(optimizer)
        _tell_of_kept(optimizer, schedule)
        of_loss = [leaf() for leaf in schedule._worker.of_loss]
        if any(part is leaf for part in parameters_of(optimizer) for leaf in of_loss):
            logger.warning(
                "an optimizer (%s) trains a tensor that loss_fn uses and no layer has: it is another one on each rank, and the "
                "rank of the last layer trains its own alone; make it a parameter of that layer", type(optimizer).__name__
            )
        if not optimizer.state:
            continue
        # An attached one may work by others, on its own parameters.
        own = {id(part) for part in schedule.parameters()}
        known = {id(part) for attached in schedule.optimizers for part in parameters_of(attached)}
        if any(id(part) in own and id(part) not in known for part in parameters_of(optimizer)):
            logger.warning(
                "an optimizer (%s) that the schedule does not know of trains its layers: what it keeps for a layer is lost "
                "when a plan moves that; optimizer = schedule.attach(optimizer)", type(optimizer).__name__
            )


def _tell_of_kept(optimizer: Optimizer, schedule: Schedule) -> None:
    """Of an attached optimizer that keeps tensors otherwise than by parameter in its state."""
    if not any(optimizer is attached for attached in schedule.optimizers):
        return
    known = {id(part) for part in parameters_of(optimizer)}
    for name, kept in vars(optimizer).items():
        if name in ("param_groups", "state", "defaults"):
            continue
        parts = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, (list, tuple)) else [kept]
        inner = [part for of in parts for part in (of if isinstance(of, (list, tuple)) else [of])]
        if any(isinstance(part, Tensor) and part.dim() > 0 and id(part) not in known for part in inner):
            logger.warning(
                "an optimizer (%s) keeps tensors in %r and not in its state: they do not move with the layers of their parameters; "
                "keep them in optimizer.state[parameter]", type(optimizer).__name__, name
            )


def refuse_parameter(part: Tensor, layers: Sequence[nn.Module], what: str) -> None:
    """Refuses a parameter that a loss uses, if it is trained or a layer's."""
    for at, layer in enumerate(layers):
        if any(part is own for own in layer.parameters()):
            raise ValueError(
                f"loss_fn: it uses a parameter of layer {at}, which is there on that layer's rank alone; let the last layer "
                "use it, and return what loss_fn then needs"
            )
    if part.requires_grad:
        raise ValueError(
            f"loss_fn: it has a parameter of its own, {what}, which would not move with the last layer: make it a part of "
            "that layer, which returns what loss_fn then needs, or call requires_grad_(False) if it is not to be trained"
        )


def refuse_parameters(
    loss: Tensor, outputs: Sequence[Any], layers: Sequence[nn.Module]
) -> list[weakref.ref[Tensor]]:
    """Refuses a loss with parameters: the rank of the last layer, whichever it is, would train its own ones alone. Its other
    leaves may be made for it, as for a penalty, or trained: which ones there are."""
    known = {id(part) for part in outputs}
    others: list[weakref.ref[Tensor]] = []
    reached, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in reached:
            continue
        reached.add(node)
        leaf = getattr(node, "variable", None) if type(node).__name__ == "AccumulateGrad" else None
        if isinstance(leaf, nn.Parameter) and id(leaf) not in known:
            refuse_parameter(leaf, layers, f"of shape {tuple(leaf.shape)}")
        elif leaf is not None and id(leaf) not in known:
            others.append(weakref.ref(leaf))
        ahead += [following for following, _ in node.next_functions]
    return others
