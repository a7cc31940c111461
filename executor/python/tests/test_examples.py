"""The examples, run as a user runs them: they learn, and a pipeline under any plan learns what one process learns."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from adaptis import Plan, Schedule
from plans import scheduled
from ranks import in_ranks

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
STEPS = {"gpt": 3, "mixed": 3, "seq2seq": 3, "convnet": 6}
PROCESSES = {"gpt": 4, "mixed": 2, "seq2seq": 2, "convnet": 2}
LONGEST_S = 240.0


def example(name: str) -> Any:
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def here(name: str, steps: int, *arguments: str) -> str:
    """What an example prints, run in this process."""
    module, kept, said = example(name), sys.argv, io.StringIO()
    try:
        sys.argv = [name, "--steps", str(steps), *arguments]
        with contextlib.redirect_stdout(said):
            module.main()
    finally:
        sys.argv = kept
    return said.getvalue()


def by_torchrun(name: str) -> str:
    """What it prints as a pipeline."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES[name])]
    command += [str(EXAMPLES / f"{name}.py"), "--steps", str(STEPS[name])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST_S)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def losses(said: str) -> list[float]:
    return [float(found) for found in re.findall(r"^step +\d+ +loss ([\d.]+) ", said, re.MULTILINE)]


def bits(said: str) -> str:
    (found,) = re.findall(r"^final loss (\S+)$", said, re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("name", STEPS)
def test_an_example_learns_what_it_learns_without_a_pipeline(name: str) -> None:
    plain, piped = here(name, STEPS[name], "--plain"), by_torchrun(name)
    first, last = losses(piped)
    assert last < first - 0.1, piped
    assert losses(plain)[0] == pytest.approx(first, rel=1e-4)
    assert float.fromhex(bits(piped)) == pytest.approx(float.fromhex(bits(plain)), rel=1e-4)


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


def _in_rank(rank: int, world: int, name: str, runs: list[list[str]]) -> list[str]:
    """What a rank prints with each list of arguments, in a group that is there already."""
    started, ended = dist.init_process_group, dist.destroy_process_group
    try:
        dist.init_process_group = dist.destroy_process_group = lambda *_: None
        return [here(name, 2, *arguments) for arguments in runs]
    finally:
        dist.init_process_group, dist.destroy_process_group = started, ended


@pytest.mark.parametrize("name", STEPS)
def test_neither_a_plan_nor_a_slow_rank_changes_a_bit(name: str, tmp_path: Path) -> None:
    count = len(example(name).model())
    even = Plan.even(count, ["rank0", "rank1"], 8, "zb-h1")
    for kind, plan in (("even", even), ("uneven", _uneven(count))):
        (tmp_path / kind).write_text(plan.write())
    runs = [[], ["--plan", str(tmp_path / "even")], ["--plan", str(tmp_path / "uneven")]]
    if name == "gpt":
        runs.append([*runs[1], "--slow", "1:2@1"])
    said, others = in_ranks(2, _in_rank, name, runs)
    assert not any(others), "only rank 0 speaks"
    assert len({bits(part) for part in said}) == 1, said


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
