"""Pipeline 2 x data parallel 2: sharded layers compute what one process does, and move shard by shard."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_module
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import AdamW

from adaptis import Plan, Schedule, _native
from adaptis.replicas import local
from models import WIDTH, WORDS, Block, batch, loss_fn, model, through
from plans import random_plan
from ranks import in_ranks
from refusing import assert_said, refusals

STEPS, MICROBATCHES = 6, 2
CHANGES = {2: 22, 4: 23}


def _mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))


def _layers(mesh: DeviceMesh, dropout: float = 0.0, reshard: bool | None = None) -> list[nn.Module]:
    layers = model(dropout=dropout)
    for layer in layers:
        fully_shard(layer, mesh=mesh["dp"], reshard_after_forward=reshard)
    return layers


def _whole(parameters: Any, of: Any = lambda parameter: parameter) -> dict[str, Tensor]:
    """By name, what those that are here are, put together from all replicas."""
    return {name: of(part).full_tensor().detach().clone() for name, part in parameters if of(part) is not None}


def _own(schedule: Schedule) -> list[tuple[str, Any]]:
    return [
        (f"{at}.{name}", parameter) for at, layer in schedule._own() for name, parameter in layer.named_parameters()
    ]


class _Reductions:
    """Counts how often gradients are reduced."""

    def __init__(self) -> None:
        self.count = 0
        self.plain = dist.reduce_scatter_single

    def __enter__(self) -> _Reductions:
        dist.reduce_scatter_single = self
        return self

    def __exit__(self, *_: object) -> None:
        dist.reduce_scatter_single = self.plain

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.count += 1
        return self.plain(*arguments, **named)


def _sharded(
    rank: int, world: int, changes: dict[int, int], dropout: float, reshard: bool | None
) -> tuple[list[float], list[dict[str, Tensor]], dict[str, Tensor]]:
    """Losses, gradients of every step, and the weights at the end."""
    mesh = _mesh()
    layers = _layers(mesh, dropout, reshard)
    schedule = Schedule(layers, MICROBATCHES, loss_fn, plan=random_plan(9, 2, MICROBATCHES, 21), group=mesh["pp"])
    optimizer = schedule.attach(AdamW(schedule.parameters(), lr=0.01))
    losses, gradients = [], []
    for step in range(STEPS):
        shards = {name: StorageWeakRef(local(parameter).untyped_storage()) for name, parameter in _own(schedule)}
        if step in changes:
            schedule.change(random_plan(9, 2, MICROBATCHES, changes[step], epoch=1 + step))
        x, y = batch(2 * step + mesh["dp"].get_local_rank())
        with _Reductions() as reductions:
            losses.append(schedule.step(x, target=y).item())
        trained = {name.partition(".")[0] for name, _ in _own(schedule)}
        assert reductions.count == len(trained), "once a layer, after the last microbatch"
        gradients.append(_whole(_own(schedule), lambda parameter: parameter.grad))
        for name, parameter in schedule.named_parameters():
            is_here = any(name == own for own, _ in _own(schedule))
            assert is_here != local(parameter).is_meta
            assert is_here or name not in shards or shards[name].expired(), "other ranks' layers take no memory"
        schedule.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients, _whole(_own(schedule))


def _reference() -> tuple[list[float], list[dict[str, Tensor]], dict[str, Tensor]]:
    layers = nn.ModuleList(model())
    optimizer = AdamW(layers.parameters(), lr=0.01)
    losses, gradients = [], []
    for step in range(STEPS):
        total = 0.0
        for replica in range(2):
            x, y = batch(2 * step + replica)
            for part, target in zip(x.chunk(MICROBATCHES), y.chunk(MICROBATCHES)):
                loss = loss_fn(through(list(layers), part), target) / MICROBATCHES / 2
                loss.backward()
                total += loss.item()
        losses.append(total)
        gradients.append({name: part.grad.clone() for name, part in layers.named_parameters() if part.grad is not None})
        nn.utils.clip_grad_norm_(layers.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients, dict(layers.named_parameters())


def _same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).norm() / value.norm().clamp_min(1e-6)
        assert error < tolerance, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("reshard", [None, True])
def test_sharded_layers_have_the_gradients_of_one_process_and_move(reshard: bool | None) -> None:
    losses, gradients, weights = _reference()
    results = in_ranks(4, _sharded, CHANGES, 0.0, reshard)
    seen: list[dict[str, Tensor]] = [{} for _ in range(STEPS)]
    end: dict[str, Tensor] = {}
    for found, of_steps, state in results:
        assert found == pytest.approx(losses, rel=1e-5)
        for step, of_step in enumerate(of_steps):
            seen[step].update(of_step)
        end.update(state)
    # The first step's are those of the same weights.
    _same(seen[0], gradients[0], 1e-5)
    for step in range(1, STEPS):
        _same(seen[step], gradients[step], 1e-3)
    _same(end, {name: value.detach() for name, value in weights.items()}, 1e-4)


def test_a_change_of_plan_moves_shards_and_changes_no_bit() -> None:
    changed, still = (in_ranks(4, _sharded, changes, 0.2, None) for changes in (CHANGES, {}))
    ends: list[dict[str, Tensor]] = [{}, {}]
    for found, other in zip(changed, still):
        assert found[0] == other[0]
        ends[0].update(found[2])
        ends[1].update(other[2])
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


class _Job:
    """Two linear layers and a norm, sharded or not, alike wherever they are."""

    def __init__(self, mesh: DeviceMesh | None, seed: int = 3, group: Any = None) -> None:
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Embedding(WORDS, WIDTH), Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)]
        if mesh is not None:
            for layer in layers:
                fully_shard(layer, mesh=mesh["dp"])
            group = mesh["pp"]
        # A plain one sees the microbatches of both replicas.
        self.microbatches = 2 if mesh is not None else 4
        self.replica = None if mesh is None else mesh["dp"].get_local_rank()
        self.schedule = Schedule(layers, self.microbatches, loss_fn, group=group, coordinator="")
        self.optimizer = self.schedule.attach(AdamW(self.schedule.parameters(), lr=0.01))

    def step(self) -> float:
        step = self.schedule.steps
        parts = [batch(2 * step + replica) for replica in ((0, 1) if self.replica is None else (self.replica,))]
        x, y = (torch.cat(of) for of in zip(*parts))
        loss = self.schedule.step(x, target=y).item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def _saved(rank: int, world: int, dir: Path) -> list[float]:
    job = _Job(_mesh())
    for _ in range(2):
        job.step()
    job.schedule.save(dir / "shards")
    whole = job.schedule.whole_checkpoint()
    assert (whole is not None) == (rank == 0)
    if whole is not None:
        torch.save(whole, dir / "whole.pt")
    return [job.step() for _ in range(2)]


def _loaded(rank: int, world: int, dir: Path, way: str, is_sharded: bool) -> list[float]:
    job = _Job(_mesh() if is_sharded else None, seed=4)
    if is_sharded:
        job.schedule.change(Plan.even(4, ["rank0", "rank1"], 2, "i1f1b"))
    if way == "whole":
        job.schedule.restore(torch.load(dir / "whole.pt"))
    else:
        job.schedule.load(dir / way)
    return [job.step() for _ in range(2)]


def test_a_checkpoint_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    losses, *others = in_ranks(4, _saved, tmp_path)
    assert others == [losses] * 3
    for world, is_sharded in ((4, True), (3, False)):
        for way in ("whole", "shards"):
            for found in in_ranks(world, _loaded, tmp_path, way, is_sharded):
                if is_sharded:
                    assert found == losses
                assert found == pytest.approx(losses, rel=1e-5)


def _evaluated(rank: int, world: int, evaluates: bool, dir: Path) -> list[float]:
    """Losses of steps with a checkpoint and a change of plan after an evaluation, which gathers the shards."""
    job = _Job(_mesh())
    assert job.replica is not None
    losses = [job.step()]
    x, y = batch(100 + job.replica)
    for is_uneven in (False, True) if evaluates else ():
        # Of one replica's it is odd how many rows there are, so that it can't be cut as the other's is.
        rows = 5 if is_uneven and job.replica == 1 else 6
        told = job.schedule.evaluate(x[:rows], target=y[:rows])
        told_again = job.schedule.evaluate(x[:rows], target=y[:rows])
        assert told == told_again
    job.schedule.save(dir / "after")
    losses.append(job.step())
    if evaluates:
        assert job.schedule.evaluate(x, target=y) > 0
    job.schedule.change(random_plan(4, 2, 2, 5))
    return losses + [job.step(), job.step()]


def test_an_evaluation_leaves_shards_as_they_were(tmp_path: Path) -> None:
    assert in_ranks(4, _evaluated, True, tmp_path / "a") == in_ranks(4, _evaluated, False, tmp_path / "b")


def _mean_of_both(rank: int, world: int) -> tuple[float, list[str]]:
    """The loss of batches that replicas cut into unequal numbers of pieces; then what is refused of one of them."""
    job = _Job(_mesh())
    job.step()
    is_second = job.replica == 1
    x, y = batch(100)
    rows = 5 if is_second else 6
    told = job.schedule.evaluate(x[:rows], target=y[:rows]).item()
    return told, refusals(
        [
            lambda: job.schedule.evaluate(x[:0] if is_second else x, target=y),
            lambda: job.schedule.evaluate(x, target=None if is_second else y),
        ]
    )


def test_replicas_evaluate_together_or_not_at_all() -> None:
    (told, _), *others = found = in_ranks(4, _mean_of_both)
    layers = _trained_alone()
    x, y = batch(100)
    with torch.no_grad():
        of = [loss_fn(through(layers, x[:rows]), y[:rows]).item() for rows in (6, 5)]
    assert told == pytest.approx(sum(of) / 2, rel=1e-4)
    assert all(other == told for other, _ in others)
    for _, texts in found:
        assert_said(texts, ["x: it has no rows|of replica 1] can't begin", "1 of replica 1] hold the last layer"])


def _trained_alone() -> list[nn.Module]:
    """The job's layers after its first step, in one process."""
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Embedding(WORDS, WIDTH), Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)]
    optimizer = AdamW(nn.ModuleList(layers).parameters(), lr=0.01)
    for replica in (0, 1):
        x, y = batch(replica)
        (loss_fn(through(layers, x), y) / 2).backward()
    optimizer.step()
    return layers


