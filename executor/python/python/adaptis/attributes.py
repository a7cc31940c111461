"""What a layer's modules keep by themselves: attributes that are neither parameters nor buffers. What of it has changed goes
where the layer goes.

    attributes = Attributes(layers, tied)
    told = attributes.leave(layer)          all that has ever changed; to be pickled
    attributes.take(layer, told, device)    on another rank

1. Numbers, texts, lists, dicts, sets, tensors and objects of the script's own classes move, whatever they hold. Where they
   come to, lists and objects stay the same ones and get other contents, so that whoever else holds them sees it.
2. A module, a parameter or a buffer within them is named, and so are tensors that lie in the memory of one.
3. What several layers reach is no layer's own: it stays as it is on each rank, and it is told where a step changes it.
4. What can't be looked into, as a lock or a file, is left to each rank.
"""

from __future__ import annotations

import collections
import io
import logging
import pickle
import sys
import types
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from adaptis._native import digest
from adaptis.memory import storage_of
from adaptis.replicas import is_sharded

logger = logging.getLogger("adaptis")

PLAIN = (bool, int, float, complex, str, bytes, type(None))
"""What has no parts and never changes."""
PARTS_MAX = 1 << 20
"""Of an attribute, with the parts of its parts; what has more is not looked into."""
VALUE_BYTES_MAX = 1 << 24
"""Of one that is taken as a whole."""
OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that all modules have. Which of them train is said by the script, on all ranks."""
WATCHED_MAX = 1024
"""Of what several layers reach, so much is looked at in a first step."""
PLACES_MAX = 3
"""Attributes that are named for something that several layers reach."""

Place = tuple[str, str]
"""The path of a module in its layer, and the name of an attribute."""


@dataclass(frozen=True)
class _Own:
    """A module, parameter or buffer of the layer."""

    name: str


@dataclass(frozen=True)
class _View:
    """A tensor in the memory of a parameter or buffer."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    # From where that begins.
    offset: int


@dataclass(frozen=True)
class _Again:
    """What was met before."""

    number: int


@dataclass(frozen=True)
class _Parts:
    """What is made of others in an order, or in none."""

    number: int
    of: type
    parts: list[Any]
    # Of a deque, how many it takes.
    most: int | None = None


@dataclass(frozen=True)
class _Table:
    """A dict."""

    number: int
    of: type
    rows: list[tuple[Any, Any]]
    factory: Any = None


@dataclass(frozen=True)
class _Object:
    """An object of a class of the script's own."""

    number: int
    name: str
    # Where it can be sent.
    of: type | None
    state: list[tuple[str, Any]]


@dataclass(frozen=True)
class _Value:
    """What is taken as a whole."""

    number: int
    pickled: bytes


@dataclass(frozen=True)
class _Array:
    """A tensor with a memory of its own."""

    number: int
    tensor: Tensor
    is_on_device: bool
    requires_grad: bool

    def __repr__(self) -> str:
        told = (self.number, self.tensor.dtype, tuple(self.tensor.shape), self.is_on_device, self.requires_grad)
        return f"_Array({told}, {digest(_bytes(self.tensor))})"


@dataclass(frozen=True)
class _Foreign:
    """What is left to each rank."""

    name: str


_ABSENT = _Foreign("")
"""In the place of an attribute that is not there."""
_NOTHING: Any = object()

_IN_ORDER = (list, collections.deque)
_FIXED = (tuple, frozenset)
_TABLES = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_OF_TORCH = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.Generator)
_NAMED = (types.FunctionType, types.BuiltinFunctionType, type)


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().tobytes()


def _called(of: type) -> str:
    return f"{of.__module__}.{of.__qualname__}"


class _TooMuch(Exception):
    """It has more parts than are looked into."""


