"""Tensors between ranks over torch.distributed.

1. A receive is posted with the shape of what comes. The shapes between all layers are learned in the first iteration of its
   kind, whose tensors are announced by headers, and shared: any plan can then run without headers.
2. A rank receives another one's tensors in the order in which they are sent, so that channels without tags carry them. What
   headers announce is asked for as soon as one of the tensors behind it is needed.
3. A sent tensor is held until it has arrived; an iteration ends when all have.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from adaptis.channels import Tagged
from adaptis.forms import HEADER, Form, Forms, decoded, encoded, matches, text
from adaptis.worker import Bundle

SENT_MAX = 32
"""Sent tensors from which on those that have arrived are looked for."""

STAGES_MAX = 1 << 9
MICROBATCHES_MAX = 1 << 16
"""What a tag has room for."""

Place = tuple[bool, int, int]
"""Of a bundle: whether it is a gradient, the stage that consumes it, the microbatch."""


class Exchange:
    """Carries what the interpreter sends and takes."""

    def __init__(self, channels: Tagged, device: torch.device) -> None:
        self.channels = channels
        self.device = device
        # The layer whose output enters each stage, and the one whose output leaves it.
        self.entering: dict[int, int] = {}
        self.leaving: dict[int, int] = {}
        # By the layer that they are outputs of, once they are known.
        self.known: dict[int, Forms] | None = None
        self._posted: dict[Place, Any] = {}
        # By sender: headers of bundles whose tensors were not asked for yet.
        self._announced: dict[int, deque[tuple[Place, Any, Tensor]]] = defaultdict(deque)
        self._sent: list[tuple[Any, Tensor]] = []

    def adopt(self, stages: list[tuple[int, int]]) -> None:
        """The layers of all stages from now on."""
        self.entering = {stage: first - 1 for stage, (first, _) in enumerate(stages)}
        self.leaving = {stage: end - 1 for stage, (_, end) in enumerate(stages)}

    def begin(self, known: dict[int, Forms] | None) -> None:
        """Before an iteration, with the forms between all layers if they are known."""
        self.known = known

    def end(self) -> None:
        """All that was sent has arrived."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()

    def reset(self) -> None:
        """After an iteration that failed."""
        self._sent.clear()
        self._posted.clear()
        self._announced.clear()

    def post(self, device: int, is_gradient: bool, stage: int, microbatch: int) -> None:
        """A bundle will be taken later."""
        place = (is_gradient, stage, microbatch)
        forms = self._forms(is_gradient, stage)
        if forms is None:
            header = torch.empty(HEADER, dtype=torch.int64)
            work = dist.irecv(header, group=self.channels.control, group_src=device, tag=_tag(place, 0))
            self._announced[device].append((place, work, header))
        else:
            self._posted[place] = (forms, self._receive_all(device, forms, place))

    def take(self, device: int, is_gradient: bool, stage: int, microbatch: int) -> Bundle:
        """Waits for a posted bundle."""
        wanted = (is_gradient, stage, microbatch)
        while wanted not in self._posted:
            # What was sent before it comes before it.
            place, work, header = self._announced[device].popleft()
            work.wait()
            forms = decoded(header.tolist())
            self._posted[place] = (forms, self._receive_all(device, forms, place))
        forms, receiving = self._posted.pop(wanted)
        bundle: list[Any] = []
        arriving = iter(receiving)
        for form in forms:
            if is_gradient and not form.requires_grad:
                bundle.append(None)
                continue
            work, tensor = next(arriving)
            work.wait()
            bundle.append(tensor if is_gradient else tensor.requires_grad_(form.requires_grad))
        return tuple(bundle)

    def send(self, device: int, is_gradient: bool, stage: int, microbatch: int, bundle: Bundle) -> None:
        """Sends a bundle. Does not wait for its arrival."""
        place = (is_gradient, stage, microbatch)
        known = self._forms(is_gradient, stage)
        if is_gradient:
            forms = tuple(Form(torch.bool, (), False) if part is None else _gradient_form(part) for part in bundle)
        else:
            forms = tuple(Form.of(part) for part in bundle)
        if known is None:
            header = torch.tensor(encoded(forms), dtype=torch.int64)
            told = dist.isend(header, group=self.channels.control, group_dst=device, tag=_tag(place, 0))
            self._sent.append((told, header))
        elif not is_gradient and not matches(forms, known):
            layer = self.entering[stage]
            raise ValueError(
                f"layer {layer} gave {text(forms)} for microbatch {microbatch} and gave {text(known)} before: "
                "what passes between two layers keeps its shape while x does"
            )
        parts = [part for part in bundle if part is not None]
        for at, part in enumerate(parts):
            self._send(device, part.detach().contiguous(), place, 1 + at)

    def _forms(self, is_gradient: bool, stage: int) -> Forms | None:
        if self.known is None:
            return None
        return self.known[self.leaving[stage] if is_gradient else self.entering[stage]]

    def _receive_all(self, device: int, forms: Forms, place: Place) -> list[tuple[Any, Tensor]]:
        wanted = [form for form in forms if form.requires_grad] if place[0] else list(forms)
        blanks = [torch.empty(form.shape, dtype=form.dtype, device=self.device) for form in wanted]
        return [
            (self.channels.receive(blank, device, _tag(place, 1 + at)), blank) for at, blank in enumerate(blanks)
        ]

    def _send(self, device: int, tensor: Tensor, place: Place, part: int) -> None:
        if len(self._sent) >= SENT_MAX:
            self._sent = [(work, sent) for work, sent in self._sent if not work.is_completed()]
        self._sent.append((self.channels.send(tensor, device, _tag(place, part)), tensor))


def _gradient_form(part: Tensor) -> Form:
    return Form(part.dtype, tuple(part.shape), True)


def _tag(place: Place, part: int) -> int:
    is_gradient, stage, microbatch = place
    return ((microbatch << 9 | stage) << 1 | int(is_gradient)) << 5 | part
