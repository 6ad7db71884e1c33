"""The figure of a verification: the log-ratio that discriminators learned, against the true one.

Each case has a column. The upper panel shows r along the first axis, the lower one learned against true r on held-out
draws. The same results give the same file, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gantrain import plotting
from gantrain.theory.verification import Result, draw_from, learned_log_ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWS = 1500  # of each density
POINTS = 801  # along the axis
SHARE_IN_VIEW = 0.998  # of the draws; the rarest would take up most of the figure


def save_log_ratios(results: Sequence[Result], seed: int, path: Path) -> None:
    """Draw the results side by side, with the held-out draws of `seed`. Raises OSError."""
    from matplotlib.figure import Figure

    with plotting.use_style(), torch.no_grad():
        figure = Figure(figsize=(0.6 + 4 * len(results), 7.2), dpi=150, layout="constrained")
        rows = figure.subplots(2, len(results), squeeze=False)
        for (upper, lower), result in zip(rows.T, results, strict=True):
            p, q = (side.held_out(DRAWS) for side in draw_from(result.case, seed))
            _draw_along_axis(upper, result, p, q)
            _draw_against_truth(lower, result, p, q)
        rows[0, 0].set_ylabel("log-ratio r, nats")
        rows[1, 0].set_ylabel("learned r, nats")
        for panel in rows[:, 0]:
            handles, labels = panel.get_legend_handles_labels()
            unique = dict(zip(labels, handles, strict=True))
            panel.legend(list(unique.values()), list(unique), markerscale=3)
        plotting.save_figure(figure, path)


def _draw_along_axis(axes: Axes, result: Result, p: Tensor, q: Tensor) -> None:
    """Draw true and learned r along the first axis, where all other coordinates are 0."""
    low, high = _central_range(torch.cat([p[:, 0], q[:, 0]]))
    x = torch.zeros(POINTS, p.shape[1])
    x[:, 0] = torch.linspace(low, high, POINTS)
    axes.plot(x[:, 0], result.case.log_ratio(x), color=plotting.INK, linewidth=3, alpha=0.35, label="true r")
    name = f"learned r, seeds: {len(result.discriminators)}"
    for discriminator in result.discriminators:
        learned = learned_log_ratio(result.objective, discriminator(x))
        axes.plot(x[:, 0], learned, color=plotting.PURPLE, linewidth=0.9, label=name)
    axes.set(xlim=(low, high), xlabel="x" if p.shape[1] == 1 else "x₁, at x₂ = 0")
    axes.set_title(result.case.title.replace(", q", "\nq").replace("; q", "\nq"))


def _draw_against_truth(axes: Axes, result: Result, p: Tensor, q: Tensor) -> None:
    """Draw learned against true r on draws of both densities, for every discriminator."""
    limits = _central_range(result.case.log_ratio(torch.cat([p, q])))
    axes.axline((0, 0), slope=1, color=plotting.INK, linewidth=0.8)
    look: dict[str, Any] = {"s": 4, "alpha": 0.5, "linewidths": 0, "rasterized": True}
    for draws, colour, side in ((q, plotting.ORANGE, "q"), (p, plotting.BLUE, "p")):
        for discriminator in result.discriminators:
            learned = learned_log_ratio(result.objective, discriminator(draws))
            axes.scatter(result.case.log_ratio(draws), learned, color=colour, label=f"draws of {side}", **look)
    axes.set(xlim=limits, ylim=limits, xlabel="true r, nats", aspect="equal")


def _central_range(values: Tensor) -> tuple[float, float]:
    """Return the range that holds the central SHARE_IN_VIEW of the values, with a margin."""
    tail = (1 - SHARE_IN_VIEW) / 2
    low, high = values.double().quantile(values.new_tensor([tail, 1 - tail]).double()).tolist()
    margin = 0.05 * (high - low)
    return low - margin, high + margin
