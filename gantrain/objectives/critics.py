"""Critics: losses of the discriminator other than the bound of one f-divergence.

p is the density of the data, q that of samples, r = log p/q, and v the raw output of D on data x ~ p and samples y ~ q.
A critic is a loss of D, and a loss of G that belongs to it. What the optimal v says of r is one of three:

    yes                 v is a known, increasing function of r
    up to a constant    v = r + c with any c, since D's loss does not depend on it; which is fixed on a batch
    no                  r is not recovered, and G can only minimise the critic's own loss
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from gantrain.errors import ConfigError
from gantrain.inference import average
from gantrain.objectives.divergence import softplus
from gantrain.objectives.heads import Head, least_squares_head
from gantrain.ranges import Choice, Kind, Numbers, accepted_by_field, setting

if TYPE_CHECKING:
    from torch import Tensor

GivesRatio = Literal["yes", "up to a constant", "no"]
LARGEST_LOG_RATIO = 10.0  # |r| of least squares, whose linear output may leave the interval of its labels
# The critic that is no `Critic`: D maximises the bound of an f-divergence.
F_DIVERGENCE = "f_divergence"


@dataclass(frozen=True)
class Critic:
    """The interface of critics, whose fields are their settings. Outputs v_real and v_fake are [B], losses scalars.

    Attributes:
        name: In configs and reports.
        gives_ratio: Whether log p/q follows from the optimal output.
        needs_real: Whether the critic's own loss of G depends on D's outputs on data.
        is_flat: Whether D's gradient at a sample may be exactly 0, so that one backward pass cannot serve both players.
        has_decision_threshold: Whether `log_ratio` is 0 where D is undecided; otherwise D decides between two outputs.
        is_unbounded: Whether D's loss has no minimum unless the slope of v is limited.
        headline: The number of reports that stands for the others, such as `bound/kl`; empty if there is none.
        disc_formula, optimum, gen_formula, minimised, reference: For people, D's loss, its optimal output, G's loss,
            the divergence whose gradient that loss has there, and the source.
    """

    name: ClassVar[str]
    gives_ratio: ClassVar[GivesRatio] = "no"
    needs_real: ClassVar[bool] = False
    is_flat: ClassVar[bool] = False
    has_decision_threshold: ClassVar[bool] = False
    is_unbounded: ClassVar[bool] = False
    headline: ClassVar[str] = ""
    disc_formula: ClassVar[str]
    optimum: ClassVar[str]
    gen_formula: ClassVar[str] = "−E_q[v]"
    minimised: ClassVar[str]
    reference: ClassVar[str]

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that the critic does not accept."""
        for key, accepted in accepted_by_field(type(self)).items():
            accepted.check(f"critic.{key}", getattr(self, key))

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        """Return the loss of D."""
        raise NotImplementedError

    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None) -> Tensor:
        """Return the critic's own loss of G, here −E_q[v]; `v_real`, without a graph, is there if `needs_real`."""
        return -v_fake.mean()

    def log_ratio(self, v: Tensor) -> Tensor:
        """Return the log-ratio of outputs `v` [B], up to a constant if that is what the critic gives."""
        return v

    @property
    def has_ratio_at_every_output(self) -> bool:
        """Whether G can minimise a divergence through `log_ratio`: a ratio belongs to every output."""
        return self.gives_ratio != "no"

    def describe(self, v_real: Tensor, v_fake: Tensor) -> dict[str, Tensor]:
        """Return the share of a batch of each kind, or of its pairs, that D gets right, by name, and other scalars."""
        if self.has_decision_threshold:
            return {"discriminator/accuracy": share_of_right_signs(self.log_ratio(v_real), self.log_ratio(v_fake))}
        return {"discriminator/pair_accuracy": (v_real > v_fake).mean(dtype=v_real.dtype)}

    def estimates(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        """Return what outputs on held-out data [N] and samples [M] say without a ratio, by name."""
        return {}


@dataclass(frozen=True)
class Relativistic(Critic):
    """D distinguishes a pair (x, y) from (y, x) by the difference of its outputs.

    The log-odds of that choice are r(x) − r(y), so v = r + c. `pairs=one` compares each image with one sample, `all`
    every image of a batch with every sample: the same expectation with a smaller variance.
    """

    name = "relativistic"
    gives_ratio = "up to a constant"
    needs_real = True
    headline = "bound/js"
    disc_formula = "E[softplus(v(y) − v(x))]"
    optimum = "r + c"
    gen_formula = "E[softplus(v(x) − v(y))]"
    minimised = "JSD(p×q ‖ q×p) of pairs, in the non-saturating form"
    reference = "Jolicoeur-Martineau 2018, arXiv 1807.00734; R3GAN, Huang et al. 2024, arXiv 2501.05441"

    pairs: str = setting("one", Choice(("one", "all")))

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        return softplus(-self._subtract(v_real, v_fake)).mean()

    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None) -> Tensor:
        assert v_real is not None
        return softplus(self._subtract(v_real, v_fake)).mean()

    def _subtract(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        """Return v(x) − v(y) of the pairs: [B], or [B, B] with `pairs=all`."""
        return (v_real[:, None] if self.pairs == "all" else v_real) - v_fake


@dataclass(frozen=True)
class RelativisticAverage(Critic):
    """D distinguishes an image from the average sample, and a sample from the average image."""

    name = "relativistic_average"
    needs_real = True
    disc_formula = "E_p[softplus(E_q[v] − v)] + E_q[softplus(v − E_p[v])]"
    optimum = "a function that increases with r"
    gen_formula = "E_q[softplus(E_p[v] − v)] + E_p[softplus(v − E_q[v])]"
    minimised = "no divergence with a name"
    reference = "Jolicoeur-Martineau 2018, arXiv 1807.00734"

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        return softplus(v_fake.mean() - v_real).mean() + softplus(v_fake - v_real.mean()).mean()

    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None) -> Tensor:
        assert v_real is not None
        return self.discriminator_loss(v_fake, v_real)


