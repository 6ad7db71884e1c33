r"""The path of a Dirac-GAN, compared with linear theory.

    gantrain train -m experiment=dirac regularizer=none,r1 run_dir=SWEEP
    .venv/bin/python examples/dirac.py SWEEP

prints a line for every run in the folder, or for the folder itself if it is a run, and draws RUN/dirac.png.

The data are a point mass at 0, the generator is a point x = θ and the discriminator D(x) = ψx; the equilibrium is
(θ, ψ) = (0, 0) (Mescheder, Geiger, Nowozin 2018, "Which training methods for GANs do actually
converge?"). To first order around it, gradient descent of both players follows

    θ' = b ψ,    ψ' = −a θ − γ ψ,    with eigenvalues  λ = −γ/2 ± √(γ²/4 − a b).

a is the slope of D's loss in its output on a sample, f_D''(1); b that of G's, with the opposite sign: f_G''(1) under
`matched` and `alternative`, −f_G'(1) under `ratio`, 1 with normalised weights. γ comes from D's regularizer alone.
Without one, (0, 0) is a centre, which D and G circle with the period 2π/√(ab), or a saddle if b < 0.

Alternating steps, k of D with rate η_D and one of G with η_G, are one linear map (θ, ψ) → M (θ, ψ),

    M = [1, η_G b; 0, 1] · [1, 0; −η_D a, 1 − η_D γ]^k .

Without γ its determinant is 1: small orbits stay closed as long as k η_D η_G a b < 4. Simultaneous steps are the map
[1, η_G b; −η_D a, 1 − η_D γ], with determinant 1 + η_D η_G a b: every orbit grows.
"""

from __future__ import annotations

import cmath
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import gantrain
from gantrain import Weighting

Points = NDArray[np.float64]  # (θ, ψ) one after the other: [N, 2]
THETA, PSI = "parameters/generator/position", "parameters/discriminator/weight"  # as reported in metrics.jsonl
DECADES = 1.5  # of distance, from which on its axis is logarithmic


def main(arguments: list[str]) -> int:
    """Describe and draw the path of every run in the folders."""
    runs = [path.parent for folder in arguments for path in sorted(Path(folder).rglob("metrics.jsonl"))]
    paths = {run: path for run in runs if (path := read_path(run)) is not None}
    for run, path in paths.items():
        print(f"{run}: {describe_path(path)}")
        draw_path(path, run / "dirac.png")
    if not paths:
        print(__doc__, file=sys.stderr)
    return 0 if paths else 2


# ---------------------------------------------------------------------------------------------------------------------
# Linear theory


class LinearGame(NamedTuple):
    """The game to first order: θ' = b ψ, ψ' = −a θ − γ ψ."""

    a: float
    b: float
    gamma: float

    @property
    def eigenvalues(self) -> tuple[complex, complex]:
        """λ of the flow, per unit of rate times steps; the first one has the larger real or imaginary part."""
        root = cmath.sqrt(self.gamma**2 / 4 - self.a * self.b)
        return -self.gamma / 2 + root, -self.gamma / 2 - root

    def iteration(
        self,
        discriminator_rate: float,
        generator_rate: float,
        discriminator_steps: int = 1,
        *,
        simultaneous: bool = False,
    ) -> NDArray[np.float64]:
        """Return M, the effect of one iteration of gradient descent on (θ, ψ): `[2, 2]`.

        If it is `simultaneous` G moves with D's last step, against D as it was before it.
        """
        d = np.array([[1, 0], [-discriminator_rate * self.a, 1 - discriminator_rate * self.gamma]])
        g = np.array([[1, generator_rate * self.b], [0, 1]])
        last = d + g - np.eye(2) if simultaneous else g @ d
        return last @ np.linalg.matrix_power(d, discriminator_steps - 1)


# γ, for the term γ ψ²/2 of D's loss near 0, from a regularizer's settings and the second derivative c of the loss for
# equal data and samples; NaN for a kink, for noise, and where linear theory has no place. Label smoothing changes only
# the loss on data, where D does not depend on ψ; the penalties on outputs are of fourth order in (θ, ψ).
DAMPING: dict[str, Callable[[Any, float], float]] = {
    "r1": lambda settings, c: damp_squared_norm(settings),
    "r2": lambda settings, c: damp_squared_norm(settings),
    "gradient_penalty": lambda settings, c: damp_distance(settings),
    "dragan": lambda settings, c: damp_distance(settings),
    "lecam": lambda settings, c: 0.0,
    "balanced": lambda settings, c: 0.0,
    "consistency": lambda settings, c: math.nan,  # of images
    "instance_noise": lambda settings, c: c * settings["std"] ** 2,
    "label_smoothing": lambda settings, c: 0.0,
    "weight_clipping": lambda settings, c: 0.0,  # inside its limit
    "feature_matching": lambda settings, c: math.nan,  # G follows another loss
}


