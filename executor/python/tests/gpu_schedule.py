"""A schedule over all GPUs of this machine: any plan and any change of plan computes what one process computes on a GPU.

    torchrun --standalone --nproc-per-node N gpu_schedule.py      a rank for each GPU, over NCCL

`--device cpu` does the same over Gloo.
"""

from __future__ import annotations

import argparse
import gc
import os
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW

from adaptis import Schedule
from models import batch, loss_fn, model, through
from plans import random_plan

STEPS, PLANS, MICROBATCHES, LAYERS = 12, 8, 4, 9
OFF_MAX = 1e-5


def _batch(step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x, y = batch(step)
    return x.to(device), y.to(device)


def _alone(device: torch.device) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and parameters of one process without a schedule."""
    layers = nn.ModuleList(model()).to(device)
    optimizer = AdamW(layers.parameters(), lr=0.01)
    losses = []
    for step in range(STEPS):
        x, y = _batch(step, device)
        whole = 0.0
        for part, target in zip(x.chunk(MICROBATCHES), y.chunk(MICROBATCHES)):
            loss = loss_fn(through(layers, part), target) / MICROBATCHES
            loss.backward()
            whole += loss.item()
        losses.append(whole)
        optimizer.step()
        optimizer.zero_grad()
    return losses, layers.state_dict()


def _trained(device: torch.device, seeds: list[int], dropout: float = 0.0) -> tuple[list[float], Schedule]:
    """The same under one plan after the other."""
    world = dist.get_world_size()
    plans = [random_plan(LAYERS, world, MICROBATCHES, seed, epoch=1 + at) for at, seed in enumerate(seeds)]
    layers = [layer.to(device) for layer in model(dropout=dropout)]
    schedule = Schedule(layers, MICROBATCHES, loss_fn, plan=plans[0], coordinator="")
    optimizer = schedule.attach(AdamW(schedule.parameters(), lr=0.01))
    losses = []
    for step in range(STEPS):
        if 0 < step < len(plans):
            schedule.change(plans[step])
        x, y = _batch(step, device)
        losses.append(schedule.step(x, target=y))
        # Too much to clip anything.
        schedule.clip_grad_norm_(1e9)
        optimizer.step()
        optimizer.zero_grad()
    return [loss.item() for loss in losses], schedule


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl")
        device = torch.device("cuda", torch.cuda.current_device())
        torch.backends.cuda.matmul.allow_tf32 = False
    else:
        dist.init_process_group("gloo")
        device = torch.device("cpu")
    expected, whole = _alone(device)
    furthest = 0.0
    begun = time.monotonic()
    for plan in range(PLANS):
        losses, schedule = _trained(device, [10 * plan, 10 * plan + 1, 10 * plan + 2])
        x, y = _batch(STEPS, device)
        evaluated = schedule.evaluate(x, target=y)
        assert losses[-1] / 2 < evaluated.item() < 2 * losses[-1], "a batch that it does not know is about as hard"
        off = [abs(loss / of - 1) for loss, of in zip(losses, expected)]
        own = schedule.state_dict()
        off += [float((own[name] - whole[name]).norm() / whole[name].norm().clamp_min(1e-6)) for name in own]
        furthest = max(furthest, *off)
        # With its communicators.
        del schedule, own
        gc.collect()
    took = time.monotonic() - begun
    assert furthest < OFF_MAX, f"off by {furthest:.1e}"
    # Random draws are a layer's own: neither plans nor recomputations change them.
    drawn = [_trained(device, seeds, dropout=0.3)[0] for seeds in ([1], [2, 3, 4])]
    apart = max(abs(a / b - 1) for a, b in zip(*drawn))
    assert apart < OFF_MAX, f"dropout depends on the plan: {apart:.1e}"
    if dist.get_rank() == 0:
        where = f"{dist.get_world_size()} ranks on {options.device}"
        print(
            f"a schedule over {where}: {PLANS} runs of {STEPS} steps under 3 plans each in {took:.1f} s, losses and "
            f"parameters within {furthest:.1e} of one process's; with dropout within {apart:.1e} of each other"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
