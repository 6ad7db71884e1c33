"""What a discriminator says against the truth: the truth itself, the errors, the rule, and the command."""

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

from gantrain.commands import verify as command
from gantrain.config.groups import CONF
from gantrain.errors import CheckFailedError, ConfigError, DivergedError
from gantrain.objectives import divergences
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import Objective
from gantrain.theory import cases, verification
from gantrain.theory.cases import CASES, Truth
from gantrain.theory.verification import ALLOWED_ERRORS, PARTS, Finding, Reading, Training

GAN = Objective(divergences.gan, divergences.gan)
MLP = yaml.safe_load((CONF / "architecture" / "mlp.yaml").read_text(encoding="utf-8"))
FAST = ("case=gaussians", "images=20000", "batch_size=200", "held_out=5000", "seeds=2")

# f(u) − f(1), typed anew.
F = {
    "kl": lambda u: u * np.log(u),
    "reverse_kl": lambda u: -np.log(u),
    "js": lambda u: u * np.log(u) - (1 + u) * np.log((1 + u) / 2),
    "gan": lambda u: u * np.log(u) - (1 + u) * np.log(1 + u) + np.log(4),
    "squared_hellinger": lambda u: (np.sqrt(u) - 1) ** 2,
    "pearson": lambda u: (u - 1) ** 2,
    "neyman": lambda u: (1 - u) ** 2 / u,
    "jeffreys": lambda u: (u - 1) * np.log(u),
    "non_saturating": lambda u: np.log(1 + 1 / u) - np.log(2),
    "softened_reverse_kl": lambda u: (1 + u) * np.log((1 + u) / (2 * u)),
    "le_cam": lambda u: (u - 1) ** 2 / (u + 1),
    "total_variation": lambda u: np.abs(u - 1) / 2,
}


def p_mixture(x):
    return 0.6 * stats.norm.pdf(x, -1.5, 0.6) + 0.4 * stats.norm.pdf(x, 2, 0.8)


# The densities of the cases, typed anew, and where to integrate.
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
    """Where p = q, which is where total variation has its kinks."""
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


def measure(discriminator, case, seed=0):
    return verification.measure_discriminator(discriminator, GAN, case, seed=seed, draws=20_000)


