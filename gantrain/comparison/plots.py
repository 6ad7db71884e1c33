"""Figures of a comparison: curves over seeds, quality against diversity, heatmaps, and shares of classes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import plotting
from gantrain.comparison.comparison import Comparison, direction_arrow
from gantrain.comparison.configurations import Configuration, Estimate
from gantrain.comparison.panels import (
    Look,
    Panel,
    Plot,
    configuration_looks,
    configuration_name,
    is_numbered,
    line_style,
)
from gantrain.evaluation.metrics import better_direction

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

MOST_POINTS = 100  # of a curve
MOST_BOUNDS = 6
MOST_HEATMAPS = 2  # of a group of metrics
MOST_CELLS = 8  # in a row of a heatmap with numbers
MOST_TICKS = 20  # classes with a name under their bar
MOST_BARS = 200  # classes with a bar of their own; more are drawn in falling order
OUTLIERS = 0.01  # share of a panel's means, at either end
LINEAR_LOSSES = 20  # larger losses are drawn on a logarithmic axis
PLANES = (("recall", "precision"), ("coverage", "density"), ("class_entropy", r"fid_\w+"))  # diversity, quality


def build_plots(comparison: Comparison) -> list[Plot]:
    """Return all figures for which there are numbers."""
    plots = [
        Plot("plane", plane_panels(comparison), keyed=True),
        Plot("curves", curve_panels(comparison), keyed=True),
        Plot("heatmap", heatmap_panels(comparison)),
        Plot("classes", class_panels(comparison)),
    ]
    return [plot for plot in plots if plot.panels]


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def curve_panels(comparison: Comparison) -> list[Panel]:
    """Losses and bounds against the clock: mean over seeds, and a band of one standard deviation.

    Runs that reported once have no curve. Bounds that most configurations have come first.
    """
    names = list(dict.fromkeys(key for run in comparison.runs for report in run.reports for key in report))
    divergences = comparison.divergence_patterns("disc_div", "gen_div")
    bounds = [name for each in divergences for name in names if re.fullmatch(rf"(training_)?bound/{each}", name)]
    curves = {
        name: sum(len(configuration.curve(name)) > 1 for configuration in comparison.configurations)
        for name in ("loss/discriminator", "loss/generator", *bounds)
    }
    bounds = sorted(bounds, key=curves.__getitem__, reverse=True)[:MOST_BOUNDS]
    drawn = [name for name in ("loss/discriminator", "loss/generator", *bounds) if curves[name]]
    return [Panel(name, _curve_drawer(comparison, name)) for name in drawn]


def _curve_drawer(comparison: Comparison, name: str) -> Callable[[Axes], None]:
    import numpy as np
    from matplotlib.ticker import EngFormatter, SymmetricalLogLocator

    alpha = min(0.18, 0.8 / len(comparison.configurations))

    def draw(axes: Axes) -> None:
        top, means = 0.0, list[float]()
        for configuration, look in configuration_looks(comparison):
            clock, mean, sd = _thin(configuration.curve(name))
            axes.fill_between(clock, mean - sd, mean + sd, color=look.colour, alpha=alpha, linewidth=0)
            axes.plot(clock, mean, marker="o" if len(clock) < 8 else "", markersize=3, **line_style(look))
            top, means = max([top, *clock]), [*means, *mean]
        limits = frame_limits(means)
        if max(map(abs, limits)) > LINEAR_LOSSES:
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1))
            plotting.format_axis(axes.yaxis)
        axes.dataLim.set_points(np.array([(0, limits[0]), (top, limits[1])]))
        axes.autoscale_view()
        axes.set_xlabel("images shown to D")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlim(0, 1.02 * (top or 1))

    return draw


def frame_limits(means: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis that hold the means, except for outliers.

    The share `OUTLIERS` at either end takes up at most half as much room as all other means.
    """
    ordered = sorted(means)
    outliers = int(OUTLIERS * len(ordered))
    low, high = ordered[outliers], ordered[-1 - outliers]
    room = (high - low) / 2
    return max(ordered[0], low - room), min(ordered[-1], high + room)


def _thin(curve: list[tuple[float, Estimate]]) -> NDArray[np.float64]:
    """Clock, mean and deviation of a curve, `[3, N]`; more than `MOST_POINTS` reports are averaged to that number."""
    import numpy as np

    rows = np.array([(clock, estimate.mean, estimate.sd or 0.0) for clock, estimate in curve]).reshape(-1, 3)
    if len(rows) > MOST_POINTS:
        rows = np.stack([chunk.mean(axis=0) for chunk in np.array_split(rows, MOST_POINTS)])
    return rows.T


# ---------------------------------------------------------------------------------------------------------------------
# Quality against diversity


class Point(NamedTuple):
    """A point of the plane, [x, y]: means over seeds and their deviations; `look` is None for training data."""

    at: tuple[float, float]
    sd: tuple[float, float]
    name: str
    look: Look | None


def plane_panels(comparison: Comparison) -> list[Panel]:
    """Precision against recall, density against coverage, the Fréchet distance against the entropy of classes."""
    return [
        Panel(f"{_short_name(y)} against {_short_name(x)}", _plane_drawer(comparison, x, y))
        for diversity, quality in PLANES
        for x in comparison.metrics
        for y in comparison.metrics
        if re.fullmatch(f"(diversity|quality)/{diversity}", x) and re.fullmatch(f"quality/{quality}", y)
    ]


def _short_name(metric: str) -> str:
    return metric.partition("/")[2]


