"""Figures of a comparison: quality against diversity, curves over seeds, heatmaps, and shares of classes.

A figure is a group of panels, each a title and a function that draws it. Equal comparisons give equal files.
"""

from __future__ import annotations

import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gantrain import plotting
from gantrain.comparison.comparison import Comparison, direction_arrow
from gantrain.comparison.configurations import Configuration, Estimate, error_metric
from gantrain.comparison.labels import name_discriminator
from gantrain.comparison.runs import Run
from gantrain.evaluation.metrics import better_direction
from gantrain.objectives.critic_objective import OWN
from gantrain.plotting import DASHES, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Panels = dict[str, Callable[[Axes], None]]

PANEL = (4.2, 2.9)  # inches
PANEL_COLUMNS = 3
PANEL_LETTERS = 42  # on a line of a panel's title or, beside its line, of the legend
PALETTE = (*plotting.PALETTE, "#8c564b", "#7f7f7f")
MAX_BOUND_CURVES = 6
MAX_HEATMAPS = 2  # of a group of metrics
MAX_NUMBERED_COLUMNS = 8  # of a heatmap whose cells have numbers
MAX_TICKS = 20  # classes with a name and a deviation
MAX_BARS = 200  # classes in the order of the data; more are drawn in falling order
NUMBER: dict[str, Any] = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 9}  # beside a point
OUTLIERS = 0.01  # share of a panel's means, at either end
LINEAR_LOSSES = 20  # larger losses are drawn on a logarithmic axis
MAX_POWERS = 8  # of ten with a number, on a logarithmic axis
PLANES = (("recall", "precision"), ("coverage", "density"), ("class_entropy", r"fid_\w+"))  # diversity, quality


def encode_plots(comparison: Comparison) -> dict[str, dict[str, bytes]]:
    """Return every figure that has numbers, by name (`plane`, …) and then kind (`png`, `svg`). Raises DrawingError."""
    # A label from a config is not read as a formula, and may hold letters that the font lacks.
    with plotting.use_style({"text.parse_math": False}), warnings.catch_warnings(action="ignore"):
        figures = {}
        for name, find_panels, has_legend in (
            ("plane", plane_panels, True),
            ("parts", part_panels, True),
            ("curves", curve_panels, True),
            ("heatmap", heatmap_panels, False),
            ("classes", class_panels, False),
        ):
            if panels := find_panels(comparison):
                figure = _draw_figure(panels, comparison, has_legend=has_legend)
                figures[name] = {kind: plotting.encode_figure(figure, kind) for kind in ("png", "svg")}
        return figures


