r"""What a trained discriminator says, held against what is true.

p and q are densities that are known, and so are every divergence between them and the log-ratio r* = log p/q. The
discriminator D sees draws alone and learns r. Then, for every divergence of the catalogue and any function r,

    E_p[real(r)] − E_q[fake(r)]  ≤  D_f(p‖q),   with equality at r = r*

On draws that D was not trained on, the left side is an unbiased estimate of a number that cannot lie above the right.
If the estimate does, by more than chance explains, then a formula, an estimate or the truth is computed wrongly.

**What chance explains.** The held-out draws are cut into parts; the spread of a number over the parts and its spread
over seeds, each with its own weights and draws, give two standard errors of its mean, of which the larger counts. Both
are too small where rare draws carry the average (χ², mostly) and none of them came. Therefore a bound has a third one,
that of the same average at the exact ratio,

    √((Var_p[real(r*)] + Var_q[fake(r*)]) / draws)

by quadrature; it is infinite where p or q has tails too heavy for the other, and then no finite excess is more than
chance. The test is one-sided, at `ALLOWED_ERRORS` times the largest of the three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import networks
from gantrain.data.mixtures import Density, Mixture, mixture1d
from gantrain.errors import ConfigError, DivergedError
from gantrain.objectives.divergences import CATALOGUE, Divergence, Part, pearson
from gantrain.objectives.objective import Objective, raw_output
from gantrain.seeding import preserved_randomness, stream_seed
from gantrain.theory import quadrature

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gantrain.objectives.objective import Discriminator

# Normal errors pass 4 of them once in 30,000, so that 36 bounds at once give a false alarm less than once in 800 runs.
ALLOWED_ERRORS = 4.0
PARTS = 50
# The grid reaches so many of the widest standard deviations beyond the outermost means, in so many steps a narrowest.
# The trapezoidal rule is exact there to ten digits where f' is continuous, and to 1e-4 for total variation.
GRID_REACH, GRID_STEPS = 12, 8


class Case(NamedTuple):
    """Two known densities, and their names for people."""

    title: str
    p: Mixture
    q: Mixture


def gaussian(mean: tuple[float, ...], std: float) -> Mixture:
    """N(mean, std² I)."""
    return Mixture((1.0,), (mean,), (std,))


def wide_ring() -> Mixture:
    """Eight Gaussians of σ = ½ on a circle of radius 2; with `densities.ring`'s σ = 0.02, r* runs to −10⁴."""
    angles = [2 * math.pi * k / 8 for k in range(8)]
    return Mixture((1 / 8,) * 8, tuple((2 * math.cos(a), 2 * math.sin(a)) for a in angles), (0.5,) * 8)


