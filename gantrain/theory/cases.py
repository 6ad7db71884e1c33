"""Pairs of known densities, and what is exactly true of them: divergences, the log-ratio and the scatter of estimates.

On the line divergences are integrated as in `gantrain.theory.quadrature`, in more dimensions summed over a grid.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from gantrain.data.mixtures import Mixture, gaussian, mixture1d, ring
from gantrain.objectives.divergences import Divergence, Part, pearson
from gantrain.theory import quadrature

if TYPE_CHECKING:
    from torch import Tensor

# The grid reaches so many of the widest standard deviations beyond the outermost means, in so many steps a narrowest.
# The trapezoidal rule is exact there to ten digits where f' is continuous, and to 1e-4 for total variation.
GRID_REACH, GRID_STEPS = 12, 8


class Case(NamedTuple):
    """Two known densities, and a line that describes them."""

    title: str
    p: Mixture
    q: Mixture


# The last two q have p's mean and covariance, rounded; their tails make Neyman's χ² infinite. With the σ = 0.02 of
# `dataset=ring`, r* would run to −10⁴.
CASES: dict[str, Case] = {
    "gaussians": Case("p = N(0, 1), q = N(0.5, 1.1²)", gaussian(0, 1), gaussian(0.5, 1.1)),
    "mixture": Case("p = .6 N(−1.5, .6²) + .4 N(2, .8²), q = N(−0.1, 1.85²)", mixture1d(), gaussian(-0.1, 1.85)),
    "ring": Case("p = 8 Gaussians, σ = ½, on a circle of radius 2; q = N(0, 1.5² I)", ring(0.5), gaussian((0, 0), 1.5)),
}


class Truth(NamedTuple):
    """D_f(p‖q) − f(1), how it was computed, and Var_p[real(r*)] + Var_q[fake(r*)]; either number may be inf."""

    value: float
    method: str
    variance: float

    def standard_error(self, draws: int) -> float:
        """Return that of the bound's estimate at the exact ratio, from so many draws of p and of q."""
        return math.sqrt(self.variance / draws)


def compute_truth(divergence: Divergence, p: Mixture, q: Mixture) -> Truth:
    """Return the number that the bound of `divergence` should reach, and how far held-out estimates of it scatter."""
    value, method = true_value(divergence, p, q)
    return Truth(value, method, _variance(divergence, "real", p, q) + _variance(divergence, "fake", p, q))


def true_value(divergence: Divergence, p: Mixture, q: Mixture) -> tuple[float, str]:
    """Return D_f(p‖q) − f(1) and how it was computed: inf by the tails, in closed form, or by quadrature."""
    if not quadrature.is_finite(divergence, "f", p, q):
        return math.inf, "tails"
    if p.dimensions > 1:
        grid = evaluate_on_grid(p, q)
        excess = quadrature.log_excess(divergence, grid.log_p - grid.log_q)
        return float((grid.log_q + excess).exp().sum() * grid.cell), "quadrature on a grid"
    if len(p.weights) == len(q.weights) == 1 and divergence.name in quadrature.GAUSSIAN_CLOSED_FORMS:
        return quadrature.GAUSSIAN_CLOSED_FORMS[divergence.name](p, q), "closed form"
    return quadrature.integrate_divergence(divergence, p, q), "quadrature"


def _variance(divergence: Divergence, part: Part, p: Mixture, q: Mixture) -> float:
    """Return Var_p[real(r*)] or Var_q[fake(r*)], by quadrature on a grid; inf if it is infinite."""
    on_data = part == "real"
    powers = [2 * growth + on_data for growth in quadrature.growth_exponents(divergence, part)]  # of u, under q
    if not all(quadrature.is_integrable(power, p, q) for power in powers):
        return math.inf
    grid = evaluate_on_grid(p, q)
    r, log_weight = grid.log_p - grid.log_q, grid.log_p if on_data else grid.log_q
    log_change = quadrature.log_change(divergence, part, r)
    mean = (r.sign() * (log_weight + log_change).exp()).sum() * grid.cell
    return float((log_weight + 2 * log_change).exp().sum() * grid.cell - mean.square())


class Grid(NamedTuple):
    """log p and log q, `[N]`, on a square grid, and the length, area, … of one of its cells."""

    log_p: Tensor
    log_q: Tensor
    cell: float


@cache
def evaluate_on_grid(p: Mixture, q: Mixture) -> Grid:
    """Return both log densities on a grid wide enough for p and q, and fine enough for their narrowest component."""
    import torch

    means = torch.tensor(p.means + q.means, dtype=torch.float64)  # [K, d]
    reach, step = GRID_REACH * max(p.stds + q.stds), min(p.stds + q.stds) / GRID_STEPS
    sides = zip((means.amin(0) - reach).tolist(), (means.amax(0) + reach).tolist(), strict=True)
    axes = [torch.arange(low, high, step, dtype=torch.float64) for low, high in sides]
    points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    return Grid(p.log_density(points), q.log_density(points), step ** len(axes))


def true_log_ratio(case: Case, x: Tensor) -> Tensor:
    """Return r* = log p/q: `[N, d]` → `[N]`, float64."""
    return case.p.log_density(x.double()) - case.q.log_density(x.double())


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
