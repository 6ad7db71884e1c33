"""Training with samples alone ends where quadrature says, within the stated tolerance: a rest, or a collapse."""

import json
import math

import pytest
from torch import nn

from gantrain import data, networks
from gantrain.objectives import divergences
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.objectives.regularizers import InstanceNoise, LabelSmoothing
from gantrain.theory import quadrature
from gantrain.training.endpoint import TOLERANCE, Endpoint, doubted, ended_as, endpoint, judged, settles

ROW = {"op": "linear", "features": 1}
AFFINE = {"name": "affine", "generator": [{"op": "affine", "features": "data"}], "discriminator": [ROW]}
P = quadrature.Mixture((0.6, 0.4), (-1.5, 2.0), (0.6, 0.8))
# Σwμ = .6·(−1.5) + .4·2 and √(Σw(σ² + μ²) − (Σwμ)²), which KL matches.
MEAN, STD = -0.1, (0.6 * (0.36 + 2.25) + 0.4 * (0.64 + 4.0) - 0.01) ** 0.5


def game(gen_div="kl", gen_objective="matched", disc_div="gan", **settings):
    return Objective(divergences.get(disc_div), divergences.get(gen_div), gen_objective, **settings)


def verdict(reached, flow, p=P):
    return ended_as(quadrature.Ending(*flow), p, *reached)


# ---------------------------------------------------------------------------------------------------------------------
# Through training


def train(gantrain, folder, *overrides, images):
    """One run of the experiment: its endpoint, and what the command printed."""
    fewer = [f"train.{event}_every_images={images}" for event in ("report", "sample", "checkpoint")]
    answer = gantrain("train", "experiment=figure1", f"train.images={images}", *fewer, *overrides, f"run_dir={folder}")
    assert answer.code == 0
    return json.loads((folder / "summary.json").read_text())["endpoint"], answer.out


@pytest.mark.parametrize(
    ("gen_div", "gen_objective", "rest"),
    [
        ("kl", "matched", (MEAN, STD)),
        ("reverse_kl", "matched", (0.3009, 1.6604)),
        ("gan", "ratio", (0.0613, 1.8016)),
    ],
)
def test_training_rests_where_the_exact_flow_does(gantrain, tmp_path, gen_div, gen_objective, rest):
    chosen = (f"gen_div={gen_div}", f"gen_objective={gen_objective}")
    end, said = train(gantrain, tmp_path / "run", *chosen, images=1_000_000)
    assert end["theory"] == {"outcome": "rests", "mean": pytest.approx(rest[0], abs=1e-4)} | {
        "std": pytest.approx(rest[1], abs=1e-4)
    }
    assert math.dist(end["reached"], rest) / rest[1] < TOLERANCE
    assert (end["promise"], end["within"]) == ("rests", True)
    assert "ended at (μ, σ) = (" in said
    assert f"within the tolerance of {TOLERANCE:g}" in said


def test_training_collapses_where_the_exact_flow_does(gantrain, tmp_path):
    end, said = train(gantrain, tmp_path / "run", "gen_div=kl", "gen_objective=ratio", images=1_500_000)
    assert end["theory"]["outcome"] == end["promise"] == "collapses"
    assert end["reached"][1] < 0.6 / 3
    assert end["within"] is True
    assert "theory promises that it collapses, and it does" in said


def test_a_sweep_ends_in_a_table_of_endpoints(gantrain, tmp_path):
    few = ["train.images=5000", "train.report_every_images=5000", f"run_dir={tmp_path / 'sweep'}"]
    answer = gantrain("train", "-m", "experiment=figure1", "gen_div=kl,neyman", "gen_objective=matched,ratio", *few)
    assert answer.code == 0
    table = answer.out.partition("Where the Gaussians")[2].splitlines()
    rows = [line.split() for line in table[2:6]]
    assert [row[:4] for row in rows] == [
        ["0", "kl", "matched", "0"],
        ["1", "kl", "ratio", "0"],
        ["2", "neyman", "matched", "0"],
        ["3", "neyman", "ratio", "0"],
    ]
    assert [row[-1] for row in rows] == ["NO", "NO", "promised", "promised"]  # too short, and nothing promised
    assert "(-0.1000, 1.8472)" in table[2]
    assert f"of {TOLERANCE:g}" in table[2]
    assert "collapses" in table[3]
    assert table[6].startswith("nothing is promised where at the start a sample's gradient has an infinite variance")


# ---------------------------------------------------------------------------------------------------------------------
# The verdict, on numbers


@pytest.mark.parametrize("rest", [(-0.1, 1.85), (-1.48, 0.6), (5.0, 40.0)])
def test_a_rest_is_met_within_the_tolerance_in_every_direction(rest):
    mean, std = rest
    for angle in range(0, 360, 30):
        step = std * math.cos(math.radians(angle)), std * math.sin(math.radians(angle))
        for share, met in ((0.99, True), (1.01, False)):
            reached = mean + share * TOLERANCE * step[0], std + share * TOLERANCE * step[1]
            assert verdict(reached, ("rests", mean, std)) is met


def test_the_distance_tells_the_divergence_from_the_rest():
    """KL ≈ ((Δμ)² + 2 (Δσ)²) / 2σ²: at the tolerance at most a thousandth."""
    for reached in ((MEAN + TOLERANCE * STD, STD), (MEAN, STD * (1 + TOLERANCE)), (MEAN, STD * (1 - TOLERANCE))):
        found = judged(game(), P, reached)
        assert found.distance == pytest.approx(TOLERANCE, rel=1e-6)
        shift, widening = reached[0] - MEAN, reached[1] - STD
        kl = quadrature.gaussian_kl(quadrature.gaussian(MEAN, STD), quadrature.gaussian(*reached))
        assert kl == pytest.approx((shift**2 + 2 * widening**2) / (2 * STD**2), rel=0.1)
        assert kl < 1e-3


