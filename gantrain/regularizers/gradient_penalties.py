"""Penalties on the slope of the discriminator.

Published weights of gradient penalties are for pixels in [−1, 1]. Pixels are in [0, 1] here, so gradients are twice as
large: a published weight of `r1` or `r2` corresponds to a quarter of it, and a target of `gradient_penalty` or `dragan`
to twice the target with a quarter of the weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gantrain.distributed import WHOLE, Part
from gantrain.errors import ConfigError
from gantrain.ranges import Kind, setting
from gantrain.regularizers.regularizer import COUNT, SHARE, Penalty, Regularizer, draw_like
from gantrain.schedules import Ramp, is_zero, largest

if TYPE_CHECKING:
    from torch import Tensor

    from gantrain.regularizers.regularizer import Discriminator

SMALLEST_SIGMA = 1e-5  # of `r1` and `r2`; at 1e-7 the difference of two outputs is rounding


def one_each(x: Tensor) -> Tensor:
    """Return an uninitialised tensor [B, 1, …] with a number for each sample of `x` [B, …]."""
    return x.new_empty(len(x), *[1] * (x.dim() - 1))


def input_gradient(discriminator: Discriminator, x: Tensor) -> Tensor:
    """∇ₓ v(x) of each sample, flattened: [B, …] → [B, D]; differentiable in D's parameters."""
    import torch

    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gradient.flatten(1)


# ---------------------------------------------------------------------------------------------------------------------
# Penalties on the squared norm


@dataclass(frozen=True)
class R1(Regularizer):
    """(weight/2) E_p‖∇ₓ v(x)‖², v being D's raw output (Mescheder et al. 2018, eq. 9).

    With `sigma` > 0 it is (weight/2) E_p (v(x + σe) − v(x))²/σ² for normal e, whose expectation is the same but for
    O(σ²), and which needs no second derivatives (Lin et al. 2025, arXiv 2501.08316). It is taken at the first
    `share` of the batch.
    """

    name: ClassVar[str] = "r1"
    needs_samplewise: ClassVar[bool] = True
    limits_loss: ClassVar[bool] = True
    weight: float = 10.0
    every: int = setting(1, COUNT)
    sigma: float = 0.0
    share: float = setting(1.0, SHARE)

    def __post_init__(self) -> None:
        """Refuse a schedule that ends at the other form, or begins there, and a σ that float32 cannot resolve."""
        smallest = min(self.sigma.start, self.sigma.end) if isinstance(self.sigma, Ramp) else self.sigma
        if isinstance(self.sigma, Ramp) and smallest <= 0:
            raise ConfigError(f"regularizer.{self.name}.sigma follows a schedule, of which both ends must be above 0")
        if isinstance(smallest, int | float) and 0 < smallest < SMALLEST_SIGMA:
            raise ConfigError(
                f"regularizer.{self.name}.sigma={smallest:g} is so small that D's outputs differ by the rounding of "
                f"float32; give at least {SMALLEST_SIGMA:g}, such as 0.01, or 0 for the gradient itself"
            )

    @property
    def needs_fixed_network(self) -> bool:
        return not is_zero(self.sigma)

    def penalty(self, discriminator: Discriminator, real: Tensor, fake: Tensor, part: Part = WHOLE) -> Penalty:
        return self.penalize_slope(discriminator, real, part)

    def penalize_slope(self, discriminator: Discriminator, x: Tensor, part: Part) -> Penalty:
        """Return (weight/2) E‖∇ₓ v(x)‖² for points [B, …]."""
        x = x[: math.ceil(self.share * len(x))]
        if self.needs_fixed_network:
            beside = x + self.sigma * draw_like(x, part, normal=True)
            squares = ((discriminator(beside) - discriminator(x)) / self.sigma).square()
        else:
            squares = input_gradient(discriminator, x).square().sum(1)
        mean_square = part.gather(squares).mean()
        return Penalty(self.weight / 2 * mean_square, mean_square.detach().sqrt())


@dataclass(frozen=True)
class R2(R1):
    """(weight/2) E_q‖∇ₓ v(x)‖², the same on samples (Mescheder et al. 2018, eq. 10). No gradient reaches G."""

    name: ClassVar[str] = "r2"

    def penalty(self, discriminator: Discriminator, real: Tensor, fake: Tensor, part: Part = WHOLE) -> Penalty:
        return self.penalize_slope(discriminator, fake.detach(), part)


# ---------------------------------------------------------------------------------------------------------------------
# Penalties on the distance of the norm from a target


@dataclass(frozen=True)
class GradientPenalty(Regularizer):
    """weight · E(‖∇ₓ v(x̂)‖ − target)², x̂ uniform between a real and a fake point (Gulrajani et al. 2017, eq. 3).

    `target=0` is the zero-centred form (Thanh-Tung et al. 2019); with `one_sided` a norm below the target costs nothing
    (Petzka et al. 2018). The norm is per sample.
    """

    name: ClassVar[str] = "gradient_penalty"
    needs_samplewise: ClassVar[bool] = True
    limits_loss: ClassVar[bool] = True
    weight: float = 10.0
    every: int = setting(1, COUNT)
    target: float = 1.0
    one_sided: bool = setting(False, Kind(bool))

    @property
    def bounds_slope(self) -> bool:
        return largest(self.target) > 0

    @property
    def asked_slope(self) -> float:
        return 0.0 if self.one_sided else largest(self.target)

    def penalty(self, discriminator: Discriminator, real: Tensor, fake: Tensor, part: Part = WHOLE) -> Penalty:
        # torch's norm has the gradient 0 at 0.
        norms = part.gather(input_gradient(discriminator, self.choose_points(real, fake, part)).norm(dim=1))
        excess = norms - self.target
        value = self.weight * (excess.relu() if self.one_sided else excess).square().mean()
        return Penalty(value, norms.detach().square().mean().sqrt())

    def choose_points(self, real: Tensor, fake: Tensor, part: Part) -> Tensor:
        """Return the points [B, …] where the penalty is taken: between data and samples, with one share a sample."""
        return fake.lerp(real, draw_like(one_each(real), part))


@dataclass(frozen=True)
class Dragan(GradientPenalty):
    """weight · E(‖∇ₓ v(x̂)‖ − target)² near data alone (Kodali et al. 2017, arXiv 1705.07215).

    x̂ = x + a · spread · std(x) · U with a uniform on [0, 1] for each sample, U for each number, and the standard
    deviation of all numbers of the batch, as in public code; the paper's own noise is normal (not verified).
    """

    name: ClassVar[str] = "dragan"
    spread: float = 0.5

    def choose_points(self, real: Tensor, fake: Tensor, part: Part) -> Tensor:
        size = draw_like(one_each(real), part) * self.spread
        size = size * part.gather(real).std(correction=0)
        return real + size * draw_like(real, part)
