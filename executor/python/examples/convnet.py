"""A residual network that learns to tell drawn shapes apart: pipelines are not for language models alone. Its early
layers cost most and its late ones hold most parameters, and its batch norms keep running means, which move with them.

    torchrun --nproc-per-node 4 convnet.py          a pipeline of four processes
    python convnet.py --plain                       the same in one process, without Adaptis

`--plan FILE` starts on an `adaptis.plan/1`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from data import pictures

SIZE = 32
SHAPES = 4
MICROBATCHES = 8
ROWS = 8 * MICROBATCHES


class Stem(nn.Module):
    """From colours to channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.convolution(x)))


class Residual(nn.Module):
    """Two convolutions beside a way around them."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        stride = 1 if before == channels else 2
        self.first = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.around: nn.Module = nn.Identity()
        if before != channels:
            self.around = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride=2, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inner)) + self.around(x))


class Head(nn.Module):
    """Scores of the shapes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scores = nn.Linear(channels, SHAPES)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x.mean(dim=(2, 3)))


def model() -> list[nn.Module]:
    """The layers: what a plan deals out to the ranks."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Residual(before, channels) for before, channels in zip(widths, widths[1:])]
    return [Stem(widths[0]), *blocks, Head(widths[-1])]


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target)


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
    options = parser.parse_args()

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
        x, y = pictures(ROWS, SIZE, seed=options.seed + step)
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
