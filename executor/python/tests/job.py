"""A training script as its user writes it: a perceptron in many layers, three of which are dear."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

import adaptis

WIDTH = 192
MICROBATCHES = 4
ROWS = 64


class Layer(nn.Module):
    """One of a stack; `times` says how dear."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(times))

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.inner:
            x = x + 0.1 * functional.gelu(linear(x))
        return x


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--losses", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(5)
    # All the dear ones at the beginning: an even split gives the first rank nearly everything.
    layers = [Layer(times) for times in (12, 12, 12, 1, 1, 1, 1, 1)]
    schedule = adaptis.Schedule(layers, microbatches=MICROBATCHES, loss_fn=functional.mse_loss)
    optimizer = schedule.attach(AdamW(schedule.parameters(), lr=1e-3))
    losses = []
    for step in range(options.steps):
        torch.manual_seed(step)
        x = torch.randn(ROWS * MICROBATCHES, WIDTH)
        losses.append(schedule.step(x, target=x.flip(1)).item())
        optimizer.step()
        optimizer.zero_grad()
    if rank == 0:
        placed = schedule.plan.device_of_layers()
        options.losses.write_text(json.dumps({"losses": [loss.hex() for loss in losses], "placed": placed}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
