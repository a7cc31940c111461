"""A schedule whose layers are on GPUs, as the stand-in is one, over a group that carries tensors as NCCL does."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

import adaptis
import adaptis.clock
import adaptis.worker
import rendezvous
from adaptis.channels import Ordered
from standin import Device, Layer

MS = 1_000_000
FORWARD_MS = (3, 3, 3, 1, 1, 1)
BACKWARD_MS = (3, 3, 3, 1, 1, 1)
WEIGHTS_MS = 1
STEP_MS = 4
WIDTH = 16
ROWS = 4
MICROBATCHES = 4


class Optimizer(torch.optim.AdamW):
    """Takes a device time, too."""

    def __init__(self, device: Device, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.device = device

    def step(self, closure: Any = None) -> Any:
        self.device.work(STEP_MS * MS)
        return super().step(closure)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--told", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--unseen", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Nothing goes untimed for what it costs: layers are few.
    adaptis.clock.BUDGET = 1.0
    dist.init_process_group("gloo")
    device = Device()
    device.adopt()
    if options.unseen:
        # Losses do not depend on times.
        device.work = lambda _: None  # type: ignore[method-assign]
    _wait_before_sending(device)
    _work_for_weights(device)
    torch.manual_seed(5)
    layers = [Layer(device, WIDTH, f * MS, b * MS) for f, b in zip(FORWARD_MS, BACKWARD_MS)]
    coordinator = "" if options.unseen else None
    schedule = adaptis.Schedule(
        layers, MICROBATCHES, functional.mse_loss, group=rendezvous.group(), coordinator=coordinator
    )
    optimizer = schedule.attach(Optimizer(device, schedule.parameters(), lr=1e-3))
    losses = []
    for step in range(options.steps):
        torch.manual_seed(step)
        x: Tensor = torch.randn(ROWS * MICROBATCHES, WIDTH)
        losses.append(schedule.step(x, target=x.flip(1)).item().hex())
        optimizer.step()
        optimizer.zero_grad()
        device.finish()
    schedule.close()
    told: dict[str, Any] = {"losses": losses, "counters": schedule._seat.tape.clock.counters}
    told["captured"], told["rerecorded"] = device.get("captured"), device.get("rerecorded")
    options.told.with_suffix(f".{dist.get_rank()}").write_text(json.dumps(told))
    dist.destroy_process_group()


def _wait_before_sending(device: Device) -> None:
    """A stream of communication begins to send when the layer's work is done: here that takes the host."""
    send = Ordered.send

    def sent(self: Ordered, tensor: Tensor, to: int, tag: int) -> Any:
        device.finish()
        return send(self, tensor, to, tag)

    setattr(Ordered, "send", sent)


def _work_for_weights(device: Device) -> None:
    """A debt takes a device time as well."""
    pay = adaptis.worker.pay

    def paid(debts: list[Any], layer: int) -> None:
        pay(debts, layer)
        device.work(WEIGHTS_MS * MS)

    setattr(adaptis.worker, "pay", paid)


if __name__ == "__main__":
    main()
