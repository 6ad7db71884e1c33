"""Exact divergences against closed forms, against other quadratures of formulas typed anew, and against brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from support.formulas import NAMES, SMOOTH, f, losses

from gantrain.data.mixtures import Mixture, gaussian, mixture1d
from gantrain.objectives import divergences
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.theory import quadrature
from gantrain.theory.gaussian_fit import Ending, Fit, fit_gaussian, follow_loss, largest_slope
from gantrain.theory.quadrature import Loss, integrate_divergence, loss_slopes

EXAMPLE = mixture1d()
CLOSE = mixture1d((0.6, 0.4), (-0.5, 0.7), (0.6, 0.8))


def density(mixture: Mixture, x: Any) -> Any:
    parts = zip(mixture.weights, mixture.line_means, mixture.stds, strict=True)
    return sum(w * np.exp(-(((x - m) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi)) for w, m, s in parts)


def random_mixture(generator: np.random.Generator, count: int, spread: float = 2.0) -> Mixture:
    weights = generator.dirichlet(np.full(count, 3.0))
    return mixture1d(weights, generator.normal(0, spread, count), generator.uniform(0.5, 1.2, count))


# ---------------------------------------------------------------------------------------------------------------------
# Values


def kl(m: float, s: float, n: float, t: float) -> float:
    """KL between N(m, s²) and N(n, t²)."""
    return math.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5


def power(c: float, m: float, s: float, n: float, t: float) -> float:
    """∫ p^c q^{1−c} dx of N(m, s²) and N(n, t²), inf if it diverges (Liese and Vajda 1987)."""
    precision = c / s**2 + (1 - c) / t**2
    if precision <= 0:
        return math.inf
    log_scale = -c * math.log(s) - (1 - c) * math.log(t) - math.log(precision) / 2
    log_power = log_scale - c * (1 - c) * (m - n) ** 2 / (2 * s**2 * t**2 * precision)
    return math.exp(log_power) if log_power < 709 else math.inf


CLOSED_FORMS: dict[str, Callable[..., float]] = {
    "kl": kl,
    "reverse_kl": lambda m, s, n, t: kl(n, t, m, s),
    "jeffreys": lambda *pair: kl(*pair) + kl(*pair[2:], *pair[:2]),
    "squared_hellinger": lambda *pair: 2 - 2 * power(0.5, *pair),
    "pearson": lambda *pair: power(2.0, *pair) - 1,
    "neyman": lambda *pair: power(-1.0, *pair) - 1,
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_quadrature_gives_the_closed_forms_from_near_to_far(name):
    """Down to σ = 1e-3, where |r| reaches millions: infinite together, and else equal."""
    finite = 0
    for s, t, distance in itertools.product((1e-3, 0.7, 1.4), (1e-3, 0.3, 1.0, 1.41, 40.0), (0, 0.1, 3)):
        expected = CLOSED_FORMS[name](1 + distance, s, 1, t)
        # A square from which 1 is subtracted has the rounding errors of 1.
        found = integrate_divergence(divergences.get(name), gaussian(1 + distance, s), gaussian(1, t))
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-12), (s, t, distance)
        finite += math.isfinite(expected)
    assert finite > 10


def test_an_exponent_that_float32_rounds():
    """Most of the integral is where r is beyond the reach of the formulas, and F follows from its growth alone."""
    pair = (1.8, 1.28, -0.6, 0.84)
    expected = (power(1.7, *pair) - 1) / (1.7 * 0.7)
    found = integrate_divergence(divergences.alpha(1.7), gaussian(*pair[:2]), gaussian(*pair[2:]))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_mixtures_against_another_quadrature(name):
    generator = np.random.default_rng(1)
    for count in (1, 3):
        p, q = random_mixture(generator, count, 0.7), random_mixture(generator, 2, 0.7)
        # widths within 10 %, so that every divergence here is finite
        p, q = p._replace(stds=(0.8,) * count), q._replace(stds=(0.85, 0.75))

        def integrand(x: float, p: Mixture = p, q: Mixture = q) -> float:
            return float(density(q, x) * (f(name, density(p, x) / density(q, x)) - f(name, 1)))

        centres = [*p.line_means, *q.line_means]
        pieces = np.linspace(min(centres) - 14, max(centres) + 14, 81)
        expected = sum(quad(integrand, a, b, epsabs=1e-12, epsrel=1e-10)[0] for a, b in itertools.pairwise(pieces))
        assert integrate_divergence(divergences.get(name), p, q) == pytest.approx(expected, rel=1e-6), (p, q)


@pytest.mark.parametrize("name", NAMES)
def test_laws_of_values(name):
    """0 at p = q, positive elsewhere, dual with p and q exchanged, the same for every affine representative."""
    divergence, dual = divergences.get(name), divergences.get(f"dual_{name}")
    p, q = EXAMPLE, gaussian(0.2, 0.75)
    assert integrate_divergence(divergence, p, p) == pytest.approx(0, abs=1e-14)
    for a, b in ((p, q), (q, p)):
        found = integrate_divergence(divergence, a, b)
        assert found > 0
        assert integrate_divergence(dual, b, a) == pytest.approx(found, rel=1e-9)
        assert integrate_divergence(divergence.shifted(3.0), a, b) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("distance", [0.01, 0.7, 60])
def test_total_variation_of_two_equally_wide_gaussians(distance):
    found = integrate_divergence(divergences.total_variation, gaussian(distance, 1), gaussian(0, 1))
    assert found == pytest.approx(math.erf(distance / 2 / math.sqrt(2)), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "p_std", "finite_for"),
    [
        # q²/p needs 2/σ_q² > 1/σ_p²; p²/q needs 2/σ_p² > 1/σ_q²; p³/q² needs 3/σ_p² > 2/σ_q²
        ("neyman", 1.0, lambda s: s < math.sqrt(2)),
        ("pearson", 1.0, lambda s: s > math.sqrt(0.5)),
        ("alpha_3", 1.0, lambda s: s > math.sqrt(2 / 3)),
        ("alpha_-2", 2.0, lambda s: s < 2 * math.sqrt(1.5)),
        ("dual_alpha_-2", 2.0, lambda s: s > 2 * math.sqrt(2 / 3)),
        ("alpha_1.5", 1.0, lambda s: s > math.sqrt(1 / 3)),
        ("alpha_0.5", 1.0, lambda s: True),
        *((name, 1.0, lambda s: True) for name in divergences.CATALOGUE if name not in ("pearson", "neyman")),
    ],
)
def test_the_tails_decide_whether_a_divergence_is_infinite(name, p_std, finite_for):
    p = mixture1d((0.9, 0.1), (0.3, 0.0), (p_std / 2, p_std))  # the tails are those of the widest component
    for q_std in (0.3, 0.57, 0.58, 0.7, 0.71, 0.81, 0.82, 1.0, 1.41, 1.42, 1.63, 1.64, 2.44, 2.46, 9.0):
        found = integrate_divergence(divergences.get(name), p, gaussian(0, q_std))
        assert math.isfinite(found) == finite_for(q_std), q_std


@pytest.mark.parametrize(("name", "q_variance"), [("pearson", 0.5), ("neyman", 2)])
def test_at_the_boundary_itself_it_is_infinite(name, q_variance):
    assert integrate_divergence(divergences.get(name), gaussian(0, 1), gaussian(1, math.sqrt(q_variance))) == math.inf


# ---------------------------------------------------------------------------------------------------------------------
# Slopes


def frozen_slope(
    h: Callable[[Any], Any], p: Mixture, mean: float, std: float, x: np.ndarray | None = None
) -> np.ndarray:
    """E_z[∂h(u(x))/∂x · ∂x/∂θ] along x = mean + std·z, as backpropagation gives it; by differences."""
    x = mean + std * np.linspace(-20, 20, 6001) if x is None else x
    q, step = gaussian(mean, std), 1e-5
    above, below = (h(density(p, at) / density(q, at)) for at in (x + step, x - step))
    weighted = density(q, x) * (above - below) / (2 * step)
    return np.array([np.trapezoid(weighted, x), np.trapezoid(weighted * (x - mean) / std, x)])


@pytest.mark.parametrize("gen_objective", GENERATOR_OBJECTIVES)
@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_are_those_of_backpropagation_through_the_samples(name, gen_objective):
    loss = Loss(divergences.get(name), *GENERATOR_OBJECTIVES[gen_objective])
    for mean, std in ((0.4, 0.7), (-1.0, 0.75)):
        expected = frozen_slope(losses(name)[gen_objective], CLOSE, mean, std)
        assert loss_slopes(loss, CLOSE, mean, std) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_matched_slope_is_that_of_the_divergence(name):
    divergence, h = divergences.get(name), 1e-5

    def value(mean: float, std: float) -> float:
        return integrate_divergence(divergence, CLOSE, gaussian(mean, std))

    for mean, std in ((0.4, 0.7), (-1.0, 0.8)):
        on_mean = (value(mean + h, std) - value(mean - h, std)) / (2 * h)
        on_std = (value(mean, std + h) - value(mean, std - h)) / (2 * h)
        found = loss_slopes(Loss(divergence, "fake", -1), CLOSE, mean, std)
        assert found == pytest.approx((on_mean, on_std), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["gan", "kl"])
def test_an_affine_term_changes_the_slope_of_ratio_alone(name):
    for gen_objective, (part, sign) in GENERATOR_OBJECTIVES.items():
        plain, shifted = (
            loss_slopes(Loss(each, part, sign), CLOSE, 0.4, 0.7)
            for each in (divergences.get(name), divergences.get(name).shifted(-0.3))
        )
        assert (shifted == pytest.approx(plain, rel=1e-9)) == (gen_objective != "ratio")


def test_a_slope_of_an_infinite_loss_is_no_number():
    assert all(map(math.isnan, loss_slopes(Loss(divergences.get("neyman"), "fake", -1), EXAMPLE, 0.0, 2.0)))


# ---------------------------------------------------------------------------------------------------------------------
# Fits


@pytest.mark.parametrize("seed", range(3))
def test_kl_matches_moments(seed):
    p = random_mixture(np.random.default_rng(seed), 1 + seed)
    mean = np.dot(p.weights, p.line_means)
    variance = np.dot(p.weights, np.square(p.line_means) + np.square(p.stds)) - mean**2
    assert fit_gaussian(divergences.kl, p)[:2] == pytest.approx((mean, math.sqrt(variance)), rel=1e-7, abs=1e-7)


def brute_force(name: str, p: Mixture) -> tuple[float, float, float]:
    """The least D_f − f(1) over a grid of Gaussians, by the trapezoidal rule."""
    x = np.linspace(min(p.line_means) - 9, max(p.line_means) + 9, 801)
    on_p = density(p, x)
    best = (math.inf, 0.0, 0.0)
    for mean, std in itertools.product(
        np.linspace(min(p.line_means), max(p.line_means), 41), np.geomspace(0.35, 6, 41)
    ):
        on_q = density(gaussian(mean, std), x)
        inside = (on_q > 1e-200) & (on_p > 1e-200)
        with np.errstate(over="ignore"):
            ratio = on_p / np.where(inside, on_q, 1)
            height = np.trapezoid(np.where(inside, on_q * (f(name, ratio) - f(name, 1)), 0), x)
        missed = on_p[~inside].sum() + on_q[~inside].sum()
        if height > 0 and missed < 1e-3:
            best = min(best, (float(height), float(mean), float(std)))
    return best


@pytest.mark.parametrize(("name", "seed"), [("reverse_kl", 3), ("js", 5), ("jeffreys", 5)])
def test_no_gaussian_of_a_grid_is_better(name, seed):
    p = random_mixture(np.random.default_rng(seed), 3)
    found, (height, mean, std) = fit_gaussian(divergences.get(name), p), brute_force(name, p)
    assert found.value <= height + 1e-6
    assert found.value == pytest.approx(height, rel=0.05)
    assert found[:2] == pytest.approx((mean, std), abs=0.4)


@pytest.mark.parametrize("name", divergences.CATALOGUE)
def test_a_fit_is_a_minimum_and_moves_with_the_data(name):
    """docs/theory.md has these fits in a table."""
    divergence = divergences.get(name)
    found = fit_gaussian(divergence, EXAMPLE)
    assert loss_slopes(Loss(divergence, "fake", -1), EXAMPLE, *found[:2]) == pytest.approx((0, 0), abs=1e-6)
    for mean, std in ((0.02, 1.0), (-0.02, 1.0), (0.0, 1.02), (0.0, 0.98)):
        assert integrate_divergence(divergence, EXAMPLE, gaussian(found.mean + mean, found.std * std)) > found.value
    if name in ("kl", "reverse_kl"):
        moved = fit_gaussian(divergence, EXAMPLE.rescaled(shift=30.0, scale=1e-3))
        assert moved == pytest.approx(((found.mean - 30) / 1e-3, found.std / 1e-3, found.value), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_gaussian_is_its_own_fit(name):
    assert fit_gaussian(divergences.get(name), gaussian(5, 0.3)) == pytest.approx((5, 0.3, 0), abs=1e-9)


def test_a_component_that_is_far_away_is_given_up_by_reverse_kl():
    apart = mixture1d((0.6, 0.4), (0.0, 1e4), (1.0, 1.0))
    found = fit_gaussian(divergences.reverse_kl, apart)
    assert found == pytest.approx((0, 1, -math.log(0.6)), rel=1e-6, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Paths


def followed(name: str, gen_objective: str, start: tuple[float, float] = (0.0, 1.0)) -> Ending:
    return follow_loss(Loss(divergences.get(name), *GENERATOR_OBJECTIVES[gen_objective]), EXAMPLE, start)


def test_descent_of_reverse_kl_ends_in_a_local_minimum():
    found = followed("reverse_kl", "matched")
    assert found.outcome == "rests"
    assert found[1:] == pytest.approx((0.301, 1.660), abs=5e-4)
    assert followed("reverse_kl", "matched", (-1.2, 0.7))[1:] == pytest.approx((-1.4690, 0.6387), abs=5e-5)


@pytest.mark.parametrize(("name", "gen_objective"), [("js", "matched"), ("non_saturating", "ratio")])
def test_paths_end_where_small_steps_end(name, gen_objective):
    theta, x = np.array([0.0, 1.0]), np.linspace(-7, 7, 401)
    for _ in range(1500):
        theta = theta - 0.5 * frozen_slope(losses(name)[gen_objective], EXAMPLE, *theta, x=x)
    found = followed(name, gen_objective)
    assert found.outcome == "rests"
    assert found[1:] == pytest.approx(theta, abs=2e-3)


@pytest.mark.parametrize(
    ("name", "outcome"), [("gan", "rests"), ("kl", "collapses"), ("squared_hellinger", "collapses")]
)
def test_ratio_rests_only_where_its_loss_decreases_in_u(name, outcome):
    assert followed(name, "ratio").outcome == outcome


def test_other_endings():
    kl, gan, neyman = map(divergences.get, ("kl", "gan", "neyman"))
    one = gaussian(0, 1)
    assert follow_loss(Loss(neyman, "fake", -1), EXAMPLE, (0.0, 2.0)) == ("infinite", 0.0, 2.0)
    assert follow_loss(Loss(gan, "fake", -1), EXAMPLE, (150.0, 1.0)) == ("stalls", pytest.approx(150), pytest.approx(1))
    assert follow_loss(Loss(kl, "f", 1), one, (0.0, 1.0)) == ("unstable", 0.0, 1.0)
    assert follow_loss(Loss(kl.shifted(0.3), "f", 1), one, (0.0, 2.0)).outcome == "diverges"
    assert follow_loss(Loss(gan, "fake", -1), EXAMPLE, (1e5, 1.0)).outcome == "diverges"
    assert follow_loss(Loss(gan, "fake", -1), EXAMPLE, (0.0, 1e-5)).outcome == "collapses"


# ---------------------------------------------------------------------------------------------------------------------
# Total variation, which has a kink wherever p = q

TOUCHING = mixture1d((0.312019, 0.687981), (0.7765, -3.2569), (0.348, 0.594))


def total_variation(p: Mixture, mean: float, std: float) -> float:
    """Half of ∫ |p − q| by the midpoint rule on 200,000 points."""
    reach = 10 * max(*p.stds, std)
    low, high = min(*p.line_means, mean) - reach, max(*p.line_means, mean) + reach
    x = low + (high - low) * (np.arange(200_000) + 0.5) / 200_000
    return float(np.abs(density(p, x) - density(gaussian(mean, std), x)).mean() * (high - low) / 2)


@pytest.mark.parametrize("height", [1e-2, 1e-4, 1e-6, 1e-8])
def test_two_crossings_close_together_are_both_found(height):
    """Half of q = N(0, 1) and a bump, which reaches above q by so little."""
    q, bump, x = gaussian(0, 1), gaussian(0.3, 0.1), np.linspace(0.2, 0.4, 2_000_001)
    weight = float((density(q, x) / 2 / density(bump, x)).min()) * (1 + height)
    p = mixture1d((0.5, weight, 0.5 - weight), (0.0, 0.3, 19.0), (1.0, 0.1, 1.0))
    found = quadrature.find_crossings(p, q, torch.linspace(-3, 3, 4, dtype=torch.float64)).sort().values.numpy()
    assert len(found) == 2
    assert density(p, found) / density(q, found) == pytest.approx(1, abs=1e-12)
    assert density(p, found.mean()) > density(q, found.mean())


def test_the_fit_of_total_variation_is_a_minimum_where_crossings_lie_close_together():
    found = fit_gaussian(divergences.total_variation, TOUCHING)
    assert found[:2] == pytest.approx((-3.1369, 0.8465), abs=5e-5)
    assert found.value == pytest.approx(0.31133482, abs=1e-8)
    assert found.value == pytest.approx(total_variation(TOUCHING, *found[:2]), abs=1e-8)
    assert largest_slope(divergences.total_variation, TOUCHING, found) < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_no_gaussian_nearby_or_of_a_grid_has_a_smaller_total_variation(seed):
    generator = np.random.default_rng(seed)
    p = random_mixture(generator, 2 + seed % 2)
    found = fit_gaussian(divergences.total_variation, p)
    assert found.value == pytest.approx(total_variation(p, *found[:2]), abs=1e-8)
    assert found.value <= brute_force("total_variation", p)[0] + 1e-6
    for reach in (1e-3, 1e-2, 0.1):
        for mean, std in generator.normal(0, reach, (10, 2)):
            assert total_variation(p, found.mean + mean, found.std * math.exp(std)) > found.value - 1e-9
    assert largest_slope(divergences.total_variation, p, found) < 1e-6


def test_the_slope_of_a_fit_is_that_of_its_divergence():
    fit, h = Fit(0.2, 1.4, 0.0), 1e-5
    fit = fit._replace(value=integrate_divergence(divergences.js, EXAMPLE, gaussian(*fit[:2])))

    def height(mean: float, std: float) -> float:
        return math.log1p(integrate_divergence(divergences.js, EXAMPLE, gaussian(mean, std)))

    on_mean = (height(0.2 + h * 1.4, 1.4) - height(0.2 - h * 1.4, 1.4)) / (2 * h)
    on_std = (height(0.2, 1.4 * (1 + h)) - height(0.2, 1.4 * (1 - h))) / (2 * h)
    assert largest_slope(divergences.js, EXAMPLE, fit) == pytest.approx(max(abs(on_mean), abs(on_std)), rel=1e-4)
