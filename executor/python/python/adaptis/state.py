"""The state of a layer: parameters, buffers, gradients, what optimizers keep for it, its modules' own extra state
(`get_extra_state`), and attributes of modules that have changed (`attributes`). It moves as a whole.

1. A parameter is one object on every rank for the whole run. Where its layer is not, it holds nothing: one NaN (of whole
   numbers the largest one), seen in its full shape. So optimizers and schedulers keep what they hold; what has no gradient they leave alone.
2. A move changes no bit: the digest of what was sent is compared with that of what came.
3. A tensor that several layers share moves with them, once; a plan that parts them is refused (`tied`).
"""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass
from typing import Any, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from adaptis import replicas
from adaptis._native import digest
from adaptis.attributes import Attributes, Told
from adaptis.channels import Channels
from adaptis.facts import bytes_here
from adaptis.memory import storage_of
from adaptis.reading import view_of
from adaptis.records import Own, View, deep
from adaptis.writing import Writer

logger = logging.getLogger("adaptis")

DIGEST_BYTES_MAX = 1 << 32
"""Parameters up to which a rank's digest is told at the end."""


def tensors_of(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once, by name."""
    yield from layer.named_parameters()
    yield from layer.named_buffers()


def _blank(tensor: Tensor) -> Tensor:
    # Whoever reads it all the same is to notice.
    filler = float("nan")
    if tensor.dtype == torch.bool:
        filler = 0
    elif not tensor.is_floating_point() and not tensor.is_complex():
        filler = min(torch.iinfo(tensor.dtype).max, torch.iinfo(torch.int64).max)
    return torch.full((), filler, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def check_blank(tensor: Tensor) -> None:
    """Sees that something can stand for it.

    Raises RuntimeError where nothing can.
    """
    if not replicas.is_sharded(tensor) and tensor.device.type != "meta":
        _blank(tensor)


def drop(layer: nn.Module, optimizers: Sequence[Optimizer], held: Sequence[nn.Module]) -> None:
    """Frees the state of a layer that this rank does not hold, but for buffers that layers which it holds use as well."""
    used = {id(buffer) for other in held for buffer in other.buffers()}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.grad = None
            if not replicas.is_sharded(parameter):
                parameter.data = _blank(parameter.data)
            for optimizer in optimizers:
                optimizer.state.pop(parameter, None)
        if any(replicas.is_sharded(parameter) for parameter in layer.parameters()):
            replicas.put_down(layer)
        for buffer in layer.buffers():
            if id(buffer) not in used:
                buffer.data = _blank(buffer.data)


def tied(layers: Sequence[nn.Module]) -> list[list[int]]:
    """Layers that share a parameter, each list in ascending order."""
    owners: dict[int, list[int]] = {}
    for at, layer in enumerate(layers):
        for parameter in layer.parameters():
            owners.setdefault(id(parameter), []).append(at)
    groups: list[set[int]] = []
    for among in (set(owner) for owner in owners.values() if len(owner) > 1):
        touched = [group for group in groups if group & among]
        groups = [group for group in groups if not group & among] + [among.union(*touched)]
    return sorted(sorted(group) for group in groups)


@dataclass
class _Entry:
    """A tensor of a layer's state: of which parameter or buffer, and what it is."""

    kind: str
    name: str
    detail: str
    optimizer: int
    dtype: torch.dtype
    # Of what of it is here.
    shape: tuple[int, ...]
    is_sharded: bool
    # How it lies in memory, if not as ever.
    format: torch.memory_format | None


@dataclass
class _Header:
    """What comes: the tensors that follow, in order, and all that is no tensor of the device."""

    entries: list[_Entry]
    plain: list[tuple[int, str, str, Any]]
    # By module: what it gives as its extra state, and attributes.
    extra: dict[str, Any]
    # Buffers that are None.
    absent: list[str]
    # Buffers that are other ones, or lie in the memory of others.
    aliases: list[tuple[str, Own | View]]
    attributes: Told
    bytes: int
    digest: str


def _entries(
    layer: nn.Module, optimizers: Sequence[Optimizer], done: set[int]
) -> tuple[list[_Entry], list[Tensor], list[Any]]:
    entries: list[_Entry] = []
    tensors: list[Tensor] = []
    plain: list[Any] = []

    def add(kind: str, name: str, detail: str, optimizer: int, tensor: Tensor) -> None:
        here = replicas.local(tensor).detach()
        is_sharded = replicas.is_sharded(tensor)
        entries.append(_Entry(kind, name, detail, optimizer, tensor.dtype, tuple(here.shape), is_sharded, _format(here)))
        tensors.append(here)

    for name, parameter in layer.named_parameters():
        if id(parameter) in done:
            continue
        done.add(id(parameter))
        add("parameter", name, "", 0, parameter)
        if parameter.grad is not None and parameter.grad.is_sparse:
            add("gradient", name, "indices", 0, parameter.grad._indices())
            is_coalesced = parameter.grad.is_coalesced()
            add("gradient", name, "coalesced" if is_coalesced else "values", 0, parameter.grad._values())
        elif parameter.grad is not None:
            add("gradient", name, "", 0, parameter.grad)
        for at, optimizer in enumerate(optimizers):
            for detail, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.device == parameter.device:
                    add("optimizer", name, detail, at, value)
                else:
                    plain.append((at, name, detail, tree_map_only(Tensor, _on_host, value)))
    # By every name: elsewhere they may be two.
    for name, buffer in layer.named_buffers(remove_duplicate=False):
        path, _, own = name.rpartition(".")
        is_passing = own in layer.get_submodule(path)._non_persistent_buffers_set
        add("buffer", name, "passing" if is_passing else "", 0, buffer)
    return entries, tensors, plain


def _aliases(layer: nn.Module) -> list[tuple[str, Own | View]]:
    writer = Writer(layer, {}, {})
    found: list[tuple[str, Own | View]] = []
    for name, buffer in layer.named_buffers(remove_duplicate=False):
        first = writer.own[id(buffer)]
        where = None if replicas.is_sharded(buffer) else storage_of(buffer)
        if first != name:
            found.append((name, Own(first)))
        elif where is not None and where[1] > 0 and writer.memory[where[0]][0] != name:
            found.append((name, writer.view(buffer, writer.memory[where[0]])))
    return found


def _format(tensor: Tensor) -> torch.memory_format | None:
    if tensor.layout != torch.strided or tensor.is_contiguous():
        return None
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    found = formats.get(tensor.dim())
    return found if found is not None and tensor.is_contiguous(memory_format=found) else None


@dataclass
class _OnDevice:
    """A tensor of the device, in the memory of a host."""

    tensor: Tensor


def _absent(layer: nn.Module) -> list[str]:
    return [
        f"{path}.{name}".removeprefix(".")
        for path, module in layer.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is None
    ]


def _extra(layer: nn.Module) -> dict[str, Any]:
    """What modules keep besides tensors, by torch's own way, as far as it can be sent and taken."""
    found: dict[str, Any] = {}
    for path, module in layer.named_modules():
        of, base = type(module), nn.Module
        if of.get_extra_state is base.get_extra_state or of.set_extra_state is base.set_extra_state:
            continue
        extra = tree_map_only(Tensor, _on_host, module.get_extra_state())
        try:
            pickle.dumps(extra)
        except Exception as error:
            logger.warning("the extra state of a %s stays behind when its layer moves: %s", of.__name__, error)
        else:
            found[path] = extra
    return found


def _on_host(tensor: Tensor) -> Tensor | _OnDevice:
    return tensor if tensor.device.type == "cpu" else _OnDevice(tensor.detach().cpu())


def bytes_of(tensor: Tensor) -> Tensor:
    """Its memory, put in order where it is not."""
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _packed(tensors: list[Tensor], device: torch.device) -> Tensor:
    parts = [bytes_of(tensor) for tensor in tensors if tensor.numel()]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=device)


