"""Weight gradients that can wait: the input gradient of a layer is there before its weight gradients are worked out.

A module whose weight gradient is one kernel (Linear, Conv, Embedding) gets a forward whose backward works out the input
gradient only and leaves the rest behind as a `Debt`. An I leaves its debts until the W of its microbatch; a B pays them
at its end. Both pay by the same kernels in the same order, so it makes no bit of difference which one a plan has, but for
a parameter that is used besides by what leaves no debts: its sum follows the plan's order.

1. Debts are left only by the backward that an I or a B runs. Any other, as of a layer run by itself, or one within it, as of
   a gradient that a hook or an autograd function of the layer works out, gives gradients as ever.
2. What is not one of these modules, or is one with a twist (parametrized, of another class, sharded, complex, padded in
   another way, with hooks on its parameters or parameters of a class of their own, called with other tensors in their place
   or under a mode that takes functions over, in a compiled layer or in DistributedDataParallel), keeps its own backward: its
   weight gradients belong to I, and W has so much less to do.
3. A debt holds the layer's input and the gradient of its output, which is what W costs in memory. What others change of these
   until it is paid is refused, but for gradients of modules that have been seen to be so, of which a copy is held.
"""

from __future__ import annotations

import contextlib
from types import MethodType
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.utils import _device

Debt = Callable[[], None]

LOOKS = 3
"""Gradients of a module's output of which a copy is held, to see whether others change them."""


def _task() -> int:
    """The backward under way, the innermost one; they count from 1 here."""
    return int(torch._C._current_graph_task_id()) + 1


class Ledger:
    """What the backward of the layer under way left to do. The debts are taken when it is through."""

    def __init__(self) -> None:
        self.debts: list[Debt] = []
        # Of the backward that leaves debts; 0 before it has begun, none while nothing does.
        self._task: int | None = None
        # Gradients that the backward under way left.
        self._fresh: list[_Gradient] = []
        # By module: how many gradients were held.
        self._held: dict[int, int] = {}
        # Modules whose gradients others change.
        self._changed: set[int] = set()
        # Parameters whose gradients others look at on their way.
        self.watched: set[int] = set()

    @contextlib.contextmanager
    def opened(self, roots: Sequence[Tensor]) -> Iterator[None]:
        """Lets the backward from these tensors leave debts; those that run within it do not."""

        def begun(_: Tensor) -> None:
            if self._task == 0:
                self._task = _task()

        handles = [root.register_hook(begun) for root in roots]
        self._task = 0
        try:
            yield
        finally:
            self._task = None
            for handle in handles:
                handle.remove()

    @property
    def is_open(self) -> bool:
        """Whether the backward under way is the one that leaves debts."""
        return self._task is not None and self._task == _task()

    def __reduce__(self) -> tuple[Any, ...]:
        # A model that is stored whole is loaded without us.
        return dict, ()

    def __deepcopy__(self, _: Any) -> Ledger:
        # Nobody opens it: a copy's backward is its own.
        return Ledger()

    def hold(self, gradient: Tensor, of: nn.Module) -> _Gradient:
        """The gradient of a module's output, as it is now."""
        looks = self._held[id(of)] = self._held.get(id(of), 0) + 1
        held = _Gradient(gradient, of, looks <= LOOKS or id(of) in self._changed)
        self._fresh.append(held)
        return held

    def look_for_watchers(self, parameters: Iterable[Tensor]) -> None:
        """Finds parameters that others have put hooks on by the node that adds up their gradients, which they then hold. To be
        called while no graph of the parameters is there."""
        parameters = [part for part in parameters if part.requires_grad and part.is_leaf]

        def node(part: Tensor) -> Any:
            return get_gradient_edge(part).node

        for part in parameters:
            node(part).metadata[_LEDGER] = True
        # The node of one that nobody holds is another one by now.
        self.watched = {id(part) for part in parameters if _LEDGER in node(part).metadata}

    def take(self) -> list[Debt]:
        """All debts since the last time. Modules whose gradients others have changed meanwhile are known from then on."""
        fresh = [held for held in self._fresh if id(held.of) not in self._changed]
        self._changed.update(id(held.of) for held in fresh if held.has_changed)
        self._fresh.clear()
        debts, self.debts = self.debts, []
        return debts


