"""A language model whose layers have little in common: state spaces, attention, mixtures of experts, and a head over
thousands of words, which alone costs more than several others. An equal number of layers a rank is a bad plan for it.

    torchrun --nproc-per-node 4 mixed.py          a pipeline of four processes
    python mixed.py --plain                       the same in one process, without Adaptis

`--plan FILE` starts on an `adaptis.plan/1`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from data import excerpts, words

WORDS = 8192
WIDTH = 128
HEADS = 4
STATE = 16
EXPERTS = 8
CHOSEN = 2
# s is a state space, a is attention, m is a mixture of experts.
PATTERN = "smsmamsmsmam"
LENGTH = 64
MICROBATCHES = 8
ROWS = 2 * MICROBATCHES


class StateSpace(nn.Module):
    """A memory that each token writes to and reads from, and that fades as the token says. Worked out for all tokens at
    once: what one reads of another has faded by all that lie between them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.sizes = [WIDTH, WIDTH, STATE, STATE, HEADS]
        self.into = nn.Linear(WIDTH, sum(self.sizes))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        value, gate, write, read, fading = self.into(self.norm(x)).split(self.sizes, dim=-1)
        faded = -functional.softplus(fading).cumsum(dim=1)
        between = faded[:, :, None] - faded[:, None]
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        left = between.masked_fill(later[..., None], float("-inf")).exp()
        weights = torch.einsum("btn,bsn->bts", read, write)[..., None] * left
        found = torch.einsum("btsh,bshd->bthd", weights, value.unflatten(-1, (HEADS, -1)))
        return x + self.out(found.flatten(2) * functional.silu(gate))


class Attention(nn.Module):
    """Attention to what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        found = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(found.transpose(1, 2).flatten(2))


class Mixture(nn.Module):
    """Perceptrons of which each token chooses two."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.ups = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(EXPERTS))
        self.downs = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(0, 1)
        shares, chosen = self.router(tokens).softmax(dim=-1).topk(CHOSEN, dim=-1)
        total = torch.zeros_like(tokens)
        for expert, (up, down) in enumerate(zip(self.ups, self.downs)):
            token, place = (chosen == expert).nonzero(as_tuple=True)
            found = down(functional.gelu(up(tokens[token])))
            total = total.index_add(0, token, found * shares[token, place, None])
        return x + total.view_as(x)


class Head(nn.Module):
    """Scores of the next word."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.scores = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.norm(x))


def model() -> list[nn.Module]:
    """The layers: what a plan deals out to the ranks."""
    kinds = {"s": StateSpace, "a": Attention, "m": Mixture}
    return [nn.Embedding(WORDS, WIDTH), *(kinds[letter]() for letter in PATTERN), Head()]


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def plain_step(layers: list[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """The mean loss over the microbatches, and its gradients."""
    loss = torch.zeros(())
    for part, target in zip(x.chunk(MICROBATCHES), y.chunk(MICROBATCHES)):
        of_part = loss_fn(nn.Sequential(*layers)(part), target) / MICROBATCHES
        of_part.backward()
        loss += of_part.detach()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="one process, without Adaptis")
    parser.add_argument("--plan", type=Path, help="the plan to start on")
    options = parser.parse_args()

    text = words(WORDS)
    torch.manual_seed(options.seed)
    layers = model()
    rank = 0
    if options.plain:
        optimizer = AdamW(nn.ModuleList(layers).parameters(), lr=2e-3)
    else:
        import adaptis

        dist.init_process_group("gloo")
        rank = dist.get_rank()
        plan = adaptis.Plan.read(options.plan.read_text()) if options.plan else None
        schedule = adaptis.Schedule(layers, microbatches=MICROBATCHES, loss_fn=loss_fn, plan=plan, mode="adapt")
        optimizer = schedule.attach(AdamW(schedule.parameters(), lr=2e-3))

    for step in range(options.steps):
        began = time.perf_counter()
        x, y = excerpts(text, ROWS, LENGTH, seed=options.seed + step)
        loss = plain_step(layers, x, y) if options.plain else schedule.step(x, target=y)
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and (step % 5 == 0 or step == options.steps - 1):
            print(f"step {step:3}  loss {loss:.4f}  {time.perf_counter() - began:.2f} s", flush=True)
    if rank == 0:
        print("final loss", float(loss).hex())
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
