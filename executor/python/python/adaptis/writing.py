"""Writes down what values are (`records`)."""

from __future__ import annotations

import argparse
import collections
import dis
import functools
import io
import pickle
import random
import sys
import types
from dataclasses import dataclass
from typing import Any, Callable, Mapping

import torch
from torch import Tensor, nn

from adaptis.memory import storage_of
from adaptis.records import (
    IN_ORDER, NAMED, OF_TORCH, PLAIN, Again, Array, Closure, Here, Kept, Left, Object, Own, Parts, Table, View, Whole, called, deep,
    is_filled, is_of_numpy, slots_of, state_of, tensors_of,
)
from adaptis.replicas import is_sharded

PARTS_MAX = 1 << 20
"""Of a value, with the parts of its parts; what has more is not gone into."""
WHOLE_MIN = 1 << 12
"""A container with more parts is taken as a whole where it can be."""
WHOLE_BYTES_MAX = 1 << 30
AGAIN_BYTES_MAX = 1 << 16
"""A larger tensor is not copied for a run that is done again."""
_FIXED = (tuple, frozenset)
_TABLES = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_LIKE_SCRIPTS = (argparse.Namespace, types.SimpleNamespace, collections.UserDict, collections.UserList)
_HARMLESS = ("_thread", "threading", "_io", "io", "weakref", "logging", "torch", "adaptis")
"""Where classes come from whose objects make no difference to results."""
_OF_MODULES = ("_parameters", "_buffers", "_modules", "training")
OF_MODULES = frozenset(vars(nn.Module())) - {"training"}
"""Attributes that all modules have, but which of them train: most often the script says so, on all ranks, else a layer."""


class _TooMuch(Exception):
    """It has more parts than are gone into."""


@dataclass(frozen=True)
class Other:
    """What a layer has, and what it is called."""

    of: Callable[[], Any]
    name: str


