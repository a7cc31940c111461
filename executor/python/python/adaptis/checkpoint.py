"""Checkpoints that do not depend on the plan: what is in them is named by the layer, never by the rank.

    {"model":      {"0.weight": .., "1.norm.bias": ..},                      as the state of nn.ModuleList(layers)
     "optimizers": [{"state": {"0.weight": {"exp_avg": ..}}, "param_groups": [{"lr": .., "params": ["0.weight", ..]}]}],
     "steps":      100}                                                      random numbers of layers go by it

1. A rank's part has the state of its own layers alone; the parts of all ranks together are what one process would have.
   The optimizers' members are of the form that `Optimizer.load_state_dict` takes.
2. What does not fit is refused before anything is changed.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from adaptis import agreement, replicas

if TYPE_CHECKING:
    from adaptis.schedule import Schedule

State = dict[str, Any]
T = TypeVar("T")


class _Named:
    """What a checkpoint has and was not read."""


EXTRA = "_extra_state"
"""What torch calls a module's extra state in that of a model."""


def part(schedule: Schedule) -> State:
    """What this rank has."""
    names = names_of(schedule)
    return {
        "model": schedule.state_dict(),
        "optimizers": [_named(optimizer, names) for optimizer in schedule.optimizers],
        "steps": schedule.steps,
    }


def whole(schedule: Schedule) -> State | None:
    """What all ranks have, on rank 0 alone and in the host's memory. To be called on every rank."""
    own = _on_host(part(schedule))
    if schedule.replicas.rank > 0:
        return None
    parts: list[Any] | None = [None] * schedule.world if schedule.rank == 0 else None
    dist.gather_object(own, parts, group=schedule.channels.control, group_dst=0)
    if parts is None:
        return None
    for other in parts:
        own["model"].update(other["model"])
        for mine, theirs in zip(own["optimizers"], other["optimizers"]):
            mine["state"].update(theirs["state"])
    own["model"] = {name: own["model"][name] for name in sorted(own["model"], key=_layer_of)}
    return own


def restore(schedule: Schedule, state: Mapping[str, Any]) -> None:
    """Takes what belongs to this rank's layers, if all ranks can."""
    fitting = _by_all(schedule, "restore", "can't take this checkpoint", lambda: _checked(schedule, state))
    # Whoever fails on the way has taken a part of it.
    schedule._is_mixed = True

    def take() -> None:
        for saved in fitting:
            _shard(schedule, saved["state"])
        schedule.load_state_dict(state["model"])
        for optimizer, saved in zip(schedule.optimizers, fitting):
            optimizer.load_state_dict(saved)

    _by_all(schedule, "restore", "failed half-way, so that the state is a mixture: restore another one", take)
    schedule._is_mixed = False
    schedule.steps = int(state["steps"])


def _by_all(schedule: Schedule, what: str, why: str, work: Callable[[], T]) -> T:
    """Does what all ranks are to do or none: where one fails, all do."""
    error: Exception | None = None
    try:
        result = work()
    except Exception as found:
        error = found
    every = agreement.of_replicas(schedule, agreement.gathered(schedule, [int(error is None)]))
    if error is not None:
        raise error
    failed = [name for name, vote in agreement.called(every) if not vote[0]]
    if failed:
        raise RuntimeError(f"{what}: ranks [{', '.join(failed)}] {why}; they say why")
    return result


