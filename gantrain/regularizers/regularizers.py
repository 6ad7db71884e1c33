"""Regularizers other than penalties on the discriminator's slope, and the names of all of them.

A run has a list of them: disturbances follow each other in the order of the list, and penalties are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from gantrain.distributed import WHOLE, Part
from gantrain.errors import ConfigError
from gantrain.ranges import Numbers, setting
from gantrain.regularizers.gradient_penalties import R1, R2, Dragan, GradientPenalty
from gantrain.regularizers.regularizer import COUNT, NO_STATE, Penalty, Regularizer, State, draw_like
from gantrain.schedules import Ramp, is_zero

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gantrain.regularizers.regularizer import Discriminator


@dataclass(frozen=True)
class InstanceNoise(Regularizer):
    """Gaussian noise of standard deviation `std` on everything D is shown (Sønderby et al. 2017; Arjovsky and Bottou
    2017): both densities are convolved with N(0, std²), which gives them a common support."""

    name: ClassVar[str] = "instance_noise"
    std: float = 0.1

    def disturb(self, x: Tensor, part: Part = WHOLE) -> Tensor:
        return x + self.std * draw_like(x, part, normal=True)


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


# ---------------------------------------------------------------------------------------------------------------------
# Penalties on D's outputs


@dataclass(frozen=True)
class LeCam(Regularizer):
    """weight · (E_p[(v − a_q)₊²] + E_q[(a_p − v)₊²]), a_p and a_q being moving averages of E_p v and E_q v over D's
    updates (Tseng et al. 2021).

    The averages begin with the first batch: they are weighted means of what has been seen, with no initial value.
    """

    name: ClassVar[str] = "lecam"
    needs_level: ClassVar[bool] = True
    limits_loss: ClassVar[bool] = True
    weight: float = 0.3
    decay: float = setting(0.99, Numbers(at_least=0, below=1, follows_clock=True))

    def create_state(self) -> dict[str, Tensor]:
        import torch

        return {name: torch.zeros(()) for name in ("real", "fake", "seen")}

    def penalize_outputs(self, v_real: Tensor, v_fake: Tensor, state: State = NO_STATE) -> Penalty:
        import torch

        with torch.no_grad():
            seen = state["seen"].mul_(self.decay).add_(1 - self.decay)  # 1 − decay^n after n updates
            for average, v in ((state["real"], v_real), (state["fake"], v_fake)):
                average += (v.mean() - average) * (1 - self.decay) / seen
            a_real, a_fake = state["real"].clone(), state["fake"].clone()
        above, below = (v_real - a_fake).relu(), (a_real - v_fake).relu()
        return Penalty(self.weight * (above.square().mean() + below.square().mean()))


@dataclass(frozen=True)
class Balanced(Regularizer):
    """weight · (E_p σ(r) + E_q σ(r) − 1)², which is 0 at r = log p/q (BNRE, Delaunoy et al. 2022).

    D rather underestimates |r| than overestimates it.
    """

    name: ClassVar[str] = "balanced"
    needs_ratio: ClassVar[bool] = True
    needs_level: ClassVar[bool] = True
    weight: float = 100.0

    def penalize_outputs(self, v_real: Tensor, v_fake: Tensor, state: State = NO_STATE) -> Penalty:
        return Penalty(self.weight * (v_real.sigmoid().mean() + v_fake.sigmoid().mean() - 1).square())


# ---------------------------------------------------------------------------------------------------------------------
# Invariance


@dataclass(frozen=True)
class Consistency(Regularizer):
    """weight · E_p(v(x) − v(Tx))² + fake_weight · E_q(v(x) − v(Tx))², with gradients through both outputs.

    T mirrors an image with probability 1/2 and shifts it by up to an eighth of its side, reflected at the border. With
    `fake_weight=0` it is the CR of Zhang et al. 2019, else the bCR of Zhao et al. 2020. No gradient reaches G.
    """

    name: ClassVar[str] = "consistency"
    needs_images: ClassVar[bool] = True
    needs_fixed_network = True
    weight: float = 10.0
    fake_weight: float = 0.0
    every: int = setting(1, COUNT)

    def penalty(self, discriminator: Discriminator, real: Tensor, fake: Tensor, part: Part = WHOLE) -> Penalty:
        def compare(x: Tensor) -> Tensor:
            return part.gather((discriminator(x) - discriminator(mirror_and_shift(x, part))).square()).mean()

        value = self.weight * compare(real)
        return Penalty(value if is_zero(self.fake_weight) else value + self.fake_weight * compare(fake.detach()))


def mirror_and_shift(x: Tensor, part: Part) -> Tensor:
    """Return images [B, C, H, W], each mirrored with probability 1/2 and shifted by up to ⌊H/8⌋ and ⌊W/8⌋ pixels."""
    import torch

    drawn = draw_like(x.new_empty(len(x), 3), part)
    places = []
    for size, u in zip(x.shape[2:], drawn.T, strict=False):
        shift = ((2 * (size // 8) + 1) * u).floor().long() - size // 8
        at = (torch.arange(size, device=x.device) + shift[:, None]).abs()
        places.append(size - 1 - (size - 1 - at).abs())  # [B, size]
    rows, columns = places
    columns = torch.where(drawn[:, 2:] < 0.5, x.shape[3] - 1 - columns, columns)
    samples = torch.arange(len(x), device=x.device)[:, None, None]
    return x[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# D's weights, and G's loss


@dataclass(frozen=True)
class WeightClipping(Regularizer):
    """Every parameter of D is limited to [−limit, limit] after each of its updates (Arjovsky et al. 2017)."""

    name: ClassVar[str] = "weight_clipping"
    changes_scale: ClassVar[bool] = True
    limits_loss: ClassVar[bool] = True
    bounds_slope = True
    limit: float = setting(0.01, Numbers(above=0, follows_clock=True))

    def constrain(self, parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.clamp_(-self.limit, self.limit)


@dataclass(frozen=True)
class FeatureMatching(Regularizer):
    """G minimises weight · ‖E_p φ − E_q φ‖², φ being D's last hidden layer (Salimans et al. 2016, section 3.1).

    To it `adversarial` times the game's loss of G is added; by default G follows no divergence.
    """

    name: ClassVar[str] = "feature_matching"
    weight: float = 1.0
    adversarial: float = 0.0

    def penalize_features(self, real: Tensor, fake: Tensor) -> Penalty:
        return Penalty(self.weight * (real.mean(0) - fake.mean(0)).square().sum())


# ---------------------------------------------------------------------------------------------------------------------

REGULARIZERS: dict[str, type[Regularizer]] = {
    regularizer.name: regularizer
    for regularizer in (
        *(R1, R2, GradientPenalty, Dragan, LeCam, Balanced, Consistency),
        *(InstanceNoise, LabelSmoothing, WeightClipping, FeatureMatching),
    )
}


def default_values(name: str) -> dict[str, Any]:
    """Return the keys of the regularizer `name` with their defaults; none of an unknown one."""
    return {item.name: item.default for item in fields(REGULARIZERS[name])} if name in REGULARIZERS else {}


def upgrade_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's section `regularizer`, each regularizer's values under its name, from any form that it has had.

    Configs before there could be several held `name` and the values of the one; `name=none` stood for none. Keys that
    there were not yet have their defaults, which do what was done then.
    """
    if "name" in section:
        name, values = str(section["name"]), {key: value for key, value in section.items() if key != "name"}
        section = values if name == "none" else {name: values}
    return {
        key: default_values(key) | dict(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
    }
