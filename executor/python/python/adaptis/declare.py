"""A job as those know it who only look on: put together from what each of its ranks has seen.

    rank -- word: its stages' layers, and the order in which it ran them --> all ranks -- job -->  each the same Job
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import Any, Mapping, Sequence

import torch.distributed as dist

from adaptis._native import Plan, PlanError
from adaptis.facts import Fact

logger = logging.getLogger("adaptis")


@dataclass(frozen=True)
class Job:
    """What the coordinator is told."""

    run: str
    devices: list[str]
    layers: list[Fact]
    microbatches: int
    plan: Plan
    # First layer of each stage.
    first: dict[int, int]


class Declaration:
    """This rank's part of it. Ranks tell one another by the store of torch.distributed, and none waits for another."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        self.world = world
        self._word: str | None = None

    @property
    def is_told(self) -> bool:
        return self._word is not None

    def tell(self, word: str) -> None:
        """Puts what this rank knows where the others find it."""
        self._word = word
        if self.world > 1:
            _store().set(f"adaptis/{self.rank}", word)

    def of_all(self) -> Job | None:
        """The job, once all ranks have told of their layers."""
        others = [f"adaptis/{rank}" for rank in range(self.world) if rank != self.rank]
        if others and not _store().check(others):
            return None
        assert self._word is not None
        return job([self._word if rank == self.rank else _store().get(f"adaptis/{rank}") for rank in range(self.world)])


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def word(run: str, stages: Mapping[int, Sequence[Fact]], order: Sequence[str]) -> str:
    """What a rank tells: its layers by stage, and its order in an iteration (`0F0`, `0B0`...)."""
    facts = {str(index): [asdict(fact) for fact in of_stage] for index, of_stage in stages.items()}
    return json.dumps({"run": run, "stages": facts, "order": list(order)})


def job(words: Sequence[str | bytes]) -> Job:
    """What the words of all ranks come to, in order of rank."""
    told = [json.loads(one) for one in words]
    facts: dict[int, list[Fact]] = {}
    owner: dict[int, int] = {}
    for rank, one in enumerate(told):
        for index, of_stage in one["stages"].items():
            facts[int(index)] = [Fact(**fact) for fact in of_stage]
            owner[int(index)] = rank
    first: dict[int, int] = {}
    layers: list[Fact] = []
    for index in sorted(facts):
        first[index] = len(layers)
        layers += facts[index]
    if not layers:
        raise ValueError("none of the layers takes and returns tensors")
    layers = [replace(fact, name=f"{at}.{fact.name.partition('.')[2]}") for at, fact in enumerate(layers)]
    orders = [list(one["order"]) for one in told]
    microbatches = len({text for order in orders for text in order if text.startswith("0F")}) or 1
    devices = [f"rank{rank}" for rank in range(len(told))]
    stages = [(first[index], first[index] + len(facts[index]), owner[index]) for index in sorted(facts)]
    return Job(told[0]["run"], devices, layers, microbatches, _plan(stages, devices, orders, microbatches), first)


def _plan(stages: list[tuple[int, int, int]], devices: list[str], orders: list[list[str]], microbatches: int) -> Plan:
    """The plan that the job runs, as seen; where its order is none of ours, the same stages with all F before all B."""
    text = {
        "format": "adaptis.plan/1",
        "epoch": 1,
        "parent": 0,
        "layers": stages[-1][1],
        "devices": devices,
        "stages": [{"layers": [first, end], "device": device, "recompute": []} for first, end, device in stages],
    }
    plain = []
    for device in range(len(devices)):
        own = [at for at, (_, _, owner) in enumerate(stages) if owner == device]
        forwards = [f"{at}F{microbatch}" for at in own for microbatch in range(microbatches)]
        plain.append(forwards + [f"{at}B{microbatch}" for at in reversed(own) for microbatch in range(microbatches)])
    for programs in (orders, plain):
        try:
            plan = Plan.read(json.dumps({**text, "programs": programs}))
        except PlanError as error:
            logger.info("the order of this job is none of ours: %s", error)
            continue
        findings = plan.findings(microbatches)
        if not findings:
            return plan
        logger.info("the order of this job is none of ours: %s", "; ".join(findings))
    return Plan.even(stages[-1][1], devices, microbatches)