_LEDGER = "_adaptis_ledger"
"""The attribute of a module that leaves debts."""


def _ledger(module: nn.Module) -> Ledger:
    ledger = module.__dict__[_LEDGER]
    assert isinstance(ledger, Ledger)
    return ledger


def pay(debts: list[Debt], layer: int) -> None:
    """Works out the weight gradients that were left."""
    try:
        with torch.no_grad():
            for debt in debts:
                debt()
    except _Changed as changed:
        what, hint = changed.args
        raise RuntimeError(
            f"layer {layer} changes in place {what}, after its input gradient and before its weight gradient were worked out: {hint}"
        ) from None


class _Changed(Exception):
    """What a debt is to be worked out of is not what it was."""


class _AsItWas:
    """A tensor that must not change until a debt is paid."""

    def __init__(self, tensor: Tensor, of: nn.Module) -> None:
        self.tensor = tensor.detach()
        self._version = tensor._version
        self._kind = type(of).__name__

    def get(self) -> Tensor:
        """It, if it has not changed."""
        if self.tensor._version != self._version:
            hint = "let the layer work on a copy, as of a buffer that each microbatch fills anew"
            raise _Changed(f"what its {self._kind} was given", hint)
        return self.tensor


class _Gradient:
    """The gradient of a module's output until a debt is paid. Others may work on it in place, as hooks do: of the first ones a
    copy is held, which tells."""

    def __init__(self, gradient: Tensor, of: nn.Module, is_copied: bool) -> None:
        self.tensor = gradient.detach()
        self.of = of
        self._version = gradient._version
        self._copy = self.tensor.clone() if is_copied else None

    @property
    def has_changed(self) -> bool:
        """By its version, and where a copy is held, by its values."""
        return self.tensor._version != self._version or (
            self._copy is not None and not torch.equal(self.tensor, self._copy)
        )

    def get(self) -> Tensor:
        """As it was."""
        if self._copy is not None:
            return self._copy
        if self.has_changed:
            hint = "let a hook, or a backward of its own, work on a copy"
            raise _Changed(f"the gradient of what its {type(self.of).__name__} gives", hint)
        return self.tensor


def tensors_of_debt(debt: Any) -> Iterator[Tensor]:
    """What is held until it is paid."""
    for cell in debt.__closure__ or ():
        held = cell.cell_contents
        if isinstance(held, (_AsItWas, _Gradient)):
            yield held.tensor
        elif isinstance(held, Tensor):
            yield held


def _add(parameter: Tensor, gradient: Tensor) -> None:
    gradient = gradient.to(parameter.dtype)
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, cast: Any, module: nn.Linear) -> Tensor:
        # No more than torch does: what is not saved may be changed in place.
        ctx.save_for_backward(x if weight.requires_grad else None, weight if x.requires_grad else None)
        ctx.cast, ctx.module, ctx.own, ctx.dtype = cast, module, (weight, bias), weight.dtype
        if cast is not None:
            weight, bias = weight.to(cast), None if bias is None else bias.to(cast)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        ledger, own = _ledger(ctx.module), ctx.own
        before = gradient.matmul(weight if ctx.cast is None else weight.to(ctx.cast)) if of_x else None
        if ledger.is_open:
            left, of_output = _AsItWas(x, ctx.module) if of_weight else None, ledger.hold(gradient, ctx.module)
            ledger.debts.append(lambda: _linear_debt(own, None if left is None else left.get(), of_output.get(), of_bias))
            return before, None, None, None, None
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_own = (flat.t() @ x.reshape(-1, x.shape[-1])).to(ctx.dtype) if of_weight else None
        return before, of_own, flat.sum(0).to(ctx.dtype) if of_bias else None, None, None


Own = tuple[Tensor, Tensor | None]
"""Weight and bias that a forward used."""


