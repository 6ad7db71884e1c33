r"""Comparison of a trained discriminator with the truth, between two densities that are known.

Every divergence between p and q and the log-ratio r* = log p/q are known. The discriminator D sees draws alone and
learns r. Then, for every divergence of the catalogue and any function r,

    E_p[real(r)] − E_q[fake(r)]  ≤  D_f(p‖q),   with equality at r = r*

On draws that D was not trained on, the left side is an unbiased estimate of a number that is at most the right side. If
the estimate exceeds it by more than chance explains, then a formula, an estimate or the truth is computed wrongly.

**What chance explains.** The held-out draws are cut into parts; the spread of a number over the parts and its spread
over seeds, each with its own weights and draws, give two standard errors of its mean, of which the larger counts. Both
are too small if rare draws carry the average (χ², mostly) and none of them came. Therefore a bound has a third one,
that of the same average at the exact ratio,

    √((Var_p[real(r*)] + Var_q[fake(r*)]) / draws)

by quadrature; it is infinite if p or q has tails too heavy for the other, and then no finite excess is more than
chance. The test is one-sided, at `ALLOWED_ERRORS` times the largest of the three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import networks
from gantrain.data.mixtures import Density
from gantrain.errors import ConfigError, DivergedError
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import Objective
from gantrain.seeding import preserve_randomness, stream_seed
from gantrain.theory.cases import Case, Truth, compute_truth, true_log_ratio, true_ratio_values

if TYPE_CHECKING:
    from torch import Tensor, nn


# Normal errors pass 4 of them once in 30,000, so that 36 bounds at once give a false alarm less than once in 800 runs.
ALLOWED_ERRORS = 4.0
PARTS = 50

# ---------------------------------------------------------------------------------------------------------------------
# The discriminator


@dataclass(frozen=True)
class Training:
    """How long D trains, in draws of p shown to it, by Adam whose `lr` falls to 0 along a cosine."""

    images: int = 1_000_000
    batch_size: int = 500
    lr: float = 0.005


def draw_from(case: Case, seed: int) -> tuple[Density, Density]:
    """Return the streams of draws from p and from q that belong to `seed`; they share no random numbers."""
    sides = (("p", case.p), ("q", case.q))
    p, q = (Density(side, side, mixture, seed=stream_seed(seed, f"verify/{side}")) for side, mixture in sides)
    return p, q


def train_discriminator(
    case: Case,
    objective: Objective,
    architecture: Mapping[str, Any],
    *,
    training: Training,
    seed: int,
    progress: Callable[[int], None] = lambda images: None,
) -> nn.Module:
    """Train the architecture's discriminator by `objective` to tell p from q; `progress` is called after every batch.

    Raises DivergedError before an update with a loss that is not finite.
    """
    import torch

    p, q = draw_from(case, seed)
    with preserve_randomness(torch.device("cpu")):
        torch.manual_seed(stream_seed(seed, "verify/weights"))
        _, discriminator = networks.build(architecture, p.shape, latent_size=p.shape[0])
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=training.lr)
    steps = math.ceil(training.images / training.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for clock in range(0, steps * training.batch_size, training.batch_size):
        v_real, v_fake = (discriminator(side.batch(clock, training.batch_size).images) for side in (p, q))
        loss, _ = objective.discriminator_loss(v_real, v_fake)
        if not math.isfinite(float(loss.detach())):
            raise DivergedError(
                f"the discriminator's loss is {float(loss.detach())} at images = {clock:,}; lower lr={training.lr:g}, "
                "or choose a disc_div that grows more slowly in the log-ratio (gan, js, squared_hellinger)"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(training.batch_size)
    return discriminator


def measure_discriminator(
    discriminator: nn.Module, objective: Objective, case: Case, *, seed: int, draws: int
) -> dict[str, list[float]]:
    """Return every number that D gives on `draws` held-out draws of p and of q, for each of PARTS parts of them.

    These are `Objective.estimates`, and `ratio/rms_error_p` and `…_q`: √E[(r − r*)²] in nats.
    """
    import torch

    p, q = draw_from(case, seed)
    rows = []
    with torch.no_grad():
        for x, y in zip(p.held_out(draws).chunk(PARTS), q.held_out(draws).chunk(PARTS), strict=True):
            v_real, v_fake = discriminator(x), discriminator(y)
            errors = {
                f"ratio/rms_error_{side}": float((learned_log_ratio(objective, v) - true).square().mean().sqrt())
                for side, v, true in (("p", v_real, true_log_ratio(case, x)), ("q", v_fake, true_log_ratio(case, y)))
            }
            rows.append(objective.estimates(v_real, v_fake) | errors)
    return {name: [row[name] for row in rows] for name in rows[0]}


def learned_log_ratio(objective: Objective, v: Tensor) -> Tensor:
    """Return the log-ratio that D's raw output `v` stands for, float64."""
    r = objective.log_ratio(v.double())
    assert r is not None, "check_log_ratio refuses objectives without a ratio"
    return r


