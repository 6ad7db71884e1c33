"""examples/figure1.py: training with samples alone ends where quadrature says, in a rest within the tolerance or a
collapse."""

import math
import sys
from pathlib import Path

import pytest
import yaml

from gantrain.data.mixtures import gaussian, mixture1d
from gantrain.objectives import divergences
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.objectives.weighting import Weighting
from gantrain.theory.gaussian_fit import Ending
from gantrain.theory.quadrature import Loss, integrate_divergence

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import figure1
from figure1 import TOLERANCE, find_doubt, has_ended_like, has_variance, judge

P = mixture1d()
# Σwμ = .6·(−1.5) + .4·2 and √(Σw(σ² + μ²) − (Σwμ)²), which KL matches.
MEAN, STD = -0.1, (0.6 * (0.36 + 2.25) + 0.4 * (0.64 + 4.0) - 0.01) ** 0.5


def game(gen_div="kl", gen_objective="matched", disc_div="gan", **settings):
    return Objective(divergences.get(disc_div), divergences.get(gen_div), gen_objective, **settings)


def ends_alike(reached, flow):
    return has_ended_like(Ending(*flow), P, reached)


# ---------------------------------------------------------------------------------------------------------------------
# Through training


FAST = "optimizer.lr=0.004"  # four times the experiment's: the same ends in fewer steps


def train(gantrain, folder, *overrides, images):
    """The verdict on one run of the experiment."""
    fewer = [f"train.{event}_every_images={images}" for event in ("report", "sample", "checkpoint")]
    answer = gantrain("train", "experiment=figure1", f"train.images={images}", *fewer, *overrides, f"run_dir={folder}")
    assert answer.code == 0
    return figure1.judge_run(folder)


def test_training_rests_where_the_exact_flow_does(gantrain, tmp_path):
    end = train(gantrain, tmp_path / "run", "gen_div=reverse_kl", FAST, images=400_000)
    rest = (0.3009, 1.6604)
    assert end.flow == ("rests", pytest.approx(rest[0], abs=1e-4), pytest.approx(rest[1], abs=1e-4))
    assert math.dist(end.reached, rest) / rest[1] < TOLERANCE
    assert (end.doubt, end.kept) == ("", True)
    assert end.describe().startswith("ended at (μ, σ) = (")
    assert end.describe().endswith(f"within the tolerance of {TOLERANCE:g}")


def test_training_collapses_where_the_exact_flow_does(gantrain, tmp_path):
    end = train(gantrain, tmp_path / "run", "gen_div=kl", "gen_objective=ratio", FAST, images=450_000)
    assert end.flow.outcome == "collapses"
    assert end.reached[1] < 0.6 / 3
    assert end.kept is True
    assert end.describe().endswith("theory promises that it collapses, and it does")


def test_a_sweep_has_a_line_a_run_a_table_and_figures(gantrain, tmp_path, capsys):
    few = ["train.images=2000", "train.report_every_images=2000", f"run_dir={tmp_path / 'sweep'}"]
    assert gantrain("train", "-m", "experiment=figure1", "seed=0,1", *few).code == 0
    capsys.readouterr()
    assert figure1.main([str(tmp_path / "sweep")]) == 0
    *lines, blank, heads, _, kl = capsys.readouterr().out.splitlines()
    assert (len(lines), blank, heads.count("|")) == (2, "", 10)
    assert kl.split("|")[1:4] == [" `kl` ", " `matched` ", " 2 "]
    assert "(−0.1000, 1.8472)" in kl
    assert kl.endswith("| 0 of 2 |")  # too short
    assert [path.name for path in (tmp_path / "sweep").glob("figure1-*.png")] == ["figure1-matched.png"]


def test_other_runs_have_no_verdict(gantrain, tmp_path, capsys):
    few = ["architecture=mlp", "train.images=500", f"run_dir={tmp_path / 'run'}"]
    assert gantrain("train", "dataset=mixture1d", *few).code == 0
    capsys.readouterr()
    assert figure1.main([str(tmp_path)]) == 2
    assert "examples/figure1.py SWEEP" in capsys.readouterr().err


def test_an_untrained_generator_is_where_it_began(gantrain, tmp_path):
    found = train(gantrain, tmp_path, "optimizer.generator.lr=0", images=500)
    stored = yaml.safe_load((tmp_path / ".hydra/config.yaml").read_text())
    del stored["gen_weights"]  # as in runs from before there was the key
    (tmp_path / ".hydra/config.yaml").write_text(yaml.safe_dump(stored))
    assert figure1.judge_run(tmp_path) == found
    assert found.reached == (0.0, 1.0)
    assert found.distance == pytest.approx(math.dist((0, 1), (MEAN, STD)) / STD, rel=1e-6)
    assert found.kept is False
    assert "OUTSIDE" in found.describe()


