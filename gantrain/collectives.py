"""Sums and collections over the processes of a run, which autograd can differentiate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gantrain.failures import watch


class Gathered(torch.autograd.Function):
    """The rows of all processes, of which each has the gradient of its own."""

    @staticmethod
    def forward(rows: Tensor, rank: int, ranks: int) -> Tensor:
        found = rows.new_empty(ranks * len(rows), *rows.shape[1:])
        with watch():
            dist.all_gather(list(found.chunk(ranks)), rows.contiguous())
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        _, ctx.rank, ctx.ranks = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.chunk(ctx.ranks)[ctx.rank], None, None


class Summed(torch.autograd.Function):
    """The sum over all processes, of which each goes on with rows of its own; so its gradient is a sum too."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        with watch():
            dist.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Summed.apply(gradient)


@torch.compiler.disable
def gather(rows: Tensor, rank: int, ranks: int) -> Tensor:
    """Return the rows `[B, …]` of all processes for those `[B / ranks, …]` of process `rank`, as `Part.gather`."""
    return Gathered.apply(rows, rank, ranks)


@torch.compiler.disable
def sum_over_processes(x: Tensor) -> Tensor:
    """Return the sum of the processes' tensors, for a computation in which each goes on with rows of its own."""
    return Summed.apply(x)


@torch.no_grad()
def add_gradients(networks: Iterable[nn.Module]) -> None:
    """Replace the gradients of networks by their sums over all processes, in one all-reduce."""
    gradients = [p.grad for network in networks for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    with watch():
        dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view(to.shape) for part, to in zip(parts, gradients, strict=True)])
