"""The values in an image file, and the 8 bits that they become.

Each data type has a default white level, 255 at 8 bits, 65,535 at 16 and 1 for floating point, and is scaled from 0 to
it. Scanners and cameras often use less: 12 bits in a file of 16 would become 17 nearly black levels. `limits` are the
values that become black and white instead; values of 32 bits or with a sign have no white and need them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from gantrain.console import format_number
from gantrain.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Limits = tuple[float, float]

AUTO = "auto"  # limits that are the darkest and the brightest value of the data
DARK = 0.5  # the share of white below which the brightest value of the data is worth a sentence
GREY_MODES = {"I;16": 65535, "I;16B": 65535, "I;16L": 65535, "I;16N": 65535, "F": 1, "I": None}  # mode → white
# The layout of 16-bit colour in which Pillow, that keeps one byte of two, keeps the other one.
OTHER_BYTES = {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
SCALES = {"L;2": 85, "L;4": 17}  # by which Pillow multiplies grey of 2 and 4 bits, but not its transparent value


class Values(NamedTuple):
    """The values of an image as its file has them."""

    colour: np.ndarray  # [H, W, 1 or 3], uint8, uint16 or float64
    white: float | None
    alpha: np.ndarray | None = None  # [H, W], uint8


class Levels(NamedTuple):
    """The darkest and the brightest value of an image, and the white of their type if it has one."""

    low: float
    high: float
    white: float | None


def is_range(value: object) -> bool:
    """Return whether a setting can stand for limits: two numbers of which the first is less, `auto`, or None."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value in (None, AUTO)
    are_numbers = len(value) == 2 and {type(each) for each in value} <= {int, float}
    return are_numbers and -math.inf < value[0] < value[1] < math.inf


def read_values(image: Image, stored: str, data: bytes) -> Values:
    """Return the values of a loaded image, turned as its EXIF orientation says.

    `stored` is how its file `data` stores a pixel, in Pillow's words, such as `RGB;16B`. Raises DataError for values
    that are not finite and for an index that its palette does not have.
    """
    import numpy as np
    from PIL import ImageOps

    clear = image.info.get("transparency")
    upright = ImageOps.exif_transpose(image)
    if stored in OTHER_BYTES:
        pixels = np.asarray(upright) * np.uint16(256) | np.asarray(_read_lower_bytes(data, stored))
        colour, alpha = pixels[..., :3], pixels[..., 3:]
        opaque = (alpha[..., 0] >> 8).astype(np.uint8) if alpha.size else _find_opaque(colour, clear)
        return Values(colour, 65535, opaque)
    if image.mode in GREY_MODES:
        values = np.asarray(upright, np.float64)[..., None]
        if not np.isfinite(values).all():
            raise DataError("values that are not finite")
        white = 4095 if stored == "I;12" else GREY_MODES[image.mode]
        return Values(values, white, _find_opaque(values, clear))
    if image.mode == "P" and int(np.asarray(image).max()) >= len(image.getpalette() or ()) // 3:
        raise DataError("an index that the palette does not have")
    if image.mode == "L" and stored in SCALES and clear is not None:
        upright.info["transparency"] = clear * SCALES[stored]
    if image.mode in ("RGBA", "LA", "PA") or clear is not None:
        pixels = np.asarray(upright.convert("RGBA"))
        if stored == "LA;16B":  # of which only the upper bytes are to be had
            return Values(pixels[..., :3] * np.uint16(257), 65535, pixels[..., 3])
        return Values(pixels[..., :3], 255, pixels[..., 3])
    return Values(np.asarray(upright.convert("RGB")), 255)


def _read_lower_bytes(data: bytes, stored: str) -> Image:
    """Return the lower bytes of 16-bit colour: Pillow reads the upper ones, and these in the other order of bytes."""
    from PIL import Image as images
    from PIL import ImageOps

    other = OTHER_BYTES[stored]
    with images.open(BytesIO(data), formats=("PNG", "TIFF")) as image:
        image.tile = [
            tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
            for tile in image.tile
        ]
        image.load()
        return ImageOps.exif_transpose(image)


def _find_opaque(values: np.ndarray, clear: object) -> np.ndarray | None:
    """Return 255 where a pixel is not of the transparent value or colour, else 0; None if there is no such value."""
    import numpy as np

    return None if clear is None else (values != clear).any(-1) * np.uint8(255)


def measure(values: Values) -> Levels:
    """Return the range of an image's values."""
    return Levels(float(values.colour.min()), float(values.colour.max()), values.white)


def to_rgb(values: Values, limits: Limits | None) -> Image:
    """Return an image in 8-bit RGB, laid over white.

    Raises DataError for values that need `limits`.
    """
    import numpy as np
    from PIL import Image as images

    pixels = to_8_bits(values, limits)
    if values.alpha is not None:
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
        image = images.fromarray(np.dstack([pixels, values.alpha]))
        white = images.new("RGBA", image.size, "white")
        return images.alpha_composite(white, image).convert("RGB")
    return images.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).convert("RGB")


def to_8_bits(values: Values, limits: Limits | None) -> np.ndarray:
    """Return the colour of `values` in 8 bits. Raises DataError for values that need `limits`."""
    import numpy as np

    colour = values.colour
    if limits is None and colour.dtype == np.uint8:
        return colour
    if limits is None and colour.dtype == np.uint16:
        return (colour >> 8).astype(np.uint8)
    low, high, white = measure(values)
    if limits is None and (white is None or low < 0 or high > white):
        kind = "" if white is None else " in floating point"
        raise DataError(
            f"values from {format_number(low)} to {format_number(high)}{kind}, for which no white level is defined; "
            "give dataset.range=[BLACK,WHITE] or dataset.range=auto"
        )
    black, white = limits or (0.0, white or 1.0)
    return np.round((colour.astype(np.float64) - black) * (255 / (white - black))).clip(0, 255).astype(np.uint8)


def find_limits(levels: Sequence[Levels]) -> Limits:
    """Return the darkest and the brightest value of several images. Raises DataError if they are the same."""
    low, high = min(each.low for each in levels), max(each.high for each in levels)
    if low == high:
        raise DataError(f"dataset.range=auto found no value but {format_number(low)} in all images")
    return low, high


def check_depth(levels: Sequence[Levels]) -> None:
    """Raise DataError unless the values of all images are of one type, so that limits mean the same in each."""
    whites = {each.white for each in levels}
    if len(whites) > 1:
        named = ", ".join(sorted(f"{white:,.0f}" if white else "none" for white in whites))
        raise DataError(f"dataset.range needs images of one depth; the white of these is {named}")


def describe_darkness(levels: Sequence[Levels]) -> str:
    """Return a sentence about images whose brightest value is far below white; else an empty string."""
    white = max((each.white or math.inf for each in levels), default=math.inf)
    high = max((each.high for each in levels), default=0.0)
    if math.isinf(white) or not 0 < high < DARK * white:
        return ""
    left = round(high * 255 / white) + 1
    whole = f"[0,{high:.10g}]"
    return (
        f"the brightest value is {high:,.10g} of {white:,.0f}: at 8 bits {left:,} levels are left; "
        f"dataset.range={whole}, or auto, makes it white"
    )
