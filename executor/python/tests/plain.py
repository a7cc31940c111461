"""A training script in one process, as its user writes it, with one line of Adaptis; parts of a batch are accumulated."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn

import adaptis
from adaptis import governor

parser = argparse.ArgumentParser()
parser.add_argument("--losses", type=Path, required=True)
parser.add_argument("--unseen", action="store_true")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--dear", action="store_true", help="as if hooks took more than they may")
options = parser.parse_args()
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256 * times), nn.GELU(), nn.Linear(256 * times, 256)) for times in (1, 8, 2)))
if options.dear:
    governor.BUDGET = 0.0
if not options.unseen:
    adaptis.observe(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for step in range(options.steps):
    torch.manual_seed(step)
    x = torch.randn(192, 256)
    for part in x.chunk(3):
        loss = nn.functional.mse_loss(model(part), part.flip(1)) / 3
        loss.backward()
        losses.append(loss.item().hex())
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        model(x)
    if step == 5:
        time.sleep(1.0)
options.losses.write_text(json.dumps(losses))
