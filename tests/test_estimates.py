"""Bounds, estimates, their errors, recalibration and tests, against closed forms, quadrature, scipy and repetition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from support.formulas import NAMES, df, f

from gantrain.data.mixtures import Mixture, gaussian, mixture1d
from gantrain.inference import bernstein_deviation, compare_ranks, fit_platt, pareto_k
from gantrain.objectives import estimates
from gantrain.objectives.divergences import CATALOGUE, get
from gantrain.objectives.estimates import LARGEST, Pair
from gantrain.theory.quadrature import integrate_divergence

P, Q = mixture1d((0.6, 0.4), (-1.5, 2.0), (0.6, 0.8)), gaussian(-0.1, 1.8472)


def draw(count: int, seed: int, scale: float = 1.0, p: Mixture = P, q: Mixture = Q) -> Pair:
    """`scale` times the exact log-ratio on draws of p and of q."""
    generator = torch.Generator().manual_seed(seed)
    points = [density.sample(count, generator).double() for density in (p, q)]
    return Pair(*(scale * (p.log_density(x) - q.log_density(x)) for x in points))


def measure(r: Pair, smoothing: float = 0.0, parts: tuple[str, ...] = ("kl", "js", "gan")) -> dict[str, float]:
    return estimates.measure(r, CATALOGUE, parts, smoothing)


def true_value(name: str, p: Mixture = P, q: Mixture = Q) -> float:
    return integrate_divergence(get(name), p, q)


# ---------------------------------------------------------------------------------------------------------------------
# The plug-in estimate and its parts


def half_missed(count: int = 100_000) -> Pair:
    """q has one half of the data: the exact u is 1/2 there, and infinite, here e^50, on the other half."""
    half = -math.log(2) * torch.ones(count, dtype=torch.float64)
    return Pair(torch.cat([half, torch.full_like(half, 50)]), half)


def plug_in(name: str, r: Pair) -> tuple[float, float]:
    """The missed and the invented part from f alone, typed anew."""

    def centred(u: np.ndarray) -> np.ndarray:
        slope = 0.0 if name == "total_variation" else df(name, 1.0)
        return f(name, u) - f(name, 1.0) - slope * (u - 1)

    u_real, u_fake = np.exp(r.real.numpy()), np.exp(r.fake.numpy())
    return (
        float(np.where(u_real > 1, centred(u_real) / u_real, 0).mean()),
        float(np.where(u_fake <= 1, centred(u_fake), 0).mean()),
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_are_what_numpy_gives_from_f(name: str) -> None:
    r = draw(400, seed=1)
    found = parts_of(name, r)
    assert [part.mean for part in found] == pytest.approx(plug_in(name, r), rel=1e-9, abs=1e-13)


def test_an_estimate_sees_missed_mass() -> None:
    """KL is infinite; js and gan are one divergence, (log 2)/2 + F(1/2). Averages of f over samples say −0.347."""
    r = half_missed()
    assert float(get("kl").f(r.fake).mean()) == pytest.approx(-0.347, abs=1e-3)
    assert [float(get(name).f(r.fake).mean()) - get(name).f_at_one for name in ("js", "gan")] == pytest.approx(
        [0.085, 0.432], abs=1e-3
    )
    found = measure(r)
    exact = {part: value.mean for part, value in zip(("missed", "invented"), parts_of("js", r), strict=True)}
    assert exact == pytest.approx({"missed": math.log(2) / 2, "invented": float(f("js", 0.5))}, abs=1e-9)
    assert sum(exact.values()) == pytest.approx(0.4315, abs=1e-4)
    assert found["estimate/js"] == pytest.approx(0.4315, abs=1e-3)
    assert found["estimate/gan"] == pytest.approx(found["estimate/js"], abs=1e-12)
    assert found["estimate/kl"] > 5
    assert found["missed/mass"] == pytest.approx(0.5, abs=1e-3)
    assert found["invented/mass"] == pytest.approx(0, abs=1e-3)


def parts_of(name: str, r: Pair) -> list[estimates.Value]:
    """The missed and the invented part at r itself, which is not recalibrated."""
    influence = Pair(*(torch.zeros(2, len(side), dtype=torch.float64) for side in r))
    fit = estimates.Recalibration(r, r, r, influence, estimates.Value(math.nan, math.nan), 0.0)
    estimate = estimates.prepare_estimate(get(name), fit, estimates.Tails())
    missed, invented = estimate(1, 0), estimate(0, 1)
    assert estimate(1, 1) == pytest.approx(missed.plus(invented))
    return [missed, invented]


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_is_never_negative(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-9, 1e-4, 1.0, 60.0, 1e4):
        r = Pair(*(scale * torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(2)))
        assert all(part.mean >= 0 for part in parts_of(name, r.limit(LARGEST)))


def test_an_estimate_does_not_depend_on_the_representative_of_f() -> None:
    """α = 1 is KL plus an affine term, and twice the squared Hellinger distance is α = 1/2."""
    r = draw(400, seed=2)
    for name, same, factor in (
        ("kl", "alpha_1", 1),
        ("reverse_kl", "alpha_0", 1),
        ("squared_hellinger", "alpha_0.5", 0.5),
    ):
        expected = [factor * part.mean for part in parts_of(same, r)]
        assert [part.mean for part in parts_of(name, r)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "gan", "js", "squared_hellinger", "total_variation"])
def test_the_estimate_at_the_exact_ratio_is_the_divergence(name: str) -> None:
    """Where f is not centred by itself, its average over samples has an error several times as large."""
    p, q = gaussian(0.5, 1.0), gaussian(0.0, 1.1)
    r = draw(20_000, seed=3, p=p, q=q)
    missed, invented = parts_of(name, r)
    found, truth = missed.plus(invented), true_value(name, p, q)
    assert found.mean == pytest.approx(truth, abs=4 * found.error)
    average_error = float(get(name).f(r.fake).std()) / math.sqrt(20_000)
    assert average_error > (2.0 if name in ("kl", "reverse_kl", "gan") else 0.8) * found.error


@pytest.mark.parametrize("name", NAMES)
def test_the_bounds_of_both_parts_add_up_to_the_bound(name: str) -> None:
    r = draw(300, seed=4)
    missed, invented = estimates.bound_parts(get(name), r, estimates.Tails())
    assert missed.mean + invented.mean == pytest.approx(estimates.bound(get(name), r).mean, rel=1e-12, abs=1e-10)


@pytest.mark.parametrize("name", ["kl", "js", "reverse_kl", "total_variation"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 1.5])
def test_each_bound_is_at_most_the_divergence_on_its_region(name: str, scale: float) -> None:
    x = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    weights = [density.log_density(x).exp() * (x[1] - x[0]) for density in (P, Q)]
    exact = P.log_density(x) - Q.log_density(x)
    guess, region = scale * exact + 0.1, scale * exact + 0.1 > 0
    slope, conjugate = estimates.centre(get(name))
    part = exact.exp() * slope(exact) - conjugate(exact)  # F(u)
    for where in (region, ~region):
        lower = float((weights[0] * slope(guess) - weights[1] * conjugate(guess))[where].sum())
        assert lower <= float((weights[1] * part)[where].sum()) + 1e-9


# ---------------------------------------------------------------------------------------------------------------------
# Recalibration


def test_a_and_b_minimise_platts_cross_entropy() -> None:
    r = draw(300, seed=5, scale=0.2)
    real, fake = r.real.numpy(), r.fake[:200].numpy()

    def cross_entropy(w: np.ndarray) -> float:
        total = 0.0
        for side, target in ((real, 301 / 302), (fake, 1 / 202)):
            z = w[0] * side + w[1]
            total += float((np.logaddexp(0, z) - target * z).mean())
        return total

    a, b, _, slope = fit_platt(r.real, r.fake[:200])
    best = scipy.optimize.minimize(
        cross_entropy, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14}
    )
    assert (a, b) == pytest.approx(tuple(best.x), abs=1e-5)
    assert slope.mean == a


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_error_of_the_slope_is_its_deviation_over_repetitions(scale: float) -> None:
    slopes = [fit_platt(*draw(500, seed, scale)).slope for seed in range(200)]
    means = np.array([slope.mean for slope in slopes])
    assert means.mean() == pytest.approx(1 / scale, rel=0.05)
    assert np.mean([slope.error for slope in slopes]) == pytest.approx(means.std(), rel=0.15)
    limited = [fit_platt(*draw(500, seed, scale)).a for seed in range(3)]
    assert all(1 / 20 <= a <= 20 for a in limited)


@pytest.mark.parametrize("scale", [1 / 5, 1 / 7])
def test_recalibration_restores_the_bounds_of_a_ratio_that_r1_has_shrunk(scale: float) -> None:
    found = measure(draw(20_000, seed=6, scale=scale))
    assert true_value("js") == pytest.approx(0.1929, abs=1e-4)
    assert true_value("kl") == pytest.approx(0.3530, abs=1e-4)
    for name, raw in (("js", 0.1), ("kl", 0.2)):
        truth, error = true_value(name), found[f"recalibrated_bound/{name}_error"]
        assert found[f"bound/{name}"] < raw < 0.6 * truth
        assert found[f"recalibrated_bound/{name}"] == pytest.approx(truth, abs=4 * error)
        assert error < 0.03 * truth
    assert found["ratio/slope"] == pytest.approx(1 / scale, abs=4 * found["ratio/slope_error"])
    assert found["ratio/separated_share"] == 0


def test_a_recalibrated_bound_is_no_estimate_of_its_own_fit() -> None:
    """Where p = q the bound of a fitted ratio has an expectation below 0; one that saw its draws would be above."""
    noise = [
        torch.randn(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in range(200)
    ]
    bounds = [estimates.measure(Pair(*each), {"js": get("js")}) for each in noise]
    assert np.mean([each["recalibrated_bound/js"] for each in bounds]) < 0
    fits = [estimates.recalibrate(Pair(*each)) for each in noise]
    assert np.mean([estimates.bound(get("js"), fit.own).mean for fit in fits]) > 0.005


def test_what_is_better_on_one_half_is_used_on_the_other() -> None:
    """The exact ratio with its outermost values cut is worse after recalibration in places; both are tried."""
    r = draw(2_000, seed=7)
    fit = estimates.recalibrate(r)
    for name in ("kl", "js", "reverse_kl"):
        found = []
        for fitted, applied in estimates.HALVES:
            on_fit = [estimates.bound(get(name), pair.take(fitted)).mean for pair in (r, fit.own)]
            on_rest = [estimates.bound(get(name), pair.take(applied)).mean for pair in (r, fit.crossed)]
            found.append(on_rest[int(np.argmax(on_fit))])
        assert measure(r)[f"recalibrated_bound/{name}"] == pytest.approx(np.mean(found), rel=1e-12)


def test_separated_halves_are_reported_and_have_no_recalibrated_bound() -> None:
    won = Pair(torch.linspace(2, 8, 30, dtype=torch.float64), -torch.linspace(2, 8, 20, dtype=torch.float64))
    found = measure(won)
    assert found["ratio/separated_share"] == 1
    assert math.isnan(found["ratio/slope"])
    assert math.isnan(found["recalibrated_bound/kl"])
    assert found["estimate/js"] == pytest.approx(sum(plug_in("js", won)))


def test_the_constant_alone_is_the_bound_of_donsker_and_varadhan_without_its_bias() -> None:
    r = Pair(*(side + 0.7 for side in draw(20_000, seed=8)))
    found = measure(r)
    reference = float(r.real.mean() - r.fake.exp().mean().log())
    assert found["bound/kl"] < found["shifted_bound/kl"]
    assert found["shifted_bound/kl"] == pytest.approx(reference, abs=0.01)
    truth, error = true_value("reverse_kl"), found["shifted_bound/reverse_kl_error"]
    assert found["bound/reverse_kl"] < found["shifted_bound/reverse_kl"] == pytest.approx(truth, abs=4 * error)
    noise = [
        torch.randn(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in range(400)
    ]
    few = [estimates.shifted_bounds(Pair(*each), estimates.Tails())["shifted_bound/kl"].mean for each in noise]
    biased = [float(each[0].mean() - each[1].exp().mean().log()) for each in noise]
    # E_p[r] − log E_q[e^r] = −1/2 for r ~ N(0, 1) on both sides.
    assert np.mean(few) < -0.5 < np.mean(biased) - 0.02


@pytest.mark.parametrize(("name", "sign"), [("pearson", 1), ("neyman", -1)])
def test_the_variance_form_is_the_bound_with_the_best_constant(name: str, sign: int) -> None:
    r = draw(5_000, seed=9, p=gaussian(0.3, 1), q=gaussian(0, 1.2), scale=0.8)
    real, fake = (r.real, r.fake) if sign > 0 else (-r.fake, -r.real)
    t_real, t_fake = (2 * np.expm1(side.numpy()) for side in (real, fake))
    best = -scipy.optimize.minimize_scalar(
        lambda c: -((t_real + c).mean() - ((t_fake + c) + (t_fake + c) ** 2 / 4).mean())
    ).fun
    assert measure(r)[f"shifted_bound/{name}"] == pytest.approx(best, rel=1e-3)
    assert measure(r)[f"shifted_bound/{name}"] >= measure(r)[f"bound/{name}"]


def test_label_smoothing_is_undone_exactly() -> None:
    r, s = draw(5_000, seed=10), 0.1
    smoothed = Pair(*(math.log(1 - s) + side - (s * side.exp()).log1p() for side in r))
    torch.testing.assert_close(estimates.remove_smoothing(smoothed.real, s), r.real)
    found = measure(smoothed, smoothing=s)
    assert found["recalibrated_bound/kl"] == pytest.approx(
        true_value("kl"), abs=4 * found["recalibrated_bound/kl_error"]
    )
    assert found["ratio/slope"] == pytest.approx(1, abs=4 * found["ratio/slope_error"])
    assert found["bound/kl"] == pytest.approx(measure(r)["bound/kl"])
    assert found["ratio/calibration_q"] == pytest.approx(measure(r)["ratio/calibration_q"])
    assert found["ratio/beyond_smoothing_share"] == 0
    beyond = Pair(smoothed.real.clone(), smoothed.fake)
    beyond.real[:500] = math.log(9) + 0.1
    assert measure(beyond, smoothing=s)["ratio/beyond_smoothing_share"] == 0.05
    assert float(estimates.remove_smoothing(beyond.real, s)[0]) == math.inf
    assert "ratio/beyond_smoothing_share" not in measure(r)


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def test_standard_errors_are_the_deviations_over_repetitions() -> None:
    p, q = gaussian(0.4, 1.0), gaussian(0.0, 1.1)
    found = [measure(draw(1_000, seed, p=p, q=q)) for seed in range(100)]
    names = ["bound/kl", "bound/js", "recalibrated_bound/js", "recalibrated_bound/kl", "missed_bound/kl"]
    names += ["estimate/js", "estimate/kl", "missed/js", "invented/kl", "shifted_bound/kl", "shifted_bound/pearson"]
    for name in names:
        errors = [each[f"{name}_error"] for each in found]
        assert np.median(errors) == pytest.approx(np.std([each[name] for each in found]), rel=0.2), name
    # Recalibration calibrates: 1 − E_q[û] is nearer to 0 than the error of one side would allow.
    assert np.std([each["missed/mass"] for each in found]) < np.median([each["missed/mass_error"] for each in found])


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_pareto_k_of_pareto_draws(k: float) -> None:
    weights = [scipy.stats.genpareto.rvs(k, size=2000, random_state=seed) for seed in range(30)]
    found = [pareto_k(torch.from_numpy(each).log()) for each in weights]
    assert np.mean(found) == pytest.approx(k, abs=0.1)


def test_pareto_k_of_few_or_equal_weights_is_not_known() -> None:
    assert math.isnan(pareto_k(torch.zeros(19, dtype=torch.float64)))
    assert math.isnan(pareto_k(torch.zeros(1000, dtype=torch.float64)))


def test_the_growth_of_weights_at_both_ends() -> None:
    expected = {"kl": (1, 1), "reverse_kl": (0, 0), "js": (1, 0), "gan": (1, 0), "squared_hellinger": (0.5, 0.5)}
    expected |= {"pearson": (2, 2), "neyman": (-1, -1), "jeffreys": (0, 1), "alpha_0.3": (0.3, 0.3)}
    expected |= {"non_saturating": (0, -1), "softened_reverse_kl": (0, -1), "le_cam": (2, -1)}
    expected |= {"arimoto_2": (2, -1), "arimoto_0.001": (0.001, 0.999)}
    assert {name: get(name).weight_exponents for name in expected} == expected


def test_an_infinite_variance_is_a_heavy_tail_and_no_number() -> None:
    """q = N(0, 1), p = N(0, 1.3²): E_q[u²] is finite for 1.3² < 2, E_q[u⁴] is infinite, so that χ² has no error."""
    r = draw(2_000, seed=11, p=gaussian(0, 2.0), q=gaussian(0, 1.0))
    found = measure(r)
    assert found["ratio/pareto_k_q"] > 0.5 > found["ratio/pareto_k_p"]
    assert [found[f"bound/{name}_error"] for name in ("kl", "pearson", "jeffreys")] == [math.inf] * 3
    assert all(
        math.isfinite(found[f"bound/{name}_error"]) for name in ("js", "reverse_kl", "le_cam", "total_variation")
    )
    assert math.isfinite(found["estimate/kl_error"])
    assert found["estimate/pearson_error"] == found["missed/mass_error"] == math.inf


BOUNDED = ["js", "gan", "squared_hellinger", "le_cam", "total_variation"]


def test_bounded_divergences_have_lower_limits() -> None:
    known = {name: get(name) for name in (*NAMES, "alpha_0.7")}
    found = estimates.confidence_limits(draw(1_000, seed=12), known, report=1)
    bounded = [*BOUNDED, "alpha_0.3", "alpha_0.5", "dual_alpha_0.3", "alpha_0.7", *(n for n in NAMES if "arimoto" in n)]
    assert set(found) == {f"lower_limit/{name}" for name in bounded}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_lower_limit_is_that_of_maurer_and_pontil(name: str) -> None:
    r, report, end = draw(500, seed=13, scale=4.0), 3, math.log(500)
    level = 0.05 * 6 / (math.pi**2 * report**2) / 2
    total = -get(name).f_at_one
    for formula, side, sign in ((get(name).real, r.real, 1), (get(name).fake, r.fake, -1)):
        values = formula(side.clamp(-end, end)).numpy()
        low, high = (float(formula(torch.tensor(x, dtype=torch.float64))) for x in (-end, end))
        term = math.log(2 / level)
        deviation = math.sqrt(2 * values.var(ddof=1) * term / 500) + 7 * (high - low) * term / (3 * 499)
        total += sign * values.mean() - deviation
    assert estimates.confidence_limits(r, {name: get(name)}, report) == {f"lower_limit/{name}": pytest.approx(total)}


def test_the_levels_of_all_reports_add_up_to_five_percent() -> None:
    """Recovered from the limits of total variation with equal values, whose variance is 0."""
    r, levels = Pair(*torch.ones(2, 50, dtype=torch.float64)), []
    for report in range(1, 2001):
        below = -estimates.confidence_limits(r, {"tv": get("total_variation")}, report)["lower_limit/tv"]
        levels.append(2 * 2 * math.exp(-below / 2 * 3 * 49 / 7))
    assert sum(levels) == pytest.approx(0.05, rel=1e-3)


def test_one_draw_has_no_error_and_no_limit() -> None:
    one = Pair(*torch.zeros(2, 1, dtype=torch.float64))
    found = measure(one)
    assert found["bound/kl"] == 0
    assert math.isnan(found["bound/kl_error"])
    assert estimates.confidence_limits(one, CATALOGUE, 1) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Can q be told from p?


@pytest.mark.parametrize("has_ties", [False, True])
def test_the_test_is_that_of_mann_and_whitney(has_ties: bool) -> None:
    real, fake = torch.randn(2, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    real, fake = real[:200] + 0.2, fake
    if has_ties:
        real, fake = real.round(), fake.round()
    area, p_value = compare_ranks(real, fake)
    expected = scipy.stats.mannwhitneyu(
        real.numpy(), fake.numpy(), alternative="greater", method="asymptotic", use_continuity=False
    )
    assert area == pytest.approx(expected.statistic / (200 * 300))
    assert p_value == pytest.approx(expected.pvalue, rel=1e-9)


def test_equal_distributions_are_rejected_as_often_as_the_level_says() -> None:
    generator = torch.Generator().manual_seed(2)
    p_values = [compare_ranks(*torch.randn(2, 100, dtype=torch.float64, generator=generator))[1] for _ in range(2000)]
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert compare_ranks(torch.ones(5), torch.ones(7)) == (0.5, 1.0)
    assert compare_ranks(torch.ones(50), torch.zeros(50))[1] < 1e-15


def test_bernstein_deviation_of_constant_draws() -> None:
    assert bernstein_deviation(torch.ones(11, dtype=torch.float64), 3.0, 0.05) == pytest.approx(
        7 * 3 * math.log(40) / 30
    )
