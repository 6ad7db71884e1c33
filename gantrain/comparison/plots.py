"""Figures of a comparison: curves with seed bands, the quality–diversity plane, heatmaps, classes, endpoints."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import plotting
from gantrain.comparison.comparison import Comparison, Configuration, Estimate, arrow
from gantrain.comparison.panels import Look, Panel, Plot, line, looked, name, numbered
from gantrain.comparison.runs import Run, number, within
from gantrain.evaluation.metrics import better_direction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 100  # of a curve
MOST_BOUNDS = 6
STEPS = (7, -7, 16, -16, 25, -25, 34, -34, 43, -43)  # of a name above its point, in points of typography
MOST_HEATMAPS = 2  # of a group of metrics
MOST_CELLS = 8  # of a row whose numbers are legible
MOST_TICKS = 20  # classes whose names fit under a histogram
FEWEST_ENLARGED, WIDE_GAP = 3, 0.15  # points of the plane, and the share of an axis that parts a group from others
OUTLIERS = 0.01  # of a panel's means, at either end
MOST_BARS = 200  # classes whose bars can be told apart; of more, only how uneven they are
LINEAR_LOSSES = 20


def plots(comparison: Comparison) -> list[Plot]:
    """All figures for which there are numbers."""
    found = [
        Plot("plane", plane(comparison), keyed=True),
        Plot("curves", curves(comparison), keyed=True),
        Plot("heatmap", heatmaps(comparison)),
        Plot("classes", classes(comparison)),
        Plot("endpoints", endpoints(comparison), keyed=True),
    ]
    return [plot for plot in found if plot.panels]


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def curves(comparison: Comparison) -> list[Panel]:
    """Losses and bounds against the clock, of runs that reported more than once: mean over seeds, and one standard
    deviation around it. The bounds that most configurations have come first."""
    names = list(dict.fromkeys(key for run in comparison.runs for report in run.reports for key in report))
    trained = comparison.trained("disc_div", "gen_div")
    bounds = [name for each in trained for name in names if re.fullmatch(rf"(training_)?bound/{each}", name)]
    lines = {name: sum(len(each.curve(name)) > 1 for each in comparison.configurations) for name in bounds}
    common = sorted(bounds, key=lines.__getitem__, reverse=True)
    shown = [name for name in ("loss/discriminator", "loss/generator") if name in names] + common[:MOST_BOUNDS]
    drawn = [name for name in shown if any(len(each.curve(name)) > 1 for each in comparison.configurations)]
    return [Panel(name, _curve_drawer(comparison, name)) for name in drawn]


def _curve_drawer(comparison: Comparison, name: str) -> Callable[[Axes], None]:
    import numpy as np
    from matplotlib.ticker import EngFormatter, SymmetricalLogLocator

    faint = min(0.18, 0.8 / len(comparison.configurations))

    def draw(axes: Axes) -> None:
        top, means = 0.0, list[float]()
        for configuration, look in looked(comparison):
            clock, mean, low, high = thinned(configuration, name)
            axes.fill_between(clock, low, high, color=look.colour, alpha=faint, linewidth=0)
            axes.plot(clock, mean, marker="o" if len(clock) < 8 else "", markersize=3, **line(look))
            top, means = max([top, *clock]), [*means, *mean]
        limits = frame(means)
        if max(map(abs, limits)) > LINEAR_LOSSES:
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
        axes.dataLim.set_points(np.array([(0, limits[0]), (top, limits[1])]))
        axes.autoscale_view()
        axes.set_xlabel("images shown to D")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlim(0, 1.02 * (top or 1))

    return draw


def frame(means: Sequence[float]) -> tuple[float, float]:
    """Limits that hold the means, except that one hundredth at either end may take up no more room than half of all the
    others do."""
    ordered = sorted(means)
    outliers = int(OUTLIERS * len(ordered))
    low, high = ordered[outliers], ordered[-1 - outliers]
    room = (high - low) / 2
    return max(ordered[0], low - room), min(ordered[-1], high + room)


def thinned(configuration: Configuration, name: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """Clock, mean, lower and upper edge of the band: averages of neighbouring reports, where there are many."""
    curve = configuration.curve(name)
    step = math.ceil(len(curve) / MOST_POINTS) or 1
    chunks = [curve[start : start + step] for start in range(0, len(curve), step)]
    clock = [math.fsum(images for images, _ in chunk) / len(chunk) for chunk in chunks]
    mean = [math.fsum(estimate.mean for _, estimate in chunk) / len(chunk) for chunk in chunks]
    half = [math.fsum(estimate.sd or 0.0 for _, estimate in chunk) / len(chunk) for chunk in chunks]
    edges = list(zip(mean, half, strict=True))
    return clock, mean, [centre - width for centre, width in edges], [centre + width for centre, width in edges]


# ---------------------------------------------------------------------------------------------------------------------
# Quality against diversity


def plane(comparison: Comparison) -> list[Panel]:
    """Precision against recall, density against coverage, the Fréchet distance against the entropy of classes; where
    most points stand close together, they once more by themselves."""
    pairs = [("recall", "precision"), ("coverage", "density"), ("class_entropy", r"fid_\w+")]
    found = [
        (x, y)
        for diversity, quality in pairs
        for x in comparison.metrics
        for y in comparison.metrics
        if re.fullmatch(f"diversity/{diversity}|quality/{diversity}", x) and re.fullmatch(f"quality/{quality}", y)
    ]
    panels = [Panel(f"{_bare(y)} against {_bare(x)}", _plane_drawer(comparison, x, y)) for x, y in found]
    close = [(x, y) for x, y in found if crowd(points := plane_points(comparison, x, y)) != points]
    enlarged = [
        Panel(f"{_bare(y)} against {_bare(x)}, enlarged", _plane_drawer(comparison, x, y, enlarged=True))
        for x, y in close
    ]
    return [*panels, *enlarged]


def _bare(metric: str) -> str:
    return metric.partition("/")[2]


class Point(NamedTuple):
    """A point of the plane: means over seeds and their deviations, across and up; the look None for training data."""

    at: tuple[float, float]
    sd: tuple[float, float]
    name: str
    look: Look | None


def plane_points(comparison: Comparison, x: str, y: str) -> list[Point]:
    """The configurations that have both metrics, and the training data in place of samples."""
    points = []
    for configuration, look in looked(comparison):
        diversity, quality = configuration.estimate(x), configuration.estimate(y)
        if diversity is not None and quality is not None:
            text = str(configuration.number) if numbered(comparison) else configuration.label
            sd = (diversity.sd or 0.0, quality.sd or 0.0)
            points.append(Point((diversity.mean, quality.mean), sd, text, look))
    data = comparison.reference
    return [
        *points,
        *([Point((data[x], data[y]), (0.0, 0.0), comparison.reference_name, None)] if x in data and y in data else []),
    ]


def crowd(points: list[Point]) -> list[Point]:
    """The points that stand close together, at least half of all; all of them where none stand apart."""
    inside, fewest = points, max(FEWEST_ENLARGED, len(points) / 2)
    while closer := [part for axis in (0, 1) if fewest <= len(part := _largest_group(inside, axis)) < len(inside)]:
        inside = closer[0]
    return [point for point in points if point in inside]


def _largest_group(points: list[Point], axis: int) -> list[Point]:
    """The most points without a wide gap between neighbours on an axis."""
    ordered = sorted(points, key=lambda point: point.at[axis])
    groups = [ordered[:1]]
    for before, after in itertools.pairwise(ordered):
        if after.at[axis] - before.at[axis] > WIDE_GAP * (ordered[-1].at[axis] - ordered[0].at[axis]):
            groups.append([])
        groups[-1].append(after)
    return max(groups, key=len)


def _plane_drawer(comparison: Comparison, x: str, y: str, enlarged: bool = False) -> Callable[[Axes], None]:
    points = plane_points(comparison, x, y)
    close = crowd(points)
    shown = close if enlarged else points

    def draw(axes: Axes) -> None:
        for at, (across, up), _, look in shown:
            if look is None:
                axes.plot(*at, "*", color=plotting.INK, markersize=11)
                continue
            drawn = axes.errorbar(*at, up, across, fmt="o", color=look.colour, elinewidth=1)
            for bar in drawn.lines[2]:
                bar.set_linestyle(line(look)["linestyle"])
        axes.margins(0.18)
        axes.autoscale_view()
        axes.locator_params(axis="x", nbins=5)
        axes.set(xlabel=f"{_bare(x)}, more diverse →", ylabel=f"{_bare(y)}, better ↑")
        if better_direction(y) < 0:
            axes.yaxis.set_inverted(True)
        names = ["" if len(close) < len(shown) and point in close else point.name for point in shown]
        if "" in names:
            names[shown.index(close[0])] = "enlarged below"
        _name_points(axes, [point.at for point in shown], names)

    return draw


def _name_points(axes: Axes, points: list[tuple[float, float]], names: list[str]) -> None:
    """A name beside each point, on the side where there is room, and above or below where others stand."""
    width, height = 250, 150  # of the axes, and letters of 5 × 9, in points of typography; near enough for names
    to_axes = axes.transData + axes.transAxes.inverted()
    places = [(width * across, height * up) for across, up in map(to_axes.transform, points)]
    taken = [(x - 4, x + 4, y) for x, y in places]
    for at, (x, y), text in zip(points, places, names, strict=True):
        if not text:
            continue
        wide = 5 * len(text)
        sides = [5.0, -5.0 - wide] if x < width / 2 else [-5.0 - wide, 5.0]

        def free(side: float, step: int, x: float = x, y: float = y, wide: int = wide) -> bool:
            start, centre = x + side, y + step
            beside = (abs(centre - other) < 9 and start < right and start + wide > left for left, right, other in taken)
            return 0 <= centre <= height and not any(beside)

        side, step = next((place for place in itertools.product(sides, STEPS) if free(*place)), (sides[0], 7))
        taken.append((x + side, x + side + wide, y + step))
        where: Any = {"xytext": (5 if side > 0 else -5, step), "textcoords": "offset points", "fontsize": 9}
        if abs(step) > STEPS[0]:
            where["arrowprops"] = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.6, "shrinkA": 0}
        axes.annotate(text, at, ha="left" if side > 0 else "right", va="center", **where)


# ---------------------------------------------------------------------------------------------------------------------
# What D and G were given, against each other


def heatmaps(comparison: Comparison) -> list[Panel]:
    """The first metrics of each group, D's divergence by G's, where D's was swept."""
    if len(comparison.trained("disc_div")) < 2:
        return []
    ranked = [list(filter(better_direction, names))[:MOST_HEATMAPS] for names in comparison.columns.values()]
    shown = list(itertools.chain(*ranked)) or comparison.columns.get("training", [])[-MOST_HEATMAPS:]
    return [Panel(metric + arrow(metric), _heatmap_drawer(comparison, metric)) for metric in shown]