# ---------------------------------------------------------------------------------------------------------------------
# The verdict, on numbers


@pytest.mark.parametrize(("mean", "std"), [(-0.1, 1.85), (5.0, 40.0)])
def test_a_rest_is_met_within_the_tolerance_in_every_direction(mean, std):
    for angle in range(0, 360, 30):
        step = std * math.cos(math.radians(angle)), std * math.sin(math.radians(angle))
        for share, met in ((0.99, True), (1.01, False)):
            reached = mean + share * TOLERANCE * step[0], std + share * TOLERANCE * step[1]
            assert ends_alike(reached, ("rests", mean, std)) is met


def test_within_the_tolerance_kl_from_the_rest_is_below_a_thousandth():
    """KL ≈ ((Δμ)² + 2 (Δσ)²) / 2σ²."""
    for reached in ((MEAN + TOLERANCE * STD, STD), (MEAN, STD * (1 + TOLERANCE)), (MEAN, STD * (1 - TOLERANCE))):
        assert figure1.measure_distance(reached, Ending("rests", MEAN, STD)) == pytest.approx(TOLERANCE, rel=1e-6)
        kl = integrate_divergence(divergences.kl, gaussian(MEAN, STD), gaussian(*reached))
        assert kl == pytest.approx(((reached[0] - MEAN) ** 2 + 2 * (reached[1] - STD) ** 2) / (2 * STD**2), rel=0.1)
        assert kl < 1e-3


@pytest.mark.parametrize(
    ("reached", "flow", "met"),
    [
        ((9.0, 0.199), ("collapses", -0.05, 6e-4), True),  # a third of .6, wherever it is
        ((-0.05, 0.201), ("collapses", -0.05, 6e-4), False),
        ((0.0, 0.5), ("collapses", -0.07, 0.5743), True),  # narrower than where the loss became infinite
        ((0.0, 0.6), ("collapses", -0.07, 0.5743), False),
        ((0.0, 5.5), ("diverges", -0.1, 185.0), False),  # three times the data's 1.847 is 5.54
        ((0.0, 5.6), ("diverges", -0.1, 185.0), True),
        ((-5.7, 0.1), ("diverges", 185.0, 0.1), True),
        ((0.0, 3.0), ("diverges", -0.1, 2.9), True),  # as wide as where the loss has become infinite
    ],
)
def test_collapse_and_divergence(reached, flow, met):
    assert ends_alike(reached, flow) is met


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
def test_the_tails_decide_whether_the_gradient_of_a_sample_has_a_variance(std, gen_objective):
    losses = [Loss(d, *GENERATOR_OBJECTIVES[gen_objective]) for d in divergences.CATALOGUE.values()]
    found = {loss.divergence.name for loss in losses if not has_variance(loss, P, gaussian(0, std))}
    assert found == HEAVY[std, gen_objective]


@pytest.mark.parametrize(("std", "settled"), [(0.97, True), (0.99, False)])
def test_the_variance_of_neyman_ends_where_three_precisions_of_q_are_two_of_p(std, settled):
    assert has_variance(Loss(divergences.get("neyman"), "fake", -1), P, gaussian(0, std)) is settled


def test_neyman_is_promised_nothing_from_so_wide_a_start():
    found = judge(game("neyman"), P, (-1.484, 0.6177))
    assert found.doubt.startswith("at the start a sample's gradient has an infinite variance")
    assert found.kept is None
    assert found.distance < TOLERANCE


@pytest.mark.parametrize(
    ("objective", "regularizers", "reason"),
    [
        (game(), ["instance_noise"], "regularized"),
        (game(weighting=Weighting(spread=0.5)), [], "rescaled weights"),
        (game(head="ratio"), [], "clips"),
        (game("pearson", disc_div="pearson", head="nowozin"), [], "no log-ratio"),
        (game("neyman", "alternative"), [], "infinite at the start"),
    ],
)
def test_nothing_is_promised_without_the_exact_ratio_or_a_flow_that_ends(objective, regularizers, reason):
    found = judge(objective, P, (MEAN, STD), regularizers)
    assert reason in found.doubt
    assert found.kept is None
    assert "theory promises nothing here: " in found.describe()


@pytest.mark.parametrize("outcome", ["unstable", "stalls", "infinite"])
def test_a_flow_without_an_end_gives_no_promise(outcome):
    assert outcome in find_doubt(game(), P, Ending(outcome, 0.0, 1.0))
