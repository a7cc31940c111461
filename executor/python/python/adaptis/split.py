"""Weight gradients that can wait: the input gradient of a layer is there before its weight gradients are worked out.

A module whose weight gradient is one kernel (Linear, Conv, Embedding) gets a forward whose backward works out the input
gradient only and leaves the rest behind as a `Debt`. An I leaves its debts until the W of its microbatch; a B pays them
at its end. Both pay by the same kernels in the same order, so it makes no bit of difference which one a plan has.

1. What is not one of these modules, or is one with a twist (tied into a parametrization, compiled, sharded, padded in
   another way), keeps its own backward: its weight gradients belong to I, and W has so much less to do.
2. A debt holds the layer's input and the gradient of its output, which is what W costs in memory.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Debt = Callable[[], None]


class Ledger:
    """What the backward of the layer under way left to do. The debts are taken when it is through."""

    def __init__(self) -> None:
        self.debts: list[Debt] = []

    def take(self) -> list[Debt]:
        """All debts since the last time."""
        debts, self.debts = self.debts, []
        return debts


def pay(debts: list[Debt]) -> None:
    """Works out the weight gradients that were left."""
    with torch.no_grad():
        for debt in debts:
            debt()


def _add(parameter: Tensor, gradient: Tensor) -> None:
    gradient = gradient.to(parameter.dtype)
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, cast: Any, owner: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.cast, ctx.owner = cast, owner
        if cast is not None:
            weight, bias = weight.to(cast), None if bias is None else bias.to(cast)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        ledger, module = ctx.owner
        if ctx.cast is not None:
            weight = weight.to(ctx.cast)
        ledger.debts.append(lambda: _linear_debt(module, x, gradient))
        return (gradient.matmul(weight) if ctx.needs_input_grad[0] else None), None, None, None, None


def _linear_debt(module: nn.Linear, x: Tensor, gradient: Tensor) -> None:
    flat = gradient.reshape(-1, gradient.shape[-1])
    if module.weight.requires_grad:
        _add(module.weight, flat.t() @ x.reshape(-1, x.shape[-1]))
    if module.bias is not None and module.bias.requires_grad:
        _add(module.bias, flat.sum(0))


def _linear(ledger: Ledger) -> Callable[..., Tensor]:
    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        cast = _autocast(input)
        x = input if cast is None else input.to(cast)
        return _Linear.apply(x, self.weight, self.bias, cast, (ledger, self))

    return forward


def _autocast(x: Tensor) -> torch.dtype | None:
    """What autocast would make of a product's operands."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, cast: Any, owner: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.cast, ctx.owner = cast, owner
        _, module = owner
        if cast is not None:
            weight, bias = weight.to(cast), None if bias is None else bias.to(cast)
        return torch.convolution(x, weight, bias, *_geometry(module))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        ledger, module = ctx.owner
        if ctx.cast is not None:
            weight = weight.to(ctx.cast)
        ledger.debts.append(lambda: _convolution_debt(module, x, gradient, ctx.cast))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        wanted = [True, False, False]
        before, _, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, *_geometry(module), wanted)
        return before, None, None, None, None


def _convolution_debt(module: Any, x: Tensor, gradient: Tensor, cast: torch.dtype | None) -> None:
    has_bias = module.bias is not None and module.bias.requires_grad
    wanted = [False, module.weight.requires_grad, has_bias]
    weight = module.weight if cast is None else module.weight.to(cast)
    sizes = None if module.bias is None else list(module.bias.shape)
    _, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient, x, weight, sizes, *_geometry(module), wanted
    )
    if module.weight.requires_grad:
        _add(module.weight, of_weight)
    if has_bias:
        _add(module.bias, of_bias)


def _geometry(module: Any) -> tuple[Any, ...]:
    still = [0] * len(module.stride)
    return list(module.stride), list(module.padding), list(module.dilation), False, still, module.groups


def _convolution(ledger: Ledger) -> Callable[..., Tensor]:
    def forward(self: Any, input: Tensor) -> Tensor:
        if input.dim() != len(self.stride) + 2:
            # Without a batch, which no microbatch is.
            return type(self).forward(self, input)
        cast = _autocast(input)
        x = input if cast is None else input.to(cast)
        return _Convolution.apply(x, self.weight, self.bias, cast, (ledger, self))

    return forward


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, indices: Tensor, weight: Tensor, owner: Any) -> Tensor:
        ctx.indices, ctx.owner = indices, owner
        _, module = owner
        return functional.embedding(indices, weight, module.padding_idx)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        ledger, module = ctx.owner
        indices = ctx.indices
        ledger.debts.append(lambda: _embedding_debt(module, indices, gradient))
        return None, None, None


def _embedding_debt(module: nn.Embedding, indices: Tensor, gradient: Tensor) -> None:
    padding = -1 if module.padding_idx is None else module.padding_idx
    rows = module.num_embeddings
    _add(module.weight, torch.ops.aten.embedding_dense_backward(gradient, indices, rows, padding, False))


def _embedding(ledger: Ledger) -> Callable[..., Tensor]:
    def forward(self: nn.Embedding, input: Tensor) -> Tensor:
        return _Embedding.apply(input, self.weight, (ledger, self))

    return forward


def _forward_of(module: nn.Module, ledger: Ledger) -> Callable[..., Tensor] | None:
    """The forward that leaves debts, for modules that can."""
    kind = type(module)
    if kind is nn.Linear:
        return _linear(ledger)
    if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        is_plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return _convolution(ledger) if is_plain else None
    if kind is nn.Embedding:
        is_plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        return _embedding(ledger) if is_plain else None
    return None


def _is_left_alone(module: nn.Module) -> bool:
    """Others have a hand in its forward or its parameters."""
    own = module.__dict__.get("_parameters", {})
    has_hooks = bool(module._forward_pre_hooks or module._forward_hooks or module._backward_hooks)
    return not isinstance(own.get("weight"), nn.Parameter) or has_hooks or "forward" in module.__dict__


def defer(layer: nn.Module, ledger: Ledger) -> int:
    """Lets the weight gradients of a layer's modules wait. How many modules can."""
    if hasattr(layer, "_orig_mod"):
        # Compiled as a whole: its backward is one piece.
        return 0
    count = 0
    for module in layer.modules():
        forward = _forward_of(module, ledger)
        if forward is None or _is_left_alone(module):
            continue
        if any(hasattr(parameter, "device_mesh") for parameter in module.parameters(recurse=False)):
            # Sharded: gradients are reduced by hooks of their own.
            continue
        module.forward = MethodType(forward, module)
        count += 1
    return count
