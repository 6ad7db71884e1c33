"""Exact divergences against closed forms, against other quadratures of formulas typed anew, and against brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from scipy.integrate import quad

from gantrain.data.mixtures import Mixture, gaussian, mixture1d
from gantrain.objectives import divergences
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.theory.gaussian_fit import Ending, fit_gaussian, follow_loss
from gantrain.theory.quadrature import GAUSSIAN_CLOSED_FORMS, Loss, integrate_divergence, loss_slopes

EXAMPLE = mixture1d()
CLOSE = mixture1d((0.6, 0.4), (-0.5, 0.7), (0.6, 0.8))
OTHER = mixture1d((0.6, 0.4), (-2.0, 2.0), (0.8, 1.1))

# f(u) and f'(u), typed anew.
TYPED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "kl": (lambda u: u * np.log(u), lambda u: 1 + np.log(u)),
    "reverse_kl": (lambda u: -np.log(u), lambda u: -1 / u),
    "js": (lambda u: u * np.log(u) - (1 + u) * np.log((1 + u) / 2), lambda u: np.log(2 * u / (1 + u))),
    "gan": (lambda u: u * np.log(u) - (1 + u) * np.log(1 + u), lambda u: np.log(u / (1 + u))),
    "squared_hellinger": (lambda u: (np.sqrt(u) - 1) ** 2, lambda u: 1 - u**-0.5),
    "pearson": (lambda u: (u - 1) ** 2, lambda u: 2 * (u - 1)),
    "neyman": (lambda u: (1 - u) ** 2 / u, lambda u: 1 - u**-2),
    "jeffreys": (lambda u: (u - 1) * np.log(u), lambda u: np.log(u) + 1 - 1 / u),
    "non_saturating": (lambda u: np.log(1 + 1 / u), lambda u: -1 / (u * (u + 1))),
    "softened_reverse_kl": (
        lambda u: (1 + u) * np.log((1 + u) / (2 * u)),
        lambda u: np.log((1 + u) / (2 * u)) - 1 / u,
    ),
    "le_cam": (lambda u: (u - 1) ** 2 / (u + 1), lambda u: 1 - 4 / (u + 1) ** 2),
    "total_variation": (lambda u: abs(u - 1) / 2, lambda u: np.sign(u - 1) / 2),
    "alpha_0.3": (lambda u: (u**0.3 - 1 - 0.3 * (u - 1)) / -0.21, lambda u: (u**-0.7 - 1) / -0.7),
    "alpha_3": (lambda u: (u**3 - 1 - 3 * (u - 1)) / 6, lambda u: (u**2 - 1) / 2),
    "dual_alpha_3": (lambda u: (u**-2 - u - 3 * (1 - u)) / 6, lambda u: (-2 * u**-3 + 2) / 6),
    "dual_non_saturating": (lambda u: u * np.log(1 + u), lambda u: np.log(1 + u) + u / (1 + u)),
}
SMOOTH = [name for name in TYPED if name != "total_variation"]


def test_every_divergence_is_typed():
    assert set(divergences.CATALOGUE) <= set(TYPED)


def density(mixture: Mixture, x: Any) -> Any:
    parts = zip(mixture.weights, mixture.line_means, mixture.stds, strict=True)
    return sum(w * np.exp(-(((x - m) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi)) for w, m, s in parts)


def random_mixture(generator: np.random.Generator, count: int, spread: float = 2.0) -> Mixture:
    weights = generator.dirichlet(np.full(count, 3.0))
    return mixture1d(weights, generator.normal(0, spread, count), generator.uniform(0.5, 1.2, count))


# ---------------------------------------------------------------------------------------------------------------------
# Values

GAUSSIANS = [(0.3, 1.2, -0.5, 1.0), (0.0, 1.0, 0.0, 1.3), (2.0, 0.9, -1.0, 1.2), (0.0, 1.0, 4.0, 0.8)]


@pytest.mark.parametrize("name", GAUSSIAN_CLOSED_FORMS)
@pytest.mark.parametrize("case", GAUSSIANS)
def test_closed_forms_are_the_integrals(name, case):
    def log_normal(x, mean, std):
        return -(((x - mean) / std) ** 2) / 2 - mpmath.log(std * mpmath.sqrt(2 * mpmath.pi))

    typed = {
        "kl": lambda r: mpmath.exp(r) * r,
        "reverse_kl": lambda r: -r,
        "jeffreys": lambda r: mpmath.expm1(r) * r,
        "squared_hellinger": lambda r: mpmath.expm1(r / 2) ** 2,
        "pearson": lambda r: mpmath.expm1(r) ** 2,
        "neyman": lambda r: mpmath.expm1(-r) ** 2 * mpmath.exp(r),
    }
    m1, s1, m2, s2 = case
    found = GAUSSIAN_CLOSED_FORMS[name](gaussian(m1, s1), gaussian(m2, s2))
    f = typed[name]

    def integrand(x):
        log_q = log_normal(x, m2, s2)
        return mpmath.exp(log_q) * f(log_normal(x, m1, s1) - log_q)

    expected = mpmath.quad(integrand, range(-60, 61, 6), maxdegree=6)
    assert found == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("name", GAUSSIAN_CLOSED_FORMS)
def test_quadrature_gives_the_closed_forms_from_near_to_far(name):
    """Down to σ = 1e-3, where |r| reaches millions: infinite together, and else equal."""
    finite = 0
    for s1, s2, distance in itertools.product(
        (1e-3, 0.1, 0.7, 1.0, 1.4), (1e-3, 0.3, 1.0, 1.41, 1.5, 40.0), (0, 0.1, 3)
    ):
        p, q = gaussian(1 + distance, s1), gaussian(1, s2)
        expected = GAUSSIAN_CLOSED_FORMS[name](p, q)
        # What is left of a square after 1 is taken away is known to rounding errors of 1.
        assert integrate_divergence(divergences.get(name), p, q) == pytest.approx(expected, rel=1e-8, abs=1e-12), (
            s1,
            s2,
            distance,
        )
        finite += math.isfinite(expected)
    assert finite > 20


@pytest.mark.parametrize("name", TYPED)
def test_mixtures_against_another_quadrature(name):
    generator = np.random.default_rng(1)
    f = TYPED[name][0]
    for count in (1, 2, 3):
        p, q = random_mixture(generator, count, 0.7), random_mixture(generator, 2, 0.7)
        # widths within 10 %, so that every divergence here is finite
        p, q = p._replace(stds=(0.8,) * count), q._replace(stds=(0.85, 0.75))

        def integrand(x: float, p: Mixture = p, q: Mixture = q) -> float:
            return float(density(q, x) * (f(density(p, x) / density(q, x)) - f(1.0)))

        centres = [*p.line_means, *q.line_means]
        low, high = min(centres) - 14, max(centres) + 14
        pieces = np.linspace(low, high, 81)
        expected = sum(quad(integrand, a, b, epsabs=1e-12, epsrel=1e-10)[0] for a, b in itertools.pairwise(pieces))
        assert integrate_divergence(divergences.get(name), p, q) == pytest.approx(expected, rel=1e-6), (p, q)


@pytest.mark.parametrize("name", TYPED)
def test_laws_of_values(name):
    """0 at p = q, positive elsewhere, dual with p and q exchanged, the same for every affine representative."""
    f, dual = divergences.get(name), divergences.get(f"dual_{name}")
    p, q = EXAMPLE, gaussian(0.2, 0.75)
    assert integrate_divergence(f, p, p) == pytest.approx(0, abs=1e-14)
    for a, b in ((p, q), (q, p)):
        found = integrate_divergence(f, a, b)
        assert found > 0
        assert integrate_divergence(dual, b, a) == pytest.approx(found, rel=1e-9)
        assert integrate_divergence(f.shifted(3.0), a, b) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("distance", [0.01, 0.7, 3, 60])
def test_total_variation_of_two_equally_wide_gaussians(distance):
    found = integrate_divergence(divergences.get("total_variation"), gaussian(distance, 1), gaussian(0, 1))
    assert found == pytest.approx(math.erf(distance / 2 / math.sqrt(2)), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "p_std", "finite_for"),
    [
        # q^2/p needs 2/σ_q² > 1/σ_p²; p²/q needs 2/σ_p² > 1/σ_q²; p³/q² needs 3/σ_p² > 2/σ_q²
        ("neyman", 1.0, lambda s: s < math.sqrt(2)),
        ("pearson", 1.0, lambda s: s > math.sqrt(0.5)),
        ("alpha_3", 1.0, lambda s: s > math.sqrt(2 / 3)),
        ("alpha_-2", 2.0, lambda s: s < 2 * math.sqrt(1.5)),
        ("dual_alpha_-2", 2.0, lambda s: s > 2 * math.sqrt(2 / 3)),
        ("alpha_1.5", 1.0, lambda s: s > math.sqrt(1 / 3)),
        ("alpha_0.5", 1.0, lambda s: True),
        ("alpha_0", 1.0, lambda s: True),
        *((name, 1.0, lambda s: True) for name in divergences.CATALOGUE if name not in ("pearson", "neyman")),
    ],
)
def test_where_a_divergence_is_infinite(name, p_std, finite_for):
    f = divergences.get(name)
    p = mixture1d((0.9, 0.1), (0.3, 0.0), (p_std / 2, p_std))  # the tails are those of the widest component
    for q_std in (0.3, 0.57, 0.58, 0.7, 0.71, 0.81, 0.82, 1.0, 1.41, 1.42, 1.63, 1.64, 2.44, 2.46, 9.0):
        assert math.isfinite(integrate_divergence(f, p, gaussian(0, q_std))) == finite_for(q_std), q_std
    if name in ("pearson", "neyman"):  # the boundary itself
        assert (
            integrate_divergence(f, gaussian(0, 1), gaussian(1, math.sqrt(0.5 if name == "pearson" else 2))) == math.inf
        )


# ---------------------------------------------------------------------------------------------------------------------
# Slopes


def frozen_slope(
    h: Callable[[Any], Any], p: Mixture, mean: float, std: float, x: np.ndarray | None = None
) -> np.ndarray:
    """E_z[∂h(u(x))/∂x · ∂x/∂θ] along x = mean + std·z, the form in which a generator meets it; by differences."""
    x = mean + std * np.linspace(-20, 20, 6001) if x is None else x
    q = gaussian(mean, std)
    step = 1e-5
    slopes = (h(density(p, x + step) / density(q, x + step)) - h(density(p, x - step) / density(q, x - step))) / (
        2 * step
    )
    z = (x - mean) / std
    return np.array([np.trapezoid(density(q, x) * slopes, x), np.trapezoid(density(q, x) * slopes * z, x)])


def losses(name: str) -> dict[str, Callable[[Any], Any]]:
    """Each gen_objective's loss of u."""
    f, df = TYPED[name]
    return {"matched": lambda u: f(u) - u * df(u), "ratio": f, "alternative": lambda u: -df(u)}


