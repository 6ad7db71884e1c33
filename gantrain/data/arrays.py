"""Images or points in an array: a .npy file, one of a .npz file (`X.npz:name`), or the numbers in a .csv file.

Images are `[N, C, H, W]`, `[N, H, W, C]` or grey `[N, H, W]`, with 1 or 3 channels; points are `[N, d]`, or `[N]` on
the line. Nothing in a file is unpickled.
"""

from __future__ import annotations

import math
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.console import one_line, say
from gantrain.data.decoding import CROP, PAD, STRETCH, Allocate, ImageInfo, allocate_memory
from gantrain.data.folder import ARCHIVES, ARRAYS
from gantrain.data.images import PART, Splits, check_distinct, resize
from gantrain.data.levels import Levels, Limits, Values, describe_darkness, find_limits, measure, to_8_bits
from gantrain.errors import DataError, GantrainError, is_out_of_memory

if TYPE_CHECKING:
    import numpy as np
    import torch

FORMS = "images [N, C, H, W], [N, H, W, C] or [N, H, W] with 1 or 3 channels, or points [N, d]"
CHANNELS = (1, 3)
MAX_BYTES = 8 * 2**30  # of an array that is loaded into memory
MAX_ITEM_BYTES = 8  # torch has no longer numbers
WHITES = {"|b1": 1, "|u1": 255, "<u2": 65535, ">u2": 65535}

Shape = tuple[int, ...]


def is_images(shape: Shape) -> bool:
    """Return whether an array of this shape may be images."""
    return len(shape) == 3 or (len(shape) == 4 and (shape[1] in CHANNELS or shape[3] in CHANNELS))


# Images, points in several dimensions and points on the line, in the order in which they are looked for.
KINDS: tuple[Callable[[Shape], bool], ...] = (is_images, lambda shape: len(shape) == 2, lambda shape: len(shape) == 1)


def survey(path: Path) -> tuple[int, list[Path]]:
    """Return how many images the array at `path` has, 0 of points, and its file. Raises as `load_array`."""
    shape = _find_shape(path)
    return shape[0] if is_images(shape) else 0, [split_name(path)[0]]


def read(
    path: Path,
    size: int,
    on_bad: str,
    *,
    fit: str = CROP,
    limits: Limits | str | None = None,
    allocate: Allocate = allocate_memory,
) -> Splits:
    """Read the images in an array, as 8-bit squares of `size` pixels, or its points, float32 `[N, d]`.

    `fit`, `limits` and `allocate` are those of `decode_all`. Raises DataError for other arrays or non-finite values.
    """
    import numpy as np
    import torch

    array = load_array(path, KINDS, None if allocate is allocate_memory else allocate)
    if array.size == 0 or not any(is_kind(array.shape) for is_kind in KINDS):
        raise DataError(f"{path} holds {array.dtype} {list(array.shape)}; {FORMS} are needed")
    if array.ndim <= 2:
        array = torch.from_numpy(array).float().reshape(len(array), -1).numpy()  # infinity beyond float32's range
    starts = range(0, len(array) if array.dtype.kind == "f" else 0, PART)
    if not all(np.isfinite(array[at : at + PART]).all() for at in starts):
        raise DataError(f"{path} holds values that are not finite{' in float32' if array.ndim == 2 else ''}")
    if array.ndim == 2:
        return Splits(torch.from_numpy(array))
    values = Values(put_channels_first(array), 1 if array.dtype.kind == "f" else WHITES.get(array.dtype.str))
    levels = measure(values)
    try:
        chosen = find_limits([levels]) if isinstance(limits, str) else limits
        images = torch.from_numpy(_convert(values, chosen, size, fit=fit, allocate=allocate))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    notes = list(filter(None, [_describe_shape(values, levels, fit), "" if limits else describe_darkness([levels])]))
    check_distinct(images, path, notes)
    for note in notes:
        say(f"{path}: {note}")
    return Splits(images)


def _convert(values: Values, limits: Limits | None, size: int, *, fit: str, allocate: Allocate) -> np.ndarray:
    """Return images in 8 bits, fitted to squares, a part at a time."""
    import torch

    def convert(at: int) -> torch.Tensor:
        native = (part := values.colour[at : at + PART]).astype(part.dtype.newbyteorder("="), copy=False)
        return _fit(torch.tensor(to_8_bits(values._replace(colour=native), limits)), size, fit)

    def estimate() -> float:
        began = time.monotonic()
        convert(0)
        return (time.monotonic() - began) * math.ceil(count / PART)

    count, channels, *_ = values.colour.shape
    pixels = allocate((count, channels, size, size), estimate)
    for at in range(0, count, PART):
        pixels[at : at + PART] = convert(at).numpy()
    return pixels


