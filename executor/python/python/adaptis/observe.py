"""Measures the layers of a training script and changes nothing in it.

    hooks on layers     F of each layer and microbatch, from the call to its return
    hooks on outputs    the backward of a layer lasts from the gradient of its output to that of the output before it
    the optimizer       its step ends an iteration

1. Without a coordinator nothing is hooked, and nothing costs anything.
2. Which part of a whole backward was I and which W can't be told from outside: each is taken for half of it.
3. No collective operation is added: ranks of a pipeline tell one another of their layers by the store of
   torch.distributed, and none waits for another.
4. Where its hooks take more than 0.3% of an iteration, layers are measured in every second one, third one and so
   on; of the others the length alone is told.
5. What a hook meets with never fails the job: at the first error the measuring ends.
6. Of replicas that train alike, the first one is measured.
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
from typing import Any, Callable, Iterable, Sequence

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
from adaptis.tape import FORWARD, INPUT_GRADIENT, OPTIMIZER, RECOMPUTE, WEIGHT_GRADIENT, Work, storage_of

logger = logging.getLogger("adaptis")


BUDGET = 0.003
"""Share of an iteration that measuring may take, as far as its hooks can tell; the rest of a percent is what they can't."""
SAMPLED_AT_FIRST = 12
"""Iterations that are measured whatever it costs."""
SAMPLED_EVERY_MAX = 64
"""Of so many iterations, one is measured at least."""


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
class _Within:
    """The layer that is weighed, and the storages that its parts take and give."""

    at: int
    held: set[tuple[int, int]]


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
        self.layers = [layer for piece in self.pieces for layer in piece.layers]
        self.device = next((part.device for layer in self.layers for part in layer.parameters()), torch.device("cpu"))
        self._seen = [_Seen() for _ in self.layers]
        self._iteration = _Iteration(perf_counter_ns())
        # Of the backward under way: layer, microbatch, and when the gradient of its output came.
        self._open: tuple[int, int, int] | None = None
        self._is_split = False
        # Of a pipeline's stage under way; a plain script counts a layer's calls.
        self._microbatch: int | None = None
        self._optimizer_since = 0
        # Of a backward of weights alone, which tells nothing of layers.
        self._is_muted = False
        # The layer that began the iteration.
        self._first: int | None = None
        # What a layer under way holds, while that is measured: before the job is declared, of each first microbatch.
        self._within: _Within | None = None
        self._weighs = True
        self._scales: list[Any] = []
        self._activation_bytes: dict[int, int] = {}
        self._own = {id(part) for layer in self.layers for part in layer.parameters()}
        self._optimizers: list[Optimizer] = []
        # Parameters of each layer, once it has run.
        self._sizes: list[int] = []
        self._microbatches = 1
        self._has_ended = False
        self._is_told = False
        self._reserved_bytes = 0
        self._words: dict[int, str] = {}
        # Of the layers that run: their numbers in the model.
        self._places: dict[int, int] = {}
        # Hooks on layers, and those on the optimizer's step.
        self._handles: list[Any] = []
        self._ends: list[Any] = []
        # What the hooks of this iteration took, and how many iterations have had their layers measured.
        self._spent_ns = 0
        self._sampled = 0
        self._next_sampled = 0
        # The optimizer whose step ended the last iteration.
        self._ender: Optimizer | None = None
        self.resume()
        atexit.register(self._end)

    @property
    def follows(self) -> bool:
        """The coordinator takes in what is measured."""
        return self.native is not None and self.native.epoch is not None

    def resume(self) -> None:
        """Measures, from the beginning of an iteration on."""
        if self._ends or self._has_ended:
            return
        self._hook_if_due()
        self._ends.append(register_optimizer_step_pre_hook(self._guarded(self._before_optimizer)))
        self._ends.append(register_optimizer_step_post_hook(self._guarded(self._after_optimizer)))
        self._iteration = _Iteration(perf_counter_ns())

    def _hook_layers(self) -> None:
        if not self._handles:
            for at, layer in enumerate(self.layers):
                self._hook(at, layer)

    def _unhook_layers(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def pause(self) -> None:
        """Measures nothing until it is resumed, and costs nothing. To be called between two iterations, and in a pipeline
        alike on every rank: steps are counted while they are measured."""
        self._stop_weighing()
        self._unhook_layers()
        for handle in self._ends:
            handle.remove()
        self._ends.clear()

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        """A hook that never fails the job: at the first error nothing is measured any more."""

        def guarded(*arguments: Any, **named: Any) -> None:
            if self._has_ended:
                return
            began = perf_counter_ns()
            try:
                hook(*arguments, **named)
            except Exception as error:
                logger.warning("this rank is not observed any longer: %s: %s", type(error).__name__, error)
                self._drop_hooks()
            self._spent_ns += perf_counter_ns() - began

        return guarded

    # Forward and backward.

    def _hook(self, at: int, layer: nn.Module) -> None:
        began = [0]

        def before(module: nn.Module, inputs: Any) -> None:
            began[0] = 0
            if not torch.is_grad_enabled():
                return
            if not _is_in_backward():
                # A backward that failed has no end.
                self._open = None
            self._within = _Within(at, set()) if self._weighs and self._seen[at].forwards == 0 else None
            began[0] = perf_counter_ns()

        def after(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if not began[0]:
                return
            took = perf_counter_ns() - began[0]
            within, self._within = self._within, None
            if _is_in_backward():
                self._recomputed(at, began[0], took)
                return
            if self._first is None:
                self._first = at
            seen = self._seen[at]
            microbatch = seen.forwards if self._microbatch is None else self._microbatch
            seen.forwards += 1
            if not seen.outputs:
                seen.inputs, seen.outputs = _forms(inputs), _forms(outputs)
            if within is not None and within.at == at:
                own = {part.untyped_storage().data_ptr() for part in module.parameters()}
                held = within.held | {storage_of(part) for part in _tensors(inputs)}
                self._activation_bytes[at] = sum(size for place, size in held if place not in own)
            self._iteration.works.append((at, FORWARD, microbatch, began[0], took))
            if self._microbatch is None and at == self._first:
                self._iteration.order.append(f"0F{microbatch}")
            # Nearly all layers return one tensor of their own.
            if isinstance(outputs, Tensor):
                self._follow(outputs, inputs, at, microbatch)
            else:
                any(self._follow(part, inputs, at, microbatch) for part in _tensors(outputs))

        self._handles.append(layer.register_forward_pre_hook(self._guarded(before)))
        self._handles.append(layer.register_forward_hook(self._guarded(after)))
        if at not in self._activation_bytes:
            self._weigh(layer)

    def _follow(self, output: Tensor, inputs: Any, at: int, microbatch: int) -> bool:
        """Has the gradient of a layer's output told of, if the layer made it."""
        node = output.grad_fn
        if node is None or any(output is part for part in inputs):
            return False
        node.register_prehook(self._gradient_of(at, microbatch))
        return True

    def _weigh(self, layer: nn.Module) -> None:
        """Notes what the parts of a layer take and give: nearly all that its backward needs is among it."""

        def passed(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if self._within is not None:
                self._within.held.update(storage_of(part) for part in (*_tensors(inputs), *_tensors(outputs)))

        for part in layer.modules():
            if part is not layer and not any(True for _ in part.children()):
                self._scales.append(part.register_forward_hook(self._guarded(passed)))

    def _recomputed(self, at: int, began: int, took: int) -> None:
        """A layer ran again within the backward of what was checkpointed."""
        if self._open is None:
            return
        open_at, microbatch, since = self._open
        self._iteration.works.append((at, RECOMPUTE, microbatch, began, took))
        self._open = open_at, microbatch, since + took

    def _gradient_of(self, at: int, microbatch: int) -> Any:
        def came(_: Tensor) -> None:
            if self._is_muted:
                return
            now = perf_counter_ns()
            if self._open is None:
                # The end of this backward ends its last layer.
                torch.autograd.Variable._execution_engine.queue_callback(self._guarded(self._backward_ends))
            self._close(now)
            self._open = at, microbatch, now

        return self._guarded(came)

    def _backward_ends(self) -> None:
        open = self._open
        self._close(perf_counter_ns())
        if open is not None and self._microbatch is None:
            self._iteration.order.append(f"0B{open[1]}")

    def _close(self, now: int) -> None:
        if self._open is None:
            return
        (at, microbatch, since), self._open = self._open, None
        took = max(0, now - since)
        if self._is_split:
            self._iteration.works.append((at, INPUT_GRADIENT, microbatch, since, took))
            return
        # Which part of it was which can't be told from outside.
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

        # Without a `dw_builder` the first stage's I does nothing, and its W is a whole backward.
        is_late = piece.index == 0 and stage.dw_builder is None

        def backward_one_chunk(chunk: int, *arguments: Any, **named: Any) -> Any:
            # The third of the method's arguments, or by name.
            is_full = named.get("full_backward", arguments[1] if len(arguments) > 1 else True)
            if not is_full and is_late:
                return backward(chunk, *arguments, **named)
            return within(chunk, "B" if is_full else "I", not is_full, lambda: backward(chunk, *arguments, **named))

        def backward_weight_one_chunk(chunk: int, *arguments: Any, **named: Any) -> Any:
            if is_late:
                return within(chunk, "B", False, lambda: weights(chunk, *arguments, **named))
            self._iteration.order.append(f"{piece.index}W{chunk}")
            began = perf_counter_ns()
            self._is_muted = True
            try:
                return weights(chunk, *arguments, **named)
            finally:
                self._is_muted = False
                took = perf_counter_ns() - began
                for at, size in zip(own, sizes):
                    share = took * size // max(1, sum(sizes))
                    self._iteration.works.append((at, WEIGHT_GRADIENT, chunk, began, share))

        def within(chunk: int, action: str, is_split: bool, run: Callable[[], Any]) -> Any:
            self._microbatch, self._is_split = chunk, is_split
            self._iteration.order.append(f"{piece.index}{action}{chunk}")
            try:
                return run()
            finally:
                self._close(perf_counter_ns())
                self._microbatch, self._is_split = None, False

        stage.forward_one_chunk = forward_one_chunk
        stage.backward_one_chunk = backward_one_chunk
        stage.backward_weight_one_chunk = backward_weight_one_chunk

    # The end of an iteration.

    def _before_optimizer(self, optimizer: Optimizer, *_: Any) -> None:
        self._open = None
        self._optimizer_since = perf_counter_ns()

    def _after_optimizer(self, optimizer: Optimizer, *_: Any) -> None:
        if optimizer not in self._optimizers:
            if not any(id(part) in self._own for group in optimizer.param_groups for part in group["params"]):
                return
            self._optimizers.append(optimizer)
        # The second one of several that train one model ends no other iteration.
        is_sampled = bool(self._handles)
        if not self._iteration.works if is_sampled else optimizer is not self._ender:
            return
        self._ender = optimizer
        now = perf_counter_ns()
        if is_sampled:
            self._share_out(now)
        self._boundary(now, is_sampled)
        self._govern(is_sampled)
        for seen in self._seen:
            seen.forwards = 0
        self._first = None
        self.steps += 1
        self._iteration = _Iteration(perf_counter_ns())

    def _share_out(self, now: int) -> None:
        if not self._sizes:
            self._sizes = [sum(part.numel() for part in layer.parameters()) for layer in self.layers]
        sizes = self._sizes
        total = max(1, sum(sizes))
        # What a closure computes again is the layers' own work.
        last = max((start + took for *_, start, took in self._iteration.works[-1:]), default=0)
        at_ns = max(self._optimizer_since, last)
        spent = max(0, now - at_ns)
        for at, size in enumerate(sizes):
            took = spent * size // total
            self._iteration.works.append((at, OPTIMIZER, 0, at_ns, took))
            at_ns += took

    def _govern(self, is_sampled: bool) -> None:
        """Keeps the cost of measuring within its budget: layers are measured in every so many iterations."""
        spent, self._spent_ns = self._spent_ns, 0
        if is_sampled and self.follows:
            self._sampled += 1
            whole = max(1, perf_counter_ns() - self._iteration.began_ns)
            every = 1 if self._sampled < SAMPLED_AT_FIRST else min(SAMPLED_EVERY_MAX, 1 + int(spent / whole / BUDGET))
            self._next_sampled = self.steps + every
        self._hook_if_due(self.steps + 1)

    def _hook_if_due(self, step: int | None = None) -> None:
        """Has the layers of the next iteration measured, or left alone."""
        step = self.steps if step is None else step
        if not self.follows or step >= self._next_sampled:
            self._hook_layers()
        else:
            self._unhook_layers()

    def _boundary(self, now: int, is_sampled: bool) -> None:
        # The first iteration makes what later ones find, the optimizer's state too.
        if self.native is None and self.steps >= 1:
            self._tell()
            self._join()
        native = self.native
        if native is None:
            return
        if native.epoch is not None:
            places, count = self._places, self._microbatches
            if is_sampled:
                works = [
                    (places[at], phase, microbatch, start, took)
                    for at, phase, microbatch, start, took in self._iteration.works
                    if at in places and microbatch < count
                ]
                native.works(works)
            if native.is_first:
                for at, place in places.items():
                    # What is held from I to W is not seen from here: the gradient of the output, and the input.
                    size = self._activation_bytes.get(at, 0)
                    native.layer_memory(place, size, min(size, _forms_bytes(self._seen[at])))
            if is_sampled:
                native.device_memory(card.peak_bytes(self.device), self._reserved_bytes)
            native.iteration(self._iteration.began_ns, now - self._iteration.began_ns, float("nan"))
        # Nobody votes in a job that is only observed: each rank goes by its own word.
        native.hear([native.word()] * self.world, self.steps + 1)

    # Declaring the job.

    def _tell(self) -> None:
        """Puts what this rank knows where the others find it."""
        if self._is_told:
            return
        self._is_told = True
        self._stop_weighing()
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
                    fact = Fact.of(at, layer, self._optimizers, seen.inputs, seen.outputs)
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
        self._microbatches = microbatches
        if not layers:
            raise ValueError("none of its layers takes and returns tensors")
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
        stages = [{"layers": [first, end], "device": device, "recompute": []} for first, end, device in ends.values()]
        text = {"format": "adaptis.plan/1", "epoch": 1, "parent": 0, "layers": last, "devices": devices, "stages": stages}
        # Where its order is none of ours: the same stages, all F before all B.
        own = [[at for at, (_, _, owner) in enumerate(ends.values()) if owner == device] for device in range(len(devices))]
        every = range(microbatches)
        plain = [
            [f"{at}F{m}" for at in stages_here for m in every] + [f"{at}B{m}" for at in reversed(stages_here) for m in every]
            for stages_here in own
        ]
        for programs in (orders, plain):
            try:
                plan = Plan.read(json.dumps({**text, "programs": programs}))
            except PlanError as error:
                logger.info("the order of this job is none of ours: %s", error)
                continue
            findings = plan.findings(microbatches)
            if not findings:
                return plan
            logger.info("the order of this job is none of ours: %s", "; ".join(findings))
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

    def _end(self) -> None:
        # What an interpreter that ends by an exception leaves behind.
        self._leave(getattr(sys, "last_exc", None) or getattr(sys, "last_value", None))

    def close(self) -> None:
        """Ends the measuring, as the end of the process does."""
        self._leave(sys.exc_info()[1])

    def _leave(self, error: BaseException | None) -> None:
        native, self.native = self.native, None
        self._drop_hooks()
        if native is None:
            return
        if error is not None:
            native.fail(f"{type(error).__name__}: {error}", FAREWELL_SECONDS)
            return
        digests = [(place, state.digest_of(self.layers[at], [], self.device)) for at, place in self._places.items()]
        native.finish(digests, FAREWELL_SECONDS)

    def _stop_weighing(self) -> None:
        self._weighs = False
        for scale in self._scales:
            scale.remove()
        self._scales.clear()

    def _drop_hooks(self) -> None:
        self._has_ended = True
        self.pause()
        atexit.unregister(self._end)


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
    if len({stage.stage_index for stage in stages}) < len(stages):
        logger.warning("several pipelines in one process are not measured")
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


def _is_in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()

