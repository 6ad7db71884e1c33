"""The formulas of docs/theory.md that belong to no module alone, against SciPy's quadrature and mpmath's derivatives.

The page's other formulas are checked in test_divergences (f, real, fake, their laws and duals), test_objective (the
bound, calibration and the gradients of the three objectives), test_quadrature (infinite divergences, best Gaussians),
test_properties (costs, suprema, effective divergences) and test_dirac (the Dirac-GAN).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from support.formulas import SMOOTH, derivative, losses, slope

from gantrain.data.mixtures import gaussian, mixture1d
from gantrain.objectives.divergences import CATALOGUE, get
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.theory import properties, quadrature

RATIOS = np.array([0.1, 0.5, 1.0, 1.7, 6.0])


def loss_slope(name: str, objective: str, u: float) -> float:
    """h'(u), from f' and f'' alone."""
    first, second = derivative(name, u, 1), derivative(name, u, 2)
    return {"matched": -u * second, "ratio": first, "alternative": -second}[objective]


def log_ratio(u: object) -> torch.Tensor:
    return torch.as_tensor(u, dtype=torch.float64).log()


def integral(integrand: Callable[[float], float]) -> float:
    return quad(integrand, -12, 12, epsabs=1e-13, limit=400, points=[-3, 0, 1, 3])[0]


def effective_curvature(name: str, objective: str, u: float) -> float:
    """f_h''(u), by differences of fourth order."""
    step = 1e-2 * u
    at = properties.effective_f(get(name), objective, log_ratio([u + k * step for k in (-2, -1, 0, 1, 2)])).numpy()
    return float(at @ [-1, 16, -30, 16, -1]) / (12 * step**2)


def test_the_game_of_goodfellow_has_the_value_two_jsd_minus_log_four() -> None:
    p, q = norm(0, 1), norm(1.2, 1.6)

    def best(x: float) -> float:
        return p.pdf(x) / (p.pdf(x) + q.pdf(x))

    value = integral(lambda x: p.pdf(x) * math.log(best(x)) + q.pdf(x) * math.log1p(-best(x)))
    two_jsd = quadrature.integrate_divergence(get("gan"), gaussian(0, 1), gaussian(1.2, 1.6))
    assert value == pytest.approx(two_jsd - math.log(4), rel=1e-9)
    assert get("gan").f_at_one == pytest.approx(-math.log(4))


@pytest.mark.parametrize("name", SMOOTH)
def test_the_bound_rises_to_the_ratio_from_both_sides_with_the_weight_of_real(name: str) -> None:
    """∂/∂r (p real(r) − q fake(r)) = real'(r) (p − e^r q), and real'(r) = e^r f''(e^r)."""
    p, q = 0.3, 0.2
    found = slope(lambda r: p * get(name).real(r) - q * get(name).fake(r), log_ratio(RATIOS))
    weights = RATIOS * np.array([derivative(name, u, 2) for u in RATIOS])
    np.testing.assert_allclose(found, weights * (p - RATIOS * q), rtol=1e-9)
    assert (weights > 0).all()


@pytest.mark.parametrize("name", SMOOTH)
def test_near_equality_every_divergence_is_half_its_curvature_times_chi_square(name: str) -> None:
    """D_f − f(1) = ½ f''(1) E_q[(u − 1)²] + ⅙ f'''(1) E_q[(u − 1)³] + O(t⁴), for p = (1 − t) q + t N(1, .8²)."""
    q, other = norm(0, 1), norm(1, 0.8)
    moments = {n: integral(lambda x, n=n: q.pdf(x) * (other.pdf(x) / q.pdf(x) - 1) ** n) for n in (2, 3)}
    terms = {n: derivative(name, 1, n) / math.factorial(n) * moments[n] for n in (2, 3)}

    def remainder(t: float, last: int) -> float:
        """D_f without the terms up to `last`, over t^last: it is halved with t."""
        p = mixture1d((1 - t, t), (0.0, 1.0), (1.0, 0.8))
        known = sum(terms[n] * t**n for n in range(2, last + 1))
        return (quadrature.integrate_divergence(get(name), p, gaussian(0, 1)) - known) / t**last

    for last in (2, 3):
        far, near = remainder(0.02, last), remainder(0.01, last)
        # Pearson's series ends with the square.
        assert abs(near) < 1e-6 if name in ("pearson", "alpha_2") else far / near == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("objective", GENERATOR_OBJECTIVES)
@pytest.mark.parametrize("name", SMOOTH)
def test_the_loss_is_its_formula_and_its_slope_the_effective_curvature(name: str, objective: str) -> None:
    """−dh/dr = u² f_h''(u), f_h'' by central differences of the integral that gives f_h."""
    expected = losses(name)[objective](RATIOS)
    np.testing.assert_allclose(properties.generator_loss(get(name), objective, log_ratio(RATIOS)), expected, atol=1e-12)
    for u in RATIOS:
        curvature = pytest.approx(-loss_slope(name, objective, u) / u, rel=1e-5, abs=1e-6)
        assert effective_curvature(name, objective, u) == curvature


def test_an_effective_divergence_with_a_name_has_the_slope_of_that_divergence() -> None:
    """−u f_h'' = h', for every row of the page's table that has a name."""
    rows = [
        (name, objective, other, factor)
        for name in CATALOGUE
        for objective in ("alternative", "ratio")
        for other, factor in properties.effective_names(get(name), objective).items()
        if not properties.training_error(get(name), objective)
    ]
    assert {name for name, *_ in rows} >= {"kl", "reverse_kl", "js", "gan", "pearson", "neyman", "non_saturating"}
    for name, objective, other, factor in rows:
        for u in RATIOS:
            expected = -u * factor * derivative(other, u, 2)
            assert loss_slope(name, objective, u) == pytest.approx(expected, rel=1e-6)


def test_ratio_kl_descends_minus_half_the_mean_square_of_r() -> None:
    p, mean, std, h = mixture1d(), 0.3, 2.0, 1e-4

    def descended(mean: float, std: float) -> float:
        def integrand(x: float) -> float:
            density = 0.6 * norm.pdf(x, -1.5, 0.6) + 0.4 * norm.pdf(x, 2.0, 0.8)
            return -density * (math.log(density) - norm.logpdf(x, mean, std)) ** 2 / 2

        return quad(integrand, -8, 9, epsabs=1e-11, limit=400)[0]

    on_mean = (descended(mean + h, std) - descended(mean - h, std)) / (2 * h)
    on_std = (descended(mean, std + h) - descended(mean, std - h)) / (2 * h)
    found = quadrature.loss_slopes(quadrature.Loss(get("kl"), *GENERATOR_OBJECTIVES["ratio"]), p, mean, std)
    assert found == pytest.approx((on_mean, on_std), rel=1e-5)