def _scaled(rank: int, world: int) -> tuple[list[float], list[float]]:
    """One replica's gradient of one layer is infinite at first."""
    mesh = _mesh()
    job = _Job(mesh)
    scaler = job.schedule.attach(GradScaler("cpu", init_scale=2.0**10, growth_interval=2))
    losses, scales = [], []
    for step in range(5):
        x, y = batch(step)
        losses.append(job.schedule.step(x, target=y).item())
        if step == 1 and rank == 3:
            next(local(part.grad) for _, part in _own(job.schedule) if part.grad is not None).view(-1)[0] = float("inf")
        scaler.unscale_(job.optimizer)
        job.schedule.clip_grad_norm_(1.0)
        scaler.step(job.optimizer)
        scaler.update()
        job.optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return losses, scales


def test_replicas_skip_a_step_together() -> None:
    (losses, scales), *others = in_ranks(4, _scaled)
    assert others == [(losses, scales)] * 3
    assert scales == [2.0**10, 2.0**9, 2.0**9, 2.0**10, 2.0**10]
    assert all(loss == loss for loss in losses)


def _refused(rank: int, world: int) -> list[str]:
    mesh = _mesh()
    partly: list[nn.Module] = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]
    fully_shard(partly[0], mesh=mesh["dp"])
    replicated: list[nn.Module] = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]
    for layer in replicated:
        fully_shard(layer, mesh=mesh)
    split: list[nn.Module] = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]
    for layer in split:
        distribute_module(layer, mesh["dp"])
    job = _Job(mesh)
    x, y = batch(0)
    longer, target = batch(0, words=7)
    is_second = mesh["dp"].get_local_rank() == 1
    other = Plan.even(4, ["rank0", "rank1"], 2, "gpipe")

    def differing() -> None:
        if is_second:
            job.schedule.change(other)
        job.schedule.step(x, target=y)

    return refusals(
        [
            lambda: Schedule(partly, 2, loss_fn, group=mesh["pp"]),
            lambda: Schedule(replicated, 2, loss_fn, group=mesh["pp"]),
            lambda: Schedule(split, 2, loss_fn, group=mesh["pp"]),
            lambda: Schedule([nn.Linear(WIDTH, WIDTH)], 2, loss_fn, group=mesh),
            lambda: job.schedule.step(x, target=None if is_second else y),
            lambda: job.schedule.step(longer if is_second else x, target=target if is_second else y),
            lambda: job.schedule.step(x[:3] if is_second else x, target=y),
            differing,
        ]
    )


