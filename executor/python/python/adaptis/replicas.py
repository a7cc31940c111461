"""Data parallelism within the stages: layers sharded by `fully_shard`, each over the ranks that hold the same place in
their pipelines.

          pipeline -->
      replica 0    rank 0   rank 1        x of its own
                     |        |           shards of a layer, gathered for a work; gradients are reduced after the last one
      replica 1    rank 2   rank 3        x of its own

1. All replicas run one plan, and go over to another one at the same boundary. The coordinator knows replica 0 alone: what
   its ranks have agreed on, each tells its peers.
2. A layer that moves goes shard by shard to the other rank of the same replica. Where it is not, its shards are on the
   device "meta", which have a shape and no memory.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adaptis import channels
from adaptis.runtime import TESTED


def is_sharded(tensor: Any) -> bool:
    """Whether it is one rank's part of a tensor. (A DTensor, whose import takes a second that most jobs do without.)"""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """What of it is here."""
    sharded: Any = tensor
    return sharded.detach().to_local() if is_sharded(tensor) else tensor


def like(part: Tensor, target: Any) -> Tensor:
    """A part as what it is a part of."""
    from torch.distributed.tensor import DTensor

    mesh, placements = target.device_mesh, target.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=target.shape, stride=target.stride())


def placed(value: Tensor, target: Any) -> Tensor:
    """A whole tensor as one sharded as the target is, if that is sharded and it is not."""
    if not is_sharded(target) or is_sharded(value) or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    here = value.to(target.device)
    return distribute_tensor(here, target.device_mesh, target.placements, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """All of it. To be called on every replica."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def modules_of(layer: nn.Module) -> list[Any]:
    """The modules of a layer that `fully_shard` has been given."""
    return [module for module in layer.modules() if hasattr(module, "set_requires_gradient_sync")]


def sync(modules: Sequence[Any], is_last: bool) -> None:
    """Before a backward: gradients are reduced, and parameters sharded again, after the last one of an iteration."""
    for module in modules:
        module.set_requires_gradient_sync(is_last, recurse=False)
        module.set_reshard_after_backward(is_last, recurse=False)
        module.set_is_last_backward(is_last)


def gather_no_more(modules: Sequence[Any]) -> None:
    """After the last work of an iteration or evaluation: what a backward has not sharded again is, too."""
    for module in modules:
        module.reshard()


def put_down(layer: nn.Module) -> None:
    """Frees the shards of a layer."""
    _convert(layer, torch.device("meta"))
    for module in modules_of(layer):
        for group in module._get_fsdp_state()._fsdp_param_groups:
            for parameter in group.fsdp_params:
                # It keeps a hold of them until it is given others.
                parameter._sharded_param_data = torch.empty(0)


def take_up(layer: nn.Module, device: torch.device) -> None:
    """Gives the shards of a layer memory."""
    _convert(layer, device)


def _convert(layer: nn.Module, device: torch.device) -> None:
    def converted(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if is_sharded(tensor) else tensor

    # As `to` and `to_empty` do it, which would take the buffers along.
    layer._apply(converted)


class Replicas:
    """This rank's peers: those with the same part of the pipeline in the other replicas."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.group: dist.ProcessGroup | None = None
        self._control: dist.ProcessGroup | None = None
        self.size = 1
        self.rank = 0
        found: Any = None
        for at, layer in enumerate(layers):
            for name, parameter in layer.named_parameters():
                if is_sharded(parameter):
                    _check(f"{at}.{name}", parameter, layer, found)
                    found = parameter.device_mesh  # type: ignore[attr-defined]
        if found is None:
            return
        for at, layer in enumerate(layers):
            for name, parameter in layer.named_parameters():
                if parameter.requires_grad and not is_sharded(parameter):
                    raise ValueError(
                        f"layers: {at}.{name} is not sharded and others are, so replicas would train it apart; call "
                        "fully_shard on every layer"
                    )
        self.group, self.size, self.rank = found.get_group(), found.size(), found.get_local_rank()
        self._control = channels.control(self.group)

    def gather(self, numbers: Tensor) -> Tensor:
        """The numbers of all replicas, in order. They are on the host."""
        if self.group is None:
            return numbers.unsqueeze(0)
        gathered = torch.empty(self.size * numbers.numel(), dtype=numbers.dtype, device="cpu")
        dist.all_gather_into_tensor(gathered, numbers.flatten(), group=self._control)
        return gathered.view(self.size, *numbers.shape)

    def told(self, own: Any) -> list[Any]:
        """What each replica says of itself, in order."""
        said = [own] * self.size
        if self.group is not None:
            dist.all_gather_object(said, own, group=self._control)
        return said

    def reduce(self, tensor: Tensor, how: Any = dist.ReduceOp.SUM) -> None:
        """In place, over all replicas."""
        if self.group is not None:
            dist.all_reduce(tensor, op=how, group=self.group)

    def of_first(self, text: str | None) -> str:
        """What replica 0 says."""
        said = [text]
        dist.broadcast_object_list(said, group=self._control, group_src=0)
        assert said[0] is not None, "replica 0 has something to say"
        return said[0]


def _check(name: str, parameter: Any, layer: nn.Module, before: Any) -> None:
    """Sees that a parameter is sharded in the way that is supported."""
    mesh = parameter.device_mesh
    if mesh.ndim != 1:
        raise ValueError(
            f"layers: {name} is sharded over a mesh of {mesh.ndim} dimensions; one is supported: fully_shard over the "
            "data-parallel part, without replication (HSDP) or tensor parallelism"
        )
    if not any(parameter is own for module in modules_of(layer) for own in module.parameters()):
        raise ValueError(f"layers: {name} is sharded by something else than fully_shard on its layer")
    if not all(hasattr(module._get_fsdp_state(), "_fsdp_param_groups") for module in modules_of(layer)):
        raise RuntimeError(
            f"layers: {name} is sharded by the fully_shard of torch {torch.__version__}, whose shards can't be moved; "
            f"{TESTED} is what it is tested with"
        )
    if before is not None and before != mesh:
        raise ValueError(f"layers: {name} is sharded over another mesh than the layers before it")
