"""A discriminator's estimates against the truth: the truth itself, standard errors, the rule, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from scipy import integrate, optimize, stats
from support.formulas import df, f

from gantrain.commands import verify as command
from gantrain.config.groups import CONF
from gantrain.data.mixtures import gaussian
from gantrain.errors import CheckFailedError, DivergedError
from gantrain.objectives import divergences
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import Objective
from gantrain.theory import cases, findings, quadrature, verification
from gantrain.theory.cases import CASES
from gantrain.theory.findings import ALLOWED_ERRORS, Finding, Reading
from gantrain.theory.verification import PARTS, Training

GAN = Objective(divergences.gan, divergences.gan)
MLP = yaml.safe_load((CONF / "architecture" / "mlp.yaml").read_text(encoding="utf-8"))
EVERY = tuple(CATALOGUE.values())
FAST = ("case=gaussians", "images=10000", "batch_size=200", "held_out=5000", "seeds=2")


def p_mixture(x):
    return 0.6 * stats.norm.pdf(x, -1.5, 0.6) + 0.4 * stats.norm.pdf(x, 2, 0.8)


# The densities of the cases, typed anew, and the interval of integration.
LINE = {
    "gaussians": (lambda x: stats.norm.pdf(x), lambda x: stats.norm.pdf(x, 0.5, 1.1), 16),
    "mixture": (p_mixture, lambda x: stats.norm.pdf(x, -0.1, 1.85), 14),
}
ANGLES = 2 * np.pi * np.arange(8) / 8


def p_ring(x, y):
    centres = 2 * np.cos(ANGLES), 2 * np.sin(ANGLES)
    return np.mean(np.exp(-((x - centres[0]) ** 2 + (y - centres[1]) ** 2) / 0.5)) / (np.pi * 0.5)


def q_ring(x, y):
    return np.exp(-(x**2 + y**2) / 4.5) / (np.pi * 4.5)


def crossings(p, q, end):
    """The x of p = q, at which total variation has its kinks."""
    x = np.linspace(-end, end, 2001)
    changes = np.diff(np.sign(p(x) - q(x))) != 0
    return [optimize.brentq(lambda x: p(x) - q(x), *pair) for pair in zip(x[:-1][changes], x[1:][changes], strict=True)]


def expectation(case, integrand):
    """∫ integrand(p, q) dx on the line."""
    p, q, end = LINE[case]
    edges = np.unique([-end, -5, -2, 0, 2, 5, end, *crossings(p, q, end)])
    pieces = [
        integrate.quad(lambda x: integrand(p(x), q(x)), *piece, limit=200, epsabs=1e-11)[0] for piece in pairwise(edges)
    ]
    return sum(pieces)


def measure(discriminator, case, seed=0, known=EVERY, draws=20_000):
    return verification.measure_discriminator(discriminator, GAN, case, known, seed=seed, draws=draws)


@pytest.fixture(scope="module")
def exact_ratio():
    """The readings over two seeds of the exact log-ratio as the discriminator, for every case."""
    return {name: read_exact_ratio(case) for name, case in CASES.items()}


def read_exact_ratio(case, **options):
    runs = [measure(case.log_ratio, case, seed, **options) for seed in (0, 1)]
    return {name: findings.average_over_seeds([run[name] for run in runs]) for name in runs[0]}


@pytest.fixture(scope="module")
def truths():
    return {
        name: {each.name: cases.compute_truth(each, case.p, case.q) for each in CATALOGUE.values()}
        for name, case in CASES.items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# The truth


@pytest.mark.parametrize("case", LINE)
@pytest.mark.parametrize("name", CATALOGUE)
def test_the_truth_on_the_line_is_scipys(truths, case, name):
    true = truths[case][name]
    if math.isinf(true.value):
        assert (case, name, true.method) == ("mixture", "neyman", "tails")
    else:
        assert true.value == pytest.approx(expectation(case, lambda p, q: q * (f(name, p / q) - f(name, 1))), abs=2e-8)


@pytest.mark.parametrize("name", ["kl", "gan", "total_variation"])
def test_the_truth_of_the_ring_is_scipys_in_polar_coordinates(truths, name):
    def integrand(radius, angle):
        x, y = radius * math.cos(angle), radius * math.sin(angle)
        q = q_ring(x, y)
        return q * (f(name, p_ring(x, y) / q) - f(name, 1)) * radius

    # p and q look the same in each of 16 sectors.
    accuracy = {"epsabs": 1e-6 if name == "total_variation" else 1e-8, "epsrel": 1e-6}
    value = 16 * integrate.dblquad(integrand, 0, math.pi / 8, 0, 10, **accuracy)[0]
    assert truths["ring"][name].value == pytest.approx(value, abs=1e-4 if name == "total_variation" else 1e-6)


@pytest.mark.parametrize(("case", "name"), [("gaussians", "neyman"), ("mixture", "pearson"), ("mixture", "js")])
def test_the_variance_at_the_exact_ratio_is_scipys(truths, case, name):
    def variance(weight, value):
        def moment(power):
            return expectation(case, lambda p, q: weight(p, q) * value(p / q) ** power)

        return moment(2) - moment(1) ** 2

    expected = variance(lambda p, q: p, lambda u: df(name, u))
    expected += variance(lambda p, q: q, lambda u: u * df(name, u) - f(name, u))
    assert truths[case][name].variance == pytest.approx(expected, rel=1e-3)


def test_the_variance_is_infinite_if_q_has_far_wider_tails(truths):
    infinite = {"reverse_kl", "neyman", "jeffreys", "non_saturating", "softened_reverse_kl"}
    for case in ("mixture", "ring"):
        assert {name for name, true in truths[case].items() if math.isinf(true.variance)} == infinite
    assert all(math.isfinite(true.variance) for true in truths["gaussians"].values())


# ---------------------------------------------------------------------------------------------------------------------
# Standard errors, and the rule


def test_the_error_is_the_larger_of_parts_and_seeds():
    rng = np.random.default_rng(0)
    alike = rng.normal(size=(3, PARTS))
    apart = alike + np.array([[0], [5], [10]])
    over_seeds = apart.mean(1).std(ddof=1) / math.sqrt(3)
    over_parts = alike[0].std(ddof=1) / math.sqrt(PARTS)
    found = findings.average_over_seeds(apart.tolist())
    assert (found.mean, found.standard_error) == pytest.approx((apart.mean(), over_seeds))
    assert findings.average_over_seeds(alike[:1].tolist()).standard_error == pytest.approx(over_parts)
    assert findings.average_over_seeds([alike[0].tolist()] * 3).standard_error == pytest.approx(
        over_parts / math.sqrt(3)
    )


@pytest.mark.parametrize(
    ("bound", "error", "variance", "exceeds"),
    [
        (1.0 + 0.99 * ALLOWED_ERRORS * 0.1, 0.1, 0.0, False),
        (1.0 + 1.01 * ALLOWED_ERRORS * 0.1, 0.1, 0.0, True),
        (1.0 + 1.01 * ALLOWED_ERRORS * 0.1, 0.1, 0.02 * 100, False),  # the exact ratio's error, √.02, is larger
        (1.0 + 1.01 * ALLOWED_ERRORS * 0.1, 0.1, math.inf, False),
        (-math.inf, math.nan, 0.0, False),
        (math.nan, math.nan, 0.0, True),
    ],
)
def test_a_bound_exceeds_beyond_five_of_its_largest_error(bound, error, variance, exceeds):
    exact_ratio_error, one = math.sqrt(variance / 100), Reading(1.0, 0.0)
    finding = Finding("kl", 1.0, "quadrature", Reading(bound, error), exact_ratio_error, one, at_exact_ratio=one)
    assert finding.exceeds == exceeds
    assert not finding.deviates
    assert not replace(finding, true=math.inf, bound=Reading(1e9, 0.0)).exceeds
    at_exact_ratio = replace(finding, bound=one, at_exact_ratio=Reading(bound, error))
    assert at_exact_ratio.deviates == (exceeds or bound == -math.inf)
    assert not at_exact_ratio.exceeds
    below = replace(finding, bound=one, at_exact_ratio=Reading(2 - bound, error))
    assert below.deviates == at_exact_ratio.deviates, "on both sides"


@pytest.mark.parametrize("case", CASES)
def test_the_exact_ratio_reaches_the_truth_and_exceeds_nowhere(exact_ratio, truths, case):
    found = findings.compare_with_truth(truths[case], exact_ratio[case], draws=40_000)
    assert [each.name for each in found] == list(CATALOGUE)
    for each in found:
        assert not each.exceeds, each
        assert not each.deviates, each
        assert each.at_exact_ratio.mean == pytest.approx(each.bound.mean, rel=1e-9), "the same draws"
        assert math.isinf(each.true) or abs(each.bound.mean - each.true) < each.allowed_error(each.bound), each
    command.check_bounds({case: found})


@pytest.mark.parametrize("case", CASES)
def test_the_metrics_of_the_exact_ratio(exact_ratio, case):
    true = cases.true_ratio_values(CASES[case])
    for name in true.keys() - {"ratio/calibration_p"}:  # whose variance is infinite
        reading = exact_ratio[case][name]
        assert reading.mean == pytest.approx(true[name], abs=5 * reading.standard_error + 1e-5), name
    assert exact_ratio[case]["ratio/calibration_p"].mean == pytest.approx(1, abs=0.1)


def test_a_ratio_that_is_wrong_has_a_lower_bound_and_a_known_error():
    case = CASES["gaussians"]
    parts, right = measure(lambda x: 0.5 + case.log_ratio(x), case), measure(case.log_ratio, case)
    assert np.mean(parts["ratio/rms_error_p"]) == pytest.approx(0.5)
    assert np.mean(parts["ratio/rms_error_q"]) == pytest.approx(0.5)
    assert np.mean(parts["bound/kl"]) == pytest.approx(np.mean(right["bound/kl"]) + 0.5 - math.exp(0.5) + 1, abs=0.02)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_against_a_wrong_truth_the_check_fails(exact_ratio, truths, case, factor):
    wrong = {name: true._replace(value=factor * true.value) for name, true in truths[case].items()}
    found = findings.compare_with_truth(wrong, exact_ratio[case], draws=40_000)
    judged = {each.name for each in found if math.isfinite(each.exact_ratio_standard_error)}
    exceeding, deviating = ({each.name for each in found if getattr(each, rule)} for rule in ("exceeds", "deviates"))
    certain = {"kl", "gan", "squared_hellinger", "le_cam", "total_variation"}
    assert certain <= deviating <= judged
    assert exceeding == (deviating if factor < 1 else set()), "the bound of the trained discriminator is one-sided"
    count = len(exceeding) + len(deviating)
    with pytest.raises(
        CheckFailedError, match=rf"^{count} of {2 * len(CATALOGUE)} bounds .*{case} kl: .* at the exact ratio"
    ) as refusal:
        command.check_bounds({case: found})
    assert refusal.value.exit_code == 9
    assert "\n" not in str(refusal.value)


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_the_draws_of_p_and_q_and_of_two_seeds_have_nothing_in_common():
    same = CASES["gaussians"]._replace(q=CASES["gaussians"].p)
    draws = [side.held_out(50) for seed in (0, 1) for side in verification.draw_from(same, seed)]
    assert len(torch.cat(draws).unique()) == 200


def test_a_trained_discriminator_learns_the_ratio_and_leaves_the_random_state_alone():
    case, before = CASES["gaussians"], torch.get_rng_state()
    heard: list[int] = []
    d = verification.train_discriminator(
        case, GAN, MLP, training=Training(images=40_100, batch_size=200), seed=0, progress=heard.append
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(heard) == 40_200, "whole batches"
    parts = measure(d, case)
    assert np.mean(parts["ratio/rms_error_p"]) < 0.15
    assert np.mean(parts["bound/kl"]) > 0.8 * cases.true_value(divergences.kl, case.p, case.q)[0]


def test_training_that_is_not_finite_stops():
    absurd = Training(images=20_000, batch_size=200, lr=1e30)
    with pytest.raises(DivergedError, match="lower lr=1e\\+30"):
        verification.train_discriminator(CASES["gaussians"], GAN, MLP, training=absurd, seed=0)


def test_where_the_variance_is_infinite_the_table_has_a_heavy_tail_in_place_of_an_error(exact_ratio, truths):
    exact = exact_ratio["mixture"]
    readings = {
        f"{group}/{name}": exact[f"exact/{name}"] for group in ("bound", "estimate", "exact") for name in CATALOGUE
    }
    found = findings.compare_with_truth(truths["mixture"], readings, draws=40_000)
    table = command.tabulate_divergences(found)
    heads, *rows = zip(*([str(column.header), *map(str, column.cells)] for column in table.columns), strict=True)
    assert heads[7:10] == ("exact ±", "estimate,\nno bound", "±")
    cells = {row[0]: row for row in rows}
    heavy = f"heavy tail\nk {1 - 0.8**2 / 1.85**2:.2g}"
    for name, row in cells.items():
        assert ([row[4], row[7]] == [heavy] * 2) == math.isinf(truths["mixture"][name].variance), name
        assert (row[9] == heavy) == (name == "neyman")


@pytest.mark.parametrize("case", CASES)
def test_the_tails_of_the_weights_have_moments_up_to_one_over_k(case):
    p, q = CASES[case].p, CASES[case].q
    for first, second, k in ((p, q, cases.tail_shapes(p, q)[0]), (q, p, cases.tail_shapes(p, q)[1])):
        # E_first[(second/first)^s] = ∫ first^(1−s) second^s
        assert quadrature.is_integrable(1 - 0.99 / max(k, 1e-3), first, second)
        assert k == 0 or not quadrature.is_integrable(1 - 1.01 / k, first, second)


@pytest.mark.parametrize("case", LINE)
@pytest.mark.parametrize("name", ["kl", "reverse_kl", "pearson", "neyman", "jeffreys", "js"])
def test_the_plug_in_has_an_infinite_variance_where_its_integral_grows_with_the_interval(truths, case, name):
    p, q, end = LINE[case]

    def square(reach):
        def integrand(x):
            u = p(x) / q(x)
            excess = f(name, u) - f(name, 1) - df(name, 1) * (u - 1)
            return q(x) * excess**2 if u <= 1 else p(x) * (excess / u) ** 2

        return sum(integrate.quad(integrand, *piece, limit=200)[0] for piece in pairwise(np.linspace(-reach, reach, 9)))

    assert truths[case][name].plug_in_is_heavy == (square(end / 2 + 2) > 3 * square(end / 2))


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_prints_and_writes_every_number_and_the_same_ones_again(gantrain, tmp_path):
    answer, again = (gantrain("verify", *FAST, "disc_div=alpha_0.5", f"out={out}") for out in ("one", "two"))
    assert (answer.code, answer.err) == (again.code, again.err) == (0, "")
    printed = " ".join(answer.out.split())
    assert (
        "disc_div=alpha_0.5, architecture=mlp, 10,000 images in batches of 200, Adam lr=0.005 falling to 0, seeds 0–1; "
        "5,000 held-out draws of p and of q per seed" in printed
    )
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("one", "two"))
    assert set(one) == {"verify.json", "log_ratio.png"}
    assert one["log_ratio.png"] == two["log_ratio.png"]
    assert one["log_ratio.png"].startswith(b"\x89PNG")
    case, same = (json.loads(files["verify.json"])["cases"]["gaussians"] for files in (one, two))
    assert case == same
    assert set(case["divergences"]) == {"alpha_0.5", *CATALOGUE}
    rows = {line.split()[0]: line.split()[1:] for line in answer.out.splitlines() if line}
    for name, finding in case["divergences"].items():
        assert rows[name][0] == f"{finding['true']:.4f}"
        assert f"{finding['bound']['mean']:.4f}".replace("-", "−") in rows[name]
        assert f"{finding['plug_in']['mean']:.4f}".replace("-", "−") in rows[name]
        assert finding["verdict"] == "holds"
    # alpha_0.5 is twice the squared Hellinger
    halves = case["divergences"]["alpha_0.5"], case["divergences"]["squared_hellinger"]
    assert halves[0]["bound"]["mean"] == pytest.approx(2 * halves[1]["bound"]["mean"])
    assert halves[0]["true"] == pytest.approx(2 * halves[1]["true"])


def test_a_bound_above_the_truth_exits_with_9_after_all_is_written(gantrain, monkeypatch, tmp_path):
    true_value = cases.true_value
    monkeypatch.setattr(cases, "true_value", lambda *each: (true_value(*each)[0] - 1, "injected"))
    answer = gantrain("verify", *FAST, "out=out")
    assert answer.code == 9
    assert answer.err.startswith("gantrain: ")
    assert "gaussians kl: " in answer.err
    assert answer.err.count("\n") == 1
    assert "EXCEEDS" in answer.out
    written = json.loads((tmp_path / "out" / "verify.json").read_text(encoding="utf-8"))
    assert written["cases"]["gaussians"]["divergences"]["kl"]["verdict"] == "EXCEEDS"


@pytest.mark.parametrize(
    ("argument", "code", "reason"),
    [
        ("disc_div=total_variation", 2, "has no invertible f'"),
        ("case=rings", 2, "did you mean ring?"),
        ("held_out=10", 2, "held_out=10 must be at least"),
        ("out=taken", 7, "out=taken cannot be written"),
    ],
)
def test_options_that_cannot_be_verified_are_rejected_at_once(gantrain, tmp_path, argument, code, reason):
    (tmp_path / "taken").write_text("", encoding="utf-8")
    answer = gantrain("verify", argument)
    assert (answer.code, answer.out) == (code, "")
    assert reason in answer.err


def test_help_names_the_cases(gantrain):
    answer = gantrain("verify", "--help")
    assert answer.code == 0
    assert all(name in answer.out and case.title in answer.out for name, case in CASES.items())


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jeffreys", "squared_hellinger", "pearson", "neyman"])
def test_a_truth_between_gaussians_needs_no_formula_of_the_catalogue(name: str) -> None:
    p, q = gaussian(0, 1), gaussian(0.5, 1.1)
    value, method = cases.true_value(CATALOGUE[name], p, q)
    assert method == "closed form"
    assert value == pytest.approx(quadrature.integrate_divergence(CATALOGUE[name], p, q), rel=1e-9)
    assert value == pytest.approx(cases.true_value(replace(CATALOGUE[name], name="x"), p, q)[0], rel=1e-9)


HALVES = [replace(d, real=lambda r, d=d: d.real(r) / 2, fake=lambda r, d=d: d.fake(r) / 2) for d in EVERY]


@pytest.mark.parametrize("case", CASES)
def test_the_truth_follows_from_f_alone(truths, case):
    """Other formulas of a bound change neither the truth nor that the bound at the exact ratio is judged by it."""
    for wrong in HALVES:
        assert cases.true_value(wrong, CASES[case].p, CASES[case].q)[0] == truths[case][wrong.name].value, wrong.name
    judged = {name: true for name, true in truths[case].items() if math.isfinite(true.variance)}
    readings = read_exact_ratio(CASES[case], known=HALVES, draws=100_000)
    found = findings.compare_with_truth(judged, readings, draws=200_000)
    assert [each.name for each in found if each.deviates] == list(judged), "half of the bound"
