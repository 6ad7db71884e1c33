"""The formulas of docs/theory.md that belong to no module alone, against SciPy's quadrature and mpmath's derivatives.

Where the page's other formulas are checked: f, real, fake, their laws and duals in test_divergences; the bound,
calibration and the gradients of the three objectives in test_objective; infinite divergences and best Gaussians in
test_quadrature; costs, suprema and integrals of effective divergences in test_properties; the Dirac-GAN in test_dirac.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from test_divergences import SMOOTH, TYPED, slope, typed_alpha

from gantrain.data.mixtures import gaussian, mixture1d
from gantrain.objectives.divergences import CATALOGUE, get
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.theory import properties, quadrature

RATIOS = (0.1, 0.5, 1.0, 1.7, 6.0)
# h(u) of each generator objective, of f and its derivative.
LOSSES: dict[str, Callable[[str, float], float]] = {
    "matched": lambda name, u: typed(name, u) - u * derivative(name, u),
    "ratio": lambda name, u: typed(name, u),
    "alternative": lambda name, u: -derivative(name, u),
}


def typed(name: str, u: float) -> float:
    return TYPED[name](mpmath.mpf(u), mpmath)


def derivative(name: str, u: float, order: int = 1) -> float:
    known = TYPED.get(name) or typed_alpha(float(name.removeprefix("alpha_")))
    with mpmath.workdps(40):
        return mpmath.diff(lambda t: known(t, mpmath), mpmath.mpf(u), order)


def loss_slope(name: str, objective: str, u: float) -> float:
    """h'(u), from f' and f'' alone."""
    first, second = derivative(name, u), derivative(name, u, 2)
    return float({"matched": -u * second, "ratio": first, "alternative": -second}[objective])


def log_ratio(u: object) -> torch.Tensor:
    return torch.tensor(u, dtype=torch.float64).log()


def test_every_smooth_divergence_and_every_objective_is_typed() -> None:
    assert set(SMOOTH) == set(TYPED)
    assert set(LOSSES) == set(GENERATOR_OBJECTIVES)
    assert set(CATALOGUE) - set(TYPED) == {"total_variation"}


# ---------------------------------------------------------------------------------------------------------------------
# The discriminator


@pytest.mark.parametrize(("p", "q"), [(0.3, 0.1), (0.02, 0.4), (1.0, 1.0)])
def test_the_logit_of_the_best_discriminator_is_the_log_ratio(p: float, q: float) -> None:
    best = minimize_scalar(lambda d: -p * math.log(d) - q * math.log1p(-d), bounds=(1e-9, 1 - 1e-9), method="bounded")
    assert best.x == pytest.approx(p / (p + q), abs=1e-5)
    assert float(log_ratio(p / q).sigmoid()) == pytest.approx(p / (p + q), rel=1e-14)


def test_the_game_of_goodfellow_is_worth_two_jsd_minus_log_four() -> None:
    p, q = norm(0, 1), norm(1.2, 1.6)

    def best(x: float) -> float:
        return p.pdf(x) / (p.pdf(x) + q.pdf(x))

    worth = integral(lambda x: p.pdf(x) * math.log(best(x)) + q.pdf(x) * math.log1p(-best(x)))
    two_jsd = integral(lambda x: sum(a.pdf(x) * math.log(2 * a.pdf(x) / (p.pdf(x) + q.pdf(x))) for a in (p, q)))
    assert worth == pytest.approx(two_jsd - math.log(4), rel=1e-9)
    found = quadrature.integrate_divergence(get("gan"), gaussian(0, 1), gaussian(1.2, 1.6))
    assert found == pytest.approx(two_jsd, rel=1e-9)
    assert get("gan").f_at_one == pytest.approx(-math.log(4))


@pytest.mark.parametrize("name", SMOOTH)
def test_the_bound_rises_to_the_ratio_from_both_sides_with_the_weight_of_real(name: str) -> None:
    """∂/∂r (p real(r) − q fake(r)) = real'(r) (p − e^r q), and real'(r) = e^r f''(e^r)."""
    p, q, u = 0.3, 0.2, np.array(RATIOS)
    found = slope(lambda r: p * get(name).real(r) - q * get(name).fake(r), log_ratio(u))
    weights = np.array([float(each * derivative(name, each, 2)) for each in RATIOS])
    np.testing.assert_allclose(found, weights * (p - u * q), rtol=1e-9)
    assert (weights > 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# Near p = q


@pytest.mark.parametrize("name", SMOOTH)
def test_near_equality_every_divergence_is_half_its_curvature_times_chi_square(name: str) -> None:
    """D_f − f(1) = ½ f''(1) E_q[(u − 1)²] + ⅙ f'''(1) E_q[(u − 1)³] + O(t⁴), for p = (1 − t) q + t N(1, .8²)."""
    q, other = norm(0, 1), norm(1, 0.8)

    def term(order: int, t: float) -> float:
        moment = integral(lambda x: q.pdf(x) * (other.pdf(x) / q.pdf(x) - 1) ** order)
        return float(derivative(name, 1, order)) / math.factorial(order) * moment * t**order

    def remainder(t: float, last: int) -> float:
        """What D_f has beyond the terms up to `last`, over t^last: it is halved with t."""
        p = mixture1d((1 - t, t), (0.0, 1.0), (1.0, 0.8))
        known = sum(term(order, t) for order in range(2, last + 1))
        return (quadrature.integrate_divergence(get(name), p, gaussian(0, 1)) - known) / t**last

    for last in (2, 3):
        far, near = remainder(0.02, last), remainder(0.01, last)
        # Pearson's series ends with the square.
        assert abs(near) < 1e-6 if name in ("pearson", "alpha_2") else far / near == pytest.approx(2, rel=0.15)


# ---------------------------------------------------------------------------------------------------------------------
# What a generator's loss descends


@pytest.mark.parametrize("objective", GENERATOR_OBJECTIVES)
@pytest.mark.parametrize("name", SMOOTH)
def test_the_loss_is_what_it_is_called_and_its_slope_the_effective_curvature(name: str, objective: str) -> None:
    """−dh/dr = u² f_h''(u), f_h'' by central differences of the integral that gives f_h."""
    expected = [float(LOSSES[objective](name, u)) for u in RATIOS]
    np.testing.assert_allclose(properties.generator_loss(get(name), objective, log_ratio(RATIOS)), expected, atol=1e-12)
    for u in RATIOS:
        assert effective_curvature(name, objective, u) == pytest.approx(
            -loss_slope(name, objective, u) / u, rel=1e-5, abs=1e-6
        )


@pytest.mark.parametrize("name", SMOOTH)
def test_at_equality_the_curvature_under_ratio_is_minus_the_slope_of_f(name: str) -> None:
    assert effective_curvature(name, "ratio", 1.0) == pytest.approx(-float(derivative(name, 1)), abs=1e-6)


def test_at_equality_ratio_is_repelled_by_kl_and_pulled_by_what_the_page_says() -> None:
    """−f'(1) by hand; where it is 0 the pull changes its sign there."""
    curvatures = {"kl": -1, "reverse_kl": 1, "gan": math.log(2), "non_saturating": 1 / 2}
    curvatures |= {"softened_reverse_kl": 1.0} | dict.fromkeys(("js", "squared_hellinger", "pearson", "neyman"), 0)
    curvatures |= {"jeffreys": 0, "le_cam": 0}
    found = {name: effective_curvature(name, "ratio", 1.0) for name in curvatures}
    assert found == pytest.approx(curvatures, abs=1e-6)
    assert set(curvatures) == set(CATALOGUE) - {"total_variation"}


def test_a_divergence_that_an_objective_is_said_to_descend_has_its_slope() -> None:
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
            expected = -u * factor * float(derivative(other, u, 2))
            assert loss_slope(name, objective, u) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(0.3, 2.0), (-0.5, 1.4)])
def test_ratio_kl_descends_minus_half_the_mean_square_of_r(mean: float, std: float) -> None:
    weights, means, stds = (0.6, 0.4), (-1.5, 2.0), (0.6, 0.8)

    def descended(mean: float, std: float) -> float:
        def integrand(x: float) -> float:
            p = sum(w * norm.pdf(x, m, s) for w, m, s in zip(weights, means, stds, strict=True))
            return -p * (math.log(p) - norm.logpdf(x, mean, std)) ** 2 / 2

        return quad(integrand, -8, 9, epsabs=1e-11, limit=400)[0]

    h = 1e-4
    on_mean = (descended(mean + h, std) - descended(mean - h, std)) / (2 * h)
    on_std = (descended(mean, std + h) - descended(mean, std - h)) / (2 * h)
    loss = quadrature.Loss(get("kl"), *GENERATOR_OBJECTIVES["ratio"])
    found = quadrature.loss_slopes(loss, mixture1d(weights, means, stds), mean, std)
    assert found == pytest.approx((on_mean, on_std), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------


def integral(integrand: Callable[[float], float]) -> float:
    return quad(integrand, -12, 12, epsabs=1e-13, limit=400, points=[-3, 0, 1, 3])[0]


def effective_curvature(name: str, objective: str, u: float) -> float:
    """f_h''(u), by differences of fourth order."""
    step = 1e-2 * u
    at = properties.effective_f(get(name), objective, log_ratio([u + k * step for k in (-2, -1, 0, 1, 2)])).numpy()
    return float(at @ [-1, 16, -30, 16, -1]) / (12 * step**2)
