"""The figure of a verification: the log-ratio that discriminators learnt, against the true one.

One column a case. Above, r along the first axis, with the densities below it; underneath, r on held-out draws, where
the diagonal is the truth. The same results give the same file, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import plotting
from gantrain.objectives.objective import raw_output
from gantrain.theory import verification
from gantrain.theory.verification import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor, nn

POINTS = 1500  # draws of each density
LINE = 801  # points along the axis
# The view holds this share of the draws; the rarest would fill it with what hardly any draw meets.
SHARE_IN_VIEW = 0.998
DENSITY_HEIGHT = 0.3  # of the panel


def save(results: Sequence[Result], seed: int, path: Path) -> None:
    """Draw the results side by side, with the draws that belong to `seed`, the first one's. Raises OSError."""
    from matplotlib.figure import Figure

    with plotting.style():
        figure = Figure(figsize=(0.6 + 4 * len(results), 7.2), dpi=150, layout="constrained")
        rows = figure.subplots(2, len(results), squeeze=False)
        for (above, below), result in zip(rows.T, results, strict=True):
            p, q = (side.held_out(POINTS) for side in verification.drawn(result.case, seed))
            draw_along_axis(above, result, p, q)
            draw_against_truth(below, result, p, q)
            for axes in (above, below):
                axes.grid(visible=True)
        legends = [panel.get_legend_handles_labels() for panel in rows[:, 0]]
        named = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
        look: dict[str, Any] = {"ncols": 3, "markerscale": 3, "labelcolor": plotting.INK}
        figure.legend(list(named.values()), list(named), loc="outside lower center", **look)
        rows[0, 0].set_ylabel("log-ratio r, nats")
        rows[1, 0].set_ylabel("learnt r, nats")
        plotting.save_figure(figure, path)


def draw_along_axis(axes: Axes, result: Result, p: Tensor, q: Tensor) -> None:
    """Learnt and true r where all coordinates but the first are 0, over the densities there, each to its own scale."""
    import torch

    low, high = view(torch.cat([p[:, 0], q[:, 0]]))
    x = torch.zeros(LINE, p.shape[1])
    x[:, 0] = torch.linspace(low, high, LINE)
    at = x[:, 0].numpy()
    for side, mixture, colour in (("p", result.case.p, plotting.BLUE), ("q", result.case.q, plotting.ORANGE)):
        density = verification.log_density(mixture, x).exp()
        height = (DENSITY_HEIGHT * density / density.max()).numpy()
        look: dict[str, Any] = {"color": colour, "alpha": 0.25, "linewidth": 0, "label": f"density {side}"}
        axes.fill_between(at, height, transform=axes.get_xaxis_transform(), **look)
    axes.plot(at, verification.log_ratio(result.case, x).numpy(), color=plotting.INK, linewidth=3, alpha=0.35)
    for discriminator in result.discriminators:
        axes.plot(at, learnt(result, discriminator, x), color=plotting.PURPLE, linewidth=0.9)
    axes.lines[0].set_label("true r")
    axes.lines[1].set_label(f"learnt r, {seeds(result)}")
    axes.set(xlim=(low, high), xlabel="x" if p.shape[1] == 1 else "x₁, at x₂ = 0")
    axes.set_title(result.case.title.replace(", q", "\nq").replace("; q", "\nq"), color=plotting.INK)


def draw_against_truth(axes: Axes, result: Result, p: Tensor, q: Tensor) -> None:
    """Learnt against true r on draws of both densities, by every discriminator."""
    import torch

    true_p, true_q = verification.log_ratio(result.case, p), verification.log_ratio(result.case, q)
    low, high = view(torch.cat([true_p, true_q]))
    axes.axline((0, 0), slope=1, color=plotting.INK, linewidth=0.8)
    for draws, true, colour, label in ((q, true_q, plotting.ORANGE, "q"), (p, true_p, plotting.BLUE, "p")):
        for index, discriminator in enumerate(result.discriminators):
            look: dict[str, Any] = {"s": 4, "color": colour, "alpha": 0.5, "linewidths": 0, "rasterized": True}
            name = "" if index else f"{len(draws):,} draws of {label}"
            axes.scatter(true.numpy(), learnt(result, discriminator, draws), label=name, **look)
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="true r, nats", aspect="equal")


def learnt(result: Result, discriminator: nn.Module, x: Tensor) -> Any:
    """The learnt r at `x`, as an array."""
    import torch

    with torch.no_grad():
        return verification.learnt(result.objective, raw_output(discriminator, x)).numpy()


def view(values: Tensor) -> tuple[float, float]:
    """The central range that holds SHARE_IN_VIEW of the values, with a margin."""
    tail = (1 - SHARE_IN_VIEW) / 2
    low, high = values.double().quantile(values.new_tensor([tail, 1 - tail]).double()).tolist()
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def seeds(result: Result) -> str:
    """How many discriminators a panel shows."""
    count = len(result.discriminators)
    return f"{count} seed{'s' if count > 1 else ''}"
