"""Small models whose layers differ, and the same trained in one process without Adaptis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 8
WORDS = 17


class Block(nn.Module):
    """A norm, two products, dropout and a residual."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.gelu(self.up(self.norm(x)))
        return x + functional.dropout(self.down(inner), self.dropout, self.training)


class Raw(nn.Module):
    """A product with a parameter of its own, and a buffer that it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean(dim=(0, 1)))
        return x @ self.weight + x


class Pair(nn.Module):
    """Hands a second tensor on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), x


class Join(nn.Module):
    """Takes two."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(x) + y


def model(seed: int = 0, dropout: float = 0.0) -> list[nn.Module]:
    """Nine layers of all kinds."""
    torch.manual_seed(seed)
    return [
        nn.Embedding(WORDS, WIDTH),
        Block(dropout),
        Raw(),
        Pair(),
        Join(),
        Block(dropout),
        Block(dropout),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, WORDS),
    ]


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy over words."""
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def batch(step: int, rows: int = 8, words: int = 5) -> tuple[Tensor, Tensor]:
    """An iteration's data."""
    generator = torch.Generator().manual_seed(1000 + step)
    text = torch.randint(0, WORDS, (rows, words + 1), generator=generator)
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def through(layers: list[nn.Module], x: Any) -> Any:
    """The output of a model whose layers pass one tensor or several."""
    value: Any = (x,)
    for layer in layers:
        value = layer(*value)
        value = value if isinstance(value, tuple) else (value,)
    return value[0]


def reference(steps: int, microbatches: int, make: Any = model) -> tuple[list[float], list[nn.Module]]:
    """Plain PyTorch in one process: losses and the trained layers."""
    layers = make()
    optimizer = torch.optim.AdamW(nn.ModuleList(layers).parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        x, y = batch(step)
        total = 0.0
        for part, target in zip(x.chunk(microbatches), y.chunk(microbatches)):
            output = through(layers, part)
            loss = loss_fn(output, target)
            (loss / microbatches).backward()
            total += loss.item()
        losses.append(total / microbatches)
        optimizer.step()
        optimizer.zero_grad()
    return losses, layers


X = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
Y = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(2))


def linears(count: int = 4) -> list[nn.Module]:
    """Layers of nothing but products, with what they may be trained on."""
    torch.manual_seed(3)
    return [nn.Linear(WIDTH, WIDTH) for _ in range(count)]
