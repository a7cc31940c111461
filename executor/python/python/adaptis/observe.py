"""Measures the layers of a training script and changes nothing in it.

    hooks on layers     F of each layer and microbatch, from the call to its return
    hooks on outputs    the backward of a layer lasts from the gradient of its output to that of the output before it
    the optimizer       its step ends an iteration

1. Without a coordinator nothing is hooked, and nothing costs anything.
2. A job that does not part the backward into I and W gets half of it for each.
3. No collective operation is added: ranks of a pipeline tell one another of their layers by the store of
   torch.distributed, and none waits for another.
4. Of replicas that train alike, the first one is measured.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import random
import sys
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter_ns
from typing import Any, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from adaptis import _native, card, state
from adaptis._native import Plan, PlanError
from adaptis.facts import Fact, form_bytes, told
from adaptis.forms import Form, Forms
from adaptis.session import FAREWELL_SECONDS, Settings
from adaptis.tape import FORWARD, INPUT_GRADIENT, OPTIMIZER, WEIGHT_GRADIENT, Tape, Work

logger = logging.getLogger("adaptis")


@dataclass
class Piece:
    """A stage as this rank holds it: its layers in order."""

    index: int
    layers: list[nn.Module]


@dataclass
class _Seen:
    """What is known of a layer after an iteration."""

    inputs: Forms = ()
    outputs: Forms = ()
    forwards: int = 0


@dataclass
class _Iteration:
    """What is under way."""

    began_ns: int
    works: list[Work] = field(default_factory=list)
    order: list[str] = field(default_factory=list)


class Observation:
    """The measuring of a rank's layers."""

    def __init__(self, pieces: Sequence[Piece], settings: Settings, rank: int, world: int) -> None:
        self.pieces = list(pieces)
        self.settings = settings
        self.rank = rank
        self.world = world
        self.native: _native.Session | None = None
        self.steps = 0
        self.tape = Tape()
        self.tape.is_weighing = True
        self.layers = [layer for piece in self.pieces for layer in piece.layers]
        self.device = next((part.device for layer in self.layers for part in layer.parameters()), torch.device("cpu"))
        self._seen = [_Seen() for _ in self.layers]
        self._iteration = _Iteration(perf_counter_ns())
        # Of the backward under way: layer, microbatch, and when the gradient of its output came.
        self._open: tuple[int, int, int] | None = None
        self._is_split = False
        # Of a pipeline's stage under way; a plain script counts a layer's calls.
        self._microbatch: int | None = None
        self._offset = 0
        self._optimizer_since = 0
        self._weighing: Any = None
        self._has_ended = False
        self._is_told = False
        self._reserved_bytes = 0
        self._words: dict[int, str] = {}
        # Of the layers that run: their numbers in the model.
        self._places: dict[int, int] = {}
        self._handles: list[Any] = []
        self.resume()
        atexit.register(self.close)

    @property
    def follows(self) -> bool:
        """The coordinator takes in what is measured."""
        return self.native is not None and self.native.epoch is not None

    def resume(self) -> None:
        """Measures, from the beginning of an iteration on."""
        if self._handles or self._has_ended:
            return
        for at, layer in enumerate(self.layers):
            self._hook(at, layer)
        self._handles.append(register_optimizer_step_pre_hook(self._before_optimizer))
        self._handles.append(register_optimizer_step_post_hook(self._after_optimizer))
        self._iteration = _Iteration(perf_counter_ns())

    def pause(self) -> None:
        """Measures nothing until it is resumed, and costs nothing. To be called between two iterations."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # Forward and backward.

    def _hook(self, at: int, layer: nn.Module) -> None:
        began = [0]

        def before(module: nn.Module, inputs: Any) -> None:
            if not torch.is_grad_enabled():
                return
            if self.tape.is_weighing and self._seen[at].forwards == 0:
                tensors = [part for part in inputs if isinstance(part, Tensor)]
                self._weighing = self.tape.weighing(at, 0, module, tensors, is_due=True)
                self._weighing.__enter__()
            began[0] = perf_counter_ns()

        def after(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if not torch.is_grad_enabled() or not began[0]:
                return
            now = perf_counter_ns()
            if self._weighing is not None:
                self._weighing.__exit__(None, None, None)
                self._weighing = None
            seen = self._seen[at]
            microbatch = seen.forwards if self._microbatch is None else self._microbatch
            seen.forwards += 1
            if not seen.outputs:
                seen.inputs, seen.outputs = _forms(inputs), _forms(outputs)
            self._iteration.works.append((at, FORWARD, microbatch, began[0], now - began[0]))
            if self._microbatch is None and at == 0:
                self._iteration.order.append(f"0F{microbatch}")
            began[0] = 0
            for part in _tensors(outputs):
                if part.requires_grad:
                    part.register_hook(self._gradient_of(at, microbatch))
                    break

        self._handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]

    def _gradient_of(self, at: int, microbatch: int) -> Any:
        def came(_: Tensor) -> None:
            now = perf_counter_ns()
            if self._open is None:
                # The end of this backward ends its last layer.
                torch.autograd.Variable._execution_engine.queue_callback(self._backward_ends)
            self._close(now)
            self._open = at, microbatch, now

        return came

    def _backward_ends(self) -> None:
        open = self._open
        self._close(perf_counter_ns())
        if open is not None and self._microbatch is None:
            self._iteration.order.append(f"0B{open[1]}")

    def _close(self, now: int) -> None:
        if self._open is None:
            return
        (at, microbatch, since), self._open = self._open, None
        took = now - since
        if self._is_split:
            self._iteration.works.append((at, INPUT_GRADIENT, microbatch, since, took))
            return
        half = took // 2
        self._iteration.works.append((at, INPUT_GRADIENT, microbatch, since, half))
        self._iteration.works.append((at, WEIGHT_GRADIENT, microbatch, since + half, took - half))

    # Stages of torch.distributed.pipelining.

    def watch(self, stage: Any, piece: Piece) -> None:
        """Notes what a `PipelineStage` does, in which order."""
        own = [at for at, layer in enumerate(self.layers) if any(layer is other for other in piece.layers)]
        sizes = [sum(part.numel() for part in self.layers[at].parameters()) for at in own]
        forward, backward, weights = stage.forward_one_chunk, stage.backward_one_chunk, stage.backward_weight_one_chunk

        def forward_one_chunk(chunk: int, *arguments: Any, **named: Any) -> Any:
            self._microbatch = chunk
            self._iteration.order.append(f"{piece.index}F{chunk}")
            try:
                return forward(chunk, *arguments, **named)
            finally:
                self._microbatch = None

        def backward_one_chunk(chunk: int, *arguments: Any, **named: Any) -> Any:
            # The third of the method's arguments, or by name.
            is_full = named.get("full_backward", arguments[1] if len(arguments) > 1 else True)
            self._microbatch, self._is_split = chunk, not is_full
            self._iteration.order.append(f"{piece.index}{'B' if is_full else 'I'}{chunk}")
            try:
                return backward(chunk, *arguments, **named)
            finally:
                self._close(perf_counter_ns())
                self._microbatch, self._is_split = None, False

        def backward_weight_one_chunk(chunk: int, *arguments: Any, **named: Any) -> Any:
            self._iteration.order.append(f"{piece.index}W{chunk}")
            began = perf_counter_ns()
            try:
                return weights(chunk, *arguments, **named)
            finally:
                took = perf_counter_ns() - began
                for at, size in zip(own, sizes):
                    share = took * size // max(1, sum(sizes))
                    self._iteration.works.append((at, WEIGHT_GRADIENT, chunk, began, share))

        stage.forward_one_chunk = forward_one_chunk
        stage.backward_one_chunk = backward_one_chunk
        stage.backward_weight_one_chunk = backward_weight_one_chunk

    # The end of an iteration.

    def _before_optimizer(self, *_: Any) -> None:
        self._optimizer_since = perf_counter_ns()

    def _after_optimizer(self, optimizer: Optimizer, *_: Any) -> None:
        if self._has_ended or not self._iteration.works:
            return
        now = perf_counter_ns()
        self._share_out(now)
        self._boundary(now, optimizer)
        for seen in self._seen:
            seen.forwards = 0
        self.steps += 1
        self._iteration = _Iteration(perf_counter_ns())

    def _share_out(self, now: int) -> None:
        sizes = [sum(part.numel() for part in layer.parameters()) for layer in self.layers]
        at_ns, spent = self._optimizer_since, now - self._optimizer_since
        for at, size in enumerate(sizes):
            took = spent * size // max(1, sum(sizes))
            self._iteration.works.append((at, OPTIMIZER, 0, at_ns, took))
            at_ns += took

    def _boundary(self, now: int, optimizer: Optimizer) -> None:
        # The first iteration makes what later ones find, the optimizer's state too.
        if self.native is None and self.steps >= 1:
            self._tell(optimizer)
            self._join()
        native = self.native
        if native is None:
            return
        if native.epoch is not None:
            places = self._places
            native.works([(places[at], *rest) for at, *rest in self._iteration.works if at in places])  # type: ignore[misc]
            for at, size in self.tape.activation_bytes.items():
                # What is held from I to W is not seen from here: the gradient of the output and the input.
                if at in places:
                    native.layer_memory(places[at], size, min(size, _forms_bytes(self._seen[at])))
            self.tape.activation_bytes.clear()
            native.device_memory(card.peak_bytes(self.device), self._reserved_bytes)
            native.iteration(self._iteration.began_ns, now - self._iteration.began_ns, float("nan"))
        # Nobody votes in a job that is only observed: each rank goes by its own word.
        native.hear([native.word()] * self.world, self.steps + 1)
        self.tape.is_weighing = native.is_first

    # Declaring the job.

    def _tell(self, optimizer: Optimizer) -> None:
        """Puts what this rank knows where the others find it."""
        if self._is_told:
            return
        self._is_told = True
        resident = card.resident_bytes(self.device)
        stages: dict[str, list[dict[str, Any]]] = {}
        at = 0
        total = 0
        for piece in self.pieces:
            facts = []
            for layer in piece.layers:
                seen = self._seen[at]
                # What only holds something, or stands by for later, is no layer.
                if seen.outputs:
                    fact = Fact.of(at, layer, [optimizer], seen.inputs, seen.outputs)
                    total += fact.state_bytes
                    facts.append(asdict(fact))
                at += 1
            stages[str(piece.index)] = facts
        self._reserved_bytes = max(0, resident - total)
        run = self.settings.run or f"run-{random.SystemRandom().getrandbits(32):08x}"
        own = json.dumps({"run": run, "stages": stages, "order": self._iteration.order})
        self._words = {self.rank: own}
        if self.world > 1:
            _store().set(f"adaptis/{self.rank}", own)

    def _join(self) -> None:
        """Opens the session once all ranks have told of their layers."""
        others = [f"adaptis/{rank}" for rank in range(self.world) if rank != self.rank]
        if others and not _store().check(others):
            return
        words = [
            json.loads(self._words[self.rank] if rank == self.rank else _store().get(f"adaptis/{rank}"))
            for rank in range(self.world)
        ]
        facts: dict[int, list[dict[str, Any]]] = {}
        owner: dict[int, int] = {}
        for rank, word in enumerate(words):
            for index, of_stage in word["stages"].items():
                facts[int(index)], owner[int(index)] = of_stage, rank
        first = 0
        starts = {}
        for index in sorted(facts):
            starts[index] = first
            first += len(facts[index])
        self._places = self._placed(starts)
        layers = [Fact(**fact) for index in sorted(facts) for fact in facts[index]]
        layers = [replace(fact, name=f"{at}.{fact.name.partition('.')[2]}") for at, fact in enumerate(layers)]
        orders = [word["order"] for word in words]
        microbatches = len({text for order in orders for text in order if text.startswith("0F")}) or 1
        devices = [f"rank{rank}" for rank in range(self.world)]
        ends = {index: (starts[index], starts[index] + len(facts[index]), owner[index]) for index in sorted(facts)}
        self._open_session(words[0]["run"], devices, layers, microbatches, self._plan(ends, devices, orders, microbatches))

    def _placed(self, starts: dict[int, int]) -> dict[int, int]:
        places = {}
        at = 0
        for piece in self.pieces:
            place = starts[piece.index]
            for _ in piece.layers:
                if self._seen[at].outputs:
                    places[at] = place
                    place += 1
                at += 1
        return places

    def _plan(
        self, ends: dict[int, tuple[int, int, int]], devices: list[str], orders: list[list[str]], microbatches: int
    ) -> Plan:
        """The plan that the job runs, as seen; where it can't be put in our terms, an even one."""
        last = max(end for _, end, _ in ends.values())
        text = {
            "format": "adaptis.plan/1",
            "epoch": 1,
            "parent": 0,
            "layers": last,
            "devices": devices,
            "stages": [{"layers": [first, end], "device": device, "recompute": []} for first, end, device in ends.values()],
            "programs": orders,
        }
        try:
            plan = Plan.read(json.dumps(text))
            if not plan.findings(microbatches):
                return plan
            logger.info("the order of this job is none of ours: %s", "; ".join(plan.findings(microbatches)))
        except PlanError as error:
            logger.info("the order of this job is none of ours: %s", error)
        return Plan.even(last, devices, microbatches)

    def _open_session(self, run: str, devices: list[str], layers: list[Fact], microbatches: int, plan: Plan) -> None:
        try:
            self.settings.rings.mkdir(parents=True, exist_ok=True)
            _native.log(os.environ.get("ADAPTIS_LOG") or "warn")
            self.native = _native.Session(
                coordinator=self.settings.coordinator,
                ring=str(self.settings.rings / devices[self.rank]),
                run=run,
                rank=self.rank,
                devices=devices,
                card=(*card.kind_and_memory(self.device), self._reserved_bytes),
                layers=[told(fact) for fact in layers],
                microbatches=microbatches,
                plan=plan,
                pinned=[],
                together=[],
                is_fixed=True,
                keys=self.settings.keys,
            )
        except (OSError, ValueError) as error:
            logger.warning("this rank is not observed: %s", error)
            self._drop_hooks()

    # The end.

    def close(self) -> None:
        """Ends the measuring, as the end of the process does."""
        native, self.native = self.native, None
        self._drop_hooks()
        if native is None:
            return
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        if error is not None:
            native.fail(f"{type(error).__name__}: {error}", FAREWELL_SECONDS)
            return
        digests = [(place, state.digest_of(self.layers[at], [], self.device)) for at, place in self._places.items()]
        native.finish(digests, FAREWELL_SECONDS)

    def _drop_hooks(self) -> None:
        self._has_ended = True
        self.pause()
        atexit.unregister(self.close)


