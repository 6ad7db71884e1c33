"""The path of a Dirac-GAN in the plane of its two parameters, beside what linear theory says of it.

A network of few parameters has their values in every report, as `parameters/<player>/<name>`. Where each player has
one, and the data are a point mass, the reports tell the whole path: how often it turned about the equilibrium
(θ, ψ) = (0, 0), and how far from it. `gantrain.theory.dirac` has the theory.
"""

from __future__ import annotations

from itertools import accumulate, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from gantrain import plotting
from gantrain.data import PointMass
from gantrain.networks.layers import Point
from gantrain.runs.metrics_file import read_metrics
from gantrain.theory.dirac import linearised
from gantrain.training.setup import TrainingSetup
from gantrain.training.state import State
from gantrain.training.step import UPDATES, simultaneous

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Path2D = NDArray[np.float64]  # (θ, ψ) one after the other: [N, 2]

FEW_PARAMETERS = 8
DECADES = 1.5  # of distance, from which on its axis is logarithmic
PREDICTED: dict[str, Any] = {"color": plotting.INK, "linestyle": (0, (4, 3))}


def parameter_values(**networks: nn.Module) -> dict[str, float]:
    """The values of all parameters of those networks that have few, as `parameters/<player>/<name>`."""
    return {
        f"parameters/{player}/{name}": value
        for player, network in networks.items()
        if sum(parameter.numel() for parameter in network.parameters()) <= FEW_PARAMETERS
        for name, value in named_values(network).items()
    }


def named_values(network: nn.Module) -> dict[str, float]:
    """Every parameter's numbers, under its own name (`mean`) where that is the only one, with a number from the second
    on (`mean.1`)."""
    parameters = dict(network.named_parameters())
    short = {name.rpartition(".")[2]: parameter for name, parameter in parameters.items()}
    return {
        f"{name}.{index}" if index else name: value
        for name, parameter in (short if len(short) == len(parameters) else parameters).items()
        for index, value in enumerate(parameter.flatten().tolist())
    }


class Prediction(NamedTuple):
    """Linear theory's path from the first recorded point, a point for every iteration, and the flow's eigenvalues."""

    points: Path2D
    eigenvalues: tuple[complex, complex]


class Trajectory(NamedTuple):
    """The recorded path; a prediction where the game is smooth and both optimizers are plain gradient descent."""

    iterations: NDArray[np.int64]  # [N]
    points: Path2D
    theory: Prediction | None

    def summary(self) -> dict[str, Any]:
        """Plain data for `summary.json`."""
        if self.theory is None:
            return extent(self.points)
        eigenvalues = [[value.real + 0.0, value.imag] for value in self.theory.eigenvalues]
        return extent(self.points) | {"theory": {"eigenvalues": eigenvalues} | extent(self.theory.points)}

    def text(self) -> str:
        """One line for people."""
        made = extent(self.points)
        first, last = made["distance"]
        line = f"(θ, ψ) made {made['turns']:.1f} turns about (0, 0), at distance {first:.3g} first and {last:.3g} last"
        if self.theory is None:
            return line
        expected = extent(self.theory.points)
        return (
            f"{line}; linear theory: {expected['turns']:.1f} turns, {expected['distance'][1]:.3g} last, "
            f"eigenvalues {written(self.theory.eigenvalues)}"
        )


def trajectory(state: State, experiment: TrainingSetup, metrics: Path) -> Trajectory | None:
    """The path that the metrics file of a Dirac-GAN tells in two reports or more; None for every other run."""
    if not is_dirac(state, experiment) or len(reports := read_metrics(metrics)) < 2:
        return None
    schedule = experiment.schedule
    names = [*parameter_values(generator=state.generator), *parameter_values(discriminator=state.discriminator)]
    images = np.array([report["images"] for report in reports])
    iterations = images // (schedule.batch_size * schedule.discriminator_steps)
    points = np.array([[report[name] for name in names] for report in reports], dtype=float)
    return Trajectory(iterations, points, prediction(state, experiment, points[0], iterations[-1] - iterations[0]))


def prediction(state: State, experiment: TrainingSetup, start: Path2D, iterations: int) -> Prediction | None:
    """What linear theory says of a number of iterations from a point; None where it says nothing."""
    discriminator_rate, generator_rate = rate(state.discriminator_optimizer), rate(state.generator_optimizer)
    game = linearised(experiment.objective)
    if game is None or discriminator_rate is None or generator_rate is None:
        return None
    step = game.iteration(
        discriminator_rate,
        generator_rate,
        experiment.schedule.discriminator_steps,
        simultaneous=UPDATES[experiment.execution.update] is simultaneous,
    )
    points = accumulate(repeat(step, iterations), lambda point, matrix: matrix @ point, initial=start)
    return Prediction(np.array(list(points)), game.eigenvalues)