@pytest.mark.parametrize("gen_objective", GENERATOR_OBJECTIVES)
@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_are_those_that_a_generator_meets(name, gen_objective):
    loss = Loss(divergences.get(name), *GENERATOR_OBJECTIVES[gen_objective])
    for mean, std in ((0.4, 0.7), (-1.0, 0.75)):
        found = loss_slopes(loss, CLOSE, mean, std)
        expected = frozen_slope(losses(name)[gen_objective], CLOSE, mean, std)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", TYPED)
def test_the_matched_slope_is_that_of_the_divergence(name):
    f, step = divergences.get(name), 1e-5
    for mean, std in ((0.4, 0.7), (-1.0, 0.8)):
        differences = (
            (
                integrate_divergence(f, CLOSE, gaussian(mean + step, std))
                - integrate_divergence(f, CLOSE, gaussian(mean - step, std))
            )
            / (2 * step),
            (
                integrate_divergence(f, CLOSE, gaussian(mean, std + step))
                - integrate_divergence(f, CLOSE, gaussian(mean, std - step))
            )
            / (2 * step),
        )
        assert loss_slopes(Loss(f, "fake", -1), CLOSE, mean, std) == pytest.approx(differences, rel=1e-5, abs=1e-7)


def test_the_published_numbers():
    """THEORY: d/dμ at q = N(.3, 2²) of KL, of its `ratio` loss, and of reverse KL under both."""
    found = [
        loss_slopes(Loss(divergences.get(name), part, sign), OTHER, 0.3, 2.0)[0]
        for name in ("kl", "reverse_kl")
        for part, sign in (GENERATOR_OBJECTIVES["matched"], GENERATOR_OBJECTIVES["ratio"])
    ]
    assert found == pytest.approx([0.17500, -0.28698, 0.07709, 0.07709], abs=5e-6)