def observe(layers: Iterable[nn.Module], *, coordinator: str | None = None) -> Observation | None:
    """Measures these layers while the script trains them, and changes nothing in it.

    `layers` are the model's parts in the order in which they run, as `model.layers`. What each takes and holds goes to the
    agent, if there is a coordinator (`coordinator`, else `ADAPTIS_COORDINATOR`, as `adaptis run` sets it); otherwise
    nothing is done. Of several processes that train alike, the first one is measured. None where nothing is.
    """
    settings = Settings.found(coordinator)
    own = list(layers)
    if settings is None or not own:
        return None
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return None
    if any(part.device.type != "cpu" for layer in own for part in layer.parameters()):
        logger.warning("layers on an accelerator are not measured by this version")
        return None
    return Observation([Piece(0, own)], settings, 0, 1)


def observe_stages(stages: Sequence[Any]) -> Observation | None:
    """Measures the stages of torch.distributed.pipelining that this process has. None where nothing is."""
    settings = Settings.found(None)
    if settings is None or not stages:
        return None
    group = stages[0].group
    if group is not None and dist.get_global_rank(group, 0) != 0:
        return None
    if any(part.device.type != "cpu" for stage in stages for part in stage.submod.parameters()):
        logger.warning("layers on an accelerator are not measured by this version")
        return None
    pairs = sorted(((Piece(stage.stage_index, parts_of(stage.submod)), stage) for stage in stages), key=lambda pair: pair[0].index)
    first = stages[0]
    observation = Observation([piece for piece, _ in pairs], settings, first.group_rank, first.group_size)
    for piece, stage in pairs:
        observation.watch(stage, piece)
    return observation


def parts_of(module: nn.Module) -> list[nn.Module]:
    """The layers of a stage: the members of its lists, and what stands beside them, in the order of their definition."""
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return [part for child in module.children() for part in ([child] if not _is_list(child) else parts_of(child))]
    if any(_is_list(child) for child in module.children()):
        return [part for child in module.children() for part in (parts_of(child) if _is_list(child) else [child])]
    return [module]


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _tensors(value: Any) -> list[Tensor]:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return [part for part in parts if isinstance(part, Tensor)]


def _forms(value: Any) -> Forms:
    return tuple(Form.of(part) for part in _tensors(value))


def _forms_bytes(seen: _Seen) -> int:
    return sum(form_bytes(form.shape, form.dtype) for form in (*seen.inputs, *seen.outputs))


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()