def test_what_replicas_can_not_do_is_refused_on_all_of_them() -> None:
    expected = [
        "1.weight is not sharded and others are",
        "0.weight is sharded over a mesh of 2 dimensions",
        "0.weight is sharded by something else than fully_shard",
        "give its pipeline part",
        "needs target on rank 1 of replica 1",
        "x: its shape or type differs",
        "can't be cut into 2 equal microbatches|can't begin",
        "the plan differs from rank to rank",
    ]
    for texts in in_ranks(4, _refused):
        assert_said(texts, expected)


def _led(rank: int, world: int) -> list[tuple[int, list[int], int, str]]:
    """Plans that come to replica 0 alone, as from a coordinator: a new number for the one in force, and another one."""
    mesh = _mesh()
    job = _Job(mesh)
    schedule, seat = job.schedule, job.schedule._seat
    text = json.loads(schedule.plan.write())
    other = json.loads(random_plan(4, 2, 2, 5).write())
    plans = {2: {**text, "epoch": 7, "parent": 1}, 4: {**other, "epoch": 9, "parent": 7}}
    if job.replica == 0:
        seat.native = SimpleNamespace(word=lambda: [0] * _native.Session.NUMBERS, settled=lambda *_: None, epoch=None)
        seat.boundary = lambda *_: Plan.read(json.dumps(plans[schedule.steps])) if schedule.steps in plans else None
    seen = []
    for _ in range(6):
        loss = job.step()
        seen.append((schedule.plan.epoch, schedule.plan.device_of_layers(), schedule._plan_number, loss.hex()))
    seat.native = None
    return seen


