"""The Dirac-GAN of examples/dirac.py: paths against the recursion of Mescheder et al. 2018 and linear theory."""

import cmath
import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.formulas import derivative
from torch import nn

from gantrain import data
from gantrain import networks as architectures
from gantrain.config.compose import compose
from gantrain.data import Batch
from gantrain.errors import ConfigError
from gantrain.networks.builder import parameter_values
from gantrain.networks.latents import Latents
from gantrain.objectives import divergences
from gantrain.objectives.critic_objective import CriticObjective
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.objectives.weighting import Weighting
from gantrain.regularizers.gradient_penalties import R1, R2, Dragan, GradientPenalty
from gantrain.regularizers.regularizers import (
    REGULARIZERS,
    Balanced,
    InstanceNoise,
    LabelSmoothing,
    LeCam,
    WeightClipping,
)
from gantrain.runs.metrics_file import read_metrics
from gantrain.training.iteration import Iteration
from gantrain.training.losses import Losses
from gantrain.training.setup import Execution, Schedule, TrainingSetup
from gantrain.training.state import State, create_regularizer_states
from gantrain.training.step import UPDATES

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import dirac
from dirac import LinearGame, linearise

START = 0.5
RATE = 0.1
THETA, PSI = "parameters/generator/position", "parameters/discriminator/weight"
SHORT = ["train.images=14000", "train.report_every_images=200", "train.held_out_images=2"]  # 140 steps, 70 reports
TABLE = {
    "name": "dirac",
    "generator": [{"op": "point", "features": 1, "start": START}],
    "discriminator": [{"op": "linear", "features": 1, "bias": False, "start": START}],
}


def game(disc_div="gan", gen_div="gan", gen_objective="matched", **settings) -> Objective:
    return Objective(divergences.get(disc_div), divergences.get(gen_div), gen_objective, **settings)


def r1(weight: float) -> dict[str, object]:
    return {"r1": {"weight": weight}}


def new_state(start: float) -> State:
    generator, discriminator = architectures.build(TABLE, (1,), 1)
    for network in (generator, discriminator):
        nn.init.constant_(next(network.parameters()), start)
    built = (torch.optim.SGD(network.parameters(), lr=RATE) for network in (generator, discriminator))
    return State(generator, discriminator, *built)


def play(
    objective: Objective, steps: int, *regularizers, start=START, discriminator_steps=1, update="alternating"
) -> np.ndarray:
    """(θ, ψ) before every iteration and after the last, trained: `[steps + 1, 2]`."""
    schedule = Schedule(images=steps, batch_size=1, discriminator_steps=discriminator_steps)
    execution = Execution(update=update)
    state = new_state(start)
    state.regularizers = create_regularizer_states(regularizers)
    setup = TrainingSetup(objective, data.load("dirac"), Latents(1), schedule, 0, execution, regularizers)
    iteration = Iteration(state, setup)
    path = [(start, start)]
    for _ in range(steps):
        iteration.play()
        path.append(tuple(parameter_values(g=state.generator, d=state.discriminator).values()))
    return np.array(path)


def recursion(steps: int, gamma: float) -> np.ndarray:
    """Alternating descent as the paper's equations have it: D first, G against the new D; no step before the first.

    D maximises log σ(ψ·0) + log(1 − σ(ψθ)) − γψ²/2 and G minimises log(1 − σ(ψθ)).
    """
    theta = psi = START
    path = [(theta, psi)]
    for _ in range(steps):
        psi += RATE * (-theta / (1 + math.exp(-psi * theta)) - gamma * psi)
        theta += RATE * psi / (1 + math.exp(-psi * theta))
        path.append((theta, psi))
    return np.array(path)


def read_recorded(run) -> np.ndarray:
    return np.array([[report[THETA], report[PSI]] for report in read_metrics(run / "metrics.jsonl")])


# The command line and the example


