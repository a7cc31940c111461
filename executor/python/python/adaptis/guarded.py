"""Hooks that are nothing to the job that they are in."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Callable

import torch

if TYPE_CHECKING:
    from adaptis.observe import Observation


class Guarded:
    """A hook that never fails the job: at the first error its observation ends."""

    def __init__(self, hook: Callable[..., None], of: Observation) -> None:
        self._hook = hook
        self._of = of

    def __call__(self, *arguments: Any, **named: Any) -> None:
        # What is compiled would be traced through here.
        if torch.compiler.is_compiling() or self._of.has_ended:
            return
        self._of.run_guarded(self._hook, arguments, named)

    def __reduce__(self) -> tuple[Any, ...]:
        # A model that is stored whole is loaded without us: this takes what a hook is given, and does nothing.
        return getattr, (contextlib.nullcontext(), "__exit__")
