"""Spectral normalisation of weights (Miyato et al. 2018)."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

EVALUATION_ITERATIONS = 20  # of other weights than those that the vector was found for, such as an average of them


class SpectralNorm(nn.Module):
    """A layer whose weight W, as a matrix [outputs, rest], is divided by its largest singular value σ = uᵀWv.

    u and v come from power iteration: one step in every pass in training mode, whose u is kept in a buffer and is part
    of the checkpoint, and EVALUATION_ITERATIONS from there in evaluation mode, which keeps nothing. They are constants
    of the gradient, and float32 under autocast. The operator norm of a convolution may exceed 1: that of a 3×3 kernel
    is at most 3.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.output_axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        assert isinstance(layer.weight, Tensor)
        self.u: Tensor
        self.register_buffer("u", normalize(torch.randn(layer.weight.shape[self.output_axis]), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(self.layer, {"weight": self.normalise_weight()}, (x,))
        return output

    def normalise_weight(self) -> Tensor:
        """Return W/σ, with a gradient to W, whose σ has the gradient uvᵀ."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        # The meta device, on which shapes are found, knows no autocast.
        with nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False):
            matrix = weight.transpose(0, self.output_axis).flatten(1)
            u, v = self.iterate_power(matrix.detach())
            sigma = u.dot(matrix.mv(v))
            return weight / sigma.clamp(min=torch.finfo(weight.dtype).tiny)  # a weight of zeros stays one

    @torch.no_grad()
    def iterate_power(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors u [outputs] and v [rest] near the singular vectors of the largest singular value."""
        u = self.u
        for _ in range(1 if self.training else EVALUATION_ITERATIONS):
            v = normalize(matrix.T.mv(u), dim=0)
            u = normalize(matrix.mv(v), dim=0)
        if self.training:
            self.u.copy_(u)
        return u, v
