"""Where tensors lie. Some have no memory of their own, as sparse and nested ones and the wrappers of others."""

from __future__ import annotations

from typing import Iterable

import torch
from torch import Tensor, nn

from adaptis.replicas import local


def storage(part: Tensor) -> torch.UntypedStorage | None:
    """A tensor's memory, if it has such; of a sharded one that of what is here."""
    try:
        own = local(part).untyped_storage()
        own.data_ptr()
    except RuntimeError:
        return None
    return own


def storage_of(part: Tensor) -> tuple[int, int] | None:
    """Where it begins, and how much it is."""
    own = storage(part)
    return None if own is None else (own.data_ptr(), own.nbytes())


def sampled(part: Tensor, count: int = 1024) -> bytes:
    """Some of a tensor's numbers, spread over all. Waits for a GPU."""
    flat = part.detach().reshape(-1)
    return repr(flat[:: max(1, flat.numel() // count)][:count].tolist()).encode()


def is_shared(part: Tensor) -> bool:
    """Whether something else holds a tensor's memory as well."""
    own = storage(part)
    # This tensor is one that does, and so is what was asked for.
    return own is not None and torch._C._storage_Use_Count(own._cdata) > 2


def storages_of(module: nn.Module) -> set[int]:
    """Where the parameters of a module lie."""
    return {own.data_ptr() for part in module.parameters() if (own := storage(part)) is not None}


def device_of(layers: Iterable[nn.Module]) -> torch.device:
    """The device that all layers are on.

    Raises ValueError where they are on several.
    """
    found = {part.device for layer in layers for part in layer.parameters()}
    if len(found) > 1:
        raise ValueError(f"layers on several devices can't be measured yet: {', '.join(sorted(map(str, found)))}")
    return found.pop() if found else torch.device("cpu")
