"""The interface of regularizers, and penalties on the slope of the discriminator.

Published weights of gradient penalties are for pixels in [−1, 1]. Pixels are in [0, 1] here, so gradients are twice as
large: a published weight of `r1` or `r2` corresponds to a quarter of it, and a target of `gradient_penalty` or `dragan`
to twice the target with a quarter of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from gantrain.distributed import WHOLE, Part
from gantrain.errors import ConfigError
from gantrain.ranges import Kind, Numbers, setting
from gantrain.schedules import Ramp, is_zero, largest

if TYPE_CHECKING:
    from torch import Tensor, nn

    Discriminator = Callable[[Tensor], Tensor]


class Penalty(NamedTuple):
    """A penalty: the scalar that is added to a loss, and √E‖∇ₓv‖² of the points where it was taken, if it has any."""

    value: Tensor
    gradient_rms: Tensor | None = None


State = Mapping[str, "Tensor"]
NO_STATE: State = MappingProxyType({})


SCHEDULED = Numbers(at_least=0, follows_clock=True)  # of fields that do not say what they accept
SHARE = Numbers(above=0, at_most=1)
COUNT = Numbers(whole=True, at_least=1)


@dataclass(frozen=True)
class Regularizer:
    """The interface of regularizers, whose fields are numbers ≥ 0 or ramps of them, unless they say otherwise.

    `name` is its name in configs and reports, `smoothing` the share of the data that counts as samples, and `every` the
    number of D's updates of which one has the penalty, that many times as large. `adversarial` is the weight of the
    game's own loss in G's. Hooks draw random numbers from torch's default generator, for the whole batch, of which they
    take their `part`. A hook is called only if a subclass has it.

    What it needs, and what it does to D, decides what it can be combined with:
        needs_images: Its hooks take images, not points.
        needs_ratio: It needs D's estimate of the log-ratio.
        needs_level: It needs the level of D's output, which some games leave free.
        needs_samplewise: It differentiates D at single samples, each of which has to have an output of its own.
        needs_fixed_network: It compares two passes through D, which is then in evaluation mode, without dropout.
        bounds_slope: It bounds D's slope, or pulls it to a number above 0, so that D cannot follow a steep log-ratio.
        asked_slope: The slope of D that it asks for; 0 if none.
        limits_loss: It limits D's slope or outputs, so that a loss without a minimum gets one.
        changes_scale: It sets the size of D's weights.
    """

    name: ClassVar[str]
    smoothing: ClassVar[float] = 0.0
    needs_images: ClassVar[bool] = False
    needs_ratio: ClassVar[bool] = False
    needs_level: ClassVar[bool] = False
    needs_samplewise: ClassVar[bool] = False
    limits_loss: ClassVar[bool] = False
    changes_scale: ClassVar[bool] = False
    every = 1  # without annotations, so that fields of the same names stand where a subclass has them
    adversarial = 1.0

    @property
    def needs_fixed_network(self) -> bool:
        return False

    @property
    def bounds_slope(self) -> bool:
        return False

    @property
    def asked_slope(self) -> float:
        return 0.0

    def create_state(self) -> dict[str, Tensor]:
        """Return the tensors that `penalize_outputs` reads and changes in place; they travel in the checkpoint."""
        return {}

    def disturb(self, x: Tensor, part: Part = WHOLE) -> Tensor:
        """Return what D is shown in place of `x` [B, …], in both players' steps."""
        return x

    def penalty(self, discriminator: Discriminator, real: Tensor, fake: Tensor, part: Part = WHOLE) -> Penalty:
        """Return the penalty at `real` and `fake` [B, …]; D takes the first rows of a batch, or all."""
        raise NotImplementedError

    def penalize_outputs(self, v_real: Tensor, v_fake: Tensor, state: State = NO_STATE) -> Penalty:
        """Return the penalty on D's outputs [B] in its own update; log-ratios if it `needs_ratio`."""
        raise NotImplementedError

    def penalize_features(self, real: Tensor, fake: Tensor) -> Penalty:
        """Return the penalty of G on D's last hidden layer [B, F]; `real` has no graph."""
        raise NotImplementedError

    def constrain(self, parameters: Sequence[nn.Parameter]) -> None:
        """Change D's parameters in place after each of its updates; called without a graph."""


def overrides(regularizer: Regularizer, hook: str) -> bool:
    """Return whether a regularizer has a hook of its own."""
    return getattr(type(regularizer), hook) is not getattr(Regularizer, hook)


def draw_like(x: Tensor, part: Part, *, normal: bool = False) -> Tensor:
    """Return this process's rows of numbers that are drawn for the whole batch of `x`, in [0, 1) or `normal`."""
    import torch

    whole = x if part.ranks == 1 else torch.cat([x] * part.ranks)
    return part.take(torch.randn_like(whole) if normal else torch.rand_like(whole))


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
        """Refuse a schedule that ends at the other form, or begins there."""
        if isinstance(self.sigma, Ramp) and min(self.sigma.start, self.sigma.end) <= 0:
            raise ConfigError(f"regularizer.{self.name}.sigma follows a schedule, of which both ends must be above 0")

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
