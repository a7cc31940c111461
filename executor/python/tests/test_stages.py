"""Pipelines of torch.distributed.pipelining under `adaptis run`, with a line of ours or without."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from ranks import script_in_ranks
from test_observe import observed
from test_session import COMMAND, HERE, clean, forked


def test_a_pipeline_that_has_the_line_is_measured_by_its_stages(tmp_path: Path) -> None:
    job = forked(2, [str(HERE / "pipelined.py"), "--losses", str(tmp_path / "losses"), "--line", "--evaluates"])
    report = observed(tmp_path / "run", job)
    plan = json.loads((tmp_path / "run" / "plans" / "epoch-1.json").read_text())
    assert plan["programs"][1][:4] == ["1F0", "1B0", "1F1", "1B1"], "an evaluation is none of the job"
    assert report["configuration"]["microbatches"] == 4
    assert len(report["configuration"]["layers"]) == 5
    assert len(report["devices"]) == 2
    assert len(report["iterations"]) >= 20


def test_a_pipeline_that_knows_nothing_of_us_is_measured_and_planned_for_other_devices(tmp_path: Path) -> None:
    unseen, seen, dir = tmp_path / "unseen.json", tmp_path / "seen.json", tmp_path / "run"
    script_in_ranks(2, HERE / "pipelined.py", ["--losses", str(unseen)])
    store = tmp_path / "store"
    report = observed(dir, forked(2, [str(HERE / "pipelined.py"), "--losses", str(seen)]), "--store", str(store))
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
    # What passed between the ranks, as the works at both ends tell of it: sixteen rows of floats.
    exported = subprocess.run(
        [COMMAND, "profiles", "export", "--to", "json", "--store", str(store)], env=clean(), capture_output=True, check=True
    )
    (sent,) = json.loads(exported.stdout)["links"]
    assert (sent["from"], sent["to"], sent["bytes"]) == ("cpu", "cpu", 16 * 128 * 4), sent
    assert sent["count"] > 10 and 0 < sent["seconds"] < 0.1, sent