class Writer:
    """Writes down what values are."""

    def __init__(
        self, layer: nn.Module | None, shared: Mapping[int, Any], others: Mapping[int, Other], copies: bool = False,
        is_for_again: bool = False
    ) -> None:
        # Of the layer, by what it is, and where its tensors lie.
        self.own: dict[int, str] = {}
        self.memory: dict[int, tuple[str, int]] = {}
        if layer is not None:
            self.own.update((id(module), path) for path, module in layer.named_modules())
            for name, part in tensors_of(layer).items():
                self.own[id(part)] = name
                where = None if is_sharded(part) else storage_of(part)
                if where is not None and where[1] > 0:
                    self.memory.setdefault(where[0], (name, int(part.storage_offset()) * part.element_size()))
        # What several layers reach, and what others have.
        self.shared = shared
        self.others = others
        # Whether tensors are to stay what they are.
        self.copies = copies
        # Whether it is for a run that is done again here, and not for another rank.
        self.is_for_again = is_for_again
        self.forget()

    def forget(self) -> None:
        """What comes is written without what was met before."""
        # By what it is: the number of what was met; it is held, so that nothing else is taken for it.
        self.numbers: dict[int, int] = {}
        self.met: list[Any] = []
        # Of the last value: it has views, tensors of other layers, and what is left to each rank and may count.
        self.has_views = False
        self.of_others: list[str] = []
        self.modules_of_others: list[str] = []
        self.missed: list[str] = []
        self.kept: list[Tensor] = []
        # Fixed ones that are being gone through.
        self._open: set[int] = set()
        self._depth = 0

    def written(self, value: Any) -> Any:
        """A value."""
        self.left = PARTS_MAX
        self._open.clear()
        # Modules that no layer has, as the whole model, that are being gone through.
        self._depth = 0
        try:
            with deep():
                return self._write(value)
        except (_TooMuch, RecursionError):
            return self._leave(value, "something too large", True)
        except Exception as error:
            # People's classes may do anything when they are looked at.
            why = f"a {type(value).__name__}, looking into which fails: {type(error).__name__}: {error}"
            return self._leave(value, why, True)

    def _write(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        if isinstance(value, torch.device) and value.type != "cpu":
            return Here()
        name = self.own.get(id(value))
        if name is not None:
            return Own(name)
        if id(value) in self.shared:
            return self._leave(value, "what several layers share", False)
        other = self.others.get(id(value))
        if other is not None and other.of() is value:
            if not self._depth:
                (self.of_others if isinstance(value, Tensor) else self.modules_of_others).append(other.name)
            return self._leave(value, "what another layer has", False)
        number = self.numbers.get(id(value))
        if number is not None:
            return self._leave(value, "what holds itself", True) if id(value) in self._open else Again(number)
        self.left -= 1
        if self.left < 0:
            raise _TooMuch
        number = self.numbers[id(value)] = len(self.met)
        self.met.append(value)
        record = self._write_new(value, number)
        if isinstance(record, (Left, Kept)):
            # It is left each time, not what was made of it before.
            self.numbers.pop(id(value), None)
        return record

    def _write_new(self, value: Any, number: int) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value, number)
        of = type(value)
        if of in IN_ORDER or of is set or of in _TABLES:
            return self._contents(value, of, number)
        if of in _FIXED or (issubclass(of, tuple) and hasattr(of, "_fields") and _is_found(of)):
            self._open.add(id(value))
            parts = Parts(number, of, self._all(value))
            self._open.remove(id(value))
            return parts
        if isinstance(value, nn.Module):
            return self._module(value, number)
        if isinstance(value, types.FunctionType) and value.__closure__:
            cells = [cell.cell_contents if is_filled(cell) else None for cell in value.__closure__]
            if self.is_for_again and all(map(_is_fixed, cells)) and not _assigns(value.__code__):
                # Most often a function with some numbers.
                return Kept(value)
            return Closure(number, value.__qualname__, self._all(cells))
        if isinstance(value, (types.MethodType, types.BuiltinMethodType)) and not isinstance(
            value.__self__, (types.ModuleType, type, type(None))
        ):
            return Closure(number, value.__name__, [self._write(value.__self__)])
        if _is_gone_into(of):
            base = next((base for base in (dict, list, set, collections.deque) if issubclass(of, base)), None)
            contents = None if base is None else self._contents(value, _plain_base(of, base), number)
            state = [(name, self._write(part)) for name, part in state_of(value).items()]
            return Object(number, called(of), of if _is_found(of) else None, contents, state)
        return self._whole(value, number)

    def _contents(self, value: Any, of: type, number: int) -> Any:
        if len(value) > WHOLE_MIN:
            whole = self._whole(value, number, is_tried=True)
            if whole is not None:
                return whole
        if of not in _TABLES:
            return Parts(number, of, self._all(value), value.maxlen if isinstance(value, collections.deque) else None)
        factory = value.default_factory if isinstance(value, collections.defaultdict) else None
        rows = [(self._write(key), self._write(part)) for key, part in list(value.items())]
        return Table(number, of, rows, None if factory is None else self._write(factory))

    def _all(self, values: Any) -> list[Any]:
        self.left -= len(values)
        return [value if type(value) in PLAIN else self._write(value) for value in list(values)]

    def _module(self, value: nn.Module, number: int) -> Any:
        """One that no layer has as its own."""
        if isinstance(value, torch.jit.ScriptModule):
            return self._leave(value, called(type(value)), True)
        own = vars(value)
        kept = {name: part for name, part in own.items() if name in _OF_MODULES or name not in OF_MODULES}
        # What has these as keys is made by torch itself.
        for name in ("_parameters", "_buffers", "_modules"):
            kept[name] = dict(kept.get(name, {}))
        self._depth += 1
        state = [(name, self._write(part)) for name, part in kept.items()]
        self._depth -= 1
        return Object(number, called(type(value)), None, None, state)

    def _tensor(self, value: Tensor, number: int) -> Any:
        where = None if is_sharded(value) else storage_of(value)
        # Sparse ones have no memory of their own.
        is_sparse = value.layout == torch.sparse_coo and not is_sharded(value)
        if value.device.type == "meta" or value.is_quantized or not (is_sparse or (where and value.layout == torch.strided)):
            return self._leave(value, f"a {type(value).__name__} of {value.dtype} on {value.device}, {value.layout}", True)
        if self.is_for_again and value.nbytes > AGAIN_BYTES_MAX:
            # That it changes is seen by its version.
            self.kept.append(value)
            return Kept(value)
        of = self.memory.get(where[0]) if where is not None and where[1] > 0 else None
        if of is not None:
            self.has_views = True
            return self.view(value, of)
        tensor = value.detach().cpu().clone() if self.copies else value.detach()
        requires_grad = value.requires_grad and value.is_leaf
        has_graph, is_parameter = value.grad_fn is not None, isinstance(value, nn.Parameter)
        return Array(number, tensor, value.device.type != "cpu", is_parameter, requires_grad, has_graph)

    def view(self, value: Tensor, of: tuple[str, int]) -> View:
        """A tensor in the memory of another one, whose name and beginning it is given."""
        offset = int(value.storage_offset()) * value.element_size() - of[1]
        shape, stride = tuple(value.shape), tuple(value.stride())
        return View(of[0], value.dtype, shape, stride, offset, value.is_conj(), value.is_neg())

    def _whole(self, value: Any, number: int, is_tried: bool = False) -> Any:
        tensors: list[Any] = []

        def take_out(tensor: Tensor) -> int:
            tensors.append(tensor)
            return len(tensors) - 1

        met = len(self.met)
        pickled = _pickled(value, take_out)
        records = [] if pickled is None else [self._write(tensor) for tensor in tensors]
        if pickled is None or any(isinstance(record, (Left, Kept)) for record in records):
            for part in self.met[met:]:
                self.numbers.pop(id(part), None)
            del self.met[met:]
            return None if is_tried else self._leave(value, called(type(value)), _counts(value))
        return Whole(number, pickled, records)

    def _leave(self, value: Any, why: str, counts: bool) -> Any:
        if counts:
            self.missed.append(why)
        return Kept(value) if self.is_for_again and not counts else Left(why, counts)


