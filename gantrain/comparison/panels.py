"""Panels of a comparison's figures: how a configuration looks everywhere, and how a figure becomes a file or an SVG.

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
from gantrain.comparison.comparison import Comparison, Configuration
from gantrain.files import write_whole
from gantrain.theory.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (4.4, 3.0)  # inches
TITLE_WIDTH = 52  # letters of a panel's title on a line
MOST_COLUMNS = 3
PALETTE = (*COLOURS, "#8c564b", "#7f7f7f")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1, 1), (4, 1, 1, 1))  # in widths of the line
MOST_LOOKS = len(PALETTE) * len(DASHES)
MOST_NAMED, LONGEST_NAME = 12, 24  # points of the plane; beyond, they have the numbers of the table
# Keys of matplotlib.rcParams. Text stays text, and no label of somebody's config is read as a formula.
STYLE: dict[Any, Any] = {
    **plotting.STYLE,
    "axes.grid.axis": "both",
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",
    "text.color": plotting.INK,
    "text.parse_math": False,
}
# The colours of what is no data, and what they become inside a page.
PAGE_COLOURS = {
    plotting.INK: "currentColor",
    "#555555": "var(--muted)",
    "#888888": "var(--muted)",
    "#ececec": "var(--rule)",
}


class Panel(NamedTuple):
    """One diagram."""

    title: str
    draw: Callable[[Axes], None]


class Plot(NamedTuple):
    """Diagrams that belong together; `keyed` when the configurations' lines or points need the legend."""

    name: str
    panels: list[Panel]
    keyed: bool = False


class Look(NamedTuple):
    """How a configuration is drawn everywhere: its colour and dashes."""

    colour: str
    dashes: tuple[float, ...]


def looks(comparison: Comparison) -> list[Look]:
    """Colours and dashes that tell configurations apart: the colour says what the first key is, and dashes what the
    others are, where there are enough of both. Neighbours in the table are alike where there are too many for that."""
    values = [tuple(configuration.values.values()) for configuration in comparison.configurations]
    firsts, rests = list(dict.fromkeys(v[:1] for v in values)), list(dict.fromkeys(v[1:] for v in values))
    if len(firsts) <= len(PALETTE) and len(rests) <= len(DASHES):
        return [Look(PALETTE[firsts.index(value[:1])], DASHES[rests.index(value[1:])]) for value in values]
    if (count := len(values)) <= MOST_LOOKS:
        return [Look(colour, dashes) for dashes in DASHES for colour in PALETTE][:count]
    import matplotlib
    from matplotlib.colors import to_hex

    shades = matplotlib.colormaps["turbo"]
    return [Look(to_hex(shades(0.05 + 0.9 * index / (count - 1))), ()) for index in range(count)]


def save(plot: Plot, comparison: Comparison, folder: Path) -> None:
    """Write `compare-NAME.png` and `compare-NAME.svg`, with every panel and the legend. Raises OSError."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(MOST_COLUMNS, len(plot.panels))
    rows = math.ceil(len(plot.panels) / columns)
    with drawing():
        entries = [Line2D([], [], **line(look)) for look in looks(comparison)]
        names = [name(configuration, comparison) for configuration in comparison.configurations]
        keyed = plot.keyed and len(names) > 1
        height = rows * PANEL[1] + (0.22 * math.ceil(len(names) / columns) if keyed else 0)
        figure = Figure(figsize=(columns * PANEL[0], height), dpi=120, layout="constrained")
        for axes, panel in itertools.zip_longest(figure.subplots(rows, columns, squeeze=False).flat, plot.panels):
            if panel is None:
                axes.set_visible(False)
            else:
                _fill(axes, panel)
        if keyed:
            figure.legend(entries, names, loc="outside lower left", ncols=columns, labelcolor=plotting.INK)
        write_whole(folder / f"compare-{plot.name}.png", _encoded(figure, "png", {"Software": None}))
        write_whole(folder / f"compare-{plot.name}.svg", _encoded(figure, "svg", {"Date": None, "Creator": None}))


def inline(panel: Panel, salt: str) -> str:
    """A panel as an SVG element for a page: in the page's colours and font, without an address or a name that another
    panel could have; `salt` makes its references its own."""
    from matplotlib.figure import Figure

    with drawing(salt):
        figure = Figure(figsize=PANEL, layout="constrained")
        _fill(figure.subplots(), panel)
        text = _encoded(figure, "svg", {"Date": None, "Creator": None}, transparent=True).decode()
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    view = re.search(r'viewBox="([-0-9. ]+)"', text)
    assert view is not None
    text = f'<svg viewBox="{view[1]}" role="img">{text[text.index(">") + 1 :]}'
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for colour, themed in PAGE_COLOURS.items():
        text = text.replace(colour, themed)
    return text


@contextmanager
def drawing(salt: str = "gantrain") -> Iterator[None]:
    """The look of every figure; the salt makes the names inside an SVG the same every time."""
    import matplotlib

    # A label may hold letters that the font lacks.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings(action="ignore"):
        yield


def _encoded(figure: Figure, kind: str, metadata: dict[str, None], **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata, **options)
    return buffer.getvalue()


def _fill(axes: Axes, panel: Panel) -> None:
    axes.set_title(textwrap.fill(panel.title, TITLE_WIDTH), color=plotting.INK)
    panel.draw(axes)


def line(look: Look) -> dict[str, Any]:
    """How matplotlib draws a line of this look."""
    return {"color": look.colour, "linestyle": (0, look.dashes) if look.dashes else "-"}


def name(configuration: Configuration, comparison: Comparison) -> str:
    """A configuration in a legend, with the table's number where points are numbered."""
    return f"{configuration.number}  {configuration.label}" if numbered(comparison) else configuration.label


def numbered(comparison: Comparison) -> bool:
    """Whether names are too many or too long to stand beside points."""
    labels = [configuration.label for configuration in comparison.configurations]
    return len(labels) > MOST_NAMED or max(map(len, labels)) > LONGEST_NAME


def looked(comparison: Comparison) -> list[tuple[Configuration, Look]]:
    """The configurations with their looks."""
    return list(zip(comparison.configurations, looks(comparison), strict=True))
