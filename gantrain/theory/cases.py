"""Pairs of known densities, their exact divergences and log-ratio, and the standard errors of estimates.

Divergences follow from f(u) alone and not from the formulas of a bound, so that they find a wrong one. On the line they
are integrated as in `gantrain.theory.quadrature`, in more dimensions summed over a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from gantrain.data.mixtures import Mixture, gaussian, mixture1d, ring
from gantrain.objectives.divergence import Divergence, FormulaName
from gantrain.objectives.divergences import pearson
from gantrain.theory import quadrature
from gantrain.theory.formula_checks import weighted_excess

if TYPE_CHECKING:
    from torch import Tensor

# The grid extends GRID_REACH of the largest standard deviation beyond the outermost means, and has GRID_STEPS steps in
# the smallest. The trapezoidal rule has ten digits on it where f' is continuous, and an error of 1e-4 for total
# variation.
GRID_REACH, GRID_STEPS = 12, 8


class Case(NamedTuple):
    """Two known densities, and a line that describes them."""

    title: str
    p: Mixture
    q: Mixture

    def log_ratio(self, x: Tensor) -> Tensor:
        """Return r* = log p/q: `[N, d]` → `[N]`, float64."""
        return self.p.log_density(x.double()) - self.q.log_density(x.double())


# The last two q have p's mean and covariance, rounded; their tails make Neyman's χ² infinite. With the σ = 0.02 of
# `dataset=ring`, r* would fall to −10⁴.
CASES: dict[str, Case] = {
    "gaussians": Case("p = N(0, 1), q = N(0.5, 1.1²)", gaussian(0, 1), gaussian(0.5, 1.1)),
    "mixture": Case("p = .6 N(−1.5, .6²) + .4 N(2, .8²), q = N(−0.1, 1.85²)", mixture1d(), gaussian(-0.1, 1.85)),
    "ring": Case("p = 8 Gaussians, σ = ½, on a circle of radius 2; q = N(0, 1.5² I)", ring(0.5), gaussian((0, 0), 1.5)),
}


class Truth(NamedTuple):
    """D_f(p‖q) − f(1), how it was computed, and Var_p[real(r*)] + Var_q[fake(r*)]; either number may be inf.

    `pareto_k` is the larger one of `tail_shapes`. `plug_in_is_heavy` says whether the two-sided plug-in estimate has an
    infinite variance at r*.
    """

    value: float
    method: str
    variance: float
    pareto_k: float
    plug_in_is_heavy: bool


def gaussian_power(c: float, p: Mixture, q: Mixture) -> float:
    """Return E_q[u^c] = ∫ p^c q^{1−c} dx for two Gaussians, where it converges (Liese and Vajda 1987)."""
    (m1,), (s1,), (m2,), (s2,) = p.line_means, p.stds, q.line_means, q.stds
    precision = c / s1**2 + (1 - c) / s2**2
    log_scale = -c * math.log(s1) - (1 - c) * math.log(s2) - math.log(precision) / 2
    log_power = log_scale - c * (1 - c) * (m1 - m2) ** 2 / (2 * s1**2 * s2**2 * precision)
    return math.exp(log_power) if log_power < 709 else math.inf


def gaussian_kl(p: Mixture, q: Mixture) -> float:
    """Return KL(p‖q) for two Gaussians."""
    (m1,), (s1,), (m2,), (s2,) = p.line_means, p.stds, q.line_means, q.stds
    return math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5


# D_f − f(1) between two Gaussians where it is finite, for the divergences that have a closed form.
GAUSSIAN_CLOSED_FORMS: dict[str, Callable[[Mixture, Mixture], float]] = {
    "kl": gaussian_kl,
    "reverse_kl": lambda p, q: gaussian_kl(q, p),
    "jeffreys": lambda p, q: gaussian_kl(p, q) + gaussian_kl(q, p),
    "squared_hellinger": lambda p, q: 2 - 2 * gaussian_power(0.5, p, q),
    "pearson": lambda p, q: gaussian_power(2.0, p, q) - 1,
    "neyman": lambda p, q: gaussian_power(-1.0, p, q) - 1,
}


def compute_truth(divergence: Divergence, p: Mixture, q: Mixture) -> Truth:
    """Return the exact divergence, and the variance of the bound's held-out estimates at the exact ratio."""
    value, method = true_value(divergence, p, q)
    variance = _variance(divergence, "real", p, q) + _variance(divergence, "fake", p, q)
    low, high = quadrature.growth_exponents(divergence, "f")
    powers = 2 * low, 2 * high - 1  # of u, in E_q[F²; u ≤ 1] and E_p[F²/u²; u > 1] = E_q[F²/u; u > 1]
    is_heavy = not all(quadrature.is_integrable(power, p, q) for power in powers)
    return Truth(value, method, variance, max(tail_shapes(p, q)), is_heavy)