def test_all_replicas_go_over_to_what_the_first_one_is_told() -> None:
    first, *others = in_ranks(4, _led)
    assert others == [first] * 3
    assert [epoch for epoch, *_ in first] == [1, 1, 7, 7, 9, 9]
    assert first[3][1] != first[4][1]
    assert [loss for *_, loss in first] == [loss for *_, loss in in_ranks(4, _still)[0]]


def _still(rank: int, world: int) -> list[tuple[str]]:
    job = _Job(_mesh())
    return [(job.step().hex(),) for _ in range(6)]


def _weighed(rank: int, world: int) -> list[dict[int, int]]:
    """What layers hold for a microbatch: plain ones, and sharded ones that keep their parameters until backward or don't."""
    mesh, found = _mesh(), []
    for reshard in (None, False, True):
        torch.manual_seed(1)
        layers: list[nn.Module] = [nn.Linear(WIDTH, 64 * WIDTH), nn.Linear(64 * WIDTH, WIDTH)]
        if reshard is not None:
            for layer in layers:
                fully_shard(layer, mesh=mesh["dp"], reshard_after_forward=reshard)
        schedule = Schedule(layers, 1, nn.functional.mse_loss, group=mesh["pp"])
        schedule._worker.tape.is_weighing = True
        schedule.step(torch.ones(2, WIDTH), target=torch.ones(2, WIDTH))
        found.append(dict(schedule._worker.tape.activation_bytes))
    return found


def test_gathered_parameters_are_not_taken_for_activations() -> None:
    for plain, kept, dropped in in_ranks(4, _weighed):
        assert plain and plain == kept == dropped


def _accumulated(rank: int, world: int, changes: dict[int, int]) -> list[float]:
    """Two steps before each of the optimizer's."""
    job = _Job(_mesh())
    losses = []
    for step in range(5):
        if step in changes:
            job.schedule.change(random_plan(4, 2, 2, changes[step], epoch=1 + step))
        x, y = batch(2 * step + (job.replica or 0))
        losses.append(job.schedule.step(x, target=y).item())
        if step % 2:
            job.optimizer.step()
            job.optimizer.zero_grad()
    return losses


def test_sharded_gradients_that_are_accumulated_move_with_their_layer() -> None:
    changed, still = (in_ranks(4, _accumulated, changes) for changes in ({1: 5, 3: 6}, {}))
    assert changed == still and len(set(still[0])) == 5