def _checked(schedule: Schedule, state: Mapping[str, Any]) -> list[State]:
    """What a checkpoint has for each optimizer here; nothing is changed."""
    if not isinstance(state, Mapping):
        raise TypeError(f"restore: a checkpoint, as a dictionary, not a {type(state).__name__}")
    for name in ("model", "optimizers", "steps"):
        if name not in state:
            raise ValueError(f"restore: the checkpoint has no {name!r}, only {sorted(state)}")
    saved = state["optimizers"]
    if not isinstance(saved, (list, tuple)) or not all(isinstance(of, Mapping) and "param_groups" in of for of in saved):
        raise TypeError("restore: optimizers is a list of what Optimizer.state_dict gives, each with its param_groups")
    steps = int(state["steps"])
    if schedule._seat.native is not None and steps != schedule.steps:
        raise RuntimeError("restore: a coordinator counts this run's steps already; restore before the first step")
    _check_model(schedule, state["model"])
    found = len(state["optimizers"])
    if found != len(schedule.optimizers):
        raise ValueError(f"restore: the checkpoint has {found} optimizers, {len(schedule.optimizers)} are attached")
    names = names_of(schedule)
    own = set(_own_names(schedule))
    return [_fitting(optimizer, saved, names, own) for optimizer, saved in zip(schedule.optimizers, state["optimizers"])]


def save(schedule: Schedule, directory: str | Path) -> None:
    """Writes a checkpoint of torch.distributed.checkpoint: each rank its part."""
    # Imported where it is needed: it takes as long as the rest of torch.
    from torch.distributed.checkpoint import state_dict_saver

    state = part(schedule)
    odd = {path: value for path, value in _members(state) if _is_odd(value)}
    if odd:
        # As it is: by itself it would come back with its keys as texts, and without what has nothing in it.
        kept = io.BytesIO()
        torch.save(odd, kept)
        state["odd"] = {str(schedule.rank): kept.getvalue()}
    state_dict_saver.save(state, checkpoint_id=directory, process_group=_group(schedule))


def load(schedule: Schedule, directory: str | Path) -> None:
    """Reads one: each rank what its layers need."""
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FileSystemReader(directory)
    own = set(_own_names(schedule))
    own_model = schedule.state_dict()
    # What modules keep besides tensors is as it was saved, whatever it holds now.
    extra = {name: own_model.pop(name) for name in list(own_model) if name.endswith(EXTRA)}

    def look() -> Any:
        metadata = reader.read_metadata()
        paths = (metadata.planner_data or {}).values()
        _check_model(schedule, {**{path[1]: _Named() for path in paths if path[0] == "model"}, **extra})
        return metadata

    metadata = _by_all(schedule, "load", "can't read this checkpoint", look)
    paths: Mapping[str, tuple[Any, ...]] = metadata.planner_data or {}
    parameters = dict(schedule.named_parameters())
    # Read beside what is there, which stays as it is where a file can't be read.
    wanted: State = {"model": {name: _beside(part) for name, part in own_model.items()}, "optimizers": [], "steps": 0}

    def is_own(path: tuple[Any, ...]) -> bool:
        if path[0] == "model":
            return path[1] in extra
        return path[0] == "optimizers" and not (len(path) > 3 and path[2] == "state" and path[3] not in own)

    for key, path in sorted(paths.items(), key=lambda item: str(item[1])):
        if not is_own(path) and path[0] != "odd":
            continue
        kept = metadata.state_dict_metadata[key]
        blank = None
        if isinstance(kept, TensorStorageMetadata):
            # An optimizer takes what it wants on its device there by itself; Adam leaves its count of steps on the host.
            blank = torch.empty(kept.size, dtype=kept.properties.dtype, device="cpu")
            blank = replicas.placed(blank, parameters.get(path[3])) if len(path) > 3 else blank
        _put(wanted, path, blank)
    try:
        state_dict_loader.load(wanted, storage_reader=reader, process_group=_group(schedule))
    except CheckpointException as error:
        # It is none of Python's usual ones.
        raise RuntimeError(f"load: {directory} can't be read, and nothing is changed: {error}") from error
    for told in wanted.pop("odd", {}).values():
        for path, value in torch.load(io.BytesIO(told), map_location="cpu", weights_only=False).items():
            if is_own(path):
                _put(wanted, path, value)
    for name, value in extra.items():
        # Of others' checkpoints nothing tells that it was empty but that it is not there.
        wanted["model"].setdefault(name, type(value)() if isinstance(value, (dict, list)) else value)
    restore(schedule, wanted)