class _Looker:
    """Writes down what attributes of a layer are."""

    def __init__(self, layer: nn.Module | None, shared: Mapping[int, Any], copies: bool = False) -> None:
        self.own: dict[int, str] = {}
        self.memory: dict[int, tuple[str, int]] = {}
        for name, part in () if layer is None else (*layer.named_modules(), *_tensors(layer)):
            self.own[id(part)] = name
            if isinstance(part, nn.Module):
                continue
            where = None if is_sharded(part) else storage_of(part)
            if where is not None and where[1] > 0:
                self.memory.setdefault(where[0], (name, int(part.storage_offset())))
        self.shared = shared
        # Whether tensors are to stay what they are.
        self.copies = copies
        self.has_views = False
        self.forget()

    def forget(self) -> None:
        """What comes is told without what was met before."""
        # By what it is: the number of what was met; it is held, so that nothing else is taken for it.
        self.numbers: dict[int, int] = {}
        self.met: list[Any] = []
        # Fixed ones that are being gone through.
        self._open: set[int] = set()

    def looked(self, value: Any) -> Any:
        """An attribute, in a form that can be told apart and sent."""
        self.left = PARTS_MAX
        self._open.clear()
        try:
            return self.look(value)
        except (_TooMuch, RecursionError):
            return _Foreign("too large")

    def look(self, value: Any) -> Any:
        """A part of it."""
        if type(value) in PLAIN:
            return value
        name = self.own.get(id(value))
        if name is not None:
            return _Own(name)
        if id(value) in self.shared:
            return _Foreign("of several layers")
        number = self.numbers.get(id(value))
        if number is not None:
            return _Foreign("of itself") if id(value) in self._open else _Again(number)
        self.left -= 1
        if self.left < 0:
            raise _TooMuch
        if isinstance(value, Tensor):
            return self._tensor(value)
        number = self.numbers[id(value)] = len(self.met)
        self.met.append(value)
        of = type(value)
        if of in _IN_ORDER or of is set:
            return _Parts(number, of, self._all(value), getattr(value, "maxlen", None))
        if of in _FIXED or (issubclass(of, tuple) and hasattr(of, "_fields") and _pickled(of) is not None):
            self._open.add(id(value))
            parts = _Parts(number, of, self._all(value))
            self._open.remove(id(value))
            return parts
        if of in _TABLES:
            factory = getattr(value, "default_factory", None)
            rows = [(self.look(key), self.look(part)) for key, part in list(value.items())]
            return _Table(number, of, rows, None if factory is None else self.look(factory))
        if _is_of_script(of):
            state = [(name, self.look(part)) for name, part in _state(value).items()]
            return _Object(number, _called(of), of if _pickled(of) is not None else None, state)
        pickled = _pickled(value) if not isinstance(value, nn.Module) else None
        return _Foreign(_called(of)) if pickled is None else _Value(number, pickled)

    def _all(self, values: Any) -> list[Any]:
        self.left -= len(values)
        return [value if type(value) in PLAIN else self.look(value) for value in list(values)]

    def _tensor(self, value: Tensor) -> Any:
        where = None if is_sharded(value) else storage_of(value)
        if where is None or value.layout != torch.strided or isinstance(value, nn.Parameter):
            return _Foreign(_called(type(value)))
        of = self.memory.get(where[0]) if where[1] > 0 else None
        if of is not None:
            self.has_views = True
            return _View(of[0], tuple(value.shape), tuple(value.stride()), int(value.storage_offset()) - of[1])
        number = self.numbers[id(value)] = len(self.met)
        self.met.append(value)
        tensor = value.detach().cpu().clone() if self.copies else value.detach()
        return _Array(number, tensor, value.device.type != "cpu", value.requires_grad and value.is_leaf)


def _tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from layer.named_parameters()
    yield from layer.named_buffers()