def _heatmap_drawer(comparison: Comparison, metric: str) -> Callable[[Axes], None]:
    rows, columns = (_distinct(comparison, f"{player}.name") for player in ("disc_div", "gen_div"))

    def draw(axes: Axes) -> None:
        import numpy as np

        means = [[_mean_of_pair(comparison, metric, disc, gen) for gen in columns] for disc in rows]
        shown = axes.pcolormesh(np.ma.masked_invalid(means), cmap="viridis", edgecolors="face")
        low, high = shown.get_clim()
        middle = ((low or 0) + (high or 0)) / 2
        crowded = len(columns) > MOST_CELLS
        if crowded:
            axes.figure.colorbar(shown, ax=axes)
        for (row, column), mean in np.ndenumerate(means):
            text = "" if crowded else "—" if math.isnan(mean) else f"{mean:.3g}"
            colour = plotting.INK if math.isnan(mean) else "white" if mean < middle else "black"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=9)
        slant: dict[str, Any] = {"rotation": 90} if crowded else {"rotation": 30, "ha": "right"}
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, **slant)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.set(xlabel="gen_div", ylabel="disc_div")
        axes.yaxis.set_inverted(True)
        axes.grid(visible=False)

    return draw


def _distinct(comparison: Comparison, key: str) -> list[str]:
    return list(dict.fromkeys(run.settings.get(key, "—") for run in comparison.runs))


