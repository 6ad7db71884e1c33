"""Figures that compare divergences: f, its two formulas, the generator losses, their pull, what they follow.

Every line is named at its end, and told by dashes and one of Okabe and Ito's colours for colour-blind people.
The same divergences give the same files, byte for byte.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import plotting
from gantrain.files import write_whole
from gantrain.objectives.divergences import Divergence
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.theory import properties

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    Curves = Mapping[str, Tensor]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
POINTS = 801
SMALLEST_RATIO, LARGEST_RATIO = 1e-3, 3.0
LARGEST_LOG_RATIO = 4.0
LABEL_HEIGHT = 0.046  # from one name to the next, in heights of the axes
# Keys of matplotlib.rcParams; the salt makes the names inside an SVG the same every time.
STYLE: dict[Any, Any] = {**plotting.STYLE, "axes.grid.axis": "both", "lines.linewidth": 1.6, "svg.hashsalt": "gantrain"}


def save(chosen: Sequence[Divergence], folder: Path) -> list[str]:
    """Write every figure of the chosen divergences into `folder`, as NAME.png and NAME.svg; returns the names.

    Raises:
        OSError: A file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(chosen)
            write_whole(folder / f"{name}.png", _encoded(figure, "png", {"Software": None}))
            write_whole(folder / f"{name}.svg", _encoded(figure, "svg", {"Date": None, "Creator": None}))
    return list(FIGURES)


