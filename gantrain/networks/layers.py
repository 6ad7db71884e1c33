"""The layers of architecture tables: `build_layer` builds a row; dictionaries map the words of a table to modules."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from gantrain.errors import ConfigError
from gantrain.networks.fast_layers import BatchNorm, Conv2d, ConvTranspose2d, Maxout
from gantrain.networks.spectral_norm import SpectralNorm
from gantrain.networks.tables import IMAGE_OPS, VECTOR_OPS, Row, Shape, Tables
from gantrain.precision import as_float32


def build_layer(row: Row, shape: Shape, tables: Tables) -> nn.Sequential:
    """Return the operation, normalisation and activation of a row for samples of `shape`, without its dropout."""
    shape, parts = reshape_input(row.op, shape)
    if row.op == "residual":  # contains its normalisation and activation
        parts["residual"] = Residual(row, shape[0], tables)
        return nn.Sequential(parts)
    width = count_channels(row, tables) or shape[0]
    parts[row.op] = normalise_weights(OPERATIONS[row.op](row, shape[0], width), row)
    width += {"minibatch_stddev": 1, "minibatch_discrimination": row.kernels}.get(row.op, 0)  # channels appended
    if row.activation == "maxout" and width % tables.maxout_pieces:
        raise ConfigError(
            f"activation: maxout needs a number of channels that maxout_pieces={tables.maxout_pieces} divides, and "
            f"{row.op} has {width}; change the features before it, or choose another activation"
        )
    if row.norm not in ("none", "spectral"):
        parts["norm"] = NORMALISATIONS[row.norm](width)
    if row.activation != "linear":
        parts["activation"] = ACTIVATIONS[row.activation](tables)
    return nn.Sequential(parts)


def reshape_input(op: str, shape: Shape) -> tuple[Shape, OrderedDict[str, nn.Module]]:
    """Return the shape that the operation takes, and the modules that reshape samples of `shape` to it."""
    if op in IMAGE_OPS and len(shape) == 1:
        shape = (*shape, 1, 1)
        return shape, OrderedDict(image=nn.Unflatten(1, shape))
    if op in VECTOR_OPS and len(shape) > 1:
        return (math.prod(shape),), OrderedDict(vector=nn.Flatten())
    return shape, OrderedDict()


def count_channels(row: Row, tables: Tables) -> int:
    """Return the number of output channels of the operation, before maxout."""
    if row.activation != "maxout":
        return row.features
    if tables.maxout_counts == "after":
        return row.features * tables.maxout_pieces
    if row.features % tables.maxout_pieces:
        raise ConfigError(
            f"maxout_counts=before needs features that maxout_pieces={tables.maxout_pieces} divides, "
            f"not {row.features}; change features, or use maxout_counts=after"
        )
    return row.features


def normalise_weights(layer: nn.Module, row: Row) -> nn.Module:
    """Return `layer` with the normalisation of weights that its row asks for. Raises ConfigError if it has none."""
    if row.norm != "spectral":
        return layer
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        raise ConfigError(
            f"norm: spectral divides weights, and {row.op} has no matrix of them; "
            "use it with conv, conv_transpose, linear or residual"
        )
    return SpectralNorm(layer)


class Affine(nn.Module):
    """x = μ + σ z, with μ and σ for each dimension, initially 0 and 1: `[B, d]` → `[B, d]`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + self.scale * z


class Point(nn.Module):
    """x = θ for every latent, the generator of a point mass: `[B, L]` → `[B, d]`."""

    def __init__(self, size: int, start: float) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.full((size,), float(start)))

    def forward(self, z: Tensor) -> Tensor:
        return self.position.repeat(len(z), 1)


