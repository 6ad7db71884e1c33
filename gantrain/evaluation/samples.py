"""Samples on disk (a folder or .zip of images, an array in a .npz or .npy file), and the choice of real examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gantrain import data
from gantrain.data.arrays import load_array
from gantrain.data.decoding import REMEDY, decode_all
from gantrain.data.folder import image_files
from gantrain.data.labels import LISTING
from gantrain.errors import DataError
from gantrain.seeding import stream_generator

SAMPLE_SUFFIXES = (".npz", ".npy")
GRID = "grid.png"  # of all samples, which `gantrain sample` writes beside them
MAX_COUNT = 10_000  # real examples, unless more are asked for


def read_samples(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read all samples of `shape` at `path`: uint8 `[N, C, H, W]`, or float32 `[N, d]` for points.

    Raises DataError if there are none, or none of that shape.
    """
    if path.suffix.lower() in SAMPLE_SUFFIXES:
        return _read_array(path, shape)
    if len(shape) == 1:
        raise DataError(f"{path} holds no points; give the .npy or .npz file that does")
    return _read_images(path, shape)


def to_uint8(pixels: Tensor) -> Tensor:
    """Round pixels in [0, 1] to 8 bits, as real images have, so that samples differ from them in nothing else."""
    return pixels.mul(255).round().clamp(0, 255).byte()


def select_real_examples(
    dataset: data.Dataset, count: int | None = None, split: str = "held_out"
) -> tuple[Tensor, str]:
    """Return at most `count` real examples, 8-bit images or points, and the name of their split."""
    if not isinstance(dataset, data.Images):
        if split == "training":
            return select_training_examples(dataset, count or MAX_COUNT), split
        return dataset.held_out(count or MAX_COUNT).cpu(), "held out"
    if split == "training" or dataset.split == "training":
        return choose_examples(dataset.train, count or MAX_COUNT, "real"), "training"
    return dataset.held[: count or MAX_COUNT], dataset.split


def select_training_examples(dataset: data.Dataset, count: int) -> Tensor:
    """Return at most `count` training examples, 8-bit images or points."""
    if isinstance(dataset, data.Images):
        return choose_examples(dataset.train, count, "reference")
    return dataset.batch(0, count).images.cpu()


def choose_examples(examples: Tensor, count: int, stream: str, *, seed: int = 0) -> Tensor:
    """Return `count` of the examples, chosen at random; all of them in their order if there are no more."""
    if len(examples) <= count:
        return examples
    order = torch.randperm(len(examples), generator=stream_generator(seed, stream))
    return examples[order[:count].to(examples.device)]


def _read_images(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read the images in a folder or .zip, resized to `shape`."""
    files = [file for file in image_files(path) if Path(file.name).name not in (GRID, LISTING)]
    if not files:
        raise DataError(f"{path} holds no images")
    pixels = torch.from_numpy(decode_all(files, shape[-1], "error", path, remedy=REMEDY).pixels)
    if shape[0] == 3:
        return pixels
    if not torch.equal(pixels[:, 0], pixels[:, 1]) or not torch.equal(pixels[:, 0], pixels[:, 2]):
        raise DataError(f"{path} holds images in colour, but the data are grey")
    return pixels[:, :1].contiguous()


def _layouts(shape: tuple[int, ...]) -> dict[tuple[int, ...], Sequence[int]]:
    """Return the shapes that samples of `shape` may have in an array, each with the order in which axes are read."""
    layouts: dict[tuple[int, ...], Sequence[int]] = {shape: range(len(shape) + 1)}
    if len(shape) == 3:
        layouts[*shape[1:], shape[0]] = (0, 3, 1, 2)
        if shape[0] == 1:
            layouts[shape[1:]] = (0, 1, 2)
    return layouts


def _read_array(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read points `[N, d]`, or images `[N, C, H, W]`, `[N, H, W, C]` or grey `[N, H, W]`, 8-bit or in [0, 1]."""
    layouts = _layouts(shape)
    array = load_array(path, [lambda found: found[1:] in layouts])
    if array.size == 0 or array.shape[1:] not in layouts or array.dtype.kind not in "fu":
        wanted = f"samples of shape {list(shape)} as uint8, float32 or float64"
        raise DataError(f"{path} holds {array.dtype} {list(array.shape)}; {wanted} are needed")
    values = torch.from_numpy(np.ascontiguousarray(array.transpose(*layouts[array.shape[1:]]).reshape(-1, *shape)))
    if len(shape) == 1:
        points = values.float()
        if not bool(points.isfinite().all()):
            raise DataError(f"{path} holds points that are not finite in float32")
        return points
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point() or not bool(((values >= 0) & (values <= 1)).all()):
        raise DataError(f"{path} holds pixels that are neither 8-bit nor in [0, 1]")
    return to_uint8(values)
