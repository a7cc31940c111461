"""The torch that is there: what of it is used is looked for, never inferred from its version.

1. What lacks is refused by name, before anything runs.
2. A version that was not tested, and lacks nothing, is used with a warning: what it does otherwise can't be seen from
   outside.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import batchnorm
from torch.optim import Optimizer
from torch.utils import _device

logger = logging.getLogger("adaptis")

TESTED = "2.15"
"""What all is tested with."""

Need = tuple[Any, str, tuple[str, ...]]
"""A holder, the name of something in it, and arguments that this takes."""

OF_SCHEDULE: Sequence[Need] = (
    (dist, "isend", ("group_dst", "tag")),
    (dist, "irecv", ("group_src", "tag")),
    (dist, "send", ("group_dst",)),
    (dist, "recv", ("group_src",)),
    (dist, "broadcast", ("group_src",)),
    (dist, "gather_object", ("group_dst",)),
    (dist, "all_gather_into_tensor", ("group",)),
    (torch, "get_autocast_dtype", ()),
    (torch.autograd.graph, "saved_tensors_hooks", ()),
    (Optimizer, "register_load_state_dict_post_hook", ()),
    (nn.Module, "_compiled_call_impl", ()),
    (Tensor, "_post_accumulate_grad_hooks", ()),
    (torch.ops.aten, "convolution_backward", ()),
    (torch.ops.aten, "embedding_dense_backward", ()),
    (torch._C, "_current_graph_task_id", ()),
    (torch._C, "_storage_Use_Count", ()),
    (torch._C, "_are_functorch_transforms_active", ()),
    (torch._C, "_len_torch_function_stack", ()),
    (torch._C, "_get_function_stack_at", ()),
    (forward_ad, "_current_level", ()),
    (_device, "DeviceContext", ()),
    (batchnorm, "_NormBase", ()),
)


def check(what: str, needs: Sequence[Need], *, is_first: bool) -> None:
    """Refuses a torch that lacks something, and warns of one that was not tested, if this is the first rank."""
    lacking = [text for need in needs for text in _lacking(*need)]
    if lacking:
        all_of_it = ", no ".join(lacking)
        raise RuntimeError(
            f"torch {torch.__version__} has no {all_of_it}, which {what} needs; {TESTED} is what it is tested with"
        )
    if is_first and not _is_tested():
        text = "%s is tested with torch %s and not with this one, %s, which has all that it needs"
        logger.warning(text, what, TESTED, torch.__version__)


def _is_tested() -> bool:
    return torch.__version__.split("+")[0].split(".")[:2] == TESTED.split(".")


def _lacking(holder: Any, name: str, arguments: tuple[str, ...]) -> list[str]:
    called = f"{getattr(holder, '__name__', holder)}.{name}"
    if not hasattr(holder, name):
        return [called]
    if not arguments:
        return []
    taken = inspect.signature(getattr(holder, name)).parameters
    return [f"{argument} in {called}" for argument in arguments if argument not in taken]
