"""Tensors between ranks over torch.distributed.

1. A receive is posted with the shape of what comes. The shapes between all layers are learned in the first iteration of its
   kind and shared: any plan can then run without being told them.
2. Until they are known, headers announce tensors, and both pass through the memory of hosts: nothing is received then before
   its header has come, which is too late for NCCL, where a send keeps its GPU waiting.
3. A sent tensor is held until it has arrived; an iteration ends when all have. (On a GPU it is the stream that waits.) Where
   many are on their way, the oldest one is waited for, which a row allows for each of its sends.
4. What a step that failed on its way has sent may still come: no other one follows it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from adaptis.channels import Channels, Tagged
from adaptis.forms import HEADER, Bundle, Form, Forms, decoded, encoded, matches, text
from adaptis.tape import Tape

SENT_MAX = 32
"""Sent tensors from which on those that have arrived are let go of."""
GRADIENTS_MAX = 8
"""The same for gradients that hosts carry, of which nothing tells that they have arrived."""

STAGES_MAX = 1 << 9
MICROBATCHES_MAX = 1 << 16
"""What a tag has room for."""

Place = tuple[bool, int, int]
"""Of a bundle: whether it is a gradient, the stage that consumes it, the microbatch."""


class Exchange:
    """Carries what the interpreter sends and takes."""

    def __init__(self, channels: Channels, device: torch.device, tape: Tape) -> None:
        self.channels = channels
        self.device = device
        self.tape = tape
        self._over_hosts = Tagged(channels.control)
        # The layer whose output enters each stage, and the one whose output leaves it.
        self.entering: dict[int, int] = {}
        self.leaving: dict[int, int] = {}
        # By the layer that they are outputs of, once they are known.
        self.known: dict[int, Forms] | None = None
        self._posted: dict[Place, Any] = {}
        self._sent: list[tuple[Any, Tensor]] = []
        # Outputs that hosts carry, by bundle: that one has arrived is seen by its gradient's coming.
        self._unanswered: dict[Place, list[tuple[Any, Tensor]]] = {}
        # An iteration failed on its way: of its tensors, some may still come.
        self.is_broken = False

    def adopt(self, stages: list[tuple[int, int]]) -> None:
        """The layers of all stages from now on."""
        self.entering = {stage: first - 1 for stage, (first, _) in enumerate(stages)}
        self.leaving = {stage: end - 1 for stage, (_, end) in enumerate(stages)}

    def begin(self, known: dict[int, Forms] | None) -> None:
        """Before an iteration, with the forms between all layers if they are known."""
        self.known = known

    def end(self) -> None:
        """All that was sent arrives."""
        for work, _ in [*self._sent, *(sent for of in self._unanswered.values() for sent in of)]:
            work.wait()
        self._sent.clear()
        self._unanswered.clear()

    def reset(self) -> None:
        """After an iteration that failed on its way. What is still sent or received stays as it is: others wait for it."""
        self.is_broken = True
        self.channels.fail()

    def post(self, device: int, is_gradient: bool, stage: int, microbatch: int) -> None:
        """A bundle will be taken later."""
        self._carry(0)
        place = (is_gradient, stage, microbatch)
        forms = self._forms(is_gradient, stage)
        if forms is None:
            header = torch.empty(HEADER, dtype=torch.int64, device="cpu")
            self._posted[place] = (None, [(self._over_hosts.receive(header, device, _tag(place, 0)), header)])
        else:
            self._posted[place] = (forms, self._receive_all(self.channels, device, forms, place))

    def take(self, device: int, is_gradient: bool, stage: int, microbatch: int) -> Bundle:
        """Waits for a posted bundle."""
        self._carry(1)
        place = (is_gradient, stage, microbatch)
        forms, receiving = self._posted.pop(place)
        if forms is None:
            ((work, header),) = receiving
            self.tape.wait(work.wait)
            forms = decoded(header.tolist())
            receiving = self._receive_all(self._over_hosts, device, forms, place)
        bundle: list[Any] = []
        arriving = iter(receiving)
        for form in forms:
            if is_gradient and not form.requires_grad:
                bundle.append(None)
                continue
            work, tensor = next(arriving)
            self.tape.wait(work.wait)
            tensor = tensor.to(self.device)
            bundle.append(tensor if is_gradient else tensor.requires_grad_(form.requires_grad))
        if is_gradient:
            # What it is the gradient of has arrived.
            for work, _ in self._unanswered.pop((False, stage + 1, microbatch), ()):
                work.wait()
        return tuple(bundle)

    def send(self, device: int, is_gradient: bool, stage: int, microbatch: int, bundle: Bundle) -> None:
        """Sends a bundle. Does not wait for its arrival."""
        self._carry(1)
        place = (is_gradient, stage, microbatch)
        known = self._forms(is_gradient, stage)
        answered = self._unanswered.setdefault(place, [])
        if is_gradient:
            forms = tuple(Form(torch.bool, (), False) if part is None else _gradient_form(part) for part in bundle)
        else:
            forms = tuple(Form.of(part) for part in bundle)
        if known is None:
            header = torch.tensor(encoded(forms), dtype=torch.int64, device="cpu")
            answered.append((self._over_hosts.send(header, device, _tag(place, 0)), header))
        elif not is_gradient and not matches(forms, known):
            layer = self.entering[stage]
            raise ValueError(
                f"layer {layer} gave {text(forms)} for microbatch {microbatch} and gave {text(known)} before: "
                "what passes between two layers keeps its shape while x does"
            )
        elif not is_gradient and any(form.requires_grad > of.requires_grad for form, of in zip(forms, known)):
            # The other rank would give no gradient back. Where one comes that is not needed, it is left.
            raise RuntimeError(
                f"layer {self.entering[stage]} gave what has no gradient in earlier steps, and now what has one: freeze "
                "layers by their parameters' requires_grad, which all ranks see, and not by torch.no_grad"
            )
        parts = [part.detach().resolve_conj().resolve_neg().contiguous() for part in bundle if part is not None]
        for at, part in enumerate(parts):
            if known is None:
                part = part.cpu()
                answered.append((self._over_hosts.send(part, device, _tag(place, 1 + at)), part))
                continue
            held = self._sent if is_gradient or self.channels.wait_is_the_devices else answered
            if held is self._sent:
                self._let_go()
            held.append((self.channels.send(part, device, _tag(place, 1 + at)), part))

    def _carry(self, transfers: int) -> None:
        if self.known is None:
            # What announces its shape takes longer than it will.
            self.tape.pass_over()
        else:
            self.tape.carry(transfers)

    def _forms(self, is_gradient: bool, stage: int) -> Forms | None:
        if self.known is None:
            return None
        return self.known[self.leaving[stage] if is_gradient else self.entering[stage]]

    def _receive_all(self, over: Channels, device: int, forms: Forms, place: Place) -> list[tuple[Any, Tensor]]:
        wanted = [form for form in forms if form.requires_grad] if place[0] else list(forms)
        where = self.device if over is self.channels else torch.device("cpu")
        blanks = [torch.empty(form.shape, dtype=form.dtype, device=where) for form in wanted]
        return [(over.receive(blank, device, _tag(place, 1 + at)), blank) for at, blank in enumerate(blanks)]

    def _let_go(self) -> None:
        """Of what has arrived, where much was sent. The host may be far ahead of its device, where nothing has then."""
        if not self.channels.wait_is_the_devices:
            while len(self._sent) >= GRADIENTS_MAX:
                self.tape.wait(self._sent.pop(0)[0].wait)
            return
        if len(self._sent) < SENT_MAX:
            return
        self._sent = [(work, sent) for work, sent in self._sent if not work.is_completed()]
        if len(self._sent) >= SENT_MAX:
            self._sent.pop(0)[0].wait()


def _gradient_form(part: Tensor) -> Form:
    return Form(part.dtype, tuple(part.shape), True)


def _tag(place: Place, part: int) -> int:
    is_gradient, stage, microbatch = place
    return ((microbatch << 9 | stage) << 1 | int(is_gradient)) << 5 | part
