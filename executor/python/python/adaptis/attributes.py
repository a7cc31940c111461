"""What a layer's modules keep by themselves: attributes that are neither parameters nor buffers. What of it has changed goes
where the layer goes.

    attributes = Attributes(layers, tied, loss_fn)
    told = attributes.leave(layer)          all that has ever changed; to be pickled
    attributes.take(layer, told, device)    on another rank

    inside = attributes.inside(layer)       before a run that may be done again
    with attributes.again(layer, inside, device): the layer runs

1. What a value is, and how one is made of another, is said in `records`, `writing` and `reading`.
2. What several layers reach is no layer's own: it stays as it is on each rank, and it is told where a step changes it.
3. What can't be moved is told when its layer moves, if it may make a difference.
4. What a loss keeps goes with the last layer.
"""

from __future__ import annotations

import contextlib
import logging
import types
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from adaptis.reading import Reader
from adaptis.records import NOTHING, PLAIN, Left, can_be_made, number_of
from adaptis.replicas import is_sharded
from adaptis.writing import AGAIN_BYTES_MAX, OF_MODULES, Other, Writer, is_gone_into

logger = logging.getLogger("adaptis")

WATCHED_MAX = 1024
"""Of what several layers reach, so much is looked at in a first step."""
PLACES_MAX = 3
"""Attributes that are named for something that several layers reach."""

Place = tuple[str, str]
"""The path of a module, or the name of a parameter, in its layer, and the name of an attribute."""
OF_LOSS: Place = ("", " loss_fn")
"""The place of a loss, at the last layer."""

GONE = Left("it is gone")
"""In the place of an attribute that is not there."""

Told = list[tuple[Place, Any]]
"""Attributes, written down."""


