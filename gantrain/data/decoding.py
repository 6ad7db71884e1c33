"""Image files to pixels: every kind of file becomes one square of 8-bit RGB.

| found | becomes |
|---|---|
| EXIF orientation | applied |
| grey, palette | RGB |
| alpha or a transparent colour | laid over white |
| CMYK | RGB |
| 16 bits a channel, floating point | scaled to 8 bits, not clipped |
| several frames | the first one |
| any size | fitted to a square, resized (bicubic, antialiased) |

Files come from anywhere: their format is recognised by content, their pixels are counted before they are decoded, and
a truncated file is an error. The checksums of a PNG are compared; other formats carry none, so that a wrong bit in them
is found only if the decoder fails.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from io import BytesIO
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from gantrain.console import one_line, say, show_progress
from gantrain.data.levels import Levels, Limits, Values, find_limits, measure, read_values, to_rgb
from gantrain.errors import DataError, MemoryExhaustedError, is_out_of_memory

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

T = TypeVar("T")
# Makes an array of bytes of a shape. The function in the second place estimates the seconds until it is filled, for
# arrays that are announced.
Allocate = Callable[[tuple[int, ...], Callable[[], float] | None], "np.ndarray"]

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
FITS = CROP, PAD, STRETCH = ("crop", "pad", "stretch")
MAX_PIXELS = 8192 * 8192  # 256 MB once decoded with four channels
LARGE_PIXELS = 4096 * 4096  # larger images are decoded one at a time, to bound the memory
TRIED = 256  # images from which the time of all is estimated
QUEUED = 4096  # files that wait for a thread; a queue of millions takes gigabytes
MAX_NAMED = 3  # damaged files that a message names
REMEDY = "repair or remove them"
SKIP = f"{REMEDY}, or leave such files out with dataset.on_bad=skip"

_large_image_lock = Lock()


class File(NamedTuple):
    """An image file that has not been read yet: the name to sort and to report it by, and how to get its bytes."""

    name: str
    read: Callable[[], bytes]


class ImageInfo(NamedTuple):
    """What an image was in its file."""

    levels: Levels
    width: int
    height: int

    @property
    def is_cut(self) -> bool:
        """Whether its central square leaves out more than a third of it."""
        return 3 * min(self.width, self.height) < 2 * max(self.width, self.height)


class Pictures(NamedTuple):
    """The M intact images among N files, in the order of the files."""

    pixels: np.ndarray  # uint8 [M, 3, size, size]
    intact: np.ndarray  # bool [N], whether the file is one of the M
    found: list[ImageInfo]  # M


def allocate_memory(shape: tuple[int, ...], estimate: Callable[[], float] | None) -> np.ndarray:
    """Return an array in memory. Raises MemoryExhaustedError."""
    import numpy as np

    try:
        return np.empty(shape, np.uint8)
    except MemoryError as error:
        raise MemoryExhaustedError(
            f"{shape[0]:,} images need {math.prod(shape) / 2**30:.1f} GiB of memory at {shape[-1]}×{shape[-1]} pixels; "
            "lower dataset.size, or choose dataset.resident=memory_map"
        ) from error


def decode_all(
    files: Sequence[File],
    size: int,
    on_bad: str,
    where: Path,
    *,
    fit: str = CROP,
    limits: Limits | str | None = None,
    remedy: str = SKIP,
    allocate: Allocate = allocate_memory,
) -> Pictures:
    """Decode image files in parallel.

    Args:
        files: The files, which lie in the folder or archive `where`.
        size: Side of the decoded images in pixels.
        on_bad: `error` or `skip`, for damaged files.
        fit: One of FITS: the central square, the whole image between black bands, or the whole image distorted.
        limits: The values that become black and white; `auto`: the darkest and the brightest in all files.
        remedy: The last line of the error about damaged files.
        allocate: Makes the array of the pixels.

    Raises DataError if every file is damaged, or if one is and `on_bad` is `error`. The error, or a message about
    skipped files, names the first damaged files and counts the others.
    """
    import numpy as np

    pixels = allocate((len(files), 3, size, size), lambda: _estimate_seconds(files, size, fit, limits))
    if isinstance(limits, str):
        ranges, _ = _read_all(files, lambda _, data: measure(open_image(data)))
        limits = find_limits(ranges) if ranges else None

    def place(index: int, data: bytes) -> ImageInfo:
        """Decode a file into its place."""
        values = open_image(data)
        pixels[index] = fit_square(to_rgb(values, limits), size, fit)
        return ImageInfo(measure(values), *values.colour.shape[1::-1])

    found, faults = _read_all(files, place)
    if faults or not files:
        _report_faults(list(faults.values()), len(files), on_bad, where, remedy)
    intact = np.ones(len(files), bool)
    intact[list(faults)] = False
    if faults:  # in place: there may be more pixels than memory
        for index, place_before in enumerate(intact.nonzero()[0]):
            pixels[index] = pixels[place_before]
    return Pictures(pixels[: len(found)], intact, found)


def _estimate_seconds(files: Sequence[File], size: int, fit: str, limits: Limits | str | None) -> float:
    """Return about how long it takes to decode the files, from some of them."""
    passes, tried = (2, (0.0, 1.0)) if isinstance(limits, str) else (1, limits)
    some = files[:: max(len(files) // TRIED, 1)]
    for each in (some[:1], some):  # the first image waits for libraries to be imported
        began = time.monotonic()
        _read_all(each, lambda _, data: decode(data, size, fit=fit, limits=tried))
    return passes * (time.monotonic() - began) * len(files) / max(len(some), 1)


def _read_all(files: Sequence[File], work: Callable[[int, bytes], T]) -> tuple[list[T], dict[int, str]]:
    """Return what `work` makes of the number and the bytes of each file, and why files are damaged, by their number."""
    from PIL import Image

    def attempt(index: int) -> tuple[T | None, str]:
        try:
            return work(index, files[index].read()), ""
        except Exception as error:  # a damaged file can raise anything inside a decoder
            if is_out_of_memory(error):
                raise
            return None, f"{one_line(files[index].name)}: {_reason(error)}"

    pool, results, faults = ThreadPoolExecutor(), [], {}
    try:
        with warnings.catch_warnings(), show_progress("reading images", error=True) as update:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `open_image` counts pixels
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged tags
            queues = (range(len(files))[start : start + QUEUED] for start in range(0, len(files), QUEUED))
            for index, (result, fault) in enumerate(chain.from_iterable(pool.map(attempt, each) for each in queues)):
                if fault:
                    faults[index] = fault
                else:
                    results.append(result)
                update(index + 1, len(files))
    finally:
        pool.shutdown(cancel_futures=True)
    return results, faults  # type: ignore[return-value]


def _report_faults(faults: Sequence[str], count: int, on_bad: str, where: Path, remedy: str) -> None:
    """Raise DataError for damaged files, or print which of the `count` files are skipped."""
    named = "\n".join(f"  {fault}" for fault in faults[:MAX_NAMED])
    if len(faults) > MAX_NAMED:
        named += f"\n  and {len(faults) - MAX_NAMED:,} more"
    if len(faults) == count:
        raise DataError(f"none of the {count:,} files in {where} is an image that can be read:\n{named}")
    these = f"{len(faults):,} of the {count:,} files in {where}"
    if on_bad == "error":
        raise DataError(f"{these} cannot be read as images:\n{named}\n{remedy}")
    say(f"left out {these}:\n{named}")


def decode(data: bytes, size: int, *, fit: str = CROP, limits: Limits | None = None) -> np.ndarray:
    """Return the pixels of one encoded image, uint8 `[3, size, size]`. Raises as `open_image`."""
    return fit_square(to_rgb(open_image(data), limits), size, fit)


def open_image(data: bytes) -> Values:
    """Return the values of one encoded image.

    Raises DataError for too large an image, and whatever the decoder raises for a damaged one.
    """
    from PIL import Image

    with Image.open(BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{image.width}×{image.height} are more than the {MAX_PIXELS} pixels an image may have")
        image.verify()  # compares the checksums of a PNG; afterwards the image has to be opened again
    is_large = image.width * image.height > LARGE_PIXELS
    with _large_image_lock if is_large else nullcontext(), Image.open(BytesIO(data), formats=FORMATS) as image:
        stored = _pixel_layout(image)
        image.load()
        return read_values(image, stored, data)


def _pixel_layout(image: ImageFile) -> str:
    """Return how the file of an image that is not loaded yet stores a pixel, in Pillow's words, such as `RGB;16B`."""
    arguments: Any = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def fit_square(image: Image, size: int, fit: str = CROP) -> np.ndarray:
    """Return the pixels of an RGB image that is fitted to a square, uint8 `[3, size, size]`; `fit` is one of FITS."""
    import numpy as np
    from PIL import Image as images
    from PIL import ImageOps

    if image.size != (size, size):
        bicubic = images.Resampling.BICUBIC
        if fit == STRETCH:
            image = image.resize((size, size), bicubic)
        elif fit == PAD:
            longest = max(image.size)  # beside which Pillow would round the other side to 0 pixels
            shrunk = image.resize([max(round(side / longest * size), 1) for side in image.size], bicubic)
            image = ImageOps.pad(shrunk, (size, size))
        else:
            image = ImageOps.fit(image, (size, size), bicubic)
    return np.asarray(image).transpose(2, 0, 1)


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"not a whole file of one of the formats {', '.join(FORMATS)}"
    return one_line(str(error)) or type(error).__name__
