"""The schedule: a model's layers on the ranks of a group, under a plan that may change between two steps."""

from __future__ import annotations

import logging
import sys
import weakref
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Callable, Iterator, Mapping, Sequence, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import LBFGS, Optimizer

from adaptis import _native, agreement, arguments, channels, checkpoint, ending, evaluation, gradients, guards, runtime, state
from adaptis._native import Plan, PlanError
from adaptis.attributes import Attributes
from adaptis.exchange import MICROBATCHES_MAX, STAGES_MAX, Exchange
from adaptis.forms import Form, Forms
from adaptis.memory import sampled
from adaptis.replicas import Replicas, placed
from adaptis.session import Seat, Settings
from adaptis.split import defer
from adaptis.worker import Share, Stage, Worker

logger = logging.getLogger("adaptis")

MODES = ("observe", "advise", "adapt")
"""What a coordinator may do to a job."""
KINDS_MAX = 4096
"""Kinds of iteration, as by the shape of x, whose forms are kept at a time."""

O = TypeVar("O", bound=Optimizer | GradScaler)

_dealt_out: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Layers of this process that a schedule has dealt out to several ranks."""


class Schedule:
    """Runs a model as a pipeline over the ranks of a process group.

    `layers` is the model as an ordered list of modules, built alike on every rank: each takes what the one before it
    returned, a tensor or a tuple of tensors. Every rank keeps the parameters of its own layers; those of the others are
    placeholders that have a shape and no memory. `loss_fn(output, target)` gives the mean loss of a microbatch.

        schedule = adaptis.Schedule(layers, microbatches=8, loss_fn=loss_fn)
        optimizer = schedule.attach(AdamW(schedule.parameters()))
        loss = schedule.step(x, target=y)

    `group` is the pipeline's process group, or a `DeviceMesh` of one dimension. Layers may each be sharded by
    `fully_shard` over the data-parallel part of a mesh: then there are as many replicas of the pipeline, each with an `x`
    of its own, all on one plan, and the loss is that of all.

    `plan` is where to start: a `Plan`, or the name of a schedule (gpipe, 1f1b, i1f1b, zb-h1, zb-h2, zb-v, v-half, v-min);
    without one an even split under 1F1B. `seed` is that of the layers' random numbers, which do not depend on the plan.
    `coordinator` is where one listens that measures the job and plans it again, as `tcp://host:29611`: that of the
    environment (`ADAPTIS_COORDINATOR`, as `adaptis run` sets it) if it is not given, nobody if it is empty. `mode` is what it
    may do where nobody else says so (`--mode`, `ADAPTIS_MODE`): `observe`, `advise`, or `adapt`, which changes the plan.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        microbatches: int,
        loss_fn: Callable[..., Tensor],
        *,
        plan: Plan | str | None = None,
        group: dist.ProcessGroup | DeviceMesh | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        coordinator: str | None = None,
        mode: str | None = None,
    ) -> None:
        if not dist.is_initialized():
            raise RuntimeError("torch.distributed has no process group yet: call init_process_group first")
        runtime.check("adaptis.Schedule", runtime.OF_SCHEDULE, is_first=dist.get_rank() == 0)
        if isinstance(group, DeviceMesh):
            if group.ndim != 1:
                raise ValueError(f"group: a mesh of {group.ndim} dimensions; give its pipeline part, as mesh['pp']")
            group = group.get_group()
        self.layers = arguments.modules(layers)
        arguments.check_loss(loss_fn, self.layers)
        seed = arguments.whole("seed", seed)
        if coordinator is not None and not isinstance(coordinator, str):
            raise TypeError(f"coordinator: an address, as tcp://host:29611, not a {type(coordinator).__name__}")
        if plan is not None and not isinstance(plan, (Plan, str)):
            raise TypeError(f"plan: a Plan or the name of a schedule, not a {type(plan).__name__}")
        microbatches = arguments.whole("microbatches", microbatches)
        if not 1 <= microbatches <= MICROBATCHES_MAX:
            raise ValueError(f"microbatches: {microbatches} is not a number from 1 to {MICROBATCHES_MAX}")
        if mode not in (None, *MODES):
            raise ValueError(f"mode: {mode!r} is none of {', '.join(MODES)}")
        self.mode = mode
        self.microbatches = microbatches
        self.group = group
        self.rank = dist.get_rank(group)
        self.world = dist.get_world_size(group)
        self.device = arguments.device_of(self.layers, device)
        if self.world > 1:
            arguments.check_unused(self.layers, _dealt_out)
            arguments.check_movable(self.layers)
            arguments.check_memory(self.layers)
        self.channels = channels.of(group, self.device)
        self.optimizers: list[Optimizer] = []
        self._scaler: GradScaler | None = None
        self.steps = 0
        self._tied = state.tied(self.layers)
        self.replicas = Replicas(self.layers)
        self._attributes = Attributes(self.layers, self._tied, loss_fn)
        if self._attributes.reaching and self.world > 1:
            raise ValueError(self._attributes.reaching[0])
        for place, other in list(self._attributes.holding.items())[: 1 if self.world > 1 and self.rank == 0 else 0]:
            logger.warning(
                "layers: %s holds %s, which is another layer and nothing on other ranks: what results depend on is to be passed on with "
                "the outputs", place, other
            )
        self._worker = Worker(self._attributes, loss_fn, microbatches, self.device, seed, self.replicas.rank)
        self._exchange = Exchange(self.channels, self.device, self._worker.tape)
        self._mover = state.Mover(self.channels, self.device, self._attributes)
        # What passes between the layers, by kind of iteration.
        self._forms: dict[int, dict[int, Forms]] = {}
        self._first_forms: Forms = ()
        self._next: tuple[Plan, _native.Row, int] | None = None
        self._has_told_of_x = False
        # A restore has failed half-way.
        self._is_mixed = False
        names = [f"rank{rank}" for rank in range(self.world)]
        if not isinstance(plan, Plan):
            plan = Plan.even(len(self.layers), names, microbatches, plan, self._tied)
        self.plan, self._row, self._plan_number = self._checked(plan)
        self._open(self.plan, [])
        # From here on nothing is refused: until now the layers are as they were.
        if self.world > 1:
            _dealt_out.update(self.layers)
        for layer in self.layers:
            defer(layer, self._worker.ledger)
        for layer in self._elsewhere():
            state.drop(layer, [], [own for _, own in self._own()])
        self._adopt()
        if self.world > 1:
            guards.tell_strangers(self)
        ending.settle_at_exit()
        self._seat = Seat(self, Settings.found(coordinator if self.replicas.rank == 0 else ""))

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of the model, each once; those of other ranks' layers hold nothing here."""
        return nn.ModuleList(self.layers).parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same, by name: the number of the layer, then the name in it."""
        return nn.ModuleList(self.layers).named_parameters()

    def attach(self, optimizer: O) -> O:
        """Makes what an optimizer keeps for a layer move with it; makes a `GradScaler` scale the loss, and skip a step on
        all ranks together."""
        if isinstance(optimizer, GradScaler):
            if self._scaler is not None and self._scaler is not optimizer:
                raise ValueError("attach: a schedule has one GradScaler, and this one has one already")
            if self._scaler is None:
                gradients.share(self, optimizer)
                self._scaler, self._worker.scaled = optimizer, optimizer.scale
        elif isinstance(optimizer, LBFGS):
            raise TypeError(
                "attach: LBFGS needs all gradients in one place and runs the loss again by itself; take an optimizer that "
                "updates each parameter by its own gradient"
            )
        elif not isinstance(optimizer, Optimizer):
            raise TypeError(f"attach: an optimizer of torch or a GradScaler, not a {type(optimizer).__name__}")
        elif optimizer not in self.optimizers:
            checkpoint.check_known(checkpoint.names_of(self), optimizer)
            self.optimizers.append(optimizer)
            checkpoint.forget_elsewhere(self, optimizer)
            optimizer.register_load_state_dict_post_hook(partial(checkpoint.forget_elsewhere, self))
        return optimizer

    def change(self, plan: Plan) -> None:
        """Goes over to another plan at the beginning of the next step. To be called alike on every rank, and not where a
        coordinator plans."""
        if not isinstance(plan, Plan):
            raise TypeError(f"change: a Plan, not a {type(plan).__name__}; Plan.even makes one of a schedule's name")
        if self._seat.native is not None:
            raise RuntimeError("a coordinator plans this run; start the schedule with coordinator='' to plan it by hand")
        self._next = self._checked(plan)

    def step(self, x: Any = None, *, target: Any = None) -> Tensor:
        """Runs one iteration forwards and backwards; the mean loss, on every rank.

        `x` is a tensor or a tuple of tensors, cut along its first dimension into microbatches, as `target` is. `x` is
        needed where the first layer is and `target` where the last one is; given everywhere, they are at hand wherever a
        plan puts these layers. What does not fit together is refused on every rank before anything runs. After an error in
        the middle gradients are not whole: zero them, where there is one rank; what several had sent one another may still
        come, so that a rank on which it failed refuses to go on.
        """
        self._refuse_broken()
        share, error = self._share(x, target)
        votes = agreement.votes(self, share, error, self._seat.word())
        self._attend(votes)
        every = agreement.of_all(self, votes)
        try:
            kind = agreement.kind(self, every, error)
        except BaseException:
            self._seat.forget()
            raise
        try:
            self._join(every)
            if self._next is not None:
                self._switch()
        except BaseException:
            self._fail()
            raise
        known = self._forms.get(kind)
        shared = self._attributes.watch() if known is None and self.world > 1 else []
        self._worker.begin(share)
        self._exchange.begin(known)
        try:
            _native.run(self._row, self._worker, self._exchange)
            self._exchange.end()
            self._worker.reshard()
            if known is None:
                self._learn(kind)
                self._see_gradient(kind)
                self._attributes.tell(shared)
            loss = self._loss(evaluation.summed(self._forms[kind][len(self.layers)][0].dtype))
        except BaseException:
            self._fail()
            raise
        finally:
            self._worker.end()
        self._seat.stepped(loss)
        self.steps += 1
        return loss

    def evaluate(self, x: Any = None, *, target: Any = None) -> Tensor:
        """The mean loss of a batch, on every rank: forwards alone, layers in evaluation mode. To be called on every rank,
        between two steps. `x` and `target` as in `step`; a batch that can't be cut into microbatches goes as a whole."""
        self._refuse_broken()
        return evaluation.evaluate(self, *arguments.in_pieces(x, target, self._pieces))

    def close(self) -> None:
        """Tells the coordinator that training is over, as the end of the process does."""
        self._seat.leave(sys.exc_info()[1])

    def clip_grad_norm_(self, max_norm: float, *, error_if_nonfinite: bool = False) -> Tensor:
        """Scales all gradients down to this global norm if theirs is larger; the norm before. The squares are added in the
        order of the layers, so that no bit of it depends on the plan. To be called on every rank."""
        return gradients.clip_norm(self, max_norm, error_if_nonfinite)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers of the layers of this rank, by names that do not depend on the plan."""
        return {
            f"{at}.{name}": tensor for at, layer in self._own() for name, tensor in layer.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes parameters and buffers of the layers of this rank from a whole model's, or from more than these."""
        for at, layer in self._own():
            prefix = f"{at}."
            held = layer.state_dict()
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            layer.load_state_dict({name: placed(value, held.get(name)) for name, value in own.items()})

    def checkpoint(self) -> dict[str, Any]:
        """This rank's part of a checkpoint: the "model", its "optimizers" and "steps", all by names that do not depend on
        the plan. `torch.distributed.checkpoint` makes one of all parts."""
        return checkpoint.part(self)

    def whole_checkpoint(self) -> dict[str, Any] | None:
        """The same of all ranks together, for `torch.save` by rank 0; None on the others. To be called on every rank."""
        return checkpoint.whole(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where a checkpoint was taken, under whatever plan and on however many ranks. To be called on every rank,
        with the whole or at least what its layers need. A plain script's `{"model": model.state_dict(), "optimizers":
        [optimizer.state_dict()], "steps": steps}` will do."""
        checkpoint.restore(self, state)

    def save(self, directory: str | Path) -> None:
        """Writes a checkpoint of torch.distributed.checkpoint, each rank its part. To be called on every rank."""
        checkpoint.save(self, directory)

    def load(self, directory: str | Path) -> None:
        """Goes on from one, each rank reading what its layers need. To be called on every rank."""
        checkpoint.load(self, directory)

    def _checked(self, plan: Plan) -> tuple[Plan, _native.Row, int]:
        if plan.layers != len(self.layers):
            raise PlanError(f"layers: the plan is for {plan.layers} layers, the model has {len(self.layers)}")
        if len(plan.devices) != self.world:
            raise PlanError(f"devices: the plan is for {len(plan.devices)} devices, the group has {self.world} ranks")
        if len(plan.stages) > STAGES_MAX:
            raise PlanError(f"stages: {len(plan.stages)} of them; {STAGES_MAX} is the most that a schedule runs")
        findings = plan.findings(self.microbatches, self._tied)
        if findings:
            tied = f" (layers {self._tied} share parameters)" if self._tied else ""
            raise PlanError("the plan is not valid: " + "; ".join(findings) + tied)
        return plan, plan.row(self.rank), agreement.number(plan.write())

    def _elsewhere(self) -> list[nn.Module]:
        """The layers of other ranks."""
        return [layer for layer, rank in zip(self.layers, self.plan.device_of_layers()) if rank != self.rank]

    def _own(self) -> Iterator[tuple[int, nn.Module]]:
        """The layers of this rank, with their numbers."""
        of = self.plan.device_of_layers()
        return ((at, layer) for at, layer in enumerate(self.layers) if of[at] == self.rank)

    def _adopt(self) -> None:
        stages = self.plan.stages
        own = {
            at: Stage(first, end, frozenset(recomputed))
            for at, (first, end, device, recomputed) in enumerate(stages)
            if device == self.rank
        }
        self._worker.adopt(own)
        self._exchange.adopt([(first, end) for first, end, _, _ in stages])

    def _open(self, plan: Plan, moves: Sequence[tuple[int, int, int]]) -> None:
        """Makes the channels that a plan and the way to it need."""
        self.channels.open(_pairs(plan) + _ways(moves))

    def _close_unused(self) -> None:
        """Frees the channels that the plan in force does not need."""
        self.channels.close_but(_pairs(self.plan))

    def _switch(self) -> None:
        assert self._next is not None
        plan, row, number = self._next
        self._next = None
        start_ns = perf_counter_ns()
        moves = self.plan.moves(plan)
        self._open(plan, moves)
        received = self._mover.move(self.rank, {at for at, _ in self._own()}, moves, self.optimizers)
        before, self.plan, self._row, self._plan_number = self.plan, plan, row, number
        self._adopt()
        # Those of the plan before may be wanted again, and may still carry something.
        self.channels.close_but(_pairs(before) + _pairs(plan) + _ways(moves))
        self._seat.settled(start_ns, len(moves), received)

    def _share(self, x: Any, target: Any) -> tuple[Share, Exception | None]:
        """This rank's data, or why it can't be cut."""
        inputs, targets, error = arguments.in_pieces(x, target, lambda _: self.microbatches)
        parts = (x,) if isinstance(x, Tensor) else x if inputs is not None else ()
        if inputs is not None and any(part.grad_fn is not None or isinstance(part, nn.Parameter) for part in parts):
            error = ValueError(
                "x: it is what others were made into that are trained, or a parameter, and gets no gradient: make what it "
                "comes from a part of the first layer, or give x.detach() if that is not to be trained"
            )
        elif not self._has_told_of_x and any(part.requires_grad for part in parts):
            self._has_told_of_x = True
            logger.warning("x requires a gradient, which it does not get from a step: x.grad stays as it is")
        if torch.is_inference_mode_enabled():
            error = RuntimeError("step: it trains, which torch.inference_mode forbids; evaluate gives the loss alone")
        if inputs is not None:
            self._first_forms = tuple(Form.of(part) for part in inputs[0])
        return Share(inputs, targets, self.steps), error

    def _fail(self) -> None:
        """A step fails on its way, or the change of plan before it."""
        self._exchange.reset()
        self._seat.forget()

    @property
    def _is_broken(self) -> bool:
        """A step failed on its way, and what ranks sent one another for it may still come."""
        return self._exchange.is_broken and self.world * self.replicas.size > 1

    def _refuse_broken(self) -> None:
        # Without a word to the others, who may still be in that step: they learn of it when this process ends.
        if self._is_broken:
            raise RuntimeError(
                "an earlier step failed on its way on this rank, and what was sent for it may still come; start the job "
                "again, from a checkpoint"
            )
        if self._is_mixed:
            raise RuntimeError("an earlier restore failed half-way, so that the state is a mixture; restore another checkpoint")

    def _pieces(self, data: Any) -> int:
        """Of an evaluation's batch."""
        part = next(iter(data), None) if isinstance(data, (tuple, list)) else data
        is_even = isinstance(part, Tensor) and part.dim() > 0 and part.shape[0] % self.microbatches == 0
        return self.microbatches if is_even else 1

    def _coming_plan(self) -> Plan:
        return self.plan if self._next is None else self._next[0]

    def _number_of_plan(self) -> int:
        return self._plan_number if self._next is None else agreement.number((self._next[2], "next"))

    def _attend(self, votes: agreement.Votes) -> None:
        """The coordinator's part in a boundary, alike on all ranks."""
        plan = self._seat.boundary([vote[agreement.OF_SEAT :] for vote in votes])
        if plan is not None:
            self._take(plan)

    def _take(self, plan: Plan) -> None:
        if plan.is_alike(self.plan):
            # The coordinator's number for it.
            self.plan, self._row, self._plan_number = self._checked(plan)
        else:
            self._next = self._checked(plan)

    def _lead(self) -> None:
        """Replica 0 tells the others the plan that the coordinator has for all."""
        is_first = self.replicas.rank == 0
        text = self.replicas.of_first(self._coming_plan().write() if is_first else None)
        if not is_first:
            self._take(Plan.read(text))

    def _join(self, every: list[agreement.Votes]) -> None:
        """Declares the job to the coordinator; all ranks have agreed that they go the same way."""
        if self._next is None and self.replicas.rank == 0:
            self._seat.join([bool(vote[agreement.WANTS_IN]) for vote in every[0]], agreement.pinned(self, every))

    def _learn(self, kind: int) -> None:
        """Shares what passes between the layers, and what the loss is."""
        told = [(self._worker.forms, 0) for _ in range(self.world)]
        dist.all_gather_object(told, (self._worker.forms, self._number_of_x()), group=self.channels.control)
        parts = [forms for forms, _ in told]
        self._compare_x([number for _, number in told])
        if len(self._forms) >= KINDS_MAX:
            # On all ranks at once; those that come again are learned again.
            self._forms.clear()
        self._forms[kind] = {layer: forms for part in parts for layer, forms in part.items()}

    def _number_of_x(self) -> int:
        """Of some of its bytes; 0 where it was not given, or was looked at before."""
        inputs = self._worker.share.inputs
        if inputs is None or self._forms:
            return 0
        return agreement.number([sampled(part) for part in inputs[0]])

    def _compare_x(self, numbers: list[int]) -> None:
        """Of a first step: tells where the rank that takes the target seems to have another batch than the one that takes x."""
        of = self.plan.device_of_layers()
        x, other = numbers[of[0]], numbers[of[-1]]
        if self.rank == of[0] and x and other and x != other:
            logger.warning(
                "x differs from rank to rank: of one batch, rank %s takes x and rank %s the target, so that these belong to "
                "different samples unless x is only filled in there; all ranks of a pipeline are to load the same batch (a "
                "sampler deals out data by replica, not by rank)", of[0], of[-1]
            )

    def _see_gradient(self, kind: int) -> None:
        """Refuses, on all ranks alike, a first step in which no microbatch's loss has a gradient."""
        if self._forms[kind][len(self.layers)][0].requires_grad:
            return
        del self._forms[kind]
        raise RuntimeError(
            "the loss has no gradient, so that nothing would be trained: no layer before it has a parameter that requires "
            "one, or loss_fn detaches what it is given"
        )

    def _loss(self, dtype: torch.dtype) -> Tensor:
        owner = self.plan.device_of_layers()[-1]
        loss = torch.zeros((), dtype=dtype, device=self.device)
        if owner == self.rank:
            for part in self._worker.losses:
                assert part is not None, "every microbatch has a loss"
                loss += part.to(dtype)
            loss /= self.microbatches * self.replicas.size
            self.replicas.reduce(loss)
        dist.broadcast(loss, group=self.group, group_src=owner)
        return loss


def _ways(moves: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    return [(source, to) for _, source, to in moves]


def _pairs(plan: Plan) -> list[tuple[int, int]]:
    """Who sends to whom under a plan."""
    of = [rank for _, _, rank, _ in plan.stages]
    return [pair for sender, to in zip(of, of[1:]) if sender != to for pair in ((sender, to), (to, sender))]