def _encoded(figure: Figure, kind: str, metadata: Mapping[str, None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# The figures


def draw_f(chosen: Sequence[Divergence]) -> Figure:
    """f against u."""
    import torch

    u = torch.linspace(SMALLEST_RATIO, LARGEST_RATIO, POINTS, dtype=torch.float64)
    curves = {divergence.name: divergence.f(u.log()) for divergence in chosen}
    low, last = min(float(curve.min()) for curve in curves.values()), max(float(curve[-1]) for curve in curves.values())
    figure, (axes,) = _panels(1)
    axes.set(title="f(u)", xlabel="u = p/q", ylim=(low - 0.15, min(max(last, 1), 6) + 0.15))
    _draw_lines(axes, u, curves)
    return figure


def draw_real_fake(chosen: Sequence[Divergence]) -> Figure:
    """What D averages, `real` over data and `fake` over samples, against r."""
    r = _log_ratios()
    figure, all_axes = _panels(2)
    titles = {
        "real": "real(r) = f'(e$^r$), averaged over data",
        "fake": "fake(r) = f*(f'(e$^r$)), averaged over samples",
    }
    for axes, (part, title) in zip(all_axes, titles.items(), strict=True):
        axes.set_title(title)
        _bend(axes, 1)
        _draw_lines(axes, r, {divergence.name: getattr(divergence, part)(r) for divergence in chosen})
    all_axes[-1].set_xlabel("log-ratio r = log p/q")
    return figure


def draw_losses(chosen: Sequence[Divergence]) -> Figure:
    """The loss per sample of every generator objective, against what D = gan says of the sample."""
    import torch

    d = torch.linspace(0.01, 0.99, POINTS, dtype=torch.float64)
    trained = _trained(chosen)
    figure, all_axes = _panels(len(trained))
    for axes, (objective, those) in zip(all_axes, trained.items(), strict=True):
        axes.set_title(f"gen_objective={objective}: loss of one sample")
        _bend(axes, 1)
        _draw_lines(axes, d, {each.name: properties.loss(each, objective, d.logit()) for each in those}, chosen)
    all_axes[-1].set_xlabel("D(G(z)) = σ(r)")
    return figure


def draw_pulls(chosen: Sequence[Divergence]) -> Figure:
    """The weight of one sample in the gradient of every generator objective, −d loss/dr, against r."""
    r = _log_ratios()
    trained = _trained(chosen)
    figure, all_axes = _panels(len(trained))
    for axes, (objective, those) in zip(all_axes, trained.items(), strict=True):
        axes.set_title(f"gen_objective={objective}: pull on one sample, −d loss/dr")
        _bend(axes, 0.1)
        _draw_lines(axes, r, {each.name: properties.pull(each, objective, r) for each in those}, chosen)
        if (low := axes.get_ylim()[0]) < -0.1:
            axes.axhspan(low, 0, color="#f0f0f0", zorder=0)
            axes.text(0.01, 0.04, "to smaller u, away from the data", transform=axes.transAxes, color="#555555")
    all_axes[-1].set_xlabel("log-ratio r = log p/q")
    return figure


def _trained(chosen: Sequence[Divergence]) -> dict[str, list[Divergence]]:
    """The objectives, each with those of the divergences that it can train, where there are any."""
    trained = {
        objective: [divergence for divergence in chosen if not properties.refusal(divergence, objective)]
        for objective in GENERATOR_OBJECTIVES
    }
    return {objective: those for objective, those in trained.items() if those}


def draw_effective(chosen: Sequence[Divergence]) -> Figure:
    """What every generator objective follows, f_eff against u, a panel a divergence; shaded where all are convex."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(chosen) / 4)
    columns = math.ceil(len(chosen) / rows)
    figure = Figure(figsize=(max(2.9 * columns, 6), 1.2 + 2.5 * rows), dpi=120, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for divergence, axes in zip(chosen, grid.flat, strict=False):
        _draw_effective(axes, divergence)
    for axes in grid.flat[len(chosen) - columns : len(chosen)]:
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(chosen) :]:
        axes.remove()
    named = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes)
    handles = {name: handle for pairs in named for handle, name in pairs}
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper left", ncols=len(handles), labelcolor=plotting.INK
    )
    figure.supxlabel("u = p/q", fontsize=10)
    figure.supylabel("f$_{eff}$(u) = −u ∫ loss/u² du", fontsize=10)
    return figure


def _draw_effective(axes: Axes, divergence: Divergence) -> None:
    import torch

    u = torch.linspace(SMALLEST_RATIO, 4, POINTS, dtype=torch.float64)
    convex_to = math.inf
    for objective, colour, dashes in zip(GENERATOR_OBJECTIVES, COLOURS, DASHES, strict=False):
        if properties.refusal(divergence, objective):
            continue
        values = properties.effective(divergence, objective, u.log())
        axes.plot(u, values, color=colour, linestyle=dashes, label=objective)
        convex_to = min(convex_to, properties.pulls_to(divergence, objective))
    axes.axvspan(0, min(4, math.exp(min(convex_to, 2))), color="#e8eef4", zorder=0, label="all of them convex")
    axes.plot(1, 0, "o", color=plotting.INK, markersize=3)
    axes.set(title=divergence.name, xlim=(0, 4), ylim=(-2, 3))


# ---------------------------------------------------------------------------------------------------------------------
# Lines and their names


def _panels(rows: int) -> tuple[Figure, list[Axes]]:
    return plotting.new_figure(rows, width=8.5, height=0.6 + 4 * rows)


def _bend(axes: Axes, unit: float) -> None:
    """Make the vertical axis linear near 0 and logarithmic beyond ± `unit`, without a kink between."""
    axes.set_yscale("asinh", linear_width=unit / 2)
    powers = [unit * 10**k for k in range(12)]
    axes.set_yticks([*(-power for power in reversed(powers)), 0, *powers])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.9g}".replace("-", "−"))


def _log_ratios() -> Tensor:
    import torch

    return torch.linspace(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO, POINTS, dtype=torch.float64)


def _draw_lines(axes: Axes, x: Tensor, curves: Curves, chosen: Sequence[Divergence] = ()) -> None:
    """A line a name, as the same divergence has it in every panel, with the name at its right end."""
    order = [divergence.name for divergence in chosen] or list(curves)
    looks = {name: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i, name in enumerate(order)}
    for name, y in curves.items():
        axes.plot(x, y, color=looks[name][0], linestyle=looks[name][1])
    axes.set(xlim=(round(float(x[0])), float(x[-1])), ylim=axes.get_ylim())
    for name, at, label_at in _places(axes, {name: float(y[-1]) for name, y in curves.items()}):
        colour, dashes = looks[name]
        corners = ([1, 1.02, 1.05, 1.09], [at, at, label_at, label_at])
        axes.plot(*corners, transform=axes.transAxes, clip_on=False, color=colour, linestyle=dashes, linewidth=1.2)
        axes.text(1.1, label_at, name, transform=axes.transAxes, va="center", fontsize=9, color=plotting.INK)


def _places(axes: Axes, ends: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """For each line its name, its end and its name's place, in heights of the axes.

    The places nearest to the ends, in squares, that keep the names a gap apart are an isotonic regression.
    """
    import numpy as np
    from scipy.optimize import isotonic_regression

    transform = axes.transScale + axes.transLimits
    at = {name: min(max(float(transform.transform((0, end))[1]), 0.0), 1.0) for name, end in ends.items()}
    names = sorted(at, key=lambda name: at[name])
    gaps = LABEL_HEIGHT * np.arange(len(names))
    places = isotonic_regression(np.array([at[name] for name in names]) - gaps).x.clip(0, max(1 - gaps[-1], 0)) + gaps
    return [(name, at[name], float(place)) for name, place in zip(names, places, strict=True)]


FIGURES: dict[str, Callable[[Sequence[Divergence]], Figure]] = {
    "f": draw_f,
    "real_fake": draw_real_fake,
    "generator_losses": draw_losses,
    "pull": draw_pulls,
    "effective": draw_effective,
}
