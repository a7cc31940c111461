"""What the examples learn from: Python's own documentation, which comes with it, and drawn pictures."""

from __future__ import annotations

import re
from collections import Counter

import torch
from pydoc_data.topics import topics
from torch import Tensor


def text() -> str:
    """Chapters of Python's reference: half a million letters."""
    return "\n".join(topics[name] for name in sorted(topics))


def letters() -> Tensor:
    """The text as numbers below 128."""
    return torch.tensor(list(text().encode("ascii", "replace")))


def words(count: int) -> Tensor:
    """The text as numbers of its most frequent words and signs, below `count`; 0 stands for all others."""
    parts = re.findall(r"\w+|\S|\n", text())
    frequent = sorted(Counter(parts).items(), key=lambda item: (-item[1], item[0]))
    numbers = {word: at for at, (word, _) in enumerate(frequent[: count - 1], start=1)}
    return torch.tensor([numbers.get(part, 0) for part in parts])


def excerpts(tokens: Tensor, rows: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """So many pieces of a text, and the same one token on: what is to be foretold."""
    dice = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(tokens) - length - 1, (rows, 1), generator=dice)
    pieces = tokens[starts + torch.arange(length + 1)]
    return pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()


def pictures(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy colour pictures of a disc, a square, a ring or a cross, and which of them each shows."""
    dice = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, 4, (count,), generator=dice)
    middle = (torch.rand(count, 2, 1, 1, generator=dice) - 0.5) * size / 3
    radius = (0.15 + 0.2 * torch.rand(count, 1, 1, generator=dice)) * size
    axis = torch.arange(size) - (size - 1) / 2
    down, across = axis[:, None] - middle[:, 0], axis[None, :] - middle[:, 1]
    distance = (down**2 + across**2).sqrt()
    longest = torch.maximum(down.abs(), across.abs())
    shortest = torch.minimum(down.abs(), across.abs())
    shapes = torch.stack(
        [
            distance < radius,
            longest < radius,
            (distance < radius) & (distance > 0.6 * radius),
            (longest < radius) & (shortest < 0.3 * radius),
        ]
    )
    shown = shapes[kinds, torch.arange(count)].float()
    colours = 0.5 + torch.rand(count, 3, 1, 1, generator=dice)
    noise = 0.2 * torch.randn(count, 3, size, size, generator=dice)
    return shown[:, None] * colours + noise, kinds