@dataclass(frozen=True)
class LeastSquares(Critic):
    """D's outputs are fitted to b on data and to a on samples, to which G wants to give the output c (LSGAN).

    With w = (v − a)/(b − a), D's loss is (b − a)²/8 · (2 − bound) of `le_cam`, and the optimal w is σ(r). A linear v
    may leave (a, b), where no ratio belongs to it: reports limit r to ±10, and G can only minimise the critic's own
    loss. With `squash` the output is a + (b − a) σ(v), so that v is r.
    """

    name = "least_squares"
    gives_ratio = "yes"
    has_decision_threshold = True
    headline = "bound/le_cam"
    disc_formula = "½ E_p[(v − b)²] + ½ E_q[(v − a)²]"
    optimum = "(b p + a q) / (p + q)"
    gen_formula = "½ E_q[(v − c)²]"
    minimised = "for c = b the f-divergence with f″(u) = (b − a)² / (u (1 + u)³)"
    reference = "Mao et al. 2017, arXiv 1611.04076"

    a: float = setting(0.0, Numbers())
    b: float = setting(1.0, Numbers())
    c: float = setting(1.0, Numbers())
    squash: bool = setting(False, Kind(bool))

    def __post_init__(self) -> None:
        """Refuse labels from which G would learn the wrong way, or nothing, too."""
        super().__post_init__()
        if (self.c - self.a) * (self.b - self.a) <= 0:
            raise ConfigError(
                f"critic.c={self.c:g} is the output that G wants for its samples, so it lies on the side of "
                f"critic.a={self.a:g}, the label of samples, where critic.b={self.b:g} does, the label of data"
            )

    @cached_property
    def head(self) -> Head:
        """The reading of v under which the bound of `le_cam` is this loss."""
        return least_squares_head(self.a, self.b, squash=self.squash)

    @property
    def has_ratio_at_every_output(self) -> bool:
        return self.squash

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        divergence, w = self.head.divergence, self.head.coordinate
        on_data, on_samples = divergence.real(w(v_real)), divergence.fake(w(v_fake))
        return (self.b - self.a) ** 2 / 8 * (2 - on_data.mean() + on_samples.mean())

    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None) -> Tensor:
        output = self.a + (self.b - self.a) * v_fake.sigmoid() if self.squash else v_fake
        return (output - self.c).square().mean() / 2

    def log_ratio(self, v: Tensor) -> Tensor:
        if self.squash:
            return v
        limit = 1 / (1 + math.exp(LARGEST_LOG_RATIO))
        return self.head.coordinate(v).clamp(limit, 1 - limit).logit()

    def describe(self, v_real: Tensor, v_fake: Tensor) -> dict[str, Tensor]:
        found = super().describe(v_real, v_fake)
        if self.head.invalid is None:
            return found
        shares = [self.head.invalid(v).mean(dtype=v.dtype) for v in (v_real, v_fake)]
        return found | {"ratio/invalid_share": (shares[0] + shares[1]) / 2}


