"""Layers that couple the samples of a batch, for a batch that several processes share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gantrain.distributed import WHOLE, Part
from gantrain.networks.builder import Network
from gantrain.networks.fast_layers import BatchNorm, take_blocks
from gantrain.networks.layers import MinibatchDiscrimination, MinibatchStddev


def share_batch(network: nn.Module, part: Part, batch_size: int) -> None:
    """Let the layers of a network see the global batch of `batch_size`, of which this process has its part.

    Batch norm has the moments of all rows, dropout the masks that are drawn for all of them, and a layer that compares
    samples compares all. In evaluation mode nothing is sent.
    """
    rows = batch_size // part.ranks

    def repeat(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        blocks = inputs[0].chunk(max(len(inputs[0]) // rows, 1))  # those of `take_blocks`
        return (torch.cat([block for block in blocks for _ in range(part.ranks)]),) if module.training else None

    def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (collect_rows(inputs[0], part),) if module.training else None

    def take(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        return take_blocks(output, part, rows) if module.training else None

    for module in network.modules():
        if isinstance(module, _BatchNorm):
            SharedBatchNorm.replace(module, part)
        elif isinstance(module, Network):
            module.dropouts.part, module.dropouts.rows = part, rows
        elif isinstance(module, _DropoutNd | MinibatchStddev | MinibatchDiscrimination):
            module.register_forward_pre_hook(repeat if isinstance(module, _DropoutNd) else collect)
            module.register_forward_hook(take)


def stop_sharing(network: nn.Module) -> None:
    """Let batch norm have the moments of this process's own rows, for a pass that no other process makes."""
    for module in network.modules():
        if isinstance(module, SharedBatchNorm):
            module.part = WHOLE


def collect_rows(x: Tensor, part: Part) -> Tensor:
    """Return the rows `[B, …]` of all processes, of which each goes on with its own; their gradients are added up."""
    places = [x if rank == part.rank else torch.zeros_like(x) for rank in range(part.ranks)]
    return part.add(torch.cat(places))


class SharedBatchNorm(_BatchNorm):
    """Batch norm with the moments of the rows of all processes, in place of a layer of one process.

    torch's SyncBatchNorm is for CUDA alone, and cannot be differentiated twice.
    """

    part: Part
    is_counting: bool  # as torch's own layers do

    @staticmethod
    def replace(module: nn.Module, part: Part) -> None:
        """Turn a batch norm into one of all processes, with the same parameters and statistics."""
        is_counting = not isinstance(module, BatchNorm)
        module.__class__ = SharedBatchNorm
        assert isinstance(module, SharedBatchNorm)
        module.part, module.is_counting = part, is_counting

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training or self.running_mean is None):
            arguments = (self.running_mean, self.running_var, self.weight, self.bias)
            return functional.batch_norm(x, *arguments, training=False, eps=self.eps)
        axes, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        count = self.part.ranks * x.numel() // x.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            y = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            mean = self.part.add(y.sum(axes)) / count
            y = y - mean.view(shape)
            variance = self.part.add(y.square().sum(axes)) / count
            if self.training and self.track_running_stats:
                self.follow(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
            y = y * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                y = y * self.weight.view(shape) + self.bias.view(shape)
            return y.to(x.dtype)

    def follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch, as torch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        if self.is_counting:
            self.num_batches_tracked += 1
        # Without a momentum, the mean of all batches.
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept any shape: the layer that this replaces has checked it."""