def test_a_slope_of_an_infinite_loss_is_no_number():
    assert all(map(math.isnan, loss_slopes(Loss(divergences.get("neyman"), "fake", -1), EXAMPLE, 0.0, 2.0)))


# ---------------------------------------------------------------------------------------------------------------------
# Fits


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("kl", -0.1000, 1.8472),
        ("reverse_kl", -1.4690, 0.6387),
        ("non_saturating", -1.4785, 0.6251),
        ("softened_reverse_kl", -1.4803, 0.6228),
    ],
)
def test_the_example(name, mean, std):
    found = fit_gaussian(divergences.get(name), EXAMPLE)
    assert found[:2] == pytest.approx((mean, std), abs=5e-5)


def test_neyman_is_narrower_than_what_practice_uses():
    stds = [
        fit_gaussian(divergences.get(name), EXAMPLE).std
        for name in ("neyman", "softened_reverse_kl", "reverse_kl", "kl")
    ]
    assert stds == sorted(stds)


@pytest.mark.parametrize("seed", range(4))
def test_kl_matches_moments(seed):
    p = random_mixture(np.random.default_rng(seed), 1 + seed)
    mean = np.dot(p.weights, p.line_means)
    variance = np.dot(p.weights, np.square(p.line_means) + np.square(p.stds)) - mean**2
    assert fit_gaussian(divergences.get("kl"), p)[:2] == pytest.approx((mean, math.sqrt(variance)), rel=1e-7, abs=1e-7)