class Reading(NamedTuple):
    """The mean of a number over seeds and held-out draws, and its standard error."""

    mean: float
    error: float

    def to_dict(self) -> dict[str, float]:
        """Return the numbers as plain data."""
        return {"mean": self.mean, "standard_error": self.error}


def average_over_seeds(runs: Sequence[Sequence[float]]) -> Reading:
    """Return the reading of one number, `[seeds, parts]`, with the larger of its errors over parts and over seeds."""
    import torch

    values = torch.tensor(runs, dtype=torch.float64)
    over_parts = (values.var(1).mean() / values.numel()).sqrt()
    means = values.mean(1)
    errors = [float(over_parts)] + ([float(means.std()) / math.sqrt(len(means))] if len(means) > 1 else [])
    return Reading(float(means.mean()), max(errors))


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


@dataclass(frozen=True)
class Finding:
    """One divergence: the truth, and the bound and the plug-in estimate that D gives from so many draws."""

    name: str
    truth: Truth
    bound: Reading
    estimate: Reading
    draws: int

    @property
    def allowed(self) -> float:
        """How far above the truth chance explains the bound."""
        return ALLOWED_ERRORS * max(self.bound.error, self.truth.standard_error(self.draws))

    @property
    def exceeds(self) -> bool:
        """Whether the bound is farther above the truth than chance explains, or not a number."""
        excess = self.bound.mean - self.truth.value
        return not (excess <= 0 or excess <= self.allowed)

    @property
    def verdict(self) -> str:
        """The result of the comparison in a few words."""
        if self.exceeds:
            return "EXCEEDS"
        if math.isinf(self.truth.value):
            return "holds: true is ∞"
        return "not judged" if math.isinf(self.allowed) else "holds"

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        return {
            "true": self.truth.value,
            "true_by": self.truth.method,
            "bound": self.bound.to_dict(),
            "exact_ratio_standard_error": self.truth.standard_error(self.draws),
            "plug_in": self.estimate.to_dict(),
            "verdict": self.verdict,
        }


def compare_with_truth(truths: Mapping[str, Truth], readings: Mapping[str, Reading], draws: int) -> list[Finding]:
    """Return the finding of every divergence in `truths`; `draws` counts those of all seeds."""
    return [
        Finding(name, truth, readings[f"bound/{name}"], readings[f"estimate/{name}"], draws)
        for name, truth in truths.items()
    ]


@dataclass(frozen=True)
class Result:
    """The results of one case: findings, readings of the ratio, and the discriminators, one a seed."""

    case: Case
    objective: Objective
    findings: list[Finding]
    ratio: dict[str, Reading]
    discriminators: list[nn.Module]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        exact = true_ratio_values(self.case)
        return {
            "densities": self.case.title,
            "divergences": {each.name: each.to_dict() for each in self.findings},
            "ratio": {name: {"exact": exact[name]} | reading.to_dict() for name, reading in self.ratio.items()},
        }


def verify_case(
    case: Case,
    objective: Objective,
    architecture: Mapping[str, Any],
    *,
    training: Training,
    seeds: Sequence[int],
    draws: int,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Result:
    """Train one discriminator a seed, and compare what they give on `draws` held-out draws each with the truth.

    `progress` is called with the images shown so far and those of all seeds.
    """
    check_log_ratio(objective)
    discriminators, runs, images = [], [], 0

    def advance(batch: int) -> None:
        nonlocal images
        images += batch
        progress(images, len(seeds) * training.images)

    for seed in seeds:
        d = train_discriminator(case, objective, architecture, training=training, seed=seed, progress=advance)
        discriminators.append(d)
        runs.append(measure_discriminator(d, objective, case, seed=seed, draws=draws))
    readings = {name: average_over_seeds([run[name] for run in runs]) for name in runs[0]}
    known = {objective.disc_div.name: objective.disc_div} | CATALOGUE
    truths = {name: compute_truth(divergence, case.p, case.q) for name, divergence in known.items()}
    ratio = {name: readings[name] for name in true_ratio_values(case)}
    findings = compare_with_truth(truths, readings, draws * len(seeds))
    return Result(case, objective, findings, ratio, discriminators)


def check_log_ratio(objective: Objective) -> None:
    """Raise ConfigError for a discriminator that gives no log-ratio to compare with the true one."""
    if not objective.head.has_log_ratio:
        raise ConfigError(
            f"disc_div={objective.disc_div.name} has no invertible f', so a discriminator trained on it gives no "
            "log-ratio to verify; choose another disc_div, such as gan"
        )
