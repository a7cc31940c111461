"""A training script as its user writes it: a perceptron in many layers, three of which are dear."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional
from torch.optim import AdamW

import adaptis

WIDTH = 192
MICROBATCHES = 4
ROWS = 64


class Layer(nn.Module):
    """One of a stack; `times` says how dear. It may sleep instead of working, as a host does while its device works."""

    def __init__(self, times: int, sleep_ms: float) -> None:
        super().__init__()
        self.sleep_s = times * sleep_ms / 1e3
        width = WIDTH if sleep_ms == 0 else WIDTH // 8
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(times))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.sleep_s)
        for linear in self.inner:
            x = x + 0.1 * functional.gelu(linear(x))
        return x


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--losses", type=Path, required=True)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--sleep-ms", type=float, default=0.0)
    parser.add_argument("--plan", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(5)
    # All the dear ones at the beginning: an even split gives the first rank nearly everything.
    layers = [Layer(times, options.sleep_ms) for times in (12, 12, 12, 1, 1, 1, 1, 1)]
    group, replica = None, 0
    if options.replicas > 1:
        from torch.distributed.fsdp import fully_shard

        shape = (dist.get_world_size() // options.replicas, options.replicas)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("pp", "dp"))
        group, replica = mesh["pp"], mesh["dp"].get_local_rank()
        for layer in layers:
            fully_shard(layer, mesh=mesh["dp"])
    plan = adaptis.Plan.read(options.plan.read_text()) if options.plan else None
    schedule = adaptis.Schedule(layers, microbatches=MICROBATCHES, loss_fn=functional.mse_loss, plan=plan, group=group)
    optimizer = schedule.attach(AdamW(schedule.parameters(), lr=1e-3))
    losses, plans = [], []
    for step in range(options.steps):
        torch.manual_seed(options.replicas * step + replica)
        x = torch.randn(ROWS * MICROBATCHES, WIDTH if options.sleep_ms == 0 else WIDTH // 8)
        losses.append(schedule.step(x, target=x.flip(1)).item())
        plans.append(schedule.plan.epoch)
        optimizer.step()
        optimizer.zero_grad()
    told = {"losses": [loss.hex() for loss in losses], "placed": schedule.plan.device_of_layers(), "plans": plans}
    options.losses.with_suffix(f".{rank}").write_text(json.dumps(told))
    if rank == 0:
        options.losses.write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
