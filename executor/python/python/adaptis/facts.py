"""A layer as its rank knows it: its sizes, never its costs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adaptis import replicas
from adaptis.forms import Forms


@dataclass(frozen=True)
class Fact:
    """A layer as its rank knows it."""

    name: str
    signature: str
    parameter_bytes: int
    state_bytes: int
    output_bytes: int
    moved_bytes: int

    @staticmethod
    def of(at: int, layer: nn.Module, optimizers: Sequence[Optimizer], inputs: Forms, outputs: Forms) -> Fact:
        parameters = list(layer.parameters())
        buffers = sum(bytes_here(buffer) for buffer in layer.buffers())
        weights = sum(bytes_here(parameter) for parameter in parameters)
        gradients = sum(bytes_here(parameter) for parameter in parameters if parameter.requires_grad)
        kept = sum(_kept_bytes(optimizer.state.get(parameter, {})) for optimizer in optimizers for parameter in parameters)
        # The layer's own text has what its parameters do not show, as the number of heads. And what nobody asks the input's
        # gradient of does less than its likes: in most models the first layer.
        kind = type(layer).__name__.lower()
        is_first = any(form.dtype.is_floating_point for form in inputs) and not any(form.requires_grad for form in inputs)
        shape = f"{sum(parameter.numel() for parameter in parameters)}-{_short(repr(layer) + ' of data' * is_first)}"
        dtype = str(next((part.dtype for part in parameters), torch.float32)).removeprefix("torch.")
        signature = f"{kind}/{shape}/{dtype}/{_extent(inputs)}"
        output = sum(form_bytes(form.shape, form.dtype) for form in outputs)
        return Fact(f"{at}.{kind}", signature, weights, weights + gradients + kept + buffers, output, weights + kept + buffers)

    @staticmethod
    def of_all(optimizer: Optimizer) -> Fact:
        """A model of which its optimizer alone is known, as one layer."""
        parameters = list(parameters_of(optimizer))
        weights = sum(map(bytes_here, parameters))
        gradients = sum(bytes_here(part) for part in parameters if part.requires_grad)
        kept = sum(map(_kept_bytes, optimizer.state.values()))
        shapes = _short(repr([tuple(part.shape) for part in parameters]))
        dtype = str(parameters[0].dtype).removeprefix("torch.")
        signature = f"model/{sum(part.numel() for part in parameters)}-{shapes}/{dtype}/any"
        return Fact("0.model", signature, weights, weights + gradients + kept, 0, weights + kept)


def bytes_here(tensor: Tensor) -> int:
    """Bytes of what of it is here."""
    tensor = replicas.local(tensor)
    return tensor.numel() * tensor.element_size()


def _kept_bytes(kept: Mapping[str, Any]) -> int:
    return sum(bytes_here(value) for value in kept.values() if isinstance(value, Tensor))


def parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """All that it changes."""
    return (part for group in optimizer.param_groups for part in group["params"])


def form_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a tensor."""
    size = torch.empty((), dtype=dtype).element_size()
    for length in shape:
        size *= length
    return size


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=2).hexdigest()


def _extent(inputs: Forms) -> str:
    shape = inputs[0].shape if inputs else ()
    # Numbers of words, or what they became.
    if len(shape) == 3 or (len(shape) == 2 and not inputs[0].dtype.is_floating_point):
        return f"b{shape[0]}xs{shape[1]}"
    return "b" + "x".join(map(str, shape))


def told(fact: Fact) -> tuple[str, str, int, int, int, int]:
    """As the coordinator is told."""
    return fact.name, fact.signature, fact.parameter_bytes, fact.state_bytes, fact.output_bytes, fact.moved_bytes
