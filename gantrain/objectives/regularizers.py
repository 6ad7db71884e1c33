"""Regularizers of the discriminator: penalties, noise and label smoothing.

A regularizer may disturb what D is shown, count a share of the data as samples, and add a penalty to D's loss. A run
has a list of them: disturbances follow each other in the order of the list, and penalties are added.

Published weights of gradient penalties are for pixels in [−1, 1]. Pixels are in [0, 1] here, so gradients are twice as
large: a published weight of `r1` corresponds to a quarter of it, and a target of `gradient_penalty` to twice the
target with a quarter of the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from gantrain.errors import ConfigError
from gantrain.schedules import Ramp

if TYPE_CHECKING:
    from torch import Tensor

    Discriminator = Callable[[Tensor], Tensor]


class Penalty(NamedTuple):
    """A penalty: the scalar that is added to D's loss, and √E‖∇ₓv‖² of the points where it was taken."""

    value: Tensor
    gradient_rms: Tensor


State = Mapping[str, "Tensor"]
NO_STATE: State = MappingProxyType({})


@dataclass(frozen=True)
class Regularizer:
    """The interface of regularizers, whose fields are numbers ≥ 0 or ramps of them; this one does nothing.

    `name` is its name in configs and reports. `smoothing` is the share of the data that counts as samples.
    """

    name: ClassVar[str]
    smoothing: ClassVar[float] = 0.0

    def create_state(self) -> dict[str, Tensor]:
        """Return the tensors that `disturb` and `penalty` read and change in place; they travel in the checkpoint."""
        return {}

    def disturb(self, x: Tensor, state: State = NO_STATE) -> Tensor:
        """Return what D is shown in place of `x` [B, …], in both players' steps."""
        return x

    def penalty(
        self, discriminator: Discriminator, real: Tensor, fake: Tensor, state: State = NO_STATE
    ) -> Penalty | None:
        """Return the penalty at `real` and `fake` [B, …], or None; draws from torch's default generator."""
        return None


@dataclass(frozen=True)
class R1(Regularizer):
    """(weight/2) E_p‖∇ₓ v(x)‖², v being D's raw output (Mescheder et al. 2018, eq. 9)."""

    name: ClassVar[str] = "r1"
    weight: float = 10.0

    def penalty(self, discriminator: Discriminator, real: Tensor, fake: Tensor, state: State = NO_STATE) -> Penalty:
        mean_square = input_gradient(discriminator, real).square().sum(1).mean()
        return Penalty(self.weight / 2 * mean_square, mean_square.detach().sqrt())


@dataclass(frozen=True)
class GradientPenalty(Regularizer):
    """weight · E(‖∇ₓ v(x̂)‖ − target)², x̂ uniform between a real and a fake point (Gulrajani et al. 2017, eq. 3).

    `target=0` is the zero-centred form (Thanh-Tung et al. 2019). The norm is per sample.
    """

    name: ClassVar[str] = "gradient_penalty"
    weight: float = 10.0
    target: float = 1.0

    def penalty(self, discriminator: Discriminator, real: Tensor, fake: Tensor, state: State = NO_STATE) -> Penalty:
        import torch

        share = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
        norms = input_gradient(discriminator, torch.lerp(fake, real, share)).norm(dim=1)
        return Penalty(self.weight * (norms - self.target).square().mean(), norms.detach().square().mean().sqrt())


@dataclass(frozen=True)
class InstanceNoise(Regularizer):
    """Gaussian noise of standard deviation `std` on everything D is shown (Sønderby et al. 2017; Arjovsky and Bottou
    2017): both densities are convolved with N(0, std²), which gives them a common support."""

    name: ClassVar[str] = "instance_noise"
    std: float = 0.1

    def disturb(self, x: Tensor, state: State = NO_STATE) -> Tensor:
        import torch

        return x + self.std * torch.randn_like(x)


@dataclass(frozen=True)
class LabelSmoothing(Regularizer):
    """One-sided label smoothing (Salimans et al. 2016, section 3.4): a share `smoothing` of the data counts as fake.

    It is part of the game: `Objective` is given the share.
    D then estimates log((1 − s)p / (q + s p)) in place of log(p/q), for every divergence.
    """

    name: ClassVar[str] = "label_smoothing"
    smoothing: float = 0.1  # type: ignore[misc]

    def __post_init__(self) -> None:
        """Refuse a share that leaves no data."""
        if isinstance(self.smoothing, Ramp):
            raise ConfigError(
                "regularizer.label_smoothing.smoothing is no schedule: the ratio depends on it; give a number"
            )
        if self.smoothing >= 1:
            raise ConfigError(f"regularizer.smoothing={self.smoothing} is a share of the data and must be below 1")


REGULARIZERS: dict[str, type[Regularizer]] = {
    regularizer.name: regularizer for regularizer in (R1, GradientPenalty, InstanceNoise, LabelSmoothing)
}


def upgrade_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's section `regularizer`, each regularizer's values under its name, from any form that it has had.

    Configs before there could be several held `name` and the values of the one; `name=none` stood for none.
    """
    if "name" not in section:
        return dict(section)
    name, values = str(section["name"]), {key: value for key, value in section.items() if key != "name"}
    return values if name == "none" else {name: values}


def input_gradient(discriminator: Discriminator, x: Tensor) -> Tensor:
    """∇ₓ v(x) of each sample, flattened: [B, …] → [B, D]; differentiable in D's parameters."""
    import torch

    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gradient.flatten(1)