def _digest(packed: Tensor) -> str:
    return digest(packed.cpu().numpy().tobytes())


def digest_of(layer: nn.Module, optimizers: Sequence[Optimizer]) -> str:
    """The digest of a layer's state: parameters, buffers, and what optimizers keep for it; not of gradients. One tensor after
    the other: their memory is not there twice."""
    entries, tensors, plain = _entries(layer, optimizers, set())
    kept = (tensor for entry, tensor in zip(entries, tensors) if entry.kind != "gradient")
    parts = [_digest(bytes_of(part)) for tensor in kept for part in _dense(tensor)]
    return digest("".join([*parts, repr(plain)]).encode())


def _dense(tensor: Tensor) -> list[Tensor]:
    """What of it has a memory."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    return [] if storage_of(tensor) is None else [tensor]


def digests(layers: Sequence[tuple[int, nn.Module]], optimizers: Sequence[Optimizer]) -> list[tuple[int, str]]:
    """Of all layers of a rank, by their numbers, for the end of a job; none where they can't be had, or would take long."""
    if sum(bytes_here(part) for _, layer in layers for part in layer.parameters()) > DIGEST_BYTES_MAX:
        return []
    try:
        return [(at, digest_of(layer, optimizers)) for at, layer in layers]
    except Exception as error:
        logger.warning("the layers' state at the end is not told: %s: %s", type(error).__name__, error)
        return []


