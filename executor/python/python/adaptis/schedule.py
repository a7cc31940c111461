"""The schedule: a model's layers on the ranks of a group, under a plan that may change between two steps."""

from __future__ import annotations

from typing import Any, Callable, Iterator, Sequence, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from adaptis import _native, state
from adaptis._native import Plan, PlanError
from adaptis.exchange import Exchange
from adaptis.forms import Forms
from adaptis.split import defer
from adaptis.worker import Bundle, Share, Stage, Worker

O = TypeVar("O", bound=Optimizer)


class Schedule:
    """Runs a model as a pipeline over the ranks of a process group.

    `layers` is the model as an ordered list of modules, built alike on every rank: each takes what the one before it
    returned, a tensor or a tuple of tensors. Every rank keeps the parameters of its own layers; those of the others are
    placeholders that have a shape and no memory. `loss_fn(output, target)` gives the mean loss of a microbatch.

        schedule = adaptis.Schedule(layers, microbatches=8, loss_fn=loss_fn)
        optimizer = schedule.attach(AdamW(schedule.parameters()))
        loss = schedule.step(x, target=y)

    `plan` is where to start: a `Plan`, or the name of a schedule (gpipe, 1f1b, i1f1b, zb-h1, zb-h2, zb-v, v-half, v-min);
    without one an even split under 1F1B. `seed` is that of the layers' random numbers, which do not depend on the plan.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        microbatches: int,
        loss_fn: Callable[..., Tensor],
        *,
        plan: Plan | str | None = None,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        if not dist.is_initialized():
            raise RuntimeError("torch.distributed has no process group yet: call init_process_group first")
        self.layers = list(layers)
        if not self.layers:
            raise ValueError("layers: there are none")
        if microbatches < 1:
            raise ValueError(f"microbatches: {microbatches} is not a number from 1")
        self.microbatches = microbatches
        self.group = group
        self.rank = dist.get_rank(group)
        self.world = dist.get_world_size(group)
        self.device = _device(self.layers, device)
        self.optimizers: list[Optimizer] = []
        self.steps = 0
        self._tied = state.tied(self.layers)
        self._worker = Worker(self.layers, loss_fn, microbatches, self.device, seed)
        self._exchange = Exchange(group, self.device)
        self._mover = state.Mover(group, self.device)
        self._forms: dict[tuple[Any, ...] | None, dict[int, Forms]] = {}
        # Some ranks are given no x, and so do not see its shape change.
        self._is_blind = False
        self._next: tuple[Plan, _native.Row] | None = None
        for layer in self.layers:
            defer(layer, self._worker.ledger)
        names = [f"rank{rank}" for rank in range(self.world)]
        if not isinstance(plan, Plan):
            plan = Plan.even(len(self.layers), names, microbatches, plan, self._tied)
        self.plan, self._row = self._checked(plan)
        for layer in self._elsewhere():
            state.drop(layer, [])
        self._adopt()

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of the model, each once; those of other ranks' layers hold nothing here."""
        return nn.ModuleList(self.layers).parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same, by name: the number of the layer, then the name in it."""
        return nn.ModuleList(self.layers).named_parameters()

    def attach(self, optimizer: O) -> O:
        """Makes what an optimizer keeps for a layer move with it."""
        if optimizer not in self.optimizers:
            self.optimizers.append(optimizer)
            for layer in self._elsewhere():
                for parameter in layer.parameters():
                    optimizer.state.pop(parameter, None)
        return optimizer

    def change(self, plan: Plan) -> None:
        """Goes over to another plan at the beginning of the next step. To be called alike on every rank."""
        self._next = self._checked(plan)

    def step(self, x: Any = None, *, target: Any = None) -> Tensor:
        """Runs one iteration forwards and backwards; the mean loss, on every rank.

        `x` is a tensor or a tuple of tensors, cut along its first dimension into microbatches, as `target` is. `x` is
        needed where the first layer is and `target` where the last one is; given everywhere, they are at hand wherever a
        plan puts these layers, and may change their shape from step to step.
        """
        if self._next is not None:
            self._switch()
        share = self._share(x, target)
        size = _size(share)
        known = self._forms.get(size)
        if known is None and self._is_blind:
            raise ValueError("x changed its shape, and not every rank was given it: give x to step() on every rank")
        self._worker.begin(share)
        self._exchange.begin(known)
        try:
            _native.run(self._row, self._worker, self._exchange)
            self._exchange.end()
            if known is None:
                self._learn(size)
            loss = self._loss()
        except BaseException:
            self._exchange.reset()
            raise
        finally:
            self._worker.end()
        self.steps += 1
        return loss

    def _checked(self, plan: Plan) -> tuple[Plan, _native.Row]:
        if plan.layers != len(self.layers):
            raise PlanError(f"layers: the plan is for {plan.layers} layers, the model has {len(self.layers)}")
        if len(plan.devices) != self.world:
            raise PlanError(f"devices: the plan is for {len(plan.devices)} devices, the group has {self.world} ranks")
        findings = plan.findings(self.microbatches, self._tied)
        if findings:
            tied = f" (layers {self._tied} share parameters)" if self._tied else ""
            raise PlanError("the plan is not valid: " + "; ".join(findings) + tied)
        return plan, plan.row(self.rank)

    def _elsewhere(self) -> list[nn.Module]:
        """The layers of other ranks."""
        return [layer for layer, rank in zip(self.layers, self.plan.device_of_layers()) if rank != self.rank]

    def _adopt(self) -> None:
        stages = self.plan.stages
        own = {
            at: Stage(first, end, frozenset(recomputed))
            for at, (first, end, device, recomputed) in enumerate(stages)
            if device == self.rank
        }
        self._worker.adopt(own)
        self._exchange.adopt([(first, end) for first, end, _, _ in stages])

    def _switch(self) -> None:
        assert self._next is not None
        plan, row = self._next
        self._next = None
        moves = self.plan.moves(plan)
        sent: list[Any] = []
        done: set[int] = set()
        for layer, source, to in moves:
            if source == self.rank:
                sent += self._mover.send(to, self.layers[layer], self.optimizers, done)
        for layer, source, to in moves:
            if to == self.rank:
                self._mover.receive(source, self.layers[layer], self.optimizers)
        for work, _ in sent:
            work.wait()
        for layer, source, _ in moves:
            if source == self.rank:
                state.drop(self.layers[layer], self.optimizers)
        self.plan, self._row = plan, row
        self._adopt()

    def _share(self, x: Any, target: Any) -> Share:
        inputs = None if x is None else _cut(x, self.microbatches, "x")
        targets = None if target is None else _cut(target, self.microbatches, "target")
        if targets is not None and isinstance(target, Tensor):
            targets = [part[0] for part in targets]
        return Share(inputs, targets, self.steps)

    def _learn(self, size: tuple[Any, ...] | None) -> None:
        """Shares what passes between the layers."""
        own = (size, self._worker.forms)
        parts = [own for _ in range(self.world)]
        dist.all_gather_object(parts, own, group=self.group)
        self._is_blind = len({size for size, _ in parts}) > 1
        known = {layer: forms for _, part in parts for layer, forms in part.items()}
        for size, _ in parts:
            self._forms[size] = known

    def _loss(self) -> Tensor:
        owner = self.plan.device_of_layers()[-1]
        loss = torch.zeros((), dtype=torch.float32, device=self.device)
        if owner == self.rank:
            for part in self._worker.losses:
                assert part is not None, "every microbatch has a loss"
                loss += part.float()
            loss /= self.microbatches
        dist.broadcast(loss, group=self.group, group_src=owner)
        return loss


def _device(layers: Sequence[nn.Module], device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    found = {tensor.device for layer in layers for _, tensor in state.tensors_of(layer)}
    if len(found) > 1:
        raise ValueError(f"layers: they are on several devices: {sorted(map(str, found))}")
    return found.pop() if found else torch.device("cpu")


def _size(share: Share) -> tuple[Any, ...] | None:
    if share.inputs is None:
        return None
    return tuple((part.dtype, tuple(part.shape)) for part in share.inputs[0])


def _cut(data: Any, microbatches: int, name: str) -> list[Bundle]:
    parts = (data,) if isinstance(data, Tensor) else tuple(data)
    for part in parts:
        if not isinstance(part, Tensor) or part.dim() == 0:
            found = "a tensor without one" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise TypeError(f"{name}: a tensor or a tuple of tensors with a first dimension to cut, not {found}")
        if part.shape[0] % microbatches:
            raise ValueError(f"{name}: {part.shape[0]} rows can't be cut into {microbatches} equal microbatches")
    cut = [part.split(part.shape[0] // microbatches) for part in parts]
    return [tuple(pieces) for pieces in zip(*cut)]
