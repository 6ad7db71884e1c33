"""The Dirac-GAN: recorded paths against the recursion of Mescheder et al. 2018, linear theory against the catalogue."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from gantrain import data
from gantrain import networks as architectures
from gantrain.errors import ConfigError
from gantrain.networks.latents import Latents
from gantrain.objectives import divergences
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.objectives.regularizers import R1, GradientPenalty, InstanceNoise, LabelSmoothing, Regularizer
from gantrain.runs.metrics_file import read_metrics
from gantrain.theory.dirac import Linear, linearised
from gantrain.training.iteration import Iteration
from gantrain.training.setup import Execution, Schedule, TrainingSetup
from gantrain.training.state import State
from gantrain.training.step import UPDATES
from gantrain.training.trajectory import extent, parameter_values, trajectory

START = 0.5
RATE = 0.1
THETA, PSI = "parameters/generator/position", "parameters/discriminator/weight"
SHORT = ["train.images=14000", "train.report_every_images=200", "train.held_out_images=2"]  # every second step
TABLE = {
    "name": "dirac",
    "generator": [{"op": "point", "features": 1, "start": START}],
    "discriminator": [{"op": "linear", "features": 1, "bias": False, "start": START}],
}


def game(disc_div="gan", gen_div="gan", gen_objective="matched", regularizer=None) -> Objective:
    return Objective(divergences.get(disc_div), divergences.get(gen_div), gen_objective, regularizer=regularizer)


def new_state(optimizer=torch.optim.SGD, start=START, **settings) -> State:
    generator, discriminator = architectures.build(TABLE, (1,), 1)
    for network in (generator, discriminator):
        nn.init.constant_(next(network.parameters()), start)
    built = (optimizer(network.parameters(), **{"lr": RATE} | settings) for network in (generator, discriminator))
    return State(generator, discriminator, *built)


def played(objective: Objective, steps: int, start=START, discriminator_steps=1, update="alternating") -> np.ndarray:
    """(θ, ψ) before every iteration and after the last, trained: `[steps + 1, 2]`."""
    schedule = Schedule(images=steps, batch_size=1, discriminator_steps=discriminator_steps)
    execution = Execution(update=update)
    state = new_state(start=start)
    iteration = Iteration(
        state, TrainingSetup(objective, data.load("dirac"), Latents(1), schedule, execution=execution)
    )
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


def recorded(run) -> np.ndarray:
    return np.array([[report[THETA], report[PSI]] for report in read_metrics(run / "metrics.jsonl")])


# The command line


def test_without_a_penalty_the_players_circle(gantrain, tmp_path):
    run = tmp_path / "run"
    answer = gantrain("train", "experiment=dirac", *SHORT, f"run_dir={run}")
    assert (answer.code, answer.err) == (0, "")
    path = recorded(run)
    np.testing.assert_allclose(path, recursion(140, gamma=0)[2::2], atol=2e-5)
    # ω = f''(1) = 1/2 a unit of time, and slower by (1 + I₀(R²/2))/2 at radius R: here 0.8 %.
    turns = 138 * 2 * math.asin(RATE / 4) / (2 * math.pi)
    summary = json.loads((run / "summary.json").read_text())["trajectory"]
    assert summary["turns"] == pytest.approx(turns, rel=0.015)
    assert summary["theory"]["turns"] == pytest.approx(turns, rel=0.005)
    assert summary["theory"]["eigenvalues"] == [[0, 0.5], [0, -0.5]]
    assert summary["distance"] == pytest.approx(summary["theory"]["distance"], rel=0.02)
    assert answer.out.count(" images/s ") < len(path) / 2  # plain lines are fewer than reports
    assert "(θ, ψ) made 1.1 turns about (0, 0)" in answer.out
    assert "eigenvalues ±0.5i" in answer.out
    assert (run / "trajectory.png").read_bytes().startswith(b"\x89PNG")


def test_under_r1_they_come_to_rest_also_when_interrupted(gantrain, tmp_path):
    gamma, arguments = 0.3, ["experiment=dirac", "regularizer=r1", "regularizer.weight=0.3", *SHORT]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert gantrain("train", *arguments, f"run_dir={whole}").code == 0
    path = recorded(whole)
    np.testing.assert_allclose(path, recursion(140, gamma)[2::2], atol=2e-5)

    # e^{−γt/2} over a whole turn, where the wobble within it does not count.
    angular = math.sqrt(1 / 4 - gamma**2 / 4)
    turn = 2 * round(math.pi / (angular * RATE))
    distance = np.hypot(*path.T)
    measured = math.log(distance[turn // 2] / distance[0]) / (turn * RATE)
    assert measured == pytest.approx(-gamma / 2, rel=0.03)
    summary = json.loads((whole / "summary.json").read_text())["trajectory"]
    assert summary["theory"]["eigenvalues"] == [pytest.approx([-0.15, angular]), pytest.approx([-0.15, -angular])]

    assert gantrain("train", *arguments, "train.images=6000", f"run_dir={parted}").code == 0
    assert gantrain("resume", parted, "train.images=14000").code == 0
    assert np.array_equal(recorded(parted), path)
    assert json.loads((parted / "summary.json").read_text())["trajectory"] == summary

    assert gantrain("sample", whole, "count=5", f"out={tmp_path / 'samples'}").code == 0
    assert np.load(tmp_path / "samples/samples.npy") == pytest.approx(np.full((5, 1), path[-1, 0]))


# Linear theory


def second_derivative(f, u=1.0, h=1e-3) -> float:
    """Of f(u), by differences of the formula alone."""
    r = torch.tensor([u - h, u, u + h], dtype=torch.float64).log()
    below, at, above = f(r).tolist()
    return (below - 2 * at + above) / h**2


SMOOTH = [name for name, d in CATALOGUE.items() if d.invertible]


@pytest.mark.parametrize("name", SMOOTH)
def test_the_pulls_are_the_curvatures_of_f(name):
    """ψ' = −f_D''(1) θ, and θ' = f_G''(1) ψ, but −f_G'(1) ψ under `ratio`."""
    d = divergences.get(name)
    curvature = pytest.approx(second_derivative(d.f), rel=1e-4)
    for objective in GENERATOR_OBJECTIVES:
        linear = linearised(game(name, name, objective))
        slope = pytest.approx(-float(d.real(torch.zeros(1, dtype=torch.float64))), abs=1e-12)
        assert linear == (curvature, slope if objective == "ratio" else curvature, 0)