def put_channels_first(array: np.ndarray) -> np.ndarray:
    """Return images `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]` as `[N, C, H, W]`."""
    if array.ndim == 3:
        return array[:, None]
    return array if array.shape[1] in CHANNELS else array.transpose(0, 3, 1, 2)


def _fit(images: torch.Tensor, size: int, fit: str) -> torch.Tensor:
    """Fit images `[N, C, H, W]` to a square."""
    from torch.nn.functional import pad

    height, width = images.shape[-2:]
    side = max(height, width) if fit == PAD else min(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    if fit != STRETCH:  # a negative width of padding cuts
        images = pad(images, (left, side - width - left, top, side - height - top))
    return resize(images, size)


def _describe_shape(values: Values, levels: Levels, fit: str) -> str:
    """Return a sentence about images that a crop cuts, or an empty string."""
    height, width = values.colour.shape[-2:]
    if fit != CROP or not ImageInfo(levels, width, height).is_cut:
        return ""
    return (
        f"the central square leaves more than a third of {width}×{height} pixels out; "
        "dataset.fit=pad or stretch keeps them whole"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Files


def load_array(path: Path, kinds: Sequence[Callable[[Shape], bool]], allocate: Allocate | None = None) -> np.ndarray:
    """Load the array in a file; of a .npz the one that is named, else the only one of the first kind that is there.

    With `allocate` a .npy is mapped into memory, not loaded, and the array of a .npz is unpacked into what it makes.
    Which of several arrays it is is printed. Raises DataError for a file that is missing or damaged, would run code or
    fill the memory, or in which no array, or none alone, is of these kinds.
    """
    import numpy as np

    with _open_errors(path) as (file, name):
        if allocate is None or file.suffix.lower() == ".csv":
            _check_size(file)
        if file.suffix.lower() == ".csv":
            return _load_numbers(file)
        shapes = read_shapes(file)
        chosen = choose_array(file, name, shapes, kinds)
        if file.suffix.lower() == ".npz" and allocate is not None:
            array = _unpack(file, chosen, allocate)
        else:
            loaded = np.load(file, mmap_mode=None if allocate is None else "r", allow_pickle=False)
            array = loaded[chosen] if file.suffix.lower() == ".npz" else loaded
        if array.dtype.kind not in "fuib" or array.dtype.itemsize > MAX_ITEM_BYTES:
            raise DataError(f"{path} holds {array.dtype} {list(array.shape)}; numbers of up to 64 bits are needed")
    if len(shapes) > 1:
        say(f"{file}: the array {one_line(chosen)} {list(array.shape)}")
    return array if allocate else array.astype(array.dtype.newbyteorder("="), copy=False)


def _unpack(path: Path, name: str, allocate: Allocate) -> np.ndarray:
    """Return an array of a .npz file, unpacked into what `allocate` makes."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as opened:
        member: Any = opened
        shape, is_fortran, dtype = _read_header(member, archive.getinfo(member.name).file_size)
        if dtype.hasobject:
            raise DataError(f"{path} holds {dtype} {list(shape)}; numbers are needed")
        content = allocate((math.prod(shape) * dtype.itemsize,), None)
        rest = content.data
        while rest and (count := member.readinto(rest)):
            rest = rest[count:]
        if rest or member.read(1):  # at the end the checksum is compared
            raise DataError(f"{path}: the array {one_line(name)} is not as long as it says")
    return content.view(dtype).reshape(shape, order="F" if is_fortran else "C")


def find_dimensions(path: Path) -> int:
    """Return d if an array is of points `[N, d]`, else 0, without reading all of it. Raises as `load_array`."""
    shape = _find_shape(path)
    return math.prod(shape[1:]) if len(shape) <= 2 else 0


def _find_shape(path: Path) -> Shape:
    """Return the shape of the array that would be read; the points of a .csv are not counted."""
    with _open_errors(path) as (file, name):
        if file.suffix.lower() == ".csv":
            with file.open(encoding="utf-8-sig") as lines:
                return 0, len(lines.readline().split(","))
        shapes = read_shapes(file)
        return shapes[choose_array(file, name, shapes, KINDS)]


def split_name(path: Path) -> tuple[Path, str]:
    """Return the file and the name of the array, if any, in `X.npz:name`."""
    file, _, name = str(path).rpartition(":")
    return (Path(file), name) if file.lower().endswith(".npz") and not path.exists() else (path, "")


@contextmanager
def _open_errors(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield what `split_name` returns; raise errors as DataError."""
    found, name = split_name(path)
    try:
        if not found.is_file() or found.suffix.lower() not in ARRAYS:
            is_archive = found.suffix.lower() in (".zip", *ARCHIVES)
            fault = "is an archive, which has to be unpacked" if is_archive else "is no file of an array"
            fault = fault if found.exists() else "does not exist"
            has_images = found.is_dir() or (found.exists() and found.suffix.lower() == ".zip")
            images = f"; images in it are read by dataset=folder dataset.path={path}" if has_images else ""
            raise DataError(f"{path} {fault}; give a .npy, .npz or .csv file{images}")
        yield found, name
    except Exception as error:  # damaged bytes raise many kinds
        if isinstance(error, GantrainError) or is_out_of_memory(error):
            raise
        raise DataError(f"{path} is no array that can be read: {one_line(str(error))}") from error


def _check_size(path: Path) -> None:
    """Raise DataError for a file that would fill the memory."""
    size = path.stat().st_size
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise DataError(f"{path} holds {size:,} bytes; {MAX_BYTES:,} are the most without dataset.resident=memory_map")


def read_shapes(path: Path) -> dict[str, Shape]:
    """Return the shape of the array in a .npy file, or of each in a .npz file by name, without reading them."""
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            return {"": _read_header(file, path.stat().st_size)[0]}
    with zipfile.ZipFile(path) as archive:
        return {
            member.filename.removesuffix(".npy"): _read_header(archive.open(member), member.file_size)[0]
            for member in archive.infolist()
        }


def _read_header(file: Any, size: int) -> tuple[Shape, bool, np.dtype]:
    """Return the shape of an array in a file, whether the first index runs fastest, and the type of its numbers.

    Raises ValueError if the file, of `size` bytes, is too short for it: memory would be allocated for what it says.
    """
    from numpy.lib import format

    reader = format.read_array_header_1_0 if format.read_magic(file) == (1, 0) else format.read_array_header_2_0
    shape, is_fortran, dtype = reader(file)
    needed, rest = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed > rest and not dtype.hasobject:  # objects are stored as a pickle
        raise ValueError(f"its header says that {needed:,} bytes follow, and {rest:,} do")
    return shape, is_fortran, dtype


def choose_array(path: Path, name: str, shapes: Mapping[str, Shape], kinds: Sequence[Callable[[Shape], bool]]) -> str:
    """Return the name of the array in a file that `load_array` loads. Raises DataError."""
    if name in shapes:
        return name
    listed = ", ".join(f"{one_line(each)} {list(shape)}" for each, shape in shapes.items()) or "nothing"
    if name:
        raise DataError(f"{path} has no array {one_line(name)}; it holds {listed}")
    fitting = next(filter(None, ([key for key in shapes if is_kind(shapes[key])] for is_kind in kinds)), [])
    if {"mu", "sigma"} <= shapes.keys():
        raise DataError(f"{path} holds stored moments (mu, sigma), not what they were measured on; give {FORMS}")
    if len(fitting) > 1 or (len(shapes) > 1 and not fitting) or not shapes:
        raise DataError(f"{path} holds {listed}; name one of them, {path}:NAME, or store it by itself")
    return fitting[0] if fitting else next(iter(shapes))


def _load_numbers(path: Path) -> np.ndarray:
    """Return the numbers in a .csv file, float64 `[N, d]`; a first line of names is passed over."""
    import numpy as np

    with path.open(encoding="utf-8-sig") as file:
        first = file.readline().rstrip("\n").split(",")
    try:
        with warnings.catch_warnings(action="ignore"):  # of an empty file, which its shape tells
            return np.loadtxt(path, delimiter=",", skiprows=int(not _are_numbers(first)), ndmin=2, encoding="utf-8-sig")
    except ValueError as error:
        raise DataError(f"{path} must hold numbers with commas between them: {one_line(str(error))}") from error


def _are_numbers(cells: Sequence[str]) -> bool:
    with suppress(ValueError):
        return bool([float(cell) for cell in cells])
    return False
