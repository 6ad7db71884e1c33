"""Training with samples alone ends where quadrature says: a rest under `matched`, a collapse under `ratio`."""

import json

import pytest
from torch import nn

from gantrain import architectures, data, divergences
from gantrain.endpoint import endpoint
from gantrain.objective import Objective

ROW = {"op": "linear", "features": 1}
AFFINE = {"name": "affine", "generator": [{"op": "affine", "features": "data"}], "discriminator": [ROW]}
LONGER = ["train.images=1000000", "train.report_every_images=500000", "train.sample_every_images=1000000"]


def test_matched_kl_ends_at_the_moments(gantrain, tmp_path):
    longest = ["train.images=2000000", *LONGER[1:]]
    answer = gantrain("train", "experiment=figure1", *longest, f"run_dir={tmp_path / 'run'}")
    assert answer.code == 0
    assert "ended at (μ, σ) = (" in answer.out
    end = json.loads((tmp_path / "run/summary.json").read_text())["endpoint"]
    # Σwμ = .6·(−1.5) + .4·2 and √(Σw(σ² + μ²) − (Σwμ)²)
    mu, sigma = -0.1, (0.6 * (0.36 + 2.25) + 0.4 * (0.64 + 4.0) - 0.01) ** 0.5
    assert end["theory"] == {
        "outcome": "rests",
        "mean": pytest.approx(mu, abs=1e-3),
        "std": pytest.approx(sigma, abs=1e-3),
    }
    assert end["reached"] == [pytest.approx(mu, abs=0.05), pytest.approx(sigma, abs=0.05)]


def test_ratio_kl_collapses_as_predicted(gantrain, tmp_path):
    run = tmp_path / "run"
    assert gantrain("train", "experiment=figure1", "gen_objective=ratio", *LONGER, f"run_dir={run}").code == 0
    end = json.loads((run / "summary.json").read_text())["endpoint"]
    assert end["theory"]["outcome"] == "collapses"
    assert end["reached"][1] < 0.3


@pytest.mark.parametrize(
    ("name", "generator"),
    [("ring", nn.Linear(2, 2)), ("mixture1d", nn.Linear(1, 1)), ("digits", nn.Linear(64, 64))],
)
def test_other_runs_have_no_endpoint(name, generator):
    game = Objective(divergences.get("gan"), divergences.get("kl"))
    assert endpoint(generator, data.load(name), game) is None


def test_a_head_without_a_ratio_has_no_exact_flow():
    generator, _ = architectures.build(AFFINE, (1,), 1)
    game = Objective(divergences.get("total_variation"), divergences.get("total_variation"))
    assert endpoint(generator, data.load("mixture1d"), game) is None