def _linear_debt(own: Own, x: Tensor | None, gradient: Tensor, of_bias: bool) -> None:
    """What was asked for when the forward ran; `x` is there if the weight's gradient was."""
    weight, bias = own
    flat = gradient.reshape(-1, gradient.shape[-1])
    if x is not None:
        _add(weight, flat.t() @ x.reshape(-1, x.shape[-1]))
    if bias is not None and of_bias:
        _add(bias, flat.sum(0))


def _linear(self: nn.Linear, input: Tensor) -> Tensor:
    if not _leaves_debts(self, input):
        return type(self).forward(self, input)
    cast = _autocast(input)
    x = input if cast is None else input.to(cast)
    return _Linear.apply(x, self.weight, self.bias, cast, self)


def _leaves_debts(module: nn.Module, input: Tensor) -> bool:
    """Whether any of its parameters wants a gradient, and nobody else has a hand in it."""
    own, kind = module._parameters, type(module)
    # What was reparametrized since, as by pruning, has its weight worked out of others, which get the gradients; it is not
    # asked for it, which might draw or count. What is of another class by now, or a patched one, has its own forward.
    if "weight" not in own or "weight" in module.__dict__ or "bias" in module.__dict__ or not _is_of_torch(kind):
        return False
    # Others may be nested, or have a backward of their own.
    if type(input) not in (Tensor, nn.Parameter) or input.is_nested or _has_hands_in_it():
        return False
    parameters = [parameter for parameter in own.values() if parameter is not None]
    watched = _ledger(module).watched
    if watched and any(id(parameter) in watched for parameter in parameters):
        return False
    return all(map(_is_plain, parameters)) and any(parameter.requires_grad for parameter in parameters)


