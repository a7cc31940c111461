"""A GPT that learns Python's documentation, letter by letter.

    torchrun --nproc-per-node 4 gpt.py          a pipeline of four processes
    python gpt.py --plain                       the same in one process, without Adaptis

`--plan FILE` starts on an `adaptis.plan/1`. `--slow 1:3@10` makes rank 1 take three times as long for all it computes
from step 10 on, as a GPU does that gets too hot; no bit of the result changes.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from data import excerpts, letters

LETTERS = 128
WIDTH = 128
HEADS = 4
BLOCKS = 8
LENGTH = 128
MICROBATCHES = 8
ROWS = 4 * MICROBATCHES


class Embedding(nn.Module):
    """Letters and their places."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.letters(x) + self.places


class Block(nn.Module):
    """Attention to what came before, then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(WIDTH)
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.attended = nn.Linear(WIDTH, WIDTH)
        self.before_perceptron = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        found = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attended(found.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.before_perceptron(x))))


class Head(nn.Module):
    """Scores of the next letter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.scores = nn.Linear(WIDTH, LETTERS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.norm(x))


def model() -> list[nn.Module]:
    """The layers: what a plan deals out to the ranks."""
    return [Embedding(), *(Block() for _ in range(BLOCKS)), Head()]


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


class Slow(TorchDispatchMode):
    """Makes a processor slow for real: after each operation, forward or backward, it is kept busy in proportion to what
    it worked since the last one. Waiting for other ranks is no work."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.since = time.thread_time()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        now = time.thread_time()
        end = now + (self.factor - 1) * (now - self.since)
        while now < end:
            now = time.thread_time()
        self.since = now
        return result


def slowed(text: str) -> tuple[int, float, int]:
    """Reads RANK:FACTOR@STEP."""
    rank, _, rest = text.partition(":")
    factor, _, step = rest.partition("@")
    return int(rank), float(factor), int(step)


def plain_step(layers: list[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """The mean loss over the microbatches, and its gradients."""
    loss = torch.zeros(())
    for part, target in zip(x.chunk(MICROBATCHES), y.chunk(MICROBATCHES)):
        of_part = loss_fn(nn.Sequential(*layers)(part), target) / MICROBATCHES
        of_part.backward()
        loss += of_part.detach()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="one process, without Adaptis")
    parser.add_argument("--plan", type=Path, help="the plan to start on")
    parser.add_argument("--slow", type=slowed, metavar="RANK:FACTOR@STEP")
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
        x, y = excerpts(text, ROWS, LENGTH, seed=options.seed + step)
        is_slow = options.slow is not None and rank == options.slow[0] and step >= options.slow[2]
        with Slow(options.slow[1]) if is_slow else contextlib.nullcontext():
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