def damp_squared_norm(settings: Mapping[str, Any]) -> float:
    """Return γ of (weight/2) E‖∇D‖²; NaN for the form with noise, and for one that is not in every update."""
    return math.nan if settings.get("sigma") or settings.get("every", 1) > 1 else settings["weight"]


def damp_distance(settings: Mapping[str, Any]) -> float:
    """Return γ of weight · E(‖∇D‖ − target)², of which the one-sided form is 0 near slope 0 unless its target is 0."""
    if settings.get("every", 1) > 1 or (settings["target"] and not settings.get("one_sided")):
        return math.nan
    return 0.0 if settings["target"] else 2 * settings["weight"]


def linearise(objective: gantrain.Objective, regularizers: Mapping[str, Any] | None = None) -> LinearGame | None:
    """Return the game near (0, 0); None if a loss or the penalty has no derivative there.

    `regularizers` are the settings of D's regularizers, by name.
    """

    # With the discriminator D(v) = v the losses are functions of its output.
    def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
        return objective.discriminator_loss(real, fake)[0]

    def generator_loss(fake: Tensor) -> Tensor:
        return objective.generator_loss(fake)[0]

    a = at_zero(derivative(lambda v: discriminator_loss(v.detach(), v)))
    b = -at_zero(derivative(generator_loss))
    curvature = at_zero(derivative(derivative(lambda v: discriminator_loss(v, v))))
    gamma = math.fsum(DAMPING[name](values, curvature) for name, values in (regularizers or {}).items())
    game = LinearGame(a, b + 0.0, gamma)
    return game if all(map(math.isfinite, game)) else None