def _is_plain(parameter: Tensor) -> bool:
    """Nobody else has a hand in its gradient, as hooks or a class of its own; and it is a leaf: torch.func puts results in its
    place, whose gradients go on."""
    if type(parameter) is not nn.Parameter or not parameter.is_leaf or parameter.is_complex():
        return False
    wanted = getattr(parameter, "grad_dtype", parameter.dtype)
    return wanted == parameter.dtype and not (parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def _is_of_torch(kind: type[nn.Module]) -> bool:
    """One of the modules that leave debts, with the forward that torch gave it."""
    forward: Any = kind.forward
    return kind in _FORWARDS and forward.__module__ == kind.__module__ and forward.__qualname__ == _FORWARDS[kind]


_FORWARDS: dict[type[nn.Module], str] = {
    kind: f"{kind.__name__}.forward" for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
}


def _has_hands_in_it() -> bool:
    """Whatever runs now is looked at by others: by torch.func, forward-mode derivatives, or a mode that takes functions over.
    (A default device is a mode that does not.)"""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    count = torch._C._len_torch_function_stack()
    return any(not isinstance(torch._C._get_function_stack_at(at), _device.DeviceContext) for at in range(count))


def _autocast(x: Tensor) -> torch.dtype | None:
    """What autocast would make of a product's operands."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, cast: Any, module: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.cast, ctx.module, ctx.own = cast, module, (weight, bias)
        if cast is not None:
            weight, bias = weight.to(cast), None if bias is None else bias.to(cast)
        return torch.convolution(x, weight, bias, *_geometry(module))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        ledger, module, cast, own = _ledger(ctx.module), ctx.module, ctx.cast, ctx.own
        if ledger.is_open:
            if of_weight or of_bias:
                left, of_output = _AsItWas(x, module), ledger.hold(gradient, module)
                asked = (of_weight, of_bias)
                ledger.debts.append(lambda: _convolution_debt(module, own, left.get(), of_output.get(), cast, asked))
            of_weight = of_bias = False
        sizes = None if own[1] is None else list(own[1].shape)
        operand = weight if cast is None else weight.to(cast)
        wanted = [of_x, of_weight, of_bias]
        results = torch.ops.aten.convolution_backward(gradient, x, operand, sizes, *_geometry(module), wanted)
        before, *of_own = (part if is_wanted else None for part, is_wanted in zip(results, wanted))
        return before, *(None if part is None else part.to(weight.dtype) for part in of_own), None, None


def _convolution_debt(
    module: Any, own: Own, x: Tensor, gradient: Tensor, cast: torch.dtype | None, asked: tuple[bool, bool]
) -> None:
    weight, bias = own
    of_own, has_bias = asked
    wanted = [False, of_own, has_bias]
    operand = weight if cast is None else weight.to(cast)
    sizes = None if bias is None else list(bias.shape)
    _, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient, x, operand, sizes, *_geometry(module), wanted
    )
    if of_own:
        _add(weight, of_weight)
    if bias is not None and has_bias:
        _add(bias, of_bias)


def _geometry(module: Any) -> tuple[Any, ...]:
    still = [0] * len(module.stride)
    return list(module.stride), list(module.padding), list(module.dilation), False, still, module.groups


def _convolution(self: Any, input: Tensor) -> Tensor:
    # Without a batch, which no microbatch is, it is left alone, too.
    if not _leaves_debts(self, input) or input.dim() != len(self.stride) + 2:
        return type(self).forward(self, input)
    cast = _autocast(input)
    x = input if cast is None else input.to(cast)
    return _Convolution.apply(x, self.weight, self.bias, cast, self)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, indices: Tensor, weight: Tensor, module: nn.Embedding) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.module, ctx.weight = module, weight
        return functional.embedding(indices, weight, module.padding_idx)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        (indices,) = ctx.saved_tensors
        ledger, module, weight = _ledger(ctx.module), ctx.module, ctx.weight
        if ledger.is_open:
            left, of_output = _AsItWas(indices, module), ledger.hold(gradient, module)
            ledger.debts.append(lambda: _add(weight, _of_rows(module, left.get(), of_output.get())))
            return None, None, None
        return None, _of_rows(module, indices, gradient), None


def _of_rows(module: nn.Embedding, indices: Tensor, gradient: Tensor) -> Tensor:
    padding = -1 if module.padding_idx is None else module.padding_idx
    return torch.ops.aten.embedding_dense_backward(gradient, indices, module.num_embeddings, padding, False)


def _embedding(self: nn.Embedding, input: Tensor) -> Tensor:
    if not _leaves_debts(self, input):
        return type(self).forward(self, input)
    return _Embedding.apply(input, self.weight, self)


def _forward_of(module: nn.Module) -> Callable[..., Tensor] | None:
    """The forward that leaves debts, for modules that can."""
    kind = type(module)
    if kind is nn.Linear:
        return _linear
    if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        is_plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return _convolution if is_plain else None
    if kind is nn.Embedding:
        is_plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        return _embedding if is_plain else None
    return None


# By this name a model that is stored whole finds the forward of its class.
for _forward in (_linear, _convolution, _embedding):
    _forward.__name__ = "forward"


def _is_left_alone(module: nn.Module) -> bool:
    """Others have a hand in its forward or its parameters."""
    own = module.__dict__.get("_parameters", {})
    is_sharded = any(hasattr(parameter, "device_mesh") for parameter in module.parameters(recurse=False))
    is_changed = "forward" in module.__dict__ and _LEDGER not in module.__dict__
    return not isinstance(own.get("weight"), nn.Parameter) or is_sharded or is_changed


def _has_own_backward(module: nn.Module) -> bool:
    """Compiled, or its gradients are reduced as they come."""
    is_compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
    return is_compiled or isinstance(module, nn.parallel.DistributedDataParallel)


def defer(layer: nn.Module, ledger: Ledger) -> int:
    """Lets the weight gradients of a layer's modules wait, in this ledger from now on. How many modules can."""
    if any(_has_own_backward(module) for module in layer.modules()):
        return 0
    count = 0
    for module in layer.modules():
        forward = _forward_of(module)
        if forward is None or _is_left_alone(module):
            continue
        module.__dict__[_LEDGER] = ledger
        module.forward = MethodType(forward, module)
        count += 1
    return count