@pytest.mark.parametrize(
    ("regularizer", "eigenvalue"),
    [
        (Regularizer(), 0.5j),
        (R1(0.3), -0.15 + 0.5j * math.sqrt(1 - 0.3**2)),
        (R1(1.0), -0.5),  # the paper's optimum, γ = 2 f'(0): where turning just ends
        (R1(10.0), -5 + math.sqrt(25 - 0.25)),
        (GradientPenalty(0.15, target=0), -0.15 + 0.5j * math.sqrt(1 - 0.3**2)),
        (InstanceNoise(0.7), -(0.7**2) / 4 + 1j * math.sqrt(0.25 - 0.7**4 / 16)),  # Mescheder et al., lemma on noise
        (LabelSmoothing(0.1), 0.5j),
    ],
)
def test_eigenvalues_are_the_papers(regularizer, eigenvalue):
    linear = linearised(game(regularizer=regularizer))
    first, second = linear.eigenvalues
    assert first == pytest.approx(eigenvalue, abs=1e-12)
    # A small alternating step is one of the flow.
    eta = 1e-6
    field = (linear.iteration(eta, eta) - np.eye(2)) / eta
    assert [field.trace(), np.linalg.det(field)] == pytest.approx([first + second, first * second], abs=1e-5)


def test_a_penalty_with_a_kink_has_no_linear_theory():
    assert linearised(game(regularizer=GradientPenalty(1.0, target=1))) is None


@pytest.mark.parametrize(
    ("disc_div", "gen_div", "gen_objective", "gamma", "k"),
    [
        ("gan", "gan", "matched", 0, 1),
        ("gan", "reverse_kl", "matched", 0, 1),
        ("pearson", "kl", "matched", 0.2, 1),
        ("squared_hellinger", "neyman", "alternative", 0, 3),
        ("gan", "gan", "ratio", 0.2, 2),
        ("gan", "kl", "ratio", 0, 1),  # −f'(1) < 0: a saddle
    ],
)
@pytest.mark.parametrize("update", UPDATES)
def test_small_paths_are_linear_theorys(disc_div, gen_div, gen_objective, gamma, k, update):
    objective = game(disc_div, gen_div, gen_objective, R1(gamma))
    path = played(objective, 60, start=1e-4, discriminator_steps=k, update=update)
    step = linearised(objective).iteration(RATE, RATE, k, simultaneous=update == "simultaneous")
    predicted = [path[0] @ np.linalg.matrix_power(step, n).T for n in range(61)]
    np.testing.assert_allclose(path, predicted, atol=3e-5 * np.abs(path).max())


@pytest.mark.parametrize(("gen_div", "curvature"), [("gan", 0.5), ("reverse_kl", 1), ("jeffreys", 2)])
def test_a_turn_takes_two_pi_over_the_root_of_the_curvatures(gen_div, curvature):
    angle = 2 * math.asin(RATE * math.sqrt(0.5 * curvature) / 2)  # of an alternating step
    steps = round(2 * math.pi / angle)
    path = played(game(gen_div=gen_div), steps, start=0.05)
    assert extent(path)["turns"] == pytest.approx(1, abs=0.01)
    determinant = np.linalg.det(linearised(game(gen_div=gen_div)).iteration(RATE, RATE))
    assert determinant == pytest.approx(1)