class Square(nn.Module):
    """x², elementwise; with it a discriminator can represent the log-ratio of two Gaussians, a parabola, everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class MeanPool(nn.Module):
    """The mean over an image's positions: `[B, C, H, W]` → `[B, C]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class MinibatchStddev(nn.Module):
    """Appends one channel, constant in a group of samples: the mean over channels and positions of the standard
    deviation over the group (Karras et al. 2018, section 3): `[B, C, …]` → `[B, C + 1, …]`.

    A group is the samples n, n + B/G, n + 2B/G, …; of a batch that G does not divide, the largest G that does.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        size = max(size for size in range(1, self.group + 1) if len(x) % size == 0)
        groups = as_float32(x).reshape(size, len(x) // size, -1)
        deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean(1).repeat(size).to(x.dtype)
        return torch.cat([x, deviation.view(-1, *[1] * (x.dim() - 1)).expand(-1, 1, *x.shape[2:])], 1)


class MinibatchDiscrimination(nn.Module):
    """Appends o_k(x_i) = mean over j ≠ i of exp(−‖M_ik − M_jk‖₁), M = x T (Salimans et al. 2016, section 3.2):
    `[B, F]` → `[B, F + kernels]`.

    The paper has the sum; the mean does not depend on the size of the batch. The weight norm and the bias of the
    authors' code are left out.
    """

    def __init__(self, features: int, kernels: int, dimensions: int) -> None:
        super().__init__()
        self.kernels = kernels
        self.projection = nn.Linear(features, kernels * dimensions, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected = as_float32(self.projection(x)).unflatten(1, (self.kernels, -1)).transpose(0, 1)  # [kernels, B, …]
        closeness = (-torch.cdist(projected, projected, p=1)).exp().sum(2).T - 1  # without a sample itself
        return torch.cat([x, (closeness / max(len(x) - 1, 1)).to(x.dtype)], 1)


def compares_samples(network: nn.Module) -> bool:
    """Return whether an output of a network depends on other samples of the batch, also in evaluation."""
    return any(isinstance(layer, MinibatchStddev | MinibatchDiscrimination) for layer in network.modules())


class Residual(nn.Module):
    """A pre-activation residual block of two 3×3 convolutions: `[B, C, H, W]` → `[B, features, H', W']`.

    He et al. 2016. `resample: up` doubles the image before the first convolution (nearest neighbour), `down` halves it
    after the second (mean of 2×2), also on the shortcut, which has a 1×1 convolution if the number of channels changes
    (Gulrajani et al. 2017, appendix; Miyato et al. 2018, figure 8).
    """

    def __init__(self, row: Row, channels: int, tables: Tables) -> None:
        super().__init__()
        if row.activation == "maxout":
            raise ConfigError("residual keeps the number of channels between its convolutions; maxout does not fit it")
        normalisation, activation = NORMALISATIONS[row.norm], ACTIVATIONS[row.activation]
        is_wider = channels != row.features
        self.body = nn.Sequential(
            normalisation(channels),
            activation(tables),
            nn.Upsample(scale_factor=2) if row.resample == "up" else nn.Identity(),
            normalise_weights(nn.Conv2d(channels, row.features, 3, padding=1, bias=row.norm != "batch"), row),
            normalisation(row.features),
            activation(tables),
            normalise_weights(nn.Conv2d(row.features, row.features, 3, padding=1), row),
            nn.AvgPool2d(2) if row.resample == "down" else nn.Identity(),
        )
        self.shortcut = nn.Sequential(
            nn.Upsample(scale_factor=2) if row.resample == "up" else nn.Identity(),
            normalise_weights(nn.Conv2d(channels, row.features, 1), row) if is_wider else nn.Identity(),
            nn.AvgPool2d(2) if row.resample == "down" else nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Float32(nn.Module):
    """A layer that is computed in float32, or in float64 for such inputs, also under autocast.

    bfloat16 logits near 8 have a spacing of 0.03–0.06, which is 3–6 % of e^r.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(as_float32(x))


def _convolution(kind: type[nn.Module], row: Row, inputs: int, outputs: int) -> nn.Module:
    return kind(inputs, outputs, row.kernel, row.stride, row.padding, bias=row.norm != "batch")


def _linear(row: Row, inputs: int, outputs: int) -> nn.Module:
    layer = nn.Linear(inputs, outputs, bias=row.bias and row.norm != "batch")
    if row.start is not None:
        nn.init.constant_(layer.weight, row.start)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer


def _affine(row: Row, inputs: int, outputs: int) -> nn.Module:
    if inputs != outputs:
        raise ConfigError(
            f"affine needs as many latents as the data has dimensions, not {inputs} for {outputs}; "
            f"set latent.size={outputs}, or choose another architecture"
        )
    return Affine(outputs)


# Modules for a row and the numbers of channels of its input and output, before maxout.
OPERATIONS: dict[str, Callable[[Row, int, int], nn.Module]] = {
    "conv": partial(_convolution, Conv2d),  # H' = ⌊(H + 2·padding − kernel) / stride⌋ + 1
    "conv_transpose": partial(_convolution, ConvTranspose2d),  # H' = (H − 1)·stride + kernel − 2·padding
    "linear": _linear,
    "affine": _affine,
    "point": lambda row, inputs, outputs: Point(outputs, row.start or 0.0),
    "mean_pool": lambda row, inputs, outputs: MeanPool(),
    "minibatch_stddev": lambda row, inputs, outputs: MinibatchStddev(row.group),
    "minibatch_discrimination": lambda row, inputs, outputs: MinibatchDiscrimination(
        inputs, row.kernels, row.dimensions
    ),
    "identity": lambda row, inputs, outputs: nn.Identity(),
}
NORMALISATIONS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": BatchNorm,
    "layer": lambda channels: nn.GroupNorm(1, channels),  # over a sample's channels and positions
    "spectral": lambda channels: nn.Identity(),  # of weights: `normalise_weights`
}
ACTIVATIONS: dict[str, Callable[[Tables], nn.Module]] = {
    "linear": lambda tables: nn.Identity(),
    "relu": lambda tables: nn.ReLU(),
    "leaky_relu": lambda tables: nn.LeakyReLU(tables.leaky_slope),
    "softplus": lambda tables: nn.Softplus(),
    "maxout": lambda tables: Maxout(tables.maxout_pieces),
    "tanh": lambda tables: nn.Tanh(),
    "sigmoid": lambda tables: nn.Sigmoid(),
    "square": lambda tables: Square(),
}
