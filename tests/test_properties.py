"""Facts about divergences, against closed forms typed here, SciPy's quadrature and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from gantrain.objectives import divergences
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.theory import description, properties

Array = NDArray[np.float64]
INF = math.inf

# f(u), from the literature.
F: dict[str, Callable[[Array], Array]] = {
    "kl": lambda u: u * np.log(u),
    "reverse_kl": lambda u: -np.log(u),
    "js": lambda u: u * np.log(2 * u / (1 + u)) + np.log(2 / (1 + u)),
    "gan": lambda u: u * np.log(u / (1 + u)) - np.log1p(u),
    "squared_hellinger": lambda u: (np.sqrt(u) - 1) ** 2,
    "pearson": lambda u: (u - 1) ** 2,
    "neyman": lambda u: (u - 1) ** 2 / u,
    "jeffreys": lambda u: (u - 1) * np.log(u),
    "non_saturating": lambda u: np.log1p(1 / u),
    "softened_reverse_kl": lambda u: (1 + u) * np.log((1 + u) / (2 * u)),
    "le_cam": lambda u: (u - 1) ** 2 / (u + 1),
    "total_variation": lambda u: np.abs(u - 1) / 2,
    "alpha_0.3": lambda u: (u**0.3 - 1 - 0.3 * (u - 1)) / (0.3 * -0.7),
    "alpha_-1.5": lambda u: (u**-1.5 - 1 + 1.5 * (u - 1)) / (1.5 * 2.5),
    "dual_non_saturating": lambda u: u * np.log1p(u),
}
SMOOTH = [name for name in F if name != "total_variation"]
RATIOS = np.exp(np.linspace(-3, 3, 25))  # r = ±1 and ±2 among them

# Cost of invented mass, f(0) − f(1) + f'(1), and of missed mass, f'(∞) − f'(1).
COSTS = {
    "kl": (1, INF),
    "reverse_kl": (INF, 1),
    "js": (math.log(2), math.log(2)),
    "gan": (math.log(2), math.log(2)),
    "squared_hellinger": (1, 1),
    "pearson": (1, INF),
    "neyman": (INF, 1),
    "jeffreys": (INF, INF),
    "non_saturating": (INF, 1 / 2),
    "softened_reverse_kl": (INF, 1 - math.log(2)),
    "le_cam": (1, 1),
    "total_variation": (1 / 2, 1 / 2),
    "alpha_0.3": (1 / 0.3, 1 / 0.7),
    "alpha_0.7": (1 / 0.7, 1 / 0.3),
    "alpha_0": (INF, 1),
    "alpha_1": (1, INF),
    "alpha_-1.5": (INF, 1 / 2.5),
    "alpha_0.001": (1000, 1 / 0.999),
    "dual_non_saturating": (1 / 2, INF),
}
SUPREMA = {
    "js": 2 * math.log(2),
    "gan": 2 * math.log(2),
    "squared_hellinger": 2,
    "le_cam": 2,
    "total_variation": 1,
    "alpha_0.5": 4,
    "kl": INF,
    "reverse_kl": INF,
    "pearson": INF,
    "neyman": INF,
    "jeffreys": INF,
    "non_saturating": INF,
    "softened_reverse_kl": INF,
}


def discrete(name: str, p: Array, q: Array) -> float:
    return float((q * F[name](p / q)).sum() - F[name](np.array(1.0)))


def first(name: str, u: Array) -> Array:
    step = 1e-5 * u
    return (F[name](u + step) - F[name](u - step)) / (2 * step)


def second(name: str, u: Array) -> Array:
    step = 1e-3 * u
    inner, outer = (F[name](u + k * step) - 2 * F[name](u) + F[name](u - k * step) for k in (1, 2))
    return (16 * inner - outer) / (12 * step**2)


def log(u: Array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(u)).log()


def test_every_name_of_the_catalogue_is_typed_here() -> None:
    assert set(CATALOGUE) <= {*F} & {*COSTS} & {*SUPREMA}


@pytest.mark.parametrize("name", COSTS)
def test_costs_of_misplaced_mass(name: str) -> None:
    for shift in (0, -3):
        assert properties.costs(divergences.get(name).shifted(shift)) == pytest.approx(COSTS[name])


@pytest.mark.parametrize("name", SUPREMA)
def test_the_supremum(name: str) -> None:
    assert properties.supremum(divergences.get(name)) == pytest.approx(SUPREMA[name])


@pytest.mark.parametrize("name", F)
def test_the_supremum_is_what_densities_without_overlap_have(name: str) -> None:
    nothing, supremum = 1e-13, properties.supremum(divergences.get(name))
    reached = discrete(name, np.array([1 - nothing, nothing]), np.array([nothing, 1 - nothing]))
    if math.isinf(supremum):
        assert reached > 10
    else:
        assert reached == pytest.approx(supremum, rel=1e-3)


@pytest.mark.parametrize(
    ("behaviour", "names"),
    {
        "mode-covering": ["kl", "pearson", "alpha_0.7", "alpha_3", "alpha_0.500001", "dual_non_saturating"],
        "mode-seeking": ["reverse_kl", "neyman", "non_saturating", "softened_reverse_kl", "alpha_0.3", "alpha_-2"],
        "balanced": ["js", "gan", "squared_hellinger", "jeffreys", "le_cam", "total_variation", "alpha_0.5"],
    }.items(),
)
def test_mode_behaviour(behaviour: str, names: list[str]) -> None:
    assert {name: properties.mode_behaviour(divergences.get(name)) for name in names} == dict.fromkeys(names, behaviour)


@pytest.mark.parametrize("name", F)
def test_symmetric_means_that_p_and_q_may_be_exchanged(name: str) -> None:
    p, q = np.random.default_rng(0).dirichlet(np.ones(5), size=2)
    exchanged = discrete(name, p, q) == pytest.approx(discrete(name, q, p), rel=1e-12)
    assert properties.is_symmetric(divergences.get(name)) == exchanged
    assert properties.is_symmetric(divergences.get(name).shifted(2.5)) == exchanged


def test_nearly_symmetric_is_not_symmetric() -> None:
    assert properties.is_symmetric(divergences.get("alpha_0.5"))
    assert not properties.is_symmetric(divergences.get("alpha_0.500001"))


@pytest.mark.parametrize(
    ("name", "dual"),
    [
        ("kl", "reverse_kl"),
        ("neyman", "pearson"),
        ("js", "js"),
        ("gan", "gan"),
        ("total_variation", "total_variation"),
        ("alpha_0.3", "alpha_0.7"),
        ("alpha_2", "alpha_-1"),
        ("dual_alpha_0.3", "alpha_0.3"),
        ("non_saturating", "dual_non_saturating"),
        ("dual_non_saturating", "non_saturating"),
    ],
)
def test_the_dual_has_a_name_that_can_be_typed(name: str, dual: str) -> None:
    assert properties.dual_name(divergences.get(name)) == dual
    assert divergences.get(dual).name == dual


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("kl", {"alpha_1": 1}),
        ("alpha_0", {"reverse_kl": 1}),
        ("gan", {"js": 1}),
        ("pearson", {"alpha_2": 2}),
        ("squared_hellinger", {"alpha_0.5": 0.5}),
        ("alpha_-1", {"neyman": 0.5}),
        ("dual_alpha_0.3", {"alpha_0.7": 1}),
        ("jeffreys", {}),
        ("le_cam", {}),
    ],
)
def test_one_divergence_under_several_names(name: str, others: dict[str, float]) -> None:
    assert properties.equivalent_names(divergences.get(name)) == others
    assert properties.equivalent_names(divergences.get(name).shifted(0.7)) == others


@pytest.mark.parametrize(
    ("name", "objective", "found"),
    [
        ("non_saturating", "ratio", {"softened_reverse_kl": 1}),
        ("gan", "alternative", {"softened_reverse_kl": 1}),
        ("reverse_kl", "ratio", {"reverse_kl": 1, "alpha_0": 1}),
        ("kl", "alternative", {"reverse_kl": 1, "alpha_0": 1}),
        ("pearson", "alternative", {"kl": 2, "alpha_1": 2}),
        ("alpha_0.3", "alternative", {"alpha_-0.7": 1}),
        ("kl", "ratio", {}),
        ("gan", "ratio", {}),
    ],
)
def test_what_a_generator_objective_follows_is_recognised(name: str, objective: str, found: dict[str, float]) -> None:
    assert properties.effective_names(divergences.get(name), objective) == found


@pytest.mark.parametrize("name", F)
def test_matched_follows_the_divergence_itself(name: str) -> None:
    assert properties.effective_names(divergences.get(name), "matched")[name] == 1


@pytest.mark.parametrize(
    ("name", "objective", "published"),
    [
        ("reverse_kl", "ratio", lambda d: np.log((1 - d) / d)),
        ("kl", "ratio", lambda d: d / (1 - d) * np.log(d / (1 - d))),
        ("alpha_0.3", "ratio", lambda d: ((d / (1 - d)) ** 0.3 - 1 - 0.3 * (d / (1 - d) - 1)) / (0.3 * (0.3 - 1))),
        ("non_saturating", "ratio", lambda d: -np.log(d)),
        ("gan", "alternative", lambda d: -np.log(d)),
        ("gan", "matched", lambda d: np.log(1 - d)),
        ("kl", "matched", lambda d: -d / (1 - d)),
    ],
)
def test_published_losses_under_the_gan_discriminator(
    name: str, objective: str, published: Callable[[Array], Array]
) -> None:
    d = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    found = properties.generator_loss(divergences.get(name), objective, torch.from_numpy(d).logit())
    np.testing.assert_allclose(found, published(d), atol=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("matched", lambda name, u: u**2 * second(name, u)),
        ("ratio", lambda name, u: -u * first(name, u)),
        ("alternative", lambda name, u: u * second(name, u)),
    ],
)
def test_the_pull_is_the_slope_of_the_loss(name: str, objective: str, expected: Callable[[str, Array], Array]) -> None:
    found = properties.sample_weight(divergences.get(name), objective, log(RATIOS))
    np.testing.assert_allclose(found, expected(name, RATIOS), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", F)
def test_ratio_pulls_to_where_f_is_lowest(name: str) -> None:
    r = properties.fixed_point(divergences.get(name), "ratio")
    lowest = minimize_scalar(lambda r: F[name](np.exp(r)), bounds=(-9, 9), method="bounded", options={"xatol": 1e-9}).x
    assert lowest == pytest.approx(max(min(r, 9), -9), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "affine", "u"),
    [
        ("kl", 0, 1 / math.e),
        ("kl", 20, math.exp(-21)),
        ("kl", -1, 1),
        ("reverse_kl", 0, INF),
        ("reverse_kl", 0.5, 2),
        ("squared_hellinger", 0, 1),
        ("pearson", 1, 0.5),
        ("pearson", 4, 0),
        ("total_variation", 0, 1),
        ("total_variation", 0.6, 0),
        ("gan", 0, INF),
    ],
)
def test_where_ratio_pulls_to_in_closed_form(name: str, affine: float, u: float) -> None:
    divergence = divergences.get(name).shifted(affine)
    assert math.exp(properties.fixed_point(divergence, "ratio")) == pytest.approx(u, rel=1e-8)
    assert properties.fixed_point(divergence, "matched") == properties.fixed_point(divergence, "alternative") == INF


@pytest.mark.parametrize("name", F)
def test_the_effective_divergence_of_ratio_is_its_integral(name: str) -> None:
    def expected(u: float) -> float:
        at_one = F[name](np.array(1.0))
        return -u * quad(lambda t: (F[name](np.array(t)) - at_one) / t**2, 1, u, epsabs=1e-12)[0]

    u = np.array([0.05, 0.3, 1, 1.7, 4])
    found = properties.effective_f(divergences.get(name), "ratio", log(u))
    np.testing.assert_allclose(found, [expected(each) for each in u], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_effective_divergence_of_matched_is_f_itself(name: str) -> None:
    one, u = np.array(1.0), np.array([0.05, 0.3, 1, 1.7, 4])
    expected = F[name](u) - F[name](one) - first(name, one) * (u - 1)
    np.testing.assert_allclose(properties.effective_f(divergences.get(name), "matched", log(u)), expected, atol=1e-8)


def test_the_effective_divergence_of_ratio_kl_in_closed_form() -> None:
    u = np.linspace(0.1, 4, 9)
    np.testing.assert_allclose(
        properties.effective_f(divergences.kl, "ratio", log(u)), -u * np.log(u) ** 2 / 2, atol=1e-14
    )


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("objective", GENERATOR_OBJECTIVES)
def test_it_is_convex_exactly_below_the_u_that_samples_are_pulled_to(name: str, objective: str) -> None:
    divergence, u, step = divergences.get(name), np.exp(np.linspace(-2.05, 2.05, 42)), 1e-3
    below, at, above = (
        properties.effective_f(divergence, objective, log(u * k)).numpy() for k in (1 - step, 1, 1 + step)
    )
    curved = below - 2 * at + above > 0
    np.testing.assert_array_equal(curved, np.log(u) < properties.fixed_point(divergence, objective))


@pytest.mark.parametrize("name", F)
def test_refused_is_what_has_no_gradient(name: str) -> None:
    divergence = divergences.get(name)
    for objective in GENERATOR_OBJECTIVES:
        flat = bool((properties.sample_weight(divergence, objective, log(RATIOS[RATIOS != 1])) == 0).all())
        assert bool(properties.training_error(divergence, objective)) == flat


@pytest.mark.parametrize("name", [*F, "alpha_0", "alpha_1"])
def test_formulas_never_fall_between_their_ends(name: str) -> None:
    divergence, r = divergences.get(name), torch.linspace(-20, 20, 401, dtype=torch.float64)
    for formula in (divergence.real, divergence.fake):
        low, high = properties.value_range(formula)
        assert low <= float(formula(r).min()) <= float(formula(r).max()) <= high


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (divergences.kl.formula, "u log u"),
        (divergences.reverse_kl.formula, "−log u"),
        (divergences.js.formula, "u log u − (1 + u) log((1 + u) / 2)"),
        (divergences.softened_reverse_kl.formula, "(1 + u) log((1 + u) / (2u))"),
        (divergences.squared_hellinger.formula, "(√u − 1)²"),
        (divergences.total_variation.formula, "½ |u − 1|"),
        (divergences.get("alpha_0.3").formula, "(u^α − 1 − α (u − 1)) / (α (α − 1)), α = 0.3"),
        (divergences.get("dual_kl").formula, "u f(1/u), f(u) = u log u"),
        (divergences.kl.shifted(0.5).formula, "u log u +0.5 (u − 1)"),
        (r"\sin^{12} u", r"\sin^{12} u"),
    ],
)
def test_formulas_read_as_text(formula: str, text: str) -> None:
    assert description.format_formula(formula) == text


@pytest.mark.parametrize("name", CATALOGUE)
def test_no_formula_of_the_catalogue_stays_latex(name: str) -> None:
    assert not {*description.format_formula(CATALOGUE[name].formula)} & {*"\\{}^"}