@dataclass(frozen=True)
class Hinge(Critic):
    """The hinge loss of a support vector machine; with the optimal D its value is 2 − 2 TV(p, q)."""

    name = "hinge"
    is_flat = has_decision_threshold = True
    headline = "bound/total_variation"
    disc_formula = "E_p[max(0, 1 − v)] + E_q[max(0, 1 + v)]"
    optimum = "sign(p − q)"
    minimised = "2 TV(p, q)"
    reference = "Lim and Ye 2017, arXiv 1705.02894"

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        return (1 - v_real).relu().mean() + (1 + v_fake).relu().mean()

    def estimates(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        """Return a lower bound on TV(p, q): that of Nowozin et al. 2016 with T = v/2, limited to ±½."""
        return compare_means("bound/total_variation", v_real.clamp(-1, 1) / 2, v_fake.clamp(-1, 1) / 2)


@dataclass(frozen=True)
class Wasserstein(Critic):
    """The Kantorovich–Rubinstein dual: K W₁(p, q) over the K-Lipschitz D, which a regularizer has to make so."""

    name = "wasserstein"
    is_unbounded = True
    headline = "estimate/wasserstein"
    disc_formula = "E_q[v] − E_p[v]"
    optimum = "the Kantorovich potential, if v is K-Lipschitz"
    minimised = "K W₁(p, q)"
    reference = "Arjovsky et al. 2017, arXiv 1701.07875"

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        return v_fake.mean() - v_real.mean()

    def estimates(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        """Return E_p[v] − E_q[v], at most K W₁(p, q) for a K-Lipschitz D."""
        return compare_means("estimate/wasserstein", v_real, v_fake)


@dataclass(frozen=True)
class DonskerVaradhan(Critic):
    """The bound E_p[v] − log E_q[e^v] ≤ KL(p‖q), tight at v = r + c.

    G's gradient is that of KL at any constant. D's has a bias of O(1/B), since the logarithm is of a batch's mean.
    """

    name = "donsker_varadhan"
    gives_ratio = "up to a constant"
    headline = "bound/kl"
    disc_formula = "log E_q[e^v] − E_p[v]"
    optimum = "r + c"
    gen_formula = "−log E_q[e^v]"
    minimised = "KL(p‖q)"
    reference = "Donsker and Varadhan 1983; KL-WGAN, Song and Ermon 2020, arXiv 1910.09779"

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        return -self.generator_loss(v_fake, None) - v_real.mean()

    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None) -> Tensor:
        return math.log(len(v_fake)) - v_fake.logsumexp(0)


CRITICS: dict[str, type[Critic]] = {
    critic.name: critic
    for critic in (Relativistic, RelativisticAverage, LeastSquares, Hinge, Wasserstein, DonskerVaradhan)
}


def compare_means(name: str, on_data: Tensor, on_samples: Tensor) -> dict[str, float]:
    """Return the difference of two means over [N] and [M] draws under `name`, and its standard error."""
    return dict(zip((name, f"{name}_error"), average(on_data).minus(average(on_samples)), strict=True))


def share_of_right_signs(at_data: Tensor, at_samples: Tensor) -> Tensor:
    """Return the share of a batch at which D's decision, positive for data, is right: a scalar."""
    import torch

    return (torch.cat([at_data, -at_samples]) > 0).mean(dtype=at_data.dtype)
