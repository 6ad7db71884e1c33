"""Properties of divergences, against closed forms, SciPy's quadrature and finite differences of formulas typed anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from support.formulas import NAMES, SMOOTH, derivative, df, f

from gantrain.objectives import divergences
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.theory import description, properties

Array = NDArray[np.float64]
INF = math.inf
RATIOS = np.exp(np.linspace(-3, 3, 25))
FEW = np.array([0.05, 0.3, 1, 1.7, 4])

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
    "alpha_0": (INF, 1),
    "alpha_1": (1, INF),
    "alpha_-1.5": (INF, 1 / 2.5),
    "alpha_0.001": (1000, 1 / 0.999),
    "dual_non_saturating": (1 / 2, INF),
}


def discrete(name: str, p: Array, q: Array) -> float:
    return float((q * f(name, p / q)).sum() - f(name, 1))


def log(u: Array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(u)).log()


def test_the_costs_of_all_divergences_are_typed() -> None:
    assert set(CATALOGUE) <= set(COSTS)


@pytest.mark.parametrize("name", COSTS)
def test_costs_of_misplaced_mass(name: str) -> None:
    for shift in (0, -3):
        assert properties.costs(divergences.get(name).shifted(shift)) == pytest.approx(COSTS[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_supremum_is_the_divergence_of_densities_without_overlap(name: str) -> None:
    nothing, supremum = 1e-13, properties.supremum(divergences.get(name))
    reached = discrete(name, np.array([1 - nothing, nothing]), np.array([nothing, 1 - nothing]))
    if math.isinf(supremum):
        assert reached > 10
    else:
        assert reached == pytest.approx(supremum, rel=1e-3)


@pytest.mark.parametrize(
    ("behaviour", "names"),
    {
        "mode-covering": [
            "kl",
            "pearson",
            "alpha_0.7",
            "alpha_3",
            "alpha_0.500001",
            "alpha_0.50000000001",
            "dual_non_saturating",
        ],
        "mode-seeking": ["reverse_kl", "neyman", "non_saturating", "softened_reverse_kl", "alpha_0.3", "alpha_-2"],
        "balanced": ["js", "gan", "squared_hellinger", "jeffreys", "le_cam", "total_variation", "alpha_0.5"],
    }.items(),
)
def test_mode_behaviour(behaviour: str, names: list[str]) -> None:
    assert {name: properties.mode_behaviour(divergences.get(name)) for name in names} == dict.fromkeys(names, behaviour)


@pytest.mark.parametrize("name", NAMES)
def test_symmetric_means_that_p_and_q_may_be_exchanged(name: str) -> None:
    p, q = np.random.default_rng(0).dirichlet(np.ones(5), size=2)
    exchanged = discrete(name, p, q) == pytest.approx(discrete(name, q, p), rel=1e-12)
    assert properties.is_symmetric(divergences.get(name)) == exchanged
    assert properties.is_symmetric(divergences.get(name).shifted(2.5)) == exchanged


@pytest.mark.parametrize(
    ("name", "dual"),
    [
        ("kl", "reverse_kl"),
        ("neyman", "pearson"),
        ("js", "js"),
        ("total_variation", "total_variation"),
        ("alpha_0.3", "alpha_0.7"),
        ("alpha_0.500001", "alpha_0.499999"),
        ("alpha_0.50000001", "alpha_0.49999999"),
        ("alpha_1.0000001", "alpha_-1e-07"),
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
        ("alpha_1.0000000001", {}),
        ("dual_alpha_0.50000001", {"alpha_0.49999999": 1}),
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
        ("pearson", "alternative", {"kl": 2, "alpha_1": 2}),
        ("alpha_0.3", "alternative", {"alpha_-0.7": 1}),
        ("kl", "ratio", {}),
    ],
)
def test_effective_divergences_have_their_known_names(name: str, objective: str, found: dict[str, float]) -> None:
    assert properties.effective_names(divergences.get(name), objective) == found


@pytest.mark.parametrize("name", NAMES)
def test_matched_follows_the_divergence_itself(name: str) -> None:
    assert properties.effective_names(divergences.get(name), "matched")[name] == 1


@pytest.mark.parametrize("name", SMOOTH)
def test_the_weight_of_a_sample_is_the_negative_slope_of_its_loss(name: str) -> None:
    second = np.array([derivative(name, u, 2) for u in FEW])
    expected = {"matched": FEW**2 * second, "ratio": -FEW * df(name, FEW), "alternative": FEW * second}
    for objective, weights in expected.items():
        found = properties.sample_weight(divergences.get(name), objective, log(FEW))
        np.testing.assert_allclose(found, weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("kl", 1, 1), ("neyman", -1, -1), ("js", 1, 0), ("le_cam", 2, -1), ("alpha_0.3", 0.3, 0.3)],
)
def test_weights_grow_exponentially_in_the_tails(name: str, low: float, high: float) -> None:
    assert divergences.get(name).weight_exponents == pytest.approx((low, high))


@pytest.mark.parametrize("name", NAMES)
def test_ratio_pulls_to_the_minimum_of_f(name: str) -> None:
    r = properties.fixed_point(divergences.get(name), "ratio")
    lowest = minimize_scalar(lambda r: f(name, np.exp(r)), bounds=(-9, 9), method="bounded", options={"xatol": 1e-9}).x
    assert lowest == pytest.approx(max(min(r, 9), -9), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "affine", "u"),
    [
        ("kl", 0, 1 / math.e),
        ("kl", 20, math.exp(-21)),
        ("kl", -1, 1),
        ("reverse_kl", 0, INF),
        ("reverse_kl", 0.5, 2),
        ("pearson", 4, 0),
        ("total_variation", 0, 1),
        ("total_variation", 0.6, 0),
    ],
)
def test_the_point_that_ratio_pulls_to_in_closed_form(name: str, affine: float, u: float) -> None:
    divergence = divergences.get(name).shifted(affine)
    assert math.exp(properties.fixed_point(divergence, "ratio")) == pytest.approx(u, rel=1e-8)
    assert properties.fixed_point(divergence, "matched") == properties.fixed_point(divergence, "alternative") == INF


@pytest.mark.parametrize("name", NAMES)
def test_the_effective_divergence_of_ratio_is_its_integral(name: str) -> None:
    def expected(u: float) -> float:
        return -u * quad(lambda t: (f(name, t) - f(name, 1)) / t**2, 1, u, epsabs=1e-12)[0]

    found = properties.effective_f(divergences.get(name), "ratio", log(FEW))
    np.testing.assert_allclose(found, [expected(each) for each in FEW], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_effective_divergence_of_matched_is_f_itself(name: str) -> None:
    expected = f(name, FEW) - f(name, 1) - df(name, 1) * (FEW - 1)
    np.testing.assert_allclose(properties.effective_f(divergences.get(name), "matched", log(FEW)), expected, atol=1e-8)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("objective", GENERATOR_OBJECTIVES)
def test_it_is_convex_exactly_below_the_u_that_samples_are_pulled_to(name: str, objective: str) -> None:
    divergence, u, step = divergences.get(name), np.exp(np.linspace(-2.05, 2.05, 42)), 1e-3
    below, at, above = (
        properties.effective_f(divergence, objective, log(u * k)).numpy() for k in (1 - step, 1, 1 + step)
    )
    curved = below - 2 * at + above > 0
    np.testing.assert_array_equal(curved, np.log(u) < properties.fixed_point(divergence, objective))


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_is_rejected_exactly_if_it_has_no_gradient(name: str) -> None:
    divergence = divergences.get(name)
    for objective in GENERATOR_OBJECTIVES:
        flat = bool((properties.sample_weight(divergence, objective, log(RATIOS[RATIOS != 1])) == 0).all())
        assert bool(properties.training_error(divergence, objective)) == flat


@pytest.mark.parametrize("name", NAMES)
def test_formulas_stay_between_their_limits(name: str) -> None:
    divergence, r = divergences.get(name), torch.linspace(-20, 20, 401, dtype=torch.float64)
    for formula in (divergence.real, divergence.fake):
        low, high = properties.value_range(formula)
        assert low <= float(formula(r).min()) <= float(formula(r).max()) <= high


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (divergences.js.formula, "u log u − (1 + u) log((1 + u) / 2)"),
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
