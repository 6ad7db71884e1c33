"""The game: what the discriminator maximises, what the generator minimises, and what one discriminator reveals.

`Game` is all that training, reports and commands know of it. In an `Objective` D maximises E_p[real(r)] − E_q[fake(r)]
of its divergence f_D. G then minimises, over its own samples and with D fixed, one of three losses of any f_G:

    matched       −fake_G(r)    the gradient of D_{f_G}(p‖q) at the estimated ratio; f-GAN's minimax loss for f_G = f_D
    ratio         f_G(e^r)      E_q[f_G(p/q)], Poole et al. 2016, eq. 3
    alternative   −real_G(r)    Nowozin et al. 2016, section 3.2; the non-saturating −log D for `gan`

Nothing here knows a network, an optimizer, a logger or a device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from gantrain.errors import ConfigError
from gantrain.objectives import divergences, estimates, heads
from gantrain.objectives.critics import F_DIVERGENCE, GivesRatio, share_of_right_signs
from gantrain.objectives.divergence import Divergence, FormulaName, format_formula
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.estimates import Pair
from gantrain.objectives.weighting import OFF, Weighting
from gantrain.ranges import Choice

if TYPE_CHECKING:
    from torch import Tensor

Statistics = dict[str, "Tensor"]
Loss = tuple["Tensor", Statistics]  # a scalar to descend, and scalars to report

# gen_objective → the formula of f_G that is averaged over samples, and its sign in the loss.
GENERATOR_OBJECTIVES: dict[str, tuple[FormulaName, int]] = {
    "matched": ("fake", -1),
    "ratio": ("f", +1),
    "alternative": ("real", -1),
}
DEFAULT_OBJECTIVE = "matched"


class Game(ABC):
    """Two losses, from D's raw outputs v [B] in float32, and what these outputs say about p and q.

    D descends `discriminator_loss`, and G descends `generator_loss` with D fixed. Both also return scalars to report.

    Attributes:
        critic_name: What trains D, as in configs.
        gen_div: The divergence that trains G through `gen_objective` and `weighting`; None for the critic's own loss.
        gen_formulas: Those of `gen_div` in one coordinate of D's outputs, the log-ratio if D gives one.
        trained: The divergences of both players.
        gives_ratio: Whether the log-ratio follows from D's output.
        missing_ratio: Why `log_ratio` returns None, if it does.
        headline: The number of reports that stands for the others, such as `bound/gan`; empty if there is none.
        main_divergence: The divergence of the bound that is the headline, if it is one.
        needs_real: Whether G's loss depends on D's outputs on data, which are then given to it without a graph.
        is_flat: Whether D's gradient at a sample may be exactly 0, so that one backward pass cannot serve both players.
        is_unbounded: Whether D's loss has no minimum unless the slope of v is limited.
        smoothing: The share of the data that counts as samples.
    """

    critic_name: str
    gen_div: Divergence | None
    gen_formulas: Divergence
    gen_objective: str
    weighting: Weighting
    trained: tuple[Divergence, ...]
    gives_ratio: GivesRatio
    missing_ratio: str
    headline: str
    main_divergence: Divergence | None
    needs_real: bool = False
    is_flat: bool = False
    is_unbounded: bool = False
    smoothing: float = 0.0

    # -----------------------------------------------------------------------------------------------------------------
    # What the players descend

    @abstractmethod
    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> Loss:
        """Return the loss of D, a scalar that may couple the samples of the batch, and what D makes of the batch."""

    @abstractmethod
    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None = None) -> Loss:
        """Return the loss of G, a scalar; `v_real` is None unless `needs_real`."""

    @abstractmethod
    def coordinate(self, v: Tensor) -> Tensor:
        """Return a function of v [B] whose size decides whether exponentials of it overflow float32.

        It is the log-ratio, or differs from it by a constant, if `gives_ratio`.
        """

    @abstractmethod
    def margin(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        """Return a function [B] of outputs on data and on samples that is positive where D takes data for data."""

    @abstractmethod
    def describe_discriminator(self) -> list[str]:
        """Return lines that say what D is trained on, and G if by the critic's own loss."""

    def prepare(self) -> None:
        """Compute what a compiler could not see through, before the losses are compiled."""
        if self.gen_div is not None:
            self.gen_formulas.finite_range(GENERATOR_OBJECTIVES[self.gen_objective][0])
        if self.has_weights:
            _ = self.gen_formulas.order  # computed once and kept

    @property
    def has_weights(self) -> bool:
        """Whether G's gradient in the log-ratio is the weight of a divergence: `matched`, and D gives a ratio."""
        if self.gen_div is None or self.gen_objective != "matched" or self.gives_ratio == "no":
            return False
        return self.gen_formulas.log_weight is not None

    def divergence_loss(self, s: Tensor) -> Loss:
        """Return the loss of `gen_objective` at samples with the coordinates `s` [B], and scalars to report.

        With weights that are rescaled, the returned loss is −mean(w_β(r) r), whose value means nothing: its gradient
        trains G.
        """
        part, sign = GENERATOR_OBJECTIVES[self.gen_objective]
        if not self.weighting.is_on:
            loss = sign * self.gen_formulas.evaluate(part, s).mean()
            limited = self.gen_formulas.outside_share(part, s)
            weight_statistics = self.weighting.weigh(self.gen_formulas, s)[1] if self.has_weights else {}
            return loss, {"loss/generator": loss, "ratio/limited_share": limited} | weight_statistics
        weights, weight_statistics = self.weighting.weigh(self.gen_formulas, s)
        reported = sign * self.gen_formulas.evaluate(part, s.detach()).mean()
        statistics = {"loss/generator": reported, "ratio/limited_share": reported.new_zeros(())}
        return -(weights * s).mean(), statistics | weight_statistics

    def _refuse_flat_loss(self, gen_div: Divergence) -> None:
        if self.gen_objective != "ratio" and self.gives_ratio != "no" and not gen_div.invertible:
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

    # -----------------------------------------------------------------------------------------------------------------
    # What D's outputs say about p and q

    def log_ratio(self, v: Tensor) -> Tensor | None:
        """Return the log-ratio [B] of outputs `v` [B], or None if D gives none, or only up to a constant.

        It is that of p and q under label smoothing too; G's loss is of the smoothed ratio, `coordinate`.
        """
        return estimates.remove_smoothing(self.coordinate(v), self.smoothing) if self.gives_ratio == "yes" else None

    def log_ratios(self, v_real: Tensor, v_fake: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what D reads as log-ratios of data [N] and of samples [M], or None if it gives none.

        Under label smoothing they are of the smoothed data.
        """
        return None if self.gives_ratio == "no" else (self.coordinate(v_real), self.coordinate(v_fake))

    def estimates(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        """Return what D's outputs on held-out data [N] and on samples [M] say about p and q, by name, in float64.

        With a ratio as of `estimates.measure`, where a constant that is fixed on the same draws counts as known in the
        standard errors.
        """
        v_real, v_fake = (v.detach().cpu().double() for v in (v_real, v_fake))
        ratios = self.log_ratios(v_real, v_fake)
        return self._estimate(v_real, v_fake) if ratios is None else self._measure(Pair(*ratios))

    def _measure(self, r: Pair) -> dict[str, float]:
        parts = {"js", *(divergence.name for divergence in self.trained)}
        return estimates.measure(r, self.divergences, parts, self.smoothing)

    @abstractmethod
    def _estimate(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        """Return what the outputs say without a ratio, of float64."""

    @property
    def divergences(self) -> dict[str, Divergence]:
        """The divergences that reports have numbers of: the catalogue and those of both players, by name."""
        return {divergence.name: divergence for divergence in self.trained} | CATALOGUE


class Objective(Game):
    """A game between divergences: `disc_div` trains D, `gen_div` trains G through `gen_objective`.

    Each is a name of the catalogue or a `Divergence`. `head` is how D's raw output is read, `smoothing` the share of
    the data that counts as samples, and `weighting` rescales the samples' weights under `matched`. Raises ConfigError
    for a combination that cannot train, with the reason and what to choose instead; it needs no torch to do so.
    """

    critic_name = F_DIVERGENCE
    gen_div: Divergence

    def __init__(
        self,
        disc_div: Divergence | str,
        gen_div: Divergence | str,
        gen_objective: str = DEFAULT_OBJECTIVE,
        head: str = "log_ratio",
        smoothing: float = 0.0,
        weighting: Weighting = OFF,
    ) -> None:
        Choice(tuple(GENERATOR_OBJECTIVES)).check("gen_objective", gen_objective)
        self.disc_div, self.gen_div = divergences.get(disc_div, "disc_div"), divergences.get(gen_div, "gen_div")
        self.gen_objective, self.weighting, self.smoothing = gen_objective, weighting, smoothing
        self.trained, self.main_divergence = (self.disc_div, self.gen_div), self.disc_div
        self.headline = f"bound/{self.disc_div.name}"
        self.head = heads.get_head(head, self.disc_div)
        self.gives_ratio = "yes" if self.head.has_log_ratio else "no"
        self.missing_ratio = f"disc_div={self.disc_div.name} with head={self.head.name} gives no log-ratio"
        # f_G written in the coordinate that the head gives.
        self.gen_formulas = self.gen_div if self.head.has_log_ratio else self.head.divergence
        self._refuse_what_cannot_train()

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
        if not head.has_log_ratio and self.gen_objective == "ratio" and self.gen_div != self.disc_div:
            raise ConfigError(
                f"gen_div.affine changes f as a function of the log-ratio, which disc_div={disc} with head={head.name} "
                "does not give; leave it out, or choose head=log_ratio"
            )
        if self.gen_objective == "ratio" and self.gen_formulas.ratio is None:
            raise ConfigError(
                f"gen_objective=ratio needs the ratio p/q, which disc_div={disc} cannot give; "
                "choose gen_objective=matched, or another disc_div"
            )
        self._refuse_flat_loss(self.gen_div)
        self._refuse_weights(f"disc_div={disc} gives no ratio")

    def prepare(self) -> None:
        self.head.divergence.finite_range("real")
        self.head.divergence.finite_range("fake")
        super().prepare()

    def discriminator_loss(self, v_real: Tensor, v_fake: Tensor) -> Loss:
        """Return −bound of `disc_div`, in which a share `smoothing` of the data counts as samples."""
        divergence, smoothing = self.head.divergence, self.smoothing
        s_real, s_fake = self.coordinate(v_real), self.coordinate(v_fake)
        on_data = divergence.evaluate("real", s_real)
        if smoothing:
            on_data = (1 - smoothing) * on_data - smoothing * divergence.evaluate("fake", s_real)
        loss = divergence.evaluate("fake", s_fake).mean() - on_data.mean()
        return loss, {"loss/discriminator": loss} | self._view(v_real, v_fake, s_real.detach(), s_fake.detach())

    def _view(self, v_real: Tensor, v_fake: Tensor, s_real: Tensor, s_fake: Tensor) -> Statistics:
        """What D makes of one batch of each kind; `ratio/…` only where there is a ratio."""
        statistics = {"discriminator/accuracy": share_of_right_signs(s_real, s_fake)}
        if self.head.has_log_ratio:
            statistics |= {"ratio/real_mean": s_real.mean(), "ratio/fake_mean": s_fake.mean()}
        if self.head.invalid is not None:
            invalid = self.head.invalid(v_real).to(s_real.dtype) + self.head.invalid(v_fake).to(s_real.dtype)
            statistics["ratio/invalid_share"] = invalid.mean() / 2
        return statistics

    def generator_loss(self, v_fake: Tensor, v_real: Tensor | None = None) -> Loss:
        return self.divergence_loss(self.coordinate(v_fake))

    def coordinate(self, v: Tensor) -> Tensor:
        """Return the argument [B] of the formulas for D's raw output `v` [B]: the log-ratio where there is one."""
        return self.head.coordinate(v)

    def margin(self, v_real: Tensor, v_fake: Tensor) -> Tensor:
        return self.coordinate(v_real)

    def describe_discriminator(self) -> list[str]:
        name, formula = self.disc_div.name, format_formula(self.disc_div.formula)
        return [f"D maximises E_p[real(r)] − E_q[fake(r)] of {name}, f(u) = {formula}"]

    def _estimate(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        """Return the trained divergence's bound, with its standard error."""
        found = estimates.bound(self.head.divergence, Pair(self.coordinate(v_real), self.coordinate(v_fake)))
        return {self.headline: found.mean, f"{self.headline}_error": found.error}