def _is_of_script(of: type) -> bool:
    """Whether it is a class of people's own, whose objects are what their attributes are."""
    for base in of.__mro__[:-1]:
        root = base.__module__.partition(".")[0]
        if root in ("abc", "typing"):
            continue
        if root in ("torch", "numpy", "adaptis") or (root in sys.stdlib_module_names and root != "__main__"):
            return False
        if any(name in vars(base) for name in ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")):
            return False
    return not issubclass(of, (BaseException, type)) and (hasattr(of, "__dict__") or _slots(of) != [])


def _slots(of: type) -> list[str]:
    found: list[str] = []
    for base in of.__mro__:
        slots = vars(base).get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _state(value: Any) -> dict[str, Any]:
    slots = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
    return {**slots, **dict(getattr(value, "__dict__", {}))}


class _Bounded(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + len(data) > VALUE_BYTES_MAX:
            raise _TooMuch
        return super().write(data)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, (nn.Module, Tensor)):
            raise pickle.PicklingError("it holds what belongs to a layer")
        return None


def _pickled(value: Any) -> bytes | None:
    of = type(value)
    if of.__module__.partition(".")[0] in ("torch", "adaptis") and of not in _OF_TORCH:
        return None
    if isinstance(value, _NAMED):
        # By its name, if that is one that others find.
        found: Any = sys.modules.get(value.__module__ or "")
        for part in value.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not value:
            return None
    text = _Bounded()
    try:
        _Pickler(text, protocol=4).dump(value)
    except Exception:
        return None
    return text.getvalue()


class _Taker:
    """Makes attributes what was written down."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        self.own: dict[str, Any] = {**dict(layer.named_modules()), **dict(_tensors(layer))}
        self.device = device
        # What can't be made here.
        self.missed: list[str] = []
        self.made: dict[int, Any] = {}

    def take(self, node: Any, now: Any = _NOTHING) -> Any:
        """What was written down, as what is there now where that can be made it."""
        if type(node) in PLAIN:
            return node
        if isinstance(node, _Own):
            return self.own.get(node.name, now)
        if isinstance(node, _Again):
            return self.made[node.number]
        if isinstance(node, _View):
            own = self.own[node.name].detach()
            return own.as_strided(node.shape, node.stride, own.storage_offset() + node.offset)
        if isinstance(node, _Foreign):
            if now is _NOTHING:
                self.missed.append(node.name)
            return None if now is _NOTHING else now
        value: Any
        if isinstance(node, _Array):
            value = self._tensor(node, now)
        elif isinstance(node, _Value):
            value = pickle.loads(node.pickled)
        elif isinstance(node, _Table):
            return self._table(node, now)
        elif isinstance(node, _Object):
            return self._object(node, now)
        elif node.of in _IN_ORDER:
            return self._list(node, now)
        elif node.of is set:
            value = now if type(now) is set else set()
            parts = [self.take(part) for part in node.parts]
            value.clear()
            value.update(parts)
        else:
            before = list(now) if type(now) is node.of and node.of is not frozenset else []
            parts = self._parts(node.parts, before)
            value = node.of(*parts) if hasattr(node.of, "_fields") else node.of(parts)
        self.made[node.number] = value
        return value

    def _parts(self, nodes: list[Any], before: list[Any]) -> list[Any]:
        before = before + [_NOTHING] * (len(nodes) - len(before))
        return [node if type(node) in PLAIN else self.take(node, was) for node, was in zip(nodes, before)]

    def _list(self, node: _Parts, now: Any) -> Any:
        fits = type(now) is node.of and getattr(now, "maxlen", None) == node.most
        value: Any = now if fits else [] if node.of is list else collections.deque(maxlen=node.most)
        self.made[node.number] = value
        parts = self._parts(node.parts, list(value))
        value.clear()
        value.extend(parts)
        return value

    def _table(self, node: _Table, now: Any) -> Any:
        value: Any = now if type(now) is node.of else node.of()
        self.made[node.number] = value
        if node.of is collections.defaultdict:
            value.default_factory = None if node.factory is None else self.take(node.factory, value.default_factory)
        rows = []
        for key_node, part in node.rows:
            key = self.take(key_node)
            rows.append((key, self.take(part, dict.get(value, key, _NOTHING))))
        value.clear()
        for key, part in rows:
            dict.__setitem__(value, key, part)
        return value

    def _object(self, node: _Object, now: Any) -> Any:
        value = now
        if now is _NOTHING or _called(type(now)) != node.name:
            if node.of is None:
                self.missed.append(node.name)
                return None if now is _NOTHING else now
            value = object.__new__(node.of)
        self.made[node.number] = value
        before = _state(value)
        state = {name: self.take(part, before.get(name, _NOTHING)) for name, part in node.state}
        for name in before.keys() - state.keys():
            object.__delattr__(value, name)
        for name, part in state.items():
            object.__setattr__(value, name, part)
        return value

    def _tensor(self, node: _Array, now: Any) -> Tensor:
        fresh = node.tensor.to(self.device) if node.is_on_device else node.tensor
        if type(now) is Tensor and now.is_leaf and not now.requires_grad and not node.requires_grad:
            if (now.shape, now.dtype, now.device) == (fresh.shape, fresh.dtype, fresh.device) and storage_of(now):
                try:
                    # Some graph may need what is as it was.
                    return now if _bytes(now) == _bytes(fresh) else now.copy_(fresh)
                except RuntimeError:
                    # Its elements lie on one another.
                    pass
        return fresh.requires_grad_() if node.requires_grad else fresh


def _attributes(layer: nn.Module) -> dict[Place, Any]:
    return {
        (path, name): value
        for path, module in layer.named_modules()
        for name, value in list(vars(module).items())
        if name not in OF_MODULES and not name.startswith("_adaptis")
    }


def _number(node: Any) -> str:
    """Another one for what is another. NaN is what it was."""
    return digest(repr(node).encode())


Told = list[tuple[Place, Any]]
"""Attributes, written down."""


class Attributes:
    """Of all layers: what they were when they were built, alike on every rank, and what has become of them here."""

    def __init__(self, layers: Sequence[nn.Module], tied: Sequence[Sequence[int]]) -> None:
        self.layers = layers
        self._paths = [frozenset(path for path, _ in layer.named_modules()) for layer in layers]
        # By layer: what goes along, as it has changed once, or lies in what moves.
        self._moving: list[set[Place]] = [set() for _ in layers]
        # What is left behind has been told.
        self._missed: set[tuple[int, Place]] = set()
        shared = _Shared(layers, tied)
        self._shared = shared.own
        self._watched = shared.watched
        self._built = [self._numbers(at) for at in range(len(layers))]

    def leave(self, at: int) -> Told:
        """What a layer takes along, for another rank."""
        built, moving, now = self._built[at], self._moving[at], _attributes(self.layers[at])
        numbers = self._numbers(at)
        moving |= {place for place, number in numbers.items() if built.get(place) != number}
        moving |= built.keys() - now.keys()
        looker = _Looker(self.layers[at], self._shared, copies=True)
        told: Told = []
        for place in sorted(moving):
            node = looker.looked(now[place]) if place in now else _ABSENT
            if node is _ABSENT or not isinstance(node, _Foreign):
                told.append((place, node))
            elif not callable(now[place]) and not node.name.startswith("torch."):
                self._miss(at, place, node.name)
        return told

    def take(self, at: int, told: Told, device: torch.device) -> None:
        """What came along with a layer. Modules that only the sender has made since are made here in their turn."""
        modules = dict(self.layers[at].named_modules())
        taker = _Taker(self.layers[at], device)
        for place, node in told:
            path, name = place
            self._moving[at].add(place)
            if path not in modules:
                continue
            of: dict[str, Any] = modules[path].__dict__
            if node is _ABSENT or node == _ABSENT:
                of.pop(name, None)
            else:
                of[name] = taker.take(node, of.get(name, _NOTHING))
                for missed in taker.missed:
                    self._miss(at, place, missed)
                taker.missed.clear()

    def look(self, at: int) -> Told:
        """What all of a layer is, as long as nothing is taken for it."""
        looker = _Looker(self.layers[at], self._shared, copies=True)
        told: Told = []
        for place, value in _attributes(self.layers[at]).items():
            looker.forget()
            told.append((place, looker.looked(value)))
        return told

    def put_back(self, at: int, told: Told, device: torch.device) -> bool:
        """Makes it what it was then. Whether it was something else."""
        now = {place: _number(node) for place, node in self.look(at)}
        modules = dict(self.layers[at].named_modules())
        changed = [(place, node) for place, node in told if now.get(place) != _number(node)]
        for (path, name), node in changed:
            of: dict[str, Any] = modules[path].__dict__
            of[name] = _Taker(self.layers[at], device).take(node, of.get(name, _NOTHING))
        return bool(changed)

    def watch(self) -> list[str]:
        """What several layers reach, by numbers, before a step."""
        return [_number(_Looker(None, {}).looked(part)) for part, _ in self._watched]

    def tell(self, before: list[str]) -> None:
        """Has it said where a step has changed some of it."""
        changed = [places for (_, places), was, now in zip(self._watched, before, self.watch()) if was != now]
        for places in dict.fromkeys(tuple(places) for places in changed):
            logger.warning(
                "what several layers share changes as they run (%s): each rank has its own of it, so that a layer, or loss_fn, sees "
                "what the layers of its rank did to it alone; pass it on from layer to layer with their outputs", ", ".join(places)
            )

    def _numbers(self, at: int) -> dict[Place, str]:
        """Of each attribute, by itself: one is not another for what is before it."""
        looker = _Looker(self.layers[at], self._shared)
        found = {}
        for place, value in _attributes(self.layers[at]).items():
            looker.forget()
            looker.has_views = False
            found[place] = _number(looker.looked(value))
            if looker.has_views:
                self._moving[at].add(place)
        return {place: number for place, number in found.items() if place[0] in self._paths[at]}

    def _miss(self, at: int, place: Place, what: str) -> None:
        if (at, place) not in self._missed:
            self._missed.add((at, place))
            logger.warning(
                "layer %s keeps something in %r that does not move with it (%s), and each rank has its own: keep what its result "
                "depends on in buffers, numbers, lists or objects of your own", at, ".".join(filter(None, place)), what
            )


class _Shared:
    """What several layers reach that can change, other than what belongs to torch. Layers that share a parameter are one."""

    def __init__(self, layers: Sequence[nn.Module], tied: Sequence[Sequence[int]]) -> None:
        group = {layer: among[0] for among in tied for layer in among}
        users: dict[int, set[int]] = {}
        places: dict[int, list[str]] = {}
        met: dict[int, Any] = {}
        for at, layer in enumerate(layers):
            looker = _Looker(layer, {})
            for place, value in _attributes(layer).items():
                # What other attributes of the layer hold as well was met there.
                looker.met = []
                looker.looked(value)
                for part in looker.met:
                    met[id(part)] = part
                    of = users.setdefault(id(part), set())
                    if at not in of:
                        places.setdefault(id(part), []).append(".".join(filter(None, (str(at), *place))))
                    of.add(group.get(at, at))
        found = [(number, part) for number, part in met.items() if len(users[number]) > 1 and _can_change(part)]
        # Not another's to move. What is taken as a whole goes by its value.
        self.own = {number: part for number, part in found if _has_contents(part)}
        self.watched = [(part, places[number][:PLACES_MAX]) for number, part in found[:WATCHED_MAX]]


def _can_change(part: Any) -> bool:
    return not isinstance(part, (tuple, frozenset, types.ModuleType, *_NAMED, *_OF_TORCH)) or type(part) is torch.Generator


def _has_contents(part: Any) -> bool:
    of = type(part)
    return of in _IN_ORDER or of is set or of in _TABLES or isinstance(part, Tensor) or _is_of_script(of)
