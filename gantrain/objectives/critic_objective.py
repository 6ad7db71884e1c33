"""The game of a critic: D minimises the critic's loss, and G the critic's own or a divergence through the ratio."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gantrain.errors import ConfigError, describe_choice
from gantrain.objectives import divergences, estimates
from gantrain.objectives.critics import CRITICS, Critic, GivesRatio
from gantrain.objectives.divergence import Divergence, log_sigmoid
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import (
    DEFAULT_OBJECTIVE,
    GENERATOR_OBJECTIVES,
    GeneratorSide,
    Statistics,
)
from gantrain.objectives.weighting import OFF, Weighting

if TYPE_CHECKING:
    from torch import Tensor

# In place of the name of a divergence: the loss that belongs to the critic.
OWN = "own"
NEWTON_STEPS = 12
NEARLY_LINEAR = 16.0  # width in nats of an interval in which Newton's method converges


class CriticObjective(GeneratorSide):
    """A game in which `critic` trains D, and `gen_div` or the critic's own loss trains G.

    Where the critic gives a ratio, `gen_div` may be any divergence, which trains G through `gen_objective` and
    `weighting` as in `Objective`. A ratio up to a constant is fixed on each batch, for which G's step needs D's outputs
    on data. Raises ConfigError for a combination that cannot train; it needs no torch to do so.
    """

    def __init__(
        self,
        critic: Critic | str,
        gen_div: Divergence | str = OWN,
        gen_objective: str = DEFAULT_OBJECTIVE,
        weighting: Weighting = OFF,
    ) -> None:
        if gen_objective not in GENERATOR_OBJECTIVES:
            raise ConfigError(describe_choice("gen_objective", gen_objective, GENERATOR_OBJECTIVES))
        if isinstance(critic, str):
            if critic not in CRITICS:
                raise ConfigError(describe_choice("critic", critic, CRITICS))
            critic = CRITICS[critic]()
        self.critic, self.gen_objective, self.weighting = critic, gen_objective, weighting
        self.gen_div: Divergence | None = None
        if gen_div != OWN:
            self._refuse_without_ratio(gen_div if isinstance(gen_div, str) else gen_div.name)
            self.gen_div = divergences.get(gen_div, "gen_div") if isinstance(gen_div, str) else gen_div
            self.gen_formulas = self.gen_div
            self._refuse_flat_loss(self.gen_div)
        elif gen_objective != DEFAULT_OBJECTIVE:
            raise ConfigError(
                f"gen_objective={gen_objective} is a loss that a divergence gives, and gen_div=own is that of "
                f"critic={critic.name}; choose gen_objective={DEFAULT_OBJECTIVE}{self._or_choose_gen_div()}"
            )
        self._refuse_weights("gen_div=own")

    has_log_ratio = True  # of the coordinate in which `gen_formulas` are written

    @property
    def has_weights(self) -> bool:
        return self.gen_div is not None and super().has_weights

    @property
    def needs_real(self) -> bool:
        """Whether G's loss depends on D's outputs on data."""
        return self.critic.needs_real if self.gen_div is None else self.critic.gives_ratio == "up to a constant"

    @property
    def gives_ratio(self) -> GivesRatio:
        """Whether the log-ratio follows from D's output."""
        return self.critic.gives_ratio

    @property
    def is_flat(self) -> bool:
        """Whether D's gradient at a sample may be exactly 0."""
        return self.critic.is_flat

    @property
    def headline(self) -> str:
        """The number of reports that stands for the others; empty if there is none."""
        return self.critic.headline

    @property
    def main_divergence(self) -> Divergence | None:
        """The divergence of the bound that is the headline, if it is one."""
        group, _, name = self.headline.partition("/")
        return divergences.get(name) if group == "bound" else None

    @property
    def missing_ratio(self) -> str:
        """Why `log_ratio` is None."""
        if self.critic.gives_ratio == "no":
            return f"critic={self.critic.name} gives no log-ratio"
        return (
            f"critic={self.critic.name} gives the log-ratio up to a constant, which its outputs on data and on samples "
            "fix together: see CriticObjective.log_ratios"
        )

    def _or_choose_gen_div(self) -> str:
        return ", or a divergence, as in gen_div=kl" if self.critic.reads_every_output else ""

    def _refuse_without_ratio(self, gen_div: str) -> None:
        if self.critic.reads_every_output:
            return
        if self.critic.gives_ratio == "no":
            why, ways_out = "does not give", "a critic that gives it, such as relativistic"
        else:
            why, ways_out = "gives only between the labels a and b", "critic.squash=true"
        raise ConfigError(
            f"gen_div={gen_div} needs the log-ratio of every sample, which critic={self.critic.name} {why}; "
            f"choose gen_div=own, the critic's own loss, or {ways_out}"
        )

    def prepare(self) -> None:
        """Find the finite ranges of G's formulas, which a compiler could not see through."""
        if self.gen_div is not None:
            self.prepare_generator()

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> tuple[Tensor, Statistics]:
        """Return the critic's loss of D from its raw outputs [B] on data and on samples, and what they say."""
        loss = self.critic.discriminator_loss(v_real, v_fake)
        return loss, {"loss/discriminator": loss} | self.critic.describe(v_real.detach(), v_fake.detach())

    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None = None) -> tuple[Tensor, Statistics]:
        """Return G's loss from D's raw outputs [B] on samples, and on data if `needs_real`, and scalars to report."""
        if self.gen_div is None:
            loss = self.critic.generator_loss(v_fake, v_real)
            return loss, {"loss/generator": loss}
        r = self.critic.log_ratio(v_fake)
        if self.critic.gives_ratio == "up to a constant":
            assert v_real is not None
            r = r - find_constant(self.critic.log_ratio(v_real), r)
        return self.divergence_loss(r)

    def coordinate(self, v: Tensor) -> Tensor:
        """Return the log-ratio of `v` [B], its mean 0 if it is known up to a constant; 0 if no loss grows like e^v."""
        r = self.critic.log_ratio(v)
        return {"yes": r, "up to a constant": r - r.mean(), "no": 0 * v}[self.critic.gives_ratio]

    def margin(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        """Return a function [B] of outputs on data and on samples that is positive where D takes data for data."""
        return self.critic.log_ratio(v_real) if self.critic.has_zero else v_real - v_fake

    def log_ratio(self, v: Tensor) -> Tensor | None:
        """Return the log-ratio [B] of `v` [B], or None if the critic gives none, or only up to a constant."""
        return self.critic.log_ratio(v) if self.critic.gives_ratio == "yes" else None

    def log_ratios(self, v_real: Tensor, v_fake: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the log-ratios of outputs on data [N] and on samples [M], or None if the critic gives none."""
        if self.critic.gives_ratio == "no":
            return None
        r_real, r_fake = self.critic.log_ratio(v_real), self.critic.log_ratio(v_fake)
        if self.critic.gives_ratio == "yes":
            return r_real, r_fake
        constant = find_constant(r_real, r_fake)
        return r_real - constant, r_fake - constant

    def estimates(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        """Return what D's outputs on held-out data [N] and on samples [M] say about p and q, by name, in float64.

        As `Objective.estimates`, with the means of the log-ratio, where there is a ratio; else what the critic knows.
        A constant that is fixed on the same draws counts as known in their standard errors.
        """
        v_real, v_fake = (v.detach().cpu().double() for v in (v_real, v_fake))
        if (ratios := self.log_ratios(v_real, v_fake)) is None:
            return self.critic.estimates(v_real, v_fake)
        r = estimates.Pair(*ratios)
        means = {"ratio/real_mean": float(r.real.mean()), "ratio/fake_mean": float(r.fake.mean())}
        parts = ("js",) if self.gen_div is None else ("js", self.gen_div.name)
        return means | estimates.measure(r, self.divergences, parts)

    @property
    def divergences(self) -> dict[str, Divergence]:
        """The divergences that reports have numbers of: the catalogue and that of G, by name."""
        return ({} if self.gen_div is None else {self.gen_div.name: self.gen_div}) | CATALOGUE


def find_constant(v_real: Tensor, v_fake: Tensor) -> Tensor:
    """Return the c with E_p[σ(c − v)] = E_q[σ(v − c)], a scalar without a graph, from outputs on data and on samples.

    For v = r + c both sides are ∫ p q / (p + q). Of all such equations this one has the smallest variance (Bennett
    1976), where log E_q[e^v] rests on a few samples. Newton's method on the logarithm of the sides' quotient, after
    bisections of an interval that is wide, or that a step would leave.
    """
    import torch

    v_real, v_fake = v_real.detach(), v_fake.detach()
    low, high = torch.minimum(v_real.min(), v_fake.min()), torch.maximum(v_real.max(), v_fake.max())
    c = (v_real.mean() + v_fake.mean()) / 2
    for _ in range(NEWTON_STEPS):
        at_data, at_samples = log_sigmoid(c - v_real), log_sigmoid(v_fake - c)
        of_data, of_samples = at_data.logsumexp(0), at_samples.logsumexp(0)
        value = of_data - of_samples - math.log(len(v_real) / len(v_fake))
        slope = 2 - ((2 * at_data).logsumexp(0) - of_data).exp() - ((2 * at_samples).logsumexp(0) - of_samples).exp()
        low, high = torch.where(value > 0, low, c), torch.where(value > 0, c, high)
        step = c - value / slope
        c = torch.where((step >= low) & (step <= high) & (high - low < NEARLY_LINEAR), step, (low + high) / 2)
    return c
