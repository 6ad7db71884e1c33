"""The figure of a verification: the log-ratio that discriminators learned, against the true one.

One column a case. Above, r along the first axis, with the densities below it; underneath, r on held-out draws, where
the diagonal is the truth. The same results give the same file, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import plotting
from gantrain.theory.cases import true_log_ratio
from gantrain.theory.verification import Result, draw_from, learned_log_ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor, nn

POINTS = 1500  # draws of each density
LINE = 801  # points along the axis
SHARE_IN_VIEW = 0.998  # of the draws; the rarest would take up most of the figure
DENSITY_HEIGHT = 0.3  # of the panel


def save_log_ratios(results: Sequence[Result], seed: int, path: Path) -> None:
    """Draw the results side by side, with the held-out draws of `seed`. Raises OSError."""
    from matplotlib.figure import Figure

    with plotting.use_style():
        figure = Figure(figsize=(0.6 + 4 * len(results), 7.2), dpi=150, layout="constrained")
        rows = figure.subplots(2, len(results), squeeze=False)
        for (above, below), result in zip(rows.T, results, strict=True):
            p, q = (side.held_out(POINTS) for side in draw_from(result.case, seed))
            _draw_along_axis(above, result, p, q)
            _draw_against_truth(below, result, p, q)
        legends = [panel.get_legend_handles_labels() for panel in rows[:, 0]]
        handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
        look: dict[str, Any] = {"ncols": 3, "markerscale": 3}
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", **look)
        rows[0, 0].set_ylabel("log-ratio r, nats")
        rows[1, 0].set_ylabel("learned r, nats")
        plotting.save_figure(figure, path)


def _draw_along_axis(axes: Axes, result: Result, p: Tensor, q: Tensor) -> None:
    """Draw r where all coordinates but the first are 0, over the densities there, each to its own scale."""
    import torch

    low, high = _view(torch.cat([p[:, 0], q[:, 0]]))
    x = torch.zeros(LINE, p.shape[1])
    x[:, 0] = torch.linspace(low, high, LINE)
    at = x[:, 0].numpy()
    for side, mixture, colour in (("p", result.case.p, plotting.BLUE), ("q", result.case.q, plotting.ORANGE)):
        density = mixture.log_density(x.double()).exp()
        height = (DENSITY_HEIGHT * density / density.max()).numpy()
        look: dict[str, Any] = {"color": colour, "alpha": 0.25, "linewidth": 0, "label": f"density {side}"}
        axes.fill_between(at, height, transform=axes.get_xaxis_transform(), **look)
    axes.plot(at, true_log_ratio(result.case, x).numpy(), color=plotting.INK, linewidth=3, alpha=0.35, label="true r")
    count = len(result.discriminators)
    name = f"learned r, {count} seed{'s' if count > 1 else ''}"
    for discriminator in result.discriminators:
        axes.plot(at, _learned(result, discriminator, x), color=plotting.PURPLE, linewidth=0.9, label=name)
    axes.set(xlim=(low, high), xlabel="x" if p.shape[1] == 1 else "x₁, at x₂ = 0")
    axes.set_title(result.case.title.replace(", q", "\nq").replace("; q", "\nq"))


def _draw_against_truth(axes: Axes, result: Result, p: Tensor, q: Tensor) -> None:
    """Draw learned against true r on draws of both densities, by every discriminator."""
    import torch

    true_p, true_q = true_log_ratio(result.case, p), true_log_ratio(result.case, q)
    low, high = _view(torch.cat([true_p, true_q]))
    axes.axline((0, 0), slope=1, color=plotting.INK, linewidth=0.8)
    look: dict[str, Any] = {"s": 4, "alpha": 0.5, "linewidths": 0, "rasterized": True}
    for draws, true, colour, side in ((q, true_q, plotting.ORANGE, "q"), (p, true_p, plotting.BLUE, "p")):
        for discriminator in result.discriminators:
            learned = _learned(result, discriminator, draws)
            axes.scatter(true.numpy(), learned, color=colour, label=f"{len(draws):,} draws of {side}", **look)
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="true r, nats", aspect="equal")


def _learned(result: Result, discriminator: nn.Module, x: Tensor) -> Any:
    """Return the learned r at `x`, as an array."""
    import torch

    with torch.no_grad():
        return learned_log_ratio(result.objective, discriminator(x)).numpy()


def _view(values: Tensor) -> tuple[float, float]:
    """Return the central range that holds SHARE_IN_VIEW of the values, with a margin."""
    tail = (1 - SHARE_IN_VIEW) / 2
    low, high = values.double().quantile(values.new_tensor([tail, 1 - tail]).double()).tolist()
    return low - 0.05 * (high - low), high + 0.05 * (high - low)
