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
file that ends early is damaged rather than partly grey. PNG carries checksums, which are compared; JPEG and WebP carry
none, and of a wrong bit in them only what the decoder stumbles over is seen.
"""

from __future__ import annotations

import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain.console import one_line, say
from gantrain.errors import DataError, MemoryExhaustedError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 8192 * 8192  # 256 MB once decoded with four channels
MAX_BYTES = 256 * 2**20  # of one encoded file
LARGE_PIXELS = 4096 * 4096  # larger images are decoded one at a time, to bound the memory
SHOW_PROGRESS_FROM = 2000  # images: below, decoding takes about a second
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Where the passes of an interlaced PNG begin and how far they step: x, y, dx, dy.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
NAMED = 3  # damaged files that a message names
REMEDY = "repair or remove them"
SKIP = f"{REMEDY}, or leave such files out with dataset.on_bad=skip"

_one_large = Lock()


class File(NamedTuple):
    """An image file that has not been read yet: the name to sort and to report it by, and how to get its bytes."""

    name: str
    read: Callable[[], bytes]


def decode_all(
    files: Sequence[File], size: int, on_bad: str, where: Path, *, remedy: str = SKIP
) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 `[N, 3, size, size]` in the order of `files`, for each file whether it is among them or was skipped).

    The files lie in the folder or archive `where`. Raises DataError if every file is damaged; or if one is and `on_bad`
    is `error`: it names the first ones, counts the others and ends in the `remedy`. Skipped ones are named on the
    terminal.
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
        """Decode one file into its place; return what is wrong with it, nothing if it is well."""
        try:
            pixels[index] = decode(files[index].read(), size)
        except Exception as error:  # a damaged file can raise anything inside a decoder
            return f"{one_line(files[index].name)}: {_reason(error)}"
        intact[index] = True
        return ""

    pool = ThreadPoolExecutor()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we count pixels ourselves
            faults = [fault for fault in _progress(pool.map(attempt, range(len(files))), len(files)) if fault]
    finally:
        pool.shutdown(cancel_futures=True)
    if len(faults) == len(files):
        raise DataError(f"none of the {len(files):,} files in {where} is an image that can be read:\n{_listed(faults)}")
    if faults and on_bad == "error":
        these = f"{len(faults):,} of the {len(files):,} files in {where}"
        raise DataError(f"{these} cannot be read as images:\n{_listed(faults)}\n{remedy}")
    if faults:
        say(f"left out {len(faults):,} of the {len(files):,} files in {where}:\n{_listed(faults)}")
    return (pixels[intact] if faults else pixels), intact


def _listed(faults: Sequence[str]) -> str:
    more = [f"  and {len(faults) - NAMED:,} more"] if len(faults) > NAMED else []
    return "\n".join([*(f"  {fault}" for fault in faults[:NAMED]), *more])


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
        with _one_large if image.width * image.height > LARGE_PIXELS else nullcontext():
            colour = _rgb(ImageOps.exif_transpose(image))
    if colour.size != (size, size):
        colour = ImageOps.fit(colour, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(colour).transpose(2, 0, 1)


def _check_png(data: bytes) -> None:
    """Compare the checksum of every chunk and the number of packed bytes, which decoding alone does not."""
    from PIL import Image

    with Image.open(BytesIO(data), formats=("PNG",)) as image:
        image.verify()
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    bits = depth * PNG_CHANNELS[colour]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    expected = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)
    if (found := sum(map(len, _unpacked(data)))) < expected:
        raise DataError(f"truncated: its pixels take {expected} bytes, and it holds {found}")


def _unpacked(png: bytes) -> Iterator[bytes]:
    """The rows of a PNG whose chunks are whole, unpacked in parts."""
    unpacker, position = zlib.decompressobj(), 8  # after the signature
    while position < len(png):
        length, kind = struct.unpack(">I4s", png[position : position + 8])
        packed = png[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        while packed:
            yield unpacker.decompress(packed, 2**20)
            packed = unpacker.unconsumed_tail
        position += 12 + length


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
    return one_line(str(error)) or type(error).__name__


def _progress(steps: Iterable[Any], total: int) -> Iterator[Any]:
    """The same steps, with a bar on the terminal when there are many."""
    from rich.console import Console
    from rich.progress import track

    if total < SHOW_PROGRESS_FROM or not sys.stderr.isatty():
        return iter(steps)
    return iter(track(steps, "reading images", total, console=Console(stderr=True), transient=True))
