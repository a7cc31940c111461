"""What one rank computes: its layers, each a piece of autograd of its own.

    F   every layer runs on a detached input; its outputs and their graph are kept, or, where the layer is recomputed,
        its input alone
    I   backwards through the pieces; weight gradients that can wait are left as debts
    W   the debts are paid
    B   I, and its debts at once

1. Pieces make a layer the smallest unit that can be timed, recomputed and moved, and gradients do not depend on where
   stages begin and end.
2. A layer draws its random numbers from a key of its own (`chance`), so that neither a plan nor a recomputation changes
   them. A recomputation works on what the layer was before the F (`before`), so that its buffers change once, and so that a
   result that depends on what the layer changes is the same again.
3. What passes between layers is contiguous, as it is when it has passed between ranks: neither random draws nor bits
   depend on where the next layer runs. And it is nobody else's: a layer may change what it keeps while the next one, or the
   way to it, still needs what was given.
4. What a parameter's gradient becomes is its own memory: torch lets it keep what the backward was given, to add to it in
   place later on, and debts and the rank before may still need that.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Callable, Sequence

import torch
from torch import Tensor, nn

from adaptis import chance, guards, replicas
from adaptis.attributes import Attributes, Inside
from adaptis.before import Before, Bypassed, Keeper, rewinding
from adaptis.memory import is_shared
from adaptis.outputs import Given, is_again
from adaptis.forms import Bundle, Form, Forms
from adaptis.guards import SharedBuffers
from adaptis.split import Debt, Ledger, pay
from adaptis.tape import FORWARD, INPUT_GRADIENT, RECOMPUTE, WEIGHT_GRADIENT, Tape

logger = logging.getLogger("adaptis")

OTHERS_SHARE = 0.1
"""Of the looks at a layer's recomputation, so many in which it gave something else are too many."""
OF_BACKWARD = 0x6A09E667F3BCC908
"""What tells the random numbers of a backward from those of its forward."""
LOOK_EVERY = 64
"""Steps of which one has a recomputation looked at on a GPU, which has to be waited for; elsewhere every step has."""


@dataclass
class Piece:
    """A layer's run on a microbatch."""

    inputs: Bundle
    # None while a recomputation is due.
    outputs: Bundle | None
    key: int
    # Where a recomputation is due: the layer before the run, and at times what it gave.
    before: Before | None = None
    # What its lists and objects held.
    inside: Inside | None = None
    gave: Bundle | None = None


@dataclass
class Share:
    """An iteration's data, cut into microbatches; none of it where it is not needed."""

    inputs: Sequence[Bundle] | None
    targets: Sequence[Any] | None
    step: int


@dataclass
class Stage:
    """Layers from `first` to before `end`, of which some are recomputed."""

    first: int
    end: int
    recomputed: frozenset[int]


@dataclass
class Kept:
    """What a microbatch left behind in a stage."""

    pieces: list[Piece] = field(default_factory=list)
    loss: Tensor | None = None
    # What the loss was computed from.
    outputs: Bundle = ()
    # Of each layer, in the order in which their I ran.
    debts: list[tuple[int, list[Debt]]] = field(default_factory=list)


def bundled(value: Any, layer: int) -> Bundle:
    """A layer's result as a tuple of tensors."""
    bundle = (value,) if isinstance(value, Tensor) else value
    if isinstance(bundle, tuple) and bundle and all(isinstance(part, Tensor) for part in bundle):
        return bundle
    found = f"a tuple of {[type(part).__name__ for part in bundle]}" if isinstance(bundle, tuple) else type(value).__name__
    raise TypeError(f"layer {layer} returned {found}: a layer returns a tensor or a tuple of tensors")


def _leaf(tensor: Tensor, wants_gradient: bool) -> Tensor:
    return tensor.detach().requires_grad_(wants_gradient)