def _beside(part: Any) -> Any:
    """Room for a tensor, in the memory of the host if it is whole."""
    if not isinstance(part, Tensor):
        return part
    return torch.empty_like(part) if replicas.is_sharded(part) else torch.empty_like(part, device="cpu")


def forget_elsewhere(schedule: Schedule, optimizer: Optimizer) -> None:
    """Drops what an optimizer keeps for the layers of other ranks, as after it was loaded."""
    for layer in schedule._elsewhere():
        for parameter in layer.parameters():
            optimizer.state.pop(parameter, None)


def check_known(names: Mapping[int, str], optimizer: Optimizer) -> None:
    """Refuses an optimizer that trains what is in no layer: it would stay where it is, on one rank alone."""
    for at, group in enumerate(optimizer.param_groups):
        for part in group["params"]:
            if id(part) not in names and part.requires_grad:
                raise ValueError(
                    f"an attached optimizer trains a parameter of shape {tuple(part.shape)} (group {at}) that is in none of the "
                    "schedule's layers: it would not move with them; make it a part of the layer that uses it"
                )


def _group(schedule: Schedule) -> dist.ProcessGroup | None:
    """Those who write and read together: of sharded layers all replicas, and so the whole job."""
    return schedule.channels.control if schedule.replicas.group is None else None


def names_of(schedule: Schedule) -> dict[int, str]:
    return {id(parameter): name for name, parameter in schedule.named_parameters()}


def _own_names(schedule: Schedule) -> Iterator[str]:
    names = names_of(schedule)
    return (names[id(parameter)] for _, layer in schedule._own() for parameter in layer.parameters())


def _order(optimizer: Optimizer, names: Mapping[int, str]) -> list[list[str]]:
    """The names of an optimizer's parameters, group by group."""
    # What is frozen and no layer's has no state, and a name by its place.
    check_known(names, optimizer)
    return [
        [names.get(id(parameter), f"frozen.{at}.{place}") for place, parameter in enumerate(group["params"])]
        for at, group in enumerate(optimizer.param_groups)
    ]


def _named(optimizer: Optimizer, names: Mapping[int, str]) -> State:
    """An optimizer's state by names instead of numbers."""
    order = [name for group in _order(optimizer, names) for name in group]
    state = optimizer.state_dict()
    groups = [{**group, "params": [order[at] for at in group["params"]]} for group in state["param_groups"]]
    kept = {order[at] if isinstance(at, int) else at: value for at, value in state["state"].items()}
    return {**state, "state": kept, "param_groups": groups}


def _fitting(optimizer: Optimizer, saved: Mapping[str, Any], names: Mapping[int, str], own: set[str]) -> State:
    """What is saved of an optimizer, for this rank, in the order of its parameters. A plain script's has numbers."""
    order = _order(optimizer, names)
    groups: list[State] = list(saved["param_groups"])
    if [len(group["params"]) for group in groups] != [len(group) for group in order]:
        sizes, own_sizes = [len(group["params"]) for group in groups], [len(of) for of in order]
        raise ValueError(
            f"restore: the checkpoint's optimizer has groups of {sizes} parameters, this one of {own_sizes}"
        )
    called: dict[Any, str] = {}
    for group, expected in zip(groups, order):
        is_named = all(isinstance(name, str) for name in group["params"])
        if is_named and set(group["params"]) != set(expected):
            differing = sorted(set(group["params"]) ^ set(expected))[:4]
            raise ValueError(f"restore: the checkpoint's optimizer groups its parameters otherwise: {differing}")
        called.update(zip(group["params"], group["params"] if is_named else expected))
    groups = [{**group, "params": expected} for group, expected in zip(groups, order)]
    kept = saved.get("state", {})
    state = {called.get(at, at): kept[at] for at in kept if at not in called or called[at] in own}
    return {**saved, "state": state, "param_groups": groups}


