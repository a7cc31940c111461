"""Losses and optimizers that train what is in no layer, or keep something: refused, told of, or let through."""

from __future__ import annotations

from typing import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from adaptis import Schedule
from models import WIDTH, X, Y, linears
from ranks import in_ranks
from refusing import assert_said, refusals, said


class Projected(nn.Module):
    """A loss with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(WIDTH, WIDTH)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(self.own(output), target)


def _of_losses(rank: int, world: int) -> list[str]:
    own = Projected()
    schedule = Schedule(linears(), 2, functional.mse_loss)
    hidden = Schedule(linears(), 2, lambda output, target: own(output, target))
    tied = linears()
    of_layer = Schedule(tied, 2, lambda output, target: functional.mse_loss(output @ tied[0].weight, target))
    detached = Schedule(linears(), 2, lambda output, target: functional.mse_loss(output.detach(), target))
    frozen = linears()
    for layer in frozen:
        layer.requires_grad_(False)
    return refusals(
        [
            lambda: Schedule(linears(), 2, own),
            lambda: schedule.attach(SGD([*schedule.parameters(), *own.parameters()], lr=0.1)),
            lambda: hidden.step(X, target=Y),
            lambda: of_layer.step(X, target=Y),
            lambda: detached.step(X, target=Y),
            lambda: Schedule(frozen, 2, functional.mse_loss).step(X, target=Y),
        ]
    )


def test_a_loss_that_would_train_otherwise_is_refused() -> None:
    assert_said(
        in_ranks(1, _of_losses)[0],
        [
            "loss_fn: it has a parameter of its own, 'own.weight', which requires a gradient",
            "none of the schedule's layers: it would not move with them",
            "a parameter of its own, of shape (8,",
            "loss_fn: it uses a parameter of layer 0",
            "the loss has no gradient",
            "the loss has no gradient",
        ],
    )


def _unattached(rank: int, world: int) -> list[str]:
    schedule = Schedule(linears(), 2, functional.mse_loss)
    first, second = (list(layer.parameters()) for layer in (schedule.layers[0], schedule.layers[3]))
    optimizers = [schedule.attach(SGD(first, lr=0.1, momentum=0.9)), SGD(second, lr=0.1, momentum=0.9)]

    def train() -> None:
        for _ in range(3):
            schedule.step(X, target=Y)
            for optimizer in optimizers:
                optimizer.step()

    return said(train)


def test_an_optimizer_that_is_not_attached_is_told_of_once() -> None:
    of_first, of_last = in_ranks(2, _unattached)
    assert of_first == [], "it keeps nothing there"
    assert len(of_last) == 1 and "an optimizer (SGD) that the schedule does not know of" in of_last[0], of_last


def _warmed(rank: int, world: int) -> list[str]:
    warmth, constant = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    schedule = Schedule(linears(), 2, lambda output, target: functional.mse_loss(output * warmth * constant, target))
    optimizer, stranger = schedule.attach(SGD(schedule.parameters(), lr=0.1)), SGD([warmth], lr=0.1)

    def train() -> None:
        # What is given may be the same as what is asked for.
        x = X.clone().requires_grad_()
        for _ in range(3):
            schedule.step(x, target=x)
            optimizer.step()
            stranger.step()

    return [text for text in said(train) if "x.grad" not in text]


def test_a_trained_tensor_of_a_loss_is_told_of_once() -> None:
    of_first, of_last = in_ranks(2, _warmed)
    assert of_first == [], "the loss is not there"
    assert len(of_last) == 1 and "trains a tensor that loss_fn uses and no layer has" in of_last[0], of_last


def _penalized(output: Tensor, target: Tensor) -> Tensor:
    """With a leaf of its own, and a gradient within it."""
    noise = torch.zeros_like(output, requires_grad=True)
    loss = functional.mse_loss(output + noise, target)
    (gradient,) = torch.autograd.grad(loss, noise, create_graph=True)
    return loss + 0.0 * gradient.square().sum()


def _masked(output: Tensor, target: Tensor) -> Tensor:
    """Of some microbatch nothing counts."""
    return functional.mse_loss(output, target) if target.any() else output.new_zeros(())


def _harmless(rank: int, world: int) -> list[float]:
    own = Projected().requires_grad_(False)
    own.own.weight.data.copy_(torch.eye(WIDTH))
    own.own.bias.data.zero_()
    losses: list[Callable[..., Tensor]] = [functional.mse_loss, own, _penalized]
    found = [Schedule(linears(), 2, loss_fn).step(X, target=Y).item() for loss_fn in losses]
    half = Y.clone()
    half[:4] = 0.0
    masked = Schedule(linears(), 2, _masked)
    found.append(masked.step(X, target=half).item())
    assert all(part.grad is not None and part.grad.any() for part in masked.parameters())
    # An input that is a leaf may ask for a gradient, as some checkpointing needs it.
    found.append(Schedule(linears(), 2, functional.mse_loss).step(X.clone().requires_grad_(), target=Y).item())
    # What is frozen may be in an optimizer, and be no layer's.
    schedule = Schedule(linears(), 2, functional.mse_loss)
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = schedule.attach(SGD([frozen, *schedule.parameters()], lr=0.1, momentum=0.9))
    found.append(schedule.step(X, target=Y).item())
    optimizer.step()
    whole = schedule.whole_checkpoint()
    assert whole is not None and len(whole["optimizers"][0]["state"]) == 8
    schedule.restore(whole)
    return found


def test_what_is_not_trained_otherwise_is_let_through() -> None:
    plain, constant, penalized, masked, of_leaf, frozen = in_ranks(1, _harmless)[0]
    assert (constant, penalized, of_leaf, frozen) == pytest.approx((plain,) * 4)
    assert 0 < masked < plain
