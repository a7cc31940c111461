"""Jobs that say nothing of their layers: what is told of their steps, and that nothing of them is touched."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adaptis import auto
from test_observe import observed
from test_session import COMMAND, clean, forked
from test_streams import trained

STEPS = 40
SCRIPT = """
import json, os, sys, time
import torch
import torch.distributed as dist
from torch import nn
{imported}
torch.set_num_threads(1)
torch.manual_seed(3)
ranks = int(os.environ.get("WORLD_SIZE", "1"))
model = whole = nn.Sequential(*[nn.Linear(16, 16) for _ in range(3)])
if ranks > 1:
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(whole)
optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-2)
other = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
losses = []
for step in range({steps}):
    torch.manual_seed(step)
    loss = model(torch.randn(4, 16)).square().mean()
    loss.backward()
    optimizer.step()
    other.step()
    optimizer.zero_grad()
    losses.append(loss.item().hex())
    time.sleep(0.02)
    if step == 8:
        # Until the coordinator follows.
        time.sleep(1.0)
if int(os.environ.get("RANK", "0")) == 0:
    open(sys.argv[1], "w").write(json.dumps(losses))
"""


def _script(folder: Path, imported: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT.format(imported=imported, steps=STEPS))
    return script


def _alone(folder: Path, job: list[str]) -> Any:
    subprocess.run([*job, str(folder / "alone")], env=clean(), check=True, timeout=120, capture_output=True)
    return json.loads((folder / "alone").read_text())


def _is_told(report: dict[str, Any]) -> None:
    (device,) = report["devices"]
    assert device["name"] == "rank0" and device["kind"] == "cpu" and device["reserved_bytes"] > 0
    iterations = report["iterations"]
    assert STEPS - 15 < len(iterations) < STEPS
    assert all(20e6 < iteration["duration_ns"] < 2e9 for iteration in iterations), "one optimizer's, not both"
    (memory,) = report["memory"]
    assert memory["measured_bytes"] > 1 << 20
    (layer,) = report["configuration"]["layers"]
    weights = 3 * (16 * 16 + 16) * 4
    assert layer["parameter_bytes"] == weights and 4 * weights <= layer["state_bytes"] < 4 * weights + 100


def test_the_steps_of_a_script_that_knows_nothing_of_us_are_measured(tmp_path: Path) -> None:
    job = [sys.executable, str(_script(tmp_path))]
    alone = _alone(tmp_path, job)
    report = observed(tmp_path / "run", [*job, str(tmp_path / "seen")])
    assert json.loads((tmp_path / "seen").read_text()) == alone
    _is_told(report)
    planned = subprocess.run(
        [COMMAND, "plan", "--job", str(tmp_path / "run"), "--devices", "2xcpu"], env=clean(), capture_output=True, text=True
    )
    assert planned.returncode == 1 and "adaptis.observe(model.layers)" in planned.stderr


def test_of_replicas_the_first_one_is_measured(tmp_path: Path) -> None:
    job = forked(2, [str(_script(tmp_path))])
    alone = _alone(tmp_path, job)
    report = observed(tmp_path / "run", [*job, str(tmp_path / "seen")])
    assert json.loads((tmp_path / "seen").read_text()) == alone
    _is_told(report)


def test_whoever_imports_the_package_says_what_is_measured(tmp_path: Path) -> None:
    job = [sys.executable, str(_script(tmp_path, "import adaptis")), str(tmp_path / "seen")]
    run = [COMMAND, "run", "--out", str(tmp_path / "run"), "--", *job]
    said = subprocess.run(run, env=clean(), timeout=120, capture_output=True, text=True)
    assert said.returncode == 0 and "no rank of the command spoke to the coordinator" in said.stderr, said.stderr


def test_a_device_that_can_t_be_measured_fails_nothing(tmp_path: Path) -> None:
    text = SCRIPT.format(imported="os.environ['ADAPTIS_RINGS'] = '/dev/null/none'", steps=STEPS)
    script = tmp_path / "script.py"
    script.write_text(text)
    run = [COMMAND, "run", "--out", str(tmp_path / "run"), "--", sys.executable, str(script), str(tmp_path / "seen")]
    said = subprocess.run(run, env=clean(), timeout=120, capture_output=True, text=True)
    assert said.returncode == 0 and "this job is not observed: NotADirectoryError" in said.stderr, said.stderr
    assert len(json.loads((tmp_path / "seen").read_text())) == STEPS


@pytest.mark.parametrize("line", ["", "import adaptis; adaptis.observe(whole)"])
def test_of_processes_without_ranks_one_is_measured_and_the_others_are_told_why_not(tmp_path: Path, line: str) -> None:
    both = "import atexit; child = os.fork(); atexit.register(lambda: child and os.waitpid(child, 0))"
    script = _script(tmp_path, both)
    script.write_text(script.read_text().replace("losses = []", f"{line}\nlosses = []"))
    run = [COMMAND, "run", "--out", str(tmp_path / "run"), "--", sys.executable, str(script), str(tmp_path / "seen")]
    said = subprocess.run(run, env=clean(), timeout=120, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stderr.count("another process of this command is measured in its place: start processes by torchrun") == 1
    assert len(json.loads((tmp_path / "run" / "report.json").read_text())["iterations"]) > STEPS - 20


def test_a_forked_process_ends_by_itself_and_the_run_goes_on(tmp_path: Path) -> None:
    script = _script(tmp_path)
    end = """
    if step == 30:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        assert time.monotonic() - began < 3.0
"""
    text = script.read_text().replace("losses = []", "import adaptis; adaptis.observe(whole)\nlosses = []")
    script.write_text(text.replace("if int(os", f"{end.lstrip(chr(10))}if int(os"))
    report = observed(tmp_path / "run", [sys.executable, str(script), str(tmp_path / "seen")])
    assert report["iterations"][-1]["index"] >= STEPS - 2 and report["final_state_digest"] is not None


def test_steps_on_a_gpu_are_timed_by_events(tmp_path: Path) -> None:
    told, _ = trained(tmp_path / "job", "--steps-alone")
    report = json.loads((tmp_path / "job" / "run" / "report.json").read_text())
    assert len(report["iterations"]) > 25 and report["devices"][0]["kind"] == "standin-80g"
    counters = told["counters"]
    assert counters["recorded"] >= len(report["iterations"]) and counters["pending"] <= 1, "the last one has no end"
    assert told["waits"] == 0


class _Others(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules where no path leads to, as those of an editable installation."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name == "found_by_others" else None

    def exec_module(self, module: Any) -> None:
        module.is_executed = True


def test_a_module_that_others_find_is_found_and_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[Any] = []
    monkeypatch.setattr(sys, "meta_path", [auto._Finder("found_by_others", prepared.append), *sys.meta_path, _Others()])
    module = importlib.import_module("found_by_others")
    assert module.is_executed and prepared == [module]
    assert not any(isinstance(finder, auto._Finder) for finder in sys.meta_path)
    sys.modules.pop("found_by_others")