@pytest.mark.parametrize(
    ("gen_div", "second", "third"),
    [("softened_reverse_kl", 0.5, -2.5), ("reverse_kl", 1, -2), ("neyman", 2, -3), ("kl", 1, -1), ("gan", 0.5, -1.5)],
)
def test_beyond_first_order_the_third_derivatives_decide(gen_div, second, third):
    """1/E − 1/E₀ = −κ ω² t / 2, for E = θ²/2b + ψ²/2a and κ = f_G'''/f_G'' − f_D'''/f_D'' at 1; D's is −3/2."""
    steps = 250
    theta, psi = played(game(gen_div=gen_div), steps, start=0.25).T
    energy = theta**2 / (2 * second) + psi**2 / (2 * 0.5)
    square = 0.5 * second  # ω²
    turn = round(2 * math.pi / (math.sqrt(square) * RATE))
    turns = [np.mean(energy[:turn]), np.mean(energy[-turn:])]  # means over the first and the last turn
    expected = -(third + 1.5) * square * (steps + 1 - turn) * RATE / 2
    assert 1 / turns[1] - 1 / turns[0] == pytest.approx(expected, rel=0.1, abs=0.1)


# What is recorded, and what is not


def test_only_networks_of_few_parameters_are_recorded():
    values = parameter_values(generator=nn.Linear(2, 1), discriminator=nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)))
    assert list(values) == [
        *(f"parameters/generator/{name}" for name in ("weight", "weight.1", "bias")),
        *(f"parameters/discriminator/{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")),
    ]
    assert parameter_values(generator=nn.Linear(3, 3)) == {}


@pytest.mark.parametrize("settings", [{"momentum": 0.5}, {"weight_decay": 0.1}, {"optimizer": torch.optim.Adam}])
def test_other_optimizers_have_a_path_without_theory(tmp_path, settings):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"images": n, THETA: 1 - n, PSI: 1.0}) + "\n" for n in (0, 1, 2)))
    experiment = TrainingSetup(game(), data.load("dirac"), Latents(1), Schedule(images=2, batch_size=1))
    found = trajectory(new_state(**settings), experiment, metrics)
    assert found.text() == "(θ, ψ) made 0.2 turns about (0, 0), at distance 1.41 first and 1.41 last"
    assert found.summary() == {"turns": pytest.approx(0.25), "distance": pytest.approx([math.sqrt(2)] * 2)}
    assert trajectory(new_state(), experiment, metrics).theory is not None


@pytest.mark.parametrize(
    ("dataset", "generator", "discriminator"),
    [
        ("mixture1d", TABLE["generator"], TABLE["discriminator"]),
        ("dirac", [{"op": "affine", "features": 1}], TABLE["discriminator"]),
        ("dirac", TABLE["generator"], [{"op": "linear", "features": 1}]),
    ],
)
def test_other_runs_have_no_such_path(tmp_path, dataset, generator, discriminator):
    networks = architectures.build({"name": "other", "generator": generator, "discriminator": discriminator}, (1,), 1)
    state = State(*networks, *(torch.optim.SGD(network.parameters()) for network in networks))
    experiment = TrainingSetup(game(), data.load(dataset), Latents(1), Schedule(images=2))
    assert trajectory(state, experiment, tmp_path / "metrics.jsonl") is None


# Its parts


def test_a_point_mass_is_the_origin():
    point = data.load("dirac")
    assert torch.equal(point.batch(7, 3), torch.zeros(3, 1))
    assert torch.equal(point.held_out(2), torch.zeros(2, 1))
    assert data.shapes("dirac") == (point.shape,)
    assert not hasattr(point, "log_density")


def test_rows_begin_where_they_are_told():
    rows = {"generator": TABLE["generator"], "discriminator": [{"op": "linear", "features": 1, "start": -2}]}
    generator, discriminator = architectures.build({"name": "tried"} | rows, (1,), 5)
    assert torch.equal(generator(torch.randn(3, 5)), torch.full((3, 1), START))
    assert torch.equal(discriminator(torch.ones(3, 1)), torch.full((3,), -2.0))
    with pytest.raises(ConfigError, match="init_std"):
        architectures.check({"name": "tried", "init_std": 0.1} | rows)
    with pytest.raises(ConfigError, match="bias=1 must be true or false"):
        architectures.check(TABLE | {"discriminator": [{"op": "linear", "features": 1, "bias": 1}]})


def test_alternating_steps_are_stable_up_to_their_limit():
    """|tr M| < 2 where k η_D η_G a b < 4; with a penalty η γ has to stay below 2 also."""
    for product, inside in ((3.99, True), (4.01, False)):
        radius = max(abs(np.linalg.eigvals(Linear(product, 1, 0).iteration(0.5, 1.0, 2))))
        assert bool(radius < 1 + 1e-6) is inside
    (growth,) = set(abs(np.linalg.eigvals(Linear(0.5, 0.5, 0).iteration(0.1, 0.1, simultaneous=True))))
    assert growth == pytest.approx(math.sqrt(1 + 0.05**2))
    assert max(abs(np.linalg.eigvals(linearised(game(regularizer=R1(10.0))).iteration(0.2, 0.2)))) > 1
    assert max(abs(np.linalg.eigvals(linearised(game(regularizer=R1(10.0))).iteration(0.1, 0.1)))) < 1