def tail_shapes(p: Mixture, q: Mixture) -> tuple[float, float]:
    """Return the Pareto shape k of the tail of e^−r* under p, and of e^r* under q; 0 if it is lighter than every power.

    E_p[(q/p)^s] is finite for s < 1/k = 1/(1 − σ_p²/σ_q²), with the largest σ of both; E_q[(p/q)^s] alike.
    """
    ratio = (max(p.stds) / max(q.stds)) ** 2
    return max(0.0, 1 - ratio), max(0.0, 1 - 1 / ratio)


@cache
def true_value(divergence: Divergence, p: Mixture, q: Mixture) -> tuple[float, str]:
    """Return D_f(p‖q) − f(1) and how it was computed; inf if the tails make it infinite.

    Apart from its growth in the tails, nothing of the catalogue is used but `f_of_u`, and by the closed forms not even
    that.
    """
    if not quadrature.is_finite(divergence, "f", p, q):
        return math.inf, "tails"
    if p.dimensions == 1 and len(p.weights) == len(q.weights) == 1 and divergence.name in GAUSSIAN_CLOSED_FORMS:
        return GAUSSIAN_CLOSED_FORMS[divergence.name](p, q), "closed form"
    if p.dimensions == 1:

        def integrand(x: Tensor) -> Tensor:
            return weighted_excess(divergence, p.log_density(x), q.log_density(x))[None]

        return float(quadrature.integrate(integrand, quadrature.panel_edges(divergence, "f", p, q))), "quadrature"
    log_p, log_q, cell = evaluate_on_grid(p, q)
    return float(weighted_excess(divergence, log_p, log_q).sum() * cell), "quadrature on a grid"


@cache
def _variance(divergence: Divergence, part: FormulaName, p: Mixture, q: Mixture) -> float:
    """Return Var_p[real(r*)] or Var_q[fake(r*)], by quadrature on a grid; inf if it is infinite."""
    on_data = part == "real"
    powers = [2 * growth + on_data for growth in quadrature.growth_exponents(divergence, part)]  # of u, under q
    if not all(quadrature.is_integrable(power, p, q) for power in powers):
        return math.inf
    log_p, log_q, cell = evaluate_on_grid(p, q)
    r, log_weight = log_p - log_q, log_p if on_data else log_q
    log_change = quadrature.log_change(divergence, part, r)
    mean = (r.sign() * (log_weight + log_change).exp()).sum() * cell
    return float((log_weight + 2 * log_change).exp().sum() * cell - mean.square())


@cache
def evaluate_on_grid(p: Mixture, q: Mixture) -> tuple[Tensor, Tensor, float]:
    """Return log p and log q, `[N]`, on a square grid that holds both densities, and the volume of its cells."""
    import torch

    means = torch.tensor(p.means + q.means, dtype=torch.float64)  # [K, d]
    reach, step = GRID_REACH * max(p.stds + q.stds), min(p.stds + q.stds) / GRID_STEPS
    sides = zip((means.amin(0) - reach).tolist(), (means.amax(0) + reach).tolist(), strict=True)
    axes = [torch.arange(low, high, step, dtype=torch.float64) for low, high in sides]
    points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    return p.log_density(points), q.log_density(points), step ** len(axes)


def true_ratio_values(case: Case) -> dict[str, float]:
    """Return the metrics of the ratio at r = r*; the effective sample size is 1/E_q[u²] = 1/(1 + χ²(p‖q))."""
    chi_squared, _ = true_value(pearson, case.p, case.q)
    return {
        "ratio/calibration_q": 1.0,
        "ratio/calibration_p": 1.0,
        "ratio/effective_sample_size": 1 / (1 + chi_squared),
        "ratio/rms_error_p": 0.0,
        "ratio/rms_error_q": 0.0,
    }