@pytest.fixture(scope="module")
def exact_ratio():
    """What the exact log-ratio, in a discriminator's place, says of every case: readings over two seeds."""

    def readings(case):
        runs = [measure(lambda x: cases.true_log_ratio(case, x), case, s) for s in (0, 1)]
        return {name: verification.average_over_seeds([run[name] for run in runs]) for name in runs[0]}

    return {name: readings(case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def truths():
    return {
        name: {each.name: cases.compute_truth(each, case.p, case.q) for each in CATALOGUE.values()}
        for name, case in CASES.items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# The truth


def test_every_divergence_of_the_catalogue_is_typed_anew():
    assert set(F) == set(CATALOGUE)


@pytest.mark.parametrize("case", LINE)
@pytest.mark.parametrize("name", F)
def test_the_truth_on_the_line_is_scipys(truths, case, name):
    true = truths[case][name]
    if math.isinf(true.value):
        assert (case, name, true.method) == ("mixture", "neyman", "tails")
    else:
        assert true.value == pytest.approx(expectation(case, lambda p, q: q * F[name](p / q)), abs=2e-8)


def test_neyman_is_infinite_where_the_integral_grows_without_end(truths):
    p, q, _ = LINE["mixture"]
    grown = [integrate.quad(lambda x: (q(x) - p(x)) ** 2 / p(x), -end, end, limit=400)[0] for end in (4, 6, 8)]
    assert grown[2] > 1e3 * grown[1] > 1e6 * grown[0]
    assert truths["mixture"]["neyman"].value == truths["ring"]["neyman"].value == math.inf


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "gan", "pearson", "total_variation"])
def test_the_truth_of_the_ring_is_scipys_in_polar_coordinates(truths, name):
    def integrand(radius, angle):
        x, y = radius * math.cos(angle), radius * math.sin(angle)
        q = q_ring(x, y)
        return q * F[name](p_ring(x, y) / q) * radius

    # p and q look the same in each of 16 sectors.
    accuracy = {"epsabs": 1e-6 if name == "total_variation" else 1e-8, "epsrel": 1e-6}
    value = 16 * integrate.dblquad(integrand, 0, math.pi / 8, 0, 10, **accuracy)[0]
    assert truths["ring"][name].value == pytest.approx(value, abs=1e-4 if name == "total_variation" else 1e-6)


@pytest.mark.parametrize(
    ("case", "name", "real", "fake"),
    [
        ("gaussians", "kl", lambda u: 1 + np.log(u), lambda u: u),
        ("gaussians", "neyman", lambda u: 1 - u**-2.0, lambda u: 2 - 2 / u),
        ("mixture", "pearson", lambda u: 2 * (u - 1), lambda u: u**2 - 1),
        ("mixture", "js", lambda u: np.log(2 * u / (1 + u)), lambda u: np.log((1 + u) / 2)),
    ],
)
def test_the_scatter_at_the_exact_ratio_is_scipys(truths, case, name, real, fake):
    def variance(weight, value):
        def moment(power):
            return expectation(case, lambda p, q: weight(p, q) * value(p / q) ** power)

        return moment(2) - moment(1) ** 2

    expected = variance(lambda p, q: p, real) + variance(lambda p, q: q, fake)
    assert truths[case][name].variance == pytest.approx(expected, rel=1e-3)
    assert truths[case][name].standard_error(100) == pytest.approx(math.sqrt(expected) / 10, rel=1e-3)


def test_the_scatter_is_infinite_where_q_has_far_wider_tails(truths):
    infinite = {"reverse_kl", "neyman", "jeffreys", "non_saturating", "softened_reverse_kl"}
    for case in ("mixture", "ring"):
        assert {name for name, true in truths[case].items() if math.isinf(true.variance)} == infinite
    assert all(math.isfinite(true.variance) for true in truths["gaussians"].values())


@pytest.mark.parametrize("case", ["mixture", "ring"])
def test_q_has_the_mean_and_width_of_p(case):
    p, q = (first_coordinate(side) for side in (CASES[case].p, CASES[case].q))
    assert (q.mean, q.std) == pytest.approx((p.mean, p.std), abs=0.005)


def first_coordinate(mixture):
    return mixture._replace(means=tuple(mean[:1] for mean in mixture.means))


# ---------------------------------------------------------------------------------------------------------------------
# Errors, and the rule


def test_the_error_is_the_larger_of_parts_and_seeds():
    rng = np.random.default_rng(0)
    alike = rng.normal(size=(3, PARTS))
    apart = alike + np.array([[0], [5], [10]])
    over_parts = math.sqrt(alike.var(1, ddof=1).mean() / alike.size)
    over_seeds = apart.mean(1).std(ddof=1) / math.sqrt(3)
    assert verification.average_over_seeds(apart.tolist()) == pytest.approx((apart.mean(), over_seeds))
    assert verification.average_over_seeds(alike[:1].tolist()).error == pytest.approx(
        alike[0].std(ddof=1) / math.sqrt(PARTS)
    )
    assert verification.average_over_seeds([alike[0].tolist()] * 3).error == pytest.approx(
        alike[0].std(ddof=1) / math.sqrt(3 * PARTS)
    )
    assert over_parts < over_seeds


@pytest.mark.parametrize(
    ("bound", "error", "variance", "exceeds"),
    [
        (1.0 + 0.99 * ALLOWED_ERRORS * 0.1, 0.1, 0.0, False),
        (1.0 + 1.01 * ALLOWED_ERRORS * 0.1, 0.1, 0.0, True),
        (1.0 + 1.01 * ALLOWED_ERRORS * 0.1, 0.1, 0.02 * 100, False),  # the exact ratio's error, √.02, is larger
        (1.0 + 1.01 * ALLOWED_ERRORS * 0.1, 0.1, math.inf, False),
        (0.9, 0.0, 0.0, False),
        (-math.inf, math.nan, 0.0, False),
        (math.nan, math.nan, 0.0, True),
    ],
)
def test_a_bound_exceeds_beyond_four_of_its_largest_error(bound, error, variance, exceeds):
    finding = Finding("kl", Truth(1.0, "quadrature", variance), Reading(bound, error), Reading(1.0, 0.1), draws=100)
    assert finding.exceeds == exceeds
    assert not replace(finding, truth=Truth(math.inf, "tails", variance), bound=Reading(1e9, 0.0)).exceeds


@pytest.mark.parametrize("case", CASES)
def test_the_exact_ratio_reaches_the_truth_and_exceeds_nowhere(exact_ratio, truths, case):
    findings = verification.compare_with_truth(truths[case], exact_ratio[case], draws=40_000)
    assert [each.name for each in findings] == list(CATALOGUE)
    for each in findings:
        assert not each.exceeds, each
        assert math.isinf(each.truth.value) or abs(each.bound.mean - each.truth.value) < each.allowed, each
    command.check_bounds({case: findings})


@pytest.mark.parametrize("case", CASES)
def test_the_ratios_readings_of_the_exact_ratio(exact_ratio, case):
    true = cases.true_ratio_values(CASES[case])
    assert true["ratio/effective_sample_size"] == pytest.approx(
        1 / (1 + cases.true_value(divergences.pearson, CASES[case].p, CASES[case].q)[0])
    )
    for name in true.keys() - {"ratio/calibration_p"}:  # whose variance is infinite
        reading = exact_ratio[case][name]
        assert reading.mean == pytest.approx(true[name], abs=5 * reading.error + 1e-5), name
    assert exact_ratio[case]["ratio/calibration_p"].mean == pytest.approx(1, abs=0.1)


def test_a_ratio_that_is_wrong_has_a_lower_bound_and_a_known_error():
    case = CASES["gaussians"]
    parts = measure(lambda x: 0.5 + cases.true_log_ratio(case, x), case)
    right = measure(lambda x: cases.true_log_ratio(case, x), case)
    assert np.mean(parts["ratio/rms_error_p"]) == pytest.approx(0.5)
    assert np.mean(parts["ratio/rms_error_q"]) == pytest.approx(0.5)
    assert np.mean(parts["bound/kl"]) == pytest.approx(np.mean(right["bound/kl"]) + 0.5 - math.exp(0.5) + 1, abs=0.02)


@pytest.mark.parametrize("case", CASES)
def test_against_a_truth_that_is_too_small_the_check_fails(exact_ratio, truths, case):
    halved = {name: true._replace(value=true.value / 2) for name, true in truths[case].items()}
    findings = verification.compare_with_truth(halved, exact_ratio[case], draws=40_000)
    too_high = {each.name for each in findings if each.exceeds}
    judged = {each.name for each in findings if math.isfinite(each.allowed)}
    assert {"kl", "gan", "squared_hellinger", "le_cam", "total_variation"} <= too_high <= judged
    with pytest.raises(
        CheckFailedError, match=rf"^{len(too_high)} of {len(CATALOGUE)} bounds .*{case} kl: "
    ) as refusal:
        command.check_bounds({case: findings})
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
        case, GAN, MLP, training=Training(images=60_100, batch_size=200), seed=0, progress=heard.append
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(heard) == 60_200, "whole batches"
    parts = measure(d, case)
    assert np.mean(parts["ratio/rms_error_p"]) < 0.15
    assert np.mean(parts["bound/kl"]) > 0.8 * cases.true_value(divergences.kl, case.p, case.q)[0]


def test_training_that_is_not_finite_stops():
    absurd = Training(images=20_000, batch_size=200, lr=1e30)
    with pytest.raises(DivergedError, match="lower lr=1e\\+30"):
        verification.train_discriminator(CASES["gaussians"], GAN, MLP, training=absurd, seed=0)


def test_a_discriminator_without_a_ratio_is_refused():
    tv = divergences.total_variation
    with pytest.raises(ConfigError, match="total_variation has no invertible"):
        verification.verify_case(CASES["gaussians"], Objective(tv, tv), MLP, training=Training(), seeds=[0], draws=1000)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_prints_and_writes_every_number(gantrain):
    answer = gantrain("verify", *FAST, "disc_div=alpha_0.5", "out=one")
    assert (answer.code, answer.err) == (0, "")
    said = (
        "disc_div=alpha_0.5, architecture=mlp, 20,000 images in batches of 200, Adam lr=0.005 falling to 0, seeds 0–1"
    )
    assert said in " ".join(answer.out.split())
    assert "5,000 held-out draws of p and of q per seed" in " ".join(answer.out.split())
    with open("one/verify.json", encoding="utf-8") as file:
        document = json.load(file)
    case = document["cases"]["gaussians"]
    assert set(case["divergences"]) == {"alpha_0.5", *CATALOGUE}
    rows = {line.split()[0]: line.split()[1:] for line in answer.out.splitlines() if line}
    for name, finding in case["divergences"].items():
        assert rows[name][0] == f"{finding['true']:.4f}"
        assert f"{finding['bound']['mean']:.4f}".replace("-", "−") in rows[name]
        assert f"{finding['plug_in']['mean']:.4f}".replace("-", "−") in rows[name]
        assert finding["verdict"] == "holds"
    # (√u − 1)² twice over
    halves = case["divergences"]["alpha_0.5"], case["divergences"]["squared_hellinger"]
    assert halves[0]["bound"]["mean"] == pytest.approx(2 * halves[1]["bound"]["mean"])
    assert halves[0]["true"] == pytest.approx(2 * halves[1]["true"])


def test_the_same_command_gives_the_same_files(gantrain, tmp_path):
    for out in ("one", "two"):
        assert gantrain("verify", *FAST, f"out={out}").code == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("one", "two"))
    assert set(one) == {"verify.json", "log_ratio.png"}
    assert one["log_ratio.png"] == two["log_ratio.png"]
    assert json.loads(one["verify.json"])["cases"] == json.loads(two["verify.json"])["cases"]
    assert one["log_ratio.png"].startswith(b"\x89PNG")


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
        ("disc_div=gna", 2, "did you mean gan?"),
        ("case=rings", 2, "did you mean ring?"),
        ("seeds=0", 2, "seeds=0 must be at least 1"),
        ("held_out=10", 2, "held_out=10 must be at least"),
        ("steps=5", 2, "there is no key steps"),
        ("out=taken", 7, "out=taken cannot be written"),
    ],
)
def test_what_cannot_be_verified_is_refused_at_once(gantrain, tmp_path, argument, code, reason):
    (tmp_path / "taken").write_text("", encoding="utf-8")
    answer = gantrain("verify", argument)
    assert (answer.code, answer.out) == (code, "")
    assert reason in answer.err


def test_help_names_the_cases(gantrain):
    answer = gantrain("verify", "--help")
    assert answer.code == 0
    assert all(name in answer.out and case.title in answer.out for name, case in CASES.items())