class Worker:
    """Runs a rank's instructions; the interpreter calls it by stage and microbatch."""

    def __init__(
        self,
        attributes: Attributes,
        loss_fn: Callable[..., Tensor],
        microbatches: int,
        device: torch.device,
        seed: int,
        replica: int,
    ) -> None:
        layers = self.layers = attributes.layers
        self._attributes = attributes
        self.loss_fn = loss_fn
        self.microbatches = microbatches
        self.device = device
        self.seed = seed
        # Microbatches are numbered through all replicas for random numbers.
        self.replica = replica
        self.sharded = [replicas.modules_of(layer) for layer in layers]
        # What a GradScaler makes of the loss.
        self.scaled: Callable[[Tensor], Tensor] = lambda loss: loss
        self.ledger = Ledger()
        self.tape = Tape()
        self.stages: dict[int, Stage] = {}
        self.share = Share(None, None, 0)
        # Under these stages.
        self._steps = 0
        self.losses: list[Tensor | None] = []
        # Of what each layer here gave in this iteration; behind the last one, of the loss.
        self.forms: dict[int, Forms] = {}
        self._kept: dict[tuple[int, int], Kept] = {}
        # By layer: its parameters without a gradient, as of its last backward in this iteration.
        self._blank: dict[int, list[Tensor]] = {}
        self._shared = SharedBuffers(layers)
        # Whether what the loss is computed with was looked at, under these stages.
        self._knows_loss = False
        # Other leaves that the loss was made of.
        self.of_loss: list[weakref.ref[Tensor]] = []
        # All layers are one stage.
        self._is_whole = False
        self._given: dict[int, Given] = {}
        self._generator = chance.Generator(device)
        self._keeper = Keeper(layers)
        # By layer: the first step under these stages in which it was recomputed, whose microbatches are all looked at.
        self._repeats: dict[int, int] = {}
        # Layers that are not recomputed, whatever a plan has.
        self._unrepeatable: set[int] = set()
        # Those of torch.jit, whose state can't be put back.
        self._scripted = {
            at for at, layer in enumerate(layers) if any(isinstance(part, torch.jit.ScriptModule) for part in layer.modules())
        }
        # By layer: how often it was looked at, and how often it gave something else.
        self._looks: dict[int, tuple[int, int]] = {}

    def adopt(self, stages: dict[int, Stage]) -> None:
        """The stages of this rank from now on."""
        self.stages = stages
        self._steps = 0
        self._repeats.clear()
        self._looks.clear()
        self._keeper.adopt()
        self._knows_loss = False
        recomputed = {layer for stage in stages.values() for layer in stage.recomputed}
        for layer in (recomputed & self._scripted) - self._unrepeatable:
            self._unrepeatable.add(layer)
            logger.warning("layer %s has a module of torch.jit: it is not recomputed, as the plan has it, and its graph is kept", layer)
        self._is_whole = any(stage.first == 0 and stage.end == len(self.layers) for stage in stages.values())

    def begin(self, share: Share) -> None:
        """Before an iteration."""
        self.share = share
        self.losses = [None] * self.microbatches
        self.forms = {}
        self._kept.clear()
        self._blank.clear()
        self.ledger.take()
        self.tape.pass_over()
        # Some script may have begun to since.
        if self._steps < 2 or self._steps % LOOK_EVERY == 0:
            own = (layer for stage in self.stages.values() for layer in range(stage.first, stage.end))
            self.ledger.look_for_watchers(part for layer in own for part in self.layers[layer].parameters())
        self._steps += 1
        self._generator.keep()

    def reshard(self) -> None:
        """After an iteration or evaluation that went well."""
        for stage in self.stages.values():
            for layer in range(stage.first, stage.end):
                replicas.gather_no_more(self.sharded[layer])

    def end(self) -> None:
        """After an iteration, also one that failed."""
        self._kept.clear()
        self.share = Share(None, None, 0)
        self._generator.put_back()

    def forward(self, stage: int, microbatch: int, value: Bundle | None) -> Bundle | None:
        """F."""
        here = self.stages[stage]
        kept = self._kept[stage, microbatch] = Kept()
        if value is None:
            assert self.share.inputs is not None, "all ranks agreed that it is there"
            value = self.share.inputs[microbatch]
        for layer in range(here.first, here.end):
            self.tape.begin(layer, FORWARD, microbatch)
            inputs = tuple(_leaf(part, part.requires_grad) for part in value)
            number = self._key(layer, microbatch)
            is_recomputed = layer in here.recomputed and layer not in self._unrepeatable
            is_its_turn = is_recomputed and self._is_its_turn(layer, microbatch)
            # On a host to look costs little.
            is_looked_at = is_its_turn or self.device.type == "cpu"
            before = self._keeper.before(layer, is_looked_at) if is_recomputed else None
            inside = self._attributes.inside(layer) if is_recomputed else None
            # What a run works on is no more what it was.
            trial = self._keeper.before(layer, False) if is_recomputed and layer not in self._repeats else None
            if self.tape.is_due(layer, microbatch):
                outputs = self.tape.weigh(layer, self.layers[layer], inputs, partial(self._run, layer, inputs, number))
            else:
                outputs = self._run(layer, inputs, number)
            passed = self._given.setdefault(layer, Given(layer)).pass_on(outputs, inputs)
            value = tuple(_leaf(part, of.requires_grad) for part, of in zip(passed, outputs))
            if before is not None and not (
                self._keeper.holds(layer, before)
                and self._is_inside_kept(layer, inside)
                and self._is_repeatable(layer, inputs, number, trial, inside, value)
            ):
                # It changes what was not kept: this once, its graph is.
                is_recomputed, before = False, None
            piece = Piece(inputs, None if is_recomputed else outputs, number, before, inside)
            if is_recomputed and (self._repeats.setdefault(layer, self.share.step) == self.share.step or is_its_turn):
                piece.gave = value
            kept.pieces.append(piece)
            del outputs, trial
            self._note(layer, value)
        if here.end == len(self.layers):
            kept.outputs = value
            # Its time is the last layer's.
            kept.loss = self._loss(value, microbatch)
        self.tape.end()
        return value if kept.loss is None else None

    def _is_repeatable(
        self, layer: int, inputs: Bundle, number: int, before: Before | None, inside: Inside | None, gave: Bundle
    ) -> bool:
        """Whether a layer gives the same when it runs again, as it is to; it is tried once under a plan. One that does not has
        its graph kept from then on."""
        if before is None or (inside is not None and inside.records is None):
            # What such a run would change of objects could not be put back: the first recomputations show it.
            return True
        rewind = rewinding(self.layers[layer])
        try:
            with before.again(), self._attributes.again(layer, inside, self.device):
                again = self._run(layer, inputs, number)
            is_repeatable = len(gave) == len(again) and all(map(is_again, gave, again))
        except Bypassed:
            is_repeatable = False
        if not is_repeatable:
            rewind()
            self._tell_unrepeatable(layer)
        return is_repeatable

    def _is_inside_kept(self, layer: int, inside: Inside | None) -> bool:
        """Whether what a layer's lists and objects hold can be put back after a run, or was left alone by it."""
        is_kept = self._attributes.is_as(layer, inside)
        if not is_kept:
            self._tell_unrepeatable(layer)
        return is_kept

    def _tell_unrepeatable(self, layer: int) -> None:
        self._unrepeatable.add(layer)
        logger.warning(
            "layer %s gives another result when it runs again on the same input, or changes its buffers by other ways than "
            "their names, or much that its lists and objects hold: it is not recomputed, as the plan has it, and its graph is kept, "
            "which takes more memory; keep what its result depends on in a buffer, or let it not change it", layer
        )

    def _is_its_turn(self, layer: int, microbatch: int) -> bool:
        """Whether the recomputation of a layer is looked at once more: one at a time, one after the other."""
        turn, is_between = divmod(self.share.step, 1 if self.device.type == "cpu" else LOOK_EVERY)
        return not is_between and turn % (len(self.layers) * self.microbatches) == microbatch * len(self.layers) + layer

    def _note(self, layer: int, value: Bundle) -> None:
        """What a layer gives: with a gradient what has one in any microbatch."""
        noted, own = self.forms.get(layer), tuple(Form.of(part) for part in value)
        if noted is None:
            self.forms[layer] = own
        elif any(form.requires_grad > known.requires_grad for form, known in zip(own, noted)):
            joined = zip(own, noted)
            self.forms[layer] = tuple(replace(one, requires_grad=one.requires_grad or known.requires_grad) for one, known in joined)

    def _key(self, layer: int, microbatch: int) -> int:
        return chance.key(self.seed, self.share.step, layer, self.replica * self.microbatches + microbatch)

    def _run(self, layer: int, inputs: Bundle, number: int) -> Bundle:
        self._generator.seed(number)
        versions = [part._version for part in inputs]
        # In one stage layers run as in one process.
        shared = [] if self._is_whole else self._shared.before(layer)
        hint = f"layer {layer} changes its input in place; let it work on a copy (inplace=False)"
        # Also where the graph is dropped at once: without gradients some operations take other kernels, and other bits come.
        with torch.enable_grad():
            try:
                outputs = bundled(self.layers[layer](*inputs), layer)
            except RuntimeError as error:
                if "leaf Variable" in str(error):
                    raise RuntimeError(f"{hint}: {error}") from error
                raise
        if versions != [part._version for part in inputs]:
            raise RuntimeError(hint)
        self._shared.after(layer, shared)
        return outputs

    def _loss(self, outputs: Bundle, microbatch: int) -> Tensor:
        assert self.share.targets is not None, "all ranks agreed that it is there"
        self._generator.seed(self._key(len(self.layers), microbatch))
        with torch.enable_grad():
            output = outputs[0] if len(outputs) == 1 else outputs
            try:
                loss = self.loss_fn(output, self.share.targets[microbatch])
            except RuntimeError as error:
                if "leaf Variable" in str(error):
                    hint = "loss_fn changes the output in place; let it work on a copy, as output = output / 2"
                    raise RuntimeError(f"{hint}: {error}") from error
                raise
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError("loss_fn returns one number, as a tensor")
        if not self._knows_loss:
            self.of_loss = guards.refuse_parameters(loss, outputs, self.layers)
            self._knows_loss = True
        self.losses[microbatch] = loss.detach().reshape(())
        # Of some microbatch it may have none, as where all is masked.
        known = self.forms.get(len(self.layers))
        has_gradient = loss.requires_grad or (known is not None and known[0].requires_grad)
        self.forms[len(self.layers)] = (Form(loss.dtype, (), has_gradient),)
        with torch.enable_grad():
            return loss.reshape(())

    def input_gradient(self, stage: int, microbatch: int, gradient: Bundle | None) -> Bundle | None:
        """I."""
        kept = self._kept[stage, microbatch]

        def leave(layer: int, debts: list[Debt]) -> None:
            kept.debts.append((layer, debts))

        return self._backwards(stage, microbatch, kept, gradient, leave)

    def weight_gradient(self, stage: int, microbatch: int) -> None:
        """W."""
        kept = self._kept.pop((stage, microbatch))
        with self._without_autocast():
            while kept.debts:
                layer, debts = kept.debts.pop(0)
                self.tape.begin(layer, WEIGHT_GRADIENT, microbatch)
                pay(debts, layer)
        self.tape.end()

    def backward(self, stage: int, microbatch: int, gradient: Bundle | None) -> Bundle | None:
        """B."""

        def settle(layer: int, debts: list[Debt]) -> None:
            self.tape.begin(layer, WEIGHT_GRADIENT, microbatch)
            pay(debts, layer)

        return self._backwards(stage, microbatch, self._kept.pop((stage, microbatch)), gradient, settle)

    def _backwards(
        self,
        stage: int,
        microbatch: int,
        kept: Kept,
        gradient: Bundle | None,
        settle: Callable[[int, list[Debt]], None],
    ) -> Bundle | None:
        here = self.stages[stage]
        of_loss: list[Debt] = []
        has_begun = False
        with self._without_autocast():
            if gradient is None:
                # The loss's backward is the last layer's I.
                self.tape.begin(here.end - 1, INPUT_GRADIENT, microbatch)
                has_begun = True
                self._generator.seed(self._key(len(self.layers), microbatch) ^ OF_BACKWARD)
                gradient = self._gradient_of_loss(kept)
                of_loss = self.ledger.take()
        for layer in reversed(range(here.first, here.end)):
            piece = kept.pieces.pop()
            if layer in self._given:
                self._given[layer].let_go()
            if piece.outputs is None:
                outputs = self._timed_again(layer, microbatch, piece, has_begun)
            else:
                outputs, piece.outputs = piece.outputs, None
            if not has_begun:
                self.tape.begin(layer, INPUT_GRADIENT, microbatch)
            has_begun = False
            # Of a stage, all other microbatches were before the last one.
            replicas.sync(self.sharded[layer], microbatch == self.microbatches - 1)
            # What hooks and operations draw in a backward does not depend on the plan either.
            self._generator.seed(piece.key ^ OF_BACKWARD)
            with self._without_autocast():
                gradient = self._through(layer, outputs, gradient, piece.inputs)
                debts = of_loss + self.ledger.take()
                of_loss = []
                self.tape.weigh_debts(layer, microbatch, debts, self.layers[layer])
                settle(layer, debts)
        self.tape.end()
        return gradient if here.first > 0 else None

    def _timed_again(self, layer: int, microbatch: int, piece: Piece, has_begun: bool) -> Bundle:
        """Runs a layer once more, before its I or in the middle of it."""
        if not has_begun:
            self.tape.begin(layer, RECOMPUTE, microbatch)
            return self._again(layer, piece)
        self.tape.interrupt(layer, RECOMPUTE, microbatch)
        outputs = self._again(layer, piece)
        self.tape.go_on()
        return outputs

    def _gradient_of_loss(self, kept: Kept) -> Bundle:
        loss, kept.loss = kept.loss, None
        assert loss is not None, "F comes before I"
        if loss.requires_grad:
            with torch.enable_grad():
                root = self.scaled(loss / self.microbatches)
            with self.ledger.opened([root]):
                root.backward()
        outputs, kept.outputs = kept.outputs, ()
        return tuple(_contiguous(part.grad) if part.requires_grad else None for part in outputs)

    def _through(self, layer: int, outputs: Bundle, gradient: Bundle, inputs: Bundle) -> Bundle:
        """The gradient of a piece's inputs; what the parameters get is added to theirs, or left."""
        pairs = [(part, of) for part, of in zip(outputs, gradient) if part.requires_grad and of is not None]
        if pairs:
            roots, gradients = zip(*pairs)
            blank = self._without_gradient(layer)
            with self.ledger.opened(roots):
                torch.autograd.backward(roots, gradients)
            for parameter in blank:
                if parameter.grad is not None and is_shared(parameter.grad):
                    parameter.grad = parameter.grad.clone()
        # An input that nothing was made of has the gradient 0, which whoever sent it waits for.
        return tuple(
            (torch.zeros_like(part) if part.grad is None else _contiguous(part.grad)) if part.requires_grad else None
            for part in inputs
        )

    def _without_gradient(self, layer: int) -> list[Tensor]:
        """Parameters whose next gradient is the first one."""
        blank = self._blank.get(layer)
        if blank is None:
            # Those of sharded layers leave no debts, and are reduced into memory that they share.
            blank = [] if self.sharded[layer] else list(self.layers[layer].parameters())
        blank = self._blank[layer] = [parameter for parameter in blank if parameter.grad is None]
        return blank

    def _again(self, layer: int, piece: Piece) -> Bundle:
        """Runs a layer once more, on what it was."""
        assert piece.before is not None, "a recomputation is due"
        if not self._keeper.has_stayed(layer, piece.before):
            raise RuntimeError(
                f"layer {layer} changed a large buffer for a later microbatch and none for an earlier one, which is recomputed "
                "now and would see the change: let it change it for the first microbatch of a step, too"
            )
        if not self._attributes.is_as(layer, piece.inside):
            raise RuntimeError(
                f"layer {layer} changed what lists or objects of it hold for a later microbatch and not for an earlier one, which is "
                "recomputed now and would see the change: let it change it for the first microbatch of a step, too, or keep it "
                "in a buffer"
            )
        try:
            with piece.before.again(), self._attributes.again(layer, piece.inside, self.device):
                outputs = self._run(layer, piece.inputs, piece.key)
        except Bypassed:
            raise RuntimeError(
                f"layer {layer} changes a buffer by another way than its name, as through a list of its buffers, and so once more "
                "where it is recomputed: let it change it by its name"
            ) from None
        if not self._attributes.is_as(layer, piece.inside):
            raise RuntimeError(
                f"layer {layer} changes what lists or objects of it hold, and so once more where it is recomputed, but not in every "
                "run: let it change it in the first run, too, or keep it in a buffer"
            )
        if piece.gave is not None and self._is_other(layer, piece.gave, outputs):
            raise RuntimeError(
                f"layer {layer} gives another result when it runs again on the same input, so that its gradients would be "
                "wrong where it is recomputed: keep what its result depends on in a buffer, or let it not change it"
            )
        return outputs

    def _is_other(self, layer: int, gave: Bundle, again: Bundle) -> bool:
        """Whether a recomputation gives what the F did not: at the first look, or often. A choice that is on an edge may come
        out otherwise once in a long while, as by the order in which a kernel adds up."""
        looks, others = self._looks.get(layer, (0, 0))
        is_other = not all(map(is_again, gave, again))
        looks, others = looks + 1, others + is_other
        self._looks[layer] = looks, others
        if is_other and looks > 1 and others == 1:
            logger.warning(
                "layer %s gave another result when it ran again on the same input, which makes gradients wrong where it is "
                "recomputed: keep what its result depends on in a buffer (often so, and it is refused)", layer
            )
        return is_other and (looks == 1 or (others > 1 and others >= OTHERS_SHARE * looks))

    def _without_autocast(self) -> contextlib.AbstractContextManager[Any]:
        kind = self.device.type
        if torch.is_autocast_enabled(kind):
            return torch.autocast(kind, enabled=False)
        return contextlib.nullcontext()


def _contiguous(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.contiguous()
