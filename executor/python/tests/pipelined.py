"""A script of torch.distributed.pipelining that knows nothing of Adaptis, or no more than a line."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

WIDTH = 128


class Block(nn.Module):
    """Two products and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Part(nn.Module):
    """What a rank holds: blocks, and a norm that never runs."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(blocks))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--losses", type=Path, required=True)
    parser.add_argument("--evaluates", action="store_true", help="with forwards alone between the first two steps")
    parser.add_argument("--line", action="store_true", help="with the line that observes a plain script")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    part = Part(3 if rank == 0 else 2)
    if options.line:
        import adaptis

        adaptis.observe(part.layers)
    stage = PipelineStage(part, rank, world, torch.device("cpu"))
    schedule = Schedule1F1B(stage, 4, loss_fn=nn.functional.mse_loss)
    optimizer = torch.optim.AdamW(part.layers.parameters(), lr=1e-3)
    told = []
    for step in range(40):
        torch.manual_seed(step)
        x, losses = torch.randn(64, WIDTH), []
        if rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=x.flip(1), losses=losses)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0 and options.evaluates:
            schedule.eval(*([x] if rank == 0 else []), **({} if rank == 0 else {"target": x.flip(1), "losses": []}))
        told += [loss.item().hex() for loss in losses]
        if step == 5:
            # What a real job takes longer for: START comes meanwhile.
            time.sleep(1.0)
    if rank == world - 1:
        options.losses.write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