def _is_fixed(part: Any) -> bool:
    """What a function closes over and can't change, but by assigning another one."""
    return type(part) in PLAIN or (isinstance(part, NAMED) and not getattr(part, "__closure__", None))


def _assigns(code: types.CodeType) -> bool:
    """Whether a function assigns to what it closes over, or one within it does."""
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    own = (step for step in dis.get_instructions(code) if step.opname in ("STORE_DEREF", "DELETE_DEREF"))
    return any(step.argval in code.co_freevars for step in own) or any(map(_assigns, inner))


def is_gone_into(value: Any) -> bool:
    """Whether it stays the same one where its contents change."""
    of = type(value)
    if of in IN_ORDER or of is set or of in _TABLES or isinstance(value, (Tensor, nn.Module, random.Random, bytearray)):
        return True
    return is_of_numpy(of) or _is_gone_into(of)


def _is_gone_into(of: type) -> bool:
    """Whether it is a class of people's own, whose objects are what they contain and what their attributes are."""
    for base in of.__mro__[:-1]:
        root = base.__module__.partition(".")[0]
        is_abstract = root in ("abc", "typing") or base.__module__ in ("collections.abc", "_collections_abc")
        if is_abstract or base in (*_LIKE_SCRIPTS, *_TABLES, *IN_ORDER, set):
            continue
        if root in ("torch", "numpy", "adaptis"):
            return False
        if root in sys.stdlib_module_names and root != "__main__":
            return False
        for name in ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"):
            if name in vars(base) and getattr(vars(base)[name], "__module__", None) != "dataclasses":
                return False
    return not issubclass(of, (BaseException, type)) and (hasattr(of, "__dict__") or slots_of(of) != [])


def _plain_base(of: type, base: type) -> type:
    """As which container one's contents are written."""
    return next((known for known in _TABLES[1:] if issubclass(of, known)), base)


class _Bounded(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + len(data) > WHOLE_BYTES_MAX:
            raise _TooMuch
        return super().write(data)


class _Pickler(pickle.Pickler):
    def __init__(self, text: Any, take_out: Any) -> None:
        super().__init__(text, protocol=4)
        self.take_out = take_out

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            raise pickle.PicklingError("it holds what belongs to a layer")
        return self.take_out(value) if isinstance(value, Tensor) else None


def _pickled(value: Any, take_out: Any) -> bytes | None:
    of = type(value)
    if of.__module__.partition(".")[0] in ("torch", "adaptis") and of not in OF_TORCH:
        return None
    if isinstance(value, NAMED) and not _is_found(value):
        return None
    if hasattr(value, "__next__") and of.__module__ != "itertools" and of.__module__ != "builtins":
        return None
    text = _Bounded()
    try:
        _Pickler(text, take_out).dump(value)
    except Exception:
        return None
    return text.getvalue()


def _is_found(value: Any) -> bool:
    """Whether others find it by its name."""
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _counts(value: Any) -> bool:
    """Whether what it holds, and nobody sees, may make a difference to results."""
    if isinstance(value, (*NAMED, types.ModuleType)):
        return False
    of = type(value)
    root = of.__module__.partition(".")[0]
    if of in (types.MappingProxyType, type(functools.lru_cache(len))):
        return False
    return root not in _HARMLESS or of.__name__ in ("WeakKeyDictionary", "WeakValueDictionary", "WeakSet")