def rounds(moves: Sequence[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Moves `(layer, source, destination)` such that in each round a rank sends at most one and receives at most one: then
    a rank has one layer packed to go and one to come at a time, and none waits in a circle."""
    ordered: list[list[tuple[int, int, int]]] = []
    sends: dict[int, int] = {}
    receives: dict[int, int] = {}
    for layer, source, to in moves:
        at = max(sends.get(source, 0), receives.get(to, 0))
        sends[source] = receives[to] = at + 1
        ordered.extend([] for _ in range(at + 1 - len(ordered)))
        ordered[at].append((layer, source, to))
    return ordered


class Mover:
    """Sends and receives the state of layers between two iterations."""

    def __init__(self, channels: Channels, device: torch.device, attributes: Attributes) -> None:
        self.channels = channels
        self.device = device
        self.layers = attributes.layers
        self.attributes = attributes

    def move(
        self, rank: int, held: set[int], moves: Sequence[tuple[int, int, int]], optimizers: Sequence[Optimizer]
    ) -> int:
        """This rank's part of all moves `(layer, source, destination)`, and what it holds from then on in `held`. A layer that
        was sent is given up before the next one comes. How many bytes came."""
        received = 0
        done: set[int] = set()
        for among in rounds(moves):
            sent: list[tuple[Any, Tensor]] = []
            for layer, source, to in among:
                if source == rank:
                    sent = self._send(to, layer, optimizers, done)
                    held.remove(layer)
                    drop(self.layers[layer], optimizers, [self.layers[at] for at in held])
            for layer, source, to in among:
                if to == rank:
                    received += self._receive(source, layer, optimizers)
                    held.add(layer)
            for work, _ in sent:
                work.wait()
        return received

    def _send(
        self, to: int, at: int, optimizers: Sequence[Optimizer], done: set[int]
    ) -> list[tuple[Any, Tensor]]:
        """Sends a layer's state without what is `done`, and adds to it; the result is to be waited for."""
        layer = self.layers[at]
        entries, tensors, plain = _entries(layer, optimizers, done)
        packed = _packed(tensors, self.device)
        extra, attributes = _extra(layer), self.attributes.leave(at)
        header = _Header(entries, plain, extra, _absent(layer), _aliases(layer), attributes, packed.numel(), _digest(packed))
        with deep():
            text = pickle.dumps(header)
        told = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        length = torch.tensor([told.numel()], dtype=torch.int64, device="cpu")
        sent = [(dist.isend(part, group=self.channels.control, group_dst=to), part) for part in (length, told)]
        return sent + ([(self.channels.send(packed, to, 0), packed)] if packed.numel() else [])

    def _receive(self, sender: int, at: int, optimizers: Sequence[Optimizer]) -> int:
        """Takes a layer's state in. How many bytes came."""
        length = torch.empty(1, dtype=torch.int64, device="cpu")
        dist.recv(length, group=self.channels.control, group_src=sender)
        text = torch.empty(int(length.item()), dtype=torch.uint8, device="cpu")
        dist.recv(text, group=self.channels.control, group_src=sender)
        with deep():
            header: _Header = pickle.loads(text.numpy().tobytes())
        packed = torch.empty(header.bytes, dtype=torch.uint8, device=self.device)
        if header.bytes:
            self.channels.receive(packed, sender, 0).wait()
        found = _digest(packed)
        if found != header.digest:
            raise RuntimeError(f"a layer's state changed on its way: {header.digest} was sent, {found} came")
        self._unpack(header, packed, self.layers[at], optimizers)
        self._adopt(header, at)
        return header.bytes

    def _unpack(self, header: _Header, packed: Tensor, layer: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        if any(entry.is_sharded and entry.kind == "parameter" for entry in header.entries):
            replicas.take_up(layer, self.device)
        own: dict[str, Tensor] = {**dict(layer.named_buffers(remove_duplicate=False)), **dict(layer.named_parameters())}
        indices: dict[str, Tensor] = {}
        at = 0
        with torch.no_grad():
            for entry in header.entries:
                # A copy of its own, so that it is aligned and is freed alone.
                blank = torch.empty(entry.shape, dtype=entry.dtype, device=self.device)
                size = blank.numel() * blank.element_size()
                if size:
                    blank.view(-1).view(torch.uint8).copy_(packed[at : at + size])
                at += size
                if entry.format is not None:
                    blank = blank.contiguous(memory_format=entry.format)
                if entry.kind == "buffer" and entry.name not in own:
                    # A buffer that is there since the layer has run.
                    own[entry.name] = blank
                    _put(layer, entry.name, blank, entry.detail != "passing")
                target = own[entry.name]
                if entry.is_sharded and entry.kind == "parameter":
                    replicas.local(target).copy_(blank)
                    continue
                blank = replicas.like(blank, target) if entry.is_sharded else blank
                if entry.kind in ("parameter", "buffer"):
                    target.data = blank
                elif entry.detail == "indices" and entry.kind == "gradient":
                    indices[entry.name] = blank
                elif entry.detail and entry.kind == "gradient":
                    is_coalesced = entry.detail == "coalesced"
                    target.grad = torch.sparse_coo_tensor(
                        indices[entry.name], blank, target.shape, is_coalesced=is_coalesced, check_invariants=False
                    )
                elif entry.kind == "gradient":
                    target.grad = blank
                else:
                    optimizers[entry.optimizer].state[target][entry.detail] = blank
            for optimizer, name, detail, value in header.plain:
                optimizers[optimizer].state[own[name]][detail] = self._here(value)
            for name, of in header.aliases:
                if isinstance(of, Own):
                    _put(layer, name, own[of.name], True)
                else:
                    own[name].data = view_of(own[of.name], of)
        for name in header.absent:
            _put(layer, name, None, True)

    def _adopt(self, header: _Header, at: int) -> None:
        """What comes besides tensors. Modules that only the sender has made since are made here in their turn."""
        self.attributes.take(at, header.attributes, self.device)
        modules = dict(self.layers[at].named_modules())
        for path, extra in header.extra.items():
            if path in modules:
                modules[path].set_extra_state(self._here(extra))

    def _here(self, value: Any) -> Any:
        """What came in the memory of a host, with tensors of the device there again."""
        return tree_map_only(_OnDevice, lambda of: of.tensor.to(self.device), value)


def _put(layer: nn.Module, name: str, buffer: Tensor | None, is_persistent: bool) -> None:
    """Puts a buffer into its module, if that is here."""
    path, _, own = name.rpartition(".")
    module = dict(layer.named_modules()).get(path)
    if module is None:
        return
    module._buffers[own] = buffer
    if not is_persistent:
        module._non_persistent_buffers_set.add(own)
