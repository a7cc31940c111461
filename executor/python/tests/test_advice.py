"""Mode advise, from a job to what torch makes of the advice: nothing changes, and what was promised comes true."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

from adaptis import Plan
from job import MICROBATCHES
from ranks import in_ranks
from test_session import COMMAND, HERE, clean, forked

# Its layers sleep, as a host does while its device works: a busy machine changes little.
JOB = ["--sleep-ms", "1"]


def _run(mode: str, dir: Path, steps: int, *options: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What the job told, the report of its run, and what was said."""
    losses = dir.with_suffix(".json")
    job = forked(2, [str(HERE / "job.py"), *JOB, "--steps", str(steps), "--losses", str(losses), *options])
    run = [COMMAND, "run", "--mode", mode, "--out", str(dir), "--", *job]
    said = subprocess.run(run, env=clean(), check=True, timeout=300, capture_output=True, text=True)
    return json.loads(losses.read_text()), json.loads((dir / "report.json").read_text()), said.stdout


def _loaded(rank: int, world: int, schedule: str, placed: list[int]) -> tuple[dict[int, int], list[str]]:
    """Where torch places the stages of a schedule, and the order in which it runs them here."""
    of = [
        PipelineStage(torch.nn.Identity(), at, len(placed), torch.device("cpu"))
        for at, device in enumerate(placed)
        if device == rank
    ]
    runtime = _PipelineScheduleRuntime(of, MICROBATCHES, loss_fn=torch.nn.functional.mse_loss)
    runtime._load_csv(schedule)
    return runtime.stage_index_to_group_rank, [str(action) for action in runtime.pipeline_order[rank]]


def test_advice_changes_nothing_and_comes_true_and_torch_loads_it(tmp_path: Path) -> None:
    for steps in (40, 120):
        dir = tmp_path / f"run{steps}"
        told, report, said = _run("advise", dir, steps)
        # On a busy machine it takes longer to be sure.
        if (dir / "advice").exists():
            break
    else:
        pytest.fail(f"no advice: {report['decisions']}")
    assert len(set(told["plans"])) == 1 and report["switches"] == [], "the plan is as it was"
    assert "would switch" in said
    advised = Plan.read((dir / "advice" / "plan.json").read_text())
    assert advised.device_of_layers() != told["placed"]

    # What the run says at its end, word by word.
    (export,) = [line.partition("adaptis ")[2].split() for line in said.splitlines() if line.startswith("a better plan: ")]
    schedule = tmp_path / "schedule.csv"
    subprocess.run([COMMAND, *export, "--out", str(schedule)], env=clean(), check=True, timeout=60)
    placed = [device for _, _, device, _ in advised.stages]
    programs = json.loads(advised.write())["programs"]
    for rank, (found, order) in enumerate(in_ranks(2, _loaded, str(schedule), placed)):
        assert found == dict(enumerate(placed))
        assert order == programs[rank]

    decision = [row for row in report["decisions"] if row["verdict"] == "switch"][-1]
    now, predicted = decision["predicted_before_ns"], decision["predicted_after_ns"]
    took = []
    # A busy machine may be slow for a while.
    for name in ("then", "again"):
        after, then, _ = _run("observe", tmp_path / name, 40, "--plan", str(dir / "advice" / "plan.json"))
        assert after["losses"] == told["losses"][:40]
        took.append(statistics.median(row["duration_ns"] for row in then["iterations"]))
        if took[-1] < (now + predicted) / 2:
            return
    pytest.fail(f"less than half of the gain is there: {now} ns now, {predicted} predicted, {took} measured")
