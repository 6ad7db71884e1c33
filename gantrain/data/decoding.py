"""Image files to pixels: every kind of file becomes one square of 8-bit RGB.

| found | becomes |
|---|---|
| EXIF orientation | applied |
| grey, palette | RGB |
| alpha or a transparent colour | laid over white |
| CMYK | RGB |
| 16 bits a channel | scaled to 8 bits, not clipped |
| several frames | the first one |
| any size | centre-cropped to a square, resized (bicubic, antialiased) |

Files come from anywhere: their format is recognised by content, their pixels are counted before they are decoded, and
a truncated file is an error. The checksums of a PNG are compared; JPEG and WebP carry none, so that a wrong bit in them
is found only if the decoder fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from gantrain.console import one_line, say, show_progress
from gantrain.errors import DataError, MemoryExhaustedError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 8192 * 8192  # 256 MB once decoded with four channels
LARGE_PIXELS = 4096 * 4096  # larger images are decoded one at a time, to bound the memory
MAX_NAMED = 3  # damaged files that a message names
REMEDY = "repair or remove them"
SKIP = f"{REMEDY}, or leave such files out with dataset.on_bad=skip"

_large_image_lock = Lock()


class File(NamedTuple):
    """An image file that has not been read yet: the name to sort and to report it by, and how to get its bytes."""

    name: str
    read: Callable[[], bytes]


def decode_all(
    files: Sequence[File], size: int, on_bad: str, where: Path, *, remedy: str = SKIP
) -> tuple[np.ndarray, np.ndarray]:
    """Decode image files in parallel.

    Args:
        files: The files, which lie in the folder or archive `where`.
        size: Side of the decoded images in pixels.
        on_bad: `error` or `skip`, for damaged files.
        remedy: The last line of the error about damaged files.

    Returns:
        The pixels of the intact files in the order of `files`, uint8 `[M, 3, size, size]`, and for each file whether it
        is intact, bool `[N]`.

    Raises DataError if every file is damaged, or if one is and `on_bad` is `error`. The error, or a message about
    skipped files, names the first damaged files and counts the others.
    """
    import numpy as np
    from PIL import Image

    try:
        pixels = np.empty((len(files), 3, size, size), np.uint8)
    except MemoryError as error:
        raise MemoryExhaustedError(
            f"{len(files):,} images need {len(files) * 3 * size**2 / 2**30:.1f} GiB of memory at {size}×{size} pixels; "
            "lower dataset.size"
        ) from error
    intact = np.zeros(len(files), bool)

    def attempt(index: int) -> str:
        """Decode one file into its place; return the reason if it is damaged, else an empty string."""
        try:
            pixels[index] = decode(files[index].read(), size)
        except Exception as error:  # a damaged file can raise anything inside a decoder
            return f"{one_line(files[index].name)}: {_reason(error)}"
        intact[index] = True
        return ""

    pool, reasons = ThreadPoolExecutor(), []
    try:
        with warnings.catch_warnings(), show_progress("reading images", error=True) as update:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `decode` counts pixels
            for reason in pool.map(attempt, range(len(files))):
                reasons.append(reason)
                update(len(reasons), len(files))
    finally:
        pool.shutdown(cancel_futures=True)
    faults = [reason for reason in reasons if reason]
    if faults or not files:
        _report_faults(faults, len(files), on_bad, where, remedy)
    return (pixels[intact] if faults else pixels), intact


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


def decode(data: bytes, size: int) -> np.ndarray:
    """Return the pixels of one encoded image, uint8 `[3, size, size]`.

    Raises DataError for too large an image, and whatever the decoder raises for a damaged one.
    """
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{image.width}×{image.height} are more than the {MAX_PIXELS} pixels an image may have")
        image.verify()  # compares the checksums of a PNG; afterwards the image has to be opened again
    is_large = image.width * image.height > LARGE_PIXELS
    with _large_image_lock if is_large else nullcontext(), Image.open(BytesIO(data), formats=FORMATS) as image:
        image.load()
        colour = _to_rgb(ImageOps.exif_transpose(image))
    if colour.size != (size, size):
        colour = ImageOps.fit(colour, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(colour).transpose(2, 0, 1)


def _to_rgb(image: Image) -> Image:
    import numpy as np
    from PIL import Image as images

    if image.mode.startswith(("I", "F")):  # 16-bit grey, 0 … 65535, to 8 bits: 65535 / 255 = 257
        scaled = np.round(np.asarray(image, dtype=np.float64) / 257).clip(0, 255)
        image = images.fromarray(scaled.astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = images.new("RGBA", image.size, "white")
        image = images.alpha_composite(white, image)
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """Return why a file could not be read."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"not a whole file of one of the formats {', '.join(FORMATS)}"
    return one_line(str(error)) or type(error).__name__
