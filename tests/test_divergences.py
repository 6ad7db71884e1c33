"""The catalogue against its formulas, typed anew from the literature, and against the laws of f-divergences."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from support.formulas import NAMES, PARTS, SMOOTH, TYPED, df, f, slope
from torch import Tensor

from gantrain.errors import ConfigError
from gantrain.objectives import divergences, heads
from gantrain.objectives.divergence import LARGEST, FormulaName
from gantrain.objectives.divergences import CATALOGUE, alpha, get
from gantrain.objectives.heads import RATIO_CLIP
from gantrain.theory import formula_checks

R = torch.linspace(-8, 8, 161, dtype=torch.float64)
U = np.exp(R.numpy())


def assert_close(actual: Tensor, expected: Any, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), np.asarray(expected), rtol=rtol, atol=atol)


# ---------------------------------------------------------------------------------------------------------------------
# The formulas


@pytest.mark.parametrize("name", NAMES)
def test_f_is_the_typed_formula(name: str) -> None:
    assert_close(get(name).f(R), f(name, U))


@pytest.mark.parametrize("name", [*NAMES, "dual_dual_gan", "alpha_10", "alpha_1000", "alpha_1e-12", "alpha_1.000001"])
def test_no_formula_contradicts_f_of_u(name: str) -> None:
    assert formula_checks.find_formula_errors(get(name)) == []
    assert formula_checks.find_formula_errors(get(name).shifted(0.75)) == []


@pytest.mark.parametrize("name", NAMES)
def test_f_of_u_is_the_typed_formula_and_not_derived_from_the_others(name: str) -> None:
    u = R.exp()
    assert_close(get(name).f_of_u(u), f(name, U))
    other = replace(get(name), real=torch.zeros_like, fake=torch.zeros_like)
    assert torch.equal(other.f_of_u(u), get(name).f_of_u(u))


@pytest.mark.parametrize("name", NAMES)
def test_real_is_the_derivative_of_f(name: str) -> None:
    assert_close(get(name).real(R), df(name, U))


@pytest.mark.parametrize("name", SMOOTH)
def test_fake_is_the_convex_conjugate_at_that_derivative(name: str) -> None:
    """f*(t) = sup_u (u t − f(u)), by search over a grid that contains every maximiser."""
    assert_close(get(name).fake(R), (df(name, U)[:, None] * U - f(name, U)).max(axis=1))


@pytest.mark.parametrize("name", NAMES)
def test_the_slope_of_fake_is_the_ratio_times_the_slope_of_real(name: str) -> None:
    divergence = get(name)
    assert_close(slope(divergence.fake, R), R.exp() * slope(divergence.real, R))


@pytest.mark.parametrize("name", NAMES)
def test_real_increases_strictly_where_it_is_invertible(name: str) -> None:
    divergence = get(name)
    assert bool((divergence.real(R).diff() > 0).all()) == divergence.invertible
    assert bool((slope(divergence.real, R) > 0).all()) == divergence.invertible


@pytest.mark.parametrize("name", NAMES)
def test_f_at_one(name: str) -> None:
    divergence, zero = get(name), torch.zeros((), dtype=torch.float64)
    expected = {
        **{"gan": -math.log(4), "non_saturating": math.log(2), "dual_non_saturating": math.log(2)},
        **{"arimoto_0.5": -2.0, "arimoto_1": -math.log(4), "arimoto_2": 2 * (math.sqrt(2) - 2)},
    }.get(name, 0.0)
    assert divergence.f_at_one == pytest.approx(expected, abs=1e-15)
    assert float(divergence.fake(zero)) == pytest.approx(float(divergence.real(zero)) - expected, abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_the_dual_exchanges_the_densities(name: str) -> None:
    primal, dual = get(name), get(f"dual_{name}")
    assert_close(dual.real(R), -primal.fake(-R))
    assert_close(dual.fake(R), -primal.real(-R))
    assert_close(dual.f(R), R.exp() * primal.f(-R))
    assert_close(get(f"dual_dual_{name}").f(R), primal.f(R))
    assert dual.invertible == primal.invertible


@pytest.mark.parametrize(
    ("name", "other", "factor"),
    [
        ("alpha_0.5", "squared_hellinger", 2.0),
        ("alpha_2", "pearson", 0.5),
        ("alpha_-1", "neyman", 0.5),
        ("dual_alpha_0.3", "alpha_0.7", 1.0),
        ("alpha_1", "kl", 1.0),
        ("alpha_0", "reverse_kl", 1.0),
        ("dual_kl", "reverse_kl", 1.0),
        ("dual_js", "js", 1.0),
        ("dual_jeffreys", "jeffreys", 1.0),
    ],
)
def test_identities_between_divergences(name: str, other: str, factor: float) -> None:
    """Up to c·(u − 1), which changes no divergence."""
    found, expected, u = get(name).f(R), factor * get(other).f(R), R.exp()
    zero = torch.zeros((), dtype=torch.float64)
    c = float(get(name).real(zero) - factor * get(other).real(zero))
    assert_close(found, expected + c * (u - 1))


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_alpha_approaches_its_limits(limit: float) -> None:
    for part in PARTS:
        expected = getattr(alpha(limit), part)(R)
        for step in (1e-7, -1e-7):
            assert_close(getattr(alpha(limit + step), part)(R), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_shift_adds_an_affine_term_and_changes_no_slope(name: str) -> None:
    divergence, shifted = get(name), get(name).shifted(0.75)
    assert_close(shifted.f(R), divergence.f(R) + 0.75 * (R.exp() - 1))
    assert_close(slope(shifted.real, R), slope(divergence.real, R))
    assert_close(slope(shifted.fake, R), slope(divergence.fake, R))
    assert shifted.f_at_one == pytest.approx(divergence.f_at_one, abs=1e-15)
    assert "+0.75" in shifted.formula
    assert divergence.shifted(0.0) is divergence


# ---------------------------------------------------------------------------------------------------------------------
# float32 and bfloat16


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", [*NAMES, "alpha_1000", "dual_alpha_1000", "alpha_1e-50"])
def test_values_and_slopes_are_finite_inside_the_finite_range(name: str, part: FormulaName) -> None:
    divergence = get(name)
    limits = divergence.finite_range(part)
    low, high = max(limits.low, -1e6), min(limits.high, 1e6)
    r = torch.cat([torch.linspace(low, high, 4001), torch.tensor([low, high])])
    assert r.dtype == torch.float32
    formula = getattr(divergence, part)
    for values in (formula(r), slope(formula, r)):
        assert values.isfinite().all()
        assert values.abs().max() <= LARGEST * (1 + 1e-3)


LOG_LARGEST = 100 * math.log(2)


@pytest.mark.parametrize(
    ("name", "part", "low", "high"),
    [
        ("kl", "real", -math.inf, math.inf),
        ("kl", "fake", -math.inf, LOG_LARGEST),
        ("squared_hellinger", "real", -2 * LOG_LARGEST, math.inf),
        ("pearson", "fake", -math.inf, (LOG_LARGEST - math.log(2)) / 2),
        ("neyman", "fake", -LOG_LARGEST + math.log(2), math.inf),
        ("js", "fake", -math.inf, math.inf),
        ("alpha_1.7", "fake", -math.inf, LOG_LARGEST / 1.7),
    ],
)
def test_the_finite_range_ends_where_the_larger_of_value_and_slope_reaches_2_to_the_100(
    name: str, part: FormulaName, low: float, high: float
) -> None:
    limits = get(name).finite_range(part)
    assert (limits.low, limits.high) == (pytest.approx(low, rel=1e-2), pytest.approx(high, rel=1e-2))
    assert limits.everywhere == (low == -math.inf and high == math.inf)


@pytest.mark.parametrize(("name", "better"), [("alpha_1e9", 10.0), ("alpha_-1e9", -10.0), ("arimoto_1e-30", 0.1)])
def test_a_number_beyond_float32_is_refused_and_one_closer_to_1_is_not(name: str, better: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} leaves float32's range already beside r = 0: .*closer to 1"):
        get(name).finite_range("fake")
    get(f"{name.partition('_')[0]}_{better}").finite_range("fake")


def test_the_message_names_an_affine_term_beyond_float32() -> None:
    with pytest.raises(ConfigError, match=r"f\(u\) = u log u \+1e\+38 \(u − 1\)"):
        get("kl").shifted(1e38).finite_range("f")


def test_the_finite_range_is_that_of_float32_in_every_mode_of_the_first_caller() -> None:
    """`alpha` returns a new divergence each time, without a stored range."""
    expected = alpha(-1.0).finite_range("f")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert alpha(-1.0).finite_range("f") == expected
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        assert alpha(-1.0).finite_range("f") == expected
    with torch.inference_mode():
        assert alpha(-1.0).finite_range("f") == expected


@pytest.mark.parametrize("name", SMOOTH)
def test_float32_agrees_with_fifty_digits(name: str) -> None:
    """With φ(r) = f(e^r): real = φ'/u, fake = φ' − φ."""
    divergence = get(name)
    limits = [divergence.finite_range(part) for part in PARTS]
    r = torch.tensor([-30.0, -17.0, -5.0, -1e-3, -1e-6, 0.0, 1e-6, 0.1, 5.0, 17.0, 30.0])
    r = r[(r > max(x.low for x in limits)) & (r < min(x.high for x in limits))]
    with mpmath.workdps(150):
        u = [mpmath.exp(x) for x in r.tolist()]
        phi = [[mpmath.diff(lambda x: TYPED[name](mpmath.exp(x), mpmath), x, n) for x in r.tolist()] for n in range(2)]
        expected = {
            "real": [float(d / v) for d, v in zip(phi[1], u, strict=True)],
            "fake": [float(d - value) for value, d in zip(*phi, strict=True)],
        }
    assert_close(divergence.real(r), expected["real"], rtol=1e-5, atol=1e-6)
    assert_close(divergence.fake(r), expected["fake"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_float32_slopes_agree_with_those_of_f_up_to_60_nats(name: str) -> None:
    """real' = u f''(u) and fake' = u² f''(u), of the typed f, wherever they are normal numbers of float32."""
    r = torch.tensor([-60.0, -52.0, -40.0, -30.0, -17.0, -5.0, -1e-3, 0.0, 0.1, 5.0, 17.0, 30.0, 40.0, 52.0, 60.0])
    with mpmath.workdps(150):
        u = [mpmath.exp(x) for x in r.tolist()]
        second = [mpmath.diff(lambda v: TYPED[name](v, mpmath), v, 2, relative=True) for v in u]
        real = torch.tensor([float(v * curvature) for v, curvature in zip(u, second, strict=True)], dtype=torch.float64)
    for formula, expected in ((get(name).real, real), (get(name).fake, r.double().exp() * real)):
        is_inside = (expected > 1e-37) & (expected < 1e37)
        assert is_inside.sum() >= 8
        assert_close(slope(formula, r)[is_inside], expected[is_inside], rtol=1e-4, atol=0)


FINE_ALPHAS = ["alpha_1e-25", "alpha_1e-12", "alpha_1e-6", "alpha_1.000001", "dual_alpha_1e-12", "dual_gan", "alpha_-3"]


@pytest.mark.parametrize("name", [*SMOOTH, *FINE_ALPHAS])
def test_the_law_of_slopes_holds_over_160_nats(name: str) -> None:
    """fake' = e^r real', in float32 wherever both slopes lie within its range.

    Both come from `log_weight`; whether that is the right one, the test above says.
    """
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        r = torch.linspace(-80, 80, 3201, dtype=dtype)
        fake, real = slope(get(name).fake, r).double(), slope(get(name).real, r).double()
        sides = torch.stack([fake, r.double().exp() * real])
        is_inside = torch.ones_like(r, dtype=torch.bool)
        if dtype == torch.float32:
            is_inside = ((torch.stack([*sides, real]) > 1e-37) & (torch.stack([*sides, real]) < 1e37)).all(0)
        assert is_inside.sum() > 500
        assert_close(*sides[:, is_inside], rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SMOOTH)
def test_f_loses_no_digits_far_from_equality_nor_near_it(name: str, dtype: torch.dtype) -> None:
    """Its terms cancel: of non_saturating at r = 60, where f is e^−60, nothing would be left in float32."""
    r = torch.tensor([-60.0, -30.0, -1e-2, 1e-2, 30.0, 60.0], dtype=dtype)
    limits = get(name).finite_range("f")
    r = r[(r > limits.low) & (r < limits.high)]
    with mpmath.workdps(80):
        expected = [float(TYPED[name](mpmath.exp(x), mpmath)) for x in r.tolist()]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-11
    assert_close(get(name).f(r), expected, rtol=tolerance, atol=1e-35)
    slopes = [x * y for x, y in zip(r.double().exp().tolist(), get(name).real(r.double()).tolist(), strict=True)]
    assert_close(slope(get(name).f, r), slopes, rtol=tolerance, atol=1e-16 if dtype == torch.float64 else 1e-8)


@pytest.mark.parametrize("order", [1e-6, 1e-12, 1e-19, 1e-21, 1e-35])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_alpha_is_as_exact_as_any(order: float, dtype: torch.dtype) -> None:
    r = torch.tensor([-20.0, -1e-3, -1e-12, 0.0, 1e-12, 1e-3, 20.0], dtype=dtype)
    with mpmath.workdps(80):
        expected = [float(mpmath.expm1(order * mpmath.mpf(x)) / order) for x in r.tolist()]
    assert_close(get(f"alpha_{order}").fake(r), expected, rtol=1e-6 if dtype == torch.float32 else 1e-15, atol=0)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("alpha_1.000001", r"\alpha = 1.000001"), ("alpha_1.0", r"u \log u - u + 1"), ("alpha_1e-07", r"\alpha = 1e-07")],
)
def test_an_order_keeps_its_digits(name: str, shown: str) -> None:
    assert shown in get(name).formula
    assert alpha(1.000001).name == "alpha_1.000001"
    assert alpha(-1).name == "alpha_-1"
    assert "+0.1234567 (u - 1)" in get(name).shifted(0.1234567).formula


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softplus_neither_saturates_nor_turns_into_the_identity(dtype: torch.dtype) -> None:
    r = torch.tensor([-80.0, -18.5, 0.0, 18.5, 25.0, 80.0, 1e4], dtype=dtype)
    expected = np.logaddexp(r.double().numpy(), 0)
    tolerance = 1e-6 if dtype == torch.float32 else 8e-3
    np.testing.assert_allclose(divergences.softplus(r).double().numpy(), expected, rtol=tolerance)
    np.testing.assert_allclose(
        slope(divergences.softplus, r).double().numpy(), np.exp(-np.logaddexp(-r.double().numpy(), 0)), rtol=tolerance
    )


# ---------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize("name", NAMES)
def test_a_divergence_is_got_by_its_name(name: str) -> None:
    divergence = get(name)
    assert divergence.name == name
    assert divergence.formula
    assert divergence.reference
    assert get(name) is divergence


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("revers_kl", "did you mean reverse_kl?"),
        ("KL", "did you mean kl?"),
        ("alpha_x", "did you mean alpha_<number>?"),
        ("alpha_nan", "did you mean alpha_<number>?"),
        ("arimoto_x", "did you mean arimoto_<number>?"),
        ("dual_foo", ""),
        ("", ""),
    ],
)
def test_an_unknown_name_is_rejected_with_the_nearest_one(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        get(name, "gen_div")
    assert f"gen_div={name} is not" in str(refusal.value)
    assert nearest in str(refusal.value)
    assert all(known in str(refusal.value) for known in CATALOGUE)
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("name", ["arimoto_0", "arimoto_-2", "dual_arimoto_0"])
def test_an_alpha_loss_without_an_order_above_0_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="gen_div="):
        get(name, "gen_div")


@pytest.mark.parametrize("a", [0.3, 0.5, 1.0, 1.5, 4.0])
def test_arimoto_is_the_alpha_loss(a: float) -> None:
    """a/(a − 1) (1 − P^{1 − 1/a}), and −log P at a = 1, of P = σ(a r) on data and 1 − P on samples."""
    r = np.linspace(-3, 3, 13)
    divergence, given = get(f"arimoto_{a:g}"), torch.tensor(r)

    def loss(probability: np.ndarray) -> np.ndarray:
        return -np.log(probability) if a == 1 else a / (a - 1) * (1 - probability ** (1 - 1 / a))

    right = 1 / (1 + np.exp(-a * r))
    np.testing.assert_allclose(divergence.real(given), -loss(right), rtol=1e-10)
    np.testing.assert_allclose(divergence.fake(given), loss(1 - right), rtol=1e-10)
    if a == 0.5:  # the squared Hellinger distance, up to an affine term
        known = CATALOGUE["squared_hellinger"]
        np.testing.assert_allclose(divergence.f(given) - known.f(given), -1 - np.exp(r), rtol=1e-12)


def test_names_and_refusals_do_not_import_torch() -> None:
    program = """
