"""The game of a critic: D minimises the critic's loss, and G the critic's own or a divergence through the ratio."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from gantrain.errors import ConfigError
from gantrain.objectives import divergences
from gantrain.objectives.critics import CRITICS, Critic
from gantrain.objectives.divergence import Divergence, log_sigmoid
from gantrain.objectives.estimates import Pair
from gantrain.objectives.objective import DEFAULT_OBJECTIVE, GENERATOR_OBJECTIVES, Game, Loss
from gantrain.objectives.weighting import OFF, Weighting
from gantrain.ranges import Choice

if TYPE_CHECKING:
    from torch import Tensor

# In place of the name of a divergence: the loss that belongs to the critic.
OWN = "own"
NEWTON_STEPS = 12
NEARLY_LINEAR = 16.0  # width in nats of an interval in which Newton's method converges


class CriticObjective(Game):
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
        Choice(tuple(GENERATOR_OBJECTIVES)).check("gen_objective", gen_objective)
        if isinstance(critic, str):
            Choice(tuple(CRITICS)).check("critic", critic)
            critic = CRITICS[critic]()
        self.critic, self.gen_objective, self.weighting = critic, gen_objective, weighting
        self.critic_name, self.gives_ratio, self.headline = critic.name, critic.gives_ratio, critic.headline
        self.is_flat, self.is_unbounded = critic.is_flat, critic.is_unbounded
        group, _, name = critic.headline.partition("/")
        self.main_divergence = divergences.get(name) if group == "bound" else None
        self.missing_ratio = f"critic={critic.name} gives no log-ratio"
        if critic.gives_ratio == "up to a constant":
            self.missing_ratio = (
                f"critic={critic.name} gives the log-ratio up to a constant, which its outputs on data and on samples "
                "fix together: see CriticObjective.log_ratios"
            )
        if gen_div == OWN:
            self.gen_div, self.trained, self.needs_real = None, (), critic.needs_real
            self._refuse_other_objective()
        else:
            self._refuse_without_ratio(gen_div if isinstance(gen_div, str) else gen_div.name)
            self.gen_div = self.gen_formulas = divergences.get(gen_div, "gen_div")
            self.trained, self.needs_real = (self.gen_div,), critic.gives_ratio == "up to a constant"
            self._refuse_flat_loss(self.gen_div)
        self._refuse_weights("gen_div=own")

    def _refuse_other_objective(self) -> None:
        if self.gen_objective != DEFAULT_OBJECTIVE:
            or_gen_div = ", or a divergence, as in gen_div=kl" if self.critic.has_ratio_at_every_output else ""
            raise ConfigError(
                f"gen_objective={self.gen_objective} is a loss that a divergence gives, and gen_div=own is that of "
                f"critic={self.critic.name}; choose gen_objective={DEFAULT_OBJECTIVE}{or_gen_div}"
            )

    def _refuse_without_ratio(self, gen_div: str) -> None:
        if self.critic.has_ratio_at_every_output:
            return
        if self.critic.gives_ratio == "no":
            why, ways_out = "does not give", "a critic that gives it, such as relativistic"
        else:
            why, ways_out = "gives only between the labels a and b", "critic.squash=true"
        raise ConfigError(
            f"gen_div={gen_div} needs the log-ratio of every sample, which critic={self.critic.name} {why}; "
            f"choose gen_div=own, the critic's own loss, or {ways_out}"
        )

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> Loss:
        loss = self.critic.discriminator_loss(v_real, v_fake)
        return loss, {"loss/discriminator": loss} | self.critic.describe(v_real.detach(), v_fake.detach())

    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None = None) -> Loss:
        if self.gen_div is None:
            loss = self.critic.generator_loss(v_fake, v_real)
            return loss, {"loss/generator": loss}
        r = self.critic.log_ratio(v_fake)
        if self.gives_ratio == "up to a constant":
            assert v_real is not None
            r = r - find_constant(self.critic.log_ratio(v_real), r)
        return self.divergence_loss(r)

    def coordinate(self, v: Tensor) -> Tensor:
        """Return the log-ratio of `v` [B], its mean 0 if it is known up to a constant; 0 if no loss grows like e^v."""
        r = self.critic.log_ratio(v)
        return {"yes": r, "up to a constant": r - r.mean(), "no": 0 * v}[self.gives_ratio]

    def margin(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        return self.critic.log_ratio(v_real) if self.critic.has_decision_threshold else v_real - v_fake

    def describe_discriminator(self) -> list[str]:
        critic = self.critic
        settings = "".join(f", {key} {str(value).lower()}" for key, value in dataclasses.asdict(critic).items())
        start = f"D minimises {critic.disc_formula} (critic={critic.name}{settings})"
        lines = [f"{start}, with the optimal output v: {critic.optimum}"]
        if self.gen_div is None:
            lines.append(f"G minimises {critic.gen_formula} and follows, at that v, {critic.minimised}")
        if critic.gives_ratio == "no":
            lines.append("r is not recovered: no other loss can train G, and no divergence is reported that needs r")
        if critic.gives_ratio == "up to a constant":
            lines.append("r = v − c, and c is the root of E_p[σ(c − v)] = E_q[σ(v − c)] on each batch (Bennett 1976)")
        return lines

    def log_ratios(self, v_real: Tensor, v_fake: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.gives_ratio != "up to a constant":
            return super().log_ratios(v_real, v_fake)
        r_real, r_fake = self.critic.log_ratio(v_real), self.critic.log_ratio(v_fake)
        constant = find_constant(r_real, r_fake)
        return r_real - constant, r_fake - constant

    def _measure(self, r: Pair) -> dict[str, float]:
        means = {"ratio/real_mean": float(r.real.mean()), "ratio/fake_mean": float(r.fake.mean())}
        return means | super()._measure(r)

    def _estimate(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        return self.critic.estimates(v_real, v_fake)


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