@pytest.mark.parametrize(
    ("reached", "flow", "met"),
    [
        ((9.0, 0.199), ("collapses", -0.05, 6e-4), True),  # a third of .6, wherever it is
        ((-0.05, 0.201), ("collapses", -0.05, 6e-4), False),
        ((0.0, 0.5), ("collapses", -0.07, 0.5743), True),  # below where the loss has become infinite
        ((0.0, 0.6), ("collapses", -0.07, 0.5743), False),
        ((0.0, 5.5), ("diverges", -0.1, 185.0), False),  # three times the data's 1.847 is 5.54
        ((0.0, 5.6), ("diverges", -0.1, 185.0), True),
        ((-5.7, 0.1), ("diverges", 185.0, 0.1), True),
        ((0.0, 3.0), ("diverges", -0.1, 2.9), True),  # as wide as where the loss has become infinite
    ],
)
def test_collapse_and_divergence(reached, flow, met):
    assert verdict(reached, flow) is met


HEAVY = {
    # h ~ 1/u has the variance of ∫ q³/p² dx, whose tail e^{−3x²/2 + x²/.64} grows.
    (1.0, "matched"): {"neyman"},
    (1.0, "ratio"): {"neyman"},
    (1.0, "alternative"): {"reverse_kl", "neyman", "jeffreys", "non_saturating", "softened_reverse_kl"},
    # h ~ u has that of ∫ p²/q dx, whose tail e^{−x²/.64 + 2x²} grows; log(1 + 1/u) is no more than log u.
    (0.5, "matched"): {"kl", "pearson", "jeffreys"},
    (0.5, "ratio"): {*divergences.CATALOGUE} - {"reverse_kl", "gan", "non_saturating"},
    (0.5, "alternative"): {"pearson"},
    # Both are finite, and so is ∫ p⁴/q³ dx.
    (0.7, "matched"): set(),
    (0.7, "ratio"): set(),
    (0.7, "alternative"): set(),
}


@pytest.mark.parametrize(("std", "gen_objective"), HEAVY)
def test_where_a_sample_s_gradient_has_no_variance(std, gen_objective):
    losses = [quadrature.Loss(d, *GENERATOR_OBJECTIVES[gen_objective]) for d in divergences.CATALOGUE.values()]
    found = {loss.divergence.name for loss in losses if not settles(loss, P, quadrature.gaussian(0, std))}
    assert found == HEAVY[std, gen_objective]


@pytest.mark.parametrize(("std", "settled"), [(0.97, True), (0.99, False)])
def test_the_variance_of_neyman_ends_where_three_precisions_of_q_are_two_of_p(std, settled):
    assert settles(quadrature.Loss(divergences.get("neyman"), "fake", -1), P, quadrature.gaussian(0, std)) is settled


def test_neyman_is_promised_nothing_from_so_wide_a_start():
    found = judged(game("neyman"), P, (-1.484, 0.6177))
    assert found.doubt.startswith("at the start a sample's gradient has an infinite variance")
    assert found.within is None
    assert found.distance < TOLERANCE


@pytest.mark.parametrize(
    ("played", "reason"),
    [
        (game(regularizer=InstanceNoise(0.1)), "regularized"),
        (game(regularizer=LabelSmoothing(0.1)), "regularized"),
        (game(head="ratio"), "clips"),
        (game("pearson", disc_div="pearson", head="nowozin"), "no log-ratio"),
        (game("neyman", "alternative"), "infinite at the start"),
    ],
)
def test_nothing_is_promised_without_the_exact_ratio_or_a_flow_that_ends(played, reason):
    found = judged(played, P, (MEAN, STD))
    assert reason in found.doubt
    assert found.within is None
    assert found.verdict().startswith("theory promises nothing here: ")
    assert found.summary()["promise"] == "nothing"


@pytest.mark.parametrize("outcome", ["unstable", "stalls", "infinite"])
def test_a_flow_without_an_end_promises_nothing(outcome):
    loss = quadrature.Loss(divergences.get("kl"), "fake", -1)
    assert outcome in doubted(game(), P, loss, quadrature.Ending(outcome, 0.0, 1.0))


@pytest.mark.parametrize("disc_div", ["kl", "js", "jeffreys"])
def test_the_promise_is_the_same_whatever_trains_the_discriminator(disc_div):
    assert judged(game(disc_div=disc_div), P, (MEAN, STD)) == judged(game(), P, (MEAN, STD))


def test_a_summary_is_plain_json():
    flow, nowhere = quadrature.Ending("stalls", 0.0, 1.0), quadrature.Fit(math.nan, math.nan, math.inf)
    one = Endpoint("kl", "matched", (0.0, 1.0), flow, nowhere, distance=None, doubt="it stalls", within=None)
    assert json.loads(json.dumps(one.summary(), allow_nan=False))["optimum"] == {"mean": None, "std": None}


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "generator"),
    [("ring", nn.Linear(2, 2)), ("mixture1d", nn.Linear(1, 1)), ("digits", nn.Linear(64, 64))],
)
def test_other_runs_have_no_endpoint(name, generator):
    assert endpoint(generator, data.load(name), game()) is None


def test_an_untrained_generator_is_where_it_began():
    generator, _ = networks.build(AFFINE, (1,), 1)
    found = endpoint(generator, data.load("mixture1d"), game())
    assert found.reached == (0.0, 1.0)
    assert found.distance == pytest.approx(math.dist((0, 1), (MEAN, STD)) / STD, rel=1e-6)
    assert found.within is False
    assert "OUTSIDE" in found.text()