def _holders(layer: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """What has attributes, by name."""
    for path, module in layer.named_modules():
        # Those of torch.jit have theirs elsewhere.
        if not isinstance(module, torch.jit.ScriptModule):
            yield path, module.__dict__
    for name, part in layer.named_parameters():
        if not is_sharded(part) and part.__dict__:
            yield name, part.__dict__


def _attributes(layer: nn.Module) -> dict[Place, Any]:
    return {
        (path, name): value
        for path, own in _holders(layer)
        for name, value in list(own.items())
        if _is_own(name, own)
    }


def _is_own(name: str, own: dict[str, Any]) -> bool:
    """Neither torch's, nor ours."""
    is_ours = name.startswith("_adaptis") or (name == "forward" and "_adaptis_ledger" in own)
    return name not in OF_MODULES and not is_ours


def _named(at: int, place: Place) -> str:
    return ".".join(filter(None, (str(at), *place)))


@dataclass(frozen=True)
class Inside:
    """What containers and objects of a layer held."""

    # By module and name of the attribute; none where not all of it can be made once more.
    records: list[tuple[nn.Module, str, Any]] | None
    # Of what is not made once more.
    number: str


class Attributes:
    """Of all layers: what they were when they were built, alike on every rank, and what has become of them here."""

    def __init__(
        self, layers: Sequence[nn.Module], tied: Sequence[Sequence[int]], loss_fn: Callable[..., Any] | None = None
    ) -> None:
        self.layers = layers
        self._loss = loss_fn if _keeps_state(loss_fn) else None
        self._kinds = [{path: type(module) for path, module in layer.named_modules()} for layer in layers]
        # By layer: what goes along, as it has changed once, or lies in what moves.
        self._moving: list[set[Place]] = [set() for _ in layers]
        # By module: the names of its attributes, and which are its own.
        self._names: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[str, ...], tuple[str, ...]]] = weakref.WeakKeyDictionary()
        # What is left behind has been told.
        self._missed: set[tuple[int, Place]] = set()
        self._others = _of_others(layers)
        found = _Found(self, tied)
        self._shared, self._watched, self._built = found.own, found.watched, found.numbers
        # Why they can't be on several ranks.
        self.reaching = found.reaching
        # By attribute: the module of another layer that it holds.
        self.holding = found.holding

    def leave(self, at: int) -> Told:
        """What a layer takes along, for another rank."""
        layer, built, moving, now = self.layers[at], self._built[at], self._moving[at], self.of(at)
        writer, modules = self.writer(at), dict(layer.named_modules())
        for place, value in now.items():
            writer.forget()
            number = number_of(writer.written(value))
            if self._was_there(at, place, modules) and built.get(place) != number:
                moving.add(place)
            for missed in writer.missed:
                self._miss(at, place, missed)
        made = {(path, name) for path, own in _holders(layer) for of in _OF_TORCH for name in own.get(of, ())}
        moving |= {place for place in built.keys() - now.keys() - made if self._was_there(at, place, modules)}
        writer = self.writer(at, copies=True)
        told: Told = [(place, writer.written(now[place]) if place in now else GONE) for place in sorted(moving)]
        return [(place, record) for place, record in told if record is GONE or not isinstance(record, Left)]

    def take(self, at: int, told: Told, device: torch.device) -> None:
        """What came along with a layer. Modules that only the sender has made since are made here in their turn."""
        holders, reader = dict(_holders(self.layers[at])), Reader(self.layers[at], device)
        # What is an attribute for the first time, a parameter has none for yet.
        holders.update({name: part.__dict__ for name, part in self.layers[at].named_parameters() if name not in holders})
        for place, record in told:
            path, name = place
            self._moving[at].add(place)
            if place == OF_LOSS:
                reader.read(record, self._loss)
            elif path in holders and record == GONE:
                holders[path].pop(name, None)
            elif path in holders:
                holders[path][name] = reader.read(record, holders[path].get(name, NOTHING))
            for missed in reader.missed:
                self._miss(at, place, missed)
            reader.missed.clear()

    def inside(self, at: int) -> Inside | None:
        """What the containers and objects of a layer hold, for a run of it that may be done again; none where it has none."""
        found = self._inside(at)
        if not found:
            return None
        writer = Writer(self.layers[at], self._shared, self._others, copies=True, is_for_again=True)
        records = [(module, name, writer.written(module.__dict__[name])) for module, name in found]
        kept = [(id(value), value._version) for value in writer.kept]
        if all(can_be_made(record) for _, _, record in records):
            return Inside(records, repr(kept))
        return Inside(None, number_of([record for _, _, record in records]) + repr(kept))

    def _inside(self, at: int) -> list[tuple[nn.Module, str]]:
        found = []
        for module in self.layers[at].modules():
            own = module.__dict__
            known = self._names.get(module)
            if known is None or known[0] != tuple(own):
                known = self._names[module] = tuple(own), tuple(name for name in own if _is_own(name, own))
            found += [(module, name) for name in known[1] if type(own[name]) not in PLAIN and self._is_kept(own[name])]
        for part in self.layers[at].parameters():
            if not is_sharded(part) and part.__dict__:
                # They are no modules, and have attributes like these.
                found += [(part, name) for name in part.__dict__]  # type: ignore[misc]
        return found

    def _is_kept(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            # Large ones are looked at by their version, graphs are freed (`before`), and what is trained is itself.
            is_dense = value.layout == torch.strided and not is_sharded(value)
            return is_dense and not value.requires_grad and value.nbytes <= AGAIN_BYTES_MAX
        return id(value) not in self._shared and _may_change(value)

    def is_as(self, at: int, then: Inside | None) -> bool:
        """Whether a run can be done again as it was: what was written then can be made, or is as it was."""
        if then is None or (then.records is not None and then.number == "[]"):
            return True
        now = self.inside(at)
        return now is not None and (now.records is None) == (then.records is None) and now.number == then.number

    @contextlib.contextmanager
    def again(self, at: int, then: Inside | None, device: torch.device) -> Iterator[None]:
        """Modules hold what they held then, other objects of the same contents, for a run. What they held before is to be put
        back by `Before.again`, around this; that of parameters is here."""
        records = [] if then is None else then.records
        if records is None:
            yield
            return
        parameters = (part for part in self.layers[at].parameters() if not is_sharded(part))
        of_parameters = [(part, dict(part.__dict__)) for part in parameters if part.__dict__]
        reader = Reader(self.layers[at], device, is_again=True)
        for part, was in of_parameters:
            for name in was:
                part.__dict__.pop(name)
        for module, name, record in records:
            module.__dict__[name] = reader.read(record)
        try:
            yield
        finally:
            for part, was in of_parameters:
                part.__dict__.clear()
                part.__dict__.update(was)

    def watch(self) -> list[str]:
        """What several layers reach, by numbers, before a step."""
        return [number_of(Writer(None, {}, self._others).written(look())) for look, _ in self._watched]

    def tell(self, before: list[str]) -> None:
        """Has it said where a step has changed some of it."""
        changed = [places for (_, places), was, now in zip(self._watched, before, self.watch()) if was != now]
        for places in dict.fromkeys(tuple(places) for places in changed):
            logger.warning(
                "what several layers share changes as they run (%s): each rank has its own of it, so that a layer, or loss_fn, sees "
                "what the layers of its rank did to it alone; where results depend on it, pass it on from layer to layer with "
                "their outputs", ", ".join(places)
            )

    def of(self, at: int) -> dict[Place, Any]:
        """The attributes of a layer."""
        found = _attributes(self.layers[at])
        if self._loss is not None and at == len(self.layers) - 1:
            found[OF_LOSS] = self._loss
        return found

    def writer(self, at: int, copies: bool = False) -> Writer:
        """What writes them down."""
        return Writer(self.layers[at], self._shared, self._others, copies)

    def _was_there(self, at: int, place: Place, modules: Mapping[str, nn.Module]) -> bool:
        """When the layer was built, and is the same one."""
        path = place[0]
        module = modules.get(path)
        if path not in self._kinds[at] or module is None:
            if module is not None:
                self._miss(at, (path, ""), f"a {type(module).__name__} that was made since the layer was built, anew on each rank")
            return module is None
        kind = type(module)
        if kind is not self._kinds[at][path] and not issubclass(kind, self._kinds[at][path]):
            self._miss(at, (path, ""), f"a {kind.__name__} that has taken the place of a {self._kinds[at][path].__name__}")
            return False
        return True

    def _miss(self, at: int, place: Place, what: str) -> None:
        if (at, place) not in self._missed:
            self._missed.add((at, place))
            logger.warning(
                "%s keeps something in %r that does not move with it (%s), and each rank has its own: keep what results depend on "
                "in buffers, numbers, lists or objects of your own", "loss_fn" if place == OF_LOSS else f"layer {at}",
                "it" if place == OF_LOSS else ".".join(filter(None, place)), what
            )


_OF_TORCH = ("_parameters", "_buffers", "_modules")


def _keeps_state(loss_fn: Any) -> bool:
    """A loss that is a module, a function with a closure, or an object that can be called. A method's object is the script's."""
    if loss_fn is None or isinstance(loss_fn, (types.MethodType, types.BuiltinMethodType, type)):
        return False
    return is_gone_into(loss_fn) or bool(getattr(loss_fn, "__closure__", None))


def _may_change(value: Any) -> bool:
    """Whether there is something inside that can change."""
    if isinstance(value, (tuple, frozenset)):
        return any(type(part) not in PLAIN and _may_change(part) for part in value)
    if isinstance(value, Tensor):
        return not is_sharded(value)
    if isinstance(value, types.FunctionType):
        return bool(value.__closure__)
    if isinstance(value, types.BuiltinFunctionType):
        # That of an object, as the append of a list.
        return not isinstance(value.__self__, (types.ModuleType, type, type(None)))
    return not isinstance(value, (types.ModuleType, type, torch.dtype, torch.device))


def _of_others(layers: Sequence[nn.Module]) -> dict[int, Other]:
    """What layers have, by what it is, each with the name of the first one that has it."""
    found: dict[int, Other] = {}
    for at, layer in enumerate(layers):
        for name, part in (*layer.named_modules(), *layer.named_parameters()):
            found.setdefault(id(part), Other(_itself(part), f"{at}.{name}" if name else f"layer {at}"))
        for path, module in layer.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    # One that takes its place leaves its number to something else.
                    found.setdefault(id(buffer), Other(partial(module._buffers.get, name), _named(at, (path, name))))
    return found


class _Found:
    """What attributes are, and what several layers reach of them that can change, other than what belongs to torch. Layers that
    share a parameter are one."""

    def __init__(self, attributes: Attributes, tied: Sequence[Sequence[int]]) -> None:
        group = {layer: among[0] for among in tied for layer in among}
        users: dict[int, set[int]] = {}
        places: dict[int, list[str]] = {}
        met: dict[int, Any] = {}
        self.numbers: list[dict[Place, str]] = []
        reached: list[dict[Place, list[int]]] = []
        self.own: dict[int, Any] = {}
        self.reaching: list[str] = []
        self.holding: dict[str, str] = {}
        for at, layer in enumerate(attributes.layers):
            writer = Writer(layer, {}, attributes._others)
            numbers, of = {}, {}
            for place, value in attributes.of(at).items():
                writer.forget()
                numbers[place] = number_of(writer.written(value))
                if writer.has_views:
                    attributes._moving[at].add(place)
                for name in writer.of_others[:1]:
                    self.reaching.append(
                        f"layers: {_named(at, place)} holds {name} of another layer, which is nothing on other ranks: tie parameters, as "
                        "layer.weight = other.weight, or pass on what is made of them"
                    )
                if writer.modules_of_others:
                    self.holding.setdefault(_named(at, place), writer.modules_of_others[0])
                # What can change: the rest is taken for its value.
                of[place] = [id(part) for part in writer.met if is_gone_into(part)]
                for part in writer.met:
                    if not _may_change(part):
                        continue
                    met[id(part)] = part
                    used = users.setdefault(id(part), set())
                    if at not in used:
                        places.setdefault(id(part), []).append(_named(at, place))
                    used.add(at)
            self.numbers.append(numbers)
            reached.append(of)
        shared = {
            number: part for number, part in met.items() if len({group.get(at, at) for at in users[number]}) > 1
        }
        self.own = {number: part for number, part in shared.items() if is_gone_into(part)}
        # It goes with the last layer all the same.
        if attributes._loss is not None:
            self.own.pop(id(attributes._loss), None)
        self.watched = [(_itself(part), places[number][:PLACES_MAX]) for number, part in list(shared.items())[:WATCHED_MAX]]
        self.watched += [(look, [name]) for name, look in _of_classes(attributes.layers)]
        for at, of in enumerate(reached):
            among = [place for place, numbers in of.items() if not self.own.keys().isdisjoint(numbers)]
            now, writer = attributes.of(at), Writer(attributes.layers[at], self.own, attributes._others)
            for place in among:
                writer.forget()
                self.numbers[at][place] = number_of(writer.written(now[place]))


def _itself(part: Any) -> Callable[[], Any]:
    return lambda: part


def _of_classes(layers: Sequence[nn.Module]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Numbers, lists and the like that classes of modules have."""
    kinds = {kind for layer in layers for module in layer.modules() for kind in type(module).__mro__}

    def look(kind: type) -> Callable[[], Any]:
        return lambda: {
            name: value
            for name, value in vars(kind).items()
            if not name.startswith("__") and (type(value) in PLAIN or type(value) in (list, dict, set) or isinstance(value, Tensor))
        }

    for kind in kinds:
        if kind.__module__.partition(".")[0] not in ("torch", "builtins", "adaptis", "typing", "abc"):
            yield kind.__qualname__, look(kind)
