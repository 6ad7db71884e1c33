"""Where a Gaussian generator came to rest, beside where theory says it must (Poole et al. 2016, figure 1).

On a mixture of Gaussians on the line, x = μ + σz has two parameters, and quadrature tells both the best Gaussian under
a divergence (`exact.fit`) and where gradient descent with the exact ratio ends from the generator's start
(`exact.follow`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from gantrain import exact
from gantrain.architectures.layers import Affine
from gantrain.data import Dataset, Density
from gantrain.objective import GENERATOR_OBJECTIVES, Objective

START = (0.0, 1.0)  # where an affine generator begins


class Endpoint(NamedTuple):
    """(μ, σ) reached by training, where the exact flow from the same start ends, and the global optimum of D_f."""

    reached: tuple[float, float]
    flow: exact.Ending
    optimum: exact.Fit

    def summary(self) -> dict[str, Any]:
        """Plain data for `summary.json`."""
        return {
            "reached": list(self.reached),
            "theory": {"outcome": self.flow.outcome, "mean": self.flow.mean, "std": self.flow.std},
            "optimum": {"mean": self.optimum.mean, "std": self.optimum.std},
        }

    def text(self) -> str:
        """One line for people."""
        flow = (
            f"(μ, σ) = ({self.flow.mean:.4f}, {self.flow.std:.4f})"
            if self.flow.outcome == "rests"
            else self.flow.outcome
        )
        return (
            f"ended at (μ, σ) = ({self.reached[0]:.4f}, {self.reached[1]:.4f}); with the exact ratio, from the same "
            f"start: {flow}; best Gaussian under the divergence: ({self.optimum.mean:.4f}, {self.optimum.std:.4f})"
        )


def endpoint(generator: nn.Module, dataset: Dataset, game: Objective) -> Endpoint | None:
    """The endpoint of an affine generator on a one-dimensional mixture; None for every other run."""
    layers = [module for module in generator.modules() if isinstance(module, Affine)]
    ours = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    alone = len(layers) == 1 and ours == sum(parameter.numel() for parameter in generator.parameters())
    if not (alone and isinstance(dataset, Density) and dataset.shape == (1,) and game.head.has_log_ratio):
        return None
    weights, means, stds = dataset.mixture
    p = exact.Mixture(weights, tuple(mean for (mean,) in means), stds)
    flow = exact.follow(exact.Loss(game.gen_div, *GENERATOR_OBJECTIVES[game.gen_objective]), p, START)
    reached = float(layers[0].mean), abs(float(layers[0].scale))
    return Endpoint(reached, flow, exact.fit(game.gen_div, p))
