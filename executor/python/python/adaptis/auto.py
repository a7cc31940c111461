"""Observes jobs that know nothing of Adaptis: `adaptis run` has it imported by every Python that it starts.

    torch.distributed.pipelining    the stages that the job makes are measured
    torch.optim                     of a job that has no stages, and does not import the package itself, the steps

It waits until the job imports one of them. Nothing is imported before the job does, and whatever goes wrong here is the
job's business no more than a warning is.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import os
import sys
import weakref
from types import ModuleType
from typing import Any, Callable, Sequence

STAGE = "torch.distributed.pipelining.stage"
OPTIMIZER = "torch.optim.optimizer"
STEPS_BEFORE = 3
"""Steps of an optimizer after which a job is one that says nothing of its layers."""


class _Finder(importlib.abc.MetaPathFinder):
    """Lets a module be found by others, and adds to its execution."""

    def __init__(self, name: str, prepare: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.prepare = prepare

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        found = (other.find_spec(name, path, target) for other in list(sys.meta_path) if hasattr(other, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        loader = None if spec is None else spec.loader
        if loader is None or not hasattr(loader, "exec_module"):
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            # It may load other modules, too.
            vars(loader).pop("exec_module", None)
            execute(module)
            try:
                self.prepare(module)
            except Exception as error:  # noqa: BLE001 - the job's import is not to fail for our sake
                _tell(error)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """From now on, once a process."""
    for name, prepare in ((STAGE, _prepare), (OPTIMIZER, _count_steps)):
        if name in sys.modules:
            prepare(sys.modules[name])
        elif not any(isinstance(finder, _Finder) and finder.name == name for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder(name, prepare))


def _count_steps(module: ModuleType) -> None:
    """Has the steps of a job's optimizer measured, unless more is known of the job by then."""
    counts: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
    followed: list[Any] = []
    torch = sys.modules["torch"]

    def stepped(optimizer: Any, *_: Any) -> None:
        # What is done here is neither to be traced nor, below, to be captured.
        if torch.compiler.is_compiling():
            return
        if followed:
            if followed[0] is not None:
                followed[0].ended(optimizer)
            return
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return
        counts[optimizer] = counts.get(optimizer, 0) + 1
        if counts[optimizer] < STEPS_BEFORE:
            return
        # The hook stays where it is: torch goes through them one by one.
        followed.append(None)
        # Whoever imports the package says by himself what is measured; stages have it imported.
        if "adaptis" not in sys.modules and is_first():
            followed[0] = _begin_steps(list(counts))
        counts.clear()

    if not getattr(module, "_adaptis_is_prepared", False):
        setattr(module, "_adaptis_is_prepared", True)
        module.register_optimizer_step_post_hook(stepped)


def is_first() -> bool:
    """Of processes that train alike; where they can't be told apart, each is."""
    ranks = [os.environ.get(name, "") for name in ("RANK", "SLURM_PROCID")]
    return next((int(rank) == 0 for rank in ranks if rank.isdigit()), True)


def _begin_steps(optimizers: Sequence[Any]) -> Any:
    try:
        from adaptis.steps import begin

        return begin(optimizers)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the job is not to fail for our sake
        _tell(error)
        return None


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


def _tell(error: BaseException) -> None:
    logging.getLogger("adaptis").warning("this job is not observed: %s: %s", type(error).__name__, error)


def _begin(stages: Sequence[Any]) -> None:
    try:
        from adaptis.stages import observe_stages

        observe_stages(stages)
    except Exception as error:  # noqa: BLE001 - the job is not to fail for our sake
        _tell(error)
