"""Tables and a figure of runs whose end theory knows: a Gaussian generator at rest, and the path of the Dirac-GAN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gantrain.comparison.comparison import Comparison
from gantrain.comparison.configurations import Configuration, Estimate
from gantrain.comparison.panels import Panel, configuration_looks
from gantrain.comparison.runs import Run
from gantrain.comparison.untrusted import clean_text, finite_number, get_nested

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDPOINT_HEADS = ("μ, training", "σ, training", "exact flow (μ, σ)", "best Gaussian (μ, σ)", "distance", "as promised")
MARKERS = {"reached": ("o", 18.0), "theory": ("x", 40.0), "optimum": ("*", 70.0)}
TURNS, FIRST, LAST = ("turns",), ("distance", 0), ("distance", 1)  # keys of a summary's trajectory
TRAJECTORY_COLUMNS: dict[str, tuple[str | int, ...]] = {
    "turns": TURNS,
    "distance, first": FIRST,
    "distance, last": LAST,
    "turns, linear theory": ("theory", *TURNS),
    "distance, last, linear theory": ("theory", *LAST),
}


def read_gaussian(run: Run, source: str) -> tuple[float, float] | None:
    """Return (μ, σ) of the summary's endpoint: `reached`, `theory` or `optimum`; None if it is missing."""
    found = run.fact("endpoint", source)
    pair = [get_nested(found, "mean"), get_nested(found, "std")] if isinstance(found, dict) else found
    mean, std = map(finite_number, pair) if isinstance(pair, list) and len(pair) == 2 else (None, None)
    return None if mean is None or std is None else (mean, std)


def has_endpoints(comparison: Comparison) -> bool:
    """Whether a run has an endpoint."""
    return any(read_gaussian(run, "reached") for run in comparison.runs)


def endpoint_panels(comparison: Comparison) -> list[Panel]:
    """Each run's end, the exact flow's, and the best Gaussian, in the plane of means and standard deviations."""
    panel = Panel("● training  × exact flow  ☆ best Gaussian", _endpoint_drawer(comparison))
    return [panel] if has_endpoints(comparison) else []


def _endpoint_drawer(comparison: Comparison) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for configuration, look in configuration_looks(comparison):
            for source, (marker, size) in MARKERS.items():
                points = {at for run in configuration.drawn_runs if (at := read_gaussian(run, source))}
                face = "none" if marker == "*" else look.colour
                for x, y in sorted(points):
                    kind: dict[str, Any] = {"c": face} if marker == "x" else {"facecolors": face}
                    axes.scatter(x, y, s=size, marker=marker, edgecolors=look.colour if marker != "x" else None, **kind)
        axes.margins(0.12)
        axes.set(xlabel="μ", ylabel="σ")

    return draw


def endpoint_cells(configuration: Configuration) -> list[str]:
    """Cells of `ENDPOINT_HEADS`: (μ, σ) reached and in theory, their distance, and whether runs ended as promised."""
    ends = [at for run in configuration.finished if (at := read_gaussian(run, "reached"))]
    reached = [str(Estimate.from_values(values)) for values in zip(*ends, strict=True)] or ["—", "—"]
    flows = _distinct(map(_format_flow, configuration.runs))
    best = _distinct(_format_gaussian(read_gaussian(run, "optimum")) for run in configuration.runs)
    distance = estimate_fact(configuration, "endpoint", "distance")
    return [*reached, flows or "—", best or "—", distance, _format_verdict(configuration)]


def _format_flow(run: Run) -> str:
    """Where the exact flow ends, or how if it does not come to rest."""
    outcome = clean_text(run.fact("endpoint", "theory", "outcome"))
    at = _format_gaussian(read_gaussian(run, "theory"))
    return at if outcome in ("rests", "") else f"{outcome} {at}".strip()


def _format_gaussian(at: tuple[float, float] | None) -> str:
    return f"({at[0]:z.4f}, {at[1]:.4f})".replace("-", "−") if at else ""


def _format_verdict(configuration: Configuration) -> str:
    promises = {clean_text(run.fact("endpoint", "promise")) for run in configuration.finished} - {""}
    kept = [within for run in configuration.finished if isinstance(within := run.fact("endpoint", "within"), bool)]
    return f"{sum(kept)} of {len(kept)}" if kept else "nothing promised" if promises == {"nothing"} else "—"


def with_trajectory(comparison: Comparison) -> list[Configuration]:
    """Configurations of the Dirac-GAN, whose summaries have a trajectory."""
    return [c for c in comparison.configurations if any(run.fact("trajectory") for run in c.finished)]


def trajectory_cells(configuration: Configuration) -> list[str]:
    """Cells of `TRAJECTORY_COLUMNS`."""
    return [estimate_fact(configuration, "trajectory", *keys) for keys in TRAJECTORY_COLUMNS.values()]


def estimate_fact(configuration: Configuration, *keys: str | int) -> str:
    """Format the estimate over seeds of a number of the summaries; `—` if no finished run has it."""
    values = [value for run in configuration.finished if (value := finite_number(run.fact(*keys))) is not None]
    return str(Estimate.from_values(values)) if values else "—"


def _distinct(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, texts)))