def brute_force(name: str, p: Mixture) -> tuple[float, float, float]:
    """The least D_f − f(1) over a grid of Gaussians, by the trapezoidal rule."""
    f = TYPED[name][0]
    x = np.linspace(min(p.line_means) - 9, max(p.line_means) + 9, 801)
    on_p = density(p, x)
    best = (math.inf, 0.0, 0.0)
    for mean, std in itertools.product(
        np.linspace(min(p.line_means), max(p.line_means), 41), np.geomspace(0.35, 6, 41)
    ):
        on_q = density(gaussian(mean, std), x)
        inside = (on_q > 1e-200) & (on_p > 1e-200)
        with np.errstate(over="ignore"):
            height = np.trapezoid(np.where(inside, on_q * (f(on_p / np.where(inside, on_q, 1)) - f(1.0)), 0), x)
        missed = density(p, x)[~inside].sum() + on_q[~inside].sum()
        if height > 0 and missed < 1e-3:
            best = min(best, (float(height), float(mean), float(std)))
    return best


@pytest.mark.parametrize(
    ("name", "seed"),
    [*itertools.product(["reverse_kl", "js", "squared_hellinger", "jeffreys"], [3, 5]), ("total_variation", 5)],
)
def test_no_gaussian_of_a_grid_is_better(name, seed):
    p = random_mixture(np.random.default_rng(seed), 3)
    found, (height, mean, std) = fit_gaussian(divergences.get(name), p), brute_force(name, p)
    assert found.value <= height + 1e-6
    assert found.value == pytest.approx(height, rel=0.05)
    assert found[:2] == pytest.approx((mean, std), abs=0.4)


@pytest.mark.parametrize("name", TYPED)
def test_a_fit_is_a_minimum_and_moves_with_the_data(name):
    f = divergences.get(name)
    found = fit_gaussian(f, EXAMPLE)
    assert loss_slopes(Loss(f, "fake", -1), EXAMPLE, *found[:2]) == pytest.approx((0, 0), abs=1e-6)
    for mean, std in ((0.02, 1.0), (-0.02, 1.0), (0.0, 1.02), (0.0, 0.98)):
        assert integrate_divergence(f, EXAMPLE, gaussian(found.mean + mean, found.std * std)) > found.value
    moved = fit_gaussian(f, EXAMPLE.rescaled(shift=30.0, scale=1e-3))
    assert moved == pytest.approx(((found.mean - 30) / 1e-3, found.std / 1e-3, found.value), rel=1e-5)


@pytest.mark.parametrize("name", TYPED)
def test_a_gaussian_is_its_own_fit(name):
    assert fit_gaussian(divergences.get(name), gaussian(5, 0.3)) == pytest.approx((5, 0.3, 0), abs=1e-9)


