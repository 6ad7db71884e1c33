r"""The Dirac-GAN near its equilibrium (Mescheder, Geiger, Nowozin 2018, "Which training methods for GANs do actually
converge?").

The data are a point mass at 0, the generator is a point x = θ and the discriminator D(x) = ψx; at (θ, ψ) = (0, 0) the
model is the data and D says so. To first order around it, gradient descent of both players follows

    θ' = b ψ,    ψ' = −a θ − γ ψ,    with eigenvalues  λ = −γ/2 ± √(γ²/4 − a b).

a is the slope of D's loss in its output on a sample, f_D''(1); b that of G's, with the opposite sign: f_G''(1) under
`matched` and `alternative`, −f_G'(1) under `ratio`. γ comes from D's regularizer alone. Without one, (0, 0) is a
centre, which D and G circle once in 2π/√(ab), or a saddle where b < 0.

Alternating steps, k of D with rate η_D and one of G with η_G, are one linear map (θ, ψ) → M (θ, ψ),

    M = [1, η_G b; 0, 1] · [1, 0; −η_D a, 1 − η_D γ]^k .

Without γ its determinant is 1: small circles stay closed as long as k η_D η_G a b < 4. Simultaneous steps add up
instead, [1, η_G b; −η_D a, 1 − η_D γ], with determinant 1 + η_D η_G a b: they leave every circle outward.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain.objectives.objective import Objective
from gantrain.objectives.regularizers import R1, GradientPenalty, InstanceNoise, LabelSmoothing, Regularizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Linear(NamedTuple):
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
        """M: what one iteration of gradient descent does to (θ, ψ), `[2, 2]`.

        Where it is `simultaneous` G moves with D's last step, against D as it was before it.
        """
        import numpy as np

        d = np.array([[1, 0], [-discriminator_rate * self.a, 1 - discriminator_rate * self.gamma]])
        g = np.array([[1, generator_rate * self.b], [0, 1]])
        last = d + g - np.eye(2) if simultaneous else g @ d
        return last @ np.linalg.matrix_power(d, discriminator_steps - 1)


# γ, for the term γ ψ²/2 that D's loss has near 0, from the regularizer and the loss's second derivative where data and
# samples are one. NaN for a kink there; smoothing counts a share of the data as fake, at a point that ψ does not move.
DAMPING: dict[type[Regularizer], Callable[[Any, float], float]] = {
    Regularizer: lambda none, curvature: 0.0,
    R1: lambda r1, curvature: r1.weight,
    GradientPenalty: lambda penalty, curvature: math.nan if penalty.target else 2 * penalty.weight,
    InstanceNoise: lambda noise, curvature: curvature * noise.std**2,
    LabelSmoothing: lambda smoothing, curvature: 0.0,
}


def linearised(game: Objective) -> Linear | None:
    """The game near (0, 0); None where a loss or the penalty has no derivative there."""
    plain = Objective(game.disc_div, game.gen_div, game.gen_objective, game.head.name)

    # With the discriminator D(v) = v the losses are functions of its output.
    def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
        return plain.discriminator_loss(lambda v: v, real, fake)[0]

    def generator_loss(fake: Tensor) -> Tensor:
        return plain.generator_loss(lambda v: v, fake)[0]

    a = at_zero(derivative(lambda v: discriminator_loss(v.detach(), v)))
    b = -at_zero(derivative(generator_loss))
    curvature = at_zero(derivative(derivative(lambda v: discriminator_loss(v, v))))
    found = Linear(a, b + 0.0, DAMPING[type(game.regularizer)](game.regularizer, curvature))
    return found if all(map(math.isfinite, found)) else None


def derivative(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The derivative of a function of one number."""
    import torch

    return lambda v: torch.autograd.grad(function(v), v, create_graph=True)[0]


def at_zero(function: Callable[[Tensor], Tensor]) -> float:
    """The value at 0, in float64."""
    import torch

    return float(function(torch.zeros(1, dtype=torch.float64, requires_grad=True)).detach())
