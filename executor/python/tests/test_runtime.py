"""A torch that was not tested: used with a warning if it has what is needed, and refused by name if not."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist
from torch.amp import GradScaler

from adaptis import Schedule
from models import loss_fn, model
from ranks import in_ranks
from refusing import assert_said


def _under(rank: int, world: int) -> list[str]:
    """What is said under the version that is there, another one, and others that lack something."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("adaptis").addHandler(handler)
    version, isend, search = torch.__version__, dist.isend, GradScaler._unscale_grads_

    def older(tensor: Any, dst: int, group: Any = None, tag: int = 0) -> Any:
        return isend(tensor, dst, group, tag)

    try:
        Schedule(model(), 1, loss_fn)
        said.append("-")
        torch.__version__ = "2.99.1+cpu"
        schedule = Schedule(model(), 1, loss_fn)
        torch.__version__ = "2.3.0"
        dist.isend = older
        try:
            Schedule(model(), 1, loss_fn)
        except RuntimeError as error:
            said.append(str(error))
        del GradScaler._unscale_grads_
        try:
            schedule.attach(GradScaler("cpu"))
        except RuntimeError as error:
            said.append(str(error))
    finally:
        torch.__version__, dist.isend, GradScaler._unscale_grads_ = version, isend, search
        logging.getLogger("adaptis").removeHandler(handler)
    return said


def test_what_a_torch_has_is_looked_for_and_its_version_is_told() -> None:
    first, second = in_ranks(2, _under)
    expected = [
        "-",
        "tested with torch 2.15 and not with this one, 2.99.1+cpu",
        "torch 2.3.0 has no group_dst in torch.distributed.isend, which adaptis.Schedule needs; 2.15 is what",
        "torch 2.3.0: its GradScaler does not let its search",
    ]
    assert_said(first, expected)
    assert second == [first[0], *first[2:]], "one rank warns"
