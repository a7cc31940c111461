"""Adaptis: pipeline-parallel training that is planned again while it runs.

    schedule = adaptis.Schedule(layers, microbatches=8, loss_fn=loss_fn)
    optimizer = schedule.attach(AdamW(schedule.parameters()))
    for x, y in data:
        loss = schedule.step(x, target=y)
        optimizer.step()
        optimizer.zero_grad()

Any training script is measured, and not changed, by

    adaptis.observe(model.layers)
"""

from adaptis._native import Plan, PlanError
from adaptis.observe import Observation, observe
from adaptis.schedule import Schedule

__all__ = ["Observation", "Plan", "PlanError", "Schedule", "observe"]
