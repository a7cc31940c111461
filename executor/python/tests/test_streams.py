"""Layers on a GPU that is a stand-in: what events tell reaches the coordinator, and no fault of theirs the job."""

from __future__ import annotations

import json
import statistics
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import scheduled
import standin
from streams import BACKWARD_MS, FORWARD_MS, LOST_AT, STEP_MS
from test_session import COMMAND, HERE, clean, forked


def trained(folder: Path, *options: str, lacking: str | None = None, seen: bool = True) -> tuple[dict[str, Any], str]:
    """What the job told, and what was said; its run is in the folder."""
    folder.mkdir()
    told = folder / "told.json"
    job = [sys.executable, str(HERE / "streams.py"), "--told", str(told), *options]
    if not seen:
        job.append("--unseen")
    run = [COMMAND, "run", "--out", str(folder / "run"), "--store", str(folder / "store"), "--"] if seen else []
    environment = {**clean(), **standin.stage(folder / "stage", lacking)}
    ended = subprocess.run([*run, *job], env=environment, timeout=200, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(told.read_text()), ended.stderr


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same job without an observer."""
    return trained(tmp_path_factory.mktemp("unseen") / "job", seen=False)[0]


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "run" / "report.json").read_text())
    return report


def _costs(report: dict[str, Any]) -> dict[tuple[int, str], float]:
    layers = [layer["signature"] for layer in report["configuration"]["layers"]]
    costs = {(row["signature"], row["phase"]): row["ns"] / 1e6 for row in report["estimate"]}
    return {(layers.index(signature), phase): ms for (signature, phase), ms in costs.items()}


def _adds_up(counters: dict[str, int]) -> bool:
    kept = ("recorded", "given_up", "abandoned", "unplaced", "lost", "pending")
    return counters["begun"] == sum(counters[name] for name in kept)


def test_what_events_tell_reaches_the_coordinator_and_nobody_waits(tmp_path: Path, unseen: dict[str, Any]) -> None:
    told, _ = trained(tmp_path / "job")
    assert told["losses"] == unseen["losses"]
    assert told["waits"] == 0, "only the job itself waits for its device"
    assert (told["captured"], told["rerecorded"]) == (0, 0)
    counters = told["counters"]
    assert _adds_up(counters)
    assert counters["begun"] > 100 and counters["recorded"] > 0.95 * counters["begun"], counters
    report = _report(tmp_path / "job")
    costs = _costs(report)
    for at, (forward, backward) in enumerate(zip(FORWARD_MS, BACKWARD_MS)):
        assert costs[at, "forward"] == pytest.approx(forward, rel=0.1), costs
        assert costs[at, "input_gradient"] == pytest.approx(backward / 2, rel=0.1), "without what is recomputed"
        assert costs[at, "weight_gradient"] == pytest.approx(backward / 2, rel=0.1), "half of it each"
        assert costs[at, "optimizer"] == pytest.approx(STEP_MS / 3, rel=0.1), "layers of one size"
    # The middle layer runs twice.
    whole_ms = 2 * (sum(FORWARD_MS) + FORWARD_MS[1] + sum(BACKWARD_MS)) + STEP_MS
    iterations = [iteration["duration_ns"] / 1e6 for iteration in report["iterations"]]
    assert len(iterations) > 30 and all(took > whole_ms for took in iterations), (whole_ms, iterations)
    assert statistics.median(iterations) < 1.3 * whole_ms, (whole_ms, iterations)
    (device,) = report["devices"]
    assert device["kind"] == "standin-80g"
    assert (2 << 30) < device["reserved_bytes"] < (3 << 30), "what the allocator held beyond its tensors, and others"
    rows = subprocess.run(
        [COMMAND, "profiles", "list", "--json", "--store", str(tmp_path / "job" / "store")],
        env=clean(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert rows.returncode == 0 and rows.stdout.count("standin-80g") > 2, rows.stderr + rows.stdout


def test_no_fault_of_the_driver_changes_a_bit_of_the_job(tmp_path: Path, unseen: dict[str, Any]) -> None:
    told, said = trained(tmp_path / "job", "--faulty", "--all")
    assert told["losses"] == unseen["losses"]
    assert (told["waits"], told["captured"], told["rerecorded"]) == (0, 0, 0)
    counters = told["counters"]
    assert _adds_up(counters) and counters["pending"] == 0
    assert counters["given_up"] > 10, "events that never happened"
    assert counters["capturing"] > 10, "a graph was captured"
    assert told["pushed"] > 10, "a thread without the context was lent it"
    assert counters["lost"] > 0, "the device was lost"
    assert "lost" in said, "and it is told"
    steps = {iteration["index"] for iteration in _report(tmp_path / "job")["iterations"]}
    assert {18, 24, 27, 32} <= steps and not steps & {21, LOST_AT + 2}, steps


def test_where_events_are_few_works_go_untimed_and_are_counted(tmp_path: Path, unseen: dict[str, Any]) -> None:
    told, _ = trained(tmp_path / "job", "--all", "--events", "12")
    assert told["losses"] == unseen["losses"]
    counters = told["counters"]
    assert _adds_up(counters)
    assert counters["pool_empty"] > counters["recorded"] > 20, counters


def test_a_driver_that_lacks_a_call_is_named_and_the_job_trains_unobserved(
    tmp_path: Path, unseen: dict[str, Any]
) -> None:
    told, said = trained(tmp_path / "job", lacking="cuEventQuery")
    assert told["losses"] == unseen["losses"]
    assert told["counters"] == {}
    assert "not observed any longer: the CUDA driver lacks cuEventQuery" in said


def test_a_schedule_s_layers_on_gpus_are_timed_by_events_and_planned_again(tmp_path: Path) -> None:
    environment = {**clean(), **standin.stage(tmp_path / "stage")}

    def train(steps: int, name: str, *before: str) -> list[dict[str, Any]]:
        told = tmp_path / name
        job = [str(HERE / "scheduled.py"), "--told", str(told), "--steps", str(steps)]
        job += [] if before else ["--unseen"]
        ended = subprocess.run(
            [*before, *forked(2, job)], env=environment, timeout=200, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        return [json.loads(told.with_suffix(f".{rank}").read_text()) for rank in range(2)]

    still = train(120, "still")
    for steps in (50, 120):
        run = str(tmp_path / f"job{steps}" / "run")
        told = train(steps, f"told{steps}", COMMAND, "run", "--mode", "adapt", "--out", run, "--")
        report = _report(tmp_path / f"job{steps}")
        assert all(rank["losses"] == still[0]["losses"][:steps] for rank in told), "not a bit is another"
        # Where the host is late, which the device's times can't tell, the plan may be taken back later on.
        if report["switches"]:
            break
    else:
        pytest.fail(f"the plan stayed as it was: {report['decisions']}")
    for rank in told:
        assert _adds_up(rank["counters"]) and rank["counters"]["recorded"] > 0.9 * rank["counters"]["begun"] > 900, rank
        assert (rank["captured"], rank["rerecorded"]) == (0, 0)
    rows = {row["index"]: row for row in report["iterations"]}
    losses = [struct.pack(">f", float.fromhex(loss)).hex() for loss in still[0]["losses"]]
    assert len(rows) > steps - 25 and all(row["loss_bits"] == losses[step] for step, row in rows.items())
    costs = _costs(report)
    signatures = [layer["signature"] for layer in report["configuration"]["layers"]]
    for layer, (forward, backward) in enumerate(zip(scheduled.FORWARD_MS, scheduled.BACKWARD_MS)):
        # Where the host is late, its device waits, in the middle of a work, too.
        expected = {"forward": forward, "input_gradient": backward if layer else 0, "weight_gradient": scheduled.WEIGHTS_MS}
        for phase, ms in expected.items():
            # Layers that are alike have one cost.
            found = costs[signatures.index(signatures[layer]), phase]
            assert 0.75 * ms <= found < 1.2 * ms + 3, (layer, phase, costs)
    assert report["switches"][0]["layers_moved"] >= 1
    assert {device["kind"] for device in report["devices"]} == {"standin-80g"}
