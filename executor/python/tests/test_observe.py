"""Jobs that are only measured: one line in a script, or not even that."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.checkpoint import checkpoint

import adaptis
from adaptis.governor import Governor
from adaptis.trainers import STRANGE_STEPS
from ranks import free_port, in_ranks, script_in_ranks
from test_session import COMMAND, HERE, clean, forked


WIDTH = 6


def observed(dir: Path, job: list[str], *options: str) -> dict[str, Any]:
    """The report of a job under `adaptis run`."""
    run = [COMMAND, "run", "--out", str(dir), *options, "--", *job]
    said = subprocess.run(run, env=clean(), timeout=300, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    report: dict[str, Any] = json.loads((dir / "report.json").read_text())
    return report


def test_one_line_measures_a_plain_script_and_changes_nothing(tmp_path: Path) -> None:
    unseen, seen = tmp_path / "unseen.json", tmp_path / "seen.json"
    script_in_ranks(1, HERE / "plain.py", ["--losses", str(unseen), "--unseen"])
    report = observed(tmp_path / "run", [sys.executable, str(HERE / "plain.py"), "--losses", str(seen)])
    assert json.loads(seen.read_text()) == json.loads(unseen.read_text())
    assert report["configuration"]["microbatches"] == 3, "as many as are accumulated"
    assert len(report["configuration"]["layers"]) == 3
    assert len(report["iterations"]) >= 30
    assert report["switches"] == []
    costs = {(row["signature"], row["phase"]): row["ns"] for row in report["estimate"]}
    forwards = [costs[layer["signature"], "forward"] for layer in report["configuration"]["layers"]]
    assert forwards[1] > 1.5 * forwards[0], f"the second is eight times the first: {forwards}"


def test_where_measuring_is_dear_every_iteration_is_told_all_the_same(tmp_path: Path) -> None:
    script = [sys.executable, str(HERE / "plain.py"), "--losses", str(tmp_path / "losses"), "--dear", "--steps", "100"]
    report = observed(tmp_path / "run", script)
    told = [iteration["index"] for iteration in report["iterations"]]
    assert told == list(range(told[0], 100)), "one after another, and the last one, which nothing else had told"
    assert len(told) > 80
    # The picture is of one whose layers were measured, as few of the last ones were.
    timeline = (tmp_path / "run" / "timeline.svg").read_text()
    (idle,) = re.findall(r"devices idle (\d+)% of it", timeline)
    assert int(idle) < 50


class _Twisted(nn.Module):
    """A layer with one of the things that real ones do."""

    def __init__(self, twist: str) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.queries = nn.Parameter(torch.ones(WIDTH))
        self.twist = twist
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        if self.twist == "fails" and self.calls == 3:
            raise ArithmeticError("a bad batch")
        if self.twist == "in_checkpoint":
            return x + checkpoint(self.linear, self.norm(x), use_reentrant=False)
        if self.twist == "func":
            return self.linear(x) + torch.func.grad(lambda y: (y**3).sum())(x)
        if self.twist == "identity":
            return x
        if self.twist == "dictionary":
            return {"x": self.linear(self.norm(x))}
        if self.twist == "parameter":
            return self.queries if self.calls < 0 else x * self.queries
        if self.twist == "inner_gradient":
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                (of_y,) = torch.autograd.grad((self.linear(y) ** 2).sum(), y)
            return self.linear(x) + of_y
        return torch.relu(self.linear(self.norm(x)))


TWISTS = ["plain", "fails", "in_checkpoint", "around", "reentrant", "func", "identity", "dictionary", "parameter"]
TWISTS += ["inner_gradient", "twice", "evaluated", "two_optimizers", "closure", "foreign"]


def _trained(twist: str, is_seen: bool, rings: Path) -> dict[str, Tensor]:
    torch.manual_seed(0)
    layers = [_Twisted("plain"), _Twisted(twist), _Twisted("plain")]
    model = nn.ModuleList(layers)
    if is_seen:
        os.environ["ADAPTIS_RINGS"] = str(rings)
        observation = adaptis.observe(model, coordinator=f"tcp://127.0.0.1:{free_port()}")
        assert observation is not None
    own = list(model.parameters())
    half = len(own) // 2
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(own, lr=0.01)]
    if twist == "two_optimizers":
        optimizers = [torch.optim.SGD(own[:half], lr=0.01), torch.optim.AdamW(own[half:], lr=0.01)]
    other = nn.Linear(2, 2)
    foreign = torch.optim.SGD(other.parameters(), lr=0.1)

    def forward(x: Tensor) -> Tensor:
        for at, layer in enumerate(layers):
            if twist in ("around", "reentrant") and at == 1:
                x = checkpoint(lambda y, layer=layer: layer(2 * y) + y.sin(), x, use_reentrant=twist == "reentrant")
            else:
                x = layer(x)
            x = x["x"] if isinstance(x, dict) else x
            if twist == "twice" and at == 1:
                x = layer(x)
        return x

    for step in range(6):
        torch.manual_seed(step)
        x = torch.randn(8, WIDTH)
        if twist == "closure":

            def closure() -> Any:
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss = forward(x).square().mean()
                loss.backward()
                return loss.item()

            optimizers[0].step(closure)
            continue
        try:
            for part in x.chunk(2):
                forward(part).square().mean().backward()
                if twist == "evaluated":
                    with torch.no_grad():
                        forward(part)
                    forward(part)
                if twist == "foreign":
                    other(torch.ones(2)).sum().backward()
                    foreign.step()
        except ArithmeticError:
            pass
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    if is_seen:
        observation.close()
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("twist", TWISTS)
def test_whatever_a_job_does_observing_changes_no_bit_of_it_and_fails_nothing(twist: str, tmp_path: Path) -> None:
    unseen, seen = _trained(twist, False, tmp_path), _trained(twist, True, tmp_path)
    assert unseen.keys() == seen.keys()
    assert all(torch.equal(unseen[name], seen[name]) for name in unseen)


def test_without_a_coordinator_nothing_is_hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAPTIS_COORDINATOR", raising=False)
    layer = nn.Linear(2, 2)
    assert adaptis.observe([layer]) is None
    assert not layer._forward_hooks and not layer._forward_pre_hooks


def test_what_is_no_list_of_layers_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    linear = nn.Linear(2, 2)
    wrong: list[Any] = [nn.ModuleDict({"a": linear}), {"a": linear}, linear, "layers", [linear, None], [print], 3]
    for layers in wrong:
        caplog.clear()
        assert adaptis.observe(layers, coordinator="tcp://127.0.0.1:1") is None
        assert "nothing is observed: layers is a list of modules" in caplog.text, layers


def _seen(layers: list[nn.Module], rings: Path) -> adaptis.Observation:
    os.environ["ADAPTIS_RINGS"] = str(rings)
    observation = adaptis.observe(layers, coordinator=f"tcp://127.0.0.1:{free_port()}")
    assert observation is not None
    return observation


def _hooks(layers: list[nn.Module]) -> int:
    modules = [part for layer in layers for part in layer.modules()]
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in modules)


def test_a_process_is_observed_once_and_others_optimizers_end_no_iteration(tmp_path: Path) -> None:
    first, second = [nn.Linear(WIDTH, WIDTH)], [nn.Linear(WIDTH, WIDTH)]
    observation = _seen(first, tmp_path)
    assert adaptis.observe(second, coordinator="tcp://127.0.0.1:1") is None
    mine, other = (torch.optim.SGD(layers[0].parameters(), lr=0.1) for layers in (first, second))
    for _ in range(3):
        for layers, optimizer in ((first, mine), (second, other), (first, mine)):
            layers[0](torch.ones(2, WIDTH)).sum().backward()
            optimizer.step()
    assert observation.steps == 6
    observation.close()
    assert _hooks(first) == 0


def test_an_optimizer_of_copies_ends_iterations(tmp_path: Path) -> None:
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH).bfloat16() for _ in range(2)]
    observation = _seen(layers, tmp_path)
    own = [part for layer in layers for part in layer.parameters()]
    masters = [part.detach().float().requires_grad_() for part in own]
    optimizer = torch.optim.SGD(masters, lr=0.1)
    for _ in range(STRANGE_STEPS + 6):
        layers[1](layers[0](torch.ones(2, WIDTH, dtype=torch.bfloat16))).sum().backward()
        for master, part in zip(masters, own):
            assert part.grad is not None
            master.grad, part.grad = part.grad.float(), None
        optimizer.step()
        with torch.no_grad():
            for master, part in zip(masters, own):
                part.copy_(master)
    assert observation.steps == 6
    assert [len(seen.outputs) for seen in observation._hooks.seen] == [1, 1]
    assert observation.clock.count == 0 and _hooks(layers) == 1, "nobody follows"
    observation.close()


def test_an_optimizer_that_only_came_first_ends_no_iteration_later_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    observation = _seen([first], tmp_path)
    mine, other = (torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (first, second))
    # A discriminator is trained for a while before the generator is.
    for _ in range(STRANGE_STEPS + 4):
        second(first(torch.ones(2, WIDTH))).sum().backward()
        other.step()
    assert observation.steps == 4
    for _ in range(6):
        for optimizer in (other, mine):
            second(first(torch.ones(2, WIDTH))).sum().backward()
            optimizer.step()
    assert "trains the layers' own parameters" in caplog.text
    assert observation.steps == 4 + 1 + 6, "one more of the other before it was known"
    assert observation._trainers.known() == [mine]
    observation.close()


def _sharded_first(rank: int, world: int, is_first: bool, rings: str) -> list[int]:
    """Layers whose memory was weighed, where they are sharded before they are observed or after it."""
    mesh = init_device_mesh("cpu", (1,))
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(2)]
    observation = None if is_first else _seen(list(layers), Path(rings))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    observation = observation or _seen(list(layers), Path(rings))
    optimizer = torch.optim.SGD(nn.ModuleList(layers).parameters(), lr=0.1)
    for _ in range(3):
        layers[1](layers[0](torch.ones(2, WIDTH))).sum().backward()
        optimizer.step()
    assert observation.steps == 3 and not observation.has_ended
    sizes = [observation._hooks.scales.bytes[at] for at in range(2)]
    observation.close()
    return sizes


def test_sharded_layers_are_observed_whichever_comes_first(tmp_path: Path) -> None:
    one, other = (in_ranks(1, _sharded_first, is_first, str(tmp_path)) for is_first in (True, False))
    assert one == other and min(one[0]) > 0


def test_a_module_that_stands_several_times_is_not_observed(caplog: pytest.LogCaptureFixture) -> None:
    shared = nn.Linear(2, 2)
    assert adaptis.observe([shared, nn.ReLU(), shared], coordinator="tcp://127.0.0.1:1") is None
    assert "a module stands several times in layers" in caplog.text


def test_forwards_without_a_backward_are_no_microbatches(tmp_path: Path) -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    observation = _seen([layer], tmp_path)
    x = torch.ones(2, WIDTH)
    for trains in (False, True, True, False, False, True):
        loss = layer(x).sum()
        if trains:
            loss.backward()
    assert observation._hooks.trained() == ["0F0", "0B0", "0F1", "0B1", "0F2", "0B2"]
    observation.close()


def test_layers_that_are_compiled_later_on_are_hooked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["adaptis.observe"], "STILL_STEPS", 2)
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]
    observation = _seen(layers, tmp_path)
    optimizer = torch.optim.SGD([part for layer in layers for part in layer.parameters()], lr=0.1)

    def train(steps: int) -> None:
        for _ in range(steps):
            layers[1](layers[0](torch.ones(2, WIDTH))).sum().backward()
            optimizer.step()

    train(5)
    for layer in layers:
        layer.compile(backend="eager")
    train(8)
    assert observation.steps == 11, "two of them passed unseen"
    # One that does not run any longer is let go of.
    for _ in range(4):
        optimizer.step()
    assert observation.has_ended
    observation.close()
    torch._dynamo.reset()


def test_what_no_optimizer_ends_is_not_noted_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptis.hooks.NOTES_MAX", 100)
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH) for _ in range(2)]
    observation = _seen(layers, tmp_path)
    for _ in range(60):
        layers[1](layers[0](torch.ones(2, WIDTH))).sum().backward()
    assert observation.has_ended and _hooks(layers) == 0
    assert observation.clock.count == 0
    observation.close()


def test_of_several_processes_the_first_is_measured_before_they_are_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert adaptis.observe([nn.Linear(2, 2)], coordinator="tcp://127.0.0.1:1") is None
    monkeypatch.setenv("RANK", "0")
    _seen([nn.Linear(2, 2)], tmp_path).close()


def test_an_observed_model_is_stored_and_copied_as_any_other(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()))
    observation = _seen(list(model), tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(2, WIDTH)
    for step in range(6):
        stored = io.BytesIO()
        torch.save(model, stored)
        assert b"adaptis" not in stored.getvalue(), "it is loaded without us"
        stored.seek(0)
        for other in (torch.load(stored, weights_only=False), copy.deepcopy(model)):
            assert torch.equal(other(x), model(x))
            observation._hooks.has_run = False
            other(x).sum().backward()
            assert not observation._hooks.has_run, "a copy is another model"
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert observation.steps == 6
    observation.close()


def test_what_is_compiled_is_as_it_was_and_layers_of_their_own_are_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.ones(2, WIDTH)
    for way in ("whole", "in its place", "layer by layer"):
        caplog.clear()
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
        if way == "in its place":
            for layer in model:
                layer.compile(backend="eager", fullgraph=True)
        before = [layer._compiled_call_impl for layer in model]
        if way == "layer by layer":
            model = nn.Sequential(*(torch.compile(layer, backend="eager", fullgraph=True) for layer in model))
        # Whatever the environment says, it is the coordinator that was named.
        observation = _seen(list(model), tmp_path)
        run = torch.compile(model, backend="eager", fullgraph=True) if way == "whole" else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(6):
            assert torch.equal(run(x), model(x))
            optimizer.zero_grad()
            # What is observed is not run but by this.
            observation._hooks.has_run = False
            run(x).sum().backward()
            optimizer.step()
        assert observation.steps == (0 if way == "whole" else 6)
        assert ("no layer was seen to run in 3 steps" in caplog.text) == (way == "whole")
        assert (observation._alone is not None) == (way == "whole")
        if way == "whole":
            assert _hooks(list(model)) == 0, "nothing grows that nobody looks at"
        observation.close()
        assert [layer._compiled_call_impl for layer in model] == before or way == "layer by layer"


def test_a_process_that_was_forked_writes_nothing_of_its_own(tmp_path: Path) -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    observation = _seen([layer], tmp_path)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def train() -> None:
        layer(torch.ones(2, WIDTH)).sum().backward()
        optimizer.step()

    train()
    child = os.fork()
    if child == 0:
        train()
        os._exit(observation.steps)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    train()
    assert observation.steps == 2
    observation.close()


def test_hooks_do_not_grow_and_a_job_that_nobody_follows_keeps_one(tmp_path: Path) -> None:
    layers: list[nn.Module] = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(3)]
    observation = _seen(layers, tmp_path)
    optimizer = torch.optim.SGD([part for layer in layers for part in layer.parameters()], lr=0.1)
    counts = []
    for step in range(12):
        x = torch.ones(2, WIDTH)
        # One that is frozen, and one that stands by.
        with torch.no_grad():
            x = layers[0](x)
        layers[1](x).sum().backward()
        optimizer.step()
        counts.append(_hooks(layers))
    assert counts[-1] == 1, "whether anything runs"
    assert observation.steps == 12
    observation.close()
    assert _hooks(layers) == 0


def test_what_fails_in_a_hook_ends_the_measuring_and_no_other_hook_of_the_optimizer(tmp_path: Path) -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    blocked = tmp_path / "rings"
    blocked.write_text("no folder")
    observation = _seen([layer], blocked)
    later: list[int] = []
    handle = register_optimizer_step_post_hook(lambda *_: later.append(1))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(4):
        layer(torch.ones(2, WIDTH)).sum().backward()
        optimizer.step()
    handle.remove()
    assert len(later) == 4
    assert observation.native is None and _hooks([layer]) == 0
    observation.close()


def test_measuring_is_rarer_where_it_is_dearer() -> None:
    cheap, dear = Governor(), Governor()
    for _ in range(40):
        cheap.spent(0.001)
        dear.spent(0.02)
    dear.spent(1.0)
    assert (cheap.stride, dear.stride) == (1, 16)
    measured = [[step for step in range(4000) if governor.is_due(step)] for governor in (cheap, dear)]
    assert len(measured[0]) == 4000 and 200 < len(measured[1]) < 300
    wide = Governor()
    wide.stride = 32
    assert all(dear.is_due(step) for step in range(4000) if wide.is_due(step)), "what the dearest measures, all do"
    for _ in range(40):
        dear.spent(0.0004)
    assert dear.stride == 1
