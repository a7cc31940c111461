"""The examples, run as a user runs them: they learn, and a pipeline under any plan learns what one process learns."""

from __future__ import annotations

import importlib
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptis import Plan, Schedule
from plans import scheduled
from ranks import in_ranks, run_script, script_in_ranks
from test_session import clean, torchrun

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
STEPS = {"gpt": 3, "mixed": 3, "seq2seq": 3, "convnet": 4}
LONGEST_S = 240.0


def example(name: str) -> Any:
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def file(name: str) -> Path:
    return EXAMPLES / f"{name}.py"


def losses(said: str) -> list[float]:
    return [float(found) for found in re.findall(r"^step +\d+ +loss ([\d.]+) ", said, re.MULTILINE)]


def bits(said: str) -> str:
    (found,) = re.findall(r"^final loss (\S+)$", said, re.MULTILINE)
    return str(found)


def test_an_example_learns_as_its_user_starts_it() -> None:
    job = torchrun(2, [str(file("seq2seq")), "--steps", str(STEPS["seq2seq"])])
    ended = subprocess.run(job, env=clean(), capture_output=True, text=True, timeout=LONGEST_S)
    assert ended.returncode == 0, ended.stderr
    first, last = losses(ended.stdout)
    assert last < first - 0.1, ended.stdout


def _uneven(count: int) -> Plan:
    """Both ends on one rank and most of the rest on the other, B beside I and W, and some layers recomputed."""
    stages = [(0, 1, 1), (1, count - 2, 0), (count - 2, count, 1)]
    plans = (scheduled(stages, count, 2, 8, random.Random(seed), 1) for seed in range(100))
    return next(
        plan
        for plan in plans
        if any(recomputed for *_, recomputed in plan.stages)
        and set(re.findall(r"\d([FIWB])\d", plan.write())) == set("FIWB")
    )


@pytest.mark.parametrize("name", STEPS)
def test_an_example_learns_what_it_learns_without_a_pipeline_and_no_plan_changes_a_bit(name: str, tmp_path: Path) -> None:
    steps = ["--steps", str(STEPS[name])]
    plain = run_script(file(name), [*steps, "--plain"])
    count = len(example(name).model())
    even = Plan.even(count, ["rank0", "rank1"], 8, "zb-h1")
    for kind, plan in (("even", even), ("uneven", _uneven(count))):
        (tmp_path / kind).write_text(plan.write())
    runs = [[*steps, "--plan", str(tmp_path / kind)] for kind in ("even", "uneven")]
    # By itself, the dearest of them is run with the sessions.
    runs.append(steps) if name != "gpt" else runs[0].extend(["--slow", "1:2@1"])
    said, others = script_in_ranks(2, file(name), *runs)
    assert not any(others), "only rank 0 speaks"
    assert len({bits(part) for part in said}) == 1, said
    first, last = losses(said[0])
    assert last < first - 0.1, said[0]
    assert losses(plain)[0] == pytest.approx(first, rel=1e-4)
    assert float.fromhex(bits(said[0])) == pytest.approx(float.fromhex(bits(plain)), rel=1e-4)


def _slowed(rank: int, world: int) -> tuple[dict[float, list[float]], int]:
    """Processor times of steps of two blocks, slowed down by each factor, and how many weight gradients waited for W."""
    gpt = example("gpt")
    schedule = Schedule([gpt.Block(), gpt.Block()], 4, torch.nn.functional.mse_loss, plan="zb-h1")
    worker, waited = schedule._worker, 0
    pay = worker.weight_gradient

    def weight_gradient(stage: int, microbatch: int) -> None:
        nonlocal waited
        waited += sum(len(debts) for _, debts in worker._kept[stage, microbatch].debts)
        pay(stage, microbatch)

    worker.weight_gradient = weight_gradient  # type: ignore[method-assign]
    x = torch.randn(4, gpt.LENGTH, gpt.WIDTH)
    times: dict[float, list[float]] = {1.0: [], 3.0: []}
    for _ in range(4):
        for factor, of_factor in times.items():
            with gpt.Slow(factor):
                began = time.thread_time()
                schedule.step(x, target=torch.zeros_like(x))
                of_factor.append(time.thread_time() - began)
    return times, waited


def test_a_slow_rank_is_slow_for_real_and_weight_gradients_still_wait() -> None:
    ((times, waited),) = in_ranks(1, _slowed)
    assert min(times[3.0]) > 2 * min(times[1.0]), times
    # Four products a block, four microbatches, eight steps.
    assert waited == 2 * 4 * 4 * 8
