"""Samples that lie on the disk: a folder or .zip of images, or an array in a .npz or .npy file."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gantrain.console import one_line
from gantrain.data.decoding import REMEDY, decode_all
from gantrain.data.folder import image_files
from gantrain.errors import DataError

ARRAYS = (".npz", ".npy")
GRID = "grid.png"  # of all samples, which `gantrain sample` writes beside them
LARGEST_BYTES = 8 * 2**30
LARGEST_ITEM = 8  # bytes of a number; torch knows no longer ones


def read(path: Path, shape: tuple[int, ...]) -> Tensor:
    """All samples of `shape` at `path`: uint8 `[N, C, H, W]`, or float32 `[N, d]` for points.

    Raises DataError where there are none, or none of that shape.
    """
    if path.suffix in ARRAYS:
        return from_array(path, array(path), shape)
    if len(shape) == 1:
        raise DataError(f"{path} holds no points; give the .npy or .npz file that does")
    return from_images(path, shape)


def from_images(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The images in a folder or .zip, resized to `shape` where they have another size."""
    files = [file for file in image_files(path) if Path(file.name).name != GRID]
    if not files:
        raise DataError(f"{path} holds no images")
    pixels = torch.from_numpy(decode_all(files, shape[-1], "error", path, remedy=REMEDY)[0])
    if shape[0] == 3:
        return pixels
    if not torch.equal(pixels[:, 0], pixels[:, 1]) or not torch.equal(pixels[:, 0], pixels[:, 2]):
        raise DataError(f"{path} holds images in colour, where the data are grey")
    return pixels[:, :1].contiguous()


def array(path: Path) -> np.ndarray:
    """The array in a .npy file, or the first one in a .npz. Raises DataError for what would run code or fill memory."""
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
        else:
            size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise DataError(f"{path} holds {size:,} bytes; {LARGEST_BYTES:,} are the most")
        found = np.load(path, allow_pickle=False)
        found = found[found.files[0]] if path.suffix == ".npz" else found
        return found.astype(found.dtype.newbyteorder("="), copy=False)
    except DataError:
        raise
    except Exception as error:  # damaged bytes raise many kinds
        raise DataError(f"{path} is no array that can be read: {one_line(str(error))}") from error


def from_array(path: Path, found: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """An array as samples: points `[N, d]`, or images `[N, C, H, W]`, `[N, H, W, C]` or grey `[N, H, W]`, 8-bit or in
    [0, 1]."""
    layouts: dict[tuple[int, ...], Sequence[int]] = {shape: range(len(shape) + 1)}
    if len(shape) == 3:
        layouts |= {(*shape[1:], shape[0]): (0, 3, 1, 2)}
        if shape[0] == 1:
            found = found[:, None] if found.shape[1:] == shape[1:] else found
    known = found.dtype.kind in "fu" and found.dtype.itemsize <= LARGEST_ITEM
    if found.size == 0 or found.shape[1:] not in layouts or not known:
        wanted = f"samples of shape {list(shape)} as uint8, float32 or float64"
        raise DataError(f"{path} holds {found.dtype} {list(found.shape)}; {wanted} are needed")
    values = torch.from_numpy(np.ascontiguousarray(found.transpose(*layouts[found.shape[1:]])))
    if len(shape) == 1:
        points = values.float()
        if not bool(points.isfinite().all()):
            raise DataError(f"{path} holds points that are not finite in float32")
        return points
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point() or not bool(((values >= 0) & (values <= 1)).all()):
        raise DataError(f"{path} holds pixels that are neither 8-bit nor in [0, 1]")
    return quantised(values)


def quantised(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as 8-bit ones, which all real images are; what is compared then differs in nothing else."""
    return pixels.mul(255).round().clamp(0, 255).byte()
