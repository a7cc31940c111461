"""Makes values what was written down of others (`records`)."""

from __future__ import annotations

import collections
import io
import random
import types
from typing import Any

import torch
from torch import Tensor, nn

from adaptis.memory import storage_of
from adaptis.records import (
    IN_ORDER, NAMED, NOTHING, OF_TORCH, PLAIN, Again, Array, Closure, Here, Kept, Left, Object, Own, Table, Unpickler, View, Whole, bytes_of,
    called, deep, is_filled, is_of_numpy, slots_of, state_of, tensors_of,
)
from adaptis.replicas import is_sharded


class Reader:
    """Makes values what was written down."""

    def __init__(self, layer: nn.Module, device: torch.device, is_again: bool = False) -> None:
        self.own: dict[str, Any] = {**dict(layer.named_modules()), **tensors_of(layer)}
        self.device = device
        # What was written may be read more than once.
        self.is_again = is_again
        # What can't be made here.
        self.missed: list[str] = []
        self.made: dict[int, Any] = {}
        # What was there and has become something, by what it is: it does not become something else as well.
        self.used: dict[int, tuple[Any, Any]] = {}

    def read(self, record: Any, now: Any = NOTHING) -> Any:
        """What was written down, made of what is there now where that can be made it."""
        with deep():
            return self._read(record, now)

    def _read(self, record: Any, now: Any = NOTHING) -> Any:
        if type(record) in PLAIN:
            return record
        if isinstance(record, Kept):
            return record.value
        if isinstance(record, Here):
            return self.device
        if isinstance(record, Own):
            return self.own[record.name] if record.name in self.own else self._kept(record.name, now)
        if isinstance(record, Again):
            return self.made.get(record.number)
        if isinstance(record, View):
            if record.name not in self.own:
                return self._kept(record.name, now)
            return view_of(self.own[record.name], record)
        if isinstance(record, Left):
            return self._kept(record.why, now, record.counts)
        first, _ = self.used.setdefault(id(now), (record, now))
        if first is not record and type(now) not in (*PLAIN, *NAMED):
            now = NOTHING
        if isinstance(record, Array):
            value: Any = self._tensor(record, now)
        elif isinstance(record, Whole):
            value = self._whole(record, now)
        elif isinstance(record, Object):
            return self._object(record, now)
        elif isinstance(record, Closure):
            return self._closure(record, now)
        elif isinstance(record, Table) or record.of in IN_ORDER or record.of is set:
            return self._contents(record, now if type(now) is record.of else NOTHING)
        else:
            before = list(now) if type(now) is record.of and record.of is not frozenset else []
            parts = self._parts(record.parts, before)
            value = record.of(*parts) if hasattr(record.of, "_fields") else record.of(parts)
        self.made[record.number] = value
        return value

    def _kept(self, why: str, now: Any, counts: bool = True) -> Any:
        if now is NOTHING or (now is None and counts):
            self.missed.append(why)
        return None if now is NOTHING else now

    def _parts(self, records: list[Any], before: list[Any]) -> list[Any]:
        before = before + [NOTHING] * (len(records) - len(before))
        return [part if type(part) in PLAIN else self._read(part, was) for part, was in zip(records, before)]

    def _contents(self, record: Any, now: Any) -> Any:
        """Of a container, which may be one of the script's own."""
        if isinstance(record, Whole):
            fresh = self._load(record)
            self.made[record.number] = value = fresh if now is NOTHING else _refilled(now, fresh)
            return value
        value = now
        if isinstance(record, Table):
            value = record.of() if now is NOTHING else now
            self.made[record.number] = value
            if isinstance(value, collections.defaultdict):
                factory = NOTHING if value.default_factory is None else value.default_factory
                value.default_factory = None if record.factory is None else self._read(record.factory, factory)
            rows = []
            for key_record, part in record.rows:
                key = self._read(key_record)
                rows.append((key, self._read(part, value[key] if key in value else NOTHING)))
            value.clear()
            for key, part in rows:
                value[key] = part
            return value
        if now is NOTHING or (record.most is not None and now.maxlen != record.most):
            value = collections.deque(maxlen=record.most) if record.of is collections.deque else record.of()
        self.made[record.number] = value
        parts = self._parts(record.parts, [] if record.of is set else list(value))
        value.clear()
        (value.update if record.of is set else value.extend)(parts)
        return value

    def _object(self, record: Object, now: Any) -> Any:
        value = now
        if now is NOTHING or called(type(now)) != record.name:
            if record.of is None:
                value = self.made[record.number] = self._kept(record.name, now)
                return value
            make: Any = record.of.__new__
            value = make(record.of)
        if record.contents is not None:
            self._contents(record.contents, value)
        self.made[record.number] = value
        if isinstance(value, nn.Module):
            return self._module(record, value)
        before, slots = state_of(value), set(slots_of(type(value)))
        state = {name: self._read(part, before.get(name, NOTHING)) for name, part in record.state}
        for name in before.keys() - state.keys():
            object.__delattr__(value, name) if name in slots else value.__dict__.pop(name)
        for name, part in state.items():
            if name in slots:
                object.__setattr__(value, name, part)
            else:
                # Not by what the class makes of it.
                value.__dict__[name] = part
        return value

    def _module(self, record: Object, value: nn.Module) -> nn.Module:
        own: dict[str, Any] = value.__dict__
        for name, part in record.state:
            if name in ("_parameters", "_buffers", "_modules"):
                # What is not there is made there in its turn.
                for key, inner in part.rows:
                    if key in own[name] and own[name][key] is not None:
                        own[name][key] = self._read(inner, own[name][key])
            else:
                own[name] = self._read(part, own.get(name, NOTHING))
        return value

    def _closure(self, record: Closure, now: Any) -> Any:
        """Of a function that is there; there is no other one."""
        closure = (now.__closure__ or ()) if isinstance(now, types.FunctionType) else ()
        if closure and now.__qualname__ == record.name and len(closure) == len(record.cells):
            for cell, part in zip(closure, record.cells):
                was = cell.cell_contents if is_filled(cell) else NOTHING
                value = self._read(part, was)
                if value is not was:
                    cell.cell_contents = value
        elif isinstance(now, (types.MethodType, types.BuiltinMethodType)) and now.__name__ == record.name:
            self._read(record.cells[0], now.__self__)
        else:
            now = self._kept(f"a function, {record.name}", now)
        self.made[record.number] = now
        return now

    def _load(self, record: Whole) -> Any:
        tensors = [self._read(part) for part in record.tensors]
        return Unpickler(io.BytesIO(record.pickled), tensors).load()

    def _whole(self, record: Whole, now: Any) -> Any:
        fresh = self._load(record)
        if type(now) is not type(fresh) or now is fresh:
            return fresh
        of = type(fresh)
        if isinstance(now, random.Random):
            now.setstate(fresh.getstate())
        elif isinstance(now, torch.Generator):
            now.set_state(fresh.get_state())
        elif isinstance(now, bytearray):
            now[:] = fresh
        elif isinstance(now, (list, set, dict, collections.deque)):
            return _refilled(now, fresh)
        elif is_of_numpy(of):
            return _of_numpy(now, fresh)
        elif isinstance(getattr(now, "__dict__", None), dict) and not isinstance(now, (*NAMED, *OF_TORCH)):
            now.__dict__.clear()
            now.__dict__.update(fresh.__dict__)
        else:
            return fresh
        return now

    def _tensor(self, record: Array, now: Any) -> Tensor:
        fresh = record.tensor.to(self.device) if record.is_on_device else record.tensor
        if self.is_again and fresh is record.tensor:
            fresh = fresh.clone()
        if isinstance(now, Tensor) and now.is_leaf and now.requires_grad == record.requires_grad and not is_sharded(now):
            kinds = [(of.shape, of.dtype, of.device, of.layout) for of in (now, fresh)]
            if kinds[0] == kinds[1] and storage_of(now):
                try:
                    # Some graph may need what is as it was.
                    with torch.no_grad():
                        return now if bytes_of(now) == bytes_of(fresh) else now.copy_(fresh)
                except RuntimeError:
                    # Its elements lie on one another.
                    pass
        if record.is_parameter:
            return nn.Parameter(fresh, requires_grad=record.requires_grad)
        return fresh.requires_grad_() if record.requires_grad else fresh


def _refilled(now: Any, fresh: Any) -> Any:
    """A container with what another one holds."""
    now.clear()
    (now.extend if isinstance(now, (list, collections.deque)) else now.update)(fresh)
    return now


def _of_numpy(now: Any, fresh: Any) -> Any:
    name = type(now).__name__
    if name == "RandomState":
        now.set_state(fresh.get_state())
    elif name == "Generator" and type(now.bit_generator) is type(fresh.bit_generator):
        now.bit_generator.state = fresh.bit_generator.state
    elif name == "ndarray" and (now.shape, now.dtype) == (fresh.shape, fresh.dtype) and now.flags.writeable:
        now[...] = fresh
    else:
        return fresh
    return now


def view_of(own: Tensor, view: View) -> Tensor:
    """A tensor in the memory of another one."""
    base = own.detach()
    begin = base.storage_offset() * base.element_size() + view.offset
    value = torch.empty(0, dtype=view.dtype, device=base.device)
    value.set_(base.untyped_storage(), begin // value.element_size(), view.shape, view.stride)
    if view.is_conj:
        value = value.conj()
    neg: Any = torch._neg_view
    return neg(value) if view.is_neg else value
