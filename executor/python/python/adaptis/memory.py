"""Where tensors lie. Some have no memory of their own, as sparse and nested ones and the wrappers of others."""

from __future__ import annotations

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


def storages_of(module: nn.Module) -> set[int]:
    """Where the parameters of a module lie."""
    return {own.data_ptr() for part in module.parameters() if (own := storage(part)) is not None}