def _draw_figure(panels: Panels, comparison: Comparison, *, has_legend: bool) -> Figure:
    from matplotlib.lines import Line2D

    columns = min(PANEL_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    names = [textwrap.fill(configuration.name, PANEL_LETTERS) for configuration in comparison.configurations]
    legend_lines = math.ceil(len(names) / columns) * max(name.count("\n") + 1 for name in names)
    legend_height = 0.22 * legend_lines if has_legend else 0
    width, height = columns * PANEL[0], rows * PANEL[1] + legend_height
    figure, all_axes = plotting.make_figure(rows, width, height, columns=columns)
    for axes, panel in itertools.zip_longest(all_axes, panels.items()):
        if panel is None:
            axes.set_visible(False)
        else:
            title, draw = panel
            axes.set_title(textwrap.fill(title, PANEL_LETTERS))
            draw(axes)
    if has_legend:
        lines = [Line2D([], [], **style) for style in line_styles(comparison)]
        figure.legend(lines, names, loc="outside lower left", ncols=columns)
    return figure


def line_styles(comparison: Comparison) -> list[dict[str, Any]]:
    """Return matplotlib's arguments for a line of each configuration.

    Colours stand for the first setting that differs and dashes for the others, if there are enough of both.
    """
    import matplotlib

    values = [tuple(configuration.values.values()) for configuration in comparison.configurations]
    firsts, rests = list(dict.fromkeys(v[:1] for v in values)), list(dict.fromkeys(v[1:] for v in values))
    if len(firsts) <= len(PALETTE) and len(rests) <= len(DASHES):
        return [{"color": PALETTE[firsts.index(v[:1])], "linestyle": DASHES[rests.index(v[1:])]} for v in values]
    shades = matplotlib.colormaps["turbo"]
    return [{"color": shades(0.05 + 0.9 * index / len(values)), "linestyle": "-"} for index in range(len(values))]


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def curve_panels(comparison: Comparison) -> Panels:
    """Losses and bounds against the clock: mean over seeds, and a band of one standard deviation.

    The band of a single run's bound is one standard error. Runs that reported once have no curve. Bounds that most
    configurations have come first.
    """
    losses = ["loss/discriminator", "loss/generator"]
    names = list(dict.fromkeys(key for run in comparison.runs for report in run.reports for key in report))
    divergences = comparison.divergence_patterns("disc_div", "gen_div")
    bound = f"(training_)?{comparison.bound_group}"
    bounds = [name for each in divergences for name in names if re.fullmatch(f"{bound}/{each}", name)]
    counts = {
        name: sum(len(configuration.curve(name)) > 1 for configuration in comparison.configurations)
        for name in (*losses, *bounds)
    }
    bounds = sorted(bounds, key=counts.__getitem__, reverse=True)[:MAX_BOUND_CURVES]
    return {name: partial(_draw_curves, comparison, name) for name in (*losses, *bounds) if counts[name]}


def _draw_curves(comparison: Comparison, name: str, axes: Axes) -> None:
    alpha = min(0.18, 0.8 / len(comparison.configurations))
    end, means = 0.0, list[float]()
    for configuration, style in zip(comparison.configurations, line_styles(comparison), strict=True):
        errors = {clock: error.mean for clock, error in configuration.curve(error_metric(name))}
        curve = [
            (clock, mean, errors.get(clock, 0.0) if sd is None else sd)
            for clock, (mean, sd, _) in configuration.curve(name)
        ]
        clock, mean, sd = plotting.average_rows(np.array(curve).reshape(-1, 3)).T
        axes.fill_between(clock, mean - sd, mean + sd, color=style["color"], alpha=alpha, linewidth=0)
        axes.plot(clock, mean, marker="o" if len(clock) < 8 else "", markersize=3, **style)
        end, means = max([end, *clock]), [*means, *mean]
    low, high = frame_limits(means)
    if max(abs(low), abs(high)) > LINEAR_LOSSES:
        axes.set_yscale("symlog", linthresh=1)
        axes.locator_params(axis="y", numticks=MAX_POWERS)
        plotting.format_axis(axes.yaxis)
    scale = axes.yaxis.get_transform()
    bottom, top = scale.transform(np.array([low, high]))
    margin = 0.05 * (top - bottom) or 0.05 * abs(top) or 1.0
    axes.set_ylim(*scale.inverted().transform(np.array([bottom - margin, top + margin])))
    plotting.label_clock(axes, end)


def frame_limits(means: Sequence[float]) -> tuple[float, float]:
    """Return limits of an axis that hold the means, except for outliers.

    The share `OUTLIERS` at either end takes up at most half as much room as all other means.
    """
    ordered = sorted(means)
    outliers = int(OUTLIERS * len(ordered))
    low, high = ordered[outliers], ordered[-1 - outliers]
    room = (high - low) / 2
    return max(ordered[0], low - room), min(ordered[-1], high + room)


# ---------------------------------------------------------------------------------------------------------------------
# Quality against diversity


def plane_panels(comparison: Comparison) -> Panels:
    """Precision against recall, density against coverage, the Fréchet distance against the entropy of classes."""
    return {
        f"{y.partition('/')[2]} against {x.partition('/')[2]}": partial(_draw_plane, comparison, x, y)
        for diversity, quality in PLANES
        for x in comparison.metrics
        for y in comparison.metrics
        if re.fullmatch(f"(diversity|quality)/{diversity}", x) and re.fullmatch(f"quality/{quality}", y)
    }


def _draw_plane(comparison: Comparison, x: str, y: str, axes: Axes) -> None:
    """Draw a numbered point for each configuration that has both metrics, and a star for training examples."""
    for configuration, style in zip(comparison.configurations, line_styles(comparison), strict=True):
        diversity, quality = configuration.estimate(x), configuration.estimate(y)
        if diversity is not None and quality is not None:
            at = diversity.mean, quality.mean
            axes.errorbar(*at, quality.sd, diversity.sd, fmt="o", color=style["color"], elinewidth=1)
            axes.annotate(str(configuration.number), at, **NUMBER)
    data = comparison.reference
    if x in data and y in data:
        axes.plot(data[x], data[y], "*", color=INK, markersize=11)
        axes.annotate(comparison.reference_name, (data[x], data[y]), **NUMBER)
    axes.margins(0.18)
    axes.locator_params(axis="x", nbins=5)
    axes.set(xlabel=f"{x.partition('/')[2]}, more diverse →", ylabel=f"{y.partition('/')[2]}, better ↑")
    axes.yaxis.set_inverted(better_direction(y) < 0)


# ---------------------------------------------------------------------------------------------------------------------
# Missed against invented


def part_panels(comparison: Comparison) -> Panels:
    """What q misses against what it invents, for each divergence that all configurations report; `gan` is `js` here."""
    found = (re.fullmatch("missed/(?!mass|gan)(.*)(?<!_error)", metric) for metric in comparison.metrics)
    names = [match[1] for match in found if match]
    return {
        f"missed against invented, {name}": partial(_draw_parts, comparison, name)
        for name in names
        if all(configuration.estimate(f"missed/{name}") for configuration in comparison.configurations)
    }


def _draw_parts(comparison: Comparison, name: str, axes: Axes) -> None:
    """Draw a numbered point for each configuration, joined with a hollow one for the lower bounds."""
    for configuration, style in zip(comparison.configurations, line_styles(comparison), strict=True):
        names = [[f"{part}{kind}/{name}" for kind in ("", "_bound")] for part in ("invented", "missed")]
        values = [[configuration.estimate(metric) for metric in group] for group in names]
        x, y = ([value.mean if value else math.nan for value in group] for group in values)
        axes.plot(x, y, color=style["color"], linewidth=0.8)
        bars = [configuration.deviation(group[0]) for group in names]
        axes.errorbar(x[:1], y[:1], bars[1], bars[0], fmt="o", color=style["color"], elinewidth=1)
        axes.plot(x[1:], y[1:], "o", color=style["color"], fillstyle="none")
        axes.annotate(str(configuration.number), (x[0], y[0]), **NUMBER)
    axes.margins(0.18)
    axes.set(xlabel="invented; ● estimate, ○ lower bound", ylabel="missed")


# ---------------------------------------------------------------------------------------------------------------------
# D's divergence by G's


def heatmap_panels(comparison: Comparison) -> Panels:
    """The first metrics of each group by D's and G's divergence, if D's was swept."""
    if len({name_discriminator(run) for run in comparison.runs}) < 2:
        return {}
    ranked = [list(filter(better_direction, names))[:MAX_HEATMAPS] for names in comparison.columns.values()]
    metrics = list(itertools.chain(*ranked)) or comparison.columns.get("training", [])[-MAX_HEATMAPS:]
    return {metric + direction_arrow(metric): partial(_draw_heatmap, comparison, metric) for metric in metrics}


def _draw_heatmap(comparison: Comparison, metric: str, axes: Axes) -> None:
    """Draw the mean over all finished runs with the same two divergences, and its deviation over them."""
    cells: dict[tuple[str, str], list[Run]] = {}
    for run in comparison.runs:
        cells.setdefault((name_discriminator(run), run.setting("gen_div.name")), []).append(run)
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    means = np.full((len(rows), len(columns)), math.nan)
    for y, x in np.ndindex(means.shape):
        cell = Configuration(0, "", {}, cells.get((rows[y], columns[x]), []))
        means[y, x] = estimate.mean if (estimate := cell.estimate(metric)) else math.nan
        deviation = f"\n± {error:.2g}" if (error := cell.deviation(metric)) else ""
        text = f"{means[y, x]:.3g}{deviation}" if estimate else "—"
        if len(columns) <= MAX_NUMBERED_COLUMNS:
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=min(9, 46 / len(columns)))
    mesh = axes.pcolormesh(np.ma.masked_invalid(means), cmap="viridis", alpha=0.5)  # so that numbers can be read
    axes.figure.colorbar(mesh, ax=axes)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set(xlabel="gen_div", ylabel="disc_div or critic" if OWN in columns else "disc_div")
    axes.yaxis.set_inverted(True)
    axes.grid(visible=False)


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def class_panels(comparison: Comparison) -> Panels:
    """Share of each class among samples, beside the data's."""
    pairs = zip(comparison.configurations, line_styles(comparison), strict=True)
    return {
        configuration.name: partial(_draw_classes, configuration, style["color"])
        for configuration, style in pairs
        if configuration.class_shares("samples")
    }


def _draw_classes(configuration: Configuration, colour: Any, axes: Axes) -> None:
    samples, data = configuration.class_shares("samples"), configuration.class_shares("data")
    names = list(dict.fromkeys([*data, *samples]))
    for shares, style in ((samples, {"color": colour, "alpha": 0.75, "fill": True}), (data, {"color": INK})):
        means = [shares[name].mean if name in shares else 0.0 for name in names]
        if len(names) > MAX_BARS:
            means.sort(reverse=True)
        if shares:
            axes.stairs(means, **style)
    if len(names) <= MAX_TICKS:
        places = [index + 0.5 for index in range(len(names))]
        found = [samples.get(name, Estimate(0.0, None, 0)) for name in names]
        axes.errorbar(places, [each.mean for each in found], [each.sd or 0.0 for each in found], fmt="none", ecolor=INK)
        axes.set_xticks(places, names, rotation=0 if max(map(len, names)) < 3 else 45)
    axes.set(xlabel="class" if len(names) <= MAX_BARS else "classes, the most frequent first", ylabel="share")
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")