def _mean_of_pair(comparison: Comparison, metric: str, disc: str, gen: str) -> float:
    """The mean over all finished runs with these two divergences; NaN where there is none."""
    runs = [run for run in comparison.runs if run.finished and metric in run.metrics]
    values = [
        run.metrics[metric]
        for run in runs
        if (run.settings.get("disc_div.name", "—"), run.settings.get("gen_div.name", "—")) == (disc, gen)
    ]
    return math.fsum(values) / len(values) if values else math.nan


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def classes(comparison: Comparison) -> list[Panel]:
    """The share of each class among samples, beside the data's."""
    return [
        Panel(name(configuration, comparison), _class_drawer(configuration, look))
        for configuration, look in looked(comparison)
        if configuration.class_shares("samples")
    ]


def _class_drawer(configuration: Configuration, look: Look) -> Callable[[Axes], None]:
    samples, data = configuration.class_shares("samples"), configuration.class_shares("data")
    names = list(dict.fromkeys([*data, *samples]))
    if len(names) > MOST_BARS:
        return _ranked_drawer(samples, data, look)

    def draw(axes: Axes) -> None:
        present = [(place, samples[each]) for place, each in enumerate(names) if each in samples]
        places, means = [place for place, _ in present], [estimate.mean for _, estimate in present]
        spread = [estimate.sd or 0.0 for _, estimate in present] if len(names) <= MOST_TICKS else None
        axes.bar(places, means, color=look.colour, alpha=0.75, yerr=spread, ecolor="#888888", width=0.8)
        if data:
            edges = [place - 0.5 for place in range(len(names) + 1)]
            axes.stairs([data[each].mean if each in data else 0 for each in names], edges, color=plotting.INK)
        if len(names) <= MOST_TICKS:
            axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 3 else 45)
        axes.set(xlabel="class", ylabel="share")
        axes.set_ylim(bottom=0)
        axes.grid(visible=False, axis="x")

    return draw


