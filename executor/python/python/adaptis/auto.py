"""Observes jobs that know nothing of Adaptis: `adaptis run` has it imported by every Python that it starts.

It waits until the job imports torch.distributed.pipelining, and then has the stages that the job makes measured. Nothing is
imported before the job does, and whatever goes wrong here is the job's business no more than a warning is.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import sys
from types import ModuleType
from typing import Any, Sequence

STAGE = "torch.distributed.pipelining.stage"


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the module be found by others, and adds to its execution."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != STAGE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _prepare(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """From now on, once a process."""
    if STAGE in sys.modules:
        _prepare(sys.modules[STAGE])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _prepare(module: ModuleType) -> None:
    base = module._PipelineStageBase
    if getattr(base, "_adaptis_is_prepared", False):
        return
    base._adaptis_is_prepared = True
    make = base.__init__
    stages: list[Any] = []
    begun: list[bool] = []

    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        if begun:
            return
        stages.append(self)
        plain = self.forward_one_chunk

        def first(*given: Any, **options: Any) -> Any:
            # With the first forward all stages of the process are made.
            if not begun:
                begun.append(True)
                for stage in stages:
                    stage.__dict__.pop("forward_one_chunk", None)
                _begin(list(stages))
                stages.clear()
            current = self.__dict__.get("forward_one_chunk", plain)
            return (plain if current is first else current)(*given, **options)

        self.forward_one_chunk = first

    base.__init__ = __init__


def _begin(stages: Sequence[Any]) -> None:
    try:
        from adaptis.stages import observe_stages

        observe_stages(stages)
    except Exception as error:  # noqa: BLE001 - the job is not to fail for our sake
        logging.getLogger("adaptis").warning("this job is not observed: %s: %s", type(error).__name__, error)