def test_many_components_and_wide_spread():
    p = mixture1d((0.1,) * 10, range(10), (0.3,) * 10)
    found = fit_gaussian(divergences.get("kl"), p)
    assert found[:2] == pytest.approx((p.mean, p.std), rel=1e-7)
    apart = mixture1d((0.6, 0.4), (0.0, 1e4), (1.0, 1.0))
    assert fit_gaussian(divergences.get("reverse_kl"), apart) == pytest.approx(
        (0, 1, -math.log(0.6)), rel=1e-6, abs=1e-6
    )


# ---------------------------------------------------------------------------------------------------------------------
# Paths


def descended(name: str, gen_objective: str, start: tuple[float, float], rate: float = 0.3) -> np.ndarray:
    """Where many small steps along the slopes that a generator meets lead."""
    theta, h, x = np.array(start), losses(name)[gen_objective], np.linspace(-7, 7, 701)
    for _ in range(2500):
        theta = theta - rate * frozen_slope(h, EXAMPLE, *theta, x=x)
    return theta


def followed(name: str, gen_objective: str, start: tuple[float, float] = (0.0, 1.0)) -> Ending:
    return follow_loss(Loss(divergences.get(name), *GENERATOR_OBJECTIVES[gen_objective]), EXAMPLE, start)


def test_descent_of_reverse_kl_ends_in_a_local_minimum():
    found = followed("reverse_kl", "matched")
    assert found.outcome == "rests"
    assert found[1:] == pytest.approx((0.301, 1.660), abs=5e-4)
    assert followed("reverse_kl", "matched", (-1.2, 0.7))[1:] == pytest.approx((-1.4690, 0.6387), abs=5e-5)


@pytest.mark.parametrize(
    ("name", "gen_objective"),
    [
        ("js", "matched"),
        ("reverse_kl", "matched"),
        ("gan", "ratio"),
        ("non_saturating", "ratio"),
        ("js", "alternative"),
    ],
)
def test_paths_end_where_small_steps_end(name, gen_objective):
    found = followed(name, gen_objective)
    assert found.outcome == "rests"
    assert found[1:] == pytest.approx(descended(name, gen_objective, (0.0, 1.0)), abs=2e-3)


def test_three_ways_to_the_non_saturating_loss():
    ways = [("softened_reverse_kl", "matched"), ("non_saturating", "ratio"), ("gan", "alternative")]
    endings = [followed(*way) for way in ways]
    assert {ending.outcome for ending in endings} == {"rests"}
    assert endings[1][1:] == pytest.approx(endings[0][1:], rel=1e-6)
    assert endings[2][1:] == pytest.approx(endings[0][1:], rel=1e-6)


def test_ratio_rests_only_where_its_loss_falls_in_u():
    rests = {name for name in divergences.CATALOGUE if followed(name, "ratio").outcome == "rests"}
    assert rests == {"reverse_kl", "gan", "non_saturating", "softened_reverse_kl"}
    for name in ("kl", "squared_hellinger", "js", "pearson", "jeffreys", "le_cam"):
        assert followed(name, "ratio").outcome == "collapses"


def test_other_endings():
    kl, gan, neyman = map(divergences.get, ("kl", "gan", "neyman"))
    one = gaussian(0, 1)
    assert follow_loss(Loss(neyman, "fake", -1), EXAMPLE, (0.0, 2.0)) == ("infinite", 0.0, 2.0)
    assert follow_loss(Loss(gan, "fake", -1), EXAMPLE, (150.0, 1.0)) == ("stalls", pytest.approx(150), pytest.approx(1))
    assert follow_loss(Loss(kl, "f", 1), one, (0.0, 1.0)) == ("unstable", 0.0, 1.0)
    assert follow_loss(Loss(kl.shifted(0.3), "f", 1), one, (0.0, 2.0)).outcome == "diverges"
    assert follow_loss(Loss(gan, "fake", -1), EXAMPLE, (1e5, 1.0)).outcome == "diverges"
    assert follow_loss(Loss(gan, "fake", -1), EXAMPLE, (0.0, 1e-5)).outcome == "collapses"


def test_an_affine_term_changes_ratio_alone():
    gan = divergences.get("gan")
    plain, shifted = (
        [follow_loss(Loss(f, *GENERATOR_OBJECTIVES[name]), EXAMPLE, (0.0, 1.0)) for name in ("matched", "ratio")]
        for f in (gan, gan.shifted(-0.3))
    )
    assert shifted[0][1:] == pytest.approx(plain[0][1:], rel=1e-6)
    assert abs(shifted[1].mean - plain[1].mean) > 0.01
