"""Transformations of images, each sample's own, that can be differentiated twice and never wait for the device.

Own code: torchvision.transforms.v2 draws one transformation for a whole batch, Kornia reads on the host which samples
to change, and `grid_sample` moves no pixel exactly by a whole number of pixels.

Images are `[B, C, H, W]` with pixels in [0, 1], of any size and number of channels; parameters are tensors `[B]`. All
are linear or affine in the image, so that a gradient comes back through the transposed map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gantrain.distributed import Part

GREY = 0.5  # 0 of the pixels in [−1, 1] of the publications
CUBIC = -0.75  # the slope of the kernel at 1, as in torch


class Draws:
    """Random numbers `[B]` for the samples of a batch like `x`, from torch's default generator.

    They are drawn for the batch of all processes, of which this one takes its `part`. All `columns` uniform (or normal)
    numbers of a sample are drawn in one call, at the first use: torch.compile removes draws whose result is not used,
    which would shift all later ones.
    """

    def __init__(self, x: Tensor, part: Part, columns: int) -> None:
        self.x, self.part, self.size = x, part, (len(x) * part.ranks, columns)
        self._left: dict[Callable[..., Tensor], list[Tensor]] = {}

    def _take(self, draw: Callable[..., Tensor]) -> Tensor:
        if draw not in self._left:
            drawn = draw(self.size, dtype=self.x.dtype, device=self.x.device)
            self._left[draw] = list(self.part.take(drawn).unbind(1))
        return self._left[draw].pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return numbers in [low, high)."""
        return low + (high - low) * self._take(torch.rand)

    def integer(self, values: int) -> Tensor:
        """Return whole numbers from 0 to values − 1."""
        return self.uniform(high=values).floor()

    def normal(self, std: float) -> Tensor:
        """Return normal numbers of mean 0."""
        return std * self._take(torch.randn)

    def choose(self, probability: Tensor | float, value: Tensor, neutral: float) -> Tensor:
        """Return `value` for each sample with this probability, and `neutral` for the others."""
        return torch.where(self.uniform() < probability, value, neutral)


# ---------------------------------------------------------------------------------------------------------------------
# Geometry


class Affine(NamedTuple):
    """Maps of the plane, one a sample: the columns of their matrices, `[B, 2]` each.

    Written out, because products of small matrices would be rounded to 10 bits under precision=tf32. A step is applied
    before what is there already.
    """

    across: Tensor
    down: Tensor
    offset: Tensor

    @classmethod
    def identity(cls, x: Tensor) -> Affine:
        """Return the identity for each sample of `x`."""
        one, zero = x.new_ones(len(x)), x.new_zeros(len(x))
        return cls(torch.stack([one, zero], 1), torch.stack([zero, one], 1), torch.stack([zero, zero], 1))

    def scale(self, across: Tensor, down: Tensor | float = 1.0) -> Affine:
        """Scale by two factors first."""
        return self._replace(across=(self.across.T * across).T, down=(self.down.T * down).T)

    def rotate(self, cosine: Tensor, sine: Tensor) -> Affine:
        """Rotate by an angle first."""
        across, down = self.across.T, self.down.T
        return self._replace(across=(across * cosine + down * sine).T, down=(down * cosine - across * sine).T)

    def translate(self, across: Tensor, down: Tensor) -> Affine:
        """Move by a distance first."""
        return self._replace(offset=(self.across.T * across + self.down.T * down + self.offset.T).T)


def warp(x: Tensor, inverse: Affine) -> Tensor:
    """Return images whose pixel at `z` is that of `x` at inverse(z), both in pixels from the centre.

    Bicubic (Keys 1981) with the image mirrored at its edges; exact where `z` falls on a pixel.
    """
    height, width = x.shape[-2:]
    rows, columns = (torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2 for size in (height, width))
    at = inverse.across[..., None, None] * columns + inverse.down[..., None, None] * rows[:, None]
    column, row = (at + inverse.offset[..., None, None]).unbind(1)  # [B, H, W]
    down, across = list_taps(row + (height - 1) / 2, height), list_taps(column + (width - 1) / 2, width)
    warped = torch.zeros_like(x)
    for i, row_weight in down:
        line = torch.zeros_like(x)
        for j, column_weight in across:
            line = torch.addcmul(line, column_weight[:, None], pick(x, i, j))
        warped = torch.addcmul(warped, row_weight[:, None], line)
    return warped


