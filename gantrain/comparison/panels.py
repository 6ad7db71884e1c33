"""Panels of figures: the look of a configuration, and how panels become files or parts of the page.

A figure is a list of panels. They stand together, under one legend, in `compare-NAME.png` and `.svg`, and one by one
in the report, where the browser places them. The same comparison gives the same files, byte for byte.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import plotting
from gantrain.comparison.comparison import Comparison
from gantrain.comparison.configurations import Configuration
from gantrain.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (4.4, 3.0)  # inches
TITLE_WIDTH = 52  # letters of a panel's title on a line
MOST_COLUMNS = 3
PALETTE = (*plotting.PALETTE, "#8c564b", "#7f7f7f")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1, 1), (4, 1, 1, 1))  # in widths of the line
MOST_NAMES, LONGEST_NAME = 12, 24  # beside points; otherwise points have the numbers of the table
# Keys of matplotlib.rcParams. Text stays text, and a label from a config is not read as a formula.
STYLE: dict[Any, Any] = {
    **plotting.STYLE,
    "axes.grid.axis": "both",
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",
    "text.color": plotting.INK,
    "text.parse_math": False,
}
# Colours of axes, text and grids, and what replaces them on the page, which is light or dark.
PAGE_COLOURS = {
    plotting.INK: "currentColor",
    "#555555": "var(--muted)",
    "#888888": "var(--muted)",
    "#ececec": "var(--rule)",
}


class Panel(NamedTuple):
    """One diagram; `draw` fills the axes."""

    title: str
    draw: Callable[[Axes], None]


class Plot(NamedTuple):
    """Diagrams that belong together; `keyed` if they need the legend of configurations."""

    name: str
    panels: list[Panel]
    keyed: bool = False


class Look(NamedTuple):
    """Colour and dashes of a configuration in all figures."""

    colour: str
    dashes: tuple[float, ...]


def configuration_looks(comparison: Comparison) -> list[tuple[Configuration, Look]]:
    """Pair each configuration with a look of its own."""
    return list(zip(comparison.configurations, choose_looks(comparison), strict=True))


def choose_looks(comparison: Comparison) -> list[Look]:
    """Return a look for each configuration.

    If there are enough of both, the colour stands for the first key that differs, and dashes for the others.
    """
    values = [tuple(configuration.values.values()) for configuration in comparison.configurations]
    firsts, rests = list(dict.fromkeys(v[:1] for v in values)), list(dict.fromkeys(v[1:] for v in values))
    if len(firsts) <= len(PALETTE) and len(rests) <= len(DASHES):
        return [Look(PALETTE[firsts.index(value[:1])], DASHES[rests.index(value[1:])]) for value in values]
    if (count := len(values)) <= len(PALETTE) * len(DASHES):
        return [Look(colour, dashes) for dashes in DASHES for colour in PALETTE][:count]
    import matplotlib
    from matplotlib.colors import to_hex

    shades = matplotlib.colormaps["turbo"]
    return [Look(to_hex(shades(0.05 + 0.9 * index / (count - 1))), ()) for index in range(count)]


def line_style(look: Look) -> dict[str, Any]:
    """Return matplotlib's arguments for a line."""
    return {"color": look.colour, "linestyle": (0, look.dashes) if look.dashes else "-"}


def configuration_name(configuration: Configuration, comparison: Comparison) -> str:
    """Name a configuration in legends and tables, with its number if points are numbered."""
    return f"{configuration.number}  {configuration.label}" if is_numbered(comparison) else configuration.label


def is_numbered(comparison: Comparison) -> bool:
    """Whether labels are too many or too long to stand beside points, which then have numbers."""
    labels = [configuration.label for configuration in comparison.configurations]
    return len(labels) > MOST_NAMES or max(map(len, labels)) > LONGEST_NAME


def save_plot(plot: Plot, comparison: Comparison, folder: Path) -> None:
    """Write `compare-NAME.png` and `compare-NAME.svg`, with every panel and the legend. Raises OSError."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(MOST_COLUMNS, len(plot.panels))
    rows = math.ceil(len(plot.panels) / columns)
    has_legend = plot.keyed and len(comparison.configurations) > 1
    height = rows * PANEL[1] + (0.22 * math.ceil(len(comparison.configurations) / columns) if has_legend else 0)
    with _figure_style():
        figure = Figure(figsize=(columns * PANEL[0], height), dpi=120, layout="constrained")
        for axes, panel in itertools.zip_longest(figure.subplots(rows, columns, squeeze=False).flat, plot.panels):
            if panel is None:
                axes.set_visible(False)
            else:
                _draw_panel(axes, panel)
        if has_legend:
            lines = [Line2D([], [], **line_style(look)) for look in choose_looks(comparison)]
            names = [configuration_name(configuration, comparison) for configuration in comparison.configurations]
            figure.legend(lines, names, loc="outside lower left", ncols=columns, labelcolor=plotting.INK)
        write_file(folder / f"compare-{plot.name}.png", _encode(figure, "png", {"Software": None}))
        write_file(folder / f"compare-{plot.name}.svg", _encode(figure, "svg", {"Date": None, "Creator": None}))


def inline_svg(panel: Panel, salt: str) -> str:
    """Return a panel as an SVG element in the page's colours and font.

    It holds no address, and no name that another panel could have: `salt` makes its references its own.
    """
    from matplotlib.figure import Figure

    with _figure_style(salt):
        figure = Figure(figsize=PANEL, layout="constrained")
        _draw_panel(figure.subplots(), panel)
        text = _encode(figure, "svg", {"Date": None, "Creator": None}, transparent=True).decode()
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    view = re.search(r'viewBox="([-0-9. ]+)"', text)
    assert view is not None
    text = f'<svg viewBox="{view[1]}" role="img">{text[text.index(">") + 1 :]}'
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for colour, themed in PAGE_COLOURS.items():
        text = text.replace(colour, themed)
    return text


@contextmanager
def _figure_style(salt: str = "gantrain") -> Iterator[None]:
    import matplotlib

    # The salt makes the names inside an SVG the same every time. A label may hold letters that the font lacks.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings(action="ignore"):
        yield


def _encode(figure: Figure, kind: str, metadata: dict[str, None], **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata, **options)
    return buffer.getvalue()


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(textwrap.fill(panel.title, TITLE_WIDTH), color=plotting.INK)
    panel.draw(axes)