def plane_points(comparison: Comparison, x: str, y: str) -> list[Point]:
    """Points of the configurations that have both metrics, and of training data in place of samples."""
    points = []
    for configuration, look in configuration_looks(comparison):
        diversity, quality = configuration.estimate(x), configuration.estimate(y)
        if diversity is not None and quality is not None:
            name = str(configuration.number) if is_numbered(comparison) else configuration.label
            sd = (diversity.sd or 0.0, quality.sd or 0.0)
            points.append(Point((diversity.mean, quality.mean), sd, name, look))
    data = comparison.reference
    if x in data and y in data:
        points.append(Point((data[x], data[y]), (0.0, 0.0), comparison.reference_name, None))
    return points


def _plane_drawer(comparison: Comparison, x: str, y: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for at, (x_sd, y_sd), name, look in plane_points(comparison, x, y):
            axes.annotate(name, at, xytext=(5, 5), textcoords="offset points", fontsize=9)
            if look is None:
                axes.plot(*at, "*", color=plotting.INK, markersize=11)
                continue
            drawn = axes.errorbar(*at, y_sd, x_sd, fmt="o", color=look.colour, elinewidth=1)
            for bar in drawn.lines[2]:
                bar.set_linestyle(line_style(look)["linestyle"])
        axes.margins(0.18)
        axes.locator_params(axis="x", nbins=5)
        axes.set(xlabel=f"{_short_name(x)}, more diverse →", ylabel=f"{_short_name(y)}, better ↑")
        if better_direction(y) < 0:
            axes.yaxis.set_inverted(True)

    return draw


# ---------------------------------------------------------------------------------------------------------------------
# D's divergence by G's


def heatmap_panels(comparison: Comparison) -> list[Panel]:
    """The first metrics of each group by D's and G's divergence, if D's was swept."""
    if len(comparison.divergence_patterns("disc_div")) < 2:
        return []
    ranked = [list(filter(better_direction, names))[:MOST_HEATMAPS] for names in comparison.columns.values()]
    metrics = list(itertools.chain(*ranked)) or comparison.columns.get("training", [])[-MOST_HEATMAPS:]
    return [Panel(metric + direction_arrow(metric), _heatmap_drawer(comparison, metric)) for metric in metrics]


def _heatmap_drawer(comparison: Comparison, metric: str) -> Callable[[Axes], None]:
    pairs = [
        tuple(run.settings.get(f"{player}.name", "—") for player in ("disc_div", "gen_div")) for run in comparison.runs
    ]
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    values: dict[tuple[str, ...], list[float]] = {}
    for run, pair in zip(comparison.runs, pairs, strict=True):
        if run.is_finished and metric in run.metrics:
            values.setdefault(pair, []).append(run.metrics[metric])

    def draw(axes: Axes) -> None:
        import numpy as np

        cells = [[values.get((row, column), [math.nan]) for column in columns] for row in rows]
        means = [[math.fsum(cell) / len(cell) for cell in row] for row in cells]
        mesh = axes.pcolormesh(np.ma.masked_invalid(means), cmap="viridis", edgecolors="face")
        low, high = mesh.get_clim()
        middle = ((low or 0) + (high or 0)) / 2
        is_crowded = len(columns) > MOST_CELLS
        if is_crowded:
            axes.figure.colorbar(mesh, ax=axes)
        for (row, column), mean in np.ndenumerate(means):
            text = "" if is_crowded else "—" if math.isnan(mean) else f"{mean:.3g}"
            colour = plotting.INK if math.isnan(mean) else "white" if mean < middle else "black"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=9)
        slant: dict[str, Any] = {"rotation": 90} if is_crowded else {"rotation": 30, "ha": "right"}
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, **slant)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.set(xlabel="gen_div", ylabel="disc_div")
        axes.yaxis.set_inverted(True)
        axes.grid(visible=False)

    return draw


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def class_panels(comparison: Comparison) -> list[Panel]:
    """Share of each class among samples, beside the data's."""
    return [
        Panel(configuration_name(configuration, comparison), _class_drawer(configuration, look))
        for configuration, look in configuration_looks(comparison)
        if configuration.class_shares("samples")
    ]


def _class_drawer(configuration: Configuration, look: Look) -> Callable[[Axes], None]:
    samples, data = configuration.class_shares("samples"), configuration.class_shares("data")
    names = list(dict.fromkeys([*data, *samples]))
    draw_shares = _draw_ranked_shares if len(names) > MOST_BARS else _draw_bars

    def draw(axes: Axes) -> None:
        draw_shares(axes, samples, data, names, look)
        axes.set(ylabel="share")
        axes.set_ylim(bottom=0)
        axes.grid(visible=False, axis="x")

    return draw


Shares = dict[str, Estimate]


def _draw_bars(axes: Axes, samples: Shares, data: Shares, names: list[str], look: Look) -> None:
    places = [place for place, name in enumerate(names) if name in samples]
    found = [samples[names[place]] for place in places]
    sd = [estimate.sd or 0.0 for estimate in found] if len(names) <= MOST_TICKS else None
    means = [estimate.mean for estimate in found]
    axes.bar(places, means, color=look.colour, alpha=0.75, yerr=sd, ecolor="#888888", width=0.8)
    if data:
        edges = [place - 0.5 for place in range(len(names) + 1)]
        axes.stairs([data[name].mean if name in data else 0 for name in names], edges, color=plotting.INK)
    if len(names) <= MOST_TICKS:
        axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 3 else 45)
    axes.set(xlabel="class")


def _draw_ranked_shares(axes: Axes, samples: Shares, data: Shares, names: list[str], look: Look) -> None:
    for shares, style in (
        (samples, {"color": look.colour, "alpha": 0.75, "fill": True}),
        (data, {"color": plotting.INK}),
    ):
        axes.stairs(sorted((estimate.mean for estimate in shares.values()), reverse=True), **style)
    axes.set(xlabel="classes, the most frequent first")
