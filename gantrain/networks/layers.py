"""What the words of an architecture table mean: a row becomes a module.

`layer` is the whole grammar; the dictionaries below it map each word to its part.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from gantrain.errors import ConfigError
from gantrain.networks.tables import IMAGE_OPS, VECTOR_OPS, Row, Shape, Tables


def layer(row: Row, shape: Shape, tables: Tables) -> nn.Sequential:
    """The row as a module for samples of `shape`: operation, normalisation, activation; dropout is for `Dropouts`."""
    shape, parts = entrance(row.op, shape)
    if row.op == "residual":  # its normalisation and activation have their places inside the block
        parts["residual"] = Residual(row, shape[0], tables)
        return nn.Sequential(parts)
    width = width_before_activation(row, tables) or shape[0]
    parts[row.op] = OPERATIONS[row.op](row, shape[0], width)
    if row.norm != "none":
        parts["norm"] = NORMALISATIONS[row.norm](width, image=len(shape) == 3 and row.op != "mean_pool")
    if row.activation != "linear":
        parts["activation"] = ACTIVATIONS[row.activation](tables)
    return nn.Sequential(parts)


def entrance(op: str, shape: Shape) -> tuple[Shape, OrderedDict[str, nn.Module]]:
    """The shape that the operation works on, and the change of shape that leads to it, if there is one."""
    if op in IMAGE_OPS and len(shape) == 1:
        shape = (*shape, 1, 1)
        return shape, OrderedDict(image=nn.Unflatten(1, shape))
    if op in VECTOR_OPS and len(shape) > 1:
        return (math.prod(shape),), OrderedDict(vector=nn.Flatten())
    return shape, OrderedDict()


def width_before_activation(row: Row, tables: Tables) -> int:
    """Channels that the operation has to produce, of which maxout keeps one in `maxout_pieces`; 0 without features."""
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


class Dropouts:
    """The dropout of a whole network, on the inputs of its layers: each number is 0 with the layer's probability, the
    others are scaled so that the mean stays (Srivastava et al. 2014). All masks of a pass are drawn at once.

    They are drawn as random bytes where a rate is a multiple of 1/256, and otherwise as 16-bit words, which round it to
    a multiple of 1/65536; the scale follows what is drawn. A CPU draws a byte 20 times as fast as a float.

    `layers` gives each layer's number, its rate, and the shape of its samples.
    """

    def __init__(self, layers: Sequence[tuple[int, float, Shape]]) -> None:
        self.groups: dict[float, list[tuple[int, Shape]]] = {}
        for number, rate, shape in layers:
            self.groups.setdefault(rate, []).append((number, shape))

    def masks(self, x: Tensor) -> dict[int, Tensor]:
        """Flat masks of 0 and 1/(1 − rate) by layer, for a batch like `x` [B, …] and in the precision of the layers;
        draws from torch's default generator."""
        rounded = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if rounded else x.dtype
        sizes = {rate: [len(x) * math.prod(shape) for _, shape in layers] for rate, layers in self.groups.items()}
        width = 32 if x.device.type == "mps" else 64  # MPS draws no more random bits for an integer
        words = {rate: -(-sum(each) * bits(rate) // width) for rate, each in sizes.items()}
        # The fewest calls of the random number generator.
        least, most, kind = -(2 ** (width - 1)), 2 ** (width - 1) - 1, torch.int32 if width == 32 else torch.int64
        drawn = torch.randint(least, most, (sum(words.values()),), dtype=kind, device=x.device)
        masks: dict[int, Tensor] = {}
        for part, (rate, layers) in zip(drawn.split(list(words.values())), self.groups.items(), strict=True):
            parts = mask(rate, part, sum(sizes[rate]), dtype).split(sizes[rate])
            masks |= {number: each for (number, _), each in zip(layers, parts, strict=True)}
        return masks


def bits(rate: float) -> int:
    """Of a word that decides over one number."""
    return 8 if (256 * rate).is_integer() else 16


def mask(rate: float, drawn: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """`count` numbers, 0 with probability `rate` and otherwise 1/(1 − rate), from random integers."""
    values = 2 ** bits(rate)  # equally likely ones of a word
    words = drawn.view(torch.int8 if bits(rate) == 8 else torch.int16)[:count]
    dropped = min(round(rate * values), values - 1)
    kept = torch.ge(words, dropped - values // 2, out=torch.empty(count, dtype=dtype, device=drawn.device))
    return kept.mul_(values / (values - dropped))


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` [B, …] times a flat mask, laid out as `x` is in memory: so it is multiplied at full speed."""
    if x.dim() == 4 and is_channels_last(x):
        return x * mask.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    return x * mask.view(x.shape)


def is_channels_last(x: Tensor) -> bool:
    """Whether an image's channels lie beside each other in memory, and not its columns."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def flat(images: Tensor, channels_last: bool) -> Tensor:
    """`[B, C, H, W]` → `[B, C·H·W]`, in the order in which memory holds the numbers: a view."""
    return (images.permute(0, 2, 3, 1) if channels_last else images).flatten(1)


class Conv2d(nn.Conv2d):
    """A convolution that is one matrix product where the kernel covers the image: appendix's D runs 1.5× as fast."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, features, H', W']`."""
        if x.shape[2:] != self.kernel_size or self.padding != (0, 0):
            return super().forward(x)
        channels_last = is_channels_last(self.weight)
        return functional.linear(flat(x, channels_last), flat(self.weight, channels_last), self.bias)[..., None, None]


class ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that is one matrix product where the image is a single pixel."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """`[B, C, H, W]` → `[B, features, H', W']`."""
        if x.shape[2:] != (1, 1) or self.padding != (0, 0):
            return super().forward(x, output_size)
        channels_last = is_channels_last(self.weight)
        maps = functional.linear(x.flatten(1), flat(self.weight, channels_last).T)
        features, height, width = self.weight.shape[1:]
        if channels_last:
            maps = maps.unflatten(1, (height, width, features)).permute(0, 3, 1, 2)
        else:
            maps = maps.unflatten(1, (features, height, width))
        return maps if self.bias is None else maps + self.bias[:, None, None]


class Larger(torch.autograd.Function):
    """The larger of the two halves of the channels, whose gradient goes to the first in a tie: `[B, 2C, …]` →
    `[B, C, …]`; 3× as fast as `amax` on a CPU."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        """max(first, second), and whether it was the first as 1 or 0: products of one dtype are the fast ones."""
        first, second = x.chunk(2, 1)
        larger = torch.maximum(first, second)
        if torch.compiler.is_compiling():  # which fuses what is written plainly, and refuses an `out`
            return larger, (first >= second).to(x.dtype)
        return larger, torch.ge(first, second, out=torch.empty_like(larger))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        """Keep which one it was."""
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # zeros for it would be made in every pass
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> Tensor | None:
        """The gradient, to one of the two."""
        return None if gradient is None else Shared.apply(gradient, *ctx.saved_tensors)


class Shared(torch.autograd.Function):
    """Larger's gradient in the places of both halves; differentiable again, as gradient penalties need."""

    @staticmethod
    def forward(gradient: Tensor, to_first: Tensor) -> Tensor:
        """`[B, C, …]` → `[B, 2C, …]`."""
        if torch.compiler.is_compiling():
            return torch.cat([gradient * to_first, gradient * (1 - to_first)], 1)
        layout = torch.channels_last if gradient.dim() == 4 and is_channels_last(gradient) else torch.contiguous_format
        shape = (len(gradient), 2 * gradient.shape[1], *gradient.shape[2:])
        both = torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=layout)
        first, second = both.chunk(2, 1)
        torch.sub(gradient, torch.mul(gradient, to_first, out=first), out=second)
        return both

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep which one it goes to."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Of the two, the one that was the larger."""
        (to_first,) = ctx.saved_tensors
        first, second = gradient.chunk(2, 1)
        return torch.lerp(second, first, to_first), None


class Maxout(nn.Module):
    """Channel c is the largest of channels c, c + C, c + 2C, …: `[B, pieces·C, …]` → `[B, C, …]` (Goodfellow et al.
    2013), so that both halves are runs of memory."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        """`[B, pieces·C, …]` → `[B, C, …]`."""
        if self.pieces == 2:
            return Larger.apply(x)[0]
        return x.unflatten(1, (self.pieces, -1)).max(1).values


class Affine(nn.Module):
    """x = μ + σ z, one free μ and σ a dimension, from 0 and 1: `[B, d]` → `[B, d]`; samples N(μ, σ²) from N(0, 1)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size))
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, z: Tensor) -> Tensor:
        """`[B, d]` → `[B, d]`."""
        return self.mean + self.scale * z


