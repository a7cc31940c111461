"""What looks at all gradients of a model, wherever its layers are: their norm, and whether one of them is infinite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from adaptis.replicas import local
from adaptis.runtime import TESTED

if TYPE_CHECKING:
    from adaptis.schedule import Schedule


PART = 1 << 24
"""Elements that are looked at together: in double precision they take memory."""


def clip_norm(schedule: Schedule, max_norm: float, error_if_nonfinite: bool) -> Tensor:
    """Scales gradients down to a global norm; the norm before. Squares are added in the order of the layers."""
    squares = torch.zeros(len(schedule.layers), dtype=torch.float64, device=schedule.device)
    gradients = []
    seen: set[int] = set()
    for at, layer in schedule._own():
        for parameter in layer.parameters():
            if parameter.grad is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                gradient = local(parameter.grad)
                gradients.append(gradient)
                dense = gradient.coalesce().values() if gradient.is_sparse else gradient
                for part in dense.detach().reshape(-1).split(PART):
                    squares[at] += part.abs().double().square().sum()
    dist.all_reduce(squares, group=schedule.group)
    schedule.replicas.reduce(squares)
    total = torch.zeros((), dtype=torch.float64, device=schedule.device)
    for square in squares:
        total += square
    norm = total.sqrt()
    if error_if_nonfinite and not norm.isfinite():
        raise RuntimeError(f"clip_grad_norm_: the norm of all gradients is {norm.item()}, and they can't be scaled by it")
    # As torch.nn.utils.clip_grad_norm_ has it.
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    # To look whether it is 1 would be to wait for a GPU; to scale by 1 changes no bit.
    if schedule.device.type != "cpu" or not factor >= 1.0:
        for gradient in gradients:
            gradient.mul_(factor.to(gradient.device))
    return norm.float()


def share(schedule: Schedule, scaler: GradScaler) -> None:
    """Makes a scaler skip a step on all ranks if a gradient of any of them is infinite."""
    unscale: Any = getattr(scaler, "_unscale_grads_", None)
    if unscale is None:
        raise RuntimeError(
            f"torch {torch.__version__}: its GradScaler does not let its search for infinite gradients be shared among "
            f"ranks; {TESTED} is what it is tested with, and bfloat16 needs no scaler"
        )
    # The last layer's rank is not the only one that has a scale.
    scaler.scale(torch.ones((), device=schedule.device))

    setattr(scaler, "_unscale_grads_", _OfAll(schedule, unscale))


class _OfAll:
    """Looks for infinite gradients on all ranks."""

    def __init__(self, schedule: Schedule, unscale: Any) -> None:
        self._schedule = schedule
        self._unscale = unscale

    def __call__(
        self, optimizer: Optimizer, inv_scale: Tensor, found: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        for of_device in self._unscale(optimizer, inv_scale, found, allow_fp16).values():
            if of_device is not found:
                found += of_device.to(found.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._schedule.group)
        self._schedule.replicas.reduce(found, dist.ReduceOp.MAX)
        # Also where no gradient is.
        return {found.device: found}

    def __reduce__(self) -> tuple[Any, ...]:
        # A scaler that is stored or copied is torch's again.
        return getattr, (self._unscale.__self__, "_unscale_grads_")