def is_dirac(state: State, experiment: TrainingSetup) -> bool:
    """Whether the data are a point mass on the line, G a point and D(x) = ψx."""
    generator, discriminator = (weighted(network) for network in (state.generator, state.discriminator))
    return (
        isinstance(experiment.data, PointMass)
        and experiment.data.shape == (1,)
        and [type(layer) for layer in generator] == [Point]
        and [type(layer) for layer in discriminator] == [nn.Linear]
        and discriminator[0].bias is None
    )


def weighted(network: nn.Module) -> list[nn.Module]:
    """The layers that have parameters."""
    return [module for module in network.modules() if list(module.parameters(recurse=False))]


def rate(optimizer: Optimizer) -> float | None:
    """The step of plain gradient descent; None for every other optimizer."""
    (group,) = optimizer.param_groups
    plain = isinstance(optimizer, torch.optim.SGD) and not group["momentum"] and not group["weight_decay"]
    return float(group["lr"]) if plain else None


def extent(points: Path2D) -> dict[str, Any]:
    """The turns about (0, 0), right where successive points are less than half a turn apart, and the distance from it
    at the first point and the last."""
    angles = np.unwrap(np.arctan2(points[:, 1], points[:, 0]))
    distances = np.hypot(*points[[0, -1]].T)
    return {"turns": float(abs(angles[-1] - angles[0]) / (2 * np.pi)), "distance": distances.tolist()}


def written(eigenvalues: tuple[complex, complex]) -> str:
    """Two real or two conjugate numbers as people write them."""
    first, second = eigenvalues
    if not first.imag:
        text = f"{first.real:.3g} and {second.real:.3g}"
    elif first.real:
        text = f"{first.real:.3g} ± {first.imag:.3g}i"
    else:
        text = f"±{first.imag:.3g}i"
    return text.replace("-", "−")


def save_trajectory(trajectory: Trajectory, path: Path) -> None:
    """Draw the path in the plane of θ and ψ and its distance from (0, 0), dark at first and light at last, each beside
    what linear theory predicts.

    Args:
        trajectory: The path.
        path: The PNG to write.
    """
    from matplotlib.figure import Figure

    with plotting.style():
        figure = Figure(figsize=(10, 4.6), dpi=120, layout="constrained")
        plane, distance = figure.subplots(1, 2, width_ratios=(1, 1.25))
        _draw_plane(plane, trajectory)
        _draw_distance(distance, trajectory)
        plotting.save_figure(figure, path)


def _draw_plane(axes: Axes, trajectory: Trajectory) -> None:
    points, reach = trajectory.points, 1.15 * np.abs(trajectory.points).max()
    if trajectory.theory is not None:
        axes.plot(*trajectory.theory.points.T, linewidth=0.8, label="linear theory", **PREDICTED)
    _draw_in_time(axes, trajectory.iterations, points)
    axes.plot(*points[0], "o", color=plotting.ORANGE, markersize=8, label="first report", zorder=4)
    axes.plot(0, 0, "+", color=plotting.INK, markersize=11, markeredgewidth=1.6, label="equilibrium", zorder=4)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.set(xlabel="θ, the generator's point", ylabel="ψ, the discriminator's slope")
    axes.grid(visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, labelcolor=plotting.INK, columnspacing=1.2)


def _draw_distance(axes: Axes, trajectory: Trajectory) -> None:
    distances = np.hypot(*trajectory.points.T)
    _draw_in_time(axes, trajectory.iterations, np.stack([trajectory.iterations, distances], axis=1))
    if trajectory.theory is not None:
        steps = trajectory.iterations[0] + np.arange(len(trajectory.theory.points))
        axes.plot(steps, np.hypot(*trajectory.theory.points.T), linewidth=0.8, **PREDICTED)
        axes.set_title(f"eigenvalues {written(trajectory.theory.eigenvalues)}", color=plotting.INK)
    if distances.max() > 10**DECADES * distances.min() > 0:
        axes.set_yscale("log")
    axes.set(xlim=(0, trajectory.iterations[-1]), ylim=_room(distances, log=axes.get_yscale() == "log"))
    axes.set(xlabel="steps of G", ylabel="distance from the equilibrium")


def _room(distances: NDArray[np.float64], log: bool) -> tuple[float, float]:
    """Limits that hold every distance, from 0 unless the axis is logarithmic."""
    return (distances.min() / 1.5, 1.5 * distances.max()) if log else (0, 1.15 * distances.max())


def _draw_in_time(axes: Axes, iterations: NDArray[np.int64], points: Path2D) -> None:
    """A line whose colour tells the time: `points` are [N, 2]."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    shades = colormaps["plasma"](0.85 * Normalize()(iterations[:-1]))
    axes.add_collection(
        LineCollection(list(np.stack([points[:-1], points[1:]], axis=1)), colors=shades, linewidths=1.6)
    )
