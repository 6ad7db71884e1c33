"""Pictures of what divergences make of a model: the Gaussians that fit a mixture best under each."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import plotting
from gantrain.theory.quadrature import Mixture, gaussian

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

SAME = 1e-6  # difference of means and widths, in standard deviations of the data, of curves drawn as one
POINTS = 1001
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
LONGEST_NAME = 24  # letters
# The legend's lines and their gap are as wide as six letters, which are 0.602 of the font's size.
HANDLE_LETTERS = 6
LEGEND: dict[str, Any] = {
    "prop": {"family": "monospace", "size": 8},
    "alignment": "left",
    "handlelength": 0.602 * HANDLE_LETTERS - 0.8,
    "handletextpad": 0.8,
}


class Curve(NamedTuple):
    """A Gaussian with the names of the divergences that chose it; a spike at its mean where it has collapsed."""

    label: str
    mean: float
    std: float
    collapsed: bool = False


def save_fits(p: Mixture, curves: Sequence[Curve], path: Path, title: str = "") -> None:
    """Draw a density in grey, and one curve for every different Gaussian, from the widest to the narrowest.

    Args:
        p: The data.
        curves: The Gaussians; equal ones become one curve with all their names.
        path: The PNG to write.
        title: A line above.
    """
    ordered = sorted(_merged(p, curves), key=lambda curve: (curve.collapsed, -curve.std))
    data = Curve("data", p.mean, p.std)
    labels = _labels([data, *ordered], decimals(p))
    with plotting.style():
        figure, (axes,) = plotting.new_figure(1, width=9, height=4.2)
        x = _view(p, ordered)
        axes.fill_between(x, _density(p, x), color="#dddddd", linewidth=0, label=labels[0])
        for curve, label, look in zip(ordered, labels[1:], _looks(ordered), strict=True):
            _draw(axes, x, curve, label=label, **look)
        axes.set(xlim=(x[0], x[-1]), xlabel="x", ylabel="density")
        axes.set_ylim(bottom=0)
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1, 1), labelcolor=plotting.INK, **LEGEND)
        legend.set_title(f"{'μ':>{HANDLE_LETTERS + len(labels[0]) - 8}}{'σ':>8}", prop=LEGEND["prop"])
        legend.get_title().set_color(plotting.INK)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=plotting.INK, parse_math=False)
        plotting.save_figure(figure, path)


def decimals(p: Mixture) -> int:
    """How many decimals show four digits or more of the data's scale."""
    return max(0, 4 - math.floor(math.log10(p.std)))


def _looks(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Colours from dark to light over the Gaussians, with dashes that tell neighbours apart; grey for spikes."""
    import matplotlib

    shades, count = matplotlib.colormaps["plasma"], sum(not curve.collapsed for curve in curves)
    return [
        {"color": plotting.GREY, "linewidth": 1.0, "linestyle": DASHES[1]}
        if curve.collapsed
        else {"color": shades(0.88 * index / max(count - 1, 1)), "linewidth": 1.7, "linestyle": DASHES[index % 4]}
        for index, curve in enumerate(curves)
    ]


def _merged(p: Mixture, curves: Sequence[Curve]) -> list[Curve]:
    """The curves, equal ones as one."""
    merged: list[Curve] = []
    for curve in curves:
        for index, other in enumerate(merged):
            if max(abs(curve.mean - other.mean), abs(curve.std - other.std)) < SAME * p.std:
                merged[index] = other._replace(label=f"{other.label}, {curve.label}")
                break
        else:
            merged.append(curve)
    return merged


def _view(p: Mixture, curves: Sequence[Curve]) -> NDArray[np.float64]:
    """The points at which densities are drawn: `[POINTS]`."""
    import numpy as np

    shown = [*zip(p.means, p.stds, strict=True), *((curve.mean, curve.std) for curve in curves)]
    return np.linspace(min(m - 3 * s for m, s in shown), max(m + 3 * s for m, s in shown), POINTS)


def _draw(axes: Axes, x: NDArray[np.float64], curve: Curve, **look: Any) -> None:
    if curve.collapsed:
        axes.axvline(curve.mean, **look)
    else:
        axes.plot(x, _density(gaussian(curve.mean, curve.std), x), **look)


def _labels(curves: Sequence[Curve], places: int) -> list[str]:
    """Names, μ and σ: the legend is a table in a font of one width, with long lists of names on several lines."""
    names = [textwrap.wrap(curve.label, LONGEST_NAME) for curve in curves]
    width = max(len(line) for lines in names for line in lines)
    means = [f"{curve.mean:z.{places}f}".replace("-", "−") for curve in curves]
    stds = ["→ 0" if curve.collapsed else f"{curve.std:z.{places}f}" for curve in curves]
    return [
        "\n".join([f"{first:{width}}{mean:>9}{std:>8}", *rest])
        for (first, *rest), mean, std in zip(names, means, stds, strict=True)
    ]


def _density(p: Mixture, x: NDArray[np.float64]) -> NDArray[np.float64]:
    import torch

    return p.log_density(torch.from_numpy(x)).exp().numpy()