def _ranked_drawer(samples: dict[str, Estimate], data: dict[str, Estimate], look: Look) -> Callable[[Axes], None]:
    """The shares of samples and those of the data, each in falling order; where they end early, classes are missing."""

    def draw(axes: Axes) -> None:
        looks: list[dict[str, Any]] = [{"color": look.colour, "alpha": 0.75, "fill": True}, {"color": plotting.INK}]
        for shares, style in zip((samples, data), looks, strict=True):
            axes.stairs(sorted((estimate.mean for estimate in shares.values()), reverse=True), **style)
        axes.set(xlabel="classes, the most frequent first", ylabel="share")
        axes.set_ylim(bottom=0)
        axes.grid(visible=False, axis="x")

    return draw


# ---------------------------------------------------------------------------------------------------------------------
# Where a Gaussian generator came to rest


def coordinates(run: Run, *where: str) -> tuple[float, float] | None:
    """(μ, σ) from the summary's endpoint: what was `reached`, or where `theory` or the `optimum` is."""
    found = run.fact("endpoint", *where)
    pair = [within(found, "mean"), within(found, "std")] if isinstance(found, dict) else found
    numbers = [number(value) for value in pair] if isinstance(pair, list) and len(pair) == 2 else [None, None]
    return None if numbers[0] is None or numbers[1] is None else (numbers[0], numbers[1])


def endpoints(comparison: Comparison) -> list[Panel]:
    """The plane of means and widths: each run's end, the exact flow's, and the best Gaussian."""
    if not any(coordinates(run, "reached") for run in comparison.runs):
        return []
    return [Panel("● training  × exact flow  ☆ best Gaussian", _endpoint_drawer(comparison))]


def _endpoint_drawer(comparison: Comparison) -> Callable[[Axes], None]:
    marks = {"reached": ("o", 18.0), "theory": ("x", 40.0), "optimum": ("*", 70.0)}

    def draw(axes: Axes) -> None:
        for configuration, look in looked(comparison):
            for where, (marker, size) in marks.items():
                points = {at for run in configuration.shown if (at := coordinates(run, where))}
                face = "none" if marker == "*" else look.colour
                for x, y in sorted(points):
                    kind: dict[str, Any] = {"c": face} if marker == "x" else {"facecolors": face}
                    axes.scatter(x, y, s=size, marker=marker, edgecolors=look.colour if marker != "x" else None, **kind)
        axes.margins(0.12)
        axes.set(xlabel="μ", ylabel="σ")

    return draw
