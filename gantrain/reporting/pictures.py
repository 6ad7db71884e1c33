"""Pictures of a run: scatter plots of densities, loss and divergence curves.

They are drawn from plain tensors or from the rows of metrics.jsonl, and are the same, byte for byte, for the same
input. Grids of images are in `gantrain.plotting`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import plotting
from gantrain.plotting import BLUE, GREEN, GREY, INK, MAX_POINTS, ORANGE, PURPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    LogDensity = Callable[[Tensor], Tensor]  # points [M, d] → [M]
    Limits = tuple[float, float]

Reports = Sequence[Mapping[str, float | None]]

LINEAR_LOSSES = 20  # losses beyond are drawn on a logarithmic axis


def save_scatter(
    samples: Tensor,
    path: Path,
    *,
    real: Tensor | None = None,
    log_density: LogDensity | None = None,
    name: str = "samples",
) -> None:
    """Draw samples of a density over the real ones: `[N, 1]` as a histogram, `[N, d]` as points, by two coordinates.

    The view, the same for both axes, holds the real points, or else the samples.

    Args:
        samples: Generated points.
        path: The PNG to write.
        real: Real points of the same dimension.
        log_density: The true log density, `[M, d]` → `[M]`, drawn as a curve or as shades.
        name: Name of the samples in the legend.

    Raises:
        DivergedError: A sample is not finite.
        ValueError: The samples are not `[N, d]`.
    """
    if samples.ndim != 2 or samples.shape[1] == 0 or len(samples) == 0:
        raise ValueError(f"points are drawn from [N, d]; got {list(samples.shape)}")
    plotting.check_finite(samples, "samples")
    samples = samples[:, :2].detach().float().cpu()
    real = None if real is None else real[:, :2].detach().float().cpu()
    low, high = _find_view(samples if real is None else real)
    outside = int(((samples < low) | (samples > high)).any(1).sum())
    label = f"{name}, {len(samples):,}" + (f" ({outside:,} out of view)" if outside else "")
    draw, width, height = (_draw_histogram, 7, 4.2) if samples.shape[1] == 1 else (_draw_points, 6, 6.4)
    with plotting.use_style():
        figure, (axes,) = plotting.make_figure(1, width, height)
        draw(axes, samples, label, real, (low, high), log_density)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, markerscale=3)
        plotting.save_figure(figure, path)


def save_curves(reports: Reports, path: Path, highlight: Sequence[str] = ()) -> None:
    """Draw the losses, the bounds and the log-ratio of a run against images shown to D.

    Args:
        reports: Rows of metrics.jsonl, at least one; a missing or null value is a gap.
        path: The PNG to write.
        highlight: The trained divergences, whose bounds are drawn in colour; the others are thin and grey.
    """
    panels: list[Callable[[Axes, Reports], None]] = [_draw_losses]
    if _find_names(reports, "bound/") or _find_names(reports, "training_bound/"):
        panels.append(partial(_draw_bounds, highlight=highlight))
    if _find_names(reports, "ratio/"):
        panels.append(_draw_log_ratio)
    averaged = f"; bold: averaged to {MAX_POINTS} reports" if len(reports) > MAX_POINTS else ""
    with plotting.use_style():
        figure, all_axes = plotting.make_figure(len(panels), 8.5, 0.4 + 2.6 * len(panels), sharex=True)
        for draw, axes in zip(panels, all_axes, strict=True):
            draw(axes, reports)
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), labelcolor="linecolor")
        plotting.label_clock(all_axes[-1], max(report["images"] or 0 for report in reports), averaged)
        plotting.save_figure(figure, path)


def _draw_losses(axes: Axes, reports: Reports) -> None:
    axes.set_title("losses")
    _draw_curve(axes, reports, "loss/discriminator", BLUE, label="discriminator")
    _draw_curve(axes, reports, "loss/generator", ORANGE, label="generator")
    if max(map(abs, axes.get_ylim())) > LINEAR_LOSSES:
        axes.set_yscale("symlog", linthresh=1)


def _draw_bounds(axes: Axes, reports: Reports, highlight: Sequence[str]) -> None:
    """Draw every bound, the trained ones in colour, on an axis that is linear within ±0.1 and logarithmic beyond.

    A band of two standard errors lies around the trained ones, with a gap where the variance is infinite.
    """
    group = "bound/" if _find_names(reports, "bound/") else "training_bound/"
    axes.set_title(f"lower bounds on divergences, {'held-out' if group == 'bound/' else 'training'} data")
    names = _find_names(reports, group)
    trained = [name for name in dict.fromkeys(highlight) if name in names]
    others = [name for name in names if name not in trained]
    for name, colour in zip(trained, (BLUE, ORANGE, GREEN, PURPLE), strict=False):
        _draw_curve(axes, reports, group + name, colour, label=name, zorder=3)
        _draw_band(axes, reports, group + name, colour)
    for index, name in enumerate(others):
        _draw_curve(axes, reports, group + name, GREY, label="" if index else f"{len(others)} others", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.1)
    low, high = axes.get_ylim()
    # Bounds that are not trained may diverge by many powers of ten; they do not set the scale.
    values = [value for name in trained for report in reports if (value := report.get(group + name)) is not None]
    low, high = max(low, 10 * min([*values, -0.1])), min(high, 10 * max([*values, 1.0]))
    axes.set_ylim(min(low, -0.1), max(high, 1))
    plotting.format_axis(axes.yaxis)
    _mark_zero(axes)


def _draw_log_ratio(axes: Axes, reports: Reports) -> None:
    axes.set_title("log-ratio r in nats; log E$_p$[e$^{-r}$] and log E$_q$[e$^r$] are 0 for the exact one")
    _draw_curve(axes, reports, "ratio/real_mean", BLUE, label="mean of r, real")
    _draw_curve(axes, reports, "ratio/fake_mean", ORANGE, label="mean of r, fake")
    _draw_curve(axes, reports, "ratio/calibration_p", GREEN, label=r"log E$_p$[e$^{-r}$], real", log=True)
    _draw_curve(axes, reports, "ratio/calibration_q", PURPLE, label=r"log E$_q$[e$^r$], fake", log=True)
    _mark_zero(axes)


def _draw_curve(axes: Axes, reports: Reports, name: str, colour: str, log: bool = False, **line: Any) -> None:
    """Draw one scalar, or its logarithm, against the clock, with gaps where it is missing."""
    import numpy as np

    curve = np.array([(report["images"], report.get(name)) for report in reports], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        curve[:, 1] = np.log(curve[:, 1]) if log else curve[:, 1]
    curve[~np.isfinite(curve)] = np.nan
    if len(reports) > MAX_POINTS and colour != GREY:
        axes.plot(*curve.T, color=colour, linewidth=0.6, alpha=0.25)
    marker = "o" if len(reports) < 20 else ""
    axes.plot(*plotting.average_rows(curve).T, color=colour, marker=marker, markersize=3, **line)


def _draw_band(axes: Axes, reports: Reports, name: str, colour: str) -> None:
    import numpy as np

    rows = [(report["images"], report.get(name), report.get(f"{name}_error")) for report in reports]
    clock, mean, error = plotting.average_rows(np.array(rows, dtype=float)).T
    axes.fill_between(clock, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.15, linewidth=0)


def _find_names(reports: Reports, group: str) -> list[str]:
    """Return the names after `group` in the reports, without errors, in the order of their first occurrence."""
    names = (name[len(group) :] for report in reports for name in report if name.startswith(group))
    return [name for name in dict.fromkeys(names) if not name.endswith("_error")]


def _mark_zero(axes: Axes) -> None:
    axes.axhline(0, color="#888888", linewidth=0.8, zorder=1)


def _draw_histogram(
    axes: Axes, samples: Tensor, label: str, real: Tensor | None, limits: Limits, log_density: LogDensity | None
) -> None:
    import torch

    edges = torch.linspace(*limits, 81).tolist()

    # Weights rather than density=True, which would count only what lies in view.
    def draw(points: Tensor, **look: Any) -> None:
        weight = 1 / (len(points) * (edges[1] - edges[0]))
        axes.hist(points[:, 0].numpy(), edges, weights=[weight] * len(points), **look)

    draw(samples, color=ORANGE, alpha=0.65, label=label)
    if real is not None:
        draw(real, histtype="step", color=INK, label=f"real, {len(real):,}")
    if log_density is not None:
        x = torch.linspace(*limits, 500)
        axes.plot(x.numpy(), log_density(x[:, None]).exp().numpy(), color=BLUE, label="true density")
    axes.set(xlim=limits, ylabel="density")


def _draw_points(
    axes: Axes, samples: Tensor, label: str, real: Tensor | None, limits: Limits, log_density: LogDensity | None
) -> None:
    import torch
    from matplotlib.colors import LinearSegmentedColormap

    if log_density is not None:  # by its square root, so that faint modes are visible beside strong ones
        ticks = torch.linspace(*limits, 400)
        root = (log_density(torch.cartesian_prod(ticks, ticks)) / 2).exp().reshape(400, 400)
        shades = LinearSegmentedColormap.from_list("shades", ["white", BLUE])
        axes.imshow(root.T.numpy(), origin="lower", extent=(*limits, *limits), cmap=shades)
    if real is not None:
        x, y = real.numpy().T
        axes.scatter(x, y, s=5, color="#8c8c8c", linewidths=0, label=f"real, {len(real):,}")
    x, y = samples.numpy().T
    axes.scatter(x, y, s=5, color=ORANGE, linewidths=0, alpha=0.7, label=label)
    axes.grid(visible=False)
    axes.set(xlim=limits, ylim=limits, aspect="equal")


def _find_view(points: Tensor) -> Limits:
    """Return one range for all axes that holds every point, with a margin."""
    low, high = points.min().item(), points.max().item()
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin
