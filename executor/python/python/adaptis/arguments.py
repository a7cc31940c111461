"""What a schedule is given: seen to be what it takes, and named where it is not."""

from __future__ import annotations

import operator
from typing import Any, Callable, Container, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from adaptis import guards, replicas, state
from adaptis.forms import Bundle
from adaptis.memory import storage


def listed(layers: Any) -> list[Any] | None:
    """What there is in a list, or in what is like one; None where it has no order."""
    if isinstance(layers, (nn.ModuleDict, dict, str)):
        return None
    try:
        return list(layers)
    except TypeError:
        return None


def whole(name: str, value: Any) -> int:
    """A whole number, of whatever type."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: {value!r} is not a whole number") from None


def modules(layers: Any) -> list[nn.Module]:
    """A model's layers, if they are such."""
    modules = listed(layers)
    if modules is None:
        raise TypeError(f"layers: a list of modules in their order, not a {type(layers).__name__}")
    if not modules:
        raise ValueError("layers: there are none")
    for at, layer in enumerate(modules):
        if not isinstance(layer, nn.Module):
            raise TypeError(f"layers: number {at} is a {type(layer).__name__}, not a module of torch")
        if any(is_lazy(part) for _, part in state.tensors_of(layer)):
            raise ValueError(f"layers: number {at} has parameters of no shape yet: run it once on some data before")
    return modules


def check_movable(layers: Sequence[nn.Module]) -> None:
    """Refuses what can't be moved from rank to rank, nor stood for."""
    for at, layer in enumerate(layers):
        for name, part in state.tensors_of(layer):
            if part.layout != torch.strided:
                raise ValueError(
                    f"layers: {name!r} of layer {at} is a tensor of {part.layout}, which does not move; keep it dense, or make it "
                    "in the forward"
                )
            if storage(part) is None:
                raise ValueError(
                    f"layers: {name!r} of layer {at} is a {type(part).__name__}, which has no memory of its own and does not "
                    "move; keep the tensors that it wraps as buffers, and make it of them in the forward"
                )
            try:
                state.check_blank(part)
            except RuntimeError as error:
                raise ValueError(f"layers: {name!r} of layer {at} is of {part.dtype}, which does not move: {error}") from error


def check_unused(layers: Sequence[nn.Module], dealt_out: Container[nn.Module]) -> None:
    """Refuses layers that another schedule has: those of other ranks hold nothing here."""
    for at, layer in enumerate(layers):
        if layer in dealt_out:
            raise ValueError(
                f"layers: number {at} is in another schedule of this process, which keeps it on one rank alone; build the layers "
                "anew and take their state by restore, or train all in one schedule"
            )


def check_memory(layers: Sequence[nn.Module]) -> None:
    """Refuses parameters that share memory and are not one, of which some are trained: they would part when their layers
    move. Frozen ones stay alike, and what has no memory of its own, as a wrapper, is not looked into."""
    by_storage: dict[int, list[tuple[int, int, int, str, nn.Parameter]]] = {}
    for at, layer in enumerate(layers):
        for name, part in layer.named_parameters():
            if not replicas.is_sharded(part) and part.is_contiguous() and part.numel() > 0 and part.data_ptr() != 0:
                begin, size = part.data_ptr(), part.numel() * part.element_size()
                by_storage.setdefault(part.untyped_storage().data_ptr(), []).append((begin, begin + size, at, name, part))
    for among in by_storage.values():
        among.sort(key=lambda found: found[:3])
        for (_, end, other_at, other, owner), (begin, _, at, name, part) in zip(among, among[1:]):
            if begin < end and part is not owner and (part.requires_grad or owner.requires_grad):
                raise ValueError(
                    f"layers: {name!r} of layer {at} lies in the memory of {other!r} of layer {other_at} and is another "
                    "parameter; tie them by the parameter itself, as head.weight = embedding.weight"
                )


def check_loss(loss_fn: Any, layers: Sequence[nn.Module]) -> None:
    if isinstance(loss_fn, type):
        raise TypeError(f"loss_fn: {loss_fn.__name__} is a class; give one of its kind, as {loss_fn.__name__}()")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn: a function of the output and the target, not a {type(loss_fn).__name__}")
    of_loss = loss_fn.named_parameters() if isinstance(loss_fn, nn.Module) else iter(())
    for name, part in of_loss:
        guards.refuse_parameter(part, layers, f"{name!r}, which requires a gradient")


def device_of(layers: Sequence[nn.Module], device: torch.device | str | None) -> torch.device:
    if device is not None:
        try:
            return torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"device: {device!r} is none of torch's: {error}") from error
    found = {tensor.device for layer in layers for _, tensor in state.tensors_of(layer)}
    if len(found) > 1:
        raise ValueError(f"layers: they are on several devices: {sorted(map(str, found))}")
    return found.pop() if found else torch.device("cpu")


def in_pieces(
    x: Any, target: Any, pieces: Callable[[Any], int]
) -> tuple[list[Bundle] | None, list[Any] | None, Exception | None]:
    """A batch and its targets in as many pieces as `pieces` says, or why they can't be cut."""
    try:
        inputs = None if x is None else _cut(x, pieces(x), "x")
        targets: Any = None if target is None else _cut(target, pieces(target), "target")
        if inputs and targets:
            # What is flattened has several rows for one, what is merged one for several.
            of_x, of_target = (pieces[0][0].shape[0] * len(pieces) for pieces in (inputs, targets))
            if of_target % of_x and of_x % of_target:
                raise ValueError(f"target: {of_target} rows for {of_x} of x, of which neither is a multiple of the other")
    except (TypeError, ValueError) as error:
        return None, None, error
    if targets is not None and isinstance(target, Tensor):
        targets = [part[0] for part in targets]
    return inputs, targets, None


def _cut(data: Any, microbatches: int, name: str) -> list[Bundle]:
    if not isinstance(data, (Tensor, tuple, list)):
        raise TypeError(f"{name}: a tensor or a tuple of tensors with a first dimension to cut, not a {type(data).__name__}")
    parts = (data,) if isinstance(data, Tensor) else tuple(data)
    if not parts:
        raise ValueError(f"{name}: an empty tuple; a tensor or a tuple of tensors is cut into microbatches")
    for part in parts:
        if not isinstance(part, Tensor) or part.dim() == 0:
            found = "a tensor without one" if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise TypeError(f"{name}: a tensor or a tuple of tensors with a first dimension to cut, not {found}")
        # A mask for the whole batch would be cut as if it had a row for each.
        if name == "x" and microbatches > 1 and part.shape[0] != parts[0].shape[0]:
            raise ValueError(
                f"{name}: tensors of {parts[0].shape[0]} and of {part.shape[0]} rows; each is cut along its first dimension, "
                "so give them one row for each of the batch (a mask for all of it belongs in a buffer of the layer)"
            )
        if part.shape[0] == 0:
            raise ValueError(f"{name}: it has no rows")
        if part.shape[0] % microbatches:
            raise ValueError(f"{name}: {part.shape[0]} rows can't be cut into {microbatches} equal microbatches")
    cut = [part.split(part.shape[0] // microbatches) for part in parts]
    return [tuple(pieces) for pieces in zip(*cut)]