import sys
import gantrain.objectives.divergences, gantrain.objectives.objective, gantrain.regularizers.regularizers
from gantrain.objectives.divergences import get
from gantrain.objectives.heads import HEADS
from gantrain.errors import ConfigError
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
for head in HEADS:
    for gen_objective in GENERATOR_OBJECTIVES:
        Objective(get("kl"), get("dual_alpha_0.3").shifted(1.0), gen_objective, head)
try:
    Objective(get("total_variation"), get("kl"))
except ConfigError:
    pass
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# ---------------------------------------------------------------------------------------------------------------------
# Heads

V = torch.linspace(-6, 6, 121, dtype=torch.float64)


def lambert(t: np.ndarray) -> np.ndarray:
    """W(e^{1−t}), of the conjugate of Jeffreys's divergence."""
    return np.array([float(mpmath.lambertw(mpmath.exp(1 - x)).real) for x in t])


# Nowozin et al. 2016, tables 2 and 6: (output activation g_f(v), conjugate f*(t)).
NOWOZIN: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "total_variation": (lambda v: np.tanh(v) / 2, lambda t: t),
    "kl": (lambda v: v, lambda t: np.exp(t - 1)),
    "reverse_kl": (lambda v: -np.exp(-v), lambda t: -1 - np.log(-t)),
    "pearson": (lambda v: v, lambda t: t**2 / 4 + t),
    "neyman": (lambda v: 1 - np.exp(-v), lambda t: 2 - 2 * np.sqrt(1 - t)),
    "squared_hellinger": (lambda v: 1 - np.exp(-v), lambda t: t / (1 - t)),
    "jeffreys": (lambda v: v, lambda t: lambert(t) + 1 / lambert(t) + t - 2),
    "js": (lambda v: math.log(2) - np.log1p(np.exp(-v)), lambda t: -np.log(2 - np.exp(t))),
    "gan": (lambda v: -np.log1p(np.exp(-v)), lambda t: -np.log(1 - np.exp(t))),
}


