"""Hooks on layers and on what they give: which works they do, in which order, between which calls of a clock.

    hooks on layers     F of each layer and microbatch, from the call to its return
    hooks on outputs    the backward of a layer lasts from the gradient of its output to that of the output before it

On a GPU a backward's hooks are called by a thread of autograd's own, in the stream of the layer's F.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
from torch import Tensor, nn

from adaptis.clock import Clock
from adaptis.forms import Form, Forms
from adaptis.scales import Scales, tensors
from adaptis.tape import FORWARD, INPUT_GRADIENT, OPTIMIZER, RECOMPUTE, WEIGHT_GRADIENT

NOTES_MAX = 1 << 18
"""Works and instructions of an iteration; more come of a job that no step of an optimizer ends."""

Guard = Callable[[Callable[..., None]], Callable[..., None]]


@dataclass
class Seen:
    """What is known of a layer after an iteration."""

    inputs: Forms = ()
    outputs: Forms = ()
    forwards: int = 0


class Hooks:
    """What is hooked, and what is under way."""

    def __init__(self, placed: Sequence[tuple[int, nn.Module]], clock: Clock, guard: Guard) -> None:
        self.layers = [layer for _, layer in placed]
        self.clock = clock
        self.scales = Scales(self.layers, guard)
        self.seen = [Seen() for _ in self.layers]
        # What was run, as plans write it.
        self.order: list[str] = []
        # A layer ran in this iteration: the next step of an optimizer ends it.
        self.has_run = False
        self._placed = placed
        self._guard = guard
        self._handles: list[Any] = []
        # Of each layer: a whole backward, of which can't be told from outside which part was which, and an I.
        self._backwards = [
            (((at, INPUT_GRADIENT, 1), (at, WEIGHT_GRADIENT, 1)), ((at, INPUT_GRADIENT, 1),))
            for at in range(len(self.layers))
        ]
        # Of the backward under way: layer, microbatch, and its span.
        self._open: tuple[int, int, Any] | None = None
        self._is_split = False
        # Of a pipeline's stage under way; a plain script counts a layer's calls.
        self._microbatch: int | None = None
        # Layers are stages' of a pipeline: what runs outside of them is none of its works, as where shapes are tried out.
        self.are_of_stages = False
        # Of a backward of weights alone, which tells nothing of layers.
        self._is_muted = False
        # The layer that began the iteration.
        self._first: int | None = None
        # Parameters of each layer, once it has run.
        self._sizes: list[int] = []
        # The step of an optimizer under way, and whether there is one.
        self._step: Any = None
        self._is_stepping = False
        # Where the layers gave their results, which those do not tell whose parameters are fetched for each run.
        self.device: torch.device | None = None

    @property
    def are_on(self) -> bool:
        """Something is hooked."""
        return bool(self._handles)

    def put_on(self, at: int) -> None:
        """Has a layer measured."""
        layer = self.layers[at]
        # Whether it runs, and its span.
        under_way: list[Any] = [False, None]
        of_forward, again = ((at, FORWARD, 1),), ((at, RECOMPUTE, 1),)

        def before(module: nn.Module, inputs: Any) -> None:
            # A run that failed, or a recomputation that had all it needed, has no end.
            if under_way[0]:
                self.clock.dropped(under_way[1])
                under_way[0] = False
            if not torch.is_grad_enabled():
                return
            if self.are_of_stages and self._microbatch is None and not _is_in_backward():
                return
            if _is_in_backward():
                _, microbatch, outer = self._open or (at, 0, None)
                under_way[1] = self.clock.begin_within(outer, again, microbatch)
                under_way[0] = True
                return
            # A backward that failed has no end either.
            self.backward_failed()
            self.scales.put_on(at)
            seen = self.seen[at]
            microbatch = seen.forwards if self._microbatch is None else self._microbatch
            under_way[1] = self.clock.begin(of_forward, microbatch)
            under_way[0] = True

        def after(module: nn.Module, inputs: Any, outputs: Any) -> None:
            is_under_way, span = under_way
            if not is_under_way:
                return
            under_way[0] = False
            if _is_in_backward():
                self._recomputed(span)
                return
            self.clock.end(span)
            self._ran(at, module, inputs, outputs)

        self._around(layer, before, after)

    def put_on_lightly(self, at: int) -> None:
        """Has noted only that a layer runs."""
        self._around(self.layers[at], None, self._note_run)

    def _around(self, layer: nn.Module, before: Callable[..., None] | None, after: Callable[..., None]) -> None:
        if layer._compiled_call_impl is not None:
            # Compiled in its place, with whatever is hooked.
            self._handles.append(_Compiled(layer, None if before is None else self._guard(before), self._guard(after)))
            return
        if before is not None:
            self._handles.append(layer.register_forward_pre_hook(self._guard(before)))
        self._handles.append(layer.register_forward_hook(self._guard(after)))

    def take_off(self) -> None:
        """Hooks nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def trained(self) -> list[str]:
        """What was run in the iteration, without forwards of a plain script that no backward came to, as of a validation."""
        if self.are_of_stages:
            return self.order
        backwards = {text.partition("B")[2] for text in self.order if "B" in text}
        forwards = [text.partition("F")[2] for text in self.order if "F" in text]
        numbers = {of: at for at, of in enumerate(of for of in forwards if of in backwards)}
        if not numbers:
            return self.order
        kept = [text for text in self.order if text.replace("B", "F").partition("F")[2] in numbers]
        return ["0" + text[1] + str(numbers[text[2:]]) for text in kept]

    def check_notes(self) -> None:
        """Sees that what is noted ends some time.

        Raises RuntimeError where it does not.
        """
        if len(self.order) + self.clock.count > NOTES_MAX:
            raise RuntimeError("no step of an optimizer that trains its layers ends an iteration")

    def _note_run(self, *_: Any) -> None:
        self.has_run = self.has_run or torch.is_grad_enabled()

    def _ran(self, at: int, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.has_run = True
        if self._first is None:
            self._first = at
        seen = self.seen[at]
        microbatch = seen.forwards if self._microbatch is None else self._microbatch
        seen.forwards += 1
        if not seen.outputs:
            seen.inputs, seen.outputs = _forms(inputs), _forms(outputs)
            self.device = next((part.device for part in tensors(outputs)), self.device)
        self.scales.take_off(at, module, inputs)
        if self._microbatch is None and at == self._first:
            self.order.append(f"0F{microbatch}")
            self.check_notes()
        # Nearly all layers return one tensor of their own.
        if isinstance(outputs, Tensor):
            self._follow(outputs, inputs, at, microbatch)
        else:
            any(self._follow(part, inputs, at, microbatch) for part in tensors(outputs))

    # Backward.

    def _follow(self, output: Tensor, inputs: Any, at: int, microbatch: int) -> bool:
        """Has the gradient of a layer's output told of, if the layer made it."""
        node = output.grad_fn
        if node is None or any(output is part for part in inputs):
            return False
        node.register_prehook(self._gradient_of(at, microbatch))
        return True

    def _gradient_of(self, at: int, microbatch: int) -> Any:
        whole, of_input = self._backwards[at]

        def came(_: Tensor) -> None:
            if self._is_muted:
                return
            parts = of_input if self._is_split else whole
            if self._open is None:
                # The end of this backward ends its last layer.
                torch.autograd.Variable._execution_engine.queue_callback(self._guard(self._backward_ends))
                span = self.clock.begin(parts, microbatch)
            else:
                span = self.clock.passed(self._open[2], parts, microbatch)
            self._open = at, microbatch, span

        return self._guard(came)

    def _recomputed(self, span: Any) -> None:
        """A layer ran again within the backward of what was checkpointed."""
        if self._open is None:
            self.clock.dropped(span)
        else:
            self.clock.interrupted(span, self._open[2])

    def _backward_ends(self) -> None:
        open = self._open
        self._close()
        if open is not None and self._microbatch is None:
            self.order.append(f"0B{open[1]}")
        if self._is_stepping:
            # What a closure computes again is the layers' own work.
            self.clock.dropped(self._step)
            self._step = self.clock.begin(self._stepped(), 0)

    def _close(self) -> None:
        if self._open is not None:
            (_, _, span), self._open = self._open, None
            self.clock.end(span)

    def backward_failed(self) -> None:
        """What is open has no end."""
        if self._open is not None:
            (_, _, span), self._open = self._open, None
            self.clock.dropped(span)

    # Stages of torch.distributed.pipelining.

    def within(self, stage: int, action: str, chunk: int, run: Callable[[], Any]) -> Any:
        """Runs an F, I or B of a stage, whose layers' works are of this microbatch."""
        self._microbatch, self._is_split = chunk, action == "I"
        self.order.append(f"{stage}{action}{chunk}")
        try:
            return run()
        finally:
            self._close()
            self._microbatch, self._is_split = None, False

    def weights(self, stage: int, chunk: int, run: Callable[[], Any]) -> Any:
        """Runs a W of a stage, whose time its layers share by their parameters."""
        self.order.append(f"{stage}W{chunk}")
        sizes = self._sizes_known()
        parts = tuple((at, WEIGHT_GRADIENT, sizes[at]) for at, (of, _) in enumerate(self._placed) if of == stage)
        span = self.clock.begin(parts, chunk)
        self._is_muted = True
        try:
            return run()
        finally:
            self._is_muted = False
            self.clock.end(span)

    # The optimizer, whose time the layers share by their parameters.

    def step_begins(self) -> None:
        """An optimizer's step begins."""
        self.backward_failed()
        self.clock.dropped(self._step)
        self._step = self.clock.begin(self._stepped(), 0)
        self._is_stepping = True

    def step_ends(self, is_measured: bool) -> None:
        """It ends."""
        span, self._step, self._is_stepping = self._step, None, False
        if is_measured:
            self.clock.end(span)
        else:
            self.clock.dropped(span)

    def _stepped(self) -> tuple[tuple[int, int, int], ...]:
        return tuple((at, OPTIMIZER, size) for at, size in enumerate(self._sizes_known()))

    def _sizes_known(self) -> list[int]:
        if not self._sizes:
            self._sizes = [sum(part.numel() for part in layer.parameters()) for layer in self.layers]
        return self._sizes

    def turn(self) -> None:
        """An iteration ends, and another one begins."""
        self.order = []
        self.has_run = False
        if self._first is not None:
            self._first = None
            for seen in self.seen:
                seen.forwards = 0


class _Compiled:
    """Hooks around a layer that `layer.compile()` has compiled."""

    def __init__(self, layer: nn.Module, before: Callable[..., None] | None, after: Callable[..., None]) -> None:
        self._layer = layer
        self._compiled: Any = layer._compiled_call_impl
        self._before = before
        self._after = after
        layer._compiled_call_impl = self._run

    def _run(self, *arguments: Any, **named: Any) -> Any:
        if self._before is not None:
            self._before(self._layer, arguments)
        outputs = self._compiled(*arguments, **named)
        self._after(self._layer, arguments, outputs)
        return outputs

    def remove(self) -> None:
        # Unless it was compiled anew.
        if self._layer._compiled_call_impl == self._run:
            self._layer._compiled_call_impl = self._compiled


def _forms(value: Any) -> Forms:
    return tuple(Form.of(part) for part in tensors(value))


def _is_in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