def list_taps(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the four pixels around a position with their weights in cubic convolution, whose sum is 1."""
    first, taps = position.floor(), []
    for tap in (-1, 0, 1, 2):
        near, far = (position - first - tap).abs(), first + tap
        inner = ((CUBIC + 2) * near - (CUBIC + 3)) * near * near + 1
        outer = CUBIC * (((near - 5) * near + 8) * near - 4)
        mirrored = far.remainder(2 * size)
        pixel = torch.minimum(mirrored, 2 * size - 1 - mirrored).long()
        taps.append((pixel, torch.where(near <= 1, inner, outer)))
    return taps


def blit(inverse: Affine, draws: Draws, p: Tensor | float, size: Sequence[int]) -> Affine:
    """Mirror, turn by right angles and move by whole pixels, up to an eighth of the side: no pixel is changed."""
    inverse = inverse.scale(1 - 2 * draws.choose(p, draws.integer(2), 0))
    angle = draws.choose(p, draws.integer(4), 0) * (math.pi / 2)
    inverse = inverse.rotate(angle.cos().round(), angle.sin().round())
    down, across = ((draws.uniform(-0.125, 0.125) * side).round() for side in size)
    is_moved = draws.choose(p, down.new_ones(()), 0)
    return inverse.translate(across * is_moved, down * is_moved)


def deform(inverse: Affine, draws: Draws, p: Tensor | float, size: Sequence[int]) -> Affine:
    """Scale, rotate before and after a stretch, and move by fractions of pixels."""
    scale = draws.choose(p, draws.normal(0.2).exp2(), 1)
    inverse = inverse.scale(scale, scale)
    stretch = draws.choose(p, draws.normal(0.2).exp2(), 1)
    rotation = 1 - (1 - p) ** 0.5  # either of two has the probability p
    before, after = (draws.choose(rotation, draws.uniform(-math.pi, math.pi), 0) for _ in range(2))
    inverse = inverse.rotate(before.cos(), before.sin()).scale(stretch, 1 / stretch).rotate(after.cos(), after.sin())
    down, across = (draws.normal(0.125) * side for side in size)
    is_moved = draws.choose(p, down.new_ones(()), 0)
    return inverse.translate(across * is_moved, down * is_moved)


def pick(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels of `x` at `rows` and `columns`, which broadcast to `[B, H, W]`."""
    index = (rows * x.shape[-1] + columns).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, index).view_as(x)


def shift(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return images moved by whole numbers of pixels, grey where nothing comes from."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device) - down.long()[:, None]
    columns = torch.arange(width, device=x.device) - across.long()[:, None]
    is_inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    moved = pick(x, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None])
    return torch.where(is_inside[:, None], moved, GREY)


def round_half_up(number: float) -> int:
    """Return the nearest whole number, as the published code rounds."""
    return int(number + 0.5)


def cut_out(x: Tensor, top: Tensor, left: Tensor, height: float, width: float) -> Tensor:
    """Return images with a grey rectangle; a pixel belongs to it if its centre does. Edges are in pixels."""
    inside = []
    for size, start, length in ((x.shape[-2], top, height), (x.shape[-1], left, width)):
        centres = torch.arange(size, dtype=x.dtype, device=x.device) + 0.5 - start[:, None]
        inside.append((centres > 0) & (centres < length))
    return torch.where((inside[0][:, :, None] & inside[1][:, None])[:, None], GREY, x)


# ---------------------------------------------------------------------------------------------------------------------
# Colour: the luma of a pixel is the mean of its channels. With neutral parameters, `x` comes back bit for bit.


def brighten(x: Tensor, amount: Tensor) -> Tensor:
    """Add `amount` to every pixel."""
    return x + amount.view(-1, 1, 1, 1)


def scale_about(x: Tensor, centre: Tensor | float, factor: Tensor) -> Tensor:
    """Scale the distance to `centre`: contrast about grey or the image's mean, saturation about each pixel's luma."""
    return x + (factor - 1).view(-1, 1, 1, 1) * (x - centre)


def flip_luma(x: Tensor, share: Tensor) -> Tensor:
    """Mirror the luma at grey where `share` is 1, and keep the colour."""
    return x - 2 * share.view(-1, 1, 1, 1) * (x.mean(1, keepdim=True) - GREY)


def rotate_hue(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate the colours of RGB images about the axis of greys (Rodrigues); others have no hue and stay as they are."""
    if x.shape[1] != 3:
        return x
    crossed = (x.roll(1, 1) - x.roll(-1, 1)) / math.sqrt(3)
    sine, rest = angle.sin().view(-1, 1, 1, 1), (1 - angle.cos()).view(-1, 1, 1, 1)
    return x + sine * crossed + rest * (x.mean(1, keepdim=True) - x)
