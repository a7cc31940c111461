"""The types and shapes of what passes from layer to layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
)
TENSORS_MAX = 16
"""Tensors that pass between two layers, at most."""
DIMENSIONS_MAX = 8
"""Dimensions of one of them, at most."""
HEADER = 1 + TENSORS_MAX * (3 + DIMENSIONS_MAX)


@dataclass(frozen=True)
class Form:
    """A tensor's type, shape, and whether it has a gradient."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    requires_grad: bool

    @staticmethod
    def of(tensor: Tensor) -> "Form":
        return Form(tensor.dtype, tuple(tensor.shape), tensor.requires_grad)


Forms = tuple[Form, ...]

Bundle = tuple[Any, ...]
"""What passes from layer to layer: tensors, one or several."""


def encoded(forms: Forms) -> list[int]:
    numbers = [len(forms)]
    for form in forms:
        if form.dtype not in DTYPES or len(form.shape) > DIMENSIONS_MAX:
            raise TypeError(f"a tensor of type {form.dtype} and shape {form.shape} can't pass between two ranks")
        shape = list(form.shape) + [0] * (DIMENSIONS_MAX - len(form.shape))
        numbers += [DTYPES.index(form.dtype), int(form.requires_grad), len(form.shape), *shape]
    if len(forms) > TENSORS_MAX:
        raise TypeError(f"{len(forms)} tensors pass between two layers; {TENSORS_MAX} is the most")
    return numbers + [0] * (HEADER - len(numbers))


def decoded(numbers: list[int]) -> Forms:
    forms = []
    for at in range(numbers[0]):
        dtype, requires_grad, dimensions, *shape = numbers[1 + at * (3 + DIMENSIONS_MAX) :][: 3 + DIMENSIONS_MAX]
        forms.append(Form(DTYPES[dtype], tuple(shape[:dimensions]), bool(requires_grad)))
    return tuple(forms)


def matches(forms: Forms, known: Forms) -> bool:
    """Whether tensors of one form are what is waited for where those of the other are. Their gradients are another matter."""
    return [(form.dtype, form.shape) for form in forms] == [(form.dtype, form.shape) for form in known]


def text(forms: Forms) -> str:
    """For people."""
    return ", ".join(f"{str(form.dtype).removeprefix('torch.')}{list(form.shape)}" for form in forms)