def test_without_a_penalty_the_players_circle(gantrain, tmp_path, capsys):
    run = tmp_path / "run"
    answer = gantrain("train", "experiment=dirac", *SHORT, f"run_dir={run}")
    assert (answer.code, answer.err) == (0, "")
    path = read_recorded(run)
    np.testing.assert_allclose(path, recursion(140, gamma=0)[2::2], atol=2e-5)
    assert answer.out.count(" images/s ") < len(path) / 2  # plain lines are fewer than reports
    # ω = f''(1) = 1/2 a unit of time, and slower by (1 + I₀(R²/2))/2 at radius R: here 0.8 %.
    turns = 138 * 2 * math.asin(RATE / 4) / (2 * math.pi)
    theory = dirac.read_path(run).theory
    measured, predicted = dirac.measure_path(path), dirac.measure_path(theory.points)
    assert (measured[0], predicted[0]) == (pytest.approx(turns, rel=0.015), pytest.approx(turns, rel=0.005))
    assert measured[1:] == pytest.approx(predicted[1:], rel=0.02)
    assert theory.eigenvalues == (0.5j, -0.5j)

    stored = yaml.safe_load((run / ".hydra/config.yaml").read_text())
    del stored["gen_weights"]  # as in runs from before there was the key
    (run / ".hydra/config.yaml").write_text(yaml.safe_dump(stored))
    assert dirac.main([str(run)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{run}: (θ, ψ) made 1.1 turns about (0, 0)")
    assert "eigenvalues ±0.5i" in said
    assert (run / "dirac.png").read_bytes().startswith(b"\x89PNG")


def test_r1_damps_the_rotation(gantrain, tmp_path):
    gamma, run = 0.3, tmp_path / "run"
    arguments = ["experiment=dirac", "regularizer=r1", f"regularizer.weight={gamma}", *SHORT]
    assert gantrain("train", *arguments, f"run_dir={run}").code == 0
    path = read_recorded(run)
    np.testing.assert_allclose(path, recursion(140, gamma)[2::2], atol=2e-5)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["gen_weights"] == {"normalise": False, "spread": None}
    assert summary["regularizer"]["r1"]["weight"] == gamma

    # e^{−γt/2} over a whole rotation, within which the distance oscillates.
    angular = math.sqrt(1 / 4 - gamma**2 / 4)
    turn = 2 * round(math.pi / (angular * RATE))
    distance = np.hypot(*path.T)
    measured = math.log(distance[turn // 2] / distance[0]) / (turn * RATE)
    assert measured == pytest.approx(-gamma / 2, rel=0.03)
    assert dirac.read_path(run).theory.eigenvalues == pytest.approx((-0.15 + 1j * angular, -0.15 - 1j * angular))

    assert gantrain("sample", run, "count=5", f"out={tmp_path / 'samples'}").code == 0
    assert np.load(tmp_path / "samples/samples.npy") == pytest.approx(np.full((5, 1), path[-1, 0]))


@pytest.mark.parametrize(
    "overrides",
    ["optimizer.momentum=0.5", "+optimizer.weight_decay=0.1", "optimizer=adam", "regularizer=gradient_penalty"],
)
def test_other_optimizers_and_kinks_have_no_linear_theory(overrides):
    settings = compose(["experiment=dirac", overrides])
    assert dirac.predict_path(settings, settings.regularizer, np.array([START, START]), 5) is None


def test_a_path_without_theory_is_described_and_drawn_and_other_runs_have_none(gantrain, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "other"
    assert (
        gantrain("train", "experiment=dirac", *SHORT, "train.images=800", "optimizer=adam", f"run_dir={run}").code == 0
    )
    path = dirac.read_path(run)
    assert re.fullmatch(
        r"\(θ, ψ\) made \S+ turns about \(0, 0\), at distance \S+ first and \S+ last", dirac.describe_path(path)
    )
    dirac.draw_path(path, tmp_path / "path.png")
    few = ["dataset=mixture1d", "train.images=1000", "train.report_every_images=500"]
    assert gantrain("train", *few, f"run_dir={other}").code == 0
    assert dirac.main([str(other)]) == 2
    assert "examples/dirac.py SWEEP" in capsys.readouterr().err


def test_turns_and_distances():
    assert dirac.measure_path(np.array([[1, 1], [0, 1], [-1, 1.0]])) == pytest.approx(
        (0.25, math.sqrt(2), math.sqrt(2))
    )


# Linear theory


@pytest.mark.parametrize("name", [name for name, d in CATALOGUE.items() if d.invertible])
def test_the_coefficients_are_the_curvatures_of_f(name):
    """ψ' = −f_D''(1) θ, and θ' = f_G''(1) ψ, but −f_G'(1) ψ under `ratio`."""
    curvature = pytest.approx(derivative(name, 1, 2))
    for objective in GENERATOR_OBJECTIVES:
        b = pytest.approx(-derivative(name, 1, 1), abs=1e-12) if objective == "ratio" else curvature
        assert linearise(game(name, name, objective)) == (curvature, b, 0)


@pytest.mark.parametrize(
    ("regularizers", "eigenvalue"),
    [
        ({}, 0.5j),
        (r1(0.3), -0.15 + 0.5j * math.sqrt(1 - 0.3**2)),
        (r1(1.0), -0.5),  # the paper's optimum, γ = 2 f'(0): critical damping
        (r1(10.0), -5 + math.sqrt(25 - 0.25)),
        ({"r2": {"weight": 0.3}}, -0.15 + 0.5j * math.sqrt(1 - 0.3**2)),
        # R1 and R2 of weight γ: −γ ± √(γ² − 1/4)
        ({"r1": {"weight": 0.2}, "r2": {"weight": 0.2}}, -0.2 + 1j * math.sqrt(0.25 - 0.2**2)),
        ({"dragan": {"weight": 0.15, "target": 0}}, -0.15 + 0.5j * math.sqrt(1 - 0.3**2)),
        ({"gradient_penalty": {"weight": 9.0, "target": 1, "one_sided": True}}, 0.5j),
        ({"lecam": {"weight": 0.3, "decay": 0.99}}, 0.5j),
        ({"balanced": {"weight": 100.0}}, 0.5j),
        ({"gradient_penalty": {"weight": 0.15, "target": 0}}, -0.15 + 0.5j * math.sqrt(1 - 0.3**2)),
        # Mescheder et al., lemma on noise
        ({"instance_noise": {"std": 0.7}}, -(0.7**2) / 4 + 1j * math.sqrt(0.25 - 0.7**4 / 16)),
        ({"label_smoothing": {"smoothing": 0.1}}, 0.5j),
    ],
)
def test_eigenvalues_are_the_papers(regularizers, eigenvalue):
    linear = linearise(game(), regularizers)
    first, second = linear.eigenvalues
    assert first == pytest.approx(eigenvalue, abs=1e-12)
    # A small alternating step is one of the flow.
    eta = 1e-6
    field = (linear.iteration(eta, eta) - np.eye(2)) / eta
    assert [field.trace(), np.linalg.det(field)] == pytest.approx([first + second, first * second], abs=1e-5)


def test_with_normalised_weights_theta_follows_psi():
    assert linearise(game(weighting=Weighting(normalise=True))) == (0.5, 1, 0)


def test_every_regularizer_has_its_damping_and_a_kink_has_none():
    assert set(dirac.DAMPING) == set(REGULARIZERS)
    assert linearise(game(), {"gradient_penalty": {"weight": 1.0, "target": 1}}) is None


@pytest.mark.parametrize(
    "regularizer",
    [
        *(R1(0.2), R2(0.2), Dragan(0.1, target=0.0), GradientPenalty(0.1, target=0.0)),
        *(GradientPenalty(one_sided=True), LeCam(1.0), Balanced(), WeightClipping(1.0), LabelSmoothing()),
    ],
    ids=lambda regularizer: regularizer.name,
)
def test_a_small_path_shows_the_damping_of_each_regularizer(regularizer):
    objective = game(smoothing=regularizer.smoothing)
    path = play(objective, 60, regularizer, start=1e-4)
    linear = linearise(game(), {regularizer.name: dataclasses.asdict(regularizer)})
    predicted = [path[0] @ np.linalg.matrix_power(linear.iteration(RATE, RATE), n).T for n in range(61)]
    np.testing.assert_allclose(path, predicted, atol=1e-3 * np.abs(path).max())


def test_instance_noise_damps_as_a_penalty_of_its_variance_would():
    """The gradient of D's loss at D(x) = ψx and θ = 0, over two million draws: γψ with γ = f''(1) · 2 · std²."""
    slope, x = torch.tensor(0.2, requires_grad=True), torch.zeros(2_000_000, 1)
    torch.manual_seed(0)
    losses = Losses(game(), (InstanceNoise(std=0.7),))
    loss, _ = losses.discriminator_loss(lambda x: slope * x.flatten(), Batch(x), x)
    loss.backward()
    gamma = dirac.DAMPING["instance_noise"]({"std": 0.7}, 0.5)
    assert float(slope.grad) == pytest.approx(gamma * 0.2, rel=0.03)


@pytest.mark.parametrize(
    ("disc_div", "gen_div", "gen_objective", "gamma", "k"),
    [
        ("pearson", "kl", "matched", 0.2, 1),
        ("squared_hellinger", "neyman", "alternative", 0, 3),
        ("gan", "gan", "ratio", 0.2, 2),
        ("gan", "kl", "ratio", 0, 1),  # −f'(1) < 0: a saddle
    ],
)
@pytest.mark.parametrize("update", UPDATES)
def test_small_paths_are_linear_theorys(disc_div, gen_div, gen_objective, gamma, k, update):
    objective = game(disc_div, gen_div, gen_objective)
    path = play(objective, 60, R1(gamma), start=1e-4, discriminator_steps=k, update=update)
    linear = linearise(game(disc_div, gen_div, gen_objective), r1(gamma))
    step = linear.iteration(RATE, RATE, k, simultaneous=update == "simultaneous")
    predicted = [path[0] @ np.linalg.matrix_power(step, n).T for n in range(61)]
    np.testing.assert_allclose(path, predicted, atol=3e-5 * np.abs(path).max())


@pytest.mark.parametrize(("gen_div", "curvature"), [("reverse_kl", 1), ("jeffreys", 2)])
def test_a_turn_takes_two_pi_over_the_root_of_the_curvatures(gen_div, curvature):
    angle = 2 * math.asin(RATE * math.sqrt(0.5 * curvature) / 2)  # of an alternating step
    steps = round(2 * math.pi / angle)
    path = play(game(gen_div=gen_div), steps, start=0.05)
    assert dirac.measure_path(path)[0] == pytest.approx(1, abs=0.01)
    determinant = np.linalg.det(linearise(game(gen_div=gen_div)).iteration(RATE, RATE))
    assert determinant == pytest.approx(1)


@pytest.mark.parametrize("gen_div", ["softened_reverse_kl", "kl", "gan"])
def test_beyond_first_order_the_third_derivatives_decide(gen_div):
    """1/E − 1/E₀ = −κ ω² t / 2, for E = θ²/2b + ψ²/2a and κ = f_G'''/f_G'' − f_D'''/f_D'' at 1; D's is −3/2."""
    steps, second = 250, derivative(gen_div, 1, 2)
    theta, psi = play(game(gen_div=gen_div), steps, start=0.25).T
    energy = theta**2 / (2 * second) + psi**2 / (2 * 0.5)
    square = 0.5 * second  # ω²
    turn = round(2 * math.pi / (math.sqrt(square) * RATE))
    turns = [np.mean(energy[:turn]), np.mean(energy[-turn:])]  # means over the first and the last turn
    expected = -(derivative(gen_div, 1, 3) / second + 1.5) * square * (steps + 1 - turn) * RATE / 2
    assert 1 / turns[1] - 1 / turns[0] == pytest.approx(expected, rel=0.1, abs=0.1)


@pytest.mark.parametrize("target", [0.5, 1.0])
def test_wgan_gp_keeps_the_slope_at_its_target_and_does_not_converge(target):
    """ψ' = −θ − 2w(ψ − target): with 2w·RATE = 1, D is at its optimum target − θ/2w after every step."""
    weight = 0.5 / RATE
    theta, psi = play(CriticObjective("wasserstein"), 400, GradientPenalty(weight, target=target), start=0.01).T
    assert psi[1:11] == pytest.approx(target - theta[:10] / (2 * weight), rel=1e-5)
    assert np.hypot(theta, psi)[-200:].min() > target / 2
    centred = play(CriticObjective("wasserstein"), 400, GradientPenalty(weight, target=0.0), start=0.01)
    assert np.hypot(*centred[-1]) < 1e-3


def test_with_clipped_weights_theta_moves_at_constant_speed_and_ends_on_a_circle():
    limit = 0.05
    theta, psi = play(CriticObjective("wasserstein"), 800, WeightClipping(limit), start=START).T
    assert psi[5:50] == pytest.approx(-limit)
    assert np.diff(theta[5:50]) == pytest.approx(-RATE * limit, rel=1e-4)
    assert max(abs(psi[1:])) <= np.float32(limit)
    assert np.hypot(theta, psi)[-200:] == pytest.approx(limit, rel=0.15)


@pytest.mark.parametrize("gamma", [0.2, 0.5, 2.0])
def test_small_paths_of_pairs_with_r1_and_r2_are_linear_theorys(gamma):
    """λ = −γ ± √(γ² − ¼): both penalties are γψ²/2 near the origin."""
    linear, root = LinearGame(0.5, 0.5, 2 * gamma), cmath.sqrt(gamma**2 - 0.25)
    assert sum(linear.eigenvalues) == pytest.approx(-2 * gamma)
    assert abs(linear.eigenvalues[0] - linear.eigenvalues[1]) == pytest.approx(2 * abs(root))
    path = play(CriticObjective("relativistic"), 60, R1(gamma), R2(gamma), start=1e-4)
    predicted = [path[0] @ np.linalg.matrix_power(linear.iteration(RATE, RATE), n).T for n in range(61)]
    np.testing.assert_allclose(path, predicted, atol=1e-3 * np.abs(path).max())


# Records and parts


def test_only_networks_of_few_parameters_are_recorded():
    values = parameter_values(generator=nn.Linear(2, 1), discriminator=nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)))
    assert list(values) == [
        *(f"parameters/generator/{name}" for name in ("weight", "weight.1", "bias")),
        *(f"parameters/discriminator/{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")),
    ]
    assert parameter_values(generator=nn.Linear(3, 3)) == {}


def test_a_point_mass_is_the_origin():
    point = data.load("dirac")
    assert torch.equal(point.batch(7, 3).images, torch.zeros(3, 1))
    assert torch.equal(point.held_out(2), torch.zeros(2, 1))
    assert data.DatasetSettings("dirac").shapes == (point.shape,)
    assert not hasattr(point, "log_density")


def test_rows_have_their_start_value():
    rows = {"generator": TABLE["generator"], "discriminator": [{"op": "linear", "features": 1, "start": -2}]}
    generator, discriminator = architectures.build({"name": "tried"} | rows, (1,), 5)
    assert torch.equal(generator(torch.randn(3, 5)), torch.full((3, 1), START))
    assert torch.equal(discriminator(torch.ones(3, 1)), torch.full((3,), -2.0))
    with pytest.raises(ConfigError, match="init_std"):
        architectures.parse_tables({"name": "tried", "init_std": 0.1} | rows)
    with pytest.raises(ConfigError, match="bias=1 must be true or false"):
        architectures.parse_tables(TABLE | {"discriminator": [{"op": "linear", "features": 1, "bias": 1}]})


def test_alternating_steps_are_stable_up_to_their_limit():
    """|tr M| < 2 where k η_D η_G a b < 4; with a penalty η γ has to stay below 2 also."""
    for product, inside in ((3.99, True), (4.01, False)):
        radius = max(abs(np.linalg.eigvals(LinearGame(product, 1, 0).iteration(0.5, 1.0, 2))))
        assert bool(radius < 1 + 1e-6) is inside
    (growth,) = set(abs(np.linalg.eigvals(LinearGame(0.5, 0.5, 0).iteration(0.1, 0.1, simultaneous=True))))
    assert growth == pytest.approx(math.sqrt(1 + 0.05**2))
    assert max(abs(np.linalg.eigvals(linearise(game(), r1(10.0)).iteration(0.2, 0.2)))) > 1
    assert max(abs(np.linalg.eigvals(linearise(game(), r1(10.0)).iteration(0.1, 0.1)))) < 1
