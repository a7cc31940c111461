"""Jobs that are only measured: one line in a script, or not even that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from test_session import COMMAND, HERE, clean


def observed(dir: Path, job: list[str], *options: str) -> dict[str, Any]:
    """The report of a job under `adaptis run`."""
    run = [COMMAND, "run", "--out", str(dir), *options, "--", *job]
    said = subprocess.run(run, env=clean(), timeout=300, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    report: dict[str, Any] = json.loads((dir / "report.json").read_text())
    return report


def test_one_line_measures_a_plain_script_and_changes_nothing(tmp_path: Path) -> None:
    unseen, seen = tmp_path / "unseen.json", tmp_path / "seen.json"
    script = [sys.executable, str(HERE / "plain.py"), "--losses"]
    subprocess.run([*script, str(unseen), "--unseen"], env=clean(), check=True, timeout=120)
    report = observed(tmp_path / "run", [*script, str(seen)])
    assert json.loads(seen.read_text()) == json.loads(unseen.read_text())
    assert report["configuration"]["microbatches"] == 3, "as many as are accumulated"
    assert len(report["configuration"]["layers"]) == 3
    assert len(report["iterations"]) >= 30
    assert report["switches"] == []
    costs = {(row["signature"], row["phase"]): row["ns"] for row in report["estimate"]}
    forwards = [costs[layer["signature"], "forward"] for layer in report["configuration"]["layers"]]
    assert forwards[1] > 1.5 * forwards[0], f"the second is eight times the first: {forwards}"


def test_a_pipeline_that_knows_nothing_of_us_is_measured_and_planned_for_other_devices(tmp_path: Path) -> None:
    unseen, seen, dir = tmp_path / "unseen.json", tmp_path / "seen.json", tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = [*torchrun, str(HERE / "pipelined.py"), "--losses"]
    subprocess.run([*job, str(unseen)], env=clean(), check=True, timeout=200)
    store = tmp_path / "store"
    report = observed(dir, [*job, str(seen)], "--store", str(store))
    assert json.loads(seen.read_text()) == json.loads(unseen.read_text())
    assert len(report["configuration"]["layers"]) == 5, "the norm that never runs is none"
    plan = json.loads((dir / "plans" / "epoch-1.json").read_text())
    assert [stage["layers"] for stage in plan["stages"]] == [[0, 3], [3, 5]]
    assert plan["programs"][1][:4] == ["1F0", "1B0", "1F1", "1B1"], "1F1B, as it ran"
    assert len(report["iterations"]) >= 20
    other = tmp_path / "plan.json"
    arguments = ["plan", "--job", str(dir), "--store", str(store), "--devices", "3xcpu", "--evaluations", "2000"]
    planned = subprocess.run(
        [COMMAND, *arguments, "--out", str(other)], env=clean(), capture_output=True, text=True, timeout=120
    )
    assert planned.returncode == 0, planned.stderr
    assert len(json.loads(other.read_text())["devices"]) == 3
