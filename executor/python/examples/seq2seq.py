"""An encoder and a decoder, as in T5, that learn to put the vowels back into a text without them.

    torchrun --nproc-per-node 4 seq2seq.py          a pipeline of four processes
    python seq2seq.py --plain                       the same in one process, without Adaptis

One line of layers all the same: what passes between them is a tuple of both sides' states and the mask of the source,
and each layer works on its own side. `--plan FILE` starts on an `adaptis.plan/1`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from data import excerpts, letters

LETTERS = 128
PADDING, BEGIN = 0, 1
VOWELS = torch.tensor(list(b"aeiouAEIOU"))
WIDTH = 128
HEADS = 4
DISTANCES = 32
BLOCKS = 4
LENGTH = 96
MICROBATCHES = 8
ROWS = 2 * MICROBATCHES

State = tuple[Tensor, Tensor, Tensor]
"""Of the encoder, of the decoder, and which letters of the source are no padding."""


class Embedding(nn.Module):
    """Both sides' letters."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, WIDTH)

    def forward(self, source: Tensor, before: Tensor) -> State:
        return self.letters(source), self.letters(before), source != PADDING


class Attention(nn.Module):
    """Attention to what may be seen, also by how far away it is. Written out: for a bias that learns, PyTorch's own takes
    another kernel without gradients than with them, and so where a layer is recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Linear(WIDTH, WIDTH, bias=False)
        self.keys_values = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.distances = nn.Embedding(2 * DISTANCES + 1, HEADS)

    def forward(self, x: Tensor, of: Tensor, seen: Tensor) -> Tensor:
        parts = self.queries(x), *self.keys_values(of).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        rows, columns = torch.arange(x.shape[1]), torch.arange(of.shape[1])
        away = (columns[None] - rows[:, None]).clamp(-DISTANCES, DISTANCES) + DISTANCES
        bias = self.distances(away).permute(2, 0, 1).masked_fill(~seen, float("-inf"))
        shares = (q @ k.transpose(-1, -2) * (HEADS / WIDTH) ** 0.5 + bias).softmax(dim=-1)
        return self.out((shares @ v).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Gated, as in T5."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * functional.gelu(self.gate(x)))


class Encoder(nn.Module):
    """Works on the first of the three and hands the others on."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))
        self.attention = Attention()
        self.perceptron = Perceptron()

    def forward(self, encoded: Tensor, decoded: Tensor, mask: Tensor) -> State:
        inner = self.norms[0](encoded)
        encoded = encoded + self.attention(inner, inner, mask[:, None, None])
        return encoded + self.perceptron(self.norms[1](encoded)), decoded, mask


class Decoder(nn.Module):
    """Works on the second: attention to its own past, and to all that the encoder gave."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(4))
        self.attention = Attention()
        self.across = Attention()
        self.perceptron = Perceptron()

    def forward(self, encoded: Tensor, decoded: Tensor, mask: Tensor) -> State:
        inner = self.norms[0](decoded)
        past = torch.ones(inner.shape[1], inner.shape[1], dtype=torch.bool).tril()
        decoded = decoded + self.attention(inner, inner, past)
        decoded = decoded + self.across(self.norms[1](decoded), self.norms[2](encoded), mask[:, None, None])
        return encoded, decoded + self.perceptron(self.norms[3](decoded)), mask


class Head(nn.Module):
    """Scores of the next letter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.scores = nn.Linear(WIDTH, LETTERS, bias=False)

    def forward(self, encoded: Tensor, decoded: Tensor, mask: Tensor) -> Tensor:
        return self.scores(self.norm(decoded))


def model() -> list[nn.Module]:
    """The layers: what a plan deals out to the ranks."""
    return [Embedding(), *(Encoder() for _ in range(BLOCKS)), *(Decoder() for _ in range(BLOCKS)), Head()]


def batch(text: Tensor, seed: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Texts without their vowels and, for the decoder, with them and one letter late; and the texts."""
    target, _ = excerpts(text, ROWS, LENGTH, seed)
    is_vowel = torch.isin(target, VOWELS)
    others_first = is_vowel.int().argsort(dim=1, stable=True)
    source = target.gather(1, others_first).masked_fill(is_vowel.gather(1, others_first), PADDING)
    return (source, functional.pad(target[:, :-1], (1, 0), value=BEGIN)), target


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def plain_step(layers: list[nn.Module], x: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """The mean loss over the microbatches, and its gradients."""
    loss = torch.zeros(())
    for *parts, target in zip(*(part.chunk(MICROBATCHES) for part in (*x, y))):
        value: Any = parts
        for layer in layers:
            value = layer(*value)
        of_part = loss_fn(value, target) / MICROBATCHES
        of_part.backward()
        loss += of_part.detach()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="one process, without Adaptis")
    parser.add_argument("--plan", type=Path, help="the plan to start on")
    options = parser.parse_args()

    text = letters()
    torch.manual_seed(options.seed)
    layers = model()
    rank = 0
    if options.plain:
        optimizer = AdamW(nn.ModuleList(layers).parameters(), lr=2e-3)
    else:
        import adaptis

        dist.init_process_group("gloo")
        rank = dist.get_rank()
        plan = adaptis.Plan.read(options.plan.read_text()) if options.plan else None
        schedule = adaptis.Schedule(layers, microbatches=MICROBATCHES, loss_fn=loss_fn, plan=plan, mode="adapt")
        optimizer = schedule.attach(AdamW(schedule.parameters(), lr=2e-3))

    for step in range(options.steps):
        began = time.perf_counter()
        x, y = batch(text, seed=options.seed + step)
        loss = plain_step(layers, x, y) if options.plain else schedule.step(x, target=y)
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and (step % 5 == 0 or step == options.steps - 1):
            print(f"step {step:3}  loss {loss:.4f}  {time.perf_counter() - began:.2f} s", flush=True)
    if rank == 0:
        print("final loss", float(loss).hex())
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
