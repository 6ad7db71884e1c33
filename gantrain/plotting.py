"""The style of every figure, and how figures and images become files.

Files are written whole and are the same, byte for byte, for the same input. Nothing here touches matplotlib's global
state: figures are objects, and no display is needed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.console import format_number
from gantrain.errors import ConfigError, DivergedError
from gantrain.files import write_file

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

# Okabe and Ito's colours, which colour-blind people can tell apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
BLUE, ORANGE, GREEN, PURPLE, *_ = PALETTE
GREY, INK = "#b9b9b9", "#333333"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
# Keys of matplotlib.rcParams; the salt makes the names inside an SVG the same every time.
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "lines.linewidth": 1.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "grid.color": "#ececec",
    "svg.fonttype": "none",
    "svg.hashsalt": "gantrain",
    "text.usetex": False,
}
METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
CELL_PIXELS, GAP_PIXELS = 48, 2  # of a grid
MAX_POINTS = 100  # of a curve; consecutive reports are averaged


class DrawingError(ConfigError):
    """Matplotlib cannot be loaded with the user's settings of it."""


def use_style(changes: Mapping[Any, Any] | None = None) -> AbstractContextManager[None]:
    """Return a context in which figures have the style of gantrain, with `changes` of matplotlib's rcParams.

    Raises DrawingError.
    """
    try:
        import matplotlib
    except Exception as error:  # of any kind: a file matplotlibrc is read and evaluated at import
        raise DrawingError(f"matplotlib cannot be loaded, look at MPLBACKEND and matplotlibrc: {error}") from error
    return matplotlib.rc_context({**STYLE, **(changes or {})})


def make_figure(rows: int, width: float, height: float, columns: int = 1, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of `width` × `height` inches and its axes, row by row; `shared` are `sharex` and `sharey`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **shared).flat)


def label_clock(axes: Axes, end: float, note: str = "") -> None:
    """Label the x axis, from 0 to `end` images shown to D, in units of k and M."""
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel(f"images shown to D{note}")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(0, 1.02 * max(end, 1))


def average_rows(rows: NDArray[np.float64], most: int = MAX_POINTS) -> NDArray[np.float64]:
    """Return `[N, K]` with consecutive rows averaged if there are more than `most`; NaN is missing."""
    import numpy as np

    if len(rows) <= most:
        return rows
    chunks = np.array_split(np.ma.masked_invalid(rows), most)
    return np.ma.stack([chunk.mean(axis=0) for chunk in chunks]).filled(np.nan)


def format_axis(axis: Axis, spec: str = "g") -> None:
    """Write the numbers of an axis with a real minus sign."""
    axis.set_major_formatter(lambda value, _: format_number(value, spec))


def encode_figure(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file of the kind `png` or `svg`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=METADATA[kind])
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the suffix of `path`. Raises OSError."""
    write_file(path, encode_figure(figure, path.suffix.removeprefix(".")))


def save_grid(images: Tensor, path: Path) -> None:
    """Write images, float `[N, C, H, W]` in [0, 1], grey or colour, as one near-square grid.

    Small images are enlarged by a whole factor without smoothing, so that each of their pixels stays a square. Raises
    as `check_images`.
    """
    check_images(images)
    scale = math.ceil(CELL_PIXELS / max(images.shape[2:]))
    _write_png(images.repeat_interleave(scale, 2).repeat_interleave(scale, 3), path, math.ceil(math.sqrt(len(images))))


def save_images(images: Tensor, folder: Path) -> None:
    """Write images, float `[N, C, H, W]` in [0, 1], unscaled as `00000.png`, … Raises as `check_images`."""
    check_images(images)
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        _write_png(image[None], folder / f"{number:05d}.png", columns=1)


def _write_png(images: Tensor, path: Path, columns: int) -> None:
    from torchvision.utils import save_image

    buffer = io.BytesIO()
    save_image(images.detach().float().cpu(), buffer, format="png", nrow=columns, padding=GAP_PIXELS, pad_value=1)
    write_file(path, buffer.getvalue())


def check_images(images: Tensor) -> None:
    """Check images that are to be written.

    Raises:
        DivergedError: A pixel is not finite.
        ValueError: There is no image, or it has neither 1 nor 3 channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"pictures are made from [N, C, H, W] with 1 or 3 channels, N ≥ 1; got {list(images.shape)}")
    check_finite(images, "pixels")


def check_finite(values: Tensor, what: str) -> None:
    """Raise DivergedError if a value is not finite."""
    bad = int((~values.isfinite()).sum())
    if bad:
        raise DivergedError(f"{bad:,} of {values.numel():,} {what} are not finite; the generator has diverged")