def derivative(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the derivative of a function of one number."""
    return lambda v: torch.autograd.grad(function(v), v, create_graph=True)[0]


def at_zero(function: Callable[[Tensor], Tensor]) -> float:
    """Return a function's value at 0, in float64."""
    return float(function(torch.zeros(1, dtype=torch.float64, requires_grad=True)).detach())


# ---------------------------------------------------------------------------------------------------------------------
# A run's path


class Prediction(NamedTuple):
    """Linear theory's path from the first recorded point, a point for every iteration, and the flow's eigenvalues."""

    points: Points
    eigenvalues: tuple[complex, complex]


class Path2D(NamedTuple):
    """The recorded path; a prediction if the game is smooth and both optimizers are plain gradient descent."""

    iterations: NDArray[np.int64]  # [N]
    points: Points
    theory: Prediction | None


def read_path(run: Path) -> Path2D | None:
    """Return the path of a Dirac-GAN that has reported twice or more; None for every other run."""
    settings = OmegaConf.load(run / ".hydra" / "config.yaml")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    reports = [report for line in lines if (report := json.loads(line)).keys() >= {THETA, PSI}]
    assert isinstance(settings, DictConfig)
    if settings.dataset.name != "dirac" or len(reports) < 2:
        return None
    images = np.array([report["images"] for report in reports])
    iterations = images // (settings.train.batch_size * settings.train.discriminator_steps)
    points = np.array([[report[THETA], report[PSI]] for report in reports], dtype=float)
    regularizers = {one.name: asdict(one) for one in gantrain.load(run).settings.regularizers}
    theory = predict_path(settings, regularizers, points[0], iterations[-1] - iterations[0])
    return Path2D(iterations, points, theory)


def predict_path(
    settings: DictConfig, regularizers: Mapping[str, Any], start: Points, iterations: int
) -> Prediction | None:
    """Return linear theory's path for a number of iterations from a point; None if it has none, as for a critic.

    `regularizers` are the settings of D's regularizers, by name.
    """
    if settings.disc_div.name == "own":
        return None
    rates = [descent_rate(settings.optimizer, player) for player in ("discriminator", "generator")]
    game = linearise(build_objective(settings), regularizers)
    if game is None or rates[0] is None or rates[1] is None:
        return None
    step = game.iteration(
        rates[0], rates[1], settings.train.discriminator_steps, simultaneous=settings.update == "simultaneous"
    )
    points = accumulate(repeat(step, iterations), lambda point, matrix: matrix @ point, initial=start)
    return Prediction(np.array(list(points)), game.eigenvalues)


def build_objective(settings: DictConfig) -> gantrain.Objective:
    """Return the objective of a run without its regularizer."""
    get = gantrain.divergences.get
    weights = settings.get("gen_weights", {})  # runs stored before there was the key have plain weights
    return gantrain.Objective(
        get(settings.disc_div.name),
        get(settings.gen_div.name).shifted(settings.gen_div.affine),
        settings.gen_objective,
        settings.head,
        weighting=Weighting(bool(weights.get("normalise") or weights.get("spread")), weights.get("spread")),
    )


def descent_rate(optimizer: DictConfig, player: str) -> float | None:
    """Return the step of plain gradient descent; None for every other optimizer."""
    settings = {**optimizer, **(optimizer.get(player) or {})}
    plain = settings["name"] == "SGD" and not settings.get("momentum") and not settings.get("weight_decay")
    return settings["lr"] if plain else None


def measure_path(points: Points) -> tuple[float, float, float]:
    """Return the turns about (0, 0), and the distance from it at the first point and at the last.

    The turns are right if successive points are less than half a turn apart.
    """
    angles = np.unwrap(np.arctan2(points[:, 1], points[:, 0]))
    first, last = np.hypot(*points[[0, -1]].T).tolist()
    return float(abs(angles[-1] - angles[0]) / (2 * np.pi)), first, last


def describe_path(path: Path2D) -> str:
    """Return a path's turns and distances in one line, with those of linear theory."""
    turns, first, last = measure_path(path.points)
    text = f"(θ, ψ) made {turns:.1f} turns about (0, 0), at distance {first:.3g} first and {last:.3g} last"
    if path.theory is None:
        return text
    turns, _, last = measure_path(path.theory.points)
    eigenvalues = format_eigenvalues(*path.theory.eigenvalues)
    return f"{text}; linear theory: {turns:.1f} turns, {last:.3g} last, eigenvalues {eigenvalues}"


def format_eigenvalues(first: complex, second: complex) -> str:
    """Return two real or two conjugate numbers as text."""
    if not first.imag:
        text = f"{first.real:.3g} and {second.real:.3g}"
    elif first.real:
        text = f"{first.real:.3g} ± {first.imag:.3g}i"
    else:
        text = f"±{first.imag:.3g}i"
    return text.replace("-", "−")


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def draw_path(path: Path2D, file: Path) -> None:
    """Draw the path in the plane of θ and ψ and its distance from (0, 0), from dark to light, with linear theory."""
    with rc_context({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}):
        figure = Figure(figsize=(10, 4.6), dpi=120, layout="constrained")
        plane, distance = figure.subplots(1, 2, width_ratios=(1, 1.25))
        _draw_plane(plane, path)
        _draw_distance(distance, path)
        figure.savefig(file, metadata={"Software": None})


def _draw_plane(axes: Axes, path: Path2D) -> None:
    points, reach = path.points, 1.15 * np.abs(path.points).max()
    if path.theory is not None:
        axes.plot(*path.theory.points.T, "k--", linewidth=0.8, label="linear theory")
    _draw_in_time(axes, path.iterations, points)
    axes.plot(*points[0], "o", color="#d9622b", markersize=8, label="first report", zorder=4)
    axes.plot(0, 0, "k+", markersize=11, markeredgewidth=1.6, label="equilibrium", zorder=4)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.set(xlabel="θ, the generator's point", ylabel="ψ, the discriminator's slope")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1.2)


def _draw_distance(axes: Axes, path: Path2D) -> None:
    distances = np.hypot(*path.points.T)
    _draw_in_time(axes, path.iterations, np.stack([path.iterations, distances], axis=1))
    if path.theory is not None:
        steps = path.iterations[0] + np.arange(len(path.theory.points))
        axes.plot(steps, np.hypot(*path.theory.points.T), "k--", linewidth=0.8)
        axes.set_title(f"eigenvalues {format_eigenvalues(*path.theory.eigenvalues)}", loc="left", fontsize=10)
    low, high = 0.0, 1.15 * distances.max()
    if distances.max() > 10**DECADES * distances.min() > 0:
        axes.set_yscale("log")
        low, high = distances.min() / 1.5, 1.5 * distances.max()
    axes.set(xlim=(0, path.iterations[-1]), ylim=(low, high))
    axes.set(xlabel="steps of G", ylabel="distance from the equilibrium")


def _draw_in_time(axes: Axes, iterations: NDArray[np.int64], points: Points) -> None:
    """Draw a line through `points`, `[N, 2]`, whose colour is the time."""
    shades = colormaps["plasma"](0.85 * Normalize()(iterations[:-1]))
    segments = list(np.stack([points[:-1], points[1:]], axis=1))
    axes.add_collection(LineCollection(segments, colors=shades, linewidths=1.6))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
