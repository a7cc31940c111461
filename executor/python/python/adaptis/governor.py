"""Which iterations have their layers measured, so that measuring keeps within its budget.

1. All are at first. Then, where the hooks take more than their share, every second one, fourth one and so on by a draw that
   depends on the step alone: it falls in with no rhythm of the job, and what a rank with dearer hooks measures, all do.
2. One slow iteration changes nothing: the median of several counts, and the stride moves by one doubling at a time.
"""

from __future__ import annotations

import statistics
from collections import deque

from adaptis import chance

BUDGET = 0.0015
"""Share of an iteration that hooks may take, as far as their own clock tells. It sees less than half of what they cost: not
how PyTorch calls them, nor what they drive out of the processor's caches."""
SAMPLED_AT_FIRST = 12
"""Iterations that are measured whatever it costs."""
STRIDE_MAX = 64
"""Of so many iterations, one is measured on the average at least."""
SHARES = 5
"""Iterations whose shares count."""


class Governor:
    """Decides, step by step."""

    def __init__(self) -> None:
        self.stride = 1
        self._sampled = 0
        self._shares: deque[float] = deque(maxlen=SHARES)

    def is_due(self, step: int) -> bool:
        """Whether the layers of this iteration are measured."""
        return chance.key(0, step, 0, 0) % self.stride == 0

    def due_from(self, step: int) -> int:
        """The first iteration from this one on whose layers are measured."""
        while not self.is_due(step):
            step += 1
        return step

    def spent(self, share: float) -> None:
        """What the hooks took of an iteration that was measured."""
        self._sampled += 1
        self._shares.append(share)
        if self._sampled < SAMPLED_AT_FIRST:
            return
        usual = statistics.median(self._shares)
        if usual / self.stride > BUDGET and self.stride < STRIDE_MAX:
            self.stride *= 2
        elif usual / self.stride < BUDGET / 3 and self.stride > 1:
            self.stride //= 2
