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

Files come from anywhere, so their type is judged by content, their pixels are counted before they are decoded, and a
file that ends early is damaged rather than partly grey.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain.errors import DataError
from gantrain.terminal import printable

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 8192 * 8192  # 256 MB once decoded with four channels
MAX_BYTES = 256 * 2**20  # of one encoded file
SHOW_PROGRESS_FROM = 2000  # images: below, decoding takes about a second


class File(NamedTuple):
    """An image file that has not been read yet: the name to sort and to report it by, and how to get its bytes."""

    name: str
    read: Callable[[], bytes]


def decode_all(files: Sequence[File], size: int, on_bad: str) -> tuple[np.ndarray, int]:
    """(uint8 `[N, 3, size, size]` in the order of `files`, number of damaged files that were skipped).

    Raises DataError at the first damaged file if `on_bad` is `error`, and if every file is damaged.
    """
    import numpy as np

    pixels = np.empty((len(files), 3, size, size), np.uint8)
    intact = np.zeros(len(files), bool)
    fault = ""

    def attempt(index: int) -> str:
        """Decode one file into its place; return what is wrong with it, nothing if it is well."""
        try:
            pixels[index] = decode(files[index].read(), size)
        except Exception as error:  # a damaged file can raise anything inside a decoder
            return f"{printable(files[index].name)}: {_reason(error)}"
        intact[index] = True
        return ""

    pool = ThreadPoolExecutor()
    try:
        for found in _progress(pool.map(attempt, range(len(files))), len(files)):
            if found and on_bad == "error":
                raise DataError(f"{found}\n  repair or remove it, or leave such files out with dataset.on_bad=skip")
            fault = fault or found
    finally:
        pool.shutdown(cancel_futures=True)
    if not intact.any():
        raise DataError(f"none of the {len(files)} files is an image that can be read; the first one:\n  {fault}")
    return (pixels if intact.all() else pixels[intact]), int((~intact).sum())


def decode(data: bytes, size: int) -> np.ndarray:
    """The pixels of one encoded image, uint8 `[3, size, size]`; raises whatever the decoder raises if it is damaged."""
    import numpy as np
    from PIL import Image, ImageOps

    if len(data) > MAX_BYTES:
        raise DataError(f"{len(data)} bytes are more than the {MAX_BYTES} that an image may have")
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{image.width}×{image.height} are more than the {MAX_PIXELS} pixels an image may have")
        if image.format == "PNG":
            _check_png(data)
        colour = _rgb(ImageOps.exif_transpose(image))
    if colour.size != (size, size):
        colour = ImageOps.fit(colour, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(colour).transpose(2, 0, 1)


def _check_png(data: bytes) -> None:
    """Compare the checksum of every chunk, which decoding alone does not."""
    from PIL import Image

    with Image.open(BytesIO(data), formats=("PNG",)) as image:
        image.verify()


def _rgb(image: Image) -> Image:
    from PIL import Image as images

    if image.mode.startswith(("I", "F")):
        return _eight_bit(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = images.new("RGBA", image.size, "white")
        image = images.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bit(image: Image) -> Image:
    """16-bit grey, 0 … 65535, scaled to 8 bits: 65535 / 255 = 257."""
    import numpy as np
    from PIL import Image as images

    return images.fromarray(np.round(np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))


def _reason(error: Exception) -> str:
    """Why a file could not be read, in words."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"not a whole file of one of the formats {', '.join(FORMATS)}"
    return printable(str(error)) or type(error).__name__


def _progress(steps: Iterable[Any], total: int) -> Iterator[Any]:
    """The same steps, with a bar on the terminal when there are many."""
    from rich.console import Console
    from rich.progress import track

    if total < SHOW_PROGRESS_FROM or not sys.stderr.isatty():
        return iter(steps)
    return iter(track(steps, "reading images", total, console=Console(stderr=True), transient=True))
