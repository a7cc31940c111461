"""Stages of torch.distributed.pipelining, as they are observed: what each does, for which microbatch, in which order."""

from __future__ import annotations

import logging
from typing import Any, Sequence

import torch.distributed as dist
from torch import nn

from adaptis import runtime
from adaptis.observe import Observation, Piece, begin
from adaptis.session import Settings

logger = logging.getLogger("adaptis")


def observe_stages(stages: Sequence[Any]) -> Observation | None:
    """Measures the stages that this process has. None where nothing is."""
    settings = Settings.found(None)
    if settings is None or not stages:
        return None
    kind = type(stages[0])
    needs = [(kind, f"{work}_one_chunk", ()) for work in ("forward", "backward", "backward_weight")]
    runtime.check("observing its stages", [*needs, (stages[0], "dw_builder", ())], is_first=dist.get_rank() == 0)
    group = stages[0].group
    if group is not None and dist.get_global_rank(group, 0) != 0:
        return None
    if len({stage.stage_index for stage in stages}) < len(stages):
        logger.warning("several pipelines in one process are not measured")
        return None
    stages = sorted(stages, key=lambda stage: stage.stage_index)
    pieces = [Piece(stage.stage_index, parts_of(stage.submod)) for stage in stages]
    observation = begin(pieces, settings, stages[0].group_rank, stages[0].group_size, is_of_all=True)
    if observation is not None:
        observation.are_stages()
        for stage in stages:
            _watch(observation, stage)
    return observation


def _watch(observation: Observation, stage: Any) -> None:
    at = stage.stage_index
    forward, backward, weights = stage.forward_one_chunk, stage.backward_one_chunk, stage.backward_weight_one_chunk
    # Without a `dw_builder` the first stage's I does nothing, and its W is a whole backward.
    is_late = at == 0 and stage.dw_builder is None

    def is_trained() -> bool:
        """Not so in a schedule's `eval`, whose backwards do nothing."""
        return bool(getattr(stage, "has_backward", True))

    def forward_one_chunk(chunk: int, *arguments: Any, **named: Any) -> Any:
        if not is_trained():
            return forward(chunk, *arguments, **named)
        return observation.within(at, "F", chunk, lambda: forward(chunk, *arguments, **named))

    def backward_one_chunk(chunk: int, *arguments: Any, **named: Any) -> Any:
        # The third of the method's arguments, or by name.
        is_full = named.get("full_backward", arguments[1] if len(arguments) > 1 else True)
        if not is_trained() or (not is_full and is_late):
            return backward(chunk, *arguments, **named)
        return observation.within(at, "B" if is_full else "I", chunk, lambda: backward(chunk, *arguments, **named))

    def backward_weight_one_chunk(chunk: int, *arguments: Any, **named: Any) -> Any:
        if not is_trained():
            return weights(chunk, *arguments, **named)
        if is_late:
            return observation.within(at, "B", chunk, lambda: weights(chunk, *arguments, **named))
        return observation.weights(at, chunk, lambda: weights(chunk, *arguments, **named))

    stage.forward_one_chunk = forward_one_chunk
    stage.backward_one_chunk = backward_one_chunk
    stage.backward_weight_one_chunk = backward_weight_one_chunk


def parts_of(module: nn.Module) -> list[nn.Module]:
    """The layers of a stage: the members of its lists, and what stands beside them, in the order of their definition."""
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return [part for child in module.children() for part in (parts_of(child) if _is_list(child) else [child])]
    if any(_is_list(child) for child in module.children()):
        return [part for child in module.children() for part in (parts_of(child) if _is_list(child) else [child])]
    return [module]


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))
