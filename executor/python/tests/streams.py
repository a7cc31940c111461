"""A training script whose layers are on a GPU, as the stand-in is one. Faults come in the middle of it."""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import adaptis.clock
import adaptis.governor
import adaptis.steps
from standin import Device, Layer

MS = 1_000_000
FORWARD_MS = (2, 6, 3)
BACKWARD_MS = (4, 8, 8)
STEP_MS = 6
WIDTH = 16
STEPS = 44
FAULTS = {"never_ready": range(12, 16), "capturing": range(20, 23), "no_context": range(26, 29)}
"""Steps in which a knob of the stand-in is set."""
LOST_AT = 36
"""The step in which every call of the driver begins to fail."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--told", type=Path, required=True)
    parser.add_argument("--faulty", action="store_true")
    parser.add_argument("--events", type=int, help="so many at most")
    parser.add_argument("--all", action="store_true", help="nothing goes untimed for what it costs")
    parser.add_argument("--unseen", action="store_true")
    parser.add_argument("--steps-alone", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.all:
        adaptis.clock.BUDGET = adaptis.governor.BUDGET = 1.0
    if options.events:
        adaptis.clock.EVENTS_MIN = adaptis.clock.EVENTS_MAX = options.events
    device = Device()
    device.adopt()
    layers = [Layer(device, WIDTH, f * MS, b * MS) for f, b in zip(FORWARD_MS, BACKWARD_MS)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    observation: Any = None
    if options.steps_alone:
        observation = adaptis.steps.begin([optimizer])
        optimizer.register_step_post_hook(lambda of, *_: observation.ended(of))
    elif not options.unseen:
        observation = adaptis.observe(model)
    optimizer.register_step_pre_hook(lambda *_: device.work(STEP_MS * MS))
    losses, waits = [], 0
    before = device.get("synchronised")
    for step in range(STEPS):
        if options.faulty:
            _misbehave(device, step)
        torch.manual_seed(step)
        for _ in range(2):
            x: Tensor = torch.randn(4, WIDTH, requires_grad=True)
            for at, layer in enumerate(layers):
                # The middle one is recomputed.
                x = _again(layer, x) if at == 1 else layer(x)
            loss = x.square().mean()
            loss.backward()
            losses.append(loss.item().hex())
        optimizer.step()
        optimizer.zero_grad()
        waits += device.finish()
        if step == 5:
            # Until the coordinator follows.
            time.sleep(1.0)
    told: dict[str, Any] = {"losses": losses}
    if observation is not None:
        told["waits"] = device.get("synchronised") - before - waits
        told["captured"] = device.get("captured")
        told["rerecorded"] = device.get("rerecorded")
        told["pushed"] = device.get("pushed")
        observation.close()
        told["counters"] = observation.counters
    options.told.write_text(json.dumps(told))


def _again(layer: nn.Module, x: Tensor) -> Tensor:
    run: Tensor = checkpoint(layer, x, use_reentrant=False, early_stop=False)
    return run


def _misbehave(device: Device, step: int) -> None:
    for knob, steps in FAULTS.items():
        device.set(knob, int(step in steps))
    if step == LOST_AT:
        device.set("error", 719)


if __name__ == "__main__":
    main()
