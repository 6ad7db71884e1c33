"""The game: what the discriminator maximises, what the generator minimises, and what one discriminator reveals.

D maximises E_p[real(r)] − E_q[fake(r)] of its divergence f_D. G then minimises, over its own samples and with D fixed,
one of three losses of any divergence f_G:

    matched       −fake_G(r)    the gradient of D_{f_G}(p‖q) at the estimated ratio; f-GAN's minimax loss for f_G = f_D
    ratio         f_G(e^r)      E_q[f_G(p/q)], Poole et al. 2016, eq. 3
    alternative   −real_G(r)    Nowozin et al. 2016, section 3.2; the non-saturating −log D for `gan`

Nothing here knows a network, an optimizer, a logger or a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from gantrain.errors import ConfigError, describe_choice
from gantrain.objectives import divergences, estimates, heads
from gantrain.objectives.critics import GivesRatio
from gantrain.objectives.divergence import Divergence, Part
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.weighting import OFF, Weighting

if TYPE_CHECKING:
    from torch import Tensor

Statistics = dict[str, "Tensor"]

# gen_objective → the formula of f_G that is averaged over samples, and its sign in the loss.
GENERATOR_OBJECTIVES: dict[str, tuple[Part, int]] = {
    "matched": ("fake", -1),
    "ratio": ("f", +1),
    "alternative": ("real", -1),
}
DEFAULT_OBJECTIVE = "matched"


class Game(Protocol):
    """What a training step needs to know of an objective: two losses, from D's raw outputs v [B] in float32.

    D descends `discriminator_loss`, and G descends `generator_loss` with D fixed. Both also return scalars to report.
    """

    @property
    def needs_real(self) -> bool:
        """Whether G's loss depends on D's outputs on data, which are then given to it without a graph."""

    @property
    def is_flat(self) -> bool:
        """Whether D's gradient at a sample may be exactly 0, so that one backward pass cannot serve both players."""

    @property
    def headline(self) -> str:
        """The number of reports that stands for the others, such as `bound/gan`; empty if there is none."""

    @property
    def main_divergence(self) -> Divergence | None:
        """The divergence of the bound that is the headline, if it is one."""

    def prepare(self) -> None:
        """Compute what a compiler could not see through, before the losses are compiled."""

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> tuple[Tensor, Statistics]:
        """Return the loss of D, a scalar that may couple the samples of the batch."""

    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None = None) -> tuple[Tensor, Statistics]:
        """Return the loss of G, a scalar; `v_real` is None unless `needs_real`."""

    def coordinate(self, v: Tensor) -> Tensor:
        """Return a function of v [B] whose size tells when exponentials of it leave the range of float32."""

    @property
    def missing_ratio(self) -> str:
        """Why `log_ratio` returns None, if it does."""

    def margin(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        """Return a function [B] of outputs on data and on samples that is positive where D takes data for data."""

    def log_ratio(self, v: Tensor) -> Tensor | None:
        """Return the estimate of log p/q [B], or None if D gives none, or only up to a constant."""

    def log_ratios(self, v_real: Tensor, v_fake: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the estimates of log p/q on data [N] and on samples [M], or None if D gives none."""

    def estimates(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        """Return what D's outputs on held-out data [N] and on samples [M] say about p and q, by name."""


class GeneratorSide:
    """What games have in common: G's loss of a divergence, as a function of D's outputs in one coordinate.

    `gen_formulas` are those of `gen_div` in that coordinate, which is the log-ratio if `has_log_ratio`.
    """

    gen_div: Divergence | None
    gen_formulas: Divergence
    gen_objective: str
    weighting: Weighting

    @property
    def has_log_ratio(self) -> bool:
        """Whether the formulas' coordinate is the log-ratio."""
        raise NotImplementedError

    @property
    def has_weights(self) -> bool:
        """Whether G's gradient in the log-ratio is the weight of a divergence: `matched`, and D gives a ratio."""
        return self.gen_objective == "matched" and self.has_log_ratio and self.gen_formulas.log_weight is not None

    def _refuse_flat_loss(self, gen_div: Divergence) -> None:
        if self.gen_objective != "ratio" and self.has_log_ratio and not gen_div.invertible:
            raise ConfigError(
                f"gen_objective={self.gen_objective} has a zero gradient for gen_div={gen_div.name}, whose f' is a "
                "step; choose gen_objective=ratio, or another gen_div"
            )

    def _refuse_weights(self, cause: str) -> None:
        if self.weighting.is_on and not self.has_weights:
            way_out = "leave gen_weights.normalise and gen_weights.spread out"
            if self.gen_objective != "matched":
                cause, way_out = f"gen_objective={self.gen_objective}", f"{way_out}, or choose gen_objective=matched"
            raise ConfigError(
                "gen_weights rescales the weights that samples have under gen_objective=matched, not here: "
                f"{cause}; {way_out}"
            )

    def prepare_generator(self) -> None:
        """Find the finite range of G's loss, which a compiler could not see through."""
        self.gen_formulas.finite_range(GENERATOR_OBJECTIVES[self.gen_objective][0])
        if self.has_weights:
            _ = self.gen_formulas.order  # computed once and kept

    def divergence_loss(self, s: Tensor) -> tuple[Tensor, Statistics]:
        """Return the loss of `gen_objective` at samples with the coordinates `s` [B], and scalars to report.

        With weights that are rescaled, the returned loss is −mean(w_β(r) r), whose value means nothing: its gradient
        trains G.
        """
        part, sign = GENERATOR_OBJECTIVES[self.gen_objective]
        loss = sign * self.gen_formulas.evaluate(part, s).mean()
        statistics = {"loss/generator": loss, "ratio/limited_share": self.gen_formulas.outside_share(part, s)}
        if not self.has_weights:
            return loss, statistics
        weights, weight_statistics = self.weighting.weigh(self.gen_formulas, s)
        if self.weighting.is_on:  # the loss of the divergence is reported, and another one has the gradient
            statistics = {"loss/generator": loss.detach(), "ratio/limited_share": loss.new_zeros(())}
            loss = -(weights * s).mean()
        return loss, statistics | weight_statistics


class Objective(GeneratorSide):
    """A game between divergences: `disc_div` trains D, `gen_div` trains G through `gen_objective`.

    Each is a name of the catalogue or a `Divergence`. `head` is how D's raw output is read, `smoothing` the share of
    the data that counts as samples, and `weighting` rescales the samples' weights under `matched`. Raises ConfigError
    for a combination that cannot train, with the reason and what to choose instead; it needs no torch to do so.
    """

    def __init__(
        self,
        disc_div: Divergence | str,
        gen_div: Divergence | str,
        gen_objective: str = "matched",
        head: str = "log_ratio",
        smoothing: float = 0.0,
        weighting: Weighting = OFF,
    ) -> None:
        if gen_objective not in GENERATOR_OBJECTIVES:
            raise ConfigError(describe_choice("gen_objective", gen_objective, GENERATOR_OBJECTIVES))
        disc_div = divergences.get(disc_div, "disc_div") if isinstance(disc_div, str) else disc_div
        gen_div = divergences.get(gen_div, "gen_div") if isinstance(gen_div, str) else gen_div
        self.disc_div, self.gen_div, self.gen_objective = disc_div, gen_div, gen_objective
        self.head = heads.get_head(head, disc_div)
        self.smoothing = smoothing
        # f_G written in the coordinate that the head gives.
        self.gen_formulas = gen_div if self.head.has_log_ratio else self.head.divergence
        self.weighting = weighting
        self.headline, self.main_divergence = f"bound/{disc_div.name}", disc_div
        self.missing_ratio = f"disc_div={disc_div.name} with head={self.head.name} gives no log-ratio"
        self._refuse_what_cannot_train()

    gen_div: Divergence
    needs_real = is_flat = False

    @property
    def has_log_ratio(self) -> bool:
        """Whether D's output is read as a log-ratio."""
        return self.head.has_log_ratio

    @property
    def gives_ratio(self) -> GivesRatio:
        """Whether D's output stands for the log-ratio: "yes" or "no"; of other games also "up to a constant"."""
        return "yes" if self.head.has_log_ratio else "no"

    def _refuse_what_cannot_train(self) -> None:
        disc, gen, head = self.disc_div.name, self.gen_div.name, self.head
        if not head.has_log_ratio and gen != disc:
            ways_out = ["head=log_ratio" if self.disc_div.invertible else "another disc_div"]
            if self.gen_objective != "ratio" or head.divergence.ratio is not None:
                ways_out.append(f"gen_div={disc}")
            raise ConfigError(
                f"gen_div={gen} needs a log-ratio, which disc_div={disc} with the {head.name} head cannot give; "
                f"choose {', or '.join(ways_out)}"
            )
        if self.gen_objective == "ratio" and self.gen_formulas.ratio is None:
            raise ConfigError(
                f"gen_objective=ratio needs the ratio p/q, which disc_div={disc} cannot give; "
                "choose gen_objective=matched, or another disc_div"
            )
        self._refuse_flat_loss(self.gen_div)
        self._refuse_weights(f"disc_div={disc} gives no ratio")

    def prepare(self) -> None:
        """Find the finite ranges of all formulas, which a compiler could not see through."""
        self.head.divergence.finite_range("real")
        self.head.divergence.finite_range("fake")
        self.prepare_generator()

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> tuple[Tensor, Statistics]:
        """Return −bound of `disc_div` from D's raw outputs [B] on data and on samples, and what they say of the batch.

        With label smoothing s, a share s of the data counts as samples.
        """
        divergence, smoothing = self.head.divergence, self.smoothing
        s_real, s_fake = self.coordinate(v_real), self.coordinate(v_fake)
        on_data = divergence.evaluate("real", s_real)
        if smoothing:
            on_data = (1 - smoothing) * on_data - smoothing * divergence.evaluate("fake", s_real)
        loss = divergence.evaluate("fake", s_fake).mean() - on_data.mean()
        return loss, {"loss/discriminator": loss} | self._view(v_real, v_fake, s_real.detach(), s_fake.detach())

    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None = None) -> tuple[Tensor, Statistics]:
        """Return the loss of `gen_objective` from D's raw outputs [B] on samples, and scalars; `v_real` is not used."""
        return self.divergence_loss(self.coordinate(v_fake))

    def _view(self, v_real: Tensor, v_fake: Tensor, s_real: Tensor, s_fake: Tensor) -> Statistics:
        """What D makes of one batch of each kind; `ratio/…` only where there is a ratio."""
        import torch

        statistics = {"discriminator/accuracy": (torch.cat([s_real, -s_fake]) > 0).mean(dtype=s_real.dtype)}
        if self.head.has_log_ratio:
            statistics |= {"ratio/real_mean": s_real.mean(), "ratio/fake_mean": s_fake.mean()}
        if self.head.invalid is not None:
            invalid = self.head.invalid(v_real).to(s_real.dtype) + self.head.invalid(v_fake).to(s_real.dtype)
            statistics["ratio/invalid_share"] = invalid.mean() / 2
        return statistics

    def coordinate(self, v: Tensor) -> Tensor:
        """Return the argument [B] of the formulas for D's raw output `v` [B]: the log-ratio where there is one."""
        return self.head.coordinate(v)

    def margin(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        return self.coordinate(v_real)

    def log_ratio(self, v: Tensor) -> Tensor | None:
        """Return the log-ratio [B] that D's raw output `v` [B] stands for, or None where the head gives none."""
        return self.coordinate(v) if self.head.has_log_ratio else None

    def log_ratios(self, v_real: Tensor, v_fake: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the log-ratios of outputs on data [N] and on samples [M], or None where the head gives none."""
        return (self.coordinate(v_real), self.coordinate(v_fake)) if self.head.has_log_ratio else None

    def estimates(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        """Return what D's raw outputs on data [N] and on samples [M] say, as of `estimates.measure`, in float64.

        Without a ratio it is only the trained divergence's bound, with its standard error.
        """
        outputs = estimates.Pair(*(self.coordinate(v.detach().cpu().double()) for v in (v_real, v_fake)))
        if self.head.has_log_ratio:
            parts = (self.disc_div.name, self.gen_div.name, "js")
            return estimates.measure(outputs, self.divergences, parts, self.smoothing)
        name, found = f"bound/{self.disc_div.name}", estimates.bound(self.head.divergence, outputs)
        return {name: found.mean, f"{name}_error": found.error}

    @property
    def divergences(self) -> dict[str, Divergence]:
        """The divergences that reports have numbers of: the catalogue and those of both players, by name."""
        return {d.name: d for d in (self.disc_div, self.gen_div)} | CATALOGUE