class Point(nn.Module):
    """x = θ, whatever the latents: `[B, L]` → `[B, d]`; the generator of a point mass."""

    def __init__(self, size: int, start: float) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.full((size,), float(start)))

    def forward(self, z: Tensor) -> Tensor:
        """`[B, L]` → `[B, d]`."""
        return self.position.repeat(len(z), 1)


class Square(nn.Module):
    """x²: a discriminator with it can follow the log-ratio of two Gaussians, a parabola, to where no samples are."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, elementwise."""
        return x.square()


class MeanPool(nn.Module):
    """The mean over an image's positions: `[B, C, H, W]` → `[B, C]`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C]`."""
        return x.mean((2, 3))


class Residual(nn.Module):
    """A block of two 3×3 convolutions beside a shortcut, normalised and activated before each (He et al. 2016).

    `resample: up` doubles the image before the first convolution (nearest neighbour), `down` halves it after the second
    (mean of 2×2), on both ways; the shortcut has a 1×1 convolution where the number of channels changes (Gulrajani et
    al. 2017, appendix; Miyato et al. 2018, figure 8).
    """

    def __init__(self, row: Row, channels: int, tables: Tables) -> None:
        super().__init__()
        if row.activation == "maxout":
            raise ConfigError("residual keeps the number of channels between its convolutions; maxout does not fit it")
        normalisation, activation = NORMALISATIONS[row.norm], ACTIVATIONS[row.activation]
        self.body = nn.Sequential(
            normalisation(channels, image=True),
            activation(tables),
            nn.Upsample(scale_factor=2) if row.resample == "up" else nn.Identity(),
            nn.Conv2d(channels, row.features, 3, padding=1, bias=row.norm != "batch"),
            normalisation(row.features, image=True),
            activation(tables),
            nn.Conv2d(row.features, row.features, 3, padding=1),
            nn.AvgPool2d(2) if row.resample == "down" else nn.Identity(),
        )
        self.shortcut = nn.Sequential(
            nn.Upsample(scale_factor=2) if row.resample == "up" else nn.Identity(),
            nn.Conv2d(channels, row.features, 1) if channels != row.features else nn.Identity(),
            nn.AvgPool2d(2) if row.resample == "down" else nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, features, H', W']`."""
        return self.body(x) + self.shortcut(x)


class Float32(nn.Module):
    """A layer that autocast leaves alone: bfloat16 logits near 8 lie 0.03–0.06 apart, 3–6 % in e^r."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output in float32 (float64 where the input is)."""
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.to(torch.promote_types(x.dtype, torch.float32)))


def conv(row: Row, inputs: int, outputs: int) -> nn.Module:
    """`[B, C, H, W]` → `[B, features, H', W']`, H' = ⌊(H + 2·padding − kernel) / stride⌋ + 1."""
    return Conv2d(inputs, outputs, row.kernel, row.stride, row.padding, bias=row.norm != "batch")


def conv_transpose(row: Row, inputs: int, outputs: int) -> nn.Module:
    """`[B, C, H, W]` → `[B, features, H', W']`, H' = (H − 1)·stride + kernel − 2·padding."""
    return ConvTranspose2d(inputs, outputs, row.kernel, row.stride, row.padding, bias=row.norm != "batch")


def linear(row: Row, inputs: int, outputs: int) -> nn.Module:
    """`[B, d]` → `[B, features]`."""
    layer = nn.Linear(inputs, outputs, bias=row.bias and row.norm != "batch")
    if row.start is not None:
        nn.init.constant_(layer.weight, row.start)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer


def affine(row: Row, inputs: int, outputs: int) -> nn.Module:
    """x = μ + σ z; raises ConfigError unless there are as many latents as dimensions."""
    if inputs != outputs:
        raise ConfigError(
            f"affine needs as many latents as the data has dimensions, not {inputs} for {outputs}; "
            f"set latent.size={outputs}, or choose another architecture"
        )
    return Affine(outputs)


OPERATIONS: dict[str, Callable[[Row, int, int], nn.Module]] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "linear": linear,
    "affine": affine,
    "point": lambda row, inputs, outputs: Point(outputs, row.start or 0.0),
    "mean_pool": lambda row, inputs, outputs: MeanPool(),
    "identity": lambda row, inputs, outputs: nn.Identity(),
}


class BatchNorm(_BatchNorm):
    """torch's own, which for each layer also counts batches on the device: nobody reads `num_batches_tracked`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` or `[B, C]`, normalised over all but the channels (Ioffe and Szegedy 2015)."""
        assert self.momentum is not None
        running = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if running else (None, None)
        return functional.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)


NORMALISATIONS: dict[str, Callable[..., nn.Module]] = {
    "none": lambda channels, image: nn.Identity(),
    "batch": lambda channels, image: BatchNorm(channels),
    "layer": lambda channels, image: nn.GroupNorm(1, channels),  # over a sample's channels and positions
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
