"""Figures of divergences (f, its formulas, generator losses, effective divergences) and of Gaussian fits.

The lines have the colours of Okabe and Ito's colour-blind-safe palette, and dash patterns. The same arguments give the
same files, byte for byte.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import plotting
from gantrain.console import format_number
from gantrain.data.mixtures import Mixture, gaussian
from gantrain.objectives.divergence import Divergence
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.plotting import DASHES, GREY, INK, PALETTE
from gantrain.theory import properties

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

POINTS = 801
SMALLEST_RATIO, LARGEST_RATIO = 1e-3, 3.0
LARGEST_LOG_RATIO = 4.0
LEGEND_LETTERS = 40  # in a line of a fit's legend
SAME_FIT = 1e-6  # difference of means and widths, in standard deviations of the data, of Gaussians drawn as one


def save_divergence_figures(chosen: Sequence[Divergence], folder: Path) -> list[str]:
    """Write every figure of the chosen divergences into `folder`, as NAME.png and NAME.svg; return the names.

    Raises OSError.
    """
    with plotting.use_style():
        for name, draw in FIGURES.items():
            figure = draw(chosen)
            for kind in ("png", "svg"):
                plotting.save_figure(figure, folder / f"{name}.{kind}")
    return list(FIGURES)


# ---------------------------------------------------------------------------------------------------------------------
# The figures


def draw_f(chosen: Sequence[Divergence]) -> Figure:
    """Draw f against u."""
    import torch

    u = torch.linspace(SMALLEST_RATIO, LARGEST_RATIO, POINTS, dtype=torch.float64)
    curves = {divergence.name: divergence.f(u.log()) for divergence in chosen}
    low, last = min(float(curve.min()) for curve in curves.values()), max(float(curve[-1]) for curve in curves.values())
    figure, (axes,) = _panels(1)
    axes.set(title="f(u)", xlabel="u = p/q", ylim=(low - 0.15, min(max(last, 1), 6) + 0.15))
    _draw_lines(axes, u, curves, chosen)
    return figure


def draw_real_fake(chosen: Sequence[Divergence]) -> Figure:
    """Draw `real` and `fake`, which D averages over data and over samples, against r."""
    r = _log_ratios()
    figure, (above, below) = _panels(2)
    for axes, part in ((above, "real"), (below, "fake")):
        _set_symmetric_log(axes, 1)
        _draw_lines(axes, r, {divergence.name: getattr(divergence, part)(r) for divergence in chosen}, chosen)
    above.set_title("real(r) = f'(e$^r$), averaged over data")
    below.set(title="fake(r) = f*(f'(e$^r$)), averaged over samples", xlabel="log-ratio r = log p/q")
    return figure


def draw_losses(chosen: Sequence[Divergence]) -> Figure:
    """Draw the loss per sample of every generator objective, against the output of D = gan on the sample."""
    import torch

    d = torch.linspace(0.01, 0.99, POINTS, dtype=torch.float64)
    curves = partial(properties.generator_loss, r=d.logit())
    return _draw_objectives(chosen, d, curves, unit=1, title="loss of one sample", xlabel="D(G(z)) = σ(r)")


def draw_pulls(chosen: Sequence[Divergence]) -> Figure:
    """Draw the weight of one sample in the gradient of every generator objective, −d loss/dr, against r."""
    r = _log_ratios()
    curves = partial(properties.sample_weight, r=r)
    title = "pull on one sample, −d loss/dr; negative: away from the data"
    return _draw_objectives(chosen, r, curves, unit=0.1, title=title, xlabel="log-ratio r = log p/q")


def _draw_objectives(
    chosen: Sequence[Divergence],
    x: Tensor,
    curve: Callable[[Divergence, str], Tensor],
    *,
    unit: float,
    title: str,
    xlabel: str,
) -> Figure:
    """Draw a panel for each objective, with the curves of those divergences that it can train."""
    panels = {}
    for objective in GENERATOR_OBJECTIVES:
        trained = [each for each in chosen if not properties.training_error(each, objective)]
        if trained:
            panels[objective] = {each.name: curve(each, objective) for each in trained}
    figure, all_axes = _panels(len(panels))
    for axes, (objective, curves) in zip(all_axes, panels.items(), strict=True):
        axes.set_title(f"gen_objective={objective}: {title}")
        _set_symmetric_log(axes, unit)
        _draw_lines(axes, x, curves, chosen)
    all_axes[-1].set_xlabel(xlabel)
    return figure


def draw_effective(chosen: Sequence[Divergence]) -> Figure:
    """Draw f_eff of every generator objective against u, a panel a divergence; shaded where all are convex."""
    rows = math.ceil(len(chosen) / 4)
    columns = math.ceil(len(chosen) / rows)
    width, height = max(2.9 * columns, 6), 1.2 + 2.5 * rows
    figure, all_axes = plotting.make_figure(rows, width, height, columns=columns, sharex=True, sharey=True)
    handles: dict[str, Any] = {}
    for divergence, axes in zip(chosen, all_axes, strict=False):
        _draw_effective(axes, divergence)
        axes.tick_params(labelbottom=True)
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    for axes in all_axes[len(chosen) :]:
        axes.remove()
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=len(handles))
    figure.supxlabel("u = p/q", fontsize=10)
    figure.supylabel("f$_{eff}$(u) = −u ∫ loss/u² du", fontsize=10)
    return figure


def _draw_effective(axes: Axes, divergence: Divergence) -> None:
    import torch

    u = torch.linspace(SMALLEST_RATIO, 4, POINTS, dtype=torch.float64)
    convex_to = math.inf
    for objective, colour, dashes in zip(GENERATOR_OBJECTIVES, PALETTE, DASHES, strict=False):
        if properties.training_error(divergence, objective):
            continue
        values = properties.effective_f(divergence, objective, u.log())
        axes.plot(u, values, color=colour, linestyle=dashes, label=objective)
        convex_to = min(convex_to, properties.fixed_point(divergence, objective))
    axes.axvspan(0, min(4, math.exp(min(convex_to, 2))), color="#e8eef4", zorder=0, label="all of them convex")
    axes.plot(1, 0, "o", color=INK, markersize=3)
    axes.set(title=divergence.name, xlim=(0, 4), ylim=(-2, 3))


# ---------------------------------------------------------------------------------------------------------------------
# Panels and lines


def _panels(rows: int) -> tuple[Figure, list[Axes]]:
    return plotting.make_figure(rows, width=8.5, height=0.6 + 4 * rows, sharex=True)


def _set_symmetric_log(axes: Axes, unit: float) -> None:
    """Make the vertical axis linear near 0 and logarithmic beyond ± `unit`, with a smooth transition."""
    axes.set_yscale("asinh", linear_width=unit / 2)
    powers = [unit * 10**k for k in range(12)]
    axes.set_yticks([*(-power for power in reversed(powers)), 0, *powers])
    plotting.format_axis(axes.yaxis, ",.9g")


def _log_ratios() -> Tensor:
    import torch

    return torch.linspace(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO, POINTS, dtype=torch.float64)


def _draw_lines(axes: Axes, x: Tensor, curves: Mapping[str, Tensor], chosen: Sequence[Divergence]) -> None:
    """Draw a line a name, with one look in all panels, and a legend in the order in which the lines end."""
    order = [divergence.name for divergence in chosen]
    handles = {}
    for name, y in curves.items():
        (handles[name],) = axes.plot(x, y, label=name, **_line_style(order.index(name)))
    axes.set(xlim=(round(float(x[0])), float(x[-1])), ylim=axes.get_ylim())
    names = sorted(curves, key=lambda name: float(curves[name][-1]), reverse=True)
    axes.legend(handles=[handles[name] for name in names], loc="upper left", bbox_to_anchor=(1, 1), handlelength=3.5)


def _line_style(index: int) -> dict[str, Any]:
    dashes, colour = divmod(index, len(PALETTE))
    return {"color": PALETTE[colour], "linestyle": DASHES[dashes % len(DASHES)]}


FIGURES: dict[str, Callable[[Sequence[Divergence]], Figure]] = {
    "f": draw_f,
    "real_fake": draw_real_fake,
    "generator_losses": draw_losses,
    "pull": draw_pulls,
    "effective": draw_effective,
}

# ---------------------------------------------------------------------------------------------------------------------
# Gaussian fits


class Curve(NamedTuple):
    """A Gaussian and the names of the divergences that it fits; drawn as a vertical line if it has collapsed."""

    label: str
    mean: float
    std: float
    collapsed: bool = False


def save_fits(p: Mixture, curves: Sequence[Curve], path: Path, title: str = "") -> None:
    """Write a PNG of a density in grey and of one curve for every different Gaussian, widest first. Raises OSError."""
    import torch

    ordered = sorted(merge_curves(p, curves), key=lambda curve: (curve.collapsed, -curve.std))
    shown = [*zip(p.line_means, p.stds, strict=True), *((curve.mean, curve.std) for curve in ordered)]
    low, high = min(m - 3 * s for m, s in shown), max(m + 3 * s for m, s in shown)
    x = torch.linspace(low, high, POINTS, dtype=torch.float64)
    with plotting.use_style({"axes.grid.axis": "y"}):
        figure, (axes,) = plotting.make_figure(1, width=9, height=4.2)
        data = Curve("data", p.mean, p.std)
        axes.fill_between(x, p.log_density(x).exp(), color="#dddddd", linewidth=0, label=_fit_label(p, data))
        for index, curve in enumerate(ordered):
            label = _fit_label(p, curve)
            if curve.collapsed:
                axes.axvline(curve.mean, color=GREY, linewidth=1.0, linestyle=DASHES[1], label=label)
            else:
                axes.plot(x, gaussian(curve.mean, curve.std).log_density(x).exp(), label=label, **_line_style(index))
        axes.set(xlim=(low, high), xlabel="x", ylabel="density")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title="(μ, σ)", alignment="left")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
        plotting.save_figure(figure, path)


def merge_curves(p: Mixture, curves: Sequence[Curve]) -> list[Curve]:
    """Return the curves, with equal ones as one that has all their names."""
    merged: list[Curve] = []
    for curve in curves:
        for index, other in enumerate(merged):
            if max(abs(curve.mean - other.mean), abs(curve.std - other.std)) < SAME_FIT * p.std:
                merged[index] = other._replace(label=f"{other.label}, {curve.label}")
                break
        else:
            merged.append(curve)
    return merged


def _fit_label(p: Mixture, curve: Curve) -> str:
    places = f".{decimal_places(p)}f"
    std = "→ 0" if curve.collapsed else format_number(curve.std, places)
    return f"{textwrap.fill(curve.label, LEGEND_LETTERS)}  ({format_number(curve.mean, places)}, {std})"


def decimal_places(p: Mixture) -> int:
    """Return how many decimals show four digits or more of the data's scale."""
    return max(0, 4 - math.floor(math.log10(p.std)))
