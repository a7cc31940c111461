"""What a value is, written down such that it can be told from another one, be sent, and be made of what another rank has.

    record = Writer(layer, shared, others).written(value)       `writing`; number_of(record) is another one for another value
    value = Reader(layer, device).read(record, now)             `reading`

1. Numbers, texts, containers, arrays, tensors, objects of the script's own classes, modules that no layer has, and what functions close
   over are gone into; what else can be pickled is taken as a whole, with the tensors in it.
2. Containers, objects, arrays, generators of random numbers and tensors stay the same ones where `now` is like them and get
   other contents, so that whoever else holds them sees it.
3. A module, parameter or buffer that has a name is named, and so are tensors that lie in the memory of one.
4. What can't be looked into, as a lock or a file, is left as it is on each rank.
"""

from __future__ import annotations

import collections
import contextlib
import pickle
import sys
import types
from dataclasses import dataclass
from typing import Any, Iterator

import torch
from torch import Tensor, nn

from adaptis._native import digest

PLAIN = (bool, int, float, complex, str, bytes, type(None))
"""What has no parts and never changes."""
WHOLE_AGAIN_MAX = 1 << 20
"""What is taken as a whole and is larger is not made once more for a run that is done again."""
DEPTH = 10_000
"""Of parts in parts, in frames."""

NOTHING: Any = object()
"""There is no value."""


@dataclass(frozen=True)
class Own:
    """What has a name."""

    name: str


@dataclass(frozen=True)
class Here:
    """The device of a rank."""


@dataclass(frozen=True)
class View:
    """A tensor in the memory of a parameter or buffer."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    # In bytes, from where that begins.
    offset: int
    is_conj: bool
    is_neg: bool


@dataclass(frozen=True)
class Again:
    """What was met before."""

    number: int


@dataclass(frozen=True)
class Parts:
    """What is made of others in an order, or in none."""

    number: int
    of: type
    parts: list[Any]
    # Of a deque, how many it takes.
    most: int | None = None


@dataclass(frozen=True)
class Table:
    """A dict."""

    number: int
    of: type
    rows: list[tuple[Any, Any]]
    factory: Any = None


@dataclass(frozen=True)
class Object:
    """An object, what it contains, and its attributes."""

    number: int
    name: str
    # Where it can be sent.
    of: type | None
    contents: Any
    state: list[tuple[str, Any]]


@dataclass(frozen=True)
class Closure:
    """What a function closes over, or the object that a method is of."""

    number: int
    name: str
    cells: list[Any]


@dataclass(frozen=True)
class Whole:
    """What is pickled, without the tensors in it."""

    number: int
    pickled: bytes
    tensors: list[Any]


@dataclass(frozen=True)
class Array:
    """A tensor with a memory of its own."""

    number: int
    tensor: Tensor
    is_on_device: bool
    is_parameter: bool
    requires_grad: bool
    # It was made of others that have gradients.
    has_graph: bool

    def __repr__(self) -> str:
        told = (self.number, self.tensor.dtype, tuple(self.tensor.shape), self.is_on_device, self.requires_grad)
        return f"Array({told}, {[digest(bytes_of(part)) for part in _dense(self.tensor)]})"


@dataclass(frozen=True)
class Kept:
    """What is no other one for a run that is done again: it is shared, or makes no difference."""

    value: Any

    def __repr__(self) -> str:
        return f"Kept({id(self.value)})"


@dataclass(frozen=True)
class Left:
    """What is left to each rank."""

    why: str
    # It may make a difference.
    counts: bool = False


IN_ORDER = (list, collections.deque)
OF_TORCH = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.Generator)
NAMED = (types.FunctionType, types.BuiltinFunctionType, type)


def _dense(tensor: Tensor) -> list[Tensor]:
    return [tensor._indices(), tensor._values()] if tensor.layout == torch.sparse_coo else [tensor]


def bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().tobytes()


def called(of: type) -> str:
    return f"{of.__module__}.{of.__qualname__}"


def number_of(record: Any) -> str:
    """Another one for what is another. NaN is what it was."""
    try:
        with deep():
            return digest(repr(record).encode())
    except RecursionError:
        return "too deep"
    except RuntimeError as error:
        # A kind of tensor whose memory can't be read.
        return f"{type(error).__name__}: {error}"


def can_be_made(record: Any) -> bool:
    """Whether what was written for a run that is done again can be made for it, of nothing that is there."""
    if type(record) in PLAIN or isinstance(record, (Own, View, Here, Again, Kept)):
        return True
    if isinstance(record, Array):
        # The gradient of what is trained is to be its own.
        return not record.has_graph and not record.requires_grad
    if isinstance(record, Whole):
        return len(record.pickled) <= WHOLE_AGAIN_MAX and all(map(can_be_made, record.tensors))
    if isinstance(record, Table):
        is_made = all(can_be_made(key) and can_be_made(part) for key, part in record.rows)
        return is_made and can_be_made(record.factory)
    if isinstance(record, Object):
        return record.of is not None and can_be_made(record.contents) and all(can_be_made(part) for _, part in record.state)
    return isinstance(record, Parts) and all(type(part) in PLAIN or can_be_made(part) for part in record.parts)


@contextlib.contextmanager
def deep() -> Iterator[None]:
    """Parts in parts in parts, as in a list whose links are objects."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def tensors_of(layer: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once, by name."""
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


def is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents
    except ValueError:
        return False
    return True


def is_of_numpy(of: type) -> bool:
    return of.__module__.partition(".")[0] == "numpy" and of.__name__ in ("ndarray", "Generator", "RandomState")


def slots_of(of: type) -> list[str]:
    found: list[str] = []
    for base in of.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else list(slots):
            is_private = name.startswith("__") and not name.endswith("__")
            found.append(f"_{base.__name__.lstrip('_')}{name}" if is_private else name)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def state_of(value: Any) -> dict[str, Any]:
    slots = {name: getattr(value, name) for name in slots_of(type(value)) if hasattr(value, name)}
    return {**slots, **dict(getattr(value, "__dict__", {}))}


class Unpickler(pickle.Unpickler):
    def __init__(self, text: Any, tensors: list[Any]) -> None:
        super().__init__(text)
        self.tensors = tensors

    def persistent_load(self, number: Any) -> Any:
        return self.tensors[number]