# The last two q have p's mean and covariance, rounded; their tails make Neyman's χ² infinite.
CASES: dict[str, Case] = {
    "gaussians": Case("p = N(0, 1), q = N(0.5, 1.1²)", gaussian((0.0,), 1.0), gaussian((0.5,), 1.1)),
    "mixture": Case("p = .6 N(−1.5, .6²) + .4 N(2, .8²), q = N(−0.1, 1.85²)", mixture1d(), gaussian((-0.1,), 1.85)),
    "ring": Case(
        "p = 8 Gaussians, σ = ½, on a circle of radius 2; q = N(0, 1.5² I)", wide_ring(), gaussian((0.0, 0.0), 1.5)
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# The truth


class Truth(NamedTuple):
    """D_f(p‖q) − f(1), how it was found, and Var_p[real(r*)] + Var_q[fake(r*)]; either may be inf."""

    value: float
    method: str
    variance: float

    def standard_error(self, draws: int) -> float:
        """Of the bound's estimate at the exact ratio, from so many draws of p and of q."""
        return math.sqrt(self.variance / draws)


def truth(divergence: Divergence, p: Mixture, q: Mixture) -> Truth:
    """What the bound of `divergence` should reach, and how far held-out estimates of it scatter."""
    value, method = true_value(divergence, p, q)
    return Truth(value, method, variance(divergence, "real", p, q) + variance(divergence, "fake", p, q))


def true_value(divergence: Divergence, p: Mixture, q: Mixture) -> tuple[float, str]:
    """D_f(p‖q) − f(1) and how it was found: inf by the tails, in closed form, or by quadrature."""
    if not quadrature.is_finite_for(divergence, "f", marginal(p), marginal(q)):
        return math.inf, "tails"
    if len(p.means[0]) > 1:
        cells = grid(p, q)
        excess = quadrature.log_excess(divergence, cells.log_p - cells.log_q)
        return float((cells.log_q + excess).exp().sum() * cells.size), "quadrature on a grid"
    if len(p.weights) == len(q.weights) == 1 and divergence.name in quadrature.GAUSSIAN_CLOSED_FORMS:
        return quadrature.GAUSSIAN_CLOSED_FORMS[divergence.name](marginal(p), marginal(q)), "closed form"
    return quadrature.value(divergence, marginal(p), marginal(q)), "quadrature"


def variance(divergence: Divergence, part: Part, p: Mixture, q: Mixture) -> float:
    """Var_p[real(r*)] or Var_q[fake(r*)], by quadrature on a grid; inf where it is infinite."""
    on_data = part == "real"
    powers = [2 * growth + on_data for growth in quadrature.exponents(divergence, part)]  # of u, under q
    if not all(quadrature.is_finite(power, marginal(p), marginal(q)) for power in powers):
        return math.inf
    cells = grid(p, q)
    r, log_weight = cells.log_p - cells.log_q, cells.log_p if on_data else cells.log_q
    log_change = quadrature.log_change(divergence, part, r)
    mean = (r.sign() * (log_weight + log_change).exp()).sum() * cells.size
    return float((log_weight + 2 * log_change).exp().sum() * cells.size - mean.square())


def marginal(mixture: Mixture) -> quadrature.Mixture:
    """The density of the first coordinate: on the line all there is; its tails are those of every direction."""
    return quadrature.Mixture(mixture.weights, tuple(mean[0] for mean in mixture.means), mixture.stds)


class Grid(NamedTuple):
    """log p and log q, `[N]`, on a square grid, and the length, area, … of a cell."""

    log_p: Tensor
    log_q: Tensor
    size: float


@cache
def grid(p: Mixture, q: Mixture) -> Grid:
    """A grid that is wide enough for p and q, and fine enough for the narrowest of their components."""
    import torch

    means = torch.tensor(p.means + q.means, dtype=torch.float64)  # [K, d]
    reach, step = GRID_REACH * max(p.stds + q.stds), min(p.stds + q.stds) / GRID_STEPS
    sides = zip((means.amin(0) - reach).tolist(), (means.amax(0) + reach).tolist(), strict=True)
    axes = [torch.arange(low, high, step, dtype=torch.float64) for low, high in sides]
    points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    return Grid(log_density(p, points), log_density(q, points), step ** len(axes))


def log_density(mixture: Mixture, x: Tensor) -> Tensor:
    """The mixture's log density: `[N, d]` → `[N]`, float64."""
    return Density("", "", mixture).log_density(x.double())


# ---------------------------------------------------------------------------------------------------------------------
# The discriminator


@dataclass(frozen=True)
class Training:
    """How long D trains, in draws of p shown to it, by Adam whose `lr` falls to 0 along a cosine."""

    images: int = 1_000_000
    batch_size: int = 500
    lr: float = 0.005


def drawn(case: Case, seed: int) -> tuple[Density, Density]:
    """The streams of draws from p and from q that belong to `seed`; they share no random numbers."""
    sides = (("p", case.p), ("q", case.q))
    p, q = (Density(side, side, mixture, seed=stream_seed(seed, f"verify/{side}")) for side, mixture in sides)
    return p, q


def trained(
    case: Case,
    objective: Objective,
    architecture: Mapping[str, Any],
    training: Training,
    seed: int,
    progress: Callable[[int], None] = lambda images: None,
) -> nn.Module:
    """The architecture's discriminator, trained by `objective` to tell p from q; `progress` hears of every batch.

    Raises DivergedError before an update with a loss that is not finite.
    """
    import torch

    p, q = drawn(case, seed)
    with preserved_randomness(torch.device("cpu")):
        torch.manual_seed(stream_seed(seed, "verify/weights"))
        _, discriminator = networks.build(architecture, p.shape, latent_size=p.shape[0])
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=training.lr)
    steps = math.ceil(training.images / training.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for clock in range(0, steps * training.batch_size, training.batch_size):
        real, fake = p.batch(clock, training.batch_size), q.batch(clock, training.batch_size)
        loss, _ = objective.discriminator_loss(discriminator, real, fake)
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


# ---------------------------------------------------------------------------------------------------------------------
# What it says


def measured(
    discriminator: Discriminator, objective: Objective, case: Case, seed: int, draws: int
) -> dict[str, list[float]]:
    """Every number that D gives on `draws` held-out draws of p and of q, on each of PARTS parts of them.

    Those of `Objective.estimates`, and `ratio/rms_error_p` and `…_q`: √E[(r − r*)²] in nats.
    """
    p, q = drawn(case, seed)
    parts = zip(p.held_out(draws).chunk(PARTS), q.held_out(draws).chunk(PARTS), strict=True)
    rows = [said(discriminator, objective, case, *part) for part in parts]
    return {name: [row[name] for row in rows] for name in rows[0]}


def said(discriminator: Discriminator, objective: Objective, case: Case, x: Tensor, y: Tensor) -> dict[str, float]:
    """What D says of draws `x` of p and `y` of q, both `[N, d]`."""
    import torch

    with torch.no_grad():
        v_real, v_fake = raw_output(discriminator, x), raw_output(discriminator, y)
        return objective.estimates(v_real, v_fake) | {
            "ratio/rms_error_p": rms_error(case, x, learnt(objective, v_real)),
            "ratio/rms_error_q": rms_error(case, y, learnt(objective, v_fake)),
        }


def learnt(objective: Objective, v: Tensor) -> Tensor:
    """The log-ratio that D's raw output stands for, float64."""
    r = objective.log_ratio(v.double())
    assert r is not None, "verify refuses objectives without a ratio"
    return r


def log_ratio(case: Case, x: Tensor) -> Tensor:
    """r* = log p/q, exact: `[N, d]` → `[N]`, float64."""
    return log_density(case.p, x) - log_density(case.q, x)


def rms_error(case: Case, x: Tensor, r: Tensor) -> float:
    """√E[(r − r*)²] over the draws `x`."""
    return float((r - log_ratio(case, x)).square().mean().sqrt())


class Reading(NamedTuple):
    """A number's mean over seeds and held-out draws, and its standard error."""

    mean: float
    error: float


def over_seeds(runs: Sequence[Sequence[float]]) -> Reading:
    """The reading of one number, `[seeds, parts]`: the larger of the standard errors over parts and over seeds."""
    import torch

    values = torch.tensor(runs, dtype=torch.float64)
    over_parts = (values.var(1).mean() / values.numel()).sqrt()
    means = values.mean(1)
    errors = [float(over_parts)] + ([float(means.std()) / math.sqrt(len(means))] if len(means) > 1 else [])
    return Reading(float(means.mean()), max(errors))


# ---------------------------------------------------------------------------------------------------------------------
# Both side by side


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
        """Whether the bound lies farther above the truth than chance explains; so does one that is not a number."""
        excess = self.bound.mean - self.truth.value
        return not (excess <= 0 or excess <= self.allowed)


def compared(truths: Mapping[str, Truth], readings: Mapping[str, Reading], draws: int) -> list[Finding]:
    """The finding of every divergence in `truths`; `draws` counts those of all seeds."""
    return [
        Finding(name, true, readings[f"bound/{name}"], readings[f"estimate/{name}"], draws)
        for name, true in truths.items()
    ]


def true_ratio_values(case: Case) -> dict[str, float]:
    """What the readings of the ratio are at r = r*; the effective sample size is 1/E_q[u²] = 1/(1 + χ²(p‖q))."""
    chi_squared, _ = true_value(pearson, case.p, case.q)
    return {
        "ratio/calibration_q": 1.0,
        "ratio/calibration_p": 1.0,
        "ratio/effective_sample_size": 1 / (1 + chi_squared),
        "ratio/rms_error_p": 0.0,
        "ratio/rms_error_q": 0.0,
    }


@dataclass(frozen=True)
class Result:
    """What came of one case: findings, readings of the ratio, and the discriminators, one a seed."""

    case: Case
    objective: Objective
    findings: list[Finding]
    ratio: dict[str, Reading]
    discriminators: list[nn.Module]


def verify(
    case: Case,
    objective: Objective,
    architecture: Mapping[str, Any],
    training: Training,
    seeds: Sequence[int],
    draws: int,
    progress: Callable[[int], None] = lambda images: None,
) -> Result:
    """Train one discriminator a seed, and hold what they say, on `draws` held-out draws each, against the truth."""
    refuse_without_ratio(objective)
    discriminators = [trained(case, objective, architecture, training, seed, progress) for seed in seeds]
    runs = [measured(d, objective, case, seed, draws) for d, seed in zip(discriminators, seeds, strict=True)]
    readings = {name: over_seeds([run[name] for run in runs]) for name in runs[0]}
    known = {objective.disc_div.name: objective.disc_div} | CATALOGUE
    truths = {name: truth(divergence, case.p, case.q) for name, divergence in known.items()}
    ratio = {name: readings[name] for name in true_ratio_values(case)}
    return Result(case, objective, compared(truths, readings, draws * len(seeds)), ratio, discriminators)


def refuse_without_ratio(objective: Objective) -> None:
    """Raise ConfigError for a discriminator that gives no log-ratio to hold against the true one."""
    if not objective.head.has_log_ratio:
        raise ConfigError(
            f"disc_div={objective.disc_div.name} has no invertible f', so a discriminator trained on it gives no "
            "log-ratio to verify; choose another disc_div, such as gan"
        )