def _shard(schedule: Schedule, state: State) -> None:
    """Makes what is kept for a sharded parameter sharded, too."""
    parameters = dict(schedule.named_parameters())
    for name, kept in state.items():
        if name in parameters and isinstance(kept, Mapping):
            state[name] = {
                detail: replicas.placed(value, parameters[name]) if isinstance(value, Tensor) else value
                for detail, value in kept.items()
            }


def _check_model(schedule: Schedule, model: Mapping[str, Any]) -> None:
    """Sees that a checkpoint is of this model and has this rank's layers."""
    last = max((_layer_of(name) for name in model), default=-1)
    if last >= len(schedule.layers):
        raise ValueError(f"restore: the checkpoint has a layer {last}, the model has {len(schedule.layers)} layers")
    for at, layer in schedule._own():
        held = {f"{at}.{name}": part for name, part in layer.state_dict().items()}
        expected = set(held)
        found = {name for name in model if _layer_of(name) == at}
        if expected - found:
            raise ValueError(
                f"restore: the checkpoint has no {sorted(expected - found)[0]}, which rank {schedule.rank} holds: "
                "it is of another model, or a part of one; a rank needs the parts of all"
            )
        if found - expected:
            raise ValueError(f"restore: the checkpoint has {sorted(found - expected)[0]}, which layer {at} has not")
        for name, part in held.items():
            saved = model[name]
            # Of a checkpoint that is yet to be read the names are known.
            if isinstance(part, Tensor) and not isinstance(saved, (Tensor, _Named)):
                raise ValueError(f"restore: {name} is a {type(saved).__name__} in the checkpoint, and a tensor in the model")
            if isinstance(part, Tensor) and isinstance(saved, Tensor) and part.shape != saved.shape:
                shapes = f"{tuple(saved.shape)} in the checkpoint and {tuple(part.shape)} in the model"
                raise ValueError(f"restore: {name} is of shape {shapes}")


def _layer_of(name: str) -> int:
    number = name.partition(".")[0]
    return int(number) if number.isdigit() else -1


def _members(state: State) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """What is neither a tensor nor a container of ours, and where it is: extra state, and what optimizers keep."""
    for name, value in state["model"].items():
        if name.endswith(EXTRA):
            yield ("model", name), value
    for at, optimizer in enumerate(state["optimizers"]):
        for name, kept in optimizer["state"].items():
            for detail, value in kept.items() if isinstance(kept, Mapping) else ():
                yield ("optimizers", at, "state", name, detail), value
        for number, group in enumerate(optimizer["param_groups"]):
            for detail, value in group.items():
                yield ("optimizers", at, "param_groups", number, detail), value


def _is_odd(value: Any) -> bool:
    """It has something with nothing in it, or a key that is no text."""
    if isinstance(value, Mapping):
        return not value or any(not isinstance(key, str) or _is_odd(of) for key, of in value.items())
    return isinstance(value, (list, tuple)) and (not value or any(map(_is_odd, value)))


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return replicas.whole(value.detach()).cpu()
    if isinstance(value, Mapping):
        return {key: _on_host(of) for key, of in value.items()}
    return [_on_host(of) for of in value] if isinstance(value, list) else value


def _put(state: State, path: tuple[Any, ...], value: Any) -> None:
    """Puts a value where its path says, in dictionaries and lists that grow on the way."""
    place: Any = state
    for key, after in zip(path, path[1:]):
        blank: Any = [] if isinstance(after, int) else {}
        if isinstance(place, list):
            place.extend(None for _ in range(key + 1 - len(place)))
            place[key] = blank if place[key] is None else place[key]
        else:
            place.setdefault(key, blank)
        place = place[key]
    if isinstance(place, list):
        place.extend(None for _ in range(path[-1] + 1 - len(place)))
    place[path[-1]] = value