@pytest.mark.parametrize("name", NOWOZIN)
def test_the_nowozin_head_is_the_published_activation_and_conjugate(name: str) -> None:
    activation, conjugate = NOWOZIN[name]
    head = heads.get_head("nowozin", get(name))
    s, t = head.coordinate(V), activation(V.numpy())
    assert_close(head.divergence.real(s), t)
    assert_close(head.divergence.fake(s), conjugate(t), rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_only_published_rows_have_a_nowozin_head(name: str) -> None:
    if name in NOWOZIN:
        assert heads.get_head("nowozin", get(name)).name == "nowozin"
        return
    with pytest.raises(ConfigError, match="head=nowozin") as refusal:
        heads.get_head("nowozin", get(name))
    assert f"disc_div={name}" in str(refusal.value)
    assert all(row in str(refusal.value) for row in NOWOZIN)
    assert heads.get_head("log_ratio", get(name)).name == "log_ratio"


@pytest.mark.parametrize("name", [name for name in NOWOZIN if name not in ("pearson", "total_variation")])
def test_the_nowozin_log_ratio_inverts_the_derivative_of_f(name: str) -> None:
    head = heads.get_head("nowozin", get(name))
    assert head.has_log_ratio
    u = np.exp(head.coordinate(V).numpy())
    np.testing.assert_allclose(df(name, u), NOWOZIN[name][0](V.numpy()), rtol=1e-8, atol=1e-9)


def test_the_pearson_activation_gives_a_ratio_that_may_be_negative() -> None:
    head = heads.get_head("nowozin", get("pearson"))
    assert not head.has_log_ratio
    assert head.invalid is not None
    assert head.invalid(torch.tensor([-2.1, -2.0, -1.9, 3.0])).tolist() == [True, True, False, False]
    assert_close(head.divergence.f(V), (1 + V.numpy() / 2 - 1) ** 2)
    assert head.divergence.f_at_one == 0
    limits = head.divergence.finite_range("f")
    assert limits.low < -1e4 < 1e4 < limits.high


def test_total_variation_takes_the_bounded_head() -> None:
    head = heads.get_head("log_ratio", get("total_variation"))
    assert not head.has_log_ratio
    assert head.divergence.ratio is None
    assert_close(head.divergence.real(head.coordinate(V)), np.tanh(V.numpy()) / 2)
    for name in ("log_ratio", "nowozin"):
        with pytest.raises(ConfigError, match="disc_div=dual_total_variation"):
            heads.get_head(name, get("dual_total_variation"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_jeffreys_inverse_solves_its_equation(dtype: torch.dtype) -> None:
    v = torch.cat([torch.linspace(-1000, 1000, 201), torch.linspace(-3, 3, 61)]).to(dtype)
    r = heads.get_head("nowozin", get("jeffreys")).coordinate(v)
    exact = [float(x - 1 + mpmath.lambertw(mpmath.exp(1 - mpmath.mpf(x))).real) for x in v.tolist()]
    tolerance = 1e-13 if dtype == torch.float64 else 3e-6
    assert r.dtype == dtype
    np.testing.assert_allclose(r.numpy(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("v", [-1000.0, -1.0, 0.0, 2.0, 1000.0])
def test_the_jeffreys_inverse_has_the_gradient_of_finite_differences(v: float) -> None:
    coordinate, h = heads.get_head("nowozin", get("jeffreys")).coordinate, 1e-4
    low, high = coordinate(torch.tensor([v - h, v + h], dtype=torch.float64))
    expected = float(high - low) / (2 * h)
    assert float(slope(coordinate, torch.tensor([v], dtype=torch.float64))) == pytest.approx(expected, rel=1e-6)
    assert float(slope(coordinate, torch.tensor([v]))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ratio_head_reads_a_clipped_positive_ratio(dtype: torch.dtype) -> None:
    v = torch.tensor([-1e4, -200.0, -10.5, -9.9, -1.0, 0.0, 30.0, 2e4, 3e4, 1e6], dtype=dtype)
    head = heads.get_head("ratio", get("pearson"))
    assert head.invalid is not None
    softplus = np.logaddexp(v.double().numpy(), 0)
    expected = np.clip(softplus, math.exp(-10), math.exp(10))
    np.testing.assert_allclose(head.coordinate(v).exp().numpy(), expected, rtol=1e-5)
    assert head.invalid(v).tolist() == (softplus != expected).tolist()
    assert math.exp(10) == RATIO_CLIP


def test_an_unknown_head_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"head=log-ratio is not .* did you mean log_ratio\?"):
        heads.get_head("log-ratio", get("kl"))
